"""Latency: the model of a healthy drive, and the fail-slow catalogue on top of it.

What a served controller adds is in its ground truth, so nothing here depends on how fast the
machine is: at least so much was added, and the completion did not come before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minidriver import OK, READ, WRITE, MiniDriver, command

from udrv.soft import SoftProcess
from udrv.soft.faults import Fault, Model, Script, fault
from udrv.soft.simulate import Load, Placed, Scenario, run_drive
from udrv.soft.simulate.engine import drive_seed
from udrv.soft.truth import read_truth
from udrv.vfio.user import from_socket

Start = Callable[..., SoftProcess]
QUIET = Model(dies=8, channels=4, jitter=0, read_ns=100_000, program_ns=300_000,
              transfer_ns=10_000, overhead_ns=10_000, buffer_ns=1_000_000)  # fmt: skip
#: One 4 KiB read on a quiet drive: sensed, moved, and the rest.
READ_NS = 120_000


@pytest.fixture
def run(start: Start, tmp_path: Path) -> Callable[..., Any]:
    """Run commands one at a time under faults; return their rows of ground truth."""

    def begin(commands: int, *faults: Fault, opcode: int = READ, step: int = 4) -> Any:
        log = tmp_path / "truth"
        process = start(f"size=16M&lba=4096&truth={log}", Script(faults, QUIET))
        driver = MiniDriver(from_socket(process.socket, "soft:"))
        pair = driver.pair(1)
        page = driver.bus(driver.pages(1))
        for i in range(commands):
            assert driver.rw(pair, opcode, i * step % 4096, 1, prp1=page).status == OK
        process.faults.sync()
        rows = read_truth(log)
        assert [one.applied for one in process.faults.loaded()] == [
            int((rows["fault"] == one.id).sum()) for one in process.faults.loaded()
        ]
        took = rows["time_ns"] - rows["submit_ns"]
        assert (took >= rows["added_ns"] + (READ_NS if opcode == READ else 0)).all()
        driver.close()
        return rows

    return begin


Run = Callable[..., Any]


def test_the_model_alone_is_no_fault(run: Run) -> None:
    assert len(run(20)) == 0


def test_permanent_factor(run: Run) -> None:
    rows = run(20, fault("factor", factor=2.5))
    assert (rows["added_ns"] == READ_NS * 1.5).all()
    assert len(rows) == 20
    assert len(set(rows["onset_ns"].tolist())) == 1, "since it was loaded"
    assert rows["nth"].tolist() == [*range(20)]


def test_effects_add_up_in_their_order(run: Run) -> None:
    rows = run(5, fault("factor", factor=2), fault("add", us=100), fault("factor", factor=2))
    added = rows["added_ns"].reshape(5, 3).tolist()
    assert added == [[READ_NS, 100_000, 2 * READ_NS + 100_000]] * 5


def test_additive_with_jitter(run: Run) -> None:
    rows = run(50, fault("add", us=100, jitter_us=400, seed=3))
    assert (rows["added_ns"] >= 100_000).all()
    assert (rows["added_ns"] <= 500_000).all()
    assert len(set(rows["added_ns"].tolist())) > 40


def test_spikes_and_a_slow_tail(run: Run) -> None:
    rows = run(400, fault("factor", factor=20, probability=0.02, seed=1))
    assert 1 <= len(rows) <= 24
    assert (rows["added_ns"] == READ_NS * 19).all()


def test_quantised_throttling(run: Run) -> None:
    rows = run(60, fault("throttle", steps=4))
    assert set(rows["added_ns"].tolist()) == {250_000, 500_000, 750_000, 1_000_000}


def test_a_periodic_stall(run: Run) -> None:
    """What comes in the first 20 ms of each 60 ms completes at their end."""
    rows = run(200, fault("stall", period_us=60_000, on_us=20_000))
    assert 1 <= len(rows) <= 100
    end = rows["submit_ns"] + READ_NS + rows["added_ns"]
    assert (end == rows["onset_ns"] + 20_000_000).all()
    assert len(set(rows["onset_ns"].tolist())) == len(rows), "one at a time: one a period"


def test_read_retries_on_a_part_of_the_blocks(run: Run) -> None:
    rows = run(100, fault("retry", us=70, again=0.5, limit=3, lba=(100, 199)))
    assert ((rows["slba"] >= 100) & (rows["slba"] <= 199)).all()
    assert len(rows) == 25
    assert set(rows["added_ns"].tolist()) <= {70_000, 140_000, 210_000, 280_000}
    assert len(set(rows["added_ns"].tolist())) > 1


def test_a_slow_die(run: Run) -> None:
    rows = run(64, fault("factor", factor=5, dies=8, die=3, stripe=4))
    assert (rows["slba"] // 4 % 8 == 3).all()
    assert len(rows) == 8


def test_a_bandwidth_cap(run: Run) -> None:
    rows = run(10, fault("bandwidth", kib_s=4096))  # 4 KiB take a 1024th of a second
    assert len(rows) == 10
    need = 10**9 / 1024
    assert np.allclose(rows["added_ns"], need - READ_NS, atol=2)


def test_write_only(run: Run) -> None:
    assert len(run(10, fault("factor", factor=2, opcodes="write"))) == 0
    assert len(run(10, fault("factor", factor=2, opcodes="write"), opcode=WRITE)) == 10


def test_thermal_throttling_has_two_levels(run: Run) -> None:
    """62 KiB fill it; nothing drains while it runs hot enough, so it stays full."""
    rows = run(40, fault("thermal", drain_kib_s=1, full_kib=62, empty_kib=8, factor=3))
    assert len(rows) == 40 - 15
    assert len(set(rows["onset_ns"].tolist())) == 1
    assert rows["onset_ns"][0] == rows["submit_ns"][0], "an onset of its own: the bucket was full"
    assert (rows["flags"] == 0).all()


def test_thermal_throttling_ends(run: Run) -> None:
    rows = run(60, fault("thermal", drain_kib_s=4000, full_kib=5, empty_kib=4, factor=30))
    onsets = sorted(set(rows["onset_ns"].tolist()))
    assert len(onsets) > 2, "it cooled down and became hot again"
    assert len(rows) < 60


def test_look_alikes_are_marked_as_healthy(run: Run) -> None:
    script = [
        fault("gc", drain_kib_s=1, full_kib=38, factor=2),
        fault("slc", drain_kib_s=1, full_kib=58, factor=3),
    ]
    assert len(run(30, *script)) == 0, "reads fill neither"
    rows = run(30, *script, opcode=WRITE)
    assert [int((rows["fault"] == i).sum()) for i in (1, 2)] == [21, 16]
    assert (rows["flags"] == 1).all()


@pytest.mark.parametrize("depth", [1, 4])
def test_latency_grows_with_depth(start: Start, tmp_path: Path, depth: int) -> None:
    """Four reads of one die wait for each other, of four dies they do not."""
    log = tmp_path / "truth"
    # the mark: it adds a nanosecond's worth, and its rows tell when commands came and went
    mark = fault("add", us=1)
    process = start(f"size=16M&lba=4096&truth={log}", Script((mark,), QUIET))
    driver = MiniDriver(from_socket(process.socket, "soft:"))
    pair = driver.pair(1)
    page = driver.bus(driver.pages(1))
    for far in (32, 4):  # blocks: the same die again (4 blocks * 8 dies), or the next
        for i in range(depth):
            lba = i * far
            driver.put(pair, command(READ, cid=i, nsid=1, prp1=page, cdw10=lba))
        driver.ring(pair)
        for _ in range(depth):
            driver.take(pair)
    process.faults.sync()
    rows = read_truth(log)
    took = (rows["time_ns"] - rows["submit_ns"]).reshape(2, depth)
    # the commands of a batch are fetched one after the other: the last waits less by that
    fetched = int(rows["submit_ns"][:depth].max() - rows["submit_ns"][:depth].min())
    assert took[0].max() >= READ_NS + (depth - 1) * 100_000 - fetched
    driver.close()


def test_two_runs_of_one_seed_add_the_same(run: Run, tmp_path: Path) -> None:
    faults = [
        fault("add", us=10, jitter_us=100, probability=0.5, seed=9),
        fault("throttle", steps=3, probability=0.3, seed=4),
    ]
    first, second = (run(50, *faults) for _ in range(2))
    for name in ("fault", "added_ns", "nth"):
        assert first[name].tolist() == second[name].tolist(), name


@pytest.mark.parametrize(
    "one",
    [
        fault("factor", factor=3, every=3), fault("add", us=50, jitter_us=200, seed=5),
        fault("throttle", steps=5, probability=0.4, seed=5), fault("retry", us=40, lba=(8, 30)),
        fault("factor", factor=2, dies=8, die=2, stripe=4), fault("late", us=70, after=9),
    ],
    ids=lambda one: one.effect,
)  # fmt: skip
def test_real_time_and_virtual_time_agree(run: Run, one: Fault) -> None:
    """The same reads, one at a time: the served controller adds what the simulation adds."""
    scenario = Scenario(
        blocks=4096, loads=(Load(sequential=True),), faults=(Placed(one),), model=QUIET
    )
    [chunk] = run_drive(scenario, hours=0.02 / 3600, seed=3)
    scope = dataclasses.replace(one.scope, seed=one.scope.seed ^ drive_seed(3, 0))
    served = run(60, dataclasses.replace(one, scope=scope), step=1)
    virtual = chunk.truth[: len(served)]
    for name in ("nth", "slba", "added_ns", "effect", "opcode"):
        assert served[name].tolist() == virtual[name].tolist(), name
    assert len(served) > 3
