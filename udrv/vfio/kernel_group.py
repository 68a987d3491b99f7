# SPDX-License-Identifier: Apache-2.0
"""Opening a function the classic way: container, group, type 1 version 2 IOMMU.

Documentation/driver-api/vfio.rst, "VFIO Usage Example".
"""

from __future__ import annotations

import contextlib

from udrv.core._core import lib
from udrv.errors import VfioError
from udrv.pci import HOST, Host, PciFunction
from udrv.vfio import abi
from udrv.vfio.kernel_device import KernelDevice
from udrv.vfio.kernel_errors import (
    call_error,
    check_ready,
    iommu_error,
    not_viable,
    open_error,
)
from udrv.vfio.kernel_mapper import Type1Mapper

CONTAINER = "/dev/vfio/vfio"


def open_group(
    found: PciFunction, *, host: Host = HOST, calls: abi.Calls = abi.CALLS
) -> KernelDevice:
    """Open a function that vfio-pci holds. See `udrv.vfio.kernel.open_vfio` for the errors."""
    number = check_ready(found)
    target = found.target
    group_path = f"/dev/vfio/{number}"
    # Each step puts its undoing on the stack, so that a failure halfway and an orderly close run
    # the same code in the same order.
    with contextlib.ExitStack() as undo:
        container = _open(CONTAINER, found, host, calls, undo)
        _check_container(container, target, calls)
        group = _open(group_path, found, host, calls, undo)
        try:
            if not abi.group_is_viable(calls, group):
                raise not_viable(found, host=host)
            abi.group_set_container(calls, group, container)
        except OSError as error:
            raise call_error(error, f"attaching {group_path} to a container", target) from error
        undo.callback(_unset, group, calls)
        try:
            abi.set_type1v2(calls, container)
        except OSError as error:
            raise iommu_error(error, found) from error
        try:
            device = abi.group_device(calls, group, found.bdf)
        except OSError as error:
            raise call_error(error, "getting a device descriptor", target) from error
        undo.callback(calls.close, device)
        try:
            mapper = Type1Mapper(calls, container, target, host)
        except OSError as error:
            raise call_error(error, "VFIO_IOMMU_GET_INFO", target) from error
        except ValueError as error:
            raise VfioError(
                f"the kernel describes the IOMMU with {error}", device=target,
                mend="report it, with the kernel's version",
            ) from error
        undo.callback(mapper.close)
        opened = KernelDevice(
            calls=calls, fd=device, name=target, transport="vfio", numa_node=found.numa_node,
            mapper=mapper,
        )
        opened.own(undo.pop_all())
        return opened


def _open(
    path: str, found: PciFunction, host: Host, calls: abi.Calls, undo: contextlib.ExitStack
) -> int:
    try:
        fd = calls.open(path)
    except OSError as error:
        raise open_error(error, path, found, host=host) from error
    undo.callback(calls.close, fd)
    return fd


def _check_container(container: int, target: str, calls: abi.Calls) -> None:
    try:
        version = abi.api_version(calls, container)
        type1 = abi.has_type1v2(calls, container)
    except OSError as error:
        raise call_error(error, "asking VFIO for its version", target) from error
    if version != lib.VFIO_API_VERSION:
        raise VfioError(
            f"the kernel's VFIO API has version {version}, not {lib.VFIO_API_VERSION}",
            device=target, mend="use a release of udrv for this kernel",
        )
    if not type1:
        raise VfioError(
            "the kernel offers no type 1 version 2 IOMMU", device=target,
            mend="load it: modprobe vfio_iommu_type1",
        )


def _unset(group: int, calls: abi.Calls) -> None:
    # EBUSY while a forked child still has the device; the close of the group does it then.
    with contextlib.suppress(OSError):
        abi.group_unset_container(calls, group)
