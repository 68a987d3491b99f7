# SPDX-License-Identifier: Apache-2.0
"""What the kernel's errno means on each VFIO file, in words that name the file and the mend."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import stat
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import (
    DeviceGoneError,
    DeviceInUseError,
    DmaMemoryError,
    DriverBindError,
    GroupNotViableError,
    InvalidRequestError,
    MemlockError,
    NoIommuError,
    PermissionDeniedError,
    UdrvError,
    VfioError,
)
from udrv.pci import HOST, NO_IOMMU_MEND, Host, PciFunction, iommu_group, vfio_users
from udrv.pci.host import describe_errno

#: CAP_IPC_LOCK (<linux/capability.h>): the holder may pin any amount of memory.
_CAP_IPC_LOCK = 14


@dataclass(frozen=True, slots=True)
class MemlockState:
    """How much this process has pinned, and may pin. Bytes; `limit` is None for unlimited.

    `charged` is the memory that counts against the limit: mlock(2), and VFIO's type 1 maps or
    iommufd's, which the kernel counts apart. `exempt`: CAP_IPC_LOCK, no limit applies.
    """

    limit: int | None
    charged: int
    exempt: bool

    def exceeded_by(self, size: int) -> bool:
        """Whether `size` more bytes go over the limit."""
        return not self.exempt and self.limit is not None and self.charged + size > self.limit


def memlock_state(*, pinned: bool = False, host: Host = HOST) -> MemlockState:
    """Read RLIMIT_MEMLOCK and /proc/self/status. `pinned`: count VmPin (iommufd), not VmLck."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    fields = dict(
        line.split(":", 1)
        for line in (host.read(host.proc / "self" / "status") or "").splitlines() if ":" in line
    )
    charged = int(fields.get("VmPin" if pinned else "VmLck", "0").split()[0]) << 10
    capabilities = int(fields.get("CapEff", "0"), 16)
    return MemlockState(
        None if soft == resource.RLIM_INFINITY else soft, charged,
        bool(capabilities >> _CAP_IPC_LOCK & 1),
    )


def check_ready(found: PciFunction) -> int:
    """The function's IOMMU group, once it is sure that a VFIO driver holds the function.

    Raises `NoIommuError`, `DriverBindError`.
    """
    if found.iommu_group is None:
        raise NoIommuError(
            "it has no IOMMU group, so nothing could keep it from writing to any memory",
            device=found.target, mend=NO_IOMMU_MEND,
        )
    if not found.on_vfio:
        by = f"the driver {found.driver}" if found.driver else "no driver"
        raise DriverBindError(
            f"it is bound to {by}, not to vfio-pci", device=found.target,
            mend=f"`udrv bind {found.bdf}`, or for this use only --bind (in Python bind=True)",
        )
    return found.iommu_group


