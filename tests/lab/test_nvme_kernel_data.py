# SPDX-License-Identifier: Apache-2.0
"""What one way writes, every other way reads: passthrough, block, VFIO and the kernel itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import typer
from kernel_lab import controller_node, node_of
from typer.testing import CliRunner

import udrv
from udrv.bench import BenchConfig, run
from udrv.bench.main import app as bench
from udrv.cli.main import app
from udrv.lab.info import LabDevice
from udrv.nvme import Namespace

TOTAL = 16 << 20


def write_pieces(ns: Namespace, seed: int) -> str:
    """Random bytes over the first TOTAL bytes, in pieces of mixed sizes; their SHA-256."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, TOTAL, dtype=np.uint8)
    at = 0
    while at < TOTAL:
        size = min(int(2 ** rng.uniform(9, 20)) // ns.lba_size * ns.lba_size or ns.lba_size,
                   TOTAL - at)  # fmt: skip
        ns.write(at // ns.lba_size, data[at : at + size])
        at += size
    ns.flush()
    return hashlib.sha256(data).hexdigest()


def digest(ns: Namespace) -> str:
    return hashlib.sha256(ns.read(0, TOTAL // ns.lba_size).tobytes()).hexdigest()


def digest_by_kernel(block: Path) -> str:
    subprocess.run(["blockdev", "--flushbufs", str(block)], check=True)
    out = hashlib.sha256()
    with block.open("rb", buffering=0) as disk:
        for _ in range(TOTAL >> 20):
            out.update(disk.read(1 << 20))
    return out.hexdigest()


@pytest.mark.parametrize("iopoll", ["", "?iopoll=1"])
@pytest.mark.parametrize("nsid", [1, 2])
def test_every_way_reads_what_any_other_wrote(
    lab_devices: tuple[LabDevice, ...], nsid: int, iopoll: str
) -> None:
    device = lab_devices[0]
    block = node_of(device, nsid, "block")
    with udrv.open(f"{node_of(device, nsid, 'generic')}{iopoll}") as ctrl:
        want = write_pieces(ctrl.namespace(nsid), seed=nsid)
    assert digest_by_kernel(block) == want
    with udrv.open(str(block)) as ctrl:
        assert digest(ctrl.namespace(nsid)) == want
        want = write_pieces(ctrl.namespace(nsid), seed=nsid + 10)
    with udrv.open(f"pci:{device.bdf}", bind=True) as ctrl:
        assert digest(ctrl.namespace(nsid)) == want
        want = write_pieces(ctrl.namespace(nsid), seed=nsid + 20)
    node_of(device, nsid, "generic")
    with udrv.open(str(controller_node(device))) as ctrl:
        assert digest(ctrl.namespace(nsid)) == want
    assert digest_by_kernel(node_of(device, nsid, "block")) == want


@pytest.mark.parametrize("target", ["generic", "block", "controller", "polled"])
@pytest.mark.parametrize("wait", ["poll", "interrupt", "hybrid"])
def test_bench(lab_devices: tuple[LabDevice, ...], target: str, wait: str) -> None:
    device = lab_devices[0]
    if target == "controller":
        path = str(controller_node(device))
    else:
        path = str(node_of(device, 1, "block" if target == "block" else "generic"))
        path += "?iopoll=1" if target == "polled" else ""
    config = BenchConfig(
        rw="randrw", bs=4096, iodepth=16, numjobs=2, number_ios=200, size=8 << 20, verify=True,
        wait=wait, nsid=1,
    )
    result = run(path, config, i_mean=f"{device.serial}:1")
    assert result.verification is not None
    assert result.verification.failures == 0
    assert result.verification.read_back > 0
    assert result.setup.transport == ("io_uring-block" if target == "block" else "io_uring-cmd")
    assert result.cost.sq_doorbells == 0
    assert result.cost.system_calls > 0
    if target != "polled":
        assert result.cost.system_calls <= 2 * result.issued + 64


def test_the_command_lines(lab_devices: tuple[LabDevice, ...], tmp_path: Path) -> None:
    device = lab_devices[1]
    generic, block = node_of(device, 1, "generic"), node_of(device, 1, "block")

    def program(*args: object, program: typer.Typer = app) -> str:
        # in this process: to start Python takes an emulated CPU many seconds
        done = CliRunner().invoke(program, [str(arg) for arg in args])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    listed = json.loads(program("list", "--json"))["devices"]
    one = next(d for d in listed if d["serial"] == device.serial)
    assert one["namespaces"][0]["targets"] == [str(generic), str(block)]
    data = os.urandom(3 * 512)
    (tmp_path / "in").write_bytes(data)
    program("write", generic, "--lba", "5", "-i", tmp_path / "in", "--i-mean",
            f"{device.serial}:1")  # fmt: skip
    for target in (generic, block, f"{generic}?iopoll=1", controller_node(device)):
        program("read", target, "--lba", "5", "--blocks", "3", "-o", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data
        assert json.loads(program("id-ctrl", target, "--json"))["sn"].strip() == device.serial
        assert json.loads(program("id-ns", target, "--json"))["nsze"] > 0
    want = json.loads(subprocess.run(
        ["nvme", "smart-log", str(controller_node(device)), "-o", "json"], capture_output=True,
        text=True, check=True,
    ).stdout)  # fmt: skip
    got = json.loads(program("smart-log", generic, "--json"))
    assert got.keys() == want.keys()
    out = program("run", generic, "--number-ios", "50", program=bench)
    assert "io_uring-cmd" in out and "system calls per I/O" in out
