# SPDX-License-Identifier: Apache-2.0
"""What a program inside the guest can know of its laboratory: /run/udrv-lab.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udrv.errors import LabError

PATH = Path("/run/udrv-lab.json")


@dataclass(frozen=True)
class LabNamespace:
    """A namespace as the lab made it; sizes are bytes, `zone_size` is None without zones."""

    nsid: int
    lba_size: int
    size: int
    metadata: int
    pi: int
    zone_size: int | None


@dataclass(frozen=True)
class LabDevice:
    """A device of the machine.

    `id` is its QEMU id, for `udrv.lab.qmp`; the kernel numbers its /dev/nvme nodes in an order of
    its own: go by `bdf` or `serial`. `bdf` is None if there was no device at boot. `port` is the
    root port above it. `plug` is what plugs it in again; `replug` says whether its namespaces
    come back with it.
    """

    id: str
    bdf: str | None
    serial: str | None
    namespaces: tuple[LabNamespace, ...]
    port: str
    plug: dict[str, Any]
    replug: bool


@dataclass(frozen=True)
class LabInfo:
    """The laboratory: kernel release, "kvm" or "tcg", `$UDRV_LAB_OUT`, and the devices."""

    kernel: str
    accel: str
    out: Path
    devices: tuple[LabDevice, ...]

    def device(self, serial: str) -> LabDevice:
        """The device with this serial; `LabError` if there is none."""
        for device in self.devices:
            if device.serial == serial:
                return device
        known = ", ".join(str(d.serial) for d in self.devices)
        raise LabError(f"no device of the lab has the serial {serial!r}", mend=f"there are {known}")


def in_guest() -> bool:
    """Whether this process runs inside the laboratory."""
    return PATH.exists()


def load(path: Path = PATH) -> LabInfo:
    """Read the file; `LabError` when this is no laboratory."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read: this is not the inside of a laboratory",
                       mend="run this under udrv-lab run -- COMMAND") from error
    devices = tuple(
        LabDevice(
            id=d["id"], bdf=d["bdf"], serial=d["serial"], port=d["port"], plug=d["plug"],
            replug=d["replug"], namespaces=tuple(LabNamespace(**ns) for ns in d["namespaces"]),
        )
        for d in raw["devices"]
    )
    return LabInfo(raw["kernel"], raw["accel"], Path(raw["out"]), devices)
