// The table of runs of a tile of pixels, and where its pixels end: what tiles.h makes once for all panels.
#pragma once
#include <initializer_list>

#include "kernels/fused_conv/finish.h"

namespace dsf::fused_conv {
namespace {

// Tables have places for whole cache lines of pixels, so that vectors fill them; nobody reads those past the tile's.
constexpr int places_of(int pixels) { return (pixels + 7) / 8 * 8; }

// What a tile reads of x: runs[i * places_of(MR) + r] is where the i-th run of pixel r begins.
struct TileRuns {
  const char* const* runs;
  int64_t count;       // runs a pixel
  int64_t first;       // value of each run that is the first to be read: of a group
  int64_t length;      // values
  const char* ahead;   // weights that will be read after this panel, and how far a step of x goes in them
  int64_t ahead_step;  // bytes
};

// Asked for in L2 while the tiles of this panel run: else the first tile of a panel waits for memory, and the others
// leave it idle.
[[gnu::always_inline]] inline void read_weights_ahead(const char** ahead, int64_t step) {
  __builtin_prefetch(*ahead, 0, 2);
  *ahead += step;
}

// The pixels of a tile: where each one's first tap is, and where it ends.
template <int MR>
struct TilePixels {
  static constexpr int PLACES = places_of(MR);
  int rows;
  bool side_by_side;                                        // in one row, w_step apart
  int64_t first_h, first_w, w_step;                         // of x, under the first tap of the first: outside x perhaps
  alignas(CACHE_LINE) int64_t at[PLACES];                   // the address of the first tap
  alignas(CACHE_LINE) int64_t y[PLACES], residual[PLACES];  // addresses; 0 without a residual
  int64_t h[PLACES], w[PLACES];                             // where not side_by_side: as the first one's

  Ends ends(int i) const { return {reinterpret_cast<char*>(y[i]), reinterpret_cast<const char*>(residual[i])}; }
};

// Takes the pixels of a block one after the other, row by row.
template <class AnyFinish, int64_t bytes, int MR>
class PixelWalk {
  static constexpr int PLACES = places_of(MR);

 public:
  PixelWalk(const ConvArgs& args, const Block& block, const AnyFinish& finish, bool stem)
      : Q_(args.Q),
        h_(block.p.begin * args.stride.h - args.padding.top),
        w_begin_(stem ? 0 : -args.padding.left),
        h_step_(args.stride.h),
        w_step_(stem ? 1 : args.stride.w),
        x_row_step_(h_step_ * block.x.stride_h * bytes),
        row_(reinterpret_cast<int64_t>(block.x.data) +
             ((h_ - block.x.h_begin) * block.x.stride_h + w_begin_ * block.x.stride_w) * bytes),
        p_(block.p.begin),
        finish_(finish) {
    const int64_t residual_step = block.residual.data ? block.residual.stride_w * AnyFinish::VALUE_BYTES : 0;
    for (int64_t i = 0; i < PLACES; ++i) {
      x_steps_[i] = i * w_step_ * block.x.stride_w * bytes;
      y_steps_[i] = i * block.y_stride_w * AnyFinish::VALUE_BYTES;
      residual_steps_[i] = i * residual_step;
    }
    begin_row();
  }

  // The next `rows` pixels.
  [[gnu::always_inline]] void take(int rows, TilePixels<MR>* pixels) {
    if (q_ == Q_) next_row();
    pixels->rows = rows;
    pixels->side_by_side = q_ + rows <= Q_;
    pixels->first_h = h_;
    pixels->first_w = w_begin_ + q_ * w_step_;
    pixels->w_step = w_step_;
    if (!pixels->side_by_side) [[unlikely]]
      return take_of_rows(rows, pixels);
    const int64_t at = row_ + q_ * x_steps_[1], y = y_row_ + q_ * y_steps_[1];
    const int64_t residual = residual_row_ + q_ * residual_steps_[1];
    for (int i = 0; i < PLACES; ++i) {
      pixels->at[i] = at + x_steps_[i];
      pixels->y[i] = y + y_steps_[i];
      pixels->residual[i] = residual + residual_steps_[i];
    }
    q_ += rows;
  }

 private:
  [[gnu::noinline]] void take_of_rows(int rows, TilePixels<MR>* pixels) {
    for (int i = 0; i < rows; ++i, ++q_) {
      if (q_ == Q_) next_row();
      pixels->h[i] = h_;
      pixels->w[i] = w_begin_ + q_ * w_step_;
      pixels->at[i] = row_ + q_ * x_steps_[1];
      pixels->y[i] = y_row_ + q_ * y_steps_[1];
      pixels->residual[i] = residual_row_ + q_ * residual_steps_[1];
    }
    const auto repeat_last = [rows](int64_t* places) {
      for (int i = rows; i < PLACES; ++i) places[i] = places[rows - 1];
    };
    for (int64_t* places : {pixels->h, pixels->w, pixels->at, pixels->y, pixels->residual}) repeat_last(places);
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

  alignas(CACHE_LINE) int64_t x_steps_[PLACES], y_steps_[PLACES], residual_steps_[PLACES];  // bytes, from the first
  const int64_t Q_;
  int64_t h_;
  const int64_t w_begin_, h_step_, w_step_;
  const int64_t x_row_step_;  // bytes
  int64_t row_, p_, q_, y_row_, residual_row_;
  const AnyFinish& finish_;
};

// The table of one tile under rows `taps` of the weight: runs[((r - taps.begin) * S + s) * places_of(MR) + i] of pixel
// i. A stem's row of taps is one run, which begins in the padding that its copy of x has: S is 1 there.
template <int MR, int64_t bytes>
[[gnu::always_inline]] inline void fill_runs(const ConvArgs& args, const Block& block, const TilePixels<MR>& pixels,
                                             bool stem, Range taps, const char** runs) {
  constexpr int PLACES = places_of(MR);
  const int64_t S = stem ? 1 : args.S, W = stem ? args.Q : args.W;
  const int64_t tap_w = args.dilation.w * block.x.stride_w * bytes;
  const int64_t tap_h = args.dilation.h * block.x.stride_h * bytes;
  const int64_t outside = reinterpret_cast<int64_t>(block.outside);
  auto* table = reinterpret_cast<int64_t*>(runs);
  for (int64_t r = taps.begin; r < taps.end; ++r)
    for (int64_t s = 0; s < S; ++s, table += PLACES) {
      const int64_t h = r * args.dilation.h, w = s * args.dilation.w, offset = r * tap_h + s * tap_w;
      if (!pixels.side_by_side) {
        for (int i = 0; i < PLACES; ++i) {
          const int64_t tap_outside =
              (pixels.h[i] + h) | (pixels.w[i] + w) | (args.H - 1 - h - pixels.h[i]) | (W - 1 - w - pixels.w[i]);
          table[i] = tap_outside < 0 ? outside : pixels.at[i] + offset;
        }
        continue;
      }
      if (uint64_t(pixels.first_h + h) >= uint64_t(args.H)) {
        for (int i = 0; i < PLACES; ++i) table[i] = outside;
        continue;
      }
      for (int i = 0; i < PLACES; ++i) table[i] = pixels.at[i] + offset;
      const int64_t first = pixels.first_w + w, last = first + (pixels.rows - 1) * pixels.w_step;
      for (int64_t i = 0, at = first; at < 0 && i < pixels.rows; at += pixels.w_step) table[i++] = outside;
      for (int64_t i = pixels.rows, at = last; at >= W && i > 0; at -= pixels.w_step) table[--i] = outside;
    }
}

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

}  // namespace
}  // namespace dsf::fused_conv
