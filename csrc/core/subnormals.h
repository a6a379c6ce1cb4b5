// Arithmetic on subnormal numbers as IEEE 754 has it.
#pragma once
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace dsf {

// Within its scope a thread neither flushes subnormal results to zero nor reads subnormal operands as zero, whatever
// its caller set (torch.set_flush_denormal, ONNX Runtime's session.set_denormal_as_zero). VDPBF16PS flushes always.
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
#else
  IeeeSubnormals() {}
  ~IeeeSubnormals() {}
#endif
};

}  // namespace dsf
