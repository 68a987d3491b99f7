#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""System calls per million I/Os, counted by strace.

    python benches/syscalls.py [--soft-only] [--json] [--write]

4 KiB random reads. A program does N and then 3 N of them under `strace -f -c`; what the longer run
called more is of 2 N I/Os, so that starts and ends cancel out. On a host: the load generator's loop
and Python's batches on a software controller over vfio-user, then, in the laboratory, VFIO,
passthrough, the block device, fio and a bare io_uring loop. --write puts the table into
benches/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lab_support as lab
from bench_support import run_job, write_section

SOFT = "udrv vfio-user"
DEPTHS = (1, 32)
#: Calls by which two starts of Python differ (locks of its threads).
NOISE = 10
GOALS = {(SOFT, "polled"): 0, (lab.VFIO, "polled"): 0}


@dataclass
class Figure:
    """One row; the keys are those of `--json`."""

    case: str
    transport: str
    depth: int
    bytes: int
    wait: str
    ios: int
    calls_per_million: float
    calls: dict[str, float] = field(default_factory=dict)  # by name, per million I/Os


def parse_strace(text: str) -> dict[str, int]:
    """Calls by name from what `strace -c` wrote."""
    found = {}
    for line in text.splitlines():
        row = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
        if row and row[2] != "total":
            found[row[2]] = int(row[1])
    return found


