// One error grammar for every door: "<op>: <arg> must <rule>; got <value>".
#pragma once
#include <cstddef>
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/tensor_view.h"

namespace dsf {

enum class Fault : int32_t { none = 0, value = 1, type = 2, runtime = 3 };

// What is wrong with a call; a door turns it into its own exception or status.
struct Problem {
  Fault fault;
  char sentence[512];
};

// Each returns false, so that a check reads `return value_error(...)`.
bool value_error(Problem* problem, const char* op, const char* arg, const char* rule, const char* got);
bool type_error(Problem* problem, const char* op, const char* arg, const char* rule, const char* got);

// "shape (4, 100)" into text; cut with "..." where it does not fit.
void shape_text(const TensorView& view, char* text, int64_t text_bytes);
bool shape_error(Problem* problem, const char* op, const char* arg, const char* rule, const TensorView& got);
// "dtype int64"
bool dtype_error(Problem* problem, const char* op, const char* arg, const char* rule, const TensorView& got);

// Where text is in names, or -1 and "<arg> must be one of a, b; got '<text>'".
int32_t chosen(const char* op, const char* arg, const char* const* names, int32_t count, const char* text,
               Problem* problem);
template <size_t count>
int32_t chosen(const char* op, const char* arg, const char* const (&names)[count], const char* text, Problem* problem) {
  return chosen(op, arg, names, int32_t(count), text, problem);
}

// Sizes as (rows, columns): all but the last dimension folded. False where the product overflows int64.
bool fold_rows(const TensorView& view, int64_t* rows, int64_t* columns);
// The distance in elements between rows of the folded view, or -1 where the memory is not rows of
// contiguous values at one distance (the door then copies to contiguous memory first).
extern "C" DSF_API int64_t dsf_row_stride(const TensorView* view);

// Whether values follow each other without gaps, in the order of the dimensions.
inline bool is_contiguous(const TensorView& view) {
  int64_t stride = 1;
  bool follows = true;
  for (int64_t d = view.ndim; view.strides && d-- > 0;) {
    if (view.sizes[d] == 0) return true;
    follows = follows && (view.sizes[d] == 1 || view.strides[d] == stride);
    if (follows) stride *= view.sizes[d];  // a tensor's own stride: no overflow
  }
  return follows;
}

// Whether the values of the last dimension do, whatever the others' strides; of no values, whatever theirs.
inline bool has_rows(const TensorView& view) {
  return !view.strides || view.ndim == 0 || view.sizes[view.ndim - 1] <= 1 || view.strides[view.ndim - 1] == 1 ||
         is_contiguous(view);
}

// Whether so many bytes can be had at all. Small requests are not tried: the allocation itself tells.
extern "C" DSF_API int32_t dsf_fits_memory(int64_t bytes);

// a * b in *product; false on overflow or a negative factor.
bool checked_mul(int64_t a, int64_t b, int64_t* product);

}  // namespace dsf
