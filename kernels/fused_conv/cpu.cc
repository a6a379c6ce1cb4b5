#include "kernels/fused_conv/cpu.h"

#include <cstring>

#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/plan.h"
#include "kernels/fused_conv/windows.h"

namespace dsf {
namespace {

using namespace fused_conv;

struct Variant {
  Isa isa;
  Dtype dtype;
  const char* name;
  const Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, Dtype::dtype, #kernel, &fused_conv::kernel},
#include "kernels/fused_conv/variants.inc"
#undef DSF_VARIANT
};

// What a tap outside x reads.
void fill_outside(const ConvArgs& args, char* outside, int64_t bytes) {
  std::memset(outside, value_bytes(args.dtype) == 1 ? args.x_zero_point : 0, size_t(bytes));
}

void fill_multipliers(const ConvArgs& args, float* multipliers) {
  const auto fill = [&](int64_t step) {
    for (int64_t f = 0; f < args.F; ++f) multipliers[f] = args.x_scale * args.weight_scale[f * step] / args.y_scale;
  };
  if (args.weight_scale_step == 1)
    fill(1);  // in vectors
  else
    fill(args.weight_scale_step);
}

// One slot's part of the workspace, and one task after the other on it.
class Worker {
 public:
  Worker(const ConvArgs& args, const Plan& plan, const char* shared, char* memory)
      : args_(args),
        plan_(plan),
        kernel_(kernel_of(args.dtype)),
        pool_(kernel_of(args.y_dtype).pool),  // bytes may be signed in y alone
        outside_(shared),
        multipliers_(reinterpret_cast<const float*>(shared + plan.outside_bytes)) {
    const auto take = [&](int64_t bytes) {
      char* at = memory;
      memory += bytes;
      return at;
    };
    x_ = take(plan.x_bytes);
    residual_ = take(plan.residual_bytes);
    y_ = take(plan.y_bytes);
    pooled_ = take(plan.pooled_bytes);
    runs_ = reinterpret_cast<const char**>(take(plan.runs_bytes));
    scratch_ = take(plan.winograd_bytes);
  }

  // Tasks of the same channels follow one another: their weights stay in L2.
  void run(int64_t task) const {
    const int64_t rows = task % plan_.row_blocks, n = task / plan_.row_blocks % args_.N;
    const int64_t f_first = task / (plan_.row_blocks * args_.N) * plan_.f_per_task;
    const int64_t end = least(args_.out_h, (rows + 1) * plan_.block_rows);
    Range done{0, 0};  // rows of the convolution that wait for their pool
    for (int64_t row = rows * plan_.block_rows; row < end; row += plan_.chunk_rows)
      chunk(n, {row, least(end, row + plan_.chunk_rows)}, f_first, &done);
  }

 private:
  void chunk(int64_t n, Range out, int64_t f_first, Range* done) const;
  Pixels copy_x(int64_t n, Range h) const;
  Pixels copy_stem(int64_t n, Range h) const;
  Pixels residual_of(int64_t n, Range p) const;
  void pool_and_store(int64_t n, Range out, Range p, Range f) const;
  void store_planes(const char* pixels, int64_t n, Range rows, int64_t width, Range f) const;

  int64_t x_value() const { return value_bytes(args_.dtype); }
  int64_t y_value() const { return value_bytes(args_.y_dtype); }
  const char* x_at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    const Strides& s = args_.x_strides;
    return static_cast<const char*>(args_.x) + (n * s.n + c * s.c + h * s.h + w * s.w) * x_value();
  }
  char* y_at(int64_t n, int64_t f, int64_t p, int64_t q) const {
    const Strides& s = args_.y_strides;
    return static_cast<char*>(args_.y) + (n * s.n + f * s.c + p * s.h + q * s.w) * y_value();
  }

