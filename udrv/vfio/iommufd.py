# SPDX-License-Identifier: Apache-2.0
"""Opening a function through its VFIO character device and iommufd (Linux 6.6 and newer).

Documentation/driver-api/vfio.rst, "IOMMUFD and vfio_iommu_type1"; userspace-api/iommufd.rst.
Distribution kernels often leave it out (CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV).
"""

from __future__ import annotations

import contextlib
import errno
import os

from udrv.core._core import ffi, lib
from udrv.errors import DeviceInUseError, UdrvError, UnsupportedOnTransport
from udrv.pci import HOST, Host, PciFunction, iommu_group, vfio_users
from udrv.vfio import abi
from udrv.vfio.kernel_device import KernelDevice
from udrv.vfio.kernel_errors import (
    call_error,
    check_ready,
    iommu_error,
    not_viable,
    open_error,
)
from udrv.vfio.kernel_mapper import KernelMapper

IOMMU = "/dev/iommu"


def device_path(found: PciFunction) -> str | None:
    """The function's VFIO character device, None if the kernel made no `vfio-dev` for it."""
    return f"/dev/vfio/devices/{found.vfio_device}" if found.vfio_device else None


def is_usable(found: PciFunction, *, host: Host = HOST) -> bool:
    """Whether the kernel has both files and this process may open them."""
    path = device_path(found)
    return path is not None and all(
        os.access(host.root / name.lstrip("/"), os.R_OK | os.W_OK) for name in (IOMMU, path)
    )


class IommufdMapper(KernelMapper):
    """Maps of one I/O address space of an iommufd."""

    _pinned = True

    def __init__(
        self, calls: abi.Calls, iommufd: int, ioas: int, target: str, host: Host = HOST
    ) -> None:
        ranges, alignment = ioas_iova_ranges(calls, iommufd, ioas)
        page = os.sysconf("SC_PAGESIZE")
        super().__init__(calls, target, ranges, max(alignment, page), host)
        self._iommufd = iommufd
        self._ioas = ioas

    def _map(self, address: int, iova: int, size: int) -> None:
        ioas_map(self._calls, self._iommufd, self._ioas, address=address, iova=iova, size=size)

    def _unmap(self, iova: int, size: int) -> int:
        return ioas_unmap(self._calls, self._iommufd, self._ioas, iova=iova, size=size)


def open_cdev(
    found: PciFunction, *, host: Host = HOST, calls: abi.Calls = abi.CALLS
) -> KernelDevice:
    """Open a function that a VFIO driver holds. See `udrv.vfio.kernel.open_vfio` for the errors."""
    check_ready(found)
    target = found.target
    path = device_path(found)
    for name in (IOMMU, path):
        if name is None or not (host.root / name.lstrip("/")).exists():
            raise UnsupportedOnTransport(
                f"there is no {name or 'VFIO character device of it'}", device=target,
                mend="use the group interface (iommufd=False), or a kernel with CONFIG_IOMMUFD "
                "and CONFIG_VFIO_DEVICE_CDEV",
            )
    assert path is not None  # noqa: S101 - for the type checker; the loop has looked
    with contextlib.ExitStack() as undo:
        iommufd = _open(IOMMU, found, host, calls, undo)
        try:
            ioas = ioas_alloc(calls, iommufd)
        except OSError as error:
            raise call_error(error, "IOMMU_IOAS_ALLOC", target) from error
        undo.callback(_destroy, calls, iommufd, ioas)
        # Closing the device descriptor detaches and unbinds, which must come before the address
        # space is destroyed: hence the device is opened after it.
        device = _open(path, found, host, calls, undo)
        try:
            abi.bind_iommufd(calls, device, iommufd)
        except OSError as error:
            raise _bind_error(error, path, found, host) from error
        try:
            abi.attach_ioas(calls, device, ioas)
            mapper = IommufdMapper(calls, iommufd, ioas, target, host)
        except OSError as error:
            raise call_error(error, "attaching to an I/O address space", target) from error
        undo.callback(mapper.close)
        opened = KernelDevice(
            calls=calls, fd=device, name=target, transport="vfio-iommufd",
            numa_node=found.numa_node, mapper=mapper,
        )
        opened.own(undo.pop_all())
        return opened


# --- the ioctls of <linux/iommufd.h> -------------------------------------------------------------


def ioas_alloc(calls: abi.Calls, iommufd: int) -> int:
    """IOMMU_IOAS_ALLOC; returns the id of the new address space."""
    request = ffi.new("struct iommu_ioas_alloc *", {"size": _size("struct iommu_ioas_alloc")})
    calls.ioctl(iommufd, lib.IOMMU_IOAS_ALLOC, ffi.buffer(request))
    return int(request.out_ioas_id)


