// What a FusedConvInt8 node of ONNX Runtime has beside a FusedConv: scales and zero points, inputs in QLinearConv's
// manner.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "csrc/ort/session.h"
#include "kernels/fused_conv/door.h"

namespace dsf::ort_door {

// Places of a convolution's inputs.
struct ConvInputs {
  size_t x, weight, bias, residual;
};
constexpr ConvInputs FLOAT_INPUTS{0, 1, 2, 3}, INT8_INPUTS{0, 3, 7, 8};
constexpr size_t X_SCALE = 1, X_ZERO_POINT = 2, WEIGHT_SCALE = 4, Y_SCALE = 5, Y_ZERO_POINT = 6, RESIDUAL_SCALE = 9,
                 RESIDUAL_ZERO_POINT = 10;  // of a FusedConvInt8

struct Quantization {
  std::optional<Tensor> weight_scale;
  ConvQuantization numbers{1, 1, 1, 0, 0, 0, Dtype::other};
};

// The scales and zero points of a node. input(place) gives a tensor, or nothing for the residual's.
template <class Input>
Quantization read_quantization(const Runtime& runtime, const char* op, const Input& input) {
  const auto refuse = [&](Fault fault, const char* arg, const char* rule, const std::string& got) {
    Problem problem{fault, {}};
    std::snprintf(problem.sentence, sizeof problem.sentence, "%s: %s must %s; got %.80s", op, arg, rule, got.c_str());
    fail(runtime, problem);
  };
  const auto check_one = [&](const char* arg, const TensorView& view) {
    const auto is_one = [](int64_t size) { return size == 1; };
    if (!std::all_of(view.sizes, view.sizes + view.ndim, is_one))
      refuse(Fault::value, arg, "be one value", "a tensor of " + std::to_string(view.ndim) + " dimensions");
  };
  const auto scale = [&](size_t place, const char* arg, double* number) {
    const std::optional<Tensor> tensor = input(place);
    if (!tensor) return;
    if (tensor->view.dtype != Dtype::f32)
      refuse(Fault::type, arg, "be float32", std::string("dtype ") + tensor->view.dtype_name);
    check_one(arg, tensor->view);
    float value;
    std::memcpy(&value, tensor->view.data, sizeof value);
    *number = value;
  };
  const auto zero_point = [&](size_t place, const char* arg, int64_t* number) {
    const std::optional<Tensor> tensor = input(place);
    if (!tensor) return Dtype::other;
    const TensorView& view = tensor->view;
    if (view.dtype != Dtype::u8 && view.dtype != Dtype::i8)
      refuse(Fault::type, arg, "be uint8 or int8", std::string("dtype ") + view.dtype_name);
    check_one(arg, view);
    *number =
        view.dtype == Dtype::u8 ? *static_cast<const uint8_t*>(view.data) : *static_cast<const int8_t*>(view.data);
    return view.dtype;
  };
  Quantization found;
  ConvQuantization& numbers = found.numbers;
  scale(X_SCALE, "x_scale", &numbers.x_scale);
  scale(Y_SCALE, "y_scale", &numbers.y_scale);
  scale(RESIDUAL_SCALE, "residual_scale", &numbers.residual_scale);
  zero_point(X_ZERO_POINT, "x_zero_point", &numbers.x_zero_point);
  zero_point(RESIDUAL_ZERO_POINT, "residual_zero_point", &numbers.residual_zero_point);
  numbers.y_dtype = zero_point(Y_ZERO_POINT, "y_zero_point", &numbers.y_zero_point);
  found.weight_scale = input(WEIGHT_SCALE);
  if (found.weight_scale && found.weight_scale->view.dtype == Dtype::f32) found.weight_scale->align(op);
  return found;
}

}  // namespace dsf::ort_door
