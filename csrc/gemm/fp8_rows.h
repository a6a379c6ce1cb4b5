// Rows of x against fp8 with AVX-512 VBMI: the first tile of rows decodes the weight in registers as it streams by;
// where there are more rows it leaves the decoded block in L1 for their tiles. Every sum is the chain of dots or FMAs
// that TileBf16 or TileF32 makes, so that a row has the same bits whatever the number of rows is.
#pragma once
#if defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#define DSF_FP8_ROWS
#include "csrc/gemm/blocked.h"
#include "csrc/gemm/fp8.h"

namespace dsf {
namespace {

// Bytes that the decoding loop asks for ahead of its loads: of 2, 4, 8 and 16 KiB the best for one row, 97 GB/s of bf16
// (Zen 5, 2026-11). It is a block, too, that way comes while the tiles of other rows run.
inline constexpr int64_t FP8_STREAM_AHEAD = 8 << 10;

// A quad of k of a vector of columns as x's type is multiplied: in bf16 two pairs, in f32 four numbers.
template <class V, class X>
struct Fp8Quad;
template <class V>
struct Fp8Quad<V, uint16_t> {
  using Tile = TileBf16<V>;
  static constexpr int PARTS = 2;
  static constexpr int TILE_ROWS = 6;           // that fit into registers beside the decoder
  static constexpr int FIRST_ROWS = 5;          // the same beside the decoded block's stores
  static constexpr int DECODE_AGAIN_ROWS = 14;  // up to here each tile decodes for itself, which is faster than storing
  __m512i part[PARTS];

  [[gnu::always_inline]] Fp8Quad(__m512i first, __m512i second) : part{first, second} {}
  // sum + the i-th part's share of x[k .. k + 3] * weight
  [[gnu::always_inline]] typename V::f32 add(typename V::f32 sum, const uint16_t* x, int i) const {
    uint32_t pair;
    __builtin_memcpy(&pair, x + 2 * i, 4);
    return V::dot_pair(sum, V::set1_pair(pair), __m512bh(part[i]));
  }
  template <Dtype weight>
  static void decode(const char* codes, int64_t quads, char* weights) {
    decode_fp8_bf16<V, weight>(codes, quads, weights);
  }
};
template <class V>
struct Fp8Quad<V, float> {
  using Tile = TileF32<V>;
  static constexpr int PARTS = 4;
  static constexpr int TILE_ROWS = 5, FIRST_ROWS = 4, DECODE_AGAIN_ROWS = 12;
  __m512i part[PARTS];

