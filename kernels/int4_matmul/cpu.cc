#include "kernels/int4_matmul/cpu.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/packed.h"
#include "kernels/int4_matmul/cpu_kernels.h"
#include "kernels/int4_matmul/quantize_weight.h"

namespace dsf {
namespace {

struct Variant {
  Isa isa;
  const char* name;
  const int4_matmul::Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, #kernel, &int4_matmul::kernel},
#include "kernels/int4_matmul/variants.inc"
#undef DSF_VARIANT
};

const int4_matmul::Kernel& pick() {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa))) return *variant.kernel;
  return int4_matmul::int4_matmul_u4_nt_scalar;
}

constexpr int64_t GROUP_SIZES[] = {32, 64, 128};
constexpr int64_t WHOLE_ROW_BLOCK = 128;  // values of k that a block takes where one scale serves the whole row
constexpr uint8_t LARGEST_ZERO_POINT = 15;

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

bool is_group_size(int64_t value) {
  for (const int64_t size : GROUP_SIZES)
    if (value == size) return true;
  return false;
}

int64_t columns_of(const LinearWeight& weight) {
  return weight.in_features >= 0 ? weight.in_features : weight.values.sizes[1] * 2;
}
int64_t groups_of(const LinearWeight& weight) { return dsf_int4_groups(columns_of(weight), weight.block_k); }

PackedFormat format_of(const LinearWeight& weight) {
  return {Dtype::u4, weight.block_k < 0 ? WHOLE_ROW_BLOCK : weight.block_k, weight.zeros != nullptr, weight.gated};
}

bool check_group_size(const char* op, int64_t group_size, Problem* problem) {
  if (group_size == -1 || is_group_size(group_size)) return true;
  char got[32];
  std::snprintf(got, sizeof got, "%lld", static_cast<long long>(group_size));
  return value_error(problem, op, "group_size", "be one of 32, 64, 128, -1", got);
}

// dtype, shape and K of q.
bool check_q(const char* op, const LinearWeight& weight, Problem* problem) {
  const TensorView& q = weight.values;
  constexpr int64_t LARGEST = int64_t{1} << 59;  // columns: K stays below 2^60
  if (q.dtype != Dtype::u8) return dtype_error(problem, op, "q", "be uint8", q);
  if (q.ndim != 2) return shape_error(problem, op, "q", "have 2 dimensions", q);
  if (q.sizes[1] > LARGEST || q.sizes[0] > LARGEST)
    return shape_error(problem, op, "q", "have fewer than 2^60 elements", q);
  const int64_t whole = q.sizes[1] * 2;
  if (weight.in_features == -1 || weight.in_features == whole || (whole > 0 && weight.in_features == whole - 1))
    return true;
  char rule[96] = "be at least -1", got[32];
  if (weight.in_features >= 0 && whole)
    std::snprintf(rule, sizeof rule, "be -1, %lld or %lld for %lld columns of q", static_cast<long long>(whole - 1),
                  static_cast<long long>(whole), static_cast<long long>(q.sizes[1]));
  else if (weight.in_features >= 0)
    std::snprintf(rule, sizeof rule, "be -1 or 0 for 0 columns of q");
  std::snprintf(got, sizeof got, "%lld", static_cast<long long>(weight.in_features));
  return value_error(problem, op, "in_features", rule, got);
}

bool check_group_shape(const char* op, const char* arg, const LinearWeight& weight, const TensorView& values,
                       Problem* problem) {
  const int64_t N = weight.values.sizes[0], groups = groups_of(weight);
  if (values.ndim == 2 && values.sizes[0] == N && values.sizes[1] == groups) return true;
  char rule[96];
  std::snprintf(rule, sizeof rule, "have shape (%lld, %lld), one value a group", static_cast<long long>(N),
                static_cast<long long>(groups));
  return shape_error(problem, op, arg, rule, values);
}

// Each value of a (rows, columns) view, as T, until one is bad: false and its place.
template <class T, class Good>
bool all_good(const TensorView& view, const Good& good, int64_t* row, int64_t* column) {
  const int64_t stride = dsf_row_stride(&view);
  const auto* values = static_cast<const T*>(view.data);
  if (!values || stride < 0) return true;  // no values yet, or rows that a door makes first
  for (*row = 0; *row < view.sizes[0]; ++*row)
    for (*column = 0; *column < view.sizes[1]; ++*column)
      if (!good(values[*row * stride + *column])) return false;
  return true;
}

// Dtypes and shapes.
bool check_scale_and_zeros(const char* op, const LinearWeight& weight, Problem* problem) {
  if (!weight.scale) return value_error(problem, op, "scale", "be there", "none");
  if (weight.scale->dtype != Dtype::f32) return dtype_error(problem, op, "scale", "be float32", *weight.scale);
  if (!check_group_shape(op, "scale", weight, *weight.scale, problem)) return false;
  if (!weight.zeros) return true;
  if (weight.zeros->dtype != Dtype::u8) return dtype_error(problem, op, "zeros", "be uint8", *weight.zeros);
  return check_group_shape(op, "zeros", weight, *weight.zeros, problem);
}