def destroy(calls: abi.Calls, iommufd: int, number: int) -> None:
    """IOMMU_DESTROY."""
    request = ffi.new(
        "struct iommu_destroy *", {"size": _size("struct iommu_destroy"), "id": number}
    )
    calls.ioctl(iommufd, lib.IOMMU_DESTROY, ffi.buffer(request))


def ioas_iova_ranges(
    calls: abi.Calls, iommufd: int, ioas: int
) -> tuple[tuple[tuple[int, int], ...], int]:
    """IOMMU_IOAS_IOVA_RANGES: (first, last) of each range, and the alignment of an IOVA."""
    room = 16
    for _ in range(4):  # EMSGSIZE says how much room it takes; the ranges may change meanwhile
        array = ffi.new("struct iommu_iova_range[]", room)
        request = ffi.new("struct iommu_ioas_iova_ranges *", {
            "size": _size("struct iommu_ioas_iova_ranges"), "ioas_id": ioas, "num_iovas": room,
            "allowed_iovas": int(ffi.cast("uintptr_t", array)),
        })
        try:
            calls.ioctl(iommufd, lib.IOMMU_IOAS_IOVA_RANGES, ffi.buffer(request))
        except OSError as error:
            if error.errno != errno.EMSGSIZE or request.num_iovas <= room:
                raise
            room = min(int(request.num_iovas), 1 << 16)
            continue
        count = min(int(request.num_iovas), room)
        ranges = tuple((int(array[i].start), int(array[i].last)) for i in range(count))
        return ranges, int(request.out_iova_alignment)
    raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))


def ioas_map(
    calls: abi.Calls, iommufd: int, ioas: int, *, address: int, iova: int, size: int
) -> None:
    """IOMMU_IOAS_MAP at a fixed IOVA, for reading and writing."""
    request = ffi.new("struct iommu_ioas_map *", {
        "size": _size("struct iommu_ioas_map"),
        "flags": lib.IOMMU_IOAS_MAP_FIXED_IOVA | lib.IOMMU_IOAS_MAP_READABLE
        | lib.IOMMU_IOAS_MAP_WRITEABLE,
        "ioas_id": ioas, "user_va": address, "length": size, "iova": iova,
    })
    calls.ioctl(iommufd, lib.IOMMU_IOAS_MAP, ffi.buffer(request))


def ioas_unmap(calls: abi.Calls, iommufd: int, ioas: int, *, iova: int, size: int) -> int:
    """IOMMU_IOAS_UNMAP; returns how many bytes were unmapped."""
    request = ffi.new("struct iommu_ioas_unmap *", {
        "size": _size("struct iommu_ioas_unmap"), "ioas_id": ioas, "iova": iova, "length": size,
    })
    calls.ioctl(iommufd, lib.IOMMU_IOAS_UNMAP, ffi.buffer(request))
    return int(request.length)


def _size(ctype: str) -> int:
    return int(ffi.sizeof(ctype))


def _open(
    path: str, found: PciFunction, host: Host, calls: abi.Calls, undo: contextlib.ExitStack
) -> int:
    try:
        fd = calls.open(path)
    except OSError as error:
        raise open_error(error, path, found, host=host) from error
    undo.callback(calls.close, fd)
    return fd


def _bind_error(error: OSError, path: str, found: PciFunction, host: Host) -> UdrvError:
    if error.errno == errno.EBUSY:
        group = iommu_group(found.iommu_group or 0, host=host)
        if any(member.bdf != found.bdf for member in group.obstacles()):
            return not_viable(found, host=host)
    if error.errno in (errno.EBUSY, errno.EINVAL):
        # A character device can be opened many times and bound once: a second bind is EINVAL
        # (vfio_df_open). Through the group, the device is EBUSY.
        others = [user for user in vfio_users(found, host=host) if user.pid != os.getpid()]
        who = "; ".join(map(str, others)) or "by this process, or one that this user cannot see"
        return DeviceInUseError(
            f"{path} is in use already: {who}", reasons=[str(user) for user in others],
            device=found.target, mend="end the other user; a VFIO device has one owner at a time",
        )
    return iommu_error(error, found)


def _destroy(calls: abi.Calls, iommufd: int, ioas: int) -> None:
    # EBUSY while a forked child still has the device; the last close of the iommufd does it then.
    with contextlib.suppress(OSError):
        destroy(calls, iommufd, ioas)
