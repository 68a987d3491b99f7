# SPDX-License-Identifier: Apache-2.0
"""A vfio-user server that takes its doorbells away: the driver says so, and the process lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import udrv
from udrv import errors, soft
from udrv.nvme import Controller, State
from udrv.soft import process as soft_process
from udrv.vfio.user import from_socket

# Our own server seals its memory against being cut, and so does the client. Others offer a plain
# file, which cannot be sealed.
SHIM = """
#define _GNU_SOURCE
#include <linux/fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int memfd_create(const char *name, unsigned flags)
{
	return (int)syscall(SYS_memfd_create, name, flags & ~MFD_ALLOW_SEALING);
}
int fcntl(int fd, int command, long argument)
{
	return command == F_ADD_SEALS ? 0 : (int)syscall(SYS_fcntl, fd, command, argument);
}
int fcntl64(int fd, int command, long argument)
{
	return fcntl(fd, command, argument);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


class Server:
    """Our controller, whose doorbells can be cut."""

    def __init__(self, shim: Path) -> None:
        child = Path(soft_process.__file__).with_name("_child.py")
        self.process = soft.start(
            "size=16M",
            program=["env", f"LD_PRELOAD={shim}", sys.executable, "-I", "-S", str(child)],
        )
        self.ctrl = Controller(from_socket(self.process.socket, "soft:test"))

    def cut(self) -> None:
        """As a faulty server would; stopped first, or it would die of the same thing before us."""
        os.kill(self.process.pid, signal.SIGSTOP)
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            if "doorbells" in str(entry.readlink()):
                os.truncate(entry, 0)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@pytest.fixture
def server(shim: Path) -> Server:
    return Server(shim)


def check_gone(server: Server, use: Callable[[], object]) -> None:
    ctrl = server.ctrl
    try:
        with pytest.raises(errors.DeviceGoneError, match=r"SIGBUS.*cut the file") as caught:
            while True:
                use()
        assert caught.value.device == "soft:test"
        assert ctrl.state is State.GONE
        with pytest.raises(errors.ControllerError):
            use()
    finally:
        server.go_on()
        ctrl.close()
        server.process.close()
    assert not ctrl.memory.pools
    with udrv.open("soft:?size=1M") as other:
        other.namespace(1).read(0, 1)


def test_a_blocking_read_says_that_the_memory_vanished(server: Server) -> None:
    ns = server.ctrl.namespace(1)
    ns.read(0, 1)
    server.cut()
    check_gone(server, lambda: ns.read(0, 1))


def test_a_batch_says_so_too(server: Server) -> None:
    ctrl = server.ctrl
    queue = ctrl.create_queue(entries=8)
    batch = queue.batch(4, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4 * 4096))
    server.cut()

    def use() -> None:
        queue.submit(batch)
        queue.reap(4)

    check_gone(server, use)


def test_an_admin_command_says_so_too(server: Server) -> None:
    server.cut()
    check_gone(server, server.ctrl.smart_log)


def test_threads_that_ring_at_once_all_end(server: Server) -> None:
    seen: list[BaseException] = []
    ns = server.ctrl.namespace(1)

    def work() -> None:
        try:
            while True:
                ns.read(0, 8)
        except BaseException as e:  # noqa: BLE001 - looked at below
            seen.append(e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    server.cut()
    for t in threads:
        t.join(60)
    assert len(seen) == 4
    # one that asked the server between its stop and the cut got no answer from it
    assert all(isinstance(e, errors.ControllerError | errors.VfioError) for e in seen), seen
    check_gone(server, server.ctrl.smart_log)
