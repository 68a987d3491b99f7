"""What udrv's own driver does with each fault: docs/faults.md has the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import udrv
from udrv.errors import (
    CommandTimeoutError,
    ControllerFatalError,
    ControllerTimeoutError,
    DeviceGoneError,
    NvmeStatusError,
)
from udrv.nvme import Controller, State, lifecycle, status
from udrv.nvme.retry import RETRIES
from udrv.soft import FaultControl
from udrv.soft.faults import Fault, Script, fault, to_toml
from udrv.soft.truth import COMPLETION, LOST, read_truth


class Rig:
    def __init__(self, folder: Path, *faults: Fault, **how: Any) -> None:
        self.folder = folder
        self.control = folder / "control"
        (folder / "script").write_text(to_toml(Script(faults)))
        self.ctrl: Controller = udrv.open(
            f"soft:?size=16M&lba=512&control={self.control}&truth={folder}/truth"
            f"&faults={folder}/script", **how,
        )  # fmt: skip
        self.faults = FaultControl.connect(self.control)
        self.ns = self.ctrl.namespace(1)

    def truth(self) -> Any:
        self.faults.sync()
        return read_truth(self.folder / "truth")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    with ExitStack() as stack:

        def make(*faults: Fault, **how: Any) -> Rig:
            one = Rig(tmp_path, *faults, **how)
            stack.callback(one.faults.close)
            stack.callback(one.ctrl.close)
            return one

        yield make


Make = Callable[..., Rig]


class Reads:
    """Eight one-block reads on a queue of their own."""

    def __init__(self, rig: Rig, n: int = 8, **how: Any) -> None:
        self.queue = rig.ctrl.create_queue(entries=32, **how)
        self.buffer = rig.ctrl.alloc(n * 512)
        self.batch = self.queue.batch(n, namespace=rig.ns, buffer=self.buffer)
        self.batch.slba[:] = np.arange(n)
        self.batch.offset[:] = np.arange(n) * 512
        self.batch.user_data[:] = np.arange(n)

    def run(self, timeout: float = 10, minimum: int = 8) -> list[int]:
        assert self.queue.submit(self.batch) == self.batch.capacity
        return [int(i) for i in self.queue.reap(minimum, timeout=timeout).user_data]

    def odd(self) -> dict[str, int]:
        names = ("bad_cid", "duplicate", "bad_sqid", "late")
        return {name: n for name, n in self.queue.counters().items() if name in names and n}


# --- protocol --------------------------------------------------------------------------------


def test_a_dropped_completion_times_out_and_its_memory_is_kept(rig: Make) -> None:
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("drop", lba=3))
    assert reads.run(timeout=0.1) == [0, 1, 2, 4, 5, 6, 7]
    with pytest.raises(CommandTimeoutError, match="1 commands did not complete"):
        reads.queue.give_up(reads.batch, "read", 0.1)
    assert reads.queue.inflight == 1
    assert r.truth()["kind"].tolist() == [LOST]
    r.faults.clear()
    with pytest.raises(CommandTimeoutError):
        r.faults.add(fault("drop", count=1))
        r.ns.read(0, 1, timeout=0.1)
    assert r.ns.read(0, 1, timeout=10).nbytes == 512
    reads.queue.close()  # the deletion of its queue is the proof
    reads.batch.close()
    reads.buffer.free()


def test_a_late_completion_is_counted_and_not_delivered(rig: Make) -> None:
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("late", us=150_000, lba=3))
    assert len(reads.run(timeout=0.02)) == 7
    assert reads.queue.quarantine(reads.batch) == 1
    assert len(reads.queue.reap(1, timeout=10)) == 0
    assert reads.odd() == {"late": 1}
    assert reads.queue.inflight == 0
    [row] = r.truth()
    assert (row["kind"], row["nth"]) == (COMPLETION, 7)
    assert row["nth"] == reads.queue.counters()["consumed"] - 1, "the driver's count is the key"


def test_one_that_is_late_in_time_is_delivered(rig: Make) -> None:
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("late", us=20_000, lba=3))
    assert reads.run() == [0, 1, 2, 4, 5, 6, 7, 3]
    assert reads.odd() == {}


@pytest.mark.parametrize("us", [0, 5000])
def test_a_duplicate_is_counted_and_not_delivered(rig: Make, us: int) -> None:
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("duplicate", us=us, lba=3))
    assert sorted(reads.run()) == [*range(8)]
    while reads.queue.counters()["consumed"] < 9:
        assert len(reads.queue.reap()) == 0
    assert reads.odd() == {"duplicate": 1}
    [row] = r.truth()
    assert row["cqid"] == reads.queue.qid
    r.faults.clear()
    assert sorted(reads.run()) == [*range(8)]


def test_a_duplicate_of_a_command_id_in_use_is_the_next_commands(rig: Make) -> None:
    """No driver can tell it from the right one: the completion is taken, early."""
    r = rig()
    reads = Reads(r, 1)
    r.faults.add(fault("duplicate", us=30_000, count=1), fault("late", us=300_000, after=1))
    assert reads.run(minimum=1) == [0]
    assert reads.run(minimum=1) == [0]
    assert r.truth()["nth"].tolist() == [1]
    while reads.queue.counters()["consumed"] < 3:
        reads.queue.reap()
    assert reads.odd() == {"duplicate": 1}


@pytest.mark.parametrize("effect", ["unknown_cid", "wrong_sqid"])
def test_a_completion_of_nobody_is_counted(rig: Make, effect: str) -> None:
    r = rig()
    reads = Reads(r)
    r.faults.add(fault(effect, extra=True, lba=3))
    assert sorted(reads.run()) == [*range(8)]
    odd = "bad_cid" if effect == "unknown_cid" else "bad_sqid"
    assert reads.odd() == {odd: 1}
    r.faults.replace(fault(effect, lba=3))
    assert sorted(reads.run(timeout=0.1)) == [0, 1, 2, 4, 5, 6, 7]
    assert reads.odd() == {odd: 2}
    assert reads.queue.inflight == 1
    reads.queue.close()


def test_a_wrong_head_changes_nothing(rig: Make) -> None:
    """The driver frees a place in the submission queue by the command, not by SQHD."""
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("wrong_sqhd"))
    for _ in range(20):
        assert sorted(reads.run()) == [*range(8)]
    assert reads.odd() == {}


def test_a_wrong_phase_stops_the_queue_until_it_is_closed(rig: Make) -> None:
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("wrong_phase", lba=3))
    assert reads.run(timeout=0.1) == [0, 1, 2]
    assert reads.queue.quarantine() == 5
    reads.queue.close()
    r.faults.clear()
    assert r.ns.read(0, 1).nbytes == 512


def test_an_interrupt_without_completion(rig: Make) -> None:
    r = rig()
    reads = Reads(r, interrupt=True, spin_ns=0)
    r.faults.add(fault("spurious_interrupt"), fault("late", us=20_000))
    assert sorted(reads.run()) == [*range(8)]


def test_a_completion_without_interrupt_is_found_by_the_next_look(rig: Make) -> None:
    r = rig()
    reads = Reads(r, 1, interrupt=True, spin_ns=0)
    r.faults.add(fault("missing_interrupt", count=1))
    assert reads.run(minimum=1) == [0]
    [row] = r.truth()
    assert row["cqid"] == reads.queue.qid


def test_a_completion_for_a_deleted_queue(rig: Make) -> None:
    """The completion queue is deleted, too, before anybody could look."""
    r = rig()
    reads = Reads(r)
    r.faults.add(fault("deleted_queue", lba=3))
    assert reads.run(timeout=0.1) == [0, 1, 2, 4, 5, 6, 7]
    reads.queue.close()
    assert sorted(Reads(r).run(timeout=0.1))[:3] == [0, 1, 2]


# --- the controller --------------------------------------------------------------------------


def test_cfs(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("cfs", lba=3))
    r.ns.read(0, 1)
    with pytest.raises(ControllerFatalError):
        r.ns.read(3, 1, timeout=5)
    assert r.ctrl.state is State.FAILED
    r.ctrl.close()
    assert r.ctrl.state is State.CLOSED


def test_all_ones(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("all_ones", lba=3))
    with pytest.raises(DeviceGoneError):
        r.ns.read(3, 1, timeout=5)
    assert r.ctrl.state is State.GONE
    r.ctrl.close()


def test_never_ready(rig: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_GRACE_SECONDS", -4.8)  # of CAP.TO's 5 s
    with pytest.raises(ControllerTimeoutError, match=r"CSTS.RDY = 1"):
        rig(fault("never_ready"))
    assert not (tmp_path / "control").exists()


def test_slow_ready_and_slow_reset(rig: Make) -> None:
    r = rig(fault("slow_ready", us=100_000), fault("slow_reset", us=100_000))
    assert r.ns.read(0, 1).nbytes == 512
    r.ctrl.close()
    assert len(read_truth(r.folder / "truth")) >= 2


def test_a_shutdown_that_hangs(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_SHUTDOWN_SECONDS", 0.2)
    r = rig(fault("shutdown_hang"))
    with pytest.raises(ControllerTimeoutError):
        r.ctrl.close()
    assert r.ctrl.state is State.CLOSED


def test_a_storm_of_events_is_told_and_the_queue_goes_on(rig: Make) -> None:
    r = rig()
    reads = Reads(r)
    r.ctrl.poll_events()
    r.faults.add(fault("event_storm"))
    told = 0
    for _ in range(20):
        assert sorted(reads.run()) == [*range(8)]
        told += len(r.ctrl.poll_events())
    told += len(r.ctrl.poll_events())
    [one] = r.faults.loaded()
    assert 20 <= told <= one.applied, "an event that was raised twice is told once"
    assert r.ctrl.smart_log().media_errors == 0


# --- data and status -------------------------------------------------------------------------


def test_any_status_is_its_class(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("status", sct=2, sc=0x86, dnr=True, lba=3))
    with pytest.raises(status.AccessDeniedError) as caught:
        r.ns.read(3, 1)
    assert (caught.value.sct, caught.value.sc, caught.value.dnr) == (2, 0x86, True)
    r.faults.replace(fault("status", sct=7, sc=0xFF, lba=3))
    with pytest.raises(NvmeStatusError) as vendor:
        r.ns.read(3, 1)
    assert (vendor.value.sct, vendor.value.sc, vendor.value.dnr) == (7, 0xFF, False)


def test_media_errors(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("media_error", lba=(3, 4)))
    with pytest.raises(status.UnrecoveredReadError):
        r.ns.read(0, 8)
    with pytest.raises(status.WriteFaultError):
        r.ns.write(4, bytes(512))
    assert r.ns.read(5, 3).nbytes == 3 * 512
    # each is tried again, as the controller does not say that it would fail again
    assert r.ctrl.smart_log().media_errors == 2 * (1 + RETRIES)


def test_silent_corruption_and_torn_writes_are_not_seen(rig: Make) -> None:
    """Nothing in the protocol tells: `udrv-bench --verify` and protection information do."""
    r = rig()
    r.ns.write(0, b"a" * 4096)
    r.faults.add(fault("corrupt", bits=1, opcodes="read", count=1))
    got = bytes(r.ns.read(0, 8))
    wrong = sum((x ^ y).bit_count() for x, y in zip(got, b"a" * 4096, strict=True))
    assert wrong == 1
    assert bytes(r.ns.read(0, 8)) == b"a" * 4096
    r.faults.replace(fault("torn", blocks=3, count=1))
    r.ns.write(0, b"b" * 4096)
    assert bytes(r.ns.read(0, 8)) == b"b" * 3 * 512 + b"a" * 5 * 512


def test_a_campaign_of_noise_loses_nothing(rig: Make) -> None:
    """Everything that a driver must bear without its user's noticing, at once."""
    r = rig()
    reads = Reads(r, interrupt=True)
    r.faults.add(
        fault("late", us=300, probability=0.2, seed=1),
        fault("unknown_cid", extra=True, probability=0.1, seed=3),
        fault("wrong_sqid", extra=True, probability=0.1, seed=4),
        fault("wrong_sqhd", probability=0.3, seed=5),
        fault("spurious_interrupt", probability=0.1, seed=6),
        fault("add", us=1, jitter_us=200, probability=0.3, seed=7),
    )
    for _ in range(200):
        assert sorted(reads.run()) == [*range(8)]
    reads.queue.reap()
    rows = r.truth()
    applied = {one.fault.effect: one.applied for one in r.faults.loaded()}
    assert len(rows) == sum(applied.values())
    assert reads.odd() == {"bad_cid": applied["unknown_cid"], "bad_sqid": applied["wrong_sqid"]}
    assert reads.queue.counters()["consumed"] == 1600 + sum(reads.odd().values())
