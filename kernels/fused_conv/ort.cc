// FusedConv(X, W, B?, R?; ...) -> Y, Pool2d(X; ...) -> Y and LocalResponseNorm(X; ...) -> Y: T = float or bfloat16 for
// all of a node's tensors, Pool2d's also uint8 and int8. FusedConvInt8: see ort_int8.h; X and Y are uint8 or int8.
// x_layout and y_layout say how X, and Y and R, lie: "NCHW" or "NHWC"; their shapes follow.
#include "kernels/fused_conv/ort_shapes.h"

namespace dsf::ort_door {
namespace {

constexpr const char *CONV = "fused_conv", *CONV_INT8 = "fused_conv_int8", *POOL = "pool2d",
                     *LRN = "local_response_norm";
constexpr Type UNDEFINED = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

const TensorView* view_of(const std::optional<Tensor>& tensor) { return tensor ? &tensor->view : nullptr; }

[[noreturn]] void fail_value(const Runtime& runtime, const char* op, const char* arg, const char* rule,
                             const char* got) {
  Problem problem{Fault::value, {}};
  std::snprintf(problem.sentence, sizeof problem.sentence, "%s: %s must %s; got %.80s", op, arg, rule, got);
  fail(runtime, problem);
}

Sizes numbers(const Node& node, const char* op, const char* name, size_t count, const Sizes& fallback) {
  Sizes found = node.attribute(name, fallback);
  if (found.size() == count) return found;
  fail_value(node.runtime, op, name, count == 2 ? "be 2 numbers" : "be 4 numbers", node.tuple_text(name).c_str());
}

Layout layout_of(const Node& node, const char* op, const char* name) {
  const std::string text = node.attribute(name, "NCHW");
  if (text == "NCHW") return Layout::planes;
  if (text == "NHWC") return Layout::pixels;
  fail_value(node.runtime, op, name, "be one of NCHW, NHWC", ("'" + text + "'").c_str());
}

// A tensor of the layout as (N, C, H, W).
struct Image {
  Image(const TensorView& tensor, Layout layout) : view(tensor) {
    if (tensor.ndim != 4) return;  // to be refused
    const Order order = order_of(layout);
    int64_t from = 0;
    for (const size_t place : {order.n, order.c, order.h, order.w}) sizes[from++] = tensor.sizes[place];
    const Strides s = fused_conv::strides_of(layout, sizes[1], sizes[2], sizes[3]);
    const int64_t steps[] = {s.n, s.c, s.h, s.w};
    std::copy(steps, steps + 4, strides);
    view.sizes = sizes;
    view.strides = strides;
  }
  Image(const Image&) = delete;

  TensorView view;
  int64_t sizes[4], strides[4];
};

void check_rank(const Runtime& runtime, const char* op, const char* arg, const TensorView& view) {
  if (view.ndim == 4) return;
  fail_value(runtime, op, arg, "have 4 dimensions", ("shape of " + std::to_string(view.ndim)).c_str());
}

Sizes sizes_of(Layout layout, int64_t N, int64_t C, int64_t H, int64_t W) {
  return layout == Layout::pixels ? Sizes{N, H, W, C} : Sizes{N, C, H, W};
}

// One value, or all of them, zero, of f32, bf16 or i32: what a node gives that has no bias or no residual.
bool is_zero(const TensorView& view) {
  if (view.dtype != Dtype::f32 && view.dtype != Dtype::bf16 && view.dtype != Dtype::i32) return false;
  int64_t bytes = view.dtype == Dtype::bf16 ? 2 : 4;
  for (int64_t d = 0; d < view.ndim; ++d) bytes *= view.sizes[d];
  const char* values = static_cast<const char*>(view.data);
  return std::all_of(values, values + bytes, [](char byte) { return byte == 0; });
}
bool has_one_value(const TensorView& view) {
  return std::all_of(view.sizes, view.sizes + view.ndim, [](int64_t size) { return size == 1; });
}

// What a check before a run takes for sizes that are not known yet: the smallest that a window fits into.
int64_t fitting(int64_t known, int64_t kernel, int64_t stride, int64_t dilation, int64_t of_next) {
  if (known >= 0) return known;
  for (const int64_t number : {kernel, stride, dilation, of_next})
    if (number < 1 || number > LARGEST_STEP) return 1;
  return dilation >= LARGEST_STEP / kernel || stride >= LARGEST_STEP / of_next
             ? 1
             : (of_next - 1) * stride + (kernel - 1) * dilation + 1;
}

// A FusedConv or a FusedConvInt8.
class ConvKernel : public Kernel {
 public:
  ConvKernel(const Node& node, bool is_int8);
  void compute(const Call& call) const override;