  const ConvArgs& args_;
  const Plan& plan_;
  const Kernel& kernel_;
  decltype(Kernel::pool) const pool_;
  const char* outside_;
  const float* multipliers_;
  char *x_, *residual_, *y_, *pooled_;
  const char** runs_;
  char* scratch_;
};

// Rows `out` of y, and all of the task's channels.
void Worker::chunk(int64_t n, Range out, int64_t f_first, Range* done) const {
  const Range wanted = conv_rows(args_, out);
  Block block{};
  block.p = wanted;
  if (args_.has_pool) {
    // The rows that the last chunk's pool has seen too move to the front.
    block.p.begin = least(wanted.end, most(wanted.begin, done->end));
    const int64_t kept = block.p.begin - wanted.begin;
    const int64_t row_bytes = args_.Q * plan_.block_f * y_value();
    if (kept > 0) std::memmove(y_, y_ + (wanted.begin - done->begin) * row_bytes, size_t(kept * row_bytes));
    *done = wanted;
  }
  const Range h = x_rows(args_, block.p);
  block.x = plan_.copies_x ? copy_x(n, h) : Pixels{x_at(n, 0, 0, 0), 0, args_.x_strides.h, args_.x_strides.w};
  block.residual = residual_of(n, block.p);
  block.outside = outside_;
  block.multipliers = multipliers_;
  block.runs = runs_;
  block.scratch = scratch_;
  for (int64_t i = f_first; i < f_first + plan_.f_per_task; ++i) {
    block.f = {i * plan_.block_f, least(args_.F, (i + 1) * plan_.block_f)};
    if (plan_.copies_y) {
      block.y_stride_w = plan_.block_f;
      block.y_stride_h = args_.Q * block.y_stride_w;
      block.y = y_ + (block.p.begin - wanted.begin) * block.y_stride_h * y_value();
    } else {
      block.y = y_at(n, block.f.begin, block.p.begin, 0);
      block.y_stride_h = args_.y_strides.h;
      block.y_stride_w = args_.y_strides.w;
    }
    if (block.p.begin < block.p.end)
      (plan_.path == Path::depthwise  ? kernel_.depthwise
       : plan_.path == Path::grouped  ? kernel_.grouped
       : plan_.path == Path::winograd ? kernel_.winograd
                                      : kernel_.tiles)(args_, block);
    if (args_.has_pool)
      pool_and_store(n, out, wanted, block.f);
    else if (plan_.copies_y)
      store_planes(y_, n, out, args_.Q, block.f);
  }
}

Pixels Worker::copy_x(int64_t n, Range h) const {
  if (plan_.path == Path::stem) return copy_stem(n, h);
  const Strides& s = args_.x_strides;
  const int64_t row = args_.W * args_.C;
  if (s.h == args_.W) {
    kernel_.to_pixels(x_at(n, 0, h.begin, 0), s.c, args_.C, (h.end - h.begin) * args_.W, x_, args_.C);
  } else {
    for (int64_t i = h.begin; i < h.end; ++i)
      kernel_.to_pixels(x_at(n, 0, i, 0), s.c, args_.C, args_.W, x_ + (i - h.begin) * row * x_value(), args_.C);
  }
  return {x_, h.begin, row, args_.C};
}

// Rows of x with their padding: (q, s, c) is value (q * stride + s) * C + c; where taps are apart, (q * S + s) * C + c.
Pixels Worker::copy_stem(int64_t n, Range h) const {
  const int64_t row_values = stem_row_values(args_), pixel_bytes = args_.C * x_value();
  const bool dense = args_.dilation.w == 1;
  const int64_t left = args_.padding.left;
  const int64_t width = row_values / most(1, args_.C);  // pixels of a row
  for (int64_t i = h.begin; i < h.end; ++i) {
    char* row = x_ + (i - h.begin) * row_values * x_value();
    const auto copy = [&](int64_t w, int64_t count, char* to) {
      if (args_.x_layout == Layout::planes)
        kernel_.to_pixels(x_at(n, 0, i, w), args_.x_strides.c, args_.C, count, to, args_.C);
      else if (args_.x_strides.w == args_.C)
        std::memcpy(to, x_at(n, 0, i, w), size_t(count * pixel_bytes));
      else
        for (int64_t j = 0; j < count; ++j)
          std::memcpy(to + j * pixel_bytes, x_at(n, 0, i, w + j), size_t(pixel_bytes));
    };
    if (dense) {
      const int64_t first = least(left, width), inside = most(0, least(args_.W, width - first));
      fill_outside(args_, row, first * pixel_bytes);
      copy(0, inside, row + first * pixel_bytes);
      fill_outside(args_, row + (first + inside) * pixel_bytes, (width - first - inside) * pixel_bytes);
    } else {
      for (int64_t j = 0; j < width; ++j) {
        const int64_t w = j / args_.S * args_.stride.w - left + j % args_.S * args_.dilation.w;
        if (w >= 0 && w < args_.W)
          copy(w, 1, row + j * pixel_bytes);
        else
          fill_outside(args_, row + j * pixel_bytes, pixel_bytes);
      }
    }
  }
  return {x_, h.begin, row_values, (dense ? args_.stride.w : args_.S) * args_.C};
}

Pixels Worker::residual_of(int64_t n, Range p) const {
  if (!args_.residual) return {};
  const Strides& s = args_.residual_strides;
  const auto at = [&](int64_t row) {
    return static_cast<const char*>(args_.residual) + (n * s.n + row * s.h) * y_value();
  };
  if (!plan_.copies_residual) return {at(0), 0, s.h, s.w};
  const int64_t row = args_.Q * args_.F;
  for (int64_t i = p.begin; i < p.end; ++i)
    kernel_.to_pixels(at(i), s.c, args_.F, args_.Q, residual_ + (i - p.begin) * row * y_value(), args_.F);
  return {residual_, p.begin, row, args_.F};
}

void Worker::pool_and_store(int64_t n, Range out, Range p, Range f) const {
  const PoolRule rule{args_.pool, args_.P, args_.Q, args_.out_w, 0, 0};
  PoolBlock block{};
  block.out = out;
  block.channels = f.end - f.begin;
  block.x = {y_, p.begin, args_.Q * plan_.block_f, plan_.block_f};
  const bool planes = args_.y_layout == Layout::planes;
  block.y = planes ? pooled_ : y_at(n, f.begin, out.begin, 0);
  block.y_stride_w = planes ? plan_.block_f : args_.y_strides.w;
  block.y_stride_h = planes ? args_.out_w * plan_.block_f : args_.y_strides.h;
  pool_(rule, block);
  if (planes) store_planes(pooled_, n, out, args_.out_w, f);
}

void Worker::store_planes(const char* pixels, int64_t n, Range rows, int64_t width, Range f) const {
  const Strides& s = args_.y_strides;
  const bool together = s.h == width;
  const int64_t step = together ? rows.end - rows.begin : 1;
  for (int64_t i = rows.begin; i < rows.end; i += step)
    kernel_.to_planes(pixels + (i - rows.begin) * width * plan_.block_f * y_value(), plan_.block_f, f.end - f.begin,
                      step * width, y_at(n, f.begin, i, 0), s.c);
}

}  // namespace

const Kernel& fused_conv::kernel_of(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return fused_conv_f32_scalar;  // not reached: every dtype has a scalar row
}

int64_t dsf_fused_conv_workspace_bytes(const Context* context, const ConvArgs* args) {
  if (args->N == 0 || args->F == 0) return 0;
  return plan_of(*context, *args).bytes();
}

void dsf_fused_conv(const Context* context, const ConvArgs* args) {
  if (args->N == 0 || args->F == 0) return;
  const Plan plan = plan_of(*context, *args);
  char* shared = static_cast<char*>(context->workspace);
  fill_outside(*args, shared, plan.outside_bytes);
  if (plan.multipliers_bytes) fill_multipliers(*args, reinterpret_cast<float*>(shared + plan.outside_bytes));
  const auto run = [&](char* memory, Range tasks) {
    const Worker worker(*args, plan, shared, memory);
    for (int64_t task = tasks.begin; task < tasks.end; ++task) worker.run(task);
  };
  for_each_slot(*context, plan.slots, plan.tasks, shared + plan.shared_bytes(), plan.slot_bytes(), run);
}

int32_t dsf_fused_conv_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
