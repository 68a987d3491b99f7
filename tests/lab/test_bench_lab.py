# SPDX-License-Identifier: Apache-2.0
"""udrv-bench on QEMU's NVMe controller over the kernel's VFIO."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import udrv
from udrv import pci
from udrv.bench import BenchConfig, run
from udrv.errors import ConfirmationRequiredError
from udrv.lab.info import LabDevice
from udrv.nvme import Controller


@pytest.fixture(scope="module")
def device(lab_devices: tuple[LabDevice, ...]) -> Iterator[LabDevice]:
    bdf = str(lab_devices[0].bdf)
    pci.plan_bind(bdf).execute()
    yield lab_devices[0]
    pci.unbind(bdf)


@pytest.fixture(scope="module")
def ctrl(device: LabDevice) -> Iterator[Controller]:
    with udrv.open(f"pci:{device.bdf}", queues=2, interrupts=True) as ctrl:
        yield ctrl


@pytest.mark.parametrize("wait", ["poll", "interrupt", "hybrid"])
@pytest.mark.parametrize("iodepth", [1, 32])
def test_depths_and_ways_of_waiting(ctrl: Controller, iodepth: int, wait: str) -> None:
    result = run(ctrl, BenchConfig(iodepth=iodepth, wait=wait, number_ios=400))
    assert result.read.ios == 400
    assert result.setup.transport == "vfio"
    assert result.cost.sq_doorbells <= 400
    if wait == "interrupt":
        assert result.cost.voluntary_switches > 0, "it slept"


@pytest.mark.parametrize("bs", [4096, 12288, 65536])
def test_what_is_written_over_vfio_is_there(
    ctrl: Controller, device: LabDevice, bs: int
) -> None:
    config = BenchConfig(
        rw="randrw", bs=bs, iodepth=16, numjobs=2, number_ios=150, size=8 << 20, verify=True,
        wait="interrupt",
    )
    result = run(ctrl, config, i_mean=f"{device.serial}:1")
    assert result.verification is not None
    assert result.verification.failures == 0
    assert result.verification.read_back > 0


def test_writing_needs_the_drives_name(ctrl: Controller, device: LabDevice) -> None:
    with pytest.raises(ConfirmationRequiredError, match=str(device.serial)):
        run(ctrl, BenchConfig(rw="write", number_ios=1))


def test_the_command_line(lab_devices: tuple[LabDevice, ...], tmp_path: Path) -> None:
    other = lab_devices[1]
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "udrv.bench.main", "run", f"pci:{other.bdf}", "--bind",
         "--number-ios", "200", "--iodepth", "8", "--wait", "interrupt",
         "--output-format", "json", "--output", str(out)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["jobs"][0]["read"]["total_ios"] == 200
    assert document["udrv"]["setup"]["serial"] == other.serial
    assert pci.function(str(other.bdf)).driver == "nvme", "--bind is for the run only"
