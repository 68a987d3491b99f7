# SPDX-License-Identifier: Apache-2.0
"""Who carries out a reset, who waits for it, and what the flight recorder may touch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from udrv.errors import ClosedError, ControllerFatalError, ControllerStateError, UdrvError
from udrv.nvme import flight
from udrv.nvme.pair import QueuePair
from udrv.nvme.recovery import Recovery


class FakeDevice:
    """Of a reset it does what the test says."""

    target = "fake"

    def __init__(self) -> None:
        self.stops = 0
        self.failed: list[UdrvError] = []
        self.on_stop: Callable[[], None] = lambda: None

    def begin_reset(self) -> Sequence[QueuePair]:
        return []

    def stop_device(self) -> None:
        self.stops += 1
        self.on_stop()

    def start_again(self, pairs: Sequence[QueuePair]) -> None:
        """Nothing to start."""

    def write_record(self, reason: str) -> Path | None:
        return None

    def fail(self, error: UdrvError) -> None:
        self.failed.append(error)


def join_four(device: FakeDevice, recovery: Recovery, then: Callable[[], None]) -> list[Any]:
    """A reset during which four threads ask for one; returns what each was told."""
    told: list[Any] = []
    inside, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        inside.set()
        assert go_on.wait(30)
        then()

    def ask() -> None:
        try:
            told.append(recovery.run("joined"))
        except UdrvError as error:
            told.append(error)

    device.on_stop = stop
    threads = [threading.Thread(target=ask) for _ in range(5)]
    threads[0].start()
    assert inside.wait(30)
    for thread in threads[1:]:
        thread.start()
    while any(thread.ident is None for thread in threads) or not recovery.under_way:
        pass
    threading.Event().wait(0.2)  # they wait at the lock; who is later is served all the same
    go_on.set()
    for thread in threads:
        thread.join(30)
    return told


def test_who_asks_during_a_reset_joins_it() -> None:
    """All threads that meet a failure ask at once: that is one reset, not one for each."""
    device = FakeDevice()
    recovery = Recovery(device)
    assert join_four(device, recovery, lambda: None) == [None] * 5
    assert device.stops == 1 and len(recovery.history) == 1


def test_who_joins_is_told_that_it_failed() -> None:
    device = FakeDevice()
    recovery = Recovery(device)

    def fail() -> None:
        raise ControllerFatalError("no", device="fake")

    told = join_four(device, recovery, fail)
    assert [type(one) for one in told] == [ControllerFatalError] * 5
    assert device.stops == 1 and len(device.failed) == 1


def test_what_was_decided_before_a_reset_is_void_after_it() -> None:
    device = FakeDevice()
    recovery = Recovery(device)
    before = recovery.generation
    recovery.run("first")
    recovery.run("of the same time", before)
    assert device.stops == 1
    recovery.run("anew", recovery.generation)
    assert device.stops == 2


def test_a_reset_inside_of_a_reset_raises() -> None:
    """A signal handler in its thread: to wait there would be for ever."""
    device = FakeDevice()
    recovery = Recovery(device)

    def again() -> None:
        recovery.wait_over()  # its own commands do
        for step in (lambda: recovery.run("again"), recovery.require_over):
            with pytest.raises(ControllerStateError, match="signal handler"):
                step()

    device.on_stop = again
    recovery.run("first")
    assert device.stops == 1 and not device.failed


def test_an_interrupt_leaves_nobody_waiting() -> None:
    device = FakeDevice()
    recovery = Recovery(device)

    class Deaf(threading.Event):
        def set(self) -> None:
            raise KeyboardInterrupt  # between the last lines

    recovery._over = Deaf()
    with pytest.raises(KeyboardInterrupt):
        recovery.run("first")
    done = threading.Thread(target=recovery.wait_over, daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()
    assert not recovery.is_mine


def test_none_begins_once_it_is_closed() -> None:
    device = FakeDevice()
    recovery = Recovery(device)
    recovery.end()
    with pytest.raises(ClosedError):
        recovery.run("late")
    assert not device.stops and not device.failed


# --- the flight recorder -------------------------------------------------------------------------


def write(**how: Any) -> Path | None:
    how = {"device": "../../x", "reason": "r", "state": "s", "about": {}, "registers": {},
           "pairs": [], **how}  # fmt: skip
    return flight.record(**how)


def test_only_records_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be one that the user has other files in."""
    monkeypatch.setenv("UDRV_FLIGHT_DIR", str(tmp_path))
    others = [tmp_path / f"{name}.json" for name in ("0", "package", "20240101T000000-1-x")]
    for other in others:
        other.write_text("{}")
    for _ in range(flight.MOST_KEPT + 3):
        path = write()
        assert path is not None and path.parent == tmp_path
    assert all(other.exists() for other in others)
    assert len(list(tmp_path.iterdir())) == flight.MOST_KEPT + len(others)


def test_a_user_without_a_home_has_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("UDRV_FLIGHT_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(flight.Path, "home", nowhere)
    assert write() is None


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, fd: int, mode: str) -> None:
            self.file = open(fd, mode)  # noqa: SIM115 - closed below

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *how: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:20])
            self.file.flush()
            raise OSError(28, "No space left on device")

    monkeypatch.setenv("UDRV_FLIGHT_DIR", str(tmp_path))
    monkeypatch.setattr(flight.os, "fdopen", Full)
    assert write() is None
    assert not list(tmp_path.iterdir())


def test_of_a_huge_ring_the_last_entries_are_recorded() -> None:
    """Everybody waits while it is written."""
    entries, tail = 65535, 100
    sq, cq = np.zeros(entries * 64, np.uint8), np.zeros(entries * 16, np.uint8)
    sq.view("<u4")[10::16] = np.arange(entries)  # CDW10
    sq[0::64] = 2
    pair = SimpleNamespace(
        qid=1, entries=entries, unreaped=0, counters=dict, overdue=lambda limits: [],
        rings=lambda: (sq.tobytes(), cq.tobytes(), b""),
        shared=SimpleNamespace(sq_posted=tail, cq_head=0, cq_phase=1),
    )
    commands = flight.describe_pair(pair)["commands"]  # type: ignore[arg-type]
    last = [(tail - flight.MOST_ROWS + n) % entries for n in range(flight.MOST_ROWS)]
    assert [row["cdw10"] for row in commands] == last
