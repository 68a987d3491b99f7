#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the completion stream costs in time: a record in C, and handing a thousand to Python.

The C side is the program of instructions.py: submit and complete on a device in memory at depth 32,
with and without windows and records, in three orders. Each variant runs many times, in turn with
the
others, and the fastest run of each counts: the machine's other work only adds. `--write` puts the
table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import instructions
from bench_support import write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

DEPTH = 32
ORDERS = {"alike": 0, "mixed": 1, "one doorbell each": 2}
WINDOWS, RECORDS = "windows", "windows and records"
STREAMS = {"none": 0, WINDOWS: 1, RECORDS: 2}
HAND_OFF = "hand-off to Python"
ROUNDS = 20_000
REPEATS = 9


@dataclass
class Figure:
    """One row; the keys are those of `--json`."""

    case: str
    order: str
    ns_per_record: float


def cpu_seconds(program: Path, order: int, stream: int) -> float:
    """User time of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(
        [program, *map(str, (DEPTH, 4096, ROUNDS, 1, order, stream))], check=True
    )
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def native() -> list[Figure]:
    """Nanoseconds that windows, and windows and records, add to a command."""
    with tempfile.TemporaryDirectory() as folder:
        program = instructions.build(Path(folder), checks=True)
        best = {(order, stream): float("inf") for order in ORDERS for stream in STREAMS}
        for _ in range(REPEATS):
            for (order, stream), least in best.items():
                taken = cpu_seconds(program, ORDERS[order], STREAMS[stream])
                best[order, stream] = min(least, taken)
    per = 1e9 / (ROUNDS * DEPTH)
    return [
        Figure(stream, order, round((best[order, stream] - best[order, "none"]) * per, 1))
        for stream in (WINDOWS, RECORDS) for order in ORDERS
    ]


def hand_off() -> tuple[float, float]:
    """Nanoseconds a record to get full chunks as batches, and with a view of every column."""
    from stream_process import Source, stream_of

    from udrv.core import lib

    source = Source()
    best = [float("inf"), float("inf")]
    with stream_of(source, chunks=64) as stream:
        for _ in range(20):
            source.run(60 * int(lib.UDRV_RECORD_ROWS))
            start = time.perf_counter_ns()
            batches = stream.poll()
            polled = time.perf_counter_ns() - start
            columns = [batch.columns for batch in batches]
            viewed = time.perf_counter_ns() - start
            rows = sum(map(len, batches))
            best = [min(best[0], polled / rows), min(best[1], viewed / rows)]
            del columns, batches
    return best[0], best[1]


def measure() -> list[Figure]:
    """All of it."""
    batches, columns = hand_off()
    return [
        *native(),
        Figure(HAND_OFF, "batches", round(batches, 2)),
        Figure(HAND_OFF, "batches, all columns", round(columns, 2)),
    ]


def table(figures: list[Figure]) -> str:
    """The section of RESULTS.md."""
    return "\n".join([
        "## The completion stream",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}, `python benches/stream.py --write`.",
        "",
        "Nanoseconds that it adds to a command, above the same run without (4 KiB at depth "
        f"{DEPTH}; user time of the fastest of {REPEATS} runs each):",
        "",
        "| what | order | ns |",
        "| --- | --- | ---: |",
        *(f"| {f.case} | {f.order} | {f.ns_per_record} |" for f in figures),
        "",
        "- *alike*: batches of reads of one size; *mixed*: reads and writes in turn from two "
        "batches that complete in turn; *one doorbell each*: each command is submitted by itself.",
        "- Of runs that take 10 to 50 ns a command: a machine with other work moves these figures "
        "by some nanoseconds, and what is less than none is that. Instructions are above.",
        "- The hand-off is `poll()` of full chunks, and then a view of every column: a record's "
        "share of it, so that nanoseconds here are microseconds for a thousand records.",
    ])  # fmt: skip


def main() -> int:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    figures = measure()
    print(json.dumps([asdict(f) for f in figures], indent=1) if options.json else table(figures))
    if options.write:
        write_section("stream.py", table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
