#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""udrv, fio and a bare io_uring loop on one NVMe device of the laboratory, in one table.

    python benches/lab_table.py [--rounds N] [--seconds S] [--json] [--write]

On a host it boots the laboratory and runs itself there; inside (`udrv-lab run -- python
benches/lab_table.py`) it measures. The rounds are interleaved: in each, every case runs once on the
kernel's driver, then the device goes to VFIO, and back, so that whatever else the machine does
falls on all of them. What `udrv-bench run` calls is called in this process: a Python start costs
seconds on an emulated CPU.

fio's t/io_uring takes part if $T_IO_URING names it (distributions do not ship it).
--write puts the table into benches/RESULTS.md, between the marks that it finds or appends.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import lab_support as lab
from bench_support import write_section
from lab_support import Run

DEPTHS = (1, 32)
LOAD = os.getloadavg()[0]


# --- inside the laboratory -----------------------------------------------------------------------


def run_udrv(
    driver: str, target: str, waits: tuple[str, ...], seconds: float
) -> tuple[list[Run], dict[str, Any]]:
    """Runs of one transport, and its set-up."""
    import udrv
    from udrv.bench import BenchConfig, run

    runs, setup = [], {}
    with udrv.open(target, queues=1, interrupts=True) as ctrl:
        for depth in DEPTHS:
            for wait in waits:
                result = run(ctrl, BenchConfig(
                    rw="randread", bs=4096, iodepth=depth, runtime=seconds, wait=wait,
                ))  # fmt: skip
                ios, clat = result.read.ios, result.read.clat.percentiles
                # the thread's CPU clock is finer than the ticks that tell user from system
                ticks = result.cost.user_ns + result.cost.system_ns
                user = result.cost.user_ns / ticks if ticks else 1.0
                cpu = result.cost.cpu_ns / ios / 1e3
                runs.append(Run(
                    driver, "polled" if wait == "poll" else wait, depth, result.read.iops, ios,
                    cpu * user, cpu * (1 - user), clat[50.0] / 1e3, clat[99.0] / 1e3,
                    result.cost.polls, result.cost.empty_polls,
                ))  # fmt: skip
                setup = asdict(result.setup)
    return runs, setup


