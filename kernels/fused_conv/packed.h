// The packed weight of fused_conv: a header, then what the weight's path reads. Which path that is follows from the
// weight's shape alone, so that one packed weight serves every level, stride, dilation and layout.
//   tiles      panels of PANEL_F channels of one group, zero-filled at the right edge:
//                f32    panel[r][s][c][f]
//                bf16   panel[r][s][c / 2][f][c % 2]     pairs of c, the last one zero-filled
//                s8     panel[r][s][c / 4][f][c % 4]     quads of c; before the panels, of every f, the sum of its
//                       weights in int32
//   stem       tiles whose taps of one row are one run: c and s count on together, s * C + c, and pairs and quads go on
//              over them; for few channels and one group
//   depthwise  [r][s][f], F rounded up to DEPTHWISE_LANES, zero-filled; f32, bf16 as f32, s8 as s8 and the sums
//   grouped    [r][s][c][f] alike, f over all groups, c within one
//   winograd   panel[point][c][f] of G weight G^T, zero-filled as `tiles`; f32
// The last one is a caller's choice, for 3x3 weights of one group.
#pragma once
#include <cstdint>

#include "csrc/core/tensor_view.h"

namespace dsf::fused_conv {

inline constexpr int64_t PANEL_F = 32;  // output channels a panel: two 512-bit vectors of 32-bit sums
inline constexpr int64_t DEPTHWISE_LANES = 16;
inline constexpr uint32_t PACKED_MAGIC = 0x43465344;  // "DSFC" in memory
inline constexpr uint32_t PACKED_VERSION = 1;

enum class Path : int32_t { tiles, stem, depthwise, grouped, winograd };

struct PackedHeader {
  uint32_t magic;
  uint32_t version;
  int32_t dtype;  // of the weight: f32, bf16 or i8
  int32_t path;
  int64_t F, C, R, S;  // C: of one group
  int64_t groups;
  int64_t bytes;  // of header and all
};
static_assert(sizeof(PackedHeader) == 64);

inline constexpr int64_t STEM_C = 4;  // channels of x up to which a row's taps are one run
// Output channels a group below which a panel would be mostly zeros. A tile of 4 channels costs what one of 16 does.
inline constexpr int64_t GROUPED_F = 8;

inline constexpr Path path_of(int64_t F, int64_t C, int64_t S, int64_t groups) {
  if (groups > 1 && C == 1 && F == groups) return Path::depthwise;
  if (groups > 1 && F / groups <= GROUPED_F) return Path::grouped;
  return groups == 1 && C <= STEM_C && S > 1 ? Path::stem : Path::tiles;
}

// Winograd's F(4x4, 3x3): values of a side of a tile of y, and points.
inline constexpr int64_t WINOGRAD_OUT = 4, WINOGRAD_POINTS = 36;
// The tiles worked on at a time. Their transformed x is read once for every panel: from L2 where as much as
// MIN_L2_TILES fits there. Fewer would read the weights, 36 C F values, more often than they spare x a way from L3:
// then as many tiles as may take of that. At least a register tile of them.
inline constexpr int64_t WINOGRAD_L2_BYTES = 512 << 10, WINOGRAD_L3_BYTES = 4 << 20;
inline constexpr int64_t WINOGRAD_MIN_L2_TILES = 32, WINOGRAD_MIN_TILES = 14;
inline constexpr int64_t winograd_most_rows(int64_t C, int64_t per_row) {  // of tiles
  const int64_t tile_bytes = WINOGRAD_POINTS * 4 * (C > 0 ? C : 1);
  const int64_t of_l2 = WINOGRAD_L2_BYTES / tile_bytes;
  const int64_t tiles = of_l2 >= WINOGRAD_MIN_L2_TILES ? of_l2 : WINOGRAD_L3_BYTES / tile_bytes;
  const int64_t fitting = tiles / per_row, fewest = (WINOGRAD_MIN_TILES + per_row - 1) / per_row;
  return fitting > fewest ? fitting : fewest;
}
// Even shares of `rows`. Fewer rows may have larger ones: what is sized for all of them goes by winograd_most_rows.
inline constexpr int64_t winograd_rows(int64_t C, int64_t per_row, int64_t rows) {
  const int64_t most_rows = winograd_most_rows(C, per_row);
  if (most_rows >= rows) return rows;
  const int64_t steps = (rows + most_rows - 1) / most_rows;
  return (rows + steps - 1) / steps;
}
// From one point to the next, of so many tiles: an odd number of cache lines, or all points share few places of L1.
inline constexpr int64_t winograd_point_values(int64_t C, int64_t tiles) { return ((C * tiles + 15) / 16 | 1) * 16; }

inline constexpr int64_t winograd_product_values(int64_t tiles) { return tiles * PANEL_F + 16; }

}  // namespace dsf::fused_conv
