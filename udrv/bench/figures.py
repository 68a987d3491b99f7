# SPDX-License-Identifier: Apache-2.0
"""The plots of a report, as Plotly's JSON: {"data": [...], "layout": {...}}.

Plotly reads a little HTML in names and labels, so every text that comes from a file is escaped
here, although the template escapes, too. Colours that depend on the page's theme are the page's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from typing import Any

from udrv.bench.measured import FIGURES, Comparison, Distribution, Measured

#: Seen on white and on black, and told apart by most eyes.
COLOURS = (
    "#2f81d6", "#e0641e", "#1ea37a", "#b765c4", "#c0920f", "#5fb4e5", "#c23b4a", "#8a8f98",
)  # fmt: skip
_DASHES = ("solid", "dash", "dot", "dashdot")
#: About as many as a screen has columns; of more, the last in each of so many like steps is kept.
_MOST_POINTS = 700
_HISTOGRAM_PER_OCTAVE = 8
#: "100ns 2 5 1µs 2 5 10µs": the digits between have no suffix, whatever is asked for.
_TIME = {"exponentformat": "SI", "minexponent": 0, "ticksuffix": "s"}
_HOVER_TIME = "%{x:.4~s}s"

Figure = dict[str, Any]


def colour(index: int) -> str:
    """Return the colour of the result with this number."""
    return COLOURS[index % len(COLOURS)]


def curves(results: tuple[Measured, ...]) -> Iterator[tuple[str, Distribution, dict[str, Any]]]:
    """Yield (name, distribution, what a line looks like) of every direction of every result.

    A result has a colour, a direction a dash; past the last colour the dashes begin elsewhere.
    """
    for index, result in enumerate(results):
        for number, (direction, found) in enumerate(result.directions.items()):
            name = f"{result.label} {direction}" if len(result.directions) > 1 else result.label
            dash = _DASHES[(number + index // len(COLOURS)) % len(_DASHES)]
            yield _text(name), found, {"color": colour(index), "dash": dash, "width": 2}


def steps(found: Distribution) -> list[tuple[float, int]]:
    """Return (ns, I/Os that took so long or less), ascending, the points of a distribution."""
    if not found.buckets:
        total = found.ios
        points = [(float(ns), round(total * p / 100)) for p, ns in found.percentiles.items()]
        return [*points, (found.max, total)]
    points, seen = [], 0
    for _, high, count in found.buckets:
        seen += count
        points.append((min(float(high), found.max), seen))
    if len(points) <= _MOST_POINTS:
        return points
    low = math.log2(max(points[0][0], 1))
    step = (math.log2(max(points[-1][0], 2)) - low) / _MOST_POINTS
    thin: dict[int, tuple[float, int]] = {}
    for ns, count in points:
        thin[math.floor((math.log2(max(ns, 1)) - low) / step)] = (ns, count)
    return list(thin.values())


def _layout(x: Figure, y: Figure, **more: Any) -> Figure:
    return {
        "xaxis": {"automargin": True, "zeroline": False, **x},
        "yaxis": {"automargin": True, "zeroline": False, **y},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "legend": {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        "hovermode": "closest",
        **more,
    }


def _titled(text: str, **more: Any) -> Figure:
    return {"title": {"text": text}, **more}


def cdf(results: tuple[Measured, ...]) -> Figure:
    """Share of I/Os that took so long or less; time on a logarithmic axis."""
    data: list[Figure] = []
    for name, found, line in curves(results):
        points = steps(found)
        start = (found.min, 0)
        data.append({
            "type": "scatter", "mode": "lines", "name": name, "line": {**line, "shape": "hv"},
            "x": [max(ns, 1.0) / 1e9 for ns, _ in (start, *points)],
            "y": [_round(100 * count / found.ios) for _, count in (start, *points)],
            "hovertemplate": f"%{{y:.4~f}} % took {_HOVER_TIME} or less",
        })
    return {"data": data, "layout": _layout(
        _titled("latency", type="log", **_TIME),
        _titled("share of I/Os", range=[-2, 102], ticksuffix=" %"),
    )}  # fmt: skip


def tail(results: tuple[Measured, ...]) -> Figure:
    """Latency by percentile; each further nine has the same width, so the tail is seen."""
    data: list[Figure] = []
    most = 10.0
    for name, found, line in curves(results):
        points = [
            (min(found.ios / max(found.ios - count, 1), float(found.ios)), ns, count)
            for ns, count in steps(found)
        ]
        most = max(most, float(found.ios))
        data.append({
            "type": "scatter", "mode": "lines", "name": name, "line": {**line, "shape": "vh"},
            "x": [_round(x) for x, _, _ in points],
            "y": [max(ns, 1.0) / 1e9 for _, ns, _ in points],
            "text": [f"{100 * count / found.ios:.6g}" for _, _, count in points],
            "hovertemplate": "%{text} % took %{y:.4~s}s or less",
        })
    nines = range(math.ceil(math.log10(most)) + 1)
    return {"data": data, "layout": _layout(
        _titled("percentile", type="log", range=[0, math.log10(most)],
                tickvals=[10**n for n in nines],
                ticktext=[f"{100 - 100 / 10**n:.{max(0, n - 2)}f}%" for n in nines]),
        _titled("latency", type="log", **_TIME),
    )}  # fmt: skip


def histogram(results: tuple[Measured, ...]) -> Figure:
    """Share of I/Os in bins of a like factor of time."""
    data: list[Figure] = []
    for name, found, line in curves(results):
        if not found.buckets:
            continue
        bins: dict[int, int] = {}
        for low, high, count in found.buckets:
            middle = max((low + high) / 2, 1.0)
            at = math.floor(_HISTOGRAM_PER_OCTAVE * math.log2(middle))
            bins[at] = bins.get(at, 0) + count
        edges = range(min(bins) - 1, max(bins) + 2)
        data.append({
            "type": "scatter", "mode": "lines", "name": name, "fill": "tozeroy",
            "line": {**line, "shape": "hv"}, "fillcolor": line["color"] + "26",
            "x": [_round(2 ** (edge / _HISTOGRAM_PER_OCTAVE) / 1e9) for edge in edges],
            "y": [_round(100 * bins.get(edge, 0) / found.ios) for edge in edges],
            "hovertemplate": f"%{{y:.3~f}} % from {_HOVER_TIME}",
        })
    return {"data": data, "layout": _layout(
        _titled("latency", type="log", **_TIME),
        _titled("share of I/Os", rangemode="tozero", ticksuffix=" %"),
    )}  # fmt: skip


def over_time(results: tuple[Measured, ...]) -> Figure:
    """IOPS over time."""
    return _over_time(
        results, "iops", 1.0, "%{y:,.0f} IOPS at %{x:.1f} s",
        _titled("IOPS", rangemode="tozero", tickformat="~s"),
    )


def p99_over_time(results: tuple[Measured, ...]) -> Figure:
    """The 99th percentile of each sample's I/Os over time."""
    return _over_time(
        results, "p99_ns", 1e-9, "%{y:.4~s}s at %{x:.1f} s",
        _titled("p99", type="log", **_TIME),
    )


