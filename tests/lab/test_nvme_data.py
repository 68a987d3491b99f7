"""What our driver writes, the kernel's reads, and the other way round."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import udrv
from udrv.lab.info import LabDevice
from udrv.nvme import READ, WRITE, Controller, Namespace

TOTAL = 256 << 20
LARGEST = 1 << 20


def pieces(seed: int, lba_size: int) -> Iterator[int]:
    """Random lengths in blocks, 512 B (or one block) to 1 MiB, that add up to TOTAL."""
    rng = np.random.default_rng(seed)
    left = TOTAL // lba_size
    while left:
        # as many small ones as large ones: uniform in the exponent
        size = int(2 ** rng.uniform(9, 20.01))
        blocks = min(max(size // lba_size, 1), LARGEST // lba_size, left)
        left -= blocks
        yield blocks


def block_device(bdf: str, nsid: int) -> Path:
    """The kernel's block device, once its background scan has found it."""
    for _ in range(200):
        for ns in Path(f"/sys/bus/pci/devices/{bdf}").glob("nvme/nvme*/nvme*n*"):
            node = Path("/dev") / ns.name
            if int((ns / "nsid").read_text()) == nsid and node.exists():
                return node
        time.sleep(0.05)
    raise AssertionError(f"{bdf} has no block device of namespace {nsid}")


def digest_by_kernel(device: Path) -> str:
    out = hashlib.sha256()
    with device.open("rb", buffering=0) as f:
        left = TOTAL
        while left:
            data = f.read(min(left, 4 << 20))
            assert data
            out.update(data)
            left -= len(data)
    return out.hexdigest()


def transfer(ctrl: Controller, ns: Namespace, opcode: int, seed: int, data: np.ndarray) -> None:
    """Move `data` in pieces of mixed sizes, each at an odd place in its DMA buffer."""
    rng = np.random.default_rng(seed + 1)
    room = ctrl.alloc(LARGEST + 8192)
    at = 0
    for blocks in pieces(seed, ns.lba_size):
        n = blocks * ns.lba_size
        shift = 4 * int(rng.integers(0, 2048))
        part = room[shift : shift + n]
        lba = at // ns.lba_size
        if opcode == WRITE:
            part[:] = data[at : at + n]
            ns.write(lba, part)
        else:
            part[:] = 0
            ns.read(lba, blocks, into=part)
            data[at : at + n] = part
        at += n
    assert at == TOTAL


@pytest.mark.timeout(600)
@pytest.mark.parametrize("nsid", [1, pytest.param(2, marks=pytest.mark.full(minutes=4))])
def test_written_by_us_read_by_the_kernel_and_back(
    lab_devices: tuple[LabDevice, ...], nsid: int
) -> None:
    bdf = str(lab_devices[0].bdf)
    data = np.random.default_rng(nsid).integers(0, 256, TOTAL, dtype=np.uint8)
    want = hashlib.sha256(data).hexdigest()
    with udrv.open(f"pci:{bdf}", bind=True) as ctrl:
        ns = ctrl.namespace(nsid)
        transfer(ctrl, ns, WRITE, seed=nsid, data=data)
        ns.flush()
    device = block_device(bdf, nsid)
    assert digest_by_kernel(device) == want

    # the other way round, and different bytes, so that the first pass cannot help
    data = np.random.default_rng(nsid + 10).integers(0, 256, TOTAL, dtype=np.uint8)
    want = hashlib.sha256(data).hexdigest()
    with device.open("r+b", buffering=0) as f:
        view = memoryview(data)
        at = 0
        while at < TOTAL:
            at += f.write(view[at : at + (4 << 20)]) or 0
    subprocess.run(["blockdev", "--flushbufs", str(device)], check=True)
    back = np.zeros(TOTAL, np.uint8)
    with udrv.open(f"pci:{bdf}", bind=True) as ctrl:
        transfer(ctrl, ctrl.namespace(nsid), READ, seed=nsid + 20, data=back)
    assert hashlib.sha256(back).hexdigest() == want
