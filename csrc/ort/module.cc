// RegisterCustomOps: the one function of this library that ONNX Runtime looks for. It hands over the domain
// ai.deepseek_fast with the operators of every room. A process may hold several ONNX Runtimes; each gets its own.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>

#include "csrc/ort/custom_op.h"

namespace dsf::ort_door {

#define DSF_ROOM(op) void register_##op(OpList& ops);
#include "rooms.inc"
#undef DSF_ROOM

namespace {

constexpr const char* DOMAIN_NAME = "ai.deepseek_fast";
// Marks options that have the domain: a second one of that name would make every session fail.
constexpr const char* REGISTERED_KEY = "ai.deepseek_fast.registered";

// Sessions keep pointers into it, so it lives as long as the process.
struct Registry {
  explicit Registry(const Runtime& from) : runtime(from) {
    OpList specs;
#define DSF_ROOM(op) register_##op(specs);
#include "rooms.inc"
#undef DSF_ROOM
    check(runtime.api->CreateCustomOpDomain(DOMAIN_NAME, &domain));
    for (OpSpec& spec : specs) {
      // Before 1.24 nothing infers, see custom_op.cc, and a type that needs it would fail every session.
      const auto inferred =
          std::find(spec.outputs.begin(), spec.outputs.end(), ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
      if (runtime.minor < 24 && inferred != spec.outputs.end()) continue;
      ops.push_back(std::make_unique<CustomOp>(runtime, std::move(spec)));
      check(runtime.api->CustomOpDomain_Add(domain, ops.back().get()));
    }
  }

  const Runtime runtime;
  OrtCustomOpDomain* domain = nullptr;
  std::vector<std::unique_ptr<CustomOp>> ops;
};

// Made at the first call, handed out again at every later one.
const Registry& registry(const Runtime& runtime) {
  static std::mutex mutex;
  static auto& registries = *new std::vector<std::unique_ptr<Registry>>;
  const std::lock_guard lock(mutex);
  for (const auto& known : registries)
    if (known->runtime.api == runtime.api && known->runtime.minor == runtime.minor) return *known;
  return *registries.emplace_back(std::make_unique<Registry>(runtime));
}

void register_in(OrtSessionOptions* options, const Runtime& runtime) {
  int registered = 0;
  check(runtime.api->HasSessionConfigEntry(options, REGISTERED_KEY, &registered));
  if (registered) return;
  check(runtime.api->AddCustomOpDomain(options, registry(runtime).domain));
  check(runtime.api->AddSessionConfigEntry(options, REGISTERED_KEY, "1"));
}

// 31 for "1.31.1"; 0 for what is not version 1.
int32_t minor_of(const char* version) {
  int32_t minor = 0;
  return std::sscanf(version, "1.%d", &minor) == 1 ? minor : 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const char* version = base->GetVersionString();
  const int32_t minor = minor_of(version);
  if (minor < LOWEST_MINOR) {
    char sentence[160];
    std::snprintf(sentence, sizeof sentence, "deepseek_fast: onnxruntime must be 1.%d or later; got %.40s",
                  LOWEST_MINOR, version);
    return base->GetApi(1)->CreateStatus(ORT_FAIL, sentence);  // version 1 is there in every one
  }
  // A version above the runtime's own would be refused.
  const OrtApi* api = base->GetApi(static_cast<uint32_t>(std::min(minor, HIGHEST_MINOR)));
  return guarded(api, [&] { register_in(options, {api, minor}); });
}

}  // namespace dsf::ort_door
