"""`DmaMemory`: the heap of one device."""

from __future__ import annotations

import operator
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from udrv.errors import ClosedError, DmaMemoryError, InvalidRequestError, UdrvError
from udrv.fork import ForkGuard
from udrv.memory.allocation import Allocation
from udrv.memory.buffer import Buffer, Region, buffer_over
from udrv.memory.host import STEP
from udrv.memory.iova import MAX_ALIGN, IovaAllocator, round_up
from udrv.memory.memlock import require_memlock
from udrv.memory.pool import Pool
from udrv.memory.protocols import Ledger, Mapper, NullLedger

#: Chunks start at, and are, multiples of a cache line: neighbours do not share one.
_GRANULE = 64

#: Pools that could not be unmapped when their heap died: kept, as a device may still write to them.
_STRANDED: list[Pool] = []


class DmaMemory:
    """Memory that one device can reach, in pools of 2 MiB and multiples, recycled.

    Parameters
    ----------
    mapper: maps for the device. One `DmaMemory` a mapper: it takes all IOVA ranges as its own.
    ledger: is told of every byte before it is mapped and after it is unmapped, as "dma_bytes".
    device: the target's name, for messages.
    check_memlock: look at RLIMIT_MEMLOCK before each pool (for the kernel's VFIO type 1).
    pool_size: bytes of an ordinary pool, a multiple of 2 MiB. Each pool costs a descriptor (two
        before Python 3.13) and an IOMMU map; for many large buffers choose more.
    huge_pages: None for huge pages where enough are reserved, True for those only, False for none.
    numa_node: the device's node, or None; a hint.

    Safe for threads. Chunks come back by finalisers, which take no lock; `alloc` collects them.
    """

    def __init__(
        self,
        mapper: Mapper,
        *,
        ledger: Ledger | None = None,
        device: str | None = None,
        check_memlock: bool = False,
        pool_size: int = STEP,
        huge_pages: bool | None = None,
        numa_node: int | None = None,
    ) -> None:
        self._guard = ForkGuard()
        self._pools: dict[int, Pool] = {}
        self._closed = False
        self.device = device
        if pool_size <= 0 or pool_size % STEP:
            raise InvalidRequestError(
                f"pools of {pool_size} bytes", device=device, mend=f"use a multiple of {STEP}"
            )
        self._mapper = mapper
        self._ledger: Ledger = NullLedger() if ledger is None else ledger
        self._check_memlock = check_memlock
        self._pool_size = pool_size
        self._huge_pages = huge_pages
        self._numa_node = numa_node
        self._iovas = IovaAllocator(mapper.iova_ranges, mapper.page_size, device=device)
        self._next_id = 0
        #: (pool id, offset) of dead allocations, appended by finalisers without the lock.
        self._returns: deque[tuple[int, int]] = deque()
        self._regions: dict[int, Allocation] = {}
        # Re-entrant so that a finaliser or signal handler that allocates inside of an allocation
        # meets an error (_exclusive) and not a deadlock.
        self._lock = threading.RLock()
        self._inside = False

    # --- allocation ------------------------------------------------------------------------------

    def alloc(self, nbytes: int, *, align: int = 4096, zero: bool = False) -> Buffer:
        """A `Buffer` of `nbytes` bytes, contiguous for the device.

        Parameters
        ----------
        nbytes: 1 and more; above the pool size it gets a pool of its own.
        align: power of two up to 2 MiB. The IOVA and the offset in the pool are multiples of it;
            the virtual address is so up to the page size.
        zero: clear it; otherwise it may hold what this process had there before.

        Raises `InvalidRequestError` (size, alignment), `MemlockError`, `DmaMemoryError`, whatever
        the ledger or the mapper raise, `ClosedError`, `ForkedError`.
        """
        buffer = buffer_over(self._allocate(nbytes, align))
        if zero:
            buffer.fill(0)
        return buffer

    def region(self, nbytes: int, align: int = 4096) -> Region:
        """The same for a driver's own structures, cleared, held until freed; errors as `alloc`."""
        allocation = self._allocate(nbytes, align)
        self._regions[id(allocation)] = allocation
        region = Region(allocation, self._forget)
        region.buffer().fill(0)
        return region

    def _forget(self, allocation: Allocation) -> None:
        if not self._guard.forked:
            self._regions.pop(id(allocation), None)

    def _allocate(self, nbytes: int, align: int) -> Allocation:
        try:
            # Not as they came: a numpy uint16 would round 65500 bytes up to 0.
            nbytes, align = operator.index(nbytes), operator.index(align)
        except TypeError as error:
            raise InvalidRequestError(
                f"{nbytes!r} bytes of DMA memory at a multiple of {align!r}",
                device=self.device,
                mend="both are integers",
            ) from error
        if nbytes < 1:
            raise InvalidRequestError(
                f"{nbytes} bytes of DMA memory", device=self.device, mend="ask for 1 or more"
            )
        if not 1 <= align <= MAX_ALIGN or align & (align - 1):
            raise InvalidRequestError(
                f"DMA memory at a multiple of {align}",
                device=self.device,
                mend=f"use a power of two from 1 to {MAX_ALIGN}",
            )
        size = round_up(nbytes, _GRANULE)
        align = max(align, _GRANULE)
        with self._exclusive():
            if self._closed:
                raise ClosedError(
                    "the DMA memory was closed", device=self.device, mend="open the device again"
                )
            self._collect()
            for pool in self._pools.values():
                offset = pool.chunks.take(size, align)
                if offset is not None:
                    return self._allocation(pool, offset, nbytes)
            pool = self._grow(round_up(max(size, self._pool_size), STEP))
            offset = pool.chunks.take(size, align)
            if offset is None:  # an empty pool at a multiple of the largest alignment has room
                raise DmaMemoryError(f"{size} bytes do not fit into {pool!r}", device=self.device)
            return self._allocation(pool, offset, nbytes)

    def _allocation(self, pool: Pool, offset: int, size: int) -> Allocation:
        return Allocation(pool, offset, size, owner=self, returns=self._returns)

    def _grow(self, size: int) -> Pool:
        try:
            pool = self._new_pool(size)
        except UdrvError:
            # A limit was met: pools that stand empty may be what fills it.
            if not self._trim():
                raise
            pool = self._new_pool(size)
        self._pools[pool.id] = pool
        return pool

    def _new_pool(self, size: int) -> Pool:
        if self._check_memlock:
            require_memlock(size, device=self.device)
        pool = Pool(
            self._next_id,
            size,
            mapper=self._mapper,
            iovas=self._iovas,
            ledger=self._ledger,
            huge_pages=self._huge_pages,
            numa_node=self._numa_node,
            device=self.device,
        )
        self._next_id += 1
        return pool

    # --- giving back -----------------------------------------------------------------------------

    def trim(self) -> int:
        """Unmap and release the pools that nothing uses; the bytes released."""
        with self._exclusive():
            self._collect()
            return self._trim()

    def _trim(self) -> int:
        released = 0
        for pool in [pool for pool in self._pools.values() if pool.chunks.empty]:
            pool.unmap()
            del self._pools[pool.id]
            pool.release()
            released += pool.size
        return released

    def _collect(self) -> None:
        while True:
            try:
                pool_id, offset = self._returns.popleft()
            except IndexError:
                return
            pool = self._pools.get(pool_id)
            if pool is not None:
                pool.chunks.give(offset)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._guard.check("DMA memory", self.device)
        with self._lock:
            if self._inside:
                raise DmaMemoryError(
                    "the DMA heap was entered again from a finaliser or a signal handler",
                    device=self.device,
                    mend="do not allocate, trim or close there",
                )
            self._inside = True
            try:
                yield
            finally:
                self._inside = False

    # --- state -----------------------------------------------------------------------------------

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools mapped now, in the order of their making."""
        return tuple(self._pools.values())

    @property
    def mapped_bytes(self) -> int:
        """Bytes that the device can reach."""
        return sum(pool.size for pool in self.pools)

    @property
    def used_bytes(self) -> int:
        """Bytes in chunks that are handed out, rounded up to cache lines."""
        with self._exclusive():
            self._collect()
            return sum(pool.chunks.used_bytes for pool in self.pools)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Take all memory away from the device, then give it back; idempotent.

        Call it when the controller is disabled, or after a reset. Pins do not stop it: a returned
        unmap is the proof that the device is done. Arrays (and pins) that are still alive keep
        their bytes in this process; their `iova` raises `ClosedError`. In a forked child it does
        nothing.

        If an unmap fails, the others are still done, the pool in question is kept with its memory,
        and the first error is raised; closing again tries again.
        """
        if self._guard.forked:
            return
        with self._exclusive():
            self._closed = True
            failed: list[Exception] = []
            unmapped: list[Pool] = []
            for pool in list(self._pools.values()):
                try:
                    pool.unmap()
                except Exception as error:  # noqa: BLE001 - raised below, when all were tried
                    failed.append(error)
                if not pool.mapped:
                    del self._pools[pool.id]
                    unmapped.append(pool)
            for pool in unmapped:
                pool.release()
            if not failed:
                self._regions.clear()
        if failed:
            raise failed[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end the kernel unmaps, when it closes the device's files; modules
        # may be None by then.
        if sys is None or sys.is_finalizing() or self._guard.forked or not self._pools:
            return
        warnings.warn(
            f"{self.device}: DMA memory was not closed", ResourceWarning, stacklevel=2, source=self
        )
        try:
            self.close()
        except Exception:
            _STRANDED.extend(self._pools.values())
            raise
