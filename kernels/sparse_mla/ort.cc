// SparseMla(Q, KV, I, S?, L?; scale, d_v) -> (Y, max_logits, lse)
// SparseMlaDecode(Q, K, I?, L?, B?, C?, XK?, XI?, XL?, S?; scale, d_v, layout, is_causal) -> (Y, lse)
// I indices, S attn_sink, L topk_length, B block_table, C cache_seqlens, X the extra cache's. K of layout v32 and v4:
// uint8. A scale of 0 stands for d_qk^-0.5. A tensor of shape (0,) stands for none: the bodies read every input.
#include "csrc/core/memory.h"
#include "csrc/ort/custom_op.h"
#include "kernels/sparse_mla/door.h"

namespace dsf::ort_door {
namespace {

constexpr const char *PREFILL = "sparse_mla", *DECODE = "sparse_mla_decode";
constexpr int64_t D_V = 512;  // the attribute's default
constexpr ONNXTensorElementDataType UNDEFINED = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
                                    FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

bool is_none(const std::optional<Tensor>& tensor) {
  return !tensor || (tensor->view.ndim == 1 && tensor->view.sizes[0] == 0);
}

// An input, aligned, or none.
std::optional<Tensor> given(const Call& call, size_t index, const char* op) {
  std::optional<Tensor> tensor = call.input(index);
  if (is_none(tensor)) return std::nullopt;
  tensor->align(op);
  return tensor;
}

const TensorView* view_of(const std::optional<Tensor>& tensor) { return tensor ? &tensor->view : nullptr; }

// A view of what must be there, of no type where it is not.
TensorView needed(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->view : shape_only(UNDEFINED, nullptr, 0);
}

struct Options {
  explicit Options(const Node& node) : scale(node.attribute("scale", 0.0f)), d_v(node.attribute("d_v", D_V)) {}
  float scale_for(const TensorView& q) const {
    return scale_or_default(scale == 0.0f ? std::nullopt : std::optional<double>(scale), q);
  }

  const float scale;
  const int64_t d_v;
};

class PrefillKernel : public Kernel {
 public:
  explicit PrefillKernel(const Node& node) : options_(node) {}

  void compute(const Call& call) const override {
    enum { Q, KV, INDICES, SINK, LENGTH };
    const auto q = given(call, Q, PREFILL), kv = given(call, KV, PREFILL), indices = given(call, INDICES, PREFILL);
    const auto sink = given(call, SINK, PREFILL), length = given(call, LENGTH, PREFILL);
    SparseMlaCall mla{};
    mla.op = PREFILL;
    mla.q = needed(q);
    mla.kv = needed(kv);
    mla.indices = needed(indices);
    mla.scale = options_.scale_for(mla.q);
    mla.d_v = options_.d_v;
    mla.attn_sink = view_of(sink);
    mla.topk_length = view_of(length);
    SparseMlaArgs args;
    Problem problem;
    if (!dsf_sparse_mla_check(&mla, &args, &problem)) fail(call.runtime, problem);
    args.out = call.output(0, {args.s_q, args.h_q, args.d_v});
    args.max_logits = static_cast<float*>(call.output(1, {args.s_q, args.h_q}));
    args.lse = static_cast<float*>(call.output(2, {args.s_q, args.h_q}));
    Context context = call.context();
    const Memory workspace(PREFILL, dsf_sparse_mla_workspace_bytes(&context, &args));
    context.workspace = workspace.data();
    dsf_sparse_mla(&context, &args);
  }

 private:
  const Options options_;
};

class DecodeKernel : public Kernel {
 public:
  explicit DecodeKernel(const Node& node)
      : options_(node),
        layout_(node.attribute("layout", "plain")),
        is_causal_(node.attribute("is_causal", int64_t{0}) != 0) {}

  void compute(const Call& call) const override {
    enum { Q, K, INDICES, LENGTH, TABLE, SEQLENS, EXTRA_K, EXTRA_INDICES, EXTRA_LENGTH, SINK };
    const auto input = [&](size_t index) { return given(call, index, DECODE); };
    const auto q = input(Q), k_cache = input(K), indices = input(INDICES), length = input(LENGTH);
    const auto table = input(TABLE), extra_k = input(EXTRA_K), extra_indices = input(EXTRA_INDICES);
    const auto extra_length = input(EXTRA_LENGTH), sink = input(SINK);
    const auto seqlens = table ? call.input(SEQLENS) : input(SEQLENS);  // of no requests it has shape (0,)
    SparseMlaDecodeCall mla{};
    mla.op = DECODE;
    mla.q = needed(q);
    mla.k_cache = needed(k_cache);
    mla.layout = layout_.c_str();
    mla.indices = view_of(indices);
    mla.topk_length = view_of(length);
    mla.block_table = view_of(table);
    mla.cache_seqlens = view_of(seqlens);
    mla.is_causal = is_causal_;
    mla.extra_k_cache = view_of(extra_k);
    mla.extra_indices = view_of(extra_indices);
    mla.extra_topk_length = view_of(extra_length);
    mla.scale = options_.scale_for(mla.q);
    mla.d_v = options_.d_v;
    mla.attn_sink = view_of(sink);
    SparseMlaArgs args;
    Problem problem;
    if (!dsf_sparse_mla_decode_check(&mla, &args, &problem)) fail(call.runtime, problem);
    args.out = call.output(0, {args.b, args.s_q, args.h_q, args.d_v});
    args.lse = static_cast<float*>(call.output(1, {args.b, args.h_q, args.s_q}));
    Context context = call.context();
    const Memory workspace(DECODE, dsf_sparse_mla_decode_workspace_bytes(&context, &args));
    context.workspace = workspace.data();
    dsf_sparse_mla_decode(&context, &args);
  }

 private:
  const Options options_;
  const std::string layout_;
  const bool is_causal_;
};

// Y as Q with d_v in its last dimension; then results of f32, whose dimensions are Q's in such an order.
void infer(const Shapes& shapes, const std::vector<std::vector<size_t>>& rest) {
  std::vector<Dim> q = shapes.shape(0);
  const size_t ndim = rest[0].size() + 1;
  const auto type = shapes.type(0);
  if (q.size() != ndim) q.assign(ndim, {-1, ""});
  for (size_t i = 0; i < rest.size(); ++i) {
    std::vector<Dim> dims;
    for (const size_t d : rest[i]) dims.push_back(q[d]);
    shapes.set_output(i + 1, FLOAT, dims);
  }
  q.back() = {shapes.attribute("d_v", D_V), ""};
  if (type) shapes.set_output(0, *type, q);
}

template <class Made>
std::unique_ptr<Kernel> create(const Node& node) {
  return std::make_unique<Made>(node);
}

}  // namespace

void register_sparse_mla(OpList& ops) {
  const Input any{UNDEFINED, false}, maybe{UNDEFINED, true};
  ops.push_back({"SparseMla",
                 {any, any, any, maybe, maybe},
                 {UNDEFINED, FLOAT, FLOAT},
                 create<PrefillKernel>,
                 [](const Shapes& shapes) { infer(shapes, {{0, 1}, {0, 1}}); }});
  ops.push_back({"SparseMlaDecode",
                 {any, any, maybe, maybe, maybe, maybe, maybe, maybe, maybe, maybe},
                 {UNDEFINED, FLOAT},
                 create<DecodeKernel>,
                 [](const Shapes& shapes) { infer(shapes, {{0, 2, 1}}); }});
}

}  // namespace dsf::ort_door
