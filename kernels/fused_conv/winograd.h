// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", 2015): 16 outputs of a channel pair cost 36 multiplications in place of 144.
//
//   tile of 6x6 values d of x, step 4    ->  B^T d B      36 numbers a channel of x      ("v", made here)
//   3x3 weight g                         ->  G g G^T      36 numbers a channel pair      ("u", packed, from float64)
//   for each of the 36 points            m = sum over c of v[c] * u[c][f]                36 products of matrices
//   4x4 outputs                          A^T m A, then the end of every path
//
// The points are 0, 1, -1, 2, -2 and infinity. Error, elementwise and a priori, with |.| on every matrix and u = 2^-24:
//   |A^T| ((C + 24) u sum_c (|G||g||G^T|) (|B^T||d||B|)) |A|
// It takes in all 36 values of the tile, so it may be far above what the direct sum of nine of them gives: a caller
// asks for this path by name.
#pragma once
#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/packed.h"
#include "kernels/fused_conv/tiles.h"

namespace dsf::fused_conv {
namespace {

// Where a product of matrices goes: rows of PANEL_F.
template <class V>
struct StoreProducts {
  float* to;

  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename V::f32 (&acc)[rows][vectors]) const {
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store(to + r * PANEL_F + v * V::LANES, acc[r][v]);
    }
  }
};

// t = B^T d of six vectors.
template <class V>
[[gnu::always_inline]] inline void transform_x(const typename V::f32 (&d)[6], typename V::f32 (&t)[6]) {
  const auto two = V::set1(2), four = V::set1(4), minus_four = V::set1(-4), minus_five = V::set1(-5);
  const auto even = V::madd(minus_four, d[2], d[4]), odd = V::madd(minus_four, d[1], d[3]);
  const auto outer = V::sub(d[4], d[2]), inner = V::mul(two, V::sub(d[3], d[1]));
  t[0] = V::madd(four, d[0], V::madd(minus_five, d[2], d[4]));
  t[1] = V::add(even, odd);
  t[2] = V::sub(even, odd);
  t[3] = V::add(outer, inner);
  t[4] = V::sub(outer, inner);
  t[5] = V::madd(four, d[1], V::madd(minus_five, d[3], d[5]));
}

// s = A^T m of six vectors.
template <class V>
[[gnu::always_inline]] inline void transform_sums(const typename V::f32 (&m)[6], typename V::f32 (&s)[4]) {
  const auto near = V::add(m[1], m[2]), far = V::add(m[3], m[4]);
  const auto near_odd = V::sub(m[1], m[2]), far_odd = V::sub(m[3], m[4]);
  s[0] = V::add(V::add(m[0], near), far);
  s[1] = V::madd(V::set1(2), far_odd, near_odd);
  s[2] = V::madd(V::set1(4), far, near);
  s[3] = V::add(V::madd(V::set1(8), far_odd, near_odd), m[5]);
}

// The tiles that are worked on at a time: `rows` of them below one another, across the whole width.
struct WinogradTiles {
  int64_t p;  // the first output row
  int64_t rows, per_row;
  int64_t count() const { return rows * per_row; }
};

// The next tile's new columns arrive while this one is transformed: the hardware does not see six rows as streams.
[[gnu::always_inline]] inline void ask_for_next_tile(const float* const (&addresses)[6][6], int64_t c,
                                                     int64_t columns) {
  DSF_UNROLL
  for (int i = 0; i < 6; ++i) {
    DSF_UNROLL
    for (int j = 2; j < 6; ++j) __builtin_prefetch(addresses[i][j] + columns + c);
  }
}

// v[point][tile][channel] of a block's tiles; where a tap is outside x, Block::outside is read.
template <class V>
void winograd_x(const ConvArgs& args, const Block& block, const WinogradTiles& tiles, float* v, int64_t point_stride) {
  const int64_t next_columns = WINOGRAD_OUT * block.x.stride_w;
  const float* addresses[6][6];
  alignas(64) float columns[6][6][V::LANES];
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    const int64_t h = tiles.p + tile / tiles.per_row * WINOGRAD_OUT - args.padding.top;
    const int64_t w = tile % tiles.per_row * WINOGRAD_OUT - args.padding.left;
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 6; ++j) {
        const bool inside = uint64_t(h + i) < uint64_t(args.H) && uint64_t(w + j) < uint64_t(args.W);
        addresses[i][j] = inside ? reinterpret_cast<const float*>(block.x.data) +
                                       (h + i - block.x.h_begin) * block.x.stride_h + (w + j) * block.x.stride_w
                                 : reinterpret_cast<const float*>(block.outside);
      }
    float* to = v + tile * args.C;
    for (int64_t c = 0; c < args.C; c += V::LANES, to += V::LANES) {
      const int n = args.C - c < V::LANES ? int(args.C - c) : V::LANES;
      typename V::f32 d[6], t[6];
      ask_for_next_tile(addresses, c, next_columns);
      for (int j = 0; j < 6; ++j) {
        DSF_UNROLL
        for (int i = 0; i < 6; ++i) d[i] = load_value<V, Dtype::f32>(addresses[i][j], c, n);
        transform_x<V>(d, t);
        DSF_UNROLL
        for (int i = 0; i < 6; ++i) V::store(columns[i][j], t[i]);
      }
      for (int i = 0; i < 6; ++i) {
        DSF_UNROLL
        for (int j = 0; j < 6; ++j) d[j] = V::load(columns[i][j]);
        transform_x<V>(d, t);
        DSF_UNROLL
        for (int j = 0; j < 6; ++j) store_value<V, Dtype::f32>(to + (i * 6 + j) * point_stride, 0, t[j], n);
      }
    }
  }
}

