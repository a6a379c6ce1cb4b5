// The register tile of a convolution: the pixels of a tile, in the rows of the image or across them, against a panel of
// output channels. A pixel's values under a tap are one run of channels in memory; where the run begins stands in a
// table of pointers, made once for all panels of a tile of pixels. A tap outside x points to Block::outside. So there
// is no copy of x (no im2col), and stride, dilation and padding cost nothing in the loop over channels.
//
// A tile of pixels takes about 45 cycles for its table, a panel of it 60 to 80 beside its FMAs, 28 of them for the
// stores of computed vectors (1x1, f32 and bf16, Zen 5, November 2026).
//
// Tiles are high and narrow (14 pixels x 32 channels on AVX-512): a panel is read at 9 bytes a cycle, which L3 gives
// (26 bytes a cycle on Zen 5), so that a panel need not fit into L2; and 7, 14, 28 and 56 pixels leave no remainder.
#pragma once
#include "csrc/gemm/tile.h"
#include "kernels/fused_conv/cpu_kernels.h"
#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/packed.h"
#include "kernels/fused_conv/runs.h"
#include "kernels/fused_conv/tile_int8.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

// Pixels and vectors of channels of a tile.
template <class V, Dtype dtype>
struct TileSize {
  static constexpr bool WIDE = V::LANES == 16, IS_INT8 = is_8_bits(dtype);
  // No dot product of pairs or quads: they are two registers each, of x and of the weights.
  static constexpr bool HALVED = IS_INT8 ? !V::HAS_DOT_QUAD : dtype == Dtype::bf16 && V::PAIR_TILE_M < V::TILE_M;
  static constexpr bool SIXTEEN = IS_INT8 && V::LANES == 8;  // registers: 6 sums, 4 weights, 2 x, a mask, a sign bit
  // 28 sums, 2 weights, 1 x: 31 of 32 registers; halved 24 sums, 4 weights, 2 x; of
  // bytes 20, beside what their pairs are made with.
  static constexpr int MR = WIDE      ? (HALVED ? (IS_INT8 ? 10 : 12) : 14)
                            : !HALVED ? V::TILE_M
                            : SIXTEEN ? 3
                                      : V::PAIR_TILE_M;
  static constexpr int NV = WIDE ? 2 : HALVED ? V::PAIR_TILE_NV : V::TILE_NV;
  static_assert(PANEL_F % (NV * V::LANES) == 0 && MR <= MAX_TILE_PIXELS);
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
    const char* ahead = x.ahead;
    for (int64_t i = 0; i < x.count; ++i, runs += places_of(MR))
      for (int64_t c = x.first; c < x.first + x.length; ++c, panel += PANEL_F * 4) {
        read_weights_ahead(&ahead, x.ahead_step);
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
    const char* ahead = x.ahead;
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
      read_weights_ahead(&ahead, x.ahead_step);
    };
    for (int64_t i = 0; i < x.count; ++i, runs += places_of(MR)) {
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
template <class V>
struct TileOf<V, Dtype::u8> : ConvTileInt8<V, Dtype::u8, TileSize<V, Dtype::u8>::MR> {};
template <class V>
struct TileOf<V, Dtype::i8> : ConvTileInt8<V, Dtype::i8, TileSize<V, Dtype::i8>::MR> {};

// Runs the tile with the numbers of rows and vectors as constants.
template <class Tile, int rows, int vectors, class End>
inline void run_conv_tile(int row_count, int vector_count, const TileRuns& x, const char* panel, const End& end) {
  if constexpr (rows > 1)
    if (row_count < rows) return run_conv_tile<Tile, rows - 1, vectors>(row_count, vector_count, x, panel, end);
  if constexpr (vectors > 1)
    if (vector_count < vectors) return run_conv_tile<Tile, rows, vectors - 1>(row_count, vector_count, x, panel, end);
  Tile::template run<rows, vectors>(x, panel, end);
}

// Sums of floats start with zeros.
struct NoStart {
  NoStart(const ConvArgs&, const void*) {}
  static constexpr bool adds_zero_outside() { return true; }
};

// What the sums of a tile start with, of bytes, and where they go.
template <class V, Dtype dtype>
struct TileEnd {
  using AnyFinish = FinishOf<V, dtype>;
  using Starts = std::conditional_t<is_8_bits(dtype), StartInt8<V, dtype>, NoStart>;
  const AnyFinish& finish;
  const Starts& starts;
  const TilePixels<TileSize<V, dtype>::MR>& pixels;
  int64_t f, channels;

  typename V::i32 start(int v) const {
    const int64_t left = channels - v * V::LANES;
    return starts.of(f + v * V::LANES, left < V::LANES ? int(left) : V::LANES);
  }
  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename AnyFinish::Sum (&acc)[rows][vectors]) const {
    finish.tile(acc, f, channels, rows, [&](int r) __attribute__((always_inline)) { return pixels.ends(r); });
  }
};

// The next rows of the block, from rows.end on, whose windows have the same rows of taps inside x; and those. All the
// others would add zeros: a third of a 3x3 window's in the first and the last row. Tiles of fewer pixels than FEW wait
// for their own sums, whatever they leave out.
inline Range next_rows(const ConvArgs& args, const Block& block, bool leaves_out, Range* rows) {
  constexpr int64_t FEW = 4;
  *rows = {rows->end, block.p.end};
  if (!leaves_out || args.Q < FEW) return {0, args.R};
  const auto taps_of = [&](int64_t p) {
    return taps_inside(p * args.stride.h - args.padding.top, args.R, args.dilation.h, args.H);
  };
  const Range taps = taps_of(rows->begin);
  for (int64_t p = rows->begin + 1; p < block.p.end; ++p) {
    const Range next = taps_of(p);
    if (next.begin == taps.begin && next.end == taps.end) continue;
    rows->end = p;
    break;
  }
  return taps;
}

template <class V, Dtype dtype>
void tiles(const ConvArgs& args, const Block& block) {
  using Size = TileSize<V, dtype>;
  using Tile = TileOf<V, dtype>;
  using End = TileEnd<V, dtype>;
  using AnyFinish = typename End::AnyFinish;
  constexpr int MR = Size::MR, NV = Size::NV;
  const auto* header = static_cast<const PackedHeader*>(args.packed);
  const bool stem = Path(header->path) == Path::stem;
  const int64_t group_F = args.F / args.groups, group_C = args.C / args.groups;
  const int64_t run_length = stem ? args.S * args.C : group_C, runs_a_row = stem ? 1 : args.S;
  const int64_t row_bytes = runs_a_row * divide_up(run_length, Tile::C_GROUP) * PANEL_F * 4;
  const int64_t panel_bytes = args.R * row_bytes;
  const int64_t group_panels = divide_up(group_F, PANEL_F), first_group = block.f.begin / group_F;
  const char* sums = static_cast<const char*>(args.packed) + sizeof(PackedHeader);
  const char* panels = is_8_bits(dtype) ? sums + round_up(args.F, DEPTHWISE_LANES) * 4 : sums;
  const AnyFinish finish(args, block);
  const typename End::Starts starts(args, sums);

  // Of the block that comes next, each tile asks for its share.
  const int64_t share = panel_bytes / most(1, divide_up((block.p.end - block.p.begin) * args.Q, MR));
  const int64_t steps = panel_bytes / (PANEL_F * 4), ahead_step = steps ? share / steps : 0;
  int64_t ahead = divide_up(block.f.end - block.f.begin, PANEL_F) * panel_bytes;
  PixelWalk<AnyFinish, value_bytes(dtype), MR> walk(args, block, finish, stem);
  TilePixels<MR> pixels;
  for (Range rows{0, block.p.begin}; rows.end < block.p.end;) {
    const Range taps = next_rows(args, block, starts.adds_zero_outside(), &rows);
    int64_t left = (rows.end - rows.begin) * args.Q;
    for (int64_t tiles_left = divide_up(left, MR); tiles_left > 0; --tiles_left, left -= pixels.rows, ahead += share) {
      walk.take(int(divide_up(left, tiles_left)), &pixels);
      fill_runs<MR, value_bytes(dtype)>(args, block, pixels, stem, taps, block.runs);
      int64_t group = first_group, f_of_group = block.f.begin - group * group_F;
      for (int64_t f = block.f.begin; f < block.f.end;) {
        const int64_t columns = least(least(group_F - f_of_group, PANEL_F), block.f.end - f);
        const char* panel = panels + (group * group_panels + f_of_group / PANEL_F) * panel_bytes;
        const TileRuns runs{
            block.runs, (taps.end - taps.begin) * runs_a_row, group * group_C, run_length, panel + ahead, ahead_step};
        for (int64_t column = 0; column < columns; column += NV * V::LANES) {
          const int vectors = int(least(NV, divide_up(columns - column, V::LANES)));
          constexpr int64_t y_bytes = AnyFinish::VALUE_BYTES;
          ask_for_ends<NV * V::LANES * y_bytes>(pixels, (f + column) * y_bytes, (f + column - block.f.begin) * y_bytes);
          run_conv_tile<Tile, MR, NV>(pixels.rows, vectors, runs, panel + taps.begin * row_bytes + column * 4,
                                      End{finish, starts, pixels, f + column, columns - column});
        }
        f += columns;
        f_of_group += columns;
        if (f_of_group == group_F) ++group, f_of_group = 0;
      }
    }
  }
}

}  // namespace
}  // namespace dsf::fused_conv
