"""The queue pair in C against a model device, driven by hypothesis: any batches, any order of
completion, any nonsense from the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from qp_model import BUFFER, ERRORS, IOVA, MAX_TRANSFER, Fetched, Pair, Row

from udrv.core import lib

FLUSH, WRITE, READ = 0, 1, 2
NSZE = 1 << 20


def verdict(row: Row, lba_shift: int, nsze: int) -> int:
    """What qp.h promises for a row: 0, or the error."""
    if row.opcode == FLUSH:
        return 0
    if row.opcode not in (READ, WRITE):
        return -lib.UDRV_EOPCODE
    if not row.nlb or row.slba + row.nlb > nsze:
        return -lib.UDRV_ERANGE
    size = row.nlb << lba_shift
    if size > MAX_TRANSFER or row.nlb > 65536:
        return -lib.UDRV_ESIZE
    if row.offset + size > BUFFER:
        return -lib.UDRV_EBUFFER
    if row.offset % 4:
        return -lib.UDRV_EALIGN
    return 0


def rows(lba_shift: int) -> st.SearchStrategy[Row]:
    blocks = st.integers(1, MAX_TRANSFER >> lba_shift)
    good = st.builds(
        lambda opcode, slba, nlb, word, control: Row(
            opcode, min(slba, NSZE - nlb), nlb,
            min(word * 4, BUFFER - (nlb << lba_shift)), control,
        ),
        st.sampled_from([READ, WRITE]), st.integers(0, NSZE), blocks | st.integers(1, 32),
        st.integers(0, BUFFER // 4), st.sampled_from([0, 1 << 14, 1 << 15]),
    )
    flush = st.just(Row(FLUSH, 0, 0, 0))
    u64 = st.integers(0, 2**64 - 1)
    edge = st.sampled_from([0, 1, NSZE - 1, NSZE, 2**32 - 1, 2**63, 2**64 - 1])
    wild = st.builds(Row, st.integers(0, 255) | st.just(READ), u64 | edge | st.just(0),
                     st.integers(0, 2**32 - 1) | st.integers(0, 70000),
                     u64 | edge | st.integers(0, BUFFER + 8))
    return st.one_of(good, good, good, good, flush, wild)


class QueuePair(RuleBasedStateMachine):
    """Submitted = completed + in flight, whatever happens between."""

    @initialize(
        entries=st.integers(2, 9) | st.integers(2, 40), lba_shift=st.sampled_from([9, 12]),
        table=st.booleans(),
    )
    def open(self, entries: int, lba_shift: int, table: bool) -> None:
        self.pair = Pair(entries, lba_shift, NSZE, table=table)
        self.lba_shift = lba_shift
        self.serial = 0
        self.expected: list[tuple[int, int, Row]] = []  # posted, not fetched: user data, slot, row
        self.open_commands: dict[int, tuple[int, int]] = {}  # cid: user data, slot
        self.quarantined: set[int] = set()  # user data
        self.posted: list[tuple[str, int, int, int, int]] = []  # kind, cid, user data, status, res
        self.done_cids: set[int] = set()
        self.counts = dict.fromkeys(("bad_cid", "duplicate", "bad_sqid", "late"), 0)
        self.delivered = 0

    def in_flight(self) -> int:
        return len(self.expected) + len(self.open_commands)

    # A duplicate that waits in the ring can meet a new command of its id; the specification gives
    # a driver no way to tell them apart, so the model does not ask for it.
    @precondition(lambda self: all(kind != "duplicate" for kind, *_ in self.posted))
    @rule(data=st.data(), slot=st.integers(0, 3), first=st.integers(0, 8))
    def submit(self, data: st.DataObject, slot: int, first: int) -> None:
        batch = data.draw(st.lists(rows(self.lba_shift), max_size=12))
        pair = self.pair
        numbers = list(range(self.serial, self.serial + len(batch)))
        free = pair.entries - 1 - self.in_flight()
        bad_at = next(
            (i for i, row in enumerate(batch[:free]) if verdict(row, self.lba_shift, NSZE)), None
        )
        before = (pair.doorbells.tolist(), bytes(pair.shared_memory[:64]), pair.state.nr_free)
        got, bad = pair.submit(batch, numbers, slot=slot, first=first)
        if bad_at is not None:
            assert got == verdict(batch[bad_at], self.lba_shift, NSZE), ERRORS.get(got, got)
            assert bad == first + bad_at
            after = (pair.doorbells.tolist(), bytes(pair.shared_memory[:64]), pair.state.nr_free)
            assert before == after
            return
        assert got == min(len(batch), free)
        self.serial += got
        self.expected += [(numbers[i], slot, batch[i]) for i in range(got)]

    @rule(count=st.integers(1, 40))
    def device_fetches(self, count: int) -> None:
        for _ in range(count):
            command = self.pair.fetch()
            if command is None:
                assert not self.expected
                return
            self.check(command)

    def check(self, command: Fetched) -> None:
        user_data, slot, row = self.expected.pop(0)  # the ring keeps the order
        assert command.cid < self.pair.entries - 1
        assert command.cid not in self.open_commands, "an id in use was given out again"
        assert (command.opcode, command.nsid) == (row.opcode, 1)
        if row.opcode == FLUSH:
            assert (command.slba, command.control, command.data) == (0, 0, ())
        else:
            assert (command.slba, command.nlb) == (row.slba, row.nlb)
            assert command.control == row.control
            size = row.nlb << self.lba_shift
            assert command.data == ((IOVA + row.offset, size),)
        self.open_commands[command.cid] = (user_data, slot)

    def pending(self) -> set[int]:
        return {cid for kind, cid, *_ in self.posted if kind == "true"}

    @precondition(lambda self: self.open_commands and self.pair.cq_room)
    @rule(data=st.data(), status=st.integers(0, 0x7FFF), result=st.integers(0, 2**64 - 1))
    def device_completes(self, data: st.DataObject, status: int, result: int) -> None:
        candidates = sorted(set(self.open_commands) - self.pending())
        if candidates:
            cid = data.draw(st.sampled_from(candidates))
            self.pair.post(cid, status=status, result=result)
            self.posted.append(("true", cid, self.open_commands[cid][0], status, result))

    @precondition(lambda self: self.pair.cq_room)
    @rule(data=st.data(), kind=st.sampled_from(["bad_cid", "duplicate", "bad_sqid", "stale"]))
    def device_lies(self, data: st.DataObject, kind: str) -> None:
        entries = self.pair.entries
        if kind == "bad_cid":
            cid = data.draw(st.integers(entries - 1, 0xFFFF))
            self.pair.post(cid)
        elif kind == "bad_sqid":
            cid = data.draw(st.integers(0, entries - 2))
            self.pair.post(cid, sqid=data.draw(st.sampled_from([0, 1, 8, 10, 0xFFFF])))
        elif kind == "stale":
            cid = data.draw(st.integers(0, entries - 2))
            self.pair.post(cid, stale=True)
            return
        else:
            # an id that is completed already, or that no command has
            in_use = set(self.open_commands) | {self.pair.entries}
            unfetched = len(self.expected) > 0
            candidates = sorted((set(range(entries - 1)) - in_use) | self.pending())
            if unfetched or not candidates:
                return
            cid = data.draw(st.sampled_from(candidates))
            self.pair.post(cid)
        self.posted.append((kind, cid, 0, 0, 0))

    @rule(maximum=st.integers(0, 40))
    def reap(self, maximum: int) -> None:
        got = self.pair.reap(maximum)
        expected = []
        while self.posted and len(expected) < maximum:
            kind, cid, user_data, status, result = self.posted.pop(0)
            if kind == "true":
                self.open_commands.pop(cid)
                if user_data in self.quarantined:
                    self.quarantined.discard(user_data)
                    self.counts["late"] += 1
                else:
                    expected.append((user_data, status, result))
            else:
                self.counts[kind] += 1
        assert got == expected
        self.delivered += len(got)
        if maximum:
            assert not self.posted or len(got) == maximum

    @rule(slot=st.integers(0, 3) | st.just(lib.UDRV_QP_SLOTS))
    def quarantine(self, slot: int) -> None:
        # commands that the device has not fetched yet are given up too
        commands = [*self.open_commands.values(), *((u, s) for u, s, _ in self.expected)]
        chosen = {
            u for u, s in commands
            if u not in self.quarantined and slot in (s, lib.UDRV_QP_SLOTS)
        }
        assert lib.udrv_qp_quarantine(self.pair.qp, slot) == len(chosen)
        self.quarantined |= chosen

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "pair"):
            return
        state = self.pair.state
        assert lib.udrv_qp_inflight(self.pair.qp) == self.in_flight()
        assert state.submitted == self.serial
        assert state.completed == self.delivered
        assert state.submitted == state.completed + state.anomalies.late + self.in_flight()
        assert state.consumed == state.completed + sum(self.counts.values())
        for name, count in self.counts.items():
            assert getattr(state.anomalies, name) == count
        for slot in range(4):
            commands = [*self.open_commands.values(), *((u, s) for u, s, _ in self.expected)]
            mine = sum(s == slot for _, s in commands)
            assert lib.udrv_qp_slot_inflight(self.pair.qp, slot) == mine
        assert state.sq_rung == state.sq_posted == self.pair.doorbells[0]
        assert state.cq_rung == state.cq_head == self.pair.doorbells[1]

    def teardown(self) -> None:
        """Everything that is still out can be released, and all ids come back."""
        if hasattr(self, "pair"):
            assert lib.udrv_qp_release_all(self.pair.qp) == self.in_flight()
            assert self.pair.state.nr_free == self.pair.entries - 1


TestQueuePair = QueuePair.TestCase
TestQueuePair.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@given(word=st.integers(0, BUFFER // 4 - 1), blocks=st.integers(1, MAX_TRANSFER >> 9))
@settings(max_examples=400, deadline=None)
def test_prps_are_exactly_the_data(word: int, blocks: int) -> None:
    pair = Pair(2, 9, NSZE)
    offset = min(word * 4, BUFFER - (blocks << 9))
    assert pair.submit([Row(READ, 0, blocks, offset)], [1]) == (1, 0xFFFF_FFFF)
    command = pair.fetch()
    assert command is not None
    assert command.data == ((IOVA + offset, blocks << 9),)


@pytest.mark.parametrize("entries", [2, 3, 65535])
def test_the_smallest_and_the_largest_ring(entries: int) -> None:
    pair = Pair(entries, 12, NSZE)
    lap = Row(WRITE, 5, 1, 0)
    sent = done = 0
    while done < min(3 * entries, 70000):
        n, _ = pair.submit([lap] * 64, list(range(sent, sent + 64)))
        sent += n
        held = []
        while command := pair.fetch():
            held.append(command.cid)
        for cid in reversed(held):
            pair.post(cid)
        got = [user_data for user_data, _, _ in pair.reap(64)]
        assert sorted(got) == list(range(done, done + n))
        done += n
    assert lib.udrv_qp_inflight(pair.qp) == 0


def test_latency_is_measured_from_the_doorbell() -> None:
    pair = Pair(4, 12, NSZE)
    pair.submit([Row(READ, 0, 1, 0)], [1])
    command = pair.fetch()
    assert command is not None
    pair.post(command.cid)
    before: Any = pair.result["latency_ns"].copy()
    assert len(pair.reap(1)) == 1
    assert pair.result["latency_ns"][0] > 0
    assert np.array_equal(before[1:], pair.result["latency_ns"][1:])
