// Vectors of POINT_KERNELS_VECTOR_BYTES bytes on the vector extensions of GCC and Clang, and the little they lack.
//
// Everything below kernels.cpp is compiled once for each instruction set into a namespace of its own. It must not use
// templates of the standard library on types of the standard library: the linker would keep one copy for all builds,
// perhaps the one with instructions that this processor lacks.
#ifndef POINT_KERNELS_SIMD_H
#define POINT_KERNELS_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace POINT_KERNELS_NAMESPACE {

constexpr int64_t kVectorBytes = POINT_KERNELS_VECTOR_BYTES;

template <class T>
struct Simd;

template <>
struct Simd<float> {
    typedef float Vector __attribute__((vector_size(kVectorBytes)));
    typedef int32_t Integer;
    typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
    static constexpr float kLargest = 3.402823466e+38f;
};

template <>
struct Simd<double> {
    typedef double Vector __attribute__((vector_size(kVectorBytes)));
    typedef int64_t Integer;
    typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
    static constexpr double kLargest = 1.7976931348623157e+308;
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Integers = typename Simd<T>::Integers;
template <class T>
constexpr int64_t kWidth = kVectorBytes / sizeof(T);
template <class T>
constexpr T kInfinity = T(__builtin_inf());

template <class T>
inline Vector<T> load(const T* source) {
    Vector<T> vector;
    memcpy(&vector, source, sizeof vector);
    return vector;
}

template <class T>
inline void store(T* target, Vector<T> vector) {
    memcpy(target, &vector, sizeof vector);
}

template <class T>
inline Vector<T> broadcast(T value) {
    return value - Vector<T>{};
}

// The smaller and the larger of two; the second where one is NaN, as the instructions have it.
template <class V>
inline V smaller(V a, V b) {
    return a < b ? a : b;
}

template <class V>
inline V larger(V a, V b) {
    return a > b ? a : b;
}

// One bit for each lane of a comparison.
#if POINT_KERNELS_VECTOR_BYTES == 64 && defined(__AVX512DQ__)
inline uint32_t bits_of(Integers<float> mask) { return _mm512_movepi32_mask((__m512i)mask); }
inline uint32_t bits_of(Integers<double> mask) { return _mm512_movepi64_mask((__m512i)mask); }
#elif POINT_KERNELS_VECTOR_BYTES == 32 && defined(__AVX__)
inline uint32_t bits_of(Integers<float> mask) { return _mm256_movemask_ps((__m256)mask); }
inline uint32_t bits_of(Integers<double> mask) { return _mm256_movemask_pd((__m256d)mask); }
#elif POINT_KERNELS_VECTOR_BYTES == 16 && defined(__SSE2__)
inline uint32_t bits_of(Integers<float> mask) { return _mm_movemask_ps((__m128)mask); }
inline uint32_t bits_of(Integers<double> mask) { return _mm_movemask_pd((__m128d)mask); }
#else
template <class M>
inline uint32_t bits_of(M mask) {
    uint32_t bits = 0;
    for (uint64_t lane = 0; lane < sizeof(M) / sizeof(mask[0]); ++lane) bits |= uint32_t(mask[lane] & 1) << lane;
    return bits;
}
#endif

template <class M>
inline bool any(M mask) {
    return bits_of(mask) != 0;
}

// Moves the lanes whose bit is set to the front of `distances` and `indices`, without a branch; returns how many there
// are. A whole vector is written.
template <class T>
inline int64_t pack_lanes(uint32_t bits, Vector<T> squared, const int32_t* index, T* distances, int32_t* indices) {
    int64_t count = 0;
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
        distances[count] = squared[lane];
        indices[count] = index[lane];
        count += bits >> lane & 1;
    }
    return count;
}

#if defined(__AVX2__)
// For each 8 bits the places of those that are set.
struct PackingTable {
    uint8_t lanes[256][8] = {};
    constexpr PackingTable() {
        for (int bits = 0; bits < 256; ++bits)
            for (int lane = 0, count = 0; lane < 8; ++lane)
                if (bits >> lane & 1) lanes[bits][count++] = uint8_t(lane);
    }
};
static constexpr PackingTable kPacking;

inline __m256i places_of(uint32_t bits) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPacking.lanes[bits])));
}
#endif

#if POINT_KERNELS_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <>
inline int64_t pack_lanes<float>(uint32_t bits, Vector<float> squared, const int32_t* index, float* distances,
                                 int32_t* indices) {
    _mm512_storeu_ps(distances, _mm512_maskz_compress_ps(bits, (__m512)squared));
    _mm512_storeu_si512(indices, _mm512_maskz_compress_epi32(bits, _mm512_loadu_si512(index)));
    return __builtin_popcount(bits);
}
#elif POINT_KERNELS_VECTOR_BYTES == 32 && defined(__AVX2__)
template <>
inline int64_t pack_lanes<float>(uint32_t bits, Vector<float> squared, const int32_t* index, float* distances,
                                 int32_t* indices) {
    const __m256i places = places_of(bits), index_lanes = _mm256_loadu_si256((const __m256i*)index);
    _mm256_storeu_ps(distances, _mm256_permutevar8x32_ps((__m256)squared, places));
    _mm256_storeu_si256((__m256i*)indices, _mm256_permutevar8x32_epi32(index_lanes, places));
    return __builtin_popcount(bits);
}
#endif

// Writes `first` plus the place of each set bit; returns how many there are. Up to 16 entries are written.
inline int64_t list_bits(uint32_t bits, int64_t first, int32_t* list) {
    int64_t count = 0;
#if defined(__AVX2__)
    for (int start = 0; start < 16; start += 8) {
        const uint32_t part = bits >> start & 255;
        const __m256i places = _mm256_add_epi32(_mm256_set1_epi32(int32_t(first + start)), places_of(part));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(list + count), places);
        count += __builtin_popcount(part);
    }
#else
    for (; bits != 0; bits &= bits - 1) list[count++] = int32_t(first + __builtin_ctz(bits));
#endif
    return count;
}

// One bit for each of `count` elements, up to 32: `compare(i)` compares the vector from element i on.
template <class T, int64_t count, class Compare>
inline uint32_t bits_where(const Compare& compare) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < count; i += kWidth<T>) bits |= bits_of(compare(i)) << i;
    return bits;
}

template <class T>
inline T largest_lane(Vector<T> vector) {
    T lanes[kWidth<T>];
    store(lanes, vector);
    for (int64_t half = kWidth<T> / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane)
            lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
    return lanes[0];
}

// ((dx * dx + dy * dy) + dz * dz), each operation rounded on its own: the order that the torch path takes.
template <class V>
inline V squared_norm(V x, V y, V z) {
    return x * x + y * y + z * z;
}

}  // namespace POINT_KERNELS_NAMESPACE
#endif
