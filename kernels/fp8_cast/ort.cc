// Fp8Cast(X, S?, T?; block, plain, dtype, scale, mode, saturate, rounding, seed) -> (C, scale),
// Fp8Dequantize(C, S?, T?; block, dtype) -> Y, Int8Cast(X) -> (Q, scale): T = float, bfloat16 or float16 for X and Y.
//
// ONNX Runtime 1.31 holds neither float8e8m0 nor float4e2m1 at a custom operator. Both are uint8 here: a scale's
// exponent byte, and two FP4 codes of neighbors, the first in the low half.
#include <cstdio>
#include <cstring>

#include "csrc/core/memory.h"
#include "csrc/ort/custom_op.h"
#include "kernels/fp8_cast/door.h"

namespace dsf::ort_door {
namespace {

using Type = ONNXTensorElementDataType;
constexpr const char *CAST = "fp8_cast", *DEQUANTIZE = "fp8_dequantize", *INT8_CAST = "int8_cast";
constexpr int64_t NOTHING[] = {0, 0};                      // the shape of what is checked before a run
constexpr size_t VALUES = 0, SCALE = 1, TENSOR_SCALE = 2;  // inputs
constexpr size_t CODES = 0, OUT_SCALE = 1;                 // outputs
constexpr int64_t BLOCK_COLS = 128;                        // of the attribute block's default
constexpr Type UNDEFINED = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
               UINT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, E4M3 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;

const TensorView* view_of(const std::optional<Tensor>& tensor) { return tensor ? &tensor->view : nullptr; }

// uint8 as what it holds.
TensorView held_as(TensorView view, Dtype dtype) {
  if (view.dtype == Dtype::u8) view.dtype = dtype;
  return view;
}

// What the attribute dtype names: up to here TensorProto and ONNX Runtime have the same numbers.
bool is_type(int64_t dtype) { return dtype > UNDEFINED && dtype <= ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1; }
TensorView of_type(int64_t dtype) { return shape_only(is_type(dtype) ? Type(dtype) : Type(-1), nullptr, 0); }

// A tensor of shape (0,) stands for none: the body of a node reads every input.
bool is_none(const std::optional<Tensor>& tensor) {
  return !tensor || (tensor->view.ndim == 1 && tensor->view.sizes[0] == 0);
}

std::optional<Tensor> given(const Call& call, size_t index) {
  std::optional<Tensor> tensor = call.input(index);
  if (is_none(tensor)) tensor.reset();
  return tensor;
}

int64_t bytes_of(const TensorView& view) {
  int64_t bytes = view.dtype == Dtype::f32 ? 4 : 1;
  for (int64_t d = 0; d < view.ndim; ++d) bytes *= view.sizes[d];
  return bytes;
}

struct Block {
  int64_t rows, cols;
};

Type type_of_scale(bool plain, const std::string& kind) {
  return plain ? FLOAT : kind == "ue8m0" ? UINT8 : kind == "e4m3" ? E4M3 : FLOAT;
}

// The output has the type of an S that stands for none, so that must be the type of the scales.
void check_none(const Runtime& runtime, const TensorView& none, Type type) {
  const TensorView wanted = shape_only(type, nullptr, 0);
  if (std::strcmp(none.dtype_name, wanted.dtype_name) == 0) return;
  Problem problem{Fault::type, {}};
  std::snprintf(problem.sentence, sizeof problem.sentence, "%s: scale must be %s where it is empty; got dtype %s", CAST,
                wanted.dtype_name, none.dtype_name);
  fail(runtime, problem);
}

Block block_of(const char* op, const Node& node) {
  const std::vector<int64_t> block = node.attribute("block", {1, BLOCK_COLS});
  if (block.size() == 2) return {block[0], block[1]};
  Problem problem{Fault::value, {}};
  std::snprintf(problem.sentence, sizeof problem.sentence,
                "%s: block must be two positive numbers, or -1 for all; got %.80s", op,
                node.tuple_text("block").c_str());
  fail(node.runtime, problem);
}

// What the checks before a run see of the scales: their types, in shapes that fit an empty tensor.
class ScalesOfNothing {
 public:
  ScalesOfNothing(const Node& node, const Block& block) : sizes_{block.rows == -1, block.cols == -1} {
    for (size_t i : {SCALE, TENSOR_SCALE}) {
      const std::optional<Type> type = node.type(i);
      const std::optional<Tensor> constant = node.constant(i);
      if (!type || (constant && is_none(constant))) continue;
      views_[i] = i == SCALE ? shape_only(*type, sizes_, 2) : shape_only(*type, nullptr, 0);
    }
  }
  const TensorView* operator[](size_t input) const { return views_[input] ? &*views_[input] : nullptr; }

