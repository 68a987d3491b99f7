# SPDX-License-Identifier: Apache-2.0
"""The operations of a ring, a method each. All of them end in `Operations.prep`."""

from __future__ import annotations

import math
import os
import select
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udrv.errors import BufferTooSmallError, InvalidRequestError
from udrv.rings.columns import address_of, view_of
from udrv.rings.flags import CancelFlag, Op, SqeFlag, TimeoutFlag
from udrv.rings.native import ffi

if TYPE_CHECKING:
    from udrv.rings.register import BufferTable

_AT_FDCWD = -100
_MAX_LENGTH = (1 << 32) - 1
_FSYNC_DATASYNC = 1
_POLL_MULTI = 1
_CMD_FIXED = 1
_NO_FLAGS = SqeFlag(0)


def _length(view: Any) -> int:
    if len(view) > _MAX_LENGTH:
        raise InvalidRequestError(
            f"{len(view)} bytes with one request", mend="at most 4 GiB - 1: use slices"
        )
    return len(view)


class Operations(ABC):
    """What a `Ring` can ask of the kernel.

    Each method puts one request on the submission queue and returns its token, which `cancel` and
    the like take; nothing happens before `Ring.submit`. All take `user_data` (64 bits, returned
    with the completion) and `flags` (`SqeFlag`). Memory that is given is kept until the request's
    completion was reaped. A result (`Completion.res`) is that of the system call of the same
    name, or a negated errno.

    All raise `QueueFullError` when the queue is full (submit first) or too many requests are in
    flight (reap first), `UringUnsupportedError` if this kernel lacks the operation,
    `BufferTypeError` for memory that cannot be used, `ClosedError`, `ForkedError`,
    `QueueBusyError`. Manual: io_uring_enter(2).
    """

    buffers: BufferTable

    @abstractmethod
    def prep(
        self, opcode: int, fd: int = -1, *, addr: int = 0, length: int = 0, offset: int = 0,
        op_flags: int = 0, buf_index: int = 0, file_index: int = 0, ioprio: int = 0,
        addr3: int = 0, user_data: int = 0, flags: int = _NO_FLAGS, hold: object = None,
        timeout: tuple[int, int] | None = None, command: bytes | None = None,
    ) -> int:
        """Put any request on the submission queue; returns its token.

        The parameters are the fields of `struct io_uring_sqe`. For operations that have no method
        of their own: `addr` is believed, so give the owner of what lies there as `hold`, which is
        kept until the completion was reaped. `timeout` (seconds, nanoseconds) and `command` are
        for `timeout` and `uring_cmd`.
        """

    def nop(self, *, user_data: int = 0, flags: int = _NO_FLAGS) -> int:
        """Nothing; completes with 0."""
        return self.prep(Op.NOP, user_data=user_data, flags=flags)

    # --- data -------------------------------------------------------------------------------

    def read(
        self, fd: int, buffer: Any, offset: int = 0, *, user_data: int = 0,
        flags: int = _NO_FLAGS, rw_flags: int = 0,
    ) -> int:
        """Read into `buffer` from byte `offset`; -1: from the file's own position, moving it."""
        view = view_of(buffer, writable=True)
        return self.prep(
            Op.READ, fd, addr=address_of(view), length=_length(view), offset=offset,
            op_flags=rw_flags, user_data=user_data, flags=flags, hold=view,
        )

    def write(
        self, fd: int, buffer: Any, offset: int = 0, *, user_data: int = 0,
        flags: int = _NO_FLAGS, rw_flags: int = 0,
    ) -> int:
        """Write `buffer` at byte `offset`; -1: at the file's own position, moving it."""
        view = view_of(buffer, writable=False)
        return self.prep(
            Op.WRITE, fd, addr=address_of(view), length=_length(view), offset=offset,
            op_flags=rw_flags, user_data=user_data, flags=flags, hold=view,
        )

    def readv(
        self, fd: int, buffers: Sequence[Any], offset: int = 0, *, user_data: int = 0,
        flags: int = _NO_FLAGS, rw_flags: int = 0,
    ) -> int:
        """Read into several buffers, one after the other."""
        return self._vectored(Op.READV, fd, buffers, offset=offset, user_data=user_data,
                              flags=flags, op_flags=rw_flags)

    def writev(
        self, fd: int, buffers: Sequence[Any], offset: int = 0, *, user_data: int = 0,
        flags: int = _NO_FLAGS, rw_flags: int = 0,
    ) -> int:
        """Write several buffers, one behind the other."""
        return self._vectored(Op.WRITEV, fd, buffers, offset=offset, user_data=user_data,
                              flags=flags, op_flags=rw_flags)

    def _vectored(self, op: Op, fd: int, buffers: Sequence[Any], **rest: Any) -> int:
        views = [view_of(buffer, writable=op is Op.READV) for buffer in buffers]
        vectors = ffi.new("struct iovec[]", [(view, len(view)) for view in views])
        return self.prep(
            op, fd, addr=address_of(vectors), length=len(views), hold=(views, vectors), **rest
        )

    def read_fixed(
        self, fd: int, index: int, length: int | None = None, offset: int = 0, *,
        buffer_offset: int = 0, user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """Read `length` bytes into registered buffer `index`, from its byte `buffer_offset` on.

        `length` None: to the buffer's end. Raises `BufferTooSmallError`.
        """
        return self._fixed(Op.READ_FIXED, fd, index, length, buffer_offset, offset=offset,
                           user_data=user_data, flags=flags)

    def write_fixed(
        self, fd: int, index: int, length: int | None = None, offset: int = 0, *,
        buffer_offset: int = 0, user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """Write from registered buffer `index`; else as `read_fixed`."""
        return self._fixed(Op.WRITE_FIXED, fd, index, length, buffer_offset, offset=offset,
                           user_data=user_data, flags=flags)

    def _fixed(
        self, op: Op, fd: int, index: int, length: int | None, buffer_offset: int, /, **rest: Any
    ) -> int:
        view = self.buffers.view(index)
        if length is None:
            length = len(view) - buffer_offset
        if length < 0 or not 0 <= buffer_offset <= len(view) - length:
            raise BufferTooSmallError(
                f"bytes {buffer_offset} to {buffer_offset + length} of registered buffer {index}, "
                f"which has {len(view)}"
            )
        return self.prep(
            op, fd, addr=address_of(view) + buffer_offset, length=length, buf_index=index,
            hold=view, **rest,
        )

    def fsync(
        self, fd: int, *, data_only: bool = False, user_data: int = 0, flags: int = _NO_FLAGS
    ) -> int:
        """fsync, or fdatasync. Not ordered behind writes in flight: link or drain them."""
        op_flags = _FSYNC_DATASYNC if data_only else 0
        return self.prep(Op.FSYNC, fd, op_flags=op_flags, user_data=user_data, flags=flags)

    def recv(
        self, fd: int, buffer: Any, *, msg_flags: int = 0, user_data: int = 0,
        flags: int = _NO_FLAGS,
    ) -> int:
        """Receive into `buffer`; `msg_flags` as of recv(2)."""
        view = view_of(buffer, writable=True)
        return self.prep(
            Op.RECV, fd, addr=address_of(view), length=_length(view), op_flags=msg_flags,
            user_data=user_data, flags=flags, hold=view,
        )

    def send(
        self, fd: int, buffer: Any, *, msg_flags: int = 0, user_data: int = 0,
        flags: int = _NO_FLAGS,
    ) -> int:
        """Send `buffer`; `msg_flags` as of send(2)."""
        view = view_of(buffer, writable=False)
        return self.prep(
            Op.SEND, fd, addr=address_of(view), length=_length(view), op_flags=msg_flags,
            user_data=user_data, flags=flags, hold=view,
        )

    # --- files ------------------------------------------------------------------------------

    def openat(
        self, path: str | bytes | os.PathLike[str], open_flags: int = os.O_RDONLY,
        mode: int = 0o666, *, dir_fd: int = _AT_FDCWD, user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """Open a file; the result is its descriptor, close-on-exec, the caller's to close."""
        name = ffi.new("char[]", os.fsencode(path))
        return self.prep(
            Op.OPENAT, dir_fd, addr=address_of(name), length=mode,
            op_flags=open_flags | os.O_CLOEXEC, user_data=user_data, flags=flags, hold=name,
        )

    def close_fd(self, fd: int, *, user_data: int = 0, flags: int = _NO_FLAGS) -> int:
        """Close a descriptor (`Ring.close` closes the ring)."""
        return self.prep(Op.CLOSE, fd, user_data=user_data, flags=flags)

    # --- waiting for something ---------------------------------------------------------------

    def poll_add(
        self, fd: int, events: int = select.POLLIN, *, multishot: bool = False,
        user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """Complete when one of `events` (`select.POLL*`) is there; the result says which.

        `multishot` (5.13): a completion for each time, with `CqeFlag.MORE`, until cancelled.
        """
        return self.prep(
            Op.POLL_ADD, fd, length=_POLL_MULTI if multishot else 0, op_flags=events,
            user_data=user_data, flags=flags,
        )

    def poll_remove(self, token: int, *, user_data: int = 0, flags: int = _NO_FLAGS) -> int:
        """End a poll, which completes with -ECANCELED; -ENOENT if there is none any more."""
        return self.prep(Op.POLL_REMOVE, addr=token, user_data=user_data, flags=flags)

    def timeout(
        self, seconds: float, *, count: int = 0, timeout_flags: int = TimeoutFlag(0),
        user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """Complete with -ETIME after `seconds`, or with 0 when `count` other requests have."""
        return self.prep(
            Op.TIMEOUT, offset=count, op_flags=timeout_flags, timeout=_timespec(seconds),
            user_data=user_data, flags=flags,
        )

    def timeout_remove(self, token: int, *, user_data: int = 0, flags: int = _NO_FLAGS) -> int:
        """End a timeout, which completes with -ECANCELED; -ENOENT if there is none any more."""
        return self.prep(Op.TIMEOUT_REMOVE, addr=token, user_data=user_data, flags=flags)

    def link_timeout(
        self, seconds: float, *, timeout_flags: int = TimeoutFlag(0), user_data: int = 0,
        flags: int = _NO_FLAGS,
    ) -> int:
        """Cancel the request before, which was made with `SqeFlag.LINK`, after `seconds`."""
        return self.prep(
            Op.LINK_TIMEOUT, op_flags=timeout_flags, timeout=_timespec(seconds),
            user_data=user_data, flags=flags,
        )

    def cancel(
        self, token: int = 0, *, fd: int = -1, cancel_flags: int = CancelFlag(0),
        user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """Cancel the request with this token, or others by `CancelFlag` (5.19).

        The result is 0 (or, with ALL, how many), -ENOENT, or -EALREADY: it runs and may yet end
        as it would have. Whatever it is, the cancelled request has a completion of its own.
        """
        return self.prep(
            Op.ASYNC_CANCEL, fd, addr=token, op_flags=cancel_flags, user_data=user_data,
            flags=flags,
        )

    # --- commands of drivers -----------------------------------------------------------------

    def uring_cmd(
        self, fd: int, cmd_op: int, command: bytes, *, hold: object = None,
        buf_index: int | None = None, user_data: int = 0, flags: int = _NO_FLAGS,
    ) -> int:
        """A command of a driver: 16 bytes at most, 80 in a ring with SQE128.

        What addresses in `command` point to is `hold`'s to keep. `buf_index`: they lie in this
        registered buffer.
        """
        if buf_index is not None:
            hold = (hold, self.buffers.view(buf_index))
        return self.prep(
            Op.URING_CMD, fd, offset=cmd_op, command=bytes(command), hold=hold,
            buf_index=buf_index or 0, op_flags=0 if buf_index is None else _CMD_FIXED,
            user_data=user_data, flags=flags,
        )


def _timespec(seconds: float) -> tuple[int, int]:
    """Seconds and nanoseconds of a time that the kernel takes."""
    if not (math.isfinite(seconds) and 0 <= seconds < 1 << 40):
        raise InvalidRequestError(f"a timeout of {seconds} seconds", mend="0 to 2^40")
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)
