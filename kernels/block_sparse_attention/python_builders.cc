// The NumPy doors of the builders of block masks, for deepseek_fast/numpy.py, which turns options into numbers.
#include <pybind11/stl.h>

#include "csrc/python/adapter.h"
#include "kernels/block_sparse_attention/door_builders.h"

namespace dsf::python_door {
namespace {

using Numbers = std::vector<int64_t>;

int32_t* numbers_of(const py::array& array) { return static_cast<int32_t*>(const_cast<void*>(array.data())); }

py::array new_numbers(const Numbers& sizes) { return py::array(py::dtype("int32"), sizes); }

BlockPattern pattern_of(const char* op, bool is_log, const Numbers& n) {
  const auto window = [&](size_t i) { return is_log ? NO_LIMIT : n.at(i); };
  const int64_t sinks = is_log ? 0 : n.at(9), local = is_log ? n.at(7) : 0, first = is_log ? n.at(8) : 0;
  return {op,           n.at(0), n.at(1),   n.at(2),   n.at(3), n.at(4) != 0, n.at(5),
          n.at(6) != 0, is_log,  window(7), window(8), sinks,   local,        first};
}

std::pair<int64_t, int64_t> checked(const BlockPattern& pattern) {
  int64_t rows, entries;
  Problem problem;
  if (!dsf_block_pattern_check(&pattern, &rows, &entries, &problem)) raise(problem);
  return {rows, entries};
}

// S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, then left, right, sinks, or local, first.
py::tuple block_pattern(const std::string& op, bool is_log, const Numbers& numbers) {
  const BlockPattern pattern = pattern_of(op.c_str(), is_log, numbers);
  const auto [rows, entries] = checked(pattern);
  const py::array offsets = new_numbers({1, 1, rows + 1}), columns = new_numbers({entries});
  dsf_block_pattern(&pattern, numbers_of(offsets), numbers_of(columns));
  return py::make_tuple(offsets, columns);
}

// (rows, entries), for Meta kernels.
py::tuple block_pattern_sizes(const std::string& op, bool is_log, const Numbers& numbers) {
  const auto [rows, entries] = checked(pattern_of(op.c_str(), is_log, numbers));
  return py::make_tuple(rows, entries);
}

py::tuple block_lists(const py::object& block_mask) {
  Operand mask("block_lists", "block_mask", block_mask);
  if (!mask.present) throw py::type_error("block_lists: block_mask must be a NumPy array; got NoneType");
  mask.make_contiguous();
  int64_t entries;
  Problem problem;
  if (!dsf_block_lists_check(mask.op, mask.get(), &entries, &problem)) raise(problem);
  const int64_t n = mask.view.ndim, *sizes = mask.view.sizes;
  const py::array offsets = new_numbers({n == 4 ? sizes[0] : 1, n == 4 ? sizes[1] : 1, sizes[n - 2] + 1});
  const py::array columns = new_numbers({entries});
  dsf_block_lists(mask.get(), numbers_of(offsets), numbers_of(columns));
  return py::make_tuple(offsets, columns);
}

// numbers: num_blocks, first, local, is_causal, q_offset, q_at_end, block_q, block_k
py::array top_k_blocks(const py::object& q, const py::object& k, std::optional<double> scale, const Numbers& n) {
  const char* op = "top_k_blocks";
  Operand of_q(op, "q", q), of_k(op, "k", k);
  for (const Operand* operand : {&of_q, &of_k})
    if (!operand->present)
      throw py::type_error(std::string(op) + ": " + operand->arg + " must be a NumPy array; got NoneType");
  const TopK top{n.at(0), n.at(1), n.at(2)};
  const AttentionOptions options{scale,   n.at(3) != 0, NO_LIMIT, NO_LIMIT, 0,
                                 n.at(4), n.at(5) != 0, true,     n.at(6),  n.at(7)};
  const AttentionArgs args = checked_top_k(op, &of_q, &of_k, options, top, raise);
  const py::array kept(py::dtype("bool"), Numbers{args.B, args.H, args.rows, args.columns});
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  const Memory workspace(op, dsf_top_k_blocks_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  dsf_top_k_blocks(&context, &args, &top, static_cast<uint8_t*>(const_cast<void*>(kept.data())));
  return kept;
}

}  // namespace

void bind_block_builders(py::module_& module) {
  module.def("block_pattern", &block_pattern);
  module.def("block_pattern_sizes", &block_pattern_sizes);
  module.def("block_lists", &block_lists);
  module.def("top_k_blocks", &top_k_blocks);
}

}  // namespace dsf::python_door
