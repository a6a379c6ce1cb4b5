"""Which tiles sparse_mla's kernels for CUDA take, by sizes and chip, and why."""

from deepseek_fast.gpu.tiles import Config, Row, Table


def _block(H: int, T: int, stages: int, *, apart: bool = True, chunked: bool = False) -> Config:
    """Heads and tokens of a step. apart, chunked: triton_attend.py."""
    return {"BLOCK_H": H, "BLOCK_T": T, "STAGES": stages, "APART": apart, "CHUNKED": chunked, "num_warps": 8}


# heads: that share one of kv's; queries: times heads of kv; width: numbers of a row, in powers of two; bytes: of one.
# All: registers and shared memory as compiled, no spills; nothing was measured.
PLAIN_TILES = Table(
    "sparse_mla",
    "heads queries width",
    (
        Row(
            _block(16, 64, 2), heads=32, width=576, bytes=2, archs=(90, 100),
            why="derived: the mma's own 16 heads, 95 KB; 8 warps part 64 tokens",
        ),
        Row(
            _block(16, 64, 2), queries=8, width=576, bytes=2, archs=(90, 100),
            why="derived: few queries: more programs, each less to leave for the merge",
        ),
        Row(
            _block(64, 64, 2), width=576, bytes=2, archs=(90,),
            why="derived: wgmma's 64 rows; q, two blocks of 64 tokens and the weights take 225 of 227 KB",
        ),
        Row(_block(16, 32, 2), heads=32, width=576, bytes=2, why="derived: as on 9.0, 57 KB"),
        Row(_block(16, 32, 2), queries=8, width=576, bytes=2, why="derived: few queries"),
        Row(
            _block(64, 32, 2, apart=False), width=576, bytes=2, archs=(80,),
            why="derived: 112 KB; half the reads of L2 of 32 heads",
        ),
        Row(_block(16, 32, 2), width=576, bytes=2, why="derived: 99 KB hold no more heads beside two blocks"),
        Row(
            _block(16, 16, 2, apart=False, chunked=True),
            why="derived: float32 or wide rows, of which 16 tokens take all registers",
        ),
    ),
)  # fmt: skip
FP8_TILES = Table(
    "sparse_mla_fp8",
    "heads queries width",
    (
        Row(
            _block(16, 16, 2, apart=False), archs=(80, 86, 100, 120),
            why="derived: 8.0, 8.6: integer operations decode; all four would spill with warps apart",
        ),
        Row(_block(16, 16, 3), heads=32, why="derived: codes become bf16 in registers; 32 would spill"),
        Row(_block(16, 16, 3), queries=8, why="derived: few queries: more programs"),
        Row(
            _block(32, 32, 2), width=512, archs=(90,),
            why="derived: v4's four parts leave no registers for 64 heads",
        ),
        Row(
            _block(64, 64, 2), archs=(90,),
            why="derived: wgmma's 64 rows share what decodes a token; 194 KB",
        ),
        Row(_block(16, 16, 3), why="derived: as with few heads"),
    ),
)  # fmt: skip
QUERY_GRADIENT = Table(
    "sparse_mla_query_gradient",
    "heads width",
    (
        Row(
            _block(16, 32, 2), width=576, bytes=2,
            why="derived: sums of 576 columns beside q and dout; 64 heads would spill 248 bytes a thread",
        ),
        Row(_block(16, 16, 2, apart=False, chunked=True), why="derived: float32 or wide rows"),
    ),
)  # fmt: skip
ENTRY_GRADIENT = Table(
    "sparse_mla_entry_gradient",
    "heads width",
    (
        Row(
            {"BLOCK_E": 128, "BLOCK_C": 128, "BLOCK_K": 64, "STAGES": 3, "num_warps": 8}, bytes=2,
            why="derived: the tile of a matrix product with K from 64 on",
        ),
        Row(
            {"BLOCK_E": 32, "BLOCK_C": 64, "BLOCK_K": 16, "STAGES": 2, "num_warps": 4},
            why="derived: three TF32 products a step",
        ),
    ),
)  # fmt: skip
