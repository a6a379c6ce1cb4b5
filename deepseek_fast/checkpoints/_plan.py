"""What becomes of every tensor: decided, and refused, from the headers alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from deepseek_fast.checkpoints._refuse import quoted, refuse, tensor_of
from deepseek_fast.checkpoints._safetensors import Header, make_header
from deepseek_fast.checkpoints._source import CONFIG, Checkpoint

CODES, SCALE = "F8_E4M3", "F32"
NAMES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
TORCH_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
SCALES = ("f32", "ue8m0")
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")  # as checkpoints have them; read as float32
SCALE_SUFFIX = "_scale_inv"
WEIGHT_SUFFIX = ".weight"
BLOCK = 128  # rows and columns that share a scale, where nothing says otherwise
STEP_K = 32  # what the columns of a block are a multiple of, where we quantize
# Two-dimensional weights that DeepSeek-V3's FP8 checkpoint keeps, and their names in models alike.
KEEP = (
    *("*embed*.weight", "*wte.weight", "*wpe.weight", "*lm_head.weight", "*.head.weight", "head.weight"),
    *("*norm*.weight", "*.gate.weight", "*.router.weight", "*shared_expert_gate.weight"),
    *("*eh_proj.weight", "*indexer.weights_proj.weight"),
)


@dataclass(frozen=True)
class Options:
    """What is asked for, resolved."""

    to: str  # "bf16", "f16", "f32" or "fp8"
    block: tuple[int, int]  # rows and columns that share a scale
    scale: str
    keep: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As JSON gives them back."""
        return {"to": self.to, "block": list(self.block), "scale": self.scale, "keep": list(self.keep)}


@dataclass(frozen=True)
class Plan:
    """A conversion."""

    checkpoint: Checkpoint
    options: Options
    converted: frozenset[str]  # the weights
    kept_on_demand: tuple[str, ...]  # weights that only `keep` left alone
    outputs: dict[str, Header]  # shard -> the header that it is to have

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(header.size for header in self.outputs.values())

    def index(self) -> dict[str, Any] | None:
        """The index of the shards that are written."""
        if self.checkpoint.index is None:
            return None
        entries = {name: shard for shard, header in self.outputs.items() for name in header.entries}
        total = sum(entry.size for header in self.outputs.values() for entry in header.entries.values())
        metadata = {**self.checkpoint.index.get("metadata", {}), "total_size": total}
        return {**self.checkpoint.index, "metadata": metadata, "weight_map": dict(sorted(entries.items()))}

    def config(self) -> dict[str, Any] | None:
        """config.json as the new tensors need it."""
        if self.checkpoint.config is None:
            return None
        if self.options.to == "fp8":
            return {**self.checkpoint.config, "quantization_config": self._quantization_config()}
        config = {
            name: _without_quantization(value) if name.endswith("_config") else value
            for name, value in _without_quantization(self.checkpoint.config).items()
        }
        names = [name for name in ("torch_dtype", "dtype") if name in config] or ["torch_dtype"]
        return {**config, **dict.fromkeys(names, TORCH_NAMES[self.options.to])}

    def _quantization_config(self) -> dict[str, Any]:
        found = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
        more: dict[str, Any] = {"scale_fmt": "ue8m0"} if self.options.scale == "ue8m0" else {}
        if self.kept_on_demand:  # loaders know the others
            more["modules_to_not_convert"] = [name.removesuffix(WEIGHT_SUFFIX) for name in self.kept_on_demand]
        return {**found, **more, "weight_block_size": list(self.options.block)}


def make_plan(checkpoint: Checkpoint, to: str | None, block: int | None, scale: str, keep: Sequence[str]) -> Plan:
    """Raises ValueError for arguments, and for tensors that are not as DeepSeek's layout has them."""
    _check_arguments(to, block, scale, keep)
    fp8 = [name for name in checkpoint.home if name.endswith(SCALE_SUFFIX) or _is_fp8_weight(checkpoint, name)]
    to = to or ("bf16" if fp8 else "fp8")
    if to == "fp8":
        if fp8:
            refuse("source", "hold no FP8 weights where to is fp8", quoted(fp8[0]))
        if any("quantization_config" in part for part in _parts(checkpoint.config)):
            refuse(CONFIG, "have no quantization_config where to is fp8", "one")
        converted, kept = _to_quantize(checkpoint, keep)
    else:
        if keep or scale != SCALES[0]:
            name, value = ("keep", list(keep)) if keep else ("scale", scale)
            refuse(name, "be left out where to is not fp8", repr(value))
        converted, kept = _to_dequantize(checkpoint), ()
    options = Options(to, _block(checkpoint.config, block, to), scale, tuple(keep))
    if to != "fp8":
        for name in converted:
            _check_scale(checkpoint, name, options.block)
    if not converted:
        what = "a 2-D weight to quantize" if to == "fp8" else f"an FP8 weight with its scale X{SCALE_SUFFIX}"
        refuse("source", f"hold {what} at least", "none")
    chosen = frozenset(converted)
    outputs = {shard: _output(header, chosen, options) for shard, header in checkpoint.shards.items()}
    outputs = {shard: header for shard, header in outputs.items() if header.entries}  # not one that held scales alone
    return Plan(checkpoint, options, chosen, kept, outputs)


