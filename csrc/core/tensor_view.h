// A door's tensor, as the checks and kernels see it. Owns nothing.
#pragma once
#include <cstdint>

namespace dsf {

enum class Dtype : int32_t {
  f32 = 0,
  bf16 = 1,
  i8 = 2,
  u8 = 3,
  f8e4m3 = 4,
  f8e5m2 = 5,
  f8e8m0 = 6,
  u4 = 7,
  f16 = 8,
  f8e4m3fnuz = 9,
  f8e5m2fnuz = 10,
  f4e2m1x2 = 11,  // two values a byte, the first in the low half
  i32 = 12,
  i64 = 13,
  other = 14
};

struct TensorView {
  void* data;
  Dtype dtype;
  const char* dtype_name;  // as the door's users write it, for error sentences: "float32", "int64"
  int64_t ndim;
  const int64_t* sizes;    // ndim values
  const int64_t* strides;  // ndim values, in elements; null: contiguous
};

}  // namespace dsf
