// Fp8MqaLogits(q, k, k_scale, weights, ks?, ke?; max_seqlen_k, dtype) -> logits,
// Fp8PagedMqaLogits(q, cache, weights, context_lens, block_table; max_context_len, dtype) -> logits,
// LightningIndexer(q, k, k_scale, weights, ks?, ke?; top_k, sorted_by) -> indices,
// LightningIndexerPaged(q, cache, weights, context_lens, block_table; top_k, sorted_by, as_slots) -> indices,
// TopkIndices(scores, lengths?; k, sorted_by) -> indices.
#include <initializer_list>

#include "csrc/core/memory.h"
#include "csrc/ort/custom_op.h"
#include "kernels/lightning_indexer/door.h"

namespace dsf::ort_door {
namespace {

using Type = ONNXTensorElementDataType;
constexpr Type UNDEFINED = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
               INT32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr const char* ANY_ORDER = "any";  // the attribute's word for None

// An operator: its name in sentences and in a model, what it reads and what it gives.
struct Form {
  const char* op;
  const char* name;
  bool paged, selects;
};
constexpr Form FORMS[] = {{"fp8_mqa_logits", "Fp8MqaLogits", false, false},
                          {"fp8_paged_mqa_logits", "Fp8PagedMqaLogits", true, false},
                          {"lightning_indexer", "LightningIndexer", false, true},
                          {"lightning_indexer_paged", "LightningIndexerPaged", true, true}};
constexpr size_t NUM_DENSE = 6, NUM_PAGED = 5;  // inputs

// A tensor of shape (0,) stands for none: the body of a node reads every input.
bool is_none(const TensorView& view) { return view.ndim == 1 && view.sizes[0] == 0; }

// What the attribute dtype names: up to here TensorProto and ONNX Runtime have the same numbers.
bool is_type(int64_t dtype) { return dtype > UNDEFINED && dtype <= ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1; }

// An operand of door.h over a tensor of ONNX Runtime, which is contiguous already.
struct Rows {
  TensorView view{};
  bool present = false;
  static constexpr bool whole = true;

  Rows() = default;
  explicit Rows(const TensorView& found) : view(found), present(true) {}
  const TensorView* get() const { return present ? &view : nullptr; }
  static bool make_rows() { return false; }
};

// In the order of the node's inputs.
IndexerOperands<Rows> operands_of(bool paged, const Rows (&inputs)[NUM_DENSE]) {
  const Rows none;
  if (paged) return {inputs[0], inputs[2], none, none, none, none, inputs[1], inputs[3], inputs[4]};
  return {inputs[0], inputs[3], inputs[1], inputs[2], inputs[4], inputs[5], none, none, none};
}

class IndexerKernel : public Kernel {
 public:
  IndexerKernel(const Form& form, const Node& node);
  void compute(const Call& call) const override;

 private:
  size_t num_inputs() const { return form_.paged ? NUM_PAGED : NUM_DENSE; }
  bool is_optional(size_t input) const { return !form_.paged && input >= NUM_DENSE - 2; }
  IndexerArgs check(const Runtime& runtime, const Rows (&inputs)[NUM_DENSE]) const;

