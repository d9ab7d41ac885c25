// The C interface of the library: what cpu_ops.py binds with ctypes. No torch and no Python header takes part.
//
// Clouds are dense arrays (batch, points, 3) of float or double, told apart by `is_double`. Indices are int64. The
// caller has checked the shapes: at least one point a cloud, 1 <= k <= points, fewer than 2^31 points. Any values are
// safe, NaN included.
#ifndef POINT_KERNELS_H
#define POINT_KERNELS_H

#include <stdint.h>

#define POINT_KERNELS_EXPORT __attribute__((visibility("default")))

enum PointKernelsStatus {
    POINT_KERNELS_OK = 0,
    POINT_KERNELS_OUT_OF_MEMORY = 1,
    POINT_KERNELS_INDEX_OUT_OF_RANGE = 2,
};

#ifdef __cplusplus
extern "C" {
#endif

// Uses the build named "plain", "avx2" or "avx512" from now on, or with null the best that this processor runs.
// Returns the name of the one in use, or null if there is no such build or the processor cannot run it.
POINT_KERNELS_EXPORT const char* point_kernels_select(const char* name);

// chosen: (batch, num_samples).
POINT_KERNELS_EXPORT int point_kernels_farthest_point_sample(
    int is_double, const void* points, int64_t batch, int64_t num_points, int64_t num_samples, int skip_near_origin,
    int threads, int64_t* chosen);

// distances, indices: (batch, num_queries, k).
POINT_KERNELS_EXPORT int point_kernels_k_nearest_neighbors(
    int is_double, const void* queries, const void* points, int64_t batch, int64_t num_queries, int64_t num_points,
    int64_t k, int threads, void* distances, int64_t* indices);

// nearest_target: (batch, num_points), nearest_point: (batch, num_targets), loss: (batch,) or null.
POINT_KERNELS_EXPORT int point_kernels_chamfer_forward(
    int is_double, const void* points, const void* target, int64_t batch, int64_t num_points, int64_t num_targets,
    int squared, int threads, void* loss, int64_t* nearest_target, int64_t* nearest_point);

// grad_loss: (batch,); grad_points and grad_target have the shapes of the clouds.
POINT_KERNELS_EXPORT int point_kernels_chamfer_backward(
    int is_double, const void* grad_loss, const void* points, const void* target, const int64_t* nearest_target,
    const int64_t* nearest_point, int64_t batch, int64_t num_points, int64_t num_targets, int squared, int threads,
    void* grad_points, void* grad_target);

// values: (groups, rows, channels); maximum, indices: (groups, channels).
POINT_KERNELS_EXPORT int point_kernels_group_max(int is_double, const void* values, int64_t groups, int64_t rows,
                                                 int64_t channels, int threads, void* maximum, int32_t* indices);

// grad, indices: (groups, channels); inputs, grad_inputs: (groups, rows, features); weight, grad_weight: (channels,
// features).
POINT_KERNELS_EXPORT int point_kernels_linear_max_backward(
    int is_double, const void* grad, const int32_t* indices, const void* inputs, const void* weight, int64_t groups,
    int64_t rows, int64_t channels, int64_t features, int threads, void* grad_inputs, void* grad_weight);

#ifdef __cplusplus
}
#endif
#endif
