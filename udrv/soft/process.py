# SPDX-License-Identifier: Apache-2.0
"""`soft:`: a software controller in a child process of this one."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import _cffi_backend

from udrv.errors import ControllerError, UdrvError
from udrv.soft import _soft
from udrv.soft._soft import ffi
from udrv.soft.config import Config
from udrv.soft.counters import SoftCounters, decode_counters
from udrv.soft.options import SoftOptions, parse_options

if TYPE_CHECKING:
    from udrv.soft.fault_control import FaultControl
    from udrv.soft.faults import Script

#: A child that has not come up after this long will not.
START_TIMEOUT_S = 10.0
#: A child whose socket was closed ends within microseconds; after this it is killed.
STOP_TIMEOUT_S = 5.0

_CHILD = Path(__file__).with_name("_child.py")


class SoftProcess:
    """A running controller and this process's end of its connection.

    A context manager; `close` ends the child. The child ends by itself, too, when the last copy
    of `socket` is closed, however this process ends.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        sock: socket.socket,
        stderr_fd: int,
        counters: mmap.mmap,
        *,
        faults: FaultControl | socket.socket,
        control: Path | None,
    ) -> None:
        self._child = child
        self._socket = sock
        self._stderr_fd = stderr_fd
        self._counters = counters
        self._faults = faults
        self._control = control
        self._owner = os.getpid()
        self._closed = False
        self._last_words = ""

    @property
    def socket(self) -> socket.socket:
        """The connected socket; `udrv.vfio.user.from_socket` takes it over."""
        return self._socket

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, None while it runs, -N if signal N killed it."""
        return self._child.poll()

    @property
    def stderr(self) -> str:
        """What the child wrote to its standard error, at most 64 KiB of it."""
        if not self._closed:
            with contextlib.suppress(OSError):
                self._last_words = os.pread(self._stderr_fd, 65536, 0).decode(errors="replace")
        return self._last_words.strip()

    @property
    def faults(self) -> FaultControl:
        """The faults that it injects; see `udrv.soft.faults`."""
        if isinstance(self._faults, socket.socket):
            from udrv.soft.fault_control import FaultControl

            self._faults = FaultControl(self._faults, "soft:")
        return self._faults

    def counters(self) -> SoftCounters:
        """Read the controller's counters, now; they stay readable after `close`."""
        return decode_counters(memoryview(self._counters))

    def close(self) -> None:
        """Close the socket and wait for the child to end; idempotent.

        In a forked process this closes descriptors and touches nothing of the parent's child.
        """
        if self._closed:
            return
        self._socket.close()
        self._faults.close()
        if os.getpid() == self._owner:
            if self._control is not None:
                self._control.unlink(missing_ok=True)
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # It hangs in a system call on its backing file, or somebody holds our socket.
                self._child.kill()
                self._child.wait()
        _ = self.stderr
        self._closed = True
        os.close(self._stderr_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def start(
    options: str | SoftOptions = "",
    *,
    program: Sequence[str] | None = None,
    faults: Script | None = None,
) -> SoftProcess:
    """Start a controller; `options` is what follows `soft:?` (see `udrv.soft.options`).

    `faults` is what it injects from the start; `SoftProcess.faults` changes that.
    `program` replaces the child's command line up to its first argument: another build of the
    controller that takes the configuration in the same way (tests run one with sanitizers).

    Raises `TargetError` for options that are not valid or a file that cannot be used, and
    `ControllerError`, with what the child said, if it does not come up.
    """
    if isinstance(options, str):
        options = parse_options(options)
    try:
        return _start(options, program, faults)
    except UdrvError:
        raise
    except OSError as error:  # no descriptor, no process, no memory left
        raise ControllerError(
            f"the controller's process cannot be started: {error.strerror}",
            state="starting",
            device="soft:",
            mend="raise the limit of open files (`ulimit -n`) or of processes (`ulimit -u`), or "
            "close other controllers",
        ) from error


def _start(
    options: SoftOptions, program: Sequence[str] | None, script: Script | None
) -> SoftProcess:
    with contextlib.ExitStack() as stack:

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        # Where the caller closed 0, 1 or 2, ours would be these, and the child's own standard
        # streams would take their place.
        while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:
            keep(fd)
        os.close(fd)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        on_error = stack.enter_context(contextlib.ExitStack())
        on_error.callback(ours.close)
        stack.callback(theirs.close)
        counters_fd = keep(os.memfd_create("udrv-soft-counters", os.MFD_CLOEXEC))
        size = ffi.sizeof("struct udrv_soft_counters")
        os.ftruncate(counters_fd, size)
        stderr_fd = os.memfd_create("udrv-soft-stderr", os.MFD_CLOEXEC)
        on_error.callback(os.close, stderr_fd)
        ready_fd, ready_child = os.pipe2(os.O_CLOEXEC)
        keep(ready_fd)
        close_ready = stack.enter_context(contextlib.ExitStack())
        close_ready.callback(os.close, ready_child)
        control_fd = -1
        if options.control is None:
            control, theirs_too = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            on_error.callback(control.close)
            control_fd = keep(theirs_too.detach())
        config = Config(
            options, sock_fd=theirs.fileno(), ready_fd=ready_child, counters_fd=counters_fd,
            control_fd=control_fd, script=script,
        )  # fmt: skip
        on_error.callback(config.close)
        stack.callback(config.close_fds)
        if options.control is not None:
            from udrv.soft.fault_control import FaultControl  # most controllers have no faults

            faults: FaultControl | socket.socket = FaultControl.connect(options.control)
            on_error.callback(faults.close)
        else:
            faults = control
        child = subprocess.Popen(
            [*(program or _command()), config.packed().hex(), *_directories()],
            stdin=subprocess.DEVNULL,
            stdout=stderr_fd,
            stderr=stderr_fd,
            pass_fds=(
                theirs.fileno(), ready_child, counters_fd, *config.fds,
                *([control_fd] if control_fd >= 0 else []),
            ),
        )
        close_ready.close()  # so that the pipe ends with the child
        process = SoftProcess(
            child, ours, stderr_fd, mmap.mmap(counters_fd, size, prot=mmap.PROT_READ),
            faults=faults, control=config.control,
        )  # fmt: skip
        on_error.pop_all()
        theirs.close()
        try:
            _wait_until_ready(process, ready_fd)
        except BaseException:
            process.close()
            raise
    return process


def _command() -> list[str]:
    # -I: no variable of the environment and no directory of the user's changes what is run;
    # -S: no site-packages and their start-up code.
    return [sys.executable, "-I", "-S", str(_CHILD)]


def _directories() -> list[str]:
    files = (_soft.__file__, _cffi_backend.__file__)
    return [str(Path(file).resolve().parent) for file in files if file]


def _wait_until_ready(process: SoftProcess, ready_fd: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    poller = select.poll()
    poller.register(ready_fd, select.POLLIN)
    while not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
        if time.monotonic() >= deadline:
            process.close()
            raise ControllerError(
                f"the controller's process did not come up within {START_TIMEOUT_S:g} s",
                state="starting",
                device="soft:",
                mend=process.stderr or "is the machine out of memory or of CPU time?",
            )
    if os.read(ready_fd, 1):
        return
    process.close()
    said = process.stderr or "it said nothing"
    raise ControllerError(
        f"the controller's process ended at once (exit status {process.returncode})",
        state="starting",
        device="soft:",
        mend=f"its standard error: {said}",
    )
