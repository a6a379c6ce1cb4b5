// What the walks of the room share: the level's kernels, a thread's part of the workspace, results from candidates.
#pragma once
#include <cstring>

#include "csrc/core/subnormals.h"
#include "kernels/lightning_indexer/cpu_kernels.h"

namespace dsf::lightning_indexer {

const Kernel& pick();

namespace {

inline constexpr int64_t ALIGNMENT = 64;  // bytes

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t parts_of(int64_t size, int64_t part) { return size / part + (size % part != 0); }
inline int score_index(Dtype dtype) { return dtype == Dtype::f32 ? 0 : dtype == Dtype::bf16 ? 1 : 2; }

// Bytes of the arrays of one Candidates of k; k is at most 2^31.
inline int64_t candidate_bytes(int64_t k) { return 2 * 4 * round_up(capacity_of(k) + SLACK, ALIGNMENT / 4); }

inline Candidates candidates_at(char* memory, int64_t k) {
  Candidates candidates{};
  candidates.keys = reinterpret_cast<int32_t*>(memory);
  candidates.places = reinterpret_cast<int32_t*>(memory + candidate_bytes(k) / 2);
  candidates.capacity = capacity_of(k);
  candidates.start(k);
  return candidates;
}

// Descending by key, of equal ones the lower place first: from ascending places, a byte of the keys at a time.
inline void sort_by_value(Candidates* candidates) {
  constexpr int BITS = 8, VALUES = 1 << BITS;
  const int64_t count = candidates->count;
  // A buffer has room for twice k.
  int32_t *keys = candidates->keys, *places = candidates->places, *to_keys = keys + count, *to_places = places + count;
  for (int shift = 0; shift < 32; shift += BITS) {
    const uint32_t flip = shift == 24 ? VALUES / 2 - 1 : VALUES - 1;  // largest first, the sign's bit the other way
    const auto digit = [&](int64_t i) { return (uint32_t(keys[i]) >> shift & (VALUES - 1)) ^ flip; };
    int64_t begins[VALUES + 1] = {};
    for (int64_t i = 0; i < count; ++i) ++begins[digit(i) + 1];
    for (int d = 0; d < VALUES; ++d) begins[d + 1] += begins[d];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = begins[digit(i)]++;
      to_keys[at] = keys[i];
      to_places[at] = places[i];
    }
    int32_t* swapped = keys;
    keys = to_keys;
    to_keys = swapped;
    swapped = places;
    places = to_places;
    to_places = swapped;
  }
}

// The k places, -1 after the last; place_of turns a row's place into what is wanted.
template <class PlaceOf>
void write_indices(const Kernel& kernel, Candidates* candidates, IndexOrder order, int64_t k, const PlaceOf& place_of,
                   int32_t* indices) {
  kernel.cut(candidates);
  if (order == IndexOrder::value) sort_by_value(candidates);
  for (int64_t i = 0; i < candidates->count; ++i) indices[i] = place_of(candidates->places[i]);
  for (int64_t i = candidates->count; i < k; ++i) indices[i] = -1;
}

// body(slot) for each of `slots`, which are threads with memory of their own: each takes every slots-th part of the
// work.
template <class Body>
void for_slots(const Context& context, int64_t slots, const Body& body) {
  parallel_for(context, slots, [&](int64_t begin, int64_t end) {
    const IeeeSubnormals scope;
    for (int64_t slot = begin; slot < end; ++slot) body(slot);
  });
}

}  // namespace
}  // namespace dsf::lightning_indexer
