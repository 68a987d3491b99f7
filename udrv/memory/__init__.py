"""DMA memory: sealed memfd pools, I/O virtual addresses, and numpy views of both.

`DmaMemory` is a device's heap. It grows by pools (`Pool`): memory in a memfd, mapped into this
process and, through a `Mapper`, for the device, at one contiguous IOVA each. `alloc` gives
`Buffer`s (numpy arrays) for data, `region` gives `Region`s for a driver's own structures. The
rules:

- memory is mapped for the device before anyone sees it, and unmapped before it is freed;
- a chunk is handed out again only when no array shows it and no pin holds it;
- whatever fails half-way leaves nothing behind;
- I/O never looks anything up: an IOVA is the pool's plus an offset.
"""

from udrv.memory.allocation import Pin
from udrv.memory.buffer import Buffer, Region, as_buffer
from udrv.memory.heap import DmaMemory
from udrv.memory.iova import IovaAllocator
from udrv.memory.memlock import require_memlock
from udrv.memory.pool import DMA_BYTES, Pool
from udrv.memory.protocols import Ledger, Mapper, NullLedger

__all__ = [
    "DMA_BYTES",
    "Buffer",
    "DmaMemory",
    "IovaAllocator",
    "Ledger",
    "Mapper",
    "NullLedger",
    "Pin",
    "Pool",
    "Region",
    "as_buffer",
    "require_memlock",
]
