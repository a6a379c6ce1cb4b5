// One level's kernels: rows of codes to bf16, panels of tokens, logits of a query against a panel, and the selection.
#pragma once
#include "csrc/gemm/fp8.h"
#include "csrc/gemm/tile.h"
#include "kernels/lightning_indexer/select.h"

namespace dsf::lightning_indexer {
namespace {

using Decoder = Fp8Decoder<Vec, Dtype::f8e4m3>;

inline void decode(const uint8_t* codes, int64_t D, uint16_t* numbers) {
  const int64_t padded = padded_D(D);
  for (int64_t d = 0; d < padded; d += Vec::LANES) {
    const int64_t left = D - d, room = padded - d;
    const auto bytes =
        left >= Vec::LANES ? Vec::load_u8(codes + d) : Vec::load_u8_n(codes + d, left > 0 ? int(left) : 0);
    const auto v_f32 = fp8_to_f32<Vec, Dtype::f8e4m3>(bytes);
    Vec::store_bf16_n(numbers + d, v_f32, room < Vec::LANES ? int(room) : Vec::LANES);
  }
}

// LANES tokens, `width` of their codes: a square of quads is turned, so that a lane is a token, then decoded.
template <bool whole>
[[gnu::always_inline]] inline void turn(const Decoder& decoder, const uint8_t* const* rows, int count, int64_t d,
                                        int width, char* panel) {
  typename Vec::i32 quads[Vec::LANES];
  DSF_UNROLL
  for (int i = 0; i < Vec::LANES; ++i)
    quads[i] = whole       ? Vec::load_i32(reinterpret_cast<const int32_t*>(rows[i] + d))
               : i < count ? Vec::load_bytes_n(rows[i] + d, width)
                           : Vec::zero_i32();
  Vec::transpose(quads);
  const auto store = [&](int j) __attribute__((always_inline)) {
    typename Vec::i32 first, second;
    decoder.of_quads(quads[j], &first, &second);
    auto* at = reinterpret_cast<int32_t*>(panel) + 2 * j * PANEL_TOKENS;
    Vec::store_i32(at, first);
    Vec::store_i32(at + PANEL_TOKENS, second);
  };
  if constexpr (whole) {
    DSF_UNROLL
    for (int j = 0; j < Vec::LANES; ++j) store(j);
  } else {
    for (int j = 0; j < (width + 3) / 4; ++j) store(j);
  }
}

inline void make_panel(const uint8_t* const* rows, int count, int64_t D, char* panel) {
  constexpr int WIDTH = Vec::LANES * 4;  // codes
  const Decoder decoder;
  for (int token = 0; token < count; token += Vec::LANES) {
    const int tokens = count - token;
    for (int64_t d = 0; d < D; d += WIDTH) {
      char* at = panel + d * 2 * PANEL_TOKENS + token * 4;
      if (tokens >= Vec::LANES && D - d >= WIDTH)
        turn<true>(decoder, rows + token, Vec::LANES, d, WIDTH, at);
      else
        turn<false>(decoder, rows + token, tokens, d, D - d < WIDTH ? int(D - d) : WIDTH, at);
    }
  }
}

// sums[token] += weights[head] * relu(dot), head by head: the End of a register tile whose rows are heads.
struct AddHeads {
  const float* weights;
  float* sums;

  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename Vec::f32 (&acc)[rows][vectors]) const {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      auto sum = Vec::load(sums + v * Vec::LANES);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) sum = Vec::fma(Vec::set1(weights[r]), Vec::max0(acc[r][v]), sum);
      Vec::store(sums + v * Vec::LANES, sum);
    }
  }
};

inline void make_logits(const uint16_t* q, int64_t H, int64_t D, const float* weights, const char* panel,
                        const float* scales, int count, float* logits) {
  using Tile = TileBf16<Vec>;
  constexpr int BLOCK = Tile::NV * Vec::LANES;  // tokens a register tile covers
  const int64_t stride = padded_D(D);
  DSF_UNROLL
  for (int t = 0; t < PANEL_TOKENS; t += Vec::LANES) Vec::store(logits + t, Vec::zero());
  RowTiles<Tile, Tile> tiles(H);
  for (int64_t h = 0; h < H;) {
    const int rows = tiles.next(false);
    for (int t = 0; t < count; t += BLOCK) {
      const int vectors = (count - t + Vec::LANES - 1) / Vec::LANES;
      run_tile<Tile, Tile::MR, Tile::NV>(rows, vectors < Tile::NV ? vectors : Tile::NV, D, q + h * stride, stride,
                                         panel + t * 4, nullptr, AddHeads{weights + h, logits + t});
    }
    h += rows;
  }
  for (int t = 0; t < PANEL_TOKENS; t += Vec::LANES)
    Vec::store(logits + t, Vec::mul(Vec::load(logits + t), Vec::load(scales + t)));
}

inline void to_bf16(const float* values, int64_t n, uint16_t* rounded) {
  for (int64_t i = 0; i < n; i += Vec::LANES) {
    const int some = n - i < Vec::LANES ? int(n - i) : Vec::LANES;
    Vec::store_bf16_n(rounded + i, Vec::load_n(values + i, some), some);
  }
}

inline constexpr Kernel KERNEL = {
    decode, make_panel, make_logits, to_bf16, {add<Dtype::f32>, add<Dtype::bf16>, add<Dtype::f16>}, cut};

}  // namespace
}  // namespace dsf::lightning_indexer
