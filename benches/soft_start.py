#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long `soft:` takes to start, and what it does for a client at depth 1 and 32.

    benches/soft_start.py [--starts N] [--ios N] [--json] [--write]

Wall time; each start is a new process. The I/O figures are those of a controller that is served on
a socket (`udrv soft serve`), to a client in another process that polls; both need a CPU of their
own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_support import machine, run_job, write_section

import udrv
from udrv import soft

#: Milliseconds in which a controller is to be there.
GOAL_MS = 200.0
DEPTHS = (1, 32)


@dataclass
class Start:
    """Milliseconds of one way to start: the median and the worst of all starts."""

    case: str
    median_ms: float
    worst_ms: float


@dataclass
class Served:
    """4 KiB random reads: the median of the runs, I/O per second."""

    case: str
    depth: int
    iops: int


def milliseconds(times_ns: list[int]) -> tuple[float, float]:
    """(median, worst)."""
    ordered = sorted(times_ns)
    return round(ordered[len(ordered) // 2] / 1e6, 1), round(ordered[-1] / 1e6, 1)


def starts(count: int) -> list[Start]:
    """All ways to start."""
    made: list[int] = []
    opened: list[int] = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        with soft.start("size=1G"):
            made.append(time.perf_counter_ns() - begin)
        begin = time.perf_counter_ns()
        with udrv.open("soft:?size=1G") as ctrl:
            ctrl.namespace(1).read(0, 1)
            opened.append(time.perf_counter_ns() - begin)
    return [
        Start("the controller's process is ready", *milliseconds(made)),
        Start("opened, and a first block read", *milliseconds(opened)),
    ]


@contextmanager
def server(options: str) -> Iterator[str]:
    """`udrv soft serve`; yields the target."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ctrl.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "udrv.cli.main", "soft", "serve", str(path), options],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            process.stdout.readline()  # ready
            yield f"vfio-user:{path}"
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()


def served(ios: int, runs: int = 5) -> list[Served]:
    """All depths, with mapped and with trapped doorbells, in turn."""
    rates: dict[tuple[str, int], list[float]] = {}
    with server("size=256M") as mapped, server("size=256M&doorbells=trapped") as trapped:
        for _ in range(runs):
            for doorbells, target in (("mapped", mapped), ("trapped", trapped)):
                with udrv.open(target) as ctrl:
                    for depth in DEPTHS:
                        begin = time.perf_counter_ns()
                        run_job(ctrl, depth, "poll", ios)
                        taken = time.perf_counter_ns() - begin
                        rates.setdefault((doorbells, depth), []).append(ios * 1e9 / taken)
    return [Served(doorbells, depth, round(sorted(values)[runs // 2]))
            for (doorbells, depth), values in sorted(rates.items())]


def text(start: list[Start], io: list[Served], count: int) -> str:
    """The section of RESULTS.md."""
    worst = start[0].median_ms
    return "\n".join([
        "## The software device: its start, and what it serves", "",
        machine("python benches/soft_start.py --write"), "",
        "| start | median, ms | worst, ms |", "| --- | ---: | ---: |",
        *(f"| {s.case} | {s.median_ms} | {s.worst_ms} |" for s in start), "",
        "| doorbells | depth | 4 KiB random reads, IOPS |", "| --- | ---: | ---: |",
        *(f"| {s.case} | {s.depth} | {s.iops} |" for s in io), "",
        f"- {count} starts of each kind; the worst of the second is the first, which imports. "
        f"The goal is {GOAL_MS:g} ms until the process is ready: "
        f"{'met' if worst < GOAL_MS else f'missed by {worst - GOAL_MS:.0f} ms'}.",
        "- I/O by one client that polls, over vfio-user, on memory; median of 5 runs, in turn. "
        "Client and controller each poll, so on fewer than two free CPUs it is the scheduler's "
        f"figure; the load average at the end was {os.getloadavg()[0]:.1f}. Trapped doorbells "
        "use shadow doorbells.",
        "- SPDK's `nvmf_tgt` was not compared: see docs/limits.md.",
    ])  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--ios", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md's section")
    args = parser.parse_args()
    start, io = starts(args.starts), served(args.ios)
    section = text(start, io, args.starts)
    if args.json:
        print(json.dumps([asdict(figure) for figure in (*start, *io)]))
    else:
        print(section)
    if args.write:
        write_section("soft_start.py", section)


if __name__ == "__main__":
    main()
