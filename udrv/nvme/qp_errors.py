# SPDX-License-Identifier: Apache-2.0
"""What the return values of the C core stand for, as exceptions."""

from __future__ import annotations

from typing import NoReturn

from udrv.core import lib
from udrv.errors import (
    AlignmentError,
    BufferTooSmallError,
    ClosedError,
    ControllerStateError,
    ForkedError,
    InvalidRequestError,
    LbaRangeError,
    PermissionDeniedError,
    QueueBusyError,
    QueueFullError,
    TransferTooLargeError,
    UdrvError,
    UnsupportedOnTransport,
    VfioError,
)

_ERRORS: dict[int, tuple[type[UdrvError], str, str | None]] = {
    lib.UDRV_EBUSY: (
        QueueBusyError,
        "another thread is inside this queue",
        "give each thread a queue of its own (ctrl.create_queue())",
    ),
    lib.UDRV_EFORKED: (
        ForkedError,
        "the queue belongs to the parent process",
        "open the device again in the child",
    ),
    lib.UDRV_ECLOSED: (ClosedError, "the queue is closed", None),
    lib.UDRV_EHALTED: (
        ControllerStateError, "the controller is being reset", "try again when that is over",
    ),
    lib.UDRV_EFULL: (QueueFullError, "no free command slot", "reap completions first"),
    lib.UDRV_EOPCODE: (
        InvalidRequestError,
        "the batch path carries read, write and flush only",
        "send others one by one, with Queue.submit_raw",
    ),
    lib.UDRV_ERANGE: (
        LbaRangeError,
        "the blocks lie outside of the namespace (or are none)",
        "correct slba and nlb: nlb is a count from 1, the namespace ends at Namespace.nsze",
    ),
    lib.UDRV_ESIZE: (
        TransferTooLargeError,
        "larger than one command may transfer",
        "split it at Namespace.max_blocks, or use Namespace.read and write, which do",
    ),
    lib.UDRV_EBUFFER: (
        BufferTooSmallError,
        "the data would lie outside of the buffer",
        "bind a larger buffer, or correct the offset",
    ),
    lib.UDRV_EALIGN: (
        AlignmentError,
        "the data address is not a multiple of 4",
        "correct the offset",
    ),
    lib.UDRV_ETRANSPORT: (
        UnsupportedOnTransport,
        "this transport cannot carry the command (fused, SGL, metadata pointer, control bits)",
        "leave those fields zero, or use VFIO",
    ),
    lib.UDRV_EREADONLY: (
        PermissionDeniedError,
        "the namespace is open for reading only",
        "open it again with the permission to write",
    ),
    lib.UDRV_EINVAL: (InvalidRequestError, "an index or a count is out of range", None),
}



def raise_qp_error(code: int, *, device: str, where: str) -> NoReturn:
    """Raise what a negative return value of the C core stands for."""
    if -code in _ERRORS:
        cls, tried, mend = _ERRORS[-code]
        raise cls(f"{where}: {tried}", device=device, mend=mend)
    raise VfioError(f"{where}: waiting for the interrupt failed", errno=-code, device=device)
