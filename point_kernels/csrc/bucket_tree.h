// A cloud in buckets of near points, and groups of buckets, each with its bounding box.
//
// The squared distance from a query to a box, taken in the same operations in the same order as that to a point, never
// exceeds the one to a point inside, to the last bit: rounding is monotone. So what a box rules out needs no look, and
// results are those of brute force, ties included.
#ifndef POINT_KERNELS_BUCKET_TREE_H
#define POINT_KERNELS_BUCKET_TREE_H

#include "parallel.h"
#include "simd.h"

namespace POINT_KERNELS_NAMESPACE {

constexpr int64_t kBucketSize = 32;  // points
constexpr int64_t kGroupSize = 16;   // buckets
constexpr int64_t kSubsets = 64;     // what a cloud left in order is padded to a multiple of: see NeighborSearch

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class T>
struct Boxes {
    Buffer<T> low_x, low_y, low_z, high_x, high_y, high_z;

    explicit Boxes(int64_t size) : low_x(size), low_y(size), low_z(size), high_x(size), high_y(size), high_z(size) {}

    void clear(int64_t box) {
        low_x[box] = low_y[box] = low_z[box] = kInfinity<T>;
        high_x[box] = high_y[box] = high_z[box] = -kInfinity<T>;
    }

    // Squared distances from a query to the boxes from `first` on; infinite for those without points.
    Vector<T> bounds(int64_t first, Vector<T> x, Vector<T> y, Vector<T> z) const {
        const Vector<T> zero = {};  // comes first, so that a query that is NaN gives NaN, and no box is opened for it
        return squared_norm(larger(zero, larger(load(low_x + first) - x, x - load(high_x + first))),
                            larger(zero, larger(load(low_y + first) - y, y - load(high_y + first))),
                            larger(zero, larger(load(low_z + first) - z, z - load(high_z + first))));
    }
};

// Places beyond the last point hold NaN, which no comparison lets win.
template <class T>
class BucketTree {
public:
    explicit BucketTree(int64_t capacity)
        : x(padded(capacity)), y(padded(capacity)), z(padded(capacity)), index(padded(capacity)),
          buckets(padded(capacity) / kBucketSize), groups(round_up(padded(capacity) / kPointsInGroup, 16)),
          codes_(padded(capacity)), keys_(padded(capacity)), other_keys_(padded(capacity)) {}

    int64_t num_points = 0, num_buckets = 0, num_groups = 0;
    Buffer<T> x, y, z;
    Buffer<int32_t> index;  // of each point, in the cloud
    Boxes<T> buckets, groups;

    // In the order of the cloud; the boxes stay unset.
    void build_in_order(const T* points, int64_t count) {
        for (int64_t i = 0; i < count; ++i) put(i, points, i);
        num_points = count;
        pad(kSubsets);
    }

    // Along a space-filling curve.
    void build_sorted(const T* points, int64_t count) {
        build_in_order(points, count);
        write_codes();
        const uint64_t* keys = sort_by_code();
        for (int64_t i = 0; i < num_points; ++i) put(i, points, int64_t(keys[i] & UINT32_MAX));
        pad(kPointsInGroup);
        for (int64_t bucket = 0; bucket < num_groups * kGroupSize; ++bucket) enclose_points(bucket);
        for (int64_t group = 0; group < num_groups; ++group) enclose_buckets(group);
        for (int64_t group = num_groups; group < round_up(num_groups, 16); ++group) groups.clear(group);
    }

private:
    static constexpr int64_t kPointsInGroup = kBucketSize * kGroupSize;
    static constexpr uint32_t kMostDigits = 1 << 12;

    Buffer<uint32_t> codes_;
    Buffer<uint64_t> keys_, other_keys_;  // a code above an index
    uint32_t starts_[3][kMostDigits];

    static int64_t padded(int64_t capacity) { return round_up(capacity > 0 ? capacity : 1, kPointsInGroup); }
    // A code has 4 bits an axis and is one digit where that is fine enough, else 10 bits an axis and three digits.
    bool coarse() const { return num_points <= 8192; }
    int num_digits() const { return coarse() ? 1 : 3; }
    int digit_bits() const { return coarse() ? 12 : 10; }

    void put(int64_t place, const T* points, int64_t i) {
        x[place] = points[3 * i];
        y[place] = points[3 * i + 1];
        z[place] = points[3 * i + 2];
        index[place] = int32_t(i);
    }

    void pad(int64_t multiple) {
        num_buckets = (num_points + kBucketSize - 1) / kBucketSize;
        num_groups = (num_buckets + kGroupSize - 1) / kGroupSize;
        for (int64_t i = num_points; i < round_up(num_points, multiple); ++i) {
            x[i] = y[i] = z[i] = T(__builtin_nan(""));
            index[i] = INT32_MAX;
        }
    }

