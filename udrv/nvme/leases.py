"""Queues that blocking calls share: lent to one call each, made when they are needed.

Ctrl-C may come between any two lines of a call. A queue that it cost would be missed for ever, and
with the last one every later call would wait for ever; so each step here can be repeated, and the
state in between is one that the next call mends. No Condition: an interrupt inside of its wait()
loses the lock that `with` then gives back.
"""

from __future__ import annotations

import queue as queues
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from udrv.errors import ClosedError, DeviceGoneError, UdrvError
from udrv.nvme.batch import Batch
from udrv.nvme.lane import Lane
from udrv.nvme.queue import Queue

#: More threads than this wait for one another.
MOST = 4
#: A lane that is in use is free again in about the time of one command.
_LANE_SECONDS = 20e-6
#: A waiter looks again after this many seconds, should the word that there is one be lost.
_LOOK_AGAIN = 0.1


class Lease(NamedTuple):
    """A queue, a batch of its depth, and its lane, which is lent out with it."""

    queue: Queue
    batch: Batch
    lane: Lane


class Leases:
    """The shared queues of a controller.

    Parameters
    ----------
    lock: the controller's, re-entrant. make: creates a queue. free: how many queue ids are left.
    check: raises if the controller is closed or not ready.
    """

    def __init__(
        self,
        *,
        lock: threading.RLock,
        make: Callable[[], Queue],
        free: Callable[[], int],
        check: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._make = make
        self._free = free
        self._check = check
        self._idle: list[Lease] = []
        #: The lanes of all of these queues, by number: lent or in use, they say so.
        self.lanes: list[Lane] = []
        self._lent: dict[object, Lease] = {}
        self._word: queues.SimpleQueue[None] = queues.SimpleQueue()

    @contextmanager
    def lend(self) -> Iterator[Lease]:
        """A queue and a batch with nothing in flight, until the block ends; waits for one."""
        token = object()
        try:
            while not self._borrow(token):
                try:
                    self._word.get(timeout=_LANE_SECONDS if self._idle else _LOOK_AGAIN)
                except queues.Empty:
                    pass
            yield self._lent[token]
        finally:
            try:
                self._give_back(token)
            except BaseException:  # interrupted
                self._give_back(token)
                raise

    def clear(self) -> None:
        """Forget those that nobody has; the controller, when it closes."""
        self._idle.clear()
        self.lanes.clear()

    def _borrow(self, token: object) -> bool:
        with self._lock:
            self._check()
            lease = next((lease for lease in reversed(self._idle) if lease.lane.lend()), None)
            if lease is not None:
                # never in neither place, and in both for a moment only
                self._lent[token] = lease
                self._idle.remove(lease)
            else:
                busy = len({lease.queue.qid for lease in self._lent.values()}) + len(self._idle)
                # what the user's own queues leave; with none left, make() says so
                if busy >= max(1, min(MOST, self._free() + busy)):
                    return False
                queue = self._make()
                lane = Lane(queue, len(self.lanes))
                lane.lend()
                self.lanes.append(lane)
                self._lent[token] = Lease(queue, _batch(queue), lane)
            queue, batch, lane = self._lent[token]
            if queue.inflight:  # of a lane's caller, who gave it up while the pair was halted
                queue.quarantine()
            if batch.slot < 0 or batch.inflight:
                # a time-out: those commands keep their slot and buffer until they are done
                batch.close()
                self._lent[token] = Lease(queue, _batch(queue), lane)
        return True

    def _give_back(self, token: object) -> None:
        with self._lock:
            lease = self._lent.get(token)
            if lease is None:
                return
            try:
                self._check()
            except (ClosedError, DeviceGoneError):  # for good: nobody lends it again
                del self._lent[token]
                return
            except UdrvError:  # failed: a reset may mend it
                pass
            if not any(
                other is not token and held.queue is lease.queue
                for other, held in self._lent.items()
            ):  # or it was given back by the call of this that was interrupted
                if lease.batch.slot >= 0 and not lease.batch.inflight:
                    lease.batch.unbind()  # the caller's buffer is the caller's again
                if lease not in self._idle:
                    self._idle.append(lease)
                lease.lane.take_back()
            del self._lent[token]
            if self._word.empty():
                self._word.put(None)


def _batch(queue: Queue) -> Batch:
    return Batch(queue, queue.depth, queue.take_slot())
