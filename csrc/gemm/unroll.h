// Before a loop with a constant count whose arrays must live in registers.
#pragma once
#ifdef __CUDACC__
#define DSF_UNROLL _Pragma("unroll")
#else
#define DSF_UNROLL _Pragma("GCC unroll 16")
#endif
