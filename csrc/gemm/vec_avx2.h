// Eight lanes of AVX2 + FMA + F16C.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dsf {
namespace {

struct Vec {
  static constexpr int LANES = 8;
  static constexpr int TILE_M = 6, TILE_NV = 2;            // 12 sums, 2 weights, 1 x: 15 of 16 registers
  static constexpr int PAIR_TILE_M = 4, PAIR_TILE_NV = 2;  // 8 sums, 4 weights, 2 x
  using f32 = __m256;
  using i32 = __m256i;

  static __m256i mask_of(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // The value is in a register at this point, whatever the optimizer would like.
  template <class Register>
  static void keep(Register& value) {
    asm("" : "+x"(value));
  }
  // The same, and no other pinned value moves past this point.
  template <class Register>
  static void pin(Register& value) {
    asm volatile("" : "+x"(value));
  }
  static f32 zero() { return _mm256_setzero_ps(); }
  static f32 set1(float value) { return _mm256_set1_ps(value); }
  static f32 load(const float* p) { return _mm256_loadu_ps(p); }
  static f32 load_n(const float* p, int n) { return _mm256_maskload_ps(p, mask_of(n)); }
  static void store(float* p, f32 v) { _mm256_storeu_ps(p, v); }
  static void store_n(float* p, f32 v, int n) { _mm256_maskstore_ps(p, mask_of(n), v); }
  static i32 load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_i32(int32_t* p, i32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

  static f32 widen_bf16(__m128i v_bf16x8) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v_bf16x8), 16));
  }
  static f32 load_bf16(const uint16_t* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static f32 load_bf16_n(const uint16_t* p, int n) {
    alignas(16) uint16_t buffer[8] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return load_bf16(buffer);
  }
  // Round to nearest even; NaN stays a quiet NaN.
  static void store_bf16_n(uint16_t* p, f32 v, int n) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    if (n >= LANES) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    alignas(16) uint16_t buffer[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(buffer), packed);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  static void store_bf16_pair(uint16_t* p, f32 a, f32 b) {
    store_bf16_n(p, a, LANES);
    store_bf16_n(p + LANES, b, LANES);
  }

  static constexpr bool WIDENS_F16 = true;  // in one instruction
  static f32 load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static f32 load_f16_n(const uint16_t* p, int n) {
    alignas(16) uint16_t buffer[8] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return load_f16(buffer);
  }
  // Round to nearest even, sizes from 65520 on to inf; NaN stays a quiet NaN. VCVTPS2PH never flushes a result.
  static void store_f16_n(uint16_t* p, f32 v, int n) {
    const __m128i v_f16x8 = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    if (n >= LANES) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v_f16x8);
    alignas(16) uint16_t buffer[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(buffer), v_f16x8);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }

  static f32 add(f32 a, f32 b) { return _mm256_add_ps(a, b); }
  static f32 sub(f32 a, f32 b) { return _mm256_sub_ps(a, b); }
  static f32 mul(f32 a, f32 b) { return _mm256_mul_ps(a, b); }
  static f32 div(f32 a, f32 b) { return _mm256_div_ps(a, b); }
  static f32 sqrt(f32 a) { return _mm256_sqrt_ps(a); }
  static f32 fma(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
  static f32 madd(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
  static f32 abs(f32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static f32 negate(f32 a) { return _mm256_xor_ps(_mm256_set1_ps(-0.0f), a); }
  // VMAXPS and VMINPS give their second operand where one is NaN.
  static f32 max0(f32 a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
  static f32 min_limit(f32 a, float limit) { return _mm256_min_ps(_mm256_set1_ps(limit), a); }
  static f32 at_least(f32 a, f32 limit) { return _mm256_max_ps(limit, a); }
  static f32 at_most(f32 a, f32 limit) { return _mm256_min_ps(limit, a); }
  // a where v < 0, else b.
  static f32 select_negative(f32 v, f32 a, f32 b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
  }
  static f32 pow2_of_shifted(f32 t) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23), _mm256_set1_epi32(0x3F800000)));
  }

  static i32 truncate(f32 v) { return _mm256_cvttps_epi32(v); }
  // table[i & 15] of 16 entries.
  static f32 lookup(const float* table, i32 i) {
    const f32 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), i);
    const f32 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));  // by bit 3
  }
  static f32 to_f32(i32 v) { return _mm256_cvtepi32_ps(v); }
  static i32 round_to_i32(f32 v) { return _mm256_cvtps_epi32(v); }
  // Lane-wise larger of the bits of |v|: as integers, NaN is above inf is above every number.
  static i32 max_magnitude(i32 so_far, f32 v) { return _mm256_max_epu32(so_far, _mm256_castps_si256(abs(v))); }
  static uint32_t largest(i32 v) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xB1));
    return uint32_t(_mm_cvtsi128_si32(m));
  }
  static i32 zero_i32() { return _mm256_setzero_si256(); }

  static __m128i low16(i32 v) {
    const __m256i words = _mm256_and_si256(v, _mm256_set1_epi32(0xFFFF));
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
  static void store_low8(uint8_t* p, i32 v, int n) {
    const __m128i words = low16(_mm256_and_si256(v, _mm256_set1_epi32(0xFF)));
    const __m128i bytes = _mm_packus_epi16(words, words);
    if (n >= LANES) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
    alignas(16) uint8_t buffer[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(buffer), bytes);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  static void store_low16(int16_t* p, i32 v, int n) {
    const __m128i words = low16(v);
    if (n >= LANES) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
    alignas(16) int16_t buffer[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(buffer), words);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  // 4 * LANES codes in [-127, 127] as bytes, plus offset modulo 256.
  template <int32_t offset>
  static void store_codes(void* p, i32 a, i32 b, i32 c, i32 d) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i codes = _mm256_permutevar8x32_epi32(bytes, order);  // VPACK works in 128-bit lanes
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_add_epi8(codes, _mm256_set1_epi8(char(offset))));
  }
  static i32 add_i32(i32 v, int32_t value) { return _mm256_add_epi32(v, _mm256_set1_epi32(value)); }
  // The i-th s8 of each quad, as f32.
  template <int i>
  static f32 quad_to_f32(i32 quads) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(quads, 24 - 8 * i), 24));
  }

  // Packed fp8 codes (packed.h) of LANES columns as quads of k.
  static i32 load_fp8_quads(const char* p) {
    const __m256i pairs_first =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), pairs_first);
  }
  // The i-th byte of each quad.
  template <int i>
  static i32 byte_of_quad(i32 quads) {
    return _mm256_and_si256(_mm256_srli_epi32(quads, 8 * i), _mm256_set1_epi32(0xFF));
  }
  static int32_t total(i32 v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
  }
  // a * b, for lanes of a from 0 to 2^15 - 1 and lanes of b in s16.
  static i32 mul_s16(i32 a, i32 b) { return _mm256_madd_epi16(a, b); }
  static i32 set1_i32(int32_t value) { return _mm256_set1_epi32(value); }
  static i32 plus_i32(i32 a, i32 b) { return _mm256_add_epi32(a, b); }
  static i32 minus_i32(i32 a, i32 b) { return _mm256_sub_epi32(a, b); }
  static i32 load_u8(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
  static i32 and_bits(i32 v, int32_t mask) { return _mm256_and_si256(v, _mm256_set1_epi32(mask)); }
  static i32 or_bits(i32 a, i32 b) { return _mm256_or_si256(a, b); }
  template <int count>
  static i32 shift_left(i32 v) {
    return _mm256_slli_epi32(v, count);
  }
  template <int count>
  static i32 shift_right(i32 v) {
    return _mm256_srli_epi32(v, count);
  }
  // a where v < limit, else b; signed.
  static i32 select_below(i32 v, int32_t limit, i32 a, i32 b) {
    return _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), v));
  }
  static i32 bits_of(f32 v) { return _mm256_castps_si256(v); }
  static f32 f32_of_bits(i32 v) { return _mm256_castsi256_ps(v); }

  static i32 load_quads_s16(const char* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static i32 set1_quad_s16(const int16_t* p) {
    int64_t quad;
    __builtin_memcpy(&quad, p, 8);
    return _mm256_set1_epi64x(quad);
  }
  static i32 madd_s16(i32 sum, i32 a, i32 b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static void store_pair_sums(int32_t* p, i32 v) {
    const __m256i sums = _mm256_add_epi32(v, _mm256_srli_epi64(v, 32));
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(sums, order)));
  }
  static i32 load_s8(const void* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
  // The first n, zeros after them.
  static i32 load_u8_n(const void* p, int n) {
    uint8_t bytes[LANES] = {};
    __builtin_memcpy(bytes, p, size_t(n));
    return load_u8(bytes);
  }
  static i32 load_s8_n(const void* p, int n) {
    int8_t bytes[LANES] = {};
    __builtin_memcpy(bytes, p, size_t(n));
    return load_s8(bytes);
  }
  // sum + a * b for lanes of a that fit s16 and b = factor_s16 of such.
  static i32 factor_s16(i32 v) { return _mm256_and_si256(v, _mm256_set1_epi32(0xFFFF)); }  // VPMADDWD's odd halves
  static i32 add_product(i32 sum, i32 a, i32 b) { return madd_s16(sum, a, b); }
  // v[index] lane by lane, index modulo LANES.
  static i32 permute(i32 v, i32 index) { return _mm256_permutevar8x32_epi32(v, index); }
  // Lane j of rows[i] becomes lane i of rows[j].
  static void transpose(i32 (&rows)[LANES]) {
    __m256i quads[8];  // quads[4 i + j]: lane j of rows 4 i to 4 i + 3, of every 128 bits
    _Pragma("GCC unroll 2") for (int i = 0; i < 8; i += 4) {
      const __m256i low = _mm256_unpacklo_epi32(rows[i], rows[i + 1]),
                    high = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
      const __m256i next_low = _mm256_unpacklo_epi32(rows[i + 2], rows[i + 3]);
      const __m256i next_high = _mm256_unpackhi_epi32(rows[i + 2], rows[i + 3]);
      quads[i] = _mm256_unpacklo_epi64(low, next_low);
      quads[i + 1] = _mm256_unpackhi_epi64(low, next_low);
      quads[i + 2] = _mm256_unpacklo_epi64(high, next_high);
      quads[i + 3] = _mm256_unpackhi_epi64(high, next_high);
    }
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; ++j) {
      rows[j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x20);
      rows[4 + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x31);
    }
  }
  // The larger one, the second of equals, for pools; a lane stays ordered while no NaN was in it.
  static f32 max(f32 a, f32 b) { return _mm256_max_ps(a, b); }
  // 2 * LANES halves of a and of b, side by side: pairs (a, b) of the first LANES, then of the others.
  static void interleave_halves(const void* a, const void* b, i32& first, i32& second) {
    const __m256i low = _mm256_loadu_si256(static_cast<const __m256i*>(a));
    const __m256i high = _mm256_loadu_si256(static_cast<const __m256i*>(b));
    const __m256i even = _mm256_unpacklo_epi16(low, high), odd = _mm256_unpackhi_epi16(low, high);
    first = _mm256_permute2x128_si256(even, odd, 0x20);
    second = _mm256_permute2x128_si256(even, odd, 0x31);
  }
  // Without a NaN in it.
  static float largest(f32 v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  // a where the lane's bit is set, else b.
  static f32 select_bits(uint32_t bits, f32 a, f32 b) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), bit), bit);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(set));
  }
  static uint32_t bits_equal(f32 a, f32 b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))); }
  using ordered = __m256;
  static ordered all_ordered() { return _mm256_castsi256_ps(_mm256_set1_epi32(-1)); }
  static ordered and_ordered(ordered so_far, f32 a, f32 b) {
    return _mm256_and_ps(so_far, _mm256_cmp_ps(a, b, _CMP_ORD_Q));
  }
  static f32 nan_unless(ordered lanes, f32 v) { return _mm256_blendv_ps(_mm256_set1_ps(__builtin_nanf("")), v, lanes); }
  // Of bytes.
  template <bool is_signed>
  static i32 max_bytes(i32 a, i32 b) {
    return is_signed ? _mm256_max_epi8(a, b) : _mm256_max_epu8(a, b);
  }
  // The first n bytes, zeros after them.
  static i32 load_bytes_n(const void* p, int n) {
    if (n >= 32) return _mm256_loadu_si256(static_cast<const __m256i*>(p));
    alignas(32) char buffer[32] = {};
    __builtin_memcpy(buffer, p, size_t(n));
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(buffer));
  }
  // The first n bytes.
  static void store_bytes_n(void* p, i32 v, int n) {
    if (n >= 32) return _mm256_storeu_si256(static_cast<__m256i*>(p), v);
    alignas(32) char buffer[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(buffer), v);
    __builtin_memcpy(p, buffer, size_t(n));
  }
  static i32 set1_quad(const void* p) {
    int32_t quad;
    __builtin_memcpy(&quad, p, 4);
    return _mm256_set1_epi32(quad);
  }
  // sum plus both dots of quads; u4 numbers are 0 to 15, so that VPMADDUBSW's s16 hold all four products: 4 * 15 * 128.
  static i32 dot_u4_quads(i32 sum, i32 a_u4, i32 a_s8, i32 b_u4, i32 b_s8) {
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a_u4, a_s8), _mm256_maddubs_epi16(b_u4, b_s8));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static constexpr bool HAS_DOT_QUAD =
#ifdef __AVXVNNI__
      true;
