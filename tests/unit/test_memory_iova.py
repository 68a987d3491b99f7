"""IOVA allocation: inside the ranges, aligned, never twice, and all of it comes back."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from udrv.errors import DmaMemoryError
from udrv.memory import IovaAllocator
from udrv.memory import iova as iova_module
from udrv.memory.iova import Extents

PAGE = 4096
MIB = 1 << 20


def test_lowest_fitting_address_is_taken() -> None:
    iovas = IovaAllocator([(0, 8 * MIB - 1)], PAGE)
    first = iovas.alloc(PAGE)
    second = iovas.alloc(2 * MIB, align=2 * MIB)
    third = iovas.alloc(PAGE)
    assert (first, second, third) == (PAGE, 2 * MIB, 2 * PAGE)


def test_address_zero_is_never_given() -> None:
    iovas = IovaAllocator([(0, PAGE - 1)], PAGE)
    with pytest.raises(DmaMemoryError, match="no IOVA is left"):
        iovas.alloc(PAGE)


def test_ranges_are_cut_to_whole_pages() -> None:
    iovas = IovaAllocator([(PAGE + 1, 4 * PAGE + 5)], PAGE)
    assert iovas.free_spans == [(2 * PAGE, 4 * PAGE)]


def test_the_last_address_of_64_bits_is_usable() -> None:
    iovas = IovaAllocator([((1 << 64) - PAGE, (1 << 64) - 1)], PAGE)
    assert iovas.alloc(PAGE) == (1 << 64) - PAGE


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nothing_crosses_from_one_range_into_the_next(order: tuple[int, int]) -> None:
    iovas = IovaAllocator([(PAGE, 2 * PAGE - 1), (2 * PAGE, 3 * PAGE - 1)], PAGE)
    pages = [iovas.alloc(PAGE), iovas.alloc(PAGE)]
    for index in order:
        iovas.free(pages[index])
    assert iovas.free_spans == [(PAGE, 2 * PAGE), (2 * PAGE, 3 * PAGE)]
    with pytest.raises(DmaMemoryError, match="4096 of them in one piece"):
        iovas.alloc(2 * PAGE)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_freed_neighbours_become_one(order: tuple[int, ...]) -> None:
    iovas = IovaAllocator([(PAGE, 4 * PAGE - 1)], PAGE)
    pages = [iovas.alloc(PAGE) for _ in range(3)]
    for index in order:
        iovas.free(pages[index])
    assert iovas.free_spans == [(PAGE, 4 * PAGE)]


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE + 1])
def test_size_must_be_whole_pages(size: int) -> None:
    with pytest.raises(DmaMemoryError, match="positive multiple"):
        IovaAllocator([(0, MIB)], PAGE).alloc(size)


@pytest.mark.parametrize("align", [0, 1, 2048, 3 * PAGE, 4 * MIB])
def test_alignment_must_be_a_power_of_two_in_range(align: int) -> None:
    with pytest.raises(DmaMemoryError, match="power of two"):
        IovaAllocator([(0, MIB)], PAGE).alloc(PAGE, align=align)


def test_freeing_twice_is_an_error_that_names_the_address() -> None:
    iovas = IovaAllocator([(0, MIB)], PAGE, device="pci:0000:01:00.0")
    iova = iovas.alloc(2 * PAGE)
    iovas.free(iova)
    with pytest.raises(DmaMemoryError, match=r"pci:0000:01:00\.0: IOVA 0x1000 was freed"):
        iovas.free(iova)
    iova = iovas.alloc(2 * PAGE)
    with pytest.raises(DmaMemoryError):
        iovas.free(iova + PAGE)  # the middle of an allocation


@pytest.mark.parametrize(
    "ranges",
    [
        [(MIB, 0)],
        [(0, MIB), (MIB, 2 * MIB)],
        [(2 * MIB, 3 * MIB), (0, MIB)],
        [(0, 1 << 64)],
        [(-1, MIB)],
    ],
)
def test_ranges_that_make_no_sense_are_refused(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(DmaMemoryError, match="range"):
        IovaAllocator(ranges, PAGE)


@pytest.mark.parametrize("page_size", [0, -4096, 3000, 4 * MIB])
def test_page_sizes_that_make_no_sense_are_refused(page_size: int) -> None:
    with pytest.raises(DmaMemoryError, match="page size"):
        IovaAllocator([(0, MIB)], page_size)


@given(st.lists(st.integers(1, 40), max_size=40), st.randoms(use_true_random=False))
def test_all_comes_back_in_whatever_order(sizes: list[int], random: Any) -> None:
    iovas = IovaAllocator([(0, 100 * PAGE - 1), (200 * PAGE, 300 * PAGE - 1)], PAGE)
    before = iovas.free_spans
    held = []
    for size in sizes:
        try:
            held.append(iovas.alloc(size * PAGE))
        except DmaMemoryError:
            continue
    random.shuffle(held)
    for iova in held:
        iovas.free(iova)
    assert iovas.free_spans == before


class IovaMachine(RuleBasedStateMachine):
    """Against a model of one flag per page."""

    held: Bundle[tuple[int, int]] = Bundle("held")

    @initialize(
        cuts=st.lists(st.integers(0, 400), min_size=2, max_size=8, unique=True).map(sorted),
        touching=st.booleans(),
    )
    def start(self, cuts: list[int], touching: bool) -> None:
        step = 1 if touching else 2
        pairs = list(zip(cuts[::step], cuts[1::step], strict=False))
        self.ranges = [(a * PAGE, b * PAGE - 1) for a, b in pairs]
        self.iovas = IovaAllocator(self.ranges, PAGE)
        # page number: number of its range, for the pages that may be used
        self.free = {page: n for n, (a, b) in enumerate(pairs) for page in range(a, b) if page}

    def _fits(self, page: int, count: int) -> bool:
        owner = self.free.get(page)
        return owner is not None and all(
            self.free.get(p) == owner for p in range(page, page + count)
        )

    @rule(target=held, count=st.integers(1, 60), shift=st.integers(0, 9))
    def alloc(self, count: int, shift: int) -> Any:
        align = 1 << shift
        expected = next((page for page in range(0, 400, align) if self._fits(page, count)), None)
        try:
            iova = self.iovas.alloc(count * PAGE, align=align * PAGE)
        except DmaMemoryError:
            assert expected is None
            return (-1, 0)
        assert expected is not None
        assert iova == expected * PAGE
        owner = self.free[expected]
        for page in range(expected, expected + count):
            del self.free[page]
        return (iova, count, owner)

    @rule(item=consumes(held))
    def release(self, item: Any) -> None:
        if item[0] < 0:
            return
        iova, count, owner = item
        self.iovas.free(iova)
        for page in range(iova // PAGE, iova // PAGE + count):
            self.free[page] = owner

    @invariant()
    def free_space_agrees(self) -> None:
        if hasattr(self, "iovas"):
            spans: list[list[int]] = []
            for page in sorted(self.free):
                if spans and spans[-1][1] == page and self.free[page] == self.free[page - 1]:
                    spans[-1][1] = page + 1
                else:
                    spans.append([page, page + 1])
            assert self.iovas.free_spans == [(a * PAGE, b * PAGE) for a, b in spans]


TestIovaMachine = IovaMachine.TestCase


@given(data=st.data())
def test_an_interrupt_at_any_line_costs_space_and_nothing_else(data: st.DataObject) -> None:
    """Ctrl-C: what is handed out and what is free stay disjoint, and the heap goes on."""
    extents = Extents([(0, 1 << 12)])
    taken: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        lines = data.draw(st.none() | st.integers(1, 25))

        def trace(frame: FrameType, event: str, _arg: object) -> object:
            nonlocal lines
            if frame.f_code.co_filename != iova_module.__file__:
                return None
            if event == "line" and lines is not None:
                lines -= 1
                if lines <= 0:
                    lines = None
                    raise KeyboardInterrupt
            return trace

        give = data.draw(st.sampled_from(sorted(taken))) if taken and data.draw(
            st.booleans()) else None
        size = data.draw(st.integers(1, 512))
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            if give is not None:
                taken.pop(give)
                extents.give(give)
            else:
                at = extents.take(size, 1)
                if at is not None:
                    taken[at] = size
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        spans = sorted([*extents.free_spans, *((at, at + n) for at, n in taken.items())])
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), spans
