# SPDX-License-Identifier: Apache-2.0
"""Finding the kernel driver's nodes of a device of the laboratory."""

from __future__ import annotations

import time
from pathlib import Path

from udrv.lab.info import LabDevice


def controller_node(device: LabDevice) -> Path:
    """/dev/nvmeX of the device, once the kernel has it."""
    for _ in range(400):
        found = sorted(Path(f"/sys/bus/pci/devices/{device.bdf}/nvme").glob("nvme*"))
        if found and (found[0] / "state").read_text().strip() == "live":
            return Path("/dev") / found[0].name
        time.sleep(0.05)
    raise AssertionError(f"no live controller at {device.bdf}")


def node_of(device: LabDevice, nsid: int, kind: str) -> Path:
    """/dev/nvmeXnY ("block") or /dev/ngXnY ("generic") of a namespace, once the kernel has it."""
    controller = Path("/sys/class/nvme") / controller_node(device).name
    for _ in range(400):
        for block in controller.glob("nvme*n*"):
            if int((block / "nsid").read_text()) == nsid:
                generic = next(controller.glob(f"ng*n{block.name.rpartition('n')[2]}"), None)
                entry = block if kind == "block" else generic
                if entry is not None and (Path("/dev") / entry.name).exists():
                    return Path("/dev") / entry.name
        time.sleep(0.05)
    there = sorted(path.name for path in controller.iterdir())
    raise AssertionError(f"{device.bdf} has no {kind} node of namespace {nsid}: {there}")
