#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How `soft:` and the driver scale: jobs with a queue each, depth, size of a read.

    python benches/scaling.py [--rounds N] [--seconds S] [--json] [--write]

Random reads, polled, on a software controller in a process of its own, which has a CPU for itself;
one of the three changes, the others stay at 1 job, depth 32, 4 KiB. The points of a round are
measured one after the other, and the rounds repeat them: the best of each counts. --write puts the
tables into benches/RESULTS.md and a plot of each into benches/plots/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_support import machine, write_section

PLOTS = Path(__file__).with_name("plots")
TARGET = "soft:?size=256M&lba=512&mqes=2048&mdts=8&queues=8"
JOBS = (1, 2, 3, 4, 5, 6, 7, 8)
DEPTHS = tuple(1 << n for n in range(11))
SIZES = tuple(512 << n for n in range(12))
#: What changes: name, points, title of its axis.
SWEEPS = {
    "jobs": (JOBS, "jobs, a queue and a thread each"),
    "depth": (DEPTHS, "depth of the one queue"),
    "bytes": (SIZES, "bytes of a read"),
}


@dataclass
class Point:
    """One point; the keys are those of `--json`. Latencies are microseconds."""

    case: str
    transport: str
    jobs: int
    depth: int
    bytes: int
    iops: float
    bytes_per_second: float
    p50: float
    p99: float
    iops_min: float = 0.0
    iops_max: float = 0.0

    @property
    def x(self) -> int:
        """What changes in this sweep."""
        return int(getattr(self, self.case))


def pin(device: bool) -> None:
    """Go to the device's CPU or to all others, if there are two."""
    first, *others = sorted(os.sched_getaffinity(os.getppid()))
    if others:
        os.sched_setaffinity(0, {first} if device else set(others))


def measure(rounds: int, seconds: float) -> list[Point]:
    """All sweeps."""
    import udrv
    from udrv.bench import BenchConfig, run

    found: dict[tuple[str, int], list[Point]] = {}
    pin(device=True)  # a process that it starts stays where it was started
    with udrv.open(TARGET, queues=max(JOBS)) as ctrl:
        pin(device=False)
        run(ctrl, BenchConfig(rw="write", bs=1 << 20, iodepth=8, size=256 << 20))  # no holes
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for case, (values, _) in SWEEPS.items():
                for value in values:
                    at = {"jobs": 1, "depth": 32, "bytes": 4096} | {case: value}
                    result = run(ctrl, BenchConfig(
                        rw="randread", bs=at["bytes"], iodepth=at["depth"], numjobs=at["jobs"],
                        runtime=seconds,
                    ))  # fmt: skip
                    clat = result.read.clat.percentiles
                    found.setdefault((case, value), []).append(Point(
                        case, "soft", **at, iops=result.read.iops,
                        bytes_per_second=result.read.bandwidth, p50=clat[50.0] / 1e3,
                        p99=clat[99.0] / 1e3,
                    ))  # fmt: skip
    return [merge(points) for points in found.values()]


def merge(points: list[Point]) -> Point:
    """The best of one point's rounds: what else the machine does only takes away."""
    merged = Point(**asdict(max(points, key=lambda p: p.iops)))
    for name in ("iops", "bytes_per_second", "p50", "p99"):
        setattr(merged, name, round(getattr(merged, name), 1))
    merged.iops_min = round(min(p.iops for p in points), 1)
    merged.iops_max = round(max(p.iops for p in points), 1)
    return merged


# --- plots and tables ----------------------------------------------------------------------------


def plot(case: str, points: list[Point]) -> None:
    """One SVG: rate above, latency below. The same points give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": case, "svg.fonttype": "none", "font.size": 10, "axes.grid": True,
             "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    with pyplot.rc_context(style):
        figure, (above, below) = pyplot.subplots(
            2, 1, sharex=True, figsize=(7, 5.5), height_ratios=(3, 2)
        )
        xs = [p.x for p in points]
        if case == "bytes":
            above.plot(xs, [p.bytes_per_second / 1e9 for p in points], "o-", label="GB/s")
            above.set_ylabel("GB/s")
        else:
            above.plot(xs, [p.iops / 1e3 for p in points], "o-")
            above.fill_between(
                xs, [p.iops_min / 1e3 for p in points], [p.iops_max / 1e3 for p in points],
                alpha=0.2,
            )  # fmt: skip
            above.set_ylabel("thousand IOPS")
        above.set_ylim(bottom=0)
        below.plot(xs, [p.p50 for p in points], "o-", label="p50")
        below.plot(xs, [p.p99 for p in points], "s--", label="p99")
        below.set_yscale("log")
        below.set_ylabel("latency, µs")
        below.legend(frameon=False)
        if case != "jobs":
            below.set_xscale("log", base=2)
        below.set_xticks(xs, [_short(x) for x in xs])
        below.set_xlabel(SWEEPS[case][1])
        above.set_title(_title(case), loc="left")
        figure.tight_layout()
        PLOTS.mkdir(exist_ok=True)
        figure.savefig(PLOTS / f"scaling-{case}.svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _short(n: int) -> str:
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


def _title(case: str) -> str:
    fixed = {"jobs": "1 job", "depth": "depth 32", "bytes": "4 KiB"}
    rest = [text for name, text in fixed.items() if name != case]
    return "soft:, random reads, " + ", ".join(rest)


def section(points: list[Point], rounds: int, seconds: float, load: float) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## Scaling on `soft:`",
        "",
        machine("python benches/scaling.py --write"),
        f"Random reads, polled, `{TARGET}`, {rounds} rounds of {seconds:g} s a point, the best of "
        "each. "
        f"Load average when it began {load:.1f}.",
    ]
    for case, (_, axis) in SWEEPS.items():
        some = [p for p in points if p.case == case]
        lines += [
            "", f"![{axis}](plots/scaling-{case}.svg)", "",
            f"| {axis} | IOPS (rounds: min to max) | GB/s | p50 µs | p99 µs |",
            "| ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {_short(p.x)} | {p.iops:,.0f} ({p.iops_min:,.0f} to {p.iops_max:,.0f}) "
                f"| {p.bytes_per_second / 1e9:.2f} | {p.p50:,.1f} | {p.p99:,.1f} |"
                for p in some
            ),
        ]  # fmt: skip
    cpus = len(os.sched_getaffinity(os.getppid()))
    few = (
        "All jobs share the other one: what the curve of jobs shows is that the scheduler's turns "
        "cost little and nothing breaks, not how the driver scales with CPUs. "
        if cpus < 3 else ""
    )
    return "\n".join([
        *lines,
        "",
        "- The device is a process with one thread for all queues, pinned to a CPU of its own; "
        f"this machine has {cpus}. {few}That jobs write no cache line in common is counted, by "
        "`tests/unit/test_bench_sharing.py`.",
        *(
            ["- **The machine was busy**: rates and p99 are what other work left of its CPUs; p50 "
             "tells more. Run it again on a quiet one before you draw conclusions."]
            if load > cpus / 2 else []
        ),
        "- The device copies the data, so large reads are as fast as memory is.",
    ])  # fmt: skip


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and plots/")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    points = measure(options.rounds, options.seconds)
    text = section(points, options.rounds, options.seconds, load)
    print(json.dumps([asdict(p) for p in points], indent=1) if options.json else text)
    if options.write:
        for case in SWEEPS:
            plot(case, [p for p in points if p.case == case])
        write_section("scaling.py", text)


if __name__ == "__main__":
    main()
