"""Modules that hold their packed weight, so that a call packs nothing; on a GPU the plain one is as good."""

import torch
from torch import Tensor, nn

from deepseek_fast import _linear
from deepseek_fast._fused_conv2d import FusedConv2d
from deepseek_fast._packed_linear import PackedLinear, QuantizedLinear, check_linear
from deepseek_fast.kernels.fp8_matmul import op as fp8_matmul_op
from deepseek_fast.kernels.fused_matmul import op as fused_matmul_op
from deepseek_fast.kernels.int4_matmul import op as int4_matmul_op
from deepseek_fast.kernels.int8_matmul import op as int8_matmul_op

__all__ = ["Fp8Linear", "FusedConv2d", "FusedLinear", "Int4Linear", "Int8Linear", "gate_and_up"]


def gate_and_up(gate: nn.Linear, up: nn.Linear) -> nn.Linear:
    """One nn.Linear with the outputs of gate, then those of up: what `from_float(..., gated=True)` takes.

    >>> both = gate_and_up(nn.Linear(384, 1024), nn.Linear(384, 1024))
    >>> FusedLinear.from_float(both, activation="silu", gated=True)(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1024])
    """
    check_linear("gate_and_up", gate)
    check_linear("gate_and_up", up)
    if gate.weight.shape != up.weight.shape or (gate.bias is None) != (up.bias is None):
        got = f"{tuple(up.weight.shape)} and bias={up.bias is not None}"
        rule = f"have gate's shape {tuple(gate.weight.shape)} and bias={gate.bias is not None}"
        raise ValueError(f"gate_and_up: up must {rule}; got {got}")
    both = nn.Linear(gate.in_features, 2 * gate.out_features, bias=gate.bias is not None, device="meta")
    both.weight = nn.Parameter(torch.cat([gate.weight.detach(), up.weight.detach()]))
    if gate.bias is not None:
        both.bias = nn.Parameter(torch.cat([gate.bias.detach(), up.bias.detach()]))
    return both


