// The packed weight: a header, then panels of PANEL_N output channels, zero-filled at the right and bottom edge.
//   f32   panel[k][n]                      one f32 each
//   bf16  panel[k / 2][n][k % 2]           pairs of k side by side, as VDPBF16PS reads them
//   int8  panel[k / 4][n][k % 4]           quads of k side by side, as VPDPBUSD reads them; before the panels
//         -128 * sum_k q[n, k] (int32, modulo 2^32) for every n
// One layout serves every ISA level, so lowering the level never invalidates a packed weight.
#pragma once
#include <cstdint>

#include "csrc/core/tensor_view.h"

namespace dsf {

inline constexpr int64_t PANEL_N = 64;                // output channels a panel: four 512-bit vectors of 32-bit sums
inline constexpr uint32_t PACKED_MAGIC = 0x31465344;  // "DSF1" in memory
inline constexpr uint32_t PACKED_VERSION = 1;

struct PackedHeader {
  uint32_t magic;
  uint32_t version;
  int32_t dtype;  // Dtype of the weight
  int32_t reserved;
  int64_t N, K;
  int64_t bytes;  // of header and panels
  int64_t padding[3];
};
static_assert(sizeof(PackedHeader) == 64);

// k values that lie side by side in a panel.
inline constexpr int64_t k_group(Dtype dtype) { return dtype == Dtype::i8 ? 4 : dtype == Dtype::bf16 ? 2 : 1; }
inline constexpr int64_t value_bytes(Dtype dtype) { return dtype == Dtype::i8 ? 1 : dtype == Dtype::bf16 ? 2 : 4; }
inline constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

struct PackedPanels {
  const char* panels;
  int64_t panel_bytes;
  const int32_t* excess;  // int8: -128 * sum_k q[n, k]

  explicit PackedPanels(const void* packed) {
    const auto* header = static_cast<const PackedHeader*>(packed);
    const char* data = static_cast<const char*>(packed) + sizeof(PackedHeader);
    const auto dtype = static_cast<Dtype>(header->dtype);
    excess = reinterpret_cast<const int32_t*>(data);
    panels = dtype == Dtype::i8 ? data + round_up(header->N, PANEL_N) * 4 : data;
    panel_bytes = round_up(header->K, k_group(dtype)) * PANEL_N * value_bytes(dtype);
  }
  const char* panel(int64_t p) const { return panels + p * panel_bytes; }
};

}  // namespace dsf
