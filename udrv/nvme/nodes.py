# SPDX-License-Identifier: Apache-2.0
"""From a device node to the namespaces and the controller behind it, by sysfs.

The kernel numbers controllers and namespaces in the order in which it finds them, and multipath
puts namespaces below a subsystem: nvme0n1 may be a namespace of nvme1. So everything here goes by
device numbers and by directories of sysfs; a name is only shown.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import (
    DeviceNotFoundError,
    PermissionDeniedError,
    TargetError,
    UdrvError,
    UnsupportedOnTransport,
)
from udrv.pci import HOST, Host

#: NVME_IOCTL_ID (<linux/nvme_ioctl.h>): the namespace id of a namespace's node.
_IOCTL_ID = 0x4E40


@dataclass(frozen=True, slots=True)
class KernelNode:
    """A node that the kernel's NVMe driver made.

    Attributes
    ----------
    kind: "generic" (/dev/ng0n1), "block" (/dev/nvme0n1) or "controller" (/dev/nvme0).
    path: of the node.      directory: its own in sysfs.
    parent: of a namespace, the directory of its controller or, with multipath, its subsystem.
    """

    kind: str
    path: Path
    directory: Path
    parent: Path


def resolve(path: str, *, host: Host = HOST) -> KernelNode:
    """The node at `path` (a link to it will do).

    Raises `DeviceNotFoundError` where there is none, `TargetError` for anything that is not a
    whole NVMe namespace or an NVMe controller.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - follows links such as /dev/disk/by-id
    except OSError as error:
        raise _missing(path, error, host) from None
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    if stat.S_ISBLK(found.st_mode):
        link = host.sys / "dev" / "block" / number
    elif stat.S_ISCHR(found.st_mode):
        link = host.sys / "dev" / "char" / number
    else:
        raise TargetError(f"{path} is no device", mend=_TARGETS)
    try:
        directory = link.resolve(strict=True)
    except OSError:
        raise TargetError(f"{path} is a device that sysfs does not know", mend=_TARGETS) from None
    node = node_of(directory, host=host)
    if node is None:
        raise TargetError(f"{path} is no NVMe namespace and no NVMe controller", mend=_TARGETS)
    return KernelNode(node.kind, Path(path), node.directory, node.parent)


_TARGETS = "write /dev/ng0n1, /dev/nvme0n1 or /dev/nvme0; `udrv list` shows them"


def node_of(directory: Path, *, host: Host = HOST) -> KernelNode | None:
    """What a directory of sysfs stands for, None if it is no node of the NVMe driver's."""
    try:
        subsystem = (directory / "subsystem").readlink().name
    except OSError:
        return None
    path = host.dev / directory.name
    if subsystem == "nvme-generic":
        return KernelNode("generic", path, directory, directory.parent)
    if subsystem == "nvme":
        return KernelNode("controller", path, directory, directory)
    if subsystem == "block" and (directory / "partition").exists():
        raise TargetError(
            f"{path} is a partition",
            mend=f"use the whole namespace, {host.dev / directory.parent.name}: block numbers "
            "are counted from its start",
        )
    if subsystem == "block" and host.read(directory / "nsid") is not None:
        return KernelNode("block", path, directory, directory.parent)
    return None


def namespaces_below(parent: Path, kind: str, *, host: Host = HOST) -> tuple[KernelNode, ...]:
    """The nodes of one kind ("generic", "block") directly below a controller or a subsystem.

    Paths of a multipath namespace (nvme0c0n1) are hidden by the kernel and have no node.
    """
    found = []
    for directory in _children(parent):
        if not (directory / "dev").exists():
            continue
        node = node_of(directory, host=host)
        if node is not None and node.kind == kind:
            found.append(node)
    return tuple(found)