  const Form& form_;
  const std::string sorted_by_;
  const int64_t columns_, top_k_, as_slots_;
  const TensorView dtype_;
};

IndexerKernel::IndexerKernel(const Form& form, const Node& node)
    : form_(form),
      sorted_by_(node.attribute("sorted_by", ANY_ORDER)),
      columns_(node.attribute(form.paged ? "max_context_len" : "max_seqlen_k", int64_t{0})),
      top_k_(node.attribute("top_k", int64_t{0})),
      as_slots_(node.attribute("as_slots", int64_t{0})),
      dtype_([&] {
        const int64_t dtype = node.attribute("dtype", int64_t{FLOAT});
        return shape_only(is_type(dtype) ? Type(dtype) : Type(-1), nullptr, 0);
      }()) {
  // Types and attributes, by tensors of shapes that fit.
  static constexpr int64_t Q[] = {0, 0, 1, 1}, MATRIX[] = {0, 1}, CACHE[] = {0, 1, 1, 5};
  struct Shape {
    const int64_t* sizes;
    int64_t ndim;
  };
  constexpr Shape DENSE[] = {{Q + 1, 3}, {MATRIX, 2}, {MATRIX, 1}, {MATRIX, 2}, {MATRIX, 1}, {MATRIX, 1}};
  constexpr Shape PAGED[] = {{Q, 4}, {CACHE, 4}, {MATRIX, 2}, {MATRIX, 1}, {MATRIX, 2}};
  Rows inputs[NUM_DENSE];
  for (size_t i = 0; i < num_inputs(); ++i) {
    const Shape& shape = form.paged ? PAGED[i] : DENSE[i];
    const std::optional<Type> type = node.type(i);
    if (type || !is_optional(i)) inputs[i] = Rows(shape_only(type.value_or(UNDEFINED), shape.sizes, shape.ndim));
  }
  check(node.runtime, inputs);
}

IndexerArgs IndexerKernel::check(const Runtime& runtime, const Rows (&inputs)[NUM_DENSE]) const {
  IndexerCall call{};
  call.op = form_.op;
  call.max_seqlen_k = columns_;
  call.logits_dtype = dtype_.dtype;
  call.logits_dtype_name = dtype_.dtype_name;
  call.selects = form_.selects;
  call.top_k = top_k_;
  call.sorted_by = sorted_by_ == ANY_ORDER ? nullptr : sorted_by_.c_str();
  call.as_slots = as_slots_ != 0;
  IndexerOperands<Rows> operands = operands_of(form_.paged, inputs);
  return checked_indexer<Rows>(&call, operands, [&](const Problem& problem) { fail(runtime, problem); });
}

void IndexerKernel::compute(const Call& call) const {
  std::optional<Tensor> tensors[NUM_DENSE];
  Rows inputs[NUM_DENSE];
  for (size_t i = 0; i < num_inputs(); ++i) {
    tensors[i] = call.input(i);
    if (!tensors[i] || (is_optional(i) && is_none(tensors[i]->view))) continue;
    tensors[i]->align(form_.op);
    inputs[i] = Rows(tensors[i]->view);
  }
  IndexerArgs args = check(call.runtime, inputs);
  args.logits = call.output(0, output_sizes(args));
  args.indices = static_cast<int32_t*>(args.logits);
  Context context = call.context();
  const Memory workspace(form_.op, dsf_lightning_indexer_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  dsf_lightning_indexer(&context, &args);
}

Dim product(const Dim& a, const Dim& b) {
  if (a.size >= 0 && b.size >= 0) return {a.size * b.size, ""};
  return a.size == 1 ? b : b.size == 1 ? a : Dim{-1, ""};
}

// A negative one is refused when the kernel is made.
Dim given(const Shapes& shapes, const char* attribute) {
  const int64_t size = shapes.attribute(attribute, int64_t{0});
  return {size < 0 ? -1 : size, ""};
}

void infer_indexer(const Form& form, const Shapes& shapes) {
  const std::vector<Dim> q = shapes.shape(0);
  const int64_t dtype = form.selects ? int64_t{INT32} : shapes.attribute("dtype", int64_t{FLOAT});
  if (!is_type(dtype)) return;
  if (q.size() != (form.paged ? 4 : 3)) return shapes.set_output(0, Type(dtype), {});
  if (form.selects) {
    std::vector<Dim> sizes(q.begin(), q.end() - 2);
    sizes.push_back(given(shapes, "top_k"));
    return shapes.set_output(0, INT32, sizes);
  }
  if (form.paged) return shapes.set_output(0, Type(dtype), {product(q[0], q[1]), given(shapes, "max_context_len")});
  const std::vector<Dim> k = shapes.shape(1);
  const int64_t columns = shapes.attribute("max_seqlen_k", int64_t{0});
  shapes.set_output(0, Type(dtype), {q[0], columns > 0 ? Dim{columns, ""} : k.size() == 2 ? k[0] : Dim{-1, ""}});
}

class TopkKernel : public Kernel {
 public:
  explicit TopkKernel(const Node& node)
      : sorted_by_(node.attribute("sorted_by", ANY_ORDER)), k_(node.attribute("k", int64_t{0})) {
    static constexpr int64_t NOTHING[] = {0};
    const std::optional<Type> lengths = node.type(1);
    TopkCall call = call_of();
    check(node.runtime, &call, Rows(shape_only(node.type(0).value_or(UNDEFINED), NOTHING, 1)),
          lengths ? Rows(shape_only(*lengths, nullptr, 0)) : Rows());
  }
  void compute(const Call& call) const override {
    std::optional<Tensor> scores = call.input(0), lengths = call.input(1);
    scores->align(OP);
    if (lengths && is_none(lengths->view)) lengths.reset();
    if (lengths) lengths->align(OP);
    TopkCall topk = call_of();
    TopkArgs args = check(call.runtime, &topk, Rows(scores->view), lengths ? Rows(lengths->view) : Rows());
    args.indices = static_cast<int32_t*>(call.output(0, output_sizes(topk)));
    Context context = call.context();
    const Memory workspace(OP, dsf_topk_indices_workspace_bytes(&context, &args));
    context.workspace = workspace.data();
    dsf_topk_indices(&context, &args);
  }

 private:
  static constexpr const char* OP = "topk_indices";

  TopkCall call_of() const {
    TopkCall call{};
    call.op = OP;
    call.k = k_;
    call.sorted_by = sorted_by_ == ANY_ORDER ? nullptr : sorted_by_.c_str();
    return call;
  }
  static TopkArgs check(const Runtime& runtime, TopkCall* call, Rows scores, Rows lengths) {
    return checked_topk<Rows>(call, scores, lengths, [&](const Problem& problem) { fail(runtime, problem); });
  }

  const std::string sorted_by_;
  const int64_t k_;
};

void infer_topk(const Shapes& shapes) {
  std::vector<Dim> sizes = shapes.shape(0);
  if (!sizes.empty()) sizes.back() = given(shapes, "k");
  shapes.set_output(0, INT32, sizes);
}

}  // namespace

void register_lightning_indexer(OpList& ops) {
  const Input any{UNDEFINED, false}, maybe{UNDEFINED, true};
  for (const Form& form : FORMS) {
    std::vector<Input> inputs(form.paged ? NUM_PAGED : NUM_DENSE, any);
    if (!form.paged) inputs[NUM_DENSE - 2] = inputs[NUM_DENSE - 1] = maybe;
    ops.push_back(
        {form.name,
         inputs,
         {form.selects ? INT32 : UNDEFINED},
         [&form](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<IndexerKernel>(form, node); },
         [&form](const Shapes& shapes) { infer_indexer(form, shapes); }});
  }
  ops.push_back({"TopkIndices",
                 {any, maybe},
                 {INT32},
                 [](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<TopkKernel>(node); },
                 infer_topk});
}

}  // namespace dsf::ort_door
