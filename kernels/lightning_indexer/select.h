// The k largest of a row of scores: what is above a threshold is kept, and when the buffer of 2 k + MORE_CANDIDATES is
// full it is cut to its k largest or a few more, whose smallest is the next threshold. A score is looked at once; a cut
// of 2 k + MORE_CANDIDATES entries throws k + MORE_CANDIDATES / 8 away at least, and takes at most 35 looks at each: so
// the whole is linear in the row's length, in whatever order its scores come. A long row starts from a guess of the
// threshold.
//
// Places ascend, and cuts keep them so: of equal scores the lower place stays, and a later one must be above the
// threshold.
#pragma once
#include <cstring>

#include "kernels/lightning_indexer/cpu_kernels.h"

namespace dsf::lightning_indexer {
namespace {

inline constexpr int32_t INFINITY_KEY = 0x7F800000, NAN_KEY = 0x7FFFFFFF;
inline constexpr int32_t LOWEST_KEY = -INFINITY_KEY - 1;  // of -inf

// Integers in the order of the scores: NaN above infinity, both zeros the same.
[[gnu::always_inline]] inline int32_t key_of(int32_t bits) {
  const int32_t ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF);
  const int32_t key = ordered == -1 ? 0 : ordered;  // -0
  return (bits & 0x7FFFFFFF) > INFINITY_KEY ? NAN_KEY : key;
}

inline float score_of(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & 0x7FFFFFFF);
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

inline int64_t count_from(const int32_t* keys, int64_t count, int32_t least) {
  int32_t found = 0;  // of 2^31 candidates at most
  for (int64_t i = 0; i < count; ++i) found += keys[i] >= least;
  return found;
}

// What a cut keeps: all above `key`, and the first `equal` of what equals it; k to k + more of count > k entries.
struct Limit {
  int32_t key;
  int64_t equal;
};

// By halves of the range of keys; the more are welcome, the sooner it is found.
inline Limit find_limit(const int32_t* keys, int64_t count, int64_t k, int64_t more) {
  int32_t least = keys[0], most = keys[0];
  for (int64_t i = 0; i < count; ++i) {
    least = keys[i] < least ? keys[i] : least;
    most = keys[i] > most ? keys[i] : most;
  }
  int64_t reached = count;  // keys from least on
  while (least < most && reached > k + more) {
    const auto middle = int32_t(most - (int64_t(most) - least) / 2);
    const int64_t found = count_from(keys, count, middle);
    if (found >= k) {
      least = middle;
      reached = found;
    } else {
      most = middle - 1;
    }
  }
  const int64_t above = least == NAN_KEY ? 0 : count_from(keys, count, least + 1);
  return {least, (reached > k + more ? k : reached) - above};
}

// Keeps what lies above `key`, and of what equals it the first `equal`; returns how many.
inline int64_t keep(int32_t* keys, int32_t* places, int64_t count, int32_t key, int64_t equal) {
  int64_t kept = 0;
#ifdef __AVX512F__
  const __m512i key_i32x16 = _mm512_set1_epi32(key);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 inside = count - i < 16 ? Vec::mask_of(int(count - i)) : __mmask16(0xFFFF);
    const __m512i k_i32x16 = _mm512_maskz_loadu_epi32(inside, keys + i);
    const __m512i p_i32x16 = _mm512_maskz_loadu_epi32(inside, places + i);
    uint32_t same = _mm512_mask_cmpeq_epi32_mask(inside, k_i32x16, key_i32x16);
    if (equal < 16) same = _pdep_u32((1u << equal) - 1, same);
    equal -= __builtin_popcount(same);
    const auto taken = __mmask16(_mm512_mask_cmpgt_epi32_mask(inside, k_i32x16, key_i32x16) | same);
    _mm512_storeu_si512(keys + kept, _mm512_maskz_compress_epi32(taken, k_i32x16));
    _mm512_storeu_si512(places + kept, _mm512_maskz_compress_epi32(taken, p_i32x16));
    kept += __builtin_popcount(taken);
  }
#else
  for (int64_t i = 0; i < count; ++i) {
    const int32_t here = keys[i], place = places[i];
    const bool same = here == key && equal > 0;
    equal -= same;
    keys[kept] = here;
    places[kept] = place;
    kept += here > key || same;
  }
#endif
  return kept;
}

