"""Compare and Write as one fused operation, and halves of it."""

from __future__ import annotations

import struct

import pytest
from minidriver import (
    COMPARE,
    COMPARE_FAILURE,
    DELETE_SQ,
    FAILED_FUSED,
    FLUSH,
    INVALID_FIELD,
    LBA_RANGE,
    MISSING_FUSED,
    OK,
    PAGE,
    READ,
    WRITE,
    Completion,
    MiniDriver,
    Pair,
    command,
    until,
)
from nvmkit import Drive, identify

FIRST, SECOND = 1, 2


class Swap:
    """Two pages: what is expected, and what is to be written."""

    def __init__(self, driver: MiniDriver) -> None:
        self.driver, self.pair = driver, driver.pair(1)
        self.old, self.new = driver.pages(1), driver.pages(1)

    def compare(self, cid: int, slba: int = 3, blocks: int = 1, **more: int) -> None:
        more.setdefault("flags", FIRST)
        self.driver.put(self.pair, command(
            COMPARE, cid=cid, nsid=1, prp1=self.driver.bus(self.old), cdw10=slba,
            cdw12=blocks - 1, **more,
        ))

    def write(self, cid: int, slba: int = 3, blocks: int = 1, **more: int) -> None:
        more.setdefault("flags", SECOND)
        self.driver.put(self.pair, command(
            WRITE, cid=cid, nsid=more.pop("nsid", 1), prp1=self.driver.bus(self.new), cdw10=slba,
            cdw12=blocks - 1, **more,
        ))

    def done(self, count: int) -> list[tuple[int, tuple[int, int]]]:
        self.driver.ring(self.pair)
        taken = [self.driver.take(self.pair) for _ in range(count)]
        return [(completion.cid, completion.status) for completion in taken]

    def set(self, old: int, new: int) -> None:
        self.driver.memory[self.old : self.old + PAGE] = bytes([old]) * PAGE
        self.driver.memory[self.new : self.new + PAGE] = bytes([new]) * PAGE


def test_compare_and_write(drive: Drive) -> None:
    driver = drive()
    data = identify(driver, 1)
    assert data[522] == 1  # FUSES
    assert struct.unpack_from("<H", data, 526) == struct.unpack_from("<H", data, 532) == (127,)
    swap = Swap(driver)
    for old, new, second in ((0, 5, OK), (5, 6, OK), (5, 7, FAILED_FUSED), (6, 8, OK)):
        swap.set(old, new)
        swap.compare(1)
        swap.write(2)
        first = OK if second == OK else COMPARE_FAILURE
        assert swap.done(2) == [(1, first), (2, second)]
    assert driver.rw(swap.pair, READ, 3, 1, prp1=driver.bus(swap.old)).status == OK
    assert driver.memory[swap.old : swap.old + PAGE] == b"\x08" * PAGE


def test_the_second_may_come_later(drive: Drive) -> None:
    driver = drive()
    swap = Swap(driver)
    swap.compare(1)
    driver.ring(swap.pair)
    driver.admin(0x0A, cdw10=7)
    assert driver.peek(swap.pair) is None
    swap.write(2)
    assert swap.done(2) == [(1, OK), (2, OK)]


def test_halves_are_aborted(drive: Drive) -> None:
    driver = drive()
    swap = Swap(driver)
    swap.write(1)
    assert swap.done(1) == [(1, MISSING_FUSED)]
    swap.compare(1)
    swap.compare(2)
    swap.write(3, flags=0)
    swap.compare(4, flags=0)
    assert swap.done(4) == [(1, MISSING_FUSED), (2, MISSING_FUSED), (3, OK), (4, OK)]
    swap.compare(1, flags=3)
    swap.write(2, flags=FIRST)
    driver.put(swap.pair, command(FLUSH, cid=3, nsid=1, flags=SECOND))
    assert swap.done(3) == [(1, INVALID_FIELD), (2, INVALID_FIELD), (3, MISSING_FUSED)]
    swap.compare(1)
    driver.put(swap.pair, command(FLUSH, cid=2, nsid=1, flags=SECOND))
    assert swap.done(2) == [(1, INVALID_FIELD), (2, INVALID_FIELD)]


@pytest.mark.parametrize("second", [{"slba": 4}, {"blocks": 2}, {"nsid": 2}, {"cdw11": 1}])
def test_both_must_mean_the_same_blocks(drive: Drive, second: dict[str, int]) -> None:
    swap = Swap(drive())
    swap.compare(1)
    swap.write(2, **second)
    assert swap.done(2) == [(1, INVALID_FIELD), (2, INVALID_FIELD)]


