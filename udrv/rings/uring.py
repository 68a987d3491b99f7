# SPDX-License-Identifier: Apache-2.0
"""io_uring from Python: `Ring`.

    with Ring(64) as ring:
        ring.read(fd, buffer, offset=4096, user_data=7)
        (done,) = ring.submit_and_wait(1)
        print(done.user_data, done.check())

One owner at a time: a second thread that enters a ring gets `QueueBusyError`. Memory in flight
belongs to the ring, not to the objects that the user holds; docs/rings.md says more.
"""

from __future__ import annotations

import errno
import time
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, SupportsIndex

from udrv.errors import (
    BufferTooSmallError,
    BufferTypeError,
    ClosedError,
    InvalidRequestError,
    UringUnsupportedError,
)
from udrv.rings.columns import Batch, Completion, Completions, Reaped
from udrv.rings.diagnose import call_error, register_error, setup_error
from udrv.rings.flags import (
    SETUP_NEEDS,
    CancelFlag,
    CqeFlag,
    Feature,
    Op,
    SetupFlag,
    SqeFlag,
    TimeoutFlag,
    op_name,
    op_since,
)
from udrv.rings.lifetime import RingState, finalise, parked, sweep_parked
from udrv.rings.native import ffi, lib
from udrv.rings.operations import Operations
from udrv.rings.register import BufferTable, FileTable
from udrv.units import integer, seconds

if TYPE_CHECKING:
    from udrv.rings._uring import struct_io_uring, struct_udrv_uring

__all__ = [
    "Batch", "CancelFlag", "Completion", "CqeFlag", "Feature", "Op", "Reaped", "Ring",
    "SetupFlag", "SqeFlag", "TimeoutFlag",
]  # fmt: skip

