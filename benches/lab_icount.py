#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Guest instructions per I/O of udrv, fio and a bare io_uring loop, by a clock that counts them.

    python benches/lab_icount.py [--ios N] [--rounds N] [--profile] [--json] [--write]

On a host it boots the laboratory with `--icount` (one CPU, a nanosecond an instruction) and runs
itself there. Counted is all that the guest does: program, system calls, interrupt handlers, kernel
threads; not what the device does. A case runs N and then 3 N reads, and what the longer run took
more, of virtual time without idle time (/proc/timer_list), is the cost of 2 N I/Os: starts and ends
of programs cancel out.

A polling thread has no idle time: it looks at the queue while the emulated device works. The load
generator counts its looks in vain; what one costs is measured on a queue whose device never answers
(null_device.py), and subtracted. Both figures are printed.

--profile samples where the instructions go (perf, every 20 us of virtual time) at depth 32.
--write puts the table into benches/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lab_support as lab
from bench_support import run_job, write_section

DEPTHS = (1, 32)
#: Goals of the project: transport's instructions over those of fio's io_uring_cmd.
GOALS = {(lab.PASSTHROUGH, "interrupt"): 0.8, (lab.VFIO, "interrupt"): 0.25,
         (lab.VFIO, "polled"): 0.25}  # fmt: skip


@dataclass
class Figure:
    """One row; the keys are those of `--json`.

    `spinning` is what looks in vain took, which `instructions_per_io` is without.
    """

    case: str
    transport: str
    depth: int
    bytes: int
    instructions_per_io: float
    wait: str = "interrupt"
    spinning: float = 0.0
    low: float = 0.0
    high: float = 0.0
    addons: list[str] = field(default_factory=lambda: ["checks", "timestamps"])


# --- inside the laboratory -----------------------------------------------------------------------


def busy_ns() -> int:
    """Nanoseconds of virtual time, idle time left out: instructions, since the boot."""
    return parse_timer_list(Path("/proc/timer_list").read_text())


def parse_timer_list(text: str) -> int:
    """The same from the text of /proc/timer_list of a machine with one CPU."""
    now = re.search(r"^now at (\d+) nsecs", text, re.MULTILINE)
    # idle while a task waits for I/O (io_uring says so of its waits) is counted apart
    idle = re.findall(r"^\s*\.(?:idle|iowait)_sleeptime\s*:\s*(\d+) nsecs", text, re.MULTILINE)
    if now is None or len(idle) != 2:
        raise SystemExit("/proc/timer_list has no time or not one CPU's idle times")
    return int(now[1]) - int(idle[0]) - int(idle[1])


def count_program(words: Callable[[int], Sequence[str]], ios: int) -> float:
    """Instructions per I/O of a program that is told how many to do."""
    taken = []
    for n in (ios, 3 * ios):
        before = busy_ns()
        done = subprocess.run(words(n), capture_output=True, text=True, check=False)
        taken.append(busy_ns() - before)
        if done.returncode:
            raise SystemExit(f"{' '.join(words(n))} failed: {done.stderr}")
    return (taken[1] - taken[0]) / (2 * ios)


def count_job(ctrl: Any, depth: int, wait: str, ios: int, look: float) -> tuple[float, float]:
    """(instructions per I/O without looks in vain, those of looks in vain per I/O)."""
    (short, few), (long, many) = (
        run_job(ctrl, depth, wait, n, meter=busy_ns) for n in (ios, 3 * ios)
    )
    in_vain = (many - few) * look / (2 * ios)
    return (long - short) / (2 * ios) - in_vain, in_vain


def cost_of_a_look() -> float:
    """Instructions of one pass of the loop that finds nothing."""
    from null_device import NullBackend

    from udrv.nvme import Controller

    backend = NullBackend()
    with Controller(backend) as ctrl:
        found = []
        for _ in range(7):
            taken, looks = run_job(ctrl, 32, "poll", 32, timeout=0.05, meter=busy_ns)
            found.append(taken / looks)
    return min(found)  # the rest is timer ticks and what else the kernel has to do


def udrv_cases(target: str, driver: str, transport: str, waits: Sequence[str], ios: int,
               look: float) -> list[Figure]:  # fmt: skip
    """Counts of one transport at every depth."""
    import udrv

    found = []
    with udrv.open(target, queues=1, interrupts=True) as ctrl:
        for depth in DEPTHS:
            for wait in waits:
                count, spinning = count_job(ctrl, depth, wait, ios_at(depth, ios), look)
                found.append(Figure(driver, transport, depth, 4096, count, wait, spinning))
    return found


