// The checks of fused_conv and pool2d: what is wrong with a call, in one sentence, before any work.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "csrc/gemm/linear_checks.h"
#include "kernels/fused_conv/checks.h"
#include "kernels/fused_conv/packed.h"

namespace dsf {
namespace {

using namespace fused_conv;

constexpr int64_t MOST_INT8_TAPS = 65793;  // each at most 255 * 128: their sum fits int32

#define DSF_ENTRY(name) #name,
constexpr const char* ACTIVATIONS[] = {DSF_CONV_ACTIVATIONS(DSF_ENTRY)};
#undef DSF_ENTRY
constexpr const char* PLACES[] = {"before", "after"};
bool check_dtype(const char* op, const char* arg, const TensorView& view, Dtype wanted, const char* rule,
                 Problem* problem) {
  return view.dtype == wanted || dtype_error(problem, op, arg, rule, view);
}

// --- the convolution: x, the weight, its window ---------------------------------------------------------------------

bool check_dimensions(const ConvCall& call, Problem* problem) {
  const bool packed = call.weight_is_packed;
  const int64_t ndim = packed ? call.weight_ndim : call.weight.ndim;
  const TensorView stated{nullptr, Dtype::other, "", ndim, call.weight_shape, nullptr};
  if (ndim != 3 && ndim != 4)
    return shape_error(problem, call.op, packed ? "weight_shape" : "weight", "have 3 or 4 dimensions",
                       packed ? stated : call.weight);
  if (call.x.ndim == ndim || call.x.ndim == ndim - 1) return true;
  const char* rule = ndim == 4 ? "have 3 or 4 dimensions, as weight has 4" : "have 2 or 3 dimensions, as weight has 3";
  return shape_error(problem, call.op, "x", rule, call.x);
}

bool check_weight_dtype(const char* op, const TensorView& weight, Dtype x_dtype, Problem* problem) {
  if (is_8_bits(x_dtype)) return check_dtype(op, "weight", weight, Dtype::i8, "be int8", problem);
  return check_dtype(op, "weight", weight, x_dtype, Rule("have x's dtype %s", dtype_name(x_dtype)).text, problem);
}

// Sizes of a weight that has values, in whole groups, as few as can be packed.
bool check_filters(const char* op, const char* arg, const TensorView& weight, Dtype dtype, const View4& filters,
                   int64_t groups, Problem* problem) {
  int64_t elements;
  if (groups < 1) return value_error(problem, op, "groups", "be positive", Numbers{groups}.text);
  for (const int64_t size : filters.sizes)
    if (size < 1) return shape_error(problem, op, arg, "have no empty dimension", weight);
  if (!count_elements(filters.sizes, &elements))
    return shape_error(problem, op, arg, "have at most 2^58 elements", weight);
  if (filters.sizes[0] % groups != 0)
    return shape_error(problem, op, arg,
                       Rule("have a first dimension that groups = %lld divides", static_cast<long long>(groups)).text,
                       weight);
  if (dtype == Dtype::i8 && elements / filters.sizes[0] > MOST_INT8_TAPS)
    return shape_error(problem, op, arg, "have at most 65793 values a filter", weight);
  return true;
}

bool check_channels(const ConvCall& call, const char* weight_arg, const TensorView& weight, const View4& x, int64_t C,
                    Problem* problem) {
  for (int64_t d = 1; d < 4; ++d)
    if (x.sizes[d] < 1) return shape_error(problem, call.op, "x", "be empty in no dimension but the batch's", call.x);
  const auto groups = static_cast<long long>(call.groups);
  if (x.sizes[1] % call.groups != 0)
    return shape_error(problem, call.op, "x", Rule("have channels that groups = %lld divides", groups).text, call.x);
  const auto wanted = static_cast<long long>(x.sizes[1] / call.groups);
  if (C != wanted)
    return shape_error(problem, call.op, weight_arg,
                       Rule("have %lld channels in its second dimension, x's over groups", wanted).text, weight);
  return true;
}

bool check_window(const ConvCall& call, int64_t spatial, ConvArgs* args, Problem* problem) {
  const auto wrong = [&](const char* arg, const char* rule, const Numbers& got) {
    return value_error(problem, call.op, arg, rule, got.text);
  };
  const Padding& pad = call.padding;
  if (!check_steps(call.op, "stride", "be from 1 to 2^24", call.stride, problem)) return false;
  if (!check_steps(call.op, "dilation", "be from 1 to 2^24", call.dilation, problem)) return false;
  if (!check_padding(call.op, "padding", "be from 0 to 2^24", pad, problem)) return false;
  if (spatial == 1 && (pad.top || pad.bottom))
    return wrong("padding", "have no rows where weight has 3 dimensions", {pad.top, pad.left, pad.bottom, pad.right});
  int64_t span_h, span_w;
  if (!checked_mul(args->R - 1, call.dilation.h, &span_h) || !checked_mul(args->S - 1, call.dilation.w, &span_w) ||
      span_h >= LARGEST || span_w >= LARGEST)
    return wrong("dilation", "spread the weight over fewer than 2^58 rows and columns",
                 {call.dilation.h, call.dilation.w});
  args->P = places(args->H, pad.top, pad.bottom, span_h + 1, call.stride.h, false);
  args->Q = places(args->W, pad.left, pad.right, span_w + 1, call.stride.w, false);
  if (args->P < 1 || args->Q < 1)
    return wrong("x",
                 Rule("have at least %s rows and columns with its padding, as the weight spans",
                      Numbers{span_h + 1, span_w + 1}.text)
                     .text,
                 {args->H + pad.top + pad.bottom, args->W + pad.left + pad.right});
  // Of one place the stride is no matter; so no stride is larger than what it steps over.
  args->stride = {args->P == 1 ? 1 : call.stride.h, args->Q == 1 ? 1 : call.stride.w};
  args->dilation = call.dilation;
  args->padding = pad;
  return true;
}

constexpr const char* WINOGRAD = "winograd";
constexpr const char* ALGORITHMS[] = {"direct", WINOGRAD};

// What F(4x4, 3x3) is for.
bool check_winograd(const char* op, const char* arg, const View4& filters, Dtype dtype, int64_t groups,
                    Problem* problem) {
  const int64_t (&sizes)[4] = filters.sizes;
  if (dtype == Dtype::f32 && sizes[2] == 3 && sizes[3] == 3 && groups == 1) return true;
  return value_error(problem, op, arg, "be float32, 3x3 and of one group for algorithm winograd",
                     Rule("%s, %lldx%lld in %lld groups", dtype_name(dtype), static_cast<long long>(sizes[2]),
                          static_cast<long long>(sizes[3]), static_cast<long long>(groups))
                         .text);
}

bool check_winograd_steps(const ConvCall& call, const ConvArgs& args, Problem* problem) {
  const auto one = [](Pair steps) { return steps.h == 1 && steps.w == 1; };
  if (!args.winograd || (one(call.stride) && one(call.dilation))) return true;
  return value_error(
      problem, call.op, one(call.stride) ? "dilation" : "stride", "be 1 for algorithm winograd",
      one(call.stride) ? Numbers{call.dilation.h, call.dilation.w}.text : Numbers{call.stride.h, call.stride.w}.text);
}

// Fills *winograd; null is direct.
bool check_algorithm(const char* op, const char* algorithm, const View4& filters, Dtype dtype, int64_t groups,
                     int32_t* winograd, Problem* problem) {
  const int32_t found = algorithm ? chosen(op, "algorithm", ALGORITHMS, algorithm, problem) : 0;
  *winograd = found;
  return found == 0 || (found > 0 && check_winograd(op, "weight", filters, dtype, groups, problem));
}

// A header that lies about its sizes must not lead the kernels outside the tensor.
bool check_packed(const ConvCall& call, const View4& stated, ConvArgs* args, Problem* problem) {
  const TensorView& packed = call.weight;
  if (packed.dtype != Dtype::u8) return dtype_error(problem, call.op, "packed", "be uint8", packed);
  if (packed.ndim != 1) return shape_error(problem, call.op, "packed", "have 1 dimension", packed);
  if (packed.strides && packed.sizes[0] > 1 && packed.strides[0] != 1)
    return value_error(problem, call.op, "packed", "be contiguous", "a strided tensor");
  fused_conv::PackedHeader header{};
  if (packed.sizes[0] < int64_t(sizeof header))
    return shape_error(problem, call.op, "packed", "be a packed weight", packed);
  std::memcpy(&header, packed.data, sizeof header);
  const bool ours = header.magic == fused_conv::PACKED_MAGIC;
  if (!ours || header.version != fused_conv::PACKED_VERSION)
    return value_error(problem, call.op, "packed",
                       Rule("be a packed weight of version %u", fused_conv::PACKED_VERSION).text,
                       ours ? Rule("version %u", header.version).text : "other bytes");
  const Dtype wanted = is_8_bits(call.x.dtype) ? Dtype::i8 : call.x.dtype;
  const bool known =
      header.dtype == int32_t(Dtype::f32) || header.dtype == int32_t(Dtype::bf16) || header.dtype == int32_t(Dtype::i8);
  if (known && Dtype(header.dtype) != wanted)
    return type_error(problem, call.op, "packed", Rule("be packed from %s", dtype_name(wanted)).text,
                      Rule("dtype %s", dtype_name(Dtype(header.dtype))).text);
  const int64_t (&sizes)[4] = stated.sizes;
  if (known && (header.F != sizes[0] || header.C != sizes[1] || header.R != sizes[2] || header.S != sizes[3]))
    return value_error(problem, call.op, "packed",
                       Rule("hold weight_shape = %s", Numbers{sizes[0], sizes[1], sizes[2], sizes[3]}.text).text,
                       Numbers{header.F, header.C, header.R, header.S}.text);
  if (known && header.groups != call.groups)
    return value_error(problem, call.op, "groups",
                       Rule("be %lld, as the weight was packed", static_cast<long long>(header.groups)).text,
                       Numbers{call.groups}.text);
  const bool winograd = header.path == int32_t(Path::winograd);
  if (winograd && !check_winograd(call.op, "packed", stated, wanted, call.groups, problem)) return false;
  const ConvWeight weight{
      {nullptr, wanted, "", 4, stated.sizes, stated.strides}, call.groups, winograd ? WINOGRAD : nullptr};
  if (!known || header.bytes != packed.sizes[0] || header.bytes != dsf_fused_conv_packed_bytes(&weight) ||
      (!winograd && header.path != int32_t(path_of(sizes[0], sizes[1], sizes[3], call.groups))))
    return shape_error(problem, call.op, "packed", "be whole", packed);
  args->winograd = winograd;
  args->packed = packed.data;
  return true;
}

bool check_tensors(const ConvCall& call, ConvArgs* args, Problem* problem) {
  const bool quantized = call.weight_scale != nullptr, packed = call.weight_is_packed;
  const Dtype dtype = call.x.dtype;
  if (quantized ? !is_8_bits(dtype) : dtype != Dtype::f32 && dtype != Dtype::bf16)
    return dtype_error(problem, call.op, "x", quantized ? BE_8_BITS : BE_FLOAT_OR_BF16, call.x);
  if (!check_dimensions(call, problem)) return false;
  if (!packed && !check_weight_dtype(call.op, call.weight, dtype, problem)) return false;
  const TensorView stated{nullptr, Dtype::other, "", call.weight_ndim, call.weight_shape, nullptr};
  const TensorView& weight = packed ? stated : call.weight;
  const char* weight_arg = packed ? "weight_shape" : "weight";
  const int64_t spatial = weight.ndim - 2;
  const View4 filters = view4(weight, spatial), x = view4(call.x, spatial);
  if (!check_filters(call.op, weight_arg, weight, quantized ? Dtype::i8 : dtype, filters, call.groups, problem) ||
      !check_channels(call, weight_arg, weight, x, filters.sizes[1], problem))
    return false;
  args->dtype = dtype;
  args->y_dtype = quantized ? call.y_dtype : dtype;
  args->N = x.sizes[0], args->C = x.sizes[1], args->H = x.sizes[2], args->W = x.sizes[3];
  args->F = filters.sizes[0], args->R = filters.sizes[2], args->S = filters.sizes[3];
  args->groups = call.groups;
  args->x = call.x.data;
  args->x_layout = place(x, &args->x_strides);
  int64_t elements;
  if (!count_elements(x.sizes, &elements))
    return shape_error(problem, call.op, "x", "have at most 2^58 elements", call.x);
  if (packed)
    return check_packed(call, filters, args, problem) && check_window(call, spatial, args, problem) &&
           check_winograd_steps(call, *args, problem);
  if (!check_algorithm(call.op, call.algorithm, filters, dtype, call.groups, &args->winograd, problem) ||
      !check_window(call, spatial, args, problem) || !check_winograd_steps(call, *args, problem))
    return false;
  const ConvWeight plain{view_of(filters, weight), call.groups, call.algorithm};
  const int64_t packed_bytes = dsf_fused_conv_packed_bytes(&plain);
  if (packed_bytes < 0 || !dsf_fits_memory(packed_bytes))
    return shape_error(problem, call.op, weight_arg, "fit into memory in its packed form", weight);
  return true;
}

// --- what follows the sums ------------------------------------------------------------------------------------------

bool check_bias(const ConvCall& call, ConvArgs* args, Problem* problem) {
  const TensorView& bias = *call.bias;
  const bool quantized = call.weight_scale != nullptr;
  const Rule rule(quantized ? "be int32" : "have x's dtype %s", dtype_name(call.x.dtype));
  if (!check_dtype(call.op, "bias", bias, quantized ? Dtype::i32 : call.x.dtype, rule.text, problem)) return false;
  args->bias = bias.data;
  if (bias.ndim == 1 && bias.sizes[0] == args->F) return true;
  return shape_error(problem, call.op, "bias", Rule("have shape (%lld,)", static_cast<long long>(args->F)).text, bias);
}

bool check_residual(const ConvCall& call, int64_t spatial, ConvArgs* args, Problem* problem) {
  const TensorView& residual = *call.residual;
  const bool quantized = call.weight_scale != nullptr;
  const Rule rule("have %s dtype %s", quantized ? "the result's" : "x's", dtype_name(args->y_dtype));
  if (!check_dtype(call.op, "residual", residual, args->y_dtype, rule.text, problem)) return false;
  int64_t sizes[4], ndim = 0;
  if (call.x.ndim == spatial + 2) sizes[ndim++] = args->N;
  sizes[ndim++] = args->F;
  if (spatial == 2) sizes[ndim++] = args->P;
  sizes[ndim++] = args->Q;
  bool same = residual.ndim == ndim;
  for (int64_t d = 0; same && d < ndim; ++d) same = residual.sizes[d] == sizes[d];
  if (!same) {
    const TensorView wanted{nullptr, Dtype::other, "", ndim, sizes, nullptr};
    char shape[112];
    shape_text(wanted, shape, sizeof shape);
    return shape_error(problem, call.op, "residual",
                       Rule("have shape %s%s", shape, call.has_pool ? ", that of what is pooled" : "").text, residual);
  }
  args->residual = residual.data;
  args->residual_layout = place(view4(residual, spatial), &args->residual_strides);
  return true;
}

bool check_activation(const ConvCall& call, ConvArgs* args, Problem* problem) {
  const int32_t found = chosen(call.op, "activation", ACTIVATIONS, call.activation, problem);
  if (found < 0) return false;
  args->activation = ConvActivation(found);
  const int64_t count = call.num_params;
  const char* rule = nullptr;
  if (args->activation == ConvActivation::leaky_relu) {
    if (count > 1) rule = "be (slope,) or nothing for leaky_relu";
    args->params[0] = 0.01f;
  } else if (args->activation == ConvActivation::clip) {
    if (count != 2) rule = "be (smallest, largest) for clip";
  } else if (args->activation == ConvActivation::hardsigmoid) {
    if (count != 0 && count != 2) rule = "be (alpha, beta) or nothing for hardsigmoid";
    args->params[0] = 1.0f / 6, args->params[1] = 0.5f;
  } else if (count != 0) {
    rule = "be left out for this activation";
  }
  if (rule)
    return value_error(problem, call.op, "activation_params", rule,
                       Rule("%lld of them", static_cast<long long>(count)).text);
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(call.params[i])) return value_error(problem, call.op, "activation_params", "not be NaN", "nan");
    args->params[i] = call.params[i];
  }
  return true;
}

