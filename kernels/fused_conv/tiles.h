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
#include "kernels/fused_conv/tile_int8.h"

namespace dsf::fused_conv {
namespace {

// Pixels and vectors of channels of a tile.
template <class V, Dtype dtype>
struct TileSize {
  static constexpr bool WIDE = V::LANES == 16, IS_INT8 = dtype == Dtype::i8 || dtype == Dtype::u8;
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
    for (int64_t i = 0; i < x.count; ++i, runs += MR)
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

// The pixels of a tile: where each one's first tap is, and where it ends. Those past `rows` are the last one, so that
// loops over a tile's pixels have no end of their own.
template <int MR>
struct TilePixels {
  int rows;
  int64_t h[MR], w[MR];         // of x, under the first tap: outside x perhaps
  int64_t at[MR];               // its address
  int64_t y[MR], residual[MR];  // addresses; 0 without a residual

  Ends ends(int i) const { return {reinterpret_cast<char*>(y[i]), reinterpret_cast<const char*>(residual[i])}; }
};

// Takes the pixels of a block one after the other, row by row.
template <class AnyFinish, int64_t bytes, int MR>
class PixelWalk {
 public:
  PixelWalk(const ConvArgs& args, const Block& block, const AnyFinish& finish, bool stem)
      : Q_(args.Q),
        h_(block.p.begin * args.stride.h - args.padding.top),
        w_begin_(stem ? 0 : -args.padding.left),
        h_step_(args.stride.h),
        w_step_(stem ? 1 : args.stride.w),
        x_step_(w_step_ * block.x.stride_w * bytes),
        x_row_step_(h_step_ * block.x.stride_h * bytes),
        y_step_(block.y_stride_w * AnyFinish::VALUE_BYTES),
        residual_step_(block.residual.data ? block.residual.stride_w * AnyFinish::VALUE_BYTES : 0),
        row_(reinterpret_cast<int64_t>(block.x.data) +
             ((h_ - block.x.h_begin) * block.x.stride_h + w_begin_ * block.x.stride_w) * bytes),
        p_(block.p.begin),
        finish_(finish) {
    begin_row();
  }

  // The next `rows` pixels.
  void take(int rows, TilePixels<MR>* pixels) {
    pixels->rows = rows;
    if (q_ == Q_) next_row();
    if (q_ + rows <= Q_) [[likely]] {
      for (int i = 0; i < MR; ++i) put(pixels, i, i < rows ? i : rows - 1);
      q_ += rows;
      return;
    }
    for (int i = 0; i < rows; ++i) {
      if (q_ == Q_) next_row();
      put(pixels, i, 0);
      ++q_;
    }
    for (int i = rows; i < MR; ++i) {
      pixels->h[i] = pixels->h[rows - 1];
      pixels->w[i] = pixels->w[rows - 1];
      pixels->at[i] = pixels->at[rows - 1];
      pixels->y[i] = pixels->y[rows - 1];
      pixels->residual[i] = pixels->residual[rows - 1];
    }
  }

 private:
  // The i-th pixel of a tile is `more` pixels on.
  [[gnu::always_inline]] void put(TilePixels<MR>* pixels, int i, int64_t more) const {
    const int64_t q = q_ + more;
    pixels->h[i] = h_;
    pixels->w[i] = w_begin_ + q * w_step_;
    pixels->at[i] = row_ + q * x_step_;
    pixels->y[i] = y_row_ + q * y_step_;
    pixels->residual[i] = residual_row_ + q * residual_step_;
  }
  void next_row() {
    ++p_;
    h_ += h_step_;
    row_ += x_row_step_;
    begin_row();
  }
  void begin_row() {
    q_ = 0;
    const Ends first = finish_.ends(p_, 0);
    y_row_ = reinterpret_cast<int64_t>(first.y);
    residual_row_ = reinterpret_cast<int64_t>(first.residual);
  }

