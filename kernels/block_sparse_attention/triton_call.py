"""A call of block_sparse_attention as its kernels take it: which form its mask has, and arguments that they share."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import triton_lists
from deepseek_fast.kernels.block_sparse_attention.triton_forward import BIAS_OF_KEYS, BIAS_OF_PAIRS, NO_BIAS
from deepseek_fast.kernels.block_sparse_attention.triton_walk import BLOCKS, GATHERED, WHOLE

_NO_LIMIT = -1
_FAR = 2**60  # tokens: from any token, and sums of two are numbers
_LARGEST_SIDE = 2**60  # of a window: 4 * 2^58, as checks.cc has it
_MOST_TOKENS = 2**31 - 2**16  # places of tokens are int32, and a tile may reach beyond the last
_FARTHEST_ROW = 2**23  # values between tokens, of which a tile has at most 128
_WIDEST = {2: 256, 4: 128}  # values of a head that a tile holds, by bytes of one; wider heads are taken in parts
_PART = {2: 128, 4: 64}
_LEAST_BLOCK = {2: 64, 4: 32}  # keys, by bytes of a value: smaller tiles of whole blocks lose to gathered ones


@dataclass
class Lists:
    """Entries [starts[list, row], ends[list, row]) of columns are a row's blocks."""

    starts: Tensor
    ends: Tensor
    columns: Tensor
    strides: tuple[int, int, int]  # of b, of a head of q, of a head of k
    shape: tuple[int, int, int]  # (B or 1, heads, rows)
    most: int  # entries that one list can have


@dataclass
class Call:
    q: Tensor
    k: Tensor
    v: Tensor
    lists: Lists | None
    bias: Tensor | None
    sink_logits: Tensor | None
    ends_q: Tensor | None
    ends_k: Tensor | None
    tables: Tensor | None
    bits: Tensor | None
    scale: float
    behind: int
    ahead: int
    sinks: int
    offset: int
    block_q: int
    block_k: int
    constants: dict[str, Any]
    together: bool  # heads of a group read the same lists

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """B, H, H_kv, S_q, S_k, D, D_v."""
        (B, H, S_q, D), (_, H_kv, S_k, D_v) = self.q.shape, self.v.shape
        return B, H, H_kv, S_q, S_k, D, D_v

    @property
    def sequences(self) -> int:
        return 0 if self.ends_q is None else self.ends_q.shape[0] - 1

    @property
    def is_heavy(self) -> bool:
        """Whether a tile needs registers for more than its scores."""
        return self.tables is not None or self.constants["BIAS"] == BIAS_OF_PAIRS.value

    def strides_of_bias(self) -> tuple[int, int, int]:
        return (0, 0, 0) if self.bias is None else _strides(self.bias, one_for_all=True)


