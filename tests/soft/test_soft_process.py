"""Where the software controller runs: a child process, or a server on a socket."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from minidriver import FLUSH, GET_FEATURES, OK, READ, WRITE, MiniDriver
from rawclient import Raw, alive

from udrv import soft
from udrv.errors import (
    ControllerError,
    DeviceGoneError,
    DeviceInUseError,
    DeviceNotFoundError,
    TargetError,
)
from udrv.soft import SoftProcess
from udrv.vfio import user_proto as proto
from udrv.vfio.device import BAR0
from udrv.vfio.user import UserDevice, connect, from_socket

Start = Callable[..., SoftProcess]
EINVAL, EEXIST, ENOENT, EOPNOTSUPP = 22, 17, 2, 95



# --- the process ----------------------------------------------------------------------------------


def test_the_child_ends_with_its_socket(start: Start) -> None:
    process = start()
    assert process.returncode is None
    process.socket.close()
    deadline = time.monotonic() + 10
    while process.returncode is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert process.returncode == 0


def test_a_child_that_dies_is_device_gone() -> None:
    with soft.start("size=1M") as process:
        device = from_socket(process.socket, "soft:")
        os.kill(process.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(DeviceGoneError):
                device.read(BAR0, 0, 8)
        device.close()


def test_the_child_ignores_an_interrupt_of_the_terminal(start: Start) -> None:
    process = start()
    raw = Raw(process.socket)
    os.kill(process.pid, signal.SIGINT)
    assert alive(raw)


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match="exit status 1") as caught:
        soft.start(f"ns=4096:{1 << 62}")
    assert "memory" in str(caught.value)
    with pytest.raises(ControllerError, match=r"exit status 7.*so sorry"):
        soft.start("", program=["/bin/sh", "-c", "echo so sorry >&2; exit 7"])


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError, match="no directory"):
        soft.start(f"size=1M&file={tmp_path}/no/disk")
    with pytest.raises(TargetError):
        soft.start(f"size=1M&file={tmp_path}")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TargetError, match="regular file"):
        soft.start(f"size=1M&file={tmp_path}/fifo")
    with pytest.raises(DeviceNotFoundError, match="give size="):
        soft.start(f"file={tmp_path}/none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").touch()
    with pytest.raises(TargetError, match="give size="):
        soft.start(f"file={tmp_path}/empty")
    assert (tmp_path / "empty").exists(), "a file of the user was removed"


# --- serve ----------------------------------------------------------------------------------------


class served:  # noqa: N801 - reads as a verb in a with statement
    """`soft.serve` in a thread."""

    def __init__(self, path: Path, options: str = "size=16M") -> None:
        self.path = path
        self.options = options
        self.stop_read, self.stop_write = os.pipe()
        self.ready = threading.Event()
        self.ends: list[str] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            soft.serve(
                self.path, self.options, stop_fd=self.stop_read, on_ready=self.ready.set,
                on_client_end=self.ends.append,
            )
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error
            self.ready.set()

    def __enter__(self) -> Path:
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.ready.wait(10)
        assert self.error is None
        return self.path

    def __exit__(self, *_: object) -> None:
        os.write(self.stop_write, b"x")
        self.thread.join(10)
        assert not self.thread.is_alive()
        os.close(self.stop_read)
        os.close(self.stop_write)
        assert not self.path.exists()


def test_serve_one_client_after_the_other(tmp_path: Path) -> None:
    with served(tmp_path / "s") as path:
        assert path.stat().st_mode & 0o777 == 0o600
        for turn in range(3):
            driver = MiniDriver(connect(path))
            pair = driver.pair(1)
            page = driver.pages(1)
            if turn:
                assert driver.rw(pair, READ, 0, 1, prp1=driver.bus(page)).status == OK
                assert driver.memory[page] == turn
            driver.memory[page] = turn + 1
            assert driver.rw(pair, WRITE, 0, 1, prp1=driver.bus(page)).status == OK
            driver.close()


def test_serve_stops_in_the_middle_of_a_client(tmp_path: Path) -> None:
    server = served(tmp_path / "s")
    with server as path:
        device = connect(path)
        device.read(BAR0, 0, 8)
    with pytest.raises(DeviceGoneError):
        device.read(BAR0, 0, 8)
    device.close()


def test_the_second_client_waits_for_the_first(tmp_path: Path) -> None:
    with served(tmp_path / "s") as path:
        first = connect(path)
        second: list[UserDevice] = []
        thread = threading.Thread(target=lambda: second.append(connect(path, timeout=30)))
        thread.start()
        first.read(BAR0, 0, 8)
        first.close()
        thread.join(30)
        assert second[0].read(BAR0, 8, 4) == b"\0\0\2\0"
        second[0].close()


def test_serve_refuses_what_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served(path), pytest.raises(DeviceInUseError):
        soft.serve(path, "size=1M", stop_fd=0)
    path.write_text("not a socket")
    with pytest.raises(TargetError, match="not a socket"):
        soft.serve(path, "size=1M", stop_fd=0)
    assert path.read_text() == "not a socket"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with served(path):  # a socket file whose server is dead is replaced
        connect(path).close()
    with pytest.raises(DeviceNotFoundError):
        soft.serve(tmp_path / "no" / "s", "size=1M", stop_fd=0)
    with pytest.raises(TargetError):
        soft.serve(tmp_path / ("x" * 200), "size=1M", stop_fd=0)
    with pytest.raises(TargetError, match="queues"):
        soft.serve(path, "queues=0", stop_fd=0)
    assert not path.exists()


def test_two_drivers_on_two_controllers(start: Start) -> None:
    drivers = [MiniDriver(from_socket(start().socket, f"soft:{n}")) for n in range(2)]
    for driver in drivers:
        assert driver.run(driver.pair(1), FLUSH, nsid=1).status == OK
    for driver in drivers:
        assert driver.admin(GET_FEATURES, cdw10=7).status == OK
        driver.close()


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_a_signal(tmp_path: Path, number: signal.Signals, busy: bool) -> None:
    path = tmp_path / "s"
    program = (
        "import sys; from udrv import soft;"
        "soft.serve(sys.argv[1], 'size=1M', on_ready=lambda: print('ready', flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        device = connect(path) if busy else None
        process.send_signal(number)
        assert process.wait(20) == 0
        assert not path.exists()
        if device is not None:
            device.close()


def test_a_client_may_leave_at_any_byte(tmp_path: Path, start: Start) -> None:
    messages = [
        struct.pack("=HHIII", 7, 1, 20, 0, 0) + struct.pack("=HH", 0, 1),
        struct.pack("=HHIII", 7, 9, 32, 0, 0) + proto.pack_access(offset=0, region=0, count=8),
    ]
    stream = b"".join(messages)
    with served(tmp_path / "s") as path:
        for cut in range(0, len(stream) + 1, 3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(stream[:cut])
        with connect(path) as device:
            assert device.read(BAR0, 8, 4) == b"\0\0\2\0"
