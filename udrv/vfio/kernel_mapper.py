# SPDX-License-Identifier: Apache-2.0
"""DMA maps through the kernel: what type 1 containers and iommufd have in common."""

from __future__ import annotations

import abc
import contextlib
import mmap
import os
import threading

from udrv.errors import (
    AlignmentError,
    ClosedError,
    ForkedError,
    InvalidRequestError,
    VfioError,
)
from udrv.pci import HOST, Host
from udrv.vfio import abi
from udrv.vfio.kernel_errors import call_error, map_error

#: Without the IOVA range capability (before Linux 5.4): what every IOMMU translates. On x86 the
#: window from 0xfee00000 belongs to interrupts, so the range ends below it.
_OLD_KERNEL_RANGES = ((0, 0xFEDF_FFFF),)


class KernelMapper(abc.ABC):
    """A `Mapper` that remembers its maps, so that closing the device can undo them all.

    Safe to use from several threads. After `close` there is nothing mapped, so `dma_unmap`
    returns at once and `dma_map` raises `ClosedError`.
    """

    #: Whether the kernel charges maps to the process's pinned memory (iommufd), not locked memory.
    _pinned = False

    def __init__(
        self, calls: abi.Calls, target: str, ranges: tuple[tuple[int, int], ...],
        page_size: int, host: Host = HOST,
    ) -> None:
        self._calls = calls
        self._target = target
        self._ranges = tuple(sorted(ranges))
        self._page_size = page_size
        self._host = host
        self._maps: dict[int, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._owner = os.getpid()

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Usable I/O virtual addresses, (first, last) inclusive, ascending."""
        return self._ranges

    @property
    def page_size(self) -> int:
        """Bytes; IOVA, address and size of a map are multiples of it."""
        return self._page_size

    @property
    def mapped_bytes(self) -> int:
        """Bytes mapped now."""
        with self._lock:
            return sum(self._maps.values())

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        """Map `size` bytes at virtual `address` to `iova`, for reading and writing.

        `fd` and `offset` say what memory that is; the kernel finds it by its address.

        Raises `AlignmentError`, `InvalidRequestError` (outside of `iova_ranges`, or over another
        map), `MemlockError`, `DmaMemoryError`, `VfioError`, `ClosedError`, `ForkedError`.
        """
        self._check_range(address, iova, size)
        with self._lock:
            self._check_owner()
            if self._closed:
                raise ClosedError("the device is closed", device=self._target, mend="open it again")
            try:
                self._map(address, iova, size)
            except OSError as error:
                raise map_error(
                    error, self._target, iova=iova, size=size, pinned=self._pinned,
                    host=self._host,
                ) from error
            self._maps[iova] = size

    def dma_unmap(self, *, iova: int, size: int) -> None:
        """Undo one `dma_map` exactly; when it returns, the device cannot reach the memory.

        Raises `InvalidRequestError` if there is no such map, `VfioError` if the kernel unmapped
        anything else than all of it, `ForkedError`.
        """
        with self._lock:
            self._check_owner()
            if self._closed:
                return
            if self._maps.get(iova) != size:
                raise InvalidRequestError(
                    f"there is no map of {size} bytes at IOVA {iova:#x}", device=self._target,
                    mend="unmap what was mapped: one dma_unmap for each dma_map",
                )
            try:
                done = self._unmap(iova, size)
            except OSError as error:
                raise call_error(
                    error, f"unmapping {size} bytes at IOVA {iova:#x}", self._target
                ) from error
            if done != size:
                raise VfioError(
                    f"the kernel unmapped {done} of {size} bytes at IOVA {iova:#x}",
                    device=self._target, mend="close the device: that ends all its maps",
                )
            del self._maps[iova]

    def close(self) -> None:
        """Unmap whatever is still mapped; idempotent, never raises for a device that is gone."""
        with self._lock:
            if self._closed or os.getpid() != self._owner:
                return
            self._closed = True
            for iova, size in self._maps.items():
                # An error here leaves the map to the close of the descriptors, which ends it.
                with contextlib.suppress(OSError):
                    self._unmap(iova, size)
            self._maps.clear()

    @abc.abstractmethod
    def _map(self, address: int, iova: int, size: int) -> None:
        """The system call; raises `OSError`."""

    @abc.abstractmethod
    def _unmap(self, iova: int, size: int) -> int:
        """The system call; returns the bytes unmapped, raises `OSError`."""

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ForkedError(
                "the device belongs to the parent process", device=self._target,
                mend="open it in the process that uses it",
            )

    def _check_range(self, address: int, iova: int, size: int) -> None:
        if size <= 0 or any(value % self._page_size for value in (address, iova, size)):
            raise AlignmentError(
                f"address {address:#x}, IOVA {iova:#x} or size {size} is no positive multiple of "
                f"the IOMMU's page of {self._page_size} bytes", device=self._target,
                mend="map whole pages",
            )
        if not any(first <= iova and iova + size - 1 <= last for first, last in self._ranges):
            listed = ", ".join(f"{first:#x}-{last:#x}" for first, last in self._ranges)
            raise InvalidRequestError(
                f"{size} bytes at IOVA {iova:#x} lie outside of what the IOMMU translates "
                f"({listed})", device=self._target, mend="choose an IOVA within iova_ranges",
            )


class Type1Mapper(KernelMapper):
    """Maps of a VFIO container with a type 1 version 2 IOMMU."""

    def __init__(self, calls: abi.Calls, container: int, target: str, host: Host = HOST) -> None:
        info = abi.type1_info(calls, container)
        # The IOMMU may know smaller pages than the CPU, but memory is pinned by the CPU's.
        smallest = info.page_sizes & -info.page_sizes if info.page_sizes else 0
        ranges = info.iova_ranges if info.iova_ranges is not None else _OLD_KERNEL_RANGES
        super().__init__(calls, target, ranges, max(smallest, mmap.PAGESIZE), host)
        self._container = container

    def _map(self, address: int, iova: int, size: int) -> None:
        abi.type1_map(self._calls, self._container, address=address, iova=iova, size=size)

    def _unmap(self, iova: int, size: int) -> int:
        return abi.type1_unmap(self._calls, self._container, iova=iova, size=size)
