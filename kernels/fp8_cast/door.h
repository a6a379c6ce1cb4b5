// How a door with strided tensors checks a cast, copies what is not rows, and finds the shape of the scale.
#pragma once
#include <string>
#include <vector>

#include "kernels/fp8_cast/cpu.h"

namespace dsf {

// Options as every door has them; text that outlives the call.
struct CastOptions {
  int64_t block_rows, block_cols;
  bool plain;
  std::string scale, mode;
  bool saturate;
  std::string layout, rounding;
  int64_t seed;
};

inline CastCall cast_call(const char* op, CastSource source, const CastOptions& options, Dtype dtype,
                          const char* dtype_name) {
  CastCall call{};
  call.op = op;
  call.source = source;
  call.dtype = dtype;
  call.dtype_name = dtype_name;
  call.plain = options.plain;
  call.block_rows = options.block_rows;
  call.block_cols = options.block_cols;
  call.scale = options.scale.c_str();
  call.mode = options.mode.c_str();
  call.saturate = options.saturate;
  call.layout = options.layout.c_str();
  call.rounding = options.rounding.c_str();
  call.seed = options.seed;
  return call;
}

// Operand has `view`, `get()` (null where absent) and `make_rows()` (true where it copied). A scale of two dimensions
// is read at its own strides, where they count values.
template <class Operand, class Raise>
CastArgs checked_cast(CastCall* call, Operand& x, Operand* weight, Operand* given, Operand* tensor_scale,
                      const Raise& raise) {
  CastArgs args;
  const auto check = [&] {
    call->x = x.view;
    call->norm_weight = weight ? weight->get() : nullptr;
    call->given = given ? given->get() : nullptr;
    call->tensor_scale = tensor_scale ? tensor_scale->get() : nullptr;
    Problem problem;
    if (!dsf_fp8_cast_check(call, &args, &problem)) raise(problem);
  };
  if (given && given->get() && !given->whole) given->make_rows();  // the check reads its values
  check();
  bool copied = x.make_rows();
  if (weight) copied |= weight->make_rows();
  if (given && given->get() && given->view.ndim != 2) copied |= given->make_rows();
  if (copied) check();
  return args;
}

struct ScaleShape {
  std::vector<int64_t> sizes, strides;
};

inline ScaleShape scale_shape_of(const CastCall& call, CastArgs* args) {
  const auto most = size_t(call.x.ndim < 2 ? 2 : call.x.ndim);
  ScaleShape shape{std::vector<int64_t>(most), std::vector<int64_t>(most)};
  const auto ndim = size_t(dsf_fp8_cast_scale_shape(&call, args, shape.sizes.data(), shape.strides.data()));
  shape.sizes.resize(ndim);
  shape.strides.resize(ndim);
  // As a matrix: leading dimensions fold into one.
  args->scale_row_stride = args->leading ? args->col_blocks : shape.strides[0];
  args->scale_col_stride = shape.strides[ndim - 1];
  return shape;
}

}  // namespace dsf