def call_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Tensor | None = None,
    row_offsets: Tensor | None = None,
    columns: Tensor | None = None,
    token_bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    tables: Tensor | None = None,
    bits: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    left: int = _NO_LIMIT,
    right: int = _NO_LIMIT,
    sinks: int = 0,
    q_offset: int = 0,
    q_at_end: bool = False,
    enable_gqa: bool = True,
    block_q: int = 128,
    block_k: int = 128,
    key_stride: int = 1,
) -> Call:
    q, k, v = rows_of(q), rows_of(k), rows_of(v)
    (_, H, S_q, D), (_, H_kv, S_k, _) = q.shape, k.shape
    for arg, S in (("q", S_q), ("k", S_k)):
        if S > _MOST_TOKENS:
            raise RuntimeError(
                f"block_sparse_attention: {arg} must have at most {_MOST_TOKENS} tokens on a GPU; got {S}"
            )
    scale = D**-0.5 if scale is None else scale
    left, right = (_NO_LIMIT if side > _LARGEST_SIDE else side for side in (left, right))
    has_window = left != _NO_LIMIT or right != _NO_LIMIT
    ahead = 0 if is_causal else _FAR if right == _NO_LIMIT else right
    if tables is None:  # a block larger than all tokens is one of them all
        block_q, block_k = (min(block, _power(max(S, 16))) for block, S in ((block_q, S_q), (block_k, S_k)))
    bias = None if token_bias is None else rows_of(token_bias)
    kind = NO_BIAS if bias is None else BIAS_OF_PAIRS
    if bias is not None and bias.shape[1] == bias.shape[2] == 1:
        kind = BIAS_OF_KEYS
    constants = {
        "STRIDE": key_stride,
        "POSITIONS": is_causal or has_window,
        "CAUSAL": is_causal,
        "AT_END": q_at_end,
        "FOLD": bias is None and scale > 0,
        "BIAS": kind.value,
        "SINK": sink_logits is not None,
        "TABLES": tables is not None,
        "SEQUENCES": cu_seqlens_q is not None,
    }
    ends_q, ends_k = cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    call = Call(
        q, k, v, None, bias, None if sink_logits is None else sink_logits.contiguous(),
        None if ends_q is None else ends_q.contiguous(), None if ends_k is None else ends_k.contiguous(),
        None if tables is None else tables.contiguous(), None if bits is None else bits.view(torch.int32),
        scale, _FAR if left == _NO_LIMIT else left, ahead, min(sinks, S_k) if has_window else 0,
        0 if q_at_end else q_offset, block_q, block_k, constants, True,
    )  # fmt: skip
    if block_mask is not None:
        kept = block_mask if block_mask.dim() == 4 else block_mask[None, None]
        call.lists = _of_mask(call, kept)
    elif row_offsets is not None and columns is not None:
        offsets = row_offsets if row_offsets.dim() == 3 else row_offsets[None, None]
        offsets = offsets if offsets.stride(2) == 1 or offsets.shape[2] == 1 else offsets.contiguous()
        b, h = (0 if n == 1 else stride for n, stride in zip(offsets.shape[:2], offsets.stride(), strict=False))
        rows = offsets.shape[2] - 1
        strides = (b, *of_heads(offsets.shape[1], h, H, H_kv))
        shape = (offsets.shape[0], offsets.shape[1], rows)
        most = min(columns.shape[0], rows * -(-S_k // block_k))
        call.lists = Lists(offsets[:, :, :-1], offsets[:, :, 1:], columns.contiguous(), strides, shape, most)
    if call.lists is not None:
        call.together = call.lists.shape[1] != H or H == 1
    return call


def _of_mask(call: Call, kept: Tensor) -> Lists:
    _, H, H_kv, *_ = call.sizes
    heads, rows, columns = kept.shape[1:]
    starts, ends, listed = triton_lists.lists_of_mask(call, kept)
    strides = (0 if kept.shape[0] == 1 else heads * rows, *of_heads(heads, rows, H, H_kv))
    return Lists(starts, ends, listed, strides, (kept.shape[0], heads, rows), rows * columns)


def of_heads(heads: int, stride: int, H: int, H_kv: int) -> tuple[int, int]:
    """Strides of a head of q and of one of k, of a mask that has H, H_kv or 1 of them."""
    return (0, 0) if heads == 1 else (stride, 0) if heads == H else (0, stride)


def form_of_keys(call: Call, BLOCK_N: int) -> tuple[int, int]:
    """(FORM, BLOCK_N): a smaller tile where blocks of keys are no multiples of it."""
    if call.lists is None:
        return WHOLE.value, BLOCK_N
    divisor = math.gcd(call.block_k, BLOCK_N)
    if divisor >= min(_LEAST_BLOCK[call.q.element_size()], BLOCK_N):
        return BLOCKS.value, divisor
    return GATHERED.value, BLOCK_N


def width_of(values: int, bytes_each: int) -> int:
    """Values of a head that a tile holds: a power of two, at least what a product takes."""
    width = max(16, _power(values))
    return width if width <= _WIDEST[bytes_each] else _PART[bytes_each]


def rows_of(x: Tensor) -> Tensor:
    """The values of the last dimension side by side, tokens at a distance that fits a tile's int32: else a copy."""
    is_near = x.stride(-2) < _FARTHEST_ROW
    return x if is_near and (x.shape[-1] == 1 or x.stride(-1) == 1) else x.contiguous()


def _strides(x: Tensor, one_for_all: bool = False) -> tuple[int, int, int]:
    b, h, s = (0 if one_for_all and n == 1 else stride for n, stride in zip(x.shape[:3], x.stride()[:3], strict=True))
    return b, h, s


@functools.cache
def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
