# SPDX-License-Identifier: Apache-2.0
"""Why a function should not be taken from the kernel now: each fact as a `Reason`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from udrv.pci.host import HOST, Host, describe_errno
from udrv.pci.signatures import SignaturesUnknownError, signatures
from udrv.pci.storage import (
    DeviceNode,
    StackedNode,
    block_node,
    character_devices,
    disks,
    stacked,
)
from udrv.pci.sysfs import PciFunction


@dataclass(frozen=True, slots=True)
class Reason:
    """One fact that speaks against a bind.

    Attributes
    ----------
    code: "mounted", "swap", "holder", "loop", "claimed", "open", "signature", "unchecked",
        "network", "bridge", "group", "no-iommu" or "permission".
    text: the fact, one sentence without a full stop.
    mend: what makes it go away.
    overridable: whether `force` overrides it. What the kernel itself uses now never is: to pull
        a mounted disk out of its driver loses data, and no flag makes it safe.
    """

    code: str
    text: str
    mend: str
    overridable: bool

    def __str__(self) -> str:
        override = "; --force overrides it" if self.overridable else ""
        return f"{self.text} ({self.mend}{override})"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that has a device node open."""

    pid: int
    command: str
    path: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) has {self.path} open"


def usage(function: PciFunction, *, host: Host = HOST) -> tuple[Reason, ...]:
    """All reasons that lie in what the function's block, character and network devices carry."""
    reasons: list[Reason] = []
    nodes: list[DeviceNode] = list(character_devices(function, host=host))
    mounts = _mounts(host)
    swaps = _swaps(host)
    loops = _loops(host)
    for disk in disks(function, host=host):
        before = len(reasons)
        for layer in stacked(disk, host=host):
            nodes.append(layer.node)
            reasons += _layer(layer, mounts, swaps, loops)
        if len(reasons) == before:
            reasons += _claimed(disk, host)
        for layer in stacked(disk, host=host):
            if len(layer.chain) == 1 or layer.node.name.startswith(disk.name):
                reasons += _signed(layer, host)
    reasons += [
        Reason("open", str(process), f"stop it, or wait for it: kill {process.pid}", True)
        for process in processes_with(nodes, host=host)
    ]
    reasons += _network(function, host)
    return tuple(reasons)


def claims(name: str, *, host: Host = HOST) -> tuple[Reason, ...]:
    """What the kernel uses a whole disk ("nvme0n1") for now: mounts, swap, holders, loop devices.

    By sysfs and procfs alone: nothing is opened, and data signatures are not looked for.
    """
    disk = block_node(name, host=host)
    mounts, swaps, loops = _mounts(host), _swaps(host), _loops(host)
    return tuple(
        reason for layer in stacked(disk, host=host)
        for reason in _layer(layer, mounts, swaps, loops)
    )


def processes_with(nodes: Iterable[DeviceNode], *, host: Host = HOST) -> tuple[Process, ...]:
    """The processes that have one of these device nodes open, by process id.

    Sees the processes that /proc lets the caller look into: all of them for root.
    """
    numbers = {node.number for node in nodes if node.number}
    names = {f"/dev/{node.name}" for node in nodes}
    return tuple(
        Process(pid, _command(pid, host), path)
        for pid, path in open_nodes(host=host)
        if path in names or host.node(path) in numbers
    )


def processes_with_path(path: str, *, host: Host = HOST) -> tuple[Process, ...]:
    """The processes that have the node at `path` (such as "/dev/vfio/7") open, by process id."""
    return tuple(
        Process(pid, _command(pid, host), link)
        for pid, link in open_nodes(host=host) if link == path
    )


def open_nodes(*, host: Host = HOST) -> Iterator[tuple[int, str]]:
    """(process id, path) of every path below /dev that a process has open, without repeats.

    Goes by the link's text: stat() on another process's descriptors could hang on a dead network
    file system.
    """
    try:
        pids = sorted(int(entry.name) for entry in host.proc.iterdir() if entry.name.isdigit())
    except OSError:
        return
    for pid in pids:
        directory = host.proc / str(pid) / "fd"
        links = set()
        with contextlib.suppress(OSError):  # the process ended, or is not ours to look into
            for entry in directory.iterdir():
                with contextlib.suppress(OSError):
                    links.add(str(entry.readlink()))
        yield from ((pid, link) for link in sorted(links) if link.startswith("/dev/"))


def _command(pid: int, host: Host) -> str:
    return host.read(host.proc / str(pid) / "comm") or "?"


