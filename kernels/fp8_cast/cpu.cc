#include "kernels/fp8_cast/cpu.h"

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "csrc/core/subnormals.h"
#include "csrc/gemm/packed.h"
#include "kernels/fp8_cast/cpu_kernels.h"
#include "kernels/fp8_cast/scale_view.h"

namespace dsf {
namespace {

using namespace fp8_cast;

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

const Kernel& pick(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return fp8_cast_f32_scalar;  // not reached: every dtype has a scalar row
}

int format_index(Dtype dtype) {
  for (int i = 0; i < NUM_FORMATS; ++i)
    if (FORMATS[i] == dtype) return i;
  return 0;  // not reached: checked
}

constexpr int64_t PART = 2048;        // values of a row in one step, L1's share of f32 beside the codes
constexpr int64_t TILE = 128 << 10;   // values of a block that is read once from memory and once more from L2
constexpr int64_t LONG_PART = 16384;  // values of a row where no amax is taken
constexpr int64_t SERIAL = 32768;     // fewer values than this are not worth another thread

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t parts_of(int64_t size, int64_t part) { return size / part + (size % part != 0); }

// Columns of a part: whole blocks, as many as the arrays of scales hold, about `values` of them.
int64_t part_columns(int64_t block, int64_t values) {
  const int64_t blocks = values / block;
  return block * (blocks < 1 ? 1 : least(blocks, MAX_BLOCKS));
}

template <class Body>
void for_each(const Context& context, int64_t values, int64_t items, const Body& body) {
  const auto range = [&](int64_t begin, int64_t end) {
    const IeeeSubnormals scope;
    body(begin, end);
  };
  if (values <= SERIAL) return range(0, items);
  parallel_for(context, items, range);
}

ScaleRule rule_of(const CastArgs& args) {
  constexpr float LARGEST[] = {448.0f, 57344.0f, 240.0f, 57344.0f, 6.0f};
  constexpr int MANTISSA[] = {3, 2, 3, 2, 1}, EXPONENT[] = {8, 15, 7, 15, 2};
  constexpr float LARGEST_F32 = 3.40282347e38f, LARGEST_BF16 = 0x1.FEp127f;
  const int format = format_index(args.dtype);
  ScaleRule rule{};
  rule.mode = args.mode;
  rule.kind = args.kind;
  rule.mantissa = MANTISSA[format];
  rule.largest_exponent = EXPONENT[format];
  rule.largest = LARGEST[format];
  rule.mx = args.mx;
  rule.has_tensor_scale = args.has_tensor_scale;
  rule.tensor_scale = args.tensor_scale;
  rule.infinite_factor = args.x_dtype == Dtype::bf16 && args.source == CastSource::x ? LARGEST_BF16 : LARGEST_F32;
  switch (args.mode) {
    case CastMode::vllm:
      rule.floor = 1e-10f;
      if (args.dtype == Dtype::f8e4m3fnuz) rule.largest = 224.0f;
      break;
    case CastMode::te:
      break;
    case CastMode::torchao:
      rule.floor = args.kind == ScaleKind::f32 ? 1e-12f : 0.0f;
      break;
    case CastMode::tilekernels:
      rule.floor = args.dtype == Dtype::f4e2m1x2 ? 6 * 0x1p-126f : 1e-4f;
      break;
    default:
      rule.floor = 1e-4f;
  }
  return rule;
}

bool divides(CastMode mode) { return mode == CastMode::v3 || mode == CastMode::v32 || mode == CastMode::vllm; }
bool ignores_nan(CastMode mode) { return divides(mode) || mode == CastMode::tilekernels || mode == CastMode::te; }

// One call: the kernels it uses and how they go about it.
struct Cast {
  const CastArgs& args;
  const Kernel& of_x;       // reads x
  const Kernel& of_values;  // reads what is cast: x, or f32 that was made of it
  Encode encode;
  EncodeRule encode_rule;
  ScaleRule scale_rule;
  ScaleView scale;
  bool ignore_nan;

