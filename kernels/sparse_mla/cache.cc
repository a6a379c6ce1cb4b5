// Tokens to an FP8 cache and back: fp8_cast's kernels make the codes, this room's decode them.
#include <cstring>

#include "kernels/fp8_cast/cast.h"
#include "kernels/sparse_mla/walk.h"

namespace dsf {
namespace {

constexpr int64_t E4M3 = 0;  // in fp8_cast's tables
constexpr uint32_t F32_INF = 0x7F800000, F32_NAN = 0x7FC00000;

struct Form {
  int64_t coded, kept, tile;

  int64_t tiles() const { return coded / tile; }
  int64_t numbers() const { return coded + kept; }
};
constexpr Form FORMS[] = {{}, {512, 64, 128}, {448, 64, 64}};

float of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// 2^ceil(log2(max(amax / 448, 1e-4))) of the bits of amax; NaN where that is not finite.
float scale_of(uint32_t amax_bits) {
  constexpr float LARGEST = 448.0f, SMALLEST = 1e-4f;
  constexpr uint32_t MANTISSA = 0x7FFFFF;
  if (amax_bits >= F32_INF) return of_bits(F32_NAN);
  float least = of_bits(amax_bits) / LARGEST;
  least = least > SMALLEST ? least : SMALLEST;
  uint32_t bits;
  std::memcpy(&bits, &least, 4);
  return of_bits((bits + MANTISSA) & ~MANTISSA);
}

class Writer {
 public:
  explicit Writer(const CacheWriteArgs& args)
      : args_(args), form_(FORMS[int(args.layout)]), kernel_(fp8_cast::pick(args.dtype)) {
    rule_.saturate = 1;
  }

  void write(int64_t i) const {
    const int64_t slot = slot_of(i);
    if (slot < 0) return;
    const bool is_v32 = args_.layout == CacheLayout::v32;
    uint8_t* page = args_.cache + slot / args_.page_size * args_.page_stride;
    const int64_t t = slot % args_.page_size;
    uint8_t* token = page + t * args_.token_stride;
    const char* kv = static_cast<const char*>(args_.kv) + i * args_.kv_stride * value_bytes(args_.dtype);
    uint32_t amax[sparse_mla::MAX_SCALES] = {};
    float scales[sparse_mla::MAX_SCALES], factors[sparse_mla::MAX_SCALES];
    kernel_.amax(kv, form_.coded, form_.tile, false, amax);
    for (int64_t s = 0; s < form_.tiles(); ++s) {
      scales[s] = scale_of(amax[s]);
      factors[s] = 1 / scales[s];
    }
    kernel_.encode[E4M3](rule_, kv, form_.coded, form_.tile, factors, 0, token);
    if (is_v32) {
      std::memcpy(token + form_.coded, scales, 16);
    } else {
      constexpr int64_t FRONT = 576, SCALES = 8;  // bytes a token
      uint8_t* codes = page + args_.page_size * FRONT + t * SCALES;
      for (int64_t s = 0; s < form_.tiles(); ++s) {
        uint32_t bits;
        std::memcpy(&bits, &scales[s], 4);
        codes[s] = uint8_t(bits >> 23);  // of NaN 255
      }
      codes[form_.tiles()] = 0;
    }
    uint8_t* kept = token + form_.coded + (is_v32 ? 16 : 0);
    store_kept(kv + form_.coded * value_bytes(args_.dtype), kept);
  }

 private:
  int64_t slot_of(int64_t i) const {
    if (!args_.slots) return i;
    i *= args_.slots_stride;
    return args_.slots_are_i32 ? static_cast<const int32_t*>(args_.slots)[i]
                               : static_cast<const int64_t*>(args_.slots)[i];
  }
  void store_kept(const char* from, uint8_t* to) const {
    uint16_t numbers[64];
    if (args_.dtype == Dtype::bf16)
      std::memcpy(numbers, from, sizeof numbers);
    else
      for (int64_t j = 0; j < form_.kept; ++j) {
        uint32_t bits;
        std::memcpy(&bits, from + j * 4, 4);
        const bool is_nan = (bits & 0x7FFFFFFF) > F32_INF;
        numbers[j] = uint16_t(is_nan ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
      }
    std::memcpy(to, numbers, sizeof numbers);
  }

  const CacheWriteArgs& args_;
  const Form& form_;
  const fp8_cast::Kernel& kernel_;
  fp8_cast::EncodeRule rule_{};
};

}  // namespace

void dsf_mla_cache_write(const Context* context, const CacheWriteArgs* args) {
  const Writer writer(*args);
  parallel_for(*context, args->tokens, [&](int64_t begin, int64_t end) {
    const IeeeSubnormals scope;
    for (int64_t i = begin; i < end; ++i) writer.write(i);
  });
}

int64_t dsf_mla_cache_numbers(const TokenStore* store) { return FORMS[int(store->layout)].numbers(); }

void dsf_mla_cache_read(const Context* context, const TokenStore* store, uint16_t* numbers) {
  const sparse_mla::Kernel& kernel = sparse_mla::pick(Dtype::bf16);
  const int64_t tokens = store->pages * store->page_size, columns = FORMS[int(store->layout)].numbers();
  parallel_for(*context, tokens, [&](int64_t begin, int64_t end) {
    const IeeeSubnormals scope;
    for (int64_t t = begin; t < end; ++t) {
      const char* token;
      const void* scales;
      sparse_mla::place_of(*store, t / store->page_size, t % store->page_size, &token, &scales);
      kernel.decode(store->layout, token, scales, numbers + t * columns);
    }
  });
}

}  // namespace dsf