def run_round(bdf: str, seconds: float) -> tuple[list[Run], dict[str, Any]]:
    """Every case once."""
    runs = []
    tool = lab.find_t_io_uring()
    for depth in DEPTHS:
        for driver in (lab.FIO_CMD, lab.FIO_BEST, lab.FIO_BLOCK):
            print(driver, depth, file=sys.stderr, flush=True)
            runs.append(lab.run_fio(driver, bdf, depth, seconds))
        runs.append(lab.run_bare(bdf, depth, seconds))
        if tool:
            runs.append(lab.run_t_io_uring(tool, bdf, depth, seconds))
    for driver, kind in ((lab.PASSTHROUGH, "ng"), (lab.BLOCK, "nvme")):
        runs += run_udrv(driver, lab.node_of(bdf, kind), ("interrupt",), seconds)[0]
    with lab.on_vfio(bdf):
        ours, setup = run_udrv(lab.VFIO, f"pci:{bdf}", ("poll", "interrupt"), seconds)
    return runs + ours, setup


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds, after one that is not kept: first uses page code in over a slow file system."""
    from udrv.lab.info import load

    info = load()
    bdf = str(info.device("UDRVLAB0").bdf)
    runs: list[Run] = []
    setup: dict[str, Any] = {}
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        found, setup = run_round(bdf, seconds if number else 0.5)
        runs += found if number else []
    version = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True)
    command = lab.fio_words(lab.FIO_CMD, "/dev/ng0n1", 32, seconds=seconds)
    return {
        "rounds": rounds,
        "seconds": seconds,
        "accel": info.accel,
        "fio": version.stdout.strip(),
        "fio_command": " ".join(w for w in command if not w.startswith(("--output", "--eta"))),
        "setup": setup,
        "runs": [asdict(run) for run in runs],
    }


# --- the table -----------------------------------------------------------------------------------

ORDER = (
    lab.FIO_CMD, lab.FIO_BEST, lab.FIO_BLOCK, lab.T_IO_URING, lab.BARE_LOOP, lab.BLOCK,
    lab.PASSTHROUGH, lab.VFIO,
)  # fmt: skip


def _micros(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.0f}" if known else ""


def table(measured: dict[str, Any]) -> list[str]:
    """Markdown: medians over the rounds, with the smallest and largest IOPS."""
    cases: dict[tuple[int, int, str, str], list[Run]] = {}
    for fields in measured["runs"]:
        run = Run(**fields)
        key = (run.depth, ORDER.index(run.driver), run.driver, run.wait)
        cases.setdefault(key, []).append(run)
    lines = [
        "| depth | driver | completions | IOPS (min to max) | IOPS / fio | p50 µs | p99 µs "
        "| CPU µs per I/O (user + system) | CPU / fio |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (depth, _, driver, wait), runs in sorted(cases.items()):
        base = cases[depth, 0, lab.FIO_CMD, "interrupt"]
        iops = [run.iops for run in runs]
        user, system, cpu, fio_iops, fio_cpu = (
            statistics.median(getattr(run, name) for run in some)
            for some, name in ((runs, "cpu_user"), (runs, "cpu_system"), (runs, "cpu"),
                               (base, "iops"), (base, "cpu"))
        )  # fmt: skip
        lines.append(
            f"| {depth} | {driver} | {wait} | {statistics.median(iops):,.0f} "
            f"({min(iops):,.0f} to {max(iops):,.0f}) "
            f"| {statistics.median(iops) / fio_iops:.2f} "
            f"| {_micros([run.p50 for run in runs])} | {_micros([run.p99 for run in runs])} "
            f"| {cpu:,.1f} ({user:,.1f} + {system:,.1f}) | {cpu / fio_cpu:.2f} |"
        )
    return lines


def section(measured: dict[str, Any], host: str) -> list[str]:
    """The section of RESULTS.md."""
    setup = measured["setup"]
    guest = setup["host"]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    has_meter = any(run["driver"] == lab.T_IO_URING for run in measured["runs"])
    return [
        "## In the laboratory: one run, one device",
        "",
        f"4 KiB random reads, {measured['rounds']} interleaved rounds of {measured['seconds']:g} s "
        f"a case, medians. {today}, `python benches/lab_table.py --write`.",
        "",
        *table(measured),
        "",
        f"- Host: {host}. Guest: {guest['kernel']}, {guest['cpus']} CPUs, "
        f"accelerator {measured['accel']}, guest clock {guest['clock']}.",
        f"- Device: {setup['model']} (firmware {setup['firmware']}), {setup['lba_size']}-byte "
        "blocks, one queue.",
        f"- udrv {guest['udrv']}; {measured['fio']}: `{measured['fio_command']}`; "
        "\"registered\" is the same with `--fixedbufs --registerfiles`.",
        f"- {lab.T_IO_URING}: "
        + ("built from fio's source, `-dN -sN -c1 -b4096 -p0 -B1 -F1 -u1 -O0`; no latencies."
           if has_meter else
           "no distribution's fio package has it; build it from fio's source, set `$T_IO_URING`.")
        + " The bare loop (`benches/bare_uring.c`): registered buffers and file, SINGLE_ISSUER and "
        "DEFER_TASKRUN, one `io_uring_enter` a round, no latencies, no checks, no trackers.",
        "- Latency is from the doorbell (udrv over VFIO), from the submission (udrv through the "
        "kernel) or from its end (fio, `clat`) to the completion. CPU time is the job thread's; "
        "interrupt handlers run on nobody's account, and a polling thread's time is mostly its "
        "wait.",
        *(
            ["- The CPU is emulated (TCG): the device model and the guest share the host's cores, "
             "so IOPS and latency are the emulator's. What compares is CPU time per I/O with "
             "completions by interrupt, and better, the counts under `--icount`."]
            if measured["accel"] == "tcg" else []
        ),
    ]  # fmt: skip


# --- on the host ---------------------------------------------------------------------------------


def describe_host() -> str:
    """One line of what this machine is."""
    from udrv.bench.setup import describe_host as describe

    host = describe()
    qemu = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=False
    )
    version = qemu.stdout.splitlines()[0] if qemu.stdout else "QEMU"
    return (
        f"{host.cpu_model}, {host.cpus} CPUs{', itself virtual' if host.virtual_machine else ''}, "
        f"{version}, {platform.machine()}; load average when it began {LOAD:.1f}"
    )


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="into benches/RESULTS.md")
    options = parser.parse_args()
    from udrv.lab.info import in_guest

    if in_guest():
        if options.write:
            raise SystemExit("--write: run it on the host, the laboratory's disk is a copy")
        measured = measure(options.rounds, options.seconds)
        lab.hand_over(measured)
    else:
        lab.build_programs()
        words = ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
        measured = lab.in_lab("lab_table.py", words)
    if options.json:
        print(json.dumps(measured["runs"], indent=2))
    else:
        print("\n".join(table(measured)))
    if options.write:
        write_section("lab_table.py", "\n".join(section(measured, describe_host())))


if __name__ == "__main__":
    main()
