#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Guest instructions per I/O of udrv, fio and a bare io_uring loop, by a clock that counts them.

    python benches/lab_icount.py [--ios N] [--rounds N] [--profile] [--json] [--write]

On a host it boots the laboratory with `--icount` (one CPU, a nanosecond an instruction) and runs
itself there. Counted is all that the guest does: program, system calls, interrupt handlers, kernel
threads; not what the device does. A case runs N and then 3 N reads, and what the longer run took
more, of virtual time without idle time, is the cost of 2 N I/Os: starts and ends of programs cancel
out. Idle time is what a loop in the idle class took (idle_loop.c), exact to the instruction.

A polling thread has no idle time: it looks at the queue while the emulated device works. The load
generator counts its looks in vain; what one costs follows from runs that looked more and less often
(least squares), and is subtracted. Both figures are printed.

--profile, or --write, samples where the instructions go as well (perf, every 100 us of virtual
time).
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
import numpy as np
from bench_support import run_job, write_section

DEPTHS = (1, 32)
WAITS = ("interrupt", "hybrid", "poll")
#: A profile with fewer rows has too few samples: perf had not started in time.
FEW = 8
#: Goals of the project: transport's instructions over those of fio's io_uring_cmd.
GOALS = {
    **{(lab.PASSTHROUGH, wait): 0.8 for wait in ("interrupt", "hybrid", "polled")},
    **{(lab.VFIO, wait): 0.25 for wait in ("interrupt", "hybrid", "polled")},
}  # fmt: skip


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
    addons: list[str] = field(default_factory=list)


UDRV = ["checks", "timestamps"]


# --- inside the laboratory -----------------------------------------------------------------------


class Meter:
    """Counts the instructions of everybody but the idle class, since the boot.

    The CPU has no idle time while this is open: idle_loop.c takes what is left, and counts it. The
    clock then is the number of all instructions: it would jump only over idle time.
    """

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(dir="/dev/shm")  # noqa: SIM115 - see close()
        self._file.write(bytes(4096))
        self._file.flush()
        self._count = np.memmap(self._file.name, np.uint64, "r", shape=(1,))
        self._loop = subprocess.Popen([str(lab.IDLE_LOOP), self._file.name])

    def __call__(self) -> int:
        return time.monotonic_ns() - 2 * int(self._count[0])

    @property
    def idle(self) -> int:
        """Nanoseconds that the idle loop had."""
        return 2 * int(self._count[0])

    def close(self) -> None:
        """Let the CPU idle again."""
        self._loop.kill()
        self._loop.wait()
        self._file.close()


@dataclass
class Count:
    """One run: instructions of `ios` reads, idle nanoseconds, and how often it looked in vain."""

    case: str
    transport: str
    depth: int
    wait: str
    ios: int
    taken: int
    idle: int
    looks: int = 0


def ios_at(depth: int, ios: int) -> tuple[int, int]:
    """How many a short and a long run do; more at a depth at which each costs less."""
    short = ios if depth == 1 else 4 * ios
    return short, 3 * short


def count_program(
    meter: Meter, case: str, transport: str, depth: int, ios: int,
    words: Callable[[int], Sequence[str]],
) -> list[Count]:  # fmt: skip
    """A short and a long run of a program that is told how many reads to do."""
    found = []
    for n in ios_at(depth, ios):
        before, idle = meter(), meter.idle
        done = subprocess.run(words(n), capture_output=True, text=True, check=False)
        found.append(Count(case, transport, depth, "interrupt", n, meter() - before,
                           meter.idle - idle))  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(words(n))} failed: {done.stderr}")
    return found


def count_udrv(
    meter: Meter, target: str, case: str, transport: str, waits: Sequence[str], ios: int
) -> list[Count]:
    """Short and long runs of one transport at every depth."""
    import udrv

    found = []
    with udrv.open(target, queues=1, interrupts=True) as ctrl:
        for depth in DEPTHS:
            for wait in waits:
                for n in ios_at(depth, ios):
                    idle = meter.idle
                    taken, looks = run_job(ctrl, depth, wait, n, meter=meter)
                    name = "polled" if wait == "poll" else wait
                    found.append(Count(case, transport, depth, name, n, taken, meter.idle - idle,
                                       looks if case != lab.IOPOLL else 0))  # fmt: skip
    return found


