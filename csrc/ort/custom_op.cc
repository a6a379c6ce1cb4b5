#include "csrc/ort/custom_op.h"

#include <algorithm>
#include <climits>

namespace dsf::ort_door {
namespace {

// What ONNX Runtime holds for a node.
struct KernelHandle {
  const Runtime& runtime;
  size_t num_inputs;
  int64_t num_threads;
  std::unique_ptr<Kernel> kernel;
};

const CustomOp& self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

const char* name(const OrtCustomOp* op) { return self(op).spec.name; }
const char* execution_provider(const OrtCustomOp*) { return "CPUExecutionProvider"; }

size_t input_count(const OrtCustomOp* op) { return self(op).spec.inputs.size(); }
ONNXTensorElementDataType input_type(const OrtCustomOp* op, size_t i) { return self(op).spec.inputs[i].type; }
OrtCustomOpInputOutputCharacteristic input_characteristic(const OrtCustomOp* op, size_t i) {
  return self(op).spec.inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
OrtMemType input_memory(const OrtCustomOp*, size_t) { return OrtMemTypeDefault; }

size_t output_count(const OrtCustomOp* op) { return self(op).spec.outputs.size(); }
ONNXTensorElementDataType output_type(const OrtCustomOp* op, size_t i) { return self(op).spec.outputs[i]; }
OrtCustomOpInputOutputCharacteristic output_characteristic(const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; }

// No input or output is variadic, but the functions must be there.
int one(const OrtCustomOp*) { return 1; }
int any_later_version(const OrtCustomOp*) { return INT_MAX; }

OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, [&] {
    const Node node(self(op).runtime, info);
    std::unique_ptr<Kernel> made = self(op).spec.create(node);
    *kernel = new KernelHandle{node.runtime, node.num_inputs(), node.num_threads(), std::move(made)};
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const auto& handle = *static_cast<const KernelHandle*>(kernel);
  return guarded(handle.runtime.api,
                 [&] { handle.kernel->compute(Call(handle.runtime, context, handle.num_inputs, handle.num_threads)); });
}

void destroy(void* kernel) { delete static_cast<KernelHandle*>(kernel); }

// ONNX Runtime neither reads nor frees a status from here, so none leaves.
OrtStatus* infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const Runtime& runtime = self(op).runtime;
  OrtStatus* status = guarded(runtime.api, [&] { self(op).spec.infer(Shapes(runtime, context)); });
  if (status) runtime.api->ReleaseStatus(status);
  return nullptr;
}

}  // namespace

CustomOp::CustomOp(const Runtime& runtime, OpSpec spec) : OrtCustomOp{}, runtime(runtime), spec(std::move(spec)) {
  version = static_cast<uint32_t>(std::min(runtime.minor, HIGHEST_MINOR));
  GetName = name;
  GetExecutionProviderType = execution_provider;
  GetInputTypeCount = input_count;
  GetInputType = input_type;
  GetInputCharacteristic = input_characteristic;
  GetInputMemoryType = input_memory;
  GetOutputTypeCount = output_count;
  GetOutputType = output_type;
  GetOutputCharacteristic = output_characteristic;
  GetVariadicInputMinArity = one;
  GetVariadicInputHomogeneity = one;
  GetVariadicOutputMinArity = one;
  GetVariadicOutputHomogeneity = one;
  GetStartVersion = one;
  GetEndVersion = any_later_version;
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = destroy;
  // Before 1.24 ONNX Runtime crashes here when a node leaves out an optional input that is not its last.
  if (runtime.minor >= 24) InferOutputShapeFn = infer;
}

}  // namespace dsf::ort_door
