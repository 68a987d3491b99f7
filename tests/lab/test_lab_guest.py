# SPDX-License-Identifier: Apache-2.0
"""The laboratory keeps its promises, seen from inside."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from udrv.errors import LabError
from udrv.lab.info import LabDevice, LabInfo
from udrv.lab.qmp import Qmp

PCI = Path("/sys/bus/pci/devices")
LOWER = Path("/run/udrv-lab/lower")


def wait_for(what: Callable[[], bool]) -> None:
    """Until `what` is true; the test's own time limit ends it otherwise."""
    while not what():
        time.sleep(0.02)


def controller_dir(device: LabDevice) -> Path:
    (found,) = (PCI / str(device.bdf) / "nvme").glob("nvme*")
    return found


def namespace_dirs(device: LabDevice) -> dict[int, Path]:
    return {int((d / "nsid").read_text()): d for d in controller_dir(device).glob("nvme*n*")}


@pytest.fixture
def qmp() -> Iterator[Qmp]:
    with Qmp() as client:
        yield client


def test_default_devices(lab: LabInfo) -> None:
    assert [d.serial for d in lab.devices[:2]] == ["UDRVLAB0", "UDRVLAB1"]
    assert [n.lba_size for n in lab.devices[0].namespaces] == [512, 4096]
    assert lab.kernel == os.uname().release
    assert lab.accel in {"kvm", "tcg"}


def test_device_file_agrees_with_sysfs(lab_devices: tuple[LabDevice, ...]) -> None:
    for device in lab_devices:
        assert (controller_dir(device) / "serial").read_text().strip() == device.serial
        found = {
            nsid: (
                int((d / "queue/logical_block_size").read_text()),
                int((d / "size").read_text()) * 512,
            )
            for nsid, d in namespace_dirs(device).items()
        }
        assert found == {n.nsid: (n.lba_size, n.size) for n in device.namespaces}


def test_every_device_has_its_own_iommu_group(lab_devices: tuple[LabDevice, ...]) -> None:
    for device in lab_devices:
        members = [d.name for d in (PCI / str(device.bdf) / "iommu_group/devices").iterdir()]
        assert members == [device.bdf]


def test_every_device_has_its_own_root_port(lab_devices: tuple[LabDevice, ...]) -> None:
    ports = [(PCI / str(d.bdf)).resolve().parent.name for d in lab_devices]
    assert ports == [d.port for d in lab_devices]
    assert len(set(ports)) == len(ports)


def test_vfio_is_ready() -> None:
    assert Path("/dev/vfio/vfio").is_char_device()
    assert Path("/sys/bus/pci/drivers/vfio-pci/bind").exists()


def test_kernel_driver_has_poll_queues() -> None:
    assert Path("/sys/module/nvme/parameters/poll_queues").read_text().strip() == "1"


def test_root_is_writable_and_the_host_below_is_not() -> None:
    name = f"udrv-lab-self-test-{os.getpid()}"
    written = Path("/") / name
    written.write_text("in the guest's memory only")
    assert not (LOWER / name).exists()
    written.unlink()
    with pytest.raises(OSError, match="Read-only") as caught:
        (LOWER / name).write_text("on the host")
    assert caught.value.errno == errno.EROFS
    # QEMU's own refusal, too: without it a remount would be all that it takes.
    remount = subprocess.run(["mount", "-o", "remount,rw", str(LOWER)], check=False,
                             capture_output=True)
    if remount.returncode == 0:
        with pytest.raises(OSError, match="Read-only"):
            (LOWER / name).write_text("on the host")
        subprocess.run(["mount", "-o", "remount,ro", str(LOWER)], check=True)


def test_out_is_the_writable_share(lab: LabInfo) -> None:
    assert os.environ["UDRV_LAB_OUT"] == str(lab.out)
    probe = lab.out / "self-test"
    probe.write_bytes(b"x" * 100_000)
    assert probe.stat().st_size == 100_000
    probe.unlink()


def test_loopback_is_up() -> None:
    assert int(Path("/sys/class/net/lo/flags").read_text(), 16) & 1


def test_qmp_answers_and_again_after_reopening() -> None:
    for _ in range(2):
        with Qmp() as qmp:
            assert qmp.execute("query-status")["status"] == "running"


def test_qmp_has_one_user_at_a_time(qmp: Qmp) -> None:
    with pytest.raises(LabError, match="another process holds it"):
        Qmp()


def test_qmp_refusal_keeps_qemus_words(qmp: Qmp) -> None:
    with pytest.raises(LabError, match="no-such-device"):
        qmp.execute("device_del", {"id": "no-such-device"})


def test_unplugged_device_goes_and_comes_back_whole(lab: LabInfo, qmp: Qmp) -> None:
    device = lab.device("UDRVLAB1")
    before = namespace_dirs(device).keys()
    qmp.unplug(device)
    assert not (PCI / str(device.bdf)).exists()
    qmp.plug(device)
    wait_for(lambda: bool(list((PCI / str(device.bdf) / "nvme").glob("nvme*"))))
    wait_for(lambda: namespace_dirs(device).keys() == before)


def test_plug_refuses_what_would_lose_its_namespaces(lab: LabInfo, qmp: Qmp) -> None:
    with pytest.raises(LabError, match="without its namespaces"):
        qmp.plug(lab.device("UDRVLAB0"))


@pytest.mark.parametrize(
    ("serial", "block_id"), [("UDRVLAB0", "nvme0n1"), ("UDRVLAB1", "nvme1")]
)
def test_frozen_disk_holds_its_commands_until_thawed(
    lab: LabInfo, qmp: Qmp, serial: str, block_id: str
) -> None:
    node = namespace_dirs(lab.device(serial))[1]
    total = 256
    qmp.freeze(block_id)
    reader = subprocess.Popen(
        ["dd", f"if=/dev/{node.name}", "of=/dev/null", "iflag=direct", "bs=4096",
         f"count={total}"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: int((node / "inflight").read_text().split()[0]) > 0)
        for _ in range(10):
            time.sleep(0.05)
            assert reader.poll() is None
    finally:
        qmp.thaw(block_id)
    assert reader.wait() == 0


@pytest.mark.kernel_log_allow("udrv-lab self test, allowed")
def test_allowed_kernel_lines_do_not_fail_a_test() -> None:
    Path("/dev/kmsg").write_text("<4>WARNING: udrv-lab self test, allowed\n")