def num_blocks(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a weight's scale."""
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


def _check_arguments(to: object, block: object, scale: object, keep: object) -> None:
    if to is not None and to not in (*NAMES, "fp8"):
        refuse("to", f"be None, {', '.join(NAMES)} or fp8", repr(to))
    if block is not None and (type(block) is not int or block < 1):
        refuse("block", "be None or a whole number above zero", repr(block))
    if scale not in SCALES:
        refuse("scale", f"be {' or '.join(SCALES)}", repr(scale))
    if isinstance(keep, str) or not all(isinstance(pattern, str) for pattern in keep):  # type: ignore[attr-defined]
        raise TypeError(f"fp8_convert: keep must be a sequence of patterns; got {keep!r}")


def _block(config: dict[str, Any] | None, block: int | None, to: str) -> tuple[int, int]:
    """What config.json says, or what is asked for."""
    for part in _parts(config) if to != "fp8" else ():
        found = part.get("quantization_config", {})
        found = found.get("weight_block_size") if isinstance(found, dict) else found
        if found is None:
            continue
        if not isinstance(found, list) or len(found) != 2 or not all(type(size) is int and size > 0 for size in found):
            refuse(CONFIG, "have a weight_block_size of two whole numbers above zero", quoted(found))
        if block is not None and found != [block, block]:
            refuse("block", f"be as {CONFIG} has it, {found}", block)
        return found[0], found[1]
    if to == "fp8" and block is not None and block % STEP_K:
        refuse("block", f"be a multiple of {STEP_K} where to is fp8", block)
    return block or BLOCK, block or BLOCK


def _parts(config: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """config.json and the configs of a model's parts in it."""
    if config is not None:
        yield config
        yield from (part for name, part in config.items() if name.endswith("_config") and isinstance(part, dict))


def _without_quantization(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return {name: value for name, value in part.items() if name != "quantization_config"}


def _to_quantize(checkpoint: Checkpoint, keep: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The weights to quantize, and those that are left out only because of `keep`."""
    able = []
    for shard in checkpoint.shards.values():
        for name, entry in shard.entries.items():
            if (
                entry.dtype in NAMES.values()
                and len(entry.shape) == 2
                and entry.size
                and name.endswith(WEIGHT_SUFFIX)
                and not _matches(name, KEEP)
            ):
                able.append(name)
    for pattern in keep:
        if not any(_matches(name, [pattern]) for name in checkpoint.home):
            refuse("keep", "match the name of a tensor", repr(pattern))
    kept = tuple(sorted(name for name in able if _matches(name, keep)))
    return [name for name in able if name not in set(kept)], kept


def _is_fp8_weight(checkpoint: Checkpoint, name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIX) and checkpoint.entry(name).dtype == CODES


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, one) or fnmatchcase(name.removesuffix(WEIGHT_SUFFIX), one) for one in patterns)


def _to_dequantize(checkpoint: Checkpoint) -> list[str]:
    """The weights that have a scale."""
    for name in checkpoint.home:
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) not in checkpoint.home:
            refuse(tensor_of(checkpoint.path_of(name), name), "have its weight in the checkpoint", "none of that name")
        if _is_fp8_weight(checkpoint, name) and name + SCALE_SUFFIX not in checkpoint.home:
            what = tensor_of(checkpoint.path_of(name), name)
            refuse(what, "have its scale in the checkpoint", f"no {quoted(name + SCALE_SUFFIX)}")
    return [name for name in checkpoint.home if name + SCALE_SUFFIX in checkpoint.home]


def _check_scale(checkpoint: Checkpoint, name: str, block: tuple[int, int]) -> None:
    weight, scale = checkpoint.entry(name), checkpoint.entry(name + SCALE_SUFFIX)
    if weight.dtype != CODES or len(weight.shape) != 2:
        what = tensor_of(checkpoint.path_of(name), name)
        refuse(what, f"be {CODES} of 2 dimensions, because it has a scale", f"{weight.dtype} of shape {weight.shape}")
    what = tensor_of(checkpoint.path_of(scale.name), scale.name)
    if scale.dtype not in SCALE_DTYPES:
        refuse(what, f"be one of {', '.join(SCALE_DTYPES)}", scale.dtype)
    wanted = num_blocks(weight.shape, block)
    if scale.shape != wanted:
        refuse(what, f"have shape {wanted}, one value a block of {block[0]} x {block[1]}", scale.shape)


def _output(header: Header, chosen: frozenset[str], options: Options) -> Header:
    """The header of a shard once its tensors are converted; their order stays."""
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for entry in header.entries.values():
        if entry.name in chosen and options.to == "fp8":
            scale = entry.name + SCALE_SUFFIX, SCALE, num_blocks(entry.shape, options.block)
            tensors += [(entry.name, CODES, entry.shape), scale]
        elif entry.name in chosen:
            tensors.append((entry.name, NAMES[options.to], entry.shape))
        elif entry.name.removesuffix(SCALE_SUFFIX) not in chosen or not entry.name.endswith(SCALE_SUFFIX):
            tensors.append((entry.name, entry.dtype, entry.shape))
    return make_header(header.path, tensors, header.metadata)
