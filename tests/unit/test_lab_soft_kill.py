# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of our controller while Linux's driver uses it: the guest goes on, flushed data stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from udrv.lab.devices import parse_device
from udrv.lab.run import LabConfig, run

pytestmark = [pytest.mark.full(minutes=4), pytest.mark.timeout(600)]

BLOCKS = 4 << 20
PATTERN = bytes(range(256)) * 16

IN_THE_GUEST = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "lab")!r})
from linux_lab import KernelLines, Load, block, live, sh, state, wait_for
from udrv.lab.info import load
from udrv.lab.soft_port import SoftPort

device = load().device("UDRVLAB0")
live(device)
disk = block(device)
with disk.open("r+b", buffering=0) as file:
    file.write((bytes(range(256)) * 16) * ({BLOCKS} // 4096))
    os.fsync(file.fileno())
said = KernelLines()
with Load(disk, offset={BLOCKS}, size="16M") as job, SoftPort(device) as soft:
    soft.kill()
    wait_for(lambda: state(device) in ("dead", ""))
    report, _ = job.end()
assert report["error"], "fio was told of no error"
# nothing hangs, and the function is taken off as any other is
sh("sh", "-c", f"echo 1 >/sys/bus/pci/devices/{{device.bdf}}/remove")
wait_for(lambda: not disk.exists())
print("gone:", [line for line in said.of_driver() if "I/O error" not in line][-1])
"""


def test_flushed_data_outlives_a_controller_that_is_killed_under_load(tmp_path: Path) -> None:
    file, script = tmp_path / "disk", tmp_path / "script.py"
    script.write_text(IN_THE_GUEST)
    out, err = bytearray(), bytearray()
    config = LabConfig(
        devices=(parse_device(f"soft:?file={file}&size=64M"),), default_devices=False,
        iommu=False, append="nvme_core.io_timeout=4 nvme_core.admin_timeout=4", out=tmp_path,
        allow=("I/O error, dev nvme",),
    )
    result = run([sys.executable, str(script)], config, stdout=out.extend, stderr=err.extend)
    assert result.status == 0, f"{out.decode()}\n{err.decode()}\n{result.console}"
    assert result.faults == ()
    assert b"gone:" in out
    assert file.read_bytes()[:BLOCKS] == PATTERN * (BLOCKS // len(PATTERN))
