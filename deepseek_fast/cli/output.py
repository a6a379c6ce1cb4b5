"""What a person or a script sees: tables, JSON, progress."""

import contextlib
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any


def print_json(data: Any) -> None:
    """Data as JSON on stdout; NaN and infinity, which JSON lacks, as null."""
    print(json.dumps(finite(data), indent=2))


def finite(data: Any) -> Any:
    """Data with NaN and infinity, which JSON lacks, as None."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well as plain text; the first column left, the others right aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def text(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([text(header), f"|{rule}|", *map(text, rows)])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own chatter: log lines below an error, and deprecation warnings of their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)


class Progress:
    """A bar over named steps on stderr, where that is a terminal; nothing elsewhere.

    with Progress(3) as progress:
        progress.step("reading")
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done, self._percent = -1, -1
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # a bar is a comfort, not a need
                return self
            self._bar = tqdm(total=self._steps, file=sys.stderr, leave=False, bar_format="{desc:<34} {bar} {elapsed}")
        return self

    def step(self, name: str) -> None:
        """Says what is done from now on."""
        self._done += 1
        if self._bar is not None:
            self._bar.n = min(self._done, self._steps)
            self._bar.set_description_str(name)  # draws

    def show(self, name: str, part: float) -> None:
        """Says what is done now, and which part of all steps, 0 to 1, is behind."""
        if self._bar is not None and (name != self._bar.desc or int(part * 100) != self._percent):
            self._percent = int(part * 100)
            self._bar.n = part * self._steps
            self._bar.set_description_str(name)  # draws

    def tick(self) -> None:
        """Redraws the clock."""
        if self._bar is not None:
            self._bar.refresh()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