_NS = 1_000_000_000
#: Ctrl-C is served at least this often.
_SLICE_NS = 100_000_000
#: Kernel limits (io_uring/io_uring.h): IORING_MAX_ENTRIES, IORING_MAX_CQ_ENTRIES.
_MAX_ENTRIES = 1 << 15
_MAX_CQ_ENTRIES = 1 << 16
_OPS = 256


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class Ring(Operations):
    """A submission and a completion queue, shared with the kernel. A context manager.

    Parameters
    ----------
    entries: of the submission queue, 1 to 32768; the kernel rounds up to a power of two.
    setup: `SetupFlag` bits.
    cq_entries: of the completion queue, `entries` to 65536; None: twice `entries`.
    sqpoll_idle_ms: how long the SQPOLL thread looks before it sleeps; 0: the kernel's 1 s.
    sqpoll_cpu: the CPU that it is bound to, or None.
    max_inflight: requests in flight at most. None: as many as the completion queue has entries,
        so that it cannot overflow (but for multishot polls).

    Raises `UringDisabledError` (sysctl, seccomp), `UringUnsupportedError` (kernel too old),
    `PermissionDeniedError` (SQPOLL), `MemlockError`, `InvalidRequestError`, `UringError`.

    Attributes
    ----------
    entries, cq_entries: as the kernel made them.    max_inflight: as above.
    setup: `SetupFlag` in use.                        features: `Feature` of the kernel.
    buffers, files: `BufferTable`, `FileTable` of what is registered.
    """

    def __init__(
        self,
        entries: int = 64,
        setup: SetupFlag = SetupFlag(0),  # noqa: B008 - an immutable number
        *,
        cq_entries: int | None = None,
        sqpoll_idle_ms: int = 0,
        sqpoll_cpu: int | None = None,
        max_inflight: int | None = None,
    ) -> None:
        entries = integer(entries, "a number of entries")
        cq = 2 * _power_of_two(max(entries, 1)) if cq_entries is None else integer(
            cq_entries, "a number of completion entries"
        )
        setup = SetupFlag(setup)
        if cq_entries is not None:
            setup |= SetupFlag.CQSIZE
        if sqpoll_cpu is not None:
            setup |= SetupFlag.SQ_AFF
        _check_setup(entries, cq, setup)
        slots = min(_power_of_two(cq), _MAX_CQ_ENTRIES) if max_inflight is None else integer(
            max_inflight, "a number of requests in flight"
        )
        if not 1 <= slots <= 1 << 24:
            raise InvalidRequestError(f"{slots} requests in flight", mend="1 to 2^24")
        if parked:
            sweep_parked()
        state = RingState(slots)
        params = ffi.new("struct io_uring_params *")
        params.flags = setup
        params.cq_entries = cq if cq_entries is not None else 0
        params.sq_thread_idle = integer(sqpoll_idle_ms, "sqpoll_idle_ms")
        params.sq_thread_cpu = 0 if sqpoll_cpu is None else integer(sqpoll_cpu, "sqpoll_cpu")
        # before there is something to finalise: an interrupt must not lose the ring
        self._finaliser = weakref.finalize(self, finalise, state)
        failed = lib.udrv_uring_open(state.c, entries, params)
        if failed:
            state.closed = True
            self._finaliser.detach()
            memory = entries * 64 * (2 if setup & SetupFlag.SQE128 else 1) + cq * 16
            raise setup_error(-failed, entries, int(setup), memory)
        self._state = state
        self._completions = Completions(min(int(params.cq_entries), 4096))
        self._supported: bytes | None = None
        self._big = SetupFlag.CQE32 in setup
        self.entries = int(params.sq_entries)
        self.cq_entries = int(params.cq_entries)
        self.max_inflight = slots
        self.setup = setup
        self.features = Feature(params.features)
        self.buffers = BufferTable(self)
        self.files = FileTable(self)

    # --- the ring itself ---------------------------------------------------------------------

    def _usable(self) -> struct_udrv_uring:
        state = self._state
        state.guard.check("an io_uring ring", None)
        if state.closed or not self._finaliser.alive:
            raise ClosedError("the ring is closed")
        return state.c

    @property
    def native(self) -> struct_io_uring:
        """liburing's `struct io_uring *`, for C code; valid until `close`.

        Requests that such code makes are its own affair: do not mix them with this object's.
        """
        return ffi.addressof(self._usable(), "ring")  # type: ignore[no-any-return]

    @property
    def registered(self) -> dict[str, Any]:
        """What is kept until the ring is closed; used by `BufferTable`."""
        return self._state.registered

    def fileno(self) -> int:
        """The ring's file descriptor: readable when completions are there."""
        return self.native.ring_fd

    def probe(self) -> set[int]:
        """The operations that this kernel has: `Op` members, and numbers of newer ones."""
        supported = self._probed()
        known = {int(op): op for op in Op}
        return {known.get(op, op) for op in range(_OPS) if supported[op]}

    def _probed(self) -> bytes:
        if self._supported is None:
            answer = ffi.new("uint8_t[]", _OPS)
            failed = lib.udrv_uring_probe(self._usable(), answer, _OPS)
            if failed == -errno.EINVAL:  # before 5.6: nothing is known, so nothing is refused
                self._supported = b"\1" * _OPS
            elif failed:
                raise call_error(-failed, "probing the operations")
            else:
                self._supported = bytes(ffi.buffer(answer))
        return self._supported

    def register_eventfd(self, fd: int, *, async_only: bool = False) -> None:
        """Count completions on this eventfd; `async_only`: not those that come during submit."""
        register = (
            lib.io_uring_register_eventfd_async if async_only else lib.io_uring_register_eventfd
        )
        failed = register(self.native, fd)
        if failed:
            raise register_error(-failed, "an eventfd", since="5.6" if async_only else "5.2")

    def unregister_eventfd(self) -> None:
        """Undo `register_eventfd`."""
        failed = lib.io_uring_unregister_eventfd(self.native)
        if failed:
            raise register_error(-failed, "an eventfd", since="5.2")

    @property
    def inflight(self) -> int:
        """Requests that were prepared and whose last completion was not reaped."""
        self._usable()
        return self._state.counts().inflight

    def counters(self) -> dict[str, int]:
        """Counts since the ring was made, and two of now.

        prepared, completed: requests, completions. strays: completions of unknown requests.
        overflows: reaps that found completions held back by the kernel as the queue was full;
        backlog: 1 while it does. dropped: completions that are lost (it had no memory for them).
        unsubmitted: requests that wait for `submit`.
        """
        c = self._usable()
        now = self._state.counts()
        return {
            "prepared": c.prepared, "completed": c.completed, "strays": c.strays,
            "overflows": c.overflows, "backlog": now.backlog, "dropped": now.dropped,
            "unsubmitted": now.unsubmitted,
        }  # fmt: skip

    # --- requests ----------------------------------------------------------------------------

    def prep(
        self, opcode: int, fd: int = -1, *, addr: int = 0, length: int = 0, offset: int = 0,
        op_flags: int = 0, buf_index: int = 0, file_index: int = 0, ioprio: int = 0,
        addr3: int = 0, user_data: int = 0, flags: int = 0, hold: object = None,
        timeout: tuple[int, int] | None = None, command: bytes | None = None,
    ) -> int:
        # its docstring is that of Operations.prep
        c = self._usable()
        supported = self._supported or self._probed()
        if not (0 <= opcode < _OPS and supported[opcode]):
            needs = op_since(opcode)
            raise UringUnsupportedError(
                f"this kernel has no {op_name(opcode)}", needs=needs,
                mend=f"run Linux {needs} or newer" if needs else "look at Ring.probe()",
            )
        group: int = lib.UDRV_URING_NO_GROUP
        if hold is not None:
            group = self._state.take_group(hold)
        try:
            # -1 is how the kernel writes "the file's own position"
            op = ffi.new("struct udrv_uring_op *", (
                offset & 0xFFFFFFFFFFFFFFFF if offset < 0 else offset,
                addr, user_data, addr3, fd, length, op_flags, file_index, group, ioprio,
                buf_index, opcode, flags,
            ))  # fmt: skip
            if timeout is not None:
                token = lib.udrv_uring_prep_timeout(c, op, *timeout)
            elif command is not None:
                token = lib.udrv_uring_prep_cmd(c, op, command, len(command))
            else:
                token = lib.udrv_uring_prep(c, op)
        except (OverflowError, TypeError) as error:  # of ffi.new: nothing was prepared
            if group != lib.UDRV_URING_NO_GROUP:
                self._state.drop_group(group)
            raise InvalidRequestError(f"{op_name(opcode)}: {error}") from error
        if token < 0:
            if group != lib.UDRV_URING_NO_GROUP:
                self._state.drop_group(group)
            raise call_error(-token, op_name(opcode))
        return token

    def batch(self, capacity: int, buffer: Any = None, *, writable: bool = True) -> Batch:
        """Columns for `capacity` requests, their data in `buffer`; see `Batch`.

        `writable` False takes read-only memory, for writes only.
        """
        return Batch(capacity, buffer, writable=writable)

    def push(self, batch: Batch, first: int = 0, count: int | None = None) -> int:
        """Put requests `first` to `first + count - 1` of the batch on the submission queue.

        Returns how many there was room for; a chain of links is not cut. A bad row raises
        (`BufferTooSmallError`, `BufferTypeError`, `InvalidRequestError`) and names itself, and
        nothing of the call is on the queue.
        """
        c = self._usable()
        batch.check_columns()
        if count is None:
            count = batch.capacity - first
        if first < 0 or count < 0 or first + count > batch.capacity:
            raise InvalidRequestError(
                f"rows {first} to {first + count - 1} of a batch of {batch.capacity}"
            )
        bad = ffi.new("uint32_t *")
        group = self._state.take_group(batch.view)
        done = lib.udrv_uring_push(c, batch.c, first, count, group, bad)
        if done <= 0:
            self._state.drop_group(group)
        if done < 0:
            _raise_bad_row(-done, batch, int(bad[0]))
        return done

    def submit(self) -> int:
        """Give what was prepared to the kernel; returns how many requests it took."""
        done = lib.udrv_uring_submit(self._usable())
        if done < 0:
            raise call_error(-done, "submitting")
        return done

    # --- completions -------------------------------------------------------------------------

    def _await(self, count: int, timeout: float | None, submit: bool) -> None:
        c = self._usable()
        deadline = None if timeout is None else time.monotonic_ns() + int(seconds(timeout) * _NS)
        left = _SLICE_NS
        while True:
            if deadline is not None:
                left = max(deadline - time.monotonic_ns(), 0)
            missing = lib.udrv_uring_wait(c, count, min(left, _SLICE_NS), submit)
            if missing < 0:
                raise call_error(-missing, "waiting for completions")
            if not missing or left == 0:
                return
            submit = False

    def _take(self, limit: int) -> int:
        """Completions into the first rows of the columns; returns how many."""
        got = lib.udrv_uring_reap(self._usable(), self._completions.c, limit)
        if got < 0:
            raise call_error(-got, "reaping")
        self._state.release()
        return got

    def reap(
        self, minimum: int = 0, maximum: int | None = None, *, timeout: float | None = None,
        submit: bool = False,
    ) -> Reaped:
        """Completions as columns: at least `minimum` (0: those that are there), at most `maximum`.

        Waits for `timeout` seconds at most (None: no limit), and for no more than are outstanding;
        when time is up, what came is returned. `submit`: submit first. One call delivers 4096 at
        most. Returns views that the next reap of this ring overwrites: copy what you keep.
        """
        return Reaped(self._completions, self._reap(minimum, maximum, timeout, submit))

    def _reap(
        self, minimum: int, maximum: int | None, timeout: float | None, submit: bool
    ) -> int:
        limit = self._completions.capacity
        if maximum is not None:
            limit = max(min(limit, integer(maximum, "a number of completions")), 0)
        minimum = min(integer(minimum, "a number of completions"), limit)
        if minimum > 0 or submit:
            self._await(max(minimum, 0), timeout, submit)
        return self._take(limit)

    def peek(self, maximum: int | None = None) -> list[Completion]:
        """The completions that are there, `maximum` at most. Does not wait."""
        return self._list(0, maximum, 0, submit=False)

    def wait(self, count: int = 1, timeout: float | None = None) -> list[Completion]:
        """Wait for `count` completions, or as many as are outstanding; returns all there are.

        After `timeout` seconds (None: no limit) what came is returned, and that may be nothing.
        """
        return self._list(count, None, timeout, submit=False)

    def submit_and_wait(self, count: int = 1, timeout: float | None = None) -> list[Completion]:
        """`submit`, then `wait`, with one system call where the kernel can."""
        return self._list(count, None, timeout, submit=True)

    def _list(
        self, count: int, maximum: int | None, timeout: float | None, *, submit: bool
    ) -> list[Completion]:
        got = self._reap(count, maximum, timeout, submit)
        return self._completions.rows(got, big=self._big)

    # --- the end -----------------------------------------------------------------------------

    def close(self, timeout: float = 5.0) -> None:
        """Cancel what is in flight, wait for its end, and close the ring.

        What has not ended after `timeout` seconds keeps its memory, and the ring, until it has:
        a ResourceWarning says so. Unsubmitted requests are dropped. Does nothing in a forked
        child. Raises `QueueBusyError` while another thread is inside, and `UringError` in a thread
        that may not wait (DEFER_TASKRUN, SINGLE_ISSUER): the ring is open then.
        """
        state = self._state
        if state.closed or not self._finaliser.alive or state.guard.forked:
            return
        if state.drain(seconds(timeout)):
            state.free()
            self._finaliser.detach()
            return
        self._finaliser.detach()
        parked.append(state)
        warnings.warn(
            f"{state.counts().inflight} requests did not end within {timeout} s of being "
            "cancelled: their memory stays allocated until they have",
            ResourceWarning,
            stacklevel=2,
        )

    def __enter__(self) -> Self:
        self._usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a ring belongs to its process: it can be neither copied nor pickled")

    def __repr__(self) -> str:
        state = "closed" if not self._finaliser.alive else f"{self.setup!r}"
        return f"<Ring of {self.entries} entries, {state}>"


