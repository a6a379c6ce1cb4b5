"""nn.FusedConv2d, a convolution module whose packed weight follows the plain one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_fast import _conv, _linear
from deepseek_fast._packed_linear import PackedLinear
from deepseek_fast.kernels.fused_conv import meta
from deepseek_fast.kernels.fused_conv import op as fused_conv_op

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class FusedConv2d(PackedLinear):
    """nn.Conv2d (or nn.Conv1d) with what follows it fused in: max_pool(act(conv(x) + bias (+ residual)) (+ residual)).

    x: (N, C, H, W) or (C, H, W) of the weight's dtype, float32 or bfloat16; with a weight of three dimensions (N, C, L)
    or (C, L). The arguments are those of deepseek_fast.fused_conv. Trains like nn.Conv2d: where a gradient is asked
    for, the plain weight is used instead of the packed one. Compiled code cannot see that a weight has changed, so
    there only a weight with requires_grad=False is used packed.

    >>> layer = FusedConv2d.from_torch(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), activation="relu")
    >>> layer(torch.randn(1, 3, 224, 224)).shape
    torch.Size([1, 64, 112, 112])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        activation: str = "none",
        activation_params: Sequence[float] = (),
        residual_at: str = "before",
        max_pool: Any = None,
        algorithm: str = "direct",
    ) -> None:
        super().__init__()
        _linear.check_choice("FusedConv2d", "activation", activation, _conv.ACTIVATIONS)
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.activation, self.activation_params = activation, tuple(activation_params)
        self.residual_at, self.max_pool, self.algorithm = residual_at, max_pool, algorithm
        window, pool = _conv.windows("FusedConv2d", self.weight.shape, stride, padding, dilation, max_pool)
        params = _conv.numbers("FusedConv2d", "activation_params", activation_params)
        # What the packed operator takes, but for x, the packed weight, the bias and the residual.
        self._before = (list(self.weight.shape), *window, groups, activation, params)
        self._after = (residual_at, pool)
        self._is_channels_last = False
        self._repack()

    @classmethod
    def from_torch(
        cls, conv: nn.Conv1d | nn.Conv2d, bn: nn.BatchNorm1d | nn.BatchNorm2d | None = None, **options: Any
    ) -> "FusedConv2d":
        """The same layer as conv, sharing its parameters; with bn, conv and then bn.

        The running statistics of bn are folded in float64, into a weight of the layer's own.
        options: activation, activation_params, residual_at, max_pool and algorithm of fused_conv.
        """
        name = cls.__name__
        if not isinstance(conv, (nn.Conv1d, nn.Conv2d)):
            raise TypeError(f"{name}: conv must be an nn.Conv2d or nn.Conv1d; got {type(conv).__name__}")
        if conv.padding_mode != "zeros":
            raise ValueError(f"{name}: conv must have padding_mode 'zeros'; got {conv.padding_mode!r}")
        weight, bias = conv.weight, conv.bias
        if bn is not None:
            weight, bias = _folded(name, weight, bias, bn)
        return cls(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups, **options)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        needs_grad = _linear.needs_grad(x, self.weight, self.bias, residual)
        may_change = torch.compiler.is_compiling() and self.weight.requires_grad
        takes_plain = self._takes_plain() or torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu")
        if needs_grad or may_change or takes_plain:
            return fused_conv_op.fused_conv(
                x,
                self.weight,
                self.bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                activation=self.activation,
                activation_params=self.activation_params,
                residual=residual,
                residual_at=self.residual_at,
                max_pool=self.max_pool,
                algorithm=self.algorithm,
            )
        packed = self._current_packed()
        return fused_conv_op.call_packed(
            x, packed, self.bias, *self._before, residual, *self._after, self._is_channels_last
        )

    def _plain(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def _pack(self, *plain: Tensor) -> Tensor:
        (weight,) = plain
        self._is_channels_last = meta.is_channels_last(*meta.view4(weight, weight.dim() - 2), True)
        return fused_conv_op.PACK_OP(weight, self.groups, self.algorithm)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        words = {"weight": tuple(self.weight.shape), "bias": self.bias is not None, "stride": self.stride}
        words |= {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        words |= {"activation": self.activation, "max_pool": self.max_pool}
        return ", ".join(f"{name}={value!r}" for name, value in words.items())


def _folded(name: str, weight: Tensor, bias: Tensor | None, bn: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """weight * g / sqrt(v + eps) and (bias - mean) * g / sqrt(v + eps) + beta, each rounded once."""
    if not isinstance(bn, _NORMS):
        raise TypeError(f"{name}: bn must be an nn.BatchNorm2d or nn.BatchNorm1d; got {type(bn).__name__}")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(f"{name}: bn must have running statistics; got track_running_stats=False")
    if bn.num_features != weight.shape[0]:
        raise ValueError(f"{name}: bn must have {weight.shape[0]} features, conv's filters; got {bn.num_features}")
    with torch.no_grad():
        scale = 1 / (bn.running_var.double() + bn.eps).sqrt()
        scale = scale if bn.weight is None else scale * bn.weight.double()
        shift = -bn.running_mean.double() if bias is None else bias.double() - bn.running_mean.double()
        shift = shift * scale if bn.bias is None else shift * scale + bn.bias.double()
        folded = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
        return nn.Parameter(folded.to(weight.dtype)), nn.Parameter(shift.to(weight.dtype))
