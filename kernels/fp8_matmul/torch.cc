// The torch operators of fp8_matmul. Meta kernels are beside the public functions in op.py and scaled_mm.py.
#include "csrc/torch/linear.h"
#include "kernels/fp8_matmul/cpu.h"

namespace dsf::torch_door {
namespace {

Tensor fp8_matmul(const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& bias,
                  int64_t block_n, int64_t block_k, std::string activation, const std::optional<Tensor>& residual,
                  std::string activations, bool gated) {
  return run_linear(*dsf_fp8_matmul_room(), {x, weight, scale, bias, residual, std::move(activation),
                                             std::move(activations), false, -1, gated, block_n, block_k});
}

Tensor fp8_matmul_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features,
                         std::string activation, const std::optional<Tensor>& residual, std::string activations,
                         bool gated) {
  return run_linear(*dsf_fp8_matmul_room(), {x, packed, std::nullopt, bias, residual, std::move(activation),
                                             std::move(activations), true, out_features, gated});
}

Tensor fp8_matmul_pack(const Tensor& weight, const Tensor& scale, int64_t block_n, int64_t block_k, bool gated) {
  return pack_linear(*dsf_fp8_matmul_room(), weight, gated, scale, block_n, block_k);
}

std::tuple<Tensor, Tensor> fp8_quantize_weight(const Tensor& w, int64_t block_n, int64_t block_k, ScalarType dtype) {
  Operand weight("fp8_quantize_weight", "w", w);
  const Block block{block_n, block_k};
  Problem problem;
  if (!dsf_fp8_quantize_weight_check(&weight.view, &block, dtype_of(dtype), &problem)) raise(problem);
  weight.make_rows();
  const TensorView& view = weight.view;
  const int64_t N = view.sizes[0], K = view.sizes[1];
  const Tensor codes = new_tensor({N, K}, dtype);
  const Tensor scale = new_tensor({num_blocks(N, block_n), num_blocks(K, block_k)}, ScalarType::Float);
  const CallContext context;
  if (!dsf_fp8_quantize_weight(context.get(), &view, &block, dtype_of(dtype),
                               static_cast<uint8_t*>(codes.mutable_data_ptr()),
                               static_cast<float*>(scale.mutable_data_ptr()), &problem))
    raise(problem);
  return {codes, scale};
}

// The block of torch.nn.functional.ScalingType's values.
Block block_of_recipe(const char* arg, int64_t recipe) {
  switch (recipe) {
    case 0:  // TensorWise
      return {-1, -1};
    case 1:  // RowWise
      return {1, -1};
    case 4:  // BlockWise1x128
      return {1, 128};
    case 5:  // BlockWise128x128
      return {128, 128};
    default:
      throw std::runtime_error(std::string("fp8_scaled_mm: ") + arg +
                               " must be TensorWise, RowWise, BlockWise1x128 or BlockWise128x128; got " +
                               std::to_string(recipe));
  }
}

// mat_b is (N, K), scales have one value a block: scaled_mm.py brings torch's layouts to these.
Tensor fp8_scaled_mm(const Tensor& mat_a, const Tensor& mat_b, const Tensor& scale_a, const Tensor& scale_b,
                     const std::optional<Tensor>& bias, int64_t scale_recipe_a, int64_t scale_recipe_b,
                     ScalarType output_dtype) {
  constexpr const char* OP = "fp8_scaled_mm";
  const Block block_a = block_of_recipe("scale_recipe_a", scale_recipe_a);
  const Block block_b = block_of_recipe("scale_recipe_b", scale_recipe_b);
  Operand a(OP, "mat_a", mat_a), b(OP, "mat_b", mat_b), a_scale(OP, "scale_a", scale_a),
      b_scale(OP, "scale_b", scale_b);
  Operand row(OP, "bias", bias);
  ScaledMmCall call;
  LinearArgs args;
  const auto check = [&] {
    call = {{a.view, a_scale.get(), block_a.n, block_a.k},
            {b.view, b_scale.get(), block_b.n, block_b.k},
            row.get(),
            dtype_of(output_dtype)};
    Problem problem;
    if (!dsf_fp8_scaled_mm_check(&call, &args, &problem)) raise(problem);
  };
  check();
  bool copied = false;
  for (Operand* operand : {&a, &b, &a_scale, &b_scale, &row}) copied |= operand->make_rows();
  if (copied) check();

  const Tensor y = new_tensor({args.M, args.N}, output_dtype);
  args.y = y.mutable_data_ptr();
  args.y_stride = args.N;
  CallContext context;
  context.reserve(OP, dsf_fp8_matmul_plain_workspace_bytes(context.get(), &args, &call.mat_b));
  dsf_fp8_scaled_mm(context.get(), &args, &call.mat_a, &call.mat_b);
  return y;
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "fp8_matmul(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, *, int block_n=128, int block_k=128, str "
      "activation=\"none\", Tensor? residual=None, str activations=\"float\", bool gated=False) -> Tensor");
  library.def(
      "fp8_matmul_packed(Tensor x, Tensor packed, Tensor? bias=None, *, SymInt out_features, str activation=\"none\", "
      "Tensor? residual=None, str activations=\"float\", bool gated=False) -> Tensor");
  library.def(
      "fp8_matmul_pack(Tensor weight, Tensor scale, *, int block_n=128, int block_k=128, bool gated=False) -> Tensor");
  library.def(
      "fp8_quantize_weight(Tensor w, *, int block_n=128, int block_k=128, ScalarType dtype) -> (Tensor, Tensor)");
  library.def(
      "fp8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scale_a, Tensor scale_b, Tensor? bias=None, *, int "
      "scale_recipe_a, int scale_recipe_b, ScalarType output_dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("fp8_matmul", TORCH_BOX(&dsf::torch_door::fp8_matmul));
  library.impl("fp8_matmul_packed", TORCH_BOX(&dsf::torch_door::fp8_matmul_packed));
  library.impl("fp8_matmul_pack", TORCH_BOX(&dsf::torch_door::fp8_matmul_pack));
  library.impl("fp8_quantize_weight", TORCH_BOX(&dsf::torch_door::fp8_quantize_weight));
  library.impl("fp8_scaled_mm", TORCH_BOX(&dsf::torch_door::fp8_scaled_mm));
}
