// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include <cstring>

#include "kernels/sparse_mla/decode_rows.h"
#include "kernels/sparse_mla/pack_rows.h"
#include "kernels/sparse_mla/products.h"
#include "kernels/sparse_mla/softmax.h"

namespace dsf::sparse_mla {
namespace {

// Where a task's memory holds what; bf16 in bf16, f16 widened to f32.
template <Dtype dtype>
struct Scratch {
  static constexpr Dtype PANEL = dtype == Dtype::bf16 ? Dtype::bf16 : Dtype::f32;
  static constexpr int64_t VALUE = PANEL == Dtype::bf16 ? 2 : 4;  // bytes

  Scratch(int64_t heads, int64_t d_qk, int64_t d_v, char* memory) : begin_(memory), at_(memory) {
    keys = take(key_panel_bytes(PANEL, d_qk));
    values = take(value_panel_bytes(PANEL, STEP, d_v));
    scores = reinterpret_cast<float*>(take(heads * STEP * 4));
    weights = PANEL == Dtype::bf16 ? take(heads * STEP * 2) : reinterpret_cast<char*>(scores);
    decoded = reinterpret_cast<uint16_t*>(take(STEP * round_up(d_qk, 2) * 2));
    queries = reinterpret_cast<float*>(take(dtype == Dtype::f16 ? heads * d_qk * 4 : 0));
  }
  int64_t bytes() const { return at_ - begin_; }

  char *keys, *values;
  float* scores;
  char* weights;
  uint16_t* decoded;
  float* queries;

