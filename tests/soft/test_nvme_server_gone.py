"""The other process dies or hangs: the driver says so, ends, and can open another device."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import udrv
from udrv import errors, soft
from udrv.nvme import Controller, State
from udrv.vfio.user import from_socket


def opened(tmp_path: Path) -> tuple[Controller, int]:
    process = soft.start(f"size=64M&lba=4096&file={tmp_path / 'disk'}")
    ctrl = Controller(from_socket(process.socket, "soft:test"))
    return ctrl, process.pid


def test_killed_server_is_gone(tmp_path: Path) -> None:
    ctrl, pid = opened(tmp_path)
    with ctrl:
        ns = ctrl.namespace(1)
        buf = ctrl.alloc(4096)
        ns.read(0, 1, into=buf)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(errors.DeviceGoneError):
            while True:
                ns.read(0, 1, into=buf)
        assert ctrl.state is State.GONE
        with pytest.raises(errors.UdrvError):
            ns.read(0, 1, into=buf)
    assert ctrl.state is State.CLOSED
    assert not ctrl.memory.pools
    buf[:] = 1
    with udrv.open("soft:?size=1M") as other:
        other.namespace(1).read(0, 1)


def test_killed_while_threads_wait(tmp_path: Path) -> None:
    """Each of them gets the error; close() then finds nobody inside."""
    ctrl, pid = opened(tmp_path)
    seen: list[BaseException] = []

    def work() -> None:
        ns = ctrl.namespace(1)
        try:
            while True:
                ns.read(0, 64)
        except BaseException as e:  # noqa: BLE001 - looked at below
            seen.append(e)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    for t in threads:
        t.join(30)
    assert not any(t.is_alive() for t in threads)
    assert len(seen) == 3
    # one finds it out; whoever comes after it is told by the controller's state
    assert any(isinstance(e, errors.DeviceGoneError) for e in seen), seen
    assert all(isinstance(e, errors.ControllerError) for e in seen), seen
    ctrl.close()


def test_a_command_that_does_not_complete_in_time(tmp_path: Path) -> None:
    """A stopped server answers nothing: the command times out, its memory is quarantined, and
    when the server goes on, its late completion gives the memory back."""
    ctrl, pid = opened(tmp_path)
    with ctrl:
        ns = ctrl.namespace(1)
        with ctrl.create_queue(entries=8) as queue:
            buf = ctrl.alloc(4096)
            batch = queue.batch(4, namespace=ns, buffer=buf)
            os.kill(pid, signal.SIGSTOP)
            try:
                assert queue.submit(batch) == 4
                assert len(queue.reap(4, timeout=0.05)) == 0
                assert queue.quarantine(batch) == 4
                with pytest.raises(errors.BufferInUseError):
                    buf.free()
            finally:
                os.kill(pid, signal.SIGCONT)
            while queue.inflight:
                assert len(queue.reap(1, timeout=1)) == 0
            assert queue.counters()["late"] == 4
            batch.close()
            queue.reap()
            buf.free()
        ns.read(0, 1)


def test_blocking_call_times_out_and_the_controller_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctrl, pid = opened(tmp_path)
    with ctrl:
        ns = ctrl.namespace(1)
        ns.read(0, 1)
        # a stopped server cannot be asked whether it is alive; a hung device could
        monkeypatch.setattr(ctrl, "check_alive", lambda: None)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(errors.CommandTimeoutError, match="quarantine") as caught:
                ns.read(0, 1, timeout=0.05)
            assert isinstance(caught.value, TimeoutError)
        finally:
            os.kill(pid, signal.SIGCONT)
        monkeypatch.undo()
        for _ in range(20):
            ns.read(0, 1)


def test_server_that_closes_in_the_middle_of_admin(tmp_path: Path) -> None:
    ctrl, pid = opened(tmp_path)
    with ctrl:
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(errors.DeviceGoneError):
            ctrl.smart_log()
