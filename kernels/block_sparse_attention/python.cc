// The NumPy door of block_sparse_attention, for deepseek_fast/numpy.py, which turns options into numbers.
#include <pybind11/stl.h>

#include "csrc/python/adapter.h"
#include "csrc/python/variants.h"
#include "kernels/block_sparse_attention/door.h"

namespace dsf::python_door {
namespace {

constexpr const char *OP = "block_sparse_attention", *BACKWARD = "block_sparse_attention_backward";
using Object = const py::object&;

void present(const Operand& operand) {
  if (!operand.present)
    throw py::type_error(std::string(operand.op) + ": " + operand.arg + " must be a NumPy array; got NoneType");
}

struct Operands {
  Operand q, k, v, kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits;

  // arrays: in the order of AttentionOperands.
  Operands(const char* op, const py::tuple& arrays)
      : q(op, "q", arrays[0]),
        k(op, "k", arrays[1]),
        v(op, "v", arrays[2]),
        kept(op, "block_mask", arrays[3]),
        row_offsets(op, "block_mask", arrays[4]),
        columns(op, "block_mask", arrays[5]),
        token_bias(op, "token_bias", arrays[6]),
        sink_logits(op, "sink_logits", arrays[7]),
        cu_seqlens_q(op, "cu_seqlens_q", arrays[8]),
        cu_seqlens_k(op, "cu_seqlens_k", arrays[9]),
        tables(op, "tables", arrays[10]),
        bits(op, "bits", arrays[11]) {
    for (const Operand* needed : {&q, &k, &v}) present(*needed);
  }
  AttentionOperands<Operand> all() {
    return {q, k, v, kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits};
  }
};

// (scale, is_causal, left, right, sinks, q_offset, q_at_end, enable_gqa, block_q, block_k)
AttentionOptions options_of(const py::tuple& o) {
  return {o[0].cast<std::optional<double>>(),
          o[1].cast<bool>(),
          o[2].cast<int64_t>(),
          o[3].cast<int64_t>(),
          o[4].cast<int64_t>(),
          o[5].cast<int64_t>(),
          o[6].cast<bool>(),
          o[7].cast<bool>(),
          o[8].cast<int64_t>(),
          o[9].cast<int64_t>()};
}

void* memory_of(const py::array& array) { return const_cast<void*>(array.data()); }

// Runs on the caller's thread, without Python's lock.
template <class Run>
void run(const char* op, const Run& run_with) {
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  Memory workspace;
  run_with(&context, [&](int64_t bytes) {
    workspace = Memory(op, bytes);
    context.workspace = workspace.data();
  });
}

py::tuple block_sparse_attention(const py::tuple& arrays, const py::tuple& options) {
  Operands operands(OP, arrays);
  const AttentionRequest<Operand> request(OP, operands.all(), options_of(options), raise);
  AttentionArgs args = request.checked(raise);
  const py::array out(operands.q.array.dtype(), std::vector<int64_t>{args.B, args.H, args.S_q, args.D_v});
  const py::array lse(py::dtype("float32"), std::vector<int64_t>{args.B, args.H, args.S_q});
  args.out = memory_of(out);
  args.lse = static_cast<float*>(memory_of(lse));
  run(OP, [&](Context* context, const auto& reserve) { run_attention(context, args, reserve); });
  return py::make_tuple(out, lse);
}

py::tuple block_sparse_attention_backward(Object dout, Object dlse, Object out, Object lse, const py::tuple& arrays,
                                          const py::tuple& options) {
  Operands operands(BACKWARD, arrays);
  Operand out_of_forward(BACKWARD, "out", out), lse_of_forward(BACKWARD, "lse", lse);
  Operand of_out(BACKWARD, "dout", dout), of_lse(BACKWARD, "dlse", dlse);
  for (const Operand* needed : {&out_of_forward, &lse_of_forward, &of_out}) present(*needed);
  AttentionRequest<Operand> request(BACKWARD, operands.all(), options_of(options), raise);
  request.give({out_of_forward, lse_of_forward, of_out, of_lse});
  AttentionArgs args = request.checked(raise);
  const py::dtype dtype = operands.q.array.dtype();
  const py::array dq(dtype, std::vector<int64_t>{args.B, args.H, args.S_q, args.D});
  const py::array dk(dtype, std::vector<int64_t>{args.B, args.H_kv, args.S_k, args.D});
  const py::array dv(dtype, std::vector<int64_t>{args.B, args.H_kv, args.S_k, args.D_v});
  py::object dsink = py::none();
  args.dq = memory_of(dq), args.dk = memory_of(dk), args.dv = memory_of(dv);
  if (args.sink_logits) {
    const py::array made(py::dtype("float32"), std::vector<int64_t>{args.H});
    args.dsink_logits = static_cast<float*>(memory_of(made));
    dsink = made;
  }
  run(BACKWARD, [&](Context* context, const auto& reserve) { run_attention_backward(context, args, reserve); });
  return py::make_tuple(dq, dk, dv, dsink);
}

}  // namespace

void bind_block_builders(py::module_& module);

void bind_block_sparse_attention(py::module_& module, py::dict& variants) {
  module.def("block_sparse_attention", &block_sparse_attention);
  module.def("block_sparse_attention_backward", &block_sparse_attention_backward);
  bind_block_builders(module);
  variants["block_sparse_attention"] = variants_of(dsf_block_sparse_attention_variant);
}

}  // namespace dsf::python_door
