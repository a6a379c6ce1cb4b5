// Planes (a row's pixels side by side) to pixels (channels side by side) and back: transpositions of values of 4, 2 or
// 1 byte, in blocks that fit the registers. Few channels are mixed by permutations instead.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/unroll.h"

namespace dsf::fused_conv {
namespace {

// n values (or LANES, if that is less), each in a lane of its own.
template <class V, int bytes>
inline typename V::i32 load_lanes(const char* p, int64_t n) {
  if constexpr (bytes == 4) {
    const auto* values = reinterpret_cast<const float*>(p);
    return V::bits_of(n >= V::LANES ? V::load(values) : V::load_n(values, int(n)));
  } else if constexpr (bytes == 2) {
    const auto* values = reinterpret_cast<const uint16_t*>(p);
    return V::template shift_right<16>(
        V::bits_of(n >= V::LANES ? V::load_bf16(values) : V::load_bf16_n(values, int(n))));
  } else {
    return n >= V::LANES ? V::load_u8(p) : V::load_u8_n(p, int(n));
  }
}

template <class V, int bytes>
inline void store_lanes(char* p, typename V::i32 v, int64_t n) {
  const int count = n < V::LANES ? int(n) : V::LANES;
  if constexpr (bytes == 4)
    V::store_bytes_n(p, v, count * 4);
  else if constexpr (bytes == 2)
    V::store_low16(reinterpret_cast<int16_t*>(p), v, count);
  else
    V::store_low8(reinterpret_cast<uint8_t*>(p), v, count);
}

// to[j][i] = from[i][j], strides in bytes. A lane holds a column of 4 / bytes rows.
template <class V, int bytes>
struct Transpose {
  static constexpr int PER_LANE = 4 / bytes, ROWS = PER_LANE * V::LANES, COLUMNS = V::LANES;
  using i32 = typename V::i32;
  int64_t from_stride, to_stride;

  template <bool whole>
  i32 load_rows(const char* from, int64_t rows, int64_t columns) const {
    const auto row = [&](int i) {
      return whole || i < rows ? load_lanes<V, bytes>(from + i * from_stride, columns) : V::zero_i32();
    };
    i32 v = row(0);
    if constexpr (bytes == 2) v = V::or_bits(v, V::template shift_left<16>(row(1)));
    if constexpr (bytes == 1) {
      v = V::or_bits(v, V::template shift_left<8>(row(1)));
      v = V::or_bits(v, V::or_bits(V::template shift_left<16>(row(2)), V::template shift_left<24>(row(3))));
    }
    return v;
  }

  void whole_block(const char* from, char* to) const {
    i32 v[V::LANES];
    DSF_UNROLL
    for (int i = 0; i < V::LANES; ++i) v[i] = load_rows<true>(from + i * PER_LANE * from_stride, PER_LANE, COLUMNS);
    V::transpose(v);
    DSF_UNROLL
    for (int j = 0; j < COLUMNS; ++j) V::store_i32(reinterpret_cast<int32_t*>(to + j * to_stride), v[j]);
  }
  [[gnu::noinline]] void part_of_block(const char* from, int64_t rows, int64_t columns, char* to) const {
    i32 v[V::LANES];
    DSF_UNROLL
    for (int i = 0; i < V::LANES; ++i) {
      const int64_t left = rows - i * PER_LANE;
      v[i] = left > 0 ? load_rows<false>(from + i * PER_LANE * from_stride, left, columns) : V::zero_i32();
    }
    V::transpose(v);
    const int count = int(rows < ROWS ? rows : ROWS) * bytes;
    DSF_UNROLL
    for (int j = 0; j < COLUMNS; ++j)
      if (j < columns) V::store_bytes_n(to + j * to_stride, v[j], count);
  }

  void block(const char* from, int64_t rows, int64_t columns, char* to) const {
    if (rows >= ROWS && columns >= COLUMNS)
      whole_block(from, to);
    else
      part_of_block(from, rows, columns, to);
  }
};

constexpr int64_t FEW = 4;  // channels up to which whole vectors of pixels are mixed

// Two to four vectors to as many: lane l of out[o] is value k of the pixel i that it stands for.
template <class V>
struct Mix {
  using i32 = typename V::i32;
  int channels;
  alignas(64) int32_t source[FEW][V::LANES], lane[FEW][V::LANES];