// --- u8 and s8 ------------------------------------------------------------------------------------------------------

bool check_scale(const char* op, const char* arg, float scale, const char* where, Problem* problem) {
  if (scale > 0 && std::isfinite(scale)) return true;
  return value_error(problem, op, arg, "be finite and above zero", Rule("%g%.32s", double(scale), where).text);
}

bool check_zero_point(const char* op, const char* arg, int32_t zero_point, Dtype dtype, Problem* problem) {
  const int32_t least = dtype == Dtype::u8 ? 0 : -128, most = dtype == Dtype::u8 ? 255 : 127;
  if (zero_point >= least && zero_point <= most) return true;
  return value_error(problem, op, arg, Rule("be from %d to %d, as %s", least, most, dtype_name(dtype)).text,
                     Numbers{zero_point}.text);
}

// The first of `count` scales of the weight that is not above zero or whose product is not finite; count: none, or
// scales without values, of a call that is only checked.
int64_t first_unfit_scale(const ConvCall& call, const float* scales, int64_t count, int64_t step) {
  if (!scales) return count;
  const auto fits = [&](int64_t f) {
    const float scale = scales[f * step];
    return (scale > 0) & (call.x_scale * scale / call.y_scale <= FLT_MAX);
  };
  bool all = true;  // of every call, so in vectors
  for (int64_t f = 0; f < count; ++f) all &= fits(f);
  int64_t first = all ? count : 0;
  while (first < count && fits(first)) ++first;
  return first;
}

