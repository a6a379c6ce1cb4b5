// What the checks of block_sparse_attention share: sentences with numbers in them, integers of either size.
#pragma once
#include <cstdio>

#include "kernels/block_sparse_attention/cpu.h"

namespace dsf::attention_checks {

constexpr int64_t LARGEST = int64_t{1} << 58;        // elements of a tensor, tokens, positions: sums of a few fit int64
constexpr int64_t LARGEST_BLOCK = int64_t{1} << 30;  // tokens
constexpr const char* BE_INTEGERS = "be int32 or int64";

using Long = long long;

// A rule or what was given, with numbers in it: Text("have shape (%lld,)", Long{3}).
struct Text {
  char text[288];
  template <class... Values>
  explicit Text(const char* format, Values... values) {
    std::snprintf(text, sizeof text, format, values...);
  }
  operator const char*() const { return text; }
};

inline const char* what_is(Dtype dtype) {
  return dtype == Dtype::f32 ? "float32" : dtype == Dtype::bf16 ? "bfloat16" : "float16";
}

inline bool is_integer(Dtype dtype) { return dtype == Dtype::i32 || dtype == Dtype::i64; }

// A contiguous tensor of int32 or int64.
struct Integers {
  const void* data;
  Dtype dtype;

  int64_t operator[](int64_t i) const {
    return dtype == Dtype::i32 ? static_cast<const int32_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

inline int64_t num_blocks(int64_t length, int64_t block) { return length / block + (length % block != 0); }

// Each false with *problem where a door has not copied what has to lie side by side.
bool check_rows(const char* op, const char* arg, const TensorView& view, Problem* problem);
bool check_contiguous(const char* op, const char* arg, const TensorView& view, Problem* problem);

// Elements from one index to the next of each but the last of four dimensions; 0 where `one_for_all` and the size is 1.
HeadStrides strides_of(const TensorView& view, bool one_for_all);

// cu_seqlens, the mask, the lists. Each fills its part of *args, false with *problem where something is wrong.
bool check_sequences(const AttentionCall& call, AttentionArgs* args, Problem* problem);
bool check_mask(const AttentionCall& call, AttentionArgs* args, Problem* problem);

}  // namespace dsf::attention_checks
