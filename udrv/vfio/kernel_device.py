# SPDX-License-Identifier: Apache-2.0
"""A PCI function behind the kernel's VFIO, once its device descriptor is there.

The same for a type 1 container and for iommufd: both end in one descriptor with the same ioctls.
What they did to get it is undone by the `ExitStack` that they hand over (`own`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import threading
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from udrv.core import sigbus
from udrv.core._core import lib
from udrv.errors import (
    ClosedError,
    ForkedError,
    InvalidRequestError,
    UnsupportedOnTransport,
    VfioError,
)
from udrv.vfio import abi
from udrv.vfio.device import CONFIG, ERR, REQ, Departure, IrqInfo, RegionInfo
from udrv.vfio.kernel_errors import call_error
from udrv.vfio.kernel_mapper import KernelMapper

#: PCI command register (PCI Local Bus Specification 3.0, 6.2.2), and its Bus Master bit.
_PCI_COMMAND = 0x04
_PCI_COMMAND_MASTER = 1 << 2


class KernelMappedArea:
    """A part of a BAR, mapped until `close`. See `udrv.vfio.device.MappedArea`."""

    def __init__(self, mapping: abi.Mapping, offset: int, size: int, lead: int) -> None:
        self._mapping = mapping
        self._watch = sigbus.watch(mapping.address, lead + size)
        self._offset = offset
        self._size = size
        self._lead = lead
        self._closed = False
        self._owner = os.getpid()

    @property
    def offset(self) -> int:
        """Byte offset of the first mapped byte in its region."""
        return self._offset

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return self._size

    @property
    def address(self) -> int:
        """Virtual address of the first mapped byte. Raises `ClosedError`, `ForkedError`."""
        if os.getpid() != self._owner:
            raise ForkedError(
                "the mapped registers belong to the parent process",
                mend="open the device in the process that uses it",
            )
        if self._closed:
            raise ClosedError("the area is unmapped", mend="map it again")
        return self._mapping.address + self._lead

    @property
    def gone(self) -> bool:
        """Whether the BAR vanished: revoked, its device removed, asleep or switched off."""
        return self._watch.gone

    def close(self) -> None:
        """Unmap; idempotent, and nothing in a forked child."""
        if not self._closed and os.getpid() == self._owner:
            self._closed = True
            self._watch.close()
            self._mapping.close()


class KernelDevice:
    """The `udrv.vfio.device.Device` of the kernel's VFIO. Made by `udrv.vfio.kernel.open_vfio`.

    Every method raises `ClosedError` after `close`, `ForkedError` in a forked child (whose
    `close` does nothing), `DeviceGoneError` for an unplugged device.
    """

    def __init__(
        self, *, calls: abi.Calls, fd: int, name: str, transport: str, numa_node: int | None,
        mapper: KernelMapper,
    ) -> None:
        self._closed = True  # until `own`, so that __del__ leaves a half-made object alone
        self._calls = calls
        self._fd = fd
        self._name = name
        self._transport = transport
        self._numa_node = numa_node
        self._mapper = mapper
        self._undo = contextlib.ExitStack()
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._regions: dict[int, abi.Region] = {}
        self._areas: list[KernelMappedArea] = []
        self._armed: set[int] = set()
        self._departures: list[int] = []
        try:
            self._info = abi.device_info(calls, fd)
        except OSError as error:
            raise call_error(error, "VFIO_DEVICE_GET_INFO", name) from error
        if not self._info.flags & lib.VFIO_DEVICE_FLAGS_PCI:
            raise VfioError("it is no PCI device", device=name, mend="name a PCI function")

    def own(self, undo: contextlib.ExitStack) -> None:
        """Take over what opening stacked up; from now on `close` undoes it. For the openers."""
        self._undo = undo
        self._closed = False

    @property
    def name(self) -> str:
        """"pci:0000:01:00.0"."""
        return self._name

    @property
    def transport(self) -> str:
        """"vfio" (type 1) or "vfio-iommufd"."""
        return self._transport

    @property
    def numa_node(self) -> int | None:
        """The device's NUMA node, None where unknown."""
        return self._numa_node

    @property
    def mapper(self) -> KernelMapper:
        """Maps memory for the device's DMA."""
        return self._mapper

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def region_info(self, index: int) -> RegionInfo:
        """Raise `VfioError` for an index that the device does not have."""
        return self._region(index).info

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of a region; 1, 2 or 4 aligned bytes are one access.

        Raises `InvalidRequestError` outside of the region, `VfioError`.
        """
        region = self._within(index, offset, size)
        try:
            data = self._calls.pread(self._fd, size, region.file_offset + offset)
        except OSError as error:
            raise call_error(
                error, f"reading {size} bytes at {offset:#x} of region {index}", self._name
            ) from error
        if len(data) != size:
            raise VfioError(
                f"region {index} gave {len(data)} of {size} bytes at {offset:#x}",
                device=self._name, mend="read within one register",
            )
        return data

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write a region, likewise."""
        region = self._within(index, offset, len(data))
        try:
            done = self._calls.pwrite(self._fd, data, region.file_offset + offset)
        except OSError as error:
            raise call_error(
                error, f"writing {len(data)} bytes at {offset:#x} of region {index}", self._name
            ) from error
        if done != len(data):
            raise VfioError(
                f"region {index} took {done} of {len(data)} bytes at {offset:#x}",
                device=self._name, mend="write within one register",
            )

    def mmap_area(self, index: int, offset: int, size: int) -> KernelMappedArea:
        """Map a part of a region; any byte range, pages are rounded inside.

        Raises `UnsupportedOnTransport` if any byte of it lies outside of `mmap_areas`.
        """
        region = self._within(index, offset, size)
        lead = offset % mmap.PAGESIZE
        start, length = offset - lead, -(-(lead + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        inside = any(
            at <= start and offset + size <= at + room for at, room in region.info.mmap_areas
        )
        if not inside:
            raise UnsupportedOnTransport(
                f"bytes {offset:#x} to {offset + size - 1:#x} of region {index} cannot be mapped",
                device=self._name, mend="map within region_info(index).mmap_areas, or use "
                "read and write",
            )
        writable = bool(region.info.flags & lib.VFIO_REGION_INFO_FLAG_WRITE)
        with self._lock:
            self._check_open()
            try:
                mapping = self._calls.mmap(
                    self._fd, region.file_offset + start, length, writable=writable
                )
            except OSError as error:
                raise call_error(error, f"mapping region {index}", self._name) from error
            try:
                area = KernelMappedArea(mapping, offset, size, lead)
            except BaseException:
                mapping.close()
                raise
            self._areas.append(area)
        return area

    def irq_info(self, index: int) -> IrqInfo:
        """Raise `VfioError` for an index that the device does not have."""
        self._check_open()
        try:
            return abi.irq_info(self._calls, self._fd, index)
        except OSError as error:
            raise call_error(error, f"asking for interrupt index {index}", self._name) from error

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        """Arm vectors 0..len-1 of the index with these eventfds (-1: leave a vector off).

        Replaces what was armed before on that index; an interrupt in the moment between is lost,
        so look at the queues afterwards. Raises `InvalidRequestError` for more eventfds than
        vectors, `VfioError`.
        """
        count = self.irq_info(index).count
        if len(eventfds) > count:
            raise InvalidRequestError(
                f"{len(eventfds)} eventfds for the {count} vectors of interrupt index {index}",
                device=self._name, mend="share vectors between queues",
            )
        with self._lock:
            # Vectors cannot be added while armed (VFIO_IRQ_INFO_NORESIZE), and arming a part
            # would leave the others as they were.
            self.disable_irqs(index)
            if not eventfds:
                return
            try:
                fewer = abi.set_irqs(self._calls, self._fd, index, eventfds)
            except OSError as error:
                raise call_error(
                    error, f"arming {len(eventfds)} vectors of interrupt index {index}",
                    self._name,
                ) from error
            if fewer > 0:
                raise VfioError(
                    f"the system has only {fewer} of {len(eventfds)} interrupt vectors left",
                    device=self._name, mend="share vectors between queues",
                )
            self._armed.add(index)

    def disable_irqs(self, index: int) -> None:
        """Disarm all vectors of the index; nothing if none is armed."""
        with self._lock:
            self._check_open()
            if index not in self._armed:
                return
            try:
                abi.set_irqs(self._calls, self._fd, index, ())
            except OSError as error:
                raise call_error(
                    error, f"disarming interrupt index {index}", self._name
                ) from error
            self._armed.discard(index)

    def departures(self) -> Sequence[Departure]:
        """VFIO's request (unbind, hot removal: the kernel waits for `close`) and error eventfds.

        Nothing for an interrupt index that the kernel does not have.
        """
        found = []
        # a process without descriptors left can do without: it is closed when its user does
        for index, reason, orderly in (
            (REQ, "the kernel asks for it back (unbind or removal)", True),
            (ERR, "PCI Express reported an uncorrectable error", False),
        ):
            with self._lock:
                try:
                    if self.irq_info(index).count < 1:
                        continue
                    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                except (VfioError, OSError):
                    continue
                self._departures.append(fd)
                try:
                    self.set_irqs(index, [fd])
                except VfioError:
                    continue
            found.append(Departure(fd, select.POLLIN, reason, orderly))
        return found

    def reset(self) -> None:
        """Function-level reset; returns when the device let go of memory.

        Interrupts stay armed and maps stay. Raises `UnsupportedOnTransport` if the function has
        no reset, `VfioError` (EAGAIN: another reset is under way on its bus).
        """
        self._check_open()
        if not self._info.flags & lib.VFIO_DEVICE_FLAGS_RESET:
            raise UnsupportedOnTransport(
                "the function has no reset of its own", device=self._name,
                mend="disable the controller by its registers instead",
            )
        try:
            abi.reset(self._calls, self._fd)
        except OSError as error:
            raise call_error(error, "VFIO_DEVICE_RESET", self._name) from error

    def set_bus_master(self, enable: bool) -> None:
        """Set or clear bus mastering in the PCI command register: without it no DMA, no MSI."""
        with self._lock:
            command = int.from_bytes(self.read(CONFIG, _PCI_COMMAND, 2), "little")
            wanted = command & ~_PCI_COMMAND_MASTER | (_PCI_COMMAND_MASTER if enable else 0)
            if wanted != command:
                self.write(CONFIG, _PCI_COMMAND, wanted.to_bytes(2, "little"))

    def close(self) -> None:
        """Stop DMA, disarm, unmap, close; idempotent. Nothing in a forked child.

        When it returns, the device's DMA maps are gone. A device that is gone closes as well.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._closed:
                return
            # DMA first: memory is unmapped below, and a device that still writes to it would
            # fault in the IOMMU. No step may keep the next from being done.
            with contextlib.suppress(Exception):
                self.set_bus_master(False)
            for index in tuple(self._armed):
                with contextlib.suppress(Exception):
                    self.disable_irqs(index)
            for area in self._areas:
                with contextlib.suppress(BufferError):
                    area.close()
            while self._departures:
                os.close(self._departures.pop())
            self._closed = True
            # What opening stacked up, in reverse: maps, device, container, group.
            self._undo.close()

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
        if not getattr(self, "_closed", True) and os.getpid() == self._owner:
            warnings.warn(
                f"{self._name} was not closed", ResourceWarning, stacklevel=1, source=self
            )
            self.close()

    def _check_open(self) -> None:
        if os.getpid() != self._owner:
            raise ForkedError(
                "the device belongs to the parent process", device=self._name,
                mend="open it in the process that uses it",
            )
        if self._closed:
            raise ClosedError("the device is closed", device=self._name, mend="open it again")

    def _region(self, index: int) -> abi.Region:
        self._check_open()
        region = self._regions.get(index)
        if region is None:
            try:
                region = abi.region(self._calls, self._fd, index)
            except OSError as error:
                raise call_error(error, f"asking for region {index}", self._name) from error
            except ValueError as error:
                raise VfioError(
                    f"the kernel describes region {index} with {error}", device=self._name,
                    mend="report it, with the kernel's version",
                ) from error
            self._regions[index] = region
        return region

    def _within(self, index: int, offset: int, size: int) -> abi.Region:
        region = self._region(index)
        if offset < 0 or size <= 0 or offset + size > region.info.size:
            raise InvalidRequestError(
                f"{size} bytes at {offset:#x} are not within the {region.info.size} bytes of "
                f"region {index}", device=self._name, mend="see region_info(index).size",
            )
        return region
