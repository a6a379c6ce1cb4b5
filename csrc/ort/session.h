// What a kernel may ask of its session: Node while it is created, Call while it computes, Shapes before there is data.
#pragma once
#include <string>

#include "csrc/core/context.h"
#include "csrc/ort/runtime.h"

namespace dsf::ort_door {

class Node {
 public:
  Node(const Runtime& runtime, const OrtKernelInfo* info);

  size_t num_inputs() const { return num_inputs_; }
  std::string attribute(const char* name, const char* fallback) const;
  int64_t attribute(const char* name, int64_t fallback) const;
  float attribute(const char* name, float fallback) const;
  std::vector<int64_t> attribute(const char* name, const std::vector<int64_t>& fallback) const;
  std::vector<float> floats(const char* name) const;
  // The numbers of an attribute as a Python tuple, for the sentence that refuses them: "(128, 2.5)".
  std::string tuple_text(const char* name) const;
  // The input's element type; empty for an optional input that the node leaves out.
  std::optional<ONNXTensorElementDataType> type(size_t index) const;
  // The input's sizes, -1 where one is not known; empty where none is.
  std::vector<int64_t> shape(size_t index) const;
  // The input, where it is the same in every run. Its memory lives as long as the session.
  std::optional<Tensor> constant(size_t index) const;
  // The session's threads as far as a kernel can know, at least 1.
  int64_t num_threads() const;

  const Runtime& runtime;

 private:
  // Calls read(tensor) for an input that the node gives.
  template <class Read>
  void with_info(size_t index, const Read& read) const;

  const OrtKernelInfo* info_;
  size_t num_inputs_ = 0;
};

class Call {
 public:
  Call(const Runtime& runtime, OrtKernelContext* context, size_t num_inputs, int64_t num_threads)
      : runtime(runtime), num_inputs_(num_inputs), num_threads_(num_threads), context_(context) {}

  // Empty for an optional input that the node leaves out.
  std::optional<Tensor> input(size_t index) const;
  // The memory of an output.
  void* output(size_t index, const std::vector<int64_t>& sizes) const;
  // The session's threads; no workspace yet. Borrows this call.
  Context context() const;

  const Runtime& runtime;

 private:
  static void parallel_for(void* call, int64_t n, void (*body)(void*, int64_t, int64_t), void* arg);

  size_t num_inputs_;
  int64_t num_threads_;
  OrtKernelContext* context_;
};

// A dimension of a shape that is still being inferred: a size, or a name where it is not known yet.
struct Dim {
  int64_t size;  // -1: see name
  std::string name;
};

class Shapes {
 public:
  Shapes(const Runtime& runtime, OrtShapeInferContext* context) : runtime_(runtime), context_(context) {}

  // Empty for an optional input that the node leaves out.
  std::optional<ONNXTensorElementDataType> type(size_t input) const;
  // Empty where nothing is known; ONNX Runtime does not tell that from a scalar's shape.
  std::vector<Dim> shape(size_t input) const;
  int64_t attribute(const char* name, int64_t fallback) const;
  std::string attribute(const char* name, const char* fallback) const;
  std::vector<int64_t> attribute(const char* name, const std::vector<int64_t>& fallback) const;
  void set_output(size_t index, ONNXTensorElementDataType type, const std::vector<Dim>& shape) const;

 private:
  OrtTensorTypeAndShapeInfo* info(size_t input) const;

  const Runtime& runtime_;
  OrtShapeInferContext* context_;
};

}  // namespace dsf::ort_door