def ios_at(depth: int, ios: int) -> int:
    """More at a depth at which each costs less: a program's start varies by as much as before."""
    return ios if depth == 1 else 4 * ios


def run_round(bdf: str, ios: int, look: float) -> list[Figure]:
    """Every case once."""
    ng, block = lab.node_of(bdf, "ng"), lab.node_of(bdf, "nvme")
    found = []
    for depth in DEPTHS:
        for driver in (lab.FIO_CMD, lab.FIO_BEST, lab.FIO_BLOCK):
            node, transport = (
                (block, "io_uring-block") if driver == lab.FIO_BLOCK else (ng, "io_uring-cmd")
            )
            count = count_program(
                lambda n, d=driver, node=node, q=depth: lab.fio_words(d, node, q, ios=n),
                ios_at(depth, ios),
            )
            found.append(Figure(driver, transport, depth, 4096, count, addons=[]))
        count = count_program(lambda n, q=depth: lab.bare_words(ng, q, n, 0), ios_at(depth, ios))
        found.append(Figure(lab.BARE_LOOP, "io_uring-cmd", depth, 4096, count, addons=[]))
    found += udrv_cases(ng, lab.PASSTHROUGH, "io_uring-cmd", ["interrupt"], ios, look)
    found += udrv_cases(block, lab.BLOCK, "io_uring-block", ["interrupt"], ios, look)
    with lab.on_vfio(bdf):
        found += udrv_cases(f"pci:{bdf}", lab.VFIO, "vfio", ["interrupt", "poll"], ios, look)
    for figure in found:
        if figure.wait == "poll":
            figure.wait = "polled"
    return found


def merge(rounds: list[list[Figure]]) -> list[Figure]:
    """Medians over the rounds."""
    merged = []
    for same in zip(*rounds, strict=True):
        counts = [figure.instructions_per_io for figure in same]
        figure = same[0]
        figure.instructions_per_io = round(statistics.median(counts))
        figure.low, figure.high = round(min(counts)), round(max(counts))
        figure.spinning = round(statistics.median(f.spinning for f in same))
        merged.append(figure)
    return merged


# --- where they go -------------------------------------------------------------------------------