  const int64_t Q_;
  int64_t h_;
  const int64_t w_begin_, h_step_, w_step_;
  const int64_t x_step_, x_row_step_, y_step_, residual_step_;  // bytes
  int64_t row_, p_, q_, y_row_, residual_row_;
  const AnyFinish& finish_;
};

// The table of one tile: runs[(r * S + s) * MR + i] of pixel i. A stem's row of taps is one run, which begins in the
// padding that its copy of x has: S is 1 there.
template <int MR, int64_t bytes>
inline void fill_runs(const ConvArgs& args, const Block& block, const TilePixels<MR>& pixels, bool stem,
                      const char** runs) {
  const int64_t S = stem ? 1 : args.S, W = stem ? args.Q : args.W;
  const int64_t tap_w = args.dilation.w * block.x.stride_w * bytes;
  const int64_t tap_h = args.dilation.h * block.x.stride_h * bytes;
  const int64_t last_h = (args.R - 1) * args.dilation.h, last_w = (S - 1) * args.dilation.w;
  int64_t outside_taps = 0;
  for (int i = 0; i < MR; ++i)  // negative: outside
    outside_taps |= pixels.h[i] | pixels.w[i] | (args.H - 1 - last_h - pixels.h[i]) | (W - 1 - last_w - pixels.w[i]);
  auto* table = reinterpret_cast<int64_t*>(runs);
  for (int64_t r = 0; r < args.R; ++r)
    for (int64_t s = 0; s < S; ++s, table += MR) {
      const int64_t offset = r * tap_h + s * tap_w;
      if (outside_taps >= 0) [[likely]] {
        for (int i = 0; i < MR; ++i) table[i] = pixels.at[i] + offset;
        continue;
      }
      const int64_t h = r * args.dilation.h, w = s * args.dilation.w;
      for (int i = 0; i < MR; ++i) {
        const int64_t tap_outside =
            (pixels.h[i] + h) | (pixels.w[i] + w) | (args.H - 1 - h - pixels.h[i]) | (W - 1 - w - pixels.w[i]);
        table[i] = tap_outside < 0 ? reinterpret_cast<int64_t>(block.outside) : pixels.at[i] + offset;
      }
    }
}

// What a tile ends with, by x's dtype.
template <class V, Dtype dtype, class Pixels>
struct TileEnd {
  using AnyFinish = Finish<V, dtype>;
  const AnyFinish& finish;
  const Pixels& pixels;
  int64_t f, channels;

  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename V::f32 (&acc)[rows][vectors]) const {
    finish.tile(acc, f, channels, rows, [&](int r) __attribute__((always_inline)) { return pixels.ends(r); });
  }
};

template <class V, Dtype dtype, class Pixels>
struct TileEndInt8 {
  using AnyFinish = FinishInt8<V>;
  const AnyFinish& finish;
  const Pixels& pixels;
  int64_t f, channels;
  const StartInt8<V, dtype>& starts;

