"""What the modules of deepseek_fast.nn are made of: a packed weight that follows the plain one."""

from typing import Any

import torch
from torch import Tensor, nn

from deepseek_fast._linear import ACTIVATIONS, check_choice


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


class PackedLinear(nn.Module):
    """Keeps `packed`, an opaque form of the weight: never saved, made again when the weight changes."""

    EXACT: tuple[
        str, ...
    ] = ()  # tensors whose dtype stays what it is: .bfloat16() and .half() cast all floating buffers
    packed: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", None, persistent=False)
        self._packed_from: tuple[Any, ...] | None = None
        self.register_load_state_dict_post_hook(_repack_after_load)

    def _plain(self) -> tuple[Tensor, ...]:
        """What is packed: the weight, then perhaps what turns it into numbers."""
        raise NotImplementedError

    def _pack(self, *plain: Tensor) -> Tensor:
        raise NotImplementedError

    def _takes_plain(self) -> bool:
        """A GPU's kernels take the plain weight; what is packed are panels of the CPU's."""
        return on_gpu(self._plain()[0])

    def _repack(self) -> None:
        plain = self._plain()
        on_cpu = all(tensor.device.type == "cpu" and not on_gpu(tensor) for tensor in plain)
        self.packed = self._pack(*(tensor.detach() for tensor in plain)) if on_cpu else None
        self._packed_from = self._state_of(*plain)

    @staticmethod
    def _state_of(*plain: Tensor) -> tuple[Any, ...]:
        return tuple((id(t), None if t.is_inference() else t._version, t.data_ptr(), t.dtype) for t in plain)

    def _current_packed(self) -> Tensor:
        """Notices assignment, in-place change and load_state_dict; not `weight.data.mul_()`, which torch hides."""
        plain = self._plain()
        # Compiled code cannot see a tensor's version: it takes what the last eager moment packed.
        if not torch.compiler.is_compiling() and self._state_of(*plain) != self._packed_from:
            self._repack()
        return self._pack(*plain) if self.packed is None else self.packed

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.packed = None  # not fn's to move or cast: packed anew from what fn makes of the weight
        exact = [getattr(self, name) for name in self.EXACT]
        module = super()._apply(_without_cast(fn, *exact) if exact else fn, recurse)
        self._repack()
        return module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": {**self._buffers, "packed": None}, "_packed_from": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._repack()


class QuantizedLinear(PackedLinear):
    """What the modules with a quantized weight share: buffers, a bias in x's dtype, the words of repr."""

    bias: Tensor | None
    SCHEME: str  # the attribute that says what x becomes, an argument of the op

    def _hold(self, activation: str, gated: bool, **tensors: Tensor | None) -> None:
        check_choice(type(self).__name__, "activation", activation, ACTIVATIONS)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.activation, self.gated = activation, gated

    def _bias_like(self, x: Tensor) -> Tensor | None:
        return self.bias if self.bias is None or self.bias.dtype == x.dtype else self.bias.to(x.dtype)

    def _options(self, residual: Tensor | None) -> dict[str, Any]:
        """Keyword arguments of the op, packed or not."""
        scheme = {self.SCHEME: getattr(self, self.SCHEME)}
        return {"activation": self.activation, "residual": residual, "gated": self.gated, **scheme}

    def _described(self, **more: Any) -> str:
        words = {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}
        words |= more | {name: value for name, value in self._options(None).items() if name != "residual"}
        return ", ".join(f"{name}={value!r}" for name, value in words.items())


def _repack_after_load(module: Any, incompatible_keys: Any) -> None:
    module._repack()


def check_linear(name: str, linear: nn.Module) -> None:
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name}: linear must be an nn.Linear; got {type(linear).__name__}")


def _without_cast(fn: Any, *exact: Tensor) -> Any:
    """fn, which moves or casts a tensor, but only moves these."""
    kept = {id(tensor) for tensor in exact}

    def moved(tensor: Tensor) -> Tensor:
        made: Tensor = fn(tensor)
        return tensor.to(made.device) if id(tensor) in kept and made.dtype != tensor.dtype else made

    return moved
