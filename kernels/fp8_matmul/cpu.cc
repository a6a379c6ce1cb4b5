#include "kernels/fp8_matmul/cpu.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "csrc/core/subnormals.h"
#include "csrc/gemm/fp8.h"
#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/pack.h"
#include "csrc/gemm/packed.h"
#include "csrc/gemm/plain_weight.h"
#include "kernels/fp8_cast/cpu.h"
#include "kernels/fp8_matmul/cpu_kernels.h"

namespace dsf {
namespace {

using fp8_matmul::CastRows;

struct Variant {
  Isa isa;
  const char* name;
  const fp8_matmul::Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, #kernel, &fp8_matmul::kernel},
#include "kernels/fp8_matmul/variants.inc"
#undef DSF_VARIANT
};

const fp8_matmul::Kernel& pick() {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa))) return *variant.kernel;
  return fp8_matmul::fp8_matmul_f8_nt_scalar;
}

constexpr int64_t STEP = 128;      // largest number of k that one sum takes before it is scaled
constexpr int64_t ALIGNMENT = 64;  // bytes: a cache line, and a 512-bit vector
constexpr const char* QUANTIZE = "fp8_quantize_weight";

Block block_size(const LinearWeight& weight) { return {weight.block_n, weight.block_k}; }

PackedFormat format_of(const LinearWeight& weight) {
  return {weight.values.dtype, weight.block_k < 0 ? STEP : std::gcd(weight.block_k, STEP), false, weight.gated};
}

bool check_fp8(const char* op, const char* arg, const TensorView& values, Problem* problem) {
  return is_fp8(values.dtype) || dtype_error(problem, op, arg, "be float8_e4m3fn or float8_e5m2", values);
}

// Block, then the dtype and shape of the scale.
bool check_scaling(const char* op, const LinearWeight& weight, Problem* problem) {
  if (!check_block(op, block_size(weight), problem)) return false;
  if (!weight.scale) return value_error(problem, op, "scale", "be there", "none");
  const int64_t* sizes = weight.values.sizes;
  return check_scale(op, "scale", *weight.scale, sizes[0], sizes[1], block_size(weight), problem);
}

bool check_packed(const LinearCall& call, const char* op, LinearArgs* args, PackedFormat* format, Problem* problem) {
  if (!check_linear_packed(call, op, args, format, problem)) return false;
  if (!is_fp8(format->dtype))
    return type_error(problem, op, "packed", "be packed from float8_e4m3fn or float8_e5m2", dtype_name(format->dtype));
  // Any other step, and zero points, are forged: the kernels would read past the panels.
  if (format->block_k < SMALLEST_BLOCK_K || STEP % format->block_k || format->zeros)
    return shape_error(problem, op, "packed", "be whole", call.weight.values);
  return true;
}

// Workspace of x in FP8, in bytes; total is -1 where that overflows.
struct Workspace {
  int64_t values = 0, total = -1, steps;

  explicit Workspace(const LinearArgs& args) : steps(num_blocks(args.K, STEP)) {
    int64_t count = 0;
    if (!checked_mul(args.M, args.K, &count) || count > INT64_MAX / 16) return;
    values = round_up(count * 2, ALIGNMENT);
    total = values + round_up(args.M * steps * 4, ALIGNMENT);
  }
  CastRows rows(void* workspace) const {
    return {static_cast<uint16_t*>(workspace), reinterpret_cast<float*>(static_cast<char*>(workspace) + values), steps};
  }
};

int64_t workspace_bytes(const LinearArgs& args) {
  return args.float_activations ? widened_x_bytes(args) : Workspace(args).total;
}

// Of columns n to n + count, in the given block of k: a value for each run of columns that share one.
void write_scales(const LinearWeight& weight, int64_t n, int64_t count, int64_t block_of_k, float* scales) {
  int64_t row = block_of(n, weight.block_n);
  for (int64_t c = 0; c < count; ++row) {
    const float value = scale_value(*weight.scale, row, block_of_k);
    const int64_t end = weight.block_n < 0 ? count : (row + 1) * weight.block_n - n;
    for (; c < count && c < end; ++c) scales[c] = value;
  }
}

