# SPDX-License-Identifier: Apache-2.0
"""A sysfs tree in a directory, and the few reactions of the kernel that a bind needs."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from udrv.pci import CLASS_NVME, Host

NVME = "0000:01:00.0"


@dataclass(frozen=True)
class FakeHost(Host):
    """`root` is a temporary directory; writes to sysfs act as the kernel's driver core does.

    `claimed`: disk names whose exclusive open gives EBUSY. `refuses`: drivers whose probe fails.
    `loads`: modules that load_module finds. `writes`: every (path below root, text), in order.
    """

    claimed: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    writes: list[tuple[str, str]] = field(default_factory=list)
    numbers: dict[str, tuple[int, int]] = field(default_factory=dict)
    readonly: set[str] = field(default_factory=set)

    def write(self, path: str | Path, text: str) -> None:
        path = Path(path)
        self.writes.append((str(path.relative_to(self.root)), text))
        if path.name == "unbind" and path.parent.name == "driver":
            (path.parent.parent / "driver").unlink()
        elif path.name == "drivers_probe":
            device = self.sys / "bus/pci/devices" / text
            override = (device / "driver_override").read_text().strip()
            native = (device / "native").read_text().strip()
            self._probe(device, override if override else native)
        elif path.name == "bind":
            self._probe(self.sys / "bus/pci/devices" / text, path.parent.name)
        else:
            path.write_text(text)

    def _probe(self, device: Path, driver: str) -> None:
        if (self.sys / "bus/pci/drivers" / driver).is_dir() and driver not in self.refuses:
            (device / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")

    def open_exclusive(self, path: Path) -> int:
        if path.name in self.claimed:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return super().open_exclusive(path)

    def node(self, path: str | Path) -> tuple[int, int] | None:
        return self.numbers.get(Path(path).name)

    def may_write(self, path: Path) -> bool:
        return path.name not in self.readonly

    def load_module(self, name: str) -> None:
        if name not in self.loads:
            super().load_module(name)
        self.add_driver(name)

    # --- building the tree ---------------------------------------------------------------------

    def add_driver(self, name: str) -> None:
        directory = self.sys / "bus/pci/drivers" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "bind").touch()

    def add_function(
        self, bdf: str = NVME, *, driver: str | None = "nvme", group: int | None = 7,
        class_code: int = CLASS_NVME, numa: int = -1,
    ) -> Path:
        device = self.sys / "devices/pci0000:00" / bdf
        device.mkdir(parents=True)
        values = {
            "vendor": "0x1b36", "device": "0x0010", "class": f"{class_code:#08x}",
            "revision": "0x02", "subsystem_vendor": "0x1af4", "subsystem_device": "0x1100",
            "numa_node": str(numa), "driver_override": "(null)", "native": driver or "",
        }
        for name, value in values.items():
            (device / name).write_text(value + "\n")
        (device / "driver_override").write_text("\n")
        link = self.sys / "bus/pci/devices" / bdf
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../devices/pci0000:00/{bdf}")
        (self.sys / "bus/pci/drivers_probe").touch()
        if driver:
            self.add_driver(driver)
            (device / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if group is not None:
            members = self.sys / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / bdf).symlink_to(f"../../../../devices/pci0000:00/{bdf}")
            (device / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
        return device

    def add_block(
        self, below: Path, name: str, number: tuple[int, int], *, partition: bool = False,
        content: bytes = b"",
    ) -> Path:
        """A disk or partition with its /dev file (an image of at least 64 KiB)."""
        directory = below / name
        (directory / "holders").mkdir(parents=True)
        (directory / "dev").write_text(f"{number[0]}:{number[1]}\n")
        if partition:
            (directory / "partition").write_text("1\n")
        (directory / "subsystem").symlink_to(self.sys / "class/block")
        block = self.sys / "class/block"
        block.mkdir(parents=True, exist_ok=True)
        (block / name).symlink_to(directory)
        self.dev.mkdir(exist_ok=True)
        (self.dev / name).write_bytes(content.ljust(64 << 10, b"\0"))
        self.numbers[name] = number
        return directory

    def add_character(self, directory: Path, number: tuple[int, int], subsystem: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "dev").write_text(f"{number[0]}:{number[1]}\n")
        (directory / "subsystem").symlink_to(self.sys / "class" / subsystem)
        self.numbers[directory.name] = number

    def add_process(self, pid: int, command: str, *paths: str) -> None:
        directory = self.proc / str(pid) / "fd"
        directory.mkdir(parents=True)
        (directory.parent / "comm").write_text(command + "\n")
        for number, path in enumerate(paths):
            (directory / str(number)).symlink_to(path)

    def add_mount(self, number: str, point: str, source: str, kind: str = "ext4") -> None:
        table = self.proc / "self/mountinfo"
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("a") as file:
            file.write(f"36 35 {number} / {point} rw,noatime shared:1 - {kind} {source} rw\n")

    def hold(self, lower: Path, upper: Path) -> None:
        """`upper` (a dm or md device) is stacked on `lower`."""
        (lower / "holders" / upper.name).symlink_to(upper)


def nvme_host(root: Path) -> tuple[FakeHost, Path]:
    """A host with one idle NVMe function in a group of its own, and its namespace's directory."""
    host = FakeHost(root)
    host.proc.mkdir()
    function = host.add_function()
    host.add_driver("vfio-pci")
    controller = function / "nvme/nvme0"
    host.add_character(controller, (240, 0), "nvme")
    disk = host.add_block(controller, "nvme0n1", (259, 0))
    host.add_character(controller / "ng0n1", (241, 0), "nvme-generic")
    return host, disk
