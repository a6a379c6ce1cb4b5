// The kernels behind cpu.h: pure functions over a range of work, one set per row of variants.inc.
#pragma once
#include "kernels/int8_matmul/cpu.h"

namespace dsf::int8_matmul {

// Rows of x in int8, as the level's integer tile reads them: x_q + 128 as u8, or x_q as s16; padded_K codes a row.
struct QuantizedRows {
  void* codes;
  float* scale;
  int64_t padded_K;
};

struct Kernel {
  int32_t code_bytes;
  // W8A8: quantizes rows [m_begin, m_end) of x; then those rows of the output columns of one panel.
  void (*quantize)(const LinearArgs& args, int64_t m_begin, int64_t m_end, const QuantizedRows& rows);
  void (*run)(const LinearArgs& args, const QuantizedRows& rows, int64_t m_begin, int64_t m_end, int64_t panel);
  // W8A16: the same with x as it is; f16 widened.
  void (*run_float)(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel);
  WidenX widen;
  // A weight row (K) of dtype -> int8 codes; returns its scale.
  float (*quantize_weight_row)(Dtype dtype, const void* row, int64_t K, int8_t* codes);
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/int8_matmul/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::int8_matmul
