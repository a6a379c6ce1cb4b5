// Contract: ceiling.h. The table of probes and the clock.
#include "csrc/core/ceiling.h"

#include <string.h>
#include <time.h>

#include "csrc/core/isa.h"

namespace dsf {
namespace {

// Turns of a probe in one sample: about 0.2 ms, far above the clock's grain, far below a time slice.
constexpr int64_t SAMPLE_ROUNDS = 100'000;
constexpr int64_t READ_GRAIN = 256;  // bytes a read probe takes per turn at the widest level
// Bytes in one sample of a bandwidth probe, in as many passes as that takes.
constexpr int64_t SAMPLE_BYTES = 4 << 20;

struct Probe {
  Ceiling ceiling;
  Isa isa;
  int64_t operations;  // of one instruction, a multiply and an add apart
  const char* instruction;
  void (*run)(int64_t rounds);
};

// Best first within a ceiling.
constexpr Probe PROBES[] = {
#ifdef __aarch64__
    {Ceiling::fma_f32, Isa::neon, 2 * 4, "FMLA 4s", ceiling_fma_f32_neon},
    {Ceiling::fma_f32, Isa::scalar, 2 * 4, "FMUL + FADD 4s", ceiling_fma_f32_scalar},
    {Ceiling::bf16_dot, Isa::neon_i8mm, 2 * 8, "BFDOT 4s", ceiling_bf16_dot_neon_i8mm},
    {Ceiling::bf16_dot, Isa::neon, 2 * 4, "FMLA 4s", ceiling_fma_f32_neon},
    {Ceiling::bf16_dot, Isa::scalar, 2 * 4, "FMUL + FADD 4s", ceiling_fma_f32_scalar},
    {Ceiling::int8_dot, Isa::neon_i8mm, 2 * 32, "SMMLA 4s", ceiling_int8_dot_neon_i8mm},
    {Ceiling::int8_dot, Isa::neon_dotprod, 2 * 16, "SDOT 4s", ceiling_int8_dot_neon_dotprod},
    {Ceiling::int8_dot, Isa::neon, 2 * 16, "SMULL + SMLAL + SADALP 4s", ceiling_int8_dot_neon},
    {Ceiling::int8_dot, Isa::scalar, 2 * 4, "SMLAL 4s", ceiling_int8_dot_scalar},
#else
    {Ceiling::fma_f32, Isa::avx512, 2 * 16, "VFMADD231PS zmm", ceiling_fma_f32_avx512},
    {Ceiling::fma_f32, Isa::avx2, 2 * 8, "VFMADD231PS ymm", ceiling_fma_f32_avx2},
    {Ceiling::fma_f32, Isa::scalar, 2 * 4, "MULPS + ADDPS xmm", ceiling_fma_f32_scalar},
    {Ceiling::bf16_dot, Isa::amx, 2 * 16 * 16 * 32 / CEILING_AMX_ROUNDS, "TDPBF16PS tmm", ceiling_bf16_dot_amx},
    {Ceiling::bf16_dot, Isa::avx512bf16, 2 * 32, "VDPBF16PS zmm", ceiling_bf16_dot_avx512bf16},
    {Ceiling::bf16_dot, Isa::avx512, 2 * 16, "VFMADD231PS zmm", ceiling_fma_f32_avx512},
    {Ceiling::bf16_dot, Isa::avx2, 2 * 8, "VFMADD231PS ymm", ceiling_fma_f32_avx2},
    {Ceiling::bf16_dot, Isa::scalar, 2 * 4, "MULPS + ADDPS xmm", ceiling_fma_f32_scalar},
    {Ceiling::int8_dot, Isa::amx, 2 * 16 * 16 * 64 / CEILING_AMX_ROUNDS, "TDPBSSD tmm", ceiling_int8_dot_amx},
    {Ceiling::int8_dot, Isa::avx512vnni, 2 * 64, "VPDPBUSD zmm", ceiling_int8_dot_avx512vnni},
    {Ceiling::int8_dot, Isa::avx512, 2 * 32, "VPMADDWD + VPADDD zmm", ceiling_int8_dot_avx512},
    {Ceiling::int8_dot, Isa::avxvnni, 2 * 32, "VPDPBUSD ymm", ceiling_int8_dot_avxvnni},
    {Ceiling::int8_dot, Isa::avx2, 2 * 16, "VPMADDWD + VPADDD ymm", ceiling_int8_dot_avx2},
    {Ceiling::int8_dot, Isa::scalar, 2 * 8, "PMADDWD + PADDD xmm", ceiling_int8_dot_scalar},
#endif
};

const Probe* find_probe(int32_t ceiling) {
  const int32_t level = dsf_max_isa();
  for (const Probe& probe : PROBES) {
    if (static_cast<int32_t>(probe.ceiling) != ceiling || static_cast<int32_t>(probe.isa) > level) continue;
    // A level below the one in force may still be absent: not every AVX-512 machine has avxvnni.
    if (dsf_isa_supported(static_cast<int32_t>(probe.isa))) return &probe;
  }
  return nullptr;
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The shortest of the samples taken until `seconds` are over; at least three, the first of which warms up.
template <class Sample>
double best_time(double seconds, Sample sample) {
  const double end = now() + seconds;
  double best = 0;
  for (int64_t taken = 0; taken < 3 || now() < end; ++taken) {
    const double start = now();
    sample();
    const double elapsed = now() - start;
    if (taken == 1 || (taken > 1 && elapsed < best)) best = elapsed;
  }
  return best > 0 ? best : 1e-9;
}

int64_t passes_in_sample(int64_t bytes) { return bytes < SAMPLE_BYTES ? SAMPLE_BYTES / bytes : 1; }

}  // namespace

extern "C" {

double dsf_ceiling_rate(int32_t ceiling, double seconds) {
  const Probe* probe = find_probe(ceiling);
  if (!probe) return 0;
  const double time = best_time(seconds, [probe] { probe->run(SAMPLE_ROUNDS); });
  return static_cast<double>(SAMPLE_ROUNDS * CEILING_UNROLL * probe->operations) / time;
}

const char* dsf_ceiling_name(int32_t ceiling) {
  constexpr const char* NAMES[NUM_CEILINGS] = {"fma_f32", "bf16_dot", "int8_dot"};
  return ceiling >= 0 && ceiling < NUM_CEILINGS ? NAMES[ceiling] : nullptr;
}

const char* dsf_ceiling_instruction(int32_t ceiling) {
  const Probe* probe = find_probe(ceiling);
  return probe ? probe->instruction : nullptr;
}

double dsf_ceiling_read(const void* data, int64_t bytes, double seconds) {
  const int64_t whole = bytes - bytes % READ_GRAIN;
  if (whole <= 0) return 0;
#ifdef __aarch64__
  const auto read = ceiling_read_scalar;  // 128 bits, the widest registers of every level
#else
  const Isa level = static_cast<Isa>(dsf_max_isa());
  const auto read = level >= Isa::avx512 ? ceiling_read_avx512
                    : level >= Isa::avx2 ? ceiling_read_avx2
                                         : ceiling_read_scalar;
#endif
  const int64_t passes = passes_in_sample(whole);
  const double time = best_time(seconds, [=] {
    for (int64_t pass = 0; pass < passes; ++pass) {
      const uint64_t fold = read(data, whole);
      asm volatile("" : : "r"(fold) : "memory");  // the sum is used, and the next pass must read again
    }
  });
  return static_cast<double>(passes * whole) / time;
}

double dsf_ceiling_copy(void* target, const void* source, int64_t bytes, double seconds) {
  if (bytes <= 0) return 0;
  const int64_t passes = passes_in_sample(bytes);
  const double time = best_time(seconds, [=] {
    for (int64_t pass = 0; pass < passes; ++pass) {
      memcpy(target, source, static_cast<size_t>(bytes));
      asm volatile("" : : "r"(target) : "memory");
    }
  });
  return 2.0 * static_cast<double>(passes * bytes) / time;
}
}

}  // namespace dsf
