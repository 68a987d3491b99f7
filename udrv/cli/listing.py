"""`udrv list`: the NVMe functions of this machine, from sysfs alone. Nothing is opened or sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from udrv.cli.output import Json, print_lines, print_table, show
from udrv.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from udrv.pci import Host, PciFunction

#: Sectors of /sys/class/block/*/size, whatever the device's block size is.
_SECTOR = 512


def list_(as_json: Json = False) -> None:
    """NVMe functions: driver, IOMMU group, namespaces, who uses them.

    The first table's targets are for VFIO (`udrv bind`), the second's for the kernel's driver: by
    passthrough (/dev/ng0n1), and as /dev/nvme0n1 where that is not permitted.

    What a function bound to VFIO calls itself is not in sysfs: `udrv id-ctrl` asks it.
    """
    from udrv.pci import HOST

    devices = collect(HOST)
    show({"devices": devices}, as_json, lambda: _print(devices))


def collect(host: Host) -> list[dict[str, Any]]:
    """Return one dictionary a function, by address, as `udrv list --json` prints it."""
    from udrv.pci import CLASS_NVME, functions

    return [_describe(one, host) for one in functions(class_code=CLASS_NVME, host=host)]


def _describe(function: PciFunction, host: Host) -> dict[str, Any]:
    from udrv.pci import binding, disks, usage, vfio_users

    controller = _controller(function)

    def attribute(name: str) -> str | None:
        return host.read(controller / name) if controller is not None else None

    serial = attribute("serial")
    record = binding(function.bdf, host=host)
    in_use = [reason.text for reason in usage(function, host=host)]
    in_use += [str(process) for process in vfio_users(function, host=host)]
    # By NSID, not by name: Linux 6.12 scans namespaces side by side, and nvme0n1 can be NSID 2.
    namespaces = [_namespace(disk.name, serial, host) for disk in disks(function, host=host)]
    return {
        "target": function.target,
        "bdf": function.bdf,
        "vendor": function.vendor,
        "device": function.device,
        "driver": function.driver,
        "previous_driver": record.driver if record is not None else None,
        "iommu_group": function.iommu_group,
        "numa_node": function.numa_node,
        "controller": controller.name if controller is not None else None,
        "state": attribute("state"),
        "serial": serial,
        "model": attribute("model"),
        "firmware": attribute("firmware_rev"),
        "namespaces": sorted(namespaces, key=lambda ns: ns["nsid"] or 0),
        "in_use": in_use,
    }


def _controller(function: PciFunction) -> Path | None:
    """Return the directory of the kernel driver's controller, nvmeN, if it drives the function."""
    directory = function.path / "nvme"
    names = sorted(directory.iterdir()) if directory.is_dir() else []
    return names[0] if names else None


def _namespace(name: str, serial: str | None, host: Host) -> dict[str, Any]:
    from udrv.pci import generic_node

    directory = host.sys / "class" / "block" / name

    def integer(attribute: str) -> int | None:
        text = host.read(directory / attribute)
        return int(text) if text and text.isdigit() else None

    def identifier(attribute: str) -> str | None:
        # The kernel writes "00 25 38 ..." for an EUI-64 and a UUID's dashes into an NGUID.
        digits = (host.read(directory / attribute) or "").replace(" ", "").replace("-", "").lower()
        return digits if digits.strip("0") else None

    generic = generic_node(name, host=host)
    nsid, sectors = integer("nsid"), integer("size")
    return {
        "name": name,
        "targets": ([f"/dev/{generic.name}"] if generic else []) + [f"/dev/{name}"],
        "nsid": nsid,
        "bytes": None if sectors is None else sectors * _SECTOR,
        "lba_size": integer("queue/logical_block_size"),
        "eui64": identifier("eui"),
        "nguid": identifier("nguid"),
        "i_mean": f"{serial}:{nsid}" if serial and nsid is not None else None,
    }


def _print(devices: list[dict[str, Any]]) -> None:
    if not devices:
        print_lines(["no NVMe functions found"])
        return
    print_table(
        ("target", "driver", "group", "numa", "controller", "serial", "model", "firmware"),
        [
            [_or_dash(one[key]) for key in (
                "target", "driver", "iommu_group", "numa_node", "controller", "serial", "model",
                "firmware",
            )]
            for one in devices
        ],
    )
    namespaces = [(one, ns) for one in devices for ns in one["namespaces"]]
    if namespaces:
        print_lines([""])
        print_table(
            ("target", "nsid", "size", "block", "--i-mean", "eui64", "nguid"),
            [
                (
                    ns["targets"][0], _or_dash(ns["nsid"]),
                    "-" if ns["bytes"] is None else format_size(ns["bytes"]),
                    _or_dash(ns["lba_size"]), _or_dash(ns["i_mean"]), _or_dash(ns["eui64"]),
                    _or_dash(ns["nguid"]),
                )
                for _, ns in namespaces
            ],
        )
    uses = [f"in use: {one['target']}: {text}" for one in devices for text in one["in_use"]]
    if uses:
        print_lines(["", *uses])


def _or_dash(value: object) -> object:
    return "-" if value is None or value == "" else value
