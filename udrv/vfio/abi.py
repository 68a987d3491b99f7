# SPDX-License-Identifier: Apache-2.0
"""The ioctls of <linux/vfio.h>, one function each: structs in, plain values out.

Struct layouts and numbers come from the C compiler (`udrv.core._core`), never from this file. The
functions raise the kernel's `OSError`; the callers know what was tried and turn it into an error
that says so. All system calls go through a `Calls` object, which a test replaces by a kernel of
its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from udrv.core._core import ffi, lib
from udrv.vfio.device import IrqInfo, RegionInfo

#: More than any chain of capabilities that a kernel has ever returned; bounds a second request.
MAX_INFO_BYTES = 64 << 10


class Mapping:
    """A shared mapping of device memory. `close` is idempotent."""

    def __init__(self, fd: int, offset: int, size: int, *, writable: bool) -> None:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=access, offset=offset)
        with memoryview(self._memory) as view:
            self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))

    def close(self) -> None:
        """Unmap. Whoever still uses `address` then faults, as with munmap(2)."""
        self._memory.close()


class Calls:
    """The system calls that this package makes on VFIO descriptors."""

    def open(self, path: str) -> int:
        """open(2) for reading and writing, close-on-exec."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        """ioctl(2) with an int or a writable buffer; the GIL is released meanwhile."""
        return int(fcntl.ioctl(fd, request, argument))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2)."""
        return os.pwrite(fd, data, offset)

    def mmap(self, fd: int, offset: int, size: int, *, writable: bool) -> Mapping:
        """mmap(2), shared; offset and size are multiples of the page."""
        return Mapping(fd, offset, size, writable=writable)


#: The real ones.
CALLS = Calls()


@dataclass(frozen=True, slots=True)
class Capability:
    """One entry of a capability chain; `payload` reaches to the end of the buffer."""

    id: int
    version: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """VFIO_DEVICE_GET_INFO: flags, and one more than the highest region and interrupt index."""

    flags: int
    num_regions: int
    num_irqs: int


@dataclass(frozen=True, slots=True)
class Region:
    """A region's public description, and where it starts in the device descriptor (bytes)."""

    info: RegionInfo
    file_offset: int


@dataclass(frozen=True, slots=True)
class IommuInfo:
    """VFIO_IOMMU_GET_INFO: a bitmap of page sizes, and ranges (first, last) or None if not told."""

    page_sizes: int
    iova_ranges: tuple[tuple[int, int], ...] | None


def walk_capabilities(data: bytes, first: int) -> Iterator[Capability]:
    """The chain that starts at offset `first` of an info struct; 0 is the empty chain.

    Raises `ValueError` if the chain leaves the buffer or runs backwards (a loop).
    """
    size = ffi.sizeof("struct vfio_info_cap_header")
    at = first
    while at:
        if at + size > len(data):
            raise ValueError(f"a capability at {at} of {len(data)} bytes")
        number, version, following = struct.unpack_from("=HHI", data, at)
        yield Capability(number, version, bytes(data[at + size :]))
        if following and following <= at:
            raise ValueError(f"the capability at {at} points back to {following}")
        at = following


def sparse_areas(payload: bytes) -> tuple[tuple[int, int], ...]:
    """(offset, size) of each area of VFIO_REGION_INFO_CAP_SPARSE_MMAP. Raises `ValueError`."""
    return _pairs(payload, "sparse mmap")


def iova_ranges(payload: bytes) -> tuple[tuple[int, int], ...]:
    """(first, last) of each range of VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE. Raises `ValueError`."""
    return _pairs(payload, "IOVA range")


def _pairs(payload: bytes, what: str) -> tuple[tuple[int, int], ...]:
    # Both capabilities: u32 count, u32 reserved, then pairs of u64.
    if len(payload) < 8:
        raise ValueError(f"a cut {what} capability")
    (count,) = struct.unpack_from("=I", payload)
    if 8 + 16 * count > len(payload):
        raise ValueError(f"a {what} capability of {count} entries in {len(payload)} bytes")
    return tuple(struct.unpack_from("=QQ", payload, 8 + 16 * i) for i in range(count))


# --- container and group ------------------------------------------------------------------------


def api_version(calls: Calls, container: int) -> int:
    """VFIO_GET_API_VERSION."""
    return calls.ioctl(container, lib.VFIO_GET_API_VERSION, 0)


