"""The admin queue: one command at a time, data through a buffer of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

from udrv.errors import CommandTimeoutError, InvalidRequestError
from udrv.fork import ForkGuard
from udrv.memory import DmaMemory
from udrv.nvme.batch import STATUS_CODE, Completions
from udrv.nvme.lifecycle import Lifecycle
from udrv.nvme.pair import QueuePair
from udrv.nvme.spec.opcodes import AdminOpcode
from udrv.nvme.status import error_from_status

#: Admin commands may take long (a format, a self-test's start); the specification sets no limit.
ADMIN_TIMEOUT = 60.0

#: An admin command polls this long before it sleeps, in nanoseconds.
_SPIN_NS = 50_000
_SLEEP_SECONDS = 0.001
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class AdminResult:
    """A successful admin completion: Dword 0 and 1, and the data that was read (maybe empty)."""

    result: int
    data: bytes


class AdminQueue:
    """Serialises admin commands; any thread may call it."""

    def __init__(self, pair: QueuePair, memory: DmaMemory, lifecycle: Lifecycle) -> None:
        self._pair = pair
        self._memory = memory
        self._lifecycle = lifecycle
        self._lock = threading.Lock()
        self._guard = ForkGuard()
        self._completions = Completions(1)

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
        length = read or len(write)
        with self._lock:
            buffer = self._memory.alloc(length, zero=True) if length else None
            if buffer is not None:
                buffer[: len(write)] = np.frombuffer(write, np.uint8)
                buffer.pin()
            try:
                self._pair.submit_raw(
                    sqe,
                    iova=buffer.iova if buffer is not None else 0,
                    length=length,
                    pool_id=buffer.pool.id if buffer is not None else 0,
                    pool_offset=buffer.pool_offset if buffer is not None else 0,
                )
            except BaseException:
                if buffer is not None:
                    buffer.unpin()
                raise
            # from here on the pin goes only with proof that the device is done: on a time-out or
            # Ctrl-C it stays for the life of the memory
            self._wait(sqe, timeout)
            if buffer is not None:
                buffer.unpin()
            status = int(self._completions.status[0])
            result = int(self._completions.result[0])
            data = buffer.tobytes() if buffer is not None and read else b""
        if status & STATUS_CODE:  # CRD, M and DNR alone make no error
            raise error_from_status(
                status,
                command=describe(sqe),
                qid=0,
                result=result & 0xFFFF_FFFF,
                device=self._pair.device,
            )
        return AdminResult(result, data)

    def _wait(self, sqe: bytes, timeout: float) -> None:
        deadline = time.monotonic_ns() + int(timeout * _NS)
        try:
            while True:
                left = deadline - time.monotonic_ns()
                # without an interrupt, C would spin on: look for a moment, then sleep here
                slice_ns = left if self._pair.eventfd >= 0 else min(left, _SPIN_NS)
                if self._pair.wait(self._completions.c, 1, 1, max(slice_ns, 0), _SPIN_NS):
                    return
                self._lifecycle.check_alive()
                if left <= 0:
                    break
                if self._pair.eventfd < 0:
                    time.sleep(_SLEEP_SECONDS)
        except BaseException:
            self._pair.quarantine()
            raise
        self._pair.quarantine()
        raise CommandTimeoutError(
            f"{describe(sqe)} did not complete within {timeout:g} s",
            device=self._pair.device,
            mend="its memory stays in quarantine; close the controller to reset it",
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
