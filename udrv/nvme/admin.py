"""The admin queue: one command at a time, data through a buffer of its own; and event requests."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from udrv.core import lib
from udrv.errors import (
    CommandTimeoutError,
    ControllerError,
    InvalidRequestError,
    QueueBusyError,
    UdrvError,
)
from udrv.fork import ForkGuard
from udrv.memory import Buffer, DmaMemory
from udrv.nvme.batch import STATUS_CODE, Completions
from udrv.nvme.events import AsyncEvent, Events
from udrv.nvme.lifecycle import Lifecycle
from udrv.nvme.pair import CLOSE_SECONDS, MAX_SLOTS, QueuePair
from udrv.nvme.recovery import Recovery
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import IDENTIFY_SIZE, decode_nsid_list
from udrv.nvme.spec.opcodes import AdminOpcode, Cns
from udrv.nvme.status import error_from_status
from udrv.nvme.timeouts import Timeouts
from udrv.units import integer, seconds

#: Seconds that a caller waits beyond a command's limit for the reset that follows it.
_RESET_SECONDS = 60.0
#: A command that a reset ended is sent so many times in all, where that does no harm.
_TRIES = 3
#: Those that ask, or set what they set again.
_REPEATABLE = frozenset({
    AdminOpcode.IDENTIFY, AdminOpcode.GET_LOG_PAGE, AdminOpcode.GET_FEATURES,
    AdminOpcode.SET_FEATURES, AdminOpcode.KEEP_ALIVE,
})  # fmt: skip

#: An admin command polls this long before it sleeps, in nanoseconds.
_SPIN_NS = 50_000
_SLEEP_SECONDS = 0.001
_NS = 1_000_000_000
_ABORTED = int(lib.UDRV_STATUS_ABORTED_BY_HOST)


#: After these a namespace may have other blocks, or be gone: what was known of it is void.
RESHAPING = frozenset({
    AdminOpcode.FORMAT_NVM, AdminOpcode.NAMESPACE_MANAGEMENT, AdminOpcode.NAMESPACE_ATTACHMENT,
})  # fmt: skip

#: More namespaces than any drive has: a list that goes on would fill this process's memory.
_MAX_NAMESPACES = 65536


@dataclass(frozen=True, slots=True)
class AdminResult:
    """A successful admin completion: Dword 0 and 1, and the data that was read (maybe empty)."""

    result: int
    data: bytes


class _ResetError(UdrvError):
    """The controller was reset; whether the command was sent before that."""

    def __init__(self, submitted: bool) -> None:
        super().__init__("the controller was reset")
        self.submitted = submitted


class AdminQueue:
    """Serialises admin commands; any thread may call it.

    Parameters
    ----------
    changed: called when the controller said that namespaces changed.
    timeouts: of commands for which the caller names none.
    recovery: resets of the controller.

    Attributes
    ----------
    resets: somebody resets the controller when a command is overdue: it is waited for.
    own_limit: the command that is running has a time-out of its caller's, and nothing is reset for
        it.
    """

    def __init__(
        self, pair: QueuePair, memory: DmaMemory, lifecycle: Lifecycle,
        changed: Callable[[], None] = lambda: None, *,
        timeouts: Timeouts | None = None, recovery: Recovery | None = None,
    ) -> None:
        self._pair = pair
        self._memory = memory
        self._lifecycle = lifecycle
        self._lock = threading.Lock()
        self._holder = 0
        self._guard = ForkGuard()
        self._completions = Completions(1)
        self._serial = 0
        #: Buffers by the slot of their command, for as long as the device may touch them.
        self._held: dict[int, Buffer] = {}
        self._events = Events(self._submit_event_request, changed)
        self._timeouts = Timeouts() if timeouts is None else timeouts
        self._recovery = recovery
        self.resets = False
        self.own_limit = False
        self._epoch = 0

    def command(
        self,
        sqe: bytes,
        *,
        read: int = 0,
        write: bytes = b"",
        timeout: float | None = None,
    ) -> AdminResult:
        """Submit one command and wait for it.

        A reset of the controller meanwhile ends it; commands that only ask are then sent again.

        Parameters
        ----------
        sqe: 64 bytes; CID and PRPs are filled in.
        read, write: bytes to receive, or data to send; not both.
        timeout: seconds; None: the controller's limit for the opcode, after which it is reset.

        Raises the `NvmeStatusError` of the status (`AbortedByHostError` after a reset),
        `CommandTimeoutError` when the time runs out (the buffer stays in quarantine), or what
        happened to the controller.
        """
        self._guard.check("admin queue", self._pair.device)
        if read and write:
            raise InvalidRequestError(
                "a command moves data one way only", device=self._pair.device
            )
        if timeout is not None:
            timeout = seconds(timeout, device=self._pair.device)
        length = integer(read, "a number of bytes", device=self._pair.device) or len(write)
        for left in reversed(range(_TRIES)):
            if self._recovery is not None:
                self._recovery.wait_over()
            try:
                status, result, data = self._once(sqe, length, write, timeout)
                if status == _ABORTED:  # it saw the end of its command before that of the reset
                    raise _ResetError(submitted=True)
                break
            except _ResetError as reset:
                if not left or (reset.submitted and sqe[0] not in _REPEATABLE):
                    status, result, data = _ABORTED, 0, b""
                    break
        if status & STATUS_CODE:  # CRD, M and DNR alone make no error
            raise error_from_status(
                status,
                command=describe(sqe),
                qid=0,
                result=result & 0xFFFF_FFFF,
                device=self._pair.device,
            )
        return AdminResult(result, data)

    def _busy(self) -> QueueBusyError:
        return QueueBusyError(
            "the admin queue is in use by another command", device=self._pair.device,
            mend="wait for it to end; from a signal handler there is no way in",
        )  # fmt: skip

    def check_holder(self) -> None:
        """Raise where this thread would wait for itself: a signal handler inside of a command."""
        if self._holder == threading.get_ident() and self._lock.locked():
            raise self._busy()

    def abort(self, qid: int, cid: int, generation: int) -> bool:
        """Send Abort for a command; False, with nothing sent, while another command is running.

        Whoever aborts what is overdue must not wait for what may be overdue itself. What it found
        before a reset is void: False, too, if there are not `generation` of them. Raises as
        `command`.
        """
        sqe = command.abort(qid, cid)
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._recovery is not None and self._recovery.generation != generation:
                return False
            status = self._carry_out(sqe, 0, b"", self._timeouts.abort)[0]
        except _ResetError:
            return False
        finally:
            self._lock.release()
        if status & STATUS_CODE:
            raise error_from_status(
                status, command=f"abort of command {cid} of queue {qid}", qid=0,
                device=self._pair.device,
            )  # fmt: skip
        return True

    def _once(
        self, sqe: bytes, length: int, write: bytes, timeout: float | None
    ) -> tuple[int, int, bytes]:
        """Status, result and data of one command."""
        self.check_holder()
        with self._lock:
            return self._carry_out(sqe, length, write, timeout)

    def _carry_out(
        self, sqe: bytes, length: int, write: bytes, timeout: float | None
    ) -> tuple[int, int, bytes]:
        """The same, under the lock."""
        try:
            self._holder = threading.get_ident()
            self.own_limit = timeout is not None
            epoch = self._epoch
            slot = self._take_slot()
            buffer = self._memory.alloc(length, zero=True) if length else None
            if buffer is not None:
                buffer[: len(write)] = np.frombuffer(write, np.uint8)
                buffer.pin()
                self._held[slot] = buffer
            # Ctrl-C may come at any line: whether the device has the command is for C to say, so
            # the pin goes in _sweep() only, and a completion is known by its serial number
            serial = self._serial = self._serial + 1
            submitted = False
            try:
                self._pair.submit_raw(
                    sqe,
                    iova=buffer.iova if buffer is not None else 0,
                    length=length,
                    pool_id=buffer.pool.id if buffer is not None else 0,
                    pool_offset=buffer.pool_offset if buffer is not None else 0,
                    slot=slot,
                    user_data=serial,
                )
                submitted = True
                self._wait(sqe, serial, timeout, epoch)
            except _ResetError as reset:  # the reset was the proof; see restarted()
                reset.submitted = submitted
                raise
            except BaseException:
                with contextlib.suppress(UdrvError):  # closed meanwhile: close() has the proof
                    self._pair.quarantine(slot)  # not event requests
                    self._sweep()
                raise
            status = int(self._completions.status[0])
            result = int(self._completions.result[0])
            data = buffer.tobytes() if buffer is not None and not write else b""
            self._sweep()
        finally:
            self._holder = 0
        return status, result, data

    # --- resets -------------------------------------------------------------------------------

    def halted(self, timeout: float | None = None) -> None:
        """Called for whoever finds the pair halted: out with him, so that it can be reset."""
        raise _ResetError(submitted=True)

    def restarted(self) -> None:
        """The pair is as new: what was in flight is over, event requests too. Lets others in."""
        # nobody may meet what the reset ended: who has the lock finds the pair halted, and leaves
        self.check_holder()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._lock.locked():
            if time.monotonic() > deadline:
                raise self._busy()
            time.sleep(_SLEEP_SECONDS)
        with self._lock:
            self._pair.resume()
            self._epoch += 1
            self._pair.quarantine()
            self._events.forget()

    # --- events -----------------------------------------------------------------------------

    def arm_events(self, count: int) -> None:
        """Have `count` Asynchronous Event Requests with the controller, also after events."""
        with self._lock:
            self._events.arm(count)

    def _submit_event_request(self, sqe: bytes) -> int:
        self._serial += 1
        self._pair.submit_raw(sqe, slot=self._take_slot(), user_data=self._serial)
        return self._serial

    def poll_events(self) -> list[AsyncEvent]:
        """Look for events, without waiting; while another thread's command runs, it looks."""
        self._guard.check("admin queue", self._pair.device)
        if self._lock.acquire(blocking=False):
            try:
                if self._pair.eventfd >= 0:  # before the look: what comes after it signals anew
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._pair.eventfd)
                with contextlib.suppress(_ResetError):
                    while self._pair.wait(self._completions.c, 0, 1, 0, 0):
                        self._take_event()
            finally:
                self._lock.release()
        return self._events.fetch()

    def _take_event(self) -> None:
        row = self._completions
        self._events.completed(int(row.user_data[0]), int(row.status[0]), int(row.result[0]))

    @property
    def event_counts(self) -> dict[str, int]:
        """Requests armed, events dropped because nobody fetched them, requests refused."""
        events = self._events
        return {"armed": events.armed, "dropped": events.dropped, "refused": events.refused}

    def _take_slot(self) -> int:
        """A slot of the pair without a command; there are more than the ring has entries."""
        self._sweep()
        return next(slot for slot in range(MAX_SLOTS) if not self._pair.slot_inflight(slot))

    def _sweep(self) -> None:
        """Let go of the buffers that the device is done with."""
        for slot in [slot for slot in self._held if not self._pair.slot_inflight(slot)]:
            self._held.pop(slot).unpin()

    def release(self) -> None:
        """Let go of all buffers; by the controller, when the queue pair is freed."""
        with self._lock:
            while self._held:
                self._held.popitem()[1].unpin()

    def _limit(self, opcode: int, timeout: float | None) -> tuple[float, float]:
        """(seconds to wait, seconds to say)."""
        if timeout is not None:
            return timeout, timeout
        limit = self._timeouts.of(opcode, admin=True) or self._timeouts.admin
        # a reset's own commands must not wait for the next reset
        patient = self.resets and self._recovery is not None and not self._recovery.is_mine
        return limit + (_RESET_SECONDS if patient else 0.0), limit

    def _wait(self, sqe: bytes, serial: int, timeout: float | None, epoch: int) -> None:
        wait, limit = self._limit(sqe[0], timeout)
        deadline = time.monotonic_ns() + int(wait * _NS)
        while True:
            if self._epoch != epoch:
                raise _ResetError(submitted=True)
            left = deadline - time.monotonic_ns()
            # without an interrupt, C would spin on: look for a moment, then sleep here
            slice_ns = left if self._pair.eventfd >= 0 else min(left, _SPIN_NS)
            if self._pair.wait(self._completions.c, 1, 1, max(slice_ns, 0), _SPIN_NS):
                if self._completions.user_data[0] == serial:
                    return
                # an event, or of a command whose caller was interrupted before it gave it up
                self._take_event()
                continue
            self._lifecycle.check_alive()
            if left <= 0:
                break
            if self._pair.eventfd < 0:
                time.sleep(_SLEEP_SECONDS)
        raise CommandTimeoutError(
            f"{describe(sqe)} did not complete within {limit:g} s",
            device=self._pair.device,
            mend="its memory stays in quarantine; reset the controller (Controller.reset)",
        )


