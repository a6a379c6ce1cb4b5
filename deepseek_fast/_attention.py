"""The arguments of block_sparse_attention as the compiled operators take them, for every door; needs no torch."""

from typing import Any, NoReturn

from deepseek_fast._conv import check_integer, check_number

BLOCK = 128  # tokens of a block where block_size is not given
NO_LIMIT = -1
_WINDOW = "be None, a positive integer, or (left, right) of integers, each None or -1 where there is no limit"
_BLOCK_SIZE = "be an integer, or (queries, keys)"


def options(
    op: str,
    scale: Any,
    is_causal: Any,
    window: Any,
    sinks: Any,
    enable_gqa: Any,
    block_size: Any,
    q_offset: Any,
) -> tuple[Any, ...]:
    """(scale, is_causal, left, right, sinks, q_offset, q_at_end, enable_gqa, block_q, block_k)."""
    if scale is not None:
        check_number(op, "scale", scale)
    for arg, value in (("is_causal", is_causal), ("enable_gqa", enable_gqa)):
        if not isinstance(value, bool):
            _refuse(op, arg, "be True or False", value, TypeError)
    left, right = (NO_LIMIT, NO_LIMIT) if window is None else window_sides(op, window)
    if sinks is None:
        sinks = 0
    else:
        check_integer(op, "sinks", sinks)
    at_end = isinstance(q_offset, str)
    if at_end and q_offset != "end":
        _refuse(op, "q_offset", "be an integer or 'end'", q_offset)
    if not at_end:
        check_integer(op, "q_offset", q_offset)
    block_q, block_k = block_pair(op, block_size)
    return scale, is_causal, left, right, sinks, 0 if at_end else q_offset, at_end, enable_gqa, block_q, block_k


def pattern(op: str, S_q: Any, S_k: Any, block_size: Any, is_causal: Any, q_offset: Any) -> tuple[Any, ...]:
    """(S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end) of a builder of block masks."""
    check_integers(op, S_q=S_q, S_k=S_k)
    place = options(op, None, is_causal, None, None, True, block_size, q_offset)
    return S_q, S_k, *place[-2:], is_causal, *place[5:7]


def window_and_sinks(op: str, window: Any, sinks: Any) -> tuple[Any, Any, Any]:
    """(left, right, sinks)"""
    left, right = (NO_LIMIT, NO_LIMIT) if window is None else window_sides(op, window)
    if sinks is not None:
        check_integer(op, "sinks", sinks)
    return left, right, 0 if sinks is None else sinks


def check_integers(op: str, **numbers: Any) -> None:
    for arg, value in numbers.items():
        check_integer(op, arg, value)


def window_sides(op: str, window: Any) -> tuple[Any, Any]:
    """Keys before and after a query's own; NO_LIMIT."""
    if _is_integer(window):
        if window < 1:
            _refuse(op, "window", _WINDOW, window)
        return window - 1, window - 1
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        _refuse(op, "window", _WINDOW, window)
    left, right = (NO_LIMIT if side is None else side for side in window)
    if not _is_integer(left) or not _is_integer(right):
        _refuse(op, "window", _WINDOW, window)
    return left, right


def block_pair(op: str, block_size: Any) -> tuple[Any, Any]:
    if _is_integer(block_size):
        return block_size, block_size
    if not isinstance(block_size, (tuple, list)) or len(block_size) != 2 or not all(map(_is_integer, block_size)):
        _refuse(op, "block_size", _BLOCK_SIZE, block_size)
    return block_size[0], block_size[1]


def mask_parts(op: str, block_mask: Any) -> tuple[Any, Any, Any, Any, Any]:
    """(block_mask, row_offsets, columns, tables, bits) of a boolean mask or of lists."""
    if not isinstance(block_mask, (tuple, list)):
        return block_mask, None, None, None, None
    if len(block_mask) not in (2, 4):
        rule = "be a boolean tensor, (row_offsets, columns) or a BlockMask"
        raise ValueError(f"{op}: block_mask must {rule}; got {len(block_mask)} parts")
    return None, *block_mask, *(None, None)[: 4 - len(block_mask)]  # type: ignore[return-value]


def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__")


def _refuse(op: str, arg: str, rule: str, got: Any, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{op}: {arg} must {rule}; got {got!r}")
