// The k nearest points of each query, nearest first, the lower index first of equally near ones.
//
// A bound on the k-th distance comes from a part of the points; what does not exceed it is a candidate; candidates are
// ranked by counting. Points at an infinite distance (overflown or NaN) are never candidates: they follow in
// the order of their index where there are fewer than k others.
#ifndef POINT_KERNELS_K_NEAREST_NEIGHBORS_H
#define POINT_KERNELS_K_NEAREST_NEIGHBORS_H

#include <algorithm>

#include "bucket_tree.h"

namespace POINT_KERNELS_NAMESPACE {

// How many of `count` values (whole vectors) do not exceed `limit`.
template <class T>
int64_t count_up_to(const T* values, int64_t count, T limit) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i += kWidth<T>)
        total += __builtin_popcount(bits_of(load(values + i) <= broadcast(limit)));
    return total;
}

// A number that at least k of `count` values (whole vectors) do not exceed, and, after a few steps at most, about
// `enough` of them; the largest finite number if fewer than k are finite.
template <class T>
T bound_of_kth(const T* values, int64_t count, int64_t k, int64_t enough) {
    T low = 0, high = Simd<T>::kLargest;
    int64_t below_low = 0, below_high = count_up_to(values, count, high);
    if (below_high < k) return high;
    Vector<T> largest = {};
    for (int64_t i = 0; i < count; i += kWidth<T>) {
        const Vector<T> value = load(values + i);
        largest = larger(value <= broadcast(high) ? value : Vector<T>{}, largest);
    }
    high = largest_lane<T>(largest);
    // Squared distances to points of a surface are spread evenly, so interpolation lands near.
    for (int step = 0; step < 6 && below_high > enough; ++step) {
        const T share = (T(k + enough) / 2 - T(below_low)) / T(below_high - below_low);
        const T middle = low + (high - low) * share;
        const int64_t below = count_up_to(values, count, middle);
        if (below >= k) {
            high = middle;
            below_high = below;
        } else {
            low = middle;
            below_low = below;
        }
    }
    return high;
}

template <class T>
class NeighborSearch {
public:
    NeighborSearch(const BucketTree<T>& tree, bool sorted, int64_t capacity, int64_t k)
        : tree_(tree), sorted_(sorted), k_(k), distances_(padded(capacity)), candidate_distances_(padded(capacity)),
          candidate_indices_(padded(capacity)), bounds_(padded(capacity) / kBucketSize),
          group_bounds_(padded(capacity) / kBucketSize), ranks_(padded(capacity)), order_(padded(capacity)) {}

    // Writes k distances and indices.
    void search(const T* query, int64_t num_points, T* distances, int64_t* indices) {
        const Vector<T> x = broadcast(query[0]), y = broadcast(query[1]), z = broadcast(query[2]);
        num_candidates_ = 0;
        if (sorted_)
            collect_pruned(x, y, z);
        else
            collect_all(x, y, z);
        const int64_t found = num_candidates_ < k_ ? num_candidates_ : k_;
        if (num_candidates_ > kMostRanked)
            sort_candidates(distances, indices);
        else
            rank_candidates(distances, indices);
        if (found < k_) append_unreachable(found, num_points, distances, indices);
    }

private:
    static constexpr int64_t kMostRanked = 512;  // counting is quadratic, but without mispredicted branches

    const BucketTree<T>& tree_;
    const bool sorted_;
    const int64_t k_;
    int64_t num_candidates_ = 0;
    Buffer<T> distances_;  // of whole buckets
    Buffer<T> candidate_distances_;
    Buffer<int32_t> candidate_indices_;
    Buffer<T> bounds_, group_bounds_;
    Buffer<typename Simd<T>::Integer> ranks_;
    struct Candidate {
        T distance;
        int32_t index;
        bool operator<(const Candidate& other) const {
            return distance < other.distance || (distance == other.distance && index < other.index);
        }
    };
    Buffer<Candidate> order_;

    // Room for whole groups, and for the vector that is written after the last candidate.
    static int64_t padded(int64_t capacity) {
        return round_up(capacity, kBucketSize * kGroupSize) + kBucketSize * kGroupSize;
    }

    Vector<T> squared_distances(int64_t i, Vector<T> x, Vector<T> y, Vector<T> z) const {
        return squared_norm(x - load(tree_.x + i), y - load(tree_.y + i), z - load(tree_.z + i));
    }

