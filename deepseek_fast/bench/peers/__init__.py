"""The competitors, a plug-in per library: a module of this folder, or a Python file of the user's own.

A plug-in has
    PACKAGES = ("zentorch",)       importable names it needs beside torch; () where torch is enough
    HOW_TO_INSTALL = "..."         what to do where one is missing
    def int8_matmul(inputs): ...   for each op it competes in: keyword arguments of the op -> {label: Peer}
A linear room has one op, of its own name; a room of casts has several. An op without a function has no such peer. A
function raises Unsupported(sentence) for inputs that its library refuses.
"""

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Part of torch or ONNX Runtime, there wherever ours is measured. The first label of the first that knows an op is the
# reference of the gate.
ALWAYS = ("torch_mkldnn", "torch_eager", "ort")
FIRST = (*ALWAYS, "torch_compile")
# Of torch, too, but seconds to compile for a row: in the full set, and where it is asked for.
FULL = ("torch_flex",)


def _as_it_is(answer: Any) -> Any:
    return answer


@dataclass(frozen=True)
class Peer:
    """A call without arguments that gives the output as a torch tensor, its weights prepared before.

    A cast gives a tensor or a tuple, codes first; what it has no counterpart for it leaves off the end.
    """

    call: Callable[[], Any]
    tolerance: float  # largest |y - ref| / |ref| (2-norms) that still counts as an answer; of a cast 0 is every bit
    why: str  # where the tolerance comes from
    answer: Callable[[Any], Any] = _as_it_is  # what the call gives, as torch tensors; outside the time


class Unsupported(Exception):
    """These inputs have no such peer: the library has no call for them. The message is a sentence."""


def names() -> list[str]:
    """Every plug-in of this folder, the reference first, installed or not."""
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    first = (*FIRST, *FULL)
    return [name for name in first if name in found] + sorted(found - set(first))


def missing(name: str) -> str | None:
    """Why a plug-in cannot run here, with what to do; None where it can."""
    module = plugin(name)
    absent = [package for package in module.PACKAGES if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} is not installed; {module.HOW_TO_INSTALL}" if absent else None


def chosen(words: tuple[str, ...] | None, *, quick: bool = False) -> tuple[str, ...]:
    """Plug-ins for `--peers`: names, "all" that are installed, or "none"; None: those that torch and ORT bring, quick:
    without those that compile for many seconds.

    raises: ValueError for an unknown name, and for one whose library is not installed.
    """
    known = names()
    if words is None:
        return tuple(name for name in (FIRST if quick else (*FIRST, *FULL)) if name in known)
    if words == ("none",):
        return ()
    if words == ("all",):
        return tuple(name for name in known if missing(name) is None)
    for word in words:
        if not word.endswith(".py") and word not in known:
            raise ValueError(f"bench: peers must be all, none, a .py file or among {', '.join(known)}; got '{word}'")
        why = missing(word)
        if why:
            raise ValueError(f"bench: peers must be installed; got '{word}': {why}")
    return words


@functools.cache
def plugin(name: str) -> ModuleType:
    """A plug-in by name or by the path of a .py file; ValueError where the file is none."""
    if not name.endswith(".py"):
        return importlib.import_module(f"{__name__}.{name}")
    spec = importlib.util.spec_from_file_location(f"{__name__}._of_the_user_{Path(name).stem}", name)
    if spec is None or spec.loader is None or not Path(name).is_file():
        raise ValueError(f"bench: peers must be names or existing .py files; got '{name}'")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"bench: peers must be Python files that run; got '{name}': {_sentence(error)}") from error
    for needed in ("PACKAGES", "HOW_TO_INSTALL"):
        if not hasattr(module, needed):
            raise ValueError(f"bench: peers must be plug-ins that define {needed}; got '{name}'")
    return module


def of(
    op: str, inputs: dict[str, Any], plugins: Sequence[str], *, only_first: bool = False
) -> tuple[dict[str, Peer], dict[str, str]]:
    """(peers by label, why a plug-in has none by plug-in) of one op for one set of inputs.

    only_first: the reference alone, the first label that there is.
    """
    found: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    for name in plugins:
        make = getattr(plugin(name), op, None)
        if make is None:
            continue
        try:
            made = _made(make, inputs)
            for peer in made.values():
                peer.call()  # what it refuses, it refuses now
        except Unsupported as reason:
            failed[name] = str(reason)
            continue
        except Exception as error:  # other people's code: whatever it raises is the row's remark, never the run's end
            failed[name] = _sentence(error)
            continue
        found |= made
        if only_first and found:
            label = next(iter(found))
            return {label: found[label]}, failed
    return found, failed


def _made(make: Callable[[dict[str, Any]], dict[str, Peer]], inputs: dict[str, Any]) -> dict[str, Peer]:
    """A plug-in's peers. Of a gated product they compute all 2 N columns, and torch the rest, as models have it."""
    if not inputs.get("gated"):
        return make(inputs)
    from deepseek_fast.bench.peers._common import ACTIVATIONS

    activate = ACTIVATIONS[inputs["activation"]]

    def finished(call: Callable[[], Any]) -> Any:
        gate, up = call().chunk(2, -1)
        return activate(gate) * up

    whole = {name: value for name, value in inputs.items() if name != "gated"} | {"activation": "none"}
    return {
        label: dataclasses.replace(peer, call=functools.partial(finished, peer.call))
        for label, peer in make(whole).items()
    }


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
