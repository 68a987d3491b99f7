"""Our driver with shadow doorbells, on our software controller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from driver_suite import DriverSuite

import udrv
from udrv import soft
from udrv.core import ffi
from udrv.nvme import READ, WRITE, Controller, Queue
from udrv.nvme.direct import DirectBackend
from udrv.nvme.shadow import ShadowEntry
from udrv.vfio.user import from_socket

Open = Callable[..., Controller]

#: Process ids of the controllers' processes.
PIDS: dict[Controller, int] = {}


class _Soft(DriverSuite):
    OPTIONS = ""
    SHADOW = True

    @pytest.fixture
    def opened(self) -> Iterator[list[Controller]]:
        opened: list[Controller] = []
        yield opened
        for ctrl in opened:
            ctrl.close()

    @pytest.fixture
    def target(self, tmp_path: Path) -> str:
        return f"soft:?size=64M&lba=4096&file={tmp_path / 'disk'}{self.OPTIONS}"

    @pytest.fixture
    def ctrl(self, target: str, opened: list[Controller]) -> Controller:
        opened.append(udrv.open(target, shadow_doorbells=self.SHADOW))
        return opened[0]

    @pytest.fixture
    def reopen(self, target: str, opened: list[Controller]) -> Callable[[], Controller]:
        def again() -> Controller:
            opened.pop().close()
            opened.append(udrv.open(target, shadow_doorbells=self.SHADOW))
            return opened[0]

        return again


class TestTrappedWithShadow(_Soft):
    """Every register write is a message; EventIdx asks for few."""

    OPTIONS = "&doorbells=trapped"


class TestTrappedAsleep(_Soft):
    """The same, on a controller that never polls."""

    OPTIONS = "&doorbells=trapped&spin=0"


class TestTrappedWithoutShadow(_Soft):
    """Every move of a doorbell is a message."""

    OPTIONS = "&doorbells=trapped"
    SHADOW = False


class TestMappedWithoutShadow(_Soft):
    """Stores to the mapped page, as on a drive without Doorbell Buffer Config."""

    SHADOW = False


del DriverSuite  # not to be run by itself


@pytest.fixture
def connect() -> Iterator[Open]:
    with ExitStack() as stack:

        def begin(options: str, **kw: bool) -> Controller:
            process = stack.enter_context(soft.start(f"size=64M{options}"))
            ctrl = Controller(from_socket(process.socket, "soft:"), **kw)
            PIDS[ctrl] = process.pid
            return stack.enter_context(ctrl)

        yield begin
    PIDS.clear()


def entry(ctrl: Controller, queue: Queue) -> ShadowEntry:
    backend = ctrl.backend
    assert isinstance(backend, DirectBackend) and backend.shadow is not None
    found = backend.shadow.entry(queue.qid)
    assert found is not None
    return found


def run(ctrl: Controller, queue: Queue, rounds: int, depth: int) -> None:
    """`rounds` batches of `depth` writes and reads, each checked."""
    ns = ctrl.namespace(1)
    buffer = ctrl.alloc(2 * depth * ns.lba_size)
    batch = queue.batch(depth, namespace=ns, buffer=buffer)
    halves = buffer.reshape(2, depth, ns.lba_size)
    batch.slba[:] = np.arange(depth)
    batch.nlb[:] = 1
    for turn in range(rounds):
        halves[0] = (np.arange(depth, dtype=np.uint8) + turn)[:, None]
        for opcode, half in ((WRITE, 0), (READ, 1)):
            batch.opcode[:] = opcode
            batch.offset[:] = (np.arange(depth) + half * depth) * ns.lba_size
            assert queue.submit(batch) == depth
            left = depth
            while left:
                reaped = queue.reap(1, timeout=10)
                assert len(reaped) and not reaped.status.any()
                left -= len(reaped)
        assert (halves[0] == halves[1]).all()


@pytest.mark.parametrize("depth", [1, 8, 31])
def test_a_polling_device_is_not_rung(connect: Open, depth: int) -> None:
    ctrl = connect("&doorbells=trapped&spin=1000000")
    with ctrl.create_queue(entries=32) as queue:
        run(ctrl, queue, 100, depth)
        ours, its = queue.counters(), soft.read_counters(ctrl).queues[queue.qid]
    assert its.commands == 200 * depth
    assert (its.sq_doorbells, its.cq_doorbells) == (ours["sq_doorbells"], ours["cq_doorbells"])
    # a ring that is all in flight laps EventIdx until the device knows how far we go at a time
    rung = its.sq_doorbells + its.cq_doorbells - 2 * ours["forced_doorbells"]
    assert rung <= (0 if depth < 16 else 8)


@pytest.mark.parametrize("shadow", [True, False])
def test_both_sides_count_the_same_register_writes(connect: Open, shadow: bool) -> None:
    ctrl = connect("&doorbells=trapped&spin=0", shadow_doorbells=shadow)
    with ctrl.create_queue(entries=32) as queue:
        run(ctrl, queue, 100, 8)
        ours = queue.counters()
        its = soft.read_counters(ctrl).queues[queue.qid]
    assert its.sq_doorbells == ours["sq_doorbells"]
    assert its.cq_doorbells == ours["cq_doorbells"]
    moves = ours["sq_doorbells"] + ours["sq_shadow"] - ours["forced_doorbells"]
    assert moves == 200
    assert bool(ours["sq_shadow"] or ours["cq_shadow"]) is shadow
    if shadow:
        assert ours["cq_doorbells"] == ours["forced_doorbells"]  # there was always room


def test_no_wake_up_is_lost(connect: Open) -> None:
    """A device that sleeps as soon as it may, and a driver that submits just then."""
    ctrl = connect("&doorbells=trapped&spin=0")
    ns = ctrl.namespace(1)
    rng = random.Random(1)
    with ctrl.create_queue(entries=16) as queue:
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
        batch.opcode[:] = READ
        batch.nlb[:] = 1
        pair = queue.pair
        pair.c.ring_after_ns = 1 << 60  # nothing makes up for a lost one
        for _ in range(100_000):
            for _ in range(rng.randrange(64)):
                pass
            queue.submit(batch)
            assert len(queue.reap(1, timeout=30)) == 1
        ours, its = queue.counters(), soft.read_counters(ctrl)
    assert its.naps > 1000
    assert ours["forced_doorbells"] == 0
    assert its.queues[queue.qid].commands == ours["completed"] == 100_000
    assert its.queues[queue.qid].sq_doorbells == ours["sq_doorbells"]


def test_queue_ids_are_used_again(connect: Open) -> None:
    ctrl = connect("&doorbells=trapped&spin=0&queues=1")
    for turn in range(20):
        with ctrl.create_queue(entries=8) as queue:
            pair = queue.pair
            pair.c.ring_after_ns = 1 << 60
            run(ctrl, queue, 1 + turn % 3, 1 + turn % 7)


def lie(ctrl: Controller, queue: Queue) -> None:
    """Put a wrong EventIdx in place of the one with which the device asks to be rung."""
    where = entry(ctrl, queue)
    event = ffi.cast("volatile uint32_t *", where.sq_event)
    value = ffi.cast("volatile uint32_t *", where.sq_shadow)
    stat = Path(f"/proc/{PIDS[ctrl]}/stat")
    while event[0] != value[0] or stat.read_text().rpartition(")")[2].split()[0] != "S":
        pass  # it is about to sleep
    event[0] = (value[0] - 1) & 0xFFFF  # "I poll"


def test_a_device_that_keeps_event_idx_wrong_is_rung_all_the_same(connect: Open) -> None:
    ctrl = connect("&doorbells=trapped&spin=0")
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=16) as queue:
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
        batch.opcode[:] = READ
        batch.nlb[:] = 1
        for turn in range(20):
            lie(ctrl, queue)
            queue.submit(batch)
            if turn % 2:
                assert len(queue.reap(1, timeout=30)) == 1
            else:  # short looks, one after the other
                while not len(queue.reap(1, timeout=0.001)):
                    pass
        ours = queue.counters()
    assert ours["forced_doorbells"] >= 10
    assert ours["completed"] == 20


def test_a_short_time_out_rings_before_it_gives_up(connect: Open) -> None:
    ctrl = connect("&doorbells=trapped&spin=0")
    ns = ctrl.namespace(1)
    ns.write(5, b"\x42" * ns.lba_size)
    with ctrl.lease_queue() as lease:
        leased = lease.queue
    before = leased.counters()["forced_doorbells"]
    lie(ctrl, leased)
    assert (ns.read(5, 1, timeout=0.001) == 0x42).all()
    assert leased.counters()["forced_doorbells"] > before


@pytest.mark.parametrize("timeout", [0.001, 30.0])
def test_an_await_rings_before_it_gives_up(connect: Open, timeout: float) -> None:
    ctrl = connect("&doorbells=trapped&spin=0")
    ns = ctrl.namespace(1)
    ns.write(5, b"\x42" * ns.lba_size)

    async def main() -> dict[str, int]:
        await ns.read_async(5, 1)
        inner = ctrl.async_queue()._queue
        lie(ctrl, inner)
        data = await ns.read_async(5, 1, timeout=timeout)
        assert (data == 0x42).all()
        return inner.counters()

    assert asyncio.run(main())["forced_doorbells"] >= 1


def test_the_opt_out(connect: Open) -> None:
    ctrl = connect("", shadow_doorbells=False)
    backend = ctrl.backend
    assert isinstance(backend, DirectBackend) and backend.shadow is None
    with ctrl.create_queue() as queue:
        run(ctrl, queue, 3, 4)
        ours = queue.counters()
    assert (ours["sq_shadow"], ours["cq_shadow"]) == (0, 0)
    assert ours["sq_doorbells"] == 6


def test_the_pages_go_back_when_the_controller_closes() -> None:
    ctrl = udrv.open("soft:?size=16M")
    backend = ctrl.backend
    assert isinstance(backend, DirectBackend) and backend.shadow is not None
    shadow = backend.shadow
    ctrl.close()
    with pytest.raises(udrv.errors.ClosedError):
        _ = shadow.iovas
