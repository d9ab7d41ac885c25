// Farthest point sampling: for each point the squared distance to the nearest sample, and the farthest point next.
#ifndef POINT_KERNELS_FARTHEST_POINT_SAMPLE_H
#define POINT_KERNELS_FARTHEST_POINT_SAMPLE_H

#include "bucket_tree.h"

namespace POINT_KERNELS_NAMESPACE {

// Squared norms up to this one count as padding, by the rule of `skip_near_origin`.
constexpr double kNearOrigin = 1e-3;

template <class T>
class FarthestPointSampler {
public:
    explicit FarthestPointSampler(int64_t num_points)
        : tree_(num_points), distances_(round_up(num_points, kBucketSize * kGroupSize)),
          bucket_farthest_(round_up(num_points, kBucketSize * kGroupSize) / kBucketSize * kWidth<T>),
          group_farthest_(round_up(num_points, 16 * kBucketSize * kGroupSize) / kBucketSize),
          open_groups_(num_points / kBucketSize + 64), open_buckets_(num_points / kBucketSize + 64) {}

    void sample(const T* points, int64_t num_points, int64_t num_samples, bool skip_near_origin, int64_t* chosen) {
        const bool sorted = worth_sorting(num_points, num_samples);
        if (sorted)
            tree_.build_sorted(points, num_points);
        else
            tree_.build_in_order(points, num_points);
        reset(skip_near_origin, sorted);
        int64_t current = 0;
        for (int64_t i = 0; i < num_samples; ++i) {
            chosen[i] = current;
            if (i + 1 == num_samples) break;
            const T* center = points + 3 * current;
            current = sorted ? next_pruned(center) : next(center);
        }
    }

private:
    BucketTree<T> tree_;
    Buffer<T> distances_;        // of each point to the nearest sample
    Buffer<T> bucket_farthest_;  // largest of them: a vector a bucket where all are visited, else one number a bucket
    Buffer<T> group_farthest_;
    Buffer<int32_t> open_groups_, open_buckets_;

    // Measured: building the tree costs as much as some passes over the points, and a bucket must be small beside
    // the space around a sample before boxes rule it out.
    static bool worth_sorting(int64_t num_points, int64_t num_samples) {
        return num_points >= 2048 && num_samples >= 64;
    }

    void reset(bool skip_near_origin, bool sorted) {
        const int64_t num_buckets = sorted ? tree_.num_groups * kGroupSize : tree_.num_buckets;
        for (int64_t i = 0; i < num_buckets * kBucketSize; ++i) {
            const T norm = squared_norm(tree_.x[i], tree_.y[i], tree_.z[i]);
            const T start = skip_near_origin && norm <= T(kNearOrigin) ? T(-1) : kInfinity<T>;
            distances_[i] = i < tree_.num_points ? start : -kInfinity<T>;
        }
        if (!sorted) return;
        for (int64_t bucket = 0; bucket < num_buckets; ++bucket)
            bucket_farthest_[bucket] = largest(distances_ + bucket * kBucketSize, kBucketSize);
        for (int64_t group = 0; group < tree_.num_groups; ++group)
            group_farthest_[group] = largest(bucket_farthest_ + group * kGroupSize, kGroupSize);
        for (int64_t group = tree_.num_groups; group < round_up(tree_.num_groups, 16); ++group)
            group_farthest_[group] = -kInfinity<T>;
    }

    static T largest(const T* values, int64_t count) {
        Vector<T> lanes = load(values);
        for (int64_t i = kWidth<T>; i < count; i += kWidth<T>) lanes = larger(load(values + i), lanes);
        return largest_lane<T>(lanes);
    }

    // Takes a new sample into the distances of one bucket; the farthest of each lane.
    Vector<T> update_bucket(int64_t bucket, Vector<T> x, Vector<T> y, Vector<T> z) {
        Vector<T> farthest = broadcast(-kInfinity<T>);
        for (int64_t i = bucket * kBucketSize; i < (bucket + 1) * kBucketSize; i += kWidth<T>) {
            const Vector<T> squared =
                squared_norm(load(tree_.x + i) - x, load(tree_.y + i) - y, load(tree_.z + i) - z);
            const Vector<T> distance = smaller(squared, load(distances_ + i));
            store(distances_ + i, distance);
            farthest = larger(distance, farthest);
        }
        return farthest;
    }

