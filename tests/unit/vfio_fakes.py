# SPDX-License-Identifier: Apache-2.0
"""A kernel that knows VFIO: answers the ioctls byte for byte, remembers, and fails when told to."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path
from typing import Any

from pci_fakes import FakeHost

from udrv.core._core import lib
from udrv.vfio.abi import Calls, Mapping

CONTAINER, GROUP, IOMMU, CDEV = (
    "/dev/vfio/vfio", "/dev/vfio/7", "/dev/iommu", "/dev/vfio/devices/vfio0",
)
BAR0_SIZE = 0x4000
RANGES = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))
PAGE = mmap.PAGESIZE


def capability(number: int, payload: bytes, following: int = 0) -> bytes:
    """One struct vfio_info_cap_header with what follows it."""
    return struct.pack("=HHI", number, 1, following) + payload


def pairs(*entries: tuple[int, int]) -> bytes:
    """The payload that sparse mmap and IOVA range capabilities share."""
    return struct.pack("=II", len(entries), 0) + b"".join(struct.pack("=QQ", *e) for e in entries)


class FakeMapping(Mapping):
    def __init__(self, calls: FakeCalls, offset: int, size: int) -> None:
        self.address = 0x7000_0000_0000 + offset
        self._calls, self._size = calls, size

    def close(self) -> None:
        self._calls.log.append("munmap")


class FakeCalls(Calls):
    """`fail` maps an event ("open /dev/vfio/7", "SET_IOMMU", "mmap") to an errno; `log` has all
    that succeeded in order; `open_files` what was opened and not closed.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fail: dict[str, int] = {}
        self.open_files: dict[int, str] = {}
        self.config = bytearray(4096)
        self.config[4] = 0x02
        self.maps: dict[int, int] = {}
        self.armed: dict[int, list[int]] = {}
        self.viable = True
        self.version = 0
        self.type1 = True
        self.flags = lib.VFIO_DEVICE_FLAGS_PCI | lib.VFIO_DEVICE_FLAGS_RESET
        self.sparse: tuple[tuple[int, int], ...] | None = ((0, 0x1000), (0x3000, 0x1000))
        self.ranges = RANGES
        self.vectors_left = 2048
        self.unmapped: int | None = None
        self._next = 100

    def open(self, path: str) -> int:
        self._event(f"open {path}")
        return self._new(path)

    def close(self, fd: int) -> None:
        self.log.append(f"close {self.open_files.pop(fd)}")

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        assert self.open_files[fd] in ("device", CDEV)
        self._event("pread")
        index, at = offset >> 40, offset & ((1 << 40) - 1)
        return bytes(self.config[at : at + size]) if index == 7 else bytes(size)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        assert self.open_files[fd] in ("device", CDEV)
        index, at = offset >> 40, offset & ((1 << 40) - 1)
        if index == 7:
            master = "on" if data[0] & 4 else "off"
            self._event(f"bus master {master}")
            self.config[at : at + len(data)] = data
        return len(data)

    def mmap(self, fd: int, offset: int, size: int, *, writable: bool) -> Mapping:
        assert offset % PAGE == 0 and size % PAGE == 0 and writable
        self._event("mmap")
        return FakeMapping(self, offset & ((1 << 40) - 1), size)

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        where = self.open_files[fd]
        name = self.NAMES[request]
        self._event(name)
        handler = getattr(self, f"do_{name.lower()}")
        return int(handler(where, argument) or 0)

    NAMES = {
        getattr(lib, "VFIO_" + name): name for name in (
            "GET_API_VERSION", "CHECK_EXTENSION", "SET_IOMMU", "GROUP_GET_STATUS",
            "GROUP_SET_CONTAINER", "GROUP_UNSET_CONTAINER", "GROUP_GET_DEVICE_FD",
            "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO", "DEVICE_GET_IRQ_INFO", "DEVICE_SET_IRQS",
            "DEVICE_RESET", "IOMMU_GET_INFO", "IOMMU_MAP_DMA", "IOMMU_UNMAP_DMA",
            "DEVICE_BIND_IOMMUFD", "DEVICE_ATTACH_IOMMUFD_PT",
        )
    } | {
        getattr(lib, "IOMMU_" + name): name for name in (
            "DESTROY", "IOAS_ALLOC", "IOAS_IOVA_RANGES", "IOAS_MAP", "IOAS_UNMAP",
        )
    }

    def do_get_api_version(self, where: str, argument: int) -> int:
        assert where == CONTAINER
        return self.version

    def do_check_extension(self, where: str, argument: int) -> int:
        return int(self.type1 and argument == 3)

    def do_set_iommu(self, where: str, argument: int) -> None:
        assert where == CONTAINER and argument == 3

    def do_group_get_status(self, where: str, argument: Any) -> None:
        assert where == GROUP and struct.unpack("=II", argument)[0] == 8
        argument[4:8] = struct.pack("=I", 1 if self.viable else 0)

    def do_group_set_container(self, where: str, argument: Any) -> None:
        (container,) = struct.unpack("=i", argument)
        assert where == GROUP and self.open_files[container] == CONTAINER

    def do_group_unset_container(self, where: str, argument: int) -> None:
        assert where == GROUP and "device" not in self.open_files.values()

    def do_group_get_device_fd(self, where: str, argument: bytearray) -> int:
        assert where == GROUP and bytes(argument) == b"0000:01:00.0\0"
        return self._new("device")

    def do_device_get_info(self, where: str, argument: Any) -> None:
        argument[4:16] = struct.pack("=III", self.flags, 9, 5)

    def do_device_get_region_info(self, where: str, argument: Any) -> None:
        room, _, index = struct.unpack_from("=III", argument)
        size = {0: BAR0_SIZE, 7: 4096}.get(index, 0)
        if index > 8:
            raise OSError(errno.EINVAL, "region")
        flags, extra, at = 3, b"", 0
        if index == 0:
            flags |= lib.VFIO_REGION_INFO_FLAG_MMAP
            if self.sparse is not None:
                flags |= lib.VFIO_REGION_INFO_FLAG_CAPS
                # Behind another capability, as MSIX_MAPPABLE comes first in vfio-pci.
                extra = capability(3, b"", 40) + capability(1, pairs(*self.sparse))
                at = 32
        total = 32 + len(extra)
        if room < total:
            extra, at = b"", 0
        argument[: 32] = struct.pack("=IIIIQQ", total, flags, index, at, size, index << 40)
        argument[32 : 32 + len(extra)] = extra

    def do_device_get_irq_info(self, where: str, argument: Any) -> None:
        _, _, index, _ = struct.unpack("=IIII", argument)
        if index > 4:
            raise OSError(errno.EINVAL, "irq")
        argument[:] = struct.pack("=IIII", 16, 9, index, 65 if index == 2 else 1)

    def do_device_set_irqs(self, where: str, argument: Any) -> int:
        data = bytes(argument)
        argsz, flags, index, start, count = struct.unpack_from("=IIIII", data)
        assert argsz == len(data) and start == 0
        if flags == 1 | 1 << 5:
            assert count == 0
            self.armed.pop(index)
            return 0
        assert flags == 1 << 2 | 1 << 5 and index not in self.armed
        fds = list(struct.unpack_from(f"={count}i", data, 20))
        assert argsz == 20 + 4 * count
        if count > self.vectors_left:
            return self.vectors_left
        self.armed[index] = fds
        return 0

    def do_device_reset(self, where: str, argument: int) -> None:
        pass

    def do_iommu_get_info(self, where: str, argument: Any) -> None:
        (room,) = struct.unpack_from("=I", argument)
        extra = capability(2, bytes(24), 24 + 32) + capability(1, pairs(*self.ranges))
        total = 24 + len(extra)
        flags, at = (3, 24) if room >= total else (3, 0)
        argument[:24] = struct.pack("=IIQII", total, flags, 0x4020_1000, at, 0)
        if at:
            argument[24 : 24 + len(extra)] = extra

    def do_iommu_map_dma(self, where: str, argument: Any) -> None:
        argsz, flags, _, iova, size = struct.unpack("=IIQQQ", argument)
        assert (argsz, flags) == (32, 3)
        self._map(iova, size)

    def do_iommu_unmap_dma(self, where: str, argument: Any) -> None:
        argsz, flags, iova, size = struct.unpack("=IIQQ", argument)
        assert (argsz, flags) == (24, 0) and self.maps.pop(iova) == size
        argument[16:24] = struct.pack("=Q", size if self.unmapped is None else self.unmapped)

    def do_device_bind_iommufd(self, where: str, argument: Any) -> None:
        argsz, flags, iommufd, _ = struct.unpack("=IIiI", argument)
        assert where == CDEV and (argsz, flags) == (16, 0)
        assert self.open_files[iommufd] == IOMMU
        argument[12:16] = struct.pack("=I", 5)

    def do_device_attach_iommufd_pt(self, where: str, argument: Any) -> None:
        assert where == CDEV and struct.unpack("=III", argument) == (12, 0, 11)

    def do_ioas_alloc(self, where: str, argument: Any) -> None:
        assert where == IOMMU and struct.unpack("=III", argument) == (12, 0, 0)
        argument[8:12] = struct.pack("=I", 11)

    def do_destroy(self, where: str, argument: Any) -> None:
        assert where == IOMMU and struct.unpack("=II", argument) == (8, 11)
        if CDEV in self.open_files.values():
            raise OSError(errno.EBUSY, "attached")

    def do_ioas_iova_ranges(self, where: str, argument: Any) -> None:
        import ctypes

        size, ioas, room, zero, pointer, _ = struct.unpack("=IIIIQQ", argument)
        assert (size, ioas, zero) == (32, 11, 0)
        argument[8:12] = struct.pack("=I", len(self.ranges))
        argument[24:32] = struct.pack("=Q", 1)
        if room < len(self.ranges):
            raise OSError(errno.EMSGSIZE, "ranges")
        data = b"".join(struct.pack("=QQ", *each) for each in self.ranges)
        ctypes.memmove(pointer, data, len(data))

    def do_ioas_map(self, where: str, argument: Any) -> None:
        size, flags, ioas, zero, _, length, iova = struct.unpack("=IIIIQQQ", argument)
        assert (size, flags, ioas, zero) == (40, 7, 11, 0)
        self._map(iova, length)

    def do_ioas_unmap(self, where: str, argument: Any) -> None:
        size, ioas, iova, length = struct.unpack("=IIQQ", argument)
        assert (size, ioas) == (24, 11) and self.maps.pop(iova) == length

    def _map(self, iova: int, size: int) -> None:
        if iova in self.maps:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.maps[iova] = size

    def _new(self, name: str) -> int:
        self._next += 1
        self.open_files[self._next] = name
        return self._next

    def _event(self, name: str) -> None:
        if name in self.fail:
            raise OSError(self.fail[name], os.strerror(self.fail[name]), name)
        self.log.append(name)


def vfio_host(root: Path) -> FakeHost:
    """A host whose one NVMe function is on vfio-pci, without iommufd."""
    host = FakeHost(root)
    host.proc.mkdir()
    device = host.add_function(driver="vfio-pci", numa=1)
    (device / "vfio-dev/vfio0").mkdir(parents=True)
    return host


def with_iommufd(host: FakeHost) -> None:
    """Give the host what Linux has with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV."""
    (host.dev / "vfio/devices").mkdir(parents=True)
    (host.dev / "vfio/devices/vfio0").touch()
    (host.dev / "iommu").touch()
