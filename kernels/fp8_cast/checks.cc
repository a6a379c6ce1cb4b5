// The checks of fp8_cast and its family: what is wrong with a call, in one sentence, before any work.
#include <cstdio>
#include <cstring>

#include "csrc/gemm/block_scale.h"
#include "csrc/gemm/linear_checks.h"
#include "kernels/fp8_cast/cpu_kernels.h"
#include "kernels/fp8_cast/scale_view.h"

namespace dsf {
namespace {

constexpr const char* MODES[] = {
#define DSF_ENTRY(name) #name,
    DSF_CAST_MODES(DSF_ENTRY)
#undef DSF_ENTRY
};
constexpr const char* KINDS[] = {"f32", "ue8m0", "e4m3"};
constexpr const char* LAYOUTS[] = {"row", "column", "tma", "packed"};
constexpr const char* ROUNDINGS[] = {"nearest", "stochastic"};

bool check_x(const char* op, const char* arg, const TensorView& x, int64_t* M, int64_t* K, Problem* problem) {
  if (!check_float(op, arg, x, problem)) return false;
  if (x.ndim < 1) return shape_error(problem, op, arg, "have at least one dimension", x);
  int64_t values, bytes;
  if (!fold_rows(x, M, K) || !checked_mul(*M, *K, &values) || !checked_mul(values, 4, &bytes))
    return shape_error(problem, op, arg, "have fewer than 2^61 values", x);
  return true;
}

bool check_block(const char* op, int64_t rows, int64_t columns, Problem* problem) {
  if ((rows == -1 || rows > 0) && (columns == -1 || columns > 0)) return true;
  char got[64];
  std::snprintf(got, sizeof got, "(%lld, %lld)", static_cast<long long>(rows), static_cast<long long>(columns));
  return value_error(problem, op, "block", "be two positive numbers, or -1 for all", got);
}

bool is_format(Dtype dtype) {
  for (const Dtype format : fp8_cast::FORMATS)
    if (format == dtype) return true;
  return false;
}
constexpr const char* BE_A_FORMAT =
    "be float8_e4m3fn, float8_e5m2, float8_e4m3fnuz, float8_e5m2fnuz or float4_e2m1fn_x2";

int64_t length_of(int64_t block, int64_t size) { return block == -1 || block > size ? (size > 0 ? size : 1) : block; }
int64_t blocks_of(int64_t size, int64_t block) { return size / block + (size % block != 0); }
// A block of all is one block, of nothing too.
int64_t blocks_of(int64_t size, int64_t length, int64_t block) { return block == -1 ? 1 : blocks_of(size, length); }

// One f32.
bool check_tensor_scale(const char* op, const TensorView& scale, float* value, Problem* problem) {
  if (scale.dtype != Dtype::f32) return dtype_error(problem, op, "tensor_scale", "be float32", scale);
  for (int64_t d = 0; d < scale.ndim; ++d)
    if (scale.sizes[d] != 1) return shape_error(problem, op, "tensor_scale", "have one element", scale);
  if (!scale.data) return true;
  std::memcpy(value, scale.data, 4);
  const uint32_t bits = fp8_cast::bits_from(*value);
  if (bits > 0 && bits < fp8_cast::INF_BITS) return true;
  char got[32];
  std::snprintf(got, sizeof got, "%g", double(*value));
  return value_error(problem, op, "tensor_scale", "be finite and above zero", got);
}

// (row_blocks, col_blocks), or x's leading dimensions and col_blocks where rows are blocks of their own.
bool check_scale_shape(const char* op, const TensorView& scale, int64_t row_blocks, int64_t col_blocks,
                       const TensorView& x, bool of_rows, Problem* problem) {
  const int64_t columns = scale.dtype == Dtype::i32 ? blocks_of(col_blocks, 4) : col_blocks;
  if (scale.ndim == 2 && scale.sizes[0] == row_blocks && scale.sizes[1] == columns) return true;
  if (of_rows && scale.ndim == x.ndim && x.ndim > 2 && scale.sizes[scale.ndim - 1] == columns &&
      std::memcmp(scale.sizes, x.sizes, size_t(x.ndim - 1) * sizeof *x.sizes) == 0)
    return true;
  char rule[112];
  std::snprintf(rule, sizeof rule, "have shape (%lld, %lld), one value a block", static_cast<long long>(row_blocks),
                static_cast<long long>(columns));
  return shape_error(problem, op, "scale", rule, scale);
}

bool check_given(const CastCall& call, const CastArgs& args, Problem* problem) {
  const TensorView& given = *call.given;
  if (given.dtype != Dtype::f32 && given.dtype != Dtype::f8e8m0)
    return dtype_error(problem, call.op, "scale", "be float32 or float8_e8m0fnu", given);
  if (!check_scale_shape(call.op, given, args.row_blocks, args.col_blocks, call.x, args.block_rows == 1, problem))
    return false;
  if (!given.data || (given.ndim != 2 && dsf_row_stride(&given) < 0)) return true;
  const fp8_cast::ScaleView scale = fp8_cast::view_of_scale(given);
  for (int64_t row = 0; row < args.row_blocks; ++row)
    for (int64_t column = 0; column < args.col_blocks; ++column) {
      const float value = scale.value(row, column);
      const uint32_t bits = fp8_cast::bits_from(value);
      if (bits > 0 && bits < fp8_cast::INF_BITS) continue;
      char got[96];
      std::snprintf(got, sizeof got, "%g in row %lld, column %lld", double(value), static_cast<long long>(row),
                    static_cast<long long>(column));
      return value_error(problem, call.op, "scale", "be finite and above zero", got);
    }
  return true;
}

bool check_choices(const CastCall& call, CastArgs* args, Problem* problem) {
  const int32_t mode = chosen(call.op, "mode", MODES, call.mode, problem);
  if (mode < 0) return false;
  const int32_t kind = call.given || call.plain ? 0 : chosen(call.op, "scale", KINDS, call.scale, problem);
  if (kind < 0) return false;
  const int32_t layout = chosen(call.op, "out_layout", LAYOUTS, call.layout, problem);
  if (layout < 0) return false;
  const int32_t rounding = chosen(call.op, "rounding", ROUNDINGS, call.rounding, problem);
  if (rounding < 0) return false;
  args->mode = CastMode(mode);
  args->kind = ScaleKind(kind);
  args->layout = ScaleLayout(layout);
  args->stochastic = rounding;
  return true;
}

// What does not go together.
bool check_together(const CastCall& call, const CastArgs& args, Problem* problem) {
  const bool fp4 = args.dtype == Dtype::f4e2m1x2;
  const auto wrong = [&](const char* arg, const char* rule, const char* got) {
    return value_error(problem, call.op, arg, rule, got);
  };
  const auto quoted = [](char (&text)[80], const char* value) {
    std::snprintf(text, sizeof text, "'%.60s'", value);
    return text;
  };
  char text[80];
  const bool dynamic = !args.plain && !args.has_given;
  if (args.plain && call.given) return wrong("scale", "be left out where block is None", "a tensor");
  if (dynamic && args.mode > CastMode::torchao && args.kind != ScaleKind::ue8m0)
    return wrong("mode", "go with scale='ue8m0' where it is 'torchao_ceil', 'torchao_even' or 'torchao_rceil'",
                 quoted(text, call.mode));
  if (dynamic && args.kind == ScaleKind::e4m3 && (!fp4 || args.mode != CastMode::torchao))
    return wrong("scale", "go with dtype float4_e2m1fn_x2 and mode='torchao' where it is 'e4m3'",
                 fp4 ? quoted(text, call.mode) : call.dtype_name);
  if (args.has_tensor_scale && (!dynamic || args.kind != ScaleKind::e4m3))
    return wrong("tensor_scale", "be left out unless scale is 'e4m3'", "one");
  if (args.layout == ScaleLayout::packed && (!dynamic || args.kind != ScaleKind::ue8m0))
    return wrong("out_layout", "be 'row', 'column' or 'tma' unless scale is 'ue8m0'", "'packed'");
  if (args.layout != ScaleLayout::row && call.x.ndim > 2 && args.block_rows == 1)
    return wrong("out_layout", "be 'row' where x has more than two dimensions", quoted(text, call.layout));
  if (fp4 && args.K % 2) return shape_error(problem, call.op, "x", "have an even last dimension for FP4", call.x);
  if (fp4 && !args.plain && args.block_cols % 2 && args.K > 0) {
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(args.block_cols));
    return wrong("block", "have an even number of columns for FP4", text);
  }
  if (args.source != CastSource::x && args.block_rows != 1) {
    std::snprintf(text, sizeof text, "(%lld, %lld)", static_cast<long long>(call.block_rows),
                  static_cast<long long>(call.block_cols));
    return wrong("block", "have one row", text);
  }
  return true;
}

// The transposed pair: squares of x, cast along their rows and along their columns.
bool check_pair(const CastCall& call, const CastArgs& args, Problem* problem) {
  constexpr int64_t MOST = 128;  // columns of a square
  if (!call.pair) return true;
  if (call.x.ndim != 2) return shape_error(problem, call.op, "x", "have 2 dimensions", call.x);
  if (call.block_rows != 1 || call.block_cols < 1 || call.block_cols > MOST) {
    char got[64];
    std::snprintf(got, sizeof got, "(%lld, %lld)", static_cast<long long>(call.block_rows),
                  static_cast<long long>(call.block_cols));
    return value_error(problem, call.op, "block", "be (1, n) with n from 1 to 128", got);
  }
  if (args.dtype == Dtype::f4e2m1x2) return type_error(problem, call.op, "dtype", "be a float8 type", call.dtype_name);
  if (args.stochastic) return value_error(problem, call.op, "rounding", "be 'nearest'", "'stochastic'");
  return true;
}

bool check_source(const CastCall& call, CastArgs* args, Problem* problem) {
  args->source = call.source;
  args->eps = call.eps;
  if (call.source == CastSource::silu_mul) {
    if (args->K % 2) return shape_error(problem, call.op, "x", "have an even last dimension", call.x);
    args->K /= 2;
  }
  if (call.source != CastSource::rms_norm) return true;
  const TensorView& weight = *call.norm_weight;
  if (weight.dtype != call.x.dtype) {
    char rule[64];
    std::snprintf(rule, sizeof rule, "have x's dtype %s", call.x.dtype_name);
    return dtype_error(problem, call.op, "weight", rule, weight);
  }
  char rule[64];
  std::snprintf(rule, sizeof rule, "have shape (%lld,)", static_cast<long long>(args->K));
  if (weight.ndim != 1 || weight.sizes[0] != args->K) return shape_error(problem, call.op, "weight", rule, weight);
  args->norm_weight = weight.data;
  if (call.eps >= 0 && call.eps <= 3.4028235e38f) return true;
  char got[32];
  std::snprintf(got, sizeof got, "%g", double(call.eps));
  return value_error(problem, call.op, "eps", "be finite and not negative", got);
}

}  // namespace

