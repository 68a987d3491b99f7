# SPDX-License-Identifier: Apache-2.0
"""A lane with a pending command: signal handlers, second interrupts and forks meanwhile."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from udrv import errors, soft
from udrv.memory import Buffer
from udrv.nvme import Controller
from udrv.nvme.lane import Lane
from udrv.soft import SoftProcess
from udrv.vfio.user import from_socket

BLOCK = 512


class Rig:
    def __init__(self) -> None:
        self.process: SoftProcess = soft.start("size=16M&lba=512")
        self.ctrl = Controller(from_socket(self.process.socket, "soft:"))
        self.ns = self.ctrl.namespace(1)
        for lba in range(16):
            self.ns.write(lba, bytes([lba]) * BLOCK)

    def ready(self) -> Buffer:
        """A buffer whose second transfer goes by the lane."""
        buffer = self.ctrl.alloc(BLOCK)
        self.ns.read(0, 1, into=buffer)
        return buffer

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.go_on()
    rig.ctrl.close()
    rig.process.close()


@contextmanager
def alarm(handler: Callable[[], None], seconds: float = 0.15) -> Iterator[None]:
    """Call it once, as a signal handler: while a command is pending, if the device is stopped."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Interrupted(BaseException):
    """What the signal handler raises."""


def interrupt() -> None:
    raise Interrupted


@pytest.mark.parametrize("same_buffer", [False, True])
def test_a_signal_handler_that_reads_gets_its_own_data(rig: Rig, same_buffer: bool) -> None:
    """It meets the pending command of its own thread, and must not take that one's for its own."""
    outer, inner = rig.ready(), rig.ready()
    if same_buffer:
        inner = outer
    seen: list[int] = []

    def read() -> None:
        rig.go_on()
        rig.ns.read(9, 1, into=inner)
        seen.append(int(inner[0]))

    rig.stop()
    with alarm(read):
        rig.ns.read(5, 1, into=outer)
    assert seen == [9]
    if not same_buffer:
        assert (outer == 5).all()
    assert rig.ns.read(7, 1, into=outer)[0] == 7


def test_a_signal_handler_that_fails_does_not_give_up_the_other_command(rig: Rig) -> None:
    outer, inner = rig.ready(), rig.ready()

    def read() -> None:
        with pytest.raises(errors.InvalidRequestError):
            rig.ns.read("9", 1, into=inner)  # type: ignore[arg-type]
        rig.go_on()

    rig.stop()
    with alarm(read):
        rig.ns.read(5, 1, into=outer)
    assert (outer == 5).all()
    assert (outer.pins, inner.pins) == (0, 0)


def interrupted_at(number: int, run: Callable[[], None]) -> bool:
    """Run, and raise `Interrupted` where Python would run a signal handler, the number-th time.

    That is at the start of a function and after a call of C. False: it ended before.
    """
    count = 0

    def profile(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        if event in ("call", "c_return"):
            count += 1
            if count == number:
                raise Interrupted

    sys.setprofile(profile)
    try:
        run()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_a_second_interrupt_while_it_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes: the device still writes there, so the memory is nobody else's."""
    real = Lane.give_up
    for number in itertools.count(1):
        hit: list[bool] = []

        def give_up(lane: Lane, *args: Any) -> None:
            if hit:  # noqa: B023 - called in this iteration
                real(lane, *args)
                return
            hit.append(interrupted_at(number, lambda: real(lane, *args)))  # noqa: B023
            if hit[0]:  # noqa: B023
                raise Interrupted

        buffer = rig.ready()
        place = buffer.iova
        rig.stop()
        with monkeypatch.context() as patch:
            patch.setattr(Lane, "give_up", give_up)
            with alarm(interrupt), pytest.raises(Interrupted):
                rig.ns.read(5, 1, into=buffer)
        assert not [lane for lane in rig.ctrl.lanes if lane.c.holder], f"place {number}: held on"
        del buffer
        gc.collect()
        others = [rig.ctrl.alloc(BLOCK) for _ in range(32)]
        assert place not in [other.iova for other in others], f"place {number}: given to another"
        for other in others:
            other[:] = 0xEE
        rig.go_on()
        assert rig.ns.read(7, 1, into=rig.ready())[0] == 7
        assert all((other == 0xEE).all() for other in others), f"place {number}"
        if not hit[0]:
            break
    assert number > 8, "it was interrupted at each place"


def test_a_child_forked_while_a_command_is_pending(rig: Rig) -> None:
    """It shares the rings: it must not take the completion that the parent waits for."""
    buffer = rig.ready()
    parent, children = os.getpid(), []

    def fork() -> None:
        pid = os.fork()
        if pid:
            children.append(pid)
            rig.go_on()
            time.sleep(0.5)  # the child has the first look at the ring

    rig.stop()
    status = 1
    try:
        with alarm(fork):
            rig.ns.read(5, 1, into=buffer)
    except errors.ForkedError:
        status = 0
    finally:
        if os.getpid() != parent:
            os._exit(status)
    assert (buffer == 5).all()
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


@pytest.mark.parametrize("where", ["slot", "table"])
def test_a_handler_that_reads_while_a_lock_is_held(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A signal handler or a finaliser may run inside of the driver's own locks, too."""
    ctrl, seen = rig.ctrl, []
    queue = ctrl.create_queue(entries=8)
    batch = queue.batch(1, namespace=rig.ns, buffer=ctrl.alloc(BLOCK))
    owner: Any = {"slot": queue.pair, "table": ctrl.memory}[where]
    name = {"slot": "slot_inflight", "table": "region"}[where]
    real = getattr(owner, name)
    big = ctrl.alloc(3 << 20)  # a pool of its own, with no table yet

    def handler() -> None:
        inner = queue.batch(1, namespace=rig.ns, buffer=big[:BLOCK])
        assert queue.submit(inner) == len(queue.reap(1)) == 1
        inner.close()
        seen.append(1)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        handler()
        return real(*args, **kwargs)

    def work() -> None:
        monkeypatch.setattr(owner, name, interrupted)
        if where == "slot":
            batch.close()
            queue.take_slot()
        else:
            queue.batch(1, namespace=rig.ns, buffer=big)
        seen.append(2)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert seen == [1, 2], "it waits for itself"
    queue.close()
