import torch
from deepseek_fast.gpu.cases import Call, Expect
EXPECTS = {"_tile": Expect(tensor_cores=True, async_copies=True), "_tile_tma": Expect(tensor_cores=True, async_copies=True), "_end_parts": Expect()}
def c(name, M, N, K, dtype=torch.bfloat16, gated=False, **o):
    return Call(name, "fused_matmul", lambda: (torch.empty(M,K,dtype=dtype), torch.empty(N*(1+gated),K,dtype=dtype), torch.empty(N*(1+gated),dtype=dtype)), lambda: dict(gated=gated, **o))
COMPILED = (c("few", 16, 2048, 8192), c("few64", 64, 8192, 8192, gated=True, activation="silu"),
  c("large",4096,8192,4096,activation="gelu"), c("gated",4096,8192,4096,activation="silu",gated=True),
  c("f32few",16,2048,4096,torch.float32), c("f32few64",64,2048,4096,torch.float32), c("f32",4096,4096,4096,torch.float32), c("f32g",4096,4096,4096,torch.float32, gated=True,activation="silu"))
