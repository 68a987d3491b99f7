"""What one awaited call wants, and the batches that hold the buffers of those in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from udrv.errors import ControllerStateError
from udrv.memory import Buffer
from udrv.nvme.batch import FLUSH, READ, Batch
from udrv.nvme.queue import Queue
from udrv.nvme.retry import RETRIES, may_retry
from udrv.nvme.spec.opcodes import IoOpcode
from udrv.nvme.status import error_from_status

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace

#: Commands of one transfer that one call submits: its turn, when others wait.
TURN = 8

#: In `user_data`: the seat above, the number of the part below.
_PART_BITS = 40
_PART_MASK = (1 << _PART_BITS) - 1


class Transfer:
    """What one caller awaits; for `AsyncQueue`.

    Parameters
    ----------
    lba, blocks: checked; 0 and 1 for a flush.
    buffer: None for one that is made at the transfer's turn, with the bytes of `source` in it.
    timeout: seconds without progress; None: as long as the controller takes to get it back.

    Attributes
    ----------
    seat: its batch, -1 unless commands are in flight.
    sent, part: blocks and commands submitted.     inflight: commands that did not complete yet.
    settled: the caller was answered, or left.
    """

    __slots__ = (
        "again", "bad", "blocks", "buffer", "control", "deadline", "error", "future", "inflight",
        "lba", "namespace", "opcode", "part", "per", "retries", "seat", "sent", "settled", "source",
        "timeout",
    )  # fmt: skip

    def __init__(
        self, namespace: Namespace, opcode: int, lba: int, blocks: int, buffer: Buffer | None, *,
        timeout: float | None, source: memoryview | None = None, control: int = 0,
    ) -> None:  # fmt: skip
        self.namespace = namespace
        self.opcode = opcode
        self.lba = lba
        self.blocks = blocks
        self.buffer = buffer
        self.source = source
        self.control = control
        self.timeout = namespace.controller.backend.patience if timeout is None else timeout
        self.future: asyncio.Future[None] | None = None
        self.deadline = 0.0
        self.per = 1 if opcode == FLUSH else namespace.max_blocks
        if self.per < 1:
            raise ControllerStateError(
                f"one command moves {namespace.controller.max_transfer} bytes, less than a block",
                device=namespace.controller.target,
            )
        self.seat = -1
        self.sent = 0
        self.part = 0
        self.inflight = 0
        self.bad: tuple[int, int, int] | None = None  # part, status, result: the first in order
        self.error: BaseException | None = None
        self.settled = False
        self.again: list[int] = []  # parts to send once more
        self.retries = RETRIES

    @property
    def what(self) -> str:
        """For messages: "read nsid=1"."""
        return f"{IoOpcode(self.opcode).name.lower()} nsid={self.namespace.nsid}"

    @property
    def ended(self) -> bool:
        """Nothing more will be submitted."""
        return (
            (self.sent >= self.blocks and not self.again) or self.settled
            or self.bad is not None or self.error is not None
        )  # fmt: skip

    def refused(self, part: int, status: int, result: int) -> None:
        """A part completed with an error status: once more, or an error."""
        if self.retries and self.bad is None and may_retry(self.opcode, status):
            self.retries -= 1
            self.again.append(part)
            return
        if self.bad is None or part < self.bad[0]:
            self.bad = (part, status, result)

    def settle(self, qid: int) -> None:
        """Answer the caller, if it is there."""
        if self.settled:
            return
        self.settled = True
        if self.opcode != READ:
            self.buffer = None  # a copy of the caller's data is of no use any more
        future = self.future
        # cancelled in this very iteration; or nobody can be told any more
        if future is None or future.done() or future.get_loop().is_closed():
            return
        error = self.error
        if error is None and self.bad is not None:
            part, status, result = self.bad
            start = part * self.per
            nlb = min(self.per, self.blocks - start)
            error = error_from_status(
                status,
                command=f"{self.what} slba={self.lba + start} nlb={nlb}",
                qid=qid,
                result=result & 0xFFFF_FFFF,
                device=self.namespace.controller.target,
            )
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def make_buffer(self) -> None:
        """The buffer of a caller that gave none: not before its turn, which bounds the memory."""
        if self.buffer is None and self.opcode != FLUSH:
            buffer = self.namespace.controller.alloc(self.blocks * self.namespace.lba_size)
            if self.source is not None:
                buffer[:] = np.frombuffer(self.source, np.uint8)
                self.source = None
            self.buffer = buffer

    def fill(self, batch: Batch, most: int) -> int:
        """Write the next parts, `most` at most, into the batch; returns how many."""
        if self.again:
            return self._fill_again(batch, most)
        sent, per = self.sent, self.per
        left = self.blocks - sent
        user_data = self.seat << _PART_BITS | self.part
        lba_size = self.namespace.lba_size
        if left <= per or most == 1:
            batch.slba[0] = self.lba + sent
            batch.nlb[0] = min(left, per)
            batch.offset[0] = sent * lba_size
            batch.user_data[0] = user_data
            return 1
        n = min(-(-left // per), most)
        start = sent + per * np.arange(n, dtype=np.uint64)
        batch.slba[:n] = start + np.uint64(self.lba)
        batch.nlb[:n] = np.minimum(per, self.blocks - start)
        batch.offset[:n] = start * np.uint64(lba_size)
        batch.user_data[:n] = user_data + np.arange(n, dtype=np.uint64)
        return n

    def _fill_again(self, batch: Batch, most: int) -> int:
        """The same of parts that failed; `submitted` takes them off the list."""
        parts = self.again[:most]
        for row, part in enumerate(parts):
            start = part * self.per
            batch.slba[row] = self.lba + start
            batch.nlb[row] = min(self.per, self.blocks - start)
            batch.offset[row] = start * self.namespace.lba_size
            batch.user_data[row] = self.seat << _PART_BITS | part
        return len(parts)

    def submitted(self, count: int) -> None:
        """The first `count` commands of what `fill` wrote are with the device."""
        self.inflight += count
        if self.again:
            del self.again[:count]
            return
        self.part += count
        self.sent = min(self.blocks, self.sent + count * self.per)


class Seats:
    """Batches of `TURN` commands, made when first needed and used again: at most `depth`.

    A transfer has a seat exactly while it has commands in flight, so that the batch's slot holds
    the buffer for as long as the device may touch it, and no longer.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._batches: list[Batch] = []
        self._by_seat: list[Transfer | None] = []
        self._free: list[int] = []
        self._shapes: list[tuple[int, int]] = []  # opcode and control of a batch's rows

    def __len__(self) -> int:
        return len(self._batches)

    def transfers(self) -> list[Transfer]:
        """Those with commands in flight, the settled ones included."""
        return [transfer for transfer in self._by_seat if transfer is not None]

    def sit(self, transfer: Transfer) -> Batch:
        """The transfer's batch, with its buffer held; raises what `Batch.bind` raises."""
        if transfer.seat >= 0:
            return self._batches[transfer.seat]
        transfer.make_buffer()
        if self._free:
            seat = self._free[-1]
            batch = self._batches[seat]
            batch.bind(transfer.namespace, transfer.buffer)
            self._free.pop()
        else:
            seat = len(self._batches)
            batch = self._queue.batch(TURN, namespace=transfer.namespace, buffer=transfer.buffer)
            self._batches.append(batch)
            self._by_seat.append(None)
            self._shapes.append((READ, 0))
        transfer.seat = seat
        self._by_seat[seat] = transfer
        shape = transfer.opcode, transfer.control
        if self._shapes[seat] != shape:
            batch.opcode[:], batch.control[:] = shape
            self._shapes[seat] = shape
        return batch

    def rise(self, transfer: Transfer) -> None:
        """Nothing of it is in flight: its buffer is the caller's again."""
        seat = transfer.seat
        if seat >= 0:
            self._batches[seat].unbind()  # first: if it raises, this one is not forgotten
            transfer.seat = -1
            self._by_seat[seat] = None
            self._free.append(seat)

    def find(self, user_data: int) -> tuple[Transfer | None, int]:
        """Whose completion it is, and of which part."""
        return self._by_seat[user_data >> _PART_BITS], user_data & _PART_MASK

    def close(self) -> None:
        """Let go of all batches; buffers in flight stay with the queue."""
        while self._batches:
            self._batches.pop().close()