 private:
  char* take(int64_t bytes) {
    char* here = at_;
    at_ += round_up(bytes, CACHE_LINE);
    return here;
  }
  char *begin_, *at_;
};

template <Dtype dtype>
int64_t scratch_bytes(int64_t heads, int64_t d_qk, int64_t d_v) {
  alignas(CACHE_LINE) static char none[1];
  return Scratch<dtype>(heads, d_qk, d_v, none).bytes();
}

inline void widen_rows(const void* rows, int64_t count, int64_t stride, int64_t n, float* to) {
  using V = Vec;
  for (int64_t h = 0; h < count; ++h)
    for (int64_t i = 0; i < n; i += V::LANES) {
      const int left = int(least(n - i, V::LANES));
      store_value<V, Dtype::f32>(to + h * n, i, load_value<V, Dtype::f16>(rows, h * stride + i, left), left);
    }
}

template <Dtype dtype>
void begin(const Query& query, const Sums& sums, char* memory) {
  for (int64_t h = 0; h < query.heads; ++h) sums.m[h] = -INF;
  std::memset(sums.l, 0, size_t(query.heads * SUM_LANES) * 4);
  std::memset(sums.acc, 0, size_t(query.heads * padded_v(query.d_v)) * 4);
  if constexpr (dtype == Dtype::f16)
    widen_rows(query.q, query.heads, query.head_stride, query.d_qk,
               Scratch<dtype>(query.heads, query.d_qk, query.d_v, memory).queries);
}

// Rows as numbers in memory: of a cache's bytes decoded ones.
template <class V>
const void* const* numbers_of(const Keys& keys, int64_t d_qk, uint16_t* decoded, const void** rows) {
  if (keys.layout == CacheLayout::plain) return keys.rows;
  for (int64_t j = 0; j < STEP; ++j) {
    rows[j] = keys.rows[j];
    if (!(keys.seen >> j & 1)) continue;
    uint16_t* numbers = decoded + j * round_up(d_qk, 2);
    decode_token<V>(keys.layout, keys.rows[j], keys.scales[j], numbers);
    rows[j] = numbers;
  }
  return rows;
}

template <Dtype dtype, class Pack>
void with_numbers(const Keys& keys, int64_t d_qk, uint16_t* decoded, const Pack& pack) {
  const void* rows[STEP];
  const void* const* numbers = numbers_of<Vec>(keys, d_qk, decoded, rows);
  if (keys.layout == CacheLayout::plain)
    pack.template operator()<dtype>(numbers);
  else
    pack.template operator()<Dtype::bf16>(numbers);
}

template <Dtype dtype>
void step(const Query& query, const Keys& keys, const Sums& sums, char* memory) {
  using S = Scratch<dtype>;
  using V = Vec;
  const S scratch(query.heads, query.d_qk, query.d_v, memory);
  with_numbers<dtype>(keys, query.d_qk, scratch.decoded, [&]<Dtype from>(const void* const* rows) {
    pack_keys<V, from, S::PANEL>(rows, query.d_qk, scratch.keys);
    pack_values<V, from, S::PANEL>(rows, STEP, query.d_v, scratch.values);
  });
  const bool widened = dtype == Dtype::f16;
  multiply_keys<V, S::PANEL>(query.heads, query.d_qk, widened ? scratch.queries : query.q,
                             widened ? query.d_qk : query.head_stride, scratch.keys, scratch.scores);
  const Hidden hidden(keys.seen);
  for (int64_t h = 0; h < query.heads; ++h) {
    const float r =
        softmax_row<V, S::PANEL == Dtype::bf16>(scratch.scores + h * STEP, query.scale, hidden, sums.m + h,
                                                sums.l + h * SUM_LANES,
                                                reinterpret_cast<uint16_t*>(scratch.weights) + h * STEP);
    if (r != 1.0f) scale_head<V>(query.heads, query.d_v, h, r, sums.acc);
  }
  add_values<V, S::PANEL>(query.heads, STEP, query.d_v, scratch.weights, scratch.values, sums.acc);
}

void merge(int64_t heads, int64_t d_v, const Sums& into, const Sums& from) {
  using V = Vec;
  const int64_t panels = padded_v(d_v) / PANEL_N;
  for (int64_t h = 0; h < heads; ++h) {
    const float now = from.m[h] > into.m[h] ? from.m[h] : into.m[h];
    const auto a = V::set1(rescale<V>(into.m[h], now)), b = V::set1(rescale<V>(from.m[h], now));
    into.m[h] = now;
    const auto add = [&](float* x, const float* y) {
      V::store(x, V::fma(V::load(y), b, V::mul(V::load(x), a)));
    };
    for (int64_t i = h * SUM_LANES; i < (h + 1) * SUM_LANES; i += V::LANES) add(into.l + i, from.l + i);
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t c = 0; c < PANEL_N; c += V::LANES) {
        const int64_t at = (p * heads + h) * PANEL_N + c;
        add(into.acc + at, from.acc + at);
      }
  }
}

template <Dtype dtype>
void finish(const Query& query, const Sums& sums, const Result& result) {
  using V = Vec;
  for (int64_t h = 0; h < query.heads; ++h) {
    float total = total_of(sums.l + h * SUM_LANES), m = sums.m[h], r = 1.0f;
    const bool is_lonely = total == 0.0f;
    result.lse[h * result.lse_stride] = is_lonely ? INF : m + __builtin_logf(total);
    if (result.max_logits) result.max_logits[h] = total != total ? total : m;
    if (result.sinks && !is_lonely) {
      const float sink = result.sinks[h], now = sink > m ? sink : m;
      r = rescale<V>(m, now);
      total = total * r + (sink == INF ? INF : sink != sink ? sink : exp_of_number<V>(sink - now));
    }
    const auto factor = V::set1(is_lonely ? 0.0f : r), inverse = V::set1(is_lonely ? 0.0f : 1.0f / total);
    for (int64_t c = 0; c < query.d_v; c += V::LANES) {
      const float* at = sums.acc + (c / PANEL_N * query.heads + h) * PANEL_N + c % PANEL_N;
      const auto value = V::mul(V::mul(V::load(at), factor), inverse);
      store_value<V, dtype>(result.out, h * query.d_v + c, value, int(least(query.d_v - c, V::LANES)));
    }
  }
}

void decode(CacheLayout layout, const void* token, const void* scales, uint16_t* numbers) {
  decode_token<Vec>(layout, token, scales, numbers);
}

}  // namespace
}  // namespace dsf::sparse_mla

#include "kernels/sparse_mla/gradients.h"

namespace dsf::sparse_mla {
namespace {

template <Dtype dtype>
inline constexpr Kernel kernel_of = {
    scratch_bytes<dtype>,    begin<dtype>,
    step<dtype>,             merge,
    finish<dtype>,           decode,
    shares<dtype>,           gradient_scratch_bytes<dtype>,
    begin_gradient<dtype>,   gradient_step<dtype>,
    finish_gradient<dtype>,  head_panel_bytes<dtype>,
    pack_heads<dtype>,       add_to_rows<dtype>,
    add_scratch_bytes<dtype>, store_row<dtype>,
};

}  // namespace
}  // namespace dsf::sparse_mla
