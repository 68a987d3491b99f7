# SPDX-License-Identifier: Apache-2.0
"""What the scripts that measure inside the laboratory share: cases, their programs, the boot."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "benches"
BARE, IDLE_LOOP = BUILT / "bare_uring", BUILT / "idle_loop"
LBA_SHIFT, BLOCKS = 9, 1 << 21  # the first namespace of UDRVLAB0: 1 GiB in blocks of 512 bytes

#: Names of the cases, as the tables have them.
VFIO, PASSTHROUGH, BLOCK = "udrv VFIO", "udrv /dev/ng0n1", "udrv /dev/nvme0n1"
IOPOLL = "udrv /dev/ng0n1?iopoll=1"
FIO_CMD, FIO_BLOCK = "fio io_uring_cmd", "fio io_uring"
FIO_BEST = "fio io_uring_cmd, registered"
T_IO_URING, BARE_LOOP = "t/io_uring -u1", "bare liburing loop"


@dataclass(frozen=True)
class Run:
    """One run of one case. Latencies are microseconds, CPU time is per I/O, microseconds.

    None where a program does not say.
    """

    driver: str
    wait: str
    depth: int
    iops: float
    ios: int
    cpu_user: float
    cpu_system: float
    p50: float | None = None
    p99: float | None = None
    polls: int = 0
    empty_polls: int = 0

    @property
    def cpu(self) -> float:
        """Microseconds of CPU for an I/O, user and system."""
        return self.cpu_user + self.cpu_system


# --- the device ----------------------------------------------------------------------------------


def node_of(bdf: str, kind: str) -> str:
    """The node of namespace 1 once the kernel's driver has made it: "ng" or "nvme".

    Not by its name: the kernel numbers namespaces as it finds them.
    """
    for _ in range(300):
        for found in Path(f"/sys/bus/pci/devices/{bdf}/nvme").glob("nvme*/nvme*n*/nsid"):
            node = Path("/dev") / (kind + found.parent.name.removeprefix("nvme"))
            if node.exists() and found.read_text().strip() == "1":
                return str(node)
        time.sleep(0.1)
    raise SystemExit(f"{bdf}: the kernel made no /dev/{kind}* of namespace 1")


@contextmanager
def on_vfio(bdf: str) -> Iterator[None]:
    """The device is VFIO's, and then the kernel's again."""
    from udrv import pci

    pci.plan_bind(bdf).execute()
    try:
        yield
    finally:
        pci.unbind(bdf)


# --- programs ------------------------------------------------------------------------------------


def build_programs() -> None:
    """Compile bare_uring.c, with liburing in it, and idle_loop.c; guests have the host's files."""
    BUILT.mkdir(parents=True, exist_ok=True)
    for program, libraries in ((BARE, ["-luring"]), (IDLE_LOOP, [])):
        subprocess.run(
            ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static",
             str(ROOT / f"benches/{program.name}.c"), "-o", str(program), *libraries],
            check=True,
        )  # fmt: skip


def find_t_io_uring() -> str | None:
    """fio's peak meter, which distributions do not ship: $T_IO_URING, or one on the PATH."""
    return os.environ.get("T_IO_URING") or shutil.which("t_io_uring")


def fio_words(
    driver: str, node: str, depth: int, *, seconds: float | None = None, ios: int | None = None
) -> list[str]:
    """The command line of a fio case, limited by time or by number."""
    if driver == FIO_BLOCK:
        engine = ["--ioengine=io_uring", "--direct=1"]
    else:
        engine = ["--ioengine=io_uring_cmd", "--cmd_type=nvme"]
    words = [
        "fio", "--name=lab", *engine, f"--filename={node}",
        "--rw=randread", "--norandommap", "--bs=4k", f"--iodepth={depth}",
        "--output-format=json", "--eta=never",
    ]  # fmt: skip
    if driver == FIO_BEST:
        words += ["--fixedbufs", "--registerfiles"]
    if seconds is not None:
        # a fraction of a second is read as none: microseconds
        words += ["--time_based", f"--runtime={round(seconds * 1e6)}us"]
    if ios is not None:
        words += [f"--number_ios={ios}"]
    return words


def _output(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(words)} ended with {done.returncode}: {done.stderr}{done.stdout}"
        )
    return done.stdout


