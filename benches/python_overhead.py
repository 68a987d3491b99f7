#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What Python adds to a command, on a device that takes no time.

    benches/python_overhead.py [--rounds N] [--json] [--write]

The device is memory: before each lap its completions are written, for the commands that will come,
so that the first look at the queue finds them. `Queue.submit` and `Queue.reap` are timed beside a
C loop of the same two functions, `Namespace.read` beside one of `udrv_lane_run`, in turns, on the
same queue. Printed are the medians of both and of their differences. Needs gcc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_support import machine, write_section
from null_device import NullBackend, NullPair

from udrv.core import ffi
from udrv.nvme import Controller

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "udrv/core"
BATCHES = (1, 8, 32, 128)
#: Nanoseconds a command that Python may add.
GOALS = {"read": 2500, 32: 60, 128: 60}


@dataclass
class Figure:
    """One row: nanoseconds a command."""

    case: str
    batch: int
    python_ns: float
    c_ns: float
    added_ns: float
    goal_ns: int | None = None


def c_loops(folder: str) -> ctypes.CDLL:
    """The C loops, over the sources of the core itself."""
    path = Path(folder) / "loops.so"
    names = ("qp", "qp_reap", "qp_recover", "qp_state", "queue", "wait", "lane", "clock",
             "stream", "stream_pass", "stream_read", "stream_ring", "window", "hist")  # fmt: skip
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-fno-tree-slp-vectorize", "-shared", "-fPIC",
         "-pthread", f"-I{CORE}/include", ROOT / "benches/python_overhead.c",
         *(CORE / f"src/{name}.c" for name in names), "-o", path],
        check=True,
    )  # fmt: skip
    loops = ctypes.CDLL(str(path))
    assert loops.udrv_core_init() == 0
    return loops


def address(c: Any) -> ctypes.c_void_p:
    """A cffi pointer for ctypes."""
    return ctypes.c_void_p(int(ffi.cast("uintptr_t", c)))


def medians(laps: int, pair: NullPair, n: int, ways: dict[str, Callable[[int], None]]) -> list[Any]:
    """Per way, nanoseconds a command of each lap; the ways take turns."""
    rounds = pair.entries // n
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for lap in range(laps):
        for name in ways if lap % 2 else reversed(ways):
            pair.complete_ahead(n)
            begin = time.perf_counter_ns()
            ways[name](rounds)
            taken[name].append((time.perf_counter_ns() - begin) / (rounds * n))
    return [np.array(taken[name]) for name in ways]


def figure(case: str, batch: int, python: Any, c: Any) -> Figure:
    """The row of one case."""
    return Figure(
        case, batch, *(round(statistics.median(v.tolist()), 1) for v in (python, c, python - c)),
        GOALS.get("read" if case == "read" else batch),
    )  # fmt: skip


def measure(laps: int) -> list[Figure]:
    """All cases."""
    figures = []
    with tempfile.TemporaryDirectory() as folder, Controller(NullBackend()) as ctrl:
        loops = c_loops(folder)
        ns = ctrl.namespace(1)
        buffer = ctrl.alloc(4096)
        ctrl.backend.answer_all = True  # type: ignore[attr-defined]
        ns.read(0, 1, into=buffer)  # makes the lane
        lane, target = ctrl.lanes[0], buffer.aimed[2]
        pair = lane.queue.pair
        assert isinstance(pair, NullPair)

        def python_reads(rounds: int) -> None:
            read = ns.read
            for _ in range(rounds):
                read(5, 1, into=buffer)

        # made once: a lap has 64 reads only, and ctypes is none of C's time
        handles = address(lane.c), address(target), ctypes.c_uint64(5)

        def c_reads(rounds: int) -> None:
            assert loops.reads(*handles, 1, rounds) == 0

        # a lap of a shared queue is short: more of them
        figures.append(figure("read", 1, *medians(
            laps * 30, pair, 1, {"python": python_reads, "c": c_reads}
        )))
        for n in BATCHES:
            with ctrl.create_queue(entries=4096) as queue:
                made = queue.pair
                assert isinstance(made, NullPair)
                batch = queue.batch(n, namespace=ns, buffer=ctrl.alloc(4096 * n))
                batch.offset[:] = np.arange(n) * 4096
                columns = queue.completions

                def python_batches(rounds: int) -> None:
                    for _ in range(rounds):
                        queue.submit(batch)  # noqa: B023 - called in this iteration
                        queue.reap(n, n)  # noqa: B023

                def c_batches(rounds: int) -> None:
                    handles = (address(c) for c in (made.c, batch.c, columns.c))  # noqa: B023
                    assert loops.batches(*handles, n, rounds) == 0  # noqa: B023

                figures.append(figure("batch", n, *medians(
                    laps, made, n, {"python": python_batches, "c": c_batches}
                )))
    return figures


def table(figures: list[Figure], laps: int) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## What Python adds to a command", "",
        machine("python benches/python_overhead.py --write"), "",
        "| | batch | Python, ns | C loop, ns | Python adds, ns | goal |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for f in figures:
        goal = ""
        if f.goal_ns is not None:
            met = f.added_ns <= f.goal_ns
            goal = f"{f.goal_ns}: {'met' if met else f'missed by {f.added_ns - f.goal_ns:.0f}'}"
        what = "`Namespace.read`" if f.case == "read" else "`Queue.submit` and `reap`"
        lines.append(
            f"| {what} | {f.batch} | {f.python_ns} | {f.c_ns} | **{f.added_ns}** | {goal} |"
        )
    return "\n".join([
        *lines, "",
        "- Commands of 4 KiB; nanoseconds a command, in batches too. The device is memory and "
        "takes no time: its completions lie ready.",
        f"- Medians of {laps} laps of 4096 commands (reads: {laps * 30} laps of 64), Python and C "
        "in turns on one queue; the difference is the median of the differences, lap by lap.",
        "- Others, published, on another machine: a read through xNVMe's ctypes bindings costs "
        "2,800 to 3,200 ns on a device that takes no time.",
    ])  # fmt: skip


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="laps of each case")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    figures = measure(options.rounds)
    text = table(figures, options.rounds)
    print(json.dumps([asdict(f) for f in figures], indent=1) if options.json else text)
    if options.write:
        write_section("python_overhead.py", text)


if __name__ == "__main__":
    main()
