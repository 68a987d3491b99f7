"""Namespaces: reads, writes and flushes of any length, blocking or awaited."""

from __future__ import annotations

import contextlib
import operator
import time
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from udrv.core import lib
from udrv.errors import (
    AlignmentError,
    BufferTooSmallError,
    BufferTypeError,
    ControllerError,
    ControllerStateError,
    InvalidRequestError,
    LbaRangeError,
    UnsupportedOnTransport,
)
from udrv.memory import Buffer, as_buffer
from udrv.nvme.aio_seats import Transfer
from udrv.nvme.batch import FLUSH, FUA, READ, STATUS_CODE, WRITE, Batch
from udrv.nvme.lane import BUSY
from udrv.nvme.queue import Queue
from udrv.nvme.retry import RETRIES, delay, may_retry
from udrv.nvme.spec.identify import IdentifyNamespace
from udrv.nvme.status import error_from_status
from udrv.units import seconds

if TYPE_CHECKING:
    from udrv.nvme.controller import Controller

_run_lane = lib.udrv_lane_run

_NAMES = {READ: "read", WRITE: "write", FLUSH: "flush"}
_MAX_LBA_SIZE = 65536
_MAX_NLB = 65536

Data = bytes | bytearray | memoryview | npt.NDArray[np.generic]


