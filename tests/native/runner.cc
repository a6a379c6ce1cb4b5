// Serves calls of _C_core's plain C ABI over stdin and stdout, for machines that have no Python here: run under
// qemu-user by tests/emulated.py.
//
//   runner LIBRARY PLACE      the _C_core to load; DSF_MAX_ISA is read by the library
//
// Numbers are little-endian. A text is its length (i64) and its bytes.
//   at the start        the name of the level in force (text)
//   a request           the function (text), the number of arguments (i64), of each its name (text), its kind (i64),
//   and
//                         0: nothing                     1: an integer (i64)               2: a text
//                         3: a tensor: dtype (text), dimensions (i64), sizes and strides in elements (i64 each), its
//                            memory from the first value to the last (as a text)
//   its answer          0 (i64), the number of results (i64), the bytes of each (as texts); or
//                       the Fault (i64, above 0) and its sentence (text)
// A linear room's function, the casts and the indexer also take "flush": 1 runs them on a thread that flushes subnormal
// numbers to zero. Every tensor lies beside a page that nobody may touch, so that a read or write past its edge is a
// SIGSEGV: PLACE is "end" where that page is right behind it, "begin" where it is right before, "near" where it is 32
// bytes behind, for QEMU 7.2, which reads all bytes of a VMASKMOV.
#include <string>

#include "csrc/core/ceiling.h"
#include "csrc/core/isa.h"
#include "csrc/gemm/block_scale.h"
#include "csrc/gemm/linear.h"
#include "kernels/fp8_matmul/cpu.h"
#include "kernels/int4_matmul/cpu.h"
#include "kernels/int8_matmul/cpu.h"
#include "tests/native/attentions.h"
#include "tests/native/casts.h"
#include "tests/native/convs.h"
#include "tests/native/indexer.h"
#include "tests/native/mla.h"
#include "tests/native/protocol.h"

namespace {

using namespace dsf;

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
  if (const CastOp cast = cast_named(name)) return cast(name.c_str(), arguments);
  if (const ConvOp conv = conv_named(name)) return conv(name.c_str(), arguments);
  if (const AttentionOp attention = attention_named(name)) return attention(name.c_str(), arguments);
  if (const IndexerOp indexer = indexer_named(name)) return indexer(name.c_str(), arguments);
  if (const MlaOp mla = mla_named(name)) return mla(name.c_str(), arguments);
  run_linear(*function<const LinearRoom*()>("dsf_" + name + "_room")(), arguments);
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) die("usage: runner LIBRARY PLACE");
  const std::string where = words[2];
  place = {where == "begin", where == "near" ? 32 : 0};
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
