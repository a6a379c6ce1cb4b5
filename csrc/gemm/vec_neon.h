// Four lanes of Advanced SIMD (ARMv8.0), and where the level has them its dots of int8 (SDOT) and of bf16 (BFDOT).
// BFDOT reads subnormal inputs as zero, writes subnormal sums as zero and rounds each of its two additions to odd.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace dsf {
namespace {

struct Vec {
  static constexpr int LANES = 4;
  static constexpr int TILE_M = 6, TILE_NV = 4;  // 24 sums, 4 weights, 1 x: 29 of 32 registers
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
  static constexpr int PAIR_TILE_M = 6, PAIR_TILE_NV = 4;  // as TILE
#else
  static constexpr int PAIR_TILE_M = 4, PAIR_TILE_NV = 4;  // 16 sums, 8 weights, 2 x
#endif
  using f32 = float32x4_t;
  using i32 = int32x4_t;

  // The value is in a register at this point, whatever the optimizer would like.
  template <class Register>
  static void keep(Register& value) {
    asm("" : "+w"(value));
  }
  // The same, and no other pinned value moves past this point.
  template <class Register>
  static void pin(Register& value) {
    asm volatile("" : "+w"(value));
  }
  static f32 zero() { return vdupq_n_f32(0); }
  static f32 set1(float value) { return vdupq_n_f32(value); }
  static f32 load(const float* p) { return vld1q_f32(p); }
  static f32 load_n(const float* p, int n) {
    alignas(16) float buffer[LANES] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return vld1q_f32(buffer);
  }
  static void store(float* p, f32 v) { vst1q_f32(p, v); }
  static void store_n(float* p, f32 v, int n) {
    alignas(16) float buffer[LANES];
    vst1q_f32(buffer, v);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  static i32 load_i32(const int32_t* p) { return vld1q_s32(p); }
  static void store_i32(int32_t* p, i32 v) { vst1q_s32(p, v); }

  static f32 widen_bf16(uint16x4_t v_bf16x4) { return vreinterpretq_f32_u32(vshll_n_u16(v_bf16x4, 16)); }
  static f32 load_bf16(const uint16_t* p) { return widen_bf16(vld1_u16(p)); }
  static f32 load_bf16_n(const uint16_t* p, int n) { return widen_bf16(load_u16_n(p, n)); }
  // Round to nearest even; NaN stays a quiet NaN.
  static void store_bf16_n(uint16_t* p, f32 v, int n) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t lsb = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(lsb, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    store_u16_n(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16), n);
  }
  static void store_bf16_pair(uint16_t* p, f32 a, f32 b) {
    store_bf16_n(p, a, LANES);
    store_bf16_n(p + LANES, b, LANES);
  }
  static constexpr bool WIDENS_F16 = true;  // in one instruction
  static f32 load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static f32 load_f16_n(const uint16_t* p, int n) { return vcvt_f32_f16(vreinterpret_f16_u16(load_u16_n(p, n))); }
  // Round to nearest even, sizes from 65520 on to inf; NaN stays a quiet NaN. FCVT to f16 never flushes a result.
  static void store_f16_n(uint16_t* p, f32 v, int n) { store_u16_n(p, vreinterpret_u16_f16(vcvt_f16_f32(v)), n); }

