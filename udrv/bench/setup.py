# SPDX-License-Identifier: Apache-2.0
"""The set-up that made the numbers: it is printed beside them, or they mean nothing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from udrv._version import __version__
from udrv.core import lib

if TYPE_CHECKING:
    from udrv.nvme import Controller, Namespace

_CLOCKS = {
    lib.UDRV_CLOCK_TSC: "TSC",
    lib.UDRV_CLOCK_CNTVCT: "CNTVCT_EL0",
    lib.UDRV_CLOCK_GETTIME: "clock_gettime",
}


@dataclass(frozen=True, slots=True)
class Host:
    """The machine. `cpus` are those that this process may use."""

    kernel: str
    machine: str
    cpu_model: str
    cpus: int
    virtual_machine: bool
    governor: str | None
    clock: str
    python: str
    udrv: str


@dataclass(frozen=True, slots=True)
class Setup:
    """Device and namespace, and how they were driven. Sizes are bytes."""

    target: str
    serial: str
    model: str
    firmware: str
    nvme_version: str
    transport: str
    nsid: int
    lba_size: int
    namespace_bytes: int
    max_transfer: int
    wait: str
    spin_ns: int | None
    queue_entries: int
    queues: int
    host: Host


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def describe_host() -> Host:
    """Return facts about this machine; what cannot be had is said to be unknown."""
    model, flags = "", ""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = model or " ".join(value.split())
        elif key.strip() == "flags":
            flags = flags or value
    return Host(
        kernel=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu_model=model or platform.processor() or f"unknown {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)),
        virtual_machine="hypervisor" in flags.split(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        clock=_CLOCKS.get(lib.udrv_clock.source, "unknown"),
        python=f"{platform.python_implementation()} {sys.version.split()[0]}",
        udrv=__version__,
    )


def describe(
    controller: Controller, namespace: Namespace, *, wait: str, spin_ns: int | None, entries: int,
    queues: int,
) -> Setup:
    """Return the set-up of a run on this namespace."""
    return Setup(
        target=controller.target,
        serial=controller.serial,
        model=controller.model,
        firmware=controller.firmware,
        nvme_version=controller.version,
        transport=controller.transport,
        nsid=namespace.nsid,
        lba_size=namespace.lba_size,
        namespace_bytes=namespace.nsze * namespace.lba_size,
        max_transfer=controller.max_transfer,
        wait=wait,
        spin_ns=spin_ns if wait == "hybrid" else None,
        queue_entries=entries,
        queues=queues,
        host=describe_host(),
    )
