#include "csrc/ort/linear.h"

#include <cstring>

namespace dsf::ort_door {
namespace {

// The places of a node's inputs.
constexpr size_t X = 0, WEIGHT = 1, SCALE = 2;
size_t bias_of(const LinearNode& node) { return node.has_scale ? 3 : 2; }
size_t residual_of(const LinearNode& node) { return node.has_scale ? 4 : 3; }

// One element of value zero, in a type that is checked already: float32 or bfloat16.
bool is_zero(const TensorView& view) {
  for (int64_t d = 0; d < view.ndim; ++d)
    if (view.sizes[d] != 1) return false;
  uint32_t bits = 0;
  std::memcpy(&bits, view.data, view.dtype == Dtype::f32 ? 4 : 2);
  return bits == 0;
}

const TensorView* view_of(const std::optional<Tensor>& tensor) { return tensor ? &tensor->view : nullptr; }

class LinearKernel : public Kernel {
 public:
  LinearKernel(const LinearNode& declared, const Node& node);
  void compute(const Call& call) const override;

 private:
  LinearArgs check_node(const Node& node, const TensorView* weight) const;
  LinearArgs check_call(const Runtime& runtime, LinearCall linear) const;

  const LinearNode declared_;
  const LinearRoom& room_;
  const std::string activation_, activations_;
  bool residual_is_zero_ = false;
  Memory packed_;  // a constant weight's panels
};

LinearKernel::LinearKernel(const LinearNode& declared, const Node& node)
    : declared_(declared),
      room_(*declared.room),
      activation_(node.attribute("activation", "none")),
      activations_(node.attribute("activations", "int8")) {
  std::optional<Tensor> weight = node.constant(WEIGHT);
  const std::optional<Tensor> residual = node.constant(residual_of(declared));
  const LinearArgs args = check_node(node, view_of(weight));
  residual_is_zero_ = residual && is_zero(residual->view);
  if (!weight) return;
  weight->align(room_.op);
  packed_ = Memory(room_.op, room_.packed_bytes(weight->view.dtype, args.N, args.K));
  const Context serial{nullptr, nullptr, 1, nullptr};
  room_.pack(&serial, weight->view.dtype, weight->view.data, args.K, args.N, args.K, packed_.data());
}

// The rules that need no run: attributes, types, and the shapes of constants beside a constant weight. What is not
// known yet is made to fit; x has no rows, so that nothing reads a value.
LinearArgs LinearKernel::check_node(const Node& node, const TensorView* weight) const {
  const auto type = [&](size_t input) { return node.type(input).value_or(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED); };
  const size_t bias = bias_of(declared_), residual = residual_of(declared_);
  const int64_t one_by_one[] = {1, 1};
  const TensorView w = weight ? *weight : shape_only(type(WEIGHT), one_by_one, 2);
  const int64_t N = w.ndim ? w.sizes[0] : 1, K = w.ndim ? w.sizes[w.ndim - 1] : 1;
  const int64_t x_sizes[] = {0, K}, y_sizes[] = {0, N};
  const std::optional<Tensor> constant_scale = node.constant(SCALE), constant_bias = node.constant(bias);
  const TensorView scale_view = weight && constant_scale ? constant_scale->view : shape_only(type(SCALE), &N, 1);
  const TensorView bias_view = weight && constant_bias ? constant_bias->view : shape_only(type(bias), &N, 1);
  const TensorView residual_view = shape_only(type(residual), y_sizes, 2);

  LinearCall linear{};
  linear.x = shape_only(type(X), x_sizes, 2);
  linear.weight = w;
  linear.scale = declared_.has_scale ? &scale_view : nullptr;
  linear.bias = node.type(bias) ? &bias_view : nullptr;
  linear.residual = node.type(residual) ? &residual_view : nullptr;
  return check_call(node.runtime, linear);
}

LinearArgs LinearKernel::check_call(const Runtime& runtime, LinearCall linear) const {
  linear.out_features = -1;
  linear.activation = activation_.c_str();
  linear.activations = activations_.c_str();
  LinearArgs args{};
  Problem problem;
  if (!room_.check(&linear, &args, &problem)) fail(runtime, problem);
  return args;
}

void LinearKernel::compute(const Call& call) const {
  std::optional<Tensor> x = call.input(X), weight = call.input(WEIGHT), bias = call.input(bias_of(declared_));
  std::optional<Tensor> scale, residual;
  if (declared_.has_scale) scale = call.input(SCALE);
  if (!residual_is_zero_) residual = call.input(residual_of(declared_));
  for (std::optional<Tensor>* tensor : {&x, &bias, &scale, &residual})
    if (*tensor) (*tensor)->align(room_.op);
  if (!packed_.data()) weight->align(room_.op);

  LinearCall linear{};
  linear.x = x->view;
  linear.weight = weight->view;
  linear.scale = view_of(scale);
  linear.bias = view_of(bias);
  linear.residual = view_of(residual);
  LinearArgs args = check_call(call.runtime, linear);

  std::vector<int64_t> sizes(x->view.sizes, x->view.sizes + x->view.ndim);
  sizes.back() = args.N;
  args.y = call.output(sizes);
  args.y_stride = args.N;

  Context context = call.context();
  Memory packed;  // of a weight that may change from run to run
  if (!packed_.data()) {
    const Dtype dtype = weight->view.dtype;
    packed = Memory(room_.op, room_.packed_bytes(dtype, args.N, args.K));
    room_.pack(&context, dtype, weight->view.data, args.K, args.N, args.K, packed.data());
  }
  args.packed = packed_.data() ? packed_.data() : packed.data();
  const Memory workspace(room_.op, room_.workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  room_.run(&context, &args);
}

void infer_shape(const Shapes& shapes) {
  std::vector<Dim> x = shapes.shape(X);
  const std::vector<Dim> weight = shapes.shape(WEIGHT);
  if (x.empty()) return;
  x.back() = weight.empty() ? Dim{-1, ""} : weight.front();
  shapes.set_output(shapes.type(X), x);
}

}  // namespace

void add_linear(OpList& ops, const LinearNode& node) {
  const Input any{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, false}, maybe{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, true};
  const auto create = [node](const Node& made) { return std::make_unique<LinearKernel>(node, made); };
  for (int32_t type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; type <= ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16; ++type) {
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128) continue;
    const auto x_type = static_cast<ONNXTensorElementDataType>(type);
    std::vector<Input> inputs{{x_type, false}, any, maybe, maybe};
    if (node.has_scale) inputs.insert(inputs.begin() + SCALE, any);
    ops.push_back({node.name, std::move(inputs), x_type, create, infer_shape});
  }
}

}  // namespace dsf::ort_door
