// Sixteen lanes of AVX-512 F, BW, DQ, VL.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dsf {
namespace {

struct Vec {
  static constexpr int LANES = 16;
  static constexpr int TILE_M = 6, TILE_NV = 4;  // 24 sums, 4 weights, 1 x: 29 of 32 registers
#ifdef __AVX512BF16__
  static constexpr int PAIR_TILE_M = 6, PAIR_TILE_NV = 4;  // as TILE
#else
  static constexpr int PAIR_TILE_M = 4, PAIR_TILE_NV = 4;  // 16 sums, 8 weights, 2 x
#endif
  using f32 = __m512;
  using i32 = __m512i;

  static __mmask16 mask_of(int n) { return __mmask16((1u << n) - 1); }
  // The value is in a register at this point, whatever the optimizer would like.
  template <class Register>
  static void keep(Register& value) {
    asm("" : "+v"(value));
  }
  // The same, and no other pinned value moves past this point.
  template <class Register>
  static void pin(Register& value) {
    asm volatile("" : "+v"(value));
  }
  static f32 zero() { return _mm512_setzero_ps(); }
  static f32 set1(float value) { return _mm512_set1_ps(value); }
  static f32 load(const float* p) { return _mm512_loadu_ps(p); }
  static f32 load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(mask_of(n), p); }
  static void store(float* p, f32 v) { _mm512_storeu_ps(p, v); }
  static void store_n(float* p, f32 v, int n) { _mm512_mask_storeu_ps(p, mask_of(n), v); }
  static i32 load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_i32(int32_t* p, i32 v) { _mm512_storeu_si512(p, v); }

  static f32 widen_bf16(__m256i v_bf16x16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v_bf16x16), 16));
  }
  static f32 load_bf16(const uint16_t* p) {
    return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static f32 load_bf16_n(const uint16_t* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(mask_of(n), p)); }
  // Round to nearest even; NaN stays a quiet NaN. VCVTNEPS2BF16 does the same but for subnormals, which it flushes.
  static void store_bf16_n(uint16_t* p, f32 v, int n) {
    const __m512i bits = _mm512_castps_si512(v);
#ifdef __AVX512BF16__
    const __mmask16 without_exponent = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7F800000));
    if (!_mm512_mask_test_epi32_mask(without_exponent, bits, _mm512_set1_epi32(0x7FFFFF))) [[likely]] {
      const __m256i v_bf16x16 = __m256i(_mm512_cvtneps_pbh(v));
      if (n >= LANES)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v_bf16x16);
      else
        _mm256_mask_storeu_epi16(p, mask_of(n), v_bf16x16);
      return;
    }
