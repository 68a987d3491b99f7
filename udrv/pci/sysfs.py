# SPDX-License-Identifier: Apache-2.0
"""PCI functions and IOMMU groups as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import DeviceNotFoundError, TargetError
from udrv.pci.host import HOST, Host

#: Class code of an NVMe I/O controller (NVMe over PCIe Transport Specification, "Class Code").
CLASS_NVME = 0x010802

#: Drivers that leave DMA ownership to user space, and so do not make a group unviable. In the
#: kernel these set `driver_managed_dma`; a VFIO variant driver is known by its `vfio-dev`.
_DMA_NEUTRAL_DRIVERS = frozenset({"vfio-pci", "pci-stub", "pcieport"})

_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.ASCII)


def parse_bdf(text: str) -> str:
    """Normalise "1:00.0"-like text: lower case, with domain. "01:00.0" is "0000:01:00.0".

    Raises `TargetError` if the text is no PCI address.
    """
    match = _BDF.fullmatch(text.strip().lower())
    if match is None:
        raise TargetError(
            f"{text!r} is not a PCI address",
            mend="give domain:bus:device.function, as `lspci -D` prints it: 0000:01:00.0",
        )
    domain, bus, slot, function_number = match.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function_number}"


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One PCI function at the moment when it was read.

    Attributes
    ----------
    bdf: domain:bus:device.function, lower case.
    vendor, device, subsystem_vendor, subsystem_device: 16-bit identifiers.
    class_code: 24 bits: base class, sub-class, programming interface.
    revision: 8 bits.
    driver: the driver bound to it, None if there is none.
    driver_override: the only driver that may bind to it, None if not set.
    iommu_group: the group's number, None without an IOMMU.
    numa_node: None where the platform does not say.
    vfio_device: "vfioN" while a VFIO driver holds the function (Linux 6.1 and newer), or None.
    path: its directory in sysfs, links resolved.
    """

    bdf: str
    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem_device: int
    driver: str | None
    driver_override: str | None
    iommu_group: int | None
    numa_node: int | None
    vfio_device: str | None
    path: Path

    @property
    def target(self) -> str:
        """The target that `udrv.open` takes: "pci:0000:01:00.0"."""
        return f"pci:{self.bdf}"

    @property
    def is_nvme(self) -> bool:
        """Whether the class code is that of an NVMe I/O controller."""
        return self.class_code == CLASS_NVME

    @property
    def is_bridge(self) -> bool:
        """Whether the base class is 06h, bridges."""
        return self.class_code >> 16 == 0x06

    @property
    def on_vfio(self) -> bool:
        """Whether vfio-pci, or a variant driver of it, is bound."""
        return self.vfio_device is not None or self.driver == "vfio-pci"

    @property
    def leaves_dma_to_user(self) -> bool:
        """Whether the function lets user space own its IOMMU group.

        True without a driver, for VFIO drivers, and for the ports and stubs that VFIO accepts.
        """
        return self.driver is None or self.driver in _DMA_NEUTRAL_DRIVERS or self.on_vfio


@dataclass(frozen=True, slots=True)
class IommuGroup:
    """The functions that the IOMMU cannot tell apart; user space gets all of them or none."""

    number: int
    members: tuple[PciFunction, ...]

    def obstacles(self) -> tuple[PciFunction, ...]:
        """The members whose host driver makes the group unviable for VFIO."""
        return tuple(member for member in self.members if not member.leaves_dma_to_user)


def functions(
    *, class_code: int | None = None, host: Host = HOST
) -> tuple[PciFunction, ...]:
    """All PCI functions, by address; those of one class (see `CLASS_NVME`) if it is given."""
    devices = host.sys / "bus" / "pci" / "devices"
    names = sorted(entry.name for entry in devices.iterdir()) if devices.is_dir() else []
    found = []
    for name in names:
        try:
            one = _read_function(devices / name, name, host)
        except (OSError, ValueError):
            continue  # removed while we looked
        if class_code is None or one.class_code == class_code:
            found.append(one)
    return tuple(found)


def function(bdf: str, *, host: Host = HOST) -> PciFunction:
    """One PCI function.

    Raises `TargetError` if `bdf` is no PCI address, `DeviceNotFoundError` if nothing is there.
    """
    name = parse_bdf(bdf)
    link = host.sys / "bus" / "pci" / "devices" / name
    try:
        return _read_function(link, name, host)
    except (OSError, ValueError) as error:
        raise DeviceNotFoundError(
            "there is no such PCI function", device=f"pci:{name}",
            mend="`udrv list` shows the NVMe functions, `lspci -D` all of them",
        ) from error


def iommu_group(number: int, *, host: Host = HOST) -> IommuGroup:
    """An IOMMU group with its PCI members, by address; unknown numbers give no members."""
    directory = host.sys / "kernel" / "iommu_groups" / str(number) / "devices"
    members = []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if _BDF.fullmatch(entry.name):
            members.append(function(entry.name, host=host))
    return IommuGroup(number, tuple(members))


def driver_is_registered(name: str, *, host: Host = HOST) -> bool:
    """Whether the kernel has this PCI driver now, built in or as a loaded module."""
    return (host.sys / "bus" / "pci" / "drivers" / name).is_dir()


def _read_function(link: Path, name: str, host: Host) -> PciFunction:
    path = link.resolve(strict=True)

    def number(attribute: str) -> int:
        text = host.read(path / attribute)
        if text is None:
            raise FileNotFoundError(path / attribute)
        return int(text, 0)

    def linked(attribute: str) -> str | None:
        try:
            return (path / attribute).readlink().name
        except OSError:
            return None

    override = host.read(path / "driver_override")
    node = host.read(path / "numa_node")
    vfio = path / "vfio-dev"
    vfio_names = sorted(entry.name for entry in vfio.iterdir()) if vfio.is_dir() else []
    return PciFunction(
        bdf=name,
        vendor=number("vendor"),
        device=number("device"),
        class_code=number("class"),
        revision=number("revision"),
        subsystem_vendor=number("subsystem_vendor"),
        subsystem_device=number("subsystem_device"),
        driver=linked("driver"),
        driver_override=override if override and override != "(null)" else None,
        iommu_group=_group_number(path, host),
        numa_node=int(node) if node and not node.startswith("-") else None,
        vfio_device=vfio_names[0] if vfio_names else None,
        path=path,
    )


def _group_number(path: Path, host: Host) -> int | None:
    try:
        number = int((path / "iommu_group").readlink().name)
    except (OSError, ValueError):
        return None
    # In no-IOMMU mode VFIO makes up a group so that its API works; nothing translates behind it.
    label = host.read(host.sys / "kernel" / "iommu_groups" / str(number) / "name")
    return None if label == "vfio-noiommu" else number
