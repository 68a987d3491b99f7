"""A pool: host memory, mapped for one device at one contiguous IOVA.

Order is all here. Up: charge, memory, address, map. Down: unmap, address, uncharge, and the memory
last, because until `dma_unmap` has returned the device may still write into it.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

from udrv.errors import ClosedError, UdrvError
from udrv.fork import ForkGuard
from udrv.memory.host import HostMemory
from udrv.memory.iova import MAX_ALIGN, Extents, IovaAllocator
from udrv.memory.protocols import Ledger, Mapper

#: The kind under which DMA memory is charged to a `Ledger`; amounts are bytes.
DMA_BYTES = "dma_bytes"


class Pool:
    """One sealed memfd, mapped into this process and for the device; made by `DmaMemory`.

    Attributes
    ----------
    id: number of the pool, unique within its `DmaMemory` and never used again.
    size: bytes, a multiple of 2 MiB.
    address: virtual address of the first byte, page-aligned.
    huge: True if it lies on huge pages.
    device: the target's name, for messages.
    """

    def __init__(
        self,
        pool_id: int,
        size: int,
        *,
        mapper: Mapper,
        iovas: IovaAllocator,
        ledger: Ledger,
        huge_pages: bool | None,
        numa_node: int | None,
        device: str | None,
    ) -> None:
        self.id = pool_id
        self.size = size
        self.device = device
        self.guard = ForkGuard()
        #: Orders pins against `free`; a lock of its own, so that pinning never waits for a map.
        #: Re-entrant: a finaliser that runs inside of it may unpin something else.
        self.pin_lock = threading.RLock()
        #: Chunks handed out, by offset; under the lock of `DmaMemory`.
        self.chunks = Extents([(0, size)])
        self._mapper = mapper
        self._iovas = iovas
        self._ledger = ledger
        with ExitStack() as undo:
            ledger.charge(DMA_BYTES, size)
            undo.callback(ledger.uncharge, DMA_BYTES, size)
            self._host = HostMemory(
                "udrv-dma", size, huge_pages=huge_pages, numa_node=numa_node, device=device
            )
            undo.callback(self._host.discard)
            self.address = self._host.address
            self.huge = self._host.huge
            self._iova = iovas.alloc(size, align=MAX_ALIGN)
            try:
                mapper.dma_map(
                    fd=self._host.fd, offset=0, address=self.address, iova=self._iova, size=size
                )
            except UdrvError:  # the mapper's word that nothing is mapped
                iovas.free(self._iova)
                raise
            # After a Ctrl-C, or a signal handler that raised, nobody knows whether it is mapped.
            # The address is not given out again: if it is mapped, every later map would be
            # refused there, first fit as the search is.
            undo.pop_all()
        self._mapped = True

    def __repr__(self) -> str:
        state = f"iova={self._iova:#x}" if self._mapped else "closed"
        return f"<Pool {self.id} of {self.device}: {self.size} bytes, {state}>"

    @property
    def mapped(self) -> bool:
        """True until `unmap`: the device may reach the memory."""
        return self._mapped

    @property
    def iova(self) -> int:
        """The device's address of the first byte, a multiple of 2 MiB.

        Raises `ClosedError` after the memory was closed, `ForkedError` in a forked child.
        """
        self.check()
        return self._iova

    @property
    def fd(self) -> int:
        """The memfd; errors as of `iova`. Duplicate it to keep it."""
        self.check()
        return self._host.fd

    def check(self) -> None:
        """Raise `ForkedError` in a forked child, `ClosedError` once unmapped."""
        self.guard.check("DMA memory", self.device)
        if not self._mapped:
            raise ClosedError(
                "the DMA memory was closed, and with it every buffer in it",
                device=self.device,
                mend="finish I/O before closing; allocate from an open controller",
            )

    def unmap(self) -> None:
        """Take the memory away from the device; idempotent.

        If the mapper fails, the pool stays mapped, charged and in memory, and the error goes on:
        nobody knows what the device can still reach. A mapper that is closed itself is no failure:
        its maps are gone.
        """
        if not self._mapped:
            return
        try:
            self._mapper.dma_unmap(iova=self._iova, size=self.size)
        except ClosedError:
            pass
        self._mapped = False
        self._iovas.free(self._iova)
        self._ledger.uncharge(DMA_BYTES, self.size)

    def release(self) -> None:
        """After `unmap`: close the memfd. The mapping goes with the last view of it."""
        self._host.close()
