"""The sentences of what is refused."""

from pathlib import Path
from typing import NoReturn

OP = "fp8_convert"
LONGEST_NAME = 120  # characters of a name that a sentence quotes


def refuse(what: str, rule: str, got: object) -> NoReturn:
    """Raises ValueError in the grammar of all errors."""
    raise ValueError(f"{OP}: {what} must {rule}; got {got}")


def tensor_of(path: Path, name: str) -> str:
    """A tensor of a file, as sentences name it."""
    return f"{path.name}: tensor {quoted(name)}"


def quoted(name: object) -> str:
    """A name from a file, whatever it holds, as a short quotation."""
    text = repr(name)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 3] + "..."