// The p-th panel of target: of each block the scales, then the codes as packed.h has them.
void pack_panel(const LinearWeight& weight, PanelRows rows, const PackedPanels& target, int64_t p) {
  const TensorView& values = weight.values;
  const int64_t K = values.sizes[1], stride = dsf_row_stride(&values), columns = rows.count;
  const char* codes = static_cast<const char*>(values.data) + rows.first * stride;
  char* block = const_cast<char*>(target.panel(p));
  if (columns < PANEL_N) std::memset(block, 0, size_t(target.panel_bytes));  // else all of it is written below
  for (int64_t k = 0; k < K; k += target.block_k, block += target.block_bytes) {
    if (k > 0 && weight.block_k < 0)  // the same for all of K
      std::memcpy(block, target.panel(p), PackedPanels::SCALE_BYTES);
    else
      write_scales(weight, rows.first, columns, block_of(k, weight.block_k), reinterpret_cast<float*>(block));
    pack_columns<TransposePairs>(codes + k, stride, columns, K - k < target.block_k ? K - k : target.block_k,
                                 block + PackedPanels::SCALE_BYTES);
  }
}

template <class Run>
void walk_packing(const Context& context, const LinearArgs& args, const LinearWeight& weight, const Run& run) {
  const auto pack = [&](PanelRows rows, const PackedPanels& target, int64_t p) { pack_panel(weight, rows, target, p); };
  // Behind x in FP8 or widened, where there is such.
  char* scratch = static_cast<char*>(context.workspace) + workspace_bytes(args);
  walk_plain(context, args, format_of(weight), scratch, pack, run);
}

// y from x in FP8 and a packed weight, or a plain one where there is one.
void run_rows(const Context& context, const LinearArgs& args, const CastRows& rows, const LinearWeight* plain) {
  const fp8_matmul::Kernel& kernel = pick();
  const auto run = [&](const LinearArgs& part, int64_t m_begin, int64_t m_end, int64_t panel) {
    const IeeeSubnormals ieee;
    kernel.run_cast(part, rows, m_begin, m_end, panel);
  };
  plain ? walk_packing(context, args, *plain, run) : walk(context, args, run);
}

void run_matmul(const Context& context, const LinearArgs& args, const LinearWeight* plain) {
  if (args.M == 0 || args.N == 0) return;
  const fp8_matmul::Kernel& kernel = pick();
  if (args.float_activations) {
    const auto run = [&](const LinearArgs& part, int64_t m_begin, int64_t m_end, int64_t panel) {
      const IeeeSubnormals ieee;
      kernel.run(part, m_begin, m_end, panel);
    };
    const LinearArgs widened = with_widened_x(context, args, kernel.widen, context.workspace);
    return plain ? walk_packing(context, widened, *plain, run) : walk(context, widened, run);
  }
  const CastRows rows = Workspace(args).rows(context.workspace);
  parallel_for(context, args.M, [&](int64_t begin, int64_t end) { kernel.cast(args, begin, end, rows); });
  run_rows(context, args, rows, plain);
}

// The numbers of all codes of a format.
template <Dtype dtype>
struct Numbers {
  uint16_t bf16[256] = {};

  constexpr Numbers() {
    const Fp8Bytes<dtype> bytes;
    for (int code = 0; code < 256; ++code) bf16[code] = bytes.bf16(uint8_t(code));
  }
};

// Row m of mat_a as the kernels read it.
void decode_row(const LinearWeight& mat_a, int64_t m, const CastRows& rows) {
  static constexpr Numbers<Dtype::f8e4m3> E4M3;
  static constexpr Numbers<Dtype::f8e5m2> E5M2;
  const TensorView& values = mat_a.values;
  const int64_t K = values.sizes[1];
  const uint16_t* bf16 = values.dtype == Dtype::f8e4m3 ? E4M3.bf16 : E5M2.bf16;
  const uint8_t* codes = static_cast<const uint8_t*>(values.data) + m * dsf_row_stride(&values);
  uint16_t* numbers = rows.values + m * K;
  for (int64_t k = 0; k < K; ++k) numbers[k] = bf16[codes[k]];
  for (int64_t step = 0; step < rows.scale_stride; ++step)
    rows.scale[m * rows.scale_stride + step] =
        scale_value(*mat_a.scale, block_of(m, mat_a.block_n), block_of(step * STEP, mat_a.block_k));
}

