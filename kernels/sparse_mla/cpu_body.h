// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h, on the tiles of
// csrc/attention.
#pragma once
#include <cstring>

#include "csrc/attention/tiles.h"
#include "csrc/gemm/epilogue.h"
#include "kernels/sparse_mla/decode_rows.h"

namespace dsf::sparse_mla {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Hands out parts of a piece of memory that begin at cache lines.
struct Taker {
  char* at;

  template <class Value = char>
  Value* take(int64_t bytes) {
    char* here = at;
    at += round_up(bytes, CACHE_LINE);
    return reinterpret_cast<Value*>(here);
  }
};

// f16 is widened to f32, and so are the decoded numbers of a cache where q is not bf16.
template <Dtype dtype>
inline constexpr Dtype PANEL = dtype == Dtype::bf16 ? Dtype::bf16 : Dtype::f32;
template <Dtype dtype>
inline constexpr int64_t VALUE = dtype == Dtype::bf16 ? 2 : 4;  // bytes in panels

// A task's memory.
template <Dtype dtype>
struct Scratch {
  Scratch(int64_t heads, int64_t d_qk, int64_t d_v, char* memory) {
    Taker taker{memory};
    keys = taker.take(attention::key_panel_bytes(PANEL<dtype>, d_qk));
    values = taker.take(attention::value_panels_bytes(PANEL<dtype>, d_v));
    decoded = taker.take(STEP * d_qk * VALUE<dtype>);
    queries = taker.template take<float>(dtype == Dtype::f16 ? heads * d_qk * 4 : 0);
    bytes = taker.at - memory;
  }
  char *keys, *values, *decoded;
  float* queries;
  int64_t bytes;
};

template <Dtype dtype>
int64_t scratch_bytes(int64_t heads, int64_t d_qk, int64_t d_v) {
  static char none;
  return Scratch<dtype>(heads, d_qk, d_v, &none).bytes;
}

inline void widen_rows(const void* rows, int64_t count, int64_t stride, int64_t n, float* to) {
  using V = Vec;
  for (int64_t h = 0; h < count; ++h)
    for (int64_t i = 0; i < n; i += V::LANES) {
      const int left = int(least(n - i, V::LANES));
      store_value<V, Dtype::f32>(to + h * n, i, load_value<V, Dtype::f16>(rows, h * stride + i, left), left);
    }
}

// Rows of queries as the tiles read them.
template <Dtype dtype>
struct QueryRows {
  using Value = typename attention::RowOf<dtype>::Value;
  const Value* first;
  int64_t stride;