    void append(int64_t i, Vector<T> squared, T limit) {
        num_candidates_ += pack_lanes<T>(bits_of(squared <= broadcast(limit)), squared, tree_.index + i,
                                         candidate_distances_ + num_candidates_, candidate_indices_ + num_candidates_);
    }

    // All points measured once. The k-th smallest of the minima of 64 strided subsets bounds the k-th distance.
    void collect_all(Vector<T> x, Vector<T> y, Vector<T> z) {
        constexpr int64_t num_minima = kSubsets / kWidth<T>;
        Vector<T> minima[num_minima];
        for (auto& minimum : minima) minimum = broadcast(kInfinity<T>);
        const int64_t count = round_up(tree_.num_points, kSubsets);
        for (int64_t start = 0; start < count; start += kSubsets)
            for (int64_t j = 0; j < num_minima; ++j) {
                const int64_t i = start + j * kWidth<T>;
                const Vector<T> squared = squared_distances(i, x, y, z);
                store(distances_ + i, squared);
                minima[j] = smaller(squared, minima[j]);
            }
        T limit;
        if (k_ <= kSubsets * 3 / 4 && tree_.num_points >= 2 * kSubsets)
            limit = bound_of_kth(reinterpret_cast<const T*>(minima), kSubsets, k_, k_ + k_ / 8);
        else
            limit = bound_of_kth(distances_ + 0, count, k_, k_ + k_ / 8);
        for (int64_t i = 0; i < count; i += kWidth<T>) append(i, load(distances_ + i), limit);
    }

    // The points of the nearest buckets bound the k-th distance; boxes rule out most other buckets.
    void collect_pruned(Vector<T> x, Vector<T> y, Vector<T> z) {
        for (int64_t group = 0; group < tree_.num_groups; group += kWidth<T>)
            store(group_bounds_ + group, tree_.groups.bounds(group, x, y, z));
        const T limit = bound_from_nearest_buckets(x, y, z);
        visit_buckets(limit, limit, x, y, z, [&](int64_t i, Vector<T> squared) { append(i, squared, limit); });
    }

    // The nearest buckets of the nearest groups need not be the nearest of all: they are near enough for a bound.
    T bound_from_nearest_buckets(Vector<T> x, Vector<T> y, Vector<T> z) {
        const int64_t num_buckets = 1 + 3 * k_ / kBucketSize, num_groups = 2 + num_buckets / kGroupSize;
        const int64_t all_groups = round_up(tree_.num_groups, kWidth<T>);
        const T group_limit = bound_of_kth(group_bounds_ + 0, all_groups, num_groups, 2 * num_groups);
        int64_t count = 0;
        visit_groups(group_limit, [&](int64_t bucket) {
            store(bounds_ + count, tree_.buckets.bounds(bucket, x, y, z));
            count += kWidth<T>;
        });
        const T limit = bound_of_kth(bounds_ + 0, count, num_buckets, num_buckets + 2);
        count = 0;
        visit_buckets(group_limit, limit, x, y, z, [&](int64_t, Vector<T> squared) {
            store(distances_ + count, squared);
            count += kWidth<T>;
        });
        return bound_of_kth(distances_ + 0, count, k_, k_ + k_ / 8);
    }

    // Calls `visit(place, squared distances)` for the points of buckets up to `limit` in groups up to `group_limit`.
    template <class Visit>
    void visit_buckets(T group_limit, T limit, Vector<T> x, Vector<T> y, Vector<T> z, const Visit& visit) const {
        visit_groups(group_limit, [&](int64_t first) {
            uint32_t open = bits_of(tree_.buckets.bounds(first, x, y, z) <= broadcast(limit));
            for (; open != 0; open &= open - 1) {
                const int64_t start = (first + __builtin_ctz(open)) * kBucketSize;
                for (int64_t i = start; i < start + kBucketSize; i += kWidth<T>)
                    visit(i, squared_distances(i, x, y, z));
            }
        });
    }

    // Calls `visit(first bucket)` for the buckets of the groups up to `limit`, a vector at a time.
    template <class Visit>
    void visit_groups(T limit, const Visit& visit) const {
        for (int64_t start = 0; start < tree_.num_groups; start += kWidth<T>) {
            uint32_t open = bits_of(load(group_bounds_ + start) <= broadcast(limit));
            for (; open != 0; open &= open - 1) {
                const int64_t first = (start + __builtin_ctz(open)) * kGroupSize;
                for (int64_t i = first; i < first + kGroupSize; i += kWidth<T>) visit(i);
            }
        }
    }

