// The instruction set levels, in the order in which a cap lowers them. x86-64 runs the first ones, aarch64 those from
// neon on and scalar: a level of the other architecture is never supported there.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"

namespace dsf {

enum class Isa : int32_t {
  scalar = 0,   // x86-64-v2, armv8-a
  avx2 = 1,     // + FMA, F16C
  avxvnni = 2,  // VEX VPDPBUSD
  avx512 = 3,   // F, BW, DQ, VL
  avx512vnni = 4,
  avx512bf16 = 5,    // + VNNI, VBMI: Zen 4/5, Sapphire Rapids
  amx = 6,           // + AMX TILE, INT8, BF16
  neon = 7,          // armv8-a
  neon_dotprod = 8,  // armv8.2-a + DotProd
  neon_i8mm = 9,     // + I8MM, BF16
};
inline constexpr int32_t NUM_ISA = 10;

extern "C" {
// Whether this CPU and its operating system run the level, whatever the cap says.
DSF_API int32_t dsf_isa_supported(int32_t isa);
// The highest level that kernels may use: what the CPU supports, lowered by DSF_MAX_ISA and dsf_set_max_isa.
DSF_API int32_t dsf_max_isa();
// Sets the cap, at most to the CPU's level and to DSF_MAX_ISA's; returns the level in force.
DSF_API int32_t dsf_set_max_isa(int32_t isa);
// "avx512vnni"; null for a number that is no level.
DSF_API const char* dsf_isa_name(int32_t isa);
// The level of that name, or -1.
DSF_API int32_t dsf_isa_from_name(const char* name);
DSF_API const char* dsf_version();
}

}  // namespace dsf