def _over_time(
    results: tuple[Measured, ...], what: str, factor: float, hover: str, y: Figure
) -> Figure:
    data: list[Figure] = []
    for name, (result, direction), line in _with_points(results):
        rows = [
            (point.seconds, getattr(point, what)[direction]) for point in result.points
            if direction in getattr(point, what)
        ]
        if rows:
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": name,
                "line": line, "marker": {"size": 4, "color": line["color"]},
                "x": [_round(x) for x, _ in rows], "y": [_round(v * factor) for _, v in rows],
                "hovertemplate": hover,
            })
    x = _titled("time", rangemode="tozero", ticksuffix=" s")
    return {"data": data, "layout": _layout(x, y)}


def _with_points(
    results: tuple[Measured, ...],
) -> Iterator[tuple[str, tuple[Measured, str], dict[str, Any]]]:
    lines = curves(results)
    for result in results:
        for direction in result.directions:
            name, _, line = next(lines)
            if result.points:
                yield name, (result, direction), line


def ratios(comparison: Comparison) -> Figure:
    """Each figure over that of the first case, with its confidence interval."""
    names = {key: name for key, name, _, _ in FIGURES}
    data: list[Figure] = []
    for index, case in enumerate(comparison.cases):
        found = [ratio for ratio in comparison.ratios if ratio.case == case]
        if not found:
            continue
        data.append({
            "type": "scatter", "mode": "markers", "name": _text(case), "orientation": "h",
            "marker": {"size": 9, "color": colour(index)},
            "x": [ratio.ratio for ratio in found],
            "y": [names[ratio.figure] for ratio in found],
            "error_x": {
                "type": "data", "symmetric": False, "thickness": 2, "color": colour(index),
                "array": [(r.high if r.high is not None else r.ratio) - r.ratio for r in found],
                "arrayminus": [r.ratio - (r.low if r.low is not None else r.ratio) for r in found],
            },
            "hovertemplate": "%{y}: %{x:.3f}",
        })
    return {"data": data, "layout": _layout(
        _titled(f"ratio to {_text(comparison.cases[0])}", type="log",
                tickvals=_ratio_ticks(comparison)),
        {"autorange": "reversed", "type": "category"},
        scattermode="group", scattergap=0.5,
        shapes=[{"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
                 "line": {"color": "#8a8f98", "width": 1, "dash": "dot"}}],
    )}  # fmt: skip


def _ratio_ticks(comparison: Comparison) -> list[float]:
    """Ticks beside 1 on both sides alike: the wider the range, the coarser."""
    ends = [end for r in comparison.ratios for end in (r.low or r.ratio, r.high or r.ratio)]
    span = max((abs(math.log10(end)) for end in ends if end > 0), default=0.0)
    if span > 0.9:
        step = math.ceil(span / 4)
        return [10.0 ** (step * n) for n in range(-5, 6)]
    sides = [1.02, 1.05, 1.1, 1.2] if span < 0.1 else [1.1, 1.25, 1.5, 2, 3, 5]
    return [_round(1 / side) for side in reversed(sides)] + [1.0, *sides]


def rounds(comparison: Comparison) -> Figure:
    """IOPS of each round: what the confidence intervals are made of."""
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": _text(case),
            "line": {"color": colour(index), "width": 1}, "marker": {"size": 7},
            "x": [i + 1 for i, _ in enumerate(comparison.rounds[case])],
            "y": [one.get("iops") for one in comparison.rounds[case]],
            "hovertemplate": "round %{x}: %{y:,.0f} IOPS",
        }
        for index, case in enumerate(comparison.cases)
    ]
    return {"data": data, "layout": _layout(
        _titled("round", dtick=1 if len(next(iter(comparison.rounds.values()), ())) < 20 else None),
        _titled("IOPS", rangemode="tozero", tickformat="~s"),
    )}  # fmt: skip


def _text(text: str) -> str:
    """For Plotly, which reads &lt; &gt; &amp; and a few elements, and shows &quot; as it is."""
    return html.escape(text, quote=False)


def _round(value: float) -> float:
    """Six digits: more than a screen shows, and a third of the bytes."""
    return float(f"{value:.6g}")
