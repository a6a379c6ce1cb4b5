#include "csrc/gemm/linear.h"

#include <cstdio>
#include <cstring>

#include "csrc/gemm/float_value.h"
#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/packed.h"

namespace dsf {
namespace {

#define DSF_ENTRY(name) #name,
constexpr const char* ACTIVATIONS[] = {DSF_ACTIVATIONS(DSF_ENTRY)};
#undef DSF_ENTRY
#define DSF_ENTRY(name) ", " #name
constexpr const char* ACTIVATION_LIST = &(DSF_ACTIVATIONS(DSF_ENTRY))[2];  // after the first comma
#undef DSF_ENTRY

bool check_same_dtype(const LinearCall& call, const char* op, const char* arg, const TensorView& view,
                      Problem* problem) {
  if (view.dtype == call.x.dtype) return true;
  char rule[64];
  std::snprintf(rule, sizeof rule, "have x's dtype %s", dtype_name(call.x.dtype));
  return dtype_error(problem, op, arg, rule, view);
}

bool check_vector(const char* op, const char* arg, const TensorView& view, int64_t length, Problem* problem) {
  if (view.ndim == 1 && view.sizes[0] == length) return true;
  char rule[64];
  std::snprintf(rule, sizeof rule, "have shape (%lld,)", static_cast<long long>(length));
  return shape_error(problem, op, arg, rule, view);
}

bool check_packed_dtype(const char* op, Dtype wanted, PackedFormat got, Problem* problem) {
  if (got.dtype == wanted) return true;
  char rule[64];
  std::snprintf(rule, sizeof rule, "be packed from %s", dtype_name(wanted));
  return type_error(problem, op, "packed", rule, dtype_name(got.dtype));
}

bool check_residual(const LinearCall& call, const char* op, LinearArgs* args, Problem* problem) {
  const TensorView& residual = *call.residual;
  if (!check_same_dtype(call, op, "residual", residual, problem)) return false;
  bool same = residual.ndim == call.x.ndim && residual.sizes[residual.ndim - 1] == args->N;
  for (int64_t d = 0; same && d + 1 < residual.ndim; ++d) same = residual.sizes[d] == call.x.sizes[d];
  if (same) {
    args->residual = residual.data;
    args->residual_stride = dsf_row_stride(&residual);
    return true;
  }
  bool single = true;
  for (int64_t d = 0; d < residual.ndim; ++d) single = single && residual.sizes[d] == 1;
  if (single) {
    args->residual_constant = residual.data ? float_at(residual.dtype, residual.data, 0) : 0;
    return true;
  }
  char rule[224] = "have the output's shape ", *end = rule + std::strlen(rule);
  int64_t sizes[64];
  TensorView output = call.x;
  if (output.ndim <= 64) {
    std::memcpy(sizes, call.x.sizes, size_t(output.ndim) * sizeof(int64_t));
    sizes[output.ndim - 1] = args->N;
    output.sizes = sizes;
  }
  shape_text(output, end, 160);
  std::strcat(rule, " or one element");
  return shape_error(problem, op, "residual", rule, residual);
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  constexpr const char* NAMES[] = {"float32",         "bfloat16",         "int8",  "uint8",   "float8_e4m3fn",
                                   "float8_e5m2",     "float8_e8m0fnu",   "uint4", "float16", "float8_e4m3fnuz",
                                   "float8_e5m2fnuz", "float4_e2m1fn_x2", "int32", "int64",   "another dtype"};
  static_assert(sizeof NAMES / sizeof *NAMES == size_t(Dtype::other) + 1);
  return NAMES[size_t(dtype)];
}

bool check_float(const char* op, const char* arg, const TensorView& view, Problem* problem) {
  return is_float(view.dtype) || dtype_error(problem, op, arg, BE_FLOAT, view);
}

bool check_linear_x(const LinearCall& call, const char* op, LinearArgs* args, Problem* problem) {
  *args = LinearArgs{};
  problem->fault = Fault::none;
  problem->sentence[0] = 0;
  const TensorView& x = call.x;
  if (!check_float(op, "x", x, problem)) return false;
  if (x.ndim < 1) return shape_error(problem, op, "x", "have at least 1 dimension", x);
  if (!fold_rows(x, &args->M, &args->K)) return shape_error(problem, op, "x", "have fewer than 2^63 rows", x);
  args->dtype = x.dtype;
  args->x = x.data;
  args->x_stride = dsf_row_stride(&x);
  return true;
}

bool check_linear_packed(const LinearCall& call, const char* op, LinearArgs* args, PackedFormat* format,
                         Problem* problem) {
  const TensorView& packed = call.weight.values;
  if (packed.dtype != Dtype::u8) return dtype_error(problem, op, "packed", "be uint8", packed);
  if (packed.ndim != 1) return shape_error(problem, op, "packed", "have 1 dimension", packed);
  if (packed.strides && packed.sizes[0] > 1 && packed.strides[0] != 1)
    return value_error(problem, op, "packed", "be contiguous", "a strided tensor");
  PackedHeader header{};
  if (packed.sizes[0] < int64_t(sizeof header)) return shape_error(problem, op, "packed", "be a packed weight", packed);
  std::memcpy(&header, packed.data, sizeof header);
  char rule[96], got[64];
  if (header.magic != PACKED_MAGIC || header.version != PACKED_VERSION) {
    std::snprintf(rule, sizeof rule, "be a packed weight of version %u", PACKED_VERSION);
    std::snprintf(got, sizeof got, header.magic == PACKED_MAGIC ? "version %u" : "other bytes", header.version);
    return value_error(problem, op, "packed", rule, got);
  }
  // A header that lies about its sizes must not lead the kernels outside the tensor.
  *format = {Dtype(header.dtype), header.block_k, header.zeros == 1, header.gated == 1};
  if (header.dtype < 0 || header.dtype >= int32_t(Dtype::other) || header.block_k < 0 || header.zeros & ~1 ||
      header.gated & ~1 || header.gated & header.N || header.bytes != packed.sizes[0] ||
      header.bytes != packed_bytes(*format, header.N, header.K))
    return shape_error(problem, op, "packed", "be whole", packed);
  if (call.weight.gated != format->gated) {
    std::snprintf(rule, sizeof rule, "be %s, as the weight was packed", format->gated ? "True" : "False");
    return value_error(problem, op, "gated", rule, format->gated ? "False" : "True");
  }
  args->gated = format->gated;
  args->N = format->gated ? header.N / 2 : header.N;
  if (call.out_features >= 0 && args->N != call.out_features) {
    std::snprintf(rule, sizeof rule, "hold %sout_features = %lld rows", format->gated ? "2 * " : "",
                  static_cast<long long>(format->gated ? 2 * call.out_features : call.out_features));
    std::snprintf(got, sizeof got, "%lld", static_cast<long long>(header.N));
    return value_error(problem, op, "packed", rule, got);
  }
  if (header.K != args->K) {
    std::snprintf(rule, sizeof rule, "hold %lld columns, as x's last dimension", static_cast<long long>(args->K));
    std::snprintf(got, sizeof got, "%lld", static_cast<long long>(header.K));
    return value_error(problem, op, "packed", rule, got);
  }
  args->packed = packed.data;
  return true;
}

bool check_linear_weight(const LinearCall& call, const char* op, const char* weight_arg, LinearArgs* args,
                         Problem* problem) {
  const TensorView& weight = call.weight.values;
  if (weight.ndim != 2) return shape_error(problem, op, weight_arg, "have 2 dimensions", weight);
  if (weight.sizes[1] != args->K) {
    char rule[96];
    std::snprintf(rule, sizeof rule, "have %lld columns, as x's last dimension", static_cast<long long>(args->K));
    return shape_error(problem, op, weight_arg, rule, weight);
  }
  return check_linear_rows(call.weight, op, weight_arg, args, problem);
}

bool check_linear_rows(const LinearWeight& weight, const char* op, const char* weight_arg, LinearArgs* args,
                       Problem* problem) {
  if (!check_gated(op, weight_arg, weight, problem)) return false;
  const int64_t rows = weight.values.sizes[0];
  args->gated = weight.gated;
  args->N = weight.gated ? rows / 2 : rows;
  return true;
}

bool check_linear_scale(const LinearCall& call, const char* op, int64_t length, LinearArgs* args, Problem* problem) {
  const TensorView& scale = *call.weight.scale;
  if (scale.dtype != Dtype::f32) return dtype_error(problem, op, "scale", "be float32", scale);
  if (!check_vector(op, "scale", scale, length, problem)) return false;
  args->scale = static_cast<const float*>(scale.data);
  return true;
}

bool check_linear_rest(const LinearCall& call, const char* op, const char* weight_arg, PackedFormat format,
                       LinearArgs* args, Problem* problem) {
  const TensorView& x = call.x;
  // Byte counts of the output, of x and of the packed weight; a quarter of the range leaves room for padding.
  int64_t elements = 0;
  constexpr int64_t LARGEST = int64_t{1} << 60;
  if (!checked_mul(args->M, args->N, &elements) || elements > LARGEST)
    return shape_error(problem, op, "x", "give an output below 2^60 elements", x);
  if (!dsf_fits_memory(elements * value_bytes(args->dtype)))
    return shape_error(problem, op, "x", "give an output that fits into memory", x);
  if (!checked_mul(args->M, args->K, &elements) || elements > LARGEST)
    return shape_error(problem, op, "x", "have fewer than 2^60 elements", x);
  const int64_t rows = weight_rows(*args);
  if (!checked_mul(rows, args->K, &elements) || elements > LARGEST)
    return shape_error(problem, op, weight_arg, "have fewer than 2^60 elements", call.weight.values);
  if (!call.weight_is_packed && !dsf_fits_memory(packed_bytes(format, rows, args->K)))
    return shape_error(problem, op, weight_arg, "fit into memory in its packed form", call.weight.values);

  if (call.bias) {
    if (!check_same_dtype(call, op, "bias", *call.bias, problem)) return false;
    if (!check_vector(op, "bias", *call.bias, rows, problem)) return false;
    args->bias = call.bias->data;
  }
  if (call.residual && !check_residual(call, op, args, problem)) return false;

  int32_t activation = -1;
  for (int32_t i = 0; i < int32_t(sizeof ACTIVATIONS / sizeof *ACTIVATIONS); ++i)
    if (!std::strcmp(call.activation, ACTIVATIONS[i])) activation = i;
  if (activation < 0) {
    char rule[160], got[48];
    std::snprintf(rule, sizeof rule, "be one of %s", ACTIVATION_LIST);
    std::snprintf(got, sizeof got, "'%.32s'", call.activation);
    return value_error(problem, op, "activation", rule, got);
  }
  args->activation = static_cast<Activation>(activation);
  return true;
}

bool check_linear(const LinearCall& call, const char* op, const char* weight_arg, Dtype weight_dtype, LinearArgs* args,
                  Problem* problem) {
  if (!check_linear_x(call, op, args, problem)) return false;
  PackedFormat format{.dtype = weight_dtype, .gated = call.weight.gated};
  if (call.weight_is_packed) {
    if (!check_linear_packed(call, op, args, &format, problem)) return false;
    if (!check_packed_dtype(op, weight_dtype, format, problem)) return false;
  } else {
    const TensorView& weight = call.weight.values;
    if (weight_dtype == Dtype::i8 && weight.dtype != Dtype::i8)
      return dtype_error(problem, op, weight_arg, "be int8", weight);
    if (weight_dtype != Dtype::i8 && !check_same_dtype(call, op, weight_arg, weight, problem)) return false;
    if (!check_linear_weight(call, op, weight_arg, args, problem)) return false;
  }
  if (call.weight.scale && !check_linear_scale(call, op, weight_rows(*args), args, problem)) return false;
  return check_linear_rest(call, op, weight_arg, format, args, problem);
}

bool check_gated(const char* op, const char* arg, const LinearWeight& weight, Problem* problem) {
  if (!weight.gated || weight.values.sizes[0] % 2 == 0) return true;
  return shape_error(problem, op, arg, "have an even number of rows where gated", weight.values);
}

bool check_matrix(const char* op, const char* arg, const TensorView& matrix, PackedFormat format, Problem* problem) {
  if (matrix.ndim != 2) return shape_error(problem, op, arg, "have 2 dimensions", matrix);
  const int64_t bytes = packed_bytes(format, matrix.sizes[0], matrix.sizes[1]);
  if (bytes < 0) return shape_error(problem, op, arg, "have fewer than 2^60 elements", matrix);
  if (!dsf_fits_memory(bytes)) return shape_error(problem, op, arg, "fit into memory", matrix);
  return true;
}

int64_t packed_bytes(PackedFormat format, int64_t N, int64_t K) {
  int64_t values = 0, bytes = 0;
  constexpr int64_t LARGEST = int64_t{1} << 60;
  if (N < 0 || K < 0 || N > LARGEST || K > LARGEST) return -1;
  const int64_t padded_N = num_panels(N, format.gated) * PANEL_N;
  if (!checked_mul(padded_N, round_up(K, k_group(format.dtype)), &values) || values > LARGEST) return -1;
  if (!checked_mul(padded_N, column_bytes(format.dtype, K), &bytes)) return -1;
  // Scales of blocks are fewer than values, at four bytes each, and zero points at one; an excess is one a row.
  if (format.block_k) bytes += padded_N * ((K + format.block_k - 1) / format.block_k) * (format.zeros ? 5 : 4);
  if (format.dtype == Dtype::i8) bytes += padded_N * 4;
  return int64_t(sizeof(PackedHeader)) + bytes;
}

void write_packed_header(PackedFormat format, int64_t N, int64_t K, void* packed) {
  PackedHeader header{};
  header.magic = PACKED_MAGIC;
  header.version = PACKED_VERSION;
  header.dtype = int32_t(format.dtype);
  header.block_k = int32_t(format.block_k);
  header.zeros = format.zeros;
  header.gated = format.gated;
  header.N = N;
  header.K = K;
  header.bytes = packed_bytes(format, N, K);
  std::memcpy(packed, &header, sizeof header);
}

int64_t widened_x_bytes(const LinearArgs& args) {
  int64_t bytes = 0;
  if (args.dtype != Dtype::f16) return 0;
  if (!checked_mul(args.M, args.K, &bytes) || !checked_mul(bytes, 4, &bytes) || bytes > INT64_MAX - CACHE_LINE)
    return -1;
  return round_up(bytes, CACHE_LINE);
}

LinearArgs with_widened_x(const Context& context, const LinearArgs& args, WidenX widen, void* memory) {
  if (args.dtype != Dtype::f16) return args;
  constexpr int64_t ROWS_PER_TASK = 32;
  auto* rows = static_cast<float*>(memory);
  parallel_for(context, (args.M + ROWS_PER_TASK - 1) / ROWS_PER_TASK, [&](int64_t begin, int64_t end) {
    const int64_t m_end = end * ROWS_PER_TASK < args.M ? end * ROWS_PER_TASK : args.M;
    widen(args, begin * ROWS_PER_TASK, m_end, rows);
  });
  LinearArgs widened = args;
  widened.x = rows;
  widened.x_stride = args.K;
  return widened;
}

WalkPlan plan_walk(const Context& context, const LinearArgs& args) {
  WalkPlan plan;
  plan.panels = num_panels(args.N, false);
  plan.rows = args.M;
  plan.row_blocks = 1;
  // One thread walks all rows of a panel while the panel is in cache. More threads want about four tasks each.
  constexpr int64_t TASKS_PER_THREAD = 4;
  const int64_t wanted = context.num_threads > 1 ? context.num_threads * TASKS_PER_THREAD : 1;
  if (plan.panels > 0 && plan.panels < wanted) {
    const int64_t blocks = (wanted + plan.panels - 1) / plan.panels;
    plan.rows = round_up((args.M + blocks - 1) / blocks, SMALLEST_BLOCK);
    if (plan.rows > 0) plan.row_blocks = (args.M + plan.rows - 1) / plan.rows;
  }
  return plan;
}

}  // namespace dsf