// Values, once the sizes are known to be a machine's.
bool check_scale_and_zero_values(const char* op, const LinearWeight& weight, Problem* problem) {
  int64_t row = 0, column = 0;
  char got[96];
  const TensorView& scale = *weight.scale;
  if (!all_good<float>(scale, [](float s) { return std::isfinite(s); }, &row, &column)) {
    const float value = static_cast<const float*>(scale.data)[row * dsf_row_stride(&scale) + column];
    std::snprintf(got, sizeof got, "%s at (%lld, %lld)", int4_matmul::not_finite_name(value),
                  static_cast<long long>(row), static_cast<long long>(column));
    return value_error(problem, op, "scale", "be finite", got);
  }
  if (!weight.zeros) return true;
  const TensorView& zeros = *weight.zeros;
  if (!all_good<uint8_t>(zeros, [](uint8_t zero) { return zero <= LARGEST_ZERO_POINT; }, &row, &column)) {
    const uint8_t value = static_cast<const uint8_t*>(zeros.data)[row * dsf_row_stride(&zeros) + column];
    std::snprintf(got, sizeof got, "%d at (%lld, %lld)", int(value), static_cast<long long>(row),
                  static_cast<long long>(column));
    return value_error(problem, op, "zeros", "be at most 15", got);
  }
  return true;
}

bool check_packed(const LinearCall& call, const char* op, LinearArgs* args, PackedFormat* format, Problem* problem) {
  if (!check_linear_packed(call, op, args, format, problem)) return false;
  if (format->dtype != Dtype::u4)
    return type_error(problem, op, "packed", "be packed from uint4", dtype_name(format->dtype));
  return is_group_size(format->block_k) || shape_error(problem, op, "packed", "be whole", call.weight.values);
}

bool check_plain(const LinearCall& call, const char* op, LinearArgs* args, Problem* problem) {
  const LinearWeight& weight = call.weight;
  if (!check_q(op, weight, problem)) return false;
  const int64_t K = columns_of(weight);
  if (K != args->K) {
    char rule[96], got[32];
    std::snprintf(rule, sizeof rule, "hold %lld values a row, as x's last dimension", static_cast<long long>(args->K));
    std::snprintf(got, sizeof got, "%lld", static_cast<long long>(K));
    return value_error(problem, op, "q", rule, got);
  }
  if (!check_group_size(op, weight.block_k, problem) || !check_scale_and_zeros(op, weight, problem)) return false;
  return check_linear_rows(weight, op, "q", args, problem);
}

// Workspace of compute = "int8", in bytes; total is -1 where that overflows.
struct Workspace {
  int64_t row_bytes, total = -1;

  explicit Workspace(const LinearArgs& args)
      : row_bytes(round_up(args.K, int4_matmul::STEP_K) +
                  ceil_div(args.K, PackedPanels(args.packed).block_k) * int4_matmul::BLOCK_HEAD_BYTES) {
    int64_t bytes = 0;
    if (checked_mul(args.M, row_bytes, &bytes)) total = bytes;
  }
};

// panel: of each block the scales, the zero points where there are some, then the codes as packed.h has them.
void pack_panel(const LinearWeight& weight, int64_t panel, const PackedPanels& target, char* block) {
  const TensorView& q = weight.values;
  const int64_t K = columns_of(weight), stride = dsf_row_stride(&q);
  const auto [first, columns] = rows_of_panel(q.sizes[0], weight.gated, panel);
  std::memset(block, 0, size_t(target.panel_bytes));
  for (int64_t k = 0; k < K; k += target.block_k, block += target.block_bytes) {
    const int64_t group = weight.block_k < 0 ? 0 : k / weight.block_k;
    const int64_t end = K - k < target.block_k ? K : k + target.block_k;
    char* codes = block + PackedPanels::SCALE_BYTES + (target.zeros ? PANEL_N : 0);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t n = first + c;
      const auto scale = static_cast<const float*>(weight.scale->data)[n * dsf_row_stride(weight.scale) + group];
      std::memcpy(block + c * 4, &scale, 4);
      if (target.zeros)
        block[PackedPanels::SCALE_BYTES + c] =
            static_cast<const char*>(weight.zeros->data)[n * dsf_row_stride(weight.zeros) + group];
      const auto* row = static_cast<const uint8_t*>(q.data) + n * stride;
      for (int64_t at = k; at < end; ++at) {
        const int code = at % 2 ? row[at / 2] >> 4 : row[at / 2] & 15;
        const int64_t i = at % int4_matmul::STEP_K;
        codes[(at - k) / int4_matmul::STEP_K * PANEL_N * 4 + c * 4 + int4_matmul::byte_of(i)] |=
            char(i < 4 ? code : code << 4);
      }
    }
  }
}

}  // namespace

int64_t dsf_int4_groups(int64_t K, int64_t group_size) { return group_size < 0 ? 1 : ceil_div(K, group_size); }