def _layer(
    layer: StackedNode,
    mounts: dict[tuple[int, int] | str, list[str]],
    swaps: set[tuple[int, int] | str],
    loops: dict[tuple[int, int] | str, str],
) -> Iterator[Reason]:
    node = layer.node
    keys = [key for key in (node.number, node.name) if key is not None]
    points = list(dict.fromkeys(point for key in keys for point in mounts.get(key, ())))
    for point in points:
        yield Reason("mounted", f"{layer} is mounted on {point}", f"umount {point}", False)
    if any(key in swaps for key in keys):
        yield Reason("swap", f"{layer} is swap space in use", f"swapoff /dev/{node.name}", False)
    loop = next((loops[key] for key in keys if key in loops), None)
    if loop is not None:
        yield Reason("loop", f"{layer} backs /dev/{loop}", f"losetup -d /dev/{loop}", False)
    if len(layer.chain) > 1 and not node.name.startswith(layer.chain[-2].name):
        yield Reason(
            "holder", f"{layer.chain[-2].label} is held by {node.label}", _release(node), False
        )


def _release(node: DeviceNode) -> str:
    alias = re.search(r"\((.+)\)", node.label)
    if node.name.startswith("dm-"):
        return f"dmsetup remove {alias[1] if alias else node.name}, or vgchange -an for LVM"
    if node.name.startswith("md"):
        return f"mdadm --stop /dev/{node.name}"
    return f"take {node.name} down"


def _claimed(disk: DeviceNode, host: Host) -> Iterator[Reason]:
    path = host.dev / disk.name
    try:
        fd = host.open_exclusive(path)
    except OSError as error:
        if error.errno == errno.EBUSY:
            yield Reason(
                "claimed", f"/dev/{disk.name} is claimed by the kernel or a program (ZFS, btrfs, "
                "a mount in another namespace...)", "export the pool, or end what uses it", False,
            )
        elif error.errno not in (errno.ENOMEDIUM, errno.ENXIO):
            yield Reason(
                "unchecked", f"/dev/{disk.name} could not be tested for use: "
                f"{describe_errno(error)}", "run as root, with /dev mounted", True,
            )
    else:
        os.close(fd)


def _signed(layer: StackedNode, host: Host) -> Iterator[Reason]:
    name = layer.node.name
    try:
        found = signatures(host.dev / name)
    except SignaturesUnknownError as error:
        yield Reason(
            "unchecked", f"/dev/{name} could not be searched for data: {error}",
            "run as root, with libblkid installed", True,
        )
        return
    for what in found:
        yield Reason(
            "signature", f"/dev/{name} carries data: {what}",
            f"if it is not needed: wipefs -a /dev/{name}", True,
        )


def _network(function: PciFunction, host: Host) -> Iterator[Reason]:
    interfaces = function.path / "net"
    for entry in sorted(interfaces.iterdir()) if interfaces.is_dir() else []:
        if host.read(entry / "operstate") == "up":
            yield Reason(
                "network", f"network interface {entry.name} is up",
                f"ip link set {entry.name} down", True,
            )


def _mounts(host: Host) -> dict[tuple[int, int] | str, list[str]]:
    """Mount points by device number and by device name.

    Both, since btrfs mounts carry an anonymous device number and only their source names a disk.
    """
    found: dict[tuple[int, int] | str, list[str]] = {}
    for line in (host.read(host.proc / "self" / "mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, source = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(source) < 2:
            continue
        point = _unescape(fields[4])
        major, _, minor = fields[2].partition(":")
        found.setdefault((int(major), int(minor)), []).append(point)
        for key in _device_keys(_unescape(source[1]), host):
            found.setdefault(key, []).append(point)
    for members in sorted((host.sys / "fs" / "btrfs").glob("*/devices/*")):
        points = [p for m in members.parent.iterdir() for p in found.get(m.name, ())]
        if points:
            found.setdefault(members.name, []).extend(points)
    return {key: list(dict.fromkeys(points)) for key, points in found.items()}


def _swaps(host: Host) -> set[tuple[int, int] | str]:
    lines = (host.read(host.proc / "swaps") or "").splitlines()[1:]
    return {
        key for line in lines if line.split()
        for key in _device_keys(_unescape(line.split()[0]), host)
    }


def _loops(host: Host) -> dict[tuple[int, int] | str, str]:
    found: dict[tuple[int, int] | str, str] = {}
    for backing in (host.sys / "class" / "block").glob("loop*/loop/backing_file"):
        for key in _device_keys(host.read(backing) or "", host):
            found[key] = backing.parent.parent.name
    return found


def _device_keys(path: str, host: Host) -> Iterator[tuple[int, int] | str]:
    """What a /dev path may be found under: its number, and its name after links."""
    if not path.startswith("/dev/"):
        return
    real = Path(os.path.realpath(host.root / path.lstrip("/")))
    number = host.node(real)
    if number is not None:
        yield number
    yield real.name


def _unescape(text: str) -> str:
    """Undo the octal escapes of /proc (mangle_path in the kernel): "\\040" is a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