int32_t dsf_fp8_cast_check(const CastCall* call, CastArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = CastArgs{};
  if (!check_x(call->op, "x", call->x, &args->M, &args->K, problem)) return 0;
  if (!is_format(call->dtype)) return type_error(problem, call->op, "dtype", BE_A_FORMAT, call->dtype_name);
  args->plain = call->plain;
  if (!args->plain && !check_block(call->op, call->block_rows, call->block_cols, problem)) return 0;
  args->dtype = call->dtype;
  args->x_dtype = call->x.dtype;
  if (!check_choices(*call, args, problem) || !check_source(*call, args, problem)) return 0;
  args->has_given = call->given != nullptr;
  args->has_tensor_scale = call->tensor_scale != nullptr;
  args->saturate = call->saturate;
  args->amax_only = call->amax_only;
  args->seed = uint64_t(call->seed);
  args->x = call->x.data;
  args->x_stride = call->x.ndim ? dsf_row_stride(&call->x) : 0;
  args->block_rows = args->plain ? length_of(-1, args->M) : length_of(call->block_rows, args->M);
  args->block_cols = args->plain ? length_of(-1, args->K) : length_of(call->block_cols, args->K);
  if (call->pair) args->block_cols = call->block_cols;
  args->mx = (call->block_rows == 1 && call->block_cols == 32) || (call->block_rows == 32 && call->block_cols == 1);
  args->row_blocks = args->plain ? 1 : blocks_of(args->M, args->block_rows, call->block_rows);
  args->col_blocks = args->plain ? 1 : blocks_of(args->K, args->block_cols, call->block_cols);
  args->leading = !args->plain && call->block_rows == 1 && call->x.ndim > 2 ? call->x.ndim - 1 : 0;
  if (call->tensor_scale && !check_tensor_scale(call->op, *call->tensor_scale, &args->tensor_scale, problem)) return 0;
  if (!check_together(*call, *args, problem) || !check_pair(*call, *args, problem)) return 0;
  if (!call->given) return 1;
  args->given = *call->given;
  return check_given(*call, *args, problem);
}

