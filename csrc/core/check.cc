#include "csrc/core/check.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace dsf {
namespace {
bool fail(Problem* problem, Fault fault, const char* op, const char* arg, const char* rule, const char* got) {
  problem->fault = fault;
  std::snprintf(problem->sentence, sizeof problem->sentence, "%s: %s must %s; got %s", op, arg, rule, got);
  return false;
}
}  // namespace

bool value_error(Problem* problem, const char* op, const char* arg, const char* rule, const char* got) {
  return fail(problem, Fault::value, op, arg, rule, got);
}

bool type_error(Problem* problem, const char* op, const char* arg, const char* rule, const char* got) {
  return fail(problem, Fault::type, op, arg, rule, got);
}

void shape_text(const TensorView& view, char* text, int64_t text_bytes) {
  int64_t used = std::snprintf(text, size_t(text_bytes), "(");
  for (int64_t d = 0; d < view.ndim; ++d) {
    const bool last = d + 1 == view.ndim;
    const char* separator = last ? (view.ndim == 1 ? "," : "") : ", ";
    if (text_bytes - used < 32) {
      used += std::snprintf(text + used, size_t(text_bytes - used), "...");
      break;
    }
    used += std::snprintf(text + used, size_t(text_bytes - used), "%lld%s", static_cast<long long>(view.sizes[d]),
                          separator);
  }
  std::snprintf(text + used, size_t(text_bytes - used), ")");
}

bool shape_error(Problem* problem, const char* op, const char* arg, const char* rule, const TensorView& got) {
  char text[160] = "shape ";
  shape_text(got, text + 6, sizeof text - 6);
  return value_error(problem, op, arg, rule, text);
}

bool dtype_error(Problem* problem, const char* op, const char* arg, const char* rule, const TensorView& got) {
  char text[80];
  std::snprintf(text, sizeof text, "dtype %s", got.dtype_name);
  return type_error(problem, op, arg, rule, text);
}

int32_t chosen(const char* op, const char* arg, const char* const* names, int32_t count, const char* text,
               Problem* problem) {
  char rule[200] = "be one of ", got[80];
  for (int32_t i = 0; i < count; ++i) {
    if (std::strcmp(text, names[i]) == 0) return i;
    const size_t used = std::strlen(rule);
    std::snprintf(rule + used, sizeof rule - used, "%s%s", i == 0 ? "" : ", ", names[i]);
  }
  std::snprintf(got, sizeof got, "'%.60s'", text);
  value_error(problem, op, arg, rule, got);
  return -1;
}

int32_t dsf_fits_memory(int64_t bytes) {
  constexpr int64_t SMALL = int64_t{1} << 30;
  if (bytes <= SMALL) return bytes >= 0;
  // The volatile keeps the pair from being optimized away.
  void* volatile memory = std::malloc(size_t(bytes));
  std::free(memory);
  return memory != nullptr;
}

bool checked_mul(int64_t a, int64_t b, int64_t* product) {
  return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, product);
}

bool fold_rows(const TensorView& view, int64_t* rows, int64_t* columns) {
  if (view.ndim < 1) return false;
  *columns = view.sizes[view.ndim - 1];
  *rows = 1;
  bool empty = false;
  for (int64_t d = 0; d + 1 < view.ndim; ++d) empty = empty || view.sizes[d] == 0;
  if (empty) {
    *rows = 0;
    return true;
  }
  for (int64_t d = 0; d + 1 < view.ndim; ++d)
    if (!checked_mul(*rows, view.sizes[d], rows)) return false;
  return true;
}

int64_t dsf_row_stride(const TensorView* view) {
  const int64_t ndim = view->ndim;
  if (ndim < 1) return -1;
  const int64_t columns = view->sizes[ndim - 1];
  if (!view->strides) return columns;
  if (columns > 1 && view->strides[ndim - 1] != 1) return -1;
  // Walking outwards, every dimension of more than one entry must step exactly over the ones inside it.
  int64_t stride = columns, rows = 1;
  for (int64_t d = ndim - 2; d >= 0; --d) {
    if (view->sizes[d] == 0) return columns;
    if (view->sizes[d] == 1) continue;
    if (rows == 1)
      stride = view->strides[d];
    else if (view->strides[d] != stride * rows)
      return -1;
    rows *= view->sizes[d];
  }
  return stride < 0 ? -1 : stride;
}

}  // namespace dsf
