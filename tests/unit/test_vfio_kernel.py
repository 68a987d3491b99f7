# SPDX-License-Identifier: Apache-2.0
"""Opening, using and closing a device through VFIO, on a kernel of our own: both back ends.

The fake kernel checks every struct byte for byte; what a real one does is in tests/lab.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pci_fakes import NVME, FakeHost
from vfio_fakes import (
    BAR0_SIZE,
    CDEV,
    CONTAINER,
    GROUP,
    IOMMU,
    PAGE,
    RANGES,
    FakeCalls,
    vfio_host,
    with_iommufd,
)

from udrv.core._core import lib
from udrv.errors import (
    AlignmentError,
    ClosedError,
    DeviceGoneError,
    DmaMemoryError,
    ForkedError,
    InvalidRequestError,
    MemlockError,
    UdrvError,
    UnsupportedOnTransport,
    VfioError,
)
from udrv.vfio import BAR0, CONFIG, MSIX, Device, kernel_errors
from udrv.vfio.kernel import open_vfio
from udrv.vfio.kernel_device import KernelDevice

GROUP_STEPS = [
    f"open {CONTAINER}", "GET_API_VERSION", "CHECK_EXTENSION", f"open {GROUP}", "GROUP_GET_STATUS",
    "GROUP_SET_CONTAINER", "SET_IOMMU", "GROUP_GET_DEVICE_FD", "IOMMU_GET_INFO", "DEVICE_GET_INFO",
]
CDEV_STEPS = [
    f"open {IOMMU}", "IOAS_ALLOC", f"open {CDEV}", "DEVICE_BIND_IOMMUFD",
    "DEVICE_ATTACH_IOMMUFD_PT", "IOAS_IOVA_RANGES", "DEVICE_GET_INFO",
]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return vfio_host(tmp_path)


@pytest.fixture
def calls() -> FakeCalls:
    return FakeCalls()


@pytest.fixture(params=["group", "iommufd"])
def device(request: pytest.FixtureRequest, host: FakeHost, calls: FakeCalls) -> KernelDevice:
    if request.param == "iommufd":
        with_iommufd(host)
    return open_vfio(NVME, host=host, calls=calls)


def test_it_is_a_device_and_says_how(device: KernelDevice) -> None:
    assert isinstance(device, Device)
    assert device.name == f"pci:{NVME}" and device.numa_node == 1
    assert device.transport in ("vfio", "vfio-iommufd")


def test_iommufd_is_chosen_when_it_is_there(host: FakeHost, calls: FakeCalls) -> None:
    with open_vfio(NVME, host=host, calls=calls) as device:
        assert device.transport == "vfio"
    with_iommufd(host)
    with open_vfio(NVME, host=host, calls=calls) as device:
        assert device.transport == "vfio-iommufd"
    with open_vfio(NVME, iommufd=False, host=host, calls=calls) as device:
        assert device.transport == "vfio"


def test_iommufd_on_a_kernel_without_it_names_what_is_missing(
    host: FakeHost, calls: FakeCalls
) -> None:
    with pytest.raises(UnsupportedOnTransport, match=r"no /dev/iommu.*CONFIG_IOMMUFD"):
        open_vfio(NVME, iommufd=True, host=host, calls=calls)


@pytest.mark.parametrize("api", ["group", "iommufd"])
def test_teardown_is_opening_in_reverse(host: FakeHost, calls: FakeCalls, api: str) -> None:
    with_iommufd(host)
    device = open_vfio(NVME, iommufd=api == "iommufd", host=host, calls=calls)
    # A question whose answer did not fit is asked twice.
    assert list(dict.fromkeys(calls.log)) == (CDEV_STEPS if api == "iommufd" else GROUP_STEPS)
    device.set_bus_master(True)
    device.mmap_area(BAR0, 0, PAGE)
    device.set_irqs(MSIX, [5, 6])
    device.mapper.dma_map(fd=3, offset=0, address=PAGE, iova=0x10_0000, size=PAGE)
    calls.log.clear()
    device.close()
    assert calls.log == ["pread", "bus master off", "DEVICE_SET_IRQS", "munmap", *(
        ["IOAS_UNMAP", f"close {CDEV}", "DESTROY", f"close {IOMMU}"] if api == "iommufd" else
        ["IOMMU_UNMAP_DMA", "close device", "GROUP_UNSET_CONTAINER", f"close {GROUP}",
         f"close {CONTAINER}"]
    )]
    assert not calls.open_files and not calls.maps and not calls.armed
    calls.log.clear()
    device.close()
    assert calls.log == []


@pytest.mark.parametrize(
    ("iommufd", "step"),
    [(False, step) for step in GROUP_STEPS] + [(True, step) for step in CDEV_STEPS],
)
def test_a_failure_at_any_step_leaves_nothing_open(
    host: FakeHost, calls: FakeCalls, iommufd: bool, step: str
) -> None:
    with_iommufd(host)
    calls.fail[step] = errno.EIO
    with pytest.raises(UdrvError) as caught:
        open_vfio(NVME, iommufd=iommufd, host=host, calls=calls)
    assert calls.open_files == {}
    assert caught.value.device == f"pci:{NVME}" and caught.value.mend
    if "GROUP_SET_CONTAINER" in calls.log:
        assert calls.log.count("GROUP_UNSET_CONTAINER") == 1


def test_teardown_goes_on_when_a_step_fails(device: KernelDevice, calls: FakeCalls) -> None:
    device.set_bus_master(True)
    device.set_irqs(MSIX, [5])
    device.mapper.dma_map(fd=3, offset=0, address=PAGE, iova=0, size=PAGE)
    for step in (
        "pread", "DEVICE_SET_IRQS", "IOMMU_UNMAP_DMA", "IOAS_UNMAP", "GROUP_UNSET_CONTAINER",
        "DESTROY",
    ):
        calls.fail[step] = errno.ENODEV
    device.close()
    assert calls.open_files == {}


# --- regions ------------------------------------------------------------


def test_regions_and_their_sparse_areas(device: KernelDevice, calls: FakeCalls) -> None:
    info = device.region_info(BAR0)
    assert info.size == BAR0_SIZE and info.mmap_areas == ((0, 0x1000), (0x3000, 0x1000))
    assert device.region_info(CONFIG).mmap_areas == ()
    with pytest.raises(VfioError, match="region 9"):
        device.region_info(9)


def test_without_the_capability_all_may_be_mapped(device: KernelDevice, calls: FakeCalls) -> None:
    calls.sparse = None
    assert device.region_info(BAR0).mmap_areas == ((0, BAR0_SIZE),)


def test_an_area_within_a_page_is_mapped_by_whole_pages(device: KernelDevice) -> None:
    area = device.mmap_area(BAR0, 0x3008, 16)
    assert (area.offset, area.size) == (0x3008, 16)
    assert area.address == 0x7000_0000_0000 + 0x3008
    area.close()
    area.close()
    with pytest.raises(ClosedError):
        _ = area.address


@pytest.mark.parametrize(("offset", "size"), [(0x1000, 0x1000), (0xFFF, 2), (0, 0x4000)])
def test_what_may_not_be_mapped_is_refused(device: KernelDevice, offset: int, size: int) -> None:
    with pytest.raises(UnsupportedOnTransport, match="mmap_areas"):
        device.mmap_area(BAR0, offset, size)


def test_an_empty_sparse_list_allows_nothing(device: KernelDevice, calls: FakeCalls) -> None:
    calls.sparse = ()
    with pytest.raises(UnsupportedOnTransport):
        device.mmap_area(BAR0, 0, PAGE)


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (BAR0_SIZE - 2, 4), (0, 0), (1 << 40, 4)])
def test_no_access_leaves_its_region(device: KernelDevice, offset: int, size: int) -> None:
    # The next region's bytes follow in the descriptor: an overrun would reach another BAR.
    with pytest.raises(InvalidRequestError):
        device.read(BAR0, offset, size)
    with pytest.raises(InvalidRequestError):
        device.write(BAR0, offset, bytes(size))
    with pytest.raises(InvalidRequestError):
        device.mmap_area(BAR0, offset, size)


def test_bus_master_changes_one_bit(device: KernelDevice, calls: FakeCalls) -> None:
    calls.config[4:6] = b"\x02\x05"
    device.set_bus_master(True)
    assert calls.config[4:6] == b"\x06\x05"
    calls.log.clear()
    device.set_bus_master(True)
    assert calls.log == ["pread"]
    device.set_bus_master(False)
    assert calls.config[4:6] == b"\x02\x05"


# --- interrupts ------------------------------------------------------------


def test_vectors_are_replaced_not_added(device: KernelDevice, calls: FakeCalls) -> None:
    device.set_irqs(MSIX, [5, -1, 7])
    device.set_irqs(MSIX, [8])
    assert calls.armed == {MSIX: [8]}
    device.set_irqs(MSIX, [])
    assert calls.armed == {}
    device.disable_irqs(MSIX)


def test_too_many_vectors(device: KernelDevice, calls: FakeCalls) -> None:
    assert device.irq_info(MSIX).count == 65
    with pytest.raises(InvalidRequestError, match="66 eventfds for the 65 vectors"):
        device.set_irqs(MSIX, range(66))
    calls.vectors_left = 3
    with pytest.raises(VfioError, match="only 3 of 4"):
        device.set_irqs(MSIX, [1, 2, 3, 4])
    assert calls.armed == {}
    with pytest.raises(VfioError, match="interrupt index 9"):
        device.irq_info(9)


# --- maps ------------------------------------------------------------


def test_maps_know_the_iommu_and_their_extent(device: KernelDevice, calls: FakeCalls) -> None:
    mapper = device.mapper
    assert mapper.iova_ranges == RANGES and mapper.page_size == PAGE
    mapper.dma_map(fd=3, offset=0, address=PAGE, iova=0, size=2 * PAGE)
    assert calls.maps == {0: 2 * PAGE} and mapper.mapped_bytes == 2 * PAGE
    with pytest.raises(InvalidRequestError, match="no map"):
        mapper.dma_unmap(iova=0, size=PAGE)
    mapper.dma_unmap(iova=0, size=2 * PAGE)
    assert calls.maps == {}
    with pytest.raises(InvalidRequestError, match="no map"):
        mapper.dma_unmap(iova=0, size=2 * PAGE)


@pytest.mark.parametrize(("address", "iova", "size"), [
    (1, 0, PAGE), (0, 1, PAGE), (0, 0, PAGE - 1), (0, 0, 0), (0, 0, -PAGE),
])
def test_unaligned_maps(device: KernelDevice, address: int, iova: int, size: int) -> None:
    with pytest.raises(AlignmentError):
        device.mapper.dma_map(fd=3, offset=0, address=address, iova=iova, size=size)


@pytest.mark.parametrize("iova", [0xFEE0_0000, 0xFEDF_F000, 1 << 39])
def test_maps_outside_of_the_ranges(device: KernelDevice, iova: int) -> None:
    with pytest.raises(InvalidRequestError, match="outside of what the IOMMU translates"):
        device.mapper.dma_map(fd=3, offset=0, address=0, iova=iova, size=2 * PAGE)


@pytest.mark.parametrize(("number", "error"), [
    (errno.EEXIST, InvalidRequestError), (errno.ENOSPC, DmaMemoryError),
    (errno.EFAULT, DmaMemoryError), (errno.EINVAL, VfioError), (errno.ENODEV, DeviceGoneError),
])
def test_refused_maps(
    device: KernelDevice, calls: FakeCalls, number: int, error: type[UdrvError]
) -> None:
    calls.fail["IOMMU_MAP_DMA"] = calls.fail["IOAS_MAP"] = number
    with pytest.raises(error) as caught:
        device.mapper.dma_map(fd=3, offset=0, address=0, iova=0, size=PAGE)
    assert type(caught.value) is error and device.mapper.mapped_bytes == 0


def test_memlock_tells_the_numbers(
    device: KernelDevice, calls: FakeCalls, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.proc / "self").mkdir()
    (host.proc / "self/status").write_text(
        "VmLck:\t      64 kB\nVmPin:\t      64 kB\nCapEff:\t0000000000000000\n"
    )
    monkeypatch.setattr(kernel_errors.resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    calls.fail["IOMMU_MAP_DMA"] = calls.fail["IOAS_MAP"] = errno.ENOMEM
    with pytest.raises(MemlockError, match=r"1048576 bytes, 2162688 are needed.*ulimit") as caught:
        device.mapper.dma_map(fd=3, offset=0, address=0, iova=0, size=2 << 20)
    assert (caught.value.needed, caught.value.limit) == ((2 << 20) + (64 << 10), 1 << 20)


def test_no_memory_without_a_limit_is_no_memlock_error(
    device: KernelDevice, calls: FakeCalls, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.proc / "self").mkdir()
    (host.proc / "self/status").write_text("CapEff:\t0000000000004000\n")
    monkeypatch.setattr(kernel_errors.resource, "getrlimit", lambda _: (4096, 4096))
    calls.fail["IOMMU_MAP_DMA"] = calls.fail["IOAS_MAP"] = errno.ENOMEM
    with pytest.raises(DmaMemoryError):
        device.mapper.dma_map(fd=3, offset=0, address=0, iova=0, size=PAGE)


def test_a_short_unmap_is_an_error(host: FakeHost, calls: FakeCalls) -> None:
    device = open_vfio(NVME, host=host, calls=calls)
    device.mapper.dma_map(fd=3, offset=0, address=0, iova=0, size=2 * PAGE)
    calls.unmapped = PAGE
    with pytest.raises(VfioError, match=f"unmapped {PAGE} of {2 * PAGE}"):
        device.mapper.dma_unmap(iova=0, size=2 * PAGE)
    calls.maps[0] = 2 * PAGE
    device.close()


def test_many_iova_ranges_are_all_read(host: FakeHost, calls: FakeCalls) -> None:
    with_iommufd(host)
    calls.ranges = tuple((i << 32, (i << 32) + 0xFFFF) for i in range(40))
    for iommufd in (True, False):
        with open_vfio(NVME, iommufd=iommufd, host=host, calls=calls) as device:
            assert device.mapper.iova_ranges == calls.ranges


# --- lifetime ------------------------------------------------------------


def test_a_reset_that_the_function_does_not_have(host: FakeHost, calls: FakeCalls) -> None:
    calls.flags = lib.VFIO_DEVICE_FLAGS_PCI
    with (
        open_vfio(NVME, host=host, calls=calls) as device,
        pytest.raises(UnsupportedOnTransport, match="no reset"),
    ):
        device.reset()


def test_errors_on_an_open_device_keep_their_errno(device: KernelDevice, calls: FakeCalls) -> None:
    calls.fail["DEVICE_RESET"] = errno.EAGAIN
    with pytest.raises(VfioError, match="EAGAIN") as caught:
        device.reset()
    assert caught.value.errno == errno.EAGAIN
    calls.fail["pread"] = errno.ENODEV
    with pytest.raises(DeviceGoneError):
        device.read(CONFIG, 0, 4)


def test_a_closed_device_says_so(device: KernelDevice) -> None:
    area = device.mmap_area(BAR0, 0, PAGE)
    device.close()
    for call in (
        lambda: device.read(CONFIG, 0, 4), lambda: device.region_info(BAR0), device.reset,
        lambda: device.set_irqs(MSIX, [1]), lambda: device.mmap_area(BAR0, 0, 4),
        lambda: area.address,
        lambda: device.mapper.dma_map(fd=3, offset=0, address=0, iova=0, size=PAGE),
    ):
        with pytest.raises(ClosedError):
            call()
    device.mapper.dma_unmap(iova=0, size=PAGE)  # nothing is mapped any more: true already


def test_a_forked_child_may_do_nothing_and_undoes_nothing(
    device: KernelDevice, calls: FakeCalls
) -> None:
    area = device.mmap_area(BAR0, 0, PAGE)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            calls.log.clear()
            for call in (
                lambda: device.read(CONFIG, 0, 4), lambda: area.address,
                lambda: device.mapper.dma_map(fd=3, offset=0, address=0, iova=0, size=PAGE),
                lambda: device.mapper.dma_unmap(iova=0, size=PAGE),
            ):
                with pytest.raises(ForkedError):
                    call()
            device.close()
            area.close()
            device.mapper.close()
            status = 0 if calls.log == [] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    device.close()


def test_a_forgotten_device_warns_and_closes(host: FakeHost, calls: FakeCalls) -> None:
    device = open_vfio(NVME, host=host, calls=calls)
    with pytest.warns(ResourceWarning, match="was not closed"):
        del device
    assert calls.open_files == {}
