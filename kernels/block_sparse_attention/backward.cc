// Backward: tile by tile as forward, with the sums of a head's dk and dv in f32. With more threads than heads of k each
// has a share of a head's keys, and then a share of its tiles for dq, at the cost of seven products for five.
#include "kernels/block_sparse_attention/steps.h"

namespace dsf {
namespace {

using namespace block_sparse_attention;

struct Scratch {
  Steps steps;
  RowsBackward rows;
  float *dk[KEY_STEP], *dv[KEY_STEP];
};
constexpr int64_t SCRATCH_BYTES = round_up(sizeof(Scratch), 64);

// A share of the tiles, and the keys whose sums are wanted, of one head of k.
struct Task {
  int64_t b, kv;
  int64_t key_begin, key_end;
  bool wants_dq;
  int64_t share, shares;

  bool wants_keys() const { return key_end > key_begin; }
};

// How a call is cut: parts of every head of k.
struct Cut {
  int64_t units, parts, part_keys;

  explicit Cut(const Context& context, const AttentionArgs& args) {
    units = args.B * args.H_kv;
    parts = units >= context.num_threads ? 1 : divide_up(context.num_threads, most(units, 1));
    part_keys = round_up(divide_up(args.S_k, parts), KEY_STEP);
  }
};

class Worker {
 public:
  Worker(const AttentionArgs& args, float* delta, char* memory)
      : args_(args),
        kernel_(kernel_of(args.dtype)),
        delta_(delta),
        scratch_(*reinterpret_cast<Scratch*>(memory)),
        tile_(memory + SCRATCH_BYTES),
        sums_(reinterpret_cast<float*>(tile_ + tile_bytes(args))) {}

  static int64_t tile_bytes(const AttentionArgs& args) {
    return round_up(kernel_of(args.dtype).backward_bytes(args.D, args.D_v), 64);
  }
  static int64_t bytes(const AttentionArgs& args, int64_t keys) {
    return SCRATCH_BYTES + tile_bytes(args) + keys * (width(args.D) + width(args.D_v)) * 4;
  }

  void run(const Task& task) const {
    const int64_t keys = task.key_end - task.key_begin;
    std::memset(sums_, 0, size_t(keys) * size_t(width(args_.D) + width(args_.D_v)) * 4);
    int64_t number = 0;
    for_each_tile(args_, task.b, task.kv, [&](const Place& place) {
      if (task.wants_keys() || number++ % task.shares == task.share) run_tile(place, task);
    });
    const int64_t first = (task.b * args_.H_kv + task.kv) * args_.S_k + task.key_begin,
                  value = value_bytes(args_.dtype);
    char* dk = static_cast<char*>(args_.dk) + first * args_.D * value;
    char* dv = static_cast<char*>(args_.dv) + first * args_.D_v * value;
    for (int64_t j = 0; j < keys; ++j) {
      kernel_.store_row(dk_sums(task, task.key_begin + j), args_.scale, args_.D, dk + j * args_.D * value);
      kernel_.store_row(dv_sums(task, task.key_begin + j), 1.0f, args_.D_v, dv + j * args_.D_v * value);
    }
  }

 private:
  static int64_t width(int64_t D) { return round_up(D, 16); }  // of a row of sums
  float* dk_sums(const Task& task, int64_t key) const { return sums_ + (key - task.key_begin) * width(args_.D); }
  float* dv_sums(const Task& task, int64_t key) const {
    return sums_ + (task.key_end - task.key_begin) * width(args_.D) + (key - task.key_begin) * width(args_.D_v);
  }

