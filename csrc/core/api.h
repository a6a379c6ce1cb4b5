// Export macro of _C_core: everything else in the library is hidden. And the mark of functions that CUDA kernels share.
#pragma once
#define DSF_API __attribute__((visibility("default")))
#ifdef __CUDACC__
#define DSF_HOST_DEVICE __host__ __device__
#else
#define DSF_HOST_DEVICE
#endif
