// Loops whose index is a constant.
#pragma once
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

}  // namespace
}  // namespace dsf::fused_conv
