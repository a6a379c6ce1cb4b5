"""The conversion: shard by shard, tensor by tensor, a few MiB of rows at a time."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast.checkpoints._output import InputFile, PartFile, Workers, copy_file, opened, write_file
from deepseek_fast.checkpoints._plan import CODES, SCALE, SCALE_SUFFIX, Plan, make_plan
from deepseek_fast.checkpoints._refuse import OP, quoted, refuse, tensor_of
from deepseek_fast.checkpoints._safetensors import BITS, Entry, Header
from deepseek_fast.checkpoints._source import CONFIG, INDEX, SUFFIX, read_checkpoint
from deepseek_fast.checkpoints._target import begun, check_space, check_unchanged, is_copied, is_whole

if TYPE_CHECKING:
    from torch import Tensor

SLICE = 1 << 20  # values that are converted at a time: what they become is in the cache still when it is written
PIECE = 1 << 24  # bytes that are copied at a time
MAX_THREADS = 8  # more of them outrun no disk

Progress = Callable[[str, float], None]
_Call = tuple[Callable[[], None], int]


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    target: str
    to: str
    scale: str
    block: tuple[int, int]
    tensors_converted: int
    tensors_kept: int
    shards_written: int
    shards_whole: int  # that an earlier run had written
    bytes_before: int  # of all shards
    bytes_after: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def fp8_convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    block: int | None = None,
    scale: str = "f32",
    keep: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Converts a safetensors checkpoint between DeepSeek's block-scaled FP8 and bfloat16, float16 or float32.

    source: a folder with model.safetensors, or with model.safetensors.index.json and its shards; or one file.
    target: a folder, new, empty or begun by the same call, whose whole shards stay; where source is a file, a folder or
    a new *.safetensors file. source is never changed.
    to: "bf16", "f16", "f32" or "fp8"; None: bf16 where source holds FP8 weights with scales, fp8 otherwise.
    block: rows and columns that share a scale; None: what config.json's weight_block_size says, else 128.
    scale: "f32", or "ue8m0": powers of two, in float32 too. keep: patterns (fnmatch) of weights that stay as they are,
    besides `checkpoints.KEEP`: embeddings, heads, norms, routers, eh_proj. progress: called with a file's name and the
    part, 0 to 1, that is done. Returns a Report.
    Layout: X.weight float8_e4m3fn (N, K) beside X.weight_scale_inv float32 (ceil(N / block), ceil(K / block)) in any
    shard; weight * scale_inv is the weight. To FP8 go tensors named *.weight of two dimensions; all others stay bit for
    bit. config.json and the index follow, every other file is copied.
    Raises ValueError, FileNotFoundError or FileExistsError for what breaks the format or the layout, OSError for a disk
    too small. Numerics: fp8_dequantize and fp8_cast of whole tensors, bit for bit.

    >>> report = checkpoints.fp8_convert("DeepSeek-V3", "DeepSeek-V3-bf16")
    >>> report.to
    'bf16'

    Source: DeepSeek-V3 README_WEIGHTS.md and inference/fp8_cast_bf16.py.
    """
    source, target = Path(source), Path(target)
    _check_apart(source, target)
    plan = make_plan(read_checkpoint(source), to, block, scale, keep)
    single = source.is_file() and target.suffix == SUFFIX and not target.is_dir()
    if single:
        _check_new(target)
        check_space(target.parent, plan)
    conversion = _Conversion(plan, progress or (lambda name, part: None))
    conversion.check_scales()
    names = {shard: target if single else target / shard for shard in plan.outputs}
    with contextlib.nullcontext() if single else begun(target, plan):
        todo = [shard for shard, header in plan.outputs.items() if single or not is_whole(names[shard], header)]
        conversion.run({shard: names[shard] for shard in todo})
        if not single:
            _write_others(plan, target)
    kept = sum(map(len, (header.entries for header in plan.outputs.values())))
    kept -= len(plan.converted) * (2 if plan.options.to == "fp8" else 1)
    return Report(
        target=str(target),
        to=plan.options.to,
        scale=plan.options.scale,
        block=plan.options.block,
        tensors_converted=len(plan.converted),
        tensors_kept=kept,
        shards_written=len(todo),
        shards_whole=len(plan.outputs) - len(todo),
        bytes_before=sum(header.size for header in plan.checkpoint.shards.values()),
        bytes_after=plan.size,
    )


def _check_apart(source: Path, target: Path) -> None:
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents:
        refuse("target", "be neither source nor within it", quoted(str(target)))


def _check_new(target: Path) -> None:
    if target.exists():
        raise FileExistsError(f"{OP}: target must be a new file; got {quoted(str(target))}, which exists")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{OP}: target must lie in a folder that exists; got {quoted(str(target))}")


def _write_others(plan: Plan, target: Path) -> None:
    """Every other file; what makes a folder a checkpoint comes last."""
    checkpoint = plan.checkpoint
    for name in checkpoint.others:
        if not is_copied(checkpoint.folder / name, target / name):
            copy_file(checkpoint.folder / name, target / name)
    check_unchanged(checkpoint, target)
    for name, found in ((INDEX, plan.index()), (CONFIG, plan.config())):
        if found is not None:
            write_file(target / name, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())


