#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""User instructions per I/O of submit and complete, counted by callgrind.

Needs gcc and valgrind, nothing else. What is counted is `udrv_qp_submit()` and `udrv_qp_reap()` as
they are compiled for the wheel (-O2, no -march), on a device in the same process whose own work is
left out. Each add-on is switched on by itself. `--write` puts the tables into RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench_support import write_section

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "udrv/core"
ROUNDS = 1000
CASES = [(1, 4096), (32, 4096), (128, 4096), (1, 131072), (32, 131072), (128, 131072)]

#: What can be on or off. Without checks only here: they cannot be switched off in a driver.
CHECKS, TIMESTAMPS, HISTOGRAM = "checks", "timestamps", "histogram"
WINDOWS, RECORDS = "windows", "records"
BASE = [CHECKS, TIMESTAMPS]
STREAMS = [[*BASE, WINDOWS], [*BASE, WINDOWS, RECORDS]]
ADDONS = [[], [CHECKS], [TIMESTAMPS], BASE, *STREAMS]
#: The dearest orders: no command is like the one before, no completion of the same batch; and each
#: command with a doorbell, and so a latency and a depth, of its own.
MIXED, SINGLES = "submit + reap, mixed", "submit + reap, one doorbell each"
ORDERS = {MIXED: 1, SINGLES: 2}
MIXED_DEPTHS = (32, 128)
#: Instructions per I/O that are not to be passed, by (depth, bytes, add-ons).
GOALS = {(32, 4096, (CHECKS,)): 80, (32, 4096, tuple(STREAMS[0])): 105,
         (32, 4096, tuple(STREAMS[1])): 130, (32, 131072, tuple(BASE)): 180}  # fmt: skip

#: Published figures of other drivers.
OTHERS = [
    ("vroom", "88", "no tracker, no PRPs"),
    ("libvfn", "92", "an address that is ready, no PRPs"),
    ("libvfn", "548", "its PRP helper"),
    ("uPCIe", "111", ""),
    ("SPDK", "541 to 610", "its public API"),
]


@dataclass
class Figure:
    """One row; the keys are those of `--json`."""

    case: str
    transport: str
    depth: int
    bytes: int
    instructions_per_io: float
    addons: list[str] = field(default_factory=list)


def build(folder: Path, checks: bool) -> Path:
    """The counted program, with the flags of the extension module."""
    program = folder / f"instructions-{checks:d}"
    names = ("qp", "qp_reap", "qp_recover", "qp_state", "wait", "clock", "hist",
             "stream", "stream_pass", "stream_read", "stream_ring", "window")  # fmt: skip
    sources = [CORE / "src" / f"{name}.c" for name in names]
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-fno-tree-slp-vectorize", "-g", "-pthread",
         f"-DUDRV_CHECKS={checks:d}",
         "-Wall", "-Wextra", f"-I{CORE}/include", ROOT / "benches/instructions.c", *sources,
         "-o", program],
        check=True,
    )  # fmt: skip
    return program


def count(
    program: Path, function: str, depth: int, size: int, addons: list[str], order: int = 0
) -> float:
    """Instructions per I/O inside of one function and what it calls."""
    timed, stream = int(TIMESTAMPS in addons), (WINDOWS in addons) + (RECORDS in addons)
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", "--collect-atstart=no",
             f"--callgrind-out-file={folder}/out", f"--toggle-collect={function}",
             program, *map(str, (depth, size, ROUNDS, timed, order, stream))],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    found = re.search(r"Collected : (\d+)", run.stderr)
    if found is None:
        raise SystemExit(f"valgrind did not say what it collected:\n{run.stderr}")
    return int(found[1]) / (ROUNDS * depth)