def has_type1v2(calls: Calls, container: int) -> bool:
    """VFIO_CHECK_EXTENSION(VFIO_TYPE1v2_IOMMU)."""
    return calls.ioctl(container, lib.VFIO_CHECK_EXTENSION, lib.VFIO_TYPE1v2_IOMMU) > 0


def set_type1v2(calls: Calls, container: int) -> None:
    """VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU); the container must have a group."""
    calls.ioctl(container, lib.VFIO_SET_IOMMU, lib.VFIO_TYPE1v2_IOMMU)


def group_is_viable(calls: Calls, group: int) -> bool:
    """VFIO_GROUP_GET_STATUS: whether no host driver holds another member."""
    status = ffi.new("struct vfio_group_status *", {"argsz": _size("struct vfio_group_status")})
    calls.ioctl(group, lib.VFIO_GROUP_GET_STATUS, ffi.buffer(status))
    return bool(status.flags & lib.VFIO_GROUP_FLAGS_VIABLE)


def group_set_container(calls: Calls, group: int, container: int) -> None:
    """VFIO_GROUP_SET_CONTAINER."""
    calls.ioctl(group, lib.VFIO_GROUP_SET_CONTAINER, ffi.buffer(ffi.new("int *", container)))


def group_unset_container(calls: Calls, group: int) -> None:
    """VFIO_GROUP_UNSET_CONTAINER; EBUSY while a device of the group is open."""
    calls.ioctl(group, lib.VFIO_GROUP_UNSET_CONTAINER, 0)


