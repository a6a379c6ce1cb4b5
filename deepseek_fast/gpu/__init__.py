"""What the rooms' CUDA kernels share: how an op gets them, checks, launches, tile tables, and helpers inside kernels.

Importing this imports neither triton nor torch. A room's `triton_kernel.py` is imported when an op first meets a CUDA
tensor.

    register.py    an op's kernels, by name, for the CUDA key
    checks.py      the compiled checks of the CPU op, without its computation: the same sentences
    launch.py      one kernel launch; which chip it is for; compiling in place of launching
    tiles.py       tile sizes by tables, and what `deepseek_fast.tune` measured
    tune.py        that measurement
    linear.py      rows of x and y, and the end of a linear room's tile
    gemm.py        products of the linear rooms: which form a call takes; gemm_kernels.py: the kernels
    cases.py       what a room's gpu_cases.py lists, to compile and to measure
    activation.py  inside kernels: the activations
    numbers.py     inside kernels: loads, rounding, products that Triton's interpreter computes as the chip does
    codes.py       inside kernels: FP8 and FP4 codes and powers of two, from integer operations
"""
