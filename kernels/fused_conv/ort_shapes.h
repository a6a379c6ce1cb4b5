// Shapes of the nodes' outputs before a run, for ort.cc: what is wrong with a node leaves them unknown.
#pragma once
#include "csrc/ort/custom_op.h"
#include "kernels/fused_conv/ort_int8.h"

namespace dsf::ort_door {

using Type = ONNXTensorElementDataType;
using Sizes = std::vector<int64_t>;
constexpr size_t X = 0;                             // every node's first input
constexpr int64_t LARGEST_STEP = int64_t{1} << 30;  // of a window; what is beyond is refused
inline const Sizes ONE{1, 1}, NONE{0, 0, 0, 0};     // defaults of strides and of paddings

// Places of N, C, H and W in a shape.
struct Order {
  size_t n, c, h, w;
};
constexpr Order order_of(Layout layout) { return layout == Layout::pixels ? Order{0, 3, 1, 2} : Order{0, 1, 2, 3}; }

inline Dim places(const Dim& size, int64_t before, int64_t after, int64_t kernel, int64_t stride, int64_t dilation,
                  bool ceil) {
  if (size.size < 0) return {-1, ""};
  for (const int64_t number : {size.size, before, after, kernel - 1, stride - 1, dilation - 1})
    if (number < 0 || number > LARGEST_STEP) return {-1, ""};
  const int64_t room = size.size + before + after - (kernel - 1) * dilation - 1;
  if (room < 0) return {-1, ""};
  int64_t count = (room + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (count - 1) * stride >= size.size + before) --count;
  return {count, ""};
}

struct Spatial {
  Dim h, w;
};

inline Spatial pooled(const Shapes& shapes, const Spatial& of, const std::string& prefix) {
  const auto attribute = [&](const char* name, const Sizes& fallback) {
    return shapes.attribute((prefix + name).c_str(), fallback);
  };
  const Sizes kernel = attribute("kernel", ONE), stride = attribute("stride", kernel), pad = attribute("padding", NONE);
  const bool ceil = shapes.attribute((prefix + "ceil_mode").c_str(), int64_t{0});
  if (kernel.size() != 2 || stride.size() != 2 || pad.size() != 4) return {{-1, ""}, {-1, ""}};
  if (kernel == ONE && stride == ONE && pad == NONE) return of;
  return {places(of.h, pad[0], pad[2], kernel[0], stride[0], 1, ceil),
          places(of.w, pad[1], pad[3], kernel[1], stride[1], 1, ceil)};
}

inline Layout layout_of(const Shapes& shapes, const char* name) {
  return shapes.attribute(name, "NCHW") == "NHWC" ? Layout::pixels : Layout::planes;
}

inline void set_shape(const Shapes& shapes, Type type, const Dim& n, const Dim& c, const Spatial& spatial) {
  const bool pixels = layout_of(shapes, "y_layout") == Layout::pixels;
  shapes.set_output(
      0, type, pixels ? std::vector<Dim>{n, spatial.h, spatial.w, c} : std::vector<Dim>{n, c, spatial.h, spatial.w});
}

inline void infer_any_conv(const Shapes& shapes, const std::optional<Type>& type, const ConvInputs& inputs) {
  const std::vector<Dim> x = shapes.shape(inputs.x), w = shapes.shape(inputs.weight);
  const Sizes stride = shapes.attribute("stride", ONE), dilation = shapes.attribute("dilation", ONE);
  const Sizes pad = shapes.attribute("padding", NONE);
  if (x.size() != 4 || w.size() != 4 || !type || stride.size() != 2 || dilation.size() != 2 || pad.size() != 4) return;
  const Order order = order_of(layout_of(shapes, "x_layout"));
  const Spatial sum{places(x[order.h], pad[0], pad[2], w[2].size, stride[0], dilation[0], false),
                    places(x[order.w], pad[1], pad[3], w[3].size, stride[1], dilation[1], false)};
  set_shape(shapes, *type, x[order.n], w[0], pooled(shapes, sum, "pool_"));
}

inline void infer_conv(const Shapes& shapes) { infer_any_conv(shapes, shapes.type(X), FLOAT_INPUTS); }
inline void infer_conv_int8(const Shapes& shapes) { infer_any_conv(shapes, shapes.type(Y_ZERO_POINT), INT8_INPUTS); }

inline void infer_pool(const Shapes& shapes) {
  const std::vector<Dim> x = shapes.shape(X);
  const std::optional<Type> type = shapes.type(X);
  if (x.size() != 4 || !type) return;
  const Order order = order_of(layout_of(shapes, "x_layout"));
  set_shape(shapes, *type, x[order.n], x[order.c], pooled(shapes, {x[order.h], x[order.w]}, ""));
}

inline void infer_lrn(const Shapes& shapes) {
  const std::vector<Dim> x = shapes.shape(X);
  const std::optional<Type> type = shapes.type(X);
  if (x.size() != 4 || !type) return;
  const Order order = order_of(layout_of(shapes, "x_layout"));
  set_shape(shapes, *type, x[order.n], x[order.c], {x[order.h], x[order.w]});
}

}  // namespace dsf::ort_door
