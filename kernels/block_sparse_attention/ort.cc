// BlockSparseAttention(Q, K, V, block_mask?, row_offsets?, columns?, token_bias?, sink_logits?, cu_seqlens_q?,
// cu_seqlens_k?, tables?, bits?; block_size, scale, is_causal, window, sinks, q_offset, q_at_end, enable_gqa,
// key_stride)
// -> (out, lse): T = float, bfloat16 or float16 for Q, K, V and out. An optional input of shape (0,) stands for none,
// of columns and tables where there are no row_offsets and no bits.
#include <algorithm>
#include <initializer_list>

#include "csrc/ort/custom_op.h"
#include "kernels/block_sparse_attention/door.h"
#include "kernels/block_sparse_attention/ort_attention.h"

namespace dsf::ort_door {
namespace {

using Type = ONNXTensorElementDataType;
using Sizes = std::vector<int64_t>;
constexpr const char* OP = "block_sparse_attention";
constexpr Type UNDEFINED = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
enum InputIndex : size_t {
  Q,
  K,
  V,
  KEPT,
  ROW_OFFSETS,
  COLUMNS,
  TOKEN_BIAS,
  SINK_LOGITS,
  CU_SEQLENS_Q,
  CU_SEQLENS_K,
  TABLES,
  BITS,
  NUM_INPUTS
};

bool is_none(const TensorView& view) { return view.ndim == 1 && view.sizes[0] == 0; }

struct Inputs {
  InputTensor all[NUM_INPUTS];

  AttentionOperands<InputTensor> operands() {
    return {all[Q],       all[K],          all[V],           all[KEPT],         all[ROW_OFFSETS],
            all[COLUMNS], all[TOKEN_BIAS], all[SINK_LOGITS], all[CU_SEQLENS_Q], all[CU_SEQLENS_K],
            all[TABLES],  all[BITS]};
  }
  void leave_out_nones() {
    for (const InputIndex i : {KEPT, ROW_OFFSETS, TOKEN_BIAS, SINK_LOGITS, CU_SEQLENS_Q, CU_SEQLENS_K, BITS})
      if (all[i].is_here && is_none(all[i].view)) all[i].leave_out();
    for (const auto& [entries, needs] : {std::pair{COLUMNS, ROW_OFFSETS}, {TABLES, BITS}})
      if (all[entries].is_here && is_none(all[entries].view) && !all[needs].is_here) all[entries].leave_out();
  }
};

class AttentionKernel : public Kernel {
 public:
  explicit AttentionKernel(const Node& node);
  void compute(const Call& call) const override;

 private:
  void check_node(const Node& node) const;

