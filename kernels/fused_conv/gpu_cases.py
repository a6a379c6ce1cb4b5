"""fused_conv on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

import torch

from deepseek_fast.gpu.cases import Call, Expect

EXPECTS = {
    "_conv": Expect(tensor_cores=True), "_stem": Expect(tensor_cores=True, async_copies=True), "_depthwise": Expect(), "_pool": Expect(), "_norm": Expect(),
    "_prepare_int8": Expect(),
}
def nhwc(N, C, H, W, dtype=torch.bfloat16):
    return torch.empty(N, H, W, C, dtype=dtype).permute(0, 3, 1, 2)
B=torch.bfloat16
COMPILED = (
    Call("3x3", "fused_conv", lambda: (nhwc(64,128,28,28), nhwc(128,128,3,3), torch.empty(128,dtype=B), [1,1],[1]*4,[1,1],1,"relu")),
    Call("stem", "fused_conv", lambda: (nhwc(256,3,224,224), nhwc(64,3,7,7), torch.empty(64,dtype=B), [2,2],[3]*4,[1,1],1,"relu",[],None,"before",[3,3,2,2,1,1,1,1,0])),
)