def _check_setup(entries: int, cq_entries: int, setup: SetupFlag) -> None:
    """Raise `InvalidRequestError` for what no kernel takes."""
    unknown = int(setup) & ~int(SetupFlag(sum(SetupFlag)))
    if unknown:
        raise InvalidRequestError(
            f"set-up flags {unknown:#x}: the layout of such a ring is not known here",
            mend="use those of SetupFlag",
        )
    clamp = setup & SetupFlag.CLAMP
    if entries < 1 or (entries > _MAX_ENTRIES and not clamp):
        raise InvalidRequestError(
            f"a ring of {entries} entries", mend=f"1 to {_MAX_ENTRIES}, or SetupFlag.CLAMP"
        )
    if cq_entries < _power_of_two(min(entries, _MAX_ENTRIES)) and setup & SetupFlag.CQSIZE:
        raise InvalidRequestError(
            f"{cq_entries} completion entries for {entries} submission entries",
            mend="give as many at least",
        )
    if cq_entries > _MAX_CQ_ENTRIES and not clamp:
        raise InvalidRequestError(
            f"{cq_entries} completion entries", mend=f"at most {_MAX_CQ_ENTRIES}, or CLAMP"
        )
    for flag, needed in SETUP_NEEDS.items():
        if setup & flag and not setup & needed:
            one_of = " or ".join(f"SetupFlag.{bit.name}" for bit in needed)
            raise InvalidRequestError(f"SetupFlag.{flag.name} without {one_of}", mend="set both")
    deferred = setup & (SetupFlag.DEFER_TASKRUN | SetupFlag.COOP_TASKRUN | SetupFlag.TASKRUN_FLAG)
    if setup & SetupFlag.SQPOLL and deferred:
        raise InvalidRequestError(
            f"{deferred!r} with SetupFlag.SQPOLL: its thread delivers completions by itself",
            mend="leave one of them out",
        )


def _raise_bad_row(number: int, batch: Batch, row: int) -> NoReturn:
    where = (
        f"row {row} ({op_name(int(batch.opcode[row]))}, flags {int(batch.flags[row]):#x}, "
        f"length {batch.length[row]} at byte {batch.buffer_offset[row]} of the buffer)"
    )
    if number == lib.UDRV_URING_EBUFFER:
        raise BufferTooSmallError(f"{where}: the buffer has {batch.c.size} bytes")
    if number == lib.UDRV_URING_EREADONLY:
        raise BufferTypeError(f"{where}: the buffer is read-only")
    if number == lib.UDRV_URING_EOPCODE:
        raise InvalidRequestError(
            f"{where}: not an operation that a batch can carry", mend="use the ring's methods"
        )
    if number == lib.UDRV_URING_ECHAIN:
        raise InvalidRequestError(
            f"a chain of links from row {row} on is longer than the submission queue",
            mend="make the ring with more entries",
        )
    raise call_error(number, where)
