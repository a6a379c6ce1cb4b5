// What tests/native/runner.cc and its ops speak: requests, answers, and tensors beside pages that nobody may touch.
#pragma once
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/tensor_view.h"

namespace {

using namespace dsf;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "runner: %s\n", why.c_str());
  std::exit(2);
}

// Where tensors lie: right before the page that nobody may touch, `slack` bytes ahead of it, or right behind it.
struct Place {
  bool behind_page;
  int64_t slack;  // bytes
};
Place place;

// Memory that begins at a multiple of `alignment`, as near to a page without access as that and `place` allow.
class Guarded {
 public:
  Guarded(int64_t bytes, int64_t alignment) {
    const int64_t page = sysconf(_SC_PAGESIZE), inside = (bytes + place.slack + page) / page * page;
    total_ = size_t(inside + page);
    base_ = static_cast<char*>(mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char* guard = place.behind_page ? base_ : base_ + inside;
    if (base_ == MAP_FAILED || mprotect(guard, size_t(page), PROT_NONE)) die("no memory");
    data = place.behind_page ? base_ + page : base_ + (inside - place.slack - bytes) / alignment * alignment;
  }
  ~Guarded() { munmap(base_, total_); }
  Guarded(const Guarded&) = delete;
  char* data;

 private:
  char* base_;
  size_t total_;
};

bool read_bytes(void* to, int64_t bytes) { return std::fread(to, 1, size_t(bytes), stdin) == size_t(bytes); }
int64_t read_i64() {
  int64_t value;
  if (!read_bytes(&value, sizeof value)) die("the request ends too early");
  return value;
}
std::string read_text() {
  std::string text(size_t(read_i64()), 0);
  if (!read_bytes(text.data(), int64_t(text.size()))) die("the request ends too early");
  return text;
}
void write_i64(int64_t value) { std::fwrite(&value, sizeof value, 1, stdout); }
void write_bytes(const void* data, int64_t bytes) {
  write_i64(bytes);
  std::fwrite(data, 1, size_t(bytes), stdout);
}
void write_text(const char* text) { write_bytes(text, int64_t(std::strlen(text))); }
void write_problem(const Problem& problem) {
  write_i64(int64_t(problem.fault));
  write_text(problem.sentence);
}

struct DtypeName {
  const char* name;
  Dtype dtype;
  int64_t bytes;
};
constexpr DtypeName DTYPES[] = {
    {"float32", Dtype::f32, 4},
    {"bfloat16", Dtype::bf16, 2},
    {"float16", Dtype::f16, 2},
    {"int8", Dtype::i8, 1},
    {"uint8", Dtype::u8, 1},
    {"float8_e4m3fn", Dtype::f8e4m3, 1},
    {"float8_e5m2", Dtype::f8e5m2, 1},
    {"float8_e8m0fnu", Dtype::f8e8m0, 1},
    {"int32", Dtype::i32, 4},
    {"int64", Dtype::i64, 8},
    {"bool", Dtype::other, 1},
    {"float8_e4m3fnuz", Dtype::f8e4m3fnuz, 1},
    {"float8_e5m2fnuz", Dtype::f8e5m2fnuz, 1},
    {"float4_e2m1fn_x2", Dtype::f4e2m1x2, 1},
};

DtypeName dtype_of(const std::string& name) {
  for (const DtypeName& row : DTYPES)
    if (name == row.name) return row;
  return {"", Dtype::other, 1};
}

struct Tensor {
  std::string dtype_name;
  std::vector<int64_t> sizes, strides;
  std::unique_ptr<Guarded> memory;
  TensorView view;
};

struct Arguments {
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::string> texts;
  std::map<std::string, Tensor> tensors;

  explicit Arguments(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const std::string name = read_text();
      const int64_t kind = read_i64();
      if (kind == 1) integers[name] = read_i64();
      if (kind == 2) texts[name] = read_text();
      if (kind == 3) read_tensor(&tensors[name]);
    }
  }
  int64_t integer(const char* name, int64_t otherwise) const {
    const auto at = integers.find(name);
    return at == integers.end() ? otherwise : at->second;
  }
  const char* text(const char* name, const char* otherwise = "") const {
    const auto at = texts.find(name);
    return at == texts.end() ? otherwise : at->second.c_str();
  }
  const TensorView* tensor(const char* name) const {
    const auto at = tensors.find(name);
    return at == tensors.end() ? nullptr : &at->second.view;
  }
  const TensorView& needed(const char* name) const {
    if (!tensor(name)) die(std::string("no tensor ") + name);
    return *tensor(name);
  }

 private:
  static void read_tensor(Tensor* tensor) {
    tensor->dtype_name = read_text();
    const DtypeName dtype = dtype_of(tensor->dtype_name);
    const int64_t ndim = read_i64();
    for (int64_t d = 0; d < ndim; ++d) tensor->sizes.push_back(read_i64());
    for (int64_t d = 0; d < ndim; ++d) tensor->strides.push_back(read_i64());
    const int64_t bytes = read_i64();
    tensor->memory = std::make_unique<Guarded>(bytes, dtype.bytes);
    if (!read_bytes(tensor->memory->data, bytes)) die("the request ends too early");
    tensor->view = {tensor->memory->data, dtype.dtype,           tensor->dtype_name.c_str(), ndim,
                    tensor->sizes.data(), tensor->strides.data()};
  }
};

// One thread does everything; work is cut as for THREADS of the environment.
Context serial() {
  Context context{};
  const char* threads = std::getenv("THREADS");
  context.num_threads = threads ? std::atoi(threads) : 1;
  return context;
}

// Within its scope the thread flushes subnormal numbers to zero where `flushes`, as a caller may have set it.
class Flushing {
 public:
#ifdef __x86_64__
  explicit Flushing(bool flushes) : before_(_mm_getcsr()) { _mm_setcsr(flushes ? before_ | 0x8040 : before_); }
  ~Flushing() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#else
  explicit Flushing(bool flushes) : before_(__builtin_aarch64_get_fpcr64()) {
    __builtin_aarch64_set_fpcr64(flushes ? before_ | 1 << 24 : before_);
  }
  ~Flushing() { __builtin_aarch64_set_fpcr64(before_); }

 private:
  const unsigned long long before_;
#endif
};

constexpr int64_t DOOR_ALIGNMENT = 64;  // bytes, of what a door allocates: packed weights and workspaces

struct Result {
  const void* data;
  int64_t bytes;
};
void write_results(std::initializer_list<Result> results) {
  write_i64(0);
  write_i64(int64_t(results.size()));
  for (const Result& result : results) write_bytes(result.data, result.bytes);
}

void* library;
template <class Function>
Function* function(const std::string& name) {
  void* address = dlsym(library, name.c_str());
  if (!address) die(dlerror());
  return reinterpret_cast<Function*>(address);
}
#define DSF_FUNCTION(name) function<decltype(name)>(#name)

}  // namespace
