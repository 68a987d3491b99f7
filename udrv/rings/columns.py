# SPDX-License-Identifier: Apache-2.0
"""Requests and completions as numpy columns: one C call for many of either."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from udrv.errors import BufferTypeError, InvalidRequestError, UringError
from udrv.rings.flags import Op
from udrv.rings.native import ffi
from udrv.units import integer

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]

_ERRNO_MENDS = {
    "ECANCELED": "it was cancelled, or a request that it was linked to failed",
    "EINVAL": "the file or the kernel does not know what this request asks for",
    "EFAULT": "its memory lies outside of the registered buffer, or is not mapped",
    "EOPNOTSUPP": "the file does not support this operation on such a ring (IOPOLL needs O_DIRECT "
    "and a device with poll queues)",
}


def _address(ctype: str, column: npt.NDArray[Any]) -> Any:
    """C's pointer to a column; the object that holds the pointer holds the column, too."""
    return ffi.cast(ctype, column.ctypes.data)


def view_of(buffer: Any, *, writable: bool) -> Any:
    """A cffi view of a buffer: while it lives, the memory can be neither freed nor resized.

    Raises `BufferTypeError` for what is no buffer, not contiguous, or read-only and must not be.
    """
    try:
        return ffi.from_buffer("char[]", buffer, writable)
    except (TypeError, ValueError, BufferError) as error:
        raise BufferTypeError(
            f"{type(buffer).__name__} cannot be used as memory for io_uring: {error}",
            mend="give a contiguous buffer (bytearray, mmap, numpy array), writable for reads",
        ) from error


def address_of(view: Any) -> int:
    """The address of a view's first byte."""
    return int(ffi.cast("uintptr_t", view))


class Completion(NamedTuple):
    """One completion.

    user_data: as given with the request.       token: what the request's method returned.
    res: the result, as of the system call of the same name; an errno, negated, if it failed.
    flags: `CqeFlag` bits.                       big: 16 more bytes as two numbers, with CQE32.
    """

    user_data: int
    res: int
    flags: int
    token: int
    big: tuple[int, int] = (0, 0)

    def check(self) -> int:
        """Return `res`; raise `UringError` if the request failed."""
        if self.res < 0:
            raise completion_error(self.res, self.user_data)
        return self.res


def completion_error(res: int, user_data: int) -> UringError:
    """The error for a request that completed with `res` < 0."""
    name = errno.errorcode.get(-res, str(-res))
    return UringError(
        f"the request with user_data {user_data} failed with {name} ({os.strerror(-res)})",
        errno=-res, mend=_ERRNO_MENDS.get(name),
    )


