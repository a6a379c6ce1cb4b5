// The NumPy door of the indexer.
#include "csrc/python/adapter.h"
#include "csrc/python/variants.h"
#include "kernels/lightning_indexer/door.h"

namespace dsf::python_door {
namespace {

using Object = py::object;

void present(const Operand& operand) {
  if (!operand.present)
    throw py::type_error(std::string(operand.op) + ": " + operand.arg + " must be a NumPy array; got NoneType");
}

std::string name_of(const Object& dtype) {
  return std::string(py::str(py::hasattr(dtype, "__name__") ? dtype.attr("__name__")
                             : py::hasattr(dtype, "name")   ? dtype.attr("name")
                                                            : dtype));
}

py::array new_array(const char* name, const std::vector<int64_t>& sizes) {
  const bool numpy = std::string(name) != "bfloat16";
  return py::array(py::dtype::from_args(py::module_::import(numpy ? "numpy" : "ml_dtypes").attr(name)), sizes);
}

// Text that outlives the call, or null for None.
class Order {
 public:
  Order(const char* op, const Object& sorted_by) : none_(sorted_by.is_none()) {
    if (none_) return;
    if (!py::isinstance<py::str>(sorted_by))
      throw py::type_error(std::string(op) + ": sorted_by must be a name or None; got " +
                           std::string(py::repr(sorted_by)));
    text_ = sorted_by.cast<std::string>();
  }
  const char* get() const { return none_ ? nullptr : text_.c_str(); }

