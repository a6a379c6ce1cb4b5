// How a convolution is cut into blocks, and the scratch memory that a block needs. The cut never changes a result.
#pragma once
#include "csrc/core/context.h"
#include "kernels/fused_conv/cpu_kernels.h"
#include "kernels/fused_conv/packed.h"

namespace dsf::fused_conv {

// What a task's parts may take of L2 (1 MiB on Zen 5, 2 MiB on Golden Cove): x's rows, the block before a pool or a
// transposition, and the weights of its channels. What has no copy (pixels in, pixels out) may take more of x.
inline constexpr int64_t X_BYTES = 256 << 10, WEIGHT_BYTES = 512 << 10, RESULT_BYTES = 320 << 10;
// Winograd reads all weights again for every chunk.
inline constexpr int64_t WINOGRAD_RESULT_BYTES = 1 << 20;

// Work is cut into about TASKS_PER_THREAD tasks a thread. Each of a few slots has scratch memory of its own, and its
// share of the tasks, one after the other.
inline constexpr int64_t TASKS_PER_THREAD = 4, SLOTS_PER_THREAD = 2;
inline int64_t tasks_wanted(const Context& context) {
  return context.num_threads > 1 ? context.num_threads * TASKS_PER_THREAD : 1;
}
inline int64_t slots_of(const Context& context, int64_t tasks) {
  const int64_t most_slots = context.num_threads * SLOTS_PER_THREAD;
  return context.num_threads <= 1 ? 1 : tasks < most_slots ? tasks : most_slots;
}
// body(memory, tasks): of one slot.
template <class Body>
void for_each_slot(const Context& context, int64_t slots, int64_t tasks, char* memory, int64_t slot_bytes,
                   const Body& body) {
  parallel_for(context, slots, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot)
      body(memory + slot * slot_bytes, Range{tasks * slot / slots, tasks * (slot + 1) / slots});
  });
}

struct Plan {
  Path path;
  bool copies_x, copies_residual, copies_y;  // into channels side by side; a stem's x is always copied
  int64_t block_rows, row_blocks;            // of y
  int64_t block_f, f_blocks;
  int64_t chunk_rows;  // of y, that a task computes at once; tasks carry over what two chunks' pools share
  int64_t tasks, f_per_task;
  int64_t slots;
  // Of one slot, in bytes, multiples of a cache line; each part's place follows from those before it.
  int64_t x_bytes, residual_bytes, y_bytes, pooled_bytes, runs_bytes, winograd_bytes;
  int64_t outside_bytes, multipliers_bytes;  // shared by all
  int64_t slot_bytes() const { return x_bytes + residual_bytes + y_bytes + pooled_bytes + runs_bytes + winograd_bytes; }
  int64_t shared_bytes() const { return outside_bytes + multipliers_bytes; }
  int64_t bytes() const { return shared_bytes() + slots * slot_bytes(); }
};

Plan plan_of(const Context& context, const ConvArgs& args);

// Rows of the convolution under rows [begin, end) of y, and rows of x under those.
Range conv_rows(const ConvArgs& args, Range out);
Range x_rows(const ConvArgs& args, Range p);
// Values of a row of a stem's copy of x: padded, or where taps are apart, those of each pixel.
int64_t stem_row_values(const ConvArgs& args);

}  // namespace dsf::fused_conv
