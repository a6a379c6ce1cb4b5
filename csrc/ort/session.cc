#include "csrc/ort/session.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace dsf::ort_door {
namespace {

// The session's config entry that states its threads, as deepseek_fast.ort.session sets it. ONNX Runtime itself does
// not tell a kernel; without the entry the machine's count decides how work is cut, which costs little and changes no
// result.
constexpr const char* NUM_THREADS_KEY = "ai.deepseek_fast.num_threads";
constexpr int64_t MAX_THREADS = 1024;  // keeps a wrong entry from cutting work into dust

// Pieces of work a thread: with more than one, a thread that the machine delays leaves its rest to the others.
constexpr int64_t TASKS_PER_THREAD = 4;

// Releases a failed status whose reason does not matter; true for success.
bool succeeded(const OrtApi* api, OrtStatus* status) {
  if (status) api->ReleaseStatus(status);
  return !status;
}

// A name that no other unknown dimension bears: two of them may differ, and -1 would count as a size.
std::string unknown_dim() {
  static std::atomic<int64_t> counter{0};
  return "deepseek_fast_unknown_" + std::to_string(counter++);
}

}  // namespace

Node::Node(const Runtime& runtime, const OrtKernelInfo* info) : runtime(runtime), info_(info) {
  check(runtime.api->KernelInfo_GetInputCount(info, &num_inputs_));
}

std::string Node::attribute(const char* name, const char* fallback) const {
  const OrtApi* api = runtime.api;
  size_t bytes = 0;  // with the final NUL
  if (!succeeded(api, api->KernelInfoGetAttribute_string(info_, name, nullptr, &bytes))) {
    // There, but as a number: its text, for the room's check to refuse.
    int64_t number = 0;
    return succeeded(api, api->KernelInfoGetAttribute_int64(info_, name, &number)) ? std::to_string(number) : fallback;
  }
  std::string text(bytes, '\0');
  check(api->KernelInfoGetAttribute_string(info_, name, text.data(), &bytes));
  text.resize(bytes ? bytes - 1 : 0);
  return text;
}

int64_t Node::attribute(const char* name, int64_t fallback) const {
  int64_t value = 0;
  return succeeded(runtime.api, runtime.api->KernelInfoGetAttribute_int64(info_, name, &value)) ? value : fallback;
}

float Node::attribute(const char* name, float fallback) const {
  float value = 0;
  if (succeeded(runtime.api, runtime.api->KernelInfoGetAttribute_float(info_, name, &value))) return value;
  int64_t number = 0;  // there, but as an integer
  return succeeded(runtime.api, runtime.api->KernelInfoGetAttribute_int64(info_, name, &number)) ? float(number)
                                                                                                 : fallback;
}

std::vector<int64_t> Node::attribute(const char* name, const std::vector<int64_t>& fallback) const {
  const OrtApi* api = runtime.api;
  size_t count = 0;
  const bool found = succeeded(api, api->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &count));
  if (count == 0) {  // absent, or there as one number or as another type: for the caller to refuse
    int64_t number = 0;
    if (succeeded(api, api->KernelInfoGetAttribute_int64(info_, name, &number))) return {number};
    return found ? std::vector<int64_t>{} : fallback;
  }
  std::vector<int64_t> values(count);
  check(api->KernelInfoGetAttributeArray_int64(info_, name, values.data(), &count));
  return values;
}

std::vector<float> Node::floats(const char* name) const {
  const OrtApi* api = runtime.api;
  size_t count = 0;
  succeeded(api, api->KernelInfoGetAttributeArray_float(info_, name, nullptr, &count));
  std::vector<float> values(count);
  if (count) check(api->KernelInfoGetAttributeArray_float(info_, name, values.data(), &count));
  return values;
}

std::string Node::tuple_text(const char* name) const {
  std::vector<std::string> numbers;
  for (const int64_t number : attribute(name, std::vector<int64_t>{})) numbers.push_back(std::to_string(number));
  const std::vector<float> fractions = numbers.empty() ? floats(name) : std::vector<float>{};
  for (const float number : fractions) {
    char text[48];
    std::snprintf(text, sizeof text, number == std::floor(number) ? "%.1f" : "%g", double(number));
    numbers.emplace_back(text);
  }
  std::string joined;
  for (const std::string& number : numbers) joined += (joined.empty() ? "" : ", ") + number;
  return "(" + joined + (numbers.size() == 1 ? ",)" : ")");
}

