// The register tile of a convolution: the pixels of a tile, in the rows of the image or across them, against a panel of
// output channels. A pixel's values under a tap are one run of channels in memory; where the run begins stands in a
// table of pointers, made once for all panels of a tile of pixels. A tap outside x points to Block::outside. So there
// is no copy of x (no im2col), and stride, dilation and padding cost nothing in the loop over channels.
//
// Tiles are high and narrow (14 pixels x 32 channels on AVX-512): a panel is read at 9 bytes a cycle, which L3 gives
// (26 bytes a cycle on Zen 5), so that a panel need not fit into L2; and 7, 14, 28 and 56 pixels leave no remainder.
#pragma once
#include "csrc/gemm/tile.h"
#include "kernels/fused_conv/cpu_kernels.h"
#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/packed.h"

namespace dsf::fused_conv {
namespace {

// Pixels and vectors of channels of a tile.
template <class V, Dtype dtype>
struct TileSize {
  static constexpr bool WIDE = V::LANES == 16;
  static constexpr bool PAIRS_OF_F32 = dtype == Dtype::bf16 && V::PAIR_TILE_M < V::TILE_M;  // no dot product of pairs
  // 28 sums, 2 weights, 1 x: 31 of 32 registers; with pairs as two f32: 24 sums, 4 weights, 2 x.
  static constexpr int MR = WIDE ? (PAIRS_OF_F32 ? 12 : 14) : dtype == Dtype::bf16 ? V::PAIR_TILE_M : V::TILE_M;
  static constexpr int NV = WIDE ? 2 : dtype == Dtype::bf16 ? V::PAIR_TILE_NV : V::TILE_NV;
  static_assert(PANEL_F % (NV * V::LANES) == 0);
};

// What a tile reads of x: runs[i * MR + r] is where the i-th run of pixel r begins.
struct TileRuns {
  const char* const* runs;
  int64_t count;  // runs a pixel
  int64_t first;  // value of each run that is the first to be read: of a group
  int64_t length;  // values
};

template <class V, int rows, int vectors>
[[gnu::always_inline]] inline void zero_sums(typename V::f32 (&acc)[rows][vectors]) {
  DSF_UNROLL
  for (int r = 0; r < rows; ++r) {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero();
  }
}

// sums[r][f] = sum over runs and their values of x[r] * panel[f]
template <class V, int MR>
struct ConvTileF32 {
  static constexpr int64_t C_GROUP = 1;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(const TileRuns& x, const char* panel, const End& end) {
    typename V::f32 acc[rows][vectors];
    zero_sums<V>(acc);
    const char* const* runs = x.runs;
    for (int64_t i = 0; i < x.count; ++i, runs += MR)
      for (int64_t c = x.first; c < x.first + x.length; ++c, panel += PANEL_F * 4) {
        typename V::f32 w[vectors];
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) w[v] = V::load(reinterpret_cast<const float*>(panel) + v * V::LANES);
        DSF_UNROLL
        for (int r = 0; r < rows; ++r) {
          const auto a = V::set1(reinterpret_cast<const float*>(runs[r])[c]);
          DSF_UNROLL
          for (int v = 0; v < vectors; ++v) acc[r][v] = V::madd(a, w[v], acc[r][v]);
        }
      }
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

// The same in bf16, two channels at a time; the last one of an odd run alone, so that nothing behind it is read.
template <class V, int MR>
struct ConvTileBf16 {
  static constexpr int64_t C_GROUP = 2;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(const TileRuns& x, const char* panel, const End& end) {
    typename V::f32 acc[rows][vectors];
    zero_sums<V>(acc);
    const char* const* runs = x.runs;
    const auto step = [&](const auto& x_pair) __attribute__((always_inline)) {
      typename V::pair w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v)
        w[v] = V::load_pair(reinterpret_cast<const uint16_t*>(panel) + v * V::LANES * 2);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const auto a = V::set1_pair(x_pair(r));
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_pair(acc[r][v], a, w[v]);
      }
      panel += PANEL_F * 4;
    };
    for (int64_t i = 0; i < x.count; ++i, runs += MR) {
      int64_t c = x.first;
      for (; c + 2 <= x.first + x.length; c += 2)
        step([&](int r) __attribute__((always_inline)) {
          uint32_t bits;
          std::memcpy(&bits, runs[r] + c * 2, 4);
          return bits;
        });
      if (c < x.first + x.length)
        step([&](int r) __attribute__((always_inline)) {
          uint16_t bits;
          std::memcpy(&bits, runs[r] + c * 2, 2);
          return uint32_t(bits);
        });
    }
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

template <class V, Dtype dtype>
struct TileOf;
template <class V>
struct TileOf<V, Dtype::f32> : ConvTileF32<V, TileSize<V, Dtype::f32>::MR> {};
template <class V>
struct TileOf<V, Dtype::bf16> : ConvTileBf16<V, TileSize<V, Dtype::bf16>::MR> {};

// Runs the tile with the numbers of rows and vectors as constants.
template <class Tile, int rows, int vectors, class End>
inline void run_conv_tile(int row_count, int vector_count, const TileRuns& x, const char* panel, const End& end) {
  if constexpr (rows > 1)
    if (row_count < rows) return run_conv_tile<Tile, rows - 1, vectors>(row_count, vector_count, x, panel, end);
  if constexpr (vectors > 1)
    if (vector_count < vectors) return run_conv_tile<Tile, rows, vectors - 1>(row_count, vector_count, x, panel, end);
  Tile::template run<rows, vectors>(x, panel, end);
}

// The pixels of a tile, and where each one ends.
template <int MR>
struct TilePixels {
  int rows;
  int64_t p[MR], q[MR];
  Ends ends[MR];
};

// The table of one tile: runs[(r * S + s) * MR + i] of pixel i. A stem's row of taps is one run, which begins in the
// padding that its copy of x has: S is 1 there.
template <int MR, int64_t value_bytes>
inline void fill_runs(const ConvArgs& args, const Block& block, const TilePixels<MR>& pixels, bool stem,
                      const char** runs) {
  const int64_t S = stem ? 1 : args.S;
  const int64_t step_w = block.x.stride_w * value_bytes, W = stem ? args.Q : args.W;
  int64_t w0[MR], address[MR];
  for (int64_t r = 0; r < args.R; ++r) {
    for (int i = 0; i < MR; ++i) {
      const int64_t h = pixels.p[i] * args.stride.h - args.padding.top + r * args.dilation.h;
      const bool inside = uint64_t(h) < uint64_t(args.H);
      const int64_t w = stem ? pixels.q[i] : pixels.q[i] * args.stride.w - args.padding.left;
      w0[i] = inside ? w : INT64_MIN / 2;
      address[i] = reinterpret_cast<int64_t>(block.x.data) +
                   ((inside ? h - block.x.h_begin : 0) * block.x.stride_h + w * block.x.stride_w) * value_bytes;
    }
    for (int64_t s = 0; s < S; ++s, runs += MR)
      for (int i = 0; i < MR; ++i) {
        const bool inside = uint64_t(w0[i] + s * args.dilation.w) < uint64_t(W);
        const int64_t at = address[i] + s * args.dilation.w * step_w;
        runs[i] = reinterpret_cast<const char*>(inside ? at : reinterpret_cast<int64_t>(block.outside));
      }
  }
}

template <class V, Dtype dtype>
struct TileEnd {
  const Finish<V, dtype>& finish;
  const Ends* ends;
  int64_t f, channels;

  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename V::f32 (&acc)[rows][vectors]) const {
    finish.tile(acc, f, channels, [&](int r) __attribute__((always_inline)) { return ends[r]; });
  }
};

template <class V, Dtype dtype>
void tiles(const ConvArgs& args, const Block& block) {
  using Size = TileSize<V, dtype>;
  using Tile = TileOf<V, dtype>;
  constexpr int MR = Size::MR, NV = Size::NV;
  constexpr int64_t value_bytes = dtype == Dtype::f32 ? 4 : dtype == Dtype::bf16 ? 2 : 1;
  const auto* header = static_cast<const PackedHeader*>(args.packed);
  const bool stem = Path(header->path) == Path::stem;
  const int64_t group_F = args.F / args.groups, group_C = args.C / args.groups;
  const int64_t run_length = stem ? args.S * args.C : group_C, run_count = stem ? args.R : args.R * args.S;
  const int64_t panel_bytes = run_count * ((run_length + Tile::C_GROUP - 1) / Tile::C_GROUP) * PANEL_F * 4;
  const int64_t group_panels = (group_F + PANEL_F - 1) / PANEL_F;
  const char* panels = static_cast<const char*>(args.packed) + sizeof(PackedHeader);
  const Finish<V, dtype> finish(args, block);

  const int64_t count = (block.p.end - block.p.begin) * args.Q;
  int64_t tiles_left = (count + MR - 1) / MR;
  TilePixels<MR> pixels;
  int64_t p = block.p.begin, q = 0;
  for (int64_t i = 0; i < count; i += pixels.rows) {
    pixels.rows = int((count - i + tiles_left - 1) / tiles_left);
    --tiles_left;
    for (int j = 0; j < MR; ++j) {  // all MR: the table has no end of its own
      pixels.p[j] = p;
      pixels.q[j] = q;
      pixels.ends[j] = finish.ends(p, q);
      if (j + 1 < pixels.rows && ++q == args.Q) ++p, q = 0;
    }
    if (++q == args.Q) ++p, q = 0;
    fill_runs<MR, value_bytes>(args, block, pixels, stem, block.runs);
    for (int64_t f = block.f.begin; f < block.f.end;) {
      const int64_t group = f / group_F, f_of_group = f - group * group_F;
      int64_t columns = group_F - f_of_group < PANEL_F ? group_F - f_of_group : PANEL_F;
      if (columns > block.f.end - f) columns = block.f.end - f;
      const char* panel = panels + (group * group_panels + f_of_group / PANEL_F) * panel_bytes;
      const TileRuns runs{block.runs, run_count, group * group_C, run_length};
      for (int64_t column = 0; column < columns; column += NV * V::LANES) {
        const int vectors = int((columns - column + V::LANES - 1) / V::LANES);
        const TileEnd<V, dtype> end{finish, pixels.ends, f + column, columns - column};
        run_conv_tile<Tile, MR, NV>(pixels.rows, vectors < NV ? vectors : NV, runs, panel + column * 4, end);
      }
      f += columns;
    }
  }
}

}  // namespace
}  // namespace dsf::fused_conv
