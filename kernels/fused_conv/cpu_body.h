// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include "kernels/fused_conv/cpu_kernels.h"
#include "kernels/fused_conv/depthwise.h"
#include "kernels/fused_conv/grouped.h"
#include "kernels/fused_conv/lrn.h"
#include "kernels/fused_conv/planes.h"
#include "kernels/fused_conv/pool.h"
#include "kernels/fused_conv/tiles.h"
#include "kernels/fused_conv/winograd.h"

namespace dsf::fused_conv {
namespace {

template <Dtype dtype>
constexpr auto lrn_of() {
  if constexpr (dtype == Dtype::f32 || dtype == Dtype::bf16)
    return lrn<Vec, dtype>;
  else
    return nullptr;
}

template <Dtype dtype>
constexpr Kernel KERNEL = {tiles<Vec, dtype>,
                           depthwise<Vec, dtype>,
                           grouped<Vec, dtype>,
                           dtype == Dtype::f32 ? winograd<Vec> : nullptr,
                           pool<Vec, dtype>,
                           lrn_of<dtype>(),
                           to_pixels<Vec, int(value_bytes(dtype))>,
                           to_planes<Vec, int(value_bytes(dtype))>};

}  // namespace
}  // namespace dsf::fused_conv
