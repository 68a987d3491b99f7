# SPDX-License-Identifier: Apache-2.0
"""One QEMU under way: its process, the ports' bytes, its limits and its end."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import LabError
from udrv.lab import kernel_log
from udrv.lab.qemu import Qemu

BOOT_LIMIT = 300.0  # seconds until the command starts; a debug kernel on a busy host takes 100
STALL_LIMIT = 120.0  # seconds without a console line until then
_CONSOLE_TAIL = 30
_ANSWER_LIMIT = 30.0  # seconds in which a guest takes an answer that it asked for

Sink = Callable[[bytes], None]


class LabTimeoutError(LabError, TimeoutError):
    """The guest was ended because a time limit ran out; the message has the console's end."""


class BootError(LabError):
    """The guest did not get as far as its command; nothing of the command has run."""


@dataclass(frozen=True)
class Limits:
    """Wall-clock limits in seconds, None for none: of all, and between two report lines."""

    total: float | None
    idle: float | None


class MarkedStream:
    """Passes bytes on to `sink` until the mark `end`, which may arrive in pieces."""

    def __init__(self, sink: Sink, end: bytes) -> None:
        self._sink = sink
        self._end = end
        self._held = b""
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take in what arrived; what follows the mark is dropped."""
        if self.ended:
            return
        data = self._held + data
        self._held = b""
        at = data.find(self._end)
        if at >= 0:
            self.ended = True
            data = data[:at]
        else:
            for length in range(min(len(data), len(self._end) - 1), 0, -1):
                if self._end.startswith(data[-length:]):
                    data, self._held = data[:-length], data[-length:]
                    break
        if data:
            self._sink(data)

    def close(self) -> None:
        """Pass on what was held back as the possible beginning of a mark."""
        if self._held and not self.ended:
            self._sink(self._held)
        self._held = b""


class Guest:
    """One QEMU under way: its process, our ends of its ports, its console file.

    `started` and `ready` are monotonic times (s): of its start, and of its command's.
    """

    def __init__(self, process: subprocess.Popen[bytes], ends: Mapping[str, socket.socket],
                 console: Path, errors: Path, limits: Limits) -> None:
        self.process = process
        self.ends = ends
        self.console = console
        self.errors = errors
        self.limits = limits
        self.started = time.monotonic()
        self._console_size, self._console_grew = 0, self.started
        self.ready: float | None = None
        self.status: int | None = None

    def console_text(self) -> str:
        """What the console has shown so far."""
        try:
            return self.console.read_text(errors="replace").replace("\r", "")
        except OSError:
            return ""

    def _last_console(self) -> float:
        """When the console last grew, as `check_time` saw it."""
        size = self.console.stat().st_size if self.console.exists() else 0
        if size != self._console_size:
            self._console_size, self._console_grew = size, time.monotonic()
        return self._console_grew

    def ended(self, why: str, *, kind: type[LabError] = LabError) -> LabError:
        """An error of class `kind` that says `why`, and what QEMU and the console said."""
        tail = self.console_text().splitlines()[-_CONSOLE_TAIL:]
        said = self.errors.read_text(errors="replace").strip()[-1000:]
        text = f"{why} after {time.monotonic() - self.started:.1f} s"
        text += f"\nQEMU said: {said}" if said else ""
        faults = kernel_log.scan(self.console_text().splitlines())
        text += f"\nthe kernel's first fault:\n{faults[0]}" if faults else ""
        text += "\nthe console's last lines:\n  " + "\n  ".join(tail or ["(none)"])
        return kind(text)

    def check_time(self, last_report: float) -> None:
        """Raise when a limit has run out; `last_report` is a monotonic time."""
        now = time.monotonic()
        if self.ready is None:
            if now - self.started > BOOT_LIMIT:
                raise self.ended("the guest did not start the command in time",
                                 kind=LabTimeoutError)
            if now - self._last_console() > STALL_LIMIT:
                raise self.ended("the guest stood still while it booted", kind=BootError)
        limit = self.limits.total
        if limit is not None and now - self.started > limit:
            raise self.ended(f"no result within the time limit of {limit:g} s",
                             kind=LabTimeoutError)
        idle = self.limits.idle
        if idle is not None and self.ready is not None and now - last_report > idle:
            raise self.ended(f"no report for {idle:g} s", kind=LabTimeoutError)

    def serve(
        self, streams: Mapping[str, MarkedStream], report: Sink, stop: Callable[[], bool],
        answer: Callable[[bytes], bytes],
    ) -> int:
        """Move bytes until the guest has told its status and all its output; the status.

        `answer` gets each line of the port "soft", and returns the line to send back.
        """
        control = asked = b""
        last_report = self.started
        with selectors.DefaultSelector() as selector:
            for name in ("out", "err", "report", "ctl", "soft"):
                self.ends[name].setblocking(False)
                selector.register(self.ends[name], selectors.EVENT_READ, name)
            while self.status is None or not all(s.ended for s in streams.values()):
                events = selector.select(0.5)
                if not events and self.process.poll() is not None:
                    break
                for key, _ in events:
                    name = key.data
                    data = self.ends[name].recv(1 << 16)
                    if not data:
                        selector.unregister(self.ends[name])
                    elif name == "report":
                        last_report = time.monotonic()
                        report(data)
                    elif name == "ctl":
                        control = self._control(control + data)
                    elif name == "soft":
                        asked = self._answer(asked + data, answer)
                    else:
                        streams[name].feed(data)
                if not selector.get_map():
                    break
                self.check_time(last_report)
                if stop():
                    raise self.ended("the guest was told to stop")
        for stream in streams.values():
            stream.close()
        if self.status is None:
            if self.ready is None and self.process.wait() == 0:
                raise self.ended("the guest ended while it booted", kind=BootError)
            raise self.ended("the guest ended before the command did")
        return self.status

    def _control(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            word, _, value = line.decode("ascii", "replace").partition(" ")
            if word == "ready":
                self.ready = time.monotonic()
            elif word == "status" and value.isdigit():
                self.status = int(value)
        return rest

    def _answer(self, data: bytes, answer: Callable[[bytes], bytes]) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self.ends["soft"].settimeout(_ANSWER_LIMIT)
            try:
                self.ends["soft"].sendall(answer(line))
            except TimeoutError as error:
                raise self.ended("the guest asks and does not read the answer") from error
            finally:
                self.ends["soft"].setblocking(False)
        return rest

    def power_off(self) -> None:
        """Let the guest switch itself off, so that its last kernel lines are in the log."""
        try:
            self.ends["ctl"].setblocking(True)
            self.ends["ctl"].sendall(b"bye\n")
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            pass  # `started` kills it


@contextmanager
def started(
    argv: Sequence[str], qemu: Qemu, *, ends: Mapping[str, socket.socket],
    passed: Sequence[socket.socket], folder: Path, limits: Limits, terminal: bool,
) -> Iterator[Guest]:
    """A QEMU that lives no longer than the block, nor than this process."""
    errors = folder / "qemu.log"
    if shutil.which("setpriv"):
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    with errors.open("wb") as log:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **qemu.environment},
            stdin=None if terminal else subprocess.DEVNULL,
            stdout=None if terminal else log,
            stderr=log,
            pass_fds=[s.fileno() for s in passed],
            # Ctrl-C is for us: we end QEMU, after which the console can still be shown.
            start_new_session=not terminal,
        )
    for end in passed:
        end.close()
    try:
        yield Guest(process, ends, folder / "console.log", errors, limits)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


