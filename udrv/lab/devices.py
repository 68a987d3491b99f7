# SPDX-License-Identifier: Apache-2.0
"""What `--device` says: the guest's NVMe controllers, as data.

Grammar (sizes take K, M, G or T, powers of 1024)::

    DEVICE    = "nvme" { "," OPTION } | "soft:" [ "?" SOFT ] | "vfio-user:" SOCKET
    OPTION    = "serial=" S             up to 20 printable ASCII characters, no comma
              | "ns=" NS { "+" NS }     namespaces 1, 2, ...; default 512:1G; "ns=none": none
              | "zns" | "zone=" SIZE | "ms=" BYTES | "pi=" 0..3
                                        defaults for every namespace of this device
              | "cmb=" MIB              controller memory buffer
              | "mdts=" 0..32           as the register: 2^mdts pages of 4 KiB, 0 is unlimited
              | "queues=" 1..1024       I/O queue pairs
              | "vectors=" 1..2048      MSI-X vectors
              | "sriov=" 1..127         virtual functions
              | "subsys=" NAME          devices of one NAME share a subsystem and its namespaces
    NS        = LBA ":" SIZE { ":" NSOPTION }          LBA: 512, 1024, ... 65536 bytes
    NSOPTION  = "zns" | "zone=" SIZE | "ms=" BYTES | "pi=" 0..3
    SOFT      = the options of our own controller, as in a target (udrv.soft.options)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udrv.errors import LabError, TargetError
from udrv.soft.options import SoftOptions, parse_options
from udrv.units import parse_size

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SERIAL = re.compile(r"[!-+\--~][ -+\--~]{0,19}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
DEFAULT_ZONE = 64 << 20


@dataclass(frozen=True)
class NamespaceSpec:
    """One namespace. `lba_size`, `metadata` and `zone_size` are bytes; `size` is the whole's.

    `pi` is the protection information type (0: none). `zone_size` is None for a namespace
    without zones.
    """

    lba_size: int = 512
    size: int = 1 << 30
    metadata: int = 0
    pi: int = 0
    zone_size: int | None = None


@dataclass(frozen=True)
class NvmeSpec:
    """An NVMe controller of QEMU's own; see the grammar above for the ranges."""

    serial: str | None = None
    namespaces: tuple[NamespaceSpec, ...] = (NamespaceSpec(),)
    cmb_mib: int = 0
    mdts: int = 7
    queues: int = 64
    vectors: int = 65
    sriov: int = 0
    subsys: str | None = None


@dataclass(frozen=True)
class VfioUserSpec:
    """A PCI device served by another process over vfio-user; `soft` if it is ours."""

    socket: str
    soft: SoftOptions | None = None


@dataclass(frozen=True)
class SoftSpec:
    """Our own controller, which the laboratory starts and ends."""

    options: SoftOptions


MachineSpec = NvmeSpec | VfioUserSpec  #: what QEMU can be told of
DeviceSpec = MachineSpec | SoftSpec

DEFAULT_DEVICES: tuple[MachineSpec, ...] = (
    NvmeSpec(
        serial="UDRVLAB0",
        namespaces=(NamespaceSpec(512, 1 << 30), NamespaceSpec(4096, 1 << 30)),
    ),
    NvmeSpec(serial="UDRVLAB1", namespaces=(NamespaceSpec(512, 1 << 30),)),
)


def _bad(text: str, why: str) -> LabError:
    return LabError(
        f"--device {text!r}: {why}",
        mend="the form is nvme,serial=S,ns=512:1G+4096:512M,..., soft:?OPTIONS or "
        "vfio-user:SOCKET; docs/lab.md has the whole grammar",
    )


