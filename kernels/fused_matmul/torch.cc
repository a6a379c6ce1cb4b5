// The torch operators of fused_matmul. Meta kernels and autograd are beside the public function in op.py.
#include "csrc/torch/linear.h"
#include "kernels/fused_matmul/cpu.h"

namespace dsf::torch_door {
namespace {

Tensor fused_matmul(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, std::string activation,
                    const std::optional<Tensor>& residual, bool gated) {
  return run_linear(*dsf_fused_matmul_room(),
                    {x, weight, std::nullopt, bias, residual, std::move(activation), "", false, -1, gated});
}

Tensor fused_matmul_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                           int64_t out_features, std::string activation, const std::optional<Tensor>& residual,
                           bool gated) {
  return run_linear(*dsf_fused_matmul_room(),
                    {x, packed, std::nullopt, bias, residual, std::move(activation), "", true, out_features, gated});
}

Tensor fused_matmul_pack(const Tensor& weight, bool gated) {
  return pack_linear(*dsf_fused_matmul_room(), weight, gated);
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "fused_matmul(Tensor x, Tensor weight, Tensor? bias=None, *, str activation=\"none\", Tensor? residual=None, "
      "bool gated=False) -> Tensor");
  library.def(
      "fused_matmul_packed(Tensor x, Tensor packed, Tensor? bias=None, *, SymInt out_features, str "
      "activation=\"none\", Tensor? residual=None, bool gated=False) -> Tensor");
  library.def("fused_matmul_pack(Tensor weight, *, bool gated=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("fused_matmul", TORCH_BOX(&dsf::torch_door::fused_matmul));
  library.impl("fused_matmul_packed", TORCH_BOX(&dsf::torch_door::fused_matmul_packed));
  library.impl("fused_matmul_pack", TORCH_BOX(&dsf::torch_door::fused_matmul_pack));
}
