// The C interface: picks the build for this processor, and starts threads.
#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels.h"

namespace point_kernels {

void run_on_threads(int threads, void (*worker)(void*), void* context) {
    std::atomic<bool> out_of_memory{false};
    const auto guarded = [&] {
        try {
            worker(context);
        } catch (const std::bad_alloc&) {
            out_of_memory = true;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < threads; ++i) others.emplace_back(guarded);
    } catch (const std::system_error&) {
        // No more threads to be had: those that run share the tasks.
    }
    guarded();
    for (std::thread& other : others) other.join();
    if (out_of_memory) throw std::bad_alloc();
}

namespace {

bool runs([[maybe_unused]] const Kernels& kernels) {
#ifdef POINT_KERNELS_X86
    __builtin_cpu_init();
    if (&kernels == &avx2_kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (&kernels == &avx512_kernels)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
    return true;
}

const Kernels* const kBuilds[] = {  // the best first
#ifdef POINT_KERNELS_X86
    &avx512_kernels, &avx2_kernels,
#endif
    &plain_kernels};

const Kernels* find(const char* name) {
    for (const Kernels* kernels : kBuilds)
        if ((name == nullptr || std::strcmp(name, kernels->name) == 0) && runs(*kernels)) return kernels;
    return nullptr;
}

std::atomic<const Kernels*> selected{find(nullptr)};

}  // namespace
}  // namespace point_kernels

using point_kernels::selected;

const char* point_kernels_select(const char* name) {
    const point_kernels::Kernels* kernels = point_kernels::find(name);
    if (kernels == nullptr) return nullptr;
    selected = kernels;
    return kernels->name;
}

int point_kernels_farthest_point_sample(int is_double, const void* points, int64_t batch, int64_t num_points,
                                        int64_t num_samples, int skip_near_origin, int threads, int64_t* chosen) {
    return selected.load()->farthest_point_sample(is_double, points, batch, num_points, num_samples, skip_near_origin,
                                                  threads, chosen);
}

int point_kernels_k_nearest_neighbors(int is_double, const void* queries, const void* points, int64_t batch,
                                      int64_t num_queries, int64_t num_points, int64_t k, int threads,
                                      void* distances, int64_t* indices) {
    return selected.load()->k_nearest_neighbors(is_double, queries, points, batch, num_queries, num_points, k, threads,
                                                distances, indices);
}

int point_kernels_chamfer_forward(int is_double, const void* points, const void* target, int64_t batch,
                                  int64_t num_points, int64_t num_targets, int squared, int threads, void* loss,
                                  int64_t* nearest_target, int64_t* nearest_point) {
    return selected.load()->chamfer_forward(is_double, points, target, batch, num_points, num_targets, squared,
                                            threads, loss, nearest_target, nearest_point);
}

int point_kernels_chamfer_backward(int is_double, const void* grad_loss, const void* points, const void* target,
                                   const int64_t* nearest_target, const int64_t* nearest_point, int64_t batch,
                                   int64_t num_points, int64_t num_targets, int squared, int threads,
                                   void* grad_points, void* grad_target) {
    return selected.load()->chamfer_backward(is_double, grad_loss, points, target, nearest_target, nearest_point,
                                             batch, num_points, num_targets, squared, threads, grad_points,
                                             grad_target);
}

int point_kernels_group_max(int is_double, const void* values, int64_t groups, int64_t rows, int64_t channels,
                            int threads, void* maximum, int32_t* indices) {
    return selected.load()->group_max(is_double, values, groups, rows, channels, threads, maximum, indices);
}

int point_kernels_linear_max_backward(int is_double, const void* grad, const int32_t* indices, const void* inputs,
                                      const void* weight, int64_t groups, int64_t rows, int64_t channels,
                                      int64_t features, int threads, void* grad_inputs, void* grad_weight) {
    return selected.load()->linear_max_backward(is_double, grad, indices, inputs, weight, groups, rows, channels,
                                                features, threads, grad_inputs, grad_weight);
}
