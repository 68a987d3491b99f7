"""The admin queue: one command at a time, data through a buffer of its own; and event requests."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from udrv.errors import CommandTimeoutError, ControllerError, InvalidRequestError, UdrvError
from udrv.fork import ForkGuard
from udrv.memory import Buffer, DmaMemory
from udrv.nvme.batch import STATUS_CODE, Completions
from udrv.nvme.events import AsyncEvent, Events
from udrv.nvme.lifecycle import Lifecycle
from udrv.nvme.pair import MAX_SLOTS, QueuePair
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import IDENTIFY_SIZE, decode_nsid_list
from udrv.nvme.spec.opcodes import AdminOpcode, Cns
from udrv.nvme.status import error_from_status
from udrv.units import integer, seconds

#: Admin commands may take long (a format, a self-test's start); the specification sets no limit.
ADMIN_TIMEOUT = 60.0

#: An admin command polls this long before it sleeps, in nanoseconds.
_SPIN_NS = 50_000
_SLEEP_SECONDS = 0.001
_NS = 1_000_000_000


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


class AdminQueue:
    """Serialises admin commands; any thread may call it."""

    def __init__(
        self, pair: QueuePair, memory: DmaMemory, lifecycle: Lifecycle,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._pair = pair
        self._memory = memory
        self._lifecycle = lifecycle
        self._lock = threading.Lock()
        self._guard = ForkGuard()
        self._completions = Completions(1)
        self._serial = 0
        #: Buffers by the slot of their command, for as long as the device may touch them.
        self._held: dict[int, Buffer] = {}
        self._events = Events(self._submit_event_request, changed)

    def command(
        self,
        sqe: bytes,
        *,
        read: int = 0,
        write: bytes = b"",
        timeout: float = ADMIN_TIMEOUT,
    ) -> AdminResult:
        """Submit one command and wait for it.

        Parameters
        ----------
        sqe: 64 bytes; CID and PRPs are filled in.
        read, write: bytes to receive, or data to send; not both.
        timeout: seconds.

        Raises the `NvmeStatusError` of the status, `CommandTimeoutError` when the time runs out
        (the buffer stays in quarantine), or what happened to the controller.
        """
        self._guard.check("admin queue", self._pair.device)
        if read and write:
            raise InvalidRequestError(
                "a command moves data one way only", device=self._pair.device
            )
        timeout = seconds(timeout, device=self._pair.device)
        length = integer(read, "a number of bytes", device=self._pair.device) or len(write)
        with self._lock:
            slot = self._take_slot()
            buffer = self._memory.alloc(length, zero=True) if length else None
            if buffer is not None:
                buffer[: len(write)] = np.frombuffer(write, np.uint8)
                buffer.pin()
                self._held[slot] = buffer
            # Ctrl-C may come at any line: whether the device has the command is for C to say, so
            # the pin goes in _sweep() only, and a completion is known by its serial number
            serial = self._serial = self._serial + 1
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
                self._wait(sqe, serial, timeout)
            except BaseException:
                with contextlib.suppress(UdrvError):  # closed meanwhile: close() has the proof
                    self._pair.quarantine(slot)  # not event requests
                    self._sweep()
                raise
            status = int(self._completions.status[0])
            result = int(self._completions.result[0])
            data = buffer.tobytes() if buffer is not None and read else b""
            self._sweep()
        if status & STATUS_CODE:  # CRD, M and DNR alone make no error
            raise error_from_status(
                status,
                command=describe(sqe),
                qid=0,
                result=result & 0xFFFF_FFFF,
                device=self._pair.device,
            )
        return AdminResult(result, data)

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

    def _wait(self, sqe: bytes, serial: int, timeout: float) -> None:
        deadline = time.monotonic_ns() + int(timeout * _NS)
        while True:
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
            f"{describe(sqe)} did not complete within {timeout:g} s",
            device=self._pair.device,
            mend="its memory stays in quarantine; close the controller to reset it",
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
