// Compiled once for each instruction set, with POINT_KERNELS_ISA as its name and POINT_KERNELS_VECTOR_BYTES.
#define POINT_KERNELS_JOIN_(a, b) a##b
#define POINT_KERNELS_JOIN(a, b) POINT_KERNELS_JOIN_(a, b)
#define POINT_KERNELS_TEXT_(a) #a
#define POINT_KERNELS_TEXT(a) POINT_KERNELS_TEXT_(a)
#define POINT_KERNELS_NAMESPACE POINT_KERNELS_JOIN(point_kernels_, POINT_KERNELS_ISA)

#include "kernels.h"

#include "chamfer.h"
#include "farthest_point_sample.h"
#include "k_nearest_neighbors.h"
#include "linear_max.h"

namespace POINT_KERNELS_NAMESPACE {
namespace {

// Calls `kernel(T{})` for the element type of the clouds, and turns its outcome into a status.
template <class Kernel>
int run(int is_double, const Kernel& kernel) {
    try {
        return (is_double ? kernel(double{}) : kernel(float{})) ? POINT_KERNELS_OK : POINT_KERNELS_INDEX_OUT_OF_RANGE;
    } catch (const std::bad_alloc&) {
        return POINT_KERNELS_OUT_OF_MEMORY;
    }
}

int run_farthest_point_sample(int is_double, const void* points, int64_t batch, int64_t num_points,
                              int64_t num_samples, int skip_near_origin, int threads, int64_t* chosen) {
    return run(is_double, [&](auto element) {
        using T = decltype(element);
        farthest_point_sample(static_cast<const T*>(points), batch, num_points, num_samples, skip_near_origin != 0,
                              threads, chosen);
        return true;
    });
}

int run_k_nearest_neighbors(int is_double, const void* queries, const void* points, int64_t batch,
                            int64_t num_queries, int64_t num_points, int64_t k, int threads, void* distances,
                            int64_t* indices) {
    return run(is_double, [&](auto element) {
        using T = decltype(element);
        k_nearest_neighbors(static_cast<const T*>(queries), static_cast<const T*>(points), batch, num_queries,
                            num_points, k, threads, static_cast<T*>(distances), indices);
        return true;
    });
}

int run_chamfer_forward(int is_double, const void* points, const void* target, int64_t batch, int64_t num_points,
                        int64_t num_targets, int squared, int threads, void* loss, int64_t* nearest_target,
                        int64_t* nearest_point) {
    return run(is_double, [&](auto element) {
        using T = decltype(element);
        const ChamferBatch<T> pairs = {static_cast<const T*>(points), static_cast<const T*>(target), batch, num_points,
                                       num_targets, squared != 0, nearest_target, nearest_point};
        chamfer_forward(pairs, threads, static_cast<T*>(loss));
        return true;
    });
}

int run_chamfer_backward(int is_double, const void* grad_loss, const void* points, const void* target,
                         const int64_t* nearest_target, const int64_t* nearest_point, int64_t batch,
                         int64_t num_points, int64_t num_targets, int squared, int threads, void* grad_points,
                         void* grad_target) {
    return run(is_double, [&](auto element) {
        using T = decltype(element);
        const ChamferBatch<T> pairs = {static_cast<const T*>(points), static_cast<const T*>(target), batch, num_points,
                                       num_targets, squared != 0, const_cast<int64_t*>(nearest_target),
                                       const_cast<int64_t*>(nearest_point)};
        return chamfer_backward(pairs, static_cast<const T*>(grad_loss), threads, static_cast<T*>(grad_points),
                                static_cast<T*>(grad_target));
    });
}

int run_group_max(int is_double, const void* values, int64_t groups, int64_t rows, int64_t channels, int threads,
                  void* maximum, int32_t* indices) {
    return run(is_double, [&](auto element) {
        using T = decltype(element);
        group_max(static_cast<const T*>(values), groups, rows, channels, threads, static_cast<T*>(maximum), indices);
        return true;
    });
}

int run_linear_max_backward(int is_double, const void* grad, const int32_t* indices, const void* inputs,
                            const void* weight, int64_t groups, int64_t rows, int64_t channels, int64_t features,
                            int threads, void* grad_inputs, void* grad_weight) {
    return run(is_double, [&](auto element) {
        using T = decltype(element);
        return linear_max_backward(static_cast<const T*>(grad), indices, static_cast<const T*>(inputs),
                                   static_cast<const T*>(weight), groups, rows, channels, features, threads,
                                   static_cast<T*>(grad_inputs), static_cast<T*>(grad_weight));
    });
}

}  // namespace
}  // namespace POINT_KERNELS_NAMESPACE

namespace point_kernels {

extern const Kernels POINT_KERNELS_JOIN(POINT_KERNELS_ISA, _kernels);
const Kernels POINT_KERNELS_JOIN(POINT_KERNELS_ISA, _kernels) = {
    POINT_KERNELS_TEXT(POINT_KERNELS_ISA),
    POINT_KERNELS_NAMESPACE::run_farthest_point_sample,
    POINT_KERNELS_NAMESPACE::run_k_nearest_neighbors,
    POINT_KERNELS_NAMESPACE::run_chamfer_forward,
    POINT_KERNELS_NAMESPACE::run_chamfer_backward,
    POINT_KERNELS_NAMESPACE::run_group_max,
    POINT_KERNELS_NAMESPACE::run_linear_max_backward,
};

}  // namespace point_kernels
