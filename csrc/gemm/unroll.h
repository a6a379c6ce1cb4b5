// Before a loop with a constant count whose arrays must live in registers.
#pragma once
#define DSF_UNROLL _Pragma("GCC unroll 16")
