// Loops whose index is a constant, and addresses in them.
#pragma once
#include <cstdint>
#include <utility>

namespace dsf::fused_conv {
namespace {

// step(integral_constant) for 0 to n - 1, until one is false: indices are constants, so that arrays live in registers.
template <int n, class Step>
[[gnu::always_inline]] inline void unrolled_while(const Step& step) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    static_cast<void>((step(std::integral_constant<int, i>{}) && ...));
  }(std::make_integer_sequence<int, n>{});
}
template <int n, class Step>
[[gnu::always_inline]] inline void unrolled(const Step& step) {
  unrolled_while<n>([&](auto i) __attribute__((always_inline)) { return step(i), true; });
}

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
