// fp8_cast and its family by their plain C ABI: check, allocate, call, as every door does.
#pragma once
#include "kernels/fp8_cast/cpu.h"
#include "tests/native/protocol.h"

namespace {

using namespace dsf;

int64_t bytes_of(int64_t values, Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
    case Dtype::i32:
      return values * 4;
    case Dtype::bf16:
    case Dtype::f16:
      return values * 2;
    case Dtype::f4e2m1x2:
      return values / 2;
    default:
      return values;
  }
}

// With the defaults of options that an op does not have. op and arguments outlive the call.
CastCall cast_call(const char* op, const Arguments& arguments) {
  CastCall call{};
  call.op = op;
  call.x = arguments.needed("x");
  call.block_rows = arguments.integer("block_rows", 0);
  call.block_cols = arguments.integer("block_cols", 0);
  call.plain = int32_t(arguments.integer("plain", 0));
  call.dtype_name = arguments.text("dtype", "float8_e4m3fn");
  call.dtype = dtype_of(call.dtype_name).dtype;
  call.scale = arguments.tensor("scale") ? "f32" : arguments.text("scale", "f32");
  call.given = arguments.tensor("scale");
  call.mode = arguments.text("mode", "deepgemm");
  call.saturate = int32_t(arguments.integer("saturate", 1));
  call.layout = arguments.text("out_layout", "row");
  call.tensor_scale = arguments.tensor("tensor_scale");
  call.rounding = arguments.text("rounding", "nearest");
  call.seed = arguments.integer("seed", 0);
  return call;
}

Dtype dtype_of_scale(const CastCall& call, const CastArgs& args) {
  if (args.layout == ScaleLayout::packed) return Dtype::i32;
  if (call.amax_only || args.kind == ScaleKind::f32) return Dtype::f32;
  return args.kind == ScaleKind::ue8m0 ? Dtype::f8e8m0 : Dtype::f8e4m3;
}

// Sizes and strides of the scale, and memory that reaches as far.
struct Scale {
  std::vector<int64_t> sizes, strides;
  int64_t bytes, value_bytes;

  Scale(const CastCall& call, CastArgs* args) : sizes(size_t(call.x.ndim + 2)), strides(sizes.size()) {
    const auto ndim = size_t(DSF_FUNCTION(dsf_fp8_cast_scale_shape)(&call, args, sizes.data(), strides.data()));
    sizes.resize(ndim);
    strides.resize(ndim);
    args->scale_row_stride = args->leading ? args->col_blocks : strides[0];
    args->scale_col_stride = strides[ndim - 1];
    int64_t values = 1, last = 0;
    for (size_t d = 0; d < ndim; ++d) {
      values *= sizes[d];
      last += (sizes[d] - 1) * strides[d];
    }
    value_bytes = bytes_of(1, dtype_of_scale(call, *args));
    bytes = values ? (last + 1) * value_bytes : 0;
  }
};

// Results: codes, scale (none where it was given), the scale's sizes and strides (i64 each); of a pair those of x^T
// follow, of amax alone there are no codes.
void cast(const CastCall& call, const Arguments& arguments) {
  CastArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_fp8_cast_check)(&call, &args, &problem)) return write_problem(problem);
  const Scale shape(call, &args);
  const int64_t code_bytes = call.amax_only ? 0 : bytes_of(args.M * args.K, args.dtype);
  const int64_t scales_t = call.pair ? args.K * ((args.M + args.block_cols - 1) / args.block_cols) : 0;
  const Guarded codes(code_bytes, 1), scale(shape.bytes, shape.value_bytes);
  const Guarded codes_t(call.pair ? code_bytes : 0, 1), scale_t(scales_t * shape.value_bytes, shape.value_bytes);
  args.codes = codes.data;
  args.scale = scale.data;
  args.codes_t = call.pair ? codes_t.data : nullptr;
  args.scale_t = call.pair ? scale_t.data : nullptr;
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_fp8_cast_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  {
    const Flushing mode(arguments.integer("flush", 0));
    DSF_FUNCTION(dsf_fp8_cast)(&context, &args);
  }
  const auto dims = int64_t(shape.sizes.size() * sizeof(int64_t));
  write_results({{codes.data, code_bytes},
                 {scale.data, shape.bytes},
                 {shape.sizes.data(), dims},
                 {shape.strides.data(), dims},
                 {codes_t.data, call.pair ? code_bytes : 0},
                 {scale_t.data, scales_t * shape.value_bytes}});
}

void fp8_cast(const char* op, const Arguments& arguments) { cast(cast_call(op, arguments), arguments); }

void silu_mul_cast(const char* op, const Arguments& arguments) {
  CastCall call = cast_call(op, arguments);
  call.source = CastSource::silu_mul;
  cast(call, arguments);
}

void rms_norm_cast(const char* op, const Arguments& arguments) {
  CastCall call = cast_call(op, arguments);
  call.source = CastSource::rms_norm;
  call.norm_weight = &arguments.needed("weight");
  call.eps = float(std::atof(arguments.text("eps")));
  cast(call, arguments);
}

void fp8_cast_transposed(const char* op, const Arguments& arguments) {
  CastCall call = cast_call(op, arguments);
  call.pair = 1;
  cast(call, arguments);
}

void fp8_amax(const char* op, const Arguments& arguments) {
  CastCall call = cast_call(op, arguments);
  call.amax_only = 1;
  cast(call, arguments);
}

void fp8_dequantize(const char*, const Arguments& arguments) {
  const char* dtype_name = arguments.text("dtype");
  const Dtype dtype = dtype_of(dtype_name).dtype;
  const DequantizeCall call{arguments.needed("codes"),
                            arguments.tensor("scale"),
                            arguments.integer("block_rows", -1),
                            arguments.integer("block_cols", -1),
                            dtype,
                            dtype_name,
                            arguments.tensor("tensor_scale")};
  DequantizeArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_fp8_dequantize_check)(&call, &args, &problem)) return write_problem(problem);
  const int64_t bytes = bytes_of(args.M * args.K, dtype);
  const Guarded y(bytes, bytes_of(1, dtype));
  args.y = y.data;
  const Context context = serial();
  {
    const Flushing mode(arguments.integer("flush", 0));
    DSF_FUNCTION(dsf_fp8_dequantize)(&context, &args);
  }
  write_results({{y.data, bytes}});
}

void int8_cast(const char*, const Arguments& arguments) {
  Int8CastArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_int8_cast_check)(&arguments.needed("x"), &args, &problem)) return write_problem(problem);
  const Guarded q(args.M * args.K, 1), scale(args.M * 4, 4);
  args.q = reinterpret_cast<int8_t*>(q.data);
  args.scale = reinterpret_cast<float*>(scale.data);
  const Context context = serial();
  {
    const Flushing mode(arguments.integer("flush", 0));
    DSF_FUNCTION(dsf_int8_cast)(&context, &args);
  }
  write_results({{q.data, args.M * args.K}, {scale.data, args.M * 4}});
}

using CastOp = void (*)(const char* op, const Arguments& arguments);
// Null for a name that is none of the family's.
CastOp cast_named(const std::string& name) {
  static const std::map<std::string, CastOp> OPS = {
      {"fp8_cast", fp8_cast},           {"silu_mul_cast", silu_mul_cast},
      {"rms_norm_cast", rms_norm_cast}, {"fp8_cast_transposed", fp8_cast_transposed},
      {"fp8_amax", fp8_amax},           {"fp8_dequantize", fp8_dequantize},
      {"int8_cast", int8_cast},
  };
  const auto at = OPS.find(name);
  return at == OPS.end() ? nullptr : at->second;
}

}  // namespace
