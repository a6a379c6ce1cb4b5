// The float tile of AVX-512: rows of x as they are against a panel of u4 whose codes become numbers in registers.
// Every sum is the chain that TileF32 or TileBf16 makes on a decoded block, and goes to z as AddScaled does.
#pragma once
#ifdef __AVX512BW__
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/gemm/blocked.h"
#include "kernels/int4_matmul/tile_u4.h"

namespace dsf::int4_matmul {
namespace {

// The bf16 of an index: two's complement of 5 bits; or, where all zero points are 8, a code below whatever bit.
struct Numbers {
  alignas(64) uint16_t bf16x32[32];
  constexpr explicit Numbers(bool zeros) : bf16x32() {
    for (int i = 0; i < 32; ++i)
      bf16x32[i] = uint16_t(__builtin_bit_cast(uint32_t, float(zeros ? (i < 16 ? i : i - 32) : (i & 15) - 8)) >> 16);
  }
};

// Codes to pairs of bf16. VPERMW looks 32 numbers up by the low 5 bits of every 16: the layout (packed.h) puts the
// codes of k and k + 1 there, a shift by 8, 4 and 12 those of the next pairs.
template <bool zeros>
class PairDecoder {
 public:
  PairDecoder() : table_bf16x32_(_mm512_load_si512(NUMBERS.bf16x32)) {}
  // q - zero of k = 2 * pair and 2 * pair + 1 of a step, for 16 columns. zero_u8x64: four times each column's.
  template <int pair>
  [[gnu::always_inline]] __m512i pairs(const char* codes, const char* zero_u8x64) const {
    __m512i index = _mm512_loadu_si512(codes);
    if constexpr (zeros) {
      if constexpr (pair >= 2) index = _mm512_srli_epi32(index, 4);
      index = _mm512_and_si512(index, _mm512_set1_epi32(LOW_NIBBLES));
      index = _mm512_sub_epi8(index, _mm512_loadu_si512(zero_u8x64));
      if constexpr (pair % 2) index = _mm512_srli_epi32(index, 8);
    } else {
      constexpr int SHIFT = (pair >= 2 ? 4 : 0) + (pair % 2 ? 8 : 0);
      if constexpr (SHIFT) index = _mm512_srli_epi32(index, SHIFT);
    }
    return _mm512_permutexvar_epi16(index, table_bf16x32_);
  }

 private:
  static constexpr Numbers NUMBERS{zeros};
  __m512i table_bf16x32_;
};

// Sixteen zero points, four times each.
[[gnu::always_inline]] inline void spread_zeros(const char* zero, char* zero_u8x64) {
  const __m512i quads = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zero)));
  const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  _mm512_store_si512(zero_u8x64, _mm512_shuffle_epi8(quads, first));
}

// How x meets pairs of weights: all at once, or the two of each pair one after the other, as TileF32 and, without
// AVX512_BF16, TileBf16 do.
template <class V, Dtype dtype>
struct PairDot {
  using X = std::conditional_t<dtype == Dtype::f32, float, uint16_t>;
  static constexpr int PARTS = 2, MR = 4;  // pairs and what is split off take eight registers
  template <int part>
  [[gnu::always_inline]] static typename V::f32 weights(__m512i pairs) {
    return _mm512_castsi512_ps(part == 0 ? _mm512_slli_epi32(pairs, 16)
                                         : _mm512_and_si512(pairs, _mm512_set1_epi32(int(0xFFFF0000))));
  }
  template <int part>
  [[gnu::always_inline]] static typename V::f32 x(const X* pair) {
    if constexpr (dtype == Dtype::f32) {
      return V::set1(pair[part]);
    } else {
      if constexpr (part == 1) asm volatile("" : "+r"(pair));  // read again: four pairs would push sums out
      int32_t bits;
      std::memcpy(&bits, pair, 4);
      return weights<part>(_mm512_set1_epi32(bits));
    }
  }
  [[gnu::always_inline]] static typename V::f32 add(typename V::f32 sum, typename V::f32 x, typename V::f32 weights) {
    return V::madd(x, weights, sum);
  }
};
#ifdef __AVX512BF16__
template <class V>
struct PairDot<V, Dtype::bf16> {
  using X = uint16_t;
  static constexpr int PARTS = 1, MR = V::PAIR_TILE_M;
  template <int>
  [[gnu::always_inline]] static __m512bh weights(__m512i pairs) {
    return __m512bh(pairs);
  }
  template <int>
  [[gnu::always_inline]] static __m512bh x(const X* pair) {
    uint32_t bits;
    std::memcpy(&bits, pair, 4);
    return V::set1_pair(bits);
  }
  [[gnu::always_inline]] static typename V::f32 add(typename V::f32 sum, __m512bh x, __m512bh weights) {
    return V::dot_pair(sum, x, weights);
  }
};
#endif

