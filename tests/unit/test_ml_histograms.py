# SPDX-License-Identifier: Apache-2.0
"""Records to windows, and what the default detector makes of their histograms."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udrv.ml import Verdict, WindowBatch
from udrv.ml.evidence import Evidence
from udrv.ml.reduce import BUCKETS, Reduced, batches, bucket_of, edges_ns, reduce_records
from udrv.soft.faults import Fault, fault
from udrv.soft.simulate import Load, Placed, Scenario, run_drive

S = 1_000_000
TICK_NS = 60 * 10**9
BLOCKS = 1 << 20


def records(count: int, seed: int = 0, **columns: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made = {
        "submit_ns": np.sort(rng.integers(0, 10 * TICK_NS, count)).astype(np.uint64),
        "slba": rng.integers(0, BLOCKS, count).astype(np.uint64),
        "latency": rng.integers(1, 1 << 20, count).astype(np.uint32),
        "nlb": rng.choice([1, 8, 256], count).astype(np.uint16),
        "depth": rng.integers(1, 20, count).astype(np.uint16),
        "qid": rng.integers(1, 4, count).astype(np.uint16),
        "status": (rng.random(count) < 0.1).astype(np.uint16) * 2,
        "opcode": rng.choice([1, 2], count).astype(np.uint8),
        "flags": np.zeros(count, np.uint8), "ns_index": np.zeros(count, np.uint16),
    }  # fmt: skip
    return {**made, **columns}


def reduced(some: dict[str, Any], ticks: int = 11) -> Reduced:
    return reduce_records(some, tick_ns=TICK_NS, start_ns=0, ticks=ticks, blocks=BLOCKS)


# --- records to windows --------------------------------------------------------------------------


@given(st.integers(0, 2**40))
def test_a_bucket_holds_its_latency_and_is_at_most_12_percent_wide(value: int) -> None:
    edges = np.append(edges_ns(), np.inf)
    at = int(bucket_of(np.array([value]))[0])
    assert edges[at] <= value < edges[at + 1]
    if 0 < at < BUCKETS - 1:
        assert edges[at + 1] / edges[at] <= 1.125


@settings(max_examples=25)
@given(st.integers(0, 400), st.integers(0, 2**32))
def test_windows_are_what_a_loop_over_records_gives(count: int, seed: int) -> None:
    some = records(count, seed)
    made = reduced(some)
    wanted: dict[Any, list[int]] = {}
    for at in range(count):
        row = {name: int(column[at]) for name, column in some.items()}
        latency = row["latency"] * 16
        key = (
            (row["submit_ns"] + latency) // TICK_NS, row["ns_index"] + 1, row["qid"],
            row["opcode"], (row["nlb"] * 4096).bit_length() - 1, row["depth"].bit_length() - 1,
        )  # fmt: skip
        wanted.setdefault(key, []).append(latency)
    got = {}
    for at in range(len(made.tick)):
        key = made.keys[made.key[at]]
        got[
            (int(made.tick[at]), key.namespace, key.queue, key.opcode, key.size_class,
             key.depth_bucket)
        ] = at  # fmt: skip
    assert set(got) == set(wanted)
    for key, latencies in wanted.items():
        at = got[key]
        assert made.columns["count"][at] == len(latencies) == made.columns["hist"][at].sum()
        assert made.columns["sum_ns"][at] == sum(latencies)
        assert made.columns["max_ns"][at] == max(latencies)
        assert made.columns["sum_sq"][at] == pytest.approx(sum(one**2 for one in latencies))
    assert made.bands["count"].sum() == count
    assert made.columns["errors"].sum() == np.count_nonzero(some["status"])


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=25)
def test_windows_of_parts_add_up_to_those_of_the_whole(one: int, two: int, seed: int) -> None:
    first, second = records(one, seed), records(two, seed + 1)
    both = {name: np.concatenate([first[name], second[name]]) for name in first}

    def table(some: dict[str, Any]) -> dict[Any, Any]:
        made = reduced(some)
        return {
            (int(made.tick[at]), made.keys[made.key[at]]): (
                made.columns["count"][at], made.columns["sum_ns"][at],
                made.columns["hist"][at].astype(int),
            )
            for at in range(len(made.tick))
        }  # fmt: skip

    parts, whole = [table(first), table(second)], table(both)
    for key, (count, total, hist) in whole.items():
        have = [part[key] for part in parts if key in part]
        assert count == sum(each[0] for each in have)
        assert total == sum(each[1] for each in have)
        assert (hist == sum(each[2] for each in have)).all()


def test_what_the_host_was_late_for_is_counted_apart() -> None:
    late = np.arange(1000) % 10 == 0
    some = records(1000, flags=(late * 2).astype(np.uint8))
    made = reduced(some)
    assert made.columns["host_late"].sum() == 100
    assert made.columns["count"].sum() == made.columns["hist"].sum() == 900
    assert made.bands["count"].sum() == 900
    assert made.columns["errors"].sum() == np.count_nonzero(some["status"])


def test_at_most_one_percent_of_a_window_is_over_its_p99() -> None:
    made = reduced(records(5000, nlb=np.ones(5000, np.uint16), depth=np.ones(5000, np.uint16)))
    assert 0 < made.bands["over_p99"].sum() <= 50


# --- a detector on them --------------------------------------------------------------------------

LOADS = (
    Load(duration_us=40 * S, depth=2, reads=0.7, think_us=100_000),
    Load(duration_us=20 * S, depth=8, reads=0.5, think_us=100_000),
)


def ticks_of(
    drives: int, *faults: Fault, sick: int = 0, hours: float = 0.7, loads: tuple[Load, ...] = LOADS
) -> list[WindowBatch]:
    what = Scenario(
        blocks=BLOCKS, queues=2, loads=loads,
        faults=tuple(Placed(one, frozenset([sick]) if sick >= 0 else None) for one in faults),
    )  # fmt: skip
    made = {}
    for drive in range(drives):
        parts = [chunk.columns for chunk in run_drive(what, hours=hours, seed=5, drive=drive)]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        made[f"host/{drive}"] = reduced(whole, round(hours * 60))
    return batches(
        made, group="host", tick_ns=TICK_NS, start_ns=0, ticks=round(hours * 60), blocks=BLOCKS
    )


def said_of(ticks: list[WindowBatch], detector: Evidence | None = None) -> list[Verdict]:
    detector = detector or Evidence()
    out: list[Verdict] = []
    for tick in ticks:
        tick.check()
        out += [*detector.on_tick(tick), *detector.on_period(tick.end_ns)]
    return out


START = 20 * 60 * S
FAULTS = {
    "slow": fault("factor", factor=2, start_us=START),
    "slow_tail": fault("factor", factor=20, probability=0.02, start_us=START),
    "stall": fault("stall", period_us=240 * S, on_us=3 * S, start_us=START),
    "errors": fault("media_error", probability=0.01, start_us=START),
}


@pytest.mark.parametrize("drives", [1, 4])
@pytest.mark.parametrize("kind", list(FAULTS))
def test_each_kind_of_fault_is_told_with_evidence_of_that_drive_alone(
    kind: str, drives: int
) -> None:
    said = said_of(ticks_of(drives, FAULTS[kind]))
    assert {verdict.device for verdict in said} == {"host/0"}
    assert kind in {verdict.kind for verdict in said}
    for verdict in said:
        assert verdict.first_ns >= START * 1000
        assert {"statistic", "baseline", "threshold"} <= set(verdict.as_dict()["evidence"])


def test_one_queue_is_told_as_that_queue() -> None:
    said = said_of(ticks_of(2, fault("factor", factor=4, queue=2, start_us=START)))
    assert {(one.device, one.scope.type, one.scope.queue) for one in said[2:]} == {
        ("host/0", "queue", 2)
    }


def test_a_range_of_blocks_is_told_as_that_range() -> None:
    low, high = BLOCKS // 2, BLOCKS // 2 + BLOCKS // 32
    said = said_of(ticks_of(1, fault("factor", factor=8, lba=(low, high - 1), start_us=START)))
    scope = said[-1].scope
    assert scope.type == "lba_range"
    assert (scope.first_lba, scope.last_lba) == (low, high - 1)


@pytest.mark.parametrize("drives", [1, 3])
def test_healthy_drives_under_changing_load_are_left_alone(drives: int) -> None:
    calm = Load(duration_us=START, depth=1, reads=0.9, think_us=50_000)
    busy = Load(duration_us=START, depth=16, reads=0.2, blocks=8, think_us=200_000)
    assert not said_of(ticks_of(drives, loads=(calm, busy)))
    assert not said_of(ticks_of(drives, sick=-1))


def test_what_all_drives_of_a_host_do_at_once_is_nobodys_fault() -> None:
    slow = fault("factor", factor=3, start_us=START)
    assert not said_of(ticks_of(4, slow, sick=-1))
    assert said_of(ticks_of(1, slow, sick=-1)), "alone, it is the drive's"


def test_a_host_that_polled_late_is_no_slow_drive() -> None:
    ticks = ticks_of(1, FAULTS["slow"])
    starved = [
        dataclasses.replace(
            tick, columns={**tick.columns, "host_late": tick.columns["count"]}
        ) if at >= 20 else tick
        for at, tick in enumerate(ticks)
    ]  # fmt: skip
    assert not said_of(starved)
    assert said_of(ticks)


def test_a_tick_without_io_is_no_evidence_and_learns_nothing() -> None:
    ticks = ticks_of(2, FAULTS["slow"], hours=0.5)
    nothing = dataclasses.replace(
        ticks[0], device=ticks[0].device[:0], step=ticks[0].step[:0],
        key=ticks[0].key[:0] if ticks[0].key is not None else None,
        columns={name: column[:0] for name, column in ticks[0].columns.items()}, bands={},
    )  # fmt: skip
    detector = Evidence()
    said = said_of(ticks[:15], detector)
    before = detector.state()["histogram0/reference"]
    assert not said_of([nothing] * 3, detector)
    after = detector.state()["histogram0/reference"]
    assert isinstance(before, np.ndarray) and isinstance(after, np.ndarray)
    assert before.sum() == after.sum()
    assert not said


def test_nothing_is_learnt_from_a_slow_period() -> None:
    detector = Evidence()
    said_of(ticks_of(1, FAULTS["slow"]), detector)
    slow_for = 0.7 * 3600 - START / S
    whole = Evidence()
    said_of(ticks_of(1), whole)
    learnt, all_of_it = (
        np.sum(one.state()["histogram0/reference"]) for one in (detector, whole)
    )
    assert learnt < all_of_it * (1 - 0.8 * slow_for / (0.7 * 3600))


def test_a_drive_slow_from_the_start_is_told_by_its_peers() -> None:
    said = said_of(ticks_of(4, fault("factor", factor=3)))
    assert {verdict.device for verdict in said} == {"host/0"}
    assert {verdict.evidence["baseline"] for verdict in said} == {"peers"}


def test_a_lone_drive_slow_from_the_start_is_told_by_calibration() -> None:
    healthy, slow = ticks_of(1), ticks_of(1, fault("factor", factor=3))
    assert not said_of(slow)
    detector = Evidence()
    detector.calibrate(healthy)
    said = said_of(slow, detector)
    assert {verdict.evidence["baseline"] for verdict in said} == {"calibration"}


def test_restored_from_its_state_it_goes_on_as_before() -> None:
    ticks = ticks_of(3, FAULTS["slow_tail"])
    one, other = Evidence(), Evidence()
    said_of(ticks[:25], one)
    other.restore(one.state())
    after = [verdict.json() for verdict in said_of(ticks[25:], one)]
    assert after
    assert [verdict.json() for verdict in said_of(ticks[25:], other)] == after
