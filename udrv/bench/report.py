# SPDX-License-Identifier: Apache-2.0
"""Results as one HTML file that needs nothing beside it, and that fetches nothing.

All texts are a stranger's: names of files, targets, serial numbers. The template escapes, the
plots escape (figures.py), and the page carries a policy that runs the page's own scripts, by their
hashes, and loads nothing at all.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from udrv._version import __version__
from udrv.bench import figures
from udrv.bench.extras import need
from udrv.bench.load import Loaded, load
from udrv.bench.measured import FIGURES, Comparison, Distribution, Measured, figures_of
from udrv.bench.text import format_ns, ratio_text
from udrv.errors import ResultFileError
from udrv.units import format_size

_PLOTS: tuple[tuple[str, str, str, Callable[[tuple[Measured, ...]], figures.Figure]], ...] = (
    ("cdf", "Latency: share of I/Os that took so long or less",
     "Time is on a logarithmic axis.", figures.cdf),
    ("histogram", "Latency: histogram",
     "Eight bins to a factor of two.", figures.histogram),
    ("tail", "Latency by percentile",
     "Each further nine has the same width: the tail, which the first plot hides.", figures.tail),
    ("iops", "IOPS over time", "Sampled twice a second.", figures.over_time),
    ("p99", "99th percentile over time",
     "Of what completed between two samples.", figures.p99_over_time),
)  # fmt: skip


def report(paths: list[Path]) -> str:
    """Return the page about these result files (ours, fio's, or those of `compare`).

    Raises `MissingToolError` without the extra `report`, `ResultFileError` and `OSError`.
    """
    need("jinja2", "a report")
    need("plotly.offline", "a report")
    return render(load(paths))


def render(loaded: Loaded) -> str:
    """Return the page about results. Raises `MissingToolError` and `ResultFileError`."""
    if not loaded.results:
        raise ResultFileError("no result", mend="give the JSON of udrv-bench or of fio")
    jinja2 = need("jinja2", "a report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "ns": time_text, "rate": rate_text, "bytes": bytes_text, "ratio": ratio_text,
    }
    files = resources.files("udrv.bench") / "templates"
    template = environment.from_string((files / "report.html").read_text(encoding="utf-8"))
    plots = [*_comparison_plots(loaded.comparisons), *_result_plots(loaded.results)]
    scripts = [
        _script(need("plotly.offline", "a report").get_plotlyjs()),
        _script((files / "report.js").read_text(encoding="utf-8")),
    ]
    text = template.render(
        title=_title(loaded),
        style=jinja2.utils.markupsafe.Markup((files / "report.css").read_text(encoding="utf-8")),
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src "
        + " ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        scripts=[jinja2.utils.markupsafe.Markup(script) for script in scripts],
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        results=[
            {"result": result, "colour": figures.colour(index), "rows": _rows(result)}
            for index, result in enumerate(loaded.results)
        ],
        many=len(loaded.results) > 1,
        warnings=[
            (result.label, warning) for result in loaded.results for warning in result.warnings
        ] + [
            (f"comparison in {Path(one.file).name}", warning)
            for one in loaded.comparisons for warning in one.warnings
        ],
        against_first=[] if loaded.comparisons else _against_first(loaded.results),
        figure_names=[name for _, name, _, _ in FIGURES],
        comparisons=[_comparison(one) for one in loaded.comparisons],
        plots=plots,
        percentiles=sorted({
            percent for result in loaded.results for found in result.directions.values()
            for percent in found.percentiles
        }),
        columns=_columns(loaded.results),
        job_rows=_table(loaded.results, lambda result: result.job),
        setup_rows=_table(
            loaded.results,
            lambda result: {"program": result.program, "file": result.file, **result.setup},
        ),
    )  # fmt: skip
    return str(text)


# --- text ----------------------------------------------------------------------------------------


def time_text(ns: float) -> str:
    """Return a time for the page: "812 ns", "4.53 µs"."""
    return format_ns(ns).replace(" us", " µs")


def rate_text(rate: float) -> str:
    """Return IOPS for the page: "12,345", "0.25"."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.3g}"


def bytes_text(rate: float) -> str:
    """Return bytes a second for the page."""
    return f"{format_size(int(rate))}/s"


def _title(loaded: Loaded) -> str:
    labels = [result.label for result in loaded.results]
    if len(labels) > 3:
        return f"{len(labels)} results of storage benchmarks"
    return " and ".join(labels)


def _script(text: str) -> str:
    if "</script" in text.lower() or "<!--" in text:
        text = text.replace("</script", "<\\/script").replace("<!--", "\\u003c!--")
    return text


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# --- plots ---------------------------------------------------------------------------------------


def _plot(name: str, title: str, note: str, figure: figures.Figure) -> dict[str, Any]:
    # in a script element: nothing in the text may end it
    text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    markup = need("markupsafe", "a report").Markup(safe)
    return {"name": name, "title": title, "note": note, "json": markup}


def _result_plots(results: tuple[Measured, ...]) -> list[dict[str, Any]]:
    found = []
    coarse = dict.fromkeys(
        r.label for r in results for d in r.directions.values() if not d.buckets
    )
    without = " fio's plain json has percentiles only, and no histogram (json+ has): "
    more = f"{without}{', '.join(coarse)}." if coarse else ""
    for name, title, note, make in _PLOTS:
        figure = make(results)
        if figure["data"]:
            latency = name in ("cdf", "histogram", "tail")
            found.append(_plot(name, title, note + (more if latency else ""), figure))
    return found


def _comparison_plots(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    found = []
    for index, one in enumerate(comparisons):
        found.append(_plot(
            f"ratios{index}", "Ratios", "With confidence intervals. An interval that holds 1 shows "
            "no difference.", figures.ratios(one),
        ))
        found.append(_plot(
            f"rounds{index}", "IOPS of each round", "The rounds were interleaved.",
            figures.rounds(one),
        ))
    return found


# --- tables --------------------------------------------------------------------------------------


def _rows(result: Measured) -> list[tuple[str, Distribution]]:
    return list(result.directions.items())


def _columns(results: tuple[Measured, ...]) -> list[tuple[str, str, Distribution]]:
    """(label, direction and figure, distribution) of the percentiles' table."""
    return [
        (result.label, f"{direction} {result.figure}", found)
        for result in results for direction, found in result.directions.items()
    ]


def _table(
    results: tuple[Measured, ...], of: Callable[[Measured], dict[str, str]]
) -> list[tuple[str, list[str], bool]]:
    """(key, value of each result, whether they differ), in the order of the first that has it."""
    tables = [of(result) for result in results]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = []
    for key in keys:
        values = [table.get(key, "") for table in tables]
        rows.append((key, values, len(set(values)) > 1))
    return rows


def _against_first(results: tuple[Measured, ...]) -> list[tuple[str, list[float | None]]]:
    """(label, ratio of each figure to the first result's or None) of all but the first."""
    if len(results) < 2:
        return []
    first = figures_of(results[0])
    rows = []
    for result in results[1:]:
        own = figures_of(result)
        rows.append((result.label, [
            own[key] / first[key] if key in own and key in first else None
            for key, *_ in FIGURES
        ]))
    return rows


def _comparison(one: Comparison) -> dict[str, Any]:
    by_case = {}
    for case in one.cases[1:]:
        found = {ratio.figure: ratio for ratio in one.ratios if ratio.case == case}
        by_case[case] = [found.get(key) for key, *_ in FIGURES]
    return {"comparison": one, "cases": by_case}