bool check_codes(const char* op, const char* arg, const TensorView& values, Problem* problem) {
  return check_fp8(op, arg, values, problem) &&
         (values.ndim == 2 || shape_error(problem, op, arg, "have 2 dimensions", values));
}

bool fits_memory(int64_t rows, int64_t columns, int64_t item_bytes) {
  int64_t bytes = 0;
  return checked_mul(rows, columns, &bytes) && checked_mul(bytes, item_bytes, &bytes) && dsf_fits_memory(bytes);
}

}  // namespace

int32_t dsf_fp8_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem) {
  const char* op = call->weight_is_packed ? "fp8_matmul_packed" : "fp8_matmul";
  if (!check_linear_x(*call, op, args, problem)) return 0;
  PackedFormat format{};
  if (call->weight_is_packed) {
    if (!check_packed(*call, op, args, &format, problem)) return 0;
  } else {
    if (!check_fp8(op, "weight", call->weight.values, problem)) return 0;
    if (!check_linear_weight(*call, op, "weight", args, problem)) return 0;
    if (!check_scaling(op, call->weight, problem)) return 0;
    format = format_of(call->weight);
  }
  if (!check_linear_rest(*call, op, "weight", format, args, problem)) return 0;
  const bool as_fp8 = !std::strcmp(call->activations, "fp8");
  if (!as_fp8 && std::strcmp(call->activations, "float")) {
    char got[48];
    std::snprintf(got, sizeof got, "'%.32s'", call->activations);
    return value_error(problem, op, "activations", "be one of float, fp8", got);
  }
  args->float_activations = !as_fp8;
  // Last: all else bounds how many there are to read.
  return call->weight_is_packed || check_scale_values(op, "scale", *call->weight.scale, problem);
}

int32_t dsf_fp8_matmul_pack_check(const LinearWeight* weight, Problem* problem) {
  *problem = Problem{};
  constexpr const char* OP = "fp8_matmul_pack";
  return check_fp8(OP, "weight", weight->values, problem) && check_block(OP, block_size(*weight), problem) &&
         check_matrix(OP, "weight", weight->values, format_of(*weight), problem) &&
         check_gated(OP, "weight", *weight, problem) && check_scaling(OP, *weight, problem) &&
         check_scale_values(OP, "scale", *weight->scale, problem);
}

int64_t dsf_fp8_matmul_packed_bytes(const LinearWeight* weight) {
  return packed_bytes(format_of(*weight), weight->values.sizes[0], weight->values.sizes[1]);
}

void dsf_fp8_matmul_pack(const Context* context, const LinearWeight* weight, void* packed) {
  const int64_t N = weight->values.sizes[0];
  write_packed_header(format_of(*weight), N, weight->values.sizes[1], packed);
  const PackedPanels target(packed);
  parallel_for(*context, num_panels(N, weight->gated), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(*weight, rows_of_panel(N, weight->gated, p), target, p);
  });
}

int64_t dsf_fp8_matmul_workspace_bytes(const Context*, const LinearArgs* args) { return workspace_bytes(*args); }

int64_t dsf_fp8_matmul_plain_workspace_bytes(const Context* context, const LinearArgs* args,
                                             const LinearWeight* weight) {
  const int64_t rows = workspace_bytes(*args);
  return rows < 0 ? -1 : rows + plain_scratch_bytes(*context, *args, format_of(*weight));
}

void dsf_fp8_matmul(const Context* context, const LinearArgs* args) { run_matmul(*context, *args, nullptr); }

void dsf_fp8_matmul_plain(const Context* context, const LinearArgs* args, const LinearWeight* weight) {
  run_matmul(*context, *args, weight);
}

