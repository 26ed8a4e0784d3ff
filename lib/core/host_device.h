// Functions that kernels call too.
#pragma once

#ifdef __CUDACC__
#define RA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RA_HOST_DEVICE inline
#endif
