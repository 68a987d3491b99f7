#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""udrv over VFIO and fio's io_uring_cmd on one NVMe device of the laboratory, in one table.

    python benches/lab_table.py [--rounds N] [--seconds S] [--json] [--write]

On a host it boots the laboratory and runs itself there; inside (`udrv-lab run -- python
benches/lab_table.py`) it measures. The rounds are interleaved: in each, the device goes from the
kernel's driver to VFIO and back, and every case runs once, so that whatever else the machine does
falls on all of them. What `udrv-bench run` calls is called in this process: a Python start costs
seconds on an emulated CPU.

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
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benches" / "RESULTS.md"
MARKS = ("<!-- lab_table.py: begin -->", "<!-- lab_table.py: end -->")
FILE = "lab_table.json"
DEPTHS = (1, 32)
FIO = "fio io_uring_cmd"
LOAD = os.getloadavg()[0]


@dataclass(frozen=True)
class Run:
    """One run of one case. Latencies are microseconds, CPU time is per I/O, microseconds."""

    driver: str
    wait: str
    depth: int
    iops: float
    p50: float
    p99: float
    cpu_user: float
    cpu_system: float
    ios: int


# --- inside the laboratory -----------------------------------------------------------------------


def run_udrv(bdf: str, seconds: float) -> tuple[list[Run], dict[str, Any]]:
    import udrv
    from udrv import pci
    from udrv.bench import BenchConfig, run

    runs, setup = [], {}
    pci.plan_bind(bdf).execute()
    try:
        with udrv.open(f"pci:{bdf}", queues=1, interrupts=True) as ctrl:
            for depth in DEPTHS:
                for wait in ("poll", "interrupt"):
                    result = run(ctrl, BenchConfig(
                        rw="randread", bs=4096, iodepth=depth, runtime=seconds, wait=wait,
                    ))
                    ios, clat = result.read.ios, result.read.clat.percentiles
                    # the thread's CPU clock is finer than the ticks that tell user from system
                    ticks = result.cost.user_ns + result.cost.system_ns
                    user = result.cost.user_ns / ticks if ticks else 1.0
                    cpu = result.cost.cpu_ns / ios / 1e3
                    runs.append(Run(
                        "udrv VFIO", "polled" if wait == "poll" else wait, depth,
                        result.read.iops, clat[50.0] / 1e3, clat[99.0] / 1e3,
                        cpu * user, cpu * (1 - user), ios,
                    ))
                    setup = asdict(result.setup)
    finally:
        pci.unbind(bdf)
    return runs, setup


def fio_words(node: str, depth: int, seconds: float) -> list[str]:
    return [
        "fio", "--name=lab", "--ioengine=io_uring_cmd", "--cmd_type=nvme", f"--filename={node}",
        "--rw=randread", "--norandommap", "--bs=4k", f"--iodepth={depth}", "--time_based",
        f"--runtime={seconds:g}", "--output-format=json",
    ]


def run_fio(bdf: str, seconds: float) -> list[Run]:
    node = wait_for_node(bdf)
    runs = []
    for depth in DEPTHS:
        done = subprocess.run(
            fio_words(node, depth, seconds), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"fio failed: {done.stderr}")
        job = json.loads(done.stdout)["jobs"][0]
        read, clat = job["read"], job["read"]["clat_ns"]["percentile"]
        micros = job["job_runtime"] * 1e3 / 100 / read["total_ios"]
        runs.append(Run(
            FIO, "interrupt", depth, read["iops"], clat["50.000000"] / 1e3,
            clat["99.000000"] / 1e3, job["usr_cpu"] * micros, job["sys_cpu"] * micros,
            read["total_ios"],
        ))
    return runs


def wait_for_node(bdf: str) -> str:
    """The first namespace's character device, once the kernel's driver has made it."""
    for _ in range(300):
        for found in sorted(Path(f"/sys/bus/pci/devices/{bdf}/nvme").glob("nvme*/ng*n1")):
            node = Path("/dev") / found.name
            if node.exists():
                return str(node)
        time.sleep(0.1)
    raise SystemExit(f"{bdf}: the kernel made no /dev/ng*n1")


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    from udrv.lab.info import load

    info = load()
    bdf = str(info.devices[0].bdf)
    run_fio(bdf, 0.5)  # both once, unmeasured: first uses page code in over a slow file system
    run_udrv(bdf, 0.5)
    runs: list[Run] = []
    setup: dict[str, Any] = {}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        runs += run_fio(bdf, seconds)
        ours, setup = run_udrv(bdf, seconds)
        runs += ours
    version = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True)
    return {
        "rounds": rounds,
        "seconds": seconds,
        "accel": info.accel,
        "fio": version.stdout.strip(),
        "fio_command": " ".join(fio_words("/dev/ngXn1", 32, seconds)[:-1]),
        "setup": setup,
        "runs": [asdict(run) for run in runs],
    }