  typename V::i32 start(int v) const {
    const int64_t left = channels - v * V::LANES;
    return starts.of(f + v * V::LANES, left < V::LANES ? int(left) : V::LANES);
  }
  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename V::i32 (&acc)[rows][vectors]) const {
    finish.tile(acc, f, channels, rows, [&](int r) __attribute__((always_inline)) { return pixels.ends(r); });
  }
};

// The lines that the end of a tile reads and writes arrive while it runs: they are too far apart for the hardware.
template <int64_t tile_bytes, int MR>
inline void ask_for_ends(const TilePixels<MR>& pixels, int64_t f_bytes, int64_t y_f_bytes) {
  const auto ask = [](int64_t address, bool writes) __attribute__((always_inline)) {
    for (int64_t line = 0; line < tile_bytes; line += CACHE_LINE) {
      if (writes)
        __builtin_prefetch(reinterpret_cast<const char*>(address + line), 1);
      else
        __builtin_prefetch(reinterpret_cast<const char*>(address + line));
    }
  };
  DSF_UNROLL
  for (int i = 0; i < MR; ++i) ask(pixels.y[i] + y_f_bytes, true);
  if (!pixels.residual[0]) return;
  DSF_UNROLL
  for (int i = 0; i < MR; ++i) ask(pixels.residual[i] + f_bytes, false);
}

template <class V, Dtype dtype>
void tiles(const ConvArgs& args, const Block& block) {
  using Size = TileSize<V, dtype>;
  using Tile = TileOf<V, dtype>;
  using End = std::conditional_t<Size::IS_INT8, TileEndInt8<V, dtype, TilePixels<Size::MR>>,
                                 TileEnd<V, dtype, TilePixels<Size::MR>>>;
  using AnyFinish = typename End::AnyFinish;
  constexpr int MR = Size::MR, NV = Size::NV;
  const auto* header = static_cast<const PackedHeader*>(args.packed);
  const bool stem = Path(header->path) == Path::stem;
  const int64_t group_F = args.F / args.groups, group_C = args.C / args.groups;
  const int64_t run_length = stem ? args.S * args.C : group_C, run_count = stem ? args.R : args.R * args.S;
  const int64_t panel_bytes = run_count * ((run_length + Tile::C_GROUP - 1) / Tile::C_GROUP) * PANEL_F * 4;
  const int64_t group_panels = (group_F + PANEL_F - 1) / PANEL_F;
  const char* sums = static_cast<const char*>(args.packed) + sizeof(PackedHeader);
  const char* panels = Size::IS_INT8 ? sums + round_up(args.F, DEPTHWISE_LANES) * 4 : sums;
  const AnyFinish finish(args, block);
  const auto end_of = [&, starts = StartInt8<V, dtype>(args, sums)](const TilePixels<MR>& pixels, int64_t f,
                                                                    int64_t channels) {
    if constexpr (Size::IS_INT8)
      return End{finish, pixels, f, channels, starts};
    else
      return End{finish, pixels, f, channels};
  };

  const int64_t count = (block.p.end - block.p.begin) * args.Q;
  int64_t tiles_left = (count + MR - 1) / MR;
  const int64_t steps_of_panel = panel_bytes / (PANEL_F * 4), all_tiles = tiles_left;
  const int64_t share = panel_bytes / (all_tiles > 0 ? all_tiles : 1),
                weights_ahead = (block.f.end - block.f.begin + PANEL_F - 1) / PANEL_F * panel_bytes;
  PixelWalk<AnyFinish, value_bytes(dtype), MR> walk(args, block, finish, stem);
  TilePixels<MR> pixels;
  for (int64_t i = 0; i < count; i += pixels.rows, --tiles_left) {
    const int64_t tile = all_tiles - tiles_left;
    walk.take(int((count - i + tiles_left - 1) / tiles_left), &pixels);
    fill_runs<MR, value_bytes(dtype)>(args, block, pixels, stem, block.runs);
    for (int64_t f = block.f.begin; f < block.f.end;) {
      const int64_t group = f / group_F, f_of_group = f - group * group_F;
      int64_t columns = group_F - f_of_group < PANEL_F ? group_F - f_of_group : PANEL_F;
      if (columns > block.f.end - f) columns = block.f.end - f;
      const char* panel = panels + (group * group_panels + f_of_group / PANEL_F) * panel_bytes;
      // Of the block that comes next, each tile asks for its share.
      const TileRuns runs{block.runs,
                          run_count,
                          group * group_C,
                          run_length,
                          panel + weights_ahead + tile * share,
                          steps_of_panel ? share / steps_of_panel : 0};
      for (int64_t column = 0; column < columns; column += NV * V::LANES) {
        const int left = int((columns - column + V::LANES - 1) / V::LANES), vectors = left < NV ? left : NV;
        constexpr int64_t y_bytes = AnyFinish::VALUE_BYTES;
        ask_for_ends<NV * V::LANES * y_bytes>(pixels, (f + column) * y_bytes, (f + column - block.f.begin) * y_bytes);
        run_conv_tile<Tile, MR, NV>(pixels.rows, vectors, runs, panel + column * 4,
                                    end_of(pixels, f + column, columns - column));
      }
      f += columns;
    }
  }
}

}  // namespace
}  // namespace dsf::fused_conv
