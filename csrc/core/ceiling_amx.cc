// Contract: ceiling.h. Products of two whole tiles, TDPBF16PS and TDPBSSD, into four tiles of sums in turn.
#include "csrc/core/amx.h"
#include "csrc/core/ceiling.h"

namespace dsf {
namespace {

template <class Dot>
void turns(int64_t rounds, const Dot& dot) {
  AmxConfig config;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = AMX_ROWS;
    config.row_bytes[t] = AMX_ROW_BYTES;
  }
  amx_configure(config);  // all tiles are zero
  for (int64_t turn = 0; turn < rounds / CEILING_AMX_ROUNDS; ++turn)
    for (int64_t i = 0; i < CEILING_UNROLL; i += 4) dot();
  amx_release();
}

}  // namespace

void ceiling_bf16_dot_amx(int64_t rounds) {
  turns(rounds, [] {
    amx_dot_bf16<0, 4, 6>();
    amx_dot_bf16<1, 4, 7>();
    amx_dot_bf16<2, 5, 6>();
    amx_dot_bf16<3, 5, 7>();
  });
}

void ceiling_int8_dot_amx(int64_t rounds) {
  turns(rounds, [] {
    amx_dot_s8<0, 4, 6>();
    amx_dot_s8<1, 4, 7>();
    amx_dot_s8<2, 5, 6>();
    amx_dot_s8<3, 5, 7>();
  });
}

}  // namespace dsf