class FusedLinear(PackedLinear):
    """nn.Linear with the activation fused in: act(x @ weight.T + bias) + residual.

    x: (..., in_features) of the weight's dtype, float32, bfloat16 or float16; returns (..., out_features).
    Trains like nn.Linear: where a gradient is asked for, the plain weight is used instead of the packed one. Compiled
    code cannot see that a weight has changed, so there only a weight with requires_grad=False is used packed.

    >>> layer = FusedLinear.from_float(nn.Linear(384, 1536), activation="gelu")
    >>> layer(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1536])
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none", gated: bool = False
    ) -> None:
        super().__init__()
        _linear.check_choice("FusedLinear", "activation", activation, _linear.ACTIVATIONS)
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.activation, self.gated = activation, gated
        self.out_features, self.in_features = _linear.out_features_of(weight.shape[0], gated), weight.shape[1]
        self._repack()

    @classmethod
    def from_float(cls, linear: nn.Linear, activation: str = "none", *, gated: bool = False) -> "FusedLinear":
        """The same layer as linear, sharing its parameters; gated: linear's outputs are the gate's, then the others."""
        check_linear(cls.__name__, linear)
        return cls(linear.weight, linear.bias, activation=activation, gated=gated)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        may_change = torch.compiler.is_compiling() and self.weight.requires_grad
        takes_plain = self._takes_plain() or torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu")
        if needs_grad or may_change or takes_plain:
            return fused_matmul_op.fused_matmul(
                x, self.weight, self.bias, activation=self.activation, residual=residual, gated=self.gated
            )
        return fused_matmul_op.fused_matmul_packed(
            x,
            self._current_packed(),
            self.bias,
            out_features=self.out_features,
            activation=self.activation,
            residual=residual,
            gated=self.gated,
        )

    def _plain(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def _pack(self, *plain: Tensor) -> Tensor:
        return fused_matmul_op.PACK_OP(*plain, gated=self.gated)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}, gated={self.gated}"
        )


class Fp8Linear(QuantizedLinear):
    """nn.Linear with an FP8 weight and a scale per block, as DeepSeek's checkpoints hold them: a byte a value.

    x: (..., in_features) float32, bfloat16 or float16; returns (..., out_features) of x's dtype. The state dict holds
    weight, scale and bias, whose dtypes .to(), .bfloat16() and .half() leave alone; the module has no gradient.

    >>> layer = Fp8Linear.from_quantized(torch.randn(256, 384).to(torch.float8_e4m3fn), torch.ones(2, 3))
    >>> layer(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 256])
    """

    weight: Tensor
    scale: Tensor
    EXACT = ("weight", "scale")
    SCHEME = "activations"

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        block: tuple[int, int] = (128, 128),
        activation: str = "none",
        activations: str = "float",
        gated: bool = False,
    ) -> None:
        super().__init__()
        _linear.check_choice("Fp8Linear", "activations", activations, fp8_matmul_op.SCHEMES)
        self._hold(activation, gated, weight=weight, scale=scale, bias=bias)
        self.block = fp8_matmul_op.as_block("Fp8Linear", block)
        self.activations = activations
        self._repack()
        self.out_features, self.in_features = _linear.out_features_of(weight.shape[0], gated), weight.shape[1]

    @classmethod
    def from_quantized(
        cls,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        block: tuple[int, int] = (128, 128),
        activation: str = "none",
        activations: str = "float",
        gated: bool = False,
    ) -> "Fp8Linear":
        """A layer of a checkpoint's weight: (N, K) float8, scale: one value a block, as fp8_matmul takes them."""
        return cls(weight, scale, bias, block=block, activation=activation, activations=activations, gated=gated)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        *,
        block: tuple[int, int] = (128, 128),
        activation: str = "none",
        activations: str = "float",
        dtype: torch.dtype = torch.float8_e4m3fn,
        gated: bool = False,
    ) -> "Fp8Linear":
        """linear with its weight quantized by fp8_quantize_weight; bias as it is."""
        check_linear(cls.__name__, linear)
        weight, scale = fp8_matmul_op.fp8_quantize_weight(linear.weight, block=block, dtype=dtype)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(weight, scale, bias, block=block, activation=activation, activations=activations, gated=gated)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        bias, options = self._bias_like(x), self._options(residual)
        if self._takes_plain() or torch.compiler.is_exporting():
            return fp8_matmul_op.fp8_matmul(x, self.weight, self.scale, bias, block=self.block, **options)
        packed = self._current_packed()
        return fp8_matmul_op.fp8_matmul_packed(x, packed, bias, out_features=self.out_features, **options)

    def _plain(self) -> tuple[Tensor, ...]:
        return self.weight, self.scale

    def _pack(self, *plain: Tensor) -> Tensor:
        weight, scale = plain
        return fp8_matmul_op.pack(weight, scale, self.block, gated=self.gated)

    def extra_repr(self) -> str:
        return self._described(block=self.block)


