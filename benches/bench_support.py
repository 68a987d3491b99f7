# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: where results go, and what they were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")


def cpu() -> str:
    """The processor's name, as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine(command: str) -> str:
    """Date, command and machine, in one line."""
    return (
        f"{datetime.datetime.now(datetime.UTC).date()}, `{command}`. {cpu()}, "
        f"{os.cpu_count()} CPUs, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}."
    )


def write_section(name: str, text: str) -> None:
    """Replace the section of RESULTS.md that the script `name` wrote, or add it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    section = f"{begin}\n{text}\n{end}"
    if begin in old:
        before, rest = old.split(begin, 1)
        new = before + section + rest.split(end, 1)[1]
    else:
        new = old.rstrip() + f"\n\n{section}\n"
    RESULTS.write_text(new)


def run_job(
    ctrl: Any, depth: int, wait: str, ios: int, *, timeout: float = 60.0,
    meter: Callable[[], int] = lambda: 0,
) -> tuple[int, int]:  # fmt: skip
    """4 KiB random reads by the load generator's loop, in this thread and with nothing beside it.

    `wait` is "poll", "interrupt" or "hybrid" (50 us). Returns by how much `meter` grew during the
    loop, and how often the loop looked for completions in vain.
    """
    from udrv.bench.job import SPIN_ONLY, Job, Spec

    ns = ctrl.namespace(1)
    spin = {"poll": SPIN_ONLY, "interrupt": 0, "hybrid": 50_000}[wait]
    entries = 1 << max(6, depth.bit_length())
    interrupt = wait != "poll" and not ctrl.backend.sleeps_without_eventfd  # as udrv-bench does
    with ctrl.create_queue(entries=entries, interrupt=interrupt, one_thread=True) as queue:
        buffer = ctrl.alloc(depth * 4096)
        batch = queue.batch(1, namespace=ns, buffer=buffer)
        spec = Spec(
            iodepth=depth, unit_blocks=4096 // ns.lba_size, buffer_stride=4096,
            units=ns.nsze * ns.lba_size // 4096, max_ios=ios, timeout_ns=int(timeout * 1e9),
            spin_ns=spin,
        )  # fmt: skip
        job = Job(spec, queue=queue.pair.loop_c, base=batch.c, buffer_address=buffer.address)
        with queue.lease_c():
            before = meter()
            code = job.run()
            taken = meter() - before
        if code:
            raise SystemExit(f"a job ended with {code}")
        if job.result.unfinished:  # on a device that never answers
            queue.pair.quarantine()
            queue.pair.release_all()
        return taken, int(job.result.empty_polls)
