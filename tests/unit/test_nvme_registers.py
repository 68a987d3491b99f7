# SPDX-License-Identifier: Apache-2.0
"""Which registers are mapped, and which are messages: what the list of mappable areas says."""

from __future__ import annotations

import pytest
from fake_device import SIZE, FakeDevice
from hypothesis import given
from hypothesis import strategies as st

from udrv.core import ffi
from udrv.errors import DeviceGoneError, UnsupportedOnTransport
from udrv.nvme.registers import Registers
from udrv.vfio.device import BAR0, MappedArea, PostedWrite, RegionInfo

PAGE = 4096


class Area:
    """A part of BAR 0, mapped where nothing else is."""

    def __init__(self, offset: int, size: int) -> None:
        self.offset, self.size, self.gone = offset, size, False
        self._memory = ffi.new("char[]", size + PAGE)
        self.address = (int(ffi.cast("uintptr_t", self._memory)) + PAGE - 1) & ~(PAGE - 1)

    def close(self) -> None:
        pass


class Sparse(FakeDevice):
    """Maps only what the list says, and takes posted writes."""

    def __init__(self, areas: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.areas = areas
        self.mapped: list[Area] = []

    def region_info(self, index: int) -> RegionInfo:
        assert index == BAR0
        return RegionInfo(index, 3, SIZE, self.areas)

    def mmap_area(self, index: int, offset: int, size: int) -> MappedArea:
        assert size > 0
        assert any(at <= offset and offset + size <= at + room for at, room in self.areas)
        self.mapped.append(Area(offset, size))
        return self.mapped[-1]


class Posting(Sparse):
    def posted_write(self, index: int, offset: int) -> PostedWrite:
        assert index == BAR0 and 0 <= offset <= SIZE - 4
        return PostedWrite(-1, offset.to_bytes(8, "little"), 0)


pages = st.sets(st.integers(0, SIZE // PAGE - 1)).map(
    lambda chosen: tuple((page * PAGE, PAGE) for page in sorted(chosen))
)
whole = st.sampled_from([((0, SIZE),), ((PAGE, SIZE - PAGE),), ((PAGE, 64),), ((0, PAGE + 32),)])


@given(areas=pages | whole, dstrd=st.integers(0, 11), queues=st.integers(1, 2000))
def test_a_doorbell_is_mapped_where_the_list_allows_it_and_else_a_message(
    areas: tuple[tuple[int, int], ...], dstrd: int, queues: int
) -> None:
    device = Posting(areas)
    registers = Registers(device)
    stride = 4 << dstrd
    registers.map_doorbells(queues, stride=stride)
    covered = [area for area in device.mapped if area.offset == PAGE]
    assert bool(covered) == any(at <= PAGE < at + size for at, size in areas)
    assert registers.mapped == any(at == 0 for at, _ in areas)
    last = registers.last_qid  # -1: not even the admin queue's have room
    for qid in {0, last // 2, last} if last >= 0 else ():
        for which, bell in enumerate(registers.doorbells(qid)):
            offset = PAGE + (2 * qid + which) * stride
            if covered:
                assert bell == covered[0].address + offset - PAGE
                assert offset + 4 <= PAGE + covered[0].size
            else:
                assert isinstance(bell, PostedWrite)
                assert int.from_bytes(bell.message, "little") == offset


@pytest.mark.parametrize("areas", [(), ((0, PAGE),), ((2 * PAGE, PAGE),)])
def test_without_messages_doorbells_have_to_be_mapped(areas: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UnsupportedOnTransport, match="cannot be mapped"):
        Registers(Sparse(areas)).map_doorbells(4, stride=4)


def test_a_mapping_that_vanished_makes_all_registers_read_ones() -> None:
    device = Posting(((PAGE, PAGE),))
    registers = Registers(device)
    registers.map_doorbells(4, stride=4)
    registers.check_alive()
    assert registers.read32(0x1C) == 0  # by message
    device.mapped[0].gone = True
    assert registers.read32(0x1C) == 0xFFFF_FFFF
    with pytest.raises(DeviceGoneError, match="SIGBUS"):
        registers.check_alive("ready")
    registers.close()
    assert registers.read32(0x1C) == 0  # what is unmapped is of no more interest
