# SPDX-License-Identifier: Apache-2.0
"""udrv-bench compare's fio on nodes of the kernel's driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from udrv.bench import BenchConfig
from udrv.bench.fio import engine_of, node_serial, run_fio
from udrv.bench.measured import figures_of
from udrv.lab.info import LabDevice


@pytest.fixture(scope="module")
def device(lab_devices: tuple[LabDevice, ...]) -> LabDevice:
    return lab_devices[0]


def node_of(device: LabDevice, pattern: str) -> str:
    """The node of the device's first namespace: pattern is "ng*n1" or "nvme*n1"."""
    folder = Path(f"/sys/bus/pci/devices/{device.bdf}/nvme")
    (found,) = [path for path in folder.glob(f"nvme*/{pattern}") if "c" not in path.name]
    return f"/dev/{found.name}"


@pytest.fixture(scope="module", params=["ng*n1", "nvme*n1"], ids=["generic", "block"])
def node(request: pytest.FixtureRequest, device: LabDevice) -> Iterator[str]:
    return node_of(device, request.param)


def test_the_serial_of_a_node_is_that_of_its_drive(device: LabDevice, node: str) -> None:
    assert node_serial(node) == device.serial


def test_fio_does_our_job_on_a_node(node: str) -> None:
    engine = engine_of(node)
    assert engine[0] == f"--ioengine={'io_uring_cmd' if '/ng' in node else 'io_uring'}"
    assert ("--direct=1" in engine) == ("/nvme" in node), "fio refuses it on a character device"
    config = BenchConfig(rw="randread", bs=8192, iodepth=4, number_ios=300, size=8 << 20)
    found = run_fio(config, node)
    read = found.directions["read"]
    assert read.ios == 300
    assert sum(count for *_, count in read.buckets) == 300
    assert found.setup["transport"] == engine[0].partition("=")[2]
    assert set(figures_of(found)) >= {"iops", "p50_ns", "p99_ns"}
    timed = run_fio(BenchConfig(bs=4096, iodepth=4, runtime=0.5, seed=5), node)
    assert timed.directions["read"].ios > 0
