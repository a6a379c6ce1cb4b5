// The torch operators of int8_matmul. Meta kernels are beside the public functions in op.py.
#include "csrc/torch/linear.h"
#include "kernels/int8_matmul/cpu.h"

namespace dsf::torch_door {
namespace {

Tensor int8_matmul(const Tensor& x, const Tensor& q, const Tensor& scale, const std::optional<Tensor>& bias,
                   std::string activation, const std::optional<Tensor>& residual, std::string activations, bool gated) {
  return run_linear(*dsf_int8_matmul_room(),
                    {x, q, scale, bias, residual, std::move(activation), std::move(activations), false, -1, gated});
}

Tensor int8_matmul_packed(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                          int64_t out_features, std::string activation, const std::optional<Tensor>& residual,
                          std::string activations, bool gated) {
  return run_linear(*dsf_int8_matmul_room(), {x, packed, scale, bias, residual, std::move(activation),
                                              std::move(activations), true, out_features, gated});
}

Tensor int8_matmul_pack(const Tensor& q, bool gated) { return pack_linear(*dsf_int8_matmul_room(), q, gated); }

std::tuple<Tensor, Tensor> int8_quantize_weight(const Tensor& w) {
  Operand weight("int8_quantize_weight", "w", w);
  Problem problem;
  if (!dsf_int8_quantize_weight_check(&weight.view, &problem)) raise(problem);
  weight.make_rows();
  const TensorView& view = weight.view;
  const int64_t N = view.sizes[0], K = view.sizes[1];
  const Tensor q = new_tensor({N, K}, ScalarType::Char);
  const Tensor scale = new_tensor({N}, ScalarType::Float);
  const CallContext context;
  dsf_int8_quantize_weight(context.get(), view.dtype, view.data, dsf_row_stride(&view), N, K,
                           static_cast<int8_t*>(q.mutable_data_ptr()), static_cast<float*>(scale.mutable_data_ptr()));
  return {q, scale};
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "int8_matmul(Tensor x, Tensor q, Tensor scale, Tensor? bias=None, *, str activation=\"none\", Tensor? "
      "residual=None, str activations=\"int8\", bool gated=False) -> Tensor");
  library.def(
      "int8_matmul_packed(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None, *, SymInt out_features, str "
      "activation=\"none\", Tensor? residual=None, str activations=\"int8\", bool gated=False) -> Tensor");
  library.def("int8_matmul_pack(Tensor q, *, bool gated=False) -> Tensor");
  library.def("int8_quantize_weight(Tensor w) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("int8_matmul", TORCH_BOX(&dsf::torch_door::int8_matmul));
  library.impl("int8_matmul_packed", TORCH_BOX(&dsf::torch_door::int8_matmul_packed));
  library.impl("int8_matmul_pack", TORCH_BOX(&dsf::torch_door::int8_matmul_pack));
  library.impl("int8_quantize_weight", TORCH_BOX(&dsf::torch_door::int8_quantize_weight));
}