template <class Read>
void Node::with_info(size_t index, const Read& read) const {
  const OrtApi* api = runtime.api;
  OrtTypeInfo* info = nullptr;
  if (index >= num_inputs_ || !succeeded(api, api->KernelInfo_GetInputTypeInfo(info_, index, &info))) return;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  OrtStatus* status = api->CastTypeInfoToTensorInfo(info, &tensor);
  if (!status && tensor) status = read(tensor);
  api->ReleaseTypeInfo(info);
  check(status);
}

std::optional<ONNXTensorElementDataType> Node::type(size_t index) const {
  std::optional<ONNXTensorElementDataType> type;
  with_info(index, [&](const OrtTensorTypeAndShapeInfo* tensor) {
    return runtime.api->GetTensorElementType(tensor, &type.emplace());
  });
  return type;
}

std::vector<int64_t> Node::shape(size_t index) const {
  std::vector<int64_t> sizes;
  with_info(index, [&](const OrtTensorTypeAndShapeInfo* tensor) {
    size_t ndim = 0;
    OrtStatus* status = runtime.api->GetDimensionsCount(tensor, &ndim);
    if (status) return status;
    sizes.resize(ndim);
    return runtime.api->GetDimensions(tensor, sizes.data(), ndim);
  });
  return sizes;
}

std::optional<Tensor> Node::constant(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  if (index >= num_inputs_) return {};
  check(runtime.api->KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (!is_constant || !value) return {};
  return Tensor(runtime, value);
}

int64_t Node::num_threads() const {
  const OrtApi* api = runtime.api;
  int64_t threads = 0;
  OrtKeyValuePairs* config = nullptr;
  if (runtime.minor >= 24 && succeeded(api, api->KernelInfo_GetConfigEntries(info_, &config))) {
    if (const char* text = api->GetKeyValue(config, NUM_THREADS_KEY)) threads = std::atoll(text);
    api->ReleaseKeyValuePairs(config);
  }
  if (threads <= 0) threads = std::thread::hardware_concurrency();
  return std::clamp<int64_t>(threads, 1, MAX_THREADS);
}

std::optional<Tensor> Call::input(size_t index) const {
  const OrtValue* value = nullptr;
  if (index >= num_inputs_) return {};
  check(runtime.api->KernelContext_GetInput(context_, index, &value));
  if (!value) return {};
  return Tensor(runtime, value);
}

void* Call::output(size_t index, const std::vector<int64_t>& sizes) const {
  OrtValue* value = nullptr;
  void* data = nullptr;
  check(runtime.api->KernelContext_GetOutput(context_, index, sizes.data(), sizes.size(), &value));
  check(runtime.api->GetTensorMutableData(value, &data));
  return data;
}

Context Call::context() const {
  return {num_threads_ > 1 ? parallel_for : nullptr, const_cast<Call*>(this), num_threads_, nullptr};
}

void Call::parallel_for(void* call, int64_t n, void (*body)(void*, int64_t, int64_t), void* arg) {
  struct Tasks {
    void (*body)(void*, int64_t, int64_t);
    void* arg;
    int64_t n, count;
  };
  const auto& self = *static_cast<const Call*>(call);
  Tasks tasks{body, arg, n, std::min(n, self.num_threads_ * TASKS_PER_THREAD)};
  const auto run_one = [](void* user, size_t i) {
    const auto& [body, arg, n, count] = *static_cast<const Tasks*>(user);
    const int64_t task = static_cast<int64_t>(i), share = n / count, rest = n % count;
    const int64_t begin = task * share + std::min(task, rest);
    body(arg, begin, begin + share + (task < rest ? 1 : 0));
  };
  const OrtApi* api = self.runtime.api;
  OrtStatus* status =
      api->KernelContext_ParallelFor(self.context_, run_one, static_cast<size_t>(tasks.count), 0, &tasks);
  if (!succeeded(api, status)) body(arg, 0, n);
}

OrtTensorTypeAndShapeInfo* Shapes::info(size_t input) const {
  OrtTensorTypeAndShapeInfo* borrowed = nullptr;
  check(runtime_.api->ShapeInferContext_GetInputTypeShape(context_, input, &borrowed));
  return borrowed;
}

std::optional<ONNXTensorElementDataType> Shapes::type(size_t input) const {
  const OrtApi* api = runtime_.api;
  OrtTensorTypeAndShapeInfo* tensor = nullptr;
  ONNXTensorElementDataType type{};
  if (!succeeded(api, api->ShapeInferContext_GetInputTypeShape(context_, input, &tensor)) || !tensor) return {};
  check(api->GetTensorElementType(tensor, &type));
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) return {};
  return type;
}