class Int4Linear(QuantizedLinear):
    """nn.Linear with a 4-bit weight: two values a byte, a scale and perhaps a zero point per row and group of columns.

    x: (..., in_features) float32, bfloat16 or float16; returns (..., out_features) of x's dtype. The state dict holds
    q, scale, zeros where there are some, and bias; the scale stays float32. compute: "int8" quantizes x by row and
    group, "float" leaves it as it is. The module has no gradient.

    >>> layer = Int4Linear.from_float(nn.Linear(384, 1536), group_size=32, activation="gelu")
    >>> layer(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1536])
    """

    q: Tensor
    scale: Tensor
    zeros: Tensor | None
    EXACT = ("scale",)
    SCHEME = "compute"

    def __init__(
        self,
        q: Tensor,
        scale: Tensor,
        zeros: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        group_size: int = 32,
        in_features: int = -1,
        activation: str = "none",
        compute: str = "int8",
        gated: bool = False,
    ) -> None:
        super().__init__()
        _linear.check_choice("Int4Linear", "compute", compute, int4_matmul_op.COMPUTE)
        self._hold(activation, gated, q=q, scale=scale, zeros=zeros, bias=bias)
        self.group_size = group_size
        self.in_features = in_features
        self.compute = compute
        self._repack()
        self.out_features = _linear.out_features_of(q.shape[0], gated)
        self.in_features = 2 * q.shape[1] if in_features < 0 else in_features

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        *,
        group_size: int = 32,
        symmetric: bool = True,
        compute: str = "int8",
        activation: str = "none",
        gated: bool = False,
    ) -> "Int4Linear":
        """linear with its weight quantized by int4_quantize_weight; bias as it is."""
        check_linear(cls.__name__, linear)
        weight = int4_matmul_op.int4_quantize_weight(linear.weight, group_size=group_size, symmetric=symmetric)
        q, scale, zeros = weight if len(weight) == 3 else (*weight, None)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        sizes = {"group_size": group_size, "in_features": linear.in_features}
        return cls(q, scale, zeros, bias, **sizes, compute=compute, activation=activation, gated=gated)  # type: ignore[arg-type]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        bias, options = self._bias_like(x), self._options(residual)
        if self._takes_plain() or torch.compiler.is_exporting():
            sizes = {"group_size": self.group_size, "in_features": self.in_features}
            return int4_matmul_op.int4_matmul(x, self.q, self.scale, self.zeros, bias, **sizes, **options)
        packed = self._current_packed()
        return int4_matmul_op.int4_matmul_packed(x, packed, bias, out_features=self.out_features, **options)

    def _plain(self) -> tuple[Tensor, ...]:
        return (self.q, self.scale) if self.zeros is None else (self.q, self.scale, self.zeros)

    def _pack(self, *plain: Tensor) -> Tensor:
        sizes = {"group_size": self.group_size, "in_features": self.in_features}
        return int4_matmul_op.int4_matmul_pack(*plain, **sizes, gated=self.gated)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return self._described(group_size=self.group_size, zeros=self.zeros is not None)


class Int8Linear(QuantizedLinear):
    """nn.Linear with an int8 weight and a scale per output channel; activations quantized per row, or left as they are.

    x: (..., in_features) float32, bfloat16 or float16; returns (..., out_features) of x's dtype. The state dict holds
    q, scale and bias; the module has no gradient.

    >>> layer = Int8Linear.from_float(nn.Linear(384, 1536), activation="gelu")
    >>> layer(torch.randn(8, 64, 384)).shape
    torch.Size([8, 64, 1536])
    """

    q: Tensor
    scale: Tensor
    EXACT = ("scale",)
    SCHEME = "activations"

    def __init__(
        self,
        q: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        activations: str = "int8",
        gated: bool = False,
    ) -> None:
        super().__init__()
        _linear.check_choice("Int8Linear", "activations", activations, int8_matmul_op.SCHEMES)
        self._hold(activation, gated, q=q, scale=scale, bias=bias)
        self.activations = activations
        self.out_features, self.in_features = _linear.out_features_of(q.shape[0], gated), q.shape[1]
        self._repack()

    @classmethod
    def from_float(
        cls, linear: nn.Linear, activation: str = "none", activations: str = "int8", *, gated: bool = False
    ) -> "Int8Linear":
        """linear with its weight quantized by int8_quantize_weight; bias as it is."""
        check_linear(cls.__name__, linear)
        q, scale = int8_matmul_op.int8_quantize_weight(linear.weight)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(q, scale, bias, activation=activation, activations=activations, gated=gated)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        bias, options = self._bias_like(x), self._options(residual)
        if self._takes_plain() or torch.compiler.is_exporting():
            return int8_matmul_op.int8_matmul(x, self.q, self.scale, bias, **options)
        return int8_matmul_op.int8_matmul_packed(
            x,
            self._current_packed(),
            self.scale,
            bias,
            out_features=self.out_features,
            **options,
        )

    def _plain(self) -> tuple[Tensor, ...]:
        return (self.q,)

    def _pack(self, *plain: Tensor) -> Tensor:
        return int8_matmul_op.PACK_OP(*plain, gated=self.gated)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return self._described()
