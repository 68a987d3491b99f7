# SPDX-License-Identifier: Apache-2.0
"""One blocking command in one call: what it may not lose on the way."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from types import FrameType

import numpy as np
import pytest

from udrv import errors, soft
from udrv.memory import Buffer
from udrv.nvme import Controller
from udrv.nvme.namespace import Namespace
from udrv.soft import SoftProcess
from udrv.vfio.user import from_socket


class Rig:
    def __init__(self, options: str = "size=16M&lba=512", **kwargs: int) -> None:
        self.process: SoftProcess = soft.start(options)
        self.ctrl = Controller(from_socket(self.process.socket, f"soft:?{options}"), **kwargs)
        self.ns = self.ctrl.namespace(1)

    def ready(self, size: int = 4096) -> Buffer:
        """A buffer whose second transfer goes by the lane."""
        buffer = self.ctrl.alloc(size)
        self.ns.read(0, 1, into=buffer)
        return buffer

    def submitted(self) -> int:
        return sum(lane.queue.counters()["submitted"] for lane in self.ctrl.lanes)

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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each blocking call did: True if it went by a lane."""
    taken: list[bool] = []
    real = Namespace._quick

    def spy(self: Namespace, *args: object) -> bool:
        taken.append(real(self, *args))  # type: ignore[arg-type]
        return taken[-1]

    monkeypatch.setattr(Namespace, "_quick", spy)
    return taken


def test_the_second_transfer_of_a_buffer_goes_by_the_lane(rig: Rig, quick: list[bool]) -> None:
    buffer = rig.ctrl.alloc(4096)
    for i in range(4):
        buffer[:] = i + 1
        rig.ns.write(8 * i, buffer, fua=bool(i & 1))
    for i in range(4):
        assert rig.ns.read(8 * i, 8, into=buffer) is buffer
        assert (buffer == i + 1).all()
    assert quick == [False] + [True] * 7
    assert rig.submitted() == 8


def test_what_it_refuses_is_what_the_other_way_refuses(rig: Rig) -> None:
    buffer, ns = rig.ready(), rig.ns
    before = rig.submitted()
    readonly = rig.ready()
    readonly.flags.writeable = False
    cases: list[tuple[type[Exception], int, int, Buffer]] = [
        (errors.LbaRangeError, ns.nsze, 1, buffer),
        (errors.LbaRangeError, ns.nsze - 1, 2, buffer),
        (errors.LbaRangeError, -1, 1, buffer),
        (errors.LbaRangeError, 2**64, 1, buffer),
        (errors.InvalidRequestError, 0, 0, buffer),
        (errors.InvalidRequestError, 0, -1, buffer),
        (errors.BufferTooSmallError, 0, 9, buffer),
        (errors.LbaRangeError, 0, 2**33, buffer),
        (errors.InvalidRequestError, 0.0, 1, buffer),  # type: ignore[list-item]
        (errors.InvalidRequestError, 0, "1", buffer),  # type: ignore[list-item]
        # C's conversion would cut them
        (errors.InvalidRequestError, np.float32(1.5), 1, buffer),  # type: ignore[list-item]
        (errors.InvalidRequestError, 0, Fraction(3, 2), buffer),  # type: ignore[list-item]
        (errors.BufferTypeError, 0, 1, readonly),
    ]
    for kind, lba, blocks, into in cases:
        with pytest.raises(kind):
            ns.read(lba, blocks, into=into)
    with pytest.raises(errors.AlignmentError):
        ns.write(0, buffer[:513])
    for timeout in (float("nan"), "1", []):
        with pytest.raises(errors.InvalidRequestError):
            ns.read(0, 1, into=buffer, timeout=timeout)  # type: ignore[arg-type]
    assert rig.submitted() == before + 1, "ready() of the second buffer"
    ns.stale = True
    with pytest.raises(errors.InvalidRequestError, match="formatted"):
        ns.read(0, 1, into=buffer)
    ns.stale = False
    buffer.free()
    with pytest.raises(errors.ClosedError, match="freed"):
        ns.read(0, 1, into=buffer)


def test_a_status_of_the_device_is_raised_with_its_place(rig: Rig) -> None:
    buffer, lane = rig.ready(), rig.ctrl.lanes[0]
    target = buffer.aimed[2]
    target.nsid = 99  # past our own checks: the device refuses it
    with pytest.raises(errors.NvmeStatusError, match="read nsid=1 slba=3 nlb=2") as caught:
        rig.ns.read(3, 2, into=buffer)
    assert (caught.value.sct, caught.value.qid) == (0, lane.queue.qid)
    target.nsid = 1
    rig.ns.read(3, 2, into=buffer)


def test_one_buffer_for_two_namespaces(quick: list[bool]) -> None:
    process = soft.start("ns=512:1M+512:1M")
    with process, Controller(from_socket(process.socket, "soft:")) as ctrl:
        first, second = ctrl.namespace(1), ctrl.namespace(2)
        buffer = ctrl.alloc(512)
        for value, ns in ((1, first), (2, second), (1, first)):
            buffer[:] = value
            ns.write(7, buffer)
        for value, ns in ((1, first), (2, second), (2, second), (1, first)):
            assert (ns.read(7, 1, into=buffer) == value).all()
    assert quick == [False, False, False, True, False, True, False]