def parse_fio(text: str, driver: str, depth: int) -> Run:
    """A run from fio's JSON."""
    job = json.loads(text)["jobs"][0]
    read, clat = job["read"], job["read"]["clat_ns"]["percentile"]
    micros = job["job_runtime"] * 1e3 / 100 / read["total_ios"]
    return Run(
        driver, "interrupt", depth, read["iops"], read["total_ios"], job["usr_cpu"] * micros,
        job["sys_cpu"] * micros, clat["50.000000"] / 1e3, clat["99.000000"] / 1e3,
    )  # fmt: skip


def run_fio(driver: str, bdf: str, depth: int, seconds: float) -> Run:
    """fio's case for some time."""
    node = node_of(bdf, "nvme" if driver == FIO_BLOCK else "ng")
    return parse_fio(_output(fio_words(driver, node, depth, seconds=seconds)), driver, depth)


def bare_words(node: str, depth: int, ios: int, seconds: float) -> list[str]:
    """The command line of our own loop, limited by number or by time."""
    return [str(BARE), node, str(depth), str(ios), str(seconds), str(BLOCKS), str(LBA_SHIFT)]


def parse_bare(text: str, depth: int) -> Run:
    """A run from what bare_uring prints."""
    found = json.loads(text)
    ios = found["ios"]
    return Run(
        BARE_LOOP, "interrupt", depth, ios * 1e9 / found["elapsed_ns"], ios,
        found["user_ns"] / ios / 1e3, found["system_ns"] / ios / 1e3,
    )  # fmt: skip


def run_bare(bdf: str, depth: int, seconds: float) -> Run:
    """Our own loop for some time."""
    return parse_bare(_output(bare_words(node_of(bdf, "ng"), depth, 0, seconds)), depth)


def t_io_uring_words(program: str, node: str, depth: int, seconds: int) -> list[str]:
    """Interrupts, registered files and buffers; it takes what is there, as the others do."""
    return [
        program, f"-d{depth}", f"-s{depth}", "-c1", "-b4096", "-p0", "-B1", "-F1", "-u1", "-O0",
        f"-r{seconds}", node,
    ]  # fmt: skip


def parse_t_io_uring(text: str, depth: int, user: float, system: float) -> Run:
    """A run from what t/io_uring prints each second; CPU seconds are the whole process's."""
    rates = [float(n) * {"": 1, "K": 1e3, "M": 1e6}[unit]
             for n, unit in re.findall(r"^IOPS=([\d.]+)([KM]?),", text, re.MULTILINE)]  # fmt: skip
    if not rates:
        raise SystemExit(f"t/io_uring printed no IOPS:\n{text}")
    ios = round(sum(rates))
    return Run(
        T_IO_URING, "interrupt", depth, statistics.mean(rates), ios,
        user / ios * 1e6, system / ios * 1e6,
    )  # fmt: skip


def run_t_io_uring(program: str, bdf: str, depth: int, seconds: float) -> Run:
    """fio's peak meter for some whole seconds."""
    words = t_io_uring_words(program, node_of(bdf, "ng"), depth, max(2, round(seconds)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = _output(words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return parse_t_io_uring(
        text, depth, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    )


# --- the boot ------------------------------------------------------------------------------------


def in_lab(script: str, words: Sequence[str], *lab_words: str) -> Any:
    """Boot the laboratory, run a script of this folder there; what it gave to `hand_over`."""
    with tempfile.TemporaryDirectory() as out:
        tool = find_t_io_uring()
        passed = ["--env", f"T_IO_URING={tool}"] if tool else []
        subprocess.run(
            [sys.executable, "-m", "udrv.lab", "run", "--out", out, *passed, *lab_words, "--",
             sys.executable, str(Path(__file__).with_name(script).resolve()), *words],
            check=True, cwd=ROOT, stdout=sys.stderr,
        )  # fmt: skip
        return json.loads((Path(out) / "handed-over.json").read_text())


def hand_over(measured: Any) -> None:
    """In the guest: give the host what was measured."""
    path = Path(os.environ["UDRV_LAB_OUT"]) / "handed-over.json"
    path.write_text(json.dumps(measured), encoding="utf-8")