    // The rank of a candidate is the number of those before it.
    void rank_candidates(T* distances, int64_t* indices) {
        const int64_t count = round_up(num_candidates_, kWidth<T>);
        for (int64_t i = num_candidates_; i < count; ++i) candidate_distances_[i] = kInfinity<T>;
        for (int64_t i = 0; i < count; i += kWidth<T>) {
            const Vector<T> squared = load(candidate_distances_ + i);
            Integers<T> ranks = {};
            for (int64_t j = 0; j < num_candidates_; ++j) ranks -= broadcast(candidate_distances_[j]) < squared;
            memcpy(ranks_ + i, &ranks, sizeof ranks);
        }
        for (int64_t i = 0; i < num_candidates_; ++i) order_[i].index = -1;
        for (int64_t i = 0; i < num_candidates_; ++i) {
            // Equals were given one rank: they take the places from there on, in the order of their indices.
            Candidate candidate = {candidate_distances_[i], candidate_indices_[i]};
            Candidate* place = order_ + ranks_[i];
            for (; place->index >= 0; ++place)
                if (candidate < *place) std::swap(candidate, *place);
            *place = candidate;
        }
        write_candidates(distances, indices);
    }

    void sort_candidates(T* distances, int64_t* indices) {
        for (int64_t i = 0; i < num_candidates_; ++i) order_[i] = {candidate_distances_[i], candidate_indices_[i]};
        Candidate *first = order_ + 0, *end = first + num_candidates_;
        if (k_ < num_candidates_) {
            std::nth_element(first, first + k_, end);
            end = first + k_;
        }
        std::sort(first, end);
        write_candidates(distances, indices);
    }

    void write_candidates(T* distances, int64_t* indices) const {
        for (int64_t i = 0; i < (k_ < num_candidates_ ? k_ : num_candidates_); ++i) {
            distances[i] = order_[i].distance;
            indices[i] = order_[i].index;
        }
    }

    // `indices` holds those found so far; the candidates are those again, so they tell who is left.
    void append_unreachable(int64_t found, int64_t num_points, T* distances, int64_t* indices) {
        for (int64_t i = 0; i < found; ++i) order_[i] = {0, candidate_indices_[i]};
        std::sort(order_ + 0, order_ + found);
        for (int64_t index = 0, next = 0; index < num_points && found < k_; ++index) {
            if (next < num_candidates_ && order_[next].index == index) {
                ++next;
                continue;
            }
            distances[found] = kInfinity<T>;
            indices[found++] = index;
        }
    }
};

template <class T>
void k_nearest_neighbors(const T* queries, const T* points, int64_t batch, int64_t num_queries, int64_t num_points,
                         int64_t k, int threads, T* distances, int64_t* indices) {
    // Measured: boxes pay off in large clouds, and sorting the points from some tens of queries on.
    const bool sorted = num_points >= 1536 && num_queries >= 32 && 8 * k <= num_points;
    const auto build = [&](BucketTree<T>& tree, int64_t cloud) {
        const T* cloud_points = points + 3 * cloud * num_points;
        if (sorted)
            tree.build_sorted(cloud_points, num_points);
        else
            tree.build_in_order(cloud_points, num_points);
    };
    const auto search = [&](NeighborSearch<T>& neighbors, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            neighbors.search(queries + 3 * i, num_points, distances + i * k, indices + i * k);
    };
    const double operations = double(num_queries) * (double(sorted ? 1000 : num_points) + 20 * double(k));
    if (batch >= threads) {
        share_tasks(batch, operations * double(batch), threads, [&](TaskQueue& queue) {
            BucketTree<T> tree(num_points);
            NeighborSearch<T> neighbors(tree, sorted, num_points, k);
            for (int64_t cloud; queue.next(cloud);) {
                build(tree, cloud);
                search(neighbors, cloud * num_queries, (cloud + 1) * num_queries);
            }
        });
        return;
    }
    BucketTree<T> tree(num_points);
    const int64_t chunk = num_queries / (8 * threads) + 1, num_chunks = (num_queries + chunk - 1) / chunk;
    for (int64_t cloud = 0; cloud < batch; ++cloud) {
        build(tree, cloud);
        share_tasks(num_chunks, operations, threads, [&](TaskQueue& queue) {
            NeighborSearch<T> neighbors(tree, sorted, num_points, k);
            for (int64_t task; queue.next(task);) {
                const int64_t begin = task * chunk, end = begin + chunk < num_queries ? begin + chunk : num_queries;
                search(neighbors, cloud * num_queries + begin, cloud * num_queries + end);
            }
        });
    }
}

}  // namespace POINT_KERNELS_NAMESPACE
#endif
