"""The memory and the C handle of one queue pair, admin or I/O.

Python's part of `udrv/core/include/udrv/qp.h`: it allocates, it turns `-UDRV_E*` into exceptions,
and it frees in the right order. It knows nothing of commands.
"""

from __future__ import annotations

import copy
import operator
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from udrv.core import ffi, lib
from udrv.errors import ClosedError, InvalidRequestError, UdrvError
from udrv.memory import Buffer, DmaMemory, Region
from udrv.nvme.qp_errors import raise_qp_error
from udrv.nvme.registers import Doorbell
from udrv.nvme.shadow import ShadowEntry

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace
    from udrv.nvme.prp import PrpTables

SQE_SIZE = 64
CQE_SIZE = 16
_PAGE = 4096
_CACHE_LINE = 64
#: CDW0 15:14, as bits of byte 1: SGLs instead of PRPs.
_PSDT = 0xC0

#: No wait is longer than this in one C call, so that signals (Ctrl-C) are served.
WAIT_SLICE_NS = 100_000_000

#: A thread leaves a closed queue within this time, or something is wrong.
CLOSE_SECONDS = 10.0

SPIN_ONLY = int(lib.UDRV_SPIN_ONLY)
#: Poll for as long as the waits before make worth while, then sleep (see spin.h of the core).
HYBRID = int(lib.UDRV_SPIN_MEASURED)
MAX_SLOTS = int(lib.UDRV_QP_SLOTS)
PRP_MAX_TRANSFER = int(lib.UDRV_QP_PRP_MAX_TRANSFER)

#: The controller is being reset: try again when that is over.
HALTED = -int(lib.UDRV_EHALTED)
_CLOSED = -int(lib.UDRV_ECLOSED)
_BUSY = -int(lib.UDRV_EBUSY)
_MOST_OVERDUE = 64


class Overdue(NamedTuple):
    """A command in flight beyond its limit; `key` tells it from every other one of its queue."""

    key: tuple[int, int]
    cid: int
    opcode: int
    age: float  # seconds
    slba: int
    nbytes: int


class StateMapper:
    """Memory that no device can reach: the state of queue pairs (see qp.h)."""

    iova_ranges = ((1 << 21, (1 << 40) - 1),)
    page_size = 4096

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        """Nothing to map."""

    def dma_unmap(self, *, iova: int, size: int) -> None:
        """Nothing to unmap."""


def _new_handle() -> Any:
    """A cleared `struct udrv_qp *` that keeps its memory, on cache lines of its own.

    Not udrv_qp_new() and ffi.gc(): the garbage collector runs the destructors of all that it found
    before any of it is cleared, so a finaliser that closes the controller would find it freed.
    """
    size = ffi.sizeof("struct udrv_qp")
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return ffi.from_buffer("struct udrv_qp *", memory[start : start + size])


