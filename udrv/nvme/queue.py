"""I/O queues: batched submit and reap.

Memory in flight is owned by the queue, not by the objects that the user holds: `_held` keeps a
buffer for as long as the device may touch it, so that dropping a batch, an exception or a time-out
can free nothing under the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, SupportsIndex

from udrv.core import ffi, lib
from udrv.errors import (
    BufferInUseError,
    ClosedError,
    CommandTimeoutError,
    InvalidRequestError,
    QueueBusyError,
)
from udrv.fork import ForkGuard
from udrv.memory import Buffer, DmaMemory
from udrv.nvme.backend import Pair
from udrv.nvme.batch import Batch, Completions, Reaped
from udrv.nvme.pair import HALTED, MAX_SLOTS, SPIN_ONLY, SQE_SIZE
from udrv.units import integer, seconds, spin_time

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace

_NS = 1_000_000_000
_READ_ONLY = -int(lib.UDRV_EREADONLY)

#: How long a device that was rung has to complete something.
RESCUE_SECONDS = 0.02


def _rows(batch: Batch, first: int, count: int | None) -> str:
    rows = "all rows" if count is None else f"{count} rows"
    return f"{rows} from row {first} of a batch of {batch.capacity}"


class QueueOwner(Protocol):
    """What a queue needs of its controller."""

    @property
    def memory(self) -> DmaMemory:
        """The memory that this controller can reach."""

    def check_alive(self) -> None:
        """Raise if the controller is gone, failed or closed."""

    def delete_queue(self, queue: Queue) -> None:
        """Delete both queues on the device, then free their memory."""


class Queue:
    """A submission and completion queue pair for I/O (`Controller.create_queue` makes them).

    One owner at a time: a second thread that enters gets `QueueBusyError`, it does not wait.
    A context manager; `close` deletes the queues on the device.

    Attributes
    ----------
    qid: 1 to 65535.        entries: slots of each ring.
    depth: commands that fit, `entries - 1`.
    interrupt: whether completions raise an interrupt (else they are polled for).
    spin_ns: nanoseconds that a wait polls before it sleeps: 0, `HYBRID` (as long as the waits
        before make worth while) or any number; without an interrupt it polls for ever.
    """

    def __init__(self, owner: QueueOwner, pair: Pair, spin_ns: int = 0) -> None:
        self._owner = owner
        self._pair = pair
        self._c = pair.c
        self._submit_c = pair.submit_c
        self._reap_c = pair.reap_c
        self._guard = ForkGuard()
        # re-entrant: a finaliser or a signal handler may use the queue inside of it
        self._lock = threading.RLock()
        self._held: dict[int, Buffer | None] = {}
        self._dropped: set[int] = set()
        self._next_slot = 0
        self._leased = False
        self.completions = Completions(pair.depth)
        self._bad: Any = ffi.new("uint32_t *")
        self.device = pair.device
        self.qid = pair.qid
        self.entries = pair.entries
        self.depth = pair.depth
        self.interrupt = pair.eventfd >= 0
        self.spin_ns = spin_ns if self.interrupt else SPIN_ONLY

    # --- slots: who holds which buffer -----------------------------------------------------

    def batch(
        self, capacity: int, *, namespace: Namespace, buffer: Buffer | None = None
    ) -> Batch:
        """Columns for `capacity` commands on `namespace` with their data in `buffer`.

        The buffer may be left out for flushes, and changed later by `Batch.bind`.
        """
        self._guard.check(f"queue {self.qid}", self.device)
        capacity = integer(capacity, "a number of commands", device=self.device)
        if capacity < 1:  # before a slot is taken for it
            raise InvalidRequestError(
                f"a batch of {capacity} commands", device=self.device, mend="1 or more"
            )
        batch = Batch(self, capacity, self.take_slot())
        batch.bind(namespace, buffer)
        return batch

    def take_slot(self) -> int:
        """A free slot for a `Batch`; `InvalidRequestError` when all are taken."""
        with self._lock:
            self._sweep()
            for _ in range(MAX_SLOTS):
                slot = self._next_slot
                self._next_slot = (slot + 1) % MAX_SLOTS
                if slot not in self._held:
                    self._held[slot] = None
                    return slot
        raise InvalidRequestError(
            f"queue {self.qid} has {MAX_SLOTS} batches already",
            device=self.device,
            mend="close batches that are no longer used",
        )

    def _sweep(self) -> None:
        """Let go of buffers of dropped batches whose last command is done."""
        # a copy: a finaliser may add to the set while this looks at it, or even sweep
        for slot in list(self._dropped):
            if not self._pair.slot_inflight(slot) and slot in self._dropped:
                self._dropped.discard(slot)
                self._release(self._held.pop(slot, None))

    @staticmethod
    def _release(buffer: Buffer | None) -> None:
        if buffer is not None:
            buffer.unpin()

    def hold_buffer(self, slot: int, buffer: Buffer | None) -> None:
        """Keep `buffer` for the slot's commands; used by `Batch`."""
        if buffer is not None:
            buffer.pin()
        with self._lock:
            old, self._held[slot] = self._held.get(slot), buffer
        self._release(old)

    def drop_slot(self, slot: int) -> None:
        """The batch of this slot is gone; used by `Batch`, also from its finaliser.

        Takes no lock: a finaliser may run inside of any of this object's own calls.
        """
        self._dropped.add(slot)

    def check_rebind(self, batch: Batch) -> None:
        """Raise if the batch cannot change its buffer now; used by `Batch`."""
        self._guard.check(f"queue {self.qid}", self.device)
        if batch.slot < 0:
            raise ClosedError("the batch is closed", device=self.device)
        if batch.inflight:
            raise BufferInUseError(
                f"{batch.inflight} commands of this batch are in flight",
                device=self.device,
                mend="reap them first",
            )

    @property
    def memory(self) -> DmaMemory:
        """The memory that buffers of this queue's batches must come from."""
        return self._owner.memory

    def slot_inflight(self, slot: int) -> int:
        """Commands of a slot that the device may still touch; used by `Batch`."""
        return self._pair.slot_inflight(slot) if slot >= 0 else 0

    # --- the fast path ----------------------------------------------------------------------

    def submit(self, batch: Batch, first: int = 0, count: int | None = None) -> int:
        """Submit commands `first` to `first + count - 1` of the batch; one doorbell write.

        Returns how many were submitted: fewer than asked for, or 0, when `depth` is reached.
        A bad command raises (`LbaRangeError`, `TransferTooLargeError`, `BufferTooSmallError`,
        `AlignmentError`, `InvalidRequestError`), names its row, and nothing of the call reaches
        the device.
        """
        try:
            if batch.queue is not self or self._leased:
                self._refuse(batch)
        except AttributeError:
            raise InvalidRequestError(
                f"a {type(batch).__name__} is no batch", device=self.device,
                mend="make one with this queue's batch(), and fill its columns",
            ) from None
        uses = batch.uses
        try:
            uses.append(self)
            ret: int = self._submit_c(
                self._c, batch.c, first, batch.capacity - first if count is None else count,
                self._bad,
            )  # fmt: skip
            if ret == _READ_ONLY:
                self._prepare_write(batch)
                ret = self._submit_c(
                    self._c, batch.c, first, batch.capacity - first if count is None else count,
                    self._bad,
                )  # fmt: skip
            if ret == HALTED:
                self._pair.pause()
        except (OverflowError, TypeError) as error:
            raise InvalidRequestError(
                f"queue {self.qid}, {_rows(batch, first, count)}",
                device=self.device,
                mend="both are whole numbers, within the batch",
            ) from error
        finally:
            uses.pop()
        if ret < 0:
            if ret == HALTED:  # the controller was reset meanwhile
                return self.submit(batch, first, count)
            self._raise_bad_row(ret, batch, first, count)
        return ret

    def submit_raw(
        self, batch: Batch, sqe: bytes, *, offset: int = 0, length: int = 0, user_data: int = 0
    ) -> int:
        """Submit one command of any opcode, with data in the buffer of `batch`.

        Parameters
        ----------
        sqe: 64 bytes (`udrv.nvme.spec.command` builds them); CID and data pointer are filled in.
        offset, length: bytes of the batch's buffer that the command moves; 0 bytes for none.
        user_data: returned with the completion.

        Returns 1, or 0 when `depth` is reached. Raises `BufferTooSmallError`,
        `TransferTooLargeError`, `AlignmentError`, and `UnsupportedOnTransport` for SGLs, and for
        fused commands where the kernel drives the controller.
        """
        if batch.queue is not self or batch.slot < 0 or len(sqe) != SQE_SIZE:
            raise InvalidRequestError(
                f"a raw command of {len(sqe)} bytes on queue {self.qid}", device=self.device,
                mend=f"{SQE_SIZE} bytes, and a batch of this queue that is not closed",
            )
        self._check_not_leased()
        offset = integer(offset, "offset =", device=self.device)
        length = integer(length, "length =", device=self.device)
        if not 0 <= offset < 1 << 63 or not 0 <= length < 1 << 32:
            raise InvalidRequestError(f"{length} bytes at {offset}", device=self.device)
        uses = batch.uses
        try:
            uses.append(self)
            ret = self._pair.submit_command(batch.c, sqe, offset, length, user_data)
            if ret == _READ_ONLY:
                self._prepare_write(batch)
                ret = self._pair.submit_command(batch.c, sqe, offset, length, user_data)
        finally:
            uses.pop()
        if ret < 0:
            self._pair.fail(ret, f"queue {self.qid}, opcode {sqe[0]:#04x}")
        return ret

    def _prepare_write(self, batch: Batch) -> None:
        """A first write: is anything in use there?"""
        if batch.namespace is not None:
            batch.namespace.prepare_write()
            self._pair.aim(batch.c, batch.namespace, batch.buffer)

    def _refuse(self, batch: Batch) -> None:
        self._check_not_leased()
        other = batch.queue.memory is not self.memory
        raise InvalidRequestError(
            f"the batch belongs to queue {batch.queue.qid} of {batch.queue.device}, not to queue "
            f"{self.qid} of {self.device}" + (", another controller" if other else ""),
            device=self.device,
            mend="make one with this queue's batch()",
        )

    def _raise_bad_row(self, ret: int, batch: Batch, first: int, count: int | None) -> NoReturn:
        where = f"queue {self.qid}"
        if ret == -lib.UDRV_EINVAL:
            if batch.slot < 0:
                raise ClosedError("the batch is closed", device=self.device)
            batch.check_unused()
            where += f", {_rows(batch, first, count)}"
        if ret not in (-lib.UDRV_EBUSY, -lib.UDRV_EFORKED, -lib.UDRV_ECLOSED, -lib.UDRV_EINVAL):
            row = int(self._bad[0])
            where += (
                f", row {row} (opcode {batch.opcode[row]:#04x}, slba {batch.slba[row]}, "
                f"nlb {batch.nlb[row]}, offset {batch.offset[row]})"
            )
        self._pair.fail(ret, where)

    def reap(
        self,
        minimum: int = 0,
        maximum: int | None = None,
        *,
        timeout: float | None = None,
        spin_ns: int | None = None,
    ) -> Reaped:
        """Completions: at least `minimum` (0: those that are there), at most `maximum`.

        Parameters
        ----------
        minimum: as many as are in flight if those are fewer: with nothing in flight, none.
        maximum: None for `depth`.
        timeout: seconds, None for no limit. When it runs out, what came is returned.
        spin_ns: how long to poll before sleeping on the interrupt; None: as the queue's `spin_ns`.

        Returns views that the next reap of this queue overwrites: copy what you keep. Raises
        `DeviceGoneError` or `ControllerFatalError` when that is why nothing comes.
        """
        if self._leased:
            self._check_not_leased()
        if timeout is not None:  # now: below, completions may have been taken already
            timeout = seconds(timeout, device=self.device)
        if spin_ns is not None:
            spin_ns = spin_time(spin_ns, device=self.device)
        if type(minimum) is not int:
            minimum = integer(minimum, "a number of completions", device=self.device)
        if maximum is not None and type(maximum) is not int:
            maximum = integer(maximum, "a number of completions", device=self.device)
        if maximum is not None and minimum > maximum:
            raise InvalidRequestError(
                f"at least {minimum} completions, but at most {maximum}", device=self.device
            )
        limit = self.depth if maximum is None or maximum > self.depth else maximum
        # one look first: mostly all that is asked for is there
        try:
            got: int = self._reap_c(self._c, self.completions.c, 0, limit)
        except OverflowError:
            raise InvalidRequestError(
                f"at most {maximum} completions", device=self.device
            ) from None
        if got < minimum:
            if got == HALTED:  # for the moment there is nothing
                if not minimum:
                    self._pair.pause(0)
                got = 0
            elif got < 0:
                self._pair.fail(got, f"queue {self.qid}")
            want = min(minimum, limit, got + self._pair.inflight)
            if got < want:
                if spin_ns is None:
                    spin_ns = self.spin_ns
                got = self._wait_more(got, want, limit, timeout, spin_ns)
        if self._dropped:
            with self._lock:
                self._sweep()
        return Reaped(self.completions, got)

    def _wait_more(
        self, got: int, want: int, limit: int, timeout: float | None, spin_ns: int
    ) -> int:
        deadline = None if timeout is None else time.monotonic_ns() + int(timeout * _NS)
        silent = False
        while got < want:
            left = _NS if deadline is None else deadline - time.monotonic_ns()
            if left <= 0:
                break
            if silent:  # a whole slice without any, and time left: is anybody there?
                self._owner.check_alive()
                if not self._pair.inflight:  # what was awaited came late: it is not delivered
                    break
            rows = self.completions.c_from(got)
            more = self._pair.wait(rows, want - got, limit - got, left, spin_ns)
            got += more
            silent = not more
        return got

    # --- time-outs and the end ----------------------------------------------------------------

    def quarantine(self, batch: Batch | None = None) -> int:
        """Give up on what is in flight (of one batch, or all); returns how many commands.

        Their completions will be counted and not delivered, and their buffers stay allocated,
        until there is proof that the device is done with them.
        """
        if batch is None:
            return self._pair.quarantine()
        if batch.queue is not self or batch.slot < 0:
            raise InvalidRequestError(
                f"the batch is closed, or not of queue {self.qid}", device=self.device
            )
        return self._pair.quarantine(batch.slot)

    def rescue(self) -> Reaped:
        """What a device that sleeps over commands completes when its registers are written.

        With shadow doorbells it says itself when it wants that, and may be wrong; so this comes
        before commands are given up. Long waits do it by themselves.
        """
        return self.reap(1, timeout=RESCUE_SECONDS if self.ring() else 0)

    def ring(self) -> bool:
        """Write the doorbell registers, if they are shadowed (else False): see `rescue`."""
        return self._pair.ring()

    def give_up(self, batch: Batch, what: str, timeout: float) -> NoReturn:
        """Quarantine the batch and raise `CommandTimeoutError`, or what is behind it."""
        count = self.quarantine(batch)
        self._owner.check_alive()
        raise CommandTimeoutError(
            f"{what} on queue {self.qid}: {count} commands did not complete within {timeout:g} s",
            device=self.device,
            mend="their memory stays in quarantine; reset the controller (Controller.reset)",
        )

    def check_alive(self) -> None:
        """Raise if the controller is gone, failed or closed."""
        self._owner.check_alive()

    @property
    def halted(self) -> bool:
        """The controller is being reset: `submit` waits until that is over; nothing to reap."""
        return self._pair.halted

    @property
    def inflight(self) -> int:
        """Commands that the device may still touch, those in quarantine included."""
        return self._pair.inflight

    def counters(self) -> dict[str, int]:
        """Totals since creation, by name: commands, doorbell writes, anomalies (see the pair)."""
        with self._lock:  # release() frees what is read here
            return self._pair.counters()

    def _check_not_leased(self) -> None:
        if self._leased:
            raise QueueBusyError(
                f"queue {self.qid} is lent to a C loop",
                device=self.device,
                mend="wait for it to end, or create another queue",
            )

    @contextmanager
    def lease_c(self) -> Iterator[Any]:
        """Lend the `struct udrv_queue *` to a C loop; Python calls are refused meanwhile."""
        self._guard.check(f"queue {self.qid}", self.device)
        with self._lock:
            self._check_not_leased()
            self._leased = True
        try:
            yield self._pair.loop_c
        finally:
            self._leased = False

    @property
    def pair(self) -> Pair:
        """Rings and handle; for the controller."""
        return self._pair

    def close(self) -> None:
        """Delete the queues on the device and free them; idempotent."""
        self._owner.delete_queue(self)

    def release(self) -> None:
        """Free memory and let go of all buffers; by the controller, with proof (see qp.h)."""
        with self._lock:
            self._pair.free()
            held, self._held = self._held, {}
            self._dropped.clear()
        for buffer in held.values():
            self._release(buffer)

    def abandon(self) -> None:
        """Refuse further calls and wait until nobody is inside; memory and buffers stay.

        Raises `QueueBusyError` if a thread does not leave.
        """
        self._pair.close()

    def __repr__(self) -> str:
        return f"<Queue {self.qid} of {self.device}, {self.entries} entries>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a queue is a device's: it can be neither copied nor pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

