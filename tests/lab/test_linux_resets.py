# SPDX-License-Identifier: Apache-2.0
"""Resets of every kind, and the driver taken off and put back, while fio writes and verifies.

Mapped and trapped doorbells, behind the IOMMU: memory is unmapped under the controller all the
time.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from linux_lab import KernelLines, Load, block, fio, live, nvme, sh, state, wait_for

import udrv
from udrv import soft
from udrv.lab.info import LabDevice, LabInfo

pytestmark = [
    pytest.mark.lab_machine(
        "soft:?lba=512&size=1G", "soft:?lba=4096&size=1G&doorbells=trapped&queues=1"),
    pytest.mark.full(minutes=5),
    pytest.mark.timeout(600),
    pytest.mark.kernel_log_allow(r"I/O error, dev nvme"),  # of I/O to a device that was removed
]


@pytest.fixture(params=["UDRVLAB0", "UDRVLAB1"], ids=["mapped", "trapped"])
def device(lab: LabInfo, request: pytest.FixtureRequest) -> LabDevice:
    return lab.device(request.param)


def write(path: str, text: str) -> None:
    sh("sh", "-c", f"echo {text} >{path}")


def counters(device: LabDevice) -> tuple[int, int, int]:
    """(commands, register writes that were seen, moves of shadow doorbells) of all I/O queues."""
    with udrv.open(str(live(device))) as ctrl:
        io = [queue for qid, queue in soft.read_counters(ctrl).queues.items() if qid]
    return (sum(queue.commands for queue in io), sum(queue.sq_doorbells for queue in io),
            sum(queue.sq_shadow for queue in io))


def test_shadow_doorbells_are_used(device: LabDevice) -> None:
    """Linux offers its pages; under load, registers are written where EventIdx asks for it."""
    before = counters(device)
    fio(block(device), rw="randread", size="8M")
    commands, rung, moved = (new - old for new, old in zip(counters(device), before, strict=True))
    assert commands >= 2048
    assert moved > commands / 64
    assert rung < commands / 2


@pytest.mark.parametrize("how", ["nvme reset", "function reset", "remove", "unbind"])
def test_nothing_is_lost(device: LabDevice, how: str) -> None:
    """Resets do not show in the I/O; a driver that was taken off is another matter."""
    said = KernelLines()
    pci = f"/sys/bus/pci/devices/{device.bdf}"
    with Load(block(device)) as job:
        for _ in range(3):
            if how == "nvme reset":
                nvme("reset", live(device))
            elif how == "function reset":
                write(f"{pci}/reset", "1")
            else:
                continue
            live(device)
            time.sleep(1)
        if how in {"nvme reset", "function reset"}:
            job.end_well()
        else:
            if how == "remove":
                write(f"{pci}/remove", "1")
                wait_for(lambda: not Path(pci).exists())
                write("/sys/bus/pci/rescan", "1")
            else:
                write("/sys/bus/pci/drivers/nvme/unbind", device.bdf)
                assert state(device) == ""
                write("/sys/bus/pci/drivers/nvme/bind", device.bdf)
            live(device)
            job.end()
    fio(block(device), rw="randrw", size="4M", verify="crc32c")
    assert "timeout" not in said
    assert "not ready" not in said