  explicit Cast(const CastArgs& call)
      : args(call),
        of_x(pick(call.x_dtype)),
        of_values(call.source == CastSource::x ? of_x : pick(Dtype::f32)),
        encode(of_values.encode[format_index(call.dtype)]),
        encode_rule{divides(call.mode) && (call.has_given || call.kind == ScaleKind::f32),
                    call.saturate,
                    call.dtype == Dtype::f4e2m1x2 && call.mode == CastMode::deepgemm,
                    call.stochastic,
                    false,
                    call.seed},
        scale_rule(rule_of(call)),
        scale{static_cast<char*>(call.scale), scale_dtype(call), call.scale_row_stride, call.scale_col_stride},
        ignore_nan(!call.amax_only && ignores_nan(call.mode)) {}

  static Dtype scale_dtype(const CastArgs& call) {
    if (call.layout == ScaleLayout::packed) return Dtype::i32;
    if (call.amax_only || call.kind == ScaleKind::f32) return Dtype::f32;
    return call.kind == ScaleKind::ue8m0 ? Dtype::f8e8m0 : Dtype::f8e4m3;
  }
  uint8_t* codes_at(int64_t row, int64_t k) const {
    const int64_t per_byte = args.dtype == Dtype::f4e2m1x2 ? 2 : 1;
    return static_cast<uint8_t*>(args.codes) + row * (args.K / per_byte) + k / per_byte;
  }
  // Whether no value that these make of numbers is NaN, or cut off: MX's floor and NVFP4's coarse scale cut some.
  bool bounds(const uint32_t* amax_bits, int n) const {
    if (ignore_nan) return false;  // amax says nothing of NaN
    const bool rounds_up =
        args.kind == ScaleKind::f32 || (args.kind == ScaleKind::ue8m0 && args.mode < CastMode::torchao);
    uint32_t most = 0;
    for (int b = 0; b < n; ++b) most = amax_bits[b] > most ? amax_bits[b] : most;
    return rounds_up && most < INF_BITS;
  }
  void encode_part(int64_t row, int64_t k, int64_t n, const void* values, int64_t block, const float* factors,
                   bool bounded = false) const {
    EncodeRule rule = encode_rule;
    rule.bounded = bounded;
    encode(rule, values, n, block, factors, uint64_t(row) * uint64_t(args.K) + uint64_t(k), codes_at(row, k));
  }
};

// Values of a row: where they are in x, or made of it in a buffer of PART numbers.
struct RowValues {
  explicit RowValues(const Cast& call) : cast(call) {}

  const Cast& cast;
  int64_t row = -1;
  float inverse_rms = 0;
  alignas(64) float buffer[PART];

