// A room's variants.inc as Python sees it.
#pragma once
#include "csrc/core/isa.h"
#include "csrc/python/adapter.h"

namespace dsf::python_door {

// [("avx512", "fused_matmul_f32_nt_avx512"), ...], best first.
inline py::list variants_of(int32_t (*variant)(int32_t i, const char** name)) {
  py::list rows;
  const char* name = nullptr;
  for (int32_t i = 0, isa; (isa = variant(i, &name)) >= 0; ++i) rows.append(py::make_tuple(dsf_isa_name(isa), name));
  return rows;
}

}  // namespace dsf::python_door
