// The transposed pair: a square of x is read once, cast along its rows and along its columns.
#pragma once
#include <initializer_list>

#include "kernels/fp8_cast/cast.h"

namespace dsf::fp8_cast {
namespace {

// out[k][m] = in[m][k] of bytes: rows of in are PAIR_BLOCK apart.
inline constexpr int64_t PAIR_BLOCK = 128;
inline void transpose_bytes(const uint8_t* in, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) {
  constexpr int64_t SQUARE = 8;
  for (int64_t m = 0; m < rows; m += SQUARE)
    for (int64_t k = 0; k < columns; k += SQUARE) {
      const int64_t height = least(SQUARE, rows - m), width = least(SQUARE, columns - k);
      if (height < SQUARE || width < SQUARE) {
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j) out[(k + j) * out_stride + m + i] = in[(m + i) * PAIR_BLOCK + k + j];
        continue;
      }
      uint64_t row[SQUARE];  // halves, quarters and eighths of the square change places
      for (int64_t i = 0; i < SQUARE; ++i) std::memcpy(&row[i], in + (m + i) * PAIR_BLOCK + k, 8);
      const auto exchange = [&](int a, int b, int bits, uint64_t mask) {
        const uint64_t moved = ((row[a] >> bits) ^ row[b]) & mask;
        row[a] ^= moved << bits;
        row[b] ^= moved;
      };
      for (int i = 0; i < 4; ++i) exchange(i, i + 4, 32, 0x00000000FFFFFFFFu);
      for (const int i : {0, 1, 4, 5}) exchange(i, i + 2, 16, 0x0000FFFF0000FFFFu);
      for (const int i : {0, 2, 4, 6}) exchange(i, i + 1, 8, 0x00FF00FF00FF00FFu);
      for (int64_t j = 0; j < SQUARE; ++j) std::memcpy(out + (k + j) * out_stride + m, &row[j], 8);
    }
}

// A square of x is read once from memory: scaled along its rows into codes, along its columns into codes_t.
inline void cast_pair(const Context& context, const Cast& cast) {
  const CastArgs& args = cast.args;
  const int64_t block = args.block_cols, down = parts_of(args.M, block), across = args.col_blocks;
  const int64_t bytes = value_bytes(args.x_dtype);
  ScaleView scale_t = cast.scale;
  scale_t.data = static_cast<char*>(args.scale_t);
  scale_t.row_stride = down;
  scale_t.col_stride = 1;
  for_each(context, args.M * args.K, down * across, [&](int64_t begin, int64_t end) {
    alignas(64) uint8_t turned[PAIR_BLOCK * PAIR_BLOCK];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / across * block, k = item % across * block;
      const int64_t rows = least(block, args.M - m), columns = least(block, args.K - k);
      uint32_t row_bits[PAIR_BLOCK] = {}, column_bits[PAIR_BLOCK] = {};
      float factors[PAIR_BLOCK], scale[PAIR_BLOCK];
      uint8_t code[PAIR_BLOCK] = {};
      const char* x = static_cast<const char*>(args.x) + (m * args.x_stride + k) * bytes;
      for (int64_t i = 0; i < rows; ++i) {
        const char* row = x + i * args.x_stride * bytes;
        cast.of_x.amax(row, columns, columns, cast.ignore_nan, row_bits + i);
        cast.of_x.amax(row, columns, 1, cast.ignore_nan, column_bits);
      }
      cast.of_x.scales(cast.scale_rule, int(columns), column_bits, scale, factors, code);
      for (int64_t j = 0; j < columns; ++j) scale_t.store(k + j, m / block, scale[j], code[j]);
      for (int64_t i = 0; i < rows; ++i)
        cast.encode(cast.encode_rule, x + i * args.x_stride * bytes, columns, 1, factors, 0, turned + i * PAIR_BLOCK);
      transpose_bytes(turned, rows, columns, static_cast<uint8_t*>(args.codes_t) + k * args.M + m, args.M);
      cast.of_x.scales(cast.scale_rule, int(rows), row_bits, scale, factors, code);
      for (int64_t i = 0; i < rows; ++i) {
        cast.scale.store(m + i, k / block, scale[i], code[i]);
        cast.encode_part(m + i, k, columns, x + i * args.x_stride * bytes, columns, factors + i);
      }
    }
  });
}

}  // namespace
}  // namespace dsf::fp8_cast
