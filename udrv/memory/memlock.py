"""RLIMIT_MEMLOCK, looked at before the kernel refuses.

VFIO's type 1 driver pins what it maps and answers ENOMEM when the limit is too low, which looks
like a machine without memory. So ask first, with the kernel's own arithmetic (`vfio_lock_acct`
in drivers/vfio/vfio_iommu_type1.c): locked bytes of the process plus the new ones against the soft
limit, and no limit with CAP_IPC_LOCK in the initial user namespace.
"""

from __future__ import annotations

import resource
from pathlib import Path

from udrv.errors import MemlockError

_CAP_IPC_LOCK = 14
#: PROC_USER_INIT_INO (include/linux/proc_ns.h): the initial user namespace.
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD


def locked_bytes(status: str) -> int:
    """Bytes that count against the limit, from the text of /proc/PID/status.

    VmLck alone: it is `mm->locked_vm`, what type 1 adds to and compares. VmPin (`mm->pinned_vm`) is
    shown for information; adding it would refuse maps that the kernel allows.
    """
    return _field(status, "VmLck", 10) * 1024


def is_exempt(status: str, *, user_namespace: int = _INITIAL_USER_NAMESPACE) -> bool:
    """True if the process has CAP_IPC_LOCK where the kernel asks for it.

    The kernel asks with capable(): a container's root has the bit set, but in a user namespace of
    its own it does not count.
    """
    effective = _field(status, "CapEff", 16)
    return bool(effective >> _CAP_IPC_LOCK & 1) and user_namespace == _INITIAL_USER_NAMESPACE


def require_memlock(size: int, *, device: str | None = None) -> None:
    """Raise `MemlockError` if `size` more bytes, locked by this process, exceed RLIMIT_MEMLOCK.

    Without /proc nothing is known, and nothing is refused: the kernel still checks for itself.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        user_namespace = Path("/proc/self/ns/user").stat().st_ino
    except OSError:
        return
    if is_exempt(status, user_namespace=user_namespace):
        return
    locked = locked_bytes(status)
    needed = locked + size
    if needed <= limit:
        return
    kib = -(-needed // 1024)
    raise MemlockError(
        f"{size} bytes cannot be locked for DMA: with the {locked} bytes already locked, "
        f"RLIMIT_MEMLOCK must be at least {needed} bytes and is {limit}",
        needed=needed,
        limit=limit,
        device=device,
        mend=(
            f"raise it to {kib} KiB or more: `ulimit -l {kib}` (root may exceed the hard limit), "
            f"a line `USER - memlock {kib}` in /etc/security/limits.d/udrv.conf and a new login, "
            f"or LimitMEMLOCK={kib}K in the systemd unit"
        ),
    )


def _field(status: str, name: str, base: int) -> int:
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0], base)
    return 0
