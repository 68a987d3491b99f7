# SPDX-License-Identifier: Apache-2.0
"""The initramfs: static busybox, the modules that mount the root, and the job.

Written here, entry by entry, in the "newc" form of cpio (the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst): a device node in an archive needs no
privilege, and there is no tool to install.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from udrv.lab.kernel import Kernel, find_busybox, root_modules


@dataclass(frozen=True)
class Entry:
    """A file of the archive. `mode` holds type and permissions, `device` (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    """A directory with mode 0755."""
    return Entry(name, stat.S_IFDIR | 0o755)


def regular(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """A file with `data` in it."""
    return Entry(name, stat.S_IFREG | mode, data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive of `entries`; a directory must come before what lies in it."""
    out = bytearray()
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), start=1):
        name = entry.name.encode() + b"\0"
        fields = (
            number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
        )
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        out += _padded(header + name) + _padded(entry.data)
    return bytes(out)


def build(kernel: Kernel, *, command: str, devices: str, settings: str) -> bytes:
    """The initramfs of one run.

    `command` is the shell script to run, `devices` the JSON with places for what only the guest
    knows, `settings` shell assignments (`guest/boot` says which).
    """
    guest = resources.files("udrv.lab") / "guest"
    entries = [
        directory("bin"),
        directory("dev"),
        directory("lab"),
        directory("lab/modules"),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        regular("bin/busybox", find_busybox().read_bytes(), 0o755),
        regular("init", (guest / "init").read_bytes(), 0o755),
        regular("lab/boot", (guest / "boot").read_bytes()),
        regular("lab/command", command.encode()),
        regular("lab/devices.json", devices.encode()),
        regular("lab/settings", settings.encode()),
    ]
    for index, module in enumerate(root_modules(kernel)):
        entries.append(regular(f"lab/modules/{index}-{module.name}", module.read_bytes()))
    return newc(entries)


def write(path: Path, data: bytes) -> None:
    """Write the archive so that only its owner can read it: it holds the environment."""
    path.touch(mode=0o600)
    path.write_bytes(data)
