"""Which event loop has which queue; see `udrv.nvme.aio_queue` for what is done with it.

A loop that is closed with commands in flight tells nobody. Its queue stays as it is until the next
loop asks for one: then what is in flight goes into quarantine, and the queue to the successor.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from udrv.errors import ClosedError, UnsupportedOnTransport
from udrv.nvme.aio_queue import AsyncQueue
from udrv.nvme.pair import MAX_SLOTS
from udrv.nvme.queue import Queue


class AsyncQueues:
    """The `AsyncQueue`s of a controller, one for each event loop.

    Parameters
    ----------
    lock: the controller's, re-entrant.
    make: creates a queue with at most `MAX_ENTRIES`, with an interrupt or without;
        `UnsupportedOnTransport` where there is no interrupt for it.
    check: raises if the controller is closed or not ready. check_alive: see `AsyncQueue`.
    """

    #: Each command in flight may need a slot of its own.
    MAX_ENTRIES = MAX_SLOTS

    def __init__(
        self,
        *,
        lock: threading.RLock,
        make: Callable[[bool], Queue],
        check: Callable[[], None],
        check_alive: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._make = make
        self._check = check
        self._check_alive = check_alive
        self._by_loop: dict[asyncio.AbstractEventLoop, AsyncQueue] = {}
        self._idle: list[Queue] = []

    def of_running_loop(self) -> AsyncQueue:
        """The running loop's; if there is none, it is made, by two admin commands."""
        self._check()
        loop = asyncio.get_running_loop()
        found = self._by_loop.get(loop)
        if found is not None and found.broken is None:
            return found
        with self._lock:
            self._check()
            for other, queue in list(self._by_loop.items()):
                if other is loop or other.is_closed():
                    self._idle.append(queue.retire())
                    del self._by_loop[other]
            if not self._idle:
                try:
                    self._idle.append(self._make(True))
                except UnsupportedOnTransport:  # no vector is left
                    self._idle.append(self._make(False))
            made = self._by_loop[loop] = AsyncQueue(loop, self._idle[-1], self._check_alive)
            self._idle.pop()
            return made

    def close(self, device: str) -> None:
        """All that wait get `ClosedError`; the controller, when it closes."""
        self._idle.clear()
        while self._by_loop:
            _, queue = self._by_loop.popitem()
            queue.fail_from_any_thread(
                ClosedError(
                    "the controller was closed while this was awaited",
                    device=device,
                    mend="await what is in flight first",
                )
            )