#endif
    const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    const __m256i v_bf16x16 = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    _mm256_mask_storeu_epi16(p, mask_of(n), v_bf16x16);
  }

  // Two vectors side by side that arithmetic gave: where the CPU is told to take subnormals for zeros, it has done so.
  static void store_bf16_pair(uint16_t* p, f32 a, f32 b) {
#ifdef __AVX512BF16__
    constexpr int SUBNORMAL = 0x20;
    if (!(_mm512_fpclass_ps_mask(a, SUBNORMAL) | _mm512_fpclass_ps_mask(b, SUBNORMAL))) [[likely]]
      return _mm512_storeu_si512(p, __m512i(_mm512_cvtne2ps_pbh(b, a)));
#endif
    store_bf16_n(p, a, LANES);
    store_bf16_n(p + LANES, b, LANES);
  }

  static constexpr bool WIDENS_F16 = true;  // in one instruction
  static f32 load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static f32 load_f16_n(const uint16_t* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_of(n), p)); }
  // Round to nearest even, sizes from 65520 on to inf; NaN stays a quiet NaN. VCVTPS2PH never flushes a result.
  static void store_f16_n(uint16_t* p, f32 v, int n) {
    _mm256_mask_storeu_epi16(p, mask_of(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  static f32 add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
  static f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
  static f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
  static f32 div(f32 a, f32 b) { return _mm512_div_ps(a, b); }
  static f32 sqrt(f32 a) { return _mm512_sqrt_ps(a); }
  static f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
  static f32 madd(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
  static f32 abs(f32 a) { return _mm512_abs_ps(a); }
  static f32 negate(f32 a) { return _mm512_xor_ps(_mm512_set1_ps(-0.0f), a); }
  // VMAXPS and VMINPS give their second operand where one is NaN.
  static f32 max0(f32 a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
  static f32 min_limit(f32 a, float limit) { return _mm512_min_ps(_mm512_set1_ps(limit), a); }
  static f32 at_least(f32 a, f32 limit) { return _mm512_max_ps(limit, a); }
  static f32 at_most(f32 a, f32 limit) { return _mm512_min_ps(limit, a); }
  // a where v < 0, else b.
  static f32 select_negative(f32 v, f32 a, f32 b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), a);
  }
  static f32 pow2_of_shifted(f32 t) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t), 23), _mm512_set1_epi32(0x3F800000)));
  }

  static i32 truncate(f32 v) { return _mm512_cvttps_epi32(v); }
  // table[i & 15] of 16 entries.
  static f32 lookup(const float* table, i32 i) { return _mm512_permutexvar_ps(i, _mm512_load_ps(table)); }
  static f32 to_f32(i32 v) { return _mm512_cvtepi32_ps(v); }
  static i32 round_to_i32(f32 v) { return _mm512_cvtps_epi32(v); }
  // Lane-wise larger of the bits of |v|: as integers, NaN is above inf is above every number.
  static i32 max_magnitude(i32 so_far, f32 v) { return _mm512_max_epu32(so_far, _mm512_castps_si512(abs(v))); }
  static uint32_t largest(i32 v) { return _mm512_reduce_max_epu32(v); }
  static i32 zero_i32() { return _mm512_setzero_si512(); }

  static void store_low8(uint8_t* p, i32 v, int n) { _mm_mask_storeu_epi8(p, mask_of(n), _mm512_cvtepi32_epi8(v)); }
  static void store_low16(int16_t* p, i32 v, int n) {
    _mm256_mask_storeu_epi16(p, mask_of(n), _mm512_cvtepi32_epi16(v));
  }
  // 4 * LANES codes in [-127, 127] as bytes, plus offset modulo 256.
  template <int32_t offset>
  static void store_codes(void* p, i32 a, i32 b, i32 c, i32 d) {
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i codes = _mm512_permutexvar_epi32(order, bytes);  // VPACK works in 128-bit lanes
    _mm512_storeu_si512(p, _mm512_add_epi8(codes, _mm512_set1_epi8(char(offset))));
  }
  static i32 add_i32(i32 v, int32_t value) { return _mm512_add_epi32(v, _mm512_set1_epi32(value)); }
  // The i-th s8 of each quad, as f32.
  template <int i>
  static f32 quad_to_f32(i32 quads) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(quads, 24 - 8 * i), 24));
  }

  // Packed fp8 codes (packed.h) of LANES columns as quads of k.
  static i32 load_fp8_quads(const char* p) {
    const __m512i pairs_first =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return _mm512_shuffle_epi8(_mm512_loadu_si512(p), pairs_first);
  }
  // The i-th byte of each quad.
  template <int i>
  static i32 byte_of_quad(i32 quads) {
    return _mm512_and_si512(_mm512_srli_epi32(quads, 8 * i), _mm512_set1_epi32(0xFF));
  }
  static int32_t total(i32 v) { return _mm512_reduce_add_epi32(v); }
  // a * b, for lanes of a from 0 to 2^15 - 1 and lanes of b in s16.
  static i32 mul_s16(i32 a, i32 b) { return _mm512_madd_epi16(a, b); }
  static i32 set1_i32(int32_t value) { return _mm512_set1_epi32(value); }
  static i32 plus_i32(i32 a, i32 b) { return _mm512_add_epi32(a, b); }
  static i32 minus_i32(i32 a, i32 b) { return _mm512_sub_epi32(a, b); }
  static i32 load_u8(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static i32 and_bits(i32 v, int32_t mask) { return _mm512_and_si512(v, _mm512_set1_epi32(mask)); }
  static i32 or_bits(i32 a, i32 b) { return _mm512_or_si512(a, b); }
  template <int count>
  static i32 shift_left(i32 v) {
    return _mm512_slli_epi32(v, count);
  }
  template <int count>
  static i32 shift_right(i32 v) {
    return _mm512_srli_epi32(v, count);
  }
  // a where v < limit, else b; signed.
  static i32 select_below(i32 v, int32_t limit, i32 a, i32 b) {
    return _mm512_mask_mov_epi32(b, _mm512_cmplt_epi32_mask(v, _mm512_set1_epi32(limit)), a);
  }
  static i32 bits_of(f32 v) { return _mm512_castps_si512(v); }
  static f32 f32_of_bits(i32 v) { return _mm512_castsi512_ps(v); }

  static i32 load_quads_s16(const char* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static i32 set1_quad_s16(const int16_t* p) {
    int64_t quad;
    __builtin_memcpy(&quad, p, 8);
    return _mm512_set1_epi64(quad);
  }
  static i32 madd_s16(i32 sum, i32 a, i32 b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
  static void store_pair_sums(int32_t* p, i32 v) {
    const __m512i sums = _mm512_add_epi32(v, _mm512_srli_epi64(v, 32));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(sums));
  }
  static i32 load_s8(const void* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  // The first n, zeros after them.
  static i32 load_u8_n(const void* p, int n) { return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask_of(n), p)); }
  static i32 load_s8_n(const void* p, int n) { return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask_of(n), p)); }
  // sum + a * b for lanes of a that fit s16 and b = factor_s16 of such.
  static i32 factor_s16(i32 v) { return _mm512_and_si512(v, _mm512_set1_epi32(0xFFFF)); }  // VPMADDWD's odd halves
  static i32 add_product(i32 sum, i32 a, i32 b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return madd_s16(sum, a, b);
#endif
  }
  // v[index] lane by lane, index modulo LANES.
  static i32 permute(i32 v, i32 index) { return _mm512_permutexvar_epi32(index, v); }
  // Lane j of rows[i] becomes lane i of rows[j].
  static void transpose(i32 (&rows)[LANES]) {
    __m512i quads[16];  // quads[4 i + j]: lane j of rows 4 i to 4 i + 3, of every 128 bits
    _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) {
      const __m512i low = _mm512_unpacklo_epi32(rows[i], rows[i + 1]),
                    high = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
      const __m512i next_low = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]);
      const __m512i next_high = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
      quads[i] = _mm512_unpacklo_epi64(low, next_low);
      quads[i + 1] = _mm512_unpackhi_epi64(low, next_low);
      quads[i + 2] = _mm512_unpacklo_epi64(high, next_high);
      quads[i + 3] = _mm512_unpackhi_epi64(high, next_high);
    }
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; ++j) {
      const __m512i even = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
      const __m512i odd = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xDD);
      const __m512i next_even = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
      const __m512i next_odd = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xDD);
      rows[j] = _mm512_shuffle_i32x4(even, next_even, 0x88);
      rows[4 + j] = _mm512_shuffle_i32x4(odd, next_odd, 0x88);
      rows[8 + j] = _mm512_shuffle_i32x4(even, next_even, 0xDD);
      rows[12 + j] = _mm512_shuffle_i32x4(odd, next_odd, 0xDD);
    }
  }
  // The larger one, the second of equals, for pools; a lane stays ordered while no NaN was in it.
  static f32 max(f32 a, f32 b) { return _mm512_max_ps(a, b); }
  // 2 * LANES halves of a and of b, side by side: pairs (a, b) of the first LANES, then of the others.
  static void interleave_halves(const void* a, const void* b, i32& first, i32& second) {
    const __m512i low = _mm512_loadu_si512(a), high = _mm512_loadu_si512(b);
    const __m512i lanes =
        _mm512_cvtepu16_epi32(_mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512i order = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(32)), 16));
    first = _mm512_permutex2var_epi16(low, order, high);
    second = _mm512_permutex2var_epi16(low, _mm512_add_epi16(order, _mm512_set1_epi16(16)), high);
  }
  // Without a NaN in it.
  static float largest(f32 v) { return _mm512_reduce_max_ps(v); }
  // a where the lane's bit is set, else b.
  static f32 select_bits(uint32_t bits, f32 a, f32 b) { return _mm512_mask_mov_ps(b, __mmask16(bits), a); }
  static uint32_t bits_equal(f32 a, f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  using ordered = __mmask16;
  static ordered all_ordered() { return 0xFFFF; }
  static ordered and_ordered(ordered so_far, f32 a, f32 b) { return _mm512_mask_cmp_ps_mask(so_far, a, b, _CMP_ORD_Q); }
  static f32 nan_unless(ordered lanes, f32 v) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(__builtin_nanf("")), lanes, v);
  }
  // Of bytes.
  template <bool is_signed>
  static i32 max_bytes(i32 a, i32 b) {
    return is_signed ? _mm512_max_epi8(a, b) : _mm512_max_epu8(a, b);
  }
  // The first n bytes, zeros after them.
  static i32 load_bytes_n(const void* p, int n) {
    return _mm512_maskz_loadu_epi8(n >= 64 ? ~__mmask64(0) : (__mmask64(1) << n) - 1, p);
  }
  // The first n bytes.
  static void store_bytes_n(void* p, i32 v, int n) {
    _mm512_mask_storeu_epi8(p, n >= 64 ? ~__mmask64(0) : (__mmask64(1) << n) - 1, v);
  }
  static i32 set1_quad(const void* p) {
    int32_t quad;
    __builtin_memcpy(&quad, p, 4);
    return _mm512_set1_epi32(quad);
  }
  // sum plus both dots of quads; u4 numbers are 0 to 15, so that VPMADDUBSW's s16 hold all four products: 4 * 15 * 128.
  static i32 dot_u4_quads(i32 sum, i32 a_u4, i32 a_s8, i32 b_u4, i32 b_s8) {
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a_u4, a_s8), _mm512_maddubs_epi16(b_u4, b_s8));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  static constexpr bool HAS_DOT_QUAD =
#ifdef __AVX512VNNI__
      true;
