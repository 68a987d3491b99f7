# SPDX-License-Identifier: Apache-2.0
"""A controller level reset under the users of a controller (Base 2.0, 3.7.2), and its failure.

The order is what keeps memory safe: everybody out of the queues, the flight record, the device
disabled (that is the proof that it touches no memory any more), queues as new, the controller up
again, its queues made again, everybody in again. What was in flight is delivered to whoever reaps
it, with the status Command Aborted By Host: the device may have carried it out, or not, or in part.

One thread does it, others wait (`wait_over`). Whatever fails in between fails the controller: its
queues are closed, and whoever waits is told why.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from udrv.errors import (
    ClosedError,
    ControllerFatalError,
    ControllerStateError,
    ControllerTimeoutError,
    UdrvError,
)
from udrv.nvme.pair import CLOSE_SECONDS, QueuePair

#: More resets than this within so many seconds do not help the controller.
_MOST_RESETS = 5
_WITHIN_SECONDS = 60.0
_KEPT = 64
#: A waiter looks again after this many seconds, should the word that it is over be lost.
_LOOK_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class Reset:
    """One reset of the controller that was carried out.

    Attributes
    ----------
    reason: why.                    time_ns: CLOCK_MONOTONIC when it began.
    seconds: how long it took.      aborted: I/O commands that were in flight.
    record: the flight record's path, None where none was written.
    """

    reason: str
    time_ns: int
    seconds: float
    aborted: int
    record: Path | None


class Resettable(Protocol):
    """What a transport does of a reset."""

    target: str

    def begin_reset(self) -> Sequence[QueuePair]:
        """Enter the state "reset"; returns the pairs to rebuild, the admin queue's first."""

    def stop_device(self) -> None:
        """Return with proof that the device touches no memory; `ControllerError` without."""

    def start_again(self, pairs: Sequence[QueuePair]) -> None:
        """From disabled to ready, with these queues on the device."""

    def write_record(self, reason: str) -> Path | None:
        """The flight record."""

    def fail(self, error: UdrvError) -> None:
        """It cannot be brought up: close all queues, for that reason."""


class Recovery:
    """Resets of one controller, one at a time.

    Attributes
    ----------
    generation: how many resets began.      history: the last ones that were carried out.
    """

    def __init__(self, device: Resettable) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._thread = 0
        self._ended = False
        self._outcome: UdrvError | None = None
        self.generation = 0
        self.history: deque[Reset] = deque(maxlen=_KEPT)

    @property
    def under_way(self) -> bool:
        """A reset is being carried out, by another thread."""
        # the lock, too: one that was interrupted may not have said that it is over
        return not self._over.is_set() and self._lock.locked() and not self.is_mine

    @property
    def is_mine(self) -> bool:
        """A reset is being carried out by this thread."""
        return self._thread == threading.get_ident() and self._lock.locked()

    def wait_over(self, timeout: float | None = None) -> None:
        """Return when none is under way, or after `timeout` seconds.

        Without a timeout it waits for as long as a reset may take: each of its steps has a bound.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.under_way:
            left = _LOOK_AGAIN if deadline is None else deadline - time.monotonic()
            if left <= 0 or self._over.wait(min(left, _LOOK_AGAIN)):
                return

    def require_over(self, timeout: float | None = None) -> None:
        """As `wait_over`, for who needs a queue: raises where he would wait for himself."""
        if self.is_mine:  # a signal handler, a finaliser
            raise ControllerStateError(
                "this thread resets the controller: it cannot use a queue meanwhile",
                device=self._device.target, mend="not from a signal handler",
            )  # fmt: skip
        self.wait_over(timeout)

    def end(self) -> None:
        """Wait for one that is under way, and refuse all others: the controller is being closed."""
        if self.is_mine:
            self._ended = True
            return
        with self._lock:
            self._ended = True

    def run(self, reason: str, since: int | None = None) -> None:
        """Reset. Raises what went wrong; then the controller has failed, or is gone.

        If another thread is at it, that one is waited for, and nothing else done but to raise what
        came of it. Nor if one began after `generation` was `since`.
        """
        if self.is_mine:
            self.require_over()
        joins, before = self.under_way, self.generation if since is None else since
        with self._lock:
            if self._ended:
                raise ClosedError("the controller is being closed", device=self._device.target)
            if joins or self.generation != before:
                if self._outcome is not None:
                    raise copy.copy(self._outcome)
                return
            try:
                self._thread = threading.get_ident()
                self._over.clear()
                self.generation += 1
                self._outcome = None
                self._reset(reason)
            except UdrvError as error:
                self._outcome = error
                self._device.fail(error)
                raise
            except BaseException as error:  # Ctrl-C at any line: nobody knows how far it came
                self._outcome = ControllerFatalError(
                    f"a reset was interrupted by {error!r}", device=self._device.target,
                    mend="close it and open it again",
                )  # fmt: skip
                self._device.fail(self._outcome)
                raise
            finally:
                self._thread = 0
                self._over.set()

    def _reset(self, reason: str) -> None:
        start = time.monotonic_ns()
        self._check_rate(reason, start)
        pairs = self._device.begin_reset()
        _halt(pairs, self._device.target)
        record = self._device.write_record(reason)
        self._device.stop_device()
        aborted = [pair.restart() for pair in pairs]
        self._device.start_again(pairs)
        for pair in pairs[1:]:
            pair.resume()
        took = (time.monotonic_ns() - start) / 1e9
        self.history.append(Reset(reason, start, took, sum(aborted[1:]), record))

    def _check_rate(self, reason: str, now: int) -> None:
        recent = [r for r in self.history if now - r.time_ns < _WITHIN_SECONDS * 1e9]
        if len(recent) >= _MOST_RESETS:
            raise ControllerFatalError(
                f"{reason}, after {len(recent)} resets in {_WITHIN_SECONDS:g} s",
                device=self._device.target,
                mend="the controller does not recover: see its flight records, update its "
                "firmware, or replace it",
            )


def _halt(pairs: Sequence[QueuePair], target: str) -> None:
    deadline = time.monotonic() + CLOSE_SECONDS
    while True:
        inside = [pair.qid for pair in pairs if not pair.halt()]
        if not inside:
            return
        if time.monotonic() > deadline:
            raise ControllerTimeoutError(
                f"a thread did not leave queue {inside[0]} within {CLOSE_SECONDS:g} s of a reset",
                device=target, mend="nothing that holds a queue may stand still: see its stack",
            )
        time.sleep(0.0005)