  static f32 add(f32 a, f32 b) { return vaddq_f32(a, b); }
  static f32 sub(f32 a, f32 b) { return vsubq_f32(a, b); }
  static f32 mul(f32 a, f32 b) { return vmulq_f32(a, b); }
  static f32 div(f32 a, f32 b) { return vdivq_f32(a, b); }
  static f32 sqrt(f32 a) { return vsqrtq_f32(a); }
  static f32 fma(f32 a, f32 b, f32 c) { return vfmaq_f32(c, a, b); }
  static f32 madd(f32 a, f32 b, f32 c) { return vfmaq_f32(c, a, b); }
  static f32 abs(f32 a) { return vabsq_f32(a); }
  static f32 negate(f32 a) { return vnegq_f32(a); }
  // a < 0 ? 0 : a and a > limit ? limit : a, which keep NaN, and -0 as the other levels do (FMAX would not).
  static f32 max0(f32 a) { return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcltzq_f32(a))); }
  static f32 min_limit(f32 a, float limit) { return vbslq_f32(vcgtq_f32(a, set1(limit)), set1(limit), a); }
  static f32 at_least(f32 a, f32 limit) { return vbslq_f32(vcltq_f32(a, limit), limit, a); }
  static f32 at_most(f32 a, f32 limit) { return vbslq_f32(vcgtq_f32(a, limit), limit, a); }
  // a where v < 0, else b.
  static f32 select_negative(f32 v, f32 a, f32 b) { return vbslq_f32(vcltzq_f32(v), a, b); }
  static f32 pow2_of_shifted(f32 t) {
    return vreinterpretq_f32_s32(vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(t), 23), vdupq_n_s32(0x3F800000)));
  }

  static i32 truncate(f32 v) { return vcvtq_s32_f32(v); }
  // table[i & 15] of 16 entries.
  static f32 lookup(const float* table, i32 i) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(table);
    const uint8x16x4_t entries = {vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)};
    const uint32x4_t entry = vandq_u32(vreinterpretq_u32_s32(i), vdupq_n_u32(15));
    const uint32x4_t places = vmlaq_u32(vdupq_n_u32(0x03020100), entry, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(entries, vreinterpretq_u8_u32(places)));
  }
  static f32 to_f32(i32 v) { return vcvtq_f32_s32(v); }
  static i32 round_to_i32(f32 v) { return vcvtnq_s32_f32(v); }
  // Lane-wise larger of the bits of |v|: as integers, NaN is above inf is above every number.
  static i32 max_magnitude(i32 so_far, f32 v) {
    return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(so_far), vreinterpretq_u32_f32(vabsq_f32(v))));
  }
  static uint32_t largest(i32 v) { return vmaxvq_u32(vreinterpretq_u32_s32(v)); }
  static i32 zero_i32() { return vdupq_n_s32(0); }

  static void store_low8(uint8_t* p, i32 v, int n) {
    const int16x4_t words = vmovn_s32(v);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    alignas(8) uint8_t buffer[8];
    vst1_u8(buffer, vreinterpret_u8_s8(bytes));
    if (n >= LANES) {
      std::memcpy(p, buffer, LANES);
      return;
    }
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  static void store_low16(int16_t* p, i32 v, int n) {
    store_u16_n(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_s16(vmovn_s32(v)), n);
  }
  // 4 * LANES codes in [-127, 127] as bytes, plus offset modulo 256.
  template <int32_t offset>
  static void store_codes(void* p, i32 a, i32 b, i32 c, i32 d) {
    const int16x8_t first = vcombine_s16(vmovn_s32(a), vmovn_s32(b)), second = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
    const int8x16_t codes = vcombine_s8(vmovn_s16(first), vmovn_s16(second));
    vst1q_s8(static_cast<int8_t*>(p), vaddq_s8(codes, vdupq_n_s8(int8_t(offset))));
  }
  static i32 add_i32(i32 v, int32_t value) { return vaddq_s32(v, vdupq_n_s32(value)); }
  // The i-th s8 of each quad, as f32.
  template <int i>
  static f32 quad_to_f32(i32 quads) {
    return to_f32(vshrq_n_s32(vshlq_n_s32(quads, 24 - 8 * i), 24));
  }

  // Packed fp8 codes (packed.h) of LANES columns as quads of k.
  static i32 load_fp8_quads(const char* p) {
    const uint16x8_t pairs = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
    return vreinterpretq_s32_u16(vzip1q_u16(pairs, vextq_u16(pairs, pairs, 4)));
  }
  // The i-th byte of each quad.
  template <int i>
  static i32 byte_of_quad(i32 quads) {
    return and_bits(shift_right<8 * i>(quads), 0xFF);
  }
  static int32_t total(i32 v) { return vaddvq_s32(v); }
  // a * b, for lanes of a from 0 to 2^15 - 1 and lanes of b in s16.
  static i32 mul_s16(i32 a, i32 b) { return vmulq_s32(a, b); }
  static i32 set1_i32(int32_t value) { return vdupq_n_s32(value); }
  static i32 plus_i32(i32 a, i32 b) { return vaddq_s32(a, b); }
  static i32 minus_i32(i32 a, i32 b) { return vsubq_s32(a, b); }
  static i32 load_u8(const void* p) {
    uint32_t bytes;
    std::memcpy(&bytes, p, 4);
    const uint8x8_t v_u8x8 = vreinterpret_u8_u32(vdup_n_u32(bytes));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(v_u8x8))));
  }
  static i32 and_bits(i32 v, int32_t mask) { return vandq_s32(v, vdupq_n_s32(mask)); }
  static i32 or_bits(i32 a, i32 b) { return vorrq_s32(a, b); }
  template <int count>
  static i32 shift_left(i32 v) {
    return vshlq_n_s32(v, count);
  }
  template <int count>
  static i32 shift_right(i32 v) {
    if constexpr (count == 0)
      return v;  // USHR begins at 1
    else
      return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), count));
  }
  // a where v < limit, else b; signed.
  static i32 select_below(i32 v, int32_t limit, i32 a, i32 b) {
    return vbslq_s32(vcltq_s32(v, vdupq_n_s32(limit)), a, b);
  }
  static i32 bits_of(f32 v) { return vreinterpretq_s32_f32(v); }
  static f32 f32_of_bits(i32 v) { return vreinterpretq_f32_s32(v); }

  static i32 load_s8(const void* p) {
    int32_t bytes;
    std::memcpy(&bytes, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)))));
  }
  // The first n, zeros after them.
  static i32 load_u8_n(const void* p, int n) {
    uint8_t bytes[LANES] = {};
    std::memcpy(bytes, p, size_t(n));
    return load_u8(bytes);
  }
  static i32 load_s8_n(const void* p, int n) {
    int8_t bytes[LANES] = {};
    std::memcpy(bytes, p, size_t(n));
    return load_s8(bytes);
  }
  // sum + a * b for lanes of a that fit s16 and b = factor_s16 of such.
  static i32 factor_s16(i32 v) { return v; }
  static i32 add_product(i32 sum, i32 a, i32 b) { return vmlaq_s32(sum, a, b); }
  // v[index] lane by lane, index modulo LANES.
  static i32 permute(i32 v, i32 index) {
    const uint32x4_t lane = vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(LANES - 1));
    const uint32x4_t places = vmlaq_u32(vdupq_n_u32(0x03020100), lane, vdupq_n_u32(0x04040404));
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(v), vreinterpretq_u8_u32(places)));
  }
  // Lane j of rows[i] becomes lane i of rows[j].
  static void transpose(i32 (&rows)[LANES]) {
    const int32x4x2_t first = vzipq_s32(rows[0], rows[2]), second = vzipq_s32(rows[1], rows[3]);
    const int32x4x2_t low = vzipq_s32(first.val[0], second.val[0]), high = vzipq_s32(first.val[1], second.val[1]);
    rows[0] = low.val[0];
    rows[1] = low.val[1];
    rows[2] = high.val[0];
    rows[3] = high.val[1];
  }
  // The larger one, the second of equals, for pools; a lane stays ordered while no NaN was in it.
  static f32 max(f32 a, f32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  // 2 * LANES halves of a and of b, side by side: pairs (a, b) of the first LANES, then of the others.
  static void interleave_halves(const void* a, const void* b, i32& first, i32& second) {
    const uint16x8_t low = vld1q_u16(static_cast<const uint16_t*>(a)),
                     high = vld1q_u16(static_cast<const uint16_t*>(b));
    first = vreinterpretq_s32_u16(vzip1q_u16(low, high));
    second = vreinterpretq_s32_u16(vzip2q_u16(low, high));
  }
  // Without a NaN in it.
  static float largest(f32 v) { return vmaxvq_f32(v); }
  // a where the lane's bit is set, else b.
  static f32 select_bits(uint32_t bits, f32 a, f32 b) {
    return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), uint32x4_t{1, 2, 4, 8}), a, b);
  }
  static uint32_t bits_equal(f32 a, f32 b) { return vaddvq_u32(vandq_u32(vceqq_f32(a, b), uint32x4_t{1, 2, 4, 8})); }
  using ordered = uint32x4_t;
  static ordered all_ordered() { return vdupq_n_u32(~0u); }
  static ordered and_ordered(ordered so_far, f32 a, f32 b) {
    return vandq_u32(so_far, vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b)));
  }
  static f32 nan_unless(ordered lanes, f32 v) { return vbslq_f32(lanes, v, set1(__builtin_nanf(""))); }
  // Of bytes.
  template <bool is_signed>
  static i32 max_bytes(i32 a, i32 b) {
    if constexpr (is_signed)
      return vreinterpretq_s32_s8(vmaxq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
    else
      return vreinterpretq_s32_u8(vmaxq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b)));
  }
  // The first n bytes, zeros after them.
  static i32 load_bytes_n(const void* p, int n) {
    alignas(16) char buffer[16] = {};
    std::memcpy(buffer, p, n >= 16 ? 16 : size_t(n));
    return vld1q_s32(reinterpret_cast<const int32_t*>(buffer));
  }
  // The first n bytes.
  static void store_bytes_n(void* p, i32 v, int n) {
    alignas(16) char buffer[16];
    vst1q_s32(reinterpret_cast<int32_t*>(buffer), v);
    n >= 16 ? std::memcpy(p, buffer, 16) : std::memcpy(p, buffer, size_t(n));
  }
  static i32 set1_quad(const void* p) {
    int32_t quad;
    std::memcpy(&quad, p, 4);
    return vdupq_n_s32(quad);
  }
  // sum plus both dots of quads; u4 numbers are 0 to 15, so that s16 hold all four products of a lane: 4 * 15 * 128.
  static i32 dot_u4_quads(i32 sum, i32 a_u4, i32 a_s8, i32 b_u4, i32 b_s8) {
    const int8x16_t a = vreinterpretq_s8_s32(a_u4), x = vreinterpretq_s8_s32(a_s8);
    const int8x16_t b = vreinterpretq_s8_s32(b_u4), y = vreinterpretq_s8_s32(b_s8);
    const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(x)), vget_low_s8(b), vget_low_s8(y));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(a, x), b, y);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
  }
  static constexpr bool HAS_DOT_QUAD =
