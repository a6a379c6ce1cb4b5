#include "csrc/ort/linear.h"

#include <algorithm>
#include <cstring>

#include "csrc/gemm/block_scale.h"
#include "csrc/gemm/linear_door.h"

namespace dsf::ort_door {
namespace {

// The places of a node's inputs.
constexpr size_t X = 0, WEIGHT = 1, SCALE = 2, ZEROS = 3;
constexpr const char* GATED = "gated";
constexpr int64_t BLOCK = 128;        // the attribute block's default, both ways
constexpr int64_t GROUP_SIZE = 32;    // the attribute group_size's default
constexpr int64_t NO_ZERO_POINT = 8;  // the zero point of an int4 weight that has none
size_t bias_of(const LinearNode& node) { return 2u + node.has_scale + node.is_int4; }
size_t residual_of(const LinearNode& node) { return bias_of(node) + 1; }

// One element of value zero, in a type that is checked already.
bool is_zero(const TensorView& view) {
  for (int64_t d = 0; d < view.ndim; ++d)
    if (view.sizes[d] != 1) return false;
  uint32_t bits = 0;
  std::memcpy(&bits, view.data, view.dtype == Dtype::f32 ? 4 : 2);
  return bits == 0;
}

// The zero points that mean what none mean; a node that carries its body has to give some.
bool are_no_zero_points(const TensorView& view) {
  if (view.dtype != Dtype::u8) return false;
  int64_t count = 1;
  for (int64_t d = 0; d < view.ndim; ++d) count *= view.sizes[d];
  const auto* values = static_cast<const uint8_t*>(view.data);
  return std::all_of(values, values + count, [](uint8_t value) { return value == NO_ZERO_POINT; });
}

const TensorView* view_of(const std::optional<Tensor>& tensor) { return tensor ? &tensor->view : nullptr; }

class LinearKernel : public Kernel {
 public:
  LinearKernel(const LinearNode& declared, const Node& node);
  void compute(const Call& call) const override;

 private:
  void check_block(const Node& node) const;
  LinearWeight weight_of(const TensorView& values, const TensorView* scale, const TensorView* zeros) const;
  void check_node(const Node& node, const TensorView* weight) const;
  LinearArgs check_call(const Runtime& runtime, LinearCall linear) const;