int32_t dsf_fp8_dequantize_check(const DequantizeCall* call, DequantizeArgs* args, Problem* problem) {
  constexpr const char* OP = "fp8_dequantize";
  *problem = Problem{};
  *args = DequantizeArgs{};
  const TensorView& codes = call->codes;
  if (!is_format(codes.dtype)) return dtype_error(problem, OP, "codes", BE_A_FORMAT, codes);
  if (codes.ndim < 1) return shape_error(problem, OP, "codes", "have at least one dimension", codes);
  if (call->dtype != Dtype::f32 && call->dtype != Dtype::bf16 && call->dtype != Dtype::f16)
    return type_error(problem, OP, "dtype", BE_FLOAT, call->dtype_name);
  int64_t values, bytes;
  if (!fold_rows(codes, &args->M, &args->K) || !checked_mul(args->M, args->K, &values) ||
      !checked_mul(values, 8, &bytes))
    return shape_error(problem, OP, "codes", "have fewer than 2^60 values", codes);
  if (codes.dtype == Dtype::f4e2m1x2) args->K *= 2;
  args->code_dtype = codes.dtype;
  args->dtype = call->dtype;
  args->codes = codes.data;
  args->codes_stride = dsf_row_stride(&codes);
  if (call->tensor_scale && !call->scale)
    return value_error(problem, OP, "tensor_scale", "be left out where scale is", "one");
  args->has_scale = call->scale != nullptr;
  if (!call->scale) return 1;
  if (!check_block(OP, call->block_rows, call->block_cols, problem)) return 0;
  const TensorView& scale = *call->scale;
  if (scale.dtype != Dtype::f32 && scale.dtype != Dtype::f8e8m0 && scale.dtype != Dtype::f8e4m3 &&
      scale.dtype != Dtype::i32)
    return dtype_error(problem, OP, "scale", "be float32, float8_e8m0fnu, float8_e4m3fn or int32", scale);
  args->block_rows = length_of(call->block_rows, args->M);
  args->block_cols = length_of(call->block_cols, args->K);
  args->row_blocks = blocks_of(args->M, args->block_rows, call->block_rows);
  args->col_blocks = blocks_of(args->K, args->block_cols, call->block_cols);
  if (!check_scale_shape(OP, scale, args->row_blocks, args->col_blocks, codes, call->block_rows == 1, problem))
    return 0;
  args->scale = scale;
  if (codes.dtype == Dtype::f4e2m1x2 && args->block_cols % 2 && args->K > 0) {
    char got[32];
    std::snprintf(got, sizeof got, "%lld", static_cast<long long>(args->block_cols));
    return value_error(problem, OP, "block", "have an even number of columns for FP4", got);
  }
  args->has_tensor_scale = call->tensor_scale != nullptr;
  return !call->tensor_scale || check_tensor_scale(OP, *call->tensor_scale, &args->tensor_scale, problem);
}