    // The place of each point on a Morton curve through a cube around the cloud.
    void write_codes() {
        const int64_t count = round_up(num_points, kBucketSize);
        const T* const axes[] = {x + 0, y + 0, z + 0};
        T low[3], high[3], extent = 0;
        for (int axis = 0; axis < 3; ++axis) {
            enclose(axes[axis], axes[axis], low[axis], high[axis], count);
            extent = high[axis] - low[axis] > extent ? high[axis] - low[axis] : extent;
        }
        const T cells = coarse() ? 15 : 1023, scale = extent > 0 ? cells / extent : 0;
        for (int64_t i = 0; i < count; i += kWidth<T>) {
            Integers<T> code = {};
            for (int axis = 0; axis < 3; ++axis) {
                const Vector<T> cell = (load(axes[axis] + i) - broadcast(low[axis])) * broadcast(scale);
                const Vector<T> inside = smaller(larger(cell, Vector<T>{}), broadcast(cells));  // 0 for NaN
                code |= spread(__builtin_convertvector(inside, Integers<T>)) << axis;
            }
            for (int64_t lane = 0; lane < kWidth<T>; ++lane) codes_[i + lane] = uint32_t(code[lane]);
        }
    }

    // Bits 0 to 9 to every third place.
    static Integers<T> spread(Integers<T> value) {
        value = (value | value << 16) & 0x30000ff;
        value = (value | value << 8) & 0x300f00f;
        value = (value | value << 4) & 0x30c30c3;
        return (value | value << 2) & 0x9249249;
    }

    // Of equal codes the lower index stays first: every pass is stable.
    const uint64_t* sort_by_code() {
        count_digits();
        uint64_t *source = keys_ + 0, *target = other_keys_ + 0;
        for (int64_t i = 0; i < num_points; ++i) target[i] = uint64_t(codes_[i]) << 32 | uint32_t(index[i]);
        for (int place = 0; place < num_digits(); ++place) {
            uint64_t* const sorted = source;
            source = target;
            target = sorted;
            const int shift = 32 + place * digit_bits();
            const uint32_t mask = (1 << digit_bits()) - 1;
            for (int64_t i = 0; i < num_points; ++i) target[starts_[place][source[i] >> shift & mask]++] = source[i];
        }
        return target;
    }

    // Where the keys with each digit begin.
    void count_digits() {
        const uint32_t size = 1 << digit_bits();
        for (int place = 0; place < num_digits(); ++place) {
            uint32_t* const starts = starts_[place];
            memset(starts, 0, sizeof starts[0] * size);
            for (int64_t i = 0; i < num_points; ++i) ++starts[codes_[i] >> place * digit_bits() & (size - 1)];
            uint32_t start = 0;
            for (uint32_t digit = 0; digit < size; ++digit) {
                const uint32_t count = starts[digit];
                starts[digit] = start;
                start += count;
            }
        }
    }

    void enclose_points(int64_t bucket) {
        const int64_t first = bucket * kBucketSize;
        enclose(x + first, x + first, buckets.low_x[bucket], buckets.high_x[bucket], kBucketSize);
        enclose(y + first, y + first, buckets.low_y[bucket], buckets.high_y[bucket], kBucketSize);
        enclose(z + first, z + first, buckets.low_z[bucket], buckets.high_z[bucket], kBucketSize);
    }

    void enclose_buckets(int64_t group) {
        const int64_t first = group * kGroupSize;
        enclose(buckets.low_x + first, buckets.high_x + first, groups.low_x[group], groups.high_x[group], kGroupSize);
        enclose(buckets.low_y + first, buckets.high_y + first, groups.low_y[group], groups.high_y[group], kGroupSize);
        enclose(buckets.low_z + first, buckets.high_z + first, groups.low_z[group], groups.high_z[group], kGroupSize);
    }

    // The smallest of `lows` and the largest of `highs`, NaN apart; infinity and its negative if there are no others.
    static void enclose(const T* lows, const T* highs, T& low, T& high, int64_t count) {
        Vector<T> negative_low = broadcast(-kInfinity<T>), largest = negative_low;
        for (int64_t i = 0; i < count; i += kWidth<T>) {
            negative_low = larger(-load(lows + i), negative_low);
            largest = larger(load(highs + i), largest);
        }
        low = -largest_lane<T>(negative_low);
        high = largest_lane<T>(largest);
    }
};

}  // namespace POINT_KERNELS_NAMESPACE
#endif
