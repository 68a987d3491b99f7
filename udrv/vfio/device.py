"""What a driver needs from a device, whoever provides it.

`udrv.vfio.kernel` (a PCI function behind the kernel's VFIO) and `udrv.vfio.user` (a device served
by another process over vfio-user) both give a `Device`; `udrv.nvme` knows nothing else. Nouns and
indexes are those of <linux/vfio.h>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

from udrv.memory import Mapper

#: Region indexes of a PCI device (VFIO_PCI_*_REGION_INDEX).
BAR0 = 0
CONFIG = 7

#: Interrupt indexes of a PCI device (VFIO_PCI_*_IRQ_INDEX).
INTX = 0
MSI = 1
MSIX = 2
ERR = 3
REQ = 4


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """One region: a BAR, the ROM or configuration space.

    `mmap_areas` are the (offset, size) parts that may be mapped: the whole region, or the areas
    of VFIO_REGION_INFO_CAP_SPARSE_MMAP, or none. Sizes are bytes; `flags` are VFIO_REGION_INFO_*.
    """

    index: int
    flags: int
    size: int
    mmap_areas: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """One interrupt index: `count` vectors; `flags` are VFIO_IRQ_INFO_*."""

    index: int
    flags: int
    count: int


@dataclass(frozen=True, slots=True)
class PostedWrite:
    """A 32-bit register that is written by sending `message` on the stream socket `fd`.

    The value goes into `message` at byte `value_at`, in host byte order. Nothing is answered, as
    nothing is to a store to a mapped register. `fd` is the device's.
    """

    fd: int
    message: bytes
    value_at: int


@runtime_checkable
class PostsWrites(Protocol):
    """A device whose registers can be written by C code although they are not mapped."""

    def posted_write(self, index: int, offset: int) -> PostedWrite:
        """How to write the register at byte `offset` of a region; valid until `close`."""


class Departure(NamedTuple):
    """A descriptor that says when the device has to be let go of, or went.

    `events` of poll(2), 0 for a hang-up alone. `orderly`: the device still works, and somebody
    waits for this process to close it. The descriptor is the device's, and valid until `close`.
    """

    fd: int
    events: int
    reason: str
    orderly: bool


@runtime_checkable
class Departs(Protocol):
    """A device that says when it goes."""

    def departures(self) -> Sequence[Departure]:
        """Have it say so, from now on."""


class MappedArea(Protocol):
    """A part of a region, mapped into this process until `close`."""

    @property
    def offset(self) -> int:
        """Byte offset of the first mapped byte in its region."""

    @property
    def size(self) -> int:
        """Bytes mapped."""

    @property
    def address(self) -> int:
        """Virtual address of the first mapped byte."""

    @property
    def gone(self) -> bool:
        """Whether its memory vanished (a SIGBUS was met): all of it counts as lost, for good."""

    def close(self) -> None:
        """Unmap; idempotent."""


@runtime_checkable
class Device(Protocol):
    """An open device. A context manager; `close` is idempotent and undoes all in order."""

    @property
    def name(self) -> str:
        """The target, as errors show it: "pci:0000:01:00.0", "vfio-user:/run/x.sock"."""

    @property
    def transport(self) -> str:
        """"vfio" (type 1), "vfio-iommufd" or "vfio-user"."""

    @property
    def numa_node(self) -> int | None:
        """The device's NUMA node, None where unknown."""

    @property
    def mapper(self) -> Mapper:
        """Maps memory for the device's DMA."""

    def region_info(self, index: int) -> RegionInfo:
        """Raise `VfioError` for an index that the device does not have."""

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of a region (1, 2, 4 or 8 as one access; more for config space)."""

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write a region, likewise."""

    def mmap_area(self, index: int, offset: int, size: int) -> MappedArea:
        """Map a part of a region.

        Raises `UnsupportedOnTransport` if any byte of it lies outside of `mmap_areas`.
        """

    def irq_info(self, index: int) -> IrqInfo:
        """Raise `VfioError` for an index that the device does not have."""

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        """Arm vectors 0..len-1 of the index with these eventfds (-1: leave a vector off).

        Replaces what was armed before on that index.
        """

    def disable_irqs(self, index: int) -> None:
        """Disarm all vectors of the index."""

    def reset(self) -> None:
        """Function-level reset (VFIO_DEVICE_RESET); returns when the device let go of memory."""

    def set_bus_master(self, enable: bool) -> None:
        """Set or clear bus mastering in the PCI command register (no effect on vfio-user)."""

    def close(self) -> None:
        """Disarm, unmap, close; idempotent. The device's DMA maps are gone when it returns."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...
