"""Inside the indexer's kernels: which tokens a query sees, and addresses past 2^31."""

import triton
import triton.language as tl

# Where a query's tokens end: at all tokens; at a number of its own; at context_lens (b), of the last of next_n queries.
NO_ENDS = tl.constexpr(0)
ENDS_OF_QUERIES = tl.constexpr(1)
ENDS_OF_REQUESTS = tl.constexpr(2)


@triton.jit
def wide(x):
    """x as int64; it may be a constant, which an argument of 1 becomes, or a plain number, as in the interpreter."""
    return x + tl.full([], 0, tl.int64)


@triton.jit
def window(begins, ends, row, inside, tokens, next_n, HAS_BEGINS: tl.constexpr, ENDS: tl.constexpr):
    """[begin, end) of rows (int32, any shape) clamped to [0, tokens]; nothing where not inside."""
    begin, end = row * 0, row * 0 + tokens
    if HAS_BEGINS:
        begin = tl.maximum(tl.load(begins + row, inside, 0), 0)
    if ENDS == ENDS_OF_QUERIES:
        end = tl.load(ends + row, inside, 0)
    elif ENDS == ENDS_OF_REQUESTS:
        # context_lens[b] - next_n + 1 + n: n - next_n is below 0, so that it cannot pass 2^31 - 1
        length = tl.maximum(tl.load(ends + row // next_n, inside, 0), 0)
        end = length + (row % next_n - next_n + 1)
    end = tl.minimum(tl.where(inside, end, 0), tokens)
    return begin, tl.maximum(end, 0)
