// What a cast's walks share: the kernels of a call, its parts, the values of a row, the scales of blocks.
#pragma once
#include <cmath>
#include <cstring>

#include "csrc/core/subnormals.h"
#include "csrc/gemm/packed.h"
#include "kernels/fp8_cast/cpu_kernels.h"
#include "kernels/fp8_cast/scale_view.h"

namespace dsf::fp8_cast {

// The best kernels for numbers of a dtype.
const Kernel& pick(Dtype dtype);

namespace {

inline int format_index(Dtype dtype) {
  for (int i = 0; i < NUM_FORMATS; ++i)
    if (FORMATS[i] == dtype) return i;
  return 0;  // not reached: checked
}

inline constexpr int64_t PART = 2048;        // values of a row in one step, L1's share of f32 beside the codes
inline constexpr int64_t TILE = 128 << 10;   // values of a block that is read once from memory and once more from L2
inline constexpr int64_t LONG_PART = 16384;  // values of a row where no amax is taken
// No more values than this are not worth another thread: 128 Ki take 11 us on one, 16 us on two of torch's (Zen 5).
inline constexpr int64_t SERIAL = 128 << 10;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t parts_of(int64_t size, int64_t part) { return size / part + (size % part != 0); }

// Columns of a part: whole blocks, as many as the arrays of scales hold, about `values` of them.
inline int64_t part_columns(int64_t block, int64_t values) {
  const int64_t blocks = values / block;
  return block * (blocks < 1 ? 1 : least(blocks, MAX_BLOCKS));
}

template <class Body>
void for_each(const Context& context, int64_t values, int64_t items, const Body& body) {
  const auto range = [&](int64_t begin, int64_t end) {
    const IeeeSubnormals scope;
    body(begin, end);
  };
  if (values <= SERIAL) return range(0, items);
  parallel_for(context, items, range);
}

inline ScaleRule rule_of(const CastArgs& args) {
  constexpr float LARGEST[] = {448.0f, 57344.0f, 240.0f, 57344.0f, 6.0f};
  constexpr int MANTISSA[] = {3, 2, 3, 2, 1}, EXPONENT[] = {8, 15, 7, 15, 2};
  constexpr float LARGEST_F32 = 3.40282347e38f, LARGEST_BF16 = 0x1.FEp127f;
  const int format = format_index(args.dtype);
  ScaleRule rule{};
  rule.mode = args.mode;
  rule.kind = args.kind;
  rule.mantissa = MANTISSA[format];
  rule.largest_exponent = EXPONENT[format];
  rule.largest = LARGEST[format];
  rule.mx = args.mx;
  rule.has_tensor_scale = args.has_tensor_scale;
  rule.tensor_scale = args.tensor_scale;
  rule.infinite_factor = args.x_dtype == Dtype::bf16 && args.source == CastSource::x ? LARGEST_BF16 : LARGEST_F32;
  switch (args.mode) {
    case CastMode::vllm:
      rule.floor = 1e-10f;
      if (args.dtype == Dtype::f8e4m3fnuz) rule.largest = 224.0f;
      break;
    case CastMode::te:
      break;
    case CastMode::torchao:
      rule.floor = args.kind == ScaleKind::f32 ? 1e-12f : 0.0f;
      break;
    case CastMode::tilekernels:
      rule.floor = args.dtype == Dtype::f4e2m1x2 ? 6 * 0x1p-126f : 1e-4f;
      break;
    default:
      rule.floor = 1e-4f;
  }
  return rule;
}

inline bool divides(CastMode mode) { return mode == CastMode::v3 || mode == CastMode::v32 || mode == CastMode::vllm; }
inline bool ignores_nan(CastMode mode) {
  return divides(mode) || mode == CastMode::tilekernels || mode == CastMode::te;
}

// One call: the kernels it uses and how they go about it.
struct Cast {
  const CastArgs& args;
  const Kernel& of_x;       // reads x
  const Kernel& of_values;  // reads what is cast: x, or f32 that was made of it
  Encode encode;
  EncodeRule encode_rule;
  ScaleRule scale_rule;
  ScaleView scale;
  bool ignore_nan;

