"""Modules that hold their packed weight, so that a call packs nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from deepseek_fast import _linear
from deepseek_fast.kernels.fused_matmul import op as fused_matmul_op
from deepseek_fast.kernels.int8_matmul import op as int8_matmul_op

__all__ = ["FusedLinear", "Int8Linear"]


class _PackedLinear(nn.Module):
    """Keeps `packed`, an opaque form of the weight: never saved, made again when the weight changes."""

    packed: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", None, persistent=False)
        self._packed_from: tuple[Any, ...] | None = None
        self.register_load_state_dict_post_hook(_repack_after_load)

    def _plain_weight(self) -> Tensor:
        raise NotImplementedError

    def _pack(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _repack(self) -> None:
        weight = self._plain_weight()
        self.packed = self._pack(weight.detach()) if weight.device.type == "cpu" else None
        self._packed_from = self._state_of(weight)

    @staticmethod
    def _state_of(weight: Tensor) -> tuple[Any, ...]:
        return id(weight), None if weight.is_inference() else weight._version, weight.data_ptr(), weight.dtype

    def _current_packed(self) -> Tensor:
        """Notices assignment, in-place change and load_state_dict; not `weight.data.mul_()`, which torch hides."""
        weight = self._plain_weight()
        # Compiled code cannot see a tensor's version: it takes what the last eager moment packed.
        if not torch.compiler.is_compiling() and self._state_of(weight) != self._packed_from:
            self._repack()
        return self._pack(weight) if self.packed is None else self.packed

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.packed = None  # not fn's to move or cast: packed anew from what fn makes of the weight
        module = super()._apply(fn, recurse)
        self._repack()
        return module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": {**self._buffers, "packed": None}, "_packed_from": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._repack()


def _repack_after_load(module: Any, incompatible_keys: Any) -> None:
    module._repack()


def _check_linear(name: str, linear: nn.Module) -> None:
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name}: linear must be an nn.Linear; got {type(linear).__name__}")


class FusedLinear(_PackedLinear):
    """nn.Linear with the activation fused in: act(x @ weight.T + bias) + residual.

    x: (..., in_features) of the weight's dtype, float32 or bfloat16; returns (..., out_features).
    Trains like nn.Linear: where a gradient is asked for, the plain weight is used instead of the packed one. Compiled
    code cannot see that a weight has changed, so there only a weight with requires_grad=False is used packed.

    >>> layer = FusedLinear.from_float(nn.Linear(384, 1536), activation="gelu")
    >>> layer(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1536])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none") -> None:
        super().__init__()
        _linear.check_choice("FusedLinear", "activation", activation, _linear.ACTIVATIONS)
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.activation = activation
        self.out_features, self.in_features = weight.shape
        self._repack()

    @classmethod
    def from_float(cls, linear: nn.Linear, activation: str = "none") -> "FusedLinear":
        """The same layer as linear, sharing its parameters."""
        _check_linear(cls.__name__, linear)
        return cls(linear.weight, linear.bias, activation=activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        may_change = torch.compiler.is_compiling() and self.weight.requires_grad
        if needs_grad or may_change or torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"):
            return fused_matmul_op.fused_matmul(
                x, self.weight, self.bias, activation=self.activation, residual=residual
            )
        return fused_matmul_op.fused_matmul_packed(
            x,
            self._current_packed(),
            self.bias,
            out_features=self.out_features,
            activation=self.activation,
            residual=residual,
        )

    def _plain_weight(self) -> Tensor:
        return self.weight

    def _pack(self, weight: Tensor) -> Tensor:
        return fused_matmul_op.PACK_OP(weight)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}"
        )


class Int8Linear(_PackedLinear):
    """nn.Linear with an int8 weight and a scale per output channel; activations quantized per row, or left as they are.

    x: (..., in_features) float32 or bfloat16; returns (..., out_features) of x's dtype. The state dict holds q, scale
    and bias; the module has no gradient.

    >>> layer = Int8Linear.from_float(nn.Linear(384, 1536), activation="gelu")
    >>> layer(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1536])
    """

    q: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        q: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        activations: str = "int8",
    ) -> None:
        super().__init__()
        _linear.check_choice("Int8Linear", "activation", activation, _linear.ACTIVATIONS)
        _linear.check_choice("Int8Linear", "activations", activations, int8_matmul_op.SCHEMES)
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.activation = activation
        self.activations = activations
        self.out_features, self.in_features = q.shape
        self._repack()

    @classmethod
    def from_float(cls, linear: nn.Linear, activation: str = "none", activations: str = "int8") -> "Int8Linear":
        """linear with its weight quantized by int8_quantize_weight; bias as it is."""
        _check_linear(cls.__name__, linear)
        q, scale = int8_matmul_op.int8_quantize_weight(linear.weight)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(q, scale, bias, activation=activation, activations=activations)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        bias = self.bias if self.bias is None or self.bias.dtype == x.dtype else self.bias.to(x.dtype)
        options = {"activation": self.activation, "residual": residual, "activations": self.activations}
        if torch.compiler.is_exporting():
            return int8_matmul_op.int8_matmul(x, self.q, self.scale, bias, **options)  # type: ignore[arg-type]
        return int8_matmul_op.int8_matmul_packed(
            x,
            self._current_packed(),
            self.scale,
            bias,
            out_features=self.out_features,
            **options,  # type: ignore[arg-type]
        )

    def _plain_weight(self) -> Tensor:
        return self.q

    def _pack(self, weight: Tensor) -> Tensor:
        return int8_matmul_op.PACK_OP(weight)  # type: ignore[no-any-return]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scale = self.scale
        module = super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:  # .bfloat16() and .half() cast floating buffers; the scale stays exact
            self.scale = scale.to(self.scale.device)
        return module

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}, activations={self.activations!r}"
        )
