// A vector of channels, a lane each, as the depthwise and the grouped path multiply them: floats in f32, bytes as what
// they are above the zero point, in s32.
#pragma once
#include <cstring>

#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/finish_int8.h"
#include "kernels/fused_conv/packed.h"

namespace dsf::fused_conv {
namespace {

template <class V, Dtype dtype>
struct Lanes {
  static constexpr bool IS_INT8 = is_8_bits(dtype);
  using AnyFinish = FinishOf<V, dtype>;
  using Vector = typename AnyFinish::Sum;
  static constexpr int64_t VALUE_BYTES = IS_INT8 ? 1 : dtype == Dtype::f32 ? 4 : 2, WEIGHT_BYTES = IS_INT8 ? 1 : 4;

  const char* packed;   // the first weight
  int64_t weight_step;  // bytes from one [f] to the next
  const int32_t* bias;  // of bytes; or null
  int32_t zero_point;

  explicit Lanes(const ConvArgs& args)
      : packed(static_cast<const char*>(args.packed) + sizeof(PackedHeader)),
        weight_step(round_up(args.F, DEPTHWISE_LANES) * WEIGHT_BYTES),
        bias(IS_INT8 ? static_cast<const int32_t*>(args.bias) : nullptr),
        zero_point(args.x_zero_point) {
    if (IS_INT8) packed += round_up(args.F, DEPTHWISE_LANES) * 4;  // behind the sums of the weights
  }

  // What the sums of channels [f, f + n) start with.
  Vector start(int64_t f, int n) const {
    if constexpr (IS_INT8)
      return bias ? V::bits_of(load_value<V, Dtype::f32>(bias, f, n)) : V::zero_i32();  // bits only
    else
      return V::zero();
  }
  // n channels of x.
  Vector load(const char* x, int n) const {
    if constexpr (IS_INT8) {
      const auto v = load_bytes<V, dtype == Dtype::i8>(x, n);
      return V::add_i32(v, -zero_point);
    } else {
      return load_value<V, dtype>(x, 0, n);
    }
  }
  // One channel of x in every lane.
  Vector broadcast(const char* x) const {
    if constexpr (IS_INT8) {
      return V::set1_i32((dtype == Dtype::i8 ? int32_t(static_cast<signed char>(*x)) : int32_t(uint8_t(*x))) -
                         zero_point);
    } else {
      uint32_t bits = 0;
      std::memcpy(&bits, x, size_t(VALUE_BYTES));
      if (dtype == Dtype::bf16) bits <<= 16;
      return V::f32_of_bits(V::set1_i32(int32_t(bits)));
    }
  }
  // n weights, ready for madd.
  static Vector weight(const char* p, int n) {
    if constexpr (IS_INT8)
      return V::factor_s16(load_bytes<V, true>(p, n));
    else
      return load_value<V, Dtype::f32>(p, 0, n);
  }
  static Vector madd(Vector x, Vector w, Vector sum) {
    if constexpr (IS_INT8)
      return V::add_product(sum, x, w);
    else
      return V::madd(x, w, sum);
  }

  static Vector permute(Vector v, typename V::i32 index) {
    if constexpr (IS_INT8)
      return V::permute(v, index);
    else
      return V::f32_of_bits(V::permute(V::bits_of(v), index));
  }
  // a where index < limit, else b.
  static Vector select_below(typename V::i32 index, int32_t limit, Vector a, Vector b) {
    if constexpr (IS_INT8)
      return V::select_below(index, limit, a, b);
    else
      return V::f32_of_bits(V::select_below(index, limit, V::bits_of(a), V::bits_of(b)));
  }
  // Whole vectors in scratch, four bytes a lane.
  static Vector load_ready(const char* p) {
    if constexpr (IS_INT8)
      return V::load_i32(reinterpret_cast<const int32_t*>(p));
    else
      return V::load(reinterpret_cast<const float*>(p));
  }
  static void store_ready(char* p, Vector v) {
    if constexpr (IS_INT8)
      V::store_i32(reinterpret_cast<int32_t*>(p), v);
    else
      V::store(reinterpret_cast<float*>(p), v);
  }

  // Sums of pixels side by side, from `first` on.
  template <int pixels>
  [[gnu::always_inline]] static void finish_tile(const AnyFinish& finish, const Vector (&sums)[pixels][1], int64_t f,
                                                 int channels, int count, const Ends& first) {
    if constexpr (IS_INT8) {
      const Block& block = finish.block;
      finish.tile(sums, f, channels, count, [&](int i) __attribute__((always_inline)) {
        return Ends{first.y + i * block.y_stride_w,
                    first.residual ? first.residual + i * block.residual.stride_w : nullptr};
      });
    } else {
      finish.tile(sums, f, channels, count, first);
    }
  }
};

}  // namespace
}  // namespace dsf::fused_conv
