"""The HTML page of a benchmark: its structure, and what a real browser makes of it on a phone and on a desktop."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek_fast.bench import html as page_of

plotly = pytest.importorskip("plotly", reason="plotly is not installed: pip install 'deepseek-fast[bench]'")

HOSTILE = "<script>alert(1)</script>&lt;<b>\"'"
MACHINE = {
    "cpu": "Made-up CPU",
    "cpus": 2,
    "isa": "avx512bf16",
    "threads": 1,
    "load": 0.1,
    "python": "3.11.7",
    "versions": {"deepseek-fast": "0.1.0", "torch": "2.13.0+cpu"},
    "date": "2026-01-01",
}
CEILINGS = {
    "isa": "avx512bf16",
    "rates": {
        "fma_f32": {"per_second": 284e9, "by": "VFMADD231PS zmm"},
        "bf16_dot": {"per_second": 534e9, "by": "VDPBF16PS zmm"},
        "int8_dot": {"per_second": 1150e9, "by": "VPDPBUSD zmm"},
    },
    "read": {"L1": 519e9, "L2": 277e9, "L3": 131e9, "memory": 46e9},
    "copy": {"L1": 325e9, "L2": 269e9, "L3": 111e9, "memory": 42e9},
}


def peer(ratio: float, us: float, **changes: Any) -> dict[str, Any]:
    times = {"median_us": us / ratio * 1.1, "min_us": us / ratio, "spread": 0.02, "time_ratio": ratio}
    return times | {"relative_error": 1e-6, "tolerance": 1e-5, "right": True} | changes


def row(
    room: str, case: str, us: float, *, isa: str = "avx512bf16", threads: int = 1, **changes: Any
) -> dict[str, Any]:
    flops, size = 150_994_944, 2_164_224
    name = f"{room}-{case}-{isa}" + (f"-{threads}t" if threads > 1 else "")
    times = {"median_us": us * 1.1, "min_us": us, "spread": 0.03, "rounds": 50}
    rates = {"gflops": flops / us / 1e3, "gbytes": size / us / 1e3, "roofline_us": 500.0, "share_of_ceiling": 500 / us}
    made = {"id": name, "room": room, "case": case, "why": "a layer of a model", "isa": isa, "threads": threads}
    made |= {"best_level": isa == "avx512bf16", "flops": flops, "bytes": size, "rate": "fma_f32"}
    peers = {"torch F.linear": peer(0.43, us), "ORT Gemm with a long name": peer(1.31, us)}
    return made | times | rates | {"error_over_bound": 0.01, "peers": peers, "failed": {}} | changes


def made_run(**changes: Any) -> dict[str, Any]:
    """Two rooms, two cases, two levels, two numbers of threads."""
    rows = []
    for room, case in (
        ("fused_matmul", "512x384x384-float32-none"),
        ("int8_matmul", "1x4096x4096-bfloat16-w8_int8-none"),
    ):
        rows += [row(room, case, 570.0), row(room, case + "-gelu", 610.0)]
        rows += [row(room, case, 1100.0, isa="avx2"), row(room, case, 290.0, threads=2)]
    run = {"schema": 2, "kind": "operators", "machine": MACHINE, "ceilings": CEILINGS, "harness_ns": 18.4}
    return run | {"interrupted": False, "rows": rows} | changes


def made_model(**changes: Any) -> dict[str, Any]:
    """A model with a wrong contestant, and profiles of two others."""

    def node(name: str, op_type: str, us: float, ours: bool) -> dict[str, Any]:
        made = {"name": name, "op_type": op_type, "domain": "ai.deepseek_fast" if ours else "", "ours": ours, "us": us}
        made |= {"share": us / 1000, "calls": 1, "shape": "512x1536x384", "flops": 1 << 20, "bytes": 1 << 12}
        least = {"rate": "int8_dot", "roofline_us": us / 2, "share_of_ceiling": 0.5, "gain_us": us / 2}
        return made | least | {"left_alone": None if ours else "both factors are computed"}

    def contestant(name: str, ms: float, cosine: float | None) -> dict[str, Any]:
        times = {"name": name, "ms": ms, "ms_min": ms * 0.9, "spread": 0.02, "bytes": 90_000_000}
        return times | {"cosine": cosine, "max_abs": 0.1, "right": cosine is not None and cosine > 0.97}

    nodes = [node("gelu", "Int8Matmul", 600, True), node("attention", "SkipLayerNormalization", 400, False)]
    stock = [node("gelu", "MatMul", 900, False), node("norm", "LayerNormalization", 100, False)]
    profiles = {
        name: {"ms": 1.0, "unprofiled_ms": 1.1, "runs": 30, "profiler_us": 2.0, "nodes": of}
        for name, of in (("stock ORT", stock), ("ours, w8a8", nodes))
    }
    rows = [contestant("stock ORT", 61.5, 1.0), contestant("ORT dynamic int8", 5.0, 0.93)]
    rows += [contestant("ours, optimized", 48.1, 0.99999), contestant("ours, w8a8", 16.8, 0.9955)]
    result = {"schema": 2, "kind": "model", "model": "folder/minilm.onnx", "quantize": "w8a8", "batch": 8, "seq": 64}
    result |= {"rounds": 20, "interrupted": False, "rows": rows, "failed": {}, "profiles": profiles}
    return result | {"machine": MACHINE, "ceilings": CEILINGS} | changes


class Reader(html.parser.HTMLParser):
    """Cells, visible text, and whatever points elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.links += [str(value) for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            return
        self.text += data
        if self._inside in ("td", "th"):
            self.rows[-1][-1] += data


def figures(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert match is not None
    found: dict[str, Any] = json.loads(match[1])
    return found


def bars(page: str) -> list[str]:
    """The hover texts of all bars and points: who is drawn."""
    return [
        text for figure in figures(page).values() for trace in figure["data"] for text in trace.get("customdata", [])
    ]


@pytest.mark.parametrize("run", [made_run(), made_model()], ids=["operators", "model"])
def test_the_page_is_self_contained_and_its_figures_are_valid(run: dict[str, Any]) -> None:
    import plotly.graph_objects as go

    page = page_of.page(run)
    reader = Reader(page)
    assert reader.links == []
    assert page.count("plotly.js v") == 1
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    drawn = figures(page)
    assert len(drawn) == reader.tags.count("figure") > 2
    for figure in drawn.values():
        go.Figure(figure)  # raises for an attribute or a value that plotly does not know


def test_every_row_is_in_the_table_with_the_figures_of_the_run() -> None:
    run = made_run()
    cells = Reader(page_of.page(run)).rows
    for one in run["rows"]:
        line = [one["case"], f"{one['median_us']:.1f}", f"{one['min_us']:.1f}", "3%", f"{one['gflops']:.0f}"]
        line += [f"{one['gbytes']:.1f}", f"{one['share_of_ceiling']:.0%}", "0.01", "1.31", "ORT Gemm with a long name"]
        assert line in cells
    assert sum(line[:1] == ["torch F.linear"] or "torch F.linear" in line for line in cells) == len(run["rows"])
    assert ["VPDPBUSD zmm"] in [line[-1:] for line in cells]


def test_the_baselines_ratio_stands_beside_that_of_the_run() -> None:
    run, baseline = made_run(), made_run()
    for one in baseline["rows"]:
        one["peers"]["ORT Gemm with a long name"]["time_ratio"] = 1.07
    reader = Reader(page_of.page(run, baseline))
    assert sum(line[-3:] == ["1.31", "1.07", "ORT Gemm with a long name"] for line in reader.rows) == len(run["rows"])
    assert "another CPU" not in reader.text
    baseline["machine"] = MACHINE | {"cpu": "Other CPU"}
    assert "The baseline is of another CPU, Other CPU" in Reader(page_of.page(run, baseline)).text


def test_hostile_text_stays_text() -> None:
    run = made_run(machine=MACHINE | {"cpu": HOSTILE})
    one = row(HOSTILE, HOSTILE, 500.0, why=HOSTILE, failed={HOSTILE: HOSTILE})
    one["peers"] = {HOSTILE: peer(0.5, 500.0), f"{HOSTILE} wrong": peer(0.1, 500.0, right=False)}
    run["rows"].append(one)
    plain, page = Reader(page_of.page(made_run())), page_of.page(run)
    reader = Reader(page)
    assert reader.tags.count("script") == plain.tags.count("script")
    assert reader.tags.count("b") == 0
    assert reader.text.count(HOSTILE) >= 8
    for figure in figures(page).values():
        # The only markup that plotly.js is to read: ours.
        assert not re.search(r"<(?!/?b>|br>|/?span\b|extra>|/extra>)", json.dumps(figure))
    model = made_model(model=HOSTILE, failed={HOSTILE: HOSTILE})
    model["profiles"]["ours, w8a8"]["nodes"][0] |= {"name": HOSTILE, "op_type": HOSTILE, "shape": HOSTILE}
    assert Reader(page_of.page(model)).tags.count("script") == plain.tags.count("script")


def test_a_wrong_peer_has_no_bar_and_is_listed_with_its_error() -> None:
    run = made_run()
    for one in run["rows"]:
        one["peers"]["torch F.linear"] |= {"right": False, "relative_error": 0.31, "time_ratio": 0.001}
    page = page_of.page(run)
    assert not any("torch F.linear" in text for text in bars(page))
    assert any("ORT Gemm" in text for text in bars(page))
    reader = Reader(page)
    assert reader.text.count("WRONG: torch F.linear") == len(run["rows"])
    assert any(line[:2] == [run["rows"][0]["case"], "torch F.linear"] and line[-1] == "WRONG" for line in reader.rows)
    notes = [note["text"] for figure in figures(page).values() for note in figure["layout"]["annotations"]]
    assert any("WRONG: torch F.linear, error 0.31" in note for note in notes)


@pytest.mark.parametrize("error", [1.5, None], ids=["beyond the bound", "not finite"])
def test_a_wrong_answer_of_ours_is_in_no_comparison(error: float | None) -> None:
    run = made_run()
    for one in run["rows"]:
        one["error_over_bound"] = error
    page = page_of.page(run)
    assert not any("our time over its" in text or text.startswith("ours<br>") for text in bars(page))
    reader = Reader(page)
    assert "WRONG answers of ours, in no comparison: fused_matmul-" in reader.text
    assert any(f"WRONG {'not finite' if error is None else '1.5'}" in line for line in reader.rows)


def test_a_far_off_peer_is_cut_with_an_arrow_and_leaves_the_others_readable() -> None:
    run = made_run()
    for one in run["rows"]:
        one["peers"] = {"slow": peer(0.005, 500.0), "near": peer(0.9, 500.0), "fast": peer(40.0, 500.0)}
    figure = next(iter(figures(page_of.page(run)).values()))
    (trace,) = figure["data"]
    assert [text.split("</span> ")[1] for text in trace["text"][:3]] == ["◂ 0.01", "0.90", "40.00 ▸"]
    assert [x + trace["base"] for x in trace["x"][:3]] == pytest.approx([0.1, 0.9, 10])


@pytest.mark.parametrize("run", [made_run(interrupted=True), made_model(interrupted=True)], ids=["operators", "model"])
def test_an_interrupted_run_says_so(run: dict[str, Any]) -> None:
    assert "Interrupted: this page has" in Reader(page_of.page(run)).text
    assert "Interrupted" not in Reader(page_of.page(run | {"interrupted": False})).text


def test_without_peers_there_is_no_comparison() -> None:
    run = made_run()
    for one in run["rows"]:
        one["peers"] = {}
    reader = Reader(page_of.page(run))
    assert "Time against each peer" not in reader.text
    assert "Roofline" in reader.text
    assert "beside" not in reader.text.split("Ceilings")[0]


def test_a_run_without_rows_is_a_page_without_plots() -> None:
    reader = Reader(page_of.page(made_run(rows=[], interrupted=True)))
    assert "No row of deepseek-fast 0.1.0 was finished on Made-up CPU" in reader.text
    assert "script" not in reader.tags


def test_a_wrong_contestant_has_no_bar_among_the_times_of_a_run() -> None:
    page = page_of.page(made_model())
    first = next(iter(figures(page).values()))
    assert [text.split("<br>")[0] for text in first["data"][0]["customdata"]] == [
        "stock ORT",
        "ours, optimized",
        "ours, w8a8",
    ]
    reader = Reader(page)
    assert any(line[0] == "ORT dynamic int8" and line[-1] == "WRONG" for line in reader.rows)
    assert "ours, w8a8: 16.8 ms a run, 3.7 times as fast as stock ORT (61.5 ms)" in reader.text
    for profile in made_model()["profiles"].values():
        for node in profile["nodes"]:
            assert any(line[:3] == [node["name"], node["op_type"], node["shape"]] for line in reader.rows)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="bench: run must be of kind operators or model; got 'None'"):
        page_of.page({"rows": []})


def test_without_plotly_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(RuntimeError, match=re.escape("pip install 'deepseek-fast[bench]'")):
        page_of.page(made_run())


# --- in a browser ----------------------------------------------------------------------------------------------------
PHONE, DESKTOP = 390, 1200  # CSS pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no browser: apt-get install chromium (any of " + ", ".join(BROWSERS) + ")"
)
# Errors are collected from before the first script on; only the copies under test have this.
COLLECTOR = """<script>
window.problems = [];
addEventListener("error", event => problems.push("error: " + (event.message || event.target.tagName)), true);
addEventListener("unhandledrejection", event => problems.push("rejection: " + event.reason));
addEventListener("securitypolicyviolation", event => problems.push("fetch: " + event.blockedURI));
console.error = console.warn = (...words) => problems.push("console: " + words.join(" "));
</script>"""
# A window of a desktop browser may not be as narrow as a phone: each page has a frame of the wanted width.
WRAPPER = """<!doctype html><meta charset="utf-8"><title>pages</title>%s<script>
function facts(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, found = {problems: view.problems};
  for (const details of page.querySelectorAll("details")) details.open = true;
  found.fetched = view.performance.getEntriesByType("resource").map(entry => entry.name);
  found.width = page.documentElement.scrollWidth;
  found.plots = [...page.querySelectorAll(".plot")].map(plot => {
    const edge = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].filter(text => text.textContent.trim());
    const outside = texts.filter(text => {
      const box = text.getBoundingClientRect();
      return box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1 ||
             box.bottom > edge.bottom + 1;
    });
    view.Plotly.Fx.hover(plot, [{curveNumber: plot.data.length - 1, pointNumber: 0}]);
    const layer = plot.querySelector(".nsewdrag"), hover = plot.querySelector(".hovertext")?.textContent ?? "";
    const touch = new view.Touch({identifier: 1, target: layer, clientX: 100, clientY: 100});
    const swipe = new view.TouchEvent("touchstart", {cancelable: true, bubbles: true, touches: [touch],
                                                   changedTouches: [touch]});
    layer.dispatchEvent(swipe);
    return {svgs: plot.querySelectorAll(".main-svg").length, outside: outside.map(text => text.textContent),
            hover,
            bars: plot.querySelectorAll(".barlayer .point path").length,
            points: plot.querySelectorAll(".scatterlayer .point").length, width: edge.width,
            swallows: swipe.defaultPrevented, touch: view.getComputedStyle(layer).touchAction,
            fills: [...new Set(texts.map(text => view.getComputedStyle(text).fill))],
            sizes: texts.map(text => parseFloat(view.getComputedStyle(text).fontSize))};
  });
  const own = text => [...text.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  const isShown = node => own(node) && !node.closest(".plot, script, noscript");
  const texts = [...page.body.querySelectorAll("*")].filter(isShown);
  found.sizes = texts.map(node => parseFloat(view.getComputedStyle(node).fontSize));
  found.paper = view.getComputedStyle(page.body).backgroundColor;
  found.ink = view.getComputedStyle(page.body).color;
  return found;
}
const timer = setInterval(() => {
  const frames = [...document.querySelectorAll("iframe")];
  const drawn = frame => frame.contentDocument.documentElement.dataset.drawn || frame.contentWindow.problems?.length;
  if (!frames.every(drawn)) return;
  clearInterval(timer);
  const answer = document.createElement("pre");
  answer.id = "facts";
  answer.textContent = JSON.stringify(Object.fromEntries(frames.map(frame => [frame.id, facts(frame)])));
  document.body.append(answer);
}, 50);
</script>"""
Facts = dict[str, dict[str, Any]]
RUNS = {"operators": made_run, "model": made_model}
NAMES = [f"{kind}-{width}" for kind in RUNS for width in (PHONE, DESKTOP)]


