# SPDX-License-Identifier: Apache-2.0
"""A thread that looks after a controller: overdue commands, and a device that has to go.

It sleeps in poll(2) and wakes for what the device says (a request to release it, an error, a peer
that hung up), and a few times a minute to a few times a second for a look at what is in flight,
by the time limits. It takes no lock of the controller's and no queue's place.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import weakref
from collections.abc import Callable, Sequence

from udrv.nvme.interrupts import new_eventfd
from udrv.vfio.device import Departure

_LOG = logging.getLogger("udrv")


class Keeper:
    """The thread; `start` once, `stop` once or more.

    Parameters
    ----------
    look: a bound method, called every `period` seconds.
    depart: a bound method, called with the `Departure` when the device went or has to go, until it
        returns true; of an orderly one that is the end.

    Both are held weakly: a controller that nobody has any more ends its keeper.
    """

    def __init__(
        self, look: Callable[[], None], depart: Callable[[Departure], bool], *, period: float,
        departures: Sequence[Departure], name: str,
    ) -> None:  # fmt: skip
        self._look = weakref.WeakMethod(look)
        self._depart = weakref.WeakMethod(depart)
        self._period = period
        self._departures = {departure.fd: departure for departure in departures}
        self._stop = new_eventfd(name)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"udrv {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is the keeper's own thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the thread, and wait for it unless this is it; nothing in a forked child."""
        if os.getpid() != self._pid or self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        if self.is_current or self._thread.ident is None:
            return
        self._thread.join()
        fd, self._stop = self._stop, -1
        os.close(fd)

    def _run(self) -> None:
        # Ctrl-C is for the main thread, and should interrupt its sleep
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {
            signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
        })  # fmt: skip
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        for departure in self._departures.values():
            poll.register(departure.fd, departure.events)
        going: Departure | None = None
        while True:
            for fd, events in poll.poll(max(1, int(self._period * 1000))):
                if fd == self._stop:
                    return
                if events & select.POLLNVAL:
                    poll.unregister(fd)
                elif going is None:
                    poll.unregister(fd)
                    going = self._departures[fd]
            try:
                if going is None:
                    look = self._look()
                    if look is None:
                        return
                    look()
                    del look
                else:
                    depart = self._depart()
                    if depart is None:
                        return
                    if depart(going):
                        if going.orderly:
                            return
                        going = None  # a device that failed may still be asked back
                    del depart
            except Exception:  # noqa: BLE001 - what it finds is told to those who wait; go on
                _LOG.debug("a look at %s failed", self._thread.name, exc_info=True)
