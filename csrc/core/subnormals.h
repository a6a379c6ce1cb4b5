// Arithmetic on subnormal numbers as IEEE 754 has it.
#pragma once
#include <cstdint>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace dsf {

// Within its scope a thread neither flushes subnormal results to zero nor reads subnormal operands as zero, whatever
// its caller set (torch.set_flush_denormal, ONNX Runtime's session.set_denormal_as_zero). VDPBF16PS and BFDOT
// flush always.
class IeeeSubnormals {
 public:
  IeeeSubnormals(const IeeeSubnormals&) = delete;
#ifdef __SSE__
  IeeeSubnormals() : before_(_mm_getcsr()) {
    if (before_ & FLUSHING) _mm_setcsr(before_ & ~FLUSHING);
  }
  ~IeeeSubnormals() {
    if (before_ & FLUSHING) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned FLUSHING = 0x8040;  // FTZ and DAZ
  const unsigned before_;
#elif defined(__aarch64__)
  IeeeSubnormals() : before_(read()) {
    if (before_ & FLUSHING) write(before_ & ~FLUSHING);
  }
  ~IeeeSubnormals() {
    if (before_ & FLUSHING) write(before_);
  }

 private:
  static constexpr uint64_t FLUSHING = 0x1000001;  // FPCR.FZ, and FIZ where there is FEAT_AFP
  static uint64_t read() {
    uint64_t fpcr;
    asm volatile("mrs %0, fpcr" : "=r"(fpcr));
    return fpcr;
  }
  static void write(uint64_t fpcr) { asm volatile("msr fpcr, %0" : : "r"(fpcr) : "memory"); }
  const uint64_t before_;
#else
  IeeeSubnormals() {}
  ~IeeeSubnormals() {}
#endif
};

}  // namespace dsf
