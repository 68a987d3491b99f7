# SPDX-License-Identifier: Apache-2.0
"""VFIO from Python: PCI functions behind the kernel's VFIO, and devices served over vfio-user.

Both give the same `Device`. The two back ends are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from udrv.vfio.device import (
    BAR0,
    CONFIG,
    ERR,
    INTX,
    MSI,
    MSIX,
    REQ,
    Device,
    IrqInfo,
    MappedArea,
    RegionInfo,
)

if TYPE_CHECKING:
    from udrv.vfio.kernel import open_vfio
    from udrv.vfio.user import connect

__all__ = [
    "BAR0",
    "CONFIG",
    "Device",
    "ERR",
    "INTX",
    "IrqInfo",
    "MSI",
    "MSIX",
    "MappedArea",
    "REQ",
    "RegionInfo",
    "connect",
    "open_vfio",
]


def __getattr__(name: str) -> object:
    if name == "open_vfio":
        from udrv.vfio.kernel import open_vfio

        return open_vfio
    if name == "connect":
        from udrv.vfio.user import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
