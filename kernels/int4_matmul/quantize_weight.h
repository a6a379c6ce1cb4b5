// Weight rows to 4 bits, for cpu.cc: the rules are in cpu.h. Plain C++, so that every level and door gives the same
// bits.
#pragma once
#include <cmath>
#include <cstdint>

#include "csrc/gemm/float_value.h"
#include "kernels/int4_matmul/cpu.h"

namespace dsf::int4_matmul {
namespace {

inline constexpr float SMALLEST_RANGE = 0x1p-100f;  // below it a group counts as zeros: its inverse could overflow
inline constexpr int32_t LARGEST_CODE = 15, MIDDLE_CODE = 8;

struct WeightRow {
  const TensorView& w;
  int64_t first;  // of the row's values
  WeightRow(const TensorView& w, int64_t n) : w(w), first(n * dsf_row_stride(&w)) {}
  float operator[](int64_t k) const { return float_at(w.dtype, w.data, first + k); }
};

inline const char* not_finite_name(float value) { return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf"; }

// The first k whose value is NaN or inf, or K.
int64_t first_not_finite(const WeightRow& row, int64_t K) {
  for (int64_t k = 0; k < K; ++k)
    if (!std::isfinite(row[k])) return k;
  return K;
}

// Nearest, ties to even; |v| < 2^22.
inline int32_t round_half_even(float v) {
  constexpr float SHIFTER = 0x1.8p23f;  // its unit in the last place is 1
  return int32_t((v + SHIFTER) - SHIFTER);
}

// code = clamp(round_half_even(value * inverse) + zero, 0, 15)
struct GroupRule {
  float scale = 1, inverse = 0;
  int32_t zero = MIDDLE_CODE;

  int32_t code(float value) const {
    const int32_t code = round_half_even(value * inverse) + zero;
    return code < 0 ? 0 : code > LARGEST_CODE ? LARGEST_CODE : code;
  }
};

GroupRule symmetric_rule(const WeightRow& row, int64_t begin, int64_t end) {
  GroupRule rule;
  float most = 0;
  for (int64_t k = begin; k < end; ++k)
    if (std::fabs(row[k]) > std::fabs(most)) most = row[k];
  if (std::fabs(most) < SMALLEST_RANGE) return rule;
  rule.scale = most / -float(MIDDLE_CODE);
  rule.inverse = -float(MIDDLE_CODE) / most;
  return rule;
}

GroupRule asymmetric_rule(const WeightRow& row, int64_t begin, int64_t end) {
  GroupRule rule;
  float low = 0, high = 0;
  for (int64_t k = begin; k < end; ++k) {
    if (row[k] < low) low = row[k];
    if (row[k] > high) high = row[k];
  }
  const double range = double(high) - double(low);  // of f32, it could overflow
  if (range < double(SMALLEST_RANGE)) return rule;
  rule.scale = float(range / LARGEST_CODE);
  rule.inverse = 1.0f / rule.scale;
  rule.zero = round_half_even(-low * rule.inverse);
  return rule;
}

void quantize_weight_row(const WeightRow& row, int64_t K, int64_t group_size, bool symmetric, int64_t n,
                         const Int4Weight& target) {
  const int64_t groups = dsf_int4_groups(K, group_size), size = group_size < 0 ? K : group_size;
  uint8_t* q = target.q + n * ((K + 1) / 2);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group * size, end = K - begin < size ? K : begin + size;
    const GroupRule rule = symmetric ? symmetric_rule(row, begin, end) : asymmetric_rule(row, begin, end);
    target.scale[n * groups + group] = rule.scale;
    target.zeros[n * groups + group] = uint8_t(rule.zero);
    for (int64_t k = begin; k < end; k += 2) {  // begin is even
      const int32_t low = rule.code(row[k]), high = k + 1 < end ? rule.code(row[k + 1]) : 0;
      q[k / 2] = uint8_t(low | high << 4);
    }
  }
}

}  // namespace
}  // namespace dsf::int4_matmul
