// What each build of kernels.cpp offers to dispatch.cpp.
#ifndef POINT_KERNELS_KERNELS_H
#define POINT_KERNELS_KERNELS_H

#include "point_kernels.h"

namespace point_kernels {

struct Kernels {
    const char* name;
    decltype(&point_kernels_farthest_point_sample) farthest_point_sample;
    decltype(&point_kernels_k_nearest_neighbors) k_nearest_neighbors;
    decltype(&point_kernels_chamfer_forward) chamfer_forward;
    decltype(&point_kernels_chamfer_backward) chamfer_backward;
    decltype(&point_kernels_group_max) group_max;
    decltype(&point_kernels_linear_max_backward) linear_max_backward;
};

extern const Kernels plain_kernels;
#ifdef POINT_KERNELS_X86
extern const Kernels avx2_kernels, avx512_kernels;
#endif

}  // namespace point_kernels
#endif