// Outputs of `channels` channels from f on, of products[point][tile][PANEL_F].
template <class V>
void winograd_y(const ConvArgs& args, const Block& block, const WinogradTiles& tiles,
                const Finish<V, Dtype::f32>& finish, const float* products, int64_t f, int64_t channels) {
  const int64_t point_stride = winograd_product_values(tiles.count());
  alignas(64) float columns[4][6][V::LANES];
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    const int64_t p = tiles.p + tile / tiles.per_row * WINOGRAD_OUT, q = tile % tiles.per_row * WINOGRAD_OUT;
    const int64_t last = block.p.end - p < WINOGRAD_OUT ? block.p.end - p : WINOGRAD_OUT;
    const int width = int(args.Q - q < WINOGRAD_OUT ? args.Q - q : WINOGRAD_OUT);
    for (int64_t c = 0; c < channels; c += V::LANES) {
      const float* from = products + tile * PANEL_F + c;
      for (int i = 0; i < WINOGRAD_OUT && p + i < block.p.end; ++i) {
        const char* row = finish.ends(p + i, q + WINOGRAD_OUT).y + (f + c - block.f.begin) * 4;
        DSF_UNROLL
        for (int j = 0; j < WINOGRAD_OUT; ++j)
          __builtin_prefetch(row + j * block.y_stride_w * 4, 1);  // of the next tile
      }
      typename V::f32 m[6], s[4];
      for (int j = 0; j < 6; ++j) {
        DSF_UNROLL
        for (int i = 0; i < 6; ++i) m[i] = V::load(from + (i * 6 + j) * point_stride);
        transform_sums<V>(m, s);
        DSF_UNROLL
        for (int i = 0; i < 4; ++i) V::store(columns[i][j], s[i]);
      }
      for (int64_t i = 0; i < last; ++i) {
        DSF_UNROLL
        for (int j = 0; j < 6; ++j) m[j] = V::load(columns[i][j]);
        transform_sums<V>(m, s);
        typename V::f32 sums[4][1];
        DSF_UNROLL
        for (int j = 0; j < 4; ++j) sums[j][0] = s[j];
        finish.tile(sums, f + c, channels - c, width, finish.ends(p + i, q));
      }
    }
  }
}

// products[point][tile][PANEL_F] of the tiles and one panel.
template <class V>
void winograd_products(const ConvArgs& args, const WinogradTiles& tiles, const float* v, int64_t point_stride,
                       const char* panel, int vectors, float* products) {
  constexpr int MR = TileSize<V, Dtype::f32>::MR, NV = TileSize<V, Dtype::f32>::NV;
  const char* runs[MR];
  const int64_t count = tiles.count(), groups = (count + MR - 1) / MR;
  // Of each point's weights. Groups of tiles ask for their shares of the next one's; of two groups each would ask for
  // what it needs at once.
  const int64_t bytes = args.C * PANEL_F * 4;
  const int64_t share = groups > 2 ? bytes / groups : 0, ahead_step = groups > 2 ? PANEL_F * 4 / groups : 0;
  for (int64_t point = 0; point < WINOGRAD_POINTS; ++point, panel += bytes) {
    const float* rows = v + point * point_stride;
    int64_t tiles_left = groups;
    for (int64_t i = 0; i < count; --tiles_left) {
      const int64_t here = (count - i + tiles_left - 1) / tiles_left;
      for (int64_t j = 0; j < here; ++j) runs[j] = reinterpret_cast<const char*>(rows + (i + j) * args.C);
      for (int done = 0; done < vectors; done += NV)
        run_conv_tile<ConvTileF32<V, MR>, MR, NV>(
            int(here), vectors - done < NV ? vectors - done : NV,
            {runs, 1, 0, args.C, panel + bytes + share * (groups - tiles_left), ahead_step},
            panel + done * V::LANES * 4,
            StoreProducts<V>{products + point * winograd_product_values(count) + i * PANEL_F + done * V::LANES});
      i += here;
    }
  }
}

template <class V>
void winograd(const ConvArgs& args, const Block& block) {
  const Finish<V, Dtype::f32> finish(args, block);
  const char* panels = static_cast<const char*>(args.packed) + sizeof(PackedHeader);
  const int64_t panel_bytes = WINOGRAD_POINTS * args.C * PANEL_F * 4;
  const int64_t per_row = (args.Q + WINOGRAD_OUT - 1) / WINOGRAD_OUT;
  const int64_t rows = (block.p.end - block.p.begin + WINOGRAD_OUT - 1) / WINOGRAD_OUT;
  const int64_t rows_at_once = winograd_rows(args.C, per_row, rows);
  for (int64_t row = 0; row < rows; row += rows_at_once) {
    const WinogradTiles tiles = {block.p.begin + row * WINOGRAD_OUT,
                                 rows - row < rows_at_once ? rows - row : rows_at_once, per_row};
    const int64_t point_stride = winograd_point_values(args.C, tiles.count());
    auto* v = reinterpret_cast<float*>(block.scratch);
    float* products = v + WINOGRAD_POINTS * point_stride;
    winograd_x<V>(args, block, tiles, v, point_stride);
    for (int64_t f = block.f.begin; f < block.f.end; f += PANEL_F) {
      const int64_t channels = block.f.end - f < PANEL_F ? block.f.end - f : PANEL_F;
      winograd_products<V>(args, tiles, v, point_stride, panels + f / PANEL_F * panel_bytes,
                           int((channels + V::LANES - 1) / V::LANES), products);
      winograd_y<V>(args, block, tiles, finish, products, f, channels);
    }
  }
}

}  // namespace
}  // namespace dsf::fused_conv
