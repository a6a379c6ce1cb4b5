#include "csrc/torch/adapter.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace dsf::torch_door {
namespace {

Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Char:
      return Dtype::i8;
    case ScalarType::Byte:
      return Dtype::u8;
    default:
      return Dtype::other;
  }
}

// As torch's users write it.
const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    default:
      return torch::headeronly::toString(type);
  }
}

constexpr size_t ALIGNMENT = 64;  // bytes, as Context::workspace asks

}  // namespace

TensorView view_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return {const_cast<void*>(tensor.const_data_ptr()),
          dtype_of(type),
          name_of(type),
          tensor.dim(),
          tensor.sizes().data(),
          tensor.strides().data()};
}

Tensor as_rows(const Tensor& tensor) {
  const TensorView view = view_of(tensor);
  return view.ndim == 0 || dsf_row_stride(&view) >= 0 ? tensor : torch::stable::contiguous(tensor);
}

void raise(const Problem& problem) { STD_TORCH_CHECK(false, std::string(problem.sentence)); }

void check_cpu(const char* op, const char* arg, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", arg, " must be a CPU tensor; got another device");
}

Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  // The C shim: 1.4 us against 2.2 us for stable::new_empty and 3.7 us for stable::empty (measured, Zen 5, 2026-11).
  AtenTensorHandle handle = nullptr;
  int32_t code = 0;
  switch (dtype) {
    case ScalarType::Float:
      code = aoti_torch_dtype_float32();
      break;
    case ScalarType::BFloat16:
      code = aoti_torch_dtype_bfloat16();
      break;
    case ScalarType::Char:
      code = aoti_torch_dtype_int8();
      break;
    default:
      code = aoti_torch_dtype_uint8();
      break;
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

CallContext::CallContext() {
  context_ = {};
  context_.num_threads = torch::stable::get_num_threads();
  context_.parallel_for = [](void*, int64_t n, void (*body)(void*, int64_t, int64_t), void* arg) {
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(arg, begin, end); });
  };
}

void CallContext::reserve(int64_t bytes) {
  if (bytes == 0) return;
  void* memory =
      bytes < 0 ? nullptr : std::aligned_alloc(ALIGNMENT, (size_t(bytes) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  STD_TORCH_CHECK(memory != nullptr, "deepseek_fast: workspace must fit into memory; got ", bytes, " bytes");
  workspace_.reset(memory);
  context_.workspace = memory;
}

}  // namespace dsf::torch_door
