#include <cstring>

#include "csrc/core/check.h"
#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/cpu_kernels.h"
#include "kernels/fused_conv/packed.h"

namespace dsf {
namespace {

using namespace fused_conv;

// The weight as packing reads it.
struct Weight {
  const char* values;
  Dtype dtype;
  int64_t F, C, R, S, groups;  // C: of one group
  bool winograd;
  int64_t step_f, step_c, step_r, step_s;  // bytes

  explicit Weight(const ConvWeight& weight) {
    const TensorView& view = weight.values;
    values = static_cast<const char*>(view.data);
    dtype = view.dtype;
    F = view.sizes[0], C = view.sizes[1], R = view.sizes[2], S = view.sizes[3];
    groups = weight.groups;
    winograd = weight.algorithm && std::strcmp(weight.algorithm, "winograd") == 0;
    int64_t steps[4] = {C * R * S, R * S, S, 1};
    for (int d = 0; d < 4; ++d) steps[d] = (view.strides ? view.strides[d] : steps[d]) * value_bytes(dtype);
    step_f = steps[0], step_c = steps[1], step_r = steps[2], step_s = steps[3];
  }
  const char* at(int64_t f, int64_t c, int64_t r, int64_t s) const {
    return values + f * step_f + c * step_c + r * step_r + s * step_s;
  }
  Path path() const { return winograd ? Path::winograd : path_of(F, C, S, groups); }
};

// Runs of a pixel's values, as the tiles read them, and what lies side by side in a panel.
struct Runs {
  int64_t count, length, group;
  explicit Runs(const Weight& w) {
    const bool stem = w.path() == Path::stem;
    count = w.winograd ? WINOGRAD_POINTS : stem ? w.R : w.R * w.S;
    length = stem ? w.S * w.C : w.C;
    group = 4 / value_bytes(w.dtype);
  }
  int64_t panel_bytes() const { return count * round_up(length, group) * PANEL_F * (4 / group); }
};

int64_t panels_of_group(const Weight& w) { return (w.F / w.groups + PANEL_F - 1) / PANEL_F; }

// What panel p of group g holds.
struct PanelPlace {
  int64_t first, columns;  // filters
  PanelPlace(const Weight& w, int64_t g, int64_t p) {
    const int64_t group_F = w.F / w.groups, left = group_F - p * PANEL_F;
    first = g * group_F + p * PANEL_F;
    columns = left < PANEL_F ? left : PANEL_F;
  }
};

// panel[run][c / group][f][c % group] = weight[first + f, c of the run].
template <class Value>
void pack_panel(const Weight& w, const Runs& runs, const PanelPlace& place, Value* panel) {
  const bool stem = w.path() == Path::stem;
  const int64_t run_values = round_up(runs.length, runs.group) * PANEL_F;
  for (int64_t i = 0; i < runs.count; ++i, panel += run_values)
    for (int64_t c = 0; c < runs.length; ++c) {
      const int64_t r = stem ? i : i / w.S, s = stem ? c / w.C : i % w.S, channel = stem ? c % w.C : c;
      const char* from = w.at(place.first, channel, r, s);
      Value* to = panel + c / runs.group * PANEL_F * runs.group + c % runs.group;
      for (int64_t f = 0; f < place.columns; ++f, from += w.step_f)
        std::memcpy(to + f * runs.group, from, sizeof(Value));
    }
}

// The same of filters whose values lie side by side, taps within channels or channels within taps: some channels at a
// time are turned into rows of PANEL_F filters in L1, and those written where they belong.
constexpr int64_t TURNED_ROWS = 256;  // 32 KiB of f32

bool has_whole_filters(const Weight& w) {
  const int64_t taps = w.R * w.S, value = value_bytes(w.dtype);
  const bool taps_within = w.step_s == value && w.step_r == w.S * value && w.step_c == taps * value;
  const bool channels_within = w.step_c == value && w.step_s == w.C * value && w.step_r == w.S * w.C * value;
  return (taps_within || channels_within) && taps * 4 <= TURNED_ROWS && w.step_f % value == 0;
}

template <class Value>
void turn_panel(const Weight& w, const Runs& runs, const PanelPlace& place, Value* panel) {
  alignas(64) Value rows[TURNED_ROWS * PANEL_F] = {};
  const auto turn = fused_conv::kernel_of(w.dtype).to_pixels;
  const int64_t taps = w.R * w.S, value = sizeof(Value), group = runs.group;
  const int64_t most = TURNED_ROWS / taps / group * group;  // channels at a time
  const bool taps_within = w.step_c == taps * value;
  for (int64_t c = 0; c < w.C; c += most) {
    const int64_t count = w.C - c < most ? w.C - c : most;
    const char* from = w.at(place.first, c, 0, 0);
    const auto turn_run = [&](int64_t first, int64_t length, Value* to) {
      turn(from + first * value, w.step_f / value, place.columns, length, reinterpret_cast<char*>(to), PANEL_F);
    };
    if (taps_within)
      turn_run(0, count * taps, rows);
    else
      for (int64_t tap = 0; tap < taps; ++tap) turn_run(tap * w.C, count, rows + tap * most * PANEL_F);
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < count; ++i) {
        const Value* row = rows + (taps_within ? i * taps + tap : tap * most + i) * PANEL_F;
        Value* to = panel + ((tap * round_up(w.C, group) + c + i) / group * PANEL_F) * group + i % group;
        for (int64_t f = 0; f < PANEL_F; ++f) to[f * group] = row[f];
      }
  }
}

template <class Value>
void pack_any(const Weight& w, const Runs& runs, const PanelPlace& place, char* panel) {
  auto* to = reinterpret_cast<Value*>(panel);
  w.path() == Path::tiles&& has_whole_filters(w) ? turn_panel(w, runs, place, to) : pack_panel(w, runs, place, to);
}

// G g G^T, computed in f64 and rounded once: all filters of a panel at a time.
void pack_winograd(const Weight& w, const PanelPlace& place, float* panel) {
  constexpr double G[6][3] = {{1. / 4, 0, 0},
                              {-1. / 6, -1. / 6, -1. / 6},
                              {-1. / 6, 1. / 6, -1. / 6},
                              {1. / 24, 1. / 12, 1. / 6},
                              {1. / 24, -1. / 12, 1. / 6},
                              {0, 0, 1}};
  double g[3][3][PANEL_F] = {}, rows[6][3][PANEL_F];  // rows: G g
  for (int64_t c = 0; c < w.C; ++c) {
    for (int r = 0; r < 3; ++r)
      for (int s = 0; s < 3; ++s)
        for (int64_t f = 0; f < place.columns; ++f) {
          float value;
          std::memcpy(&value, w.at(place.first + f, c, r, s), sizeof value);
          g[r][s][f] = double(value);
        }
    for (int i = 0; i < 6; ++i)
      for (int s = 0; s < 3; ++s)
        for (int64_t f = 0; f < PANEL_F; ++f)
          rows[i][s][f] = G[i][0] * g[0][s][f] + G[i][1] * g[1][s][f] + G[i][2] * g[2][s][f];
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 6; ++j) {
        float* to = panel + ((i * 6 + j) * w.C + c) * PANEL_F;
        for (int64_t f = 0; f < PANEL_F; ++f)
          to[f] = float(rows[i][0][f] * G[j][0] + rows[i][1][f] * G[j][1] + rows[i][2][f] * G[j][2]);
      }
  }
}