// Leaves the k largest, and as many as `more` of the next where that is quicker.
inline void cut_to(Candidates* candidates, int64_t more) {
  int32_t* keys = candidates->keys;
  const int64_t k = candidates->k, count = candidates->count;
  for (int64_t i = candidates->keyed; i < count; ++i) keys[i] = key_of(keys[i]);
  if (count > k) {
    const Limit limit = find_limit(keys, count, k, more);
    candidates->count = keep(keys, candidates->places, count, limit.key, limit.equal);
    candidates->threshold = score_of(limit.key);
    candidates->closed = limit.key > INFINITY_KEY;  // k NaN
  }
  candidates->keyed = candidates->count;
}

inline void cut(Candidates* candidates) { cut_to(candidates, 0); }

template <Dtype dtype>
using Score = std::conditional_t<dtype == Dtype::f32, float, uint16_t>;

template <Dtype dtype>
[[gnu::always_inline]] inline Vec::f32 load_scores(const Score<dtype>* scores) {
  if constexpr (dtype == Dtype::f32) return Vec::load(scores);
  if constexpr (dtype == Dtype::bf16) return Vec::load_bf16(scores);
  if constexpr (dtype == Dtype::f16) return Vec::load_f16(scores);
}
template <Dtype dtype>
[[gnu::always_inline]] inline Vec::f32 load_scores_n(const Score<dtype>* scores, int n) {
  if constexpr (dtype == Dtype::f32) return Vec::load_n(scores, n);
  if constexpr (dtype == Dtype::bf16) return Vec::load_bf16_n(scores, n);
  if constexpr (dtype == Dtype::f16) return Vec::load_f16_n(scores, n);
}

inline constexpr int STEP = 16;  // scores

// STEP scores, the first `some` of them, without a look at the capacity.
#ifdef __AVX512F__
// VPCOMPRESSD to registers and whole stores: its form that writes to memory takes more than 100 cycles on Zen 4.
[[gnu::always_inline]] inline int64_t add_masked(__m512 v_f32x16, __mmask16 above, int32_t first, int32_t* keys,
                                                 int32_t* places) {
  const __m512i counting = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places_i32x16 = _mm512_add_epi32(_mm512_set1_epi32(first), counting);
  _mm512_storeu_si512(keys, _mm512_maskz_compress_epi32(above, _mm512_castps_si512(v_f32x16)));
  _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(above, places_i32x16));
  return __builtin_popcount(above);
}

template <Dtype dtype, bool whole>
[[gnu::always_inline]] inline int64_t add_step(const Score<dtype>* scores, int some, int32_t first, float threshold,
                                               int32_t* keys, int32_t* places) {
  const __m512 v_f32x16 = whole ? load_scores<dtype>(scores) : load_scores_n<dtype>(scores, some);
  const __mmask16 inside = whole ? __mmask16(0xFFFF) : Vec::mask_of(some);
  const __mmask16 above = _mm512_mask_cmp_ps_mask(inside, v_f32x16, _mm512_set1_ps(threshold), _CMP_NLE_UQ);
  return add_masked(v_f32x16, above, first, keys, places);
}

inline constexpr int BLOCK_STEPS = 64;  // the bits of a word

// BLOCK_STEPS whole steps: which of them hold a score above the threshold is known before the first is taken, so that
// one branch is mispredicted where there would be one for each.
template <Dtype dtype>
inline void add_block(const Score<dtype>* scores, int64_t first, Candidates* candidates) {
  alignas(64) uint16_t above[BLOCK_STEPS];
  const __m512 threshold_f32x16 = _mm512_set1_ps(candidates->threshold);
  DSF_UNROLL
  for (int step = 0; step < BLOCK_STEPS; ++step)
    above[step] = uint16_t(_mm512_cmp_ps_mask(load_scores<dtype>(scores + step * STEP), threshold_f32x16, _CMP_NLE_UQ));
  const auto any = [&](int step) {
    const __m512i masks_u16x32 = _mm512_load_si512(above + step);
    return uint64_t(_mm512_test_epi16_mask(masks_u16x32, masks_u16x32));
  };
  for (uint64_t steps = any(0) | any(32) << 32; steps; steps &= steps - 1) {
    if (candidates->count + STEP > candidates->capacity) cut_to(candidates, MORE_CANDIDATES / 8);
    const int step = __builtin_ctzll(steps);
    candidates->count += add_masked(load_scores<dtype>(scores + step * STEP), above[step], int32_t(first + step * STEP),
                                    candidates->keys + candidates->count, candidates->places + candidates->count);
  }
}
#else
template <Dtype dtype, bool whole>
[[gnu::always_inline]] inline int64_t add_step(const Score<dtype>* scores, int some, int32_t first, float threshold,
                                               int32_t* keys, int32_t* places) {
  alignas(64) float values[STEP];
  if constexpr (whole) {
    DSF_UNROLL
    for (int i = 0; i < STEP; i += Vec::LANES) Vec::store(values + i, load_scores<dtype>(scores + i));
  } else {
    for (int i = 0; i < STEP; i += Vec::LANES) {
      const int left = some - i;
      const auto part = left >= Vec::LANES ? load_scores<dtype>(scores + i)
                        : left > 0         ? load_scores_n<dtype>(scores + i, left)
                                           : Vec::zero();
      Vec::store(values + i, part);
    }
  }
  int32_t any = 0;
  for (int i = 0; i < STEP; ++i) any |= !(values[i] <= threshold);
  if (!any) [[likely]]
    return 0;
  int64_t kept = 0;
  for (int i = 0; i < some; ++i) {
    std::memcpy(keys + kept, values + i, sizeof *keys);
    places[kept] = first + i;
    kept += !(values[i] <= threshold);
  }
  return kept;
}
#endif

