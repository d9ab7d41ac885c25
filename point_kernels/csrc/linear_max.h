// The maximum over a group's points of a linear map of them, as in a PointNet. Its gradient reaches one point for each
// group and channel, so the two matrix products of a dense backward pass are sparse: 1 / group_size of the work.
#ifndef POINT_KERNELS_LINEAR_MAX_H
#define POINT_KERNELS_LINEAR_MAX_H

#include "parallel.h"
#include "simd.h"

namespace POINT_KERNELS_NAMESPACE {

// A block of weight rows that stays in a core's own cache, beside the points of a group.
constexpr int64_t kWeightBlockBytes = 192 * 1024;

// target += factor * source
template <class T>
inline void add_scaled(T* target, T factor, const T* source, int64_t size) {
    const Vector<T> factors = broadcast(factor);
    int64_t i = 0;
    for (; i + kWidth<T> <= size; i += kWidth<T>) store(target + i, load(target + i) + factors * load(source + i));
    for (; i < size; ++i) target[i] += factor * source[i];
}

// Each channel's largest of the group's rows, and the first row that has it; a NaN is larger than everything.
template <class T>
void max_of_rows(const T* values, int64_t num_rows, int64_t channels, T* maximum, int32_t* indices) {
    int64_t channel = 0;
    for (; channel + kWidth<T> <= channels; channel += kWidth<T>) {
        Vector<T> best = load(values + channel);
        Integers<T> best_row = {};
        for (int64_t row = 1; row < num_rows; ++row) {
            const Vector<T> value = load(values + row * channels + channel);
            const Integers<T> better = (value > best) | ((value != value) & (best == best));
            best = better ? value : best;
            best_row = better ? Integers<T>{} + typename Simd<T>::Integer(row) : best_row;
        }
        store(maximum + channel, best);
        for (int64_t lane = 0; lane < kWidth<T>; ++lane) indices[channel + lane] = int32_t(best_row[lane]);
    }
    for (; channel < channels; ++channel) {
        maximum[channel] = values[channel];
        indices[channel] = 0;
        for (int64_t row = 1; row < num_rows; ++row) {
            const T value = values[row * channels + channel], best = maximum[channel];
            if (value > best || (value != value && best == best)) {
                maximum[channel] = value;
                indices[channel] = int32_t(row);
            }
        }
    }
}

// values (groups, rows, channels) -> maximum and indices (groups, channels).
template <class T>
void group_max(const T* values, int64_t groups, int64_t rows, int64_t channels, int threads, T* maximum,
               int32_t* indices) {
    share_tasks(groups, double(groups) * rows * channels, threads, [&](TaskQueue& queue) {
        for (int64_t group; queue.next(group);)
            max_of_rows(values + group * rows * channels, rows, channels, maximum + group * channels,
                        indices + group * channels);
    });
}

// grad and indices (groups, channels), inputs (groups, rows, features), weight (channels, features) -> gradients of
// inputs and weight. Sums run in the order of channels and of groups, whatever the number of threads.
template <class T>
bool linear_max_backward(const T* grad, const int32_t* indices, const T* inputs, const T* weight, int64_t groups,
                         int64_t rows, int64_t channels, int64_t features, int threads, T* grad_inputs,
                         T* grad_weight) {
    for (int64_t i = 0; i < groups * channels; ++i)
        if (indices[i] < 0 || indices[i] >= rows) return false;
    const double operations = double(groups) * channels * features;
    share_tasks(groups, operations, threads, [&](TaskQueue& queue) {
        for (int64_t group; queue.next(group);) {
            T* target = grad_inputs + group * rows * features;
            memset(target, 0, rows * features * sizeof(T));
            for (int64_t channel = 0; channel < channels; ++channel) {
                const int64_t i = group * channels + channel;
                add_scaled(target + indices[i] * features, grad[i], weight + channel * features, features);
            }
        }
    });
    int64_t block = kWeightBlockBytes / int64_t(features * sizeof(T));
    block = block < 1 ? 1 : block;
    share_tasks((channels + block - 1) / block, operations, threads, [&](TaskQueue& queue) {
        for (int64_t task; queue.next(task);) {
            const int64_t first = task * block, end = first + block < channels ? first + block : channels;
            memset(grad_weight + first * features, 0, (end - first) * features * sizeof(T));
            for (int64_t group = 0; group < groups; ++group)
                for (int64_t channel = first; channel < end; ++channel) {
                    const int64_t i = group * channels + channel;
                    add_scaled(grad_weight + channel * features, grad[i],
                               inputs + (group * rows + indices[i]) * features, features);
                }
        }
    });
    return true;
}

}  // namespace POINT_KERNELS_NAMESPACE
#endif