class _Conversion:
    """The shards of a plan. A call of a thread reads a few MiB, converts and writes them."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        from deepseek_fast.checkpoints import _arithmetic

        self._plan, self._options, self._checkpoint = plan, plan.options, plan.checkpoint
        self._progress, self._done, self._total = progress, 0, 1
        self._math = _arithmetic
        self._of_thread = threading.local()

    def check_scales(self) -> None:
        """Raises ValueError where a value of a scale is no scale."""
        for name in () if self._options.to == "fp8" else sorted(self._plan.converted):
            if self._checkpoint.entry(name).size and not self._math.is_scale(self._scale(name)):
                what = tensor_of(self._checkpoint.path_of(name + SCALE_SUFFIX), name + SCALE_SUFFIX)
                refuse(what, "be finite and above zero", "a value that is not")

    def run(self, targets: dict[str, Path]) -> None:
        """Writes the shards."""
        self._total = sum(self._plan.outputs[shard].size for shard in targets) or 1
        with self._math.one_thread_each() as (threads, prepare):
            workers, finisher = Workers(min(threads, MAX_THREADS), prepare), Workers(1)
            try:
                for shard, path in targets.items():
                    file = self._shard(workers, shard, path)
                    try:
                        finisher.wait()  # one file at a time on its way to the disk, while the next is converted
                    except BaseException:
                        file.discard()
                        raise
                    finisher.call(file.finish)
                finisher.wait()
            finally:
                workers.stop()
                finisher.stop(drop=False)

    def _shard(self, workers: Workers, shard: str, path: Path) -> PartFile:
        """The shard, all written."""
        header, out = self._checkpoint.shards[shard], self._plan.outputs[shard]
        file = PartFile(path, out.size)
        try:
            file.write(out.raw, 0)
            with opened(header.path) as start:
                try:
                    for entry in header.entries.values():
                        for call, size in self._calls(start, file, entry, out):
                            workers.call(call)
                            self._done += size
                            self._progress(shard, min(self._done / self._total, 1.0))
                    workers.wait()
                except BaseException:
                    workers.stop()  # before the files are closed
                    raise
        except BaseException:
            file.discard()
            raise
        return file

    def _calls(self, start: InputFile, file: PartFile, entry: Entry, out: Header) -> "Iterator[_Call]":
        """The calls that make a tensor what it is to be, each with the bytes it writes."""
        if entry.name not in out.entries or not entry.size:
            return
        to = out.entries[entry.name]
        if entry.name not in self._plan.converted:
            for done in range(0, entry.size, PIECE):
                size = min(PIECE, entry.size - done)
                yield partial(file.copy, start, entry.offset + done, size, to.offset + done), size
            return
        convert: Callable[[range], None]
        if self._options.to == "fp8":
            convert = partial(self._quantize, start, file, entry, to, out.entries[entry.name + SCALE_SUFFIX])
        else:
            convert = partial(self._dequantize, start, file, entry, to, self._scale(entry.name))
        N, K = entry.shape
        step = self._step(K)
        for first in range(0, N, step):
            rows = range(first, min(first + step, N))
            yield partial(convert, rows), len(rows) * K * BITS[to.dtype] // 8

    def _step(self, K: int) -> int:
        """Rows that are converted at a time: whole blocks, or a part of one that no scale needs to be known for."""
        block, step = self._options.block[0], max(SLICE // K, 1)
        if step >= block or self._options.to == "fp8":
            return max(step // block, 1) * block
        return math.gcd(block, 1 << step.bit_length() - 1)

    def _dequantize(
        self, start: InputFile, file: PartFile, entry: Entry, to: Entry, scale: "Tensor", rows: range
    ) -> None:
        block, K = self._options.block, entry.shape[1]
        codes = self._read(start, entry, rows)
        scale = scale[rows.start // block[0] : -(-rows.stop // block[0])]
        x = self._math.dequantize(codes, scale, block, to.dtype)
        if self._math.overflows(x, scale):
            what = tensor_of(self._checkpoint.path_of(entry.name), entry.name)
            refuse(what, "fit into float16: use bf16", "a magnitude above 65504")
        file.write(self._math.as_bytes(x), to.offset + rows.start * K * BITS[to.dtype] // 8)

    def _quantize(self, start: InputFile, file: PartFile, entry: Entry, to: Entry, scales: Entry, rows: range) -> None:
        what = tensor_of(self._checkpoint.path_of(entry.name), entry.name)
        weight = self._read(start, entry, rows)
        try:
            codes, scale = self._math.quantize(weight, self._options.block, self._options.scale)
        except ValueError as error:
            refuse(what, "be a weight that can be quantized", error)
        if not self._math.is_scale(scale):
            refuse(what, "be finite", "NaN or inf")
        file.write(self._math.as_bytes(codes), to.offset + rows.start * entry.shape[1] * BITS[CODES] // 8)
        first = rows.start // self._options.block[0] * scales.shape[1]
        file.write(self._math.as_bytes(scale), scales.offset + first * BITS[SCALE] // 8)

    def _read(self, start: InputFile, entry: Entry, rows: range) -> "Tensor":
        """Rows of a matrix, in memory that the thread's next read takes again."""
        row = entry.shape[1] * BITS[entry.dtype] // 8
        buffer = getattr(self._of_thread, "buffer", b"")
        if len(buffer) < len(rows) * row:
            buffer = self._of_thread.buffer = bytearray(len(rows) * row)
        data = memoryview(buffer)[: len(rows) * row]
        start.read_into(data, entry.offset + rows.start * row)
        return self._math.as_tensor(data, entry.dtype, (len(rows), entry.shape[1]))

    def _scale(self, name: str) -> "Tensor":
        """The scale of a weight, from whichever shard has it."""
        entry = self._checkpoint.entry(name + SCALE_SUFFIX)
        data = bytearray(entry.size)
        with opened(self._checkpoint.path_of(entry.name)) as file:
            file.read_into(data, entry.offset)
        return self._math.as_tensor(data, entry.dtype, entry.shape).float()
