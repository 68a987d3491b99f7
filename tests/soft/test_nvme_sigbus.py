# SPDX-License-Identifier: Apache-2.0
"""A vfio-user server that takes its doorbells away: the driver says so, and the process lives."""

from __future__ import annotations

import os
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
# file, which cannot be sealed. One that cuts it does not look at it any more: ours still does, so
# that the shim puts other memory in the place of what went.
SHIM = """
#define _GNU_SOURCE
#include <linux/fcntl.h>
#include <signal.h>
#include <string.h>
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
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	void *page = (void *)((unsigned long)info->si_addr & ~4095ul);

	mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	memset(page, 0xff, 4096); /* no doorbell's value */
}
__attribute__((constructor)) static void start(void)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &action, 0);
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
        # every submission rings by the register, and not only where EventIdx asks for it
        self.ctrl = Controller(
            from_socket(self.process.socket, "soft:test"), shadow_doorbells=False
        )

    def cut(self) -> None:
        """As a faulty server would; registers are still answered."""
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            if "doorbells" in str(entry.readlink()):
                os.truncate(entry, 0)


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
    assert all(isinstance(e, errors.ControllerError) for e in seen), seen
    check_gone(server, server.ctrl.smart_log)