  [[gnu::always_inline]] Fp8Quad(__m512i first, __m512i second)
      : part{V::template shift_left<16>(first), V::and_bits(first, int32_t(0xFFFF0000)),
             V::template shift_left<16>(second), V::and_bits(second, int32_t(0xFFFF0000))} {}
  [[gnu::always_inline]] typename V::f32 add(typename V::f32 sum, const float* x, int i) const {
    return V::madd(V::set1(x[i]), V::f32_of_bits(part[i]), sum);
  }
  template <Dtype weight>
  static void decode(const char* codes, int64_t quads, char* weights) {
    decode_fp8_f32<V, weight>(codes, quads, weights);
  }
};

// z += rows m .. m + rows of x against `blocks` whole blocks from k on, side by side for more sums in flight where rows
// are few: a dot takes about six cycles, an FMA four, and two may start in each. keep: the decoded block goes to
// `kept`.
template <class V, class X, Dtype weight, bool keep, int rows, int vectors, int blocks>
[[gnu::noinline]] void decode_and_add(const PackedPanels& packed, const char* block, const BlockedX<X>& x, int64_t m,
                                      int64_t k, float* z, char* kept) {
  using Quad = Fp8Quad<V, X>;
  const Fp8Decoder<V, weight> decoder;
  typename V::f32 acc[blocks][rows][vectors];
  DSF_UNROLL
  for (int b = 0; b < blocks; ++b) {
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[b][r][v] = V::zero();
    }
  }
  const char* codes = block + PackedPanels::SCALE_BYTES;
  const X* values = x.values + m * x.stride + k;
  for (int64_t q = 0; q < packed.block_k; q += 4, codes += PANEL_N * 4) {
    DSF_UNROLL
    for (int b = 0; b < blocks; ++b) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const char* at = codes + b * packed.block_bytes + v * CACHE_LINE;
        __m512i first, second;
        __builtin_prefetch(at + FP8_STREAM_AHEAD);
        decoder.pairs(at, &first, &second);
        const Quad quad(first, second);
        if constexpr (keep) {
          DSF_UNROLL
          for (int i = 0; i < Quad::PARTS; ++i, kept += CACHE_LINE * vectors)
            _mm512_storeu_si512(kept + v * CACHE_LINE, quad.part[i]);
          if (v + 1 < vectors) kept -= CACHE_LINE * vectors * Quad::PARTS;
        }
        // Read for each vector anew: kept in registers, the values of x would push sums out of them.
        int64_t from = q + b * packed.block_k;
        asm("" : "+r"(from));
        DSF_UNROLL
        for (int r = 0; r < rows; ++r) {
          DSF_UNROLL
          for (int i = 0; i < Quad::PARTS; ++i) acc[b][r][v] = quad.add(acc[b][r][v], values + r * x.stride + from, i);
        }
      }
    }
  }
  DSF_UNROLL
  for (int b = 0; b < blocks; ++b) {
    keep_in_registers<V>(acc[b]);
    const auto* scale = reinterpret_cast<const float*>(block + b * packed.block_bytes);
    AddScaled<V>{z, scale, x.scale_of(m, k + b * packed.block_k), x.scale_stride}.template take<rows, vectors>(acc[b]);
  }
}

// z += rows m .. m + rows of x against a decoded block.
template <class V, class X>
inline void add_rows(const char* block, const char* weights, const BlockedX<X>& x, int64_t m, int rows, int64_t k,
                     int64_t block_K, float* z) {
  using Tile = typename Fp8Quad<V, X>::Tile;
  const AddScaled<V> end{z, reinterpret_cast<const float*>(block), x.scale_of(m, k), x.scale_stride};
  run_whole_rows<Tile, Tile::MR>(rows, block_K, x.values + m * x.stride + k, x.stride, weights, nullptr, end);
}

// Rows that one tile holds.
template <class V, Dtype dtype, Dtype weight, class X, int rows>
void few_rows(const LinearArgs& args, const PackedPanels& packed, const BlockedX<X>& x, int64_t m, int64_t panel) {
  constexpr int VECTORS = PANEL_N / V::LANES, SIDE_BY_SIDE = rows <= 2 ? 2 : 1;
  alignas(64) float z[rows * PANEL_N] = {};
  const char* block = packed.panel(panel);
  int64_t k = 0;
  for (; k + SIDE_BY_SIDE * packed.block_k <= args.K; k += SIDE_BY_SIDE * packed.block_k) {
    decode_and_add<V, X, weight, false, rows, VECTORS, SIDE_BY_SIDE>(packed, block, x, m, k, z, nullptr);
    block += SIDE_BY_SIDE * packed.block_bytes;
  }
  for (; k < args.K; k += packed.block_k, block += packed.block_bytes) {
    const int64_t block_K = args.K - k < packed.block_k ? args.K - k : packed.block_k;
    if (block_K == packed.block_k) {
      decode_and_add<V, X, weight, false, rows, VECTORS, 1>(packed, block, x, m, k, z, nullptr);
      continue;
    }
    alignas(64) char weights[MAX_BLOCK_K * PANEL_N * sizeof(X)];
    Fp8Quad<V, X>::template decode<weight>(block + PackedPanels::SCALE_BYTES, (block_K + 3) / 4, weights);
    add_rows<V>(block, weights, x, m, rows, k, block_K, z);
  }
  finish_tile<V, dtype, Sums::f32>(args, z, nullptr, m, rows, panel);
}