def open_error(
    error: OSError, path: str, found: PciFunction, *, host: Host = HOST
) -> UdrvError:
    """What a failed open of /dev/vfio/vfio, /dev/vfio/GROUP, a cdev or /dev/iommu means."""
    target = found.target
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(
            f"opening {path} is not permitted to {_whoami()} ({_describe_file(path)})",
            device=target, mend=f"as root: chown {_whoami()} {path}, or run as root",
        )
    if error.errno == errno.EBUSY:
        users = vfio_users(found, host=host)
        who = "; ".join(map(str, users)) or "by a process that this user cannot see"
        return DeviceInUseError(
            f"{path} is open already: {who}", reasons=[str(user) for user in users],
            device=target, mend="end the other user; a VFIO group has one owner at a time",
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return VfioError(
            f"there is no {path}", errno=error.errno, device=target,
            mend="load VFIO (modprobe vfio-pci) and make sure that /dev is a devtmpfs",
        )
    return _other(error, f"opening {path} failed", target)


def not_viable(found: PciFunction, *, host: Host = HOST) -> GroupNotViableError:
    """VFIO refused the group: who else is in it."""
    others = [
        member for member in iommu_group(found.iommu_group or 0, host=host).obstacles()
        if member.bdf != found.bdf
    ]
    listed = ", ".join(f"{member.bdf} ({member.driver})" for member in others)
    return GroupNotViableError(
        f"IOMMU group {found.iommu_group} is not viable: "
        f"host drivers hold {listed or 'other members'}",
        members=[(member.bdf, member.driver) for member in others], device=found.target,
        mend="; ".join(f"udrv bind {member.bdf}" for member in others)
        or "see /sys/kernel/iommu_groups for what else is in it",
    )


def iommu_error(error: OSError, found: PciFunction) -> UdrvError:
    """What a failed VFIO_SET_IOMMU or VFIO_DEVICE_BIND_IOMMUFD means."""
    if error.errno == errno.EPERM:
        return VfioError(
            "the kernel refuses it: the platform cannot isolate interrupts", errno=error.errno,
            device=found.target, mend="switch interrupt remapping on (firmware; intremap=on); "
            "VFIO's allow_unsafe_interrupts gives up that protection",
        )
    return _other(error, "setting up the IOMMU failed", found.target)


def map_error(
    error: OSError, target: str, *, iova: int, size: int, pinned: bool, host: Host = HOST
) -> UdrvError:
    """What a failed map of DMA memory means. `pinned`: see `memlock_state`."""
    tried = f"mapping {size} bytes at IOVA {iova:#x} for DMA failed"
    if error.errno in (errno.ENOMEM, errno.EPERM):
        state = memlock_state(pinned=pinned, host=host)
        # iommufd charges the user, not the process, and the user's total is not readable:
        # with a limit in force, a refused map is most likely the limit.
        over = state.exceeded_by(size) or (
            pinned and state.limit is not None and not state.exempt
        )
        if over and state.limit is not None:
            return MemlockError(
                f"{tried}: RLIMIT_MEMLOCK is {state.limit} bytes, "
                f"{state.charged + size} are needed ({state.charged} in use)",
                needed=state.charged + size, limit=state.limit, device=target,
                mend="raise it: `ulimit -l unlimited`, LimitMEMLOCK= in a systemd unit, or "
                "/etc/security/limits.conf",
            )
        return DmaMemoryError(
            f"{tried}: {describe_errno(error)}", device=target,
            mend="use smaller pools, or free memory",
        )
    if error.errno == errno.EEXIST:
        return InvalidRequestError(
            f"{tried}: a map overlaps it", device=target, mend="unmap the other one first"
        )
    if error.errno == errno.ENOSPC:
        return DmaMemoryError(
            f"{tried}: the kernel's limit of maps per container is reached", device=target,
            mend="use fewer, larger pools, or raise vfio_iommu_type1's dma_entry_limit",
        )
    if error.errno == errno.EFAULT:
        return DmaMemoryError(
            f"{tried}: the memory cannot be pinned for reading and writing", device=target,
            mend="map ordinary writable memory (a memfd of udrv.memory)",
        )
    return _other(error, tried, target)


def call_error(error: OSError, tried: str, target: str) -> UdrvError:
    """What a failed call on an open device means."""
    return _other(error, f"{tried} failed", target)


def _other(error: OSError, tried: str, target: str) -> UdrvError:
    if error.errno == errno.ENODEV:
        return DeviceGoneError(
            f"{tried}: the device is gone", device=target,
            mend="it was unplugged or taken away; `udrv list` shows what is there",
        )
    return VfioError(
        f"{tried}: {describe_errno(error)}", errno=error.errno, device=target,
        mend="the kernel log (dmesg) may say more",
    )


def _whoami() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _describe_file(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError as error:
        return f"its directory: {describe_errno(error)}"
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"owner {owner}, group {group}, mode {stat.S_IMODE(found.st_mode):04o}"
