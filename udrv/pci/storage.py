# SPDX-License-Identifier: Apache-2.0
"""The block and character devices that a PCI function provides, and what is stacked on them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udrv.pci.host import HOST, Host
from udrv.pci.sysfs import PciFunction, parse_bdf

#: Directories of a function in which no device node can be, however many entries they have.
_BARREN = frozenset({"power", "msi_irqs", "mq", "queue", "integrity", "link", "statistics"})

#: nvme<subsystem>c<controller>n<head>: one path to a namespace of a multipath head.
_NVME_PATH = re.compile(r"nvme(\d+)c\d+n(\d+)", re.ASCII)
_HEAD = re.compile(r"nvme\d+n(\d+)", re.ASCII)
_GENERIC = re.compile(r"ng\d+n(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A character or block device.

    `label` is the name plus what a user knows it by ("dm-0 (vg-root)"); `number` is (major,
    minor), None while the kernel hides it.
    """

    name: str
    number: tuple[int, int] | None
    is_block: bool
    label: str


@dataclass(frozen=True, slots=True)
class StackedNode:
    """A block device and the way down to it from the function: (disk, partition, dm, ...)."""

    chain: tuple[DeviceNode, ...]

    @property
    def node(self) -> DeviceNode:
        """The device itself."""
        return self.chain[-1]

    def __str__(self) -> str:
        return " under ".join(node.label for node in reversed(self.chain))


def disks(function: PciFunction, *, host: Host = HOST) -> tuple[DeviceNode, ...]:
    """The whole disks (namespaces) that the function provides, by name.

    An NVMe namespace with multipath shows as its head (nvme0n1), which may have other paths too.
    """
    names = set()
    for directory, name in _walk(function.path):
        path = _NVME_PATH.fullmatch(name)
        if path:
            names.add(f"nvme{path[1]}n{path[2]}")
        elif _subsystem(directory) == "block" and not (directory / "partition").exists():
            names.add(name)
    block = host.sys / "class" / "block"
    return tuple(block_node(name, host=host) for name in sorted(names) if (block / name).exists())


def character_devices(function: PciFunction, *, host: Host = HOST) -> tuple[DeviceNode, ...]:
    """The function's character devices, by name: nvme0, and ng0n1 for each namespace."""
    found = {}
    for directory, name in _walk(function.path):
        if (directory / "dev").is_file() and _subsystem(directory) != "block":
            found[name] = DeviceNode(name, _number(directory, host), False, name)
    for disk in disks(function, host=host):
        # The generic device of a multipath head is not below the function but beside the head.
        node = generic_node(disk.name, host=host)
        if node is not None:
            found[node.name] = node
    return tuple(found[name] for name in sorted(found))


def generic_node(name: str, *, host: Host = HOST) -> DeviceNode | None:
    """The character device (ng2n1) of an NVMe disk (nvme1n1), None where there is none.

    Both are children of one directory, and end in the number of the namespace's head. The number in
    front is the controller's for one and may be the subsystem's for the other: after a hot plug
    they differ.
    """
    head = _HEAD.fullmatch(name)
    try:
        parent = (host.sys / "class" / "block" / name).resolve(strict=True).parent
        entries = sorted(parent.iterdir()) if head else []
    except OSError:
        return None
    for entry in entries:
        found = _GENERIC.fullmatch(entry.name)
        if found and head and found[1] == head[1] and (entry / "dev").is_file():
            return DeviceNode(entry.name, _number(entry, host), False, entry.name)
    return None


def stacked(disk: DeviceNode, *, host: Host = HOST) -> Iterator[StackedNode]:
    """The disk, its partitions, and whatever holds any of them (dm, md, bcache...), recursively."""
    yield from _stacked((disk,), set(), host)


def function_of_block_device(name: str, *, host: Host = HOST) -> str | None:
    """The address of the PCI function behind "nvme0n1", None for virtual devices."""
    try:
        path = (host.sys / "class" / "block" / name).resolve(strict=True)
    except OSError:
        return None
    for parent in path.parents:
        if _is_bdf(parent.name):
            return parent.name
    return None


def _stacked(
    chain: tuple[DeviceNode, ...], seen: set[str], host: Host
) -> Iterator[StackedNode]:
    node = chain[-1]
    if node.name in seen:
        return
    seen.add(node.name)
    yield StackedNode(chain)
    directory = host.sys / "class" / "block" / node.name
    upper = []
    try:
        upper += [entry.name for entry in directory.iterdir() if (entry / "partition").is_file()]
        upper += [entry.name for entry in (directory / "holders").iterdir()]
    except OSError:
        pass  # no such attribute, or gone while we looked
    for name in sorted(upper):
        yield from _stacked((*chain, block_node(name, host=host)), seen, host)


def block_node(name: str, *, host: Host = HOST) -> DeviceNode:
    """A block device by its name in /sys/class/block."""
    directory = host.sys / "class" / "block" / name
    alias = host.read(directory / "dm" / "name")
    return DeviceNode(
        name, _number(directory, host), True, f"{name} ({alias})" if alias else name
    )


def _number(directory: Path, host: Host) -> tuple[int, int] | None:
    text = host.read(directory / "dev")
    if not text:
        return None
    major, _, minor = text.partition(":")
    return int(major), int(minor)


def _subsystem(directory: Path) -> str | None:
    try:
        return (directory / "subsystem").readlink().name
    except OSError:
        return None


def _is_bdf(name: str) -> bool:
    try:
        return parse_bdf(name) == name
    except ValueError:
        return False


def _walk(top: Path) -> Iterator[tuple[Path, str]]:
    """Directories below a function, without those of other functions behind it."""
    for where, names, _ in os.walk(top):
        names[:] = [
            name for name in names
            if name not in _BARREN and not _is_bdf(name) and not Path(where, name).is_symlink()
        ]
        for name in names:
            yield Path(where, name), name