int32_t dsf_int4_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem) {
  const char* op = call->weight_is_packed ? "int4_matmul_packed" : "int4_matmul";
  if (!check_linear_x(*call, op, args, problem)) return 0;
  PackedFormat format{};
  if (call->weight_is_packed) {
    if (!check_packed(*call, op, args, &format, problem)) return 0;
  } else {
    if (!check_plain(*call, op, args, problem)) return 0;
    format = format_of(call->weight);
  }
  if (!check_linear_rest(*call, op, "q", format, args, problem)) return 0;
  const bool as_int8 = !std::strcmp(call->activations, "int8");
  if (!as_int8 && std::strcmp(call->activations, "float")) {
    char got[48];
    std::snprintf(got, sizeof got, "'%.32s'", call->activations);
    return value_error(problem, op, "compute", "be one of int8, float", got);
  }
  args->float_activations = !as_int8;
  return call->weight_is_packed || check_scale_and_zero_values(op, call->weight, problem);
}

int32_t dsf_int4_matmul_pack_check(const LinearWeight* weight, Problem* problem) {
  *problem = Problem{};
  constexpr const char* OP = "int4_matmul_pack";
  if (!check_q(OP, *weight, problem) || !check_group_size(OP, weight->block_k, problem)) return 0;
  const int64_t bytes = packed_bytes(format_of(*weight), weight->values.sizes[0], columns_of(*weight));
  if (bytes < 0) return shape_error(problem, OP, "q", "have fewer than 2^60 elements", weight->values);
  if (!dsf_fits_memory(bytes)) return shape_error(problem, OP, "q", "fit into memory", weight->values);
  return check_gated(OP, "q", *weight, problem) && check_scale_and_zeros(OP, *weight, problem) &&
         check_scale_and_zero_values(OP, *weight, problem);
}

int64_t dsf_int4_matmul_packed_bytes(const LinearWeight* weight) {
  return packed_bytes(format_of(*weight), weight->values.sizes[0], columns_of(*weight));
}

void dsf_int4_matmul_pack(const Context* context, const LinearWeight* weight, void* packed) {
  const int64_t N = weight->values.sizes[0];
  write_packed_header(format_of(*weight), N, columns_of(*weight), packed);
  const PackedPanels target(packed);
  parallel_for(*context, num_panels(N, weight->gated), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(*weight, p, target, const_cast<char*>(target.panel(p)));
  });
}

int64_t dsf_int4_matmul_workspace_bytes(const Context*, const LinearArgs* args) {
  return args->float_activations ? widened_x_bytes(*args) : Workspace(*args).total;
}

void dsf_int4_matmul(const Context* context, const LinearArgs* args) {
  if (args->M == 0 || args->N == 0) return;
  const int4_matmul::Kernel& kernel = pick();
  if (args->float_activations)
    return walk(*context, with_widened_x(*context, *args, kernel.widen, context->workspace), kernel.run_float);
  const int4_matmul::QuantizedRows rows{static_cast<char*>(context->workspace), Workspace(*args).row_bytes};
  const int64_t rows_per_task = 8 * kernel.tile_rows;
  parallel_for(*context, ceil_div(args->M, rows_per_task), [&](int64_t begin, int64_t end) {
    const int64_t m_end = end * rows_per_task < args->M ? end * rows_per_task : args->M;
    kernel.quantize(*args, begin * rows_per_task, m_end, rows);
  });
  walk(*context, *args, [&](const LinearArgs& part, int64_t m_begin, int64_t m_end, int64_t panel) {
    kernel.run(part, rows, m_begin, m_end, panel);
  });
}

int32_t dsf_int4_quantize_weight_check(const TensorView* w, int64_t group_size, Problem* problem) {
  *problem = Problem{};
  constexpr const char* OP = "int4_quantize_weight";
  if (!check_float(OP, "w", *w, problem) || !check_matrix(OP, "w", *w, {w->dtype}, problem)) return 0;
  return check_group_size(OP, group_size, problem);
}

int32_t dsf_int4_quantize_weight(const Context* context, const TensorView* w, int64_t group_size, int32_t symmetric,
                                 const Int4Weight* target, Problem* problem) {
  using namespace int4_matmul;
  const int64_t N = w->sizes[0], K = w->sizes[1];
  *problem = Problem{};
  for (int64_t n = 0; n < N; ++n) {
    const WeightRow row(*w, n);
    const int64_t k = first_not_finite(row, K);
    if (k == K) continue;
    const float value = row[k];
    char got[96];
    std::snprintf(got, sizeof got, "%s at (%lld, %lld)", not_finite_name(value), static_cast<long long>(n),
                  static_cast<long long>(k));
    return value_error(problem, "int4_quantize_weight", "w", "be finite", got);
  }
  parallel_for(*context, N, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) quantize_weight_row(WeightRow(*w, n), K, group_size, symmetric, n, *target);
  });
  return 1;
}

const LinearRoom* dsf_int4_matmul_room() {
  static constexpr LinearRoom ROOM = {"int4_matmul",
                                      "q",
                                      true,
                                      dsf_int4_matmul_check,
                                      dsf_int4_matmul_pack_check,
                                      dsf_int4_matmul_packed_bytes,
                                      dsf_int4_matmul_pack,
                                      dsf_int4_matmul_workspace_bytes,
                                      dsf_int4_matmul};
  return &ROOM;
}

int32_t dsf_int4_matmul_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