  QueryRows(const void* rows, int64_t given_stride, int64_t n, const float* widened)
      : first(dtype == Dtype::f16 ? reinterpret_cast<const Value*>(widened) : static_cast<const Value*>(rows)),
        stride(dtype == Dtype::f16 ? n : given_stride) {}
};

inline int64_t tiles_of(int64_t heads) { return (heads + attention::MAX_ROWS - 1) / attention::MAX_ROWS; }
int64_t sums_bytes(int64_t heads, int64_t d_v) { return tiles_of(heads) * attention::TileSums::bytes(d_v); }

// body(sums, first head, heads) of every tile.
template <class Body>
inline void for_tiles(int64_t heads, int64_t d_v, char* sums, const Body& body) {
  for (int64_t first = 0; first < heads; first += attention::MAX_ROWS, sums += attention::TileSums::bytes(d_v))
    body(attention::TileSums(sums), first, least(heads - first, attention::MAX_ROWS));
}

template <Dtype dtype>
void begin(const Query& query, char* sums, char* memory) {
  for_tiles(query.heads, query.d_v, sums, [&](const attention::TileSums& tile, int64_t, int64_t heads) {
    attention::Tile<Vec, dtype>::begin(tile, heads);
    attention::Tile<Vec, dtype>::clear_values(tile, heads, query.d_v);
  });
  if constexpr (dtype == Dtype::f16)
    widen_rows(query.q, query.heads, query.head_stride, query.d_qk,
               Scratch<dtype>(query.heads, query.d_qk, query.d_v, memory).queries);
}

// Tokens of a cache as rows of numbers.
template <Dtype dtype>
void decode_keys(const Keys& keys, int64_t d_qk, char* decoded, const char** rows) {
  for (int j = 0; j < keys.n; ++j) {
    rows[j] = nullptr;
    if (!keys.rows[j]) continue;
    char* numbers = decoded + j * d_qk * VALUE<dtype>;
    rows[j] = numbers;
    if constexpr (dtype == Dtype::bf16) {
      decode_token<Vec>(keys.layout, keys.rows[j], keys.scales[j], reinterpret_cast<uint16_t*>(numbers));
    } else {
      uint16_t narrow[MAX_NUMBERS];
      decode_token<Vec>(keys.layout, keys.rows[j], keys.scales[j], narrow);
      for (int64_t i = 0; i < d_qk; i += Vec::LANES)  // whole vectors: of caches 576 or 512
        Vec::store(reinterpret_cast<float*>(numbers) + i, Vec::load_bf16(narrow + i));
    }
  }
}

template <Dtype dtype>
void step(const Query& query, const Keys& keys, char* sums, char* memory) {
  using V = Vec;
  const Scratch<dtype> scratch(query.heads, query.d_qk, query.d_v, memory);
  if (keys.layout == CacheLayout::plain) {
    attention::pack_keys<V, dtype>(keys.rows, keys.n, query.d_qk, scratch.keys);
    attention::pack_values<V, dtype>(keys.rows, keys.n, query.d_v, scratch.values);
  } else {
    const char* rows[STEP];
    decode_keys<dtype>(keys, query.d_qk, scratch.decoded, rows);
    attention::pack_keys<V, PANEL<dtype>>(rows, keys.n, query.d_qk, scratch.keys);
    attention::pack_values<V, PANEL<dtype>>(rows, keys.n, query.d_v, scratch.values);
  }
  uint64_t seen[attention::MAX_ROWS];
  for (uint64_t& row : seen) row = keys.seen;
  const QueryRows<dtype> q(query.q, query.head_stride, query.d_qk, scratch.queries);
  const attention::StepMask mask{keys.n, seen, nullptr, 0};
  using Tile = attention::Tile<V, dtype>;
  for_tiles(query.heads, query.d_v, sums, [&](const attention::TileSums& tile, int64_t first, int64_t heads) {
    alignas(64) typename Tile::X weights[attention::MAX_ROWS * STEP];
    alignas(64) float factors[attention::MAX_ROWS + attention::SUM_LANES];
    Tile::weigh(mask, q.first + first * q.stride, q.stride, heads, query.d_qk, query.scale, scratch.keys, tile, weights,
                factors);
    for (int64_t p = 0; p < attention::num_value_panels(query.d_v); ++p) {  // one panel after the other stays in L1
      const char* panel = scratch.values + p * attention::value_panel_bytes(PANEL<dtype>);
      float* rows = tile.values + p * attention::MAX_ROWS * PANEL_N;
      Tile::for_each_row_tile(heads, [&](int64_t row, int64_t count) {
        Tile::add_panel(weights + row * STEP, count, keys.n, query.d_v - p * PANEL_N, panel,
                        [&](int64_t c) { return attention::TileRows{rows + row * PANEL_N + c, factors + row}; });
      });
    }
  });
}

inline void merge_row(float* into, float of_into, const float* from, float of_from, int64_t n) {
  using V = Vec;
  const auto a = V::set1(of_into), b = V::set1(of_from);
  for (int64_t i = 0; i < n; i += V::LANES)
    V::store(into + i, V::fma(V::load(from + i), b, V::mul(V::load(into + i), a)));
}

void merge(int64_t heads, int64_t d_v, char* into_sums, char* from_sums) {
  using attention::MAX_ROWS;
  using V = Vec;
  for_tiles(heads, d_v, into_sums, [&](const attention::TileSums& into, int64_t first, int64_t rows) {
    const attention::TileSums from(from_sums + first / MAX_ROWS * attention::TileSums::bytes(d_v));
    for (int64_t row = 0; row < rows; ++row) {
      const float a = into.m[row], b = from.m[row], m = a >= b ? a : b;
      const float of_into = a == m ? 1.0f : attention::weight_of<V>(a - m);
      const float of_from = b == m ? 1.0f : attention::weight_of<V>(b - m);
      into.m[row] = m;
      merge_row(into.l + row * attention::SUM_LANES, of_into, from.l + row * attention::SUM_LANES, of_from,
                attention::SUM_LANES);
      for (int64_t p = 0; p < attention::num_value_panels(d_v); ++p) {
        const int64_t at = (p * MAX_ROWS + row) * PANEL_N;
        merge_row(into.values + at, of_into, from.values + at, of_from, PANEL_N);
      }
    }
  });
}

// Results of the heads from `first` on.
template <Dtype dtype>
struct HeadResults {
  const Query& query;
  const Result& result;
  int64_t first;

  char* out(int64_t row) const {
    return static_cast<char*>(result.out) + (first + row) * query.d_v * value_bytes(dtype);
  }
  const float* sink(int64_t row) const { return result.sinks ? result.sinks + first + row : nullptr; }
  void lse(int64_t row, float lse) const {
    result.lse[(first + row) * result.lse_stride] = lse == attention::NEGATIVE_INFINITY ? -lse : lse;  // FlashMLA's
  }
};

template <Dtype dtype>
void finish(const Query& query, char* sums, const Result& result) {
  for_tiles(query.heads, query.d_v, sums, [&](const attention::TileSums& tile, int64_t first, int64_t heads) {
    attention::Tile<Vec, dtype>::finish(tile, heads, query.d_v, HeadResults<dtype>{query, result, first});
    for (int64_t row = 0; result.max_logits && row < heads; ++row) result.max_logits[first + row] = tile.m[row];
  });
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
    scratch_bytes<dtype>,
    sums_bytes,
    begin<dtype>,
    step<dtype>,
    merge,
    finish<dtype>,
    decode,
    shares<dtype>,
    gradient_scratch_bytes<dtype>,
    begin_gradient<dtype>,
    gradient_step<dtype>,
    finish_gradient<dtype>,
    head_panel_bytes<dtype>,
    pack_heads<dtype>,
    add_scratch_bytes<dtype>,
    add_to_rows<dtype>,
    store_row<dtype>,
};

}  // namespace
}  // namespace dsf::sparse_mla