std::vector<Dim> Shapes::shape(size_t input) const {
  const OrtApi* api = runtime_.api;
  const OrtTensorTypeAndShapeInfo* tensor = info(input);
  size_t ndim = 0;
  check(api->GetDimensionsCount(tensor, &ndim));
  std::vector<int64_t> sizes(ndim);
  std::vector<const char*> names(ndim);
  check(api->GetDimensions(tensor, sizes.data(), ndim));
  check(api->GetSymbolicDimensions(tensor, names.data(), ndim));
  std::vector<Dim> shape;
  for (size_t d = 0; d < ndim; ++d) shape.push_back({sizes[d], names[d] ? names[d] : ""});
  return shape;
}

int64_t Shapes::attribute(const char* name, int64_t fallback) const {
  const OrtApi* api = runtime_.api;
  const OrtOpAttr* attribute = nullptr;
  if (!succeeded(api, api->ShapeInferContext_GetAttribute(context_, name, &attribute))) return fallback;
  int64_t value = 0;
  size_t bytes = 0;
  return succeeded(api, api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &bytes)) ? value : fallback;
}

std::string Shapes::attribute(const char* name, const char* fallback) const {
  const OrtApi* api = runtime_.api;
  const OrtOpAttr* attribute = nullptr;
  if (!succeeded(api, api->ShapeInferContext_GetAttribute(context_, name, &attribute))) return fallback;
  size_t bytes = 0;
  succeeded(api, api->ReadOpAttr(attribute, ORT_OP_ATTR_STRING, nullptr, 0, &bytes));  // fails, and says how many
  std::string text(bytes, '\0');
  return succeeded(api, api->ReadOpAttr(attribute, ORT_OP_ATTR_STRING, text.data(), bytes, &bytes)) ? text.c_str()
                                                                                                    : fallback;
}

std::vector<int64_t> Shapes::attribute(const char* name, const std::vector<int64_t>& fallback) const {
  const OrtApi* api = runtime_.api;
  const OrtOpAttr* attribute = nullptr;
  if (!succeeded(api, api->ShapeInferContext_GetAttribute(context_, name, &attribute))) return fallback;
  size_t bytes = 0;
  succeeded(api, api->ReadOpAttr(attribute, ORT_OP_ATTR_INTS, nullptr, 0, &bytes));
  std::vector<int64_t> values(bytes / sizeof(int64_t));
  return succeeded(api, api->ReadOpAttr(attribute, ORT_OP_ATTR_INTS, values.data(), bytes, &bytes)) ? values : fallback;
}

void Shapes::set_output(size_t index, ONNXTensorElementDataType type, const std::vector<Dim>& shape) const {
  const OrtApi* api = runtime_.api;
  std::vector<int64_t> sizes;
  std::vector<std::string> texts;
  std::vector<const char*> names;
  for (const Dim& dim : shape) {
    sizes.push_back(dim.size);
    texts.push_back(dim.size < 0 && dim.name.empty() ? unknown_dim() : dim.name);
  }
  for (const std::string& text : texts) names.push_back(text.c_str());
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api->CreateTensorTypeAndShapeInfo(&info));
  // Without a type, ONNX Runtime 1.24 to 1.31 take the output for float.
  OrtStatus* status = api->SetTensorElementType(info, type);
  if (!status) status = api->SetDimensions(info, sizes.data(), sizes.size());
  if (!status) status = api->SetSymbolicDimensions(info, names.data(), names.size());
  if (!status) status = api->ShapeInferContext_SetOutputTypeShape(context_, index, info);
  api->ReleaseTensorTypeAndShapeInfo(info);
  check(status);
}

}  // namespace dsf::ort_door