 private:
  ConvOptions options_of(const Node& node, const std::optional<Tensor>& weight) const;
  void quantize(const Node& node);
  bool is_no_residual(const Node& node) const;
  void check_node(const Node& node) const;
  ConvArgs check(const Runtime& runtime, const ConvCall& call) const;

  const bool is_int8_;
  const char* const op_;
  const ConvInputs inputs_;
  const Layout x_layout_, y_layout_;
  bool bias_is_zero_ = false, residual_is_zero_ = false;
  Quantization quantization_;             // of a FusedConvInt8; of scales that a run may change the types alone
  bool quantization_is_constant_ = true;  // a FusedConv has none
  std::unique_ptr<ConvRequest> request_;
  Memory packed_;  // a constant weight
  int64_t packed_bytes_ = 0;
};

ConvKernel::ConvKernel(const Node& node, bool is_int8)
    : is_int8_(is_int8),
      op_(is_int8 ? CONV_INT8 : CONV),
      inputs_(is_int8 ? INT8_INPUTS : FLOAT_INPUTS),
      x_layout_(layout_of(node, op_, "x_layout")),
      y_layout_(layout_of(node, op_, "y_layout")) {
  std::optional<Tensor> weight = node.constant(inputs_.weight);
  const std::optional<Tensor> bias = node.constant(inputs_.bias);
  bias_is_zero_ = bias && is_zero(bias->view);
  if (is_int8) quantize(node);
  residual_is_zero_ = is_no_residual(node);
  const auto raise = [&](const Problem& problem) { fail(node.runtime, problem); };
  request_ = std::make_unique<ConvRequest>(op_, false, options_of(node, std::nullopt), raise);
  check_node(node);
  if (!weight) return;
  weight->align(op_);
  const ConvWeight plain{weight->view, request_->call.groups, request_->call.algorithm};
  packed_bytes_ = dsf_fused_conv_packed_bytes(&plain);
  packed_ = Memory(op_, packed_bytes_);
  const Context serial{nullptr, nullptr, 1, nullptr};
  dsf_fused_conv_pack(&serial, &plain, packed_.data());
  request_ = std::make_unique<ConvRequest>(op_, true, options_of(node, weight), raise);
}

// What of the scales and zero points no run changes.
void ConvKernel::quantize(const Node& node) {
  for (const size_t place :
       {X_SCALE, X_ZERO_POINT, WEIGHT_SCALE, Y_SCALE, Y_ZERO_POINT, RESIDUAL_SCALE, RESIDUAL_ZERO_POINT})
    quantization_is_constant_ &= !node.type(place) || node.constant(place).has_value();
  if (quantization_is_constant_)
    quantization_ = read_quantization(node.runtime, op_, [&](size_t place) { return node.constant(place); });
  else
    quantization_.numbers.y_dtype = shape_only(node.type(Y_ZERO_POINT).value_or(UNDEFINED), nullptr, 0).dtype;
}

// One value that adds nothing: of a FusedConvInt8 its zero point.
bool ConvKernel::is_no_residual(const Node& node) const {
  const std::optional<Tensor> residual = node.constant(inputs_.residual);
  if (!residual || !has_one_value(residual->view)) return false;
  if (!is_int8_) return is_zero(residual->view);
  const std::optional<Tensor> zero_point = node.constant(RESIDUAL_ZERO_POINT);
  if (!zero_point || zero_point->view.dtype != residual->view.dtype || !has_one_value(zero_point->view)) return false;
  return *static_cast<const char*>(residual->view.data) == *static_cast<const char*>(zero_point->view.data);
}

ConvOptions ConvKernel::options_of(const Node& node, const std::optional<Tensor>& weight) const {
  const std::vector<float> params = node.floats("activation_params");
  Sizes pool = numbers(node, op_, "pool_kernel", 2, ONE);
  for (const int64_t stride : numbers(node, op_, "pool_stride", 2, pool)) pool.push_back(stride);
  if (pool == Sizes{1, 1, 1, 1}) {
    pool.clear();
  } else {
    for (const int64_t side : numbers(node, op_, "pool_padding", 4, NONE)) pool.push_back(side);
    pool.push_back(node.attribute("pool_ceil_mode", int64_t{0}));
  }
  ConvOptions options{numbers(node, op_, "stride", 2, ONE),
                      numbers(node, op_, "padding", 4, NONE),
                      numbers(node, op_, "dilation", 2, ONE),
                      node.attribute("groups", int64_t{1}),
                      node.attribute("activation", "none"),
                      {params.begin(), params.end()},
                      node.attribute("residual_at", "before"),
                      std::move(pool),
                      {}};
  options.algorithm = node.attribute("algorithm", "direct");
  if (weight) options.weight_shape.assign(weight->view.sizes, weight->view.sizes + weight->view.ndim);
  return options;
}

// The rules that need no run: attributes, types, and all shapes that are known. What is not is made to fit; x has no
// images, so that nothing reads a value.
void ConvKernel::check_node(const Node& node) const {
  const auto type = [&](size_t input) { return node.type(input).value_or(UNDEFINED); };
  const std::optional<Tensor> constant = node.constant(inputs_.weight), constant_bias = node.constant(inputs_.bias);
  ConvCall call = request_->call;
  const float any_scale = 1;
  const Quantization& scales = quantization_;
  const TensorView one{const_cast<float*>(&any_scale), Dtype::f32, "float32", 0, nullptr, nullptr};
  if (is_int8_) {
    set_quantization(&call, scales.numbers);
    call.weight_scale = scales.weight_scale && constant ? &scales.weight_scale->view : &one;
  }
  const int64_t any_weight[] = {std::max<int64_t>(call.groups, 1), 1, 1, 1};
  call.weight = constant ? constant->view : shape_only(type(inputs_.weight), any_weight, 4);
  check_rank(node.runtime, op_, "weight", call.weight);
  const int64_t* w = call.weight.sizes;

  const auto known = [&](size_t input, Layout layout) {
    const Sizes sizes = node.shape(input);
    const Order order = order_of(layout);
    return sizes.size() == 4 ? Sizes{sizes[order.c], sizes[order.h], sizes[order.w]} : Sizes{-1, -1, -1};
  };
  const Sizes x = constant ? known(X, x_layout_) : Sizes{-1, -1, -1};
  const Pair pooled = call.has_pool ? call.pool.kernel : Pair{1, 1};
  const int64_t sizes[] = {0, x[0] >= 0 ? x[0] : w[1] * std::max<int64_t>(call.groups, 1),
                           fitting(x[1], w[2], call.stride.h, call.dilation.h, pooled.h),
                           fitting(x[2], w[3], call.stride.w, call.dilation.w, pooled.w)};
  call.x = shape_only(type(X), sizes, 4);
  const TensorView bias =
      constant && constant_bias ? constant_bias->view : shape_only(type(inputs_.bias), call.weight.sizes, 1);
  call.bias = node.type(inputs_.bias) ? &bias : nullptr;
  const ConvArgs args = check(node.runtime, call);

  if (residual_is_zero_ || !node.type(inputs_.residual)) return;
  const Sizes r = constant && x[1] >= 0 && x[2] >= 0 ? known(inputs_.residual, y_layout_) : Sizes{-1, -1, -1};
  const int64_t residual_sizes[] = {0, r[0] >= 0 ? r[0] : args.F, r[1] >= 0 ? r[1] : args.P, r[2] >= 0 ? r[2] : args.Q};
  const TensorView residual = shape_only(type(inputs_.residual), residual_sizes, 4);
  call.residual = &residual;
  check(node.runtime, call);
}

ConvArgs ConvKernel::check(const Runtime& runtime, const ConvCall& call) const {
  ConvArgs args{};
  Problem problem;
  if (!dsf_fused_conv_check(&call, &args, &problem)) fail(runtime, problem);
  return args;
}

void ConvKernel::compute(const Call& call) const {
  std::optional<Tensor> x = call.input(X), weight, bias, residual;
  if (!packed_.data()) weight = call.input(inputs_.weight);
  if (!bias_is_zero_) bias = call.input(inputs_.bias);
  if (!residual_is_zero_) residual = call.input(inputs_.residual);
  check_rank(call.runtime, op_, "x", x->view);
  if (weight) check_rank(call.runtime, op_, "weight", weight->view);
  if (residual) check_rank(call.runtime, op_, "residual", residual->view);
  for (std::optional<Tensor>* tensor : {&x, &weight, &bias, &residual})
    if (*tensor) (*tensor)->align(op_);

  const Image image(x->view, x_layout_), sum(residual ? residual->view : TensorView{}, y_layout_);
  ConvCall conv = request_->call;
  Quantization read;
  if (is_int8_) {
    if (!quantization_is_constant_)
      read = read_quantization(call.runtime, op_, [&](size_t place) { return call.input(place); });
    const Quantization& scales = quantization_is_constant_ ? quantization_ : read;
    set_quantization(&conv, scales.numbers);
    conv.weight_scale = &scales.weight_scale->view;
  }
  const TensorView packed{packed_.data(), Dtype::u8, "uint8", 1, &packed_bytes_, nullptr};
  conv.x = image.view;
  conv.weight = weight ? weight->view : packed;
  conv.bias = view_of(bias);
  conv.residual = residual ? &sum.view : nullptr;
  ConvArgs args = check(call.runtime, conv);

  args.y = call.output(0, sizes_of(y_layout_, args.N, args.F, args.out_h, args.out_w));
  args.y_layout = y_layout_;
  args.y_strides = fused_conv::strides_of(y_layout_, args.F, args.out_h, args.out_w);
  Context context = call.context();
  Memory workspace;
  run_conv(&context, conv, &args, [&](int64_t bytes) {
    workspace = Memory(op_, bytes);
    context.workspace = workspace.data();
  });
}

class PoolKernel : public Kernel {
 public:
  explicit PoolKernel(const Node& node);
  void compute(const Call& call) const override;

