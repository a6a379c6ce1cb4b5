// What this machine can do at most, measured on the calling thread: the figures a benchmark divides by.
// One multiply and one add count as two operations. Nothing here allocates; the caller gives the buffers.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"

namespace dsf {

enum class Ceiling : int32_t {
  fma_f32 = 0,   // f32 multiply-adds
  bf16_dot = 1,  // bf16 products summed in f32; the FMA rate where the level has no such instruction
  int8_dot = 2,  // int8 products summed exactly in int32
};
inline constexpr int32_t NUM_CEILINGS = 3;

extern "C" {
// Operations per second of the best instruction of the level in force (dsf_max_isa), the best of short samples
// taken during about `seconds`. 0 for a number that is no ceiling.
DSF_API double dsf_ceiling_rate(int32_t ceiling, double seconds);
// "fma_f32"; null for a number that is no ceiling.
DSF_API const char* dsf_ceiling_name(int32_t ceiling);
// The instruction that dsf_ceiling_rate would run now, "VPDPBUSD zmm"; null for a number that is no ceiling.
DSF_API const char* dsf_ceiling_instruction(int32_t ceiling);

// Bytes read per second by one pass after another over data, the best pass of about `seconds`. A buffer that fits
// a cache level gives that level's rate. The last bytes % 256 are left out; bytes < 256 gives 0. Any alignment;
// 64 bytes for full speed.
DSF_API double dsf_ceiling_read(const void* data, int64_t bytes, double seconds);
// Bytes read plus bytes written per second by libc's memcpy of `bytes`, the best copy of about `seconds`. The buffers
// may not overlap. bytes < 1 gives 0.
DSF_API double dsf_ceiling_copy(void* target, const void* source, int64_t bytes, double seconds);
}

// The probes, a file per ISA level. Each runs `rounds` turns of CEILING_UNROLL independent instructions (or, where the
// level needs two for a multiply-add, pairs of them); read probes fold `bytes` (a multiple of 256) into one number.
inline constexpr int64_t CEILING_AMX_ROUNDS = 16;  // for one turn of tile products, which take 16 cycles each
inline constexpr int64_t CEILING_UNROLL = 12;      // instructions in flight: latency 4 to 6 cycles x 2 units

void ceiling_fma_f32_scalar(int64_t rounds);
void ceiling_fma_f32_avx2(int64_t rounds);
void ceiling_fma_f32_avx512(int64_t rounds);
void ceiling_bf16_dot_avx512bf16(int64_t rounds);
void ceiling_bf16_dot_amx(int64_t rounds);
void ceiling_int8_dot_amx(int64_t rounds);
void ceiling_int8_dot_scalar(int64_t rounds);
void ceiling_int8_dot_avx2(int64_t rounds);
void ceiling_int8_dot_avxvnni(int64_t rounds);
void ceiling_int8_dot_avx512(int64_t rounds);
void ceiling_int8_dot_avx512vnni(int64_t rounds);
void ceiling_fma_f32_neon(int64_t rounds);
void ceiling_int8_dot_neon(int64_t rounds);
void ceiling_int8_dot_neon_dotprod(int64_t rounds);
void ceiling_bf16_dot_neon_i8mm(int64_t rounds);
void ceiling_int8_dot_neon_i8mm(int64_t rounds);
uint64_t ceiling_read_scalar(const void* data, int64_t bytes);
uint64_t ceiling_read_avx2(const void* data, int64_t bytes);
uint64_t ceiling_read_avx512(const void* data, int64_t bytes);

}  // namespace dsf
