#include "kernels/fp8_cast/cpu.h"

#include "kernels/fp8_cast/cast.h"
#include "kernels/fp8_cast/pair.h"

namespace dsf {
namespace fp8_cast {
namespace {

struct Variant {
  Isa isa;
  Dtype dtype;
  const char* name;
  const Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, Dtype::dtype, #kernel, &fp8_cast::kernel},
#include "kernels/fp8_cast/variants.inc"
#undef DSF_VARIANT
};

}  // namespace

const Kernel& pick(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return fp8_cast_f32_scalar;  // not reached: every dtype has a scalar row
}

}  // namespace fp8_cast

namespace {

using namespace fp8_cast;

// Asks for what the next row of a tile has, which no hardware prefetcher foresees.
void prefetch_row(const CastArgs& args, int64_t m, int64_t k, int64_t n) {
  constexpr int64_t LINE = 64;
  if (args.source != CastSource::x || m >= args.M) return;
  const int64_t bytes = value_bytes(args.x_dtype);
  const char* at = static_cast<const char*>(args.x) + (m * args.x_stride + k) * bytes;
  for (int64_t line = 0; line < n * bytes; line += LINE) __builtin_prefetch(at + line);
}

// Blocks side by side, read twice: for amax, then, from cache, for the codes.
void cast_tile(const Cast& cast, RowValues& values, int64_t row_block, int64_t first, int64_t columns) {
  const CastArgs& args = cast.args;
  const int64_t begin = row_block * args.block_rows, end = least(args.M, begin + args.block_rows);
  const int64_t block = args.block_cols, from = first * block, to = least(args.K, from + columns);
  const int64_t step =
      args.source == CastSource::x ? to - from : least(to - from, block < PART ? PART / block * block : PART);
  const bool kept = end - begin == 1 && step == to - from;  // one look is enough to make them
  uint32_t bits[MAX_BLOCKS] = {};
  float factors[MAX_BLOCKS];
  const void* made = nullptr;
  for (int64_t m = begin; m < end; ++m)
    for (int64_t k = from; k < to; k += step) {
      const int64_t n = least(step, to - k);
      if (end - begin > 1) prefetch_row(args, m + 1, k, n);
      made = values(m, k, n);
      cast.of_values.amax(made, n, block, cast.ignore_nan, bits + (k - from) / block);
    }
  const int blocks = int(parts_of(to - from, block));
  make_scales(cast, row_block, first, blocks, bits, factors);
  if (args.amax_only) return;
  const bool bounded = cast.bounds(bits, blocks);
  for (int64_t m = begin; m < end; ++m)
    for (int64_t k = from; k < to; k += step) {
      const int64_t n = least(step, to - k);
      cast.encode_part(m, k, n, kept ? made : values(m, k, n), block, factors + (k - from) / block, bounded);
    }
}

// A block of all has a scale, of no values too.
void scale_nothing(const Cast& cast) {
  constexpr uint32_t ZERO = 0;
  float factor;
  for (int64_t row = 0; row < cast.args.row_blocks; ++row)
    for (int64_t column = 0; column < cast.args.col_blocks; ++column) make_scales(cast, row, column, 1, &ZERO, &factor);
}

void cast_tiles(const Context& context, const Cast& cast) {
  const CastArgs& args = cast.args;
  // A column's blocks lie below one another: a few lines of each row.
  const int64_t values = args.block_cols == 1 ? MAX_BLOCKS : args.block_rows == 1 ? PART : TILE / args.block_rows;
  const int64_t columns = part_columns(args.block_cols, values), parts = parts_of(args.K, columns);
  for_each(context, args.M * args.K, args.row_blocks * parts, [&](int64_t begin, int64_t end) {
    RowValues row_values(cast);
    for (int64_t item = begin; item < end; ++item)
      cast_tile(cast, row_values, item / parts, item % parts * (columns / args.block_cols), columns);
  });
}

// Blocks beyond any cache: pieces of rows on all threads, for amax, then for the codes.
struct Pieces {
  int64_t per_block, columns, count;  // of a block's row; values of a piece; of all

