# SPDX-License-Identifier: Apache-2.0
"""A comparison for people (a table) and for programs (JSON, which `udrv-bench report` reads)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udrv._version import __version__
from udrv.bench.compare import Case, Compared
from udrv.bench.measured import FIGURES, Distribution, Ratio, merge
from udrv.bench.text import format_ns, ratio_text
from udrv.program import printable
from udrv.units import format_size

_EXCLUDED = (
    "CPU time per I/O is user and system time of the threads that do the I/O. Not in it: "
    "interrupt handlers, kernel threads (io_uring's, too), and the process of a soft: or "
    "vfio-user: device. A polling thread's time is mostly its wait."
)
_LATENCY = {
    "clat": "Percentiles are of clat: from the doorbell or the end of the submission to the "
    "completion. fio waits by interrupt, or with hipri for iopoll=1.",
    "lat": "Percentiles are of lat: from the intended start to the completion.",
}


# --- for people ----------------------------------------------------------------------------------


def print_comparison(found: Compared, console: Console) -> None:
    """Print the set-up, the table, what it is made of, and what to know before believing it."""
    config = found.config
    mix = f" ({config.read_percent} % reads)" if 0 < config.read_percent < 100 else ""
    runtime = f", {config.runtime_ns / 1e9:g} s a run" if config.runtime_ns else ""
    done = len(found.cases[0].runs)
    _line(console, (
        f"{config.rw}{mix} of {format_size(config.bs)}, {config.numjobs} job(s) of depth "
        f"{config.iodepth}, wait {config.wait}{runtime}; {done} interleaved rounds, order by seed "
        f"{found.seed}"
    ))  # fmt: skip
    _line(console, (
        f"on {found.host.cpu_model}{', a virtual machine' if found.host.virtual_machine else ''}, "
        f"{found.host.cpus} CPUs; {found.host.kernel}; clock {found.host.clock}; udrv {__version__}"
    ))  # fmt: skip
    if done:
        _line(console, "")
        console.print(_table(found))
        _line(console, "")
        _line(console, f"Medians of the rounds; ~ marks what shows no difference. {found.method}")
        _line(console, _EXCLUDED)
        _line(console, _LATENCY[found.figure])
    for warning in found.warnings:
        _line(console, f"*** {warning}")


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)))


def _table(found: Compared) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for _, name, _, _ in FIGURES:
        table.add_column(name, justify="right")
    ratios = {(ratio.case, ratio.figure): ratio for ratio in found.ratios}
    for case in found.cases:
        table.add_row(Text(printable(case.label)), *_medians(case))
        if case is not found.cases[0]:
            own = [ratios.get((case.label, key)) for key, *_ in FIGURES]
            table.add_row("  ratio", *(_ratio(ratio) for ratio in own))
            if any(ratio is not None and ratio.low is not None for ratio in own):
                table.add_row("  95 %", *(_interval(ratio) for ratio in own))
    return table


def _medians(case: Case) -> Iterator[str]:
    for key, _, unit, _ in FIGURES:
        values = [one[key] for one in case.rounds if key in one]
        if not values:
            yield "-"
            continue
        median = statistics.median(values)
        yield format_ns(median) if unit else f"{median:,.0f}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return ("" if ratio.differs else "~ ") + ratio_text(ratio.ratio)


def _interval(ratio: Ratio | None) -> str:
    if ratio is None or ratio.low is None or ratio.high is None:
        return "-"
    return f"{ratio_text(ratio.low)} to {ratio_text(ratio.high)}"


# --- for programs --------------------------------------------------------------------------------


def to_json(found: Compared) -> dict[str, Any]:
    """Return a comparison as one JSON document (nested dictionaries of plain values)."""
    return {
        "udrv version": f"udrv-{__version__}",
        "timestamp": int(found.started),
        "time": time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(found.started)),
        "compare": {
            "method": found.method,
            "cpu_time": _EXCLUDED,
            "latency": _LATENCY[found.figure],
            "figure": found.figure,
            "seed": found.seed,
            "interrupted": found.interrupted,
            "job options": {k: v for k, v in asdict(found.config).items() if v is not None},
            "host": asdict(found.host),
            "cases": [_case(case, found.figure) for case in found.cases],
            "ratios": [asdict(ratio) | {"differs": ratio.differs} for ratio in found.ratios],
            "warnings": list(found.warnings),
        },
    }


def _case(case: Case, figure: str) -> dict[str, Any]:
    cpu = [one["cpu_ns_per_io"] for one in case.rounds if "cpu_ns_per_io" in one]
    names = dict.fromkeys(name for one in case.runs for name in one.directions)
    return {
        "label": case.label,
        "program": case.runs[0].program if case.runs else "fio" if case.fio else "udrv",
        "setup": case.runs[0].setup if case.runs else {},
        "cpu_ns_per_io": statistics.median(cpu) if cpu else None,
        "rounds": case.rounds,
        "warnings": list(dict.fromkeys(w for one in case.runs for w in one.warnings)),
        **{
            name: _direction(
                merge(one.directions[name] for one in case.runs if name in one.directions),
                figure,
            )
            for name in names
        },
    }


def _direction(found: Distribution, figure: str) -> dict[str, Any]:
    """All rounds of a direction together, in fio's shape."""
    return {
        "total_ios": found.ios,
        "iops": found.iops,
        "bw": int(found.bandwidth) // 1024,
        "bw_bytes": int(found.bandwidth),
        "errors": found.errors,
        f"{figure}_ns": {
            "min": found.min, "max": found.max, "mean": found.mean, "stddev": found.stddev,
            "N": found.ios,
            "percentile": {f"{p:.6f}": ns for p, ns in found.percentiles.items()},
            "bins": {str(high): count for _, high, count in found.buckets},
        },
    }  # fmt: skip