def test_what_fails_by_itself(drive: Drive) -> None:
    swap = Swap(drive("size=16M&mdts=1"))
    swap.compare(1, slba=4096)
    swap.write(2, slba=4096)
    assert swap.done(2) == [(1, LBA_RANGE), (2, FAILED_FUSED)]
    swap.compare(1, blocks=3)  # more than ACWU
    swap.write(2, blocks=3)
    assert swap.done(2) == [(1, INVALID_FIELD), (2, INVALID_FIELD)]


def test_room_is_kept_for_both(drive: Drive) -> None:
    """A completion queue of three entries holds two: never more than that at a time."""
    driver = drive()
    cq, sq = driver.pages(1), driver.pages(1)
    assert driver.create_cq(1, 3, cq).status == OK
    assert driver.create_sq(1, 16, sq, cqid=1).status == OK
    swap = Swap.__new__(Swap)
    swap.driver, swap.pair = driver, Pair(1, 16, sq, cq)
    swap.old, swap.new = driver.pages(1), driver.pages(1)
    for cid in range(0, 12, 2):
        swap.compare(cid)
        swap.write(cid + 1)
    driver.ring(swap.pair)
    view = Pair(1, 3, cq, cq)
    seen: list[Completion] = []
    while len(seen) < 12:
        until(lambda: driver.peek(view) is not None, "completion")
        seen.append(driver.take(view))
    assert [done.cid for done in seen] == list(range(12))
    assert all(done.status == OK for done in seen)


def test_a_deleted_queue_forgets_its_half(drive: Drive) -> None:
    driver = drive()
    swap = Swap(driver)
    swap.compare(1)
    driver.ring(swap.pair)
    assert driver.admin(DELETE_SQ, cdw10=1).status == OK
    at = driver.pages(1)
    assert driver.create_sq(1, 16, at).status == OK
    pair = Pair(1, 16, at, swap.pair.cq)
    for _ in range(40):  # more than the completion queue has entries
        assert driver.run(pair, FLUSH, nsid=1).status == OK


def test_a_completion_queue_without_room_for_two_refuses_the_first(drive: Drive) -> None:
    """It would wait for its second for ever, and that one for room."""
    driver = drive()
    cq, sq = driver.pages(1), driver.pages(1)
    assert driver.create_cq(1, 2, cq).status == OK
    assert driver.create_sq(1, 16, sq, cqid=1).status == OK
    swap = Swap.__new__(Swap)
    swap.driver, swap.pair = driver, Pair(1, 16, sq, cq)
    swap.old, swap.new = driver.pages(1), driver.pages(1)
    swap.compare(1)
    swap.write(2)
    driver.ring(swap.pair)
    view = Pair(1, 2, cq, cq)
    for expected in ((1, INVALID_FIELD), (2, MISSING_FUSED)):
        until(lambda: driver.peek(view) is not None, "completion")
        done = driver.take(view)
        assert (done.cid, done.status) == expected


@pytest.mark.parametrize("second", [SECOND, 0])
def test_halves_of_many_queues_do_not_block_each_other(drive: Drive, second: int) -> None:
    """Three queues complete in one that holds three: each holds back the first half of a pair."""
    driver = drive()
    cq = driver.pages(1)
    assert driver.create_cq(1, 4, cq).status == OK
    swaps = []
    for qid in (1, 2, 3):
        sq = driver.pages(1)
        assert driver.create_sq(qid, 16, sq, cqid=1).status == OK
        swap = Swap.__new__(Swap)
        swap.driver, swap.pair = driver, Pair(qid, 16, sq, cq)
        swap.old, swap.new = driver.pages(1), driver.pages(1)
        swap.compare(10 * qid, slba=qid)
        driver.ring(swap.pair)
        swaps.append(swap)
    for swap in swaps:
        swap.write(10 * swap.pair.qid + 1, slba=swap.pair.qid, flags=second)
        driver.ring(swap.pair)
    view = Pair(1, 4, cq, cq)
    seen = {}
    while len(seen) < 6:
        until(lambda: driver.peek(view) is not None, "completion")
        done = driver.take(view)
        seen[done.cid] = done.status
    first = OK if second else MISSING_FUSED
    assert seen == {10 * qid + half: OK if half else first for qid in (1, 2, 3) for half in (0, 1)}