#ifdef __ARM_FEATURE_DOTPROD
      true;
#else
      false;
#endif
#ifdef __ARM_FEATURE_DOTPROD
  // Both are s8; a u4 is one, too.
  static i32 dot_quad(i32 sum, i32 a_s8, i32 b_s8) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(a_s8), vreinterpretq_s8_s32(b_s8));
  }
#endif

  // Dot products of quads of bytes, x's with weights of s8; x is u8, or s8 where X_IS_SIGNED. Where the level has no
  // such instruction, quads are pairs of s16: bytes 0 and 2, bytes 1 and 3.
#ifdef __ARM_FEATURE_DOTPROD
  static constexpr bool X_IS_SIGNED = true;
  using bytes = i32;
  static bytes x_bytes(i32 quads) { return quads; }
  static bytes weight_bytes(i32 quads) { return quads; }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) { return dot_quad(sum, x, weight); }
#else
  static constexpr bool X_IS_SIGNED = false;
  struct bytes {
    int16x8_t even, odd;
  };
  static bytes x_bytes(i32 quads) {
    const uint16x8_t halves = vreinterpretq_u16_s32(quads);
    return {vreinterpretq_s16_u16(vandq_u16(halves, vdupq_n_u16(0xFF))), vreinterpretq_s16_u16(vshrq_n_u16(halves, 8))};
  }
  static bytes weight_bytes(i32 quads) {
    const int16x8_t halves = vreinterpretq_s16_s32(quads);
    return {vshrq_n_s16(vshlq_n_s16(halves, 8), 8), vshrq_n_s16(halves, 8)};
  }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) {
    const i32 low = vmlal_s16(vmull_s16(vget_low_s16(x.even), vget_low_s16(weight.even)), vget_low_s16(x.odd),
                              vget_low_s16(weight.odd));
    const i32 high = vmlal_high_s16(vmull_high_s16(x.even, weight.even), x.odd, weight.odd);
    return vaddq_s32(sum, vpaddq_s32(low, high));
  }
