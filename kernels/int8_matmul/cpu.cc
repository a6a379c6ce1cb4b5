#include "kernels/int8_matmul/cpu.h"

#include <cstdio>
#include <cstring>

#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/pack.h"
#include "csrc/gemm/packed.h"
#include "csrc/gemm/plain_weight.h"
#include "kernels/int8_matmul/cpu_kernels.h"

namespace dsf {
namespace {

struct Variant {
  Isa isa;
  const char* name;
  const int8_matmul::Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, #kernel, &int8_matmul::kernel},
#include "kernels/int8_matmul/variants.inc"
#undef DSF_VARIANT
};

const int8_matmul::Kernel& pick() {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa))) return *variant.kernel;
  return int8_matmul::int8_matmul_s8_nt_scalar;
}

constexpr int64_t ALIGNMENT = 64;          // bytes: a cache line, and a 512-bit vector
constexpr int64_t LARGEST_CODE_BYTES = 2;  // of any level: the level may change between the question and the run

PackedFormat format_of(const LinearWeight& q) { return {.dtype = Dtype::i8, .gated = q.gated}; }

// The parts of the workspace of activations = "int8", in bytes; total is -1 where that overflows.
struct Workspace {
  int64_t codes = 0, scales = 0, total = -1;

  explicit Workspace(const LinearArgs& args) {
    int64_t values = 0;
    if (!checked_mul(args.M, round_up(args.K, 4), &values) || values > INT64_MAX / 8 || args.M > INT64_MAX / 16) return;
    codes = round_up(values * LARGEST_CODE_BYTES, ALIGNMENT);
    scales = round_up(args.M * 4, ALIGNMENT);
    total = codes + scales;
  }
};

// x in int8, in the workspace.
int8_matmul::QuantizedRows quantize_rows(const Context& context, const LinearArgs& args) {
  const int8_matmul::Kernel& kernel = pick();
  const Workspace layout(args);
  char* workspace = static_cast<char*>(context.workspace);
  const int8_matmul::QuantizedRows rows{workspace, reinterpret_cast<float*>(workspace + layout.codes),
                                        round_up(args.K, 4)};
  constexpr int64_t ROWS_PER_TASK = 32;
  parallel_for(context, (args.M + ROWS_PER_TASK - 1) / ROWS_PER_TASK, [&](int64_t begin, int64_t end) {
    const int64_t m_end = end * ROWS_PER_TASK < args.M ? end * ROWS_PER_TASK : args.M;
    kernel.quantize(args, begin * ROWS_PER_TASK, m_end, rows);
  });
  return rows;
}

// The p-th panel of target: panel[k / 4][n][k % 4] = q[rows.first + n, k]; and its columns' excess.
void pack_panel(const TensorView& q, PanelRows rows, const PackedPanels& target, int64_t p) {
  const int64_t K = q.sizes[1], stride = dsf_row_stride(&q);
  char* panel = const_cast<char*>(target.panel(p));
  auto* excess = const_cast<int32_t*>(target.excess) + p * PANEL_N;
  if (rows.count < PANEL_N) {  // else all of both is written below
    std::memset(panel, 0, size_t(target.panel_bytes));
    std::memset(excess, 0, PANEL_N * sizeof *excess);
  }
  const auto* codes = static_cast<const int8_t*>(q.data) + rows.first * stride;
  pack_columns<TransposeQuads>(reinterpret_cast<const char*>(codes), stride, rows.count, K, panel);
  for (int64_t c = 0; c < rows.count; ++c) {
    uint32_t sum = 0;  // modulo 2^32
    for (int64_t k = 0; k < K; ++k) sum += uint32_t(int32_t(codes[c * stride + k]));
    excess[c] = int32_t(0u - 128u * sum);
  }
}

int64_t workspace_bytes(const LinearArgs& args) {
  return args.float_activations ? widened_x_bytes(args) : Workspace(args).total;
}

// y from a packed weight, or a plain one where there is one.
void run_matmul(const Context& context, const LinearArgs& args, const LinearWeight* plain) {
  if (args.M == 0 || args.N == 0) return;
  const int8_matmul::Kernel& kernel = pick();
  const auto walk_with = [&](const LinearArgs& all, const auto& run) {
    if (!plain) return walk(context, all, run);
    const auto pack = [&](PanelRows rows, const PackedPanels& target, int64_t p) {
      pack_panel(plain->values, rows, target, p);
    };
    void* scratch = static_cast<char*>(context.workspace) + workspace_bytes(args);
    walk_plain(context, all, format_of(*plain), scratch, pack, run);
  };
  if (args.float_activations)
    return walk_with(with_widened_x(context, args, kernel.widen, context.workspace), kernel.run_float);
  const int8_matmul::QuantizedRows rows = quantize_rows(context, args);
  walk_with(args, [&](const LinearArgs& part, int64_t m_begin, int64_t m_end, int64_t panel) {
    kernel.run(part, rows, m_begin, m_end, panel);
  });
}

}  // namespace