 private:
  const int64_t sizes_[2];
  std::optional<TensorView> views_[3];
};

class CastKernel : public Kernel {
 public:
  explicit CastKernel(const Node& node);
  void compute(const Call& call) const override;

 private:
  CastCall call_of(const TensorView& x) const;
  static CastArgs check(const Runtime& runtime, CastCall call, const TensorView* scale, const TensorView* tensor_scale);

  const int64_t dtype_;
  CastOptions options_{};
};

CastKernel::CastKernel(const Node& node) : dtype_(node.attribute("dtype", int64_t{E4M3})) {
  const auto [rows, cols] = block_of(CAST, node);
  options_ = {rows,
              cols,
              node.attribute("plain", int64_t{0}) != 0,
              node.attribute("scale", "f32"),
              node.attribute("mode", "deepgemm"),
              node.attribute("saturate", int64_t{1}) != 0,
              "row",
              node.attribute("rounding", "nearest"),
              node.attribute("seed", int64_t{0})};
  const std::optional<Tensor> constant = node.constant(SCALE);
  if (constant && is_none(constant))
    check_none(node.runtime, constant->view, type_of_scale(options_.plain, options_.scale));
  const ScalesOfNothing scales(node, {rows, cols});
  check(node.runtime, call_of(shape_only(node.type(VALUES).value_or(UNDEFINED), NOTHING, 2)), scales[SCALE],
        scales[TENSOR_SCALE]);
}

CastCall CastKernel::call_of(const TensorView& x) const {
  const TensorView codes = held_as(of_type(dtype_), Dtype::f4e2m1x2);
  CastCall call = cast_call(CAST, CastSource::x, options_, codes.dtype, codes.dtype_name);
  call.x = x;
  return call;
}

CastArgs CastKernel::check(const Runtime& runtime, CastCall call, const TensorView* scale,
                           const TensorView* tensor_scale) {
  const TensorView numbers = scale ? held_as(*scale, Dtype::f8e8m0) : TensorView{};
  call.given = scale ? &numbers : nullptr;
  call.tensor_scale = tensor_scale;
  CastArgs args{};
  Problem problem;
  if (!dsf_fp8_cast_check(&call, &args, &problem)) fail(runtime, problem);
  return args;
}

void CastKernel::compute(const Call& call) const {
  std::optional<Tensor> x = call.input(VALUES), scale = call.input(SCALE), tensor_scale = given(call, TENSOR_SCALE);
  if (scale && is_none(scale)) {
    check_none(call.runtime, scale->view, type_of_scale(options_.plain, options_.scale));
    scale.reset();
  }
  for (std::optional<Tensor>* tensor : {&x, &scale, &tensor_scale})
    if (*tensor) (*tensor)->align(CAST);
  const CastCall cast = call_of(x->view);
  CastArgs args = check(call.runtime, cast, view_of(scale), view_of(tensor_scale));

  std::vector<int64_t> sizes(x->view.sizes, x->view.sizes + x->view.ndim);
  if (args.dtype == Dtype::f4e2m1x2) sizes.back() /= 2;
  args.codes = call.output(CODES, sizes);
  sizes = scale_shape_of(cast, &args).sizes;
  if (scale) sizes.assign(scale->view.sizes, scale->view.sizes + scale->view.ndim);
  args.scale = call.output(OUT_SCALE, sizes);
  Memory numbers;  // what the kernel writes of a given scale, f32; the output is the scale as it is
  if (scale) {
    if (const int64_t bytes = bytes_of(scale->view)) std::memcpy(args.scale, scale->view.data, size_t(bytes));
    numbers = Memory(CAST, args.row_blocks * args.col_blocks * 4);
    args.scale = numbers.data();
  }
  Context context = call.context();
  const Memory workspace(CAST, dsf_fp8_cast_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  dsf_fp8_cast(&context, &args);
}

Dim divided(const Dim& size, int64_t by) {
  if (size.size < 0) return {-1, by == 1 ? size.name : ""};
  if (by < 0) return {size.size > 0, ""};
  return by > 0 ? Dim{size.size / by + (size.size % by != 0), ""} : Dim{-1, ""};
}

std::vector<Dim> scale_shape(const Shapes& shapes, const std::vector<Dim>& x) {
  const std::vector<int64_t> block = shapes.attribute("block", {1, BLOCK_COLS});
  if (shapes.attribute("plain", int64_t{0})) return {{1, ""}, {1, ""}};
  if (block.size() != 2) return {{-1, ""}, {-1, ""}};
  std::vector<Dim> scale(x.begin(), x.end() - 1);
  if (block[0] != 1 || x.size() < 3) {
    Dim rows{1, ""};
    for (const Dim& dim : scale)
      rows = x.size() == 2 ? dim : dim.size < 0 ? Dim{-1, ""} : Dim{rows.size * dim.size, ""};
    scale = {divided(rows, block[0])};
  }
  scale.push_back(divided(x.back(), block[1]));
  return scale;
}

// ONNX Runtime 1.31 takes an output without a type for float, and a type goes with a shape: of a rank that is not known
// yet it gets none, so that types at least are right.
void set_type(const Shapes& shapes, size_t output, Type type) {
  if (type != FLOAT) shapes.set_output(output, type, {});
}

void infer_cast(const Shapes& shapes) {
  std::vector<Dim> x = shapes.shape(VALUES);
  const int64_t dtype = shapes.attribute("dtype", int64_t{E4M3});
  const bool plain = shapes.attribute("plain", int64_t{0});
  const Type dynamic = type_of_scale(plain, shapes.attribute("scale", "f32"));
  const Type scale = plain ? FLOAT : shapes.type(SCALE).value_or(dynamic);
  if (!is_type(dtype)) return;
  if (x.empty()) {
    set_type(shapes, CODES, Type(dtype));
    return set_type(shapes, OUT_SCALE, scale);
  }
  shapes.set_output(OUT_SCALE, scale, scale_shape(shapes, x));
  if (dtype == UINT8) x.back() = {x.back().size < 0 ? -1 : x.back().size / 2, ""};
  shapes.set_output(CODES, Type(dtype), x);
}

class DequantizeKernel : public Kernel {
 public:
  explicit DequantizeKernel(const Node& node);
  void compute(const Call& call) const override;

 private:
  DequantizeArgs check(const Runtime& runtime, const TensorView& codes, const TensorView* scale,
                       const TensorView* tensor_scale) const;

  const Block block_;
  const int64_t dtype_;
};

DequantizeKernel::DequantizeKernel(const Node& node)
    : block_(block_of(DEQUANTIZE, node)), dtype_(node.attribute("dtype", int64_t{FLOAT})) {
  const ScalesOfNothing scales(node, block_);
  check(node.runtime, shape_only(node.type(VALUES).value_or(UNDEFINED), NOTHING, 2), scales[SCALE],
        scales[TENSOR_SCALE]);
}

DequantizeArgs DequantizeKernel::check(const Runtime& runtime, const TensorView& codes, const TensorView* scale,
                                       const TensorView* tensor_scale) const {
  const TensorView y = of_type(dtype_);
  DequantizeCall call{};
  call.codes = held_as(codes, Dtype::f4e2m1x2);
  const TensorView numbers = scale ? held_as(*scale, Dtype::f8e8m0) : TensorView{};
  call.scale = scale ? &numbers : nullptr;
  call.block_rows = block_.rows;
  call.block_cols = block_.cols;
  call.dtype = y.dtype;
  call.dtype_name = y.dtype_name;
  call.tensor_scale = tensor_scale;
  DequantizeArgs args{};
  Problem problem;
  if (!dsf_fp8_dequantize_check(&call, &args, &problem)) fail(runtime, problem);
  return args;
}

void DequantizeKernel::compute(const Call& call) const {
  const std::optional<Tensor> codes = call.input(VALUES);
  std::optional<Tensor> scale = given(call, SCALE), tensor_scale = given(call, TENSOR_SCALE);
  for (std::optional<Tensor>* tensor : {&scale, &tensor_scale})
    if (*tensor) (*tensor)->align(DEQUANTIZE);
  DequantizeArgs args = check(call.runtime, codes->view, view_of(scale), view_of(tensor_scale));
  std::vector<int64_t> sizes(codes->view.sizes, codes->view.sizes + codes->view.ndim);
  sizes.back() = args.K;
  args.y = call.output(0, sizes);
  const Context context = call.context();
  dsf_fp8_dequantize(&context, &args);
}

void infer_dequantize(const Shapes& shapes) {
  std::vector<Dim> codes = shapes.shape(VALUES);
  const int64_t dtype = shapes.attribute("dtype", int64_t{FLOAT});
  if (!is_type(dtype)) return;
  if (codes.empty()) return set_type(shapes, 0, Type(dtype));
  if (shapes.type(VALUES) == UINT8) codes.back() = {codes.back().size < 0 ? -1 : codes.back().size * 2, ""};
  shapes.set_output(0, Type(dtype), codes);
}

class Int8CastKernel : public Kernel {
 public:
  explicit Int8CastKernel(const Node& node) {
    check(node.runtime, shape_only(node.type(VALUES).value_or(UNDEFINED), NOTHING, 2));
  }
  void compute(const Call& call) const override {
    std::optional<Tensor> x = call.input(VALUES);
    x->align(INT8_CAST);
    Int8CastArgs args = check(call.runtime, x->view);
    std::vector<int64_t> sizes(x->view.sizes, x->view.sizes + x->view.ndim);
    args.q = static_cast<int8_t*>(call.output(CODES, sizes));
    sizes.back() = 1;
    args.scale = static_cast<float*>(call.output(OUT_SCALE, sizes));
    const Context context = call.context();
    dsf_int8_cast(&context, &args);
  }

 private:
  static Int8CastArgs check(const Runtime& runtime, const TensorView& x) {
    Int8CastArgs args{};
    Problem problem;
    if (!dsf_int8_cast_check(&x, &args, &problem)) fail(runtime, problem);
    return args;
  }
};

void infer_int8_cast(const Shapes& shapes) {
  std::vector<Dim> x = shapes.shape(VALUES);
  if (x.empty()) return;
  shapes.set_output(CODES, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, x);
  x.back() = {1, ""};
  shapes.set_output(OUT_SCALE, FLOAT, x);
}

template <class Made>
std::unique_ptr<Kernel> create(const Node& node) {
  return std::make_unique<Made>(node);
}

}  // namespace

void register_fp8_cast(OpList& ops) {
  const Input any{UNDEFINED, false}, maybe{UNDEFINED, true};
  ops.push_back({"Fp8Cast", {any, maybe, maybe}, {UNDEFINED, UNDEFINED}, create<CastKernel>, infer_cast});
  ops.push_back({"Fp8Dequantize", {any, maybe, maybe}, {UNDEFINED}, create<DequantizeKernel>, infer_dequantize});
  ops.push_back(
      {"Int8Cast", {any}, {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, FLOAT}, create<Int8CastKernel>, infer_int8_cast});
}

}  // namespace dsf::ort_door
