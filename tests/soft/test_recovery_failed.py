# SPDX-License-Identifier: Apache-2.0
"""What comes after a reset that failed, or that was asked for at a bad moment."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from test_recovery import ABORTED, QUICK, Make, rig

from udrv.errors import CommandTimeoutError, ControllerStateError, QueueBusyError, UdrvError
from udrv.nvme import State
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import IDENTIFY_SIZE
from udrv.nvme.spec.opcodes import Cns
from udrv.nvme.status import AbortedByHostError
from udrv.soft.faults import fault

__all__ = ["rig"]
PATIENT = QUICK.__class__(io=60, io_long=60, admin=60, admin_long=60, abort=5)


@pytest.fixture(autouse=True)
def no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRV_FLIGHT_DIR", "")


@pytest.mark.parametrize("blocks", [1, 512])
def test_blocking_calls_go_on_after_a_reset_that_failed(rig: Make, blocks: int) -> None:
    """With one queue only: one that the failure cost would be missed."""
    r = rig(queues=1, timeouts=PATIENT)
    buffer = r.ctrl.alloc(blocks * 512)
    r.ns.read(0, blocks, into=buffer)  # aimed: the next one is the lane's
    told: list[BaseException] = []

    def read() -> None:
        try:
            r.ns.read(0, blocks, into=buffer)
        except UdrvError as error:
            told.append(error)

    for _ in range(2):
        r.faults.replace(fault("drop", opcodes="read"), fault("never_ready"))
        thread = threading.Thread(target=read)
        thread.start()
        while not r.applied():
            time.sleep(0.01)
        with pytest.raises(UdrvError):
            r.ctrl.reset()
        thread.join(30)
        assert told and not isinstance(told.pop(), AbortedByHostError)
        assert r.ctrl.state is State.FAILED
        r.faults.clear()
        r.ctrl.reset()
        r.ns.write(0, b"n" * 512 * blocks)
        for _ in range(3):
            assert bytes(r.ns.read(0, blocks)) == b"n" * 512 * blocks
            r.ns.read(0, blocks, into=buffer)
            assert bytes(buffer) == b"n" * 512 * blocks
        assert [queue.inflight for queue in r.ctrl.queues] == [0]
    assert len(r.ctrl.queues) == 1


def test_what_a_reset_ended_and_nobody_reaped_is_not_overdue(rig: Make) -> None:
    """Of a queue without timestamps, by a program that is busy; likewise what was given up."""
    r = rig()
    queue = r.ctrl.create_queue(entries=16, timestamps=False)
    batch = queue.batch(2, namespace=r.ns, buffer=r.ctrl.alloc(1024))
    r.faults.add(fault("drop", count=2))
    queue.submit(batch)
    r.ctrl.reset()
    time.sleep(4 * (QUICK.io + QUICK.abort))
    assert len(r.ctrl.resets) == 1
    assert queue.reap(2, timeout=30).status.tolist() == [ABORTED] * 2
    r.faults.replace(fault("drop", count=2))
    queue.submit(batch)
    assert queue.quarantine() == 2
    time.sleep(4 * (QUICK.io + QUICK.abort))
    assert len(r.ctrl.resets) == 1


def test_an_admin_command_with_a_limit_of_its_own_is_not_reset_for(rig: Make) -> None:
    """A long limit as little as a short one."""
    r = rig()
    r.faults.add(fault("drop", queue=0, opcodes="identify", count=1))
    ask = command.identify(Cns.CONTROLLER)
    with pytest.raises(CommandTimeoutError, match="within 4 s"):
        r.ctrl.admin(ask, read=IDENTIFY_SIZE, timeout=4)
    assert r.ctrl.resets == ()
    r.ctrl.admin(ask, read=IDENTIFY_SIZE)


def test_a_signal_handler_does_not_wait_for_its_own_thread(rig: Make) -> None:
    """Inside of an admin command it cannot reset; inside of a reset it cannot use a queue."""
    r = rig(timeouts=PATIENT)
    queue = r.ctrl.create_queue(entries=16)
    batch = queue.batch(1, namespace=r.ns, buffer=r.ctrl.alloc(512))
    told: list[BaseException] = []

    def handler(number: int, frame: object) -> None:
        for step in (r.ctrl.reset, lambda: queue.submit(batch)):
            try:
                step()
            except UdrvError as error:
                told.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        r.faults.add(fault("late", us=1_500_000, queue=0, opcodes="identify", count=1))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        r.ctrl.admin(command.identify(Cns.CONTROLLER), read=IDENTIFY_SIZE, timeout=30)
        assert [type(error) for error in told] == [QueueBusyError]
        assert queue.reap(1, timeout=30).status.tolist() == [0]
        told.clear()
        r.faults.replace(fault("slow_ready", us=1_500_000))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        r.ctrl.reset()
        assert [type(error) for error in told] == [ControllerStateError] * 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert r.ctrl.state is State.READY
    assert len(r.ctrl.resets) == 1