def test_views_know_their_own_place(rig: Rig) -> None:
    buffer = rig.ready(8192)
    for i in range(16):
        piece = buffer[512 * i : 512 * (i + 1)]
        piece[:] = i
        for _ in range(2):
            rig.ns.write(i, piece)
    buffer[:] = 0xFF
    for i in reversed(range(16)):
        piece = buffer[512 * i : 512 * (i + 1)]
        for _ in range(2):
            rig.ns.read(i, 1, into=piece)
    assert (buffer.reshape(16, 512) == np.arange(16)[:, None]).all()


def test_threads_share_the_lanes(rig: Rig) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            buffer = rig.ctrl.alloc(4096)
            for _ in range(300):
                lba = number * 64 + rng.randrange(48)
                if rng.random() < 0.2:  # the other way, between
                    rig.ns.write(lba, bytes([number]) * 512 * 16)
                buffer[:] = number
                rig.ns.write(lba, buffer)
                buffer[:] = 0xFF
                rig.ns.read(lba, 8, into=buffer)
                if not (buffer == number).all():
                    wrong.append((number, lba))
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n + 1,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(rig.ctrl.lanes) <= 4


def test_with_one_queue_for_all() -> None:
    process = soft.start("size=1M&queues=1&lba=512")
    with process, Controller(from_socket(process.socket, "soft:"), queues=1) as ctrl:
        ns, buffer = ctrl.namespace(1), ctrl.alloc(512)
        for _ in range(3):
            ns.read(0, 1, into=buffer)
            ns.read(0, 64)
            ns.write(0, bytes(512 * 64))


# --- a device that takes its time -------------------------------------------------------------


def test_a_time_out_keeps_the_buffer_until_the_device_is_done(rig: Rig) -> None:
    buffer, other = rig.ready(), rig.ready()
    rig.ns.write(5, b"\x33" * 512)
    rig.stop()
    with pytest.raises(errors.CommandTimeoutError, match="read nsid=1 on queue"):
        rig.ns.read(5, 1, into=buffer, timeout=1.0)
    with pytest.raises(errors.BufferInUseError):
        buffer.free()
    rig.go_on()
    rig.ns.write(6, b"\x44" * 512)
    assert (rig.ns.read(6, 1, into=other)[:512] == 0x44).all(), "not the late one's answer"
    assert (buffer[:512] == 0x33).all(), "it did come"
    deadline = time.monotonic() + 20
    while True:  # let go of when the queue is next swept
        try:
            buffer.free()
            break
        except errors.BufferInUseError:
            assert time.monotonic() < deadline
            with rig.ctrl.lease_queue() as lease:
                lease.queue.reap(0)
    assert sum(lane.queue.counters()["late"] for lane in rig.ctrl.lanes) == 1


class Interrupted(BaseException):
    """What the signal handler raises."""


def test_a_signal_while_it_is_pending(rig: Rig) -> None:
    buffer = rig.ready()
    rig.ns.write(5, b"\x55" * 512)

    def raises(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raises)
    try:
        rig.stop()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            rig.ns.read(5, 1, into=buffer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert buffer.pins == 1
    rig.go_on()
    again = rig.ready()
    assert (rig.ns.read(5, 1, into=again)[:512] == 0x55).all()


def test_a_busy_lane_does_not_make_others_wait(rig: Rig) -> None:
    """While one thread's command is pending, the next takes another queue."""
    buffer, other = rig.ready(), rig.ready()
    rig.stop()
    held = threading.Thread(target=rig.ns.read, args=(0, 1, buffer))
    held.start()
    lane = rig.ctrl.lanes[0]
    while not lane.c.holder:
        time.sleep(0.01)
    with pytest.raises(errors.BufferInUseError):
        buffer.free()
    waits = threading.Thread(target=rig.ns.read, args=(0, 1, other))
    waits.start()
    while len(rig.ctrl.lanes) < 2 and waits.is_alive():
        rig.go_on()  # a queue is made by an admin command
        time.sleep(0.01)
    held.join()
    waits.join()
    buffer.free()


def test_close_ends_a_pending_command(rig: Rig) -> None:
    buffer = rig.ready()
    told: list[Exception] = []

    def read() -> None:
        try:
            rig.ns.read(0, 1, into=buffer)
        except errors.UdrvError as error:
            told.append(error)

    rig.stop()
    reader = threading.Thread(target=read)
    reader.start()
    while not rig.ctrl.lanes[0].c.holder:
        time.sleep(0.01)
    threading.Timer(0.3, rig.go_on).start()
    rig.ctrl.close()
    reader.join()
    # answered in time, or told that it is closed; never left behind
    assert all(isinstance(error, errors.ClosedError) for error in told)
    with pytest.raises(errors.ClosedError):
        rig.ns.read(0, 1, into=buffer)


def test_a_forked_child_is_refused(rig: Rig) -> None:
    buffer = rig.ready()
    rig.ns.read(0, 1, into=buffer)
    pid = os.fork()
    if pid == 0:
        try:
            rig.ns.read(0, 1, into=buffer)
        except errors.ForkedError:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the status says it
            os._exit(2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    rig.ns.read(0, 1, into=buffer)
