#include "kernels/fused_matmul/cpu.h"

#include <cstring>

#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/packed.h"
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

fused_matmul::Kernel pick(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return nullptr;  // not reached: every dtype has a scalar row
}

PackedFormat format_of(const LinearWeight& weight) { return {.dtype = weight.values.dtype, .gated = weight.gated}; }

// panel[k / group][n][k % group] = weight[n, k]
template <class Value>
void pack_panel(const Value* weight, int64_t row_stride, int64_t columns, int64_t K, int64_t group, Value* panel) {
  std::memset(panel, 0, size_t((K + group - 1) / group * group * PANEL_N) * sizeof(Value));
  for (int64_t n = 0; n < columns; ++n)
    for (int64_t k = 0; k < K; ++k)
      panel[k / group * PANEL_N * group + n * group + k % group] = weight[n * row_stride + k];
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
  if (values.dtype != Dtype::f32 && values.dtype != Dtype::bf16)
    return dtype_error(problem, OP, "weight", "be float32 or bfloat16", values);
  return check_matrix(OP, "weight", values, format_of(*weight), problem) && check_gated(OP, "weight", *weight, problem);
}

int64_t dsf_fused_matmul_packed_bytes(const LinearWeight* weight) {
  return packed_bytes(format_of(*weight), weight->values.sizes[0], weight->values.sizes[1]);
}

void dsf_fused_matmul_pack(const Context* context, const LinearWeight* weight_, void* packed) {
  const TensorView& values = weight_->values;
  const void* weight = values.data;
  const Dtype dtype = values.dtype;
  const int64_t N = values.sizes[0], K = values.sizes[1], row_stride = dsf_row_stride(&values);
  write_packed_header(format_of(*weight_), N, K, packed);
  const PackedPanels target(packed);
  parallel_for(*context, num_panels(N, weight_->gated), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const auto [n, columns] = rows_of_panel(N, weight_->gated, p);
      char* panel = const_cast<char*>(target.panel(p));
      if (dtype == Dtype::f32)
        pack_panel(static_cast<const float*>(weight) + n * row_stride, row_stride, columns, K, 1,
                   reinterpret_cast<float*>(panel));
      else
        pack_panel(static_cast<const uint16_t*>(weight) + n * row_stride, row_stride, columns, K, 2,
                   reinterpret_cast<uint16_t*>(panel));
    }
  });
}

int64_t dsf_fused_matmul_workspace_bytes(const Context*, const LinearArgs*) { return 0; }

void dsf_fused_matmul(const Context* context, const LinearArgs* args) {
  if (args->M == 0 || args->N == 0) return;
  const fused_matmul::Kernel kernel = pick(args->dtype);
  walk(*context, *args, [&](const LinearArgs& part, int64_t m_begin, int64_t m_end, int64_t panel) {
    kernel(part, m_begin, m_end, panel);
  });
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
                                      dsf_fused_matmul};
  return &ROOM;
}

int32_t dsf_fused_matmul_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