  AttentionOptions options_{};
};

AttentionKernel::AttentionKernel(const Node& node) {
  const Sizes block = two_numbers(OP, node, "block_size", {DEFAULT_BLOCK, DEFAULT_BLOCK});
  const Sizes window = two_numbers(OP, node, "window", {NO_LIMIT, NO_LIMIT});
  options_ = {scale_of(node),
              node.attribute("is_causal", int64_t{0}) != 0,
              window[0],
              window[1],
              node.attribute("sinks", int64_t{0}),
              node.attribute("q_offset", int64_t{0}),
              node.attribute("q_at_end", int64_t{0}) != 0,
              node.attribute("enable_gqa", int64_t{1}) != 0,
              block[0],
              block[1],
              node.attribute("key_stride", int64_t{1})};
  check_node(node);
}

// The rules that need no run: attributes and types, of one head of no tokens. A mask, lists and sequences one by one:
// of inputs whose sizes no model says, all but one may stand for none.
void AttentionKernel::check_node(const Node& node) const {
  static constexpr int64_t HEADS[] = {1, 1, 0, 1}, MASK[] = {1, 1, 0, 0}, BIAS[] = {1, 1, 1, 0}, ONE[] = {1},
                           NONE[] = {0};
  const int64_t words = options_.block_k > 0 ? (options_.block_k - 1) / 64 + 1 : 1;
  const int64_t table_sizes[] = {0, options_.block_q, words};
  const auto raise = [&](const Problem& problem) { fail(node.runtime, problem); };
  const auto check = [&](std::initializer_list<InputIndex> with) {
    Inputs inputs;
    const auto add = [&](InputIndex i, const int64_t* sizes, int64_t ndim) {
      const std::optional<Type> type = node.type(i);
      const bool asked =
          i <= V || i == TOKEN_BIAS || i == SINK_LOGITS || std::find(with.begin(), with.end(), i) != with.end();
      inputs.all[i].is_here = asked && type && (i <= V || node.shape(i) != Sizes{0});
      inputs.all[i].view = shape_only(type.value_or(UNDEFINED), sizes, ndim);
    };
    for (const InputIndex i : {Q, K, V}) add(i, HEADS, 4);
    add(KEPT, MASK, 4);
    add(TOKEN_BIAS, BIAS, 4);
    for (const InputIndex i : {SINK_LOGITS, CU_SEQLENS_Q, CU_SEQLENS_K, ROW_OFFSETS}) add(i, ONE, 1);
    add(BITS, table_sizes, 3);
    for (const auto& [i, needed] : {std::pair{COLUMNS, ROW_OFFSETS}, {TABLES, BITS}}) {
      add(i, NONE, 1);
      inputs.all[i].is_here = inputs.all[needed].is_here && node.type(i);
    }
    AttentionRequest<InputTensor>(OP, inputs.operands(), options_, raise).checked(raise);
  };
  check({KEPT});
  check({ROW_OFFSETS, COLUMNS, BITS, TABLES});
  check({CU_SEQLENS_Q, CU_SEQLENS_K});
}

void AttentionKernel::compute(const Call& call) const {
  Inputs inputs;
  for (size_t i = 0; i < NUM_INPUTS; ++i) {
    InputTensor& input = inputs.all[i];
    input.tensor = call.input(i);
    if (!input.tensor) continue;
    input.tensor->align(OP);
    input.view = input.tensor->view;
    input.is_here = true;
  }
  inputs.leave_out_nones();
  const auto raise = [&](const Problem& problem) { fail(call.runtime, problem); };
  const AttentionRequest<InputTensor> request(OP, inputs.operands(), options_, raise);
  AttentionArgs args = request.checked(raise);
  args.out = call.output(0, {args.B, args.H, args.S_q, args.D_v});
  args.lse = static_cast<float*>(call.output(1, {args.B, args.H, args.S_q}));
  Context context = call.context();
  Memory workspace;
  run_attention(&context, args, [&](int64_t bytes) {
    workspace = Memory(OP, bytes);
    context.workspace = workspace.data();
  });
}

void infer(const Shapes& shapes) {
  std::vector<Dim> q = shapes.shape(Q);
  const std::vector<Dim> v = shapes.shape(V);
  const Type type = shapes.type(Q).value_or(FLOAT);
  if (q.size() != 4) return shapes.set_output(0, type, {});
  q.back() = v.size() == 4 ? v.back() : Dim{-1, ""};
  shapes.set_output(0, type, q);
  q.pop_back();
  shapes.set_output(1, FLOAT, q);
}

std::unique_ptr<Kernel> create(const Node& node) { return std::make_unique<AttentionKernel>(node); }

}  // namespace

void register_block_builders(OpList& ops);

void register_block_sparse_attention(OpList& ops) {
  OpSpec spec{"BlockSparseAttention", {}, {UNDEFINED, FLOAT}, create, infer};
  for (size_t i = 0; i < NUM_INPUTS; ++i) spec.inputs.push_back({UNDEFINED, i > V});
  ops.push_back(std::move(spec));
  register_block_builders(ops);
}

}  // namespace dsf::ort_door
