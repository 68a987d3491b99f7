# SPDX-License-Identifier: Apache-2.0
"""Who looks after a controller: the steps for overdue commands, and the keeper's thread."""

from __future__ import annotations

import gc
import os
import select
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import CommandTimeoutError, ControllerError
from udrv.nvme.keeper import Keeper
from udrv.nvme.overdue import OverdueWatch
from udrv.nvme.pair import Overdue, QueuePair
from udrv.nvme.timeouts import Timeouts
from udrv.vfio.device import Departure

LIMITS = Timeouts(io=10, io_long=10, admin=10, admin_long=10, abort=3)


class FakePair:
    """A queue whose commands are overdue when the test says so."""

    def __init__(self, qid: int, timed: bool = True) -> None:
        self.qid, self.timed = qid, timed
        self.late: set[int] = set()
        self.inflight = self.unreaped = 0
        self.shared = SimpleNamespace(consumed=0)
        self.owes = True
        self.born = 1000  # when commands that are late were submitted, before their id

    def awaited(self) -> bool:
        return self.owes

    def overdue(self, limits: Any) -> list[Overdue]:
        return [Overdue((cid, self.born + cid), cid, 2, 11.0, 0, 512) for cid in sorted(self.late)]


class World:
    def __init__(self, *pairs: FakePair) -> None:
        self.now = 100.0
        self.generation = 0
        self.aborts: list[tuple[int, int]] = []
        self.resets: list[str] = []
        self.on_abort: Callable[[], None] = lambda: None
        self.admin_busy = False
        self.watch = OverdueWatch(
            LIMITS, pairs=lambda: [cast(QueuePair, pair) for pair in pairs], abort=self.abort,
            reset=self.reset, generation=lambda: self.generation, clock=lambda: self.now,
        )  # fmt: skip

    def reset(self, reason: str, generation: int) -> None:
        self.resets.append(reason)

    def abort(self, qid: int, cid: int, generation: int) -> bool:
        if self.admin_busy:
            return False
        self.aborts.append((qid, cid))
        self.on_abort()
        return True

    def look(self, after: float | None = None) -> None:
        self.now += self.watch.period if after is None else after
        self.watch.look()


def test_two_looks_an_abort_some_patience_a_reset() -> None:
    pair = FakePair(1)
    world = World(pair)
    pair.late = {7}
    world.look()
    assert not world.aborts
    world.look()
    assert world.aborts == [(1, 7)]
    while world.now < 103.7:
        world.look()
        assert not world.resets
    world.look()
    assert len(world.resets) == 1 and "opcode 0x02 on queue 1" in world.resets[0]
    assert world.aborts == [(1, 7)]


def test_what_comes_back_is_left_alone_and_its_id_used_again() -> None:
    pair = FakePair(1)
    world = World(pair)
    for _ in range(20):  # late in every other look: each time another command
        pair.late = {7}
        world.look()
        pair.late = set()
        world.look()
    assert not world.aborts and not world.resets


def test_a_look_that_comes_late_starts_anew() -> None:
    """A process that was stopped, or starved, finds everything overdue; so would its device."""
    pair = FakePair(1)
    world = World(pair)
    pair.late = {1, 2, 3}
    for _ in range(10):
        world.look(after=60.0)
    assert not world.aborts and not world.resets


def test_an_admin_command_goes_to_the_reset_at_once() -> None:
    pair = FakePair(0)
    world = World(pair)
    pair.late = {3}
    world.look()
    world.look()
    assert not world.aborts and "admin command" in world.resets[0]


def test_an_abort_that_is_not_answered_is_the_end_of_patience() -> None:
    pair = FakePair(2)
    world = World(pair)

    def silence() -> None:
        raise CommandTimeoutError("abort did not complete")

    world.on_abort = silence
    pair.late = {1}
    world.look()
    world.look()
    assert len(world.resets) == 1 and "Abort of command 1 of queue 2" in world.resets[0]


def test_an_abort_waits_its_turn_and_is_sent_then() -> None:
    """An admin command is running (a format): it has its own limit."""
    pair = FakePair(1)
    world = World(pair)
    world.admin_busy = True
    pair.late = {4}
    for _ in range(30):
        world.look()
    assert not world.aborts and not world.resets
    world.admin_busy = False
    world.look()
    assert world.aborts == [(1, 4)] and not world.resets


def test_an_abort_that_is_refused_is_waited_for_all_the_same() -> None:
    pair = FakePair(2)
    world = World(pair)

    def refuse() -> None:
        raise ControllerError("Abort Command Limit Exceeded")

    world.on_abort = refuse
    pair.late = set(range(30))
    world.look()
    world.look()
    assert len(world.aborts) == 4, "no more at a time than a controller takes"
    while not world.resets:
        world.look()
    assert len(world.resets) == 1


