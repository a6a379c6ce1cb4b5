// What the checks of this room share.
#pragma once
#include <cstdio>

#include "csrc/gemm/linear_checks.h"
#include "kernels/sparse_mla/cpu.h"

namespace dsf::sparse_mla {

inline constexpr int64_t V32_TOKEN = 656, V4_TOKEN = 584;  // bytes
inline constexpr int64_t V4_FRONT = 576, V4_SCALES = 8;    // of a token: codes and bf16, scales behind all of these
inline constexpr int64_t V32_NUMBERS = 576, V4_NUMBERS = 512;

// The rule and a shape, "have shape (3, 1, 16)".
struct ShapeRule {
  char text[112];
  template <class... Sizes>
  explicit ShapeRule(const char* format, Sizes... sizes) {
    std::snprintf(text, sizeof text, format, static_cast<long long>(sizes)...);
  }
};

// So many dimensions, whose values take a representable number of bytes.
bool check_dims(const char* op, const char* arg, int64_t ndim, const TensorView& view, Problem* problem);
// A vector of such length and dtype.
bool check_vector(const char* op, const char* arg, Dtype dtype, const char* be_dtype, int64_t length,
                  const TensorView& view, Problem* problem);
bool number_error(const char* op, const char* arg, const char* rule, long long got, Problem* problem);

// Elements between the indices of a dimension, null strides being those of contiguous memory.
int64_t stride_of(const TensorView& view, int64_t dimension);

// Bytes (pages, page, 1, token's) of v32 or v4, or plain numbers of q's dtype; fills *store.
bool check_cache(const char* op, const char* arg, CacheLayout layout, const TensorView& cache, const TensorView* q,
                 TokenStore* store, Problem* problem);
// Whether tokens, of v4 pages, are contiguous bytes, as kernels read them.
bool has_whole_tokens(const TensorView& cache, CacheLayout layout);
bool check_layout(const char* op, const char* text, bool or_plain, CacheLayout* layout, Problem* problem);

}  // namespace dsf::sparse_mla
