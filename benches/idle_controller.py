#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an idle software controller costs: its CPU while its client does nothing, in all modes.

    benches/idle_controller.py [--seconds N] [--json] [--write]

CPU time of the controller's process over wall time, from /proc/PID/schedstat.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_support import machine, write_section

from udrv import soft
from udrv.nvme import Controller
from udrv.vfio.user import from_socket

#: Percent of a CPU that an idle controller may use, whatever its mode.
GOAL = 1.0
#: After the last command it polls, then naps ever longer, for a second.
SETTLE_S = 1.5

CONNECTED, READY = "connected only", "a queue that was used"


@dataclass
class Figure:
    """One row. `shadow`: the client uses shadow doorbells; None where it has no queue."""

    client: str
    doorbells: str
    shadow: bool | None
    cpu_percent: float


def cpu_ns(pid: int) -> int:
    """CPU time of a process with one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def idle(doorbells: str, shadow: bool | None, seconds: float) -> Figure:
    """One mode."""
    with ExitStack() as stack:
        process = stack.enter_context(soft.start(f"size=64M&doorbells={doorbells}"))
        device = stack.enter_context(from_socket(process.socket, "soft:"))
        if shadow is not None:
            ctrl = stack.enter_context(Controller(device, shadow_doorbells=shadow))
            ctrl.namespace(1).read(0, 1)
        time.sleep(SETTLE_S)
        begin, cpu = time.monotonic(), cpu_ns(process.pid)
        time.sleep(seconds)
        used = (cpu_ns(process.pid) - cpu) / 1e9 / (time.monotonic() - begin)
    client = CONNECTED if shadow is None else READY
    return Figure(client, doorbells, shadow, round(100 * used, 3))


def measure(seconds: float) -> list[Figure]:
    """All modes."""
    return [
        idle(doorbells, shadow, seconds)
        for shadow in (None, False, True) for doorbells in ("mapped", "trapped")
    ]  # fmt: skip


def table(figures: list[Figure], seconds: float) -> str:
    """The section of RESULTS.md."""
    worst = max(f.cpu_percent for f in figures)
    words = {None: "", False: "no", True: "yes"}
    return "\n".join([
        "## What an idle software controller costs", "",
        machine("python benches/idle_controller.py --write"), "",
        "| client | doorbells | shadow doorbells | CPU of the controller, % |",
        "| --- | --- | --- | ---: |",
        *(f"| {f.client} | {f.doorbells} | {words[f.shadow]} | {f.cpu_percent} |"
          for f in figures), "",
        f"- Over {seconds:g} s each, {SETTLE_S:g} s after the last command. The goal is under "
        f"{GOAL:g} % in every mode: "
        f"{'met' if worst < GOAL else f'missed by {worst - GOAL:.1f}'}.",
    ])  # fmt: skip


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each mode")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    figures = measure(options.seconds)
    text = table(figures, options.seconds)
    print(json.dumps([asdict(f) for f in figures], indent=1) if options.json else text)
    if options.write:
        write_section("idle_controller.py", text)


if __name__ == "__main__":
    main()
