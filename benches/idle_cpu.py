#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What waiting costs: the CPU that this process uses while nothing, or little, happens.

    benches/idle_cpu.py [--seconds N] [--json] [--write]

CPU time of this process (not of the device) over wall time. The device is `soft:`; in the first
case it is stopped (SIGSTOP), so that a command stays in flight for all of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bench_support import machine, write_section

from udrv import soft
from udrv.nvme import HYBRID, Controller
from udrv.nvme.queue import Queue
from udrv.soft import SoftProcess
from udrv.vfio.user import from_socket

#: Percent of a CPU that a process which waits in hybrid mode may use.
GOAL = 1.0


@dataclass
class Figure:
    """One row."""

    case: str
    wait: str
    cpu_percent: float


def share(work: Callable[[], object]) -> float:
    """Percent of a CPU that this process used meanwhile."""
    begin, cpu = time.monotonic(), time.process_time()
    work()
    return 100 * (time.process_time() - cpu) / (time.monotonic() - begin)


def one_in_flight(ctrl: Controller, process: SoftProcess, queue: Queue, seconds: float) -> float:
    """A command that the device does not answer."""
    batch = queue.batch(1, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4096))
    os.kill(process.pid, signal.SIGSTOP)
    go_on = threading.Timer(seconds + 0.2, os.kill, [process.pid, signal.SIGCONT])
    go_on.start()
    queue.submit(batch)
    # short waits, so that nothing asks the stopped device whether it is there
    used = share(lambda: [queue.reap(1, timeout=0.09) for _ in range(round(seconds / 0.09))])
    go_on.join()
    queue.reap(1, timeout=10)
    batch.close()
    return used


def now_and_then(ctrl: Controller, queue: Queue, seconds: float) -> float:
    """Ten reads a second."""
    batch = queue.batch(1, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4096))

    def work() -> None:
        for _ in range(round(seconds * 10)):
            queue.submit(batch)
            queue.reap(1, timeout=10)
            time.sleep(0.1)

    return share(work)


def event_loop(ctrl: Controller, seconds: float) -> float:
    """An event loop with a queue that has nothing to do."""

    async def main() -> float:
        await ctrl.namespace(1).read_async(0, 1)
        begin, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        return 100 * (time.process_time() - cpu) / (time.monotonic() - begin)

    return asyncio.run(main())


def measure(seconds: float) -> list[Figure]:
    """All cases."""
    figures = []
    process = soft.start("size=64M")
    with process, Controller(from_socket(process.socket, "soft:")) as ctrl:
        for wait, options in (
            ("poll", {}),
            ("interrupt", {"interrupt": True}),
            ("hybrid", {"interrupt": True, "spin_ns": HYBRID}),
        ):
            with ctrl.create_queue(**options) as queue:  # type: ignore[arg-type]
                used = one_in_flight(ctrl, process, queue, seconds)
                figures.append(Figure("one command that is not answered", wait, round(used, 3)))
                used = now_and_then(ctrl, queue, seconds)
                figures.append(Figure("ten reads a second", wait, round(used, 3)))
        figures.append(Figure("an idle event loop", "asyncio", round(event_loop(ctrl, seconds), 3)))
    return sorted(figures, key=lambda f: f.case)


def table(figures: list[Figure], seconds: float) -> str:
    """The section of RESULTS.md."""
    worst = max(f.cpu_percent for f in figures if f.wait in ("hybrid", "asyncio"))
    return "\n".join([
        "## What waiting costs", "", machine("python benches/idle_cpu.py --write"), "",
        "| | wait | CPU of the waiting process, % |", "| --- | --- | ---: |",
        *(f"| {f.case} | {f.wait} | {f.cpu_percent} |" for f in figures), "",
        f"- Over {seconds:g} s each, against `soft:`, whose own CPU is not counted. The goal is "
        f"under {GOAL:g} % in hybrid mode: "
        f"{'met' if worst < GOAL else f'missed by {worst - GOAL:.1f}'}.",
    ])  # fmt: skip


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    figures = measure(options.seconds)
    text = table(figures, options.seconds)
    print(json.dumps([asdict(f) for f in figures], indent=1) if options.json else text)
    if options.write:
        write_section("idle_cpu.py", text)


if __name__ == "__main__":
    main()
