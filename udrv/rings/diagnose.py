# SPDX-License-Identifier: Apache-2.0
"""What an errno of io_uring means here.

The kernel says EPERM for a sysctl, for a container's seccomp filter and for SQPOLL without the
right capability; EINVAL for a flag that it does not know, for one that does not go with another
and for a number out of range; ENOMEM for a limit. So: look at what can be looked at, and try
again without the suspect.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path

from udrv.errors import (
    ClosedError,
    InvalidRequestError,
    MemlockError,
    PermissionDeniedError,
    QueueBusyError,
    QueueFullError,
    UdrvError,
    UringDisabledError,
    UringError,
    UringUnsupportedError,
)
from udrv.rings.flags import SETUP_NEEDS, SETUP_SINCE, SetupFlag
from udrv.rings.native import ffi, lib

_CAP_SYS_ADMIN = 21
#: Ring memory counts against RLIMIT_MEMLOCK before this release, registered buffers always.
_MEMLOCK_FREE = (5, 12)


def kernel_release() -> tuple[int, int]:
    """The running kernel's release: (6, 1) for 6.1.0-18-amd64."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def older_than(release: str) -> bool:
    """Whether the running kernel is older than `release` ("5.19")."""
    major, _, minor = release.partition(".")
    return kernel_release() < (int(major), int(minor))


def _named(number: int) -> str:
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _status_field(name: str, base: int) -> int:
    found = re.search(rf"^{name}:\s*([0-9a-fA-F]+)", _read("/proc/self/status"), re.MULTILINE)
    return int(found[1], base) if found else 0


def sysctl_reason() -> tuple[str, str] | None:
    """(what forbids io_uring to this process, the mend), or None if the sysctl does not."""
    disabled = _read("/proc/sys/kernel/io_uring_disabled")
    if disabled == "2":
        return (
            "kernel.io_uring_disabled is 2: io_uring is off for every process",
            "sysctl kernel.io_uring_disabled=0, or 1 for a group only",
        )
    if disabled != "1":
        return None
    if _status_field("CapEff", 16) >> _CAP_SYS_ADMIN & 1:
        return None
    group = _read("/proc/sys/kernel/io_uring_group")
    if group not in ("", "-1") and int(group) in {os.getegid(), *os.getgroups()}:
        return None
    which = f"group {group}" if group not in ("", "-1") else "kernel.io_uring_group (none is set)"
    return (
        "kernel.io_uring_disabled is 1, and this process is neither in kernel.io_uring_group nor "
        "has CAP_SYS_ADMIN",
        f"run as a member of {which}, with CAP_SYS_ADMIN, or set kernel.io_uring_disabled=0",
    )


def has_seccomp_filter() -> bool:
    """Whether a seccomp filter watches this process's system calls (a container, a service)."""
    return _status_field("Seccomp", 10) == 2


def _try_flags(flags: int) -> int:
    """The errno of making a small ring with `flags`; 0 if it can be made. Nothing is kept."""
    memory = lib.udrv_uring_new(1)
    params = ffi.new("struct io_uring_params *")
    params.flags = flags
    try:
        failed = -int(lib.udrv_uring_open(memory, 4, params))
        lib.udrv_uring_exit(memory)
    finally:
        lib.udrv_uring_free(memory)
    return failed


def refused_flags(flags: int) -> list[int]:
    """Those bits of `flags` that this kernel answers with EINVAL, each tried on its own."""
    refused = []
    numbered = int(SetupFlag.CQSIZE | SetupFlag.SQ_AFF)  # they need a number as well
    for position in range(32):
        bit = 1 << position
        if not flags & bit & ~numbered:
            continue
        needs = int(SETUP_NEEDS.get(SetupFlag(bit), 0))
        needed = needs & -needs  # any one of them will do
        if _try_flags(bit | needed) == errno.EINVAL and _try_flags(needed) == 0:
            refused.append(bit)
    return refused


def flag_name(bit: int) -> str:
    """`IORING_SETUP_IOPOLL`, or the value of a flag that is not known here."""
    name = SetupFlag(bit).name if bit in set(map(int, SetupFlag)) else None
    return f"IORING_SETUP_{name}" if name else f"set-up flag {bit:#x}"


def setup_error(number: int, entries: int, flags: int, memory: int = 0) -> UdrvError:
    """The error for an io_uring_setup() that failed with errno `number`.

    `memory` is what the ring needs, in bytes, for the message about RLIMIT_MEMLOCK.
    """
    tried = f"io_uring_setup of {entries} entries failed with {_named(number)}"
    if number == errno.ENOSYS:
        if has_seccomp_filter():
            return UringDisabledError(
                "a seccomp filter hides io_uring from this process (ENOSYS)", reason="seccomp",
                mend="allow io_uring_setup, io_uring_enter and io_uring_register in the "
                "container's or service's seccomp profile",
            )
        return UringUnsupportedError(
            f"this kernel ({os.uname().release}) has no io_uring", needs="5.1",
            mend="run Linux 5.1 or newer with CONFIG_IO_URING=y",
        )
    if number in (errno.EPERM, errno.EACCES):
        return _forbidden(tried, number, flags)
    if number == errno.ENOMEM and kernel_release() < _MEMLOCK_FREE:
        return memlock_error(tried, memory)
    if number == errno.EINVAL:
        return _refused(tried, flags)
    mends = {
        errno.EMFILE: "close files, or raise this process's limit (ulimit -n)",
        errno.ENFILE: "raise the system's limit (sysctl fs.file-max)",
        errno.ENOMEM: "use fewer entries: the kernel has no memory for so many",
    }
    return UringError(tried, errno=number, mend=mends.get(number))