// [r][s][c][f], bf16 as f32.
void pack_channels(const Weight& w, char* to) {
  const int64_t lanes = round_up(w.F, DEPTHWISE_LANES), bytes = w.dtype == Dtype::i8 ? 1 : 4;
  for (int64_t r = 0; r < w.R; ++r)
    for (int64_t s = 0; s < w.S; ++s)
      for (int64_t c = 0; c < w.C; ++c, to += lanes * bytes)
        for (int64_t f = 0; f < w.F; ++f) {
          const char* from = w.at(f, c, r, s);
          if (w.dtype == Dtype::bf16) {
            uint16_t half;
            std::memcpy(&half, from, 2);
            const uint32_t bits = uint32_t(half) << 16;
            std::memcpy(to + f * 4, &bits, 4);
          } else {
            std::memcpy(to + f * bytes, from, size_t(bytes));
          }
        }
}

void pack_sums(const Weight& w, int32_t* sums) {
  for (int64_t f = 0; f < w.F; ++f) {
    uint32_t sum = 0;
    for (int64_t r = 0; r < w.R; ++r)
      for (int64_t s = 0; s < w.S; ++s)
        for (int64_t c = 0; c < w.C; ++c) sum += uint32_t(int32_t(*reinterpret_cast<const int8_t*>(w.at(f, c, r, s))));
    sums[f] = int32_t(sum);
  }
}

