// Serves calls of _C_core's plain C ABI over stdin and stdout, for machines that have no Python here: run under
// qemu-user by tests/emulated.py.
//
//   runner LIBRARY      the _C_core to load; DSF_MAX_ISA is read by the library
//
// Numbers are little-endian. A text is its length (i64) and its bytes.
//   at the start        the name of the level in force (text)
//   a request           the function (text), the number of arguments (i64), of each its name (text), its kind (i64),
//   and
//                         0: nothing                     1: an integer (i64)               2: a text
//                         3: a tensor: dtype (text), dimensions (i64), sizes (i64 each), contiguous values (as a text)
//   its answer          0 (i64), the number of results (i64), the bytes of each (as texts); or
//                       the Fault (i64, above 0) and its sentence (text)
// A linear room's function also takes "flush": 1 runs it on a thread that flushes subnormal numbers to zero.
// Every tensor ends where the page behind it begins, which nobody may touch: a read or write past its end is a SIGSEGV.
// On x86-64 (tests/test_memory_bounds.py looks there) it ends 32 bytes before: QEMU 7.2 reads all bytes of a VMASKMOV.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/core/ceiling.h"
#include "csrc/core/isa.h"
#include "csrc/gemm/block_scale.h"
#include "csrc/gemm/linear.h"
#include "kernels/fp8_matmul/cpu.h"
#include "kernels/int4_matmul/cpu.h"
#include "kernels/int8_matmul/cpu.h"

namespace {

using namespace dsf;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "runner: %s\n", why.c_str());
  std::exit(2);
}

#ifdef __x86_64__
constexpr int64_t SLACK = 32;  // bytes
#else
constexpr int64_t SLACK = 0;
#endif

// Memory that begins at a multiple of `alignment`, as near to a page without access as that allows.
class Guarded {
 public:
  Guarded(int64_t bytes, int64_t alignment) {
    const int64_t page = sysconf(_SC_PAGESIZE), inside = (bytes + SLACK + page) / page * page;
    total_ = size_t(inside + page);
    base_ = static_cast<char*>(mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + inside, size_t(page), PROT_NONE)) die("no memory");
    data = base_ + (inside - SLACK - bytes) / alignment * alignment;
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
    {"float32", Dtype::f32, 4},        {"bfloat16", Dtype::bf16, 2},
    {"float16", Dtype::f16, 2},        {"int8", Dtype::i8, 1},
    {"uint8", Dtype::u8, 1},           {"float8_e4m3fn", Dtype::f8e4m3, 1},
    {"float8_e5m2", Dtype::f8e5m2, 1}, {"float8_e8m0fnu", Dtype::f8e8m0, 1},
};

DtypeName dtype_of(const std::string& name) {
  for (const DtypeName& row : DTYPES)
    if (name == row.name) return row;
  return {"", Dtype::other, 1};
}

struct Tensor {
  std::string dtype_name;
  std::vector<int64_t> sizes;
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
  const char* text(const char* name) const {
    const auto at = texts.find(name);
    return at == texts.end() ? "" : at->second.c_str();
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
    for (int64_t d = read_i64(); d > 0; --d) tensor->sizes.push_back(read_i64());
    const int64_t bytes = read_i64();
    tensor->memory = std::make_unique<Guarded>(bytes, dtype.bytes);
    if (!read_bytes(tensor->memory->data, bytes)) die("the request ends too early");
    tensor->view = {tensor->memory->data,          dtype.dtype,          tensor->dtype_name.c_str(),
                    int64_t(tensor->sizes.size()), tensor->sizes.data(), nullptr};
  }
};

