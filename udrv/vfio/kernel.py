# SPDX-License-Identifier: Apache-2.0
"""PCI functions behind the kernel's VFIO, by address."""

from __future__ import annotations

from udrv.pci import HOST, Host, function
from udrv.vfio.abi import CALLS, Calls
from udrv.vfio.iommufd import is_usable, open_cdev
from udrv.vfio.kernel_device import KernelDevice
from udrv.vfio.kernel_group import open_group


def open_vfio(
    bdf: str, *, iommufd: bool | None = None, host: Host = HOST, calls: Calls = CALLS
) -> KernelDevice:
    """Open a PCI function that vfio-pci (or a variant driver of it) holds.

    Never binds a driver: that is `udrv.pci.plan_bind` or `udrv.pci.bound`.

    Parameters
    ----------
    bdf: PCI address; the domain may be left out if it is 0000.
    iommufd: True for the character device and /dev/iommu, False for container and group, None
        for the former where the kernel has it and this process may open it.

    Raises
    ------
    TargetError: `bdf` is no PCI address.
    DeviceNotFoundError: nothing is there.
    NoIommuError: no IOMMU translates for it.
    DriverBindError: another driver, or none, is bound.
    PermissionDeniedError: the message names the file, its owner, group and mode.
    DeviceInUseError: another process has it; `reasons` says which, where that can be seen.
    GroupNotViableError: `members` are the others of its IOMMU group with host drivers.
    UnsupportedOnTransport: `iommufd=True` on a kernel without it.
    VfioError: anything else that the kernel refuses.
    """
    found = function(bdf, host=host)
    if iommufd or (iommufd is None and is_usable(found, host=host)):
        return open_cdev(found, host=host, calls=calls)
    return open_group(found, host=host, calls=calls)
