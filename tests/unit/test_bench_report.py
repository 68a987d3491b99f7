# SPDX-License-Identifier: Apache-2.0
"""The HTML report: the figures of the JSON, nothing from outside, and no text that is obeyed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
from bench_results import latency, result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from udrv.bench import extras, to_fio
from udrv.bench.main import app
from udrv.bench.measured import Comparison, Ratio
from udrv.bench.report import rate_text, report, time_text
from udrv.bench.result import Direction, Sample
from udrv.errors import MissingToolError, ResultFileError

#: Attributes that make a browser load or run something.
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction", "ping"}


class Page(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self.cells: list[tuple[dict[str, str], str]] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self._open = ""
        self.feed(text)
        self.close()
        kinds = [attrs for tag, attrs in self.elements if tag == "script"]
        for attrs, script in zip(kinds, list(self.scripts), strict=True):
            if attrs.get("type") == "application/json":
                self.figures[attrs["id"].removeprefix("figure-")] = json.loads(script)
                self.scripts.remove(script)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        elif tag in ("td", "th"):
            self.cells.append((self.elements[-1][1], ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "td", "th"):
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open == "style":
            self.styles.append(data)
        else:
            self.text += data
            if self.cells and self._open in ("td", "th"):
                attrs, text = self.cells[-1]
                self.cells[-1] = (attrs, text + data.strip())

    @property
    def values(self) -> list[tuple[str, str, float]]:
        """(key, text, figure) of the cells that have one."""
        return [
            (attrs.get("data-key", ""), text, float(attrs["data-value"]))
            for attrs, text in self.cells if "data-value" in attrs
        ]


def document(**setup: str) -> dict[str, Any]:
    some = latency(*range(2000, 150_000, 700))
    made = result(
        write=Direction(len(range(2000, 150_000, 700)), 409_600, 2, 2 * 10**9, some, some, some),
        samples=tuple(
            Sample(at * 10**9 // 2, (40.0 + at, 20.0), (1e6, 5e5), (1000, 2000), (9000, None))
            for at in range(1, 5)
        ),
    )
    found: dict[str, Any] = json.loads(json.dumps(to_fio(made)))
    found["udrv"]["setup"] |= setup
    return found


def page_of(folder: Path, *documents: Any) -> Page:
    paths = []
    for number, one in enumerate(documents):
        paths.append(folder / f"result{number}.json")
        paths[-1].write_text(json.dumps(one))
    return Page(report(paths))


# --- the figures are those of the JSON -----------------------------------------------------------


def test_every_figure_of_the_tables_is_that_of_the_json(tmp_path: Path) -> None:
    made = document()
    page = page_of(tmp_path, made)
    job = made["jobs"][0]
    expected = []
    for name in ("read", "write"):
        d = job[name]
        percentile = d["clat_ns"]["percentile"]
        expected += [
            ("iops", rate_text(d["iops"]), d["iops"]),
            ("mean", time_text(d["clat_ns"]["mean"]), d["clat_ns"]["mean"]),
            ("50.0", time_text(percentile["50.000000"]), percentile["50.000000"]),
            ("99.0", time_text(percentile["99.000000"]), percentile["99.000000"]),
            ("99.9", time_text(percentile["99.900000"]), percentile["99.900000"]),
            ("max", time_text(d["clat_ns"]["max"]), d["clat_ns"]["max"]),
            ("ios", f"{d['total_ios']:,}", d["total_ios"]),
            ("errors", str(d["errors"]), d["errors"]),
        ]
    assert [v for v in page.values if v[0] and v[0] not in ("bandwidth", "cpu")] == expected
    cpu = made["udrv"]["cost"]["cpu_ns_per_io"]
    assert [v for v in page.values if v[0] == "cpu"] == [("cpu", time_text(cpu), cpu)] * 2
    rest = iter(value for key, _, value in page.values if not key)
    columns = [job[name]["clat_ns"] for name in ("read", "write")]
    assert [next(rest) for _ in columns] == [column["min"] for column in columns]
    for percent in columns[0]["percentile"]:
        assert [next(rest) for _ in columns] == [c["percentile"][percent] for c in columns]
    assert [next(rest) for _ in columns] == [column["max"] for column in columns]


def test_the_plots_hold_the_histogram_and_the_samples(tmp_path: Path) -> None:
    made = document()
    figures = page_of(tmp_path, made).figures
    assert set(figures) == {"cdf", "histogram", "tail", "iops", "p99"}
    for index, name in enumerate(("read", "write")):
        d = made["jobs"][0][name]
        bins = [(int(ns), count) for ns, count in d["clat_ns"]["bins"].items()]
        line = figures["cdf"]["data"][index]
        assert line["y"][0] == 0
        assert line["y"][-1] == 100
        seen = 0
        for (ns, count), x, y in zip(bins, line["x"][1:], line["y"][1:], strict=True):
            seen += count
            assert x == pytest.approx(min(ns, d["clat_ns"]["max"]) / 1e9)
            assert y == pytest.approx(100 * seen / d["total_ios"], rel=1e-5)
        assert sum(figures["histogram"]["data"][index]["y"]) == pytest.approx(100, rel=1e-4)
        assert figures["tail"]["data"][index]["y"][-1] == d["clat_ns"]["max"] / 1e9
        samples = made["udrv"]["samples"]
        assert figures["iops"]["data"][index]["y"] == [s["iops"][index] for s in samples]
        assert figures["iops"]["data"][index]["x"] == [0.5, 1.0, 1.5, 2.0]
    assert [d["name"] for d in figures["p99"]["data"]] == ["soft: read"], "no writes' p99"


def test_plotly_knows_every_word_of_the_plots(tmp_path: Path) -> None:
    for figure in page_of(tmp_path, document(), document(target="b")).figures.values():
        plotly.graph_objects.Figure(figure)  # raises at an unknown property


def test_a_distribution_of_very_many_buckets_is_thinned_and_still_true(tmp_path: Path) -> None:
    made = document()
    read = made["jobs"][0]["read"]
    spread = latency(*[int(1.004**n) for n in range(1, 6000)])
    read["clat_ns"]["bins"] = {str(high): count for _, high, count in spread.buckets}
    read["total_ios"] = spread.count
    read["clat_ns"] |= {"max": spread.max, "min": spread.min, "N": spread.count}
    line = page_of(tmp_path, made).figures["cdf"]["data"][0]
    assert len(spread.buckets) > 1500 > 702 >= len(line["x"]) > 300
    truth = {}
    seen = 0
    for _, high, count in spread.buckets:
        seen += count
        truth[min(high, spread.max)] = 100 * seen / spread.count
    for x, y in zip(line["x"][1:], line["y"][1:], strict=True):
        assert truth[round(x * 1e9)] == pytest.approx(y, rel=1e-5)


def test_several_results_are_compared(tmp_path: Path) -> None:
    slow = document(target="slow")
    for name in ("read", "write"):
        slow["jobs"][0][name]["iops"] /= 2
    page = page_of(tmp_path, document(), slow)
    assert "Beside soft:" in page.text
    assert ("", "0.500", 0.5) in page.values
    assert "udrv-bench compare" in page.text, "that one run says nothing of noise is said"
    marked = [attrs for tag, attrs in page.elements if tag == "tr" and "differ" in
              attrs.get("class", "")]  # fmt: skip
    assert marked, "what differs in the set-up is marked"


def test_fios_plain_json_has_no_histogram_and_that_is_said(tmp_path: Path) -> None:
    made = document()
    for name in ("read", "write"):
        del made["jobs"][0][name]["clat_ns"]["bins"]
    page = page_of(tmp_path, made)
    assert set(page.figures) == {"cdf", "tail", "iops", "p99"}
    assert "percentiles only" in page.text


def test_a_result_without_any_io_is_a_page_all_the_same(tmp_path: Path) -> None:
    made = document()
    for name in ("read", "write"):
        made["jobs"][0][name]["total_ios"] = 0
    made["udrv"]["errors"] = [{"type": "X", "message": "the device is on fire"}]
    page = page_of(tmp_path, made)
    assert "no I/O completed" in page.text
    assert "the device is on fire" in page.text


def test_ratios_have_their_interval() -> None:
    from udrv.bench.figures import ratios

    rounds = ({"iops": 1.0}, {"iops": 2.0})
    made = Comparison("f", "t", ("a", "<b>"), {"a": rounds, "<b>": rounds}, (
        Ratio("<b>", "iops", 1.5, 1.2, 1.9, 2), Ratio("<b>", "p50_ns", 1.0, None, None, 2),
    ), ())  # fmt: skip
    (points,) = ratios(made)["data"]
    assert points["name"] == "&lt;b&gt;"
    assert points["x"] == [1.5, 1.0]
    assert points["error_x"]["array"] == pytest.approx([0.4, 0])
    assert points["error_x"]["arrayminus"] == pytest.approx([0.3, 0])
    plotly.graph_objects.Figure(ratios(made))


# --- nothing is loaded, nothing is obeyed --------------------------------------------------------


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = page_of(tmp_path, document())
    for tag, attrs in page.elements:
        assert not LOADING & set(attrs), (tag, attrs)
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "a")
    assert not re.search(r"@import|url\(", "".join(page.styles))
    (policy,) = (
        attrs["content"] for tag, attrs in page.elements
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';"), "no connection, no frame, no font, no worker"
    assert "http" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy, "the page's own scripts may run, and no other"
    assert len(page.scripts) == 2
    assert "sendChartToCloud" in page.scripts[1], "no button that sends figures to a server"


def test_the_page_is_of_a_size_that_can_be_mailed(tmp_path: Path) -> None:
    made = [document(target=f"soft:{n}") for n in range(12)]
    paths = []
    for n, one in enumerate(made):
        spread = latency(*[int(1.004**k) for k in range(1, 6000)])
        one["jobs"][0]["read"]["clat_ns"]["bins"] = {str(h): c for _, h, c in spread.buckets}
        one["jobs"][0]["read"]["total_ios"] = spread.count
        paths.append(tmp_path / f"{n}.json")
        paths[-1].write_text(json.dumps(one))
    assert len(report(paths).encode()) < 6_000_000


NASTY = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "</title><b>", "<!--",
    '"><a href="javascript:alert(1)">x</a>', "{{ 7 * 7 }}", "{% for x in y %}", "&lt;b&gt;",
    "\u2028\u2029\x00\x1b[31m", "]]>", "' onmouseover='alert(1)", "</style><b>",
)  # fmt: skip


def shape(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(sorted(attrs))) for tag, attrs in page.elements]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, tuple[str, ...]]]:
    return shape(page_of(tmp_path_factory.mktemp("plain"), document(target="aaa", serial="bbb")))


def check_text(folder: Path, text: str, plain: object) -> None:
    """A text in every place that a stranger can write is text, and the page is as it was."""
    made = document(target=text, serial=text, model=text)
    made["jobs"][0]["job options"]["rw"] = text
    made["udrv version"] = text
    page = page_of(folder, made)
    assert shape(page) == plain
    assert len(page.scripts) == 2
    seen = " ".join(page.text.split())
    assert " ".join(text.replace("\x00", "\ufffd").split()) in seen.replace("\x00", "\ufffd")
    names = {trace["name"] for f in page.figures.values() for trace in f["data"]}
    assert all("<" not in name for name in names), "Plotly reads a little HTML"
    assert all('&quot;' not in name.replace("&amp;", "") for name in names), "and not this"


@pytest.mark.parametrize("text", NASTY)
def test_text_of_a_device_is_text(tmp_path: Path, text: str, plain: object) -> None:
    check_text(tmp_path, text, plain)


@settings(max_examples=25)
@given(text=st.text(st.sampled_from("<>&\"'/-!= scriptab{}%"), min_size=1, max_size=30))
def test_any_text_is_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, plain: object
) -> None:
    check_text(tmp_path_factory.mktemp("any"), text.strip() or "x", plain)


# --- the command -------------------------------------------------------------------------------


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    source, out = tmp_path / "a.json", tmp_path / "page.html"
    source.write_text(json.dumps(document()))
    done = CliRunner().invoke(app, ["report", str(source), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith("<!DOCTYPE html>")
    done = CliRunner().invoke(app, ["report", str(source), "-o", str(source)])
    assert done.exit_code == 1
    assert "is one of the results" in done.output
    assert json.loads(source.read_text()), "it is still there"
    done = CliRunner().invoke(app, ["report", str(tmp_path / "gone.json")])
    assert done.exit_code == 1
    assert "gone.json: No such file" in done.output
    done = CliRunner().invoke(app, ["--debug", "report", str(out), "-o", str(tmp_path / "x")])
    assert isinstance(done.exception, ResultFileError), "--debug raises it"


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_a_missing_library_is_named_with_its_mend(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> object:
        if name.startswith(package):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return __import__(name)

    monkeypatch.setattr(extras, "import_module", without)
    with pytest.raises(MissingToolError, match=rf"{package}.*pip install 'udrv\[report\]'"):
        report([Path("/nonexistent")])


# --- in a browser ------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.full(minutes=1)
@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_a_browser_draws_it_and_asks_for_nothing(tmp_path: Path) -> None:
    page_of(tmp_path, document(), document(target=NASTY[1], serial=NASTY[4]))
    page = report(sorted(tmp_path.glob("result*.json"))).encode()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host']}{self.path}")
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        here = f"127.0.0.1:{server.server_port}"
        try:
            done = subprocess.run(
                [BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update",
                 "--disable-features=NetworkTimeServiceQuerying",
                 f"--host-resolver-rules=MAP * {here}",  # whoever is asked, it is this server
                 f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000",
                 "--dump-dom", f"http://{here}/page.html"],
                capture_output=True, text=True, timeout=120, check=True,
            )
        finally:
            server.shutdown()
    seen = Page(done.stdout)
    (root,) = (attrs for tag, attrs in seen.elements if tag == "html")
    assert root.get("data-drawn") == "5"
    assert "data-fault" not in root, "no error, and nothing that the policy had to stop"
    assert sum(attrs.get("class") == "main-svg" for _, attrs in seen.elements) >= 5
    assert not any("Share" in attrs.get("data-title", "") for _, attrs in seen.elements)
    assert not any(tag in ("img", "iframe") for tag, _ in seen.elements)
    assert set(asked) - {f"{here}/favicon.ico"} == {f"{here}/page.html"}
