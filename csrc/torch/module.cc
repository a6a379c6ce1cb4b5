// The namespace torch.ops.deepseek_fast; every room adds its own operators to it in kernels/<op>/torch.cc.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(deepseek_fast, library) { (void)library; }