bool check_quantization(const ConvCall& call, ConvArgs* args, Problem* problem) {
  const char* op = call.op;
  const TensorView& scale = *call.weight_scale;
  if (!is_8_bits(call.y_dtype))
    return type_error(problem, op, "out_dtype", BE_8_BITS, Rule("dtype %s", dtype_name(call.y_dtype)).text);
  if (!check_dtype(op, "weight_scale", scale, Dtype::f32, "be float32", problem)) return false;
  if (scale.ndim > 1 || (scale.ndim == 1 && scale.sizes[0] != args->F && scale.sizes[0] != 1))
    return shape_error(problem, op, "weight_scale",
                       Rule("have shape (%lld,) or one value", static_cast<long long>(args->F)).text, scale);
  const int64_t count = scale.ndim ? scale.sizes[0] : 1, step = scale.ndim && scale.strides ? scale.strides[0] : 1;
  args->weight_scale = static_cast<const float*>(scale.data);
  args->weight_scale_step = count == 1 ? 0 : step;
  args->x_scale = call.x_scale, args->y_scale = call.y_scale, args->residual_scale = call.residual_scale;
  args->x_zero_point = call.x_zero_point, args->y_zero_point = call.y_zero_point;
  args->residual_zero_point = call.residual_zero_point;
  if (!check_scale(op, "x_scale", call.x_scale, "", problem) ||
      !check_scale(op, "y_scale", call.y_scale, "", problem) ||
      !check_zero_point(op, "x_zero_point", call.x_zero_point, call.x.dtype, problem) ||
      !check_zero_point(op, "y_zero_point", call.y_zero_point, call.y_dtype, problem))
    return false;
  const int64_t wrong = first_unfit_scale(call, args->weight_scale, count, args->weight_scale_step);
  if (wrong < count) {
    const float value = args->weight_scale[wrong * args->weight_scale_step];
    const Rule where(" at %lld", static_cast<long long>(wrong));
    if (check_scale(op, "weight_scale", value, where.text, problem))
      return value_error(problem, op, "y_scale", "leave x_scale * weight_scale / y_scale finite",
                         Rule("%g", double(call.y_scale)).text);
    return false;
  }
  if (!call.residual) return true;
  if (!check_scale(op, "residual_scale", call.residual_scale, "", problem)) return false;
  if (!std::isfinite(call.residual_scale / call.y_scale))
    return value_error(problem, op, "y_scale", "leave residual_scale / y_scale finite",
                       Rule("%g", double(call.y_scale)).text);
  return check_zero_point(op, "residual_zero_point", call.residual_zero_point, call.y_dtype, problem);
}

}  // namespace

