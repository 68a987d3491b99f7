# SPDX-License-Identifier: Apache-2.0
"""Which drive and namespace a node of the kernel's driver is, and where they are later.

The kernel numbers nodes in the order in which it finds controllers and scans namespaces, and scans
side by side: when a drive comes back from another driver, /dev/ng1n1 may be its second namespace,
or another drive's.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import DeviceNotFoundError
from udrv.nvme.nodes import read_nsid

_DEV = Path("/dev")


@dataclass(frozen=True, slots=True)
class Identity:
    """A namespace of a drive; `pattern` finds nodes of the kind that the user named."""

    serial: str
    nsid: int
    pattern: str


def is_kernel_node(target: str) -> bool:
    """Whether a target is a node of the kernel's driver: /dev/ng0n1, or a link to one."""
    return target.startswith("/")


def node_path(target: str) -> str:
    """Return the path in such a target: /dev/ng0n1 of "/dev/ng0n1?iopoll=1"."""
    return target.partition("?")[0]


def node_serial(node: str) -> str | None:
    """Return the serial number of the drive behind a node; None if sysfs has none."""
    try:
        found = os.stat(node)  # noqa: PTH116 - follows links
    except OSError:
        return None
    kind = "block" if stat.S_ISBLK(found.st_mode) else "char"
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    directory = Path("/sys/dev") / kind / number
    for path in (directory / "device" / "serial", directory / "serial"):
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
    return None


def identity_of(node: str) -> Identity | None:
    """Return what a namespace's node is now; None if it is none, or may not be opened."""
    serial = node_serial(node)
    if serial is None:
        return None
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        nsid = read_nsid(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    generic = Path(node).resolve().name.startswith("ng")
    return Identity(serial, nsid, "ng[0-9]*n[0-9]*" if generic else "nvme[0-9]*n[0-9]*")


def find(wanted: Identity, *, device: str, seconds: float) -> str:
    """Return the node of a namespace; wait so long for it to come.

    Raises `DeviceNotFoundError`.
    """
    until = time.monotonic() + seconds
    while True:
        for node in sorted(_DEV.glob(wanted.pattern)):
            if identity_of(str(node)) == wanted:
                return str(node)
        if time.monotonic() >= until:
            raise DeviceNotFoundError(
                f"namespace {wanted.nsid} of the drive with serial {wanted.serial} did not come "
                f"back to the kernel's driver in {seconds:g} s",
                device=device, mend="udrv list shows where it is",
            )
        time.sleep(0.05)