def active_nsids(run: Callable[..., AdminResult], device: str) -> tuple[int, ...]:
    """NSIDs of active namespaces, ascending (CNS 02h, as many pages as it takes).

    `run` is `Controller.admin`. Raises `ControllerError` for a list that does not end.
    """
    found: list[int] = []
    while True:
        data = run(
            command.identify(Cns.ACTIVE_NSID_LIST, nsid=found[-1] if found else 0),
            read=IDENTIFY_SIZE,
        ).data
        page = decode_nsid_list(data)
        if found and page and page[0] <= found[-1]:
            page = ()  # a list that does not go up would never end
        found.extend(page)
        if len(page) < IDENTIFY_SIZE // 4:
            return tuple(found)
        if len(found) > _MAX_NAMESPACES:
            raise ControllerError(
                f"the list of active namespaces goes on after {len(found)}",
                device=device,
                mend="the controller breaks Base 5.17.2.2; update its firmware",
            )


def describe(sqe: bytes) -> str:
    """A command in words, for errors: "identify cdw10=0x1 nsid=0"."""
    try:
        name = AdminOpcode(sqe[0]).name.lower().replace("_", " ")
    except ValueError:
        name = f"admin opcode {sqe[0]:#04x}"
    nsid = int.from_bytes(sqe[4:8], "little")
    cdw10 = int.from_bytes(sqe[40:44], "little")
    return f"{name} nsid={nsid:#x} cdw10={cdw10:#x}"