int32_t dsf_fused_conv_check(const ConvCall* call, ConvArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = ConvArgs{};
  if (!check_tensors(*call, args, problem)) return 0;
  const int64_t spatial = (call->weight_is_packed ? call->weight_ndim : call->weight.ndim) - 2;
  if (call->bias && !check_bias(*call, args, problem)) return 0;
  if (call->weight_scale && !check_quantization(*call, args, problem)) return 0;
  if (call->residual && !check_residual(*call, spatial, args, problem)) return 0;
  const int32_t place = chosen(call->op, "residual_at", PLACES, call->residual_at, problem);
  if (place < 0 || !check_activation(*call, args, problem)) return 0;
  args->residual_after = place == 1;
  args->has_pool = call->has_pool;
  args->pool = call->pool;
  args->out_h = args->P;
  args->out_w = args->Q;
  if (call->has_pool &&
      !check_pool_window(call->op, false, call->pool, args->P, args->Q, &args->out_h, &args->out_w, problem))
    return 0;
  if (call->has_pool && spatial == 1 && args->out_h != 1)
    return value_error(problem, call->op, "max_pool", "have one row where weight has 3 dimensions",
                       Numbers{args->out_h}.text);
  const int64_t whole[4] = {args->N, args->F, args->P, args->Q}, y[4] = {args->N, args->F, args->out_h, args->out_w};
  return check_output(call->op, call->x, args->y_dtype, whole, problem) &&
         check_output(call->op, call->x, args->y_dtype, y, problem) && check_has_kernel(call->op, call->x, problem);
}

int32_t dsf_fused_conv_pack_check(const ConvWeight* weight, Problem* problem) {
  constexpr const char* OP = "fused_conv_pack";
  *problem = Problem{};
  const TensorView& values = weight->values;
  if (values.dtype != Dtype::f32 && values.dtype != Dtype::bf16 && values.dtype != Dtype::i8)
    return dtype_error(problem, OP, "weight", "be float32, bfloat16 or int8", values);
  if (values.ndim != 3 && values.ndim != 4) return shape_error(problem, OP, "weight", "have 3 or 4 dimensions", values);
  const View4 filters = view4(values, values.ndim - 2);
  if (!check_filters(OP, "weight", values, values.dtype, filters, weight->groups, problem)) return 0;
  int32_t winograd;
  if (!check_algorithm(OP, weight->algorithm, filters, values.dtype, weight->groups, &winograd, problem)) return 0;
  const ConvWeight full{view_of(filters, values), weight->groups, weight->algorithm};
  const int64_t bytes = dsf_fused_conv_packed_bytes(&full);
  if (bytes < 0 || !dsf_fits_memory(bytes))
    return shape_error(problem, OP, "weight", "fit into memory in its packed form", values);
  return 1;
}

}  // namespace dsf