// Rows of x by two addresses and a stride: six of them would leave no register for anything else.
template <class X, int rows>
struct RowsOfX {
  static constexpr int HALF = 3;
  const X *first, *second;
  int64_t stride;
  RowsOfX() = default;
  [[gnu::always_inline]] RowsOfX(const X* x, int64_t stride)
      : first(x), second(rows > HALF ? x + HALF * stride : x), stride(stride) {
    asm("" : "+r"(second));
  }
  [[gnu::always_inline]] const X* row(int r) const {
    return r < HALF ? first + r * stride : second + (r - HALF) * stride;
  }
  [[gnu::always_inline]] void advance(int64_t k) { first += k, second += k; }
};

// The sums of `blocks` whole blocks side by side: a dot takes about six cycles and two may start in each, so that few
// rows need more sums in flight than a block has.
template <class V, Dtype dtype, bool zeros, int rows, int vectors, int blocks>
struct FloatTile {
  using Dot = PairDot<V, dtype>;
  using X = typename Dot::X;
  using Rows = RowsOfX<X, rows>;
  static constexpr bool LOOKS_AHEAD = rows <= PREFETCH_ROWS;
  static constexpr bool MANY_SUMS = rows >= 4;

  typename V::f32 acc[blocks][rows][vectors];
  PairDecoder<zeros> decoder;

  [[gnu::always_inline]] void start() {
    DSF_UNROLL
    for (int b = 0; b < blocks; ++b) {
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[b][r][v] = V::zero();
      }
    }
  }
  template <int pair>
  [[gnu::always_inline]] void dots(const char* codes, const char* zero_u8x64, const Rows& x, int b) {
    // What two pairs share is read and computed again: kept, it would push sums out of the registers.
    if constexpr (zeros && MANY_SUMS)
      asm volatile("" : "+r"(codes), "+r"(zero_u8x64));
    else if constexpr (zeros && rows > 1)
      asm volatile("" : "+r"(zero_u8x64));
    __m512i pairs[vectors];
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) pairs[v] = decoder.template pairs<pair>(codes + v * 64, zero_u8x64 + v * 64);
    const auto add = [&](auto part) __attribute__((always_inline)) {
      decltype(Dot::template weights<part()>(pairs[0])) w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = Dot::template weights<part()>(pairs[v]);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const auto a = Dot::template x<part()>(x.row(r) + 2 * pair);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[b][r][v] = Dot::add(acc[b][r][v], a, w[v]);
      }
    };
    add(std::integral_constant<int, 0>{});
    if constexpr (Dot::PARTS == 2) add(std::integral_constant<int, 1>{});
  }
  // acc[b] += x[:, k : k + STEP_K] @ (q - zero)[:, k : k + STEP_K].T
  [[gnu::always_inline]] void step(const char* codes, const char* zero_u8x64, const Rows& x, int b, int64_t ahead) {
    if constexpr (LOOKS_AHEAD) prefetch<STEP_BYTES_U4>(codes, ahead);
    dots<0>(codes, zero_u8x64, x, b);
    dots<1>(codes, zero_u8x64, x, b);
    dots<2>(codes, zero_u8x64, x, b);
    dots<3>(codes, zero_u8x64, x, b);
  }
  // z += acc[b] * scale
  [[gnu::always_inline]] void finish(const char* scale, int b, float* z) {
    keep_in_registers<V>(acc[b]);
    AddScaled<V>{z, reinterpret_cast<const float*>(scale), nullptr, 0}.template take<rows, vectors>(acc[b]);
  }
};