#endif
  static i32 xor_bits(i32 v, uint32_t bits) { return veorq_s32(v, vdupq_n_s32(int32_t(bits))); }
  static i32 mul_i32(i32 a, i32 b) { return vmulq_s32(a, b); }

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
  using pair = bfloat16x8_t;
  static pair load_pair(const uint16_t* p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }
  static pair set1_pair(uint32_t bits) { return vreinterpretq_bf16_u32(vdupq_n_u32(bits)); }
  // Words of a pair of halves each.
  static pair pair_of_words(i32 words) { return vreinterpretq_bf16_s32(words); }
  static f32 dot_pair(f32 sum, pair a, pair b) { return vbfdotq_f32(sum, a, b); }
#else
  struct pair {
    f32 even, odd;
  };
  static pair pair_of(uint32x4_t bits) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(bits, 16)),
            vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xFFFF0000)))};
  }
  static pair load_pair(const uint16_t* p) { return pair_of(vreinterpretq_u32_u16(vld1q_u16(p))); }
  static pair set1_pair(uint32_t bits) { return pair_of(vdupq_n_u32(bits)); }
  // Words of a pair of halves each.
  static pair pair_of_words(i32 words) { return pair_of(vreinterpretq_u32_s32(words)); }
  static f32 dot_pair(f32 sum, pair a, pair b) { return madd(a.odd, b.odd, madd(a.even, b.even, sum)); }
#endif

 private:
  static uint16x4_t load_u16_n(const uint16_t* p, int n) {
    alignas(8) uint16_t buffer[LANES] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return vld1_u16(buffer);
  }
  static void store_u16_n(uint16_t* p, uint16x4_t v, int n) {
    if (n >= LANES) return vst1_u16(p, v);
    alignas(8) uint16_t buffer[LANES];
    vst1_u16(buffer, v);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
};

}  // namespace
}  // namespace dsf