#else
      false;
#endif
#ifdef __AVX512VNNI__
  static i32 dot_quad(i32 sum, i32 x_u8, i32 q_s8) { return _mm512_dpbusd_epi32(sum, x_u8, q_s8); }
#endif

  // Dot products of quads of bytes, x's with weights of s8; x is u8, or s8 where X_IS_SIGNED. Where the level has no
  // such instruction, quads are pairs of s16: bytes 0 and 2, bytes 1 and 3.
#if defined(__AVX512VNNI__)
  using bytes = i32;
  static bytes x_bytes(i32 quads) { return quads; }
  static bytes weight_bytes(i32 quads) { return quads; }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) { return dot_quad(sum, x, weight); }
#else
  struct bytes {
    i32 even, odd;
  };
  static bytes x_bytes(i32 quads) {
    return {_mm512_and_si512(quads, _mm512_set1_epi16(0xFF)), _mm512_srli_epi16(quads, 8)};
  }
  static bytes weight_bytes(i32 quads) {
    return {_mm512_srai_epi16(_mm512_slli_epi16(quads, 8), 8), _mm512_srai_epi16(quads, 8)};
  }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) {
    const i32 pairs = _mm512_add_epi32(_mm512_madd_epi16(x.even, weight.even), _mm512_madd_epi16(x.odd, weight.odd));
    return _mm512_add_epi32(sum, pairs);
  }