// z[r][c] += the sums of `count` blocks of block_K values from x's first on, `blocks` at a time. z: rows of PANEL_N.
// zero_u8x64: room for the zero points of `blocks` blocks.
template <class V, Dtype dtype, bool zeros, int rows, int vectors, int blocks>
[[gnu::noinline]] void sum_float_blocks(const char* block, int64_t block_bytes, int64_t count, int64_t block_K,
                                        const typename PairDot<V, dtype>::X* values, int64_t x_stride, char* zero_u8x64,
                                        float* z) {
  using Tile = FloatTile<V, dtype, zeros, rows, vectors, blocks>;
  constexpr int64_t ZERO_BYTES = PANEL_N * 4;
  Tile tile;
  typename Tile::Rows x[blocks];
  DSF_UNROLL
  for (int b = 0; b < blocks; ++b) x[b] = {values + b * block_K, x_stride};
  const int64_t whole = block_K / STEP_K * STEP_K;
  const int64_t ahead =
      blocks * block_bytes;  // the same place of the next blocks: 82 GB/s at 1024, 96 so (L3, Zen 5, 2026-11)
  for (; count > 0; count -= blocks, block += blocks * block_bytes) {
    const char* codes = block + PackedPanels::SCALE_BYTES + (zeros ? PANEL_N : 0);
    if constexpr (Tile::LOOKS_AHEAD) {
      DSF_UNROLL
      for (int b = 0; b < blocks; ++b) prefetch<PackedPanels::SCALE_BYTES>(block + b * block_bytes, ahead);
    }
    if constexpr (zeros) {
      DSF_UNROLL
      for (int b = 0; b < blocks; ++b) {
        DSF_UNROLL
        for (int n = 0; n < PANEL_N; n += V::LANES)
          spread_zeros(block + b * block_bytes + PackedPanels::SCALE_BYTES + n, zero_u8x64 + b * ZERO_BYTES + n * 4);
      }
    }
    tile.start();
    for (const char* end = codes + whole / STEP_K * STEP_BYTES_U4; codes < end; codes += STEP_BYTES_U4) {
      if constexpr (blocks > 1) asm("" : "+r"(codes));  // one address, not one for everything that lies beside it
      DSF_UNROLL
      for (int b = 0; b < blocks; ++b) {
        tile.step(codes + b * block_bytes, zero_u8x64 + b * ZERO_BYTES, x[b], b, ahead);
        x[b].advance(STEP_K);
        if constexpr (blocks > 1) asm("" : "+r"(x[b].first));
      }
    }
    if constexpr (blocks == 1) {
      if (whole < block_K) {  // the last values of K, zeros behind them
        typename Tile::X last[rows][STEP_K] = {};
        for (int r = 0; r < rows; ++r)
          std::memcpy(last[r], x[0].row(r), size_t(block_K - whole) * sizeof(typename Tile::X));
        tile.step(codes, zero_u8x64, typename Tile::Rows{last[0], STEP_K}, 0, ahead);
      }
    }
    DSF_UNROLL
    for (int b = 0; b < blocks; ++b) {
      x[b].advance((blocks - 1) * block_K);
      tile.finish(block + b * block_bytes, b, z);
    }
  }
}

// Rows [m, m + rows) of one panel.
template <class V, Dtype dtype, bool zeros, int rows>
inline void run_float_rows(const LinearArgs& args, const PackedPanels& packed, int64_t m, int64_t panel) {
  constexpr int SIDE_BY_SIDE = rows * PairDot<V, dtype>::PARTS + zeros <= 2 ? 2 : 1;
  using X = typename PairDot<V, dtype>::X;
  alignas(64) float z[rows * PANEL_N] = {};
  alignas(64) char zero_u8x64[zeros ? SIDE_BY_SIDE * PANEL_N * 4 : 1];
  const X* x = static_cast<const X*>(args.x) + m * args.x_stride;
  const char* block = packed.panel(panel);
  const int64_t block_K = packed.block_k, whole = args.K / block_K, together = whole - whole % SIDE_BY_SIDE;
  const auto sum = [&](auto side_by_side, int64_t begin, int64_t count, int64_t of) {
    sum_float_blocks<V, dtype, zeros, rows, PANEL_N / V::LANES, side_by_side()>(
        block + begin * packed.block_bytes, packed.block_bytes, count, of, x + begin * block_K, args.x_stride,
        zero_u8x64, z);
  };
  sum(std::integral_constant<int, SIDE_BY_SIDE>{}, 0, together, block_K);
  if (whole > together) sum(std::integral_constant<int, 1>{}, together, whole - together, block_K);
  if (args.K > whole * block_K) sum(std::integral_constant<int, 1>{}, whole, 1, args.K - whole * block_K);
  finish_tile<V, dtype, Sums::f32>(args, z, nullptr, m, rows, panel);
}

template <class V, Dtype dtype, bool zeros, int rows>
inline void run_float_tile(int row_count, const LinearArgs& args, const PackedPanels& packed, int64_t m,
                           int64_t panel) {
  if constexpr (rows > 1)
    if (row_count < rows) return run_float_tile<V, dtype, zeros, rows - 1>(row_count, args, packed, m, panel);
  run_float_rows<V, dtype, zeros, rows>(args, packed, m, panel);
}

// Rows [m_begin, m_end) of one panel.
template <class V, Dtype dtype, bool zeros>
inline void walk_float_tiles(const LinearArgs& args, const PackedPanels& packed, int64_t m_begin, int64_t m_end,
                             int64_t panel) {
  constexpr int MR = PairDot<V, dtype>::MR;
  for (int64_t m = m_begin; m < m_end; m += MR)
    run_float_tile<V, dtype, zeros, MR>(int(m_end - m < MR ? m_end - m : MR), args, packed, m, panel);
}

}  // namespace
}  // namespace dsf::int4_matmul
#endif
