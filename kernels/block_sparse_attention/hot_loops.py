"""What the compiled loops of block_sparse_attention must be, and the calls whose instructions are counted."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import attention_loops
from bench.instructions import values

HOT_LOOPS = attention_loops.loops(of_rows=True)


@dataclass(frozen=True)
class Counted:
    """A call small enough for valgrind: whole tiles and steps, and what is left of them; or a decoder's."""

    S: int
    H: int
    dtype: str
    H_kv: int = 1
    D: int = 72
    D_v: int = 64
    window: int = 100
    queries: int = 0  # of the last tokens alone; 0: all

    @property
    def id(self) -> str:
        return f"{self.H}x{self.S}-{self.dtype}" + f"-{self.queries}_queries" * (self.queries > 0)

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of queries on top."""
        S_q = math.ceil((self.queries or self.S) * (1 + more_rows))
        S_k = self.S if self.queries else S_q
        q, k, v = (
            values(heads * S, D, dtype=self.dtype).reshape(1, heads, S, D)
            for heads, S, D in ((self.H, S_q, self.D), (self.H_kv, S_k, self.D), (self.H_kv, S_k, self.D_v))
        )
        if self.queries:  # lists of single tokens, the same for every query
            columns = np.arange(0, S_k, 3, dtype=np.int32)
            offsets = (np.arange(S_q + 1, dtype=np.int32) * len(columns)).reshape(1, 1, S_q + 1)
            return {"q": q, "k": k, "v": v, "block_mask": (offsets, np.tile(columns, S_q)), "block_size": 1}
        return {"q": q, "k": k, "v": v, "is_causal": True, "window": self.window}


DTYPES = ("bfloat16", "float32", "float16")
COUNTED = (*(Counted(200, 2, dtype) for dtype in DTYPES), Counted(300, 4, "bfloat16", queries=8))