#endif
  static constexpr bool X_IS_SIGNED = false;
  static i32 xor_bits(i32 v, uint32_t bits) { return _mm512_xor_si512(v, _mm512_set1_epi32(int(bits))); }
  static i32 mul_i32(i32 a, i32 b) { return _mm512_mullo_epi32(a, b); }

#ifdef __AVX512BF16__
  using pair = __m512bh;
  static pair load_pair(const uint16_t* p) { return __m512bh(_mm512_loadu_si512(p)); }
  static pair set1_pair(uint32_t bits) { return __m512bh(_mm512_set1_epi32(int(bits))); }
  static f32 dot_pair(f32 sum, pair a, pair b) { return _mm512_dpbf16_ps(sum, a, b); }
#else
  struct pair {
    f32 even, odd;
  };
  static pair pair_of(__m512i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xFFFF0000))))};
  }
  static pair load_pair(const uint16_t* p) { return pair_of(_mm512_loadu_si512(p)); }
  static pair set1_pair(uint32_t bits) { return pair_of(_mm512_set1_epi32(int(bits))); }
  static f32 dot_pair(f32 sum, pair a, pair b) { return madd(a.odd, b.odd, madd(a.even, b.even, sum)); }
#endif
  // Words of a pair of halves each.
  static pair pair_of_words(i32 words) {
#ifdef __AVX512BF16__
    return __m512bh(words);
#else
    return pair_of(words);
#endif
  }
};

}  // namespace
}  // namespace dsf
