// The NumPy door of sparse_mla: one thread, no torch.
#include <pybind11/stl.h>

#include "csrc/python/adapter.h"
#include "csrc/python/variants.h"
#include "kernels/sparse_mla/door.h"

namespace dsf::python_door {
namespace {

using MaybeScale = std::optional<double>;

void present(const Operand& operand) {
  if (!operand.present)
    throw py::type_error(std::string(operand.op) + ": " + operand.arg + " must be a NumPy array; got NoneType");
}

template <class... Sizes>
py::array new_array(const py::dtype& dtype, Sizes... sizes) {
  return py::array(dtype, std::vector<int64_t>{sizes...});
}
py::dtype f32() { return py::dtype("float32"); }

// times: again and again, for benchmarks.
template <class Bytes, class Run>
void run(const char* op, const SparseMlaArgs& args, const Bytes& workspace_bytes, const Run& kernel, int64_t times) {
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  const Memory workspace(op, workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  for (int64_t i = 0; i < times; ++i) kernel(&context, &args);
}

py::tuple sparse_mla(const py::object& q, const py::object& kv, const py::object& indices, MaybeScale scale,
                     int64_t d_v, const py::object& attn_sink, const py::object& topk_length, int64_t times) {
  constexpr const char* OP = "sparse_mla";
  MlaOperands<Operand> given{{OP, "q", q},
                             {OP, "kv", kv},
                             {OP, "indices", indices},
                             {OP, "attn_sink", attn_sink},
                             {OP, "topk_length", topk_length}};
  for (const Operand* one : {&given.q, &given.kv, &given.indices}) present(*one);
  SparseMlaCall call{};
  call.op = OP;
  call.d_v = d_v;
  SparseMlaArgs args =
      checked_mla<Operand>(dsf_sparse_mla_check, &call, scale, given, static_cast<Operand*>(nullptr), raise);
  const py::array out = new_array(given.q.array.dtype(), args.s_q, args.h_q, args.d_v);
  const py::array max_logits = new_array(f32(), args.s_q, args.h_q), lse = new_array(f32(), args.s_q, args.h_q);
  args.out = const_cast<void*>(out.data());
  args.max_logits = static_cast<float*>(const_cast<void*>(max_logits.data()));
  args.lse = static_cast<float*>(const_cast<void*>(lse.data()));
  run(OP, args, dsf_sparse_mla_workspace_bytes, dsf_sparse_mla, times);
  return py::make_tuple(out, max_logits, lse);
}

py::tuple sparse_mla_backward(const py::object& dout_array, const py::object& q, const py::object& kv,
                              const py::object& indices, const py::object& out_array, const py::object& lse_array,
                              MaybeScale scale, int64_t d_v, const py::object& attn_sink, const py::object& topk_length,
                              int64_t times) {
  constexpr const char* OP = "sparse_mla_backward";
  MlaOperands<Operand> given{{OP, "q", q},
                             {OP, "kv", kv},
                             {OP, "indices", indices},
                             {OP, "attn_sink", attn_sink},
                             {OP, "topk_length", topk_length}};
  const py::object require = py::module_::import("numpy").attr("require");
  Operand dout(OP, "dout", dout_array);
  const Operand out(OP, "out", out_array.is_none() ? out_array : py::object(require(out_array, py::none(), "CA")));
  const Operand lse(OP, "lse", lse_array.is_none() ? lse_array : py::object(require(lse_array, py::none(), "CA")));
  for (const Operand* one : {static_cast<const Operand*>(&dout), &out, &lse}) present(*one);
  for (const Operand* one : {&given.q, &given.kv, &given.indices}) present(*one);
  SparseMlaCall call{};
  call.op = OP;
  call.d_v = d_v;
  call.out = out.get();
  call.lse = lse.get();
  SparseMlaArgs args = checked_mla<Operand>(dsf_sparse_mla_backward_check, &call, scale, given, &dout, raise);
  const py::dtype dtype = given.q.array.dtype();
  const py::array dq = new_array(dtype, args.s_q, args.h_q, args.d_qk);
  const py::array dkv = new_array(dtype, args.store.page_size, args.h_kv, args.d_qk);
  const bool has_sink = given.attn_sink.present;
  const py::array dsink = new_array(f32(), has_sink ? args.h_q : 0);
  args.dq = const_cast<void*>(dq.data());
  args.dkv = const_cast<void*>(dkv.data());
  args.dattn_sink = has_sink ? static_cast<float*>(const_cast<void*>(dsink.data())) : nullptr;
  run(OP, args, dsf_sparse_mla_backward_workspace_bytes, dsf_sparse_mla_backward, times);
  return py::make_tuple(dq, dkv, dsink);
}

py::tuple sparse_mla_decode(const py::object& q, const py::object& k_cache, const py::object& indices, MaybeScale scale,
                            int64_t d_v, const std::string& layout, const py::object& block_table,
                            const py::object& cache_seqlens, bool is_causal, const py::object& attn_sink,
                            const py::object& topk_length, const py::object& extra_k_cache,
                            const py::object& extra_indices, const py::object& extra_topk_length, int64_t times) {
  constexpr const char* OP = "sparse_mla_decode";
  DecodeOperands<Operand> given{{OP, "q", q},
                                {OP, "k_cache", k_cache},
                                {OP, "indices", indices},
                                {OP, "topk_length", topk_length},
                                {OP, "block_table", block_table},
                                {OP, "cache_seqlens", cache_seqlens},
                                {OP, "extra_k_cache", extra_k_cache},
                                {OP, "extra_indices", extra_indices},
                                {OP, "extra_topk_length", extra_topk_length},
                                {OP, "attn_sink", attn_sink}};
  present(given.q);
  present(given.k_cache);
  SparseMlaDecodeCall call{};
  call.op = OP;
  call.layout = layout.c_str();
  call.d_v = d_v;
  call.is_causal = is_causal;
  SparseMlaArgs args = checked_decode<Operand>(&call, scale, given, raise);
  const py::array out = new_array(given.q.array.dtype(), args.b, args.s_q, args.h_q, args.d_v);
  const py::array lse = new_array(f32(), args.b, args.h_q, args.s_q);
  args.out = const_cast<void*>(out.data());
  args.lse = static_cast<float*>(const_cast<void*>(lse.data()));
  run(OP, args, dsf_sparse_mla_decode_workspace_bytes, dsf_sparse_mla_decode, times);
  return py::make_tuple(out, lse);
}

void mla_cache_write(const py::object& cache_array, const py::object& kv_array, const py::object& slots_array,
                     const std::string& layout) {
  constexpr const char* OP = "mla_cache_write";
  const Operand cache(OP, "cache", cache_array);
  Operand kv(OP, "kv", kv_array), slots(OP, "slots", slots_array);
  present(cache);
  present(kv);
  if (!cache.array.writeable())
    throw py::value_error(std::string(OP) + ": cache must be writeable; got one that is not");
  lay_out(slots);
  CacheWriteArgs args;
  const auto check = [&] {
    const CacheWriteCall call{cache.view, kv.view, layout.c_str(), slots.get()};
    Problem problem;
    if (!dsf_mla_cache_write_check(&call, &args, &problem)) raise(problem);
  };
  check();
  if (lay_out(kv)) check();
  Context context{};
  context.num_threads = 1;
  dsf_mla_cache_write(&context, &args);
}

py::array mla_cache_read(const py::object& cache_array, const std::string& layout) {
  constexpr const char* OP = "mla_cache_read";
  const Operand cache(OP, "cache", cache_array);
  present(cache);
  const CacheReadCall call{cache.view, layout.c_str()};
  TokenStore store;
  Problem problem;
  if (!dsf_mla_cache_read_check(&call, &store, &problem)) raise(problem);
  const py::dtype bf16 = py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  const py::array numbers = new_array(bf16, store.pages, store.page_size, dsf_mla_cache_numbers(&store));
  Context context{};
  context.num_threads = 1;
  dsf_mla_cache_read(&context, &store, static_cast<uint16_t*>(const_cast<void*>(numbers.data())));
  return numbers;
}

}  // namespace

void bind_sparse_mla(py::module_& module, py::dict& variants) {
  const py::arg_v scale("scale", py::none()), sink("attn_sink", py::none()), length("topk_length", py::none());
  const py::arg_v times("times", 1);
  module.def("sparse_mla", &sparse_mla, py::arg("q"), py::arg("kv"), py::arg("indices"), py::kw_only(), scale,
             py::arg("d_v") = 512, sink, length, times);
  module.def("sparse_mla_backward", &sparse_mla_backward, py::arg("dout"), py::arg("q"), py::arg("kv"),
             py::arg("indices"), py::arg("out"), py::arg("lse"), py::kw_only(), scale, py::arg("d_v") = 512, sink,
             length, times);
  module.def("sparse_mla_decode", &sparse_mla_decode, py::arg("q"), py::arg("k_cache"), py::arg("indices") = py::none(),
             py::kw_only(), scale, py::arg("d_v") = 512, py::arg("layout") = "plain",
             py::arg("block_table") = py::none(), py::arg("cache_seqlens") = py::none(), py::arg("is_causal") = false,
             sink, length, py::arg("extra_k_cache") = py::none(), py::arg("extra_indices") = py::none(),
             py::arg("extra_topk_length") = py::none(), times);
  module.def("mla_cache_write", &mla_cache_write, py::arg("cache"), py::arg("kv"), py::arg("slots") = py::none(),
             py::kw_only(), py::arg("layout"));
  module.def("mla_cache_read", &mla_cache_read, py::arg("cache"), py::kw_only(), py::arg("layout"));
  variants["sparse_mla"] = variants_of(dsf_sparse_mla_variant);
}

}  // namespace dsf::python_door
