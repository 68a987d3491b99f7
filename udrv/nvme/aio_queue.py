"""asyncio: reads, writes and flushes that are awaited, on one queue for each event loop.

All state of an `AsyncQueue` belongs to its loop's thread and is touched there only: no lock, and
nothing that relies on the GIL. Other threads (a controller that is closed elsewhere) come in by
`call_soon_threadsafe`. There is no thread and no task of our own: a command costs the caller's
future, and callbacks of the loop.

Memory in flight is owned by the queue (see `udrv.nvme.queue`), never by an awaitable: each transfer
with commands in flight has a *seat*, a batch whose slot pins the buffer, and the seat is given back
when the last of its completions came. A cancelled or timed-out transfer only stops listening.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections import OrderedDict
from collections.abc import Callable

from udrv.errors import (
    ClosedError,
    CommandTimeoutError,
    ControllerError,
    ForkedError,
    QueueBusyError,
    UdrvError,
)
from udrv.fork import ForkGuard
from udrv.memory import Buffer
from udrv.nvme.aio_seats import TURN, Seats, Transfer
from udrv.nvme.batch import STATUS_CODE
from udrv.nvme.queue import RESCUE_SECONDS, Queue
from udrv.units import seconds

#: One transfer has at most this part of the queue, so that a small one finds room beside it.
_SHARE = 4
#: How long completions are looked for in each iteration of the loop, before the loop may sleep.
_SPIN_NS = 100_000
#: The same where there is no interrupt: the alternative is a timer of a millisecond.
_SPIN_POLLED_NS = 500_000
#: After so many times in vain, it is tried once in `_SPIN_AGAIN` occasions only.
_SPIN_MISSES = 4
_SPIN_AGAIN = 32
#: Seconds between two looks at a queue without an interrupt: doubled from the first to the last.
_BACK_OFF = (0.001, 0.008)
#: Seconds of silence, with commands in flight, after which the controller is asked if it lives.
_SILENCE = 0.25
#: Time-outs are looked for no more often than this, seconds.
_TIMER_STEP = 0.001


class AsyncQueue:
    """The queue of one event loop (`Controller.async_queue` makes it when it is first awaited).

    Commands of one iteration of the loop are submitted together, behind it; the first one after a
    pause goes at once. Callers beyond the queue's depth wait in order of arrival; a transfer of
    more than one command takes turns with the others, and has a quarter of the depth at most.

    Parameters
    ----------
    loop: the running loop. queue: nobody else's.
    check_alive: raises what is wrong with the controller; called after silence.

    Attributes
    ----------
    interrupt: completions wake the loop; else it looks for them, every 1 to 8 ms, while commands
        are in flight.
    broken: what everybody is told from now on, None while it works.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, queue: Queue, check_alive: Callable[[], None]
    ) -> None:
        self._fd = -1
        self._guard = ForkGuard()
        self._loop = loop
        self._queue = queue
        self._check_alive = check_alive
        self.interrupt = queue.interrupt
        self.broken: BaseException | None = None
        self._share = max(1, queue.depth // _SHARE)
        self._waiting: OrderedDict[Transfer, None] = OrderedDict()
        self._seats = Seats(queue)
        self._flush_due = False
        self._look_due: asyncio.Handle | None = None
        self._look_slow = False  # it is a timer
        self._spin = _SPIN_NS if self.interrupt else _SPIN_POLLED_NS
        self._spin_end = 0  # 0: nobody spins
        self._misses = 0
        self._occasions = 0
        self._pause = _BACK_OFF[0]
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._rung = False  # for transfers whose time is up
        self._heard = 0.0
        self._transfers = self._late = self._wakeups = self._reaps = self._submits = 0
        if self.interrupt:
            # a descriptor of our own: the controller may close its eventfd, and the system give
            # the number to somebody else, before this loop is told to forget it
            self._fd = os.dup(queue.pair.eventfd)
            loop.add_reader(self._fd, self._on_interrupt)

    # --- for the caller ---------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Commands that are in flight at most."""
        return self._queue.depth

    @property
    def inflight(self) -> int:
        """Commands that the device may still touch, those of cancelled callers included."""
        return self._queue.inflight

    @property
    def waiting(self) -> int:
        """Transfers that wait for room, or for their next turn."""
        return len(self._waiting)

    def counters(self) -> dict[str, int]:
        """Totals since the loop's first call.

        transfers: awaited.          late: completions whose caller was gone.
        submits: calls that rang.    reaps: looks at the completion queue.
        wakeups: of the loop, by the interrupt.
        seats: batches made, each for one transfer at a time.
        """
        return {
            "transfers": self._transfers,
            "late": self._late,
            "submits": self._submits,
            "reaps": self._reaps,
            "wakeups": self._wakeups,
            "seats": len(self._seats),
        }

    async def run(self, transfer: Transfer) -> Buffer | None:
        """Carry it out and return its buffer; the methods of `Namespace` are made of this."""
        self._guard.check(f"queue {self._queue.qid}", self._queue.device)
        if self.broken is not None:
            raise _again(self.broken)
        transfer.timeout = seconds(transfer.timeout, device=self._queue.device)
        future = transfer.future = self._loop.create_future()
        self._transfers += 1
        self._waiting[transfer] = None
        try:
            self._set_deadline(transfer)
            if self._flush_due:
                pass
            elif len(self._waiting) == 1 and not self._queue.inflight:
                self._guarded(self._flush)
            else:
                self._flush_due = True
                self._loop.call_soon(self._on_flush)
            await future
        except BaseException:
            if not transfer.settled:  # cancelled, or never to be resumed
                transfer.settled = True
                self._waiting.pop(transfer, None)
            elif future.done() and not future.cancelled():
                future.exception()  # told, even if it is another one that goes on (Ctrl-C)
            raise
        return transfer.buffer

    # --- submission -------------------------------------------------------------------------

    def _on_flush(self) -> None:
        self._flush_due = False
        self._guarded(self._flush)

    def _flush(self) -> None:
        """Submit as much as there is room for, each waiting transfer in its turn."""
        if self.broken is not None:
            return
        if self._submit_waiting():
            self._start_spinning()
        elif self._waiting:  # no room: perhaps only for what an earlier loop left behind
            self._without_spinning()

    def _submit_waiting(self) -> int:
        waiting = self._waiting
        if not waiting:
            return 0
        if self._queue.halted:  # the loop must not wait for the end of a reset
            self._slowly()
            return 0
        room = self._queue.depth - self._queue.inflight
        sent = 0
        while waiting and room > 0:
            transfer = next(iter(waiting))
            n = self._send(transfer, min(room, TURN, self._share - transfer.inflight))
            if transfer.ended or transfer.inflight >= self._share:
                waiting.pop(transfer, None)
            elif n:
                waiting.move_to_end(transfer)
            else:
                break  # full after all
            room -= n
            sent += n
        return sent

    def _send(self, transfer: Transfer, most: int) -> int:
        """Submit the transfer's next commands. What is wrong with it is told to its caller."""
        try:
            batch = self._seats.sit(transfer)
            count = transfer.fill(batch, most)
        except Exception as e:  # noqa: BLE001 - no memory, a buffer that was freed meanwhile
            self._refuse(transfer, e)
            return 0
        try:
            sent = self._queue.submit(batch, 0, count)
        except (ClosedError, ForkedError, QueueBusyError, ControllerError):
            raise  # nobody else fares better
        except UdrvError as e:  # a row that is refused, a namespace that is in use elsewhere
            self._refuse(transfer, e)
            return 0
        self._submits += 1
        transfer.submitted(sent)
        if not transfer.inflight:
            self._seats.rise(transfer)
        return sent

    def _refuse(self, transfer: Transfer, error: BaseException) -> None:
        transfer.error = error
        if not transfer.inflight:
            self._settle(transfer)
            self._seats.rise(transfer)

    def _settle(self, transfer: Transfer) -> None:
        self._waiting.pop(transfer, None)
        transfer.settle(self._queue.qid)

    # --- completions ------------------------------------------------------------------------

    def _on_interrupt(self) -> None:
        if self._guard.forked:
            return  # the counter is the parent's, and so is what the selector knows
        self._wakeups += 1
        try:
            os.eventfd_read(self._fd)  # before the ring is looked at: the next one sets it anew
        except BlockingIOError:
            pass
        self._guarded(self._look_if_any)

    def _look_if_any(self) -> None:
        if self._waiting or self._queue.inflight:  # else it was found before the interrupt came
            self._look()

    def _on_look(self) -> None:
        self._look_due = None
        self._guarded(self._look)

    def _look(self) -> None:
        """Take what completed, submit what waits, and see to it that somebody looks again."""
        if self.broken is not None:
            return
        got = self._reap()
        if got and self._spin_end:
            self._misses = 0
        sent = self._submit_waiting()
        if not self._waiting and not self._queue.inflight:
            self._spin_end = 0
        elif got or sent:
            self._start_spinning()
        elif time.monotonic_ns() < self._spin_end:
            self._soon()
        else:
            self._misses += self._spin_end != 0
            self._spin_end = 0
            self._without_spinning()

    def _reap(self) -> int:
        """Give completions to their transfers; returns how many came."""
        reaped = self._queue.reap()
        self._reaps += 1
        if not len(reaped):
            return 0
        now = self._heard = self._loop.time()
        rows = zip(reaped.user_data.tolist(), reaped.status.tolist(), strict=True)
        for row, (user_data, status) in enumerate(rows):
            transfer, part = self._seats.find(user_data)
            if transfer is None:  # C delivers each command once: this cannot be
                raise UdrvError(f"user data {user_data:#x} is nobody's", device=self._queue.device)
            transfer.inflight -= 1
            if status & STATUS_CODE:
                transfer.refused(part, status, int(reaped.result[row]))
            if transfer.settled:
                self._late += 1
            elif not transfer.ended:
                transfer.deadline = now + transfer.timeout
                self._waiting.setdefault(transfer)
            if not transfer.inflight:
                if transfer.ended:
                    self._settle(transfer)
                self._seats.rise(transfer)
        return len(reaped)

    # --- when to look -----------------------------------------------------------------------

    def _start_spinning(self) -> None:
        """Look in each iteration for a while, if that has been of use."""
        self._pause = _BACK_OFF[0]
        if self._misses >= _SPIN_MISSES:
            self._occasions += 1
            if self._occasions % _SPIN_AGAIN:
                self._spin_end = 0
                self._without_spinning()
                return
        self._spin_end = time.monotonic_ns() + self._spin
        self._soon()

    def _soon(self) -> None:
        if self._look_due is not None:
            if not self._look_slow:
                return
            self._look_due.cancel()
        self._look_slow = False
        self._look_due = self._loop.call_soon(self._on_look)

    def _without_spinning(self) -> None:
        """The interrupt will say so; or a timer, that grows slower while nothing comes."""
        if not self.interrupt:
            self._slowly()

    def _slowly(self) -> None:
        if self._look_due is None:
            self._look_slow = True
            self._look_due = self._loop.call_later(self._pause, self._on_look)
            self._pause = min(2 * self._pause, _BACK_OFF[1])

    # --- time limits, and whether anybody is there ------------------------------------------

    def _set_deadline(self, transfer: Transfer) -> None:
        now = self._loop.time()
        transfer.deadline = now + transfer.timeout
        if self._timer is None:
            self._heard = now
            self._arm(min(transfer.deadline, now + _SILENCE))
        elif transfer.deadline < self._timer_due:
            self._timer.cancel()
            self._arm(transfer.deadline)

    def _arm(self, when: float) -> None:
        self._timer_due = when
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._guarded(self._check_time)

    def _check_time(self) -> None:
        """While something is out: is the controller there, and has anybody waited too long?"""
        if self.broken is not None or not (self._waiting or self._queue.inflight):
            return
        now = self._loop.time()
        if self._queue.halted:
            self._look()  # raises what came of the reset, if that failed
            self._arm(now + _SILENCE)
            return
        if now - self._heard >= _SILENCE:
            self._queue.ring()  # and a device that sleeps over commands is woken
            self._look()  # at the latest here a lost interrupt is made good
            if now - self._heard >= _SILENCE:
                self._check_alive()
                self._heard = now
        if self._rung:
            self._look()
        out = [t for t in (*self._waiting, *self._seats.transfers()) if not t.settled]
        if any(transfer.deadline <= now for transfer in out):
            if not self._rung and self._queue.ring():
                self._rung = True  # what that woke has a moment more
                self._arm(now + RESCUE_SECONDS)
                return
            self._rung = False
            self._check_alive()  # that is what is behind it
        due = now + _SILENCE
        for transfer in out:
            if transfer.deadline <= now:
                self._time_out(transfer)
            elif transfer.deadline < due:
                due = transfer.deadline
        self._arm(max(due, now + _TIMER_STEP))

    def _time_out(self, transfer: Transfer) -> None:
        if transfer.settled:  # it may stand in the list twice
            return
        where = f"{transfer.what} on queue {self._queue.qid}"
        limit = f"within {transfer.timeout} s"
        if transfer.inflight:
            transfer.error = CommandTimeoutError(
                f"{where}: {transfer.inflight} commands did not complete {limit}",
                device=self._queue.device,
                mend="their memory stays in quarantine; reset the controller (Controller.reset)",
            )
        else:
            transfer.error = CommandTimeoutError(
                f"{where}: there was no room for it {limit}",
                device=self._queue.device,
                mend="await fewer at a time, or give them longer",
            )
            transfer.error.maybe_done = False
        self._settle(transfer)

    # --- the end ----------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a callback: whatever it raises, nobody waits for ever."""
        if self._guard.forked:
            return
        try:
            step()
        except QueueBusyError:
            # another thread is just closing the queue: the next look, or that thread, will say so
            self._slowly()
            if self._timer is None:
                self._arm(self._loop.time() + _SILENCE)
        except UdrvError as e:
            self.fail(e)
        except BaseException as e:
            # between any two lines (Ctrl-C): the next call goes on with another AsyncQueue
            self.fail(UdrvError(f"asyncio was interrupted by {e!r}", device=self._queue.device))
            raise

    def fail(self, error: BaseException) -> None:
        """Give `error` to all that wait, now and later; in the loop's thread, idempotent.

        What is in flight stays so, its buffers held by the queue.
        """
        if self.broken is not None or self._guard.forked:
            return
        self.broken = error
        for transfer in (*self._waiting, *self._seats.transfers()):
            transfer.error = _again(error)
            transfer.settle(self._queue.qid)
        self._waiting.clear()
        for handle in (self._timer, self._look_due):
            if handle is not None:
                handle.cancel()
        self._timer = self._look_due = None
        if self._fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._close_fd()

    def fail_from_any_thread(self, error: BaseException) -> None:
        """`fail`, in the loop's thread: now if that is this one, else when the loop gets there."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here or self._loop.is_closed():
            self.fail(error)
            return
        try:
            self._loop.call_soon_threadsafe(self.fail, error)
        except RuntimeError:  # closed meanwhile: nobody waits
            self.fail(error)

    def retire(self) -> Queue:
        """The queue, for a successor: what is in flight is in quarantine, with its buffers.

        In the loop's own thread, or when the loop is closed.
        """
        self.fail(ClosedError("the event loop was closed", device=self._queue.device))
        self._queue.quarantine()
        self._seats.close()
        return self._queue

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # the loop was closed and did not tell us: its selector let go of the descriptor
        if not self._guard.forked:
            self._close_fd()


def _again(error: BaseException) -> BaseException:
    """A copy to raise: a traceback of its own for each that waits."""
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 - what an exception's constructor wants is its own affair
        return error
