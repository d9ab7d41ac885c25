// Nearest pairs of two clouds, both ways, and the Chamfer loss and gradient that rest on them.
#ifndef POINT_KERNELS_CHAMFER_H
#define POINT_KERNELS_CHAMFER_H

#include "bucket_tree.h"

namespace POINT_KERNELS_NAMESPACE {

// Searches pass over all points, or over the buckets that boxes leave. Of equally near points the lower index wins; it
// is 0 where none is at a finite distance.

// One query a lane, two vectors at a time to share what is loaded; `tree` is in the order of the cloud.
template <class T>
void search_all(const BucketTree<T>& tree, const Vector<T> (&x)[2], const Vector<T> (&y)[2], const Vector<T> (&z)[2],
                Vector<T> (&squared)[2], Integers<T> (&index)[2]) {
    for (int half = 0; half < 2; ++half) {
        squared[half] = broadcast(kInfinity<T>);
        index[half] = Integers<T>{};
    }
    for (int64_t i = 0; i < tree.num_points; ++i) {
        const Vector<T> px = broadcast(tree.x[i]), py = broadcast(tree.y[i]), pz = broadcast(tree.z[i]);
        const Integers<T> candidate = typename Simd<T>::Integer(tree.index[i]) - Integers<T>{};
        for (int half = 0; half < 2; ++half) {
            const Vector<T> distance = squared_norm(x[half] - px, y[half] - py, z[half] - pz);
            index[half] = distance < squared[half] ? candidate : index[half];
            squared[half] = smaller(distance, squared[half]);
        }
    }
}

// One query after another, each begun at the bucket that held the answer to the one before.
template <class T>
class PrunedSearch {
public:
    explicit PrunedSearch(const BucketTree<T>& tree)
        : tree_(tree), distances_(tree.num_buckets * kBucketSize), visited_(tree.num_buckets) {}

    void search(T query_x, T query_y, T query_z, T& squared, int64_t& index) {
        const Vector<T> x = broadcast(query_x), y = broadcast(query_y), z = broadcast(query_z);
        num_visited_ = 0;
        nearest_ = Simd<T>::kLargest;  // below the bound of a box without points
        if (tree_.num_points > 0) visit(hint_, x, y, z);
        for (int64_t start = 0; start < tree_.num_groups; start += kWidth<T>) {
            uint32_t groups = bits_of(tree_.groups.bounds(start, x, y, z) <= broadcast(nearest_));
            for (; groups != 0; groups &= groups - 1) {
                const int64_t first = (start + __builtin_ctz(groups)) * kGroupSize;
                uint32_t buckets = bits_where<T, kGroupSize>([&](int64_t i) {
                    return tree_.buckets.bounds(first + i, x, y, z) <= broadcast(nearest_);
                });
                for (; buckets != 0; buckets &= buckets - 1) {
                    const int64_t bucket = first + __builtin_ctz(buckets);
                    if (bucket != hint_) visit(bucket, x, y, z);
                }
            }
        }
        index = first_at_distance(broadcast(nearest_));
        squared = index == INT32_MAX ? kInfinity<T> : nearest_;
        if (index == INT32_MAX) index = 0;
    }

private:
    const BucketTree<T>& tree_;
    Buffer<T> distances_;  // to the points of the buckets visited
    Buffer<int32_t> visited_;
    int64_t hint_ = 0, num_visited_ = 0;
    T nearest_;

    void visit(int64_t bucket, Vector<T> x, Vector<T> y, Vector<T> z) {
        Vector<T> nearest = broadcast(nearest_);
        for (int64_t i = 0; i < kBucketSize; i += kWidth<T>) {
            const int64_t place = bucket * kBucketSize + i;
            const Vector<T> distance =
                squared_norm(x - load(tree_.x + place), y - load(tree_.y + place), z - load(tree_.z + place));
            store(distances_ + num_visited_ * kBucketSize + i, distance);
            nearest = smaller(distance, nearest);
        }
        visited_[num_visited_++] = int32_t(bucket);
        nearest_ = -largest_lane<T>(-nearest);
    }