int32_t dsf_int8_cast_check(const TensorView* x, Int8CastArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = Int8CastArgs{};
  if (!check_x("int8_cast", "x", *x, &args->M, &args->K, problem)) return 0;
  args->dtype = x->dtype;
  args->x = x->data;
  args->x_stride = dsf_row_stride(x);
  return 1;
}

int64_t dsf_fp8_cast_scale_shape(const CastCall* call, const CastArgs* args, int64_t* sizes, int64_t* strides) {
  constexpr int64_t TMA_BYTES = 16;
  if (args->leading) {
    for (int64_t d = 0; d < args->leading; ++d) sizes[d] = call->x.sizes[d];
    sizes[args->leading] = args->col_blocks;
    int64_t stride = 1;
    for (int64_t d = args->leading; d >= 0; --d) {
      strides[d] = stride;
      stride *= sizes[d] > 0 ? sizes[d] : 1;
    }
    return args->leading + 1;
  }
  const bool packed = args->layout == ScaleLayout::packed;
  sizes[0] = args->row_blocks;
  sizes[1] = packed ? blocks_of(args->col_blocks, 4) : args->col_blocks;
  const int64_t aligned_to = TMA_BYTES / (args->kind == ScaleKind::f32 || packed ? 4 : 1);
  const int64_t aligned = blocks_of(sizes[0], aligned_to) * aligned_to;
  strides[0] = args->layout == ScaleLayout::row ? (sizes[1] > 0 ? sizes[1] : 1) : 1;
  strides[1] = args->layout == ScaleLayout::row ? 1 : args->layout == ScaleLayout::column ? sizes[0] : aligned;
  if (strides[1] == 0) strides[1] = 1;
  return 2;
}

}  // namespace dsf
