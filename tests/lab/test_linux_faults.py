# SPDX-License-Identifier: Apache-2.0
"""Faults of our controller under Linux's driver: it finds each, says so, and loses no byte.

What Linux does is known from outside of this project, so it measures the faults as well: a drop
that it did not abort, a surprise removal that it did not notice, would be faults of another kind.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest
from linux_lab import (
    KernelLines,
    Load,
    block,
    fio,
    live,
    nvme,
    sh,
    state,
    wait_for,
)

from udrv.lab.info import LabDevice, LabInfo
from udrv.lab.soft_port import SoftPort
from udrv.soft.faults import Script, fault

pytestmark = [
    pytest.mark.lab_machine(
        "soft:?lba=512&size=1G",
        "soft:?lba=4096&size=1G&doorbells=trapped",
        iommu=False, append="nvme_core.io_timeout=4 nvme_core.admin_timeout=4",
    ),
    pytest.mark.full(minutes=8),
    pytest.mark.timeout(600),
    # of the block layer: an error that a test provokes
    pytest.mark.kernel_log_allow(r"I/O error, dev nvme", r"critical medium error, dev nvme"),
]


@pytest.fixture(params=["UDRVLAB0", "UDRVLAB1"], ids=["mapped", "trapped"])
def device(lab: LabInfo, request: pytest.FixtureRequest) -> LabDevice:
    return lab.device(request.param)


@pytest.fixture
def soft(device: LabDevice) -> Iterator[SoftPort]:
    live(device)
    with SoftPort(device) as port:
        yield port
        port.clear()


@pytest.fixture
def said() -> KernelLines:
    return KernelLines()


def resets(said: KernelLines) -> int:
    return sum("timeout, reset controller" in line or "controller is down" in line
               for line in said.of_driver())


def applied(soft: SoftPort) -> int:
    return sum(one.applied for one in soft.loaded())


def through(device: LabDevice, soft: SoftPort, script: Script) -> None:
    """Load faults under I/O, see them take effect, and all of the I/O succeed."""
    with Load(block(device), runtime=300) as job:
        soft.add(script)
        wait_for(lambda: applied(soft))
        live(device)
        job.end_well()
    live(device)
    fio(block(device), rw="randrw", size="4M", verify="crc32c")


def test_a_dropped_completion_is_aborted_and_then_reset(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    through(device, soft, Script((fault("drop", opcodes="write", count=1),)))
    assert "timeout, aborting req_op:WRITE" in said
    assert "Abort status: 0x0" in said
    assert "timeout, reset controller" in said
    assert resets(said) == 1


def test_a_late_completion_is_aborted_and_tried_again(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    through(device, soft, Script((fault("late", us=60_000_000, opcodes="read", count=1),)))
    assert "timeout, aborting req_op:READ" in said
    assert "Abort status: 0x0" in said
    assert resets(said) == 0  # Abort ended it


@pytest.mark.parametrize("kind", ["wrong_phase", "unknown_cid"])
def test_a_completion_that_nobody_can_use(
    device: LabDevice, soft: SoftPort, said: KernelLines, kind: str
) -> None:
    through(device, soft, Script((fault(kind, opcodes="read", count=1),)))
    assert resets(said) >= 1
    assert ("invalid id 65535 completed" in said) == (kind == "unknown_cid")


def test_a_duplicate_is_refused(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    """Its tag is free, or in use by a command of another generation."""
    through(device, soft, Script((fault("duplicate", us=1000, opcodes="read", count=3),)))
    assert resets(said) == 0


def test_a_missing_interrupt_is_found_by_the_timeout(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    soft.add(Script((fault("missing_interrupt", opcodes="read", count=1),)))
    sh("dd", f"if={block(device)}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
    assert "timeout, completion polled" in said
    assert resets(said) == 0


def test_spurious_interrupts_and_wrong_heads_change_nothing(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    through(device, soft, Script((fault("spurious_interrupt", every=7),
                                  fault("wrong_sqhd", head=65535, every=11))))
    assert not [line for line in said.of_driver() if "timeout" in line]


def test_a_fatal_status_is_found_and_reset(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    through(device, soft, Script((fault("cfs", opcodes="write", count=1),)))
    assert "controller is down; will reset: CSTS=0x3" in said


def test_all_ones_is_a_device_that_has_gone(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    """Registers and configuration space are gone, longer than a command may take, then are back."""
    with Load(block(device)) as job:
        soft.add(Script((fault("all_ones", us=30_000_000, opcodes="write", count=1),)))
        wait_for(lambda: "CSTS=0xffffffff" in said)
        wait_for(lambda: state(device) in {"dead", ""})
        report, _ = job.end()
    assert report["error"] == errno.EIO
    soft.clear()
    time.sleep(30)  # the device is not there before, whoever asks
    come_back(device)


def come_back(device: LabDevice) -> None:
    """Take the device off the bus and find it again, as somebody would who reseats it."""
    sh("sh", "-c", f"echo 1 >/sys/bus/pci/devices/{device.bdf}/remove")
    sh("sh", "-c", "echo 1 >/sys/bus/pci/rescan")
    live(device)
    fio(block(device), rw="randrw", size="4M", verify="crc32c")


def test_a_controller_that_never_gets_ready_is_given_up(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    name = live(device).name
    soft.add(Script((fault("never_ready"),)))
    sh("sh", "-c", f"echo 1 >/sys/class/nvme/{name}/reset_controller || true")
    wait_for(lambda: "Device not ready; aborting initialisation" in said)
    wait_for(lambda: "Disabling device after reset failure" in said)
    soft.clear()
    come_back(device)


def test_a_controller_that_gets_ready_slowly_is_waited_for(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    soft.add(Script((fault("slow_ready", us=2_000_000), fault("slow_reset", us=1_000_000))))
    nvme("reset", live(device))
    live(device)
    assert applied(soft) >= 1
    assert "not ready" not in said


def test_a_shutdown_that_hangs_is_given_up(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    soft.add(Script((fault("shutdown_hang"),)))
    sh("sh", "-c", f"echo {device.bdf} >/sys/bus/pci/drivers/nvme/unbind")
    assert "Device not ready; aborting shutdown" in said
    soft.clear()
    sh("sh", "-c", f"echo {device.bdf} >/sys/bus/pci/drivers/nvme/bind")
    live(device)
    fio(block(device), rw="randrw", size="4M", verify="crc32c")


def test_media_errors_are_io_errors_and_no_more(
    device: LabDevice, soft: SoftPort, said: KernelLines
) -> None:
    soft.add(Script((fault("media_error", opcodes="read", lba=(1000, 1007)),)))
    disk = block(device)
    skip = 1000 * device.namespaces[0].lba_size // 4096
    sh("dd", f"if={disk}", "of=/dev/null", "bs=4k", f"skip={skip}", "count=1", "iflag=direct",
       status=1)
    assert f"critical medium error, dev {disk.name}" in said
    assert resets(said) == 0


@pytest.mark.parametrize(("sct", "sc"), [(0, 0x82), (0, 0x06), (0, 0x07)])
def test_errors_that_may_pass_are_tried_again(
    device: LabDevice, soft: SoftPort, said: KernelLines, sct: int, sc: int
) -> None:
    """Namespace not ready, internal error, aborted: without DNR."""
    through(device, soft, Script((fault("status", sct=sct, sc=sc, opcodes="read", every=50),)))
    assert resets(said) == 0