def visited(folder: Path, *flags: str) -> Facts:
    """What the browser finds in both pages, each as wide as a phone and as a desktop."""
    frames = ""
    for kind, run in RUNS.items():
        page = page_of.page(run()).replace("<style>", COLLECTOR + "<style>", 1)
        (folder / f"{kind}.html").write_text(page, encoding="utf-8")
        for width in (PHONE, DESKTOP):
            frames += (
                f'<iframe id="{kind}-{width}" src="{kind}.html" style="width:{width}px;height:800px;border:0"></iframe>'
            )
    (folder / "all.html").write_text(WRAPPER % frames, encoding="utf-8")
    assert BROWSER is not None
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    command = [BROWSER, *quiet, *flags, "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", (folder / "all.html").as_uri()]
    home = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home, check=True).stdout
    match = re.search(r'<pre id="facts">(.*?)</pre>', dom, re.S)
    assert match is not None, "the browser did not draw the pages in time"
    found: Facts = json.loads(html.unescape(match[1]))
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    yield visited(tmp_path_factory.mktemp("pages"))


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_no_error_and_fetches_nothing(seen: Facts, name: str) -> None:
    assert seen[name]["problems"] == []
    assert seen[name]["fetched"] == []


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn_with_all_its_data(seen: Facts, name: str) -> None:
    wanted = figures(page_of.page(RUNS[name.split("-")[0]]()))
    for plot, figure in zip(seen[name]["plots"], wanted.values(), strict=True):
        assert plot["svgs"] > 0
        assert plot["bars"] == sum(len(trace["y"]) for trace in figure["data"] if trace["type"] == "bar")
        assert plot["points"] == sum(len(trace["y"]) for trace in figure["data"] if trace.get("mode") == "markers")
        assert plot["bars"] + plot["points"] > 0


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_the_page_fits_the_window_and_no_text_of_a_figure_is_cut(seen: Facts, name: str) -> None:
    width = int(name.split("-")[1])
    assert seen[name]["width"] <= width
    for plot in seen[name]["plots"]:
        assert 0.8 * width < plot["width"] <= width
        assert plot["outside"] == []


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_texts_are_large_enough_to_read(seen: Facts, name: str) -> None:
    assert min(seen[name]["sizes"]) >= 15
    assert min(size for plot in seen[name]["plots"] for size in plot["sizes"]) >= 13


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_a_bar_or_point_says_what_it_is(seen: Facts, name: str) -> None:
    wanted = figures(page_of.page(RUNS[name.split("-")[0]]()))
    for plot, figure in zip(seen[name]["plots"], wanted.values(), strict=True):
        assert plot["hover"] == html.unescape(figure["data"][-1]["customdata"][0].replace("<br>", ""))


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_a_finger_on_a_figure_scrolls_the_page(seen: Facts, name: str) -> None:
    for plot in seen[name]["plots"]:
        assert not plot["swallows"]
        assert "pan-y" in plot["touch"]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as in WCAG 2: 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lights = sorted((luminance(one), luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def legible(found: Facts) -> bool:
    """Texts of the page and of its figures stand out from the paper (4.5: WCAG 2, level AA)."""
    pairs = [(of["ink"], of["paper"]) for of in found.values()]
    pairs += [(fill, of["paper"]) for of in found.values() for plot in of["plots"] for fill in plot["fills"]]
    return min(contrast(one, other) for one, other in pairs) >= 4.5


@needs_browser
def test_the_page_is_legible_in_a_light_window(seen: Facts) -> None:
    assert legible(seen)
    assert {of["paper"] for of in seen.values()} == {"rgb(255, 255, 255)"}


@needs_browser
@pytest.mark.slow
def test_the_page_is_legible_in_a_dark_window(tmp_path: Path) -> None:
    found = visited(tmp_path, "--blink-settings=preferredColorScheme=0")
    assert legible(found)
    assert {of["paper"] for of in found.values()} == {"rgb(20, 23, 27)"}