def run_round(meter: Meter, bdf: str, ios: int) -> list[Count]:
    """Every case once."""
    ng, block = lab.node_of(bdf, "ng"), lab.node_of(bdf, "nvme")
    found = []
    for depth in DEPTHS:
        for driver in (lab.FIO_CMD, lab.FIO_BEST, lab.FIO_BLOCK):
            node, transport = (
                (block, "io_uring-block") if driver == lab.FIO_BLOCK else (ng, "io_uring-cmd")
            )
            found += count_program(
                meter, driver, transport, depth, ios,
                lambda n, d=driver, node=node, q=depth: lab.fio_words(d, node, q, ios=n),
            )  # fmt: skip
        found += count_program(
            meter, lab.BARE_LOOP, "io_uring-cmd", depth, ios,
            lambda n, q=depth: lab.bare_words(ng, q, n, 0),
        )  # fmt: skip
    found += count_udrv(meter, ng, lab.PASSTHROUGH, "io_uring-cmd", WAITS, ios)
    found += count_udrv(meter, f"{ng}?iopoll=1", lab.IOPOLL, "io_uring-cmd", ["poll"], ios)
    found += count_udrv(meter, block, lab.BLOCK, "io_uring-block", ["interrupt"], ios)
    with lab.on_vfio(bdf):
        found += count_udrv(meter, f"pci:{bdf}", lab.VFIO, "vfio", WAITS, ios)
    return found


# --- figures -------------------------------------------------------------------------------------


def cost_of_a_look(counts: list[Count]) -> float:
    """Instructions of a look in vain: by what runs that looked more often took more."""
    polled = [c for c in counts if c.looks and c.wait == "polled"]
    if not polled:
        return 0.0
    depths = sorted({c.depth for c in polled})
    rows = [[*(c.ios * (c.depth == d) for d in depths), c.looks, 1] for c in polled]
    solution = np.linalg.lstsq(np.array(rows, float), np.array([c.taken for c in polled]), None)[0]
    return float(solution[len(depths)])


def per_io(runs: list[tuple[int, float, int]], background: float) -> tuple[float, float, float]:
    """(instructions of an I/O, the same of the round with the least and the most), of one case.

    `runs` are (I/Os, instructions, idle nanoseconds). While a program waits the kernel goes on
    (timer ticks); how long it waits is the emulator's affair. So what the kernel executes with
    nobody there, `background` instructions a nanosecond, is left out. (How it grows with idle time
    cannot be told from the runs themselves: who does more I/Os waits longer.)
    """
    taken = np.array([taken - background * idle for _, taken, idle in runs])
    ios = np.array([n for n, _, _ in runs])
    few, many = ios.min(), ios.max()
    short, long = taken[ios == few], taken[ios == many]
    rounds = (long - short) / (many - few)
    middle = (np.median(long) - np.median(short)) / (many - few)
    return float(middle), float(rounds.min()), float(rounds.max())


def figures_of(counts: list[Count], background: float = 0.0) -> list[Figure]:
    """What an I/O takes, by case: looks in vain and what comes with time are left out."""
    looks = {case: cost_of_a_look([c for c in counts if c.case == case]) for case in
             {c.case for c in counts}}  # fmt: skip
    groups: dict[tuple[str, str, int, str], list[Count]] = {}
    for c in counts:
        groups.setdefault((c.case, c.transport, c.depth, c.wait), []).append(c)
    found = []
    for (case, transport, depth, wait), runs in groups.items():
        middle, low, high = per_io(
            [(c.ios, c.taken - c.looks * looks[c.case], c.idle) for c in runs], background
        )
        spinning = statistics.median(c.looks * looks[c.case] / c.ios for c in runs)
        found.append(Figure(
            case, transport, depth, 4096, round(middle), wait, round(spinning),
            round(low), round(high), UDRV if case.startswith("udrv") else [],
        ))  # fmt: skip
    return found


