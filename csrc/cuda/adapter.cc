#include "csrc/cuda/adapter.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>

// Exported by libtorch_cuda alone: weak, so that this library loads with a torch that has no CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace dsf::cuda {

TensorView view_of(const Tensor& tensor) {
  Dtype dtype = Dtype::other;
  if (tensor.scalar_type() == ScalarType::Float) dtype = Dtype::f32;
  if (tensor.scalar_type() == ScalarType::BFloat16) dtype = Dtype::bf16;
  if (tensor.scalar_type() == ScalarType::Half) dtype = Dtype::f16;
  return {nullptr,
          dtype,
          torch::headeronly::toString(tensor.scalar_type()),
          tensor.dim(),
          tensor.sizes().data(),
          tensor.strides().data()};
}

Tensor new_tensor(const Tensor& x, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                  ScalarType dtype) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                                         static_cast<int32_t>(dtype), aoti_torch_device_type_cuda(),
                                                         x.get_device_index(), &handle));
  return Tensor(handle);
}

void* current_stream(const Tensor& x) {
  if (&aoti_torch_get_current_cuda_stream == nullptr)
    throw std::runtime_error("deepseek_fast: torch must be built with CUDA; got a torch without");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

}  // namespace dsf::cuda