// One tile's rows and one whole block, with the number of rows as a constant.
template <class V, Dtype weight, class X, int rows = Fp8Quad<V, X>::TILE_ROWS>
inline void decode_and_add_rows(const PackedPanels& packed, const char* block, const BlockedX<X>& x, int64_t m,
                                int row_count, int64_t k, float* z) {
  if constexpr (rows > 1)
    if (row_count < rows) return decode_and_add_rows<V, weight, X, rows - 1>(packed, block, x, m, row_count, k, z);
  decode_and_add<V, X, weight, false, rows, PANEL_N / V::LANES, 1>(packed, block, x, m, k, z, nullptr);
}

// More rows than that, CHUNK_ROWS at most.
template <class V, Dtype dtype, Dtype weight, class X>
void many_rows(const LinearArgs& args, const PackedPanels& packed, const BlockedX<X>& x, int64_t m_begin, int64_t m_end,
               int64_t panel) {
  using Quad = Fp8Quad<V, X>;
  using Tile = typename Quad::Tile;
  alignas(64) char weights[MAX_BLOCK_K * PANEL_N * sizeof(X)];
  alignas(64) float z[CHUNK_ROWS * PANEL_N];
  for (int64_t i = 0; i < (m_end - m_begin) * PANEL_N; i += V::LANES) V::store(z + i, V::zero());
  const bool decode_again = m_end - m_begin <= Quad::DECODE_AGAIN_ROWS;
  const char* block = packed.panel(panel);
  for (int64_t k = 0; k < args.K; k += packed.block_k, block += packed.block_bytes) {
    const int64_t block_K = args.K - k < packed.block_k ? args.K - k : packed.block_k;
    const bool whole = block_K == packed.block_k;
    int64_t m = m_begin;
    const auto tiles = [&](int most, const auto& run) __attribute__((always_inline)) {
      for (int64_t left = (m_end - m + most - 1) / most; left > 0; --left) {
        const int rows = int((m_end - m + left - 1) / left);
        run(rows, z + (m - m_begin) * PANEL_N);
        m += rows;
      }
    };
    if (whole && decode_again) {
      tiles(Quad::TILE_ROWS,
            [&](int rows, float* at) { decode_and_add_rows<V, weight>(packed, block, x, m, rows, k, at); });
      continue;
    }
    if (whole) {
      decode_and_add<V, X, weight, true, Quad::FIRST_ROWS, PANEL_N / V::LANES, 1>(packed, block, x, m, k, z, weights);
      m += Quad::FIRST_ROWS;
    } else {
      Quad::template decode<weight>(block + PackedPanels::SCALE_BYTES, (block_K + 3) / 4, weights);
    }
    tiles(Tile::MR, [&](int rows, float* at) { add_rows<V>(block, weights, x, m, rows, k, block_K, at); });
  }
  finish_tile<V, dtype, Sums::f32>(args, z, nullptr, m_begin, int(m_end - m_begin), panel);
}

template <class V, Dtype dtype, Dtype weight, class X, int rows = Fp8Quad<V, X>::TILE_ROWS>
inline void walk_chunk(const LinearArgs& args, const PackedPanels& packed, const BlockedX<X>& x, int64_t m_begin,
                       int64_t m_end, int64_t panel) {
  if (m_end - m_begin > rows) return many_rows<V, dtype, weight>(args, packed, x, m_begin, m_end, panel);
  if constexpr (rows > 1)
    if (m_end - m_begin < rows)
      return walk_chunk<V, dtype, weight, X, rows - 1>(args, packed, x, m_begin, m_end, panel);
  few_rows<V, dtype, weight, X, rows>(args, packed, x, m_begin, panel);
}

// Rows [m_begin, m_end) of one panel.
template <class V, Dtype dtype, Dtype weight, class X>
inline void walk_fp8(const LinearArgs& args, const PackedPanels& packed, const BlockedX<X>& x, int64_t m_begin,
                     int64_t m_end, int64_t panel) {
  for (int64_t m = m_begin; m < m_end; m += CHUNK_ROWS)
    walk_chunk<V, dtype, weight>(args, packed, x, m, m_end - m < CHUNK_ROWS ? m_end : m + CHUNK_ROWS, panel);
}

}  // namespace
}  // namespace dsf
#endif