class Batch:
    """Columns of `capacity` requests with their data in one buffer (`Ring.batch` makes them).

    Fill in the columns, then `Ring.push(batch)`. They are read during that call only; the buffer is
    kept until the last completion was reaped.

    Attributes (numpy, one element a request)
    ----------
    opcode: uint8, `Op.READ` (to start with), `WRITE`, `READ_FIXED`, `WRITE_FIXED`, `FSYNC`, `NOP`.
    fd: int32, a file, or an index of the registered files with `SqeFlag.FIXED_FILE`.
    file_offset: uint64, bytes; 0 to start with.
    buffer_offset: uint64, bytes from the start of the buffer; 0 to start with.
    length: uint32, bytes; 0 to start with.
    user_data: uint64, returned with the completion; 0, 1, 2, ... to start with.
    flags: uint8, `SqeFlag` bits.     rw_flags: uint32, `RWF_*` bits; FSYNC: 1 is fdatasync.
    buf_index: uint16, which registered buffer, for the `_FIXED` operations.
    token: uint64, written by `Ring.push`: for `Ring.cancel`.
    """

    def __init__(self, capacity: int, buffer: Any = None, *, writable: bool = True) -> None:
        capacity = integer(capacity, "a number of requests")
        if not 1 <= capacity <= 1 << 24:
            raise InvalidRequestError(f"a batch of {capacity} requests", mend="1 to 2^24")
        self.capacity = capacity
        self.opcode: U8 = np.full(capacity, Op.READ, np.uint8)
        self.flags: U8 = np.zeros(capacity, np.uint8)
        self.fd: I32 = np.full(capacity, -1, np.int32)
        self.file_offset: U64 = np.zeros(capacity, np.uint64)
        self.buffer_offset: U64 = np.zeros(capacity, np.uint64)
        self.length: U32 = np.zeros(capacity, np.uint32)
        self.rw_flags: U32 = np.zeros(capacity, np.uint32)
        self.buf_index: U16 = np.zeros(capacity, np.uint16)
        self.user_data: U64 = np.arange(capacity, dtype=np.uint64)
        self.token: U64 = np.zeros(capacity, np.uint64)
        self._columns = self._now()
        #: The `struct udrv_uring_batch *` that C reads.
        self.c: Any = ffi.new("struct udrv_uring_batch *")
        self._view: Any = None
        self.c.capacity = capacity
        for name in ("opcode", "flags", "fd", "file_offset", "buffer_offset", "length",
                     "rw_flags", "buf_index", "user_data", "token"):  # fmt: skip
            column: npt.NDArray[Any] = getattr(self, name)
            setattr(self.c, name, _address(f"{column.dtype}_t *", column))
        if buffer is not None:
            self._view = view_of(buffer, writable=writable)
            self.c.writable = writable
            self.c.base = address_of(self._view)
            self.c.size = len(self._view)

    @property
    def view(self) -> Any:
        """The view of the buffer, which keeps its memory; None without a buffer."""
        return self._view

    def _now(self) -> tuple[Any, ...]:
        return (self.opcode, self.flags, self.fd, self.file_offset, self.buffer_offset,
                self.length, self.rw_flags, self.buf_index, self.user_data, self.token)

    def check_columns(self) -> None:
        """Raise `BufferTypeError` if a column was replaced: C would go on reading the old one."""
        if any(a is not b for a, b in zip(self._now(), self._columns, strict=True)):
            raise BufferTypeError(
                "a column of the batch was replaced",
                mend="assign to its elements: batch.length[:] = ...",
            )

    def __len__(self) -> int:
        return self.capacity


class Completions:
    """Columns that a reap fills (numpy, one element a completion); see `Completion`.

    user_data: uint64. token: uint64. res: int32. flags: uint32. big: uint64, two each.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.user_data: U64 = np.zeros(capacity, np.uint64)
        self.token: U64 = np.zeros(capacity, np.uint64)
        self.res: I32 = np.zeros(capacity, np.int32)
        self.flags: U32 = np.zeros(capacity, np.uint32)
        self.big: U64 = np.zeros((capacity, 2), np.uint64)
        #: The `struct udrv_uring_completions *` that C fills.
        self.c: Any = ffi.new("struct udrv_uring_completions *")
        self.c.capacity = capacity
        self.c.user_data = _address("uint64_t *", self.user_data)
        self.c.token = _address("uint64_t *", self.token)
        self.c.res = _address("int32_t *", self.res)
        self.c.flags = _address("uint32_t *", self.flags)
        self.c.big = _address("uint64_t *", self.big)
        #: The same memory, read-only: a slice of a read-only array is one, too.
        self.views: list[Any] = [
            column[:] for column in (self.user_data, self.token, self.res, self.flags, self.big)
        ]
        for view in self.views:
            view.flags.writeable = False

    def rows(self, count: int, *, big: bool) -> list[Completion]:
        """The first `count` rows as objects."""
        if not count:
            return []
        columns = [c[:count].tolist() for c in (self.user_data, self.res, self.flags, self.token)]
        if not big:
            return [Completion(*row) for row in zip(*columns, strict=True)]
        pairs = [(int(a), int(b)) for a, b in self.big[:count]]
        return [Completion(*row) for row in zip(*columns, pairs, strict=True)]


class Reaped:
    """What one reap delivered: read-only views of its rows, overwritten by the next reap."""

    __slots__ = ("big", "flags", "res", "token", "user_data")

    def __init__(self, completions: Completions, count: int) -> None:
        user_data, token, res, flags, big = completions.views
        self.user_data: U64 = user_data[:count]
        self.token: U64 = token[:count]
        self.res: I32 = res[:count]
        self.flags: U32 = flags[:count]
        self.big: U64 = big[:count]

    def check(self) -> None:
        """Raise `UringError` for the first request that failed."""
        failed = np.flatnonzero(self.res < 0)
        if len(failed):
            row = int(failed[0])
            raise completion_error(int(self.res[row]), int(self.user_data[row]))

    def __len__(self) -> int:
        return len(self.user_data)