def profile(run: Callable[[], object], top: int = 16) -> list[tuple[float, str]]:
    """(percent, symbol) of the whole machine while something runs, idle time left out."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        perf = subprocess.Popen(
            ["perf", "record", "-q", "-a", "-e", "cpu-clock", "-c", "100000", "-o", str(data)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(3)  # it has started
        run()
        perf.send_signal(signal.SIGINT)
        perf.wait()
        report = subprocess.run(
            ["perf", "report", "-i", str(data), "--stdio", "-q", "--sort", "dso,symbol"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    return parse_profile(report)[:top]


def parse_profile(report: str) -> list[tuple[float, str]]:
    """(percent of what is not idle, "object symbol"), the largest first."""
    rows = []
    for line in report.splitlines():
        found = re.match(r"\s*([\d.]+)%\s+(\S+)\s+\[([.k])\]\s+(.+?)\s*$", line)
        if found and not re.search(r"pv_native_safe_halt|default_idle|acpi_safe_halt", found[4]):
            where = "kernel" if found[3] == "k" else Path(found[2]).name
            rows.append((float(found[1]), f"{where}: {found[4].split('  ')[0]}"))
    whole = sum(percent for percent, _ in rows) or 1.0
    return sorted(((100 * p / whole, s) for p, s in rows), reverse=True)


def profiles(bdf: str) -> dict[str, list[tuple[float, str]]]:
    """Of fio's passthrough, the bare loop's and ours, at depth 1 and 32."""
    import udrv

    # the kernel would sample less often: what a sample takes counts in emulated time
    Path("/proc/sys/kernel/perf_cpu_time_max_percent").write_text("0")

    node = lab.node_of(bdf, "ng")

    def program(words: Sequence[str]) -> None:
        subprocess.run(words, check=True, capture_output=True)

    found = {}
    for depth, ios in ((1, 5000), (32, 20_000)):
        for name, words in (
            (lab.FIO_CMD, lab.fio_words(lab.FIO_CMD, node, depth, ios=ios)),
            (lab.BARE_LOOP, lab.bare_words(node, depth, ios, 0)),
        ):
            found[f"{name}, depth {depth}"] = profile(lambda w=words: program(w))
        with udrv.open(node, queues=1, interrupts=True) as ctrl:
            found[f"{lab.PASSTHROUGH}, depth {depth}"] = profile(
                lambda c=ctrl, q=depth, n=ios: run_job(c, q, "interrupt", n)
            )
    return found


def measure(ios: int, rounds: int, with_profile: bool) -> dict[str, Any]:
    """All rounds, after a first use that is not kept."""
    from udrv.lab.info import load

    info = load()
    bdf = str(info.device("UDRVLAB0").bdf)
    look = cost_of_a_look()
    run_round(bdf, 50, look)
    found = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        found.append(run_round(bdf, ios, look))
    return {
        "ios": ios, "rounds": rounds, "look": look, "kernel": info.kernel,
        "figures": [asdict(figure) for figure in merge(found)],
        "profiles": profiles(bdf) if with_profile and shutil.which("perf") else {},
    }  # fmt: skip


# --- the table -----------------------------------------------------------------------------------


def table(figures: list[Figure]) -> list[str]:
    """Markdown: each case beside fio's io_uring_cmd at the same depth."""
    base = {f.depth: f.instructions_per_io for f in figures if f.case == lab.FIO_CMD}
    lines = [
        "| depth | driver | completions | instructions per I/O (min to max) | / fio | goal "
        "| and looks in vain |",
        "| ---: | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for f in sorted(figures, key=lambda f: f.depth):
        ratio = f.instructions_per_io / base[f.depth]
        goal = GOALS.get((f.case, f.wait))
        said = "" if goal is None else f"{goal}: {verdict(ratio, goal)}"
        lines.append(
            f"| {f.depth} | {f.case} | {f.wait} | {f.instructions_per_io:,.0f} "
            f"({f.low:,.0f} to {f.high:,.0f}) | {ratio:.2f} | {said} "
            f"| {f'{f.spinning:,.0f}' if f.wait == 'polled' else ''} |"
        )
    return lines


def verdict(ratio: float, goal: float) -> str:
    """Whether a ratio meets its goal."""
    return "met" if ratio <= goal else f"missed by {ratio - goal:.2f}"


def section(measured: dict[str, Any]) -> list[str]:
    """The section of RESULTS.md."""
    figures = [Figure(**fields) for fields in measured["figures"]]
    lines = [
        "## Guest instructions per I/O, in the laboratory",
        "",
        f"4 KiB random reads under `udrv-lab run --icount`, {measured['rounds']} rounds of "
        f"{measured['ios']:,} against {3 * measured['ios']:,} I/Os (at depth 32 four times as "
        "many), medians. "
        f"{datetime.datetime.now(datetime.UTC).date()}, `python benches/lab_icount.py --write`.",
        "",
        *table(figures),
        "",
        "- All that the guest executes for an I/O: program, system calls, interrupt handlers, "
        "wake-ups; the device's work is not in it. Virtual time without idle time, "
        f"1 ns an instruction, Linux {measured['kernel']}.",
        f"- A polling thread looks {measured['look']:.0f} instructions long each time; what it "
        "looked in vain was subtracted, and stands in the last column.",
        "- Batches are the device's: what completed together is reaped and submitted together, "
        "and an emulated CPU is slow beside its device, so that at depth 32 many do.",
    ]
    for name, rows in measured["profiles"].items():
        lines += [
            "", f"Where they go, {name}, percent:", "",
            *(f"    {percent:5.1f}  {symbol}" for percent, symbol in rows),
        ]  # fmt: skip
    return lines


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--ios", type=int, default=4000, help="of the shorter run; depth 32: times 4"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="and where they go")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    from udrv.lab.info import in_guest

    if in_guest():
        measured = measure(options.ios, options.rounds, options.profile)
        lab.hand_over(measured)
    else:
        lab.build_bare()
        words = ["--ios", str(options.ios), "--rounds", str(options.rounds)]
        words += ["--profile"] if options.profile else []
        measured = lab.in_lab("lab_icount.py", words, "--icount")
    figures = [Figure(**fields) for fields in measured["figures"]]
    print(json.dumps(measured["figures"], indent=1) if options.json else "\n".join(table(figures)))
    if options.write:
        write_section("lab_icount.py", "\n".join(section(measured)))


if __name__ == "__main__":
    main()
