// Before a loop with a constant count, at most 16 or 32, whose arrays must live in registers.
#pragma once
#ifdef __CUDACC__
#define DSF_UNROLL _Pragma("unroll")
#else
#define DSF_UNROLL _Pragma("GCC unroll 16")
#endif
#define DSF_UNROLL_32 _Pragma("GCC unroll 32")