int32_t dsf_int8_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem) {
  const char* op = call->weight_is_packed ? "int8_matmul_packed" : "int8_matmul";
  if (!check_linear(*call, op, "q", Dtype::i8, args, problem)) return 0;
  const bool as_int8 = !std::strcmp(call->activations, "int8");
  if (!as_int8 && std::strcmp(call->activations, "float")) {
    char got[48];
    std::snprintf(got, sizeof got, "'%.32s'", call->activations);
    return value_error(problem, op, "activations", "be one of int8, float", got);
  }
  args->float_activations = !as_int8;
  if (as_int8 && args->K > INT8_MAX_K) {
    char rule[96], got[48];
    std::snprintf(rule, sizeof rule, "have at most %lld columns for activations 'int8'",
                  static_cast<long long>(INT8_MAX_K));
    if (!call->weight_is_packed) return shape_error(problem, op, "q", rule, call->weight.values);
    std::snprintf(got, sizeof got, "%lld", static_cast<long long>(args->K));
    return value_error(problem, op, "packed", rule, got);
  }
  return 1;
}

int32_t dsf_int8_matmul_pack_check(const LinearWeight* q, Problem* problem) {
  *problem = Problem{};
  const TensorView& values = q->values;
  if (values.dtype != Dtype::i8) return dtype_error(problem, "int8_matmul_pack", "q", "be int8", values);
  return check_matrix("int8_matmul_pack", "q", values, format_of(*q), problem) &&
         check_gated("int8_matmul_pack", "q", *q, problem);
}

int64_t dsf_int8_matmul_packed_bytes(const LinearWeight* q) {
  return packed_bytes(format_of(*q), q->values.sizes[0], q->values.sizes[1]);
}

void dsf_int8_matmul_pack(const Context* context, const LinearWeight* weight, void* packed) {
  const TensorView& values = weight->values;
  const int64_t N = values.sizes[0];
  write_packed_header(format_of(*weight), N, values.sizes[1], packed);
  const PackedPanels target(packed);
  parallel_for(*context, num_panels(N, weight->gated), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(values, rows_of_panel(N, weight->gated, p), target, p);
  });
}

int64_t dsf_int8_matmul_workspace_bytes(const Context*, const LinearArgs* args) { return workspace_bytes(*args); }

void dsf_int8_matmul(const Context* context, const LinearArgs* args) { run_matmul(*context, *args, nullptr); }

int64_t dsf_int8_matmul_plain_workspace_bytes(const Context* context, const LinearArgs* args,
                                              const LinearWeight* weight) {
  const int64_t rows = workspace_bytes(*args);
  return rows < 0 ? -1 : rows + plain_scratch_bytes(*context, *args, format_of(*weight));
}

void dsf_int8_matmul_plain(const Context* context, const LinearArgs* args, const LinearWeight* weight) {
  run_matmul(*context, *args, weight);
}

int32_t dsf_int8_quantize_weight_check(const TensorView* weight, Problem* problem) {
  *problem = Problem{};
  return check_float("int8_quantize_weight", "w", *weight, problem) &&
         check_matrix("int8_quantize_weight", "w", *weight, {weight->dtype}, problem);
}

void dsf_int8_quantize_weight(const Context* context, Dtype dtype, const void* weight, int64_t row_stride, int64_t N,
                              int64_t K, int8_t* q, float* scale) {
  const auto quantize_row = pick().quantize_weight_row;
  parallel_for(*context, N, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const char* row = static_cast<const char*>(weight) + n * row_stride * value_bytes(dtype);
      scale[n] = quantize_row(dtype, row, K, q + n * K);
    }
  });
}

const LinearRoom* dsf_int8_matmul_room() {
  static constexpr LinearRoom ROOM = {"int8_matmul",
                                      "q",
                                      false,
                                      dsf_int8_matmul_check,
                                      dsf_int8_matmul_pack_check,
                                      dsf_int8_matmul_packed_bytes,
                                      dsf_int8_matmul_pack,
                                      dsf_int8_matmul_workspace_bytes,
                                      dsf_int8_matmul,
                                      dsf_int8_matmul_plain_workspace_bytes,
                                      dsf_int8_matmul_plain};
  return &ROOM;
}

int32_t dsf_int8_matmul_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
