// Four lanes of plain arithmetic for the baseline level; the model that the wider headers follow.
// Every vec_<level>.h defines one struct Vec with these members, and nothing that another file can see.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

#ifdef __SSE4_1__
#include <smmintrin.h>
#endif

namespace dsf {
namespace {

struct Vec {
  static constexpr int LANES = 4;
  static constexpr int TILE_M = 4, TILE_NV = 2;            // rows and vectors of a register tile
  static constexpr int PAIR_TILE_M = 2, PAIR_TILE_NV = 2;  // the same for tiles that hold two f32 a bf16 pair
  typedef float f32 __attribute__((vector_size(16)));
  typedef int32_t i32 __attribute__((vector_size(16)));
  typedef uint32_t u32 __attribute__((vector_size(16)));

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
  static f32 zero() { return f32{}; }
  static f32 set1(float value) { return f32{value, value, value, value}; }
  static f32 load(const float* p) {
    f32 v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static f32 load_n(const float* p, int n) {
    f32 v{};
    std::memcpy(&v, p, size_t(n) * 4);
    return v;
  }
  static void store(float* p, f32 v) { std::memcpy(p, &v, sizeof v); }
  static void store_n(float* p, f32 v, int n) { std::memcpy(p, &v, size_t(n) * 4); }
  static i32 load_i32(const int32_t* p) {
    i32 v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store_i32(int32_t* p, i32 v) { std::memcpy(p, &v, sizeof v); }

  static f32 load_bf16(const uint16_t* p) { return load_bf16_n(p, LANES); }
  static f32 load_bf16_n(const uint16_t* p, int n) {
    u32 bits{};
    for (int i = 0; i < n; ++i) bits[i] = uint32_t(p[i]) << 16;
    return f32(bits);
  }
  // Round to nearest even; NaN stays a quiet NaN.
  static void store_bf16_n(uint16_t* p, f32 v, int n) {
    const u32 bits = u32(v);
    for (int i = 0; i < n; ++i)
      p[i] = v[i] != v[i] ? uint16_t(bits[i] >> 16 | 0x40) : uint16_t((bits[i] + 0x7FFF + (bits[i] >> 16 & 1)) >> 16);
  }
  static void store_bf16_pair(uint16_t* p, f32 a, f32 b) {
    store_bf16_n(p, a, LANES);
    store_bf16_n(p + LANES, b, LANES);
  }

  static constexpr bool WIDENS_F16 = false;  // in one instruction
  // Exact. Subnormal numbers come from a difference of normal ones, so that no flag of the machine flushes them.
  static f32 widen_f16(u32 bits) {
    const u32 size = (bits & 0x7FFFu) << 13, sign = (bits & 0x8000u) << 16;
    const u32 normal = size + 0x38000000u, not_finite = size + 0x70000000u;
    const u32 subnormal = u32(f32(size + 0x38800000u) - 0x1p-14f);
    const u32 finite = size < 0x00800000u ? subnormal : normal;
    return f32((size < 0x0F800000u ? finite : not_finite) | sign);
  }
  static f32 load_f16(const uint16_t* p) { return widen_f16(u32{p[0], p[1], p[2], p[3]}); }
  static f32 load_f16_n(const uint16_t* p, int n) {
    u32 bits{};
    for (int i = 0; i < n; ++i) bits[i] = p[i];
    return widen_f16(bits);
  }
  // Round to nearest even, sizes from 65520 on to inf; NaN stays a quiet NaN.
  static void store_f16_n(uint16_t* p, f32 v, int n) {
    const u32 size = u32(v) & 0x7FFFFFFFu, sign = u32(v) >> 16 & 0x8000u;
    const u32 normal = (size - 0x38000000u + 0xFFFu + (size >> 13 & 1)) >> 13;
    const u32 subnormal = u32(f32(size) + 0.5f) - 0x3F000000u;  // the unit of 0.5 is 2^-24, as of subnormal f16
    const u32 finite = size < 0x38800000u ? subnormal : normal;
    const u32 number = size < 0x477FF000u ? finite : u32{} + 0x7C00u;
    const u32 bits = (size > 0x7F800000u ? (size >> 13 & 0x3FFu) | 0x7E00u : number) | sign;
    for (int i = 0; i < n; ++i) p[i] = uint16_t(bits[i]);
  }

  static f32 add(f32 a, f32 b) { return a + b; }
  static f32 sub(f32 a, f32 b) { return a - b; }
  static f32 mul(f32 a, f32 b) { return a * b; }
  static f32 div(f32 a, f32 b) { return a / b; }
  static f32 sqrt(f32 a) {
    f32 v;
    for (int i = 0; i < LANES; ++i) v[i] = __builtin_sqrtf(a[i]);
    return v;
  }
  // One rounding, as in hardware: the epilogues promise equal bits on every level.
  static f32 fma(f32 a, f32 b, f32 c) {
    f32 v;
    for (int i = 0; i < LANES; ++i) v[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return v;
  }
  // a * b + c for the sums of the float schemes, which promise a bound: whatever is fast.
  static f32 madd(f32 a, f32 b, f32 c) { return a * b + c; }
  static f32 abs(f32 a) { return f32(u32(a) & 0x7FFFFFFFu); }
  static f32 negate(f32 a) { return f32(u32(a) ^ 0x80000000u); }
  // max(a, 0) and min(a, limit) that keep NaN.
  static f32 max0(f32 a) { return a < f32{} ? f32{} : a; }
  static f32 min_limit(f32 a, float limit) { return a > set1(limit) ? set1(limit) : a; }
  // The same with limits in a vector.
  static f32 at_least(f32 a, f32 limit) { return a < limit ? limit : a; }
  static f32 at_most(f32 a, f32 limit) { return a > limit ? limit : a; }
  // a where v < 0, else b.
  static f32 select_negative(f32 v, f32 a, f32 b) { return v < f32{} ? a : b; }
  // 2^n where t = 1.5 * 2^23 + n.
  static f32 pow2_of_shifted(f32 t) { return f32((u32(t) << 23) + 0x3F800000u); }

  static i32 truncate(f32 v) {
    i32 n;
    for (int i = 0; i < LANES; ++i) n[i] = v[i] == v[i] ? int32_t(v[i]) : 0;
    return n;
  }
  // table[i & 15] of 16 entries.
  static f32 lookup(const float* table, i32 i) {
    return f32{table[i[0] & 15], table[i[1] & 15], table[i[2] & 15], table[i[3] & 15]};
  }
  static f32 to_f32(i32 v) { return __builtin_convertvector(v, f32); }
  // Nearest even; defined for |v| < 2^22, which is all that quantization needs.
  static i32 round_to_i32(f32 v) { return i32(v + 12582912.0f) - 0x4B400000; }
  // Lane-wise larger of the bits of |v|: as integers, NaN is above inf is above every number.
  static i32 max_magnitude(i32 so_far, f32 v) {
    const u32 bits = u32(v) & 0x7FFFFFFFu;
    return i32(bits > u32(so_far) ? bits : u32(so_far));
  }
  static uint32_t largest(i32 v) {
    uint32_t most = 0;
    for (int i = 0; i < LANES; ++i) most = uint32_t(v[i]) > most ? uint32_t(v[i]) : most;
    return most;
  }
  static i32 zero_i32() { return i32{}; }

  static void store_low8(uint8_t* p, i32 v, int n) {
    for (int i = 0; i < n; ++i) p[i] = uint8_t(v[i]);
  }
  static void store_low16(int16_t* p, i32 v, int n) {
    for (int i = 0; i < n; ++i) p[i] = int16_t(v[i]);
  }
  // 4 * LANES codes in [-127, 127] as bytes, plus offset modulo 256.
  template <int32_t offset>
  static void store_codes(void* p, i32 a, i32 b, i32 c, i32 d) {
    uint8_t* bytes = static_cast<uint8_t*>(p);
    for (const i32& codes : {a, b, c, d})
      for (int i = 0; i < LANES; ++i) *bytes++ = uint8_t(codes[i] + offset);
  }
  // Sums modulo 2^32.
  static i32 add_i32(i32 v, int32_t value) { return i32(u32(v) + uint32_t(value)); }
  // The i-th s8 of each quad, as f32.
  template <int i>
  static f32 quad_to_f32(i32 quads) {
    return to_f32(i32(u32(quads) << (24 - 8 * i)) >> 24);
  }

  // Packed fp8 codes (packed.h) of LANES columns as quads of k.
  static i32 load_fp8_quads(const char* p) {
    const auto* pairs = reinterpret_cast<const uint8_t*>(p);
    i32 quads;
    for (int i = 0; i < LANES; ++i)
      quads[i] =
          int32_t(pairs[2 * i] | pairs[2 * i + 1] << 8 | pairs[8 + 2 * i] << 16 | uint32_t(pairs[8 + 2 * i + 1]) << 24);
    return quads;
  }
  // The i-th byte of each quad.
  template <int i>
  static i32 byte_of_quad(i32 quads) {
    return i32(u32(quads) >> (8 * i) & 0xFFu);
  }
  static int32_t total(i32 v) { return v[0] + v[1] + v[2] + v[3]; }
  // a * b, for lanes of a from 0 to 2^15 - 1 and lanes of b in s16.
  static i32 mul_s16(i32 a, i32 b) { return a * b; }
  static i32 set1_i32(int32_t value) { return i32{value, value, value, value}; }
  static i32 plus_i32(i32 a, i32 b) { return i32(u32(a) + u32(b)); }
  static i32 minus_i32(i32 a, i32 b) { return a - b; }
  static i32 load_u8(const void* p) {
    const auto* bytes = static_cast<const uint8_t*>(p);
    return i32{bytes[0], bytes[1], bytes[2], bytes[3]};
  }
  static i32 and_bits(i32 v, int32_t mask) { return v & mask; }
  static i32 or_bits(i32 a, i32 b) { return a | b; }
  template <int count>
  static i32 shift_left(i32 v) {
    return i32(u32(v) << count);
  }
  template <int count>
  static i32 shift_right(i32 v) {
    return i32(u32(v) >> count);
  }
  // a where v < limit, else b; signed.
  static i32 select_below(i32 v, int32_t limit, i32 a, i32 b) { return v < limit ? a : b; }
  static i32 bits_of(f32 v) { return i32(v); }
  static f32 f32_of_bits(i32 v) { return f32(v); }

  typedef int16_t s16 __attribute__((vector_size(16)));
#ifdef __SSE4_1__  // by hand: GCC 12 makes 259 instructions of a loop that has 29 so
  static i32 load_quads_s16(const char* p) {
    return i32(_mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static i32 set1_quad_s16(const int16_t* p) {
    int64_t quad;
    std::memcpy(&quad, p, 8);
    return i32(_mm_set1_epi64x(quad));
  }
  static i32 madd_s16(i32 sum, i32 a, i32 b) { return sum + i32(_mm_madd_epi16(__m128i(a), __m128i(b))); }
#else
  static i32 load_quads_s16(const char* p) {
    s16 v;
    for (int i = 0; i < 8; ++i) v[i] = static_cast<signed char>(p[i]);
    return i32(v);
  }
  static i32 set1_quad_s16(const int16_t* p) { return i32(s16{p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3]}); }
  static i32 madd_s16(i32 sum, i32 a, i32 b) {
    for (int i = 0; i < LANES; ++i)
      sum[i] += int32_t(s16(a)[2 * i]) * s16(b)[2 * i] + int32_t(s16(a)[2 * i + 1]) * s16(b)[2 * i + 1];
    return sum;
  }
#endif
  static i32 load_s8(const void* p) { return i32(u32(load_u8(p)) << 24) >> 24; }
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
  static i32 factor_s16(i32 v) { return v & 0xFFFF; }  // the odd halves of VPMADDWD add nothing
  static i32 add_product(i32 sum, i32 a, i32 b) { return madd_s16(sum, a, b); }
  // v[index] lane by lane, index modulo LANES.
  static i32 permute(i32 v, i32 index) { return __builtin_shuffle(v, index); }
  // Lane j of rows[i] becomes lane i of rows[j].
  static void transpose(i32 (&rows)[LANES]) {
    const i32 low = __builtin_shuffle(rows[0], rows[1], i32{0, 4, 1, 5});
    const i32 high = __builtin_shuffle(rows[0], rows[1], i32{2, 6, 3, 7});
    const i32 next_low = __builtin_shuffle(rows[2], rows[3], i32{0, 4, 1, 5});
    const i32 next_high = __builtin_shuffle(rows[2], rows[3], i32{2, 6, 3, 7});
    rows[0] = __builtin_shuffle(low, next_low, i32{0, 1, 4, 5});
    rows[1] = __builtin_shuffle(low, next_low, i32{2, 3, 6, 7});
    rows[2] = __builtin_shuffle(high, next_high, i32{0, 1, 4, 5});
    rows[3] = __builtin_shuffle(high, next_high, i32{2, 3, 6, 7});
  }
  // The larger one, the second of equals, for pools; a lane stays ordered while no NaN was in it.
  static f32 max(f32 a, f32 b) { return a > b ? a : b; }
  // 2 * LANES halves of a and of b, side by side: pairs (a, b) of the first LANES, then of the others.
  static void interleave_halves(const void* a, const void* b, i32& first, i32& second) {
    s16 low, high;
    std::memcpy(&low, a, sizeof low);
    std::memcpy(&high, b, sizeof high);
    first = i32(__builtin_shuffle(low, high, s16{0, 8, 1, 9, 2, 10, 3, 11}));
    second = i32(__builtin_shuffle(low, high, s16{4, 12, 5, 13, 6, 14, 7, 15}));
  }
  // Without a NaN in it.
  static float largest(f32 v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  // a where the lane's bit is set, else b.
  static f32 select_bits(uint32_t bits, f32 a, f32 b) {
    return (u32{bits, bits, bits, bits} & u32{1, 2, 4, 8}) ? a : b;
  }
  static uint32_t bits_equal(f32 a, f32 b) {
    const i32 equal = a == b;
    return uint32_t((equal[0] & 1) | (equal[1] & 2) | (equal[2] & 4) | (equal[3] & 8));
  }
  using ordered = i32;
  static ordered all_ordered() { return ~i32{}; }
  static ordered and_ordered(ordered so_far, f32 a, f32 b) { return so_far & (a == a) & (b == b); }
  static f32 nan_unless(ordered lanes, f32 v) { return lanes ? v : set1(__builtin_nanf("")); }
  // Of bytes.
  template <bool is_signed>
  static i32 max_bytes(i32 a, i32 b) {
    typedef int8_t s8 __attribute__((vector_size(16)));
    typedef uint8_t u8 __attribute__((vector_size(16)));
    if (is_signed) return i32(s8(a) > s8(b) ? s8(a) : s8(b));
    return i32(u8(a) > u8(b) ? u8(a) : u8(b));
  }
  // The first n bytes, zeros after them.
  static i32 load_bytes_n(const void* p, int n) {
    i32 v{};
    std::memcpy(&v, p, size_t(n));
    return v;
  }
  // The first n bytes.
  static void store_bytes_n(void* p, i32 v, int n) { std::memcpy(p, &v, size_t(n)); }
  static i32 set1_quad(const void* p) {
    int32_t quad;
    std::memcpy(&quad, p, 4);
    return i32{quad, quad, quad, quad};
  }
  // sum plus both dots of quads; u4 numbers are 0 to 15, so that s16 hold all four products of a lane: 4 * 15 * 128.
  static i32 dot_u4_quads(i32 sum, i32 a_u4, i32 a_s8, i32 b_u4, i32 b_s8) {
    typedef uint16_t u16 __attribute__((vector_size(16)));
    const auto even = [](i32 bytes) { return s16(u16(bytes) << 8) >> 8; };
    const auto odd = [](i32 bytes) { return s16(bytes) >> 8; };
    const i32 pairs =
        i32(even(a_u4) * even(a_s8) + odd(a_u4) * odd(a_s8) + even(b_u4) * even(b_s8) + odd(b_u4) * odd(b_s8));
    return sum + (i32(u32(pairs) << 16) >> 16) + (pairs >> 16);
  }
  static constexpr bool HAS_DOT_QUAD = false;
  static void store_pair_sums(int32_t* p, i32 v) {
    p[0] = v[0] + v[1];
    p[1] = v[2] + v[3];
  }

  // Dot products of quads of bytes, x's with weights of s8; x is u8, or s8 where X_IS_SIGNED. Where the level has no
  // such instruction, quads are pairs of s16: bytes 0 and 2, bytes 1 and 3.
  static constexpr bool X_IS_SIGNED = false;
  struct bytes {
    s16 even, odd;
  };
  static bytes x_bytes(i32 quads) { return {s16(quads) & 0xFF, (s16(quads) >> 8) & 0xFF}; }
  static bytes weight_bytes(i32 quads) {
    typedef uint16_t u16 __attribute__((vector_size(16)));
    return {s16(u16(quads) << 8) >> 8, s16(quads) >> 8};
  }
  static i32 dot_bytes(i32 sum, bytes x, bytes weight) {
    return madd_s16(madd_s16(sum, i32(x.even), i32(weight.even)), i32(x.odd), i32(weight.odd));
  }
  static i32 xor_bits(i32 v, uint32_t bits) { return i32(u32(v) ^ bits); }
  static i32 mul_i32(i32 a, i32 b) { return i32(u32(a) * u32(b)); }

  struct pair {
    f32 even, odd;
  };
  static pair pair_of(u32 bits) { return {f32(bits << 16), f32(bits & 0xFFFF0000u)}; }
  static pair load_pair(const uint16_t* p) {
    u32 bits;
    std::memcpy(&bits, p, sizeof bits);
    return pair_of(bits);
  }
  static pair set1_pair(uint32_t bits) { return pair_of(u32{bits, bits, bits, bits}); }
  // Words of a pair of halves each.
  static pair pair_of_words(i32 words) { return pair_of(u32(words)); }
  static f32 dot_pair(f32 sum, pair a, pair b) { return madd(a.odd, b.odd, madd(a.even, b.even, sum)); }
};

}  // namespace
}  // namespace dsf
