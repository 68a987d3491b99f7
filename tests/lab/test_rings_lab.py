# SPDX-License-Identifier: Apache-2.0
"""io_uring switched off by the sysctl, and a flag that the guest's kernel is too old for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from udrv.errors import UringDisabledError, UringUnsupportedError
from udrv.rings.diagnose import older_than
from udrv.rings.uring import Ring, SetupFlag

DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
GROUP = Path("/proc/sys/kernel/io_uring_group")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = DISABLED.read_text(), GROUP.read_text()
    yield
    DISABLED.write_text(before[0])
    GROUP.write_text(before[1])


def as_nobody(groups: list[int]) -> str:
    """Open a ring without privileges; what came of it."""
    code = f"""
import os
from udrv.errors import UringDisabledError
from udrv.rings.uring import Ring
os.setgroups({groups})
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    Ring(8).close()
    print("open")
except UringDisabledError as error:
    print(error.reason, error)
"""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_disabled_for_all() -> None:
    DISABLED.write_text("2")
    with pytest.raises(UringDisabledError, match="io_uring_disabled is 2") as info:
        Ring(8)
    assert info.value.reason == "sysctl"
    assert "sysctl kernel.io_uring_disabled=0" in str(info.value)
    assert isinstance(info.value, PermissionError)


def test_disabled_but_for_a_group_and_the_administrator() -> None:
    DISABLED.write_text("1")
    Ring(8).close()  # root
    refused = as_nobody([])
    assert refused.startswith("sysctl kernel.io_uring_disabled is 1")
    assert "none is set" in refused
    GROUP.write_text("1234")
    assert "run as a member of group 1234" in as_nobody([])
    assert as_nobody([1234]) == "open"


def test_a_flag_that_is_newer_than_the_kernel() -> None:
    assert older_than("6.13"), f"{os.uname().release}: this test needs a flag that is newer still"
    with pytest.raises(UringUnsupportedError, match="HYBRID_IOPOLL: run Linux 6") as info:
        Ring(8, SetupFlag.IOPOLL | SetupFlag.HYBRID_IOPOLL | SetupFlag.SQE128)
    assert info.value.needs == "6.13"
