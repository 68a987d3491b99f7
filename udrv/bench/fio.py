# SPDX-License-Identifier: Apache-2.0
"""fio on a node of the kernel's NVMe driver, doing the job that we do."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from pathlib import Path

from udrv.bench.config import BenchConfig
from udrv.bench.load import from_document
from udrv.bench.measured import Measured
from udrv.bench.nodes import node_path
from udrv.bench.place import read_json
from udrv.bench.result import PERCENTILES
from udrv.errors import (
    DeviceNotFoundError,
    InvalidRequestError,
    MissingToolError,
    ResultFileError,
    ToolFailedError,
)

_LAST_LINES = 3


def engine_of(target: str) -> list[str]:
    """Return fio's words for a node: io_uring_cmd for a namespace's character device, or io_uring.

    Passthrough has no page cache to go round, and fio refuses direct=1 there (no O_DIRECT). The
    option `iopoll=1` of a target is fio's hipri.

    Raises `DeviceNotFoundError` if there is no such node, `InvalidRequestError` for what fio cannot
    do I/O on.
    """
    node = node_path(target)
    polled = ["--hipri"] if "iopoll=1" in target.partition("?")[2].split("&") else []
    try:
        mode = os.stat(node).st_mode  # noqa: PTH116 - follows links
    except OSError as error:
        raise DeviceNotFoundError(
            f"no such node ({error.strerror})", device=node, mend="udrv list shows what there is"
        ) from error
    if stat.S_ISBLK(mode):
        return ["--ioengine=io_uring", "--direct=1", *polled]
    if stat.S_ISCHR(mode) and re.fullmatch(r"ng\d+n\d+", Path(node).resolve().name):
        return ["--ioengine=io_uring_cmd", "--cmd_type=nvme", *polled]
    raise InvalidRequestError(
        "fio does no I/O on this", device=node,
        mend="give a namespace's node: /dev/ng0n1 or /dev/nvme0n1",
    )


def fio_words(config: BenchConfig, node: str, engine: list[str]) -> list[str]:
    """Return the command line of the fio job that is this job."""
    words = [
        "fio", "--name=udrv-bench", *engine, f"--filename={node.replace(':', chr(92) + ':')}",
        f"--rw={config.rw}", f"--bs={config.bs}", f"--iodepth={config.iodepth}",
        f"--numjobs={config.numjobs}", "--group_reporting", "--thread",
        "--norandommap", f"--randseed={config.seed}",
        f"--percentile_list={':'.join(f'{p:g}' for p in PERCENTILES)}",
        "--output-format=json+", "--eta=never",
    ]  # fmt: skip
    if config.rw in ("rw", "randrw"):
        words.append(f"--rwmixread={config.rwmixread}")
    if config.runtime_ns:
        words += ["--time_based", f"--runtime={max(1, config.runtime_ns // 1000)}us"]
    if config.size is not None:
        words.append(f"--size={config.size}")
    if config.offset:
        words.append(f"--offset={config.offset}")
    if config.number_ios is not None:
        words.append(f"--number_ios={config.number_ios}")
    if config.rate_iops is not None:
        # fio's is of each direction
        shares = [config.read_percent, 100 - config.read_percent]
        rates = [max(1, round(config.rate_iops * share / 100)) if share else "" for share in shares]
        words.append(f"--rate_iops={rates[0]},{rates[1]}")
        words.append(f"--rate_process={config.rate_process}")
    if config.max_errors != 1:
        words.append("--continue_on_error=all")
    return words


def fio_version() -> str:
    """Return fio's version, "fio-3.33"; `MissingToolError` if there is none."""
    try:
        done = subprocess.run(
            ["fio", "--version"], capture_output=True, text=True, check=False, errors="replace"
        )
    except OSError as error:
        raise MissingToolError(
            f"fio cannot be run ({error.strerror})",
            mend="apt-get install fio, or leave --with out",
        ) from error
    return done.stdout.strip()


def run_fio(config: BenchConfig, target: str, engine: list[str] | None = None) -> Measured:
    """Run the job with fio on the node of a target and return what it found.

    Raises `MissingToolError`, `DeviceNotFoundError`, `InvalidRequestError`, and `ToolFailedError`
    with what fio said if it failed or printed no result.
    """
    node = node_path(target)
    words = fio_words(config, node, engine_of(target) if engine is None else engine)
    fio_version()
    with tempfile.TemporaryDirectory(prefix="udrv-bench-") as folder:
        out = Path(folder) / "fio.json"
        done = subprocess.run(
            [*words, f"--output={out}"], capture_output=True, text=True, check=False,
            errors="replace", stdin=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        said = " ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        mend = "the command was: " + " ".join(words)
        if done.returncode:
            raise ToolFailedError(f"fio ended with status {done.returncode}: {said}", device=node,
                                  mend=mend)  # fmt: skip
        try:
            (found,) = from_document(read_json(out))
        except (OSError, ValueError) as error:
            why = error.tried if isinstance(error, ResultFileError) else str(error)
            raise ToolFailedError(
                f"fio printed no result ({why}) {said}".rstrip(), device=node, mend=mend
            ) from error
    return found