  void run_tile(const Place& place, const Task& task) const {
    const Shape shape{place.rows(), args_.D, args_.D_v, args_.scale};
    const int64_t value = value_bytes(args_.dtype);
    RowsBackward& rows = scratch_.rows;
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t head = place.head + row / place.count, i = place.sequence.q_begin + place.i + row % place.count;
      const int64_t at = (place.b * args_.H + head) * args_.S_q + i;
      rows.q[row] = row_of(args_.q, args_.dtype, place.b, head, i);
      rows.dout[row] = row_of(args_.dout, args_.dtype, place.b, head, i);
      rows.lse[row] = args_.forward_lse[at];
      rows.delta[row] = delta_[at];
      rows.dlse[row] = args_.dlse ? args_.dlse[at] : 0.0f;
      rows.sink[row] = args_.sink_logits ? args_.sink_logits[head] : -__builtin_inff();
      rows.dq[row] = static_cast<char*>(args_.dq) + at * args_.D * value;
    }
    kernel_.begin_backward(shape, rows, tile_);
    StepPlanner(args_, scratch_.steps).for_each(place, [&](const Planned& planned) {
      bool some = false;
      for (int t = 0; t < planned.keys.n; ++t) {
        const int64_t key = planned.key[t];
        const bool mine = key >= task.key_begin && key < task.key_end;
        scratch_.dk[t] = mine ? dk_sums(task, key) : nullptr;
        scratch_.dv[t] = mine ? dv_sums(task, key) : nullptr;
        some = some || mine;
      }
      if (some || task.wants_dq)
        kernel_.step_backward(shape, planned.keys, task.wants_dq, some ? scratch_.dk : nullptr, scratch_.dv, tile_);
    });
    if (task.wants_dq) kernel_.finish_backward(shape, rows, tile_);
  }

  const AttentionArgs& args_;
  const Kernel& kernel_;
  float* delta_;
  Scratch& scratch_;
  char* tile_;
  float* sums_;
};

int64_t delta_bytes(const AttentionArgs& args) { return round_up(args.B * args.H * args.S_q * 4, 64); }

}  // namespace

int64_t dsf_block_sparse_attention_backward_workspace_bytes(const Context* context, const AttentionArgs* args) {
  const Cut cut(*context, *args);
  return delta_bytes(*args) + context->num_threads * Worker::bytes(*args, cut.parts == 1 ? args->S_k : cut.part_keys);
}

void dsf_block_sparse_attention_backward(const Context* context, const AttentionArgs* args) {
  const Kernel& kernel = kernel_of(args->dtype);
  const Cut cut(*context, *args);
  const int64_t shares = context->num_threads, bytes = Worker::bytes(*args, cut.parts == 1 ? args->S_k : cut.part_keys);
  float* delta = static_cast<float*>(context->workspace);
  char* slots = static_cast<char*>(context->workspace) + delta_bytes(*args);

  // delta = dot(dout, out) of every query
  parallel_for(*context, args->B * args->H, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const char* out =
          static_cast<const char*>(args->forward_out.data) + head * args->S_q * args->D_v * value_bytes(args->dtype);
      const char* dout = row_of(args->dout, args->dtype, head / args->H, head % args->H, 0);
      kernel.delta(dout, args->dout.strides.s, out, args->D_v, args->S_q, delta + head * args->S_q);
    }
  });
  const auto run = [&](int64_t tasks, const auto& task_of) {
    parallel_for(*context, shares, [&](int64_t begin, int64_t end) {
      for (int64_t share = begin; share < end; ++share) {
        const Worker worker(*args, delta, slots + share * bytes);
        for (int64_t i = share; i < tasks; i += shares) worker.run(task_of(i));
      }
    });
  };
  const auto unit_of = [&](int64_t unit) { return Task{unit / args->H_kv, unit % args->H_kv, 0, 0, false, 0, 1}; };
  if (cut.parts == 1) {
    run(cut.units, [&](int64_t i) {
      Task task = unit_of(i);
      task.key_end = args->S_k;
      task.wants_dq = true;
      return task;
    });
  } else {
    run(cut.units * cut.parts, [&](int64_t i) {
      Task task = unit_of(i / cut.parts);
      task.key_begin = least(args->S_k, i % cut.parts * cut.part_keys);
      task.key_end = least(args->S_k, task.key_begin + cut.part_keys);
      return task;
    });
    run(cut.units * cut.parts, [&](int64_t i) {
      Task task = unit_of(i / cut.parts);
      task.wants_dq = true;
      task.share = i % cut.parts;
      task.shares = cut.parts;
      return task;
    });
  }
  // dsink = -sum of (1 - f) delta
  if (args->dsink_logits)
    parallel_for(*context, args->H, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        float sum = 0.0f;
        for (int64_t b = 0; b < args->B; ++b) {
          const int64_t at = (b * args->H + head) * args->S_q;
          sum = kernel.sink_gradient(args->forward_lse + at, args->sink_logits[head], delta + at, args->S_q, sum);
        }
        args->dsink_logits[head] = sum;
      }
    });
}

}  // namespace dsf