def format_size(size: int) -> str:
    """The shortest text that `parse_size` reads as `size` bytes."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def _number(key: str, value: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
        raise ValueError(f"{key}={value}: not a number from {low} to {high}")
    return int(value)


def _namespace_option(ns: NamespaceSpec, option: str) -> NamespaceSpec | None:
    """`ns` with one option applied, or None if the option is not one of a namespace."""
    key, _, value = option.partition("=")
    if option == "zns":
        return replace(ns, zone_size=ns.zone_size or DEFAULT_ZONE)
    if key == "zone":
        return replace(ns, zone_size=parse_size(value))
    if key == "ms":
        return replace(ns, metadata=_number(key, value, 0, 64))
    if key == "pi":
        pi = _number(key, value, 0, 3)
        return replace(ns, pi=pi, metadata=max(ns.metadata, 8) if pi else ns.metadata)
    return None


def _checked(ns: NamespaceSpec) -> NamespaceSpec:
    if ns.lba_size not in {1 << s for s in range(9, 17)}:
        raise ValueError(f"block size {ns.lba_size}: not a power of two from 512 to 65536")
    if ns.size < ns.lba_size or ns.size % ns.lba_size:
        raise ValueError(f"size {ns.size}: not a positive multiple of {ns.lba_size}")
    if ns.pi and ns.metadata < 8:
        raise ValueError("pi needs at least 8 bytes of metadata (ms=8)")
    if ns.zone_size is not None and (ns.zone_size == 0 or ns.size % ns.zone_size):
        raise ValueError(f"size {ns.size}: not a multiple of the zone size {ns.zone_size}")
    return ns


def _parse_namespace(text: str, default: NamespaceSpec) -> NamespaceSpec:
    lba, _, rest = text.partition(":")
    size, *options = rest.split(":")
    ns = replace(default, lba_size=_number("block size", lba, 512, 65536), size=parse_size(size))
    for option in options:
        changed = _namespace_option(ns, option)
        if changed is None:
            raise ValueError(f"{option!r} is no option of a namespace")
        ns = changed
    return _checked(ns)


def _with_queues(spec: NvmeSpec, queues: int) -> NvmeSpec:
    # One vector per queue and one for the admin queue, unless the user says otherwise.
    vectors = queues + 1 if spec.vectors == NvmeSpec.vectors else spec.vectors
    return replace(spec, queues=queues, vectors=vectors)


_NUMBERED: dict[str, tuple[int, int, Callable[[NvmeSpec, int], NvmeSpec]]] = {
    "cmb": (1, 4096, lambda spec, n: replace(spec, cmb_mib=n)),
    "mdts": (0, 32, lambda spec, n: replace(spec, mdts=n)),
    "queues": (1, 1024, _with_queues),
    "vectors": (1, 2048, lambda spec, n: replace(spec, vectors=n)),
    "sriov": (1, 127, lambda spec, n: replace(spec, sriov=n)),
}


def _parse_nvme(options: Iterable[str]) -> NvmeSpec:
    spec = NvmeSpec()
    default = NamespaceSpec()
    layout: str | None = None
    for option in options:
        key, _, value = option.partition("=")
        changed = _namespace_option(default, option)
        if changed is not None:
            default = changed
        elif key == "ns":
            layout = value
        elif key == "serial":
            if not _SERIAL.fullmatch(value):
                raise ValueError("serial: 1 to 20 printable ASCII characters without a comma")
            spec = replace(spec, serial=value)
        elif key == "subsys":
            if not _NAME.fullmatch(value):
                raise ValueError("subsys: letters, digits, _ and - only")
            spec = replace(spec, subsys=value)
        elif key in _NUMBERED:
            low, high, apply = _NUMBERED[key]
            spec = apply(spec, _number(key, value, low, high))
        else:
            raise ValueError(f"unknown option {option!r}")
    if layout == "none":
        return replace(spec, namespaces=())
    texts = layout.split("+") if layout is not None else ["512:1G"]
    return replace(spec, namespaces=tuple(_parse_namespace(t, default) for t in texts))


def parse_device(text: str) -> DeviceSpec:
    """The device that `text` describes; raises `LabError` that names the part at fault."""
    if text.startswith("vfio-user:"):
        socket = text.removeprefix("vfio-user:")
        if not socket or "\0" in socket:
            raise _bad(text, "no socket is named")
        return VfioUserSpec(socket)
    if text.startswith("soft:"):
        try:
            return SoftSpec(parse_options(text.removeprefix("soft:").removeprefix("?")))
        except TargetError as error:
            raise _bad(text, str(error)) from None
    model, *options = text.split(",")
    if model != "nvme":
        raise _bad(text, f"{model!r} is no device model of the lab")
    try:
        return _parse_nvme(options)
    except ValueError as error:
        raise _bad(text, str(error)) from None


def format_device(spec: DeviceSpec) -> str:
    """The text that `parse_device` reads as `spec`."""
    if isinstance(spec, VfioUserSpec):
        return f"vfio-user:{spec.socket}"
    if isinstance(spec, SoftSpec):
        return f"soft:?{spec.options}"
    parts = ["nvme"]
    if spec.serial is not None:
        parts.append(f"serial={spec.serial}")
    layouts = []
    for ns in spec.namespaces:
        text = f"{ns.lba_size}:{format_size(ns.size)}"
        text += f":ms={ns.metadata}" if ns.metadata else ""
        text += f":pi={ns.pi}" if ns.pi else ""
        text += f":zone={format_size(ns.zone_size)}" if ns.zone_size is not None else ""
        layouts.append(text)
    parts.append("ns=" + ("+".join(layouts) or "none"))
    parts += [f"mdts={spec.mdts}", f"queues={spec.queues}", f"vectors={spec.vectors}"]
    parts += [f"cmb={spec.cmb_mib}"] if spec.cmb_mib else []
    parts += [f"sriov={spec.sriov}"] if spec.sriov else []
    parts += [f"subsys={spec.subsys}"] if spec.subsys is not None else []
    return ",".join(parts)


@dataclass(frozen=True)
class PlacedDevice:
    """A device with its place in the machine.

    `id` is its QEMU id ("nvme0"), `slot` the number on bus 0 of its root port (the guest finds
    the address of the device below that port whether or not a driver is bound). `nsids` and
    `images` are the numbers and backing files of the namespaces that the device itself defines;
    a controller of a shared subsystem has its siblings' as well.
    """

    id: str
    slot: int
    spec: MachineSpec
    serial: str | None
    nsids: tuple[int, ...]
    images: tuple[Path, ...]


FIRST_SLOT, LAST_SLOT = 0x08, 0x1E  # 0x1f is q35's own LPC bridge; below 8 lie the virtio devices


def place(specs: Sequence[MachineSpec], disks: Path) -> list[PlacedDevice]:
    """Give each device an id, a root port and disk files under `disks`; `LabError` if too many."""
    if len(specs) > LAST_SLOT - FIRST_SLOT + 1:
        raise LabError(
            f"{len(specs)} devices do not fit the machine",
            mend=f"use {LAST_SLOT - FIRST_SLOT + 1} at most",
        )
    placed: list[PlacedDevice] = []
    used: dict[str, int] = {}  # namespaces of each subsystem so far
    for index, spec in enumerate(specs):
        slot = FIRST_SLOT + index
        if isinstance(spec, VfioUserSpec):
            kind, serial = ("vfiouser", None) if spec.soft is None else ("soft", spec.soft.serial)
            placed.append(PlacedDevice(f"{kind}{index}", slot, spec, serial, (), ()))
            continue
        if spec.sriov and spec.subsys is None:
            # QEMU wants a subsystem for virtual functions; this one is the device's own.
            spec = replace(spec, subsys=f"sriov{index}")  # noqa: PLW2901
        # The controllers of a subsystem are one product: QEMU wants them to have one serial.
        mates = [d.serial for d in placed
                 if isinstance(d.spec, NvmeSpec) and d.spec.subsys == spec.subsys is not None]
        default = mates[0] if mates else f"UDRVLAB{index}"
        serial = spec.serial if spec.serial is not None else default
        if mates and serial != mates[0]:
            raise LabError(f"subsystem {spec.subsys} has the serials {mates[0]!r} and {serial!r}",
                           mend="its controllers must have the same, or none")
        if not mates and any(other.serial == serial for other in placed):
            raise LabError(f"two devices have the serial {serial!r}", mend="give them different")
        first = 1
        if spec.subsys is not None:
            first += used.get(spec.subsys, 0)
            used[spec.subsys] = first - 1 + len(spec.namespaces)
        nsids = tuple(range(first, first + len(spec.namespaces)))
        images = tuple(disks / f"nvme{index}-ns{nsid}.img" for nsid in nsids)
        placed.append(PlacedDevice(f"nvme{index}", slot, spec, serial, nsids, images))
    return placed