template <Dtype dtype>
inline void stream(const Score<dtype>* scores, int64_t n, int64_t first, Candidates* candidates) {
  int32_t *keys = candidates->keys, *places = candidates->places;
  int64_t i = 0;
#ifdef __AVX512F__
  constexpr int BLOCK = BLOCK_STEPS * STEP;
  for (; i + BLOCK <= n && !candidates->closed; i += BLOCK) add_block<dtype>(scores + i, first + i, candidates);
#endif
  while (i < n && !candidates->closed) {
    if (candidates->count + STEP > candidates->capacity) {
      cut_to(candidates, MORE_CANDIDATES / 8);
      continue;
    }
    // So many steps fit for sure.
    const int64_t room = (candidates->capacity - candidates->count) / STEP * STEP;
    const int64_t end = n - i < room ? n : i + room;
    const float threshold = candidates->threshold;
    int64_t count = candidates->count;
    for (; i + STEP <= end; i += STEP)
      count += add_step<dtype, true>(scores + i, STEP, int32_t(first + i), threshold, keys + count, places + count);
    if (end == n && i < n) {
      const int some = int(n - i);
      count += add_step<dtype, false>(scores + i, some, int32_t(first + i), threshold, keys + count, places + count);
      i = n;
    }
    candidates->count = count;
  }
}

// A row this long and this many times k starts from a guess; a shorter one's buffer is soon cut.
inline constexpr int64_t GUESS_FROM = 16 << 10, GUESS_TIMES = 8;
inline constexpr int64_t SAMPLE = 2048;  // scores

// A threshold that most likely lies below the k largest: of a sample, whole vectors from all over the row, the score
// with as many above it as the k largest have there, and four standard deviations of that number more. What it gives is
// no more than a guess: a row in which fewer than k lie above it is looked at again without one.
template <Dtype dtype>
inline void guess(const Score<dtype>* scores, int64_t n, Candidates* candidates) {
  int32_t* keys = candidates->keys;
  const int64_t size = candidates->capacity < SAMPLE ? candidates->capacity / STEP * STEP : SAMPLE;
  for (int64_t i = 0; i < size; i += STEP) {
    const Score<dtype>* some = scores + (n - STEP) * i / size;
    for (int j = 0; j < STEP; j += Vec::LANES) Vec::store_i32(keys + i + j, Vec::bits_of(load_scores<dtype>(some + j)));
  }
  for (int64_t i = 0; i < size; ++i) keys[i] = key_of(keys[i]);
  const float expected = float(size) * float(candidates->k) / float(n);
  const int64_t rank = int64_t(expected + 4 * __builtin_sqrtf(expected)) + 4;
  const int32_t limit = find_limit(keys, size, rank, rank / 8).key;
  if (limit <= LOWEST_KEY) return;  // -inf: no guess is better
  const int32_t key = limit - 1;    // one that equals the limit counts
  candidates->threshold = score_of(key == -1 ? -2 : key < INFINITY_KEY ? key : INFINITY_KEY);
}

template <Dtype dtype>
inline void add(const void* data, int64_t n, int64_t first, Candidates* candidates) {
  const auto* scores = static_cast<const Score<dtype>*>(data);
  const bool guessed = first == 0 && !candidates->closed && n >= GUESS_FROM && n / GUESS_TIMES >= candidates->k;
  if (guessed) guess<dtype>(scores, n, candidates);
  stream<dtype>(scores, n, first, candidates);
  if (!guessed || candidates->count >= candidates->k) return;
  candidates->start(candidates->k);
  stream<dtype>(scores, n, first, candidates);
}

}  // namespace
}  // namespace dsf::lightning_indexer
