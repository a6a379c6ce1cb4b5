"""What the compiled loops of sparse_mla must be, those of csrc/attention, and the calls that are counted."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import attention_loops
from bench.instructions import values

HOT_LOOPS = attention_loops.loops(f32_at_bf16_level=True)


@dataclass(frozen=True)
class Counted:
    """A prefill small enough for valgrind: whole tiles and steps, and what is left of them."""

    s_q: int
    h_q: int
    topk: int
    dtype: str
    d_qk: int = 72
    d_v: int = 64

    @property
    def id(self) -> str:
        return f"{self.s_q}x{self.h_q}x{self.topk}-{self.dtype}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of queries on top."""
        s_q = math.ceil(self.s_q * (1 + more_rows))
        q = values(s_q * self.h_q, self.d_qk, dtype=self.dtype).reshape(s_q, self.h_q, self.d_qk)
        kv = values(200, self.d_qk, dtype=self.dtype).reshape(200, 1, self.d_qk)
        indices = (np.arange(s_q * self.topk, dtype=np.int32) * 7 % 200).reshape(s_q, 1, self.topk)
        return {"q": q, "kv": kv, "indices": indices, "d_v": self.d_v}


COUNTED = (Counted(4, 17, 150, "bfloat16"), Counted(4, 17, 150, "float32"), Counted(4, 17, 150, "float16"))
