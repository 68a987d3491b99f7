"""Batches of commands and their completions, as numpy columns.

The columns are allocated once and C holds their addresses: a submit or a reap of any size is one
C call that touches no Python object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import numpy as np
import numpy.typing as npt

from udrv.core import ffi
from udrv.errors import BufferTypeError, InvalidRequestError, QueueBusyError
from udrv.memory import Buffer, as_buffer
from udrv.nvme.spec.opcodes import IoOpcode

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace
    from udrv.nvme.queue import Queue

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

READ = int(IoOpcode.READ)
WRITE = int(IoOpcode.WRITE)
FLUSH = int(IoOpcode.FLUSH)

#: CDW12 31:16, as in the `control` column (NVM Command Set 1.0, "Read", "Write").
FUA = 1 << 14
LIMITED_RETRY = 1 << 15

#: SCT and SC, as in the `status` column: 0 is success, whatever CRD, M and DNR say.
STATUS_CODE = 0x7FF

_NO_SLOT = 0xFFFF  # refused by C


#: `struct udrv_command` and `struct udrv_completion` of qp.h: a row is half a cache line.
COMMAND = np.dtype(
    {
        "names": ["slba", "offset", "user_data", "nlb", "control", "opcode"],
        "formats": ["<u8", "<u8", "<u8", "<u4", "<u2", "u1"],
        "offsets": [0, 8, 16, 24, 28, 30],
        "itemsize": 32,
    }
)
COMPLETION = np.dtype(
    {
        "names": ["user_data", "result", "latency_ns", "status"],
        "formats": ["<u8", "<u8", "<u8", "<u2"],
        "offsets": [0, 8, 16, 24],
        "itemsize": 32,
    }
)


_COLUMNS = frozenset((*(COMMAND.names or ()), "rows"))
_OTHERS = frozenset(("c", "queue", "capacity", "slot", "namespace", "buffer", "uses"))


def _address(ctype: str, rows: npt.NDArray[Any]) -> Any:
    """C's pointer to rows; the object that holds the pointer holds the rows, too."""
    return ffi.cast(ctype, rows.ctypes.data)


