// The only place that asks the CPU what it can do.
#include "csrc/core/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <cstring>

namespace dsf {
namespace {

constexpr const char* NAMES[NUM_ISA] = {"scalar",     "avx2", "avxvnni", "avx512",       "avx512vnni",
                                        "avx512bf16", "amx",  "neon",    "neon_dotprod", "neon_i8mm"};

struct CpuFeatures {
  bool level[NUM_ISA] = {};

#if defined(__x86_64__)
  CpuFeatures() {
    level[0] = true;
    __builtin_cpu_init();  // asks the operating system too whether it saves the wide registers
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512cd");
    const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    level[int(Isa::avx2)] = avx2;
    level[int(Isa::avxvnni)] = avx2 && has_avxvnni();
    level[int(Isa::avx512)] = avx512;
    level[int(Isa::avx512vnni)] = avx512vnni;
    const bool avx512bf16 = avx512vnni && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
    level[int(Isa::avx512bf16)] = avx512bf16;
#ifdef DSF_EMULATE_AMX
    level[int(Isa::amx)] = avx512bf16;
#else
    level[int(Isa::amx)] = avx512bf16 && has_amx() && may_use_tiles();
#endif
  }

  static bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }
  static bool has_avxvnni() {  // leaf 7, subleaf 1, EAX bit 4
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
  }
  static bool has_amx() {  // leaf 7, EDX: BF16 bit 22, TILE 24, INT8 25
    constexpr unsigned ALL = 1u << 22 | 1u << 24 | 1u << 25;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & ALL) == ALL;
  }
  // Linux gives a process the 8 KiB of tile data a thread when it asks (arch_prctl, since 5.16); it refuses where a
  // signal stack would be too small for them, or the operating system does not save them.
  static bool may_use_tiles() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  }
#elif defined(__aarch64__)
  CpuFeatures() {
    level[0] = true;
    const unsigned long features = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
    // ARMv8.2 has the first three; they are asked for because the compiler may use them, too.
    constexpr unsigned long DOTPROD = HWCAP_CRC32 | HWCAP_ATOMICS | HWCAP_ASIMDRDM | HWCAP_ASIMDDP;
    const bool dotprod = (features & DOTPROD) == DOTPROD;
    level[int(Isa::neon)] = true;  // part of the architecture
    level[int(Isa::neon_dotprod)] = dotprod;
    level[int(Isa::neon_i8mm)] = dotprod && (more & HWCAP2_I8MM) && (more & HWCAP2_BF16);
  }
#else
  CpuFeatures() { level[0] = true; }
#endif
};

const CpuFeatures& cpu() {
  static const CpuFeatures features;
  return features;
}

int32_t best_up_to(int32_t cap) {
  for (int32_t isa = cap < NUM_ISA ? cap : NUM_ISA - 1; isa > 0; --isa)
    if (cpu().level[isa]) return isa;
  return 0;
}

int32_t initial_cap() {
  const char* name = std::getenv("DSF_MAX_ISA");
  const int32_t isa = name ? dsf_isa_from_name(name) : -1;
  return best_up_to(isa < 0 ? NUM_ISA - 1 : isa);
}

const int32_t highest_cap = initial_cap();
int32_t current_cap = highest_cap;  // read and written with relaxed atomics

}  // namespace

int32_t dsf_isa_supported(int32_t isa) { return isa >= 0 && isa < NUM_ISA && cpu().level[isa]; }
int32_t dsf_max_isa() { return __atomic_load_n(&current_cap, __ATOMIC_RELAXED); }

int32_t dsf_set_max_isa(int32_t isa) {
  const int32_t cap = best_up_to(isa < 0 ? 0 : isa < highest_cap ? isa : highest_cap);
  __atomic_store_n(&current_cap, cap, __ATOMIC_RELAXED);
  return cap;
}

const char* dsf_isa_name(int32_t isa) { return isa >= 0 && isa < NUM_ISA ? NAMES[isa] : nullptr; }

int32_t dsf_isa_from_name(const char* name) {
  for (int32_t isa = 0; isa < NUM_ISA; ++isa)
    if (!std::strcmp(name, NAMES[isa])) return isa;
  return -1;
}

const char* dsf_version() { return DSF_VERSION; }

}  // namespace dsf