  const LinearNode declared_;
  const LinearRoom& room_;
  const std::string activation_, activations_;
  const std::vector<int64_t> block_;
  const int64_t in_features_;
  const bool gated_;
  bool residual_is_zero_ = false, has_zeros_ = false;
  Memory packed_;  // a constant weight's panels
};

LinearKernel::LinearKernel(const LinearNode& declared, const Node& node)
    : declared_(declared),
      room_(*declared.room),
      activation_(node.attribute("activation", "none")),
      activations_(node.attribute(declared.is_int4 ? "compute" : "activations", declared.activations)),
      block_(declared.is_int4 ? std::vector<int64_t>{1, node.attribute("group_size", GROUP_SIZE)}
                              : node.attribute("block", {BLOCK, BLOCK})),
      in_features_(declared.is_int4 ? node.attribute("in_features", int64_t{-1}) : -1),
      gated_(node.attribute(GATED, int64_t{0}) != 0),
      has_zeros_(declared.is_int4 && node.type(ZEROS)) {
  std::optional<Tensor> weight = node.constant(WEIGHT), scale, zeros;
  check_block(node);
  if (room_.packs_scale) scale = node.constant(SCALE);
  if (has_zeros_) zeros = node.constant(ZEROS);
  const std::optional<Tensor> residual = node.constant(residual_of(declared));
  check_node(node, view_of(weight));
  residual_is_zero_ = residual && is_zero(residual->view);
  if (!weight || (room_.packs_scale && !scale) || (has_zeros_ && !zeros)) return;
  if (zeros && are_no_zero_points(zeros->view)) {
    has_zeros_ = false;
    zeros.reset();
  }
  weight->align(room_.op);
  if (scale) scale->align(room_.op);
  const LinearWeight found = weight_of(weight->view, view_of(scale), view_of(zeros));
  packed_ = Memory(room_.op, room_.packed_bytes(&found));
  const Context serial{nullptr, nullptr, 1, nullptr};
  room_.pack(&serial, &found, packed_.data());
}

// Two integers; what they may be is the room's to say.
void LinearKernel::check_block(const Node& node) const {
  if (block_.size() == 2) return;
  Problem problem;
  dsf_block_error(room_.op, node.tuple_text("block").c_str(), &problem);
  fail(node.runtime, problem);
}

LinearWeight LinearKernel::weight_of(const TensorView& values, const TensorView* scale, const TensorView* zeros) const {
  return {values, scale, block_.front(), block_.back(), zeros, in_features_, gated_};
}

// The rules that need no run: attributes, types, and the shapes of constants beside a constant weight. What is not
// known yet is made to fit; x has no rows, so that nothing reads a value.
void LinearKernel::check_node(const Node& node, const TensorView* weight) const {
  const auto type = [&](size_t input) { return node.type(input).value_or(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED); };
  const size_t bias = bias_of(declared_), residual = residual_of(declared_);
  const int64_t any_weight[] = {gated_ ? 2 : 1, in_features_ >= 0 ? in_features_ / 2 + in_features_ % 2 : 1};
  const TensorView w = weight ? *weight : shape_only(type(WEIGHT), any_weight, 2);
  const int64_t N = w.ndim ? w.sizes[0] : 1, columns = w.ndim ? w.sizes[w.ndim - 1] : 1;
  const int64_t K = in_features_ >= 0 ? in_features_ : declared_.is_int4 ? columns * 2 : columns;
  const int64_t x_sizes[] = {0, K}, y_sizes[] = {0, gated_ ? N / 2 : N};
  const std::optional<Tensor> constant_scale = node.constant(SCALE), constant_bias = node.constant(bias);
  const auto parts = [](int64_t size, int64_t block) { return block > 0 ? num_blocks(size, block) : 1; };
  const LinearWeight blocks = weight_of(w, nullptr, nullptr);
  const int64_t scale_sizes[] = {room_.packs_scale ? parts(N, blocks.block_n) : N, parts(K, blocks.block_k)};
  const TensorView scale_view =
      weight && constant_scale ? constant_scale->view : shape_only(type(SCALE), scale_sizes, 1 + room_.packs_scale);
  const std::optional<Tensor> constant_zeros = has_zeros_ ? node.constant(ZEROS) : std::nullopt;
  const TensorView zeros_view =
      weight && constant_zeros ? constant_zeros->view : shape_only(type(ZEROS), scale_sizes, 2);
  const TensorView bias_view = weight && constant_bias ? constant_bias->view : shape_only(type(bias), &N, 1);
  const TensorView residual_view = shape_only(type(residual), y_sizes, 2);

  LinearCall linear{};
  linear.x = shape_only(type(X), x_sizes, 2);
  linear.weight = weight_of(w, declared_.has_scale ? &scale_view : nullptr, has_zeros_ ? &zeros_view : nullptr);
  linear.bias = node.type(bias) ? &bias_view : nullptr;
  linear.residual = node.type(residual) ? &residual_view : nullptr;
  check_call(node.runtime, linear);
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
  std::optional<Tensor> scale, zeros, residual;
  if (declared_.has_scale) scale = call.input(SCALE);
  if (has_zeros_) zeros = call.input(ZEROS);
  if (!residual_is_zero_) residual = call.input(residual_of(declared_));
  if (packed_.data() && room_.packs_scale) {  // their values were checked and packed: no need to look again
    scale->view.data = nullptr;
    if (zeros) zeros->view.data = nullptr;
  }
  for (std::optional<Tensor>* tensor : {&x, &bias, &scale, &residual})
    if (*tensor) (*tensor)->align(room_.op);
  if (!packed_.data()) weight->align(room_.op);

  LinearCall linear{};
  linear.x = x->view;
  linear.weight = weight_of(weight->view, view_of(scale), view_of(zeros));
  linear.bias = view_of(bias);
  linear.residual = view_of(residual);
  LinearArgs args = check_call(call.runtime, linear);

  std::vector<int64_t> sizes(x->view.sizes, x->view.sizes + x->view.ndim);
  sizes.back() = args.N;
  args.y = call.output(0, sizes);
  args.y_stride = args.N;

  args.packed = packed_.data();
  run_checked(room_, call.context(), &args, packed_.data() ? nullptr : &linear.weight);
}

void infer(const Shapes& shapes) {
  std::vector<Dim> x = shapes.shape(X);
  const std::vector<Dim> weight = shapes.shape(WEIGHT);
  const std::optional<ONNXTensorElementDataType> type = shapes.type(X);
  if (x.empty() || !type) return;
  x.back() = weight.empty() ? Dim{-1, ""} : weight.front();
  if (shapes.attribute(GATED, int64_t{0})) x.back() = {x.back().size < 0 ? -1 : x.back().size / 2, ""};
  shapes.set_output(0, *type, x);
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
    if (node.is_int4) inputs.insert(inputs.begin() + ZEROS, maybe);
    ops.push_back({node.name, std::move(inputs), {x_type}, create, infer});
  }
}

}  // namespace dsf::ort_door
