# SPDX-License-Identifier: Apache-2.0
"""udrv-bench compare on the kernel's nodes, with fio, and on a drive that changes drivers."""

from __future__ import annotations

from pathlib import Path

import pytest

from udrv.bench import BenchConfig, compare_out
from udrv.bench.compare import compare
from udrv.bench.fio import engine_of, run_fio
from udrv.bench.measured import figures_of
from udrv.bench.nodes import Identity, find, identity_of, node_serial
from udrv.errors import ConfirmationRequiredError, DeviceNotFoundError, UdrvError
from udrv.lab.info import LabDevice


@pytest.fixture(scope="module")
def device(lab_devices: tuple[LabDevice, ...]) -> LabDevice:
    return lab_devices[0]


def node_of(device: LabDevice, kind: str) -> str:
    """The node of the device's first namespace; its number depends on who rebound what before."""
    for path in Path("/dev").glob(f"{kind}[0-9]*n[0-9]*"):
        found = identity_of(str(path))
        if found is not None and (found.serial, found.nsid) == (device.serial, 1):
            return str(path)
    raise AssertionError(f"no {kind} node of {device.serial}")


@pytest.fixture(params=["ng", "nvme"])
def node(request: pytest.FixtureRequest, device: LabDevice) -> str:
    return node_of(device, request.param)


def test_a_node_is_of_its_drive_and_namespace(device: LabDevice, node: str) -> None:
    assert node_serial(node) == device.serial
    found = identity_of(node)
    assert found is not None
    assert (found.serial, found.nsid) == (device.serial, 1)
    assert find(found, device=node, seconds=0) == node
    with pytest.raises(DeviceNotFoundError, match="did not come back"):
        find(Identity("NOBODY", 1, found.pattern), device=node, seconds=0.1)


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


def test_one_drive_is_compared_between_its_drivers_and_fio(device: LabDevice) -> None:
    node = node_of(device, "ng")
    targets = [f"pci:{device.bdf}", node]
    config = BenchConfig(
        rw="randrw", bs=4096, iodepth=8, number_ios=600, size=8 << 20, wait="interrupt"
    )
    with pytest.raises(UdrvError, match=r"bound to the driver nvme.*--bind"):
        compare(targets, config, with_fio=True, i_mean=[f"{device.serial}:1"], rounds=1)
    assert Path(node).exists(), "nothing was bound"
    with pytest.raises(ConfirmationRequiredError, match=f"{device.serial}:1"):
        compare([node], config, with_fio=True, rounds=1)
    found = compare(
        targets, config, with_fio=True, bind=True, i_mean=[f"{device.serial}:1"], rounds=2
    )
    assert Path(node_of(device, "ng")).exists(), "back at the kernel's driver, by whatever name"
    pci, kernel, fio = found.cases
    assert (pci.label, kernel.label, fio.fio) == (*targets, True)
    assert pci.runs[0].setup["transport"] == "vfio"
    assert kernel.runs[0].setup["serial"] == device.serial
    for case in found.cases:
        assert len(case.runs) == 2
        for run in case.runs:
            assert sum(direction.ios for direction in run.directions.values()) == 600
            assert set(run.directions) == {"read", "write"}
    figures = {(ratio.case, ratio.figure) for ratio in found.ratios}
    assert {(case.label, f) for case in (kernel, fio) for f in ("iops", "p50_ns")} <= figures
    document = compare_out.to_json(found)
    cases = document["compare"]["cases"]
    assert [case["program"].split("-")[0] for case in cases] == ["udrv", "udrv", "fio"]
