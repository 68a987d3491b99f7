# SPDX-License-Identifier: Apache-2.0
"""Scoped bindings: undone at the end of the block, on an exception, and on the owner's death.

The watcher is a real process; it writes to the fake tree, where nobody reacts, so what it wrote is
the proof. The same with a real kernel is in tests/lab/test_pci_bind.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pci_fakes import NVME, nvme_host

from udrv import pci
from udrv.errors import DeviceInUseError, DriverBindError
from udrv.pci import watcher


def test_the_block_undoes_the_binding_and_ends_the_watcher(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    with pci.bound(NVME, host=host) as held:
        assert held.active and pci.function(NVME, host=host).driver == "vfio-pci"
        record = pci.binding(NVME, host=host)
        assert record is not None and record.scoped
    assert pci.function(NVME, host=host).driver == "nvme"
    assert not held.active and pci.bindings(host=host) == ()
    held.close()


def test_an_exception_undoes_the_binding(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    with pytest.raises(RuntimeError, match="mine"), pci.bound(NVME, host=host):
        raise RuntimeError("mine")
    assert pci.function(NVME, host=host).driver == "nvme"


def test_what_was_on_vfio_before_stays_there(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host).execute()
    with pci.bound(NVME, host=host) as held:
        assert not held.active
    assert pci.function(NVME, host=host).driver == "vfio-pci"


def test_a_refused_binding_starts_no_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _ = nvme_host(tmp_path)
    host.add_mount("259:0", "/", "/dev/nvme0n1")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(DeviceInUseError):
        pci.bound(NVME, host=host)


def test_a_failed_bind_ends_the_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    host, _ = nvme_host(tmp_path)
    host.refuses.add("vfio-pci")
    with pytest.raises(DriverBindError, match="instead of vfio-pci"):
        pci.bound(NVME, host=host)
    assert [process.returncode for process in started] == [0]


@pytest.mark.parametrize("moment", ["started", "waiting", "bound"])
def test_an_interrupted_bind_is_undone_and_ends_the_watcher(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    close = os.close

    def close_then_interrupt(fd: int) -> None:
        os.close = close
        close(fd)
        raise KeyboardInterrupt

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)
            if moment == "started":
                os.close = close_then_interrupt

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    execute = pci.BindPlan.execute

    def bind_then_interrupt(plan: pci.BindPlan, **kwargs: bool) -> bool:
        execute(plan, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    host, _ = nvme_host(tmp_path)
    if moment == "waiting":
        monkeypatch.setattr(select, "select", interrupt)
    elif moment == "bound":
        monkeypatch.setattr(pci.BindPlan, "execute", bind_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        pci.bound(NVME, host=host)
    monkeypatch.undo()
    assert pci.function(NVME, host=host).driver == "nvme"
    assert pci.bindings(host=host) == ()
    assert [process.returncode is not None for process in started] == [True]


def test_a_watcher_that_cannot_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _ = nvme_host(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DriverBindError, match="did not get ready"):
        pci.bound(NVME, host=host)
    assert pci.function(NVME, host=host).driver == "nvme"


def test_closing_while_the_device_is_open_is_refused_and_can_be_repeated(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    held = pci.bound(NVME, host=host)
    host.add_process(os.getpid(), "python", "/dev/vfio/7")
    with pytest.raises(DeviceInUseError, match="close the device before"):
        held.close()
    assert held.active
    (host.proc / str(os.getpid()) / "fd/0").unlink()
    held.close()
    assert pci.function(NVME, host=host).driver == "nvme"


def test_a_forked_child_undoes_nothing(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    with pci.bound(NVME, host=host) as held:
        child = os.fork()
        if child == 0:
            held.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert held.active and pci.function(NVME, host=host).driver == "vfio-pci"


def start_watcher(root: Path, pidfd: int, token: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """The watcher alone, as `bound` starts it; returns it and the two ends of its control."""
    import socket

    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", watcher.__file__, str(root), NVME, token, str(pidfd),
         str(theirs.fileno())],
        pass_fds=(pidfd, theirs.fileno()), start_new_session=True,
    )
    theirs.close()
    assert ours.recv(1) == b"R"
    return process, ours.detach(), pidfd


@pytest.fixture
def victim() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


@pytest.mark.parametrize("token", ["mine", "someone else's"])
def test_the_watcher_restores_on_sigkill_if_the_record_is_its_own(
    tmp_path: Path, victim: subprocess.Popen[bytes], token: str
) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host).execute(scoped=True, token=token)
    unbind = host.sys / "bus/pci/drivers/vfio-pci/unbind"
    unbind.touch()
    process, control, pidfd = start_watcher(tmp_path, os.pidfd_open(victim.pid), "mine")
    os.close(control)  # end of file means nothing: only death does
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    victim.kill()
    assert process.wait() == 0
    victim.wait()
    os.close(pidfd)
    assert unbind.read_text() == (NVME if token == "mine" else "")
    # Nobody took the driver away in this tree: the record stays for `udrv unbind`.
    assert json.loads(Path(watcher.record_path(str(tmp_path), NVME)).read_text())["token"] == token


def test_the_watcher_leaves_when_it_is_told(
    tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    process, control, pidfd = start_watcher(tmp_path, os.pidfd_open(victim.pid), "mine")
    os.write(control, b"D")
    assert process.wait() == 0
    victim.kill()
    victim.wait()
    os.close(control)
    os.close(pidfd)


def test_the_watcher_needs_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c",
         f"import runpy, sys; runpy.run_path({watcher.__file__!r}, run_name='x'); "
         "print([m for m in sys.modules if m in ('pathlib', 'json', 'udrv', 'subprocess')])"],
        capture_output=True, text=True, check=True,
    )
    assert done.stdout.strip() == "['pathlib']" or done.stdout.strip() == "[]"