class Namespace:
    """An active namespace of a controller (`Controller.namespace` gives them).

    Attributes
    ----------
    nsid: 1 to FFFFFFFEh.       nsze: size in blocks.      lba_size: bytes of a block's data.
    identify: the decoded Identify Namespace structure.
    eui64, nguid: identifiers in lower-case hexadecimal, "" where the namespace has none.
    """

    def __init__(self, controller: Controller, nsid: int, identify: IdentifyNamespace) -> None:
        self.controller = controller
        self.nsid = nsid
        self.identify = identify
        self.nsze = identify.nsze
        self.lba_size = identify.lba_size
        self.metadata_size = identify.metadata_size
        #: Of this very object, without keeping it: what `Lane.aim` worked out is for it.
        self.token = object()
        self._lanes = controller.lanes
        #: Set when a command that may change its format was sent: get the namespace again.
        self.stale = False
        self.eui64 = identify.eui64 if int(identify.eui64, 16) else ""
        self.nguid = identify.nguid if int(identify.nguid, 16) else ""

    def __repr__(self) -> str:
        return (
            f"<Namespace {self.controller.target} nsid={self.nsid} "
            f"{self.nsze} x {self.lba_size} bytes>"
        )

    @property
    def max_blocks(self) -> int:
        """Blocks that one command may move (MDTS, the PRP list, and 65536)."""
        return min(self.controller.max_transfer // self.lba_size, _MAX_NLB)

    def check_usable(self) -> None:
        """Raise `UnsupportedOnTransport` for a format that this driver would corrupt.

        And `InvalidRequestError` if this object may describe a format that is no more.
        """
        if self.stale:
            raise InvalidRequestError(
                f"namespace {self.nsid} may have been formatted or detached since it was looked at",
                device=self.controller.target,
                mend=f"get it again: ctrl.namespace({self.nsid}), and bind batches anew",
            )
        if self.lba_size > _MAX_LBA_SIZE:
            raise UnsupportedOnTransport(
                f"namespace {self.nsid} has blocks of {self.lba_size} bytes",
                device=self.controller.target,
                mend=f"blocks of up to {_MAX_LBA_SIZE} bytes are supported",
            )
        if self.metadata_size or self.identify.dps & 7:
            raise UnsupportedOnTransport(
                f"namespace {self.nsid} has metadata or protection information",
                device=self.controller.target,
                mend="format the namespace without it, or use the kernel's driver",
            )

    def read(
        self, lba: int, blocks: int, into: Buffer | None = None, *, timeout: float | None = None
    ) -> Buffer:
        """Read `blocks` blocks from `lba`; returns `into`, or a new buffer of that many bytes.

        Any length: transfers above `max_blocks` are split. Any thread may call it. `timeout`:
        seconds in which none of its commands completes, here and in `write` and `flush`; None:
        the controller's time limits, after which it aborts or resets and sends again what may be
        sent again (docs/recovery.md). Raises
        `LbaRangeError`, `BufferTooSmallError`, `BufferTypeError` before anything is sent;
        the `NvmeStatusError` of the first part that failed; `CommandTimeoutError`.
        """
        if into is not None and self._quick(READ, lba, blocks, into, timeout):
            return into
        lba, blocks, nbytes = self._check_range(lba, blocks)
        buffer = self.controller.alloc(nbytes) if into is None else self._check_into(into, nbytes)
        self._transfer(READ, lba, blocks, buffer, timeout=timeout)
        return buffer

    def write(
        self, lba: int, data: Buffer | Data, *, fua: bool = False, timeout: float | None = None
    ) -> None:
        """Write `data`, a multiple of the block size, at `lba`.

        A `Buffer` of this controller is sent as it is; anything else is copied into one first.
        `fua`: on the medium when it returns (Force Unit Access). Errors as `read`'s, and
        `AlignmentError` for a length that is no multiple of the block size.
        """
        if isinstance(data, Buffer):
            count, rest = divmod(data.nbytes, self.lba_size)
            opcode = WRITE | (FUA << 16 if fua else 0)
            if not rest and self._quick(opcode, lba, count, data, timeout):
                return
        source = self._check_data(data)
        lba, blocks, nbytes = self._check_range(lba, source.nbytes // self.lba_size)
        if isinstance(source, Buffer):
            buffer = source
        else:
            buffer = self.controller.alloc(nbytes)
            buffer[:] = np.frombuffer(source, np.uint8)
        self._transfer(WRITE, lba, blocks, buffer, control=FUA if fua else 0, timeout=timeout)

    def flush(self, *, timeout: float | None = None) -> None:
        """Make all completed writes of this namespace durable (Flush)."""
        with self.controller.lease_queue() as (queue, batch, _):
            batch.bind(self, None)
            batch.opcode[0] = FLUSH
            self._run(queue, batch, 1, timeout)

    # --- the same, awaited ------------------------------------------------------------------

    async def read_async(
        self, lba: int, blocks: int, into: Buffer | None = None, *, timeout: float | None = None
    ) -> Buffer:
        """`read`, awaited in a running event loop (docs/async.md).

        timeout: seconds without progress of this call, the wait for room in the queue included.
        Cancelled, it ends at once, and `into` stays in use until the device is done with it.
        Raises what `read` raises, and `ClosedError` if the controller is closed meanwhile.
        """
        queue = self.controller.async_queue()
        lba, blocks, nbytes = self._check_range(lba, blocks)
        buffer = None if into is None else self._check_into(into, nbytes)
        done = await queue.run(Transfer(self, READ, lba, blocks, buffer, timeout=timeout))
        return cast(Buffer, done)

    async def write_async(
        self, lba: int, data: Buffer | Data, *, fua: bool = False, timeout: float | None = None
    ) -> None:
        """`write`, awaited; see `read_async`.

        `data` must not change until it is done. What is no `Buffer` is copied when its turn has
        come, and not before: callers that wait hold no DMA memory.
        """
        queue = self.controller.async_queue()
        source = self._check_data(data)
        lba, blocks, _ = self._check_range(lba, source.nbytes // self.lba_size)
        control = FUA if fua else 0
        if isinstance(source, Buffer):
            transfer = Transfer(
                self, WRITE, lba, blocks, source, control=control, timeout=timeout
            )
        else:
            transfer = Transfer(
                self, WRITE, lba, blocks, None, source=source, control=control, timeout=timeout
            )
        await queue.run(transfer)

    async def flush_async(self, *, timeout: float | None = None) -> None:
        """`flush`, awaited: of writes that were awaited before; see `read_async`."""
        queue = self.controller.async_queue()
        self.check_usable()
        await queue.run(Transfer(self, FLUSH, 0, 1, None, timeout=timeout))

    # --- checks -----------------------------------------------------------------------------

    def prepare_write(self) -> None:
        """Raise `DeviceInUseError` or `PermissionDeniedError` if it cannot be written to.

        Only a namespace that the kernel drives can be in use elsewhere. The first write does it.
        """
        self.controller.backend.prepare_write(self.nsid)

    def _check_range(self, lba: int, blocks: int) -> tuple[int, int, int]:
        """(lba, blocks, bytes), as plain integers."""
        self.check_usable()
        try:
            lba, blocks = operator.index(lba), operator.index(blocks)
        except TypeError:
            # numpy would cut 1.5 to 1: offset / 512 is a float in Python, and another block
            raise InvalidRequestError(
                f"{blocks!r} blocks at {lba!r}",
                device=self.controller.target,
                mend="both are integers: divide with //",
            ) from None
        if blocks < 1:
            raise InvalidRequestError(
                f"{blocks} blocks", device=self.controller.target, mend="1 or more"
            )
        if lba < 0 or lba + blocks > self.nsze:
            raise LbaRangeError(
                f"blocks {lba} to {lba + blocks - 1} of namespace {self.nsid}",
                device=self.controller.target,
                mend=f"it has blocks 0 to {self.nsze - 1}",
            )
        return lba, blocks, blocks * self.lba_size

    def _check_into(self, into: Buffer, nbytes: int) -> Buffer:
        buffer = as_buffer(
            into, writable=True, device=self.controller.target, memory=self.controller.memory
        )
        if buffer.nbytes < nbytes:
            raise BufferTooSmallError(
                f"{nbytes // self.lba_size} blocks are {nbytes} bytes, the buffer has "
                f"{buffer.nbytes}",
                device=self.controller.target,
                mend="allocate a larger one (ctrl.alloc) or read fewer blocks",
            )
        return buffer

    def _check_data(self, data: Buffer | Data) -> Buffer | memoryview:
        """Whole blocks to write: DMA memory of this controller, or bytes to be copied there."""
        source = self._as_source(data)
        if source.nbytes % self.lba_size:
            raise AlignmentError(
                f"{source.nbytes} bytes are no multiple of the block size {self.lba_size}",
                device=self.controller.target,
                mend="pad the data to whole blocks",
            )
        return source

    def _as_source(self, data: Buffer | Data) -> Buffer | memoryview:
        device = self.controller.target
        if isinstance(data, Buffer):
            return as_buffer(data, writable=False, device=device, memory=self.controller.memory)
        if isinstance(data, np.ndarray) and not data.flags.c_contiguous:
            raise BufferTypeError(
                "the array is not C-contiguous",
                device=device,
                mend="pass numpy.ascontiguousarray(data)",
            )
        if isinstance(data, np.ndarray) and data.dtype.hasobject:
            raise BufferTypeError(
                f"an array of dtype {data.dtype} has no bytes of its own", device=device,
                mend="pass an array of numbers",
            )  # fmt: skip
        try:
            view = memoryview(cast(bytes, data)).cast("B")
        except (TypeError, ValueError) as e:
            raise BufferTypeError(
                f"{type(data).__name__} cannot be written: {e}", device=device,
                mend="pass bytes, a numpy array or a Buffer",
            ) from e  # fmt: skip
        if not len(view):
            raise InvalidRequestError("nothing to write", device=device)
        return view

    # --- one command in one call ----------------------------------------------------------------

    def _quick(
        self, opcode: int, lba: int, blocks: int, buffer: Buffer, timeout: float | None
    ) -> bool:
        """Transfer by one command if all is ready for it; False, with nothing done, if it is not.

        `opcode` has `control` in its bits 31:16. What is wrong is for the other way to find out.
        """
        try:
            token, allocation, target, number = buffer.aimed
            lane = self._lanes[number]
        except (AttributeError, IndexError):  # its first transfer: `_transfer` aims it; or closed
            return False
        flags = buffer.flags
        if (
            token is not self.token or self.stale
            or not (flags.carray if opcode == READ else flags.c_contiguous)
            # a wait of C is longer than a short time-out; what is no number at all, others refuse
            or not (timeout is None or (type(timeout) in (int, float) and timeout >= 1))
        ):  # fmt: skip
            return False
        uses = allocation.uses
        try:
            uses.append(lane)
            if allocation.freed:
                return False
            if type(lba) is not int or type(blocks) is not int:  # C would cut what is no float
                lba, blocks = operator.index(lba), operator.index(blocks)
            status: int = _run_lane(lane.c, target, opcode, lba, blocks)
            if status < 0:
                if status == BUSY or not lane.held(target):  # refused: nothing is in flight
                    return False
                status = lane.wait(
                    target, f"{_NAMES[opcode & 0xFF]} nsid={self.nsid}",
                    self.controller.backend.patience if timeout is None else timeout,
                )  # fmt: skip
        except BaseException as error:
            try:
                held = lane.held(target)
                lane.give_up(target, buffer)
            except BaseException:  # interrupted
                lane.give_up(target, buffer)
                raise
            if not held and isinstance(error, (TypeError, OverflowError)):
                return False  # no numbers that C could take
            raise
        finally:
            uses.pop()
        if status & STATUS_CODE:
            if may_retry(opcode & 0xFF, status):
                return False  # the other way sends it again
            raise error_from_status(
                status,
                command=f"{_NAMES[opcode & 0xFF]} nsid={self.nsid} slba={lba} nlb={blocks}",
                qid=lane.queue.qid,
                result=int(lane.c.done.result) & 0xFFFF_FFFF,
                device=self.controller.target,
            )
        return True

    # --- the transfer -------------------------------------------------------------------------

    def _transfer(
        self, opcode: int, lba: int, blocks: int, buffer: Buffer, *, control: int = 0,
        timeout: float | None,
    ) -> None:
        per = self.max_blocks
        if per < 1:
            raise ControllerStateError(
                f"one command moves {self.controller.max_transfer} bytes, less than a block",
                device=self.controller.target,
            )
        with self.controller.lease_queue() as (queue, batch, lane):
            batch.bind(self, buffer)
            batch.opcode[:] = opcode
            batch.control[:] = control
            done = 0
            while done < blocks:
                n = min(-(-(blocks - done) // per), batch.capacity)
                start = done + per * np.arange(n, dtype=np.uint64)
                batch.slba[:n] = start + lba
                batch.nlb[:n] = np.minimum(per, blocks - start)
                batch.offset[:n] = start * np.uint64(self.lba_size)
                self._run(queue, batch, n, timeout)
                done += n * per
            if blocks <= per:  # the next time it is one call
                lane.aim(self, buffer)

    def _run(self, queue: Queue, batch: Batch, count: int, timeout: float | None) -> None:
        """Submit rows 0 to count - 1 and wait for all of them; the first bad status raises.

        What may be sent again is, `RETRIES` times a call.
        """
        opcode = int(batch.opcode[0])
        what = f"{_NAMES[opcode]} nsid={self.nsid}"
        bad: tuple[int, int, int] | None = None
        if timeout is None:
            timeout = self.controller.backend.patience
        timeout = seconds(timeout, device=self.controller.target)
        retries = RETRIES
        try:
            submitted = queue.submit(batch, 0, count)
            left = count
            again: list[int] = []
            while left:
                if submitted < count:
                    submitted += queue.submit(batch, submitted, count - submitted)
                while again and queue.submit(batch, again[-1], 1):
                    again.pop()
                reaped = queue.reap(1, timeout=timeout)
                if not len(reaped):
                    reaped = queue.rescue()
                if not len(reaped):
                    if (submitted < count or again) and not queue.inflight:
                        continue  # commands that were given up came late, and made room
                    queue.give_up(batch, what, timeout)
                left -= len(reaped)
                for row in np.flatnonzero(reaped.status & STATUS_CODE):
                    index, status = int(reaped.user_data[row]), int(reaped.status[row])
                    if retries and bad is None and may_retry(opcode, status):
                        retries -= 1
                        left += 1
                        again.append(index)
                        time.sleep(delay(self.controller.identify, status))
                    elif bad is None or index < bad[0]:
                        bad = (index, status, int(reaped.result[row]))
        except BaseException:
            # Ctrl-C, a dead controller: what is still out must not complete into the next call
            if batch.inflight:
                with contextlib.suppress(ControllerError):
                    queue.quarantine(batch)
            raise
        if bad is not None:
            index, status, result = bad
            raise error_from_status(
                status,
                command=f"{what} slba={batch.slba[index]} nlb={batch.nlb[index]}",
                qid=queue.qid,
                result=result & 0xFFFF_FFFF,
                device=self.controller.target,
            )
