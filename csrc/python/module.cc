// deepseek_fast._native: the NumPy doors of every room, ISA query and cap, the kernels of an op, the machine's
// ceilings.
#include <pybind11/stl.h>

#include "csrc/core/ceiling.h"
#include "csrc/core/isa.h"
#include "csrc/python/adapter.h"

namespace dsf::python_door {

#define DSF_ROOM(op) void bind_##op(py::module_& module, py::dict& variants);
#include "rooms.inc"
#undef DSF_ROOM

namespace {

std::string set_max_isa(const std::string& name) {
  const int32_t isa = dsf_isa_from_name(name.c_str());
  if (isa < 0) {
    std::string names;
    for (int32_t i = 0; i < NUM_ISA; ++i) names += (i ? ", " : "") + std::string(dsf_isa_name(i));
    throw py::value_error("set_max_isa: isa must be one of " + names + "; got '" + name + "'");
  }
  return dsf_isa_name(dsf_set_max_isa(isa));
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int32_t isa = 0; isa < NUM_ISA; ++isa)
    if (dsf_isa_supported(isa)) names.emplace_back(dsf_isa_name(isa));
  return names;
}

// {"fma_f32": (operations/s, instruction), ...}
py::dict ceiling_rates(double seconds) {
  py::dict rates;
  for (int32_t i = 0; i < NUM_CEILINGS; ++i)
    rates[dsf_ceiling_name(i)] = py::make_tuple(dsf_ceiling_rate(i, seconds), dsf_ceiling_instruction(i));
  return rates;
}

double ceiling_read(int64_t bytes, double seconds) {
  const Memory data("ceiling_read", bytes);
  std::fill_n(data.data(), bytes, char{1});
  return dsf_ceiling_read(data.data(), bytes, seconds);
}

double ceiling_copy(int64_t bytes, double seconds) {
  const Memory source("ceiling_copy", bytes), target("ceiling_copy", bytes);
  std::fill_n(source.data(), bytes, char{1});
  std::fill_n(target.data(), bytes, char{2});
  return dsf_ceiling_copy(target.data(), source.data(), bytes, seconds);
}

}  // namespace
}  // namespace dsf::python_door

PYBIND11_MODULE(_native, module, pybind11::mod_gil_not_used()) {
  using namespace dsf::python_door;
  module.def("version", [] { return std::string(dsf::dsf_version()); });
  module.def("isa", [] { return std::string(dsf::dsf_isa_name(dsf::dsf_max_isa())); });
  module.def("set_max_isa", &set_max_isa, py::arg("isa"));
  module.def("supported_isas", &supported_isas);
  module.def("ceiling_rates", &ceiling_rates, py::arg("seconds") = 0.1);
  module.def("ceiling_read", &ceiling_read, py::arg("bytes"), py::arg("seconds") = 0.1);
  module.def("ceiling_copy", &ceiling_copy, py::arg("bytes"), py::arg("seconds") = 0.1);
  py::dict variants;
#define DSF_ROOM(op) bind_##op(module, variants);
#include "rooms.inc"
#undef DSF_ROOM
  module.def("variants", [variants](const std::string& op) { return variants[py::str(op)]; }, py::arg("op"));
}
