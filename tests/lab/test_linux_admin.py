# SPDX-License-Identifier: Apache-2.0
"""nvme-cli's commands through Linux's driver on our controller, and what it makes of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from linux_lab import KernelLines, block, fio, live, nvme, nvme_json, queue_setting, sh, wait_for

from udrv.lab.info import LabDevice, LabInfo

pytestmark = [
    pytest.mark.lab_machine("soft:?ns=512:512M+4096:256M&nn=8", iommu=False),
    pytest.mark.full(minutes=5),
    pytest.mark.timeout(600),
]


@pytest.fixture
def device(lab: LabInfo) -> LabDevice:
    return lab.device("UDRVLAB0")


@pytest.fixture
def ctrl(device: LabDevice) -> Path:
    return live(device)


@pytest.fixture
def disk(device: LabDevice) -> Path:
    return block(device)


def refused(name: str, *words: object) -> None:
    """nvme-cli fails and names the status."""
    done = subprocess.run(["nvme", *map(str, words)], capture_output=True, text=True,
                          errors="replace", check=False)
    assert done.returncode, words
    assert name in done.stdout + done.stderr, done.stdout + done.stderr


FEATURES = [0x01, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0E, 0x0F]


@pytest.mark.parametrize("select", [0, 1, 2, 3])
def test_every_feature_is_told(ctrl: Path, disk: Path, select: int) -> None:
    for feature in FEATURES:
        nvme("get-feature", ctrl, "-f", feature, "-s", select)
    nvme("get-feature", disk, "-f", 5, "-n", 1, "-s", select)


def test_features_are_set_and_the_kernel_sees_nothing_unusual(ctrl: Path, disk: Path) -> None:
    said = KernelLines()
    for feature, value in ((1, 3), (2, 0), (4, 0x160), (8, 0x105), (9, 0x10001), (0xA, 1),
                           (0xB, 0x31F)):
        nvme("set-feature", ctrl, "-f", feature, "-v", value)
        shown = nvme("get-feature", ctrl, "-f", feature, *(["-c", 1] if feature == 9 else []))
        assert f"{value:x}" in shown.lower(), shown
    nvme("set-feature", ctrl, "-f", 5, "-n", 1, "-v", 10)
    nvme("set-feature", ctrl, "-f", 8, "-v", 0)
    nvme("reset", ctrl)
    assert not [line for line in said.of_driver() if "capabilities" in line]


def test_the_write_cache_can_be_switched_off(device: LabDevice, ctrl: Path) -> None:
    nvme("set-feature", ctrl, "-f", 6, "-v", 0)
    fio(block(device), rw="randwrite", size="2M", fsync=8)
    nvme("set-feature", ctrl, "-f", 6, "-v", 1)


def test_commands_of_io(disk: Path, tmp_path: Path) -> None:
    data, other, back = tmp_path / "data", tmp_path / "other", tmp_path / "back"
    data.write_bytes(b"".join(bytes([block]) * 512 for block in range(1, 9)))
    other.write_bytes(bytes(4096))
    at = ["-s", 8, "-c", 7]
    whole = [*at, "-z", 4096]
    nvme("write", disk, *whole, "-d", data)
    nvme("flush", disk)
    nvme("read", disk, *whole, "-d", back)
    assert back.read_bytes() == data.read_bytes()
    nvme("compare", disk, *whole, "-d", data)
    refused("Compare Failure", "compare", disk, *whole, "-d", other)
    nvme("verify", disk, *at)
    nvme("copy", disk, "--sdlba=100", "--slbs=12,8", "--blocks=1,1")
    back.unlink()
    nvme("read", disk, "-s", 100, "-c", 3, "-z", 2048, "-d", back)
    assert back.read_bytes()[::512] == bytes([5, 6, 1, 2])
    nvme("write-zeroes", disk, *at)
    nvme("compare", disk, *whole, "-d", other)
    nvme("write", disk, *whole, "-d", data)
    nvme("dsm", disk, "-s", 8, "-b", 8, "-d")
    nvme("compare", disk, *whole, "-d", other)
    refused("LBA Out of Range", "read", disk, "-s", 1 << 30, "-c", 0, "-z", 512, "-d", back)
    nvme("io-passthru", disk, "-o", 2, "-n", 1, "-l", 512, "-r", "-b")
    refused("Invalid Command Opcode", "io-passthru", disk, "-o", 0x7F, "-n", 1)


def test_unreadable_blocks_are_medium_errors(ctrl: Path, disk: Path) -> None:
    said = KernelLines()
    before = media_errors(ctrl)
    nvme("write-uncor", disk, "-s", 8, "-c", 0)
    refused("Unrecovered Read Error", "verify", disk, "-s", 8, "-c", 7)
    sh("dd", f"if={disk}", "of=/dev/null", "bs=4k", "skip=1", "count=1", "iflag=direct", status=1)
    wait_for(lambda: f"critical medium error, dev {disk.name}, sector 8" in said)
    assert media_errors(ctrl) >= before + 2
    nvme("write-zeroes", disk, "-s", 8, "-c", 0)
    sh("dd", f"if={disk}", "of=/dev/null", "bs=4k", "skip=1", "count=1", "iflag=direct")
    newest = nvme_json("error-log", ctrl, "-e", "1")["errors"][0]
    assert newest["nsid"] == 1


def media_errors(ctrl: Path) -> int:
    return int(nvme_json("smart-log", ctrl)["media_errors"])


@pytest.mark.parametrize(("lbaf", "size"), [(2, 4096), (3, 4096), (1, 512), (0, 512)])
def test_format_is_seen_at_once(disk: Path, lbaf: int, size: int) -> None:
    for erase in (0, 1, 2):
        nvme("format", disk, "-l", lbaf, "-s", erase, "-f")
        wait_for(lambda: queue_setting(disk, "logical_block_size") == str(size))
    fio(disk, rw="randwrite", size="2M", verify="crc32c")


def test_namespaces_come_and_go(device: LabDevice, ctrl: Path) -> None:
    said = KernelLines()
    disk = block(device, 2)
    nvme("detach-ns", ctrl, "-n", 2, "-c", 1)
    wait_for(lambda: not disk.exists())
    nvme("attach-ns", ctrl, "-n", 2, "-c", 1)
    fio(block(device, 2), rw="randwrite", size="2M", verify="crc32c")
    nvme("detach-ns", ctrl, "-n", 2, "-c", 1)
    nvme("delete-ns", ctrl, "-n", 2)
    for lbaf, blocks in ((0, 65536), (2, 8192)):
        shown = nvme("create-ns", ctrl, "-s", blocks, "-c", blocks, "-f", lbaf)
        nsid = int(shown.rpartition(":")[2])
        nvme("attach-ns", ctrl, "-n", nsid, "-c", 1)
        new = block(device, nsid)
        assert int(sh("blockdev", "--getsz", new)) * 512 == blocks * (512, 4096)[lbaf == 2]
        fio(new, rw="randwrite", size="2M", verify="crc32c")
    nvme("delete-ns", ctrl, "-n", 0xFFFFFFFF, status=0)
    wait_for(lambda: not list(Path("/dev").glob(f"{ctrl.name}n*")))
    nvme("create-ns", ctrl, "-s", 1 << 20, "-c", 1 << 20, "-f", 0)
    nvme("attach-ns", ctrl, "-n", 1, "-c", 1)
    block(device, 1)
    assert any("rescanning namespaces" in line for line in said.of_driver())


def test_sanitize(ctrl: Path, disk: Path, tmp_path: Path) -> None:
    for action in (2, 4):  # block erase, crypto erase
        fio(disk, rw="write", size="1M", bs="64k", buffer_pattern="0x77")
        nvme("sanitize", ctrl, "-a", action)
        wait_for(lambda: done(ctrl))
        assert not any(disk.open("rb", buffering=0).read(1 << 20))
    refused("Invalid Field", "sanitize", ctrl, "-a", 3)


def done(ctrl: Path) -> bool:
    log = json.loads(nvme("sanitize-log", ctrl, "-o", "json"))
    status = str(next(iter(log.values())))
    return "Completed Successfully" in nvme("sanitize-log", ctrl, "-H") or "completed" in status


def test_self_tests(ctrl: Path) -> None:
    nvme("device-self-test", ctrl, "-n", "0xffffffff", "-s", 1)
    wait_for(lambda: "Operation Result             : 0\n" in nvme("self-test-log", ctrl))

    def aborted() -> bool:
        """A self-test that was ended in time: it takes a second, and so may nvme-cli."""
        sh("sh", "-c", f"nvme device-self-test {ctrl} -n 1 -s 2;"
                       f"nvme device-self-test {ctrl} -n 1 -s 0xf")
        return "Operation Result             : 0x1\n" in nvme("self-test-log", ctrl)

    wait_for(aborted)


def test_firmware(device: LabDevice, ctrl: Path, tmp_path: Path) -> None:
    image = tmp_path / "fw"
    image.write_bytes(b"UDRVSOFTREV2.0  " + bytes(8192 - 16))
    nvme("fw-download", ctrl, "-f", image)
    nvme("fw-commit", ctrl, "-s", 2, "-a", 1)
    assert nvme_json("id-ctrl", ctrl)["fr"].strip() == "1.0"
    nvme("reset", ctrl)
    assert nvme_json("id-ctrl", live(device))["fr"].strip() == "REV2.0"
    nvme("fw-commit", ctrl, "-s", 1, "-a", 2)
    nvme("reset", ctrl)
    nvme("fw-download", live(device), "-f", image)
    nvme("fw-commit", ctrl, "-s", 3, "-a", 3)  # at once: the event sends the driver for the log
    wait_for(lambda: nvme_json("id-ctrl", ctrl)["fr"].strip() == "REV2.0")
    live(device)


def test_the_temperature_is_an_event_and_hwmon_knows_it(device: LabDevice, ctrl: Path) -> None:
    said = KernelLines()
    kelvin = nvme_json("smart-log", ctrl)["temperature"]
    hwmon = next(Path(f"/sys/class/nvme/{ctrl.name}").glob("hwmon*/temp1_input"))
    assert int(hwmon.read_text()) + 273_150 == kelvin * 1000
    nvme("set-feature", ctrl, "-f", 0xB, "-v", 0x31F)
    nvme("set-feature", ctrl, "-f", 4, "-v", kelvin - 1)
    assert nvme_json("smart-log", ctrl)["critical_warning"] & 2
    nvme("set-feature", ctrl, "-f", 4, "-v", 343)
    nvme("smart-log", ctrl)
    assert not [line for line in said.of_driver() if "rror" in line]


def test_the_rest_is_refused_by_name(ctrl: Path, disk: Path) -> None:
    refused("Invalid Log Page", "endurance-log", ctrl)
    refused("Invalid Log Page", "persistent-event-log", ctrl, "-a", 0)
    refused("Invalid Field", "id-nvmset", ctrl)
    refused("Invalid Command Opcode", "resv-report", disk)
    refused("Invalid Command Opcode", "security-recv", ctrl, "-p", 0, "-x", 512)
    refused("Invalid Command Opcode", "admin-passthru", ctrl, "-o", 0x7F)
    refused("not supported", "subsystem-reset", ctrl)
