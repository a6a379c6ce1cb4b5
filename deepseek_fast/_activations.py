"""The names of the activations, as csrc/gemm/linear.h lists them; no torch is needed to read them."""

ACTIVATIONS = ("none", "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh")