# --- where they go -------------------------------------------------------------------------------


def profile(run: Callable[[], object], top: int = 12) -> list[tuple[float, str]]:
    """(percent, symbol) of the whole machine while something runs, idle time left out.

    The four objects with the most of it, then the functions.
    """
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
    rows = parse_profile(report)
    shares: dict[str, float] = {}
    for percent, symbol in rows:
        where = symbol.partition(":")[0]
        shares[where] = shares.get(where, 0.0) + percent
    parts = sorted(((p, f"all of {where}") for where, p in shares.items()), reverse=True)
    return parts[:4] + rows[:top]


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
    meter = Meter()
    try:
        run_round(meter, bdf, 50)
        found: list[Count] = []
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            found += run_round(meter, bdf, ios)
        before, nobody = meter(), time.monotonic_ns()
        time.sleep(0.5)
        background = (meter() - before) / (time.monotonic_ns() - nobody)
    finally:
        meter.close()
    return {
        "ios": ios, "rounds": rounds, "kernel": info.kernel,
        "background": background,
        "looks": {
            case: cost_of_a_look([c for c in found if c.case == case])
            for case in dict.fromkeys(c.case for c in found if c.looks)
        },
        "figures": [asdict(figure) for figure in figures_of(found, background)],
        "profiles": profiles(bdf) if with_profile and shutil.which("perf") else {},
    }  # fmt: skip


# --- the table -----------------------------------------------------------------------------------


def table(figures: list[Figure]) -> list[str]:
    """Markdown: each case beside fio's io_uring_cmd at the same depth."""
    base = {f.depth: f.instructions_per_io for f in figures if f.case == lab.FIO_CMD}
    lines = [
        "| depth | driver | completions | instructions per I/O (rounds: min to max) | / fio | goal "
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
            f"| {f'{f.spinning:,.0f}' if f.wait != 'interrupt' else ''} |"
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
        "wake-ups; the device's work is not in it. Virtual time, 1 ns an instruction, without that "
        "of a loop in the idle class which counts its turns (`benches/idle_loop.c`): the CPU never "
        f"sleeps. Linux {measured['kernel']}; with nobody doing anything it executes "
        f"{100 * measured['background']:.2f} % of the time for itself.",
        "- A polling thread's look takes "
        + ", ".join(f"{n:,.0f} ({case})" for case, n in measured["looks"].items())
        + " instructions (least squares over all its polled runs); what it looked in vain was "
        "subtracted, and stands in the last column.",
        "- What the kernel executes with nobody there is left out of the time that runs were idle. "
        "A load generator that looks at its clock while it waits (fio) is not excused: at depth 1, "
        "by interrupt, figures spread with how long the emulator lets it wait. With `?iopoll=1` "
        "the kernel looks for completions, and how often nobody says: its row has all that is "
        "executed while the device works.",
        "- Batches are the device's: what completed together is reaped and submitted together, "
        "and an emulated CPU is slow beside its device, so that at depth 32 many do.",
        "- A read that is waited for asleep costs an interrupt, a wake-up and two switches, "
        "whatever the program does: the bare loop shows what every program pays that "
        "goes through the kernel. Polling instead costs none of it.",
    ]
    for name, rows in measured["profiles"].items():
        if len(rows) < FEW:
            continue
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

    options.profile |= options.write
    if in_guest():
        measured = measure(options.ios, options.rounds, options.profile)
        lab.hand_over(measured)
    else:
        lab.build_programs()
        words = ["--ios", str(options.ios), "--rounds", str(options.rounds)]
        words += ["--profile"] if options.profile else []
        measured = lab.in_lab("lab_icount.py", words, "--icount")
    figures = [Figure(**fields) for fields in measured["figures"]]
    print(json.dumps(measured["figures"], indent=1) if options.json else "\n".join(table(figures)))
    if options.write:
        write_section("lab_icount.py", "\n".join(section(measured)))


if __name__ == "__main__":
    main()
