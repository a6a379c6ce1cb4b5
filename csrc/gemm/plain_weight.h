// A call with a plain weight: a few panels are packed at a time, into memory that stays in cache, and used at once, so
// that a call reads the weight once and writes nothing of its size. A gated weight, whose halves lie far apart in bias
// and scale, is packed whole. The results are those of the packed weight.
#pragma once
#include "csrc/gemm/linear_checks.h"
#include "csrc/gemm/packed.h"

namespace dsf {

// Panels at a time: one for a thread alone, else what keeps the threads busy between one wait for all and the next.
inline int64_t panels_at_a_time(const Context& context, int64_t N) {
  constexpr int64_t PANELS_PER_THREAD = 4;
  const int64_t panels = round_up(N, PANEL_N) / PANEL_N;
  const int64_t wanted = context.num_threads > 1 ? context.num_threads * PANELS_PER_THREAD : 1;
  return panels < wanted ? panels : wanted;
}

// Bytes of scratch that walk_plain uses, a multiple of a cache line.
inline int64_t plain_scratch_bytes(const Context& context, const LinearArgs& args, PackedFormat format) {
  const int64_t rows = args.gated ? weight_rows(args) : panels_at_a_time(context, args.N) * PANEL_N;
  return round_up(packed_bytes(format, rows, args.K), CACHE_LINE);
}

// The call on columns [n, n + count).
inline LinearArgs columns_of(const LinearArgs& args, int64_t n, int64_t count) {
  const int64_t bytes = n * value_bytes(args.dtype);
  LinearArgs part = args;
  part.N = count;
  if (args.scale) part.scale = args.scale + n;
  if (args.bias) part.bias = static_cast<const char*>(args.bias) + bytes;
  if (args.residual) part.residual = static_cast<const char*>(args.residual) + bytes;
  part.y = static_cast<char*>(args.y) + bytes;
  return part;
}

// pack(rows, target, p) packs these rows of the weight to be the p-th panel of target; run(part, m_begin, m_end, p) is
// a room's kernel.
template <class Pack, class Run>
void walk_plain(const Context& context, const LinearArgs& args, PackedFormat format, void* scratch, const Pack& pack,
                const Run& run) {
  const int64_t columns = args.gated ? args.N : panels_at_a_time(context, args.N) * PANEL_N;
  for (int64_t n = 0; n < args.N; n += columns) {
    LinearArgs part = args.gated ? args : columns_of(args, n, args.N - n < columns ? args.N - n : columns);
    const int64_t rows = weight_rows(part);
    write_packed_header(format, rows, part.K, scratch);
    part.packed = scratch;
    const PackedPanels target(scratch);
    parallel_for(context, num_panels(rows, part.gated), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const PanelRows of_part = rows_of_panel(rows, part.gated, p);
        pack(PanelRows{n + of_part.first, of_part.count}, target, p);
      }
    });
    walk(context, part, run);
  }
}

}  // namespace dsf
