// What the checks of fused_conv and pool2d share: texts of numbers, rules of windows, sizes that fit.
#pragma once
#include <cstdio>
#include <initializer_list>

#include "kernels/fused_conv/view.h"

namespace dsf::fused_conv {

constexpr int64_t LARGEST = int64_t{1} << 58;       // values of a tensor: the bytes of a few of them fit int64
constexpr int64_t LARGEST_STEP = int64_t{1} << 24;  // of a window, in rows or columns

constexpr const char* BE_FLOAT_OR_BF16 = "be float32 or bfloat16";
constexpr const char* BE_8_BITS = "be uint8 or int8";

// "(3, 4)", or "3" of one number.
struct Numbers {
  char text[112];
  Numbers(std::initializer_list<int64_t> numbers) {
    int used = 0;
    text[0] = 0;
    for (const int64_t number : numbers)
      used += std::snprintf(text + used, sizeof text - size_t(used), "%s%lld",
                            used                 ? ", "
                            : numbers.size() > 1 ? "("
                                                 : "",
                            static_cast<long long>(number));
    if (numbers.size() > 1) std::snprintf(text + used, sizeof text - size_t(used), ")");
  }
};

// A rule with numbers in it: Rule("have shape %s", Numbers{3, 4}.text).
struct Rule {
  char text[224];
  template <class... Values>
  explicit Rule(const char* format, Values... values) {
    std::snprintf(text, sizeof text, format, values...);
  }
};

// Whether a row of variants.inc computes with it.
inline bool has_kernel(Dtype dtype) {
#define DSF_VARIANT(isa, kernel_dtype, kernel) \
  if (dtype == Dtype::kernel_dtype) return true;
#include "kernels/fused_conv/variants.inc"
#undef DSF_VARIANT
  return false;
}

// How many elements, at most LARGEST, as of one image: false where there are more.
bool count_elements(const int64_t (&sizes)[4], int64_t* elements);
// Fills strides with a view's, and where a dimension has one place with those that it would have.
Layout place(const View4& view, Strides* strides);

// Each false with *problem where something is wrong.
bool check_has_kernel(const char* op, const TensorView& x, Problem* problem);
bool check_steps(const char* op, const char* arg, const char* rule, Pair steps, Problem* problem);
bool check_padding(const char* op, const char* arg, const char* rule, const Padding& padding, Problem* problem);
bool check_output(const char* op, const TensorView& x, Dtype dtype, const int64_t (&sizes)[4], Problem* problem);
// Fills the result's rows and columns. is_own: the window is the op's arguments, not its max_pool.
bool check_pool_window(const char* op, bool is_own, const Window& pool, int64_t H, int64_t W, int64_t* out_h,
                       int64_t* out_w, Problem* problem);
// Places of a window along a side of `size` values; below 1 where there is none. torch's rule, ATen/native/Pool.h.
int64_t places(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride, bool ceil_mode);

}  // namespace dsf::fused_conv