def test_an_untimed_queue_stands_still_or_not() -> None:
    pair = FakePair(1, timed=False)
    world = World(pair)
    pair.inflight = 3
    for _ in range(40):  # it goes on
        pair.shared.consumed += 1
        world.look()
    pair.unreaped = 1  # nobody reaps
    for _ in range(40):
        world.look()
    assert not world.resets
    pair.unreaped = 0
    for _ in range(20):
        world.look()
    assert len(world.resets) == 1 and not world.aborts


def test_what_is_not_owed_on_an_untimed_queue_is_not_waited_for() -> None:
    """Given up, or ended by a reset and not reaped yet: in flight, and nothing will come."""
    pair = FakePair(1, timed=False)
    world = World(pair)
    pair.inflight, pair.owes = 3, False
    for _ in range(60):
        world.look()
    assert not world.resets
    pair.owes = True
    for _ in range(30):
        world.look()
    assert world.resets


def test_a_reset_meanwhile_voids_what_a_look_found() -> None:
    """The ids are of other commands by then: no Abort, and no second reset."""
    pair = FakePair(1)
    world = World(pair)
    pair.late = {1, 2, 3}
    world.look()

    def reset() -> None:
        world.generation += 1

    world.on_abort = reset
    world.look()
    assert world.aborts == [(1, 1)]
    world.look()  # found for the first time
    assert world.aborts == [(1, 1)] and not world.resets


@given(st.lists(st.tuples(st.sampled_from(["late", "back", "look"]), st.integers(0, 5)),
                max_size=80))  # fmt: skip
def test_no_reset_without_an_abort_and_its_patience(steps: list[tuple[str, int]]) -> None:
    pair = FakePair(1)
    world = World(pair)
    aborted: dict[int, float] = {}
    for what, cid in steps:
        if what == "late":
            pair.late.add(cid)
        elif what == "back":
            pair.late.discard(cid)
            pair.born += 100  # what is late under an id from now on is another command
            aborted.clear()
        else:
            before = len(world.aborts), len(world.resets)
            world.look()
            for _, one in world.aborts[before[0] :]:
                aborted[one] = world.now
            if len(world.resets) > before[1]:
                assert any(world.now - since >= LIMITS.abort for since in aborted.values())
                assert set(aborted) <= pair.late
                aborted.clear()


# --- the thread --------------------------------------------------------------------------------


class Kept:
    def __init__(self) -> None:
        self.looks = 0
        self.told: list[str] = []
        self.busy = 0
        self.fails = False

    def look(self) -> None:
        self.looks += 1
        if self.fails:
            raise RuntimeError("a look that fails")

    def depart(self, departure: Departure) -> bool:
        self.told.append(departure.reason)
        self.busy -= 1
        return self.busy < 0


@pytest.fixture
def fds() -> Any:
    made = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield made
    for fd in made:
        os.close(fd)


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def keeper(kept: Kept, fds: list[int]) -> Keeper:
    one = Keeper(
        kept.look, kept.depart, period=0.01, name="test",
        departures=[Departure(fds[0], select.POLLIN, "error", False),
                    Departure(fds[1], select.POLLIN, "request", True)],
    )  # fmt: skip
    one.start()
    return one


def alive() -> int:
    return sum(thread.name == "udrv test" for thread in threading.enumerate())


def test_it_looks_whatever_a_look_raises_until_it_is_stopped(fds: list[int]) -> None:
    kept = Kept()
    one = keeper(kept, fds)
    until(lambda: kept.looks > 3)
    kept.fails = True
    before = kept.looks
    until(lambda: kept.looks > before + 3)
    one.stop()
    one.stop()
    assert not alive()


def test_a_device_that_failed_may_still_be_asked_back(fds: list[int]) -> None:
    kept = Kept()
    one = keeper(kept, fds)
    os.eventfd_write(fds[0], 1)
    until(lambda: kept.told == ["error"])
    kept.busy = 2  # somebody is in the way, twice
    os.eventfd_write(fds[1], 1)
    until(lambda: kept.told == ["error", "request", "request", "request"])
    until(lambda: not alive())
    one.stop()


def test_who_forgets_his_controller_has_no_thread_left(fds: list[int]) -> None:
    kept = Kept()
    one = keeper(kept, fds)
    alone = [kept]
    until(lambda: alone[0].looks)
    del kept
    alone.clear()
    gc.collect()
    until(lambda: not alive())
    one.stop()