  const void* operator()(int64_t m, int64_t k, int64_t n) {
    const CastArgs& args = cast.args;
    const int64_t bytes = value_bytes(args.x_dtype);
    const char* x = static_cast<const char*>(args.x) + m * args.x_stride * bytes;
    if (args.source == CastSource::x) return x + k * bytes;
    if (args.source == CastSource::silu_mul) {
      cast.of_x.silu_mul(x + k * bytes, x + (args.K + k) * bytes, n, buffer);
      return buffer;
    }
    if (row != m) {
      row = m;
      inverse_rms = 1.0f / std::sqrt(cast.of_x.squares(x, args.K) / float(args.K) + args.eps);
    }
    const char* weight = static_cast<const char*>(args.norm_weight) + k * bytes;
    cast.of_x.rms_norm(x + k * bytes, inverse_rms, weight, n, buffer);
    return buffer;
  }
};

// Scales of n blocks from their amax, stored; factors to encode with. Of amax alone, amax itself.
void make_scales(const Cast& cast, int64_t row_block, int64_t first, int n, const uint32_t* bits, float* factors) {
  float scale[MAX_BLOCKS];
  uint8_t code[MAX_BLOCKS] = {};
  if (!cast.args.amax_only)
    cast.of_x.scales(cast.scale_rule, n, bits, scale, factors, code);
  else
    std::memcpy(scale, bits, size_t(n) * 4);
  cast.scale.store(row_block, first, n, scale, code);
}

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

// out[k][m] = in[m][k] of bytes: rows of in are PAIR_BLOCK apart.
constexpr int64_t PAIR_BLOCK = 128;
void transpose_bytes(const uint8_t* in, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) {
  constexpr int64_t SQUARE = 8;
  for (int64_t m = 0; m < rows; m += SQUARE)
    for (int64_t k = 0; k < columns; k += SQUARE) {
      const int64_t height = least(SQUARE, rows - m), width = least(SQUARE, columns - k);
      if (height < SQUARE || width < SQUARE) {
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j) out[(k + j) * out_stride + m + i] = in[(m + i) * PAIR_BLOCK + k + j];
        continue;
      }
      uint64_t row[SQUARE];  // halves, quarters and eighths of the square change places
      for (int64_t i = 0; i < SQUARE; ++i) std::memcpy(&row[i], in + (m + i) * PAIR_BLOCK + k, 8);
      const auto exchange = [&](int a, int b, int bits, uint64_t mask) {
        const uint64_t moved = ((row[a] >> bits) ^ row[b]) & mask;
        row[a] ^= moved << bits;
        row[b] ^= moved;
      };
      for (int i = 0; i < 4; ++i) exchange(i, i + 4, 32, 0x00000000FFFFFFFFu);
      for (const int i : {0, 1, 4, 5}) exchange(i, i + 2, 16, 0x0000FFFF0000FFFFu);
      for (const int i : {0, 2, 4, 6}) exchange(i, i + 1, 8, 0x00FF00FF00FF00FFu);
      for (int64_t j = 0; j < SQUARE; ++j) std::memcpy(out + (k + j) * out_stride + m, &row[j], 8);
    }
}

// A square of x is read once from memory: scaled along its rows into codes, along its columns into codes_t.
void cast_pair(const Context& context, const Cast& cast) {
  const CastArgs& args = cast.args;
  const int64_t block = args.block_cols, down = parts_of(args.M, block), across = args.col_blocks;
  const int64_t bytes = value_bytes(args.x_dtype);
  ScaleView scale_t = cast.scale;
  scale_t.data = static_cast<char*>(args.scale_t);
  scale_t.row_stride = down;
  scale_t.col_stride = 1;
  for_each(context, args.M * args.K, down * across, [&](int64_t begin, int64_t end) {
    alignas(64) uint8_t turned[PAIR_BLOCK * PAIR_BLOCK];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / across * block, k = item % across * block;
      const int64_t rows = least(block, args.M - m), columns = least(block, args.K - k);
      uint32_t row_bits[PAIR_BLOCK] = {}, column_bits[PAIR_BLOCK] = {};
      float factors[PAIR_BLOCK], scale[PAIR_BLOCK];
      uint8_t code[PAIR_BLOCK] = {};
      const char* x = static_cast<const char*>(args.x) + (m * args.x_stride + k) * bytes;
      for (int64_t i = 0; i < rows; ++i) {
        const char* row = x + i * args.x_stride * bytes;
        cast.of_x.amax(row, columns, columns, cast.ignore_nan, row_bits + i);
        cast.of_x.amax(row, columns, 1, cast.ignore_nan, column_bits);
      }
      cast.of_x.scales(cast.scale_rule, int(columns), column_bits, scale, factors, code);
      for (int64_t j = 0; j < columns; ++j) scale_t.store(k + j, m / block, scale[j], code[j]);
      for (int64_t i = 0; i < rows; ++i)
        cast.encode(cast.encode_rule, x + i * args.x_stride * bytes, columns, 1, factors, 0, turned + i * PAIR_BLOCK);
      transpose_bytes(turned, rows, columns, static_cast<uint8_t*>(args.codes_t) + k * args.M + m, args.M);
      cast.of_x.scales(cast.scale_rule, int(rows), row_bits, scale, factors, code);
      for (int64_t i = 0; i < rows; ++i) {
        cast.scale.store(m + i, k / block, scale[i], code[i]);
        cast.encode_part(m + i, k, columns, x + i * args.x_stride * bytes, columns, factors + i);
      }
    }
  });
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
  if (is_in_pieces(call)) return cast_pieces(*context, cast);
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
