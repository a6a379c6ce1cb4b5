// The CUDA C++ kernel of fp8_cast as a torch operator of its own, for fp8_cast's launcher (triton_kernel.py): it takes
// calls that the public operator has checked, of blocks of (1, 128).
#include <stdexcept>

#include "csrc/cuda/adapter.h"
#include "kernels/fp8_cast/cast.h"
#include "kernels/fp8_cast/cuda_block.h"
#include "kernels/fp8_cast/door.h"

namespace dsf::cuda {
namespace {

constexpr const char* OP = "fp8_cast";

struct View {
  TensorView view;
  static constexpr bool whole = true;
  bool make_rows() { return false; }  // refused below
  const TensorView* get() const { return &view; }
};

std::tuple<Tensor, Tensor> cast_1x128(const Tensor& x, ScalarType dtype, std::string scale, std::string mode,
                                      bool saturate, std::string layout) {
  using namespace fp8_cast;
  const auto raise = [](const Problem& problem) { throw std::runtime_error(problem.sentence); };
  const CastOptions options{
      1, CUDA_BLOCK, false, std::move(scale), std::move(mode), saturate, std::move(layout), "nearest", 0};
  const bool e4m3 = dtype == ScalarType::Float8_e4m3fn;
  if (!e4m3 && dtype != ScalarType::Float8_e5m2)
    throw std::runtime_error("fp8_cast: dtype must be float8_e4m3fn or float8_e5m2 here; got another");
  CastCall call = cast_call(OP, CastSource::x, options, e4m3 ? Dtype::f8e4m3 : Dtype::f8e5m2, "a float8 type");
  View view{view_of(x)};
  CastArgs args = checked_cast<View>(&call, view, nullptr, nullptr, nullptr, raise);
  if (!x.is_cuda() || dsf_row_stride(&view.view) < 0 || args.kind == ScaleKind::e4m3 ||
      args.layout == ScaleLayout::packed || args.M > cuda_cast_most_blocks() / (args.col_blocks + 1))
    throw std::runtime_error("fp8_cast: x must be rows on a GPU here, with scales of f32 or e8m0; got another call");
  const ScaleShape shape = scale_shape_of(call, &args);

  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  std::vector<int64_t> sizes(view.view.sizes, view.view.sizes + view.view.ndim), strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * (sizes[d] > 0 ? sizes[d] : 1);
  const Tensor codes = new_tensor(x, sizes, strides, dtype);
  const Tensor scales = new_tensor(x, shape.sizes, shape.strides,
                                   args.kind == ScaleKind::f32 ? ScalarType::Float : ScalarType::Float8_e8m0fnu);
  if (args.M == 0 || args.K == 0) return {codes, scales};
  const CudaCast cast{x.const_data_ptr(),
                      static_cast<uint8_t*>(codes.mutable_data_ptr()),
                      scales.mutable_data_ptr(),
                      args.M,
                      args.K,
                      args.col_blocks,
                      args.x_stride,
                      args.scale_row_stride,
                      args.scale_col_stride,
                      args.x_dtype,
                      args.dtype,
                      rule_of(args),
                      divides(args.mode) && args.kind == ScaleKind::f32,
                      ignores_nan(args.mode),
                      saturate};
  if (const char* words = cuda_cast(cast, current_stream(x)))
    throw std::runtime_error(std::string("fp8_cast: CUDA must launch the kernel; got '") + words + "'");
  return {codes, scales};
}

}  // namespace
}  // namespace dsf::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "_fp8_cast_1x128(Tensor x, ScalarType dtype, str scale, str mode, bool saturate, str layout) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CUDA, library) {
  library.impl("_fp8_cast_1x128", TORCH_BOX(&dsf::cuda::cast_1x128));
}
