// Addresses in unrolled loops.
#pragma once
#include <cstdint>

namespace dsf::fused_conv {
namespace {

// A base and 0, 1 or 2 steps are one address of an instruction: at(i), for i = 0, 1, 2 and on, is 0.3 instructions.
template <class Byte>
struct Steps {
  Byte* base;
  int64_t step, two;

  Steps(Byte* first, int64_t bytes) : base(first), step(bytes), two(2 * bytes) { asm("" : "+r"(two)); }
  [[gnu::always_inline]] Byte* at(int i) {
    if (i % 3 == 0 && i > 0) {
      base += step + two;
      asm("" : "+r"(base));  // else GCC adds up all addresses
    }
    return base + (i % 3 == 0 ? 0 : i % 3 == 1 ? step : two);
  }
};

}  // namespace
}  // namespace dsf::fused_conv