Context serial() {
  Context context{};
  context.num_threads = 1;
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

// check, pack, run: what every door does.
void run_linear(const LinearRoom& room, const Arguments& arguments) {
  LinearCall call{};
  call.x = arguments.needed("x");
  call.weight.values = arguments.needed(room.weight_arg);
  call.weight.scale = arguments.tensor("scale");
  call.weight.zeros = arguments.tensor("zeros");
  call.weight.block_n = arguments.integer("block_n", 1);
  call.weight.block_k = arguments.integer("block_k", arguments.integer("group_size", -1));
  call.weight.in_features = arguments.integer("in_features", -1);
  call.weight.gated = arguments.integer("gated", 0) != 0;
  call.out_features = -1;
  call.bias = arguments.tensor("bias");
  call.residual = arguments.tensor("residual");
  call.activation = arguments.text("activation");
  call.activations = arguments.text(arguments.texts.count("compute") ? "compute" : "activations");
  LinearArgs args;
  Problem problem;
  if (!room.check(&call, &args, &problem)) return write_problem(problem);
  Context context = serial();
  const Guarded packed(room.packed_bytes(&call.weight), DOOR_ALIGNMENT);
  room.pack(&context, &call.weight, packed.data);
  args.packed = packed.data;
  const Guarded workspace(room.workspace_bytes(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  const int64_t value_bytes = dtype_of(call.x.dtype_name).bytes, bytes = args.M * args.N * value_bytes;
  const Guarded y(bytes, value_bytes);
  args.y = y.data;
  args.y_stride = args.N;
  {
    const Flushing mode(arguments.integer("flush", 0));
    room.run(&context, &args);
  }
  write_i64(0);
  write_i64(1);
  write_bytes(y.data, bytes);
}

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

void int8_quantize_weight(const Arguments& arguments) {
  const TensorView& w = arguments.needed("w");
  Problem problem;
  if (!DSF_FUNCTION(dsf_int8_quantize_weight_check)(&w, &problem)) return write_problem(problem);
  const int64_t N = w.sizes[0], K = w.sizes[1];
  const Guarded q(N * K, 1), scale(N * 4, 4);
  const Context context = serial();
  DSF_FUNCTION(dsf_int8_quantize_weight)
  (&context, w.dtype, w.data, K, N, K, reinterpret_cast<int8_t*>(q.data), reinterpret_cast<float*>(scale.data));
  write_results({{q.data, N * K}, {scale.data, N * 4}});
}

void int4_quantize_weight(const Arguments& arguments) {
  const TensorView& w = arguments.needed("w");
  const int64_t group_size = arguments.integer("group_size", 32);
  Problem problem;
  if (!DSF_FUNCTION(dsf_int4_quantize_weight_check)(&w, group_size, &problem)) return write_problem(problem);
  const int64_t N = w.sizes[0], K = w.sizes[1], groups = DSF_FUNCTION(dsf_int4_groups)(K, group_size);
  const Guarded q(N * ((K + 1) / 2), 1), scale(N * groups * 4, 4), zeros(N * groups, 1);
  const Int4Weight target{reinterpret_cast<uint8_t*>(q.data), reinterpret_cast<float*>(scale.data),
                          reinterpret_cast<uint8_t*>(zeros.data)};
  const Context context = serial();
  if (!DSF_FUNCTION(dsf_int4_quantize_weight)(&context, &w, group_size, int32_t(arguments.integer("symmetric", 1)),
                                              &target, &problem))
    return write_problem(problem);
  write_results({{q.data, N * ((K + 1) / 2)}, {scale.data, N * groups * 4}, {zeros.data, N * groups}});
}

void fp8_quantize_weight(const Arguments& arguments) {
  const TensorView& w = arguments.needed("w");
  const Block block{arguments.integer("block_n", 128), arguments.integer("block_k", 128)};
  const Dtype dtype = dtype_of(arguments.text("dtype")).dtype;
  Problem problem;
  if (!DSF_FUNCTION(dsf_fp8_quantize_weight_check)(&w, &block, dtype, &problem)) return write_problem(problem);
  const int64_t N = w.sizes[0], K = w.sizes[1];
  const int64_t scales = num_blocks(N, block.n) * num_blocks(K, block.k);
  const Guarded codes(N * K, 1), scale(scales * 4, 4);
  const Context context = serial();
  if (!DSF_FUNCTION(dsf_fp8_quantize_weight)(&context, &w, &block, dtype, reinterpret_cast<uint8_t*>(codes.data),
                                             reinterpret_cast<float*>(scale.data), &problem))
    return write_problem(problem);
  write_results({{codes.data, N * K}, {scale.data, scales * 4}});
}

// The instruction of each ceiling, all of which ran.
void ceilings() {
  const Guarded data(1 << 12, DOOR_ALIGNMENT);
  if (DSF_FUNCTION(dsf_ceiling_read)(data.data, 1 << 12, 0) <= 0) die("no bytes a second");
  write_i64(0);
  write_i64(NUM_CEILINGS);
  for (int32_t i = 0; i < NUM_CEILINGS; ++i) {
    if (DSF_FUNCTION(dsf_ceiling_rate)(i, 0) <= 0) die("no operations a second");
    write_text(DSF_FUNCTION(dsf_ceiling_instruction)(i));
  }
}

void serve(const std::string& name, const Arguments& arguments) {
  if (name == "ceilings") return ceilings();
  if (name == "int8_quantize_weight") return int8_quantize_weight(arguments);
  if (name == "int4_quantize_weight") return int4_quantize_weight(arguments);
  if (name == "fp8_quantize_weight") return fp8_quantize_weight(arguments);
  run_linear(*function<const LinearRoom*()>("dsf_" + name + "_room")(), arguments);
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) die("usage: runner LIBRARY");
  library = dlopen(words[1], RTLD_NOW);
  if (!library) die(dlerror());
  write_text(DSF_FUNCTION(dsf_isa_name)(DSF_FUNCTION(dsf_max_isa)()));
  std::fflush(stdout);
  for (int64_t length; read_bytes(&length, sizeof length);) {
    std::string name(size_t(length), 0);
    if (!read_bytes(name.data(), length)) die("the request ends too early");
    serve(name, Arguments(read_i64()));
    std::fflush(stdout);
  }
}
