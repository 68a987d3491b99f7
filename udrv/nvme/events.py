# SPDX-License-Identifier: Apache-2.0
"""Asynchronous events: what a controller says without being asked (NVMe Base 2.0, 5.2).

The controller keeps Asynchronous Event Requests and completes one when something happened. Requests
are sent when the controller is opened and again after each event, so that one is always armed. An
event of a type is not told again until the log page that it names was read (`Get Log Page` without
Retain Asynchronous Event): that is the reader's to do, as it says that the event was seen.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from udrv.nvme.batch import STATUS_CODE
from udrv.nvme.spec import command
from udrv.nvme.spec.opcodes import FeatureId

#: Requests kept armed: more than one, so that two events that come together are both told.
MOST_ARMED = 4
#: Events that nobody fetched; older ones are dropped, and counted.
MOST_KEPT = 1024

#: Async Event Configuration: critical warnings that every controller of 1.0 and newer has.
_CRITICAL_WARNINGS = 0x1F
#: OAES and Async Event Configuration: namespace attribute and firmware activation notices.
_NOTICES = 1 << 8 | 1 << 9
_NAMESPACE_CHANGED = 0


class EventType(IntEnum):
    """Completion Dword 0, bits 2:0 (Base 2.0, figure 145)."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
    IMMEDIATE = 3
    IO_COMMAND_SPECIFIC = 6
    VENDOR = 7


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """One event.

    Attributes
    ----------
    type: `EventType`, or the number where it has no name.
    info: event information, whose meaning depends on the type (Base 2.0, figures 146 to 150).
    log_page: the log page that tells more; reading it lets the next event of this type come.
    dword0: completion Dword 0 as it is.
    time_ns: CLOCK_MONOTONIC when it was taken from the queue, which may be long after it happened.
    """

    type: int
    info: int
    log_page: int
    dword0: int
    time_ns: int

    @property
    def namespaces_changed(self) -> bool:
        """A namespace was attached, detached, formatted or resized."""
        return self.type == EventType.NOTICE and self.info == _NAMESPACE_CHANGED


def decode_event(dword0: int) -> AsyncEvent:
    """Completion Dword 0 of an Asynchronous Event Request."""
    kind = dword0 & 7
    return AsyncEvent(
        type=EventType(kind) if kind in set(EventType) else kind,
        info=dword0 >> 8 & 0xFF,
        log_page=dword0 >> 16 & 0xFF,
        dword0=dword0,
        time_ns=time.monotonic_ns(),
    )


class Events:
    """The requests that a controller holds, and what came of them.

    Not for several threads: the admin queue calls it under its lock. `fetch` is for any thread.

    Parameters
    ----------
    submit: sends one command and returns the number that its completion will have.
    changed: is called when namespaces changed.
    """

    def __init__(self, submit: Callable[[bytes], int], changed: Callable[[], None]) -> None:
        self._submit = submit
        self._changed = changed
        self._armed: set[int] = set()
        self._come: deque[AsyncEvent] = deque()
        #: Events lost because nobody fetched them; requests that the controller refused.
        self.dropped = 0
        self.refused = 0

    @property
    def armed(self) -> int:
        """Requests that the controller holds."""
        return len(self._armed)

    def arm(self, count: int) -> None:
        """Have `count` requests with the controller."""
        while len(self._armed) < count:
            self._armed.add(self._submit(command.async_event_request()))

    def forget(self) -> None:
        """The controller was reset: it holds no requests. Events that came stay to be fetched."""
        self._armed.clear()

    def completed(self, number: int, status: int, result: int) -> bool:
        """Take a completion; False if it is none of a request."""
        if number not in self._armed:
            return False
        self._armed.remove(number)
        if status & STATUS_CODE:  # not armed again: it would be refused for ever
            self.refused += 1
            return True
        event = decode_event(result & 0xFFFF_FFFF)
        self.dropped += len(self._come) >= MOST_KEPT
        while len(self._come) >= MOST_KEPT:
            self._come.popleft()
        self._come.append(event)
        if event.namespaces_changed:
            self._changed()
        self.arm(len(self._armed) + 1)
        return True

    def fetch(self) -> list[AsyncEvent]:
        """Events since the last call, the oldest first."""
        came = []
        while True:
            try:
                came.append(self._come.popleft())
            except IndexError:
                return came


def configuration(oaes: int) -> tuple[int, int]:
    """(feature, value) that switches on what the controller can tell (OAES of Identify)."""
    return FeatureId.ASYNC_EVENT_CONFIGURATION, _CRITICAL_WARNINGS | oaes & _NOTICES
