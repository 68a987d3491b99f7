# SPDX-License-Identifier: Apache-2.0
"""The stream in C against a model: any completions in any order, with any consumer."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from qp_model import Pair, Row
from stream_rig import NSZE, Rig

from udrv.core import lib

FLUSH, WRITE, READ = 0, 1, 2
LATE, REJECTED = int(lib.UDRV_RECORD_LATE), int(lib.UDRV_RECORD_REJECTED)
HOST_LATE = int(lib.UDRV_RECORD_HOST_LATE)


def commands() -> st.SearchStrategy[Row]:
    moving = st.builds(
        lambda opcode, slba, nlb: Row(opcode, min(slba, NSZE - nlb), nlb, 0),
        st.sampled_from([READ, READ, READ, WRITE]), st.integers(0, NSZE),
        st.sampled_from([1, 8, 8, 8, 9, 32, 256]),
    )
    return st.one_of(moving, moving, moving, st.just(Row(FLUSH, 0, 0, 0)))


def log2_class(value: int, unit: int) -> int:
    return 0 if value <= unit else min(15, math.ceil(math.log2(value / unit)))


def key_of(row: Row, depth: int, late: bool) -> int:
    kind = {READ: 0, WRITE: 1, FLUSH: 2}[row.opcode]
    size = log2_class(row.nlb << 12, 512)
    return kind << 9 | size << 5 | log2_class(depth, 1) << 1 | late


class Stream(RuleBasedStateMachine):
    """Every completion is counted once, and every record that is taken is a true one."""

    @initialize(
        entries=st.integers(2, 5) | st.integers(2, 60), chunks=st.integers(2, 3),
        stride=st.sampled_from([1, 1, 1, 2, 7]), cells=st.sampled_from([3, 64, 64]),
    )
    def open(self, entries: int, chunks: int, stride: int, cells: int) -> None:
        self.pair = Pair(entries, 12, NSZE)
        self.rig = Rig(self.pair, chunks=chunks, cells=cells, stride=stride)
        self.stride, self.cells = stride, cells
        self.serial = 0
        self.fetched: dict[int, tuple[int, Row, int]] = {}  # cid: user data, row, depth
        self.unfetched: list[tuple[int, Row, int]] = []
        self.posted: list[tuple[str, int, int]] = []  # kind, cid, status
        self.quarantined: set[int] = set()
        #: By seq: what its record must say; None for a rejected one.
        self.truth: list[tuple[Row, int, int, int | None] | None] = []
        self.held: list[int] = []
        self.taken = 0
        self.last_seq = -1

    def in_flight(self) -> int:
        return len(self.fetched) + len(self.unfetched)

    @rule(batch=st.lists(commands(), min_size=1, max_size=40))
    def submit(self, batch: list[Row]) -> None:
        if self.posted:  # a duplicate in the ring could meet a new command of its id
            return
        got, _ = self.pair.submit(batch, list(range(self.serial, self.serial + len(batch))))
        assert got >= 0
        depth = self.in_flight() + got
        self.unfetched += [(self.serial + i, batch[i], depth) for i in range(got)]
        self.serial += got

    @rule(data=st.data(), status=st.sampled_from([0, 0, 0, 0x281, 0x4002]))
    def complete(self, data: st.DataObject, status: int) -> None:
        while (command := self.pair.fetch()) is not None:
            self.fetched[command.cid] = self.unfetched.pop(0)
        waiting = {cid for _, cid, _ in self.posted}
        ready = sorted(set(self.fetched) - waiting)
        if ready:
            for cid in data.draw(st.permutations(ready)):
                if self.pair.cq_room:
                    self.pair.post(cid, status=status)
                    self.posted.append(("true", cid, status))

    @precondition(lambda self: self.pair.cq_room)
    @rule()
    def lie(self) -> None:
        self.pair.post(0xFFFF)
        self.posted.append(("false", 0xFFFF, 0))

    @rule()
    def give_up(self) -> None:
        lib.udrv_qp_quarantine(self.pair.qp, lib.UDRV_QP_SLOTS)
        self.quarantined |= {user for user, _, _ in (*self.fetched.values(), *self.unfetched)}

    @rule(maximum=st.integers(1, 64))
    def reap(self, maximum: int) -> None:
        n = lib.udrv_qp_reap(self.pair.qp, self.pair.out, 0, maximum)
        result = self.pair.result[:n]
        at = 0
        while self.posted and at < maximum:
            kind, cid, status = self.posted.pop(0)
            if kind == "false":
                self.truth.append(None)
                continue
            user, row, depth = self.fetched.pop(cid)
            if user in self.quarantined:
                self.truth.append((row, depth, 0, None))
                continue
            assert result["user_data"][at] == user
            self.truth.append((row, depth, status, int(result["latency_ns"][at])))
            at += 1
        assert at == n

    @rule(rounds=st.integers(1, 80) | st.integers(80, 250))
    def run_long(self, rounds: int) -> None:
        """As many that chunks are filled."""
        if self.in_flight() or self.posted:
            return
        depth = min(self.pair.entries - 1, 64)
        batch = [Row(READ, i * 1000, 8, 0) for i in range(depth)]
        for _ in range(rounds):
            assert self.pair.submit(batch, [0] * depth)[0] == depth
            while (command := self.pair.fetch()) is not None:
                self.pair.post(command.cid)
            assert lib.udrv_qp_reap(self.pair.qp, self.pair.out, 0, 64) == depth
            latencies = self.pair.result["latency_ns"][:depth].tolist()
            self.truth += [
                (row, depth, 0, latency) for row, latency in zip(batch, latencies, strict=True)
            ]
        self.serial = max(self.serial, 1)

    @rule()
    def take(self) -> None:
        taken = self.rig.take()
        if taken is None:
            assert self.rig.counters()["waiting"] == 0
            return
        self.held.append(taken.index)
        self.taken += len(taken.seqs)
        for at, seq in enumerate(taken.seqs):
            assert seq > self.last_seq, "out of order, or twice"
            assert seq % self.stride == 0
            self.last_seq = seq
            self.check({name: column[at] for name, column in taken.columns.items()}, seq)

    def check(self, record: dict[str, int], seq: int) -> None:
        truth = self.truth[seq]
        assert record["qid"] == 9
        if truth is None:
            assert record["flags"] & REJECTED
            return
        row, depth, status, latency_ns = truth
        assert (record["opcode"], record["slba"], record["nlb"]) == (row.opcode, row.slba, row.nlb)
        assert (record["depth"], record["ns_index"]) == (depth, 0)
        assert record["submit_ns"] > 0
        if latency_ns is None:
            assert record["flags"] & LATE
        else:
            assert not record["flags"] & (LATE | REJECTED)
            assert (record["status"], record["latency"]) == (status, latency_ns >> 4)

    @rule(which=st.integers(0, 3))
    def let_go(self, which: int) -> None:
        if self.held:
            index = self.held[which % len(self.held)]
            self.held = [other for other in self.held if other != index]
            self.rig.release(index)

    @invariant()
    def nothing_is_lost_without_a_count(self) -> None:
        if not hasattr(self, "rig"):
            return
        counters = self.rig.counters()
        assert counters["seen"] == len(self.truth) == self.pair.state.consumed
        assert counters["seen"] == sum(
            counters[name]
            for name in ("delivered", "sampled_out", "ring_full", "overrun", "waiting")
        )
        assert counters["delivered"] == self.taken
        assert counters["rejected"] == sum(t is None for t in self.truth)
        assert counters["late"] == sum(t is not None and t[3] is None for t in self.truth)

    @invariant()
    def windows_are_exact(self) -> None:
        if not hasattr(self, "rig") or self.rig.shared.rotation != 1:
            return  # a minute's end in the middle of it
        window, rows, bands = self.rig.window(1)
        assert window.seen == len(self.truth)
        expected: Counter[int] = Counter()
        errors = latency_sum = 0
        for truth in self.truth:
            if truth is not None:
                row, depth, status, latency_ns = truth
                expected[key_of(row, depth, False)] += 1
                errors += status != 0
                latency_sum += latency_ns or 0
        found: Counter[int] = Counter()
        for key, (cell, hist) in rows.items():
            found[key & ~1] += cell.count
            assert cell.count == hist.sum()
            indexes = np.flatnonzero(hist)
            assert cell.low == indexes[0] and cell.high == indexes[-1]
            assert lib.udrv_hist_bucket_low(cell.high) <= cell.max_ns
            assert cell.max_ns <= lib.udrv_hist_bucket_high(cell.high)
            assert cell.sum_ns <= cell.count * cell.max_ns
            assert cell.sum_sq * 1.001 >= cell.sum_ns * cell.sum_ns / cell.count
        if self.cells > 60:
            assert found == expected
        else:  # what has no cell is with the rest, and all of it is somewhere
            assert found.total() == expected.total()
            assert all(found[key] <= expected[key] for key in found if key != lib.UDRV_KEY_REST)
        assert sum(cell.errors for cell, _ in rows.values()) == errors
        if not any(t is not None and t[3] is None for t in self.truth):
            assert sum(cell.sum_ns for cell, _ in rows.values()) == latency_sum
        late = sum(cell.count for key, (cell, _) in rows.items() if key & 1)
        if self.cells > 60:
            assert window.host_late == late
        counts = np.array([int(n) & 0xFFFF_FFFF for n in bands.count_above])
        assert counts.sum() <= found.total()


TestStream = Stream.TestCase
TestStream.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@given(
    st.integers(1, 1 << 40), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20)
)
@settings(max_examples=80, deadline=None)
def test_bands_are_equal_parts_of_a_namespace(nsze: int, places: list[float]) -> None:
    """64 of them; a namespace of fewer than 513 blocks counts as one of so many."""
    pair = Pair(64, 12, nsze)
    rig = Rig(pair, records=False, cells=8)
    expected = np.zeros(64, np.int64)
    for place in places:
        slba = int(place * nsze)
        if nsze > 1 << 32:  # a band's last block may be the next one's: not the edges, then
            slba = int(place * 64) * nsze // 64 + nsze // 128
        one(pair, Row(READ, slba, 1, 0), polls=True)
        exact = slba * 64 // max(nsze, 513)
        expected[exact] += 1
    _, rows, bands = rig.window(int(rig.shared.rotation))
    late = sum(cell.count for key, (cell, _) in rows.items() if key & 1)
    counts = np.array([int(n) & 0xFFFF_FFFF for n in bands.count_above])
    if rig.shared.rotation == 1 and not late:
        assert (counts == expected).all()
    else:  # this machine stalled: what the host delayed is in no band
        assert (counts <= expected).all()


def one(pair: Pair, row: Row, *, polls: bool) -> int:
    """Submit, complete, reap; with a look at the empty queue before the completion. Its latency."""
    assert pair.submit([row], [0])[0] == 1
    command = pair.fetch()
    assert command is not None
    if polls:
        # the latency is then mostly before the look, and the gap is what comes after it
        until = time.monotonic_ns() + 300_000
        while time.monotonic_ns() < until:
            assert lib.udrv_qp_reap(pair.qp, pair.out, 0, 1) == 0
    pair.post(command.cid)
    assert lib.udrv_qp_reap(pair.qp, pair.out, 0, 1) == 1
    return int(pair.result["latency_ns"][0])
