"""Exceptions at bad moments, threads at bad places, and what close() makes of both.

Ctrl-C can come between any two lines: the tests put it where it would do most harm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from udrv import errors, soft
from udrv.core import lib
from udrv.memory import DmaMemory
from udrv.nvme import Controller, State, leases
from udrv.nvme.interrupts import Vectors
from udrv.nvme.spec import command
from udrv.nvme.spec.opcodes import AdminOpcode, Cns
from udrv.soft import SoftProcess
from udrv.vfio.user import UserDevice, from_socket


class Rig:
    def __init__(self, options: str = "size=16M", **kwargs: Any) -> None:
        self.process: SoftProcess = soft.start(options)
        self.device: UserDevice = from_socket(self.process.socket, f"soft:?{options}")
        self.log: list[str] = []
        reset = self.device.reset
        self.device.reset = lambda: (self.log.append("reset"), reset())[1]  # type: ignore[method-assign]
        self.ctrl = Controller(self.device, **kwargs)

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


def eventfds() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found += "eventfd" in str(link.readlink())
    return found


# --- admin commands ------------------------------------------------------------------------------


def test_interrupted_after_the_doorbell_the_buffer_is_not_reused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device still writes to it: nobody else may get that memory before it did."""
    ctrl, pair = rig.ctrl, rig.ctrl.backend.admin_pair
    assert pair is not None
    submit = pair.submit_raw

    def interrupted(*args: Any, **kwargs: Any) -> None:
        submit(*args, **kwargs)
        raise KeyboardInterrupt

    rig.stop()
    monkeypatch.setattr(pair, "submit_raw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ctrl.admin(command.identify(Cns.CONTROLLER), read=4096)
    monkeypatch.undo()
    mine = [ctrl.alloc(4096) for _ in range(8)]
    for buffer in mine:
        buffer[:] = 0xA5
    rig.go_on()
    assert ctrl.admin(command.identify(Cns.CONTROLLER), read=4096).data[24:28] == b"udrv"
    assert all((buffer == 0xA5).all() for buffer in mine)
    assert pair.shared.anomalies.late == 1


def test_an_interrupted_commands_completion_is_not_the_next_ones(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted where it could not even be given up."""
    ctrl, pair = rig.ctrl, rig.ctrl.backend.admin_pair
    assert pair is not None
    monkeypatch.setattr(pair, "quarantine", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(pair, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ctrl.admin(bytes([0x7F]) + bytes(63))  # would fail with Invalid Command Opcode
    monkeypatch.undo()
    assert ctrl.admin(command.identify(Cns.CONTROLLER), read=4096).data[24:28] == b"udrv"
    assert ctrl.admin(command.identify(Cns.CONTROLLER), read=4096).data[24:28] == b"udrv"


def test_admin_buffers_come_back(rig: Rig) -> None:
    ctrl = rig.ctrl
    ctrl.smart_log()
    before = ctrl.memory.used_bytes
    for _ in range(50):
        ctrl.smart_log()
        with pytest.raises(errors.NvmeStatusError):
            ctrl.admin(command.identify(0xFE), read=4096)
    assert ctrl.memory.used_bytes == before


# --- close ---------------------------------------------------------------------------------------


def test_a_queue_that_the_device_does_not_know_keeps_nobody_from_a_shutdown(rig: Rig) -> None:
    """As after a Ctrl-C in the middle of Delete: no shutdown could cost what is in a cache."""
    queue = rig.ctrl.create_queue(entries=8)
    rig.ctrl.admin(command.delete_io_sq(queue.qid))
    life = rig.ctrl.backend._life
    assert life is not None
    rig.ctrl.close()
    assert life.state is State.SHUTDOWN
    assert rig.log == []  # no reset
    assert not rig.ctrl.memory.pools


def test_eventfds_are_closed_after_the_last_thread_has_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that sleeps on one would read from whatever file gets its number next."""
    ctrl = rig.ctrl
    close, seen = Vectors.close, []

    def spy(vectors: Vectors) -> None:
        assert ctrl.backend.admin_pair is not None
        with pytest.raises(errors.ClosedError):
            ctrl.backend.admin_pair.submit_raw(bytes(64))
        seen.append(len(vectors))
        close(vectors)

    monkeypatch.setattr(Vectors, "close", spy)
    ctrl.close()
    assert seen and seen[0] > 0


def test_eventfds_of_a_dead_server_are_closed(rig: Rig) -> None:
    before = eventfds() - len(rig.ctrl.backend._vectors or ()) - 1  # its keeper has one
    os.kill(rig.process.pid, signal.SIGKILL)
    with pytest.raises(errors.DeviceGoneError):
        rig.ctrl.smart_log()
    rig.ctrl.close()
    assert eventfds() == before


def test_a_thread_that_does_not_leave_keeps_its_memory(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may touch stays mapped; close() is refused, and done by the next call."""
    ctrl = rig.ctrl
    queue = ctrl.create_queue(entries=8)
    monkeypatch.setattr("udrv.nvme.pair.CLOSE_SECONDS", 0.05)
    busy_handle = queue.pair.c
    inside = threading.Event()
    leave = threading.Event()
    quarantine = lib.udrv_qp_quarantine

    class Lib:
        """As if a thread were inside of this queue."""

        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def udrv_qp_quarantine(self, handle: Any, slot: int) -> int:
            inside.set()
            if not leave.is_set() and handle == busy_handle:
                return -int(lib.UDRV_EBUSY)
            return int(quarantine(handle, slot))

    monkeypatch.setattr("udrv.nvme.pair.lib", Lib())
    doorbells = ctrl.backend._registers
    assert doorbells is not None
    with pytest.raises(errors.QueueBusyError):
        ctrl.close()
    assert inside.is_set()
    assert ctrl.state is State.CLOSED
    assert ctrl.memory.pools, "the rings were unmapped under a thread"
    assert doorbells.doorbells(queue.qid)
    assert not rig.device._closed
    leave.set()
    ctrl.close()
    assert not ctrl.memory.pools
    assert rig.device._closed


def test_an_exception_of_a_signal_handler_costs_no_queue(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """signal.alarm with a handler that raises is an everyday time limit."""
    ns = rig.ctrl.namespace(1)
    ns.read(0, 1)
    leases = rig.ctrl._leases
    check, calls = leases._check, iter(range(100))

    def alarm() -> None:
        if next(calls) == 1:  # when the queue is given back
            raise TimeoutError
        check()

    monkeypatch.setattr(leases, "_check", alarm)
    with pytest.raises(TimeoutError):
        ns.read(0, 1)
    monkeypatch.undo()
    for _ in range(3):
        ns.read(0, 1)
    assert len(rig.ctrl._queues) == 1


def test_an_interrupted_close_is_taken_up_by_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rig.ctrl.memory, "close", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rig.ctrl.close()
    monkeypatch.undo()
    rig.ctrl.close()
    assert not rig.ctrl.memory.pools
    assert rig.device._closed


def test_memory_that_makes_no_sense_closes_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's page size is its own word; refusing it must not leave the connection open."""
    process = soft.start("size=16M")
    device = from_socket(process.socket, "soft:test")
    monkeypatch.setattr(type(device.mapper), "page_size", 1 << 40)
    with pytest.raises(errors.DmaMemoryError, match="page size"):
        Controller(device)
    assert device._closed
    process.close()


def test_memory_closed_after_its_connection() -> None:
    """The maps went with it: nothing is stranded."""
    process = soft.start("size=16M")
    device = from_socket(process.socket, "soft:test")
    memory = DmaMemory(device.mapper)
    memory.alloc(4096)
    device.close()
    memory.close()
    assert not memory.pools
    process.close()


# --- queues and batches --------------------------------------------------------------------------


def test_a_blocking_call_gives_the_buffer_back(rig: Rig) -> None:
    ns = rig.ctrl.namespace(1)
    buffer = rig.ctrl.alloc(4096)
    ns.read(0, 1, into=buffer)
    assert buffer.pins == 0
    buffer.free()


def test_a_wait_for_what_was_given_up_ends(rig: Rig) -> None:
    """Its completion comes and is not delivered: there is nothing to wait for any more."""
    ctrl = rig.ctrl
    with ctrl.create_queue(entries=8) as queue:
        batch = queue.batch(1, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4096))
        rig.stop()
        queue.submit(batch)
        assert queue.quarantine() == 1
        threading.Timer(0.2, rig.go_on).start()
        assert len(queue.reap(1)) == 0
        assert queue.inflight == 0


def test_a_batch_of_nothing_takes_no_slot(rig: Rig) -> None:
    ns = rig.ctrl.namespace(1)
    with rig.ctrl.create_queue(entries=8) as queue:
        for _ in range(1100):
            with pytest.raises(errors.InvalidRequestError, match="batch of 0"):
                queue.batch(0, namespace=ns)
        queue.batch(1, namespace=ns)


def test_a_batch_that_dies_while_others_are_swept(rig: Rig) -> None:
    """A finaliser may run at any moment, this one too."""
    ctrl = rig.ctrl
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=8) as queue:
        batches = [queue.batch(1, namespace=ns) for _ in range(8)]
        late = [queue.batch(1, namespace=ns) for _ in range(8)]
        ask = queue.pair.slot_inflight

        def dying(slot: int) -> int:
            if late:
                late.pop()
            return ask(slot)

        queue.pair.slot_inflight = dying  # type: ignore[method-assign]
        batches.clear()
        queue.reap()
        queue.reap()
        assert not late


def test_a_bind_that_is_interrupted_leaves_no_unheld_memory(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctrl = rig.ctrl
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=8) as queue:
        batch = queue.batch(1, namespace=ns)

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(queue, "hold_buffer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            batch.bind(ns, ctrl.alloc(4096))
        with pytest.raises(errors.InvalidRequestError):
            queue.submit(batch)
        assert queue.inflight == 0


def test_an_interrupt_at_any_line_of_a_lease_loses_no_queue() -> None:
    """The only queue there is: were it missed once, the next call would wait for ever."""
    rig = Rig("size=16M&queues=1", queues=1)
    ns = rig.ctrl.namespace(1)
    ns.read(0, 1)
    buffer = rig.ctrl.alloc(4096)
    for countdown in range(1, 60):
        left = countdown

        def trace(frame: FrameType, event: str, _arg: object) -> object:
            nonlocal left
            if frame.f_code.co_filename != leases.__file__:
                return None if event == "call" else trace
            # a signal is served at calls and jumps: not at the bare `try:` lines of lend()
            left -= event == "line" and frame.f_code.co_name in ("_borrow", "_give_back")
            if left == 0:
                left = -1
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            ns.read(0, 1, into=buffer)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        ns.read(0, 1, timeout=5)
    assert left > 0, "there are more lines than were interrupted"
    assert buffer.pins == 0
    rig.ctrl.close()
    rig.process.close()


# --- what a caller or a device says --------------------------------------------------------------


@pytest.mark.parametrize("lba", [1.5, 1.0, "1", None, np.float64(1)])
def test_a_block_address_is_an_integer(rig: Rig, lba: Any) -> None:
    """offset / 512 is a float: cut to an integer it would name another block."""
    ns = rig.ctrl.namespace(1)
    with pytest.raises(errors.InvalidRequestError, match="integers"):
        ns.write(lba, bytes(ns.lba_size))
    with pytest.raises(errors.InvalidRequestError, match="integers"):
        ns.read(0, lba)
    ns.write(np.int32(1), bytes(ns.lba_size))


@pytest.mark.parametrize(
    "opcode",
    [AdminOpcode.FORMAT_NVM, AdminOpcode.NAMESPACE_ATTACHMENT, AdminOpcode.NAMESPACE_MANAGEMENT],
)
def test_a_namespace_that_may_have_changed_is_looked_at_again(
    rig: Rig, opcode: AdminOpcode
) -> None:
    """Blocks of another size than PRPs were made for would have a device read data as a list."""
    ns = rig.ctrl.namespace(1)
    with pytest.raises(errors.NvmeStatusError):
        rig.ctrl.admin(bytes([opcode]) + bytes(63))
    with pytest.raises(errors.InvalidRequestError, match="get it again"):
        ns.read(0, 1)
    rig.ctrl.namespace(1).read(0, 1)


def test_a_list_of_namespaces_without_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        def __init__(self, after: int) -> None:
            self.data = np.arange(after + 1, after + 1025, dtype="<u4").tobytes()

    monkeypatch.setattr(
        rig.ctrl.backend, "admin",
        lambda sqe, **_: Answer(int.from_bytes(sqe[4:8], "little")),
    )  # fmt: skip
    with pytest.raises(errors.ControllerError, match="goes on"):
        rig.ctrl.namespace_ids()


def test_an_error_log_larger_than_one_command(tmp_path: Path) -> None:
    rig = Rig("size=16M&mdts=1")
    with rig.ctrl as ctrl:
        ctrl.identify = replace(ctrl.identify, elpe=255)
        assert len(ctrl.error_log()) == 0
    rig.process.close()


def test_more_queues_than_doorbells_can_be_mapped() -> None:
    rig = Rig("size=16M&queues=3", queues=4000)
    with rig.ctrl as ctrl:
        assert ctrl.max_queues == 3
    rig.process.close()