def parents_of(controller: Path, *, host: Host = HOST) -> tuple[Path, ...]:
    """Where namespaces of a controller may be: below itself, and below its subsystem."""
    subsystems = [
        entry.resolve() for entry in _children(host.sys / "class" / "nvme-subsystem", links=True)
        if (entry / controller.name).exists()
    ]
    return (controller, *subsystems)


def controllers_of(parent: Path) -> tuple[Path, ...]:
    """The controllers of a controller's or a subsystem's directory, those that work first."""
    if (parent / "cntlid").exists():
        return (parent,)
    found = [
        entry.resolve() for entry in _children(parent, links=True)
        if (entry / "cntlid").exists()
    ]
    return tuple(sorted(found, key=lambda c: (_text(c / "state") != "live", c.name)))


def sibling(node: KernelNode, kind: str, *, host: Host = HOST) -> KernelNode | None:
    """The node of another kind for the same namespace, None if there is none.

    Among the children of one directory the last number of a name is the namespace's head; those in
    front differ after a hot plug (ng2n1 and nvme1n1), and neither is the NSID.
    """
    head = node.directory.name.rpartition("n")[2]
    for other in namespaces_below(node.parent, kind, host=host):
        if other.directory.name.rpartition("n")[2] == head:
            return other
    return None


def read_nsid(fd: int) -> int:
    """The namespace id behind an open ng or block node. Raises `OSError`."""
    return int(fcntl.ioctl(fd, _IOCTL_ID))


def _children(directory: Path, *, links: bool = False) -> list[Path]:
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir() and (links or not entry.is_symlink())]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# --- opening, and what it means when that fails ----------------------------------------------


def open_node(path: Path, flags: int, *, target: str, hint: str | None = None) -> int:
    """Open a node; `PermissionDeniedError`, `DeviceNotFoundError` or another `UdrvError`.

    `hint` is added to the mend where permission is missing.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except PermissionError as error:
        wanted = "writing" if flags & os.O_RDWR else "reading"
        mend = f"run as root, or let a udev rule give your group access (MODE, GROUP for {path})"
        raise PermissionDeniedError(
            f"{path} cannot be opened for {wanted} ({error.strerror}); {describe_mode(path)}",
            device=target,
            mend=f"{mend}; {hint}" if hint else mend,
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise DeviceNotFoundError(
                f"{path} cannot be opened: {error.strerror}", device=target,
                mend="the device went away; `udrv list` shows what is there",
            ) from None
        mends = {
            errno.EMFILE: "raise this process's limit of open files (`ulimit -n`)",
            errno.EINVAL: "O_DIRECT is not possible here",
        }
        raise UdrvError(
            f"{path} cannot be opened: {error.strerror}", device=target,
            mend=mends.get(error.errno or 0),
        ) from None


def describe_mode(path: Path) -> str:
    """"it is crw------- root:root", for messages."""
    try:
        found = path.stat()
    except OSError:
        return "its mode is not known"
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"it is {stat.filemode(found.st_mode)} {owner}:{group}"


def _missing(path: str, error: OSError, host: Host) -> UdrvError:
    name = Path(path).name
    if isinstance(error, PermissionError):
        return PermissionDeniedError(
            f"{path} cannot be looked at ({error.strerror})", mend="look at the directory's mode"
        )
    if not (host.sys / "class" / "nvme").exists():
        return DeviceNotFoundError(
            f"there is no {path}, and the kernel's NVMe driver is not loaded",
            mend="modprobe nvme, if `udrv list` shows a drive; soft:?size=1G needs none",
        )
    if name.startswith("ng") and not (host.sys / "class" / "nvme-generic").exists():
        return UnsupportedOnTransport(
            f"there is no {path}, and this kernel ({os.uname().release}) makes no such nodes",
            mend="passthrough needs Linux 5.13 for the node and 5.19 for its use; /dev/nvme0n1, "
            "the block device, works without",
        )
    return DeviceNotFoundError(f"{path}: {error.strerror}", mend="`udrv list` shows what there is")