def group_device(calls: Calls, group: int, bdf: str) -> int:
    """VFIO_GROUP_GET_DEVICE_FD: a new descriptor, close-on-exec."""
    # A mutable buffer: fcntl.ioctl returns the buffer, not the descriptor, for an immutable one.
    return calls.ioctl(group, lib.VFIO_GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"))


# --- device ---------------------------------------------------------------------------------------


def device_info(calls: Calls, device: int) -> DeviceInfo:
    """VFIO_DEVICE_GET_INFO."""
    info = ffi.new("struct vfio_device_info *", {"argsz": _size("struct vfio_device_info")})
    calls.ioctl(device, lib.VFIO_DEVICE_GET_INFO, ffi.buffer(info))
    return DeviceInfo(info.flags, info.num_regions, info.num_irqs)


def region(calls: Calls, device: int, index: int) -> Region:
    """VFIO_DEVICE_GET_REGION_INFO, with the areas that may be mapped.

    Raises `ValueError` if the kernel's chain of capabilities makes no sense.
    """
    data = _query(
        calls, device, lib.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", index=index
    )
    info = ffi.cast("struct vfio_region_info *", ffi.from_buffer(data))
    areas: tuple[tuple[int, int], ...] = ()
    if info.flags & lib.VFIO_REGION_INFO_FLAG_MMAP:
        areas = ((0, info.size),)
        if info.flags & lib.VFIO_REGION_INFO_FLAG_CAPS:
            for capability in walk_capabilities(bytes(data), info.cap_offset):
                if capability.id == lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                    areas = sparse_areas(capability.payload)
        if any(offset + size > info.size for offset, size in areas):
            raise ValueError(f"a mappable area outside of region {index}")
    return Region(RegionInfo(index, info.flags, info.size, areas), info.offset)


def irq_info(calls: Calls, device: int, index: int) -> IrqInfo:
    """VFIO_DEVICE_GET_IRQ_INFO."""
    info = ffi.new(
        "struct vfio_irq_info *", {"argsz": _size("struct vfio_irq_info"), "index": index}
    )
    calls.ioctl(device, lib.VFIO_DEVICE_GET_IRQ_INFO, ffi.buffer(info))
    return IrqInfo(index, info.flags, info.count)


def set_irqs(calls: Calls, device: int, index: int, eventfds: Sequence[int]) -> int:
    """VFIO_DEVICE_SET_IRQS: trigger vectors 0.. of the index through eventfds; none disarms all.

    Returns 0, or the number of vectors that the system could have given if it is fewer.
    """
    size = ffi.sizeof("struct vfio_irq_set") + 4 * len(eventfds)
    data = ffi.new("char[]", size)
    header = ffi.cast("struct vfio_irq_set *", data)
    header.argsz = size
    header.index = index
    header.count = len(eventfds)
    kind = lib.VFIO_IRQ_SET_DATA_EVENTFD if eventfds else lib.VFIO_IRQ_SET_DATA_NONE
    header.flags = kind | lib.VFIO_IRQ_SET_ACTION_TRIGGER
    vectors = ffi.cast("int32_t *", header.data)
    for number, eventfd in enumerate(eventfds):
        vectors[number] = eventfd
    return calls.ioctl(device, lib.VFIO_DEVICE_SET_IRQS, ffi.buffer(data))


def reset(calls: Calls, device: int) -> None:
    """VFIO_DEVICE_RESET."""
    calls.ioctl(device, lib.VFIO_DEVICE_RESET, 0)


def bind_iommufd(calls: Calls, device: int, iommufd: int) -> int:
    """VFIO_DEVICE_BIND_IOMMUFD on a character device; returns the device's id in the iommufd."""
    bind = ffi.new(
        "struct vfio_device_bind_iommufd *",
        {"argsz": _size("struct vfio_device_bind_iommufd"), "iommufd": iommufd},
    )
    calls.ioctl(device, lib.VFIO_DEVICE_BIND_IOMMUFD, ffi.buffer(bind))
    return int(bind.out_devid)


def attach_ioas(calls: Calls, device: int, ioas: int) -> None:
    """VFIO_DEVICE_ATTACH_IOMMUFD_PT to an I/O address space."""
    attach = ffi.new(
        "struct vfio_device_attach_iommufd_pt *",
        {"argsz": _size("struct vfio_device_attach_iommufd_pt"), "pt_id": ioas},
    )
    calls.ioctl(device, lib.VFIO_DEVICE_ATTACH_IOMMUFD_PT, ffi.buffer(attach))


# --- type 1 IOMMU ---------------------------------------------------------------------------------


def type1_info(calls: Calls, container: int) -> IommuInfo:
    """VFIO_IOMMU_GET_INFO. Raises `ValueError` on a broken chain of capabilities."""
    data = _query(calls, container, lib.VFIO_IOMMU_GET_INFO, "struct vfio_iommu_type1_info")
    info = ffi.cast("struct vfio_iommu_type1_info *", ffi.from_buffer(data))
    ranges = None
    if info.flags & lib.VFIO_IOMMU_INFO_CAPS:
        for capability in walk_capabilities(bytes(data), info.cap_offset):
            if capability.id == lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                ranges = iova_ranges(capability.payload)
    sizes = info.iova_pgsizes if info.flags & lib.VFIO_IOMMU_INFO_PGSIZES else 0
    return IommuInfo(sizes, ranges)


def type1_map(calls: Calls, container: int, *, address: int, iova: int, size: int) -> None:
    """VFIO_IOMMU_MAP_DMA, for reading and writing."""
    request = ffi.new("struct vfio_iommu_type1_dma_map *", {
        "argsz": _size("struct vfio_iommu_type1_dma_map"),
        "flags": lib.VFIO_DMA_MAP_FLAG_READ | lib.VFIO_DMA_MAP_FLAG_WRITE,
        "vaddr": address, "iova": iova, "size": size,
    })
    calls.ioctl(container, lib.VFIO_IOMMU_MAP_DMA, ffi.buffer(request))


def type1_unmap(calls: Calls, container: int, *, iova: int, size: int) -> int:
    """VFIO_IOMMU_UNMAP_DMA; returns how many bytes were unmapped."""
    request = ffi.new("struct vfio_iommu_type1_dma_unmap *", {
        "argsz": _size("struct vfio_iommu_type1_dma_unmap"), "iova": iova, "size": size,
    })
    calls.ioctl(container, lib.VFIO_IOMMU_UNMAP_DMA, ffi.buffer(request))
    return int(request.size)


def _size(ctype: str) -> int:
    return int(ffi.sizeof(ctype))


def _query(
    calls: Calls, fd: int, request: int, ctype: str, *, index: int | None = None
) -> bytearray:
    """Ask, and ask again with a larger buffer if the kernel's `argsz` says it has more to say."""
    size = _size(ctype)
    for _ in range(4):  # the answer may grow between two questions, but not for ever
        data = bytearray(size)
        info = ffi.cast(f"{ctype} *", ffi.from_buffer(data))
        info.argsz = size
        if index is not None:
            info.index = index
        calls.ioctl(fd, request, data)
        if info.argsz <= size:
            return data
        size = int(info.argsz)
        if size > MAX_INFO_BYTES:
            break
    raise ValueError(f"an answer of {size} bytes")
