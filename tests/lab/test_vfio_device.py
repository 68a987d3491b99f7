# SPDX-License-Identifier: Apache-2.0
"""A real NVMe function through a real kernel's VFIO, below the NVMe driver.

Runs with whatever the kernel offers: container and group, and iommufd too where it is built in.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pci_lab import NOBODY, given_back, held_by_child, in_child, wait_for

from udrv import pci
from udrv.core._core import ffi
from udrv.errors import (
    DeviceInUseError,
    DriverBindError,
    GroupNotViableError,
    InvalidRequestError,
    MemlockError,
    PermissionDeniedError,
    UnsupportedOnTransport,
    VfioError,
)
from udrv.lab.info import LabInfo
from udrv.vfio import BAR0, CONFIG, MSIX
from udrv.vfio.kernel import open_vfio
from udrv.vfio.kernel_device import KernelDevice

MIB = 1 << 20
CAP, VS, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x14, 0x1C, 0x24, 0x28, 0x30

#: Whether this kernel has iommufd; both interfaces are tested where it does.
HAS_IOMMUFD = Path("/dev/iommu").exists()
APIS = [False, True] if HAS_IOMMUFD else [False]




@pytest.fixture
def bdf(lab: LabInfo) -> Iterator[str]:
    name = str(lab.device("UDRVLAB1").bdf)
    with given_back(name), pci.bound(name):
        yield name


@pytest.fixture(params=APIS, ids=lambda api: "iommufd" if api else "group")
def device(request: pytest.FixtureRequest, bdf: str) -> Iterator[KernelDevice]:
    with open_vfio(bdf, iommufd=request.param) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[tuple[int, int]]:
    """(fd, address) of 4 MiB of shared memory that may be pinned."""
    fd = os.memfd_create("lab", os.MFD_CLOEXEC)
    os.truncate(fd, 4 * MIB)
    with mmap.mmap(fd, 4 * MIB) as memory:
        view = ffi.from_buffer(memory)
        yield fd, int(ffi.cast("uintptr_t", view))
        ffi.release(view)
    os.close(fd)


def descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return sorted(found)


def test_cap_and_vs_equal_what_the_kernel_and_sysfs_read(lab: LabInfo) -> None:
    bdf = str(lab.device("UDRVLAB1").bdf)
    with given_back(bdf):
        (controller,) = (pci.function(bdf).path / "nvme").iterdir()
        text = subprocess.run(
            ["nvme", "id-ctrl", f"/dev/{controller.name}", "-o", "json"],
            capture_output=True, text=True, check=True,
        ).stdout
        version = json.loads(text)["ver"]
        # Registers by another way than VFIO: while no driver has the function, sysfs maps it.
        path = pci.function(bdf).path
        (path / "driver/unbind").write_text(bdf)
        (path / "enable").write_text("1")
        with (path / "resource0").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as bar:
            cap, vs = struct.unpack_from("<QI", bar)
        (path / "enable").write_text("0")
        Path("/sys/bus/pci/drivers_probe").write_text(bdf)
        with pci.bound(bdf):
            for api in APIS:
                with open_vfio(bdf, iommufd=api) as device:
                    area = device.mmap_area(BAR0, 0, 4096)
                    words = ffi.cast("volatile uint64_t *", area.address)
                    assert words[0] == cap
                    assert words[1] & 0xFFFF_FFFF == vs == version
                    assert device.read(BAR0, CAP, 8) == struct.pack("<Q", cap)
                    assert device.read(BAR0, VS, 4) == struct.pack("<I", vs)


def test_configuration_space_equals_sysfs(device: KernelDevice, bdf: str) -> None:
    function = pci.function(bdf)
    assert device.read(CONFIG, 0, 4) == struct.pack("<HH", function.vendor, function.device)
    assert int.from_bytes(device.read(CONFIG, 9, 3), "little") == function.class_code
    assert device.transport == ("vfio-iommufd" if "iommufd" in device.transport else "vfio")


def test_bar0_is_mappable_and_the_configuration_space_is_not(device: KernelDevice) -> None:
    info = device.region_info(BAR0)
    assert info.size >= 0x2000 and info.mmap_areas[0][0] == 0
    with pytest.raises(UnsupportedOnTransport):
        device.mmap_area(CONFIG, 0, 4096)
    with pytest.raises(VfioError):
        device.region_info(99)


def test_bus_master_bit(device: KernelDevice) -> None:
    for on in (True, False, True):
        device.set_bus_master(on)
        assert bool(device.read(CONFIG, 4, 1)[0] & 4) is on


def test_iova_ranges_leave_out_what_the_kernel_reserves(device: KernelDevice, bdf: str) -> None:
    group = pci.function(bdf).iommu_group
    text = Path(f"/sys/kernel/iommu_groups/{group}/reserved_regions").read_text()
    reserved = [line.split() for line in text.splitlines()]
    assert device.mapper.page_size == mmap.PAGESIZE
    ranges = device.mapper.iova_ranges
    assert ranges and list(ranges) == sorted(ranges)
    for first, last, kind in reserved:
        if kind == "direct-relaxable":
            continue
        assert not any(a <= int(last, 16) and int(first, 16) <= b for a, b in ranges), kind


def test_maps_are_charged_and_given_back(device: KernelDevice, pool: tuple[int, int]) -> None:
    fd, address = pool
    field = "VmPin" if device.transport == "vfio-iommufd" else "VmLck"

    def charged() -> int:
        text = Path("/proc/self/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", text)[1]) << 10  # type: ignore[index]

    before = charged()
    device.mapper.dma_map(fd=fd, offset=0, address=address, iova=0x100_0000, size=2 * MIB)
    assert charged() - before == 2 * MIB
    with pytest.raises(InvalidRequestError, match="overlaps"):
        device.mapper.dma_map(
            fd=fd, offset=2 * MIB, address=address + 2 * MIB, iova=0x110_0000, size=2 * MIB
        )
    device.mapper.dma_unmap(iova=0x100_0000, size=2 * MIB)
    assert charged() == before
    device.mapper.dma_map(fd=fd, offset=0, address=address, iova=0x100_0000, size=4 * MIB)
    device.close()
    assert charged() == before


def test_msix_vectors_are_armed_and_disarmed(device: KernelDevice, bdf: str) -> None:
    def armed() -> int:
        return Path("/proc/interrupts").read_text().count(f"({bdf})")

    info = device.irq_info(MSIX)
    assert info.count > 2
    events = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)]
    try:
        device.set_irqs(MSIX, events)
        assert armed() == 3
        device.set_irqs(MSIX, [events[0], -1, events[2]])
        assert armed() == 2
        device.set_irqs(MSIX, events[:1])
        assert armed() == 1
        device.disable_irqs(MSIX)
        assert armed() == 0
        device.set_irqs(MSIX, events)
        device.close()
        assert armed() == 0
    finally:
        for event in events:
            os.close(event)


def test_reset_stops_an_enabled_controller(device: KernelDevice, pool: tuple[int, int]) -> None:
    fd, address = pool
    device.mapper.dma_map(fd=fd, offset=0, address=address, iova=0x100_0000, size=MIB)
    device.set_bus_master(True)
    # Admin queues of two entries, 64-byte and 16-byte entries, enable.
    for register, value in ((AQA, 0x0001_0001), (ASQ, 0x100_0000), (ACQ, 0x100_1000)):
        device.write(BAR0, register, struct.pack("<I", value))
    device.write(BAR0, CC, struct.pack("<I", 4 << 20 | 6 << 16 | 1))
    wait_for(lambda: device.read(BAR0, CSTS, 4) == struct.pack("<I", 1))
    device.reset()
    assert device.read(BAR0, CSTS, 4) == bytes(4)


@pytest.mark.parametrize("iommufd", APIS)
def test_opening_and_closing_leaks_no_descriptor(bdf: str, iommufd: bool) -> None:
    with open_vfio(bdf, iommufd=iommufd):
        pass
    before = descriptors()
    for _ in range(10):
        with open_vfio(bdf, iommufd=iommufd) as device:
            device.mmap_area(BAR0, 0, 4096)
        with pytest.raises(RuntimeError), open_vfio(bdf, iommufd=iommufd) as device:
            device.mmap_area(BAR0, 0, 4096)
            raise RuntimeError
    assert descriptors() == before


def test_every_descriptor_is_close_on_exec(device: KernelDevice) -> None:
    device.mmap_area(BAR0, 0, 4096)
    command = ["sh", "-c", "ls -l /proc/self/fd"]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, close_fds=False)
    assert "vfio" not in seen.stdout and "iommu" not in seen.stdout
    assert any("vfio" in link for link in descriptors())


# --- errors ------------------------------------------------------------------------------------


def test_a_device_on_its_own_driver_is_refused(lab: LabInfo) -> None:
    bdf = str(lab.device("UDRVLAB0").bdf)
    with pytest.raises(DriverBindError, match=f"the driver nvme.*udrv bind {bdf}"):
        open_vfio(bdf)
    assert pci.function(bdf).driver == "nvme"


def test_another_user_is_told_file_owner_and_mode(bdf: str) -> None:
    group = pci.function(bdf).iommu_group
    with pytest.raises(
        PermissionDeniedError,
        match=rf"/dev/vfio/{group} .*owner root, group root, mode 0600.*chown nobody",
    ):
        in_child(lambda: open_vfio(bdf, iommufd=False), uid=NOBODY)


def test_a_user_who_owns_the_group_may_open_it(bdf: str) -> None:
    os.chown(f"/dev/vfio/{pci.function(bdf).iommu_group}", NOBODY, NOBODY)

    def work() -> bytes:
        with open_vfio(bdf, iommufd=False) as device:
            return device.read(CONFIG, 0, 2)

    assert in_child(work, uid=NOBODY) == struct.pack("<H", pci.function(bdf).vendor)


@pytest.mark.parametrize("iommufd", APIS)
def test_too_little_memlock_tells_the_numbers(
    bdf: str, pool: tuple[int, int], iommufd: bool
) -> None:
    fd, address = pool
    function = pci.function(bdf)
    for path in (
        f"/dev/vfio/{function.iommu_group}", f"/dev/vfio/devices/{function.vfio_device}",
        "/dev/iommu",
    ):
        if Path(path).exists():
            os.chown(path, NOBODY, NOBODY)

    def work() -> int:
        with open_vfio(bdf, iommufd=iommufd) as device:
            device.mapper.dma_map(
                fd=fd, offset=0, address=address, iova=0x100_0000, size=2 * MIB
            )
        return 0

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, MIB))
        return work()

    with pytest.raises(MemlockError, match="ulimit -l") as caught:
        in_child(limited, uid=NOBODY)
    assert (caught.value.needed, caught.value.limit) == (2 * MIB, MIB)

    def enough() -> int:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * MIB, 2 * MIB))
        return work()

    assert in_child(enough, uid=NOBODY) == 0


@pytest.mark.parametrize("iommufd", APIS)
def test_a_device_in_use_names_the_process(bdf: str, iommufd: bool) -> None:
    with held_by_child(lambda: open_vfio(bdf, iommufd=iommufd)) as child:
        with pytest.raises(DeviceInUseError, match=f"process {child} "):
            open_vfio(bdf, iommufd=iommufd)
        # The kernel itself would hang in this until the other process lets go.
        with pytest.raises(DeviceInUseError, match=f"process {child} "):
            pci.unbind(bdf)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open_vfio(bdf, iommufd=iommufd) as device:
            assert device.read(BAR0, VS, 4) != b"\xff" * 4


def test_unbind_waits_for_a_user_that_ends(bdf: str) -> None:
    with held_by_child(lambda: open_vfio(bdf)) as child:
        killer = os.fork()
        if killer == 0:
            time.sleep(0.5)
            os.kill(child, signal.SIGKILL)
            os._exit(0)
        # The parent reaps the user only later; a zombie has no descriptors left.
        assert pci.unbind(bdf, wait=60.0).driver == "nvme"
        os.waitpid(killer, 0)


def test_a_group_that_stopped_being_viable(lab: LabInfo) -> None:
    # Function 1f.2 goes to VFIO while its neighbour has no driver; then the neighbour gets one.
    subprocess.run(["rmmod", "i2c_i801"], check=False, capture_output=True)
    subprocess.run(["modprobe", "ahci"], check=True)
    with pci.bound("0000:00:1f.2"):
        subprocess.run(["modprobe", "i2c_i801"], check=True)
        try:
            for api in APIS:
                with pytest.raises(GroupNotViableError, match="i801_smbus") as caught:
                    open_vfio("0000:00:1f.2", iommufd=api)
                assert caught.value.members == (("0000:00:1f.3", "i801_smbus"),)
        finally:
            subprocess.run(["rmmod", "i2c_i801"], check=True)