    int64_t first_at_distance(Vector<T> squared) {
        int64_t index = INT32_MAX;
        for (int64_t i = 0; i < num_visited_; ++i) {
            const T* distances = distances_ + i * kBucketSize;
            uint32_t places = bits_where<T, kBucketSize>([&](int64_t j) { return load(distances + j) == squared; });
            for (; places != 0; places &= places - 1) {
                const int64_t candidate = tree_.index[visited_[i] * kBucketSize + __builtin_ctz(places)];
                index = candidate < index ? candidate : index;
                hint_ = visited_[i];
            }
        }
        return index;
    }
};

// A batch of pairs of clouds, and where the results go.
template <class T>
struct ChamferBatch {
    const T *points, *target;
    int64_t batch, num_points, num_targets;
    bool squared;
    int64_t *nearest_target, *nearest_point;
};

// The mean of the squared distances or of their roots. Summed in double and in one order, so that neither the
// instruction set nor the number of threads shows. `squared` is padded to eights and overwritten.
template <class T>
double mean_distance(T* squared, int64_t count, bool keep_squared) {
    if (!keep_squared)
        for (int64_t i = 0; i < count; ++i) squared[i] = T(__builtin_sqrt(squared[i]));
    for (int64_t i = count; i < round_up(count, 8); ++i) squared[i] = 0;
    double sums[8] = {};
    for (int64_t i = 0; i < count; i += 8)
        for (int64_t j = 0; j < 8; ++j) sums[j] += squared[i + j];
    const double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    return sum / double(count);
}

// One pair of clouds, searched both ways.
template <class T>
class PairSearch {
public:
    explicit PairSearch(const ChamferBatch<T>& pairs)
        : pairs_(pairs), sorted_(pairs.num_points >= kWorthSorting && pairs.num_targets >= kWorthSorting),
          points_(pairs.num_points), targets_(pairs.num_targets), point_squared_(round_up(pairs.num_points, 8)),
          target_squared_(round_up(pairs.num_targets, 8)) {}

    void build(int64_t cloud) {
        cloud_ = cloud;
        build_tree(points_, pairs_.points + 3 * cloud * pairs_.num_points, pairs_.num_points);
        build_tree(targets_, pairs_.target + 3 * cloud * pairs_.num_targets, pairs_.num_targets);
    }

    // The searches are cut into tasks of neighbouring queries: first those of points, then those of targets.
    int64_t num_tasks() const { return tasks_of(points_) + tasks_of(targets_); }

    void search(int64_t begin, int64_t end) {
        const int64_t split = tasks_of(points_);
        if (begin < split)
            search_one_way(points_, targets_, begin, end < split ? end : split, point_squared_,
                           pairs_.nearest_target + cloud_ * pairs_.num_points);
        if (end > split)
            search_one_way(targets_, points_, begin > split ? begin - split : 0, end - split, target_squared_,
                           pairs_.nearest_point + cloud_ * pairs_.num_targets);
    }

    void finish(T* loss) {
        if (loss == nullptr) return;
        const double there = mean_distance(point_squared_ + 0, pairs_.num_points, pairs_.squared);
        const double back = mean_distance(target_squared_ + 0, pairs_.num_targets, pairs_.squared);
        loss[cloud_] = T(pairs_.squared ? there + back : (there + back) / 2);
    }

private:
    static constexpr int64_t kWorthSorting = 512;  // measured
    static constexpr int64_t kTaskSize = 2 * kWidth<T>;

    const ChamferBatch<T>& pairs_;
    const bool sorted_;
    int64_t cloud_ = 0;
    BucketTree<T> points_, targets_;
    Buffer<T> point_squared_, target_squared_;  // in the order of the cloud

    static int64_t tasks_of(const BucketTree<T>& queries) { return (queries.num_points + kTaskSize - 1) / kTaskSize; }

    void build_tree(BucketTree<T>& tree, const T* points, int64_t count) {
        if (sorted_)
            tree.build_sorted(points, count);
        else
            tree.build_in_order(points, count);
    }

