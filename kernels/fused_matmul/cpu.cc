#include "kernels/fused_matmul/cpu.h"

#include <cstring>

#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/pack.h"
#include "csrc/gemm/packed.h"
#include "csrc/gemm/plain_weight.h"
#include "kernels/fused_matmul/cpu_kernels.h"

namespace dsf {
namespace {

struct Variant {
  Isa isa;
  Dtype dtype;
  const char* name;
  const fused_matmul::Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, Dtype::dtype, #kernel, &fused_matmul::kernel},
#include "kernels/fused_matmul/variants.inc"
#undef DSF_VARIANT
};

const fused_matmul::Kernel& pick(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return fused_matmul::fused_matmul_f32_nt_scalar;  // not reached: every dtype has a scalar row
}

PackedFormat format_of(const LinearWeight& weight) { return {.dtype = weight.values.dtype, .gated = weight.gated}; }

// The p-th panel of target: panel[k / group][n][k % group] = weight[rows.first + n, k].
void pack_panel(const TensorView& weight, PanelRows rows, const PackedPanels& target, int64_t p) {
  const int64_t row_bytes = weight.sizes[1] * value_bytes(weight.dtype);
  const int64_t stride_bytes = dsf_row_stride(&weight) * value_bytes(weight.dtype);
  char* panel = const_cast<char*>(target.panel(p));
  if (rows.count < PANEL_N) std::memset(panel, 0, size_t(target.panel_bytes));  // else all of it is written below
  const char* first = static_cast<const char*>(weight.data) + rows.first * stride_bytes;
  const auto pack = k_group(weight.dtype) * value_bytes(weight.dtype) == 2 ? pack_columns<TransposeHalves>
                                                                           : pack_columns<TransposeQuads>;
  pack(first, stride_bytes, rows.count, row_bytes, panel);
}

}  // namespace

int32_t dsf_fused_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem) {
  const char* op = call->weight_is_packed ? "fused_matmul_packed" : "fused_matmul";
  return check_linear(*call, op, "weight", call->x.dtype, args, problem);
}

int32_t dsf_fused_matmul_pack_check(const LinearWeight* weight, Problem* problem) {
  *problem = Problem{};
  constexpr const char* OP = "fused_matmul_pack";
  const TensorView& values = weight->values;
  return check_float(OP, "weight", values, problem) &&
         check_matrix(OP, "weight", values, format_of(*weight), problem) && check_gated(OP, "weight", *weight, problem);
}

int64_t dsf_fused_matmul_packed_bytes(const LinearWeight* weight) {
  return packed_bytes(format_of(*weight), weight->values.sizes[0], weight->values.sizes[1]);
}

void dsf_fused_matmul_pack(const Context* context, const LinearWeight* weight, void* packed) {
  const TensorView& values = weight->values;
  const int64_t N = values.sizes[0];
  write_packed_header(format_of(*weight), N, values.sizes[1], packed);
  const PackedPanels target(packed);
  parallel_for(*context, num_panels(N, weight->gated), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(values, rows_of_panel(N, weight->gated, p), target, p);
  });
}

int64_t dsf_fused_matmul_workspace_bytes(const Context*, const LinearArgs* args) { return widened_x_bytes(*args); }

void dsf_fused_matmul(const Context* context, const LinearArgs* args) {
  if (args->M == 0 || args->N == 0) return;
  const fused_matmul::Kernel& kernel = pick(args->dtype);
  walk(*context, with_widened_x(*context, *args, kernel.widen, context->workspace), kernel.run);
}

int64_t dsf_fused_matmul_plain_workspace_bytes(const Context* context, const LinearArgs* args,
                                               const LinearWeight* weight) {
  const int64_t rows = widened_x_bytes(*args);
  return rows < 0 ? -1 : rows + plain_scratch_bytes(*context, *args, format_of(*weight));
}

void dsf_fused_matmul_plain(const Context* context, const LinearArgs* args, const LinearWeight* weight) {
  if (args->M == 0 || args->N == 0) return;
  const fused_matmul::Kernel& kernel = pick(args->dtype);
  const LinearArgs widened = with_widened_x(*context, *args, kernel.widen, context->workspace);
  const auto pack = [&](PanelRows rows, const PackedPanels& target, int64_t p) {
    pack_panel(weight->values, rows, target, p);
  };
  void* scratch = static_cast<char*>(context->workspace) + widened_x_bytes(*args);
  walk_plain(*context, widened, format_of(*weight), scratch, pack, kernel.run);
}

const LinearRoom* dsf_fused_matmul_room() {
  static constexpr LinearRoom ROOM = {"fused_matmul",
                                      "weight",
                                      false,
                                      dsf_fused_matmul_check,
                                      dsf_fused_matmul_pack_check,
                                      dsf_fused_matmul_packed_bytes,
                                      dsf_fused_matmul_pack,
                                      dsf_fused_matmul_workspace_bytes,
                                      dsf_fused_matmul,
                                      dsf_fused_matmul_plain_workspace_bytes,
                                      dsf_fused_matmul_plain};
  return &ROOM;
}

int32_t dsf_fused_matmul_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
