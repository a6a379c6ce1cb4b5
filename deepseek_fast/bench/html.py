"""A run as one self-contained HTML page: plots, tables with the same figures, how it was measured."""

from typing import Any

from deepseek_fast.bench import html_model, html_rooms
from deepseek_fast.bench.html_parts import Figures, style, tag

# The browser itself sees to it that nothing is fetched.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
KINDS = {"operators": html_rooms, "model": html_model}


def page(run: dict[str, Any], baseline: dict[str, Any] | None = None) -> str:
    """The page of a run of operators or of a model.

    run: what `deepseek-fast bench --json` writes; baseline: another one, whose ratios are shown beside the run's.
    raises: ValueError for a run of another kind; RuntimeError where plotly is not installed.
    """
    kind = str(run.get("kind"))
    if kind not in KINDS:
        raise ValueError(f"bench: run must be of kind {' or '.join(KINDS)}; got '{kind}'")
    figures = Figures()
    title = KINDS[kind].title(run)
    body = KINDS[kind].body(run, baseline, figures)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            tag("title", f"{title} · deepseek-fast"),
            style(),
            "</head>\n<body>\n<main>",
            tag("p", "deepseek-fast bench", cls="soft"),
            tag("h1", title),
            body,
            "<noscript><p>The plots need JavaScript; the tables have the same figures.</p></noscript>",
            "</main>",
            figures.script(),
            "</body>\n</html>\n",
        ]
    )
