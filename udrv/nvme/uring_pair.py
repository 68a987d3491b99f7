# SPDX-License-Identifier: Apache-2.0
"""One queue over io_uring: Python's part of `udrv/rings/include/udrv/uring_qp.h`.

It sets up the ring, registers files and memory pools with it, and takes it down again, with the
same faces as `QueuePair`.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from udrv.core import ffi
from udrv.core import lib as core
from udrv.errors import (
    AlignmentError,
    ClosedError,
    CommandTimeoutError,
    QueueBusyError,
    UdrvError,
)
from udrv.memory import Buffer
from udrv.nvme.pair import CLOSE_SECONDS, MAX_SLOTS, WAIT_SLICE_NS
from udrv.nvme.qp_errors import raise_qp_error
from udrv.rings import diagnose
from udrv.rings.flags import SetupFlag
from udrv.rings.native import ffi as uffi
from udrv.rings.native import lib

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace

#: Slots that a queue can have: one more than commands in flight.
MAX_ENTRIES = int(lib.UDRV_URING_MAX_DEPTH) + 1
MAX_FILES = int(lib.UDRV_URING_FILES)
HOST_STATUS = int(lib.UDRV_STATUS_HOST)

_NO_BUFFER = int(lib.UDRV_URING_NO_BUFFER)
#: Seconds that a queue's end waits for commands in flight, each time it is tried.
_DRAIN_SECONDS = 5.0
_NS = 1_000_000_000
_LINE = 64

#: Pairs whose commands were still in flight at the end: kept, with the memory of those commands.
_STRANDED: list[UringPair] = []

lib.udrv_uring_core_init(ffi.addressof(core, "udrv_clock"))


def stranded() -> int:
    """Queues of this process that were closed with commands which the kernel never finished."""
    return len(_STRANDED)


class UringOwner(Protocol):
    """What a pair needs of its backend."""

    target: str

    def file_of(self, nsid: int) -> tuple[int, int, bool]:
        """(index in file tables, descriptor, whether writing was allowed) of a namespace."""

    def drop_pair(self, pair: UringPair) -> None:
        """The pair is gone: no more `forget_memory` and `refresh_file` for it."""


class UringPair:
    """A ring, its trackers and its tables.

    Parameters
    ----------
    entries: 2 to `MAX_ENTRIES`; `entries - 1` commands fit.
    interrupt: have an eventfd that completions signal.
    one_thread: only the thread that submits first will ever use the queue.
    block: reads and writes of a block device, no passthrough.
    iopoll: poll the device in the kernel.
    max_transfer, align_mask: of one command, bytes; of data addresses.
    """

    def __init__(
        self,
        owner: UringOwner,
        *,
        qid: int,
        entries: int,
        interrupt: bool,
        one_thread: bool,
        block: bool,
        iopoll: bool,
        max_transfer: int,
        align_mask: int,
    ) -> None:
        self._owner = owner
        self.device = owner.target
        self.qid = qid
        self.entries = entries
        self.depth = entries - 1
        self.where = f"queue {qid}"
        self.submit_c = lib.udrv_uring_qp_submit
        self.reap_c = lib.udrv_uring_qp_reap
        self.on_device = False
        self.timed = True
        self.max_transfer = max_transfer
        self.align_mask = align_mask
        self.eventfd = -1
        self._files: set[int] = set()
        #: Index in the ring's table of buffers by address of the pool; None: not registered.
        self._pools: dict[int, int | None] = {}
        self._free_indexes = list(range(int(lib.UDRV_URING_BUFFERS) - 1, -1, -1))
        self._handle: Any = None
        self._stream: Any = None
        flags = (
            (lib.UDRV_URING_BLOCK if block else 0)
            | (lib.UDRV_URING_IOPOLL if iopoll else 0)
            | (lib.UDRV_URING_ONE_THREAD if one_thread else 0)
            | (lib.UDRV_URING_FIXED_CMD if not diagnose.older_than("6.1") else 0)
        )
        if interrupt:
            self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # memory of its own that stays as long as anybody has the handle: a thread that comes too
        # late finds it closed
        # on cache lines of its own: two threads with a queue each write no line both
        size = -(-uffi.sizeof("struct udrv_uring_qp") // _LINE) * _LINE
        memory = np.zeros(size + _LINE, np.uint8)
        handle = uffi.from_buffer("struct udrv_uring_qp *", memory[-memory.ctypes.data % _LINE :])
        try:
            config = uffi.new("struct udrv_uring_config *")
            config.qid = qid
            config.depth = self.depth
            config.flags = flags
            config.eventfd = self.eventfd
            config.max_transfer = max_transfer
            config.align_mask = align_mask
            ret = lib.udrv_uring_qp_init(handle, config)
            if ret < 0:
                self._raise_setup(ret, block, iopoll)
            self._handle = handle
        except BaseException:
            self._handle = None
            lib.udrv_uring_qp_exit(handle)
            self._close_eventfd()
            raise

    def _raise_setup(self, ret: int, block: bool, iopoll: bool) -> NoReturn:
        if -ret > 4000:
            raise_qp_error(ret, device=self.device, where=self.where)
        must = SetupFlag(0) if block else SetupFlag.SQE128 | SetupFlag.CQE32
        if iopoll:
            must |= SetupFlag.IOPOLL
        error = diagnose.setup_error(-ret, self.entries, int(must))
        error.device = self.device
        raise error

    # --- state ------------------------------------------------------------------------------

    @property
    def c(self) -> Any:
        """The `struct udrv_uring_qp *`. Raises `ClosedError` after `free`."""
        if self._handle is None:
            raise ClosedError(f"{self.where} is closed", device=self.device)
        return self._handle

    @property
    def loop_c(self) -> Any:
        """A `struct udrv_queue *`, for C loops that serve any transport; errors as of `c`."""
        queue = ffi.new("struct udrv_queue *")
        lib.udrv_uring_qp_as_queue(self.c, queue)
        return queue

    @property
    def inflight(self) -> int:
        """Commands that the kernel has, those in quarantine included."""
        return int(lib.udrv_uring_qp_inflight(self.c))

    def slot_inflight(self, slot: int) -> int:
        """The same of one slot."""
        return int(lib.udrv_uring_qp_slot_inflight(self.c, slot))

    @property
    def setup_flags(self) -> int:
        """IORING_SETUP_* flags that the kernel accepted."""
        return int(self.c.setup_flags)

    def counters(self) -> dict[str, int]:
        """Totals since creation; there are no doorbells here but system calls."""
        c = self.c.counters
        return {
            "submitted": int(c.submitted),
            "completed": int(c.completed),
            "consumed": int(c.consumed),
            "system_calls": int(c.enters),
            "fixed": int(c.fixed),
            "bad_cid": int(c.anomalies.bad_cid),
            "duplicate": int(c.anomalies.duplicate),
            "late": int(c.anomalies.late),
        }

    # --- commands ---------------------------------------------------------------------------

    def submit_command(
        self, batch: Any, sqe: bytes, offset: int, length: int, user_data: int
    ) -> int:
        """One command as it is; see `Queue.submit_raw`. Returns 1, 0 or what `fail` takes."""
        entry = ffi.from_buffer(sqe)
        return int(lib.udrv_uring_qp_submit_raw(self.c, batch, entry, offset, length, user_data))

    @property
    def halted(self) -> bool:
        """Never: the kernel resets its controllers by itself."""
        return False

    def pause(self, timeout: float | None = None) -> None:
        """Return at once: it is never halted."""

    def wait(
        self, completions: Any, minimum: int, maximum: int, timeout_ns: int, spin_ns: int
    ) -> int:
        """One `udrv_uring_qp_wait`, of at most `WAIT_SLICE_NS`."""
        return self._check(
            lib.udrv_uring_qp_wait(
                self.c, completions, minimum, maximum, min(timeout_ns, WAIT_SLICE_NS), spin_ns
            )
        )

    def quarantine(self, slot: int | None = None) -> int:
        """Give up what is in flight (of one slot, or of all). Returns how many commands."""
        return self._check(
            lib.udrv_uring_qp_quarantine(self.c, MAX_SLOTS if slot is None else slot)
        )

    def ring(self) -> bool:
        """The kernel rings by itself."""
        return False

    def _check(self, ret: int) -> int:
        if ret < 0:
            self.fail(ret, self.where)
        return ret

    def fail(self, code: int, where: str) -> NoReturn:
        """Raise what a negative return value of the C code stands for."""
        number = -code
        if number == core.UDRV_EALIGN and self.align_mask != 3:
            raise AlignmentError(
                f"{where}: the data address is not a multiple of {self.align_mask + 1}",
                device=self.device,
                mend="this block device's O_DIRECT needs it; correct the offset",
            )
        if number > 4000:
            raise_qp_error(code, device=self.device, where=where)
        if number == errno.EEXIST:
            raise QueueBusyError(
                f"{where}: it was made with one_thread=True, and this is another thread",
                device=self.device, mend="use it from the thread that submitted first",
            )
        error: UdrvError = diagnose.call_error(number, where)
        error.device = self.device
        raise error

    # --- its stream -------------------------------------------------------------------------

    def set_stream(self, stream: Any) -> int:
        """Hang a `struct udrv_stream *` of the core on it, or take it off (None)."""
        address = 0 if stream is None else int(ffi.cast("uintptr_t", stream))
        pointer = uffi.cast("void *", address)
        ret = lib.udrv_uring_qp_set_stream(self.c, pointer)
        if not ret:
            self._stream = stream  # its memory lives as long as C may write there
        return int(ret)

    def consumed(self) -> int:
        """CQEs consumed so far, rejected ones included."""
        return int(self.c.counters.consumed)

    # --- tables -----------------------------------------------------------------------------

    def aim(self, batch: Any, namespace: Namespace, buffer: Buffer | None) -> None:
        """Write into a `struct udrv_batch *` where its data and its namespace are."""
        index, fd, writable = self._owner.file_of(namespace.nsid)
        if index not in self._files:
            self._register_file(index, fd)
        batch.file = index
        batch.writable = writable
        if buffer is None:
            batch.iova = batch.pool_id = batch.pool_offset = 0
            batch.buf_index = _NO_BUFFER
            return
        buffer.pool.check()
        batch.iova = buffer.address
        batch.pool_id = buffer.pool.id
        batch.pool_offset = buffer.pool_offset
        batch.buf_index = self._buffer_index(buffer.pool.address, buffer.pool.size)

    def _register_file(self, index: int, fd: int) -> None:
        ret = lib.udrv_uring_qp_file(self.c, index, fd)
        if ret < 0:
            self.fail(ret, f"{self.where}, registering a file")
        self._files.add(index)

    def refresh_file(self, index: int, fd: int) -> None:
        """The namespace was opened anew: use that descriptor from now on."""
        if self._handle is not None and index in self._files:
            self._register_file(index, fd)

    def _buffer_index(self, address: int, size: int) -> int:
        """The pool's index in the ring's table; registered now if it is not yet."""
        if address not in self._pools:
            found: int | None = None
            if self._free_indexes:
                index = self._free_indexes.pop()
                pointer = uffi.cast("void *", address)
                if lib.udrv_uring_qp_buffer(self.c, index, pointer, size) == 0:
                    found = index
                else:  # RLIMIT_MEMLOCK, an older kernel: plain addresses serve as well
                    self._free_indexes.append(index)
            self._pools[address] = found
        known = self._pools[address]
        return _NO_BUFFER if known is None else known

    def forget_memory(self, address: int) -> None:
        """The pool at `address` goes: take it out of the ring's table, if it is in there."""
        index = self._pools.pop(address, None)
        if index is None or self._handle is None:
            return
        if lib.udrv_uring_qp_buffer(self._handle, index, uffi.NULL, 0) == 0:
            self._free_indexes.append(index)
        # else (another thread's ring): the ring keeps the pages pinned until it is closed

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse further calls and wait until nobody is inside. Memory stays until `free`.

        Raises `QueueBusyError` if a thread is still inside after `CLOSE_SECONDS`.
        """
        if self._handle is None:
            return
        lib.udrv_uring_qp_close(self._handle)
        deadline = time.monotonic() + CLOSE_SECONDS
        while lib.udrv_uring_qp_quarantine(self._handle, MAX_SLOTS) == -core.UDRV_EBUSY:
            if time.monotonic() > deadline:
                raise_qp_error(-core.UDRV_EBUSY, device=self.device, where=self.where)
            time.sleep(0.0005)

    def drain(self) -> None:
        """Of a closed pair: return when nothing is in flight any more.

        Raises `CommandTimeoutError` when commands are in flight after some seconds.
        """
        left = lib.udrv_uring_qp_drain(self.c, int(_DRAIN_SECONDS * _NS))
        if left < 0:
            self.fail(left, f"{self.where}, waiting for its last commands")
        if left:
            raise CommandTimeoutError(
                f"{left} commands on {self.where} did not end within {_DRAIN_SECONDS:g} s of "
                "closing it",
                device=self.device,
                mend="the kernel has them still: their memory stays allocated in this process",
            )

    def free(self) -> None:
        """Close the ring; idempotent.

        The proof that memory can go is that nothing is in flight. Where that cannot be had, ring
        and memory are kept for the life of this process (`stranded`), and the error is raised.
        """
        if self._handle is None:
            return
        self.close()
        try:
            self.drain()
        except BaseException:
            if self not in _STRANDED:
                _STRANDED.append(self)
            raise
        if self in _STRANDED:
            _STRANDED.remove(self)
        handle, self._handle = self._handle, None
        self._owner.drop_pair(self)
        lib.udrv_uring_qp_exit(handle)
        self._close_eventfd()

    def __del__(self) -> None:
        # nobody closed it: a ring with nothing in flight goes, any other stays as it is
        if sys is None or sys.is_finalizing() or getattr(self, "_handle", None) is None:
            return
        lib.udrv_uring_qp_close(self._handle)
        left = lib.udrv_uring_qp_drain(self._handle, 0)
        if left == 0:
            lib.udrv_uring_qp_exit(self._handle)
            self._handle = None
            self._close_eventfd()
        elif left != -core.UDRV_EFORKED:
            _STRANDED.append(self)

    def _close_eventfd(self) -> None:
        fd, self.eventfd = self.eventfd, -1
        if fd >= 0:
            os.close(fd)