def measure() -> list[Figure]:
    """Submit and reap apart, and their sum, for each case."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        programs = {checks: build(Path(folder), checks) for checks in (False, True)}
        for addons in ADDONS:
            for depth, size in CASES:
                parts = {
                    name: count(programs[CHECKS in addons], f"udrv_qp_{name}", depth, size, addons)
                    for name in ("submit", "reap")
                }
                parts["submit + reap"] = sum(parts.values())
                figures += [Figure(name, "memory", depth, size, round(n, 1), addons)
                            for name, n in parts.items()]  # fmt: skip
        for depth, size in CASES:
            n = count(programs[True], "histogram", depth, size, BASE)
            figures.append(Figure("histogram", "memory", depth, size, round(n, 1), [HISTOGRAM]))
        for addons in (BASE, *STREAMS):
            for case, order in ORDERS.items():
                for depth in MIXED_DEPTHS:
                    n = sum(count(programs[True], f"udrv_qp_{name}", depth, 4096, addons, order)
                            for name in ("submit", "reap"))  # fmt: skip
                    figures.append(Figure(case, "memory", depth, 4096, round(n, 1), addons))
    return figures


def version(*command: str) -> str:
    """The first line that a program says of itself."""
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.splitlines()[0]


def verdict(figure: float, goal: int) -> str:
    """Whether a figure meets the goal."""
    return "met" if figure <= goal else f"missed by {figure - goal:.0f}"


def table(figures: list[Figure]) -> str:
    """The section of RESULTS.md."""
    every: dict[tuple[int, int, tuple[str, ...]], dict[str, float]] = {}
    for f in figures:
        every.setdefault((f.depth, f.bytes, tuple(f.addons)), {})[f.case] = f.instructions_per_io
    both = (CHECKS, TIMESTAMPS)
    total = {key: row["submit + reap"] for key, row in every.items() if HISTOGRAM not in key[2]}
    record = every[32, 4096, (HISTOGRAM,)][HISTOGRAM]
    def dear(case: str, depth: int) -> str:
        return " | ".join(f"{every[depth, 4096, tuple(a)][case]:.1f}" for a in (BASE, *STREAMS))

    lines = [
        "## User instructions per I/O",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}, `python benches/instructions.py --write`.",
        "",
        "With tracker, PRPs, all checks and timestamps; all columns filled:",
        "",
        "| depth | bytes | submit | reap | submit + reap |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {depth} | {size:,} | {row['submit']} | {row['reap']} | **{row['submit + reap']}** |"
            for (depth, size, addons), row in every.items() if addons == both
        ),
        "",
        "What each add-on costs (submit + reap):",
        "",
        "| depth | bytes | tracker and PRPs | + checks | + timestamps | both | + windows | "
        "+ records |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {depth} | {size:,} | " + " | ".join(
                f"{total[depth, size, tuple(addons)]:.1f}" for addons in ADDONS
            ) + " |"
            for depth, size in CASES
        ),
        "",
        "In the dearest orders, submit + reap of 4 KiB: *mixed*, reads and writes in turn from two "
        "batches that complete in turn, so that no command has the shape or the batch of the one "
        "before; *one doorbell each*, so that no command has the submit time, depth and latency of "
        "the one before:",
        "",
        "| order | depth | checks and timestamps | + windows | + records |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {case.partition(', ')[2]} | {depth} | {dear(case, depth)} |"
            for case in ORDERS for depth in MIXED_DEPTHS
        ),
        "",
        "| goal | depth | bytes | at most | |",
        "| --- | ---: | ---: | ---: | --- |",
        *(
            f"| {' and '.join(key[2])} | {key[0]} | {key[1]:,} | {goal} | "
            f"{total[key]:.1f}: {verdict(total[key], goal)} |"
            for key, goal in GOALS.items()
        ),
        "",
        "Others, by the same method (callgrind, 4 KiB reads, submit and complete, a device in "
        "memory that is not counted, the same compiler level), on another machine; instruction "
        "counts do not depend on it:",
        "",
        "| | instructions | with |",
        "| --- | ---: | --- |",
        *(f"| {name} | {n} | {what} |" for name, n, what in OTHERS),
        "",
        "- The device is in the same process and is not counted. Rings of 256 entries, as "
        "`create_queue` makes them. Data at page boundaries in a pool with a PRP table; a list "
        "that would pass the end of a page of the table is written anew, at 4 instructions a page.",
        f"- A histogram is not the driver's, but the load generator's: {record:.1f} an I/O at "
        "depth 32 (count, sum, sum of squares, extremes and a bucket of `udrv_hist_record()`). A "
        "stream's windows have the same buckets; completions of one doorbell and shape that are "
        "reaped together are one addition to theirs.",
        "- Commands of one shape (reads of one size) from one batch: what follows from the shape "
        "is worked out when it changes.",
        "- The driver has no switch for its checks: they were compiled out to count them.",
        f"- {version('gcc', '--version')}, -O2, {platform.machine()}; "
        f"{version('valgrind', '--version')} (callgrind). Counts do not depend on the load.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    figures = measure()
    print(json.dumps([asdict(f) for f in figures], indent=1) if options.json else table(figures))
    if options.write:
        write_section("instructions.py", table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
