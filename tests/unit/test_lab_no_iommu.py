# SPDX-License-Identifier: Apache-2.0
"""A real machine without an IOMMU: what a user is told there, and that nothing was touched."""

from __future__ import annotations

import shlex
import sys

import pytest

from udrv.lab.run import LabConfig, run

BDF = "0000:01:00.0"
DRIVER = f"/sys/bus/pci/devices/{BDF}/driver"


@pytest.mark.full(minutes=2)
@pytest.mark.timeout(300)
def test_no_iommu_is_named_and_the_device_stays_as_it_was() -> None:
    python = shlex.quote(sys.executable)
    udrv = f"{python} -m udrv.cli.main"
    opens = (
        f"import udrv, udrv.errors\ntry: udrv.open('pci:{BDF}')\n"
        "except udrv.errors.NoIommuError as error: print(type(error).__name__)"
    )
    out, err = bytearray(), bytearray()
    script = f"""
        ls /sys/kernel/iommu_groups
        for what in 'id-ctrl pci:{BDF}' 'bind {BDF}' 'read pci:{BDF}'; do
            {udrv} $what >/dev/null; echo "$what: $?"
        done
        {python} -c {shlex.quote(opens)}
        basename "$(readlink {DRIVER})"
    """
    result = run(["sh", "-c", script], LabConfig(iommu=False),
                 stdout=out.extend, stderr=err.extend)
    said = err.decode()
    assert (result.status, result.faults) == (0, ()), said
    assert out.decode().splitlines() == [
        f"id-ctrl pci:{BDF}: 1",
        f"bind {BDF}: 1",
        f"read pci:{BDF}: 1",
        "NoIommuError",
        "nvme",
    ], said
    assert said.count("IOMMU") >= 3 and "intel_iommu=on" in said
    assert "Traceback" not in said
