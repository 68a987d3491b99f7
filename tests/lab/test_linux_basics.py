# SPDX-License-Identifier: Apache-2.0
"""Linux's own driver on our controller: it is found, it does I/O, and nothing is complained of."""

from __future__ import annotations

from pathlib import Path

import pytest
from linux_lab import (
    KernelLines,
    Load,
    block,
    fio,
    live,
    nvme,
    nvme_json,
    queue_setting,
    sh,
)

from udrv.lab.info import LabDevice, LabInfo

pytestmark = [
    pytest.mark.lab_machine("soft:?ns=512:1G+4096:256M&queues=6", iommu=False),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def device(lab: LabInfo) -> LabDevice:
    return lab.device("UDRVLAB0")


def test_it_is_probed_without_a_complaint(device: LabDevice) -> None:
    node = live(device)
    lines = [line.partition("] ")[2] for line in sh("dmesg").splitlines() if " nvme nvme" in line]
    assert lines[:2] == [f"nvme {node.name}: pci function {device.bdf}",
                         f"nvme {node.name}: 2/0/1 default/read/poll queues"]
    assert lines[2:] == []
    assert [(ns.nsid, ns.lba_size, ns.size) for ns in device.namespaces] == [
        (1, 512, 1 << 30), (2, 4096, 256 << 20)]
    for ns in device.namespaces:
        disk = block(device, ns.nsid)
        assert int(sh("blockdev", "--getsize64", disk)) == ns.size
        assert int(queue_setting(disk, "logical_block_size")) == ns.lba_size


def test_what_linux_makes_of_its_capabilities(device: LabDevice) -> None:
    disk = block(device)
    expected = {"write_cache": "write back", "fua": "1", "max_hw_sectors_kb": "512",
                "discard_granularity": "512", "io_poll": "1", "nr_requests": "1023"}
    assert {name: queue_setting(disk, name) for name in expected} == expected
    assert int(queue_setting(disk, "discard_max_bytes")) > 0
    assert int(queue_setting(disk, "write_zeroes_max_bytes")) > 0


def test_every_cpu_has_a_queue_and_a_vector_of_its_own(device: LabDevice) -> None:
    name = live(device).name
    fio(block(device), rw="randread", size="16M", numjobs=2, cpus_allowed="0,1",
        cpus_allowed_policy="split", group_reporting=None)
    counts = {}
    for line in Path("/proc/interrupts").read_text().splitlines():
        words = line.split()
        if words[-1].startswith(f"{name}q"):
            counts[words[-1]] = [int(word) for word in words[1:3]]
    assert sorted(counts) == [f"{name}q{i}" for i in range(3)]  # admin, and one for each CPU
    assert counts[f"{name}q1"][0] > 0 == counts[f"{name}q1"][1]
    assert counts[f"{name}q2"][1] > 0 == counts[f"{name}q2"][0]


FULL = pytest.mark.full(minutes=2)


@pytest.mark.parametrize(
    ("engine", "bs"),
    [("io_uring", "4k"), ("libaio", "68k"),
     *(pytest.param(engine, bs, marks=FULL) for engine, bs in (
         ("io_uring", "512"), ("io_uring", "68k"), ("io_uring", "1m"), ("libaio", "512"),
         ("libaio", "4k"), ("libaio", "1m")))],
)
def test_what_fio_wrote_it_reads_back(device: LabDevice, engine: str, bs: str) -> None:
    fio(block(device), ioengine=engine, bs=bs, rw="randwrite", size="12M", verify="crc32c",
        fsync=64)


def test_polled_queues_and_passthrough(device: LabDevice) -> None:
    fio(block(device), hipri=None, rw="randwrite", size="8M", verify="crc32c")
    generic = Path("/dev") / block(device).name.replace("nvme", "ng")
    fio(generic, ioengine="io_uring_cmd", cmd_type="nvme", direct=0, rw="randwrite", size="8M",
        verify="crc32c")


def test_discard_and_zeroes(device: LabDevice) -> None:
    disk = block(device)
    fio(disk, rw="write", size="8M", bs="64k", verify="crc32c", buffer_pattern="0x5a")
    sh("blkdiscard", "--offset", 1 << 20, "--length", 1 << 20, disk)
    sh("blkdiscard", "--zeroout", "--offset", 3 << 20, "--length", 1 << 20, disk)
    with disk.open("rb", buffering=0) as file:
        data = file.read(8 << 20)
    for mib in range(8):
        piece = data[mib << 20 : (mib + 1) << 20]
        assert (not any(piece)) == (mib in {1, 3}), mib
    fio(disk, rw="randtrim", size="64M", bs="64k", ioengine="libaio", iodepth=8)


def test_nvme_cli_reads_what_there_is(device: LabDevice) -> None:
    ctrl, disk = live(device), block(device)
    rows = {row["DevicePath"]: row for row in nvme_json("list")["Devices"]}
    assert rows[str(disk)]["SerialNumber"] == "UDRVLAB0"
    assert nvme_json("id-ctrl", ctrl)["nn"] == 2
    assert nvme_json("id-ns", disk)["nsze"] == (1 << 30) // 512
    assert nvme_json("smart-log", ctrl)["critical_warning"] == 0
    for words in (["list-subsys"], ["list-ns", ctrl], ["list-ctrl", ctrl], ["ns-descs", disk],
                  ["nvm-id-ctrl", ctrl], ["nvm-id-ns", disk], ["error-log", ctrl],
                  ["fw-log", ctrl], ["effects-log", ctrl, "-c", "0"], ["self-test-log", ctrl],
                  ["changed-ns-list-log", ctrl], ["sanitize-log", ctrl],
                  ["supported-log-pages", ctrl], ["fid-support-effects-log", ctrl],
                  ["cmdset-ind-id-ns", ctrl, "-n", "1"], ["id-ctrl", ctrl, "-H"],
                  ["get-log", ctrl, "-i", "0xc0", "-l", "64"], ["id-ns", disk, "-H"]):
        nvme(*words)


def test_a_reset_under_load_loses_nothing(device: LabDevice) -> None:
    said = KernelLines()
    with Load(block(device)) as job:
        for _ in range(3):
            nvme("reset", live(device))
            fio(block(device, 2), rw="randread", size="1M")
        job.end_well()
    assert "timeout" not in said
    assert "Abort" not in said