#else
      false;
#endif
#ifdef __AVXVNNI__
  static i32 dot_quad(i32 sum, i32 x_u8, i32 q_s8) { return _mm256_dpbusd_avx_epi32(sum, x_u8, q_s8); }
#endif

  // Dot products of quads of bytes, x's with weights of s8; x is u8, or s8 where X_IS_SIGNED. Where the level has no
  // such instruction, quads are pairs of s16: bytes 0 and 2, bytes 1 and 3.
#if defined(__AVXVNNI__)
  using bytes = i32;
  static bytes x_bytes(i32 quads) { return quads; }
  static bytes weight_bytes(i32 quads) { return quads; }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) { return dot_quad(sum, x, weight); }
#else
  struct bytes {
    i32 even, odd;
  };
  static bytes x_bytes(i32 quads) {
    return {_mm256_and_si256(quads, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16(quads, 8)};
  }
  static bytes weight_bytes(i32 quads) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8), _mm256_srai_epi16(quads, 8)};
  }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) {
    const i32 pairs = _mm256_add_epi32(_mm256_madd_epi16(x.even, weight.even), _mm256_madd_epi16(x.odd, weight.odd));
    return _mm256_add_epi32(sum, pairs);
  }
#endif
  static constexpr bool X_IS_SIGNED = false;
  static i32 xor_bits(i32 v, uint32_t bits) { return _mm256_xor_si256(v, _mm256_set1_epi32(int(bits))); }
  static i32 mul_i32(i32 a, i32 b) { return _mm256_mullo_epi32(a, b); }

  struct pair {
    f32 even, odd;
  };
  static pair pair_of(__m256i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(int(0xFFFF0000))))};
  }
  static pair load_pair(const uint16_t* p) { return pair_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static pair set1_pair(uint32_t bits) { return pair_of(_mm256_set1_epi32(int(bits))); }
  // Words of a pair of halves each.
  static pair pair_of_words(i32 words) { return pair_of(words); }
  static f32 dot_pair(f32 sum, pair a, pair b) { return madd(a.odd, b.odd, madd(a.even, b.even, sum)); }
};

}  // namespace
}  // namespace dsf