 private:
  PoolArgs check(const Runtime& runtime, const TensorView& x) const;

  const Layout x_layout_, y_layout_;
  const std::string kind_;
  const bool count_include_pad_;
  Window window_{};
};

PoolKernel::PoolKernel(const Node& node)
    : x_layout_(layout_of(node, POOL, "x_layout")),
      y_layout_(layout_of(node, POOL, "y_layout")),
      kind_(node.attribute("kind", "max")),
      count_include_pad_(node.attribute("count_include_pad", int64_t{1}) != 0) {
  Sizes window = numbers(node, POOL, "kernel", 2, ONE);
  for (const int64_t stride : numbers(node, POOL, "stride", 2, window)) window.push_back(stride);
  for (const int64_t side : numbers(node, POOL, "padding", 4, NONE)) window.push_back(side);
  window.push_back(node.attribute("ceil_mode", int64_t{0}));
  window_ = ConvRequest::window_of(window);

  const Sizes known = node.shape(X);
  const Order order = order_of(x_layout_);
  const Sizes x = known.size() == 4 ? Sizes{known[order.c], known[order.h], known[order.w]} : Sizes{-1, -1, -1};
  const int64_t sizes[] = {0, x[0] >= 0 ? x[0] : 1, fitting(x[1], window_.kernel.h, 1, 1, 1),
                           fitting(x[2], window_.kernel.w, 1, 1, 1)};
  check(node.runtime, shape_only(node.type(X).value_or(UNDEFINED), sizes, 4));
}

PoolArgs PoolKernel::check(const Runtime& runtime, const TensorView& x) const {
  const PoolCall call{POOL, x, kind_.c_str(), window_, count_include_pad_};
  PoolArgs args{};
  Problem problem;
  if (!dsf_pool2d_check(&call, &args, &problem)) fail(runtime, problem);
  return args;
}

void PoolKernel::compute(const Call& call) const {
  std::optional<Tensor> x = call.input(X);
  check_rank(call.runtime, POOL, "x", x->view);
  if (x->view.dtype == Dtype::f32 || x->view.dtype == Dtype::bf16) x->align(POOL);
  const Image image(x->view, x_layout_);
  PoolArgs args = check(call.runtime, image.view);
  args.y = call.output(0, sizes_of(y_layout_, args.N, args.C, args.out_h, args.out_w));
  args.y_layout = y_layout_;
  args.y_strides = fused_conv::strides_of(y_layout_, args.C, args.out_h, args.out_w);
  Context context = call.context();
  const Memory workspace(POOL, dsf_pool2d_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  dsf_pool2d(&context, &args);
}

class LrnKernel : public Kernel {
 public:
  explicit LrnKernel(const Node& node);
  void compute(const Call& call) const override;

 private:
  LrnArgs check(const Runtime& runtime, const TensorView& x) const;

  const Layout x_layout_, y_layout_;
  const int64_t size_;
  const float alpha_, beta_, k_;
};

LrnKernel::LrnKernel(const Node& node)
    : x_layout_(layout_of(node, LRN, "x_layout")),
      y_layout_(layout_of(node, LRN, "y_layout")),
      size_(node.attribute("size", int64_t{1})),
      alpha_(node.attribute("alpha", 1e-4f)),
      beta_(node.attribute("beta", 0.75f)),
      k_(node.attribute("k", 1.0f)) {
  const int64_t sizes[] = {0, 1, 1, 1};
  check(node.runtime, shape_only(node.type(X).value_or(UNDEFINED), sizes, 4));
}

LrnArgs LrnKernel::check(const Runtime& runtime, const TensorView& x) const {
  const LrnCall call{LRN, x, size_, (size_ - 1) / 2, alpha_, beta_, k_};
  LrnArgs args{};
  Problem problem;
  if (!dsf_lrn_check(&call, &args, &problem)) fail(runtime, problem);
  return args;
}

void LrnKernel::compute(const Call& call) const {
  std::optional<Tensor> x = call.input(X);
  check_rank(call.runtime, LRN, "x", x->view);
  x->align(LRN);
  const Image image(x->view, x_layout_);
  LrnArgs args = check(call.runtime, image.view);
  args.y = call.output(0, sizes_of(y_layout_, args.N, args.C, args.H, args.W));
  args.y_layout = y_layout_;
  args.y_strides = fused_conv::strides_of(y_layout_, args.C, args.H, args.W);
  Context context = call.context();
  const Memory workspace(LRN, dsf_lrn_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  dsf_lrn(&context, &args);
}

template <class Made, auto... options>
std::unique_ptr<Kernel> create(const Node& node) {
  return std::make_unique<Made>(node, options...);
}

}  // namespace

// One operator for every type that X may have in a model; a wrong type too, so that it meets the room's own check.
void register_fused_conv(OpList& ops) {
  const Input any{UNDEFINED, false}, maybe{UNDEFINED, true};
  for (int32_t type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; type <= ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16; ++type) {
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128) continue;
    const auto x = static_cast<Type>(type);
    ops.push_back({"FusedConv", {{x, false}, any, maybe, maybe}, {x}, create<ConvKernel, false>, infer_conv});
    for (const Type y : {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8})
      ops.push_back({"FusedConvInt8",
                     {{x, false}, any, any, any, any, any, {y, false}, maybe, maybe, maybe, maybe},
                     {y},
                     create<ConvKernel, true>,
                     infer_conv_int8});
    ops.push_back({"Pool2d", {{x, false}}, {x}, create<PoolKernel>, infer_pool});
    ops.push_back({"LocalResponseNorm", {{x, false}}, {x}, create<LrnKernel>, infer_lrn});
  }
}

}  // namespace dsf::ort_door