    // Visits all points; these lie in the order of the cloud.
    int64_t next(const T* center) {
        const Vector<T> x = broadcast(center[0]), y = broadcast(center[1]), z = broadcast(center[2]);
        Vector<T> farthest = broadcast(-kInfinity<T>);
        for (int64_t bucket = 0; bucket < tree_.num_buckets; ++bucket) {
            const Vector<T> of_bucket = update_bucket(bucket, x, y, z);
            store(bucket_farthest_ + bucket * kWidth<T>, of_bucket);
            farthest = larger(of_bucket, farthest);
        }
        const Vector<T> distance = broadcast(largest_lane<T>(farthest));
        int64_t bucket = 0;
        while (!any(load(bucket_farthest_ + bucket * kWidth<T>) == distance)) ++bucket;
        return first_at_distance(bucket, distance);
    }

    // Visits the buckets that may hold a point nearer to the new sample than to all before.
    int64_t next_pruned(const T* center) {
        const Vector<T> x = broadcast(center[0]), y = broadcast(center[1]), z = broadcast(center[2]);
        int64_t num_open_groups = 0, num_open_buckets = 0;
        for (int64_t first = 0; first < tree_.num_groups; first += kGroupSize)
            list_open(tree_.groups, group_farthest_, first, x, y, z, open_groups_ + 0, num_open_groups);
        for (int64_t i = 0; i < num_open_groups; ++i)
            list_open(tree_.buckets, bucket_farthest_, open_groups_[i] * kGroupSize, x, y, z, open_buckets_ + 0,
                            num_open_buckets);
        for (int64_t i = 0; i < num_open_buckets; ++i)
            bucket_farthest_[open_buckets_[i]] = largest_lane<T>(update_bucket(open_buckets_[i], x, y, z));
        for (int64_t i = 0; i < num_open_groups; ++i)
            group_farthest_[open_groups_[i]] = largest(bucket_farthest_ + open_groups_[i] * kGroupSize, kGroupSize);
        return first_of_all(broadcast(largest(group_farthest_ + 0, round_up(tree_.num_groups, kWidth<T>))));
    }

    // Appends those of 16 boxes that a sample may reach into.
    static void list_open(const Boxes<T>& boxes, const Buffer<T>& farthest, int64_t first, Vector<T> x, Vector<T> y,
                          Vector<T> z, int32_t* open, int64_t& num_open) {
        const uint32_t bits = bits_where<T, kGroupSize>(
            [&](int64_t i) { return boxes.bounds(first + i, x, y, z) < load(farthest + first + i); });
        if (bits != 0) num_open += list_bits(bits, first, open + num_open);
    }

    // The lowest index at the largest distance. A group or bucket that holds it has it as its own largest.
    int64_t first_of_all(Vector<T> distance) const {
        const auto equal = [&](const T* values) {
            return [=](int64_t i) { return load(values + i) == distance; };
        };
        int64_t index = INT32_MAX;
        for (int64_t start = 0; start < tree_.num_groups; start += kGroupSize) {
            uint32_t groups = bits_where<T, kGroupSize>(equal(group_farthest_ + start));
            for (; groups != 0; groups &= groups - 1) {
                const int64_t first = (start + __builtin_ctz(groups)) * kGroupSize;
                uint32_t buckets = bits_where<T, kGroupSize>(equal(bucket_farthest_ + first));
                for (; buckets != 0; buckets &= buckets - 1) {
                    const int64_t candidate = first_at_distance(first + __builtin_ctz(buckets), distance);
                    index = candidate < index ? candidate : index;
                }
            }
        }
        return index;
    }

    int64_t first_at_distance(int64_t bucket, Vector<T> distance) const {
        const T* distances = distances_ + bucket * kBucketSize;
        const int32_t* indices = tree_.index + bucket * kBucketSize;
        uint32_t places = bits_where<T, kBucketSize>([&](int64_t i) { return load(distances + i) == distance; });
        int64_t index = INT32_MAX;
        for (; places != 0; places &= places - 1) {
            const int64_t candidate = indices[__builtin_ctz(places)];
            index = candidate < index ? candidate : index;
        }
        return index;
    }
};

template <class T>
void farthest_point_sample(const T* points, int64_t batch, int64_t num_points, int64_t num_samples,
                           bool skip_near_origin, int threads, int64_t* chosen) {
    const double operations = double(batch) * double(num_points) * double(num_samples);
    share_tasks(batch, operations, threads, [&](TaskQueue& queue) {
        FarthestPointSampler<T> sampler(num_points);
        for (int64_t cloud; queue.next(cloud);)
            sampler.sample(points + 3 * cloud * num_points, num_points, num_samples, skip_near_origin,
                           chosen + cloud * num_samples);
    });
}

}  // namespace POINT_KERNELS_NAMESPACE
#endif
