"""fp8_cast on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

import torch

from deepseek_fast.gpu.cases import Call, Expect

EXPECTS = {"_int8_cast": Expect()}
COMPILED = (
    Call("bfloat16", "int8_cast", lambda: (torch.empty(4096, 7168, dtype=torch.bfloat16),)),
    Call("float32-short", "int8_cast", lambda: (torch.empty(64, 384),)),
)
