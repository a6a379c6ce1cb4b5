// The level's tile of bf16, and what a kernel holds while it runs one.
#pragma once
#include "csrc/gemm/tile.h"
#ifdef __AMX_BF16__
#include "csrc/gemm/tile_amx.h"
#endif

namespace dsf {
namespace {

#ifdef __AMX_BF16__
using DotTileBf16 = AmxTileBf16<Vec>;
using DotScope = AmxScope;
#else
using DotTileBf16 = TileBf16<Vec>;
struct DotScope {
  DotScope() {}  // not trivial: an unused variable of it is no warning
};
#endif

}  // namespace
}  // namespace dsf
