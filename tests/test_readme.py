"""Every figure table of the READMEs is what a committed baseline says."""

import json
import re

import pytest

from bench import readme


@pytest.mark.parametrize("path", readme.readmes(), ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_baseline(path: readme.Path) -> None:
    text = path.read_text()
    assert readme.BLOCK.search(text), "a README without measured figures"
    assert readme.filled(path) == text, "run `python -m bench.readme`"


def test_a_changed_figure_is_noticed() -> None:
    path = readme.ROOT / "README.md"
    text = path.read_text()
    match = readme.BLOCK.search(text)
    assert match is not None
    demo = json.loads((readme.ROOT / match[2]).read_text())["demo"]
    milliseconds = f"{demo['rows']['ours, w8a8, in ORT']['ms']:.1f}"
    changed = re.sub(rf"(\| ours, w8a8, in ORT .*?){re.escape(milliseconds)}", r"\g<1>1.0", text)
    assert changed != text
    assert readme.BLOCK.sub(lambda found: found[0], changed) != readme.filled(path)
