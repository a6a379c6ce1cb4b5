// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include <cstring>

#include "csrc/gemm/activation.h"
#include "csrc/gemm/quantize.h"
#include "kernels/fp8_cast/amax_steps.h"
#include "kernels/fp8_cast/decode_steps.h"
#include "kernels/fp8_cast/encode_steps.h"
#include "kernels/fp8_cast/scale_rules.h"

namespace dsf::fp8_cast {
namespace {

template <Dtype dtype>
inline const void* at(const void* x, int64_t i) {
  return static_cast<const char*>(x) + i * (dtype == Dtype::f32 ? 4 : 2);
}

inline int lanes_left(int64_t n) { return n < Vec::LANES ? int(n) : Vec::LANES; }

// The largest |x| of n values; ignore_nan: of the numbers among them.
template <Dtype dtype>
uint32_t amax_of_block(const void* x, int64_t n, bool ignore_nan) {
  using V = Vec;
  int64_t i = 0;
  auto most = ignore_nan ? V::zero_i32() : amax_of_whole_vectors<V, dtype>(x, &i, n);
  for (; i < n; i += V::LANES) {
    auto size = V::bits_of(V::abs(load_value<V, dtype>(x, i, lanes_left(n - i))));
    if (ignore_nan) size = V::select_below(size, F32_EXPONENT + 1, size, V::zero_i32());
    most = V::max_magnitude(most, V::f32_of_bits(size));
  }
  return V::largest(most);
}

// Blocks of one value: bits[i] = max(bits[i], |x[i]|).
template <Dtype dtype>
void amax_of_each(const void* x, int64_t n, bool ignore_nan, uint32_t* bits) {
  using V = Vec;
  for (int64_t i = 0; i < n; i += V::LANES) {
    const int count = lanes_left(n - i);
    auto size = V::bits_of(V::abs(load_value<V, dtype>(x, i, count)));
    if (ignore_nan) size = V::select_below(size, F32_EXPONENT + 1, size, V::zero_i32());
    auto* into = reinterpret_cast<float*>(bits + i);
    const auto before = V::bits_of(load_value<V, Dtype::f32>(into, 0, count));
    store_value<V, Dtype::f32>(into, 0, V::f32_of_bits(V::max_magnitude(before, V::f32_of_bits(size))), count);
  }
}

// amax = x.abs().amax() over each block, as bits: NaN is above inf is above every number.
template <Dtype dtype>
void amax(const void* x, int64_t n, int64_t block, bool ignore_nan, uint32_t* bits) {
  constexpr uint32_t INF = 0x7F800000u;
  if (block == 1) return amax_of_each<dtype>(x, n, ignore_nan, bits);
  for (int64_t begin = 0; begin < n;) {
    const int64_t whole = (n - begin) / block;
    const int count = whole < TREE ? int(whole) : TREE;
    if (count > 1 && amax_of_blocks<dtype>(at<dtype>(x, begin), count, block, ignore_nan, bits)) {
      begin += count * block;
      bits += count;
      continue;
    }
    const int64_t length = n - begin < block ? n - begin : block;
    uint32_t found = amax_of_block<dtype>(at<dtype>(x, begin), length, false);
    if (ignore_nan && found > INF) found = amax_of_block<dtype>(at<dtype>(x, begin), length, true);
    *bits = found > *bits ? found : *bits;
    begin += block;
    ++bits;
  }
}

inline bool is_usual(const EncodeRule& rule) { return rule.saturate && !rule.midpoints_down && !rule.stochastic; }

// Which code a vector of v, made of x, has under the rule; random: what stochastic rounding needs.
template <Dtype format>
[[gnu::always_inline]] inline Vec::i32 code_of(const EncodeRule& rule, Vec::f32 v, Vec::f32 x, const int32_t* random) {
  using V = Vec;
  using C = Format<format>;
  V::i32 code;
  if (rule.stochastic)
    code = stochastic_code<V, format>(v, V::load_i32(random));
  else if (C::FP4 && rule.midpoints_down)
    code = midpoints_below<V>(v);
  else
    code = nearest_code<V, format>(v, rule.saturate ? C::F::LARGEST : C::OVERFLOW_SIZE);
  return with_sign_and_nan<V, format>(code, v, x, !rule.midpoints_down);
}

// A byte for each of n values, whatever the format.
template <Dtype dtype, Dtype format>
void encode_bytes(const EncodeRule& rule, const void* x, int64_t n, int64_t block, const float* factors, uint64_t first,
                  uint8_t* codes) {
  using V = Vec;
  const bool usual = is_usual(rule);
  alignas(64) uint32_t words[V::LANES + 8];
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = n - begin < block ? n : begin + block;
    int64_t i = begin;
    const auto encode_to = [&](int64_t stop, const auto& factor_at) __attribute__((always_inline)) {
      for (; i < stop; i += V::LANES) {
        const int count = lanes_left(stop - i);
        const auto value = load_value<V, dtype>(x, i, count);
        auto v = value;
        if (factors) v = rule.divide ? V::div(value, factor_at(count)) : V::mul(value, factor_at(count));
        const int32_t* random = nullptr;
        if (rule.stochastic) {  // aligned down to the generator's four
          const uint64_t index = first + uint64_t(i);
          random_words(rule.seed, index & ~uint64_t{3}, V::LANES + 4, words);
          random = reinterpret_cast<const int32_t*>(words) + (index & 3);
        }
        if (usual) {
          const auto code = nearest_code<V, format>(v, Format<format>::F::LARGEST);
          V::store_low8(codes + i, with_sign_and_nan<V, format>(code, v, value, true), count);
        } else {
          V::store_low8(codes + i, code_of<format>(rule, v, value, random), count);
        }
      }
    };
    if (block == 1) {
      const auto each_its_own = [&](int count) { return load_value<V, Dtype::f32>(factors, i, count); };
      encode_to(n, each_its_own);
      return;
    }
    const auto factor = V::set1(factors ? factors[begin / block] : 1.0f);
    if (usual && end - begin >= STEP)
      i += encode_steps<dtype, format>(rule, at<dtype>(x, begin), end - begin, end - begin,
                                       factors ? factors + begin / block : nullptr, codes + begin);
    encode_to(end, [&](int) { return factor; });
  }
}

template <Dtype dtype, Dtype format>
void encode(const EncodeRule& rule, const void* x, int64_t n, int64_t block, const float* factors, uint64_t first,
            uint8_t* codes) {
  if constexpr (!Format<format>::FP4) {
    const int64_t done = is_usual(rule) ? encode_steps<dtype, format>(rule, x, n, block, factors, codes) : 0;
    if (done == n) return;
    const float* rest = factors ? factors + done / block : nullptr;
    encode_bytes<dtype, format>(rule, at<dtype>(x, done), n - done, block, rest, first + uint64_t(done), codes + done);
  } else {
    // Two codes a byte: part by part of the row, in whole blocks or within one.
    constexpr int64_t PART = 512;
    alignas(64) uint8_t bytes[PART];
    const int64_t step = block < PART ? PART / block * block : PART;
    for (int64_t i = 0; i < n; i += step) {
      const int64_t count = n - i < step ? n - i : step;
      const float* factor = factors ? factors + i / block : nullptr;
      const void* part = at<dtype>(x, i);
      const int64_t done = is_usual(rule) ? encode_steps<dtype, format>(rule, part, count, block, factor, bytes) : 0;
      encode_bytes<dtype, format>(rule, at<dtype>(part, done), count - done, block,
                                  factor ? factor + done / block : nullptr, first + uint64_t(i + done), bytes + done);
      for (int64_t pair = 0; pair < count / 2; ++pair)
        codes[i / 2 + pair] = uint8_t(bytes[2 * pair] | bytes[2 * pair + 1] << 4);
    }
  }
}

// Numbers of the codes in the low byte of each lane, exactly.
template <class V, Dtype format>
[[gnu::always_inline]] inline typename V::f32 number_of(typename V::i32 codes) {
  using C = Format<format>;
  if constexpr (C::FP4) {
    alignas(64) static constexpr float NUMBERS[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    return V::lookup(NUMBERS, codes);
  } else {
    const auto number = fp8_to_f32<V, format>(codes);
    if constexpr (!C::FNUZ) return number;
    const auto nan = V::set1_i32(0x7FC00000);
    const auto is_nan = V::add_i32(codes, -C::NAN_CODE);  // 0 where it is, below 0 for the codes before
    const auto before = V::select_below(is_nan, 0, V::bits_of(number), nan);
    return V::f32_of_bits(V::select_below(is_nan, 1, before, V::bits_of(number)));
  }
}

template <Dtype dtype, Dtype format>
void decode_bytes(const uint8_t* codes, int64_t n, int64_t block, const float* factors, void* y) {
  using V = Vec;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = n - begin < block ? n : begin + block;
    int64_t i = begin;
    const auto decode_to = [&](int64_t stop, const auto& factor_at) __attribute__((always_inline)) {
      for (; i < stop; i += V::LANES) {
        const int count = lanes_left(stop - i);
        uint8_t last[V::LANES] = {};
        const uint8_t* from = codes + i;
        if (count < V::LANES) {
          std::memcpy(last, from, size_t(count));
          from = last;
        }
        auto number = number_of<V, format>(V::load_u8(from));
        if (factors) number = V::mul(number, factor_at(count));
        store_value<V, dtype>(y, i, number, count);
      }
    };
    if (block == 1) {
      decode_to(n, [&](int count) { return load_value<V, Dtype::f32>(factors, i, count); });
      return;
    }
    const auto factor = V::set1(factors ? factors[begin / block] : 1.0f);
    decode_to(end, [&](int) { return factor; });
  }
}

// y = codes.float() * factor
template <Dtype dtype, Dtype format>
void decode(const uint8_t* codes, int64_t n, int64_t block, const float* factors, void* y) {
  if constexpr (!Format<format>::FP4) {
    const int64_t done = decode_steps<dtype, format>(codes, n, block, factors, y);
    decode_bytes<dtype, format>(codes + done, n - done, block, factors ? factors + done / block : nullptr,
                                static_cast<char*>(y) + done * (dtype == Dtype::f32 ? 4 : 2));
  } else {
    constexpr int64_t PART = 512;
    alignas(64) uint8_t bytes[PART];
    const int64_t step = block < PART ? PART / block * block : PART;
    for (int64_t i = 0; i < n; i += step) {
      const int64_t count = n - i < step ? n - i : step;
      for (int64_t pair = 0; pair < count / 2; ++pair) {
        bytes[2 * pair] = codes[i / 2 + pair] & 0xF;
        bytes[2 * pair + 1] = codes[i / 2 + pair] >> 4;
      }
      decode_bytes<dtype, format>(bytes, count, block, factors ? factors + i / block : nullptr,
                                  static_cast<char*>(y) + i * (dtype == Dtype::f32 ? 4 : 2));
    }
  }
}

// v = silu(gate) * up
template <Dtype dtype>
void silu_mul(const void* gate, const void* up, int64_t n, float* v) {
  using V = Vec;
  for (int64_t i = 0; i < n; i += V::LANES) {
    const int count = lanes_left(n - i);
    const auto act = activate<V, Activation::silu>(load_value<V, dtype>(gate, i, count));
    V::store_n(v + i, V::mul(act, load_value<V, dtype>(up, i, count)), count);
  }
}

// 64 sums of every 64th square, each in the order of i, then added in pairs: the same on every level.
template <Dtype dtype>
float squares(const void* x, int64_t n) {
  using V = Vec;
  constexpr int SUMS = 64, VECTORS = SUMS / V::LANES;
  V::f32 sum[VECTORS];
  for (auto& part : sum) part = V::zero();
  for (int64_t i = 0; i < n; i += SUMS) {
    DSF_UNROLL
    for (int p = 0; p < VECTORS; ++p) {
      const int64_t left = n - i - p * V::LANES;
      if (left <= 0) break;
      const auto value = load_value<V, dtype>(x, i + p * V::LANES, lanes_left(left));
      sum[p] = V::add(sum[p], V::mul(value, value));
    }
  }
  alignas(64) float sums[SUMS];
  for (int p = 0; p < VECTORS; ++p) V::store(sums + p * V::LANES, sum[p]);
  for (int half = SUMS / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// v = x * inverse * weight
template <Dtype dtype>
void rms_norm(const void* x, float inverse, const void* weight, int64_t n, float* v) {
  using V = Vec;
  for (int64_t i = 0; i < n; i += V::LANES) {
    const int count = lanes_left(n - i);
    const auto scaled = V::mul(load_value<V, dtype>(x, i, count), V::set1(inverse));
    V::store_n(v + i, V::mul(scaled, load_value<V, dtype>(weight, i, count)), count);
  }
}

template <Dtype dtype>
float int8_row(const void* x, int64_t n, int8_t* q) {
  return quantize_row<dtype, 0>(x, n, n, q);
}

template <Dtype dtype>
constexpr Kernel kernel_of = {amax<dtype>,
                              scales,
                              {encode<dtype, FORMATS[0]>, encode<dtype, FORMATS[1]>, encode<dtype, FORMATS[2]>,
                               encode<dtype, FORMATS[3]>, encode<dtype, FORMATS[4]>},
                              {decode<dtype, FORMATS[0]>, decode<dtype, FORMATS[1]>, decode<dtype, FORMATS[2]>,
                               decode<dtype, FORMATS[3]>, decode<dtype, FORMATS[4]>},
                              silu_mul<dtype>,
                              squares<dtype>,
                              rms_norm<dtype>,
                              int8_row<dtype>};

}  // namespace
}  // namespace dsf::fp8_cast
