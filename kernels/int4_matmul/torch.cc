// The torch operators of int4_matmul. Meta kernels are beside the public functions in op.py.
#include "csrc/torch/linear.h"
#include "kernels/int4_matmul/cpu.h"

namespace dsf::torch_door {
namespace {

Tensor int4_matmul(const Tensor& x, const Tensor& q, const Tensor& scale, const std::optional<Tensor>& zeros,
                   const std::optional<Tensor>& bias, int64_t group_size, int64_t in_features, std::string activation,
                   const std::optional<Tensor>& residual, std::string compute, bool gated) {
  return run_linear(*dsf_int4_matmul_room(), {x, q, scale, bias, residual, std::move(activation), std::move(compute),
                                              false, -1, gated, 1, group_size, &zeros, in_features});
}

Tensor int4_matmul_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                          int64_t out_features, std::string activation, const std::optional<Tensor>& residual,
                          std::string compute, bool gated) {
  return run_linear(*dsf_int4_matmul_room(), {x, packed, std::nullopt, bias, residual, std::move(activation),
                                              std::move(compute), true, out_features, gated});
}

Tensor int4_matmul_pack(const Tensor& q, const Tensor& scale, const std::optional<Tensor>& zeros, int64_t group_size,
                        int64_t in_features, bool gated) {
  return pack_linear(*dsf_int4_matmul_room(), q, gated, scale, 1, group_size, zeros, in_features);
}

// zeros too where symmetric: 8 everywhere.
std::tuple<Tensor, Tensor, Tensor> int4_quantize_weight(const Tensor& w, int64_t group_size, bool symmetric) {
  Operand weight("int4_quantize_weight", "w", w);
  Problem problem;
  if (!dsf_int4_quantize_weight_check(&weight.view, group_size, &problem)) raise(problem);
  weight.make_rows();
  const int64_t N = weight.view.sizes[0], K = weight.view.sizes[1], groups = dsf_int4_groups(K, group_size);
  const Tensor q = new_tensor({N, (K + 1) / 2}, ScalarType::Byte);
  const Tensor scale = new_tensor({N, groups}, ScalarType::Float);
  const Tensor zeros = new_tensor({N, groups}, ScalarType::Byte);
  const Int4Weight target{static_cast<uint8_t*>(q.mutable_data_ptr()), static_cast<float*>(scale.mutable_data_ptr()),
                          static_cast<uint8_t*>(zeros.mutable_data_ptr())};
  const CallContext context;
  if (!dsf_int4_quantize_weight(context.get(), &weight.view, group_size, symmetric, &target, &problem)) raise(problem);
  return {q, scale, zeros};
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "int4_matmul(Tensor x, Tensor q, Tensor scale, Tensor? zeros=None, Tensor? bias=None, *, int group_size=32, "
      "SymInt in_features=-1, str activation=\"none\", Tensor? residual=None, str compute=\"int8\", bool gated=False) "
      "-> Tensor");
  library.def(
      "int4_matmul_packed(Tensor x, Tensor packed, Tensor? bias=None, *, SymInt out_features, str "
      "activation=\"none\", Tensor? residual=None, str compute=\"int8\", bool gated=False) -> Tensor");
  library.def(
      "int4_matmul_pack(Tensor q, Tensor scale, Tensor? zeros=None, *, int group_size=32, SymInt in_features=-1, "
      "bool gated=False) -> Tensor");
  library.def("int4_quantize_weight(Tensor w, *, int group_size=32, bool symmetric=True) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("int4_matmul", TORCH_BOX(&dsf::torch_door::int4_matmul));
  library.impl("int4_matmul_packed", TORCH_BOX(&dsf::torch_door::int4_matmul_packed));
  library.impl("int4_matmul_pack", TORCH_BOX(&dsf::torch_door::int4_matmul_pack));
  library.impl("int4_quantize_weight", TORCH_BOX(&dsf::torch_door::int4_quantize_weight));
}