  explicit Pieces(const CastArgs& args)
      : per_block(parts_of(args.block_cols, LONG_PART)),
        columns(LONG_PART),
        count(args.M * args.col_blocks * per_block) {}
};

bool is_in_pieces(const CastArgs& args) {
  return !args.plain && !args.has_given && args.source == CastSource::x && args.block_cols > 1 && !args.codes_t &&
         args.block_rows > TILE / args.block_cols;
}

void cast_pieces(const Context& context, const Cast& cast) {
  const CastArgs& args = cast.args;
  const Pieces pieces(args);
  auto* bits = static_cast<uint32_t*>(context.workspace);
  auto* factors = reinterpret_cast<float*>(bits + pieces.count);
  const auto for_pieces = [&](const auto& body) {
    for_each(context, args.M * args.K, pieces.count, [&](int64_t begin, int64_t end) {
      RowValues values(cast);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t column = item / pieces.per_block % args.col_blocks, m = item / pieces.per_block / args.col_blocks;
        const int64_t k = column * args.block_cols + item % pieces.per_block * pieces.columns;
        const int64_t stop = least(args.K, least((column + 1) * args.block_cols, k + pieces.columns));
        if (k < stop) body(item, m, column, k, stop - k, values(m, k, stop - k));
      }
    });
  };
  std::memset(bits, 0, size_t(pieces.count) * 4);
  for_pieces([&](int64_t item, int64_t, int64_t, int64_t, int64_t n, const void* values) {
    cast.of_values.amax(values, n, n, cast.ignore_nan, bits + item);
  });
  const IeeeSubnormals scope;
  for (int64_t row_block = 0; row_block < args.row_blocks; ++row_block)
    for (int64_t column = 0; column < args.col_blocks; ++column) {
      uint32_t most = 0;
      const int64_t end = least(args.M, (row_block + 1) * args.block_rows);
      for (int64_t m = row_block * args.block_rows; m < end; ++m)
        for (int64_t piece = 0; piece < pieces.per_block; ++piece) {
          const uint32_t found = bits[(m * args.col_blocks + column) * pieces.per_block + piece];
          most = found > most ? found : most;
        }
      make_scales(cast, row_block, column, 1, &most, factors + row_block * args.col_blocks + column);
    }
  if (args.amax_only) return;
  for_pieces([&](int64_t, int64_t m, int64_t column, int64_t k, int64_t n, const void* values) {
    cast.encode_part(m, k, n, values, n, factors + m / args.block_rows * args.col_blocks + column);
  });
}

// Without amax: no scales, or the caller's.
void cast_with_given(const Context& context, const Cast& cast) {
  const CastArgs& args = cast.args;
  const int64_t columns = args.has_given ? part_columns(args.block_cols, LONG_PART) : LONG_PART;
  const int64_t parts = parts_of(args.K, columns);
  const ScaleView given = view_of_scale(args.given);
  for_each(context, args.M * args.K, args.M * parts, [&](int64_t begin, int64_t end) {
    RowValues values(cast);
    float factors[MAX_BLOCKS];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / parts, k = item % parts * columns, n = least(columns, args.K - k);
      for (int64_t b = 0; args.has_given && b < parts_of(n, args.block_cols); ++b) {
        const float scale = given.value(m / args.block_rows, k / args.block_cols + b);
        factors[b] = cast.encode_rule.divide ? scale : 1.0f / scale;
      }
      cast.encode_part(m, k, n, values(m, k, n), args.has_given ? args.block_cols : n,
                       args.has_given ? factors : nullptr);
    }
  });
  if (args.plain) {
    cast.scale.store(0, 0, 1.0f, 127);
    return;
  }
  for (int64_t row = 0; row < args.row_blocks; ++row)
    for (int64_t column = 0; column < args.col_blocks; ++column)
      cast.scale.store(row, column, given.value(row, column), 0);
}

}  // namespace

int64_t dsf_fp8_cast_workspace_bytes(const Context*, const CastArgs* args) {
  if (!is_in_pieces(*args) || args->M == 0 || args->K == 0) return 0;
  int64_t values, bytes;
  const Pieces pieces(*args);
  if (__builtin_add_overflow(pieces.count, args->row_blocks * args->col_blocks, &values)) return -1;
  return checked_mul(values, 4, &bytes) ? bytes : -1;
}

void dsf_fp8_cast(const Context* context, const CastArgs* args) {
  CastArgs call = *args;
  if (call.plain && call.x_stride == call.K && call.M > 1) {  // one long row
    call.K *= call.M;
    call.M = 1;
    call.x_stride = call.K;
  }
  const Cast cast(call);
  // The bytes of an int32 that no block has.
  const int64_t unused = call.layout == ScaleLayout::packed ? parts_of(call.col_blocks, 4) * 4 : 0;
  for (int64_t row = 0; row < call.row_blocks; ++row)
    for (int64_t column = call.col_blocks; column < unused; ++column) cast.scale.store(row, column, 0, 0);
  if (call.plain || call.has_given) return cast_with_given(*context, cast);
  if (call.M == 0 || call.K == 0) return scale_nothing(cast);
  if (call.codes_t) return cast_pair(*context, cast);
  if (is_in_pieces(call) && context->workspace) return cast_pieces(*context, cast);
  cast_tiles(*context, cast);
}

void dsf_fp8_dequantize(const Context* context, const DequantizeArgs* args) {
  DequantizeArgs call = *args;
  if (call.M == 0 || call.K == 0) return;
  const int64_t per_byte = call.code_dtype == Dtype::f4e2m1x2 ? 2 : 1, y_bytes = value_bytes(call.dtype);
  if (!call.has_scale && call.codes_stride == call.K / per_byte) {
    call.K *= call.M;
    call.M = 1;
  }
  const auto decode = pick(call.dtype).decode[format_index(call.code_dtype)];
  const int64_t columns = call.has_scale ? part_columns(call.block_cols, LONG_PART) : LONG_PART;
  const int64_t parts = parts_of(call.K, columns);
  const ScaleView scale = view_of_scale(call.scale);
  for_each(*context, call.M * call.K, call.M * parts, [&](int64_t begin, int64_t end) {
    float factors[MAX_BLOCKS];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / parts, k = item % parts * columns, n = least(columns, call.K - k);
      for (int64_t b = 0; call.has_scale && b < parts_of(n, call.block_cols); ++b) {
        factors[b] = scale.value(m / call.block_rows, k / call.block_cols + b);
        if (call.has_tensor_scale) factors[b] = call.tensor_scale * factors[b];
      }
      decode(static_cast<const uint8_t*>(call.codes) + m * call.codes_stride + k / per_byte, n,
             call.has_scale ? call.block_cols : n, call.has_scale ? factors : nullptr,
             static_cast<char*>(call.y) + (m * call.K + k) * y_bytes);
    }
  });
}

void dsf_int8_cast(const Context* context, const Int8CastArgs* args) {
  const Kernel& kernel = pick(args->dtype);
  for_each(*context, args->M * args->K, args->M, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const char* x = static_cast<const char*>(args->x) + m * args->x_stride * value_bytes(args->dtype);
      args->scale[m] = kernel.int8_row(x, args->K, args->q + m * args->K);
    }
  });
}

int32_t dsf_fp8_cast_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