class QueuePair:
    """Rings, PRP pages, tracker state and handle of one queue id.

    Parameters
    ----------
    memory: DMA memory for rings and PRP pages.     state: memory that is not mapped for DMA.
    entries: slots of each ring, 2 to 65535; `entries - 1` commands fit.
    max_transfer: bytes that one command may move.
    doorbells: where the SQ tail and the CQ head doorbell are.
    shadow: their places in the shadow doorbell buffer, None without one.
    eventfd: of the interrupt vector, or -1 for a polled queue.
    tables: PRP lists of the memory's pools; None: each command writes its own.
    timestamps: take the time of each command; without, its latency is 0.
    """

    def __init__(
        self,
        *,
        device: str,
        memory: DmaMemory,
        state: DmaMemory,
        qid: int,
        entries: int,
        max_transfer: int,
        doorbells: tuple[Doorbell, Doorbell],
        shadow: ShadowEntry | None = None,
        eventfd: int = -1,
        tables: PrpTables | None = None,
        timestamps: bool = True,
    ) -> None:
        entries = operator.index(entries)  # a numpy uint16 would overflow in the sizes below
        self.device = device
        self.qid = qid
        self.entries = entries
        self.depth = entries - 1
        self.max_transfer = min(max_transfer, PRP_MAX_TRANSFER)
        self.eventfd = eventfd
        self._tables = tables
        self.submit_c = lib.udrv_qp_submit
        self.reap_c = lib.udrv_qp_reap
        self.on_device = False
        self.timed = timestamps
        self.shadowed = shadow is not None
        self._shadow = shadow
        self.timed = timestamps
        #: Returns when a reset of the controller is over, or after so many seconds. Set by whoever
        #: resets it.
        self.wait_over: Callable[[float | None], None] | None = None
        #: What its controller did, from then on.
        self.why: UdrvError | None = None
        self.where = f"queue {qid}" if qid else "admin queue"
        self._regions: list[Region] = []
        self._handle: Any = None
        self._stream: Any = None
        try:
            sq = self._region(memory, entries * SQE_SIZE)
            cq = self._region(memory, entries * CQE_SIZE)
            prp = self._region(memory, self.depth * _PAGE)
            shared = self._region(state, int(lib.udrv_qp_shared_size(entries)))
            self.sq_iova = sq.iova
            self.cq_iova = cq.iova
            handle = _new_handle()
            config = ffi.new("struct udrv_qp_config *")
            config.qid = qid
            config.entries = entries
            config.eventfd = eventfd
            config.max_transfer = self.max_transfer
            config.flags = 0 if timestamps else int(lib.UDRV_QP_UNTIMED)
            config.shared = ffi.cast("void *", shared.address)
            config.sq = ffi.cast("void *", sq.address)
            config.cq = ffi.cast("void *", cq.address)
            config.prp = ffi.cast("void *", prp.address)
            config.prp_iova = prp.iova
            kept = self._set_doorbells(config, doorbells, shadow)
            self._check(lib.udrv_qp_init(handle, config))
            del kept  # copied
            self._handle = handle  # not before: free() must not meet one that was never set up
        except BaseException:
            self.free()
            raise

    @staticmethod
    def _set_doorbells(
        config: Any, doorbells: tuple[Doorbell, Doorbell], shadow: ShadowEntry | None
    ) -> list[Any]:
        """Fill in a `struct udrv_qp_config`; returns what must live as long as it is used."""
        kept = []
        for side, doorbell in zip(("sq", "cq"), doorbells, strict=True):
            if isinstance(doorbell, int):
                setattr(config, f"{side}_doorbell", ffi.cast("void *", doorbell))
                continue
            kept.append(ffi.from_buffer(doorbell.message))
            setattr(config, f"{side}_post", kept[-1])
            config.post_fd = doorbell.fd
            config.post_len = len(doorbell.message)
            config.post_at = doorbell.value_at
        if shadow is not None:
            shadow.clear()
            for name in ("sq_shadow", "cq_shadow", "sq_event", "cq_event"):
                setattr(config, name, ffi.cast("void *", getattr(shadow, name)))
        return kept

    def _region(self, memory: DmaMemory, size: int) -> Region:
        # cleared: phase bits of an earlier queue in the same memory would look like completions
        region = memory.region(size, align=_PAGE)
        self._regions.append(region)
        return region

    def _check(self, ret: int) -> int:
        if ret < 0:
            self.fail(ret, self.where)
        return ret

    def _call(self, function: Any, *args: Any) -> int:
        """Call a function of the core, again while the controller is being reset."""
        while (ret := int(function(self.c, *args))) == HALTED:
            self.pause()
        return self._check(ret)

    @property
    def c(self) -> Any:
        """The `struct udrv_qp *`. Raises `ClosedError` after `free`."""
        if self._handle is None:
            if self.why is not None:
                raise copy.copy(self.why)
            raise ClosedError(f"{self.where} is closed", device=self.device)
        return self._handle

    @property
    def loop_c(self) -> Any:
        """A `struct udrv_queue *`, for C loops that serve any transport; errors as of `c`."""
        queue = ffi.new("struct udrv_queue *")
        lib.udrv_qp_as_queue(self.c, queue)
        return queue

    @property
    def shared(self) -> Any:
        """The `struct udrv_qp_shared *`: counters and indexes, to be read only."""
        return self.c.shared

    @property
    def inflight(self) -> int:
        """Commands that the device may still touch, those in quarantine included."""
        return int(lib.udrv_qp_inflight(self.c))

    def slot_inflight(self, slot: int) -> int:
        """The same of one slot."""
        return int(lib.udrv_qp_slot_inflight(self.c, slot))

    def submit_raw(
        self,
        sqe: bytes,
        *,
        iova: int = 0,
        length: int = 0,
        pool_id: int = 0,
        pool_offset: int = 0,
        slot: int = 0,
        user_data: int = 0,
    ) -> None:
        """Submit a 64-byte command; CID and PRPs are filled in."""
        if len(sqe) != SQE_SIZE:
            raise InvalidRequestError(
                f"a command has {SQE_SIZE} bytes, not {len(sqe)}", device=self.device
            )
        entry = ffi.from_buffer(sqe)
        self._call(
            lib.udrv_qp_submit_raw, entry, iova, length, pool_id, pool_offset, 0, slot, user_data
        )

    def submit_command(
        self, batch: Any, sqe: bytes, offset: int, length: int, user_data: int
    ) -> int:
        """One command as it is; see `Queue.submit_raw`. Returns 1, 0 or what `fail` takes."""
        if sqe[1] & _PSDT:
            return -int(lib.UDRV_ETRANSPORT)
        if offset > batch.len or length > batch.len - offset:
            return -int(lib.UDRV_EBUFFER)
        while True:
            ret = lib.udrv_qp_submit_raw(
                self.c, ffi.from_buffer(sqe), batch.iova + offset if length else 0,
                length, batch.pool_id, batch.pool_offset, offset, batch.slot, user_data,
            )  # fmt: skip
            if ret != HALTED:
                return 0 if ret == -lib.UDRV_EFULL else int(ret)
            self.pause()

    def fail(self, code: int, where: str) -> NoReturn:
        """Raise what a negative return value of the C core stands for.

        Of a pair that was closed because its controller failed, that is what the controller did.
        """
        if self.why is not None and code in (_CLOSED, HALTED):
            raise copy.copy(self.why)
        raise_qp_error(code, device=self.device, where=where)

    def wait(
        self, completions: Any, minimum: int, maximum: int, timeout_ns: int, spin_ns: int
    ) -> int:
        """One `udrv_qp_wait`, of at most `WAIT_SLICE_NS`. Returns how many came, maybe too few."""
        limit = min(timeout_ns, WAIT_SLICE_NS)
        ret = int(lib.udrv_qp_wait(self.c, completions, minimum, maximum, limit, spin_ns))
        if ret == HALTED:
            self.pause(limit / 1e9)
            return 0
        return self._check(ret)

    def aim(self, batch: Any, namespace: Namespace, buffer: Buffer | None) -> None:
        """Write into a `struct udrv_batch *` where its data is, by the device's addresses."""
        if buffer is not None:
            batch.iova = buffer.iova
            batch.pool_id = buffer.pool.id
            batch.pool_offset = buffer.pool_offset
            batch.prp_table = self._tables.iova(buffer.pool) if self._tables is not None else 0
        else:
            batch.iova = batch.pool_id = batch.pool_offset = batch.prp_table = 0

    def counters(self) -> dict[str, int]:
        """Totals since creation: commands, doorbell writes, anomalies.

        `sq_doorbells` and `cq_doorbells` are register writes, `sq_shadow` and `cq_shadow` updates
        of a shadow doorbell alone, `forced_doorbells` silences in which the registers were
        written whatever EventIdx said.
        """
        s = self.shared
        return {
            "submitted": int(s.submitted),
            "completed": int(s.completed),
            "consumed": int(s.consumed),
            "sq_doorbells": int(s.sq_doorbells),
            "cq_doorbells": int(s.cq_doorbells),
            "sq_shadow": int(s.sq_shadow),
            "cq_shadow": int(s.cq_shadow),
            "forced_doorbells": int(s.forced),
            "bad_cid": int(s.anomalies.bad_cid),
            "duplicate": int(s.anomalies.duplicate),
            "bad_sqid": int(s.anomalies.bad_sqid),
            "late": int(s.anomalies.late),
        }

    def set_stream(self, stream: Any) -> int:
        """Hang a `struct udrv_stream *` on it, or take it off (None); see stream.h."""
        ret = lib.udrv_qp_set_stream(self.c, ffi.NULL if stream is None else stream)
        if not ret:
            self._stream = stream  # its memory lives as long as C may write there
        return int(ret)

    def consumed(self) -> int:
        """Completions consumed so far, rejected ones included."""
        return int(self.shared.consumed)

    def quarantine(self, slot: int | None = None) -> int:
        """Give up what is in flight (of one slot, or of all). Returns how many commands."""
        return self._call(lib.udrv_qp_quarantine, MAX_SLOTS if slot is None else slot)

    def release_all(self) -> int:
        """To be called with proof that the device is done with every command of this queue."""
        return self._check(lib.udrv_qp_release_all(self.c))

    def ring(self) -> bool:
        """Write the doorbell registers, whatever EventIdx says (see qp.h).

        Returns whether that was any news to the device: False without shadow doorbells.
        """
        if not self.shadowed:
            return False
        self._call(lib.udrv_qp_ring)
        return True

    # --- a reset of the controller, see qp.h --------------------------------------------------

    @property
    def halted(self) -> bool:
        """Nobody gets in: the controller is being reset, or could not be (`why`)."""
        return bool(self._handle is not None and self._handle.closed == lib.UDRV_QP_HALTED)

    def pause(self, timeout: float | None = None) -> None:
        """Return when a reset is over, or after `timeout` seconds; raise what came of it."""
        if self.why is None and self.wait_over is not None:
            self.wait_over(timeout)
        if self.why is not None or self.wait_over is None:
            self.fail(HALTED, self.where)

    def halt(self) -> bool:
        """Keep everybody out. Returns whether nobody is inside any more (or it is closed)."""
        ret = int(lib.udrv_qp_halt(self.c))
        if ret == _BUSY:
            self.wake()
            return False
        if ret != _CLOSED:
            self._check(ret)
        return True

    def restart(self) -> int:
        """With proof that the device is done with it: as new. Returns how many were in flight."""
        if self._shadow is not None:
            self._shadow.clear()
        while (ret := int(lib.udrv_qp_restart(self.c))) == _BUSY:
            time.sleep(0)  # someone looks at the door
        return 0 if ret == _CLOSED else self._check(ret)

    def resume(self) -> None:
        """Let everybody in again, and wake whoever waits for what was in flight."""
        self.why = None
        lib.udrv_qp_resume(self.c)
        self.wake()

    def wake(self) -> None:
        """Have a waiter look, as an interrupt does."""
        if self.eventfd >= 0:
            os.eventfd_write(self.eventfd, 1)

    def broken(self, why: UdrvError) -> None:
        """Whoever is inside or comes later gets a copy of `why`, until `resume`."""
        self.why = why
        if self._handle is not None and not self.halt():
            self.wake()

    def overdue(self, limits: Any) -> list[Overdue]:
        """Commands in flight for longer than a `Timeouts.table` allows; see `udrv_qp_overdue`."""
        found = ffi.new("struct udrv_overdue[]", _MOST_OVERDUE)
        count = lib.udrv_qp_overdue(self.c, limits, found, _MOST_OVERDUE)
        return [
            Overdue((int(row.cid), int(row.submit_ticks)), int(row.cid), int(row.opcode),
                    row.age_ns / 1e9, int(row.slba), int(row.len))
            for row in found[0:count]
        ]  # fmt: skip

    def awaited(self) -> bool:
        """Whether the device owes a completion: what was given up, or ended by a reset, is none.

        Of a pair without timestamps; a look at each tracker, without a lock.
        """
        return bool(lib.udrv_qp_overdue(self.c, [1] * 256, ffi.new("struct udrv_overdue *"), 1))

    @property
    def unreaped(self) -> int:
        """Completions that lie in the ring; exact while nobody reaps."""
        return int(lib.udrv_qp_unreaped(self.c))

    def rings(self) -> tuple[bytes, bytes, bytes]:
        """Copies of the submission ring, the completion ring and the shared state."""
        sq, cq, _, shared = self._regions
        return (
            bytes(ffi.buffer(ffi.cast("char *", sq.address), self.entries * SQE_SIZE)),
            bytes(ffi.buffer(ffi.cast("char *", cq.address), self.entries * CQE_SIZE)),
            bytes(ffi.buffer(ffi.cast("char *", shared.address), int(self.shared.size))),
        )

    def close(self) -> None:
        """Refuse further calls and wait until nobody is inside. Memory stays until `free`.

        Raises `QueueBusyError` if a thread is still inside after `CLOSE_SECONDS`: then the rings
        must not be unmapped.
        """
        if self._handle is None:
            return
        lib.udrv_qp_close(self._handle)  # ends waits, too
        deadline = time.monotonic() + CLOSE_SECONDS
        while lib.udrv_qp_quarantine(self._handle, MAX_SLOTS) == _BUSY:
            if time.monotonic() > deadline:
                raise_qp_error(_BUSY, device=self.device, where=self.where)
            time.sleep(0.0005)

    def free(self) -> None:
        """Give memory back. Only with proof that the device can no longer reach it; idempotent."""
        if self._handle is not None:
            self.close()
            self.release_all()
            self._handle = None
        while self._regions:
            self._regions.pop().free()