  // interleave: in[c] are channels, out their pixels one after the other; else back.
  Mix(int64_t of_channels, bool interleave) : channels(int(of_channels)) {
    for (int o = 0; o < channels; ++o)
      for (int l = 0; l < V::LANES; ++l) {
        const int i = interleave ? o * V::LANES + l : l * channels + o;
        source[o][l] = interleave ? i % channels : i / V::LANES;
        lane[o][l] = interleave ? i / channels : i % V::LANES;
      }
  }
  // As many vectors of values at `from` as there are channels, `from_step` and `to_step` bytes apart.
  template <int bytes, int channels_>
  [[gnu::always_inline]] void run(const char* from, int64_t from_plane, int64_t from_step, int64_t count, char* to,
                                  int64_t to_plane, int64_t to_step) const {
    i32 sources[channels_], lanes[channels_];
    DSF_UNROLL
    for (int o = 0; o < channels_; ++o) sources[o] = V::load_i32(source[o]), lanes[o] = V::load_i32(lane[o]);
    for (; count >= V::LANES; count -= V::LANES, from += from_step, to += to_step) {
      i32 in[channels_];
      DSF_UNROLL
      for (int c = 0; c < channels_; ++c) in[c] = load_lanes<V, bytes>(from + c * from_plane, V::LANES);
      DSF_UNROLL
      for (int o = 0; o < channels_; ++o) {
        i32 out = V::permute(in[0], lanes[o]);
        DSF_UNROLL
        for (int c = 1; c < channels_; ++c) out = V::select_below(sources[o], c, out, V::permute(in[c], lanes[o]));
        store_lanes<V, bytes>(to + o * to_plane, out, V::LANES);
      }
    }
  }
};

// The pixels that fill whole vectors; returns how many. from_plane, to_plane: from one vector of a group to the next.
template <class V, int bytes>
int64_t mix(bool interleave, int64_t channels, int64_t count, const char* from, int64_t from_plane, char* to,
            int64_t to_plane) {
  const Mix<V> of(channels, interleave);
  const int64_t one = V::LANES * bytes, all = one * channels;
  const int64_t from_step = interleave ? one : all, to_step = interleave ? all : one;
  if (channels == 2) of.template run<bytes, 2>(from, from_plane, from_step, count, to, to_plane, to_step);
  if (channels == 3) of.template run<bytes, 3>(from, from_plane, from_step, count, to, to_plane, to_step);
  if (channels == 4) of.template run<bytes, 4>(from, from_plane, from_step, count, to, to_plane, to_step);
  return count / V::LANES * V::LANES;
}

// pixels[i * pixel_stride + c] = planes[c * plane_stride + i] of `channels` and `count` pixels; strides in values.
template <class V, int bytes>
void to_pixels(const char* planes, int64_t plane_stride, int64_t channels, int64_t count, char* pixels,
               int64_t pixel_stride) {
  using T = Transpose<V, bytes>;
  const T transpose{plane_stride * bytes, pixel_stride * bytes};
  if (count == 0) return;
  int64_t i = 0;
  if (channels == 1 && pixel_stride == 1) return void(std::memcpy(pixels, planes, size_t(count * bytes)));
  if (channels > 1 && channels <= FEW && pixel_stride == channels)
    i = mix<V, bytes>(true, channels, count, planes, plane_stride * bytes, pixels, V::LANES * bytes);
  for (int64_t c = 0; c < channels; c += T::ROWS)
    for (int64_t at = i; at < count; at += T::COLUMNS)
      transpose.block(planes + (c * plane_stride + at) * bytes, channels - c, count - at,
                      pixels + (at * pixel_stride + c) * bytes);
}

// planes[c * plane_stride + i] = pixels[i * pixel_stride + c].
template <class V, int bytes>
void to_planes(const char* pixels, int64_t pixel_stride, int64_t channels, int64_t count, char* planes,
               int64_t plane_stride) {
  using T = Transpose<V, bytes>;
  const T transpose{pixel_stride * bytes, plane_stride * bytes};
  if (count == 0) return;
  int64_t i = 0;
  if (channels == 1 && pixel_stride == 1) return void(std::memcpy(planes, pixels, size_t(count * bytes)));
  if (channels > 1 && channels <= FEW && pixel_stride == channels)
    i = mix<V, bytes>(false, channels, count, pixels, V::LANES * bytes, planes, plane_stride * bytes);
  for (int64_t c = 0; c < channels; c += T::COLUMNS)
    for (int64_t at = i; at < count; at += T::ROWS)
      transpose.block(pixels + (at * pixel_stride + c) * bytes, count - at, channels - c,
                      planes + (c * plane_stride + at) * bytes);
}

}  // namespace
}  // namespace dsf::fused_conv
