"""Swapping a module's nn.Linear for quantized ones."""

import copy

from torch import nn

from deepseek_fast.nn import Int8Linear


def quantize_linears(module: nn.Module, *, activations: str = "int8", inplace: bool = False) -> nn.Module:
    """module with every nn.Linear in it replaced by nn.Int8Linear; the rest is a copy, or module itself with inplace.

    activations: "int8" (W8A8, a scale per activation row) or "float" (W8A16).
    Linears used in several places stay shared; subclasses of nn.Linear are left alone, their forward may differ.
    Returns the module; a bare nn.Linear is returned quantized, never changed. Raises ValueError for other activations.

    >>> model = quantize_linears(nn.Sequential(nn.Linear(384, 1536), nn.GELU()))
    >>> model(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1536])
    """
    quantized = {
        id(part): Int8Linear.from_float(part, activations=activations)
        for part in module.modules()
        if type(part) is nn.Linear
    }
    if not inplace or type(module) is nn.Linear:
        # deepcopy takes what the memo has in place of what it meets: the float weights are never copied.
        module = copy.deepcopy(module, dict(quantized))
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if id(child) in quantized:
                parent._modules[name] = quantized[id(child)]
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # torch's fused path of this layer would read its linears' weights
    return module