def traced(words: Sequence[str]) -> dict[str, int]:
    """Calls by name of a program and its threads."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        done = subprocess.run(
            ["strace", "-f", "-c", "-o", str(out), *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return parse_strace(out.read_text())


def count(words: Callable[[int], Sequence[str]], ios: int) -> dict[str, float]:
    """Calls by name per million I/Os of a program that is told how many to do."""
    short, long = traced(words(ios)), traced(words(3 * ios))
    more = {name: n - short.get(name, 0) for name, n in long.items()}
    return {name: n * 1e6 / (2 * ios) for name, n in more.items() if abs(n) > NOISE}


def figure(case: str, transport: str, depth: int, wait: str, ios: int,
           words: Callable[[int], Sequence[str]]) -> Figure:  # fmt: skip
    """Count one case."""
    print(f"{case}, {wait}, depth {depth}", file=sys.stderr, flush=True)
    calls = count(words, ios)
    return Figure(case, transport, depth, 4096, wait, ios, round(sum(calls.values())),
                  {name: round(rate) for name, rate in calls.items()})  # fmt: skip


def ours(target: str, depth: int, wait: str) -> Callable[[int], Sequence[str]]:
    """The command line of a job of this script."""
    return lambda ios: [
        sys.executable, str(Path(__file__).resolve()), "--job", target, wait, str(depth), str(ios),
    ]  # fmt: skip


def job(target: str, wait: str, depth: int, ios: int) -> None:
    """What is traced: the loop in C, or with "batches" Python's own."""
    import udrv

    with udrv.open(target, queues=1, interrupts=wait in ("interrupt", "hybrid")) as ctrl:
        if wait != "batches":
            run_job(ctrl, depth, wait, ios)
            return
        ns = ctrl.namespace(1)
        with ctrl.create_queue(entries=64) as queue:
            batch = queue.batch(depth, namespace=ns, buffer=ctrl.alloc(depth * 4096))
            batch.opcode[:], batch.nlb[:] = udrv.nvme.READ, 4096 // ns.lba_size
            batch.offset[:] = [k * 4096 for k in range(depth)]
            for _ in range(ios // depth):
                left = queue.submit(batch)
                while left:
                    left -= len(queue.reap(0, timeout=0))


# --- where ---------------------------------------------------------------------------------------


@contextmanager
def served() -> Iterator[str]:
    """A software controller in a process that strace does not follow."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/ctrl.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "udrv.cli.main", "soft", "serve", path, "size=64M&lba=4096"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
            yield f"vfio-user:{path}"
        finally:
            process.terminate()
            process.wait()


def on_soft() -> list[Figure]:
    """Natively, over vfio-user: what VFIO does, without a kernel."""
    found = []
    with served() as target:
        for depth in DEPTHS:
            for wait, ios in (("poll", 300_000), ("hybrid", 20_000), ("interrupt", 20_000),
                              ("batches", 100_000)):  # fmt: skip
                case = "udrv vfio-user, Python's submit and reap" if wait == "batches" else SOFT
                name = "polled" if wait in ("poll", "batches") else wait
                found.append(
                    figure(case, "vfio-user", depth, name, ios, ours(target, depth, wait))
                )
    return found


def in_guest() -> list[Figure]:
    """In the laboratory: the kernel's driver and VFIO on one device."""
    from udrv.lab.info import load

    bdf = str(load().device("UDRVLAB0").bdf)
    ng, block, found = lab.node_of(bdf, "ng"), lab.node_of(bdf, "nvme"), []
    for depth in DEPTHS:
        for driver, node in ((lab.FIO_CMD, ng), (lab.FIO_BLOCK, block)):
            transport = "io_uring-block" if driver == lab.FIO_BLOCK else "io_uring-cmd"
            found.append(figure(
                driver, transport, depth, "interrupt", 1000,
                lambda ios, d=driver, n=node, q=depth: lab.fio_words(d, n, q, ios=ios),
            ))  # fmt: skip
        found.append(figure(
            lab.BARE_LOOP, "io_uring-cmd", depth, "interrupt", 1000,
            lambda ios, q=depth: lab.bare_words(ng, q, ios, 0),
        ))  # fmt: skip
        for driver, transport, node in ((lab.PASSTHROUGH, "io_uring-cmd", ng),
                                        (lab.BLOCK, "io_uring-block", block)):  # fmt: skip
            found.append(figure(driver, transport, depth, "interrupt", 1000,
                                ours(node, depth, "interrupt")))  # fmt: skip
    with lab.on_vfio(bdf):
        for depth in DEPTHS:
            for wait, ios in (("poll", 10_000), ("interrupt", 1000)):
                found.append(figure(
                    lab.VFIO, "vfio", depth, "polled" if wait == "poll" else wait, ios,
                    ours(f"pci:{bdf}", depth, wait),
                ))  # fmt: skip
    return found


# --- the table -----------------------------------------------------------------------------------


def table(figures: list[Figure]) -> list[str]:
    """Markdown."""
    lines = [
        "| depth | driver | completions | calls per million I/Os | goal | which |",
        "| ---: | --- | --- | ---: | --- | --- |",
    ]
    for f in sorted(figures, key=lambda f: f.depth):
        goal = GOALS.get((f.case, f.wait))
        met = "met" if goal is not None and f.calls_per_million <= goal else "missed"
        said = "" if goal is None else f"{goal}: {met}"
        most = sorted(f.calls.items(), key=lambda item: -abs(item[1]))[:3]
        which = ", ".join(f"{name} {rate:,.0f}" for name, rate in most if abs(rate) >= 1)
        lines.append(
            f"| {f.depth} | {f.case} | {f.wait} | {f.calls_per_million:,.0f} | {said} | {which} |"
        )
    return lines


def section(figures: list[Figure]) -> str:
    """The section of RESULTS.md."""
    return "\n".join([
        "## System calls per million I/Os",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}, `python benches/syscalls.py --write`. "
        "4 KiB random reads.",
        "",
        *table(figures),
        "",
        "- Counted by `strace -f -c` as the difference between a run of N I/Os and one of 3 N. "
        f"Up to {NOISE} calls more or fewer in all are the starts'. udrv's is the loop of "
        "`udrv-bench` (C), where the name does not say otherwise.",
        "- vfio-user is measured natively, all else in the laboratory. strace makes system calls "
        "slow, so that more completions gather for each: at depth 32 calls by interrupt are a "
        "lower bound.",
        "- Python's batches are reaped with `timeout=0`. A reap that waits gives its CPU away "
        "(`sched_yield`) once nothing came for 100 µs.",
    ])  # fmt: skip


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--soft-only", action="store_true", help="leave the laboratory out")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from udrv.lab.info import in_guest as inside

    if options.job:
        target, wait, depth, ios = options.job
        job(target, wait, int(depth), int(ios))
        return
    if inside():
        lab.hand_over([asdict(f) for f in in_guest()])
        return
    figures = on_soft()
    if not options.soft_only:
        lab.build_programs()
        fields: list[dict[str, Any]] = lab.in_lab("syscalls.py", [])
        figures += [Figure(**one) for one in fields]
    rows = [asdict(f) for f in figures]
    print(json.dumps(rows, indent=1) if options.json else "\n".join(table(figures)))
    if options.write:
        write_section("syscalls.py", section(figures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
