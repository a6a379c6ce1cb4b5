"""A module compiled by torch.compile for one input, as the plug-ins that go through inductor need it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepseek_fast.bench.peers import Unsupported
from deepseek_fast.cli import output


def compiled(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call of module(x), its weights frozen; for torch's thread count of now.

    raises: Unsupported where torch finds no C++ compiler.
    """
    with output.quiet():  # inductor's imports warn of torch's own deprecations
        from torch._inductor import config, cpp_builder, exc
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise Unsupported("torch.compile finds no C++ compiler; install g++ or set CXX") from None
    # Each row compiles the same code for another module: without this, dynamo would stop at its recompile limit, and
    # before that try the guards of all earlier rows in every call. torch._dynamo.reset() would drop other peers too.
    torch._C._dynamo.eval_frame.reset_code(type(module).forward.__code__)
    call = torch.compile(module.forward, dynamic=False, fullgraph=True)
    # No cached graph: torch before 2.13 does not tell those of other thread counts apart. One compiling thread: a pool
    # of processes would stay beside the measurement.
    with config.patch(freezing=True, fx_graph_cache=False, compile_threads=1), output.quiet():
        call(x)
    return lambda: call(x)
