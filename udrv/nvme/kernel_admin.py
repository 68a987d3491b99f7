# SPDX-License-Identifier: Apache-2.0
"""Admin commands through the kernel's NVMe driver: one ioctl, which returns when it is done."""

from __future__ import annotations

import ctypes
import errno
import struct

from udrv.errors import (
    ClosedError,
    CommandTimeoutError,
    DeviceGoneError,
    InvalidRequestError,
    KernelIoError,
    PermissionDeniedError,
    UnsupportedOnTransport,
)
from udrv.nvme.admin import AdminResult, describe
from udrv.nvme.batch import STATUS_CODE
from udrv.nvme.spec.opcodes import AdminOpcode
from udrv.nvme.status import error_from_status
from udrv.nvme.timeouts import Timeouts
from udrv.units import integer, seconds

#: NVME_IOCTL_ADMIN64_CMD and struct nvme_passthru_cmd64 of <linux/nvme_ioctl.h>.
_ADMIN64 = 0xC0504E47
_COMMAND = struct.Struct("<BBHIIIQQIIIIIIIIIIQ")
#: An SQE without CDW0 31:16 (CID) and data pointers.
_SQE = struct.Struct("<BBHIIIQQQIIIIII")
_FUSE_PSDT = 0xC3
_MAX_TIMEOUT_MS = 0xFFFF_FFFF
_MAX_LENGTH = 0xFFFF_FFFF

#: The kernel's own queues and controller: a command of ours would take them from under it.
_KERNELS = frozenset({
    AdminOpcode.CREATE_IO_SQ, AdminOpcode.DELETE_IO_SQ, AdminOpcode.CREATE_IO_CQ,
    AdminOpcode.DELETE_IO_CQ, AdminOpcode.ASYNC_EVENT_REQUEST, AdminOpcode.ABORT,
    AdminOpcode.KEEP_ALIVE, AdminOpcode.DOORBELL_BUFFER_CONFIG,
})  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


#: Of commands for which the caller names no limit.
_LIMITS = Timeouts()


def admin_command(
    fd: int,
    sqe: bytes,
    *,
    device: str,
    path: str,
    read: int = 0,
    write: bytes = b"",
    timeout: float | None = None,
) -> AdminResult:
    """Send one admin command through the node that `fd` is open on, and wait for it.

    Parameters
    ----------
    sqe: 64 bytes; CID and data pointers are the kernel's.
    read, write: bytes to receive, or data to send; not both.
    timeout: seconds, after which the kernel aborts the command (and, if that fails, resets the
        controller); None: as `Timeouts` has it for the opcode.

    Raises the `NvmeStatusError` of the status, `PermissionDeniedError`, `CommandTimeoutError`,
    `UnsupportedOnTransport` for what belongs to the kernel or what the ioctl cannot carry, or
    `KernelIoError`.
    """
    if fd < 0:
        raise ClosedError("the controller is closed", device=device, mend="open it again")
    if len(sqe) != 64:
        raise InvalidRequestError(f"a command has 64 bytes, not {len(sqe)}", device=device)
    if read and write:
        raise InvalidRequestError("a command moves data one way only", device=device)
    length = integer(read, "a number of bytes", device=device) or len(write)
    if not 0 <= length <= _MAX_LENGTH:
        raise InvalidRequestError(f"{length} bytes of data", device=device)
    if timeout is None:
        timeout = _LIMITS.of(sqe[0], admin=True) or _LIMITS.admin_long
    timeout_ms = min(max(int(seconds(timeout, device=device) * 1000), 1), _MAX_TIMEOUT_MS)
    (opcode, flags, _cid, nsid, cdw2, cdw3, metadata, _prp1, _prp2, *cdw10_15) = _SQE.unpack(sqe)
    _refuse(opcode, flags, metadata, device)
    data = ctypes.create_string_buffer(bytes(write) if write else max(length, 1), max(length, 1))
    block = ctypes.create_string_buffer(
        _COMMAND.pack(
            opcode, 0, 0, nsid, cdw2, cdw3, 0, ctypes.addressof(data) if length else 0, 0, length,
            *cdw10_15, timeout_ms, 0, 0,
        ),
        _COMMAND.size,
    )
    # not fcntl.ioctl: a version of it that repeats after EINTR would repeat the command, and here
    # EINTR says that it was cancelled
    status = int(_libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(_ADMIN64), block))
    if status < 0:
        _raise(ctypes.get_errno(), sqe, device=device, path=path, timeout=timeout)
    result = int(_COMMAND.unpack(block.raw)[-1])
    if status & STATUS_CODE:
        raise error_from_status(
            status & 0x7FFF, command=describe(sqe), qid=0, result=result & 0xFFFF_FFFF,
            device=device,
        )
    return AdminResult(result, data.raw[:length] if read else b"")


def _refuse(opcode: int, flags: int, metadata: int, device: str) -> None:
    if opcode in _KERNELS:
        raise UnsupportedOnTransport(
            f"admin command {AdminOpcode(opcode).name} is the kernel driver's own", device=device,
            mend="bind the function to VFIO to own its queues (udrv bind)",
        )
    if flags & _FUSE_PSDT or metadata:
        raise UnsupportedOnTransport(
            "the kernel's passthrough carries no fused commands, SGLs or metadata pointers of ours",
            device=device, mend="leave CDW0 15:8 and MPTR zero, or use VFIO",
        )


def _raise(number: int, sqe: bytes, *, device: str, path: str, timeout: float) -> None:
    what = describe(sqe)
    name = errno.errorcode.get(number, str(number))
    if number in (errno.EACCES, errno.EPERM):
        raise PermissionDeniedError(
            f"{what} through {path} is not permitted ({name})", device=device,
            mend="admin commands other than Identify need CAP_SYS_ADMIN (Identify too before "
            "Linux 6.2): run as root",
        )
    if number == errno.EINTR:
        raise CommandTimeoutError(
            f"{what} was cancelled: it took longer than {timeout:g} s, or the controller was reset",
            device=device, mend="the kernel took it back; look at the kernel's log (dmesg)",
        )
    if number == errno.ENOTTY:
        raise UnsupportedOnTransport(
            f"{path} takes no admin commands", device=device, mend="it is no NVMe node",
        )
    if number in (errno.ENODEV, errno.ENXIO, errno.EWOULDBLOCK):
        raise DeviceGoneError(
            f"{what}: {path} has no working controller behind it ({name})", device=device,
            mend="look at the kernel's log (dmesg); rescan the bus or power-cycle the device",
        )
    raise KernelIoError(
        f"{what} through {path} failed with {name}", errno=number, command=what, qid=0,
        device=device,
        mend="the kernel did not send it: is the data length what the command says?"
        if number == errno.EINVAL else None,
    )