    void search_one_way(const BucketTree<T>& queries, const BucketTree<T>& tree, int64_t begin, int64_t end,
                        Buffer<T>& squared, int64_t* indices) const {
        const int64_t stop = end * kTaskSize < queries.num_points ? end * kTaskSize : queries.num_points;
        if (sorted_) {
            PrunedSearch<T> pruned(tree);
            for (int64_t i = begin * kTaskSize; i < stop; ++i) {
                const int32_t query = queries.index[i];
                pruned.search(queries.x[i], queries.y[i], queries.z[i], squared[query], indices[query]);
            }
            return;
        }
        for (int64_t first = begin * kTaskSize; first < stop; first += kTaskSize) {
            Vector<T> x[2], y[2], z[2], distances[2];
            Integers<T> nearest[2];
            for (int half = 0; half < 2; ++half) {
                x[half] = load(queries.x + (first + half * kWidth<T>));
                y[half] = load(queries.y + (first + half * kWidth<T>));
                z[half] = load(queries.z + (first + half * kWidth<T>));
            }
            search_all(tree, x, y, z, distances, nearest);
            for (int64_t i = first; i < (first + kTaskSize < stop ? first + kTaskSize : stop); ++i) {
                const int64_t half = (i - first) / kWidth<T>, lane = (i - first) % kWidth<T>;
                squared[queries.index[i]] = distances[half][lane];
                indices[queries.index[i]] = nearest[half][lane];
            }
        }
    }
};

template <class T>
void chamfer_forward(const ChamferBatch<T>& pairs, int threads, T* loss) {
    const double queries = double(pairs.num_points + pairs.num_targets);
    const double all_pairs = 2 * double(pairs.num_points) * double(pairs.num_targets);
    const double operations = all_pairs < 500 * queries ? all_pairs : 500 * queries;
    if (pairs.batch >= threads) {
        share_tasks(pairs.batch, operations * double(pairs.batch), threads, [&](TaskQueue& queue) {
            PairSearch<T> search(pairs);
            for (int64_t cloud; queue.next(cloud);) {
                search.build(cloud);
                search.search(0, search.num_tasks());
                search.finish(loss);
            }
        });
        return;
    }
    PairSearch<T> search(pairs);
    for (int64_t cloud = 0; cloud < pairs.batch; ++cloud) {
        search.build(cloud);
        const int64_t num_tasks = search.num_tasks(), chunk = num_tasks / (8 * threads) + 1;
        share_tasks((num_tasks + chunk - 1) / chunk, operations, threads, [&](TaskQueue& queue) {
            for (int64_t task; queue.next(task);) {
                const int64_t end = (task + 1) * chunk;
                search.search(task * chunk, end < num_tasks ? end : num_tasks);
            }
        });
        search.finish(loss);
    }
}

// The gradient of one direction: each query pulls itself and its neighbour together. False if an index is out of range.
template <class T>
bool pull_pairs(const T* queries, const T* others, const int64_t* nearest, int64_t count, int64_t num_others, T scale,
                bool squared, T* __restrict grad_queries, T* __restrict grad_others) {
    constexpr int64_t block = 64;
    T x[block], y[block], z[block];
    for (int64_t start = 0; start < count; start += block) {
        const int64_t size = count - start < block ? count - start : block;
        for (int64_t i = 0; i < size; ++i) {
            const int64_t other = nearest[start + i];
            if (other < 0 || other >= num_others) return false;
            const T *from = queries + 3 * (start + i), *to = others + 3 * other;
            x[i] = from[0] - to[0];
            y[i] = from[1] - to[1];
            z[i] = from[2] - to[2];
        }
        for (int64_t i = 0; i < size; ++i) {
            const T norm = squared_norm(x[i], y[i], z[i]);
            const T inverse = scale / T(__builtin_sqrt(norm));
            const T factor = squared ? 2 * scale : norm > 0 ? inverse : T(0);
            x[i] *= factor;
            y[i] *= factor;
            z[i] *= factor;
        }
        for (int64_t i = 0; i < size; ++i) {
            T *pulled = grad_queries + 3 * (start + i), *other = grad_others + 3 * nearest[start + i];
            pulled[0] += x[i];
            pulled[1] += y[i];
            pulled[2] += z[i];
            other[0] -= x[i];
            other[1] -= y[i];
            other[2] -= z[i];
        }
    }
    return true;
}

// False if an index is out of range.
template <class T>
bool chamfer_backward(const ChamferBatch<T>& pairs, const T* grad_loss, int threads, T* grad_points, T* grad_target) {
    bool in_range = true;
    const double operations = 8 * double(pairs.batch) * double(pairs.num_points + pairs.num_targets);
    share_tasks(pairs.batch, operations, threads, [&](TaskQueue& queue) {
        for (int64_t cloud; queue.next(cloud);) {
            const int64_t n = pairs.num_points, m = pairs.num_targets;
            const T *points = pairs.points + 3 * cloud * n, *target = pairs.target + 3 * cloud * m;
            T *to_points = grad_points + 3 * cloud * n, *to_target = grad_target + 3 * cloud * m;
            memset(to_points, 0, sizeof(T) * 3 * n);
            memset(to_target, 0, sizeof(T) * 3 * m);
            const T grad = pairs.squared ? grad_loss[cloud] : grad_loss[cloud] / 2;
            const T there = grad / T(n), back = grad / T(m);
            if (!pull_pairs(points, target, pairs.nearest_target + cloud * n, n, m, there, pairs.squared, to_points,
                            to_target) ||
                !pull_pairs(target, points, pairs.nearest_point + cloud * m, m, n, back, pairs.squared, to_target,
                            to_points))
                __atomic_store_n(&in_range, false, __ATOMIC_RELAXED);
        }
    });
    return in_range;
}

}  // namespace POINT_KERNELS_NAMESPACE
#endif
