# SPDX-License-Identifier: Apache-2.0
"""The kernel's user-space ABI: numbers, sizes, offsets, and chains of capabilities.

The expected values are those of Linux's headers on 64-bit machines; they never change.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfio_fakes import FakeCalls, capability, pairs

from udrv.core._core import ffi, lib
from udrv.vfio import abi


@pytest.mark.parametrize(("name", "number"), [
    ("VFIO_GET_API_VERSION", 0x3B64), ("VFIO_CHECK_EXTENSION", 0x3B65),
    ("VFIO_SET_IOMMU", 0x3B66), ("VFIO_GROUP_GET_STATUS", 0x3B67),
    ("VFIO_GROUP_SET_CONTAINER", 0x3B68), ("VFIO_GROUP_UNSET_CONTAINER", 0x3B69),
    ("VFIO_GROUP_GET_DEVICE_FD", 0x3B6A), ("VFIO_DEVICE_GET_INFO", 0x3B6B),
    ("VFIO_DEVICE_GET_REGION_INFO", 0x3B6C), ("VFIO_DEVICE_GET_IRQ_INFO", 0x3B6D),
    ("VFIO_DEVICE_SET_IRQS", 0x3B6E), ("VFIO_DEVICE_RESET", 0x3B6F),
    ("VFIO_IOMMU_GET_INFO", 0x3B70), ("VFIO_IOMMU_MAP_DMA", 0x3B71),
    ("VFIO_IOMMU_UNMAP_DMA", 0x3B72), ("VFIO_DEVICE_BIND_IOMMUFD", 0x3B76),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 0x3B77), ("IOMMU_DESTROY", 0x3B80),
    ("IOMMU_IOAS_ALLOC", 0x3B81), ("IOMMU_IOAS_IOVA_RANGES", 0x3B84),
    ("IOMMU_IOAS_MAP", 0x3B85), ("IOMMU_IOAS_UNMAP", 0x3B86),
])
def test_ioctl_numbers(name: str, number: int) -> None:
    assert getattr(lib, name) == number


@pytest.mark.parametrize(("name", "size"), [
    ("vfio_info_cap_header", 8), ("vfio_group_status", 8), ("vfio_region_info", 32),
    ("vfio_irq_info", 16), ("vfio_irq_set", 20), ("vfio_iommu_type1_dma_map", 32),
    ("vfio_iommu_type1_dma_unmap", 24), ("vfio_device_bind_iommufd", 16),
    ("vfio_device_attach_iommufd_pt", 12), ("iommu_destroy", 8), ("iommu_ioas_alloc", 12),
    ("iommu_iova_range", 16), ("iommu_ioas_iova_ranges", 32), ("iommu_ioas_map", 40),
    ("iommu_ioas_unmap", 24),
])
def test_struct_sizes(name: str, size: int) -> None:
    assert ffi.sizeof(f"struct {name}") == size


@pytest.mark.parametrize(("struct_name", "fields"), [
    ("vfio_region_info", {"index": 8, "cap_offset": 12, "size": 16, "offset": 24}),
    ("vfio_iommu_type1_info", {"iova_pgsizes": 8, "cap_offset": 16}),
    ("vfio_iommu_type1_dma_map", {"vaddr": 8, "iova": 16, "size": 24}),
    ("vfio_irq_set", {"index": 8, "start": 12, "count": 16, "data": 20}),
    ("vfio_device_bind_iommufd", {"iommufd": 8, "out_devid": 12}),
    ("iommu_ioas_map", {"ioas_id": 8, "user_va": 16, "length": 24, "iova": 32}),
    ("iommu_ioas_unmap", {"ioas_id": 4, "iova": 8, "length": 16}),
    ("iommu_ioas_iova_ranges", {"num_iovas": 8, "allowed_iovas": 16, "out_iova_alignment": 24}),
])
def test_field_offsets(struct_name: str, fields: dict[str, int]) -> None:
    assert {f: ffi.offsetof(f"struct {struct_name}", f) for f in fields} == fields


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_chain_reads_out_of_bounds_or_for_ever(data: bytes, first: int) -> None:
    try:
        found = list(abi.walk_capabilities(data, first))
    except ValueError:
        return
    assert len(found) <= len(data) // 8


@given(st.lists(st.tuples(st.integers(1, 99), st.binary(max_size=24)), max_size=6))
def test_a_good_chain_is_walked_in_order(entries: list[tuple[int, bytes]]) -> None:
    data = bytearray(16)
    first = len(data) if entries else 0
    for number, (identifier, payload) in enumerate(entries):
        end = len(data) + 8 + len(payload)
        data += capability(identifier, payload, end if number + 1 < len(entries) else 0)
    found = list(abi.walk_capabilities(bytes(data), first))
    assert len(found) == len(entries)
    for one, (identifier, payload) in zip(found, entries, strict=True):
        assert (one.id, one.payload[: len(payload)]) == (identifier, payload)


def test_a_chain_that_points_back_is_an_error() -> None:
    data = bytes(8) + capability(1, b"", 8)
    with pytest.raises(ValueError, match="points back"):
        list(abi.walk_capabilities(data, 8))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=5))
def test_ranges_round_trip(entries: list[tuple[int, int]]) -> None:
    assert abi.iova_ranges(pairs(*entries) + b"rest") == tuple(entries)


@given(st.binary(max_size=100))
def test_cut_ranges_are_an_error(data: bytes) -> None:
    if len(data) >= 8 and 8 + 16 * struct.unpack_from("=I", data)[0] <= len(data):
        return
    with pytest.raises(ValueError, match="sparse mmap"):
        abi.sparse_areas(data)


def test_an_answer_that_never_fits_is_given_up() -> None:
    class Liar(FakeCalls):
        def do_device_get_region_info(self, where: str, argument: bytearray) -> None:
            argument[:4] = struct.pack("=I", min(len(argument) * 2, 2**32 - 1))

    calls = Liar()
    with pytest.raises(ValueError, match="an answer of"):
        abi.region(calls, calls._new("device"), 0)


def test_a_mappable_area_outside_of_its_region_is_an_error() -> None:
    calls = FakeCalls()
    calls.sparse = ((0x3000, 0x2000),)
    with pytest.raises(ValueError, match="outside of region 0"):
        abi.region(calls, calls._new("device"), 0)
