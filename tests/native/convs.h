// fused_conv and its family by their plain C ABI: check, pack, allocate, call, as every door does.
// Lists of numbers are tensors of one dimension, int32 or float32.
#pragma once
#include "kernels/fused_conv/door.h"
#include "tests/native/protocol.h"

namespace {

using namespace dsf;

template <class To, class From>
std::vector<To> list_of(const Arguments& arguments, const char* name) {
  const TensorView& view = arguments.needed(name);
  const From* values = static_cast<const From*>(view.data);
  return {values, values + view.sizes[0]};
}

double real(const Arguments& arguments, const char* name) { return std::atof(arguments.text(name, "0")); }

// Thrown by what the doors share.
struct Refused {
  Problem problem;
};
[[noreturn]] void refuse(const Problem& problem) { throw Refused{problem}; }

ConvOptions options_of(const Arguments& arguments) {
  const auto integers = [&](const char* name) { return list_of<int64_t, int32_t>(arguments, name); };
  return {integers("stride"),
          integers("padding"),
          integers("dilation"),
          arguments.integer("groups", 1),
          arguments.text("activation"),
          list_of<double, float>(arguments, "activation_params"),
          arguments.text("residual_at"),
          integers("max_pool"),
          {},
          arguments.text("algorithm", "direct")};
}

// The result's memory, from its first value to its last.
struct Result4 {
  const ResultShape shape;
  const int64_t bytes;
  const Guarded memory;

  Result4(ResultShape of, int64_t value_bytes)
      : shape(std::move(of)), bytes(values() * value_bytes), memory(bytes, value_bytes) {}

  // Its values, sizes and strides (i64 each).
  void write() const {
    const auto dims = int64_t(shape.sizes.size() * sizeof(int64_t));
    write_results({{memory.data, bytes}, {shape.sizes.data(), dims}, {shape.strides.data(), dims}});
  }

 private:
  int64_t values() const {
    int64_t count = 1;
    for (const int64_t size : shape.sizes) count *= size;
    return count;
  }
};

void convolve(ConvRequest* request, const Arguments& arguments, const char* y_dtype) {
  ConvCall& call = request->call;
  call.x = arguments.needed("x");
  call.weight = arguments.needed("weight");
  call.bias = arguments.tensor("bias");
  call.residual = arguments.tensor("residual");
  call.weight_scale = arguments.tensor("weight_scale");
  ConvArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_fused_conv_check)(&call, &args, &problem)) return write_problem(problem);
  if (args.x_layout == Layout::neither || (args.residual && args.residual_layout == Layout::neither))
    die("a door copies what has neither layout");
  const Result4 y(shape_of_result(call, result_layout(call), &args), dtype_of(y_dtype).bytes);
  args.y = y.memory.data;
  Context context = serial();
  const fused_conv::View4 full = fused_conv::view4(call.weight, spatial_of(call));
  const ConvWeight weight{fused_conv::view_of(full, call.weight), call.groups, call.algorithm};
  const Guarded packed(DSF_FUNCTION(dsf_fused_conv_packed_bytes)(&weight), DOOR_ALIGNMENT);
  DSF_FUNCTION(dsf_fused_conv_pack)(&context, &weight, packed.data);
  args.packed = packed.data;
  const Guarded workspace(DSF_FUNCTION(dsf_fused_conv_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  DSF_FUNCTION(dsf_fused_conv)(&context, &args);
  y.write();
}

void run_fused_conv(const char* op, const Arguments& arguments) {
  ConvRequest request(op, false, options_of(arguments), refuse);
  convolve(&request, arguments, arguments.needed("x").dtype_name);
}

void run_fused_conv_int8(const char* op, const Arguments& arguments) {
  ConvRequest request(op, false, options_of(arguments), refuse);
  const char* y_dtype = arguments.text("out_dtype", arguments.needed("x").dtype_name);
  request.quantize({real(arguments, "x_scale"), real(arguments, "y_scale"), real(arguments, "residual_scale"),
                    arguments.integer("x_zero_point", 0), arguments.integer("y_zero_point", 0),
                    arguments.integer("residual_zero_point", 0), dtype_of(y_dtype).dtype});
  convolve(&request, arguments, y_dtype);
}

void run_pool2d(const char* op, const Arguments& arguments) {
  const Window window = ConvRequest::window_of(list_of<int64_t, int32_t>(arguments, "window"));
  const PoolCall call{op, arguments.needed("x"), arguments.text("kind"), window,
                      int32_t(arguments.integer("count_include_pad", 1))};
  PoolArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_pool2d_check)(&call, &args, &problem)) return write_problem(problem);
  if (args.x_layout == Layout::neither) die("a door copies what has neither layout");
  const Result4 y(shape_of_result(call, &args), dtype_of(call.x.dtype_name).bytes);
  args.y = y.memory.data;
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_pool2d_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  DSF_FUNCTION(dsf_pool2d)(&context, &args);
  y.write();
}

void run_local_response_norm(const char* op, const Arguments& arguments) {
  const int64_t size = arguments.integer("size", 0);
  const auto f32 = [&](const char* name) { return float(real(arguments, name)); };
  const LrnCall call{op, arguments.needed("x"), size, size / 2, f32("alpha"), f32("beta"), f32("k")};
  LrnArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_lrn_check)(&call, &args, &problem)) return write_problem(problem);
  if (args.x_layout == Layout::neither) die("a door copies what has neither layout");
  const Result4 y(shape_of_result(call, &args), dtype_of(call.x.dtype_name).bytes);
  args.y = y.memory.data;
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_lrn_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  DSF_FUNCTION(dsf_lrn)(&context, &args);
  y.write();
}

using ConvOp = void (*)(const char* op, const Arguments& arguments);
// Null for a name that is none of the family's.
ConvOp conv_named(const std::string& name) {
  static const std::map<std::string, ConvOp> OPS = {
      {"fused_conv", run_fused_conv},
      {"fused_conv_int8", run_fused_conv_int8},
      {"pool2d", run_pool2d},
      {"local_response_norm", run_local_response_norm},
  };
  const auto at = OPS.find(name);
  return at == OPS.end() ? nullptr : at->second;
}

}  // namespace
