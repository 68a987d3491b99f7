# SPDX-License-Identifier: Apache-2.0
"""Time-outs end in an Abort, then in a reset; nobody is lost on the way (docs/recovery.md)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import udrv
from udrv.errors import (
    ControllerFatalError,
    ControllerStateError,
    DeviceGoneError,
    InvalidRequestError,
    UdrvError,
)
from udrv.nvme import READ, WRITE, Controller, State
from udrv.nvme.retry import RETRIES
from udrv.nvme.spec import command
from udrv.nvme.spec.opcodes import FeatureId
from udrv.nvme.status import AbortedByHostError, AbortRequestedError
from udrv.nvme.timeouts import Timeouts
from udrv.soft import FaultControl
from udrv.soft.faults import Fault, Script, fault, to_toml

#: Short, so that tests are; the machine may stand still for longer than this at any time.
QUICK = Timeouts(io=0.5, io_long=0.5, admin=1.0, admin_long=1.0, abort=0.5)
ABORTED = 0x371


class Rig:
    def __init__(self, folder: Path, *faults: Fault, options: str = "", **how: Any) -> None:
        control = folder / "control"
        (folder / "script").write_text(to_toml(Script(faults)))
        how = {"timeouts": QUICK, **how}
        self.ctrl: Controller = udrv.open(
            f"soft:?size=16M&lba=512&control={control}&faults={folder}/script{options}", **how
        )
        self.faults = FaultControl.connect(control)
        self.ns = self.ctrl.namespace(1)

    def applied(self) -> int:
        return sum(one.applied for one in self.faults.loaded())


Make = Callable[..., Rig]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(*faults: Fault, **how: Any) -> Rig:
            one = Rig(tmp_path, *faults, **how)
            stack.callback(one.faults.close)
            stack.callback(one.ctrl.close)
            return one

        yield make


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UDRV_FLIGHT_DIR", str(tmp_path / "flight"))
    return tmp_path / "flight"


# --- the two steps ---------------------------------------------------------------------------


def test_a_lost_completion_is_got_back_by_an_abort_or_a_reset(rig: Make) -> None:
    """The controller knows nothing of a command whose completion it dropped: only a reset helps."""
    r = rig()
    r.ns.write(3, b"x" * 512)
    r.faults.add(fault("drop", opcodes="read", count=1))
    assert bytes(r.ns.read(3, 1)) == b"x" * 512
    assert r.applied() == 1
    assert len(r.ctrl.resets) == 1
    assert "opcode 0x02 on queue 1" in r.ctrl.resets[0].reason
    assert r.ctrl.state is State.READY
    assert r.ctrl.backend.watch.aborts == 1  # type: ignore[attr-defined]


def test_a_late_command_is_aborted_and_sent_again_without_a_reset(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("late", us=60_000_000, opcodes="write", count=1))
    r.ns.write(7, b"y" * 512)
    assert r.ctrl.resets == ()
    assert bytes(r.ns.read(7, 1)) == b"y" * 512


def test_a_batch_is_told_of_every_command_once(rig: Make) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=32)
    batch = queue.batch(8, namespace=r.ns, buffer=r.ctrl.alloc(8 * 512))
    batch.slba[:] = np.arange(8)
    batch.offset[:] = np.arange(8) * 512
    r.faults.add(fault("drop", lba=(2, 4), count=3))
    queue.submit(batch)
    seen: dict[int, int] = {}
    while len(seen) < 8:
        reaped = queue.reap(1, timeout=30)
        assert len(reaped)
        for user_data, status in zip(reaped.user_data, reaped.status, strict=True):
            assert int(user_data) not in seen
            seen[int(user_data)] = int(status)
    assert {n for n, status in seen.items() if status == ABORTED} == {2, 3, 4}
    assert {status for n, status in seen.items() if not 2 <= n <= 4} == {0}
    assert queue.inflight == 0 and batch.inflight == 0
    r.faults.clear()
    queue.submit(batch)
    assert queue.reap(8, timeout=30).status.tolist() == [0] * 8


def test_what_another_queue_had_in_flight_is_not_lost(rig: Make) -> None:
    """A reset takes all queues with it, and all of them come back."""
    r = rig()
    queues = [r.ctrl.create_queue(entries=16, interrupt=n % 2 == 0) for n in range(4)]
    batches = [q.batch(4, namespace=r.ns, buffer=r.ctrl.alloc(4 * 512)) for q in queues]
    r.faults.add(fault("late", us=60_000_000))
    for queue, batch in zip(queues, batches, strict=True):
        queue.submit(batch)
    r.ctrl.reset()
    r.faults.clear()
    for queue, batch in zip(queues, batches, strict=True):
        assert queue.reap(4, timeout=30).status.tolist() == [ABORTED] * 4
        queue.submit(batch)
        assert queue.reap(4, timeout=30).status.tolist() == [0] * 4
    assert r.ctrl.resets[0].aborted == 16


def test_awaited_calls_survive_a_reset(rig: Make) -> None:
    r = rig()

    async def run() -> None:
        await r.ns.write_async(0, b"a" * 512 * 64)
        r.faults.add(fault("drop", probability=0.2, seed=4, count=8))
        await asyncio.gather(*(r.ns.write_async(n, bytes([n]) * 512) for n in range(64)))
        got = await asyncio.gather(*(r.ns.read_async(n, 1) for n in range(64)))
        assert [bytes(block[:1])[0] for block in got] == [*range(64)]
        # and the loop was not kept from other work meanwhile
        r.faults.replace(fault("drop", count=1))
        turns = 0
        task = asyncio.ensure_future(r.ns.read_async(9, 1))
        while not task.done():
            turns += 1
            await asyncio.sleep(0.01)
        assert bytes(task.result()) == bytes([9]) * 512
        assert turns > 10

    asyncio.run(run())
    assert r.ctrl.resets


def test_threads_that_block_all_come_back(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("drop", every=40, count=6))
    wrong: list[BaseException] = []

    def work(n: int) -> None:
        try:
            buffer = r.ctrl.alloc(512)
            for turn in range(40):
                r.ns.write(n * 100 + turn, bytes([n, turn]) * 256)
            for turn in range(40):
                r.ns.read(n * 100 + turn, 1, into=buffer)
                assert bytes(buffer) == bytes([n, turn]) * 256
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert r.applied() == 6
    assert r.ctrl.resets
    assert r.ctrl.state is State.READY


def test_a_program_that_does_not_reap_is_not_the_devices_fault(rig: Make) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(8, namespace=r.ns, buffer=r.ctrl.alloc(4096))
    queue.submit(batch)
    time.sleep(3 * (QUICK.io + QUICK.abort))
    assert queue.reap(8, timeout=10).status.tolist() == [0] * 8
    assert r.ctrl.resets == () and r.ctrl.backend.watch.aborts == 0  # type: ignore[attr-defined]


def test_an_untimed_queue_that_stands_still_is_found_too(rig: Make) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=16, timestamps=False)
    batch = queue.batch(1, namespace=r.ns, buffer=r.ctrl.alloc(512))
    r.faults.add(fault("drop", count=1))
    queue.submit(batch)
    assert queue.reap(1, timeout=30).status.tolist() == [ABORTED]
    assert len(r.ctrl.resets) == 1


def test_an_admin_command_that_is_not_answered(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("drop", queue=0, opcodes="identify", count=1))
    assert r.ctrl.namespace_ids() == (1,)  # asked again
    assert len(r.ctrl.resets) == 1
    assert "admin command 0x06" in r.ctrl.resets[0].reason
    r.faults.replace(fault("drop", queue=0, opcodes=0x80, count=1))
    with pytest.raises(AbortedByHostError):  # a format is not repeated
        r.ctrl.admin(bytes([0x80, 0, 0, 0, 1]) + bytes(59))
    assert r.ctrl.smart_log().temperature > 0
    assert len(r.ctrl.resets) == 2


def test_commands_of_both_kinds_that_are_not_answered(rig: Make) -> None:
    """The Abort of one must not wait for the other, which waits for a reset."""
    r = rig(timeouts=Timeouts(io=0.2, admin=2.0, abort=0.2))
    r.ns.read(0, 1)  # its queue is there
    r.faults.add(fault("drop", queue=0, opcodes="identify", count=1),
                 fault("drop", opcodes="read", count=1))  # fmt: skip
    asks = threading.Thread(target=r.ctrl.namespace_ids)
    asks.start()
    start = time.monotonic()
    assert r.ns.read(0, 1).nbytes == 512
    asks.join(60)
    assert not asks.is_alive()
    assert r.ctrl.resets and time.monotonic() - start < 60


def test_without_recovery_nothing_is_done(rig: Make) -> None:
    r = rig(recover=False)
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(1, namespace=r.ns, buffer=r.ctrl.alloc(512))
    r.faults.add(fault("drop", count=1))
    queue.submit(batch)
    assert len(queue.reap(1, timeout=4 * (QUICK.io + QUICK.abort))) == 0
    assert r.ctrl.resets == ()
    r.ctrl.reset()  # but it can be asked for
    assert queue.reap(1, timeout=30).status.tolist() == [ABORTED]


# --- retries -----------------------------------------------------------------------------------


def test_retries_are_bounded_and_dnr_is_respected(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("status", sct=2, sc=0x81, count=RETRIES))
    assert r.ns.read(0, 1).nbytes == 512
    assert r.applied() == RETRIES
    r.faults.replace(fault("status", sct=2, sc=0x81))
    with pytest.raises(UdrvError, match="may be retried"):
        r.ns.read(0, 1)
    assert r.applied() == 1 + RETRIES
    r.faults.replace(fault("status", sct=2, sc=0x81, dnr=True))
    with pytest.raises(UdrvError, match="do not retry"):
        r.ns.read(0, 1)
    assert r.applied() == 1

    async def awaited() -> None:
        r.faults.replace(fault("status", sct=2, sc=0x81, count=RETRIES))
        assert (await r.ns.read_async(0, 1)).nbytes == 512
        r.faults.replace(fault("status", sct=2, sc=0x81))
        with pytest.raises(UdrvError, match="may be retried"):
            await r.ns.read_async(0, 1)
        assert r.applied() == 1 + RETRIES

    asyncio.run(awaited())


def test_a_batch_has_its_statuses_and_decides_itself(rig: Make) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(1, namespace=r.ns, buffer=r.ctrl.alloc(512))
    r.faults.add(fault("late", us=60_000_000, count=1))
    queue.submit(batch)
    assert queue.reap(1, timeout=30).status.tolist() == [AbortRequestedError.SC]


# --- what a reset keeps, and what not ------------------------------------------------------------


def test_a_reset_keeps_handles_events_and_shadow_doorbells(rig: Make) -> None:
    r = rig()
    lane = r.ctrl.alloc(512)
    r.ns.write(1, b"k" * 512)
    r.ns.read(1, 1, into=lane)
    before = r.ctrl.backend.event_counts["armed"]
    for _ in range(3):
        r.ctrl.reset()
        r.ns.read(1, 1, into=lane)
        assert bytes(lane) == b"k" * 512
    assert r.ctrl.backend.event_counts == {"armed": before, "dropped": 0, "refused": 0}
    r.faults.add(fault("event_storm", count=1, opcodes="read"))
    r.ns.read(1, 1)
    deadline = time.monotonic() + 10
    while not (came := r.ctrl.poll_events()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert came
    assert [reset.reason for reset in r.ctrl.resets] == ["the program asked for it"] * 3


def test_a_namespace_that_changed_with_the_reset_is_stale(rig: Make) -> None:
    r = rig()
    assert not r.ns.stale
    r.ctrl.reset()
    assert not r.ns.stale
    r.ctrl.backend._namespaces[1] = r.ns.identify.__class__(  # type: ignore[attr-defined]
        **{**{f: getattr(r.ns.identify, f) for f in r.ns.identify.__dataclass_fields__},
           "nsze": 1})  # fmt: skip
    r.ctrl.reset()
    assert r.ns.stale
    with pytest.raises(InvalidRequestError, match="get it again"):
        r.ns.read(0, 1)
    r.ctrl.namespace(1).read(0, 1)


def test_volatile_features_are_what_they_were_after_power_on(rig: Make) -> None:
    r = rig()
    get = command.get_features(FeatureId.ARBITRATION)
    default = r.ctrl.admin(get).result
    r.ctrl.admin(command.set_features(FeatureId.ARBITRATION, 0x0101_0103))
    assert r.ctrl.admin(get).result != default
    r.ctrl.reset()
    assert r.ctrl.admin(get).result == default


# --- a controller that does not come back --------------------------------------------------------


def test_a_controller_that_never_gets_ready_fails_for_all(rig: Make, records: Path) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(2, namespace=r.ns, buffer=r.ctrl.alloc(1024))
    r.faults.add(fault("late", us=60_000_000), fault("never_ready"))
    queue.submit(batch)
    with pytest.raises(UdrvError) as caught:
        r.ctrl.reset()
    assert r.ctrl.state is State.FAILED
    for call in (
        lambda: queue.reap(1, timeout=10), lambda: queue.submit(batch), lambda: r.ns.read(0, 1),
        lambda: r.ctrl.smart_log(), lambda: r.ctrl.create_queue(), lambda: queue.reap(),
    ):
        with pytest.raises(type(caught.value)):
            call()
    assert batch.inflight == 2, "nothing proved yet that the device is done with them"
    r.faults.clear()
    r.ctrl.reset()  # and when it is well again
    assert r.ctrl.state is State.READY
    assert queue.reap(2, timeout=10).status.tolist() == [ABORTED] * 2
    assert r.ns.read(0, 1).nbytes == 512
    assert len(list(records.glob("*.json"))) == 2


def test_cfs_is_told_to_all_and_a_reset_is_the_way_out(rig: Make, records: Path) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(4, namespace=r.ns, buffer=r.ctrl.alloc(2048))
    r.faults.add(fault("cfs", lba=0, count=1), fault("late", us=60_000_000))
    queue.submit(batch)
    with pytest.raises(ControllerFatalError, match="flight record"):
        queue.reap(4, timeout=30)
    assert r.ctrl.state is State.FAILED
    with pytest.raises(ControllerFatalError):
        r.ns.read(0, 1)
    r.faults.clear()
    r.ctrl.reset()
    assert queue.reap(4, timeout=10).status.tolist() == [ABORTED] * 4
    assert r.ns.read(0, 1).nbytes == 512


def test_resets_that_do_not_help_end(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("drop"))
    with pytest.raises((ControllerFatalError, AbortedByHostError)):
        while True:
            r.ns.read(0, 1)
    with pytest.raises(ControllerFatalError, match="does not recover"):
        while True:
            r.ns.read(0, 1)
    assert r.ctrl.state is State.FAILED


def test_a_device_that_is_gone_is_gone(rig: Make) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(1, namespace=r.ns, buffer=r.ctrl.alloc(512))
    r.faults.add(fault("all_ones", timed=True))
    queue.submit(batch)
    with pytest.raises(DeviceGoneError):
        while True:
            queue.reap(1, timeout=30)
            queue.submit(batch)
    with pytest.raises(DeviceGoneError):
        r.ctrl.reset()
    assert r.ctrl.state is State.GONE
    r.ctrl.close()
    with udrv.open("soft:?size=1M") as other:
        other.namespace(1).read(0, 1)


# --- the flight recorder -------------------------------------------------------------------------


def test_a_flight_record_tells_what_was_in_flight(rig: Make, records: Path) -> None:
    r = rig()
    queue = r.ctrl.create_queue(entries=8)
    batch = queue.batch(3, namespace=r.ns, buffer=r.ctrl.alloc(3 * 512))
    batch.slba[:] = [10, 20, 30]
    batch.opcode[:] = [READ, WRITE, READ]
    queue.submit(batch)
    queue.reap(3, timeout=10)
    r.faults.add(fault("drop", lba=20, count=1))
    queue.submit(batch)
    statuses: list[int] = []
    while len(statuses) < 3:
        statuses += queue.reap(1, timeout=30).status.tolist()
    assert statuses == [0, 0, ABORTED]
    path = r.ctrl.resets[0].record
    assert path is not None and path.stat().st_mode & 0o777 == 0o600
    found = json.loads(path.read_text())
    assert found["device"].startswith("soft:") and found["state"] == "reset"
    assert "opcode 0x01" in found["reason"]
    assert int(found["registers"]["CSTS"], 16) & 1
    [record] = [q for q in found["queues"] if q["qid"] == queue.qid]
    [flying] = record["in_flight"]
    assert (flying["opcode"], flying["slba"], flying["bytes"]) == (WRITE, 20, 512)
    assert flying["age_s"] > QUICK.io
    assert [c["cdw10"] for c in record["commands"]] == [10, 20, 30, 10, 20, 30]
    assert len(record["completions"]) == 5
    assert record["counters"]["submitted"] == 6


def test_no_folder_no_record(rig: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    r = rig()
    for folder in ("", "/proc/nowhere"):
        monkeypatch.setenv("UDRV_FLIGHT_DIR", folder)
        r.ctrl.reset()
        assert r.ctrl.resets[-1].record is None


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 1e9, "1"])
def test_time_limits_are_checked(bad: Any) -> None:
    with pytest.raises(InvalidRequestError):
        Timeouts(io=bad)


def test_a_closed_controller_is_not_reset(rig: Make) -> None:
    r = rig()
    r.ctrl.close()
    with pytest.raises(UdrvError, match="closed"):
        r.ctrl.reset()


def test_close_during_a_reset_waits_for_it(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("slow_ready", us=400_000))
    errors: list[BaseException] = []

    def reset() -> None:
        try:
            r.ctrl.reset()
        except (ControllerStateError, UdrvError) as error:
            errors.append(error)

    thread = threading.Thread(target=reset)
    thread.start()
    time.sleep(0.1)
    r.ctrl.close()
    thread.join(30)
    assert not thread.is_alive()
    assert r.ctrl.state is State.CLOSED
