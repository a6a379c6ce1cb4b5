// The ONNX Runtime that loaded this library, and plain wrappers around its calls.
// A failed call is thrown as Failure, within this library only: every function that ONNX Runtime calls catches it.
#pragma once
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "csrc/core/check.h"
#include "csrc/core/memory.h"
#include "csrc/ort/ort_abi.h"

namespace dsf::ort_door {

inline constexpr int32_t LOWEST_MINOR = 17;   // the first with the session's threads
inline constexpr int32_t HIGHEST_MINOR = 24;  // nothing newer is used, so nothing newer is asked for

struct Runtime {
  const OrtApi* api;
  int32_t minor;  // 31 for ONNX Runtime 1.31
};

struct Failure {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status) throw Failure{status};
}

[[noreturn]] void fail(const Runtime& runtime, const Problem& problem);

// Does body's work for a caller that takes no exceptions: null, or a status that says what went wrong.
template <class Body>
OrtStatus* guarded(const OrtApi* api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

// A tensor of ONNX Runtime, contiguous.
struct Tensor {
  TensorView view;
  std::vector<int64_t> sizes;  // what view.sizes points to, where the runtime does not lend its own
  Memory copy;                 // what view.data points to after align, where that had to act

  Tensor(const Runtime& runtime, const OrtValue* value);
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  // Gives values the alignment that kernels ask for: weights in an external file may lie at any of its bytes.
  void align(const char* op);
};

// A view that has a type and a shape but no data, for checks before there is a tensor.
TensorView shape_only(ONNXTensorElementDataType type, const int64_t* sizes, int64_t ndim);

}  // namespace dsf::ort_door