def _forbidden(tried: str, number: int, flags: int) -> UdrvError:
    """EPERM or EACCES."""
    by_sysctl = sysctl_reason()
    if by_sysctl:
        return UringDisabledError(by_sysctl[0], reason="sysctl", mend=by_sysctl[1])
    polling = int(SetupFlag.SQPOLL | SetupFlag.SQ_AFF | SetupFlag.CQSIZE)
    if flags & SetupFlag.SQPOLL and _try_flags(flags & ~polling) == 0:
        return PermissionDeniedError(
            f"IORING_SETUP_SQPOLL is not permitted to this process ({_named(number)})",
            mend="grant CAP_SYS_NICE (Linux 5.11 and 5.12) or CAP_SYS_ADMIN (older), look at the "
            "security module's log (SELinux: io_uring sqpoll), or leave SQPOLL out",
        )
    if has_seccomp_filter():
        return UringDisabledError(
            f"a seccomp filter forbids io_uring to this process ({_named(number)})",
            reason="seccomp",
            mend="allow io_uring_setup, io_uring_enter and io_uring_register in the container's "
            "or service's seccomp profile",
        )
    return UringDisabledError(
        f"{tried}, and neither kernel.io_uring_disabled nor a seccomp filter is the reason",
        reason="unknown",
        mend="look at the security module's log (SELinux, AppArmor) for io_uring",
    )


def _refused(tried: str, flags: int) -> UdrvError:
    """EINVAL."""
    refused = refused_flags(flags)
    if not refused:
        return InvalidRequestError(
            f"{tried}: each flag alone is known to this kernel, so the numbers or the combination "
            f"of {SetupFlag(flags)!r} are not",
            mend="see io_uring_setup(2) for what goes with what",
        )
    names = ", ".join(flag_name(bit) for bit in refused)
    since = [SETUP_SINCE.get(SetupFlag(bit)) for bit in refused]
    known = [release for release in since if release]
    needs = max(known, key=lambda text: [int(n) for n in text.split(".")], default=None)
    return UringUnsupportedError(
        f"this kernel ({os.uname().release}) does not know {names}", needs=needs,
        mend=f"run Linux {needs} or newer, or leave it out" if needs else "leave it out",
    )


def memlock_error(tried: str, needed: int) -> UdrvError:
    """ENOMEM where RLIMIT_MEMLOCK counts; `UringError` if there is no such limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return UringError(tried, errno=errno.ENOMEM, mend="the kernel has no memory to pin")
    return MemlockError(
        f"{tried}: {needed} bytes to lock, and RLIMIT_MEMLOCK is {limit} for all io_uring memory "
        "of this user",
        needed=needed,
        limit=limit,
        mend=f"raise it (ulimit -l {-(-needed // 1024)} or more, LimitMEMLOCK= of a service), or "
        "grant CAP_IPC_LOCK",
    )


def register_error(number: int, what: str, *, since: str, memory: int = 0) -> UdrvError:
    """The error for an io_uring_register() that failed; `since` is the release that has it."""
    tried = f"registering {what} failed with {_named(number)}"
    if number == errno.EINVAL and older_than(since):
        return UringUnsupportedError(
            f"this kernel ({os.uname().release}) cannot register {what}", needs=since,
            mend=f"run Linux {since} or newer",
        )
    if number == errno.ENOMEM and memory:
        return memlock_error(tried, memory)
    return UringError(tried, errno=number, mend=_REGISTER_MENDS.get(number))


_NO_PIN = (
    "memory that is a mapped file, or not mapped at all, cannot be pinned: use anonymous memory, a "
    "memfd or huge pages"
)
_REGISTER_MENDS = {
    errno.EBUSY: "there are some already: unregister them first",
    errno.ENXIO: "nothing is registered",
    errno.EBADF: "one of them is no open file",
    errno.EMFILE: "raise this process's limit of open files (ulimit -n)",
    errno.EFAULT: _NO_PIN,
    errno.EOPNOTSUPP: _NO_PIN,
    errno.EOVERFLOW: "one buffer is at most 1 GiB",
    errno.EEXIST: "with SINGLE_ISSUER only the thread that made the ring may do this",
    errno.EPERM: "a seccomp filter, or the ring's restrictions, forbid io_uring_register",
}


def call_error(number: int, what: str) -> UdrvError:
    """The error for a call on a ring that returned -`number`: ours, or an errno."""
    full = {
        lib.UDRV_URING_ESQFULL: ("the submission queue is full", "submit, then go on"),
        lib.UDRV_URING_ESLOTS: ("as many requests are in flight as the ring can hold",
                                "reap completions, or make the ring with a larger max_inflight"),
    }  # fmt: skip
    if number == lib.UDRV_URING_EBUSY:
        return QueueBusyError(f"{what}: another thread is inside this ring",
                              mend="use one ring a thread, or a lock")
    if number in full:
        reason, mend = full[number]
        return QueueFullError(f"{what}: {reason}", mend=mend)
    if number == lib.UDRV_URING_ECLOSED:
        return ClosedError(f"{what}: the ring is closed")
    if number == lib.UDRV_URING_EFLAGS:
        return InvalidRequestError(f"{what}: an SQE flag that cannot be used",
                                   mend="use those of SqeFlag")
    if number == lib.UDRV_URING_EINVAL:
        return InvalidRequestError(f"{what}: a size or an index is out of range")
    mends = {
        errno.EBUSY: "the completion queue overflowed: reap, then submit again",
        errno.EAGAIN: "the kernel has no memory for more requests now: reap, then submit again",
        errno.EEXIST: "with SINGLE_ISSUER only the thread that made the ring may submit, and with "
        "DEFER_TASKRUN only it may wait",
        errno.EPERM: "a seccomp filter forbids io_uring_enter",
    }
    return UringError(f"{what} failed with {_named(number)}", errno=number, mend=mends.get(number))