  explicit Cast(const CastArgs& call)
      : args(call),
        of_x(pick(call.x_dtype)),
        of_values(call.source == CastSource::x ? of_x : pick(Dtype::f32)),
        encode(of_values.encode[format_index(call.dtype)]),
        encode_rule{divides(call.mode) && (call.has_given || call.kind == ScaleKind::f32),
                    call.saturate,
                    call.dtype == Dtype::f4e2m1x2 && call.mode == CastMode::deepgemm,
                    call.stochastic,
                    false,
                    call.seed},
        scale_rule(rule_of(call)),
        scale{static_cast<char*>(call.scale), scale_dtype(call), call.scale_row_stride, call.scale_col_stride},
        ignore_nan(!call.amax_only && ignores_nan(call.mode)) {}

  static Dtype scale_dtype(const CastArgs& call) {
    if (call.layout == ScaleLayout::packed) return Dtype::i32;
    if (call.amax_only || call.kind == ScaleKind::f32) return Dtype::f32;
    return call.kind == ScaleKind::ue8m0 ? Dtype::f8e8m0 : Dtype::f8e4m3;
  }
  uint8_t* codes_at(int64_t row, int64_t k) const {
    const int64_t per_byte = args.dtype == Dtype::f4e2m1x2 ? 2 : 1;
    return static_cast<uint8_t*>(args.codes) + row * (args.K / per_byte) + k / per_byte;
  }
  // Whether no value that these make of numbers is NaN, or cut off: MX's floor and NVFP4's coarse scale cut some.
  bool bounds(const uint32_t* amax_bits, int n) const {
    if (ignore_nan) return false;  // amax says nothing of NaN
    const bool rounds_up =
        args.kind == ScaleKind::f32 || (args.kind == ScaleKind::ue8m0 && args.mode < CastMode::torchao);
    uint32_t most = 0;
    for (int b = 0; b < n; ++b) most = amax_bits[b] > most ? amax_bits[b] : most;
    return rounds_up && most < INF_BITS;
  }
  void encode_part(int64_t row, int64_t k, int64_t n, const void* values, int64_t block, const float* factors,
                   bool bounded = false) const {
    EncodeRule rule = encode_rule;
    rule.bounded = bounded;
    encode(rule, values, n, block, factors, uint64_t(row) * uint64_t(args.K) + uint64_t(k), codes_at(row, k));
  }
};

// Values of a row: where they are in x, or made of it in a buffer of PART numbers.
struct RowValues {
  explicit RowValues(const Cast& call) : cast(call) {}

  const Cast& cast;
  int64_t row = -1;
  float inverse_rms = 0;
  alignas(64) float buffer[PART];

  const void* operator()(int64_t m, int64_t k, int64_t n) {
    const CastArgs& args = cast.args;
    const int64_t bytes = value_bytes(args.x_dtype);
    const char* x = static_cast<const char*>(args.x) + m * args.x_stride * bytes;
    if (args.source == CastSource::x) return x + k * bytes;
    if (args.source == CastSource::silu_mul) {
      cast.of_x.silu_mul(x + k * bytes, x + (args.K + k) * bytes, n, buffer);
      return buffer;
    }
    if (row != m) {
      row = m;
      inverse_rms = 1.0f / std::sqrt(cast.of_x.squares(x, args.K) / float(args.K) + args.eps);
    }
    const char* weight = static_cast<const char*>(args.norm_weight) + k * bytes;
    cast.of_x.rms_norm(x + k * bytes, inverse_rms, weight, n, buffer);
    return buffer;
  }
};

// Scales of n blocks from their amax, stored; factors to encode with. Of amax alone, amax itself.
inline void make_scales(const Cast& cast, int64_t row_block, int64_t first, int n, const uint32_t* bits,
                        float* factors) {
  float scale[MAX_BLOCKS];
  uint8_t code[MAX_BLOCKS] = {};
  if (!cast.args.amax_only)
    cast.of_x.scales(cast.scale_rule, n, bits, scale, factors, code);
  else
    std::memcpy(scale, bits, size_t(n) * 4);
  cast.scale.store(row_block, first, n, scale, code);
}

}  // namespace
}  // namespace dsf::fp8_cast
