// Planes to pixels and back.
#pragma once
#include <cstdint>
#include <cstring>

namespace dsf::fused_conv {
namespace {

template <class V, int bytes>
void to_pixels(const char* planes, int64_t plane_stride, int64_t channels, int64_t count, char* pixels,
               int64_t pixel_stride) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(pixels + (i * pixel_stride + c) * bytes, planes + (c * plane_stride + i) * bytes, bytes);
}

template <class V, int bytes>
void to_planes(const char* pixels, int64_t pixel_stride, int64_t channels, int64_t count, char* planes,
               int64_t plane_stride) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(planes + (c * plane_stride + i) * bytes, pixels + (i * pixel_stride + c) * bytes, bytes);
}

}  // namespace
}  // namespace dsf::fused_conv
