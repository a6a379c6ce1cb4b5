// The packed weight: a header, then panels of PANEL_N output channels, zero-filled at the right and bottom edge.
//   f32   panel[k][n]                      one f32 each
//   f16   panel[k][n]                      one f16 each
//   bf16  panel[k / 2][n][k % 2]           pairs of k side by side, as VDPBF16PS reads them
//   int8  panel[k / 4][n][k % 4]           quads of k side by side, as VPDPBUSD reads them; before the panels
//         -128 * sum_k q[n, k] (int32, modulo 2^32) for every n
//   fp8   blocks of block_k values of k: PANEL_N scales (f32), then quads of k as pairs that VDPBF16PS wants after
//         VPUNPCK[LH]BW: of 4 columns the pairs (k, k + 1), then of the same columns (k + 2, k + 3), 16 bytes in all
//   u4    blocks of block_k values of k: PANEL_N scales (f32), PANEL_N zero points (u8) where the weight has them, then
//         two quads of k in the nibbles of one: bytes 0, 2, 1, 3 of panel[k / 8][n] hold q[n, 8 (k / 8) + i] of i = 0,
//         1, 2, 3 low and that of i + 4 high, so that k and k + 1 are 16 bits apart, as VPERMW and VDPBF16PS want them
// A gated weight's halves are padded to whole panels each: panels 2 p and 2 p + 1 are panel p of the one and the other.
// One layout serves every ISA level, so lowering the level never invalidates a packed weight.
#pragma once
#include <cstdint>

#include "csrc/core/tensor_view.h"

namespace dsf {

inline constexpr int64_t PANEL_N = 64;                // output channels a panel: four 512-bit vectors of 32-bit sums
inline constexpr int64_t CACHE_LINE = 64;             // bytes
inline constexpr uint32_t PACKED_MAGIC = 0x31465344;  // "DSF1" in memory
inline constexpr uint32_t PACKED_VERSION = 3;

struct PackedHeader {
  uint32_t magic;
  uint32_t version;
  int32_t dtype;    // Dtype of the weight
  int32_t block_k;  // values of k that share a scale in the panels; 0: the panels hold no scales
  int64_t N, K;     // of the weight
  int64_t bytes;    // of header and panels
  int64_t zeros;    // 1: every block holds zero points
  int64_t gated;    // 1: two halves of N / 2 rows
  int64_t padding;
};
static_assert(sizeof(PackedHeader) == 64);

// What a packed weight is made of.
struct PackedFormat {
  Dtype dtype;
  int64_t block_k = 0;
  bool zeros = false;
  bool gated = false;
};

inline constexpr bool is_fp8(Dtype dtype) { return dtype == Dtype::f8e4m3 || dtype == Dtype::f8e5m2; }
inline constexpr bool is_float(Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16;
}
inline constexpr int64_t value_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : is_float(dtype) ? 2 : 1; }
// k values that lie side by side in a panel.
inline constexpr int64_t k_group(Dtype dtype) {
  return dtype == Dtype::u4 ? 8 : dtype == Dtype::f16 ? 1 : 4 / value_bytes(dtype);
}
inline constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
[[gnu::always_inline]] inline constexpr int64_t num_panels(int64_t rows, bool gated) {
  return gated ? 2 * (round_up(rows / 2, PANEL_N) / PANEL_N) : round_up(rows, PANEL_N) / PANEL_N;
}
// The rows of a weight that a panel holds.
struct PanelRows {
  int64_t first, count;
};
[[gnu::always_inline]] inline constexpr PanelRows rows_of_panel(int64_t rows, bool gated, int64_t panel) {
  const int64_t of_half = gated ? rows / 2 : rows, first = (gated ? panel / 2 : panel) * PANEL_N;
  return {gated && panel % 2 ? of_half + first : first, of_half - first < PANEL_N ? of_half - first : PANEL_N};
}
// Bytes of K values of one column.
[[gnu::always_inline]] inline constexpr int64_t column_bytes(Dtype dtype, int64_t K) {
  const int64_t padded_K = round_up(K, k_group(dtype));
  return dtype == Dtype::u4 ? padded_K / 2 : padded_K * value_bytes(dtype);
}

struct PackedPanels {
  Dtype dtype;  // of the weight
  const char* panels;
  int64_t panel_bytes;
  const int32_t* excess;  // int8: -128 * sum_k q[n, k]

  // Inlined always: the levels' objects may not export it.
  [[gnu::always_inline]] explicit PackedPanels(const void* packed) {
    const auto* header = static_cast<const PackedHeader*>(packed);
    const char* data = static_cast<const char*>(packed) + sizeof(PackedHeader);
    dtype = static_cast<Dtype>(header->dtype);
    excess = reinterpret_cast<const int32_t*>(data);
    panels = dtype == Dtype::i8 ? data + num_panels(header->N, header->gated) * PANEL_N * 4 : data;
    panel_bytes = column_bytes(dtype, header->K) * PANEL_N;
    block_k = header->block_k;
    zeros = header->zeros != 0;
    if (block_k) {
      const int64_t head_bytes = SCALE_BYTES + (zeros ? PANEL_N : 0);
      block_bytes = head_bytes + column_bytes(dtype, block_k) * PANEL_N;
      panel_bytes += (header->K + block_k - 1) / block_k * head_bytes;
    }
  }
  const char* panel(int64_t p) const { return panels + p * panel_bytes; }

  static constexpr int64_t SCALE_BYTES = PANEL_N * 4;  // of a block
  int64_t block_k;
  int64_t block_bytes = 0;  // of every block but the last, which ends with K
  bool zeros;
};

}  // namespace dsf
