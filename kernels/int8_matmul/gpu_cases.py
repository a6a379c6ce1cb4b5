import torch
from deepseek_fast.gpu.cases import Call, Expect
EXPECTS = {"_tile": Expect(tensor_cores=True, async_copies=True), "_tile_tma": Expect(tensor_cores=True, async_copies=True), "_end_parts": Expect(), "_int8_cast": Expect()}
def c(name, M, N, K, dtype=torch.bfloat16, gated=False, **o):
    return Call(name, "int8_matmul", lambda: (torch.empty(M,K,dtype=dtype), torch.empty(N*(1+gated),K,dtype=torch.int8),torch.empty(N*(1+gated)), torch.empty(N*(1+gated),dtype=dtype)), lambda: dict(gated=gated, **o))
COMPILED = (c("few", 16, 8192, 8192), c("few64", 64, 8192, 8192, gated=True, activation="silu"),
  c("m128",128,8192,8192), c("large",4096,8192,8192,activation="gelu"), c("gated",4096,8192,4096,activation="silu",gated=True),
  c("float-few",16,4096,4096,activations="float"), c("float-few64",64,2048,4096,torch.float16,activations="float"), c("float-large",4096,4096,4096,torch.bfloat16,activations="float"), c("float-largeh",4096,4096,4096,torch.float16,activations="float"), c("float-gated",4096,4096,4096,torch.bfloat16, gated=True,activation="silu",activations="float"),
  c("float-f32",4096,4096,4096,torch.float32,activations="float",gated=True),c("float-f32few",16,4096,4096,torch.float32,activations="float"))
