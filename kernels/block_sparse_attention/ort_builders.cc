// TopKBlocks(q, k; num_blocks, block_size, scale, first, local, is_causal, q_offset, q_at_end) -> block_mask:
// T = float, bfloat16 or float16 for q and k, bool for block_mask.
#include "csrc/ort/custom_op.h"
#include "kernels/block_sparse_attention/door_builders.h"
#include "kernels/block_sparse_attention/ort_attention.h"

namespace dsf::ort_door {
namespace {

constexpr const char* OP = "top_k_blocks";
constexpr auto BOOL = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
enum InputIndex : size_t { Q, K };

class TopKKernel : public Kernel {
 public:
  explicit TopKKernel(const Node& node) {
    const std::vector<int64_t> block = two_numbers(OP, node, "block_size", {DEFAULT_BLOCK, DEFAULT_BLOCK});
    options_ = {scale_of(node),
                node.attribute("is_causal", int64_t{0}) != 0,
                NO_LIMIT,
                NO_LIMIT,
                0,
                node.attribute("q_offset", int64_t{0}),
                node.attribute("q_at_end", int64_t{0}) != 0,
                true,
                block[0],
                block[1]};
    top_ = {node.attribute("num_blocks", int64_t{1}), node.attribute("first", int64_t{1}),
            node.attribute("local", int64_t{1})};
    static constexpr int64_t HEADS[] = {1, 1, 0, 1};
    InputTensor q, k;
    for (const auto& [input, i] : {std::pair{&q, Q}, {&k, K}}) {
      input->view = shape_only(node.type(i).value_or(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED), HEADS, 4);
      input->is_here = true;
    }
    checked(&q, &k, node.runtime);
  }

  void compute(const Call& call) const override {
    InputTensor q, k;
    for (const auto& [input, i] : {std::pair{&q, Q}, {&k, K}}) {
      input->tensor = call.input(i);
      input->tensor->align(OP);
      input->view = input->tensor->view;
      input->is_here = true;
    }
    const AttentionArgs args = checked(&q, &k, call.runtime);
    auto* kept = static_cast<uint8_t*>(call.output(0, {args.B, args.H, args.rows, args.columns}));
    Context context = call.context();
    const Memory workspace(OP, dsf_top_k_blocks_workspace_bytes(&context, &args));
    context.workspace = workspace.data();
    dsf_top_k_blocks(&context, &args, &top_, kept);
  }

 private:
  AttentionArgs checked(InputTensor* q, InputTensor* k, const Runtime& runtime) const {
    return checked_top_k(OP, q, k, options_, top_, [&](const Problem& problem) { fail(runtime, problem); });
  }

  AttentionOptions options_{};
  TopK top_{};
};

void infer(const Shapes& shapes) {
  std::vector<Dim> q = shapes.shape(Q);
  if (q.size() != 4) return shapes.set_output(0, BOOL, {});
  q[2] = q[3] = {-1, ""};
  shapes.set_output(0, BOOL, q);
}

std::unique_ptr<Kernel> create(const Node& node) { return std::make_unique<TopKKernel>(node); }

}  // namespace

void register_block_builders(OpList& ops) {
  const Input any{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, false};
  ops.push_back({"TopKBlocks", {any, any}, {BOOL}, create, infer});
}

}  // namespace dsf::ort_door