# --- the table -----------------------------------------------------------------------------------


def table(measured: dict[str, Any]) -> list[str]:
    """Markdown: medians over the rounds, with the smallest and largest IOPS."""
    cases: dict[tuple[int, str, str], list[Run]] = {}
    for fields in measured["runs"]:
        run = Run(**fields)
        cases.setdefault((run.depth, run.driver, run.wait), []).append(run)

    def median(runs: list[Run], name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs)

    lines = [
        "| depth | driver | completions | IOPS (min to max) | IOPS / fio | p50 µs | p99 µs "
        "| CPU µs per I/O (user + system) | CPU / fio |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (depth, driver, wait), runs in sorted(cases.items(), key=lambda c: (c[0][0], c[0][1])):
        base = cases[depth, FIO, "interrupt"]
        iops = [run.iops for run in runs]
        cpu = median(runs, "cpu_user") + median(runs, "cpu_system")
        fio_cpu = median(base, "cpu_user") + median(base, "cpu_system")
        lines.append(
            f"| {depth} | {driver} | {wait} | {statistics.median(iops):,.0f} "
            f"({min(iops):,.0f} to {max(iops):,.0f}) "
            f"| {statistics.median(iops) / median(base, 'iops'):.2f} "
            f"| {median(runs, 'p50'):,.0f} | {median(runs, 'p99'):,.0f} "
            f"| {cpu:,.1f} ({median(runs, 'cpu_user'):,.1f} + {median(runs, 'cpu_system'):,.1f}) "
            f"| {cpu / fio_cpu:.2f} |"
        )
    return lines


def section(measured: dict[str, Any], host: str) -> list[str]:
    setup = measured["setup"]
    guest = setup["host"]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return [
        "## udrv over VFIO beside fio `io_uring_cmd`, in the laboratory",
        "",
        f"4 KiB random reads, {measured['rounds']} interleaved rounds of {measured['seconds']:g} s "
        f"a case, medians. {today}, `python benches/lab_table.py --write`.",
        "",
        *table(measured),
        "",
        f"- Host: {host}. Guest: {guest['kernel']}, {guest['cpus']} CPUs, "
        f"accelerator {measured['accel']}, guest clock {guest['clock']}.",
        f"- Device: {setup['model']} (firmware {setup['firmware']}), {setup['lba_size']}-byte "
        f"blocks; udrv over {setup['transport']}, one queue of {setup['queue_entries']} entries.",
        f"- udrv {guest['udrv']}; {measured['fio']}: `{measured['fio_command']}`.",
        "- Latency is from the doorbell (udrv) or from the end of the submission (fio, `clat`) to "
        "the completion. CPU time is the job thread's; interrupt handlers run on nobody's account, "
        "and a polling thread's time is mostly its wait.",
        *(
            ["- The CPU is emulated (TCG): the device model and the guest share the host's cores, "
             "so IOPS and latency are the emulator's. What compares is CPU time per I/O with "
             "completions by interrupt."]
            if measured["accel"] == "tcg" else []
        ),
    ]  # fmt: skip


def write_section(lines: list[str]) -> None:
    """Replace what stands between the marks, or append it."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    block = "\n".join([MARKS[0], *lines, MARKS[1]])
    begin, end = text.find(MARKS[0]), text.find(MARKS[1])
    if 0 <= begin < end:
        text = text[:begin] + block + text[end + len(MARKS[1]):]
    else:
        text = text.rstrip() + "\n\n" + block + "\n"
    RESULTS.write_text(text, encoding="utf-8")


# --- on the host ---------------------------------------------------------------------------------


def describe_host() -> str:
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


def in_lab(rounds: int, seconds: float) -> dict[str, Any]:
    """Boot the laboratory and run this script there."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--rounds", str(rounds), "--seconds", str(seconds)]
        subprocess.run(
            [sys.executable, "-m", "udrv.lab", "run", "--out", out, "--",
             sys.executable, str(Path(__file__).resolve()), *words],
            check=True, cwd=ROOT, stdout=sys.stderr,
        )
        found: dict[str, Any] = json.loads((Path(out) / FILE).read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", action="store_true", help="into benches/RESULTS.md")
    options = parser.parse_args()
    from udrv.lab.info import in_guest

    if in_guest():
        measured = measure(options.rounds, options.seconds)
        out = Path(os.environ["UDRV_LAB_OUT"]) / FILE
        out.write_text(json.dumps(measured), encoding="utf-8")
    else:
        measured = in_lab(options.rounds, options.seconds)
    if options.json:
        print(json.dumps(measured["runs"], indent=2))
    else:
        print("\n".join(table(measured)))
    if options.write:
        if in_guest():
            raise SystemExit("--write: run it on the host, the laboratory's disk is a copy")
        write_section(section(measured, describe_host()))


if __name__ == "__main__":
    main()