int32_t dsf_fp8_scaled_mm_check(const ScaledMmCall* call, LinearArgs* args, Problem* problem) {
  constexpr const char* OP = "fp8_scaled_mm";
  *args = LinearArgs{};
  *problem = Problem{};
  const LinearWeight &a = call->mat_a, &b = call->mat_b;
  if (!check_codes(OP, "mat_a", a.values, problem) || !check_codes(OP, "mat_b", b.values, problem)) return 0;
  const int64_t M = a.values.sizes[0], N = b.values.sizes[0], K = a.values.sizes[1];
  if (b.values.sizes[1] != K) {
    char rule[96];
    std::snprintf(rule, sizeof rule, "have %lld columns, as mat_a", static_cast<long long>(K));
    return shape_error(problem, OP, "mat_b", rule, b.values);
  }
  if (!check_scale(OP, "scale_a", *a.scale, M, K, block_size(a), problem) ||
      !check_scale(OP, "scale_b", *b.scale, N, K, block_size(b), problem))
    return 0;
  if (!is_float(call->dtype)) return type_error(problem, OP, "output_dtype", BE_FLOAT, dtype_name(call->dtype));
  if (!fits_memory(M, N, value_bytes(call->dtype)) || !fits_memory(M, K, 2))
    return shape_error(problem, OP, "mat_a", "fit into memory as bfloat16, and its product with mat_b, too", a.values);
  args->dtype = call->dtype;
  args->M = M;
  args->N = N;
  args->K = K;
  args->x = a.values.data;
  args->x_stride = dsf_row_stride(&a.values);
  LinearCall rest{};
  rest.x = a.values;
  rest.x.dtype = call->dtype;
  rest.weight = b;
  rest.bias = call->bias;
  rest.activation = "none";
  return check_linear_rest(rest, OP, "mat_b", format_of(b), args, problem) &&
         check_scale_values(OP, "scale_b", *b.scale, problem);
}

void dsf_fp8_scaled_mm(const Context* context, const LinearArgs* args, const LinearWeight* mat_a,
                       const LinearWeight* mat_b) {
  if (args->M == 0 || args->N == 0) return;
  const CastRows rows = Workspace(*args).rows(context->workspace);
  parallel_for(*context, args->M, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) decode_row(*mat_a, m, rows);
  });
  run_rows(*context, *args, rows, mat_b);
}

int32_t dsf_fp8_quantize_weight_check(const TensorView* w, const Block* block, Dtype dtype, Problem* problem) {
  constexpr const char* OP = QUANTIZE;
  *problem = Problem{};
  if (!check_float(OP, "w", *w, problem) || !check_matrix(OP, "w", *w, {w->dtype}, problem) ||
      !check_block(OP, *block, problem))
    return 0;
  return is_fp8(dtype) || type_error(problem, OP, "dtype", "be float8_e4m3fn or float8_e5m2", dtype_name(dtype));
}

int32_t dsf_fp8_quantize_weight(const Context* context, const TensorView* w, const Block* block, Dtype dtype,
                                uint8_t* codes, float* scale, Problem* problem) {
  CastCall call{};
  call.op = QUANTIZE;
  call.x = *w;
  call.dtype = dtype;
  call.block_rows = block->n;
  call.block_cols = block->k;
  call.scale = "f32";
  call.mode = "deepgemm";
  call.layout = "row";
  call.rounding = "nearest";
  call.saturate = true;
  CastArgs args;
  if (!dsf_fp8_cast_check(&call, &args, problem)) return 0;
  args.codes = codes;
  args.scale = scale;
  args.scale_row_stride = args.col_blocks;
  args.scale_col_stride = 1;
  dsf_fp8_cast(context, &args);
  for (int64_t i = 0; i < args.row_blocks * args.col_blocks; ++i) {
    if (std::isfinite(scale[i])) continue;
    char got[96];
    std::snprintf(got, sizeof got, "nan or inf in the block at (%lld, %lld)",
                  static_cast<long long>(i / args.col_blocks), static_cast<long long>(i % args.col_blocks));
    return value_error(problem, QUANTIZE, "w", "be finite", got);
  }
  return 1;
}

const LinearRoom* dsf_fp8_matmul_room() {
  static constexpr LinearRoom ROOM = {"fp8_matmul",
                                      "weight",
                                      true,
                                      dsf_fp8_matmul_check,
                                      dsf_fp8_matmul_pack_check,
                                      dsf_fp8_matmul_packed_bytes,
                                      dsf_fp8_matmul_pack,
                                      dsf_fp8_matmul_workspace_bytes,
                                      dsf_fp8_matmul,
                                      dsf_fp8_matmul_plain_workspace_bytes,
                                      dsf_fp8_matmul_plain};
  return &ROOM;
}

int32_t dsf_fp8_matmul_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
