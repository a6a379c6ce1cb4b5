#include "csrc/ort/runtime.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "csrc/gemm/packed.h"

namespace dsf::ort_door {
namespace {

// Element types as NumPy and torch write them, in the order of ONNXTensorElementDataType.
constexpr const char* DTYPE_NAMES[] = {
    "undefined",       "float32",     "uint8",           "int8",       "uint16",   "int16",
    "int32",           "int64",       "string",          "bool",       "float16",  "float64",
    "uint32",          "uint64",      "complex64",       "complex128", "bfloat16", "float8_e4m3fn",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "uint4",      "int4",     "float4_e2m1fn",
    "uint2",           "int2",        "float8_e8m0fnu"};

Dtype dtype_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return Dtype::f32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return Dtype::bf16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return Dtype::f16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return Dtype::i8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return Dtype::u8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return Dtype::i32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return Dtype::i64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN:
      return Dtype::f8e4m3;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2:
      return Dtype::f8e5m2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ:
      return Dtype::f8e4m3fnuz;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ:
      return Dtype::f8e5m2fnuz;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E8M0:
      return Dtype::f8e8m0;
    default:
      return Dtype::other;
  }
}

// The shape by the calls that every version has; it is copied.
ONNXTensorElementDataType read_shape(const OrtApi* api, const OrtValue* value, std::vector<int64_t>* sizes) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api->GetTensorTypeAndShape(value, &info));
  ONNXTensorElementDataType type{};
  size_t ndim = 0;
  OrtStatus* status = api->GetTensorElementType(info, &type);
  if (!status) status = api->GetDimensionsCount(info, &ndim);
  if (!status) {
    sizes->resize(ndim);
    status = api->GetDimensions(info, sizes->data(), ndim);
  }
  api->ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  return type;
}

}  // namespace

void fail(const Runtime& runtime, const Problem& problem) {
  const OrtErrorCode code = problem.fault == Fault::runtime ? ORT_FAIL : ORT_INVALID_ARGUMENT;
  throw Failure{runtime.api->CreateStatus(code, problem.sentence)};
}

TensorView shape_only(ONNXTensorElementDataType type, const int64_t* sizes, int64_t ndim) {
  const auto index = static_cast<size_t>(type);
  const char* name = index < std::size(DTYPE_NAMES) ? DTYPE_NAMES[index] : "unknown";
  return {nullptr, dtype_of(type), name, ndim, sizes, nullptr};
}

Tensor::Tensor(const Runtime& runtime, const OrtValue* value) {
  const OrtApi* api = runtime.api;
  ONNXTensorElementDataType type{};
  const int64_t* lent = nullptr;
  size_t ndim = 0;
  if (runtime.minor >= 24) {
    check(api->GetTensorElementTypeAndShapeDataReference(value, &type, &lent, &ndim));
  } else {
    type = read_shape(api, value, &sizes);
    lent = sizes.data();
    ndim = sizes.size();
  }
  view = shape_only(type, lent, static_cast<int64_t>(ndim));
  check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &view.data));
}

void Tensor::align(const char* op) {
  int64_t bytes = view.dtype == Dtype::i64 ? 8 : view.dtype == Dtype::i32 ? 4 : value_bytes(view.dtype);
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<size_t>(bytes) == 0) return;
  for (int64_t d = 0; d < view.ndim; ++d) bytes *= view.sizes[d];
  copy = Memory(op, bytes);
  if (bytes) std::memcpy(copy.data(), view.data, static_cast<size_t>(bytes));
  view.data = copy.data();
}

}  // namespace dsf::ort_door