int64_t sums_bytes(const Weight& w) { return w.dtype == Dtype::i8 ? round_up(w.F, DEPTHWISE_LANES) * 4 : 0; }

}  // namespace

int64_t dsf_fused_conv_packed_bytes(const ConvWeight* weight) {
  const Weight w(*weight);
  int64_t values = 0, bytes = 0;
  if (w.path() == Path::depthwise || w.path() == Path::grouped) {
    if (!checked_mul(round_up(w.F, DEPTHWISE_LANES), w.R, &values) || !checked_mul(values, w.S, &values) ||
        !checked_mul(values, w.C, &values) || !checked_mul(values, w.dtype == Dtype::i8 ? 1 : 4, &bytes))
      return -1;
  } else {
    const Runs runs(w);
    if (!checked_mul(w.winograd ? WINOGRAD_POINTS : w.R, w.S, &values) || !checked_mul(values, w.C + 4, &values) ||
        !checked_mul(values, w.F + w.groups * PANEL_F, &values) || !checked_mul(values, 4, &values))
      return -1;
    bytes = w.groups * panels_of_group(w) * runs.panel_bytes();
  }
  return int64_t(sizeof(fused_conv::PackedHeader)) + sums_bytes(w) + bytes;
}

void dsf_fused_conv_pack(const Context* context, const ConvWeight* weight, void* packed) {
  const Weight w(*weight);
  const int64_t bytes = dsf_fused_conv_packed_bytes(weight);
  const fused_conv::PackedHeader header = {fused_conv::PACKED_MAGIC,
                                           fused_conv::PACKED_VERSION,
                                           int32_t(w.dtype),
                                           int32_t(w.path()),
                                           w.F,
                                           w.C,
                                           w.R,
                                           w.S,
                                           w.groups,
                                           bytes};
  std::memcpy(packed, &header, sizeof header);
  char* data = static_cast<char*>(packed) + sizeof header;
  std::memset(data, 0, size_t(bytes) - sizeof header);
  if (w.dtype == Dtype::i8) pack_sums(w, reinterpret_cast<int32_t*>(data));
  data += sums_bytes(w);
  if (w.path() == Path::depthwise || w.path() == Path::grouped) {
    pack_channels(w, data);
    return;
  }
  const Runs runs(w);
  const int64_t panels = panels_of_group(w);
  parallel_for(*context, w.groups * panels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* panel = data + i * runs.panel_bytes();
      const PanelPlace place(w, i / panels, i % panels);
      if (w.winograd)
        pack_winograd(w, place, reinterpret_cast<float*>(panel));
      else if (w.dtype == Dtype::f32)
        pack_any<float>(w, runs, place, panel);
      else if (w.dtype == Dtype::bf16)
        pack_any<uint16_t>(w, runs, place, panel);
      else
        pack_any<int8_t>(w, runs, place, panel);
    }
  });
}

}  // namespace dsf