 private:
  bool none_;
  std::string text_;
};

py::array run(IndexerCall call, const char* dtype, IndexerOperands<Operand>& operands, int64_t times) {
  IndexerArgs args = checked_indexer<Operand>(&call, operands, raise);
  const py::array output = new_array(dtype, output_sizes(args));
  args.logits = const_cast<void*>(output.data());
  args.indices = static_cast<int32_t*>(args.logits);
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  const Memory workspace(call.op, dsf_lightning_indexer_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  for (int64_t i = 0; i < times; ++i) dsf_lightning_indexer(&context, &args);
  return output;
}

py::array run_dense(const IndexerCall& call, const char* dtype, const Object& q, const Object& k, const Object& k_scale,
                    const Object& weights, const Object& ks, const Object& ke, int64_t times) {
  const char* op = call.op;
  const Object none = py::none();
  IndexerOperands<Operand> operands{{op, "q", q},
                                    {op, "weights", weights},
                                    {op, "k", k},
                                    {op, "k_scale", k_scale},
                                    {op, "ks", ks},
                                    {op, "ke", ke},
                                    {op, "cache", none},
                                    {op, "context_lens", none},
                                    {op, "block_table", none}};
  for (const Operand* needed : {&operands.q, &operands.k, &operands.k_scale, &operands.weights}) present(*needed);
  return run(call, dtype, operands, times);
}

py::array run_paged(const IndexerCall& call, const char* dtype, const Object& q, const Object& cache,
                    const Object& weights, const Object& context_lens, const Object& block_table, int64_t times) {
  const char* op = call.op;
  const Object none = py::none();
  IndexerOperands<Operand> operands{{op, "q", q},
                                    {op, "weights", weights},
                                    {op, "k", none},
                                    {op, "k_scale", none},
                                    {op, "ks", none},
                                    {op, "ke", none},
                                    {op, "cache", cache},
                                    {op, "context_lens", context_lens},
                                    {op, "block_table", block_table}};
  for (const Operand* needed :
       {&operands.q, &operands.cache, &operands.weights, &operands.context_lens, &operands.block_table})
    present(*needed);
  return run(call, dtype, operands, times);
}

IndexerCall logits_call(const char* op, int64_t columns, const std::string& dtype) {
  IndexerCall call{};
  call.op = op;
  call.max_seqlen_k = columns;
  call.logits_dtype = dtype_of(dtype);
  call.logits_dtype_name = dtype.c_str();
  return call;
}

IndexerCall indices_call(const char* op, int64_t top_k, const Order& order, bool as_slots) {
  IndexerCall call{};
  call.op = op;
  call.selects = true;
  call.top_k = top_k;
  call.sorted_by = order.get();
  call.as_slots = as_slots;
  return call;
}

py::array fp8_mqa_logits(const Object& q, const Object& k, const Object& k_scale, const Object& weights,
                         const Object& ks, const Object& ke, int64_t max_seqlen_k, const Object& dtype, int64_t times) {
  const std::string name = name_of(dtype);
  return run_dense(logits_call("fp8_mqa_logits", max_seqlen_k, name), name.c_str(), q, k, k_scale, weights, ks, ke,
                   times);
}

py::array fp8_paged_mqa_logits(const Object& q, const Object& cache, const Object& weights, const Object& context_lens,
                               const Object& block_table, int64_t max_context_len, const Object& dtype, int64_t times) {
  const std::string name = name_of(dtype);
  return run_paged(logits_call("fp8_paged_mqa_logits", max_context_len, name), name.c_str(), q, cache, weights,
                   context_lens, block_table, times);
}

py::array lightning_indexer(const Object& q, const Object& k, const Object& k_scale, const Object& weights,
                            int64_t top_k, const Object& ks, const Object& ke, const Object& sorted_by, int64_t times) {
  constexpr const char* OP = "lightning_indexer";
  const Order order(OP, sorted_by);
  return run_dense(indices_call(OP, top_k, order, false), "int32", q, k, k_scale, weights, ks, ke, times);
}

py::array lightning_indexer_paged(const Object& q, const Object& cache, const Object& weights,
                                  const Object& context_lens, const Object& block_table, int64_t top_k,
                                  const Object& sorted_by, bool as_slots, int64_t times) {
  constexpr const char* OP = "lightning_indexer_paged";
  const Order order(OP, sorted_by);
  return run_paged(indices_call(OP, top_k, order, as_slots), "int32", q, cache, weights, context_lens, block_table,
                   times);
}

py::array topk_indices(const Object& scores_array, int64_t k, const Object& sorted_by, const Object& lengths_array,
                       int64_t times) {
  constexpr const char* OP = "topk_indices";
  const Order order(OP, sorted_by);
  Operand scores(OP, "scores", scores_array), lengths(OP, "lengths", lengths_array);
  present(scores);
  TopkCall call{};
  call.op = OP;
  call.k = k;
  call.sorted_by = order.get();
  TopkArgs args = checked_topk<Operand>(&call, scores, lengths, raise);
  const py::array indices = new_array("int32", output_sizes(call));
  args.indices = static_cast<int32_t*>(const_cast<void*>(indices.data()));
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  const Memory workspace(OP, dsf_topk_indices_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  for (int64_t i = 0; i < times; ++i) dsf_topk_indices(&context, &args);
  return indices;
}

}  // namespace

void bind_lightning_indexer(py::module_& module, py::dict& variants) {
  const auto q = py::arg("q"), k = py::arg("k"), k_scale = py::arg("k_scale"), weights = py::arg("weights");
  const auto cache = py::arg("cache"), context_lens = py::arg("context_lens"), block_table = py::arg("block_table");
  const auto top_k = py::arg("top_k");
  const auto ks = py::arg("ks") = py::none(), ke = py::arg("ke") = py::none();
  const auto dtype = py::arg("dtype") = "float32";
  const auto sorted_by = py::arg("sorted_by") = py::none();
  const auto max_seqlen_k = py::arg("max_seqlen_k") = 0, as_slots = py::arg("as_slots") = false;
  const auto lengths = py::arg("lengths") = py::none();
  const auto max_context_len = py::arg("max_context_len"), scores = py::arg("scores"), times = py::arg("times");
  const py::kw_only named;
  module.def(
      "fp8_mqa_logits",
      [](const Object& q, const Object& k, const Object& k_scale, const Object& weights, const Object& ks,
         const Object& ke, int64_t columns,
         const Object& dtype) { return fp8_mqa_logits(q, k, k_scale, weights, ks, ke, columns, dtype, 1); },
      q, k, k_scale, weights, ks, ke, named, max_seqlen_k, dtype);
  module.def(
      "fp8_paged_mqa_logits",
      [](const Object& q, const Object& cache, const Object& weights, const Object& lens, const Object& table,
         int64_t columns,
         const Object& dtype) { return fp8_paged_mqa_logits(q, cache, weights, lens, table, columns, dtype, 1); },
      q, cache, weights, context_lens, block_table, max_context_len, named, dtype);
  module.def(
      "lightning_indexer",
      [](const Object& q, const Object& k, const Object& k_scale, const Object& weights, int64_t top_k,
         const Object& ks, const Object& ke,
         const Object& order) { return lightning_indexer(q, k, k_scale, weights, top_k, ks, ke, order, 1); },
      q, k, k_scale, weights, top_k, ks, ke, named, sorted_by);
  module.def(
      "lightning_indexer_paged",
      [](const Object& q, const Object& cache, const Object& weights, const Object& lens, const Object& table,
         int64_t top_k, const Object& order,
         bool slots) { return lightning_indexer_paged(q, cache, weights, lens, table, top_k, order, slots, 1); },
      q, cache, weights, context_lens, block_table, top_k, named, sorted_by, as_slots);
  module.def(
      "topk_indices",
      [](const Object& scores, int64_t k, const Object& order, const Object& lengths) {
        return topk_indices(scores, k, order, lengths, 1);
      },
      scores, k, named, sorted_by, lengths);
  // The kernel alone, so many times: for benchmarks.
  module.def("fp8_mqa_logits_repeated", &fp8_mqa_logits, q, k, k_scale, weights, ks, ke, named, max_seqlen_k, dtype,
             times);
  module.def("fp8_paged_mqa_logits_repeated", &fp8_paged_mqa_logits, q, cache, weights, context_lens, block_table,
             max_context_len, named, dtype, times);
  module.def("lightning_indexer_repeated", &lightning_indexer, q, k, k_scale, weights, top_k, ks, ke, named, sorted_by,
             times);
  module.def("lightning_indexer_paged_repeated", &lightning_indexer_paged, q, cache, weights, context_lens, block_table,
             top_k, named, sorted_by, as_slots, times);
  module.def("topk_indices_repeated", &topk_indices, scores, k, named, sorted_by, lengths, times);
  variants["lightning_indexer"] = variants_of(dsf_lightning_indexer_variant);
}

}  // namespace dsf::python_door
