# SPDX-License-Identifier: Apache-2.0
"""Device memory that vanishes under Python code. The handler itself is tested in C."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from udrv.core import ffi, lib, sigbus
from udrv.errors import DmaMemoryError
from udrv.vfio.user_memory import UserMappedArea

PRELUDE = """
import faulthandler, mmap, os, signal, sys
from udrv.core import ffi, lib
from udrv.vfio.user_memory import UserMappedArea

def region():
    fd = os.memfd_create("region")
    os.ftruncate(fd, 4096)
    return fd, UserMappedArea(fd, 0, 0, 4096)

def load(area):
    return lib.udrv_mmio_read32(ffi.cast("void *", area.address))
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, check=False,
        timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def load(area: UserMappedArea) -> int:
    return int(lib.udrv_mmio_read32(ffi.cast("void *", area.address)))


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:region")


def test_a_region_that_was_cut_reads_all_ones_and_says_so() -> None:
    fd = os.memfd_create("region")
    os.ftruncate(fd, 3 * 4096)
    with_rest = UserMappedArea(fd, 4096, 0x1000, 2 * 4096)
    whole = UserMappedArea(fd, 0, 0, 3 * 4096)
    os.ftruncate(fd, 4096)
    assert load(whole) == 0
    assert not whole.gone and not with_rest.gone
    assert load(with_rest) == 0xFFFF_FFFF
    assert with_rest.gone and not whole.gone
    for area in (with_rest, whole):
        area.close()
        area.close()
    assert with_rest.gone  # an error may be made of it after the end
    os.close(fd)


def test_switched_off_by_the_environment() -> None:
    ran = run(
        """
before = signal.getsignal(signal.SIGBUS)
fd, area = region()
assert os.ftruncate(fd, 0) is None
print("alive", flush=True)
load(area)
""", UDRV_SIGBUS="0")  # fmt: skip
    assert (ran.stdout, ran.returncode) == ("alive\n", -signal.SIGBUS), ran.stderr


@pytest.mark.parametrize("before", [True, False], ids=["faulthandler", "nothing"])
def test_another_fault_is_reported_as_it_was_before(before: bool) -> None:
    ran = run(
        f"""
if {before}:
    faulthandler.enable()
fd, area = region()
os.ftruncate(fd, 0)
assert load(area) == 0xffffffff and area.gone
other = os.memfd_create("not a device")
os.ftruncate(other, 4096)
memory = mmap.mmap(other, 4096)
os.ftruncate(other, 0)
print("alive", flush=True)
memory[0]
""")  # fmt: skip
    assert ran.stdout == "alive\n"
    assert ran.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in ran.stderr) is before
    assert ('File "<string>", line' in ran.stderr) is before


def test_no_handler_until_a_range_is_watched() -> None:
    """The mask of caught signals, bit 7 - 1 of SigCgt."""
    ran = run(
        """
def caught():
    line = next(s for s in open("/proc/self/status") if s.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> signal.SIGBUS - 1 & 1)

import udrv
first = caught()
region()
print(first, caught())
""")  # fmt: skip
    assert ran.stdout == "False True\n", ran.stderr


def test_too_many_ranges_are_an_error_and_leave_nothing_mapped() -> None:
    memory = mmap.mmap(-1, 4096)
    with memoryview(memory) as view:
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
    watches = []
    with pytest.raises(DmaMemoryError, match="UDRV_SIGBUS=0"):
        for _ in range(lib.UDRV_SIGBUS_RANGES + 1):
            watches.append(sigbus.watch(address, 4096))
    fd = os.memfd_create("region")
    os.ftruncate(fd, 4096)
    maps = mapped()
    with pytest.raises(DmaMemoryError):
        UserMappedArea(fd, 0, 0, 4096)
    assert mapped() == maps
    os.close(fd)
    for watch in watches:
        watch.close()
    sigbus.watch(address, 4096).close()
    with pytest.raises(ValueError, match="cannot be watched"):
        sigbus.watch(address + 1, 8)


def test_a_handler_that_was_put_back_to_an_older_one_is_replaced_again() -> None:
    """As a second pytest in the same process does: it disables faulthandler, and enables it."""
    ran = run("""
faulthandler.enable()
fd, area = region()
faulthandler.disable()          # puts back what was there before it: not ours
faulthandler.enable()
fd, area = region()
os.ftruncate(fd, 0)
assert load(area) == 0xFFFF_FFFF and area.gone
print("alive", flush=True)
os.kill(os.getpid(), signal.SIGBUS)
""")
    assert (ran.stdout, ran.returncode) == ("alive\n", -signal.SIGBUS), ran.stderr
    assert "Fatal Python error: Bus error" in ran.stderr


def test_an_area_that_is_forgotten_hides_nothing_that_comes_after_it() -> None:
    before = mapped()
    fd = os.memfd_create("region")
    os.ftruncate(fd, 4096)
    for _ in range(2 * int(lib.UDRV_SIGBUS_RANGES)):  # there would be no room for more
        UserMappedArea(fd, 0, 0, 4096)
    os.close(fd)
    assert mapped() == before


def test_a_handler_that_would_give_the_signal_back_for_ever() -> None:
    """faulthandler over ours, ours over it again: each is the other's previous one."""
    ran = run("""
fd, area = region()
faulthandler.enable()
fd, area = region()
os.ftruncate(fd, 0)
assert load(area) == 0xFFFF_FFFF
print("alive", flush=True)
other = os.memfd_create("other")
os.ftruncate(other, 4096)
window = mmap.mmap(other, 4096)
os.ftruncate(other, 0)
window[0]
""")
    assert (ran.stdout, ran.returncode) == ("alive\n", -signal.SIGBUS), ran.stderr
    assert "Fatal Python error: Bus error" in ran.stderr
