// The kernels behind cpu.h: pure functions over a range of work, one set per row of variants.inc.
#pragma once
#include "kernels/int4_matmul/cpu.h"

namespace dsf::int4_matmul {

// Rows of x in int8, in tiles of tile_rows rows (the last tile may have fewer), as a register tile reads them. A tile
// of R rows holds for each block of k: R scales (f32), R starts of sums (int32: -sum x_q, times 8 where the weight has
// no zero points), and for each step of 8 values of k the codes of its rows, 8 bytes each, two quads in the order of
// byte_of; zeros behind K.
struct QuantizedRows {
  char* tiles;
  int64_t row_bytes;                                             // of all that belongs to a row
  char* tile(int64_t m) const { return tiles + m * row_bytes; }  // m: a multiple of tile_rows
};

inline constexpr int64_t STEP_K = 8;  // values of k that share the bytes of a quad
// The byte of a quad that holds the i-th of them, and the (i + 4)-th: 0, 2, 1, 3 (packed.h).
[[gnu::always_inline]] inline constexpr int64_t byte_of(int64_t i) { return i % 2 * 2 + i / 2 % 2; }
inline constexpr int64_t BLOCK_HEAD_BYTES = 8;  // of a row in a block: its scale and its start

struct Kernel {
  int64_t tile_rows;
  // compute = "int8": quantizes rows [m_begin, m_end) of x; then those rows of the output columns of one panel.
  // m_begin is a multiple of tile_rows, and m_end too but for the last.
  void (*quantize)(const LinearArgs& args, int64_t m_begin, int64_t m_end, const QuantizedRows& rows);
  void (*run)(const LinearArgs& args, const QuantizedRows& rows, int64_t m_begin, int64_t m_end, int64_t panel);
  // compute = "float"; x of f16 widened.
  void (*run_float)(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel);
  WidenX widen;
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/int4_matmul/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::int4_matmul