class Batch:
    """Columns of `capacity` commands on one namespace and one buffer.

    Fill in the columns, then `Queue.submit(batch)`. They are read during that call only and may be
    filled again at once; the buffer belongs to the device until the completions were reaped, and
    stays allocated for as long as a command may touch it, whatever happens to this object.

    Attributes (numpy, one element a command; views with a stride of 32 bytes of `rows`)
    ----------
    opcode: uint8, `READ` (to start with), `WRITE` or `FLUSH`, of `udrv.nvme`.
    slba: uint64, first block; 0 to start with.
    nlb: uint32, blocks, 1 (to start with) to 65536: a count, not the specification's 0's based
        value.
    offset: uint64, byte offset of the data in the buffer, a multiple of 4; 0 to start with.
    user_data: uint64, returned with the completion; 0, 1, 2, ... to start with.
    control: uint16, CDW12 31:16 (`FUA`, `LIMITED_RETRY`); 0 to start with.
    rows: all of it, one `struct udrv_command` (`COMMAND`) a command.
    """

    def __init__(self, queue: Queue, capacity: int, slot: int) -> None:
        if capacity < 1:
            raise InvalidRequestError(
                f"a batch of {capacity} commands", device=queue.device, mend="1 or more"
            )
        #: The `struct udrv_batch *` that C reads.
        self.c: Any = ffi.new("struct udrv_batch *")
        self.queue = queue
        self.capacity = capacity
        self.slot = slot
        self.rows: npt.NDArray[np.void] = np.zeros(capacity, COMMAND)
        self.opcode: U8 = self.rows["opcode"]
        self.slba: U64 = self.rows["slba"]
        self.nlb: U32 = self.rows["nlb"]
        self.offset: U64 = self.rows["offset"]
        self.user_data: U64 = self.rows["user_data"]
        self.control: U16 = self.rows["control"]
        self.opcode[:] = READ
        self.nlb[:] = 1
        self.user_data[:] = np.arange(capacity, dtype=np.uint64)
        self.namespace: Namespace | None = None
        self.buffer: Buffer | None = None
        #: An element for each call that is inside of C with this batch. `Queue` appends before C
        #: looks at `c.slot`; what changes `c` looks at this first and then makes C refuse it.
        self.uses: list[object] = []
        self.c.capacity = capacity
        self.c.slot = slot
        self.c.commands = _address("struct udrv_command *", self.rows)

    def __setattr__(self, name: str, value: object) -> None:
        # C would go on reading the old column
        if name in _COLUMNS and self.__dict__.get(name, value) is not value:
            raise BufferTypeError(
                f"the column {name} of a batch was replaced",
                device=self.queue.device,
                mend=f"assign to its elements: batch.{name}[:] = ...",
            )
        if name not in _COLUMNS and name not in _OTHERS:  # a misspelt column would change nothing
            raise InvalidRequestError(
                f"a batch has no column {name!r}",
                device=self.queue.device,
                mend=f"it has {', '.join(COMMAND.names or ())}",
            )
        object.__setattr__(self, name, value)

    @property
    def inflight(self) -> int:
        """Commands of this batch that the device may still touch."""
        return self.queue.slot_inflight(self.slot)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody submits it meanwhile: C would take the old buffer, which is let go of."""
        self.queue.check_rebind(self)
        self.check_unused()
        self.c.slot = _NO_SLOT
        try:
            self.queue.check_rebind(self)
            yield
        finally:
            if self.slot >= 0:
                self.c.slot = self.slot

    def check_unused(self) -> None:
        """Raise `QueueBusyError` while another thread submits or changes it; used by `Queue`."""
        if self.uses or (self.slot >= 0 and self.c.slot == _NO_SLOT):
            raise QueueBusyError(
                f"another thread submits or changes this batch of queue {self.queue.qid}",
                device=self.queue.device,
                mend="a batch is one thread's at a time",
            )

    def bind(self, namespace: Namespace, buffer: Buffer | None) -> None:
        """Aim the batch at another namespace or buffer (None: flushes only).

        Raises `BufferInUseError` while commands are in flight, `BufferTypeError` for memory that
        is not DMA memory of this controller, `QueueBusyError` while another thread submits it.
        """
        with self._changing():
            self._bind(namespace, buffer)

    def _bind(self, namespace: Namespace, buffer: Buffer | None) -> None:
        owner = getattr(namespace, "controller", None)
        if owner is None or owner.memory is not self.queue.memory:
            # its NSID would be another namespace here, and its size another limit
            raise InvalidRequestError(
                f"{namespace!r} is no namespace of this controller",
                device=self.queue.device,
                mend="take it from the controller that the queue belongs to",
            )
        namespace.check_usable()
        c = self.c
        c.len = 0  # until the new buffer is held, no data: an exception may come at any line
        if buffer is not None:
            # data may flow either way: the opcodes are not known yet
            buffer = as_buffer(
                buffer, writable=True, device=self.queue.device, memory=self.queue.memory
            )
        self.queue.pair.aim(c, namespace, buffer)
        c.nsid = namespace.nsid
        c.lba_shift = namespace.lba_size.bit_length() - 1
        c.nsze = namespace.nsze
        self.queue.hold_buffer(self.slot, buffer)
        if buffer is not None:
            c.len = buffer.nbytes
        self.namespace = namespace
        self.buffer = buffer

    def unbind(self) -> None:
        """Let go of the buffer; errors as of `bind`."""
        with self._changing():
            self.c.len = 0
            self.queue.hold_buffer(self.slot, None)
            self.buffer = None

    def close(self) -> None:
        """Give the slot back; the buffer is let go when its last command is done.

        Raises `QueueBusyError` while another thread submits it.
        """
        if self.slot >= 0:
            self.check_unused()
            self.c.slot = _NO_SLOT
            slot, self.slot = self.slot, -1
            self.queue.drop_slot(slot)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # a copy would have the same slot, and let go of it when it dies
        raise TypeError("a batch has a slot of its queue: it can be neither copied nor pickled")

    def __del__(self) -> None:
        if getattr(self, "slot", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        return f"<Batch of {self.capacity} commands, of {self.queue!r}>"

    def __len__(self) -> int:
        return self.capacity


class Completions:
    """Columns that a reap fills; rows 0 to n-1 of the last reap are valid. C writes them.

    Attributes (numpy, one element a completion; views with a stride of 32 bytes)
    ----------
    user_data: uint64, as submitted.
    status: uint16, CQE DW3 31:17: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14; 0 is success.
    result: uint64, DW0 and, in the upper half, DW1.
    latency_ns: uint64, doorbell write to the reap that saw the completion.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        rows = np.zeros(capacity, COMPLETION)
        self._rows: Any = _address("struct udrv_completion *", rows)
        rows.flags.writeable = False
        self.user_data: U64 = rows["user_data"]
        self.status: U16 = rows["status"]
        self.result: U64 = rows["result"]
        self.latency_ns: U64 = rows["latency_ns"]
        self.c: Any = self.c_from(0)

    def c_from(self, row: int) -> Any:
        """A `struct udrv_completions *` whose first row is `row` of these columns."""
        if not 0 <= row <= self.capacity:
            raise InvalidRequestError(f"row {row} of {self.capacity} completions")
        c = ffi.new("struct udrv_completions *")
        c.capacity = self.capacity - row
        c.rows = self._rows + row
        return c


class Reaped:
    """What one reap delivered: read-only views of its rows, overwritten by the next reap.

    The columns are those of `Completions`; each is made when it is asked for.
    """

    __slots__ = ("_completions", "_count")

    def __init__(self, completions: Completions, count: int) -> None:
        self._completions = completions
        self._count = count

    @property
    def user_data(self) -> U64:
        """uint64, as submitted."""
        return self._completions.user_data[: self._count]

    @property
    def status(self) -> U16:
        """uint16, CQE DW3 31:17; 0 is success."""
        return self._completions.status[: self._count]

    @property
    def result(self) -> U64:
        """uint64, DW0 and, in the upper half, DW1."""
        return self._completions.result[: self._count]

    @property
    def latency_ns(self) -> U64:
        """uint64, doorbell write to the reap that saw the completion."""
        return self._completions.latency_ns[: self._count]

    def __repr__(self) -> str:
        return f"<Reaped, {self._count} completions>"

    def __len__(self) -> int:
        return self._count
