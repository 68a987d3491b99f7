# SPDX-License-Identifier: Apache-2.0
"""Boot the laboratory, run one command in it, and say how it went."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from udrv.errors import LabError
from udrv.lab import image, kernel_log
from udrv.lab.accel import choose_accel
from udrv.lab.cache import cache_dir, locked, run_dir
from udrv.lab.devices import DEFAULT_DEVICES, DeviceSpec, PlacedDevice, VfioUserSpec, place
from udrv.lab.kernel import Kernel, resolve
from udrv.lab.qemu import (
    PORTS,
    Machine,
    Qemu,
    check_devices,
    command_line,
    find_qemu,
    make_disks,
    memory_mib,
    plug_arguments,
    replug_is_whole,
)

GUEST_OUT = "/run/udrv-lab/out"
BOOT_LIMIT = 300.0  # seconds until the command starts; a debug kernel on a busy host takes 100
_CONSOLE_TAIL = 30

# What of the caller's environment means something in the guest. Not all of it: it would carry
# sockets and display names that lead nowhere, and secrets into a file.
_PASSED = frozenset(
    ("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TERM", "TZ", "COLUMNS", "VIRTUAL_ENV", "CI",
     "NO_COLOR", "FORCE_COLOR", "SOURCE_DATE_EPOCH")
)
_PASSED_PREFIXES = ("PYTHON", "UDRV_", "LC_", "PYTEST_", "HYPOTHESIS_", "ASAN_", "UBSAN_")
_NOT_PASSED = frozenset(("PYTEST_CURRENT_TEST",))

Sink = Callable[[bytes], None]


class LabTimeoutError(LabError, TimeoutError):
    """The guest was ended because a time limit ran out; the message has the console's end."""


@dataclass(frozen=True)
class LabConfig:
    """One run's machine; the fields are the options of `udrv-lab run`.

    `timeout` (seconds from the start) and `idle_timeout` (seconds without a report line, see
    `run`) are wall-clock limits, None for none. `allow` are regular expressions of kernel lines
    that are no faults in this run. `environment` is added to what is passed on from the caller's.
    """

    cpus: int = 2
    memory: str = "2048M"
    accel: str = "auto"
    kernel: str = "stock"
    timeout: float | None = 1500.0
    idle_timeout: float | None = None
    devices: tuple[DeviceSpec, ...] = ()
    default_devices: bool = True
    keep_disks: bool = False
    icount: bool = False
    qemu: str | None = None
    append: str = ""
    iommu: bool = True
    shared_memory: bool = False
    out: Path | None = None
    allow: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabResult:
    """How a run went. `status` is the command's exit status (128 + n when signal n killed it),
    `faults` what the kernel log must not hold, `out` the directory that was the guest's
    `$UDRV_LAB_OUT`; `boot_seconds` until the command started, `seconds` in all (wall clock)."""

    status: int
    faults: tuple[kernel_log.Fault, ...]
    console: str
    out: Path
    accel: str
    kernel: str
    boot_seconds: float
    seconds: float


def _ignore(_: bytes) -> None:
    return None


def guest_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the guest's command."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES)) and name not in _NOT_PASSED
    }
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    for needed in ("/usr/sbin", "/sbin"):
        if needed not in path.split(":"):
            path += f":{needed}"
    passed |= {"PATH": path, "PYTHONUNBUFFERED": "1", **extra, "UDRV_LAB_OUT": GUEST_OUT}
    # The cache is the host's: a lab inside the lab would only fill the guest's memory.
    passed.setdefault("HOME", "/root")
    return passed


def _command_script(command: Sequence[str], extra: Mapping[str, str]) -> str:
    lines = [f"export {name}={shlex.quote(value)}"
             for name, value in sorted(guest_environment(extra).items())
             if name.isidentifier()]
    cwd = shlex.quote(os.getcwd())  # noqa: PTH109 - a plain string is what is needed
    lines.append(f"cd {cwd} || exit 125")
    lines.append("ulimit -c 0")
    lines.append("exec " + shlex.join(command))
    return "\n".join(lines) + "\n"


def _device_file(kernel: Kernel, accel: str, devices: Sequence[PlacedDevice]) -> str:
    """/run/udrv-lab.json, with places for the kernel's release and the PCI addresses."""
    listed = []
    for device in devices:
        spec = device.spec
        entry: dict[str, object] = {
            "id": device.id,
            "bdf": f"@BDF:{device.slot:02x}@",
            "serial": device.serial,
            "namespaces": [],
            "port": f"0000:00:{device.slot:02x}.0",
            "plug": plug_arguments(device),
            "replug": replug_is_whole(device),
        }
        if not isinstance(spec, VfioUserSpec):
            mates = [device] if spec.subsys is None else [
                d for d in devices
                if not isinstance(d.spec, VfioUserSpec) and d.spec.subsys == spec.subsys]
            entry["namespaces"] = [
                {"nsid": nsid, "lba_size": ns.lba_size, "size": ns.size, "metadata": ns.metadata,
                 "pi": ns.pi, "zone_size": ns.zone_size}
                for mate in mates if not isinstance(mate.spec, VfioUserSpec)
                for nsid, ns in zip(mate.nsids, mate.spec.namespaces, strict=True)
            ]
        listed.append(entry)
    described = {"kernel": "@KERNEL@", "accel": accel, "out": GUEST_OUT, "devices": listed}
    return json.dumps(described, indent=1) + "\n"


def _settings(kernel: Kernel, devices: Sequence[PlacedDevice], mode: str, end: str) -> str:
    size = shutil.get_terminal_size()
    count = sum(len(d.nsids) for d in devices)
    values = {
        "LAB_MODE": mode,
        "LAB_MODULES": str(kernel.modules.resolve()) if kernel.modules else "",
        "LAB_NAMESPACES": str(count),
        "LAB_SLOTS": " ".join(f"{d.slot:02x}" for d in devices),
        "LAB_END": end,
        "LAB_ROWS": str(size.lines),
        "LAB_COLUMNS": str(size.columns),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


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


class _Guest:
    """One QEMU under way: its process, our ends of its ports, its console file."""

    def __init__(self, process: subprocess.Popen[bytes], ends: Mapping[str, socket.socket],
                 console: Path, errors: Path, config: LabConfig) -> None:
        self.process = process
        self.ends = ends
        self.console = console
        self.errors = errors
        self.config = config
        self.started = time.monotonic()
        self.ready: float | None = None
        self.status: int | None = None

    def console_text(self) -> str:
        try:
            return self.console.read_text(errors="replace").replace("\r", "")
        except OSError:
            return ""

    def ended(self, why: str, *, kind: type[LabError] = LabError) -> LabError:
        tail = self.console_text().splitlines()[-_CONSOLE_TAIL:]
        said = self.errors.read_text(errors="replace").strip()[-1000:]
        text = f"{why} after {time.monotonic() - self.started:.1f} s"
        text += f"\nQEMU said: {said}" if said else ""
        text += "\nthe console's last lines:\n  " + "\n  ".join(tail or ["(none)"])
        return kind(text)

    def check_time(self, last_report: float) -> None:
        now = time.monotonic()
        if self.ready is None and now - self.started > BOOT_LIMIT:
            raise self.ended("the guest did not start the command in time", kind=LabTimeoutError)
        limit = self.config.timeout
        if limit is not None and now - self.started > limit:
            raise self.ended(f"no result within the time limit of {limit:g} s",
                             kind=LabTimeoutError)
        idle = self.config.idle_timeout
        if idle is not None and self.ready is not None and now - last_report > idle:
            raise self.ended(f"no report for {idle:g} s", kind=LabTimeoutError)

    def serve(
        self, streams: Mapping[str, MarkedStream], report: Sink, stop: Callable[[], bool]
    ) -> int:
        """Move bytes until the guest has told its status and all its output; the status."""
        control = b""
        last_report = self.started
        with selectors.DefaultSelector() as selector:
            for name in ("out", "err", "report", "ctl"):
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

    def power_off(self) -> None:
        """Let the guest switch itself off, so that its last kernel lines are in the log."""
        try:
            self.ends["ctl"].setblocking(True)
            self.ends["ctl"].sendall(b"bye\n")
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            pass  # `_started` kills it


@contextmanager
def _started(
    argv: Sequence[str], qemu: Qemu, *, ends: Mapping[str, socket.socket],
    passed: Sequence[socket.socket], folder: Path, config: LabConfig, terminal: bool,
) -> Iterator[_Guest]:
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
        yield _Guest(process, ends, folder / "console.log", errors, config)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _place_devices(config: LabConfig, folder: Path, stack: ExitStack) -> list[PlacedDevice]:
    disks = folder
    if config.keep_disks:
        disks = cache_dir() / "disks"
        disks.mkdir(exist_ok=True)
        stack.enter_context(locked(disks / "lock"))
    specs = (*(DEFAULT_DEVICES if config.default_devices else ()), *config.devices)
    devices = place(specs, disks)
    make_disks(devices, keep=config.keep_disks)
    return devices


def run(
    command: Sequence[str],
    config: LabConfig | None = None,
    *,
    stdout: Sink = _ignore,
    stderr: Sink = _ignore,
    report: Sink = _ignore,
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    terminal: bool = False,
) -> LabResult:
    """Boot a guest, run `command` in the current directory, return how it went.

    `stdout` and `stderr` get the command's output as it comes, `report` what it writes to
    /dev/virtio-ports/udrv.report, `say` each step of ours; `stop` is asked twice a second whether
    to give up. With `terminal`, the command has this process's terminal instead.

    Raises `LabError` when the laboratory cannot be set up or the guest ended without a result,
    `LabTimeoutError` when a limit of `config` ran out. Faults in the kernel log raise nothing:
    they are in the result.
    """
    config = config or LabConfig()
    if not command:
        raise LabError("there is no command to run", mend="give one after --")
    qemu = find_qemu(config.qemu)
    kernel = resolve(config.kernel, say=say)
    accel = choose_accel(qemu, kernel, config.accel, icount=config.icount, say=say)
    out = config.out.absolute() if config.out else Path(tempfile.mkdtemp(prefix="udrv-lab-out-"))
    out.mkdir(parents=True, exist_ok=True)
    end_mark = f"\x01udrv-lab-end-{secrets.token_hex(8)}\x01"
    with ExitStack() as stack:
        folder = stack.enter_context(run_dir())
        devices = _place_devices(config, folder, stack)
        check_devices(qemu, devices)
        initramfs = folder / "initramfs"
        image.write(initramfs, image.build(
            kernel,
            command=_command_script(command, config.environment),
            devices=_device_file(kernel, accel, devices),
            settings=_settings(kernel, devices, "shell" if terminal else "run", end_mark),
        ))
        pairs = {name: socket.socketpair() for name in PORTS}
        for ours, theirs in pairs.values():
            stack.callback(ours.close)
            stack.callback(theirs.close)
        # The monitor and the guest's QMP port are the two ends of one pair, both QEMU's: no path.
        monitor = pairs["qmp"][0]
        machine = Machine(
            kernel=kernel, initramfs=initramfs, console=folder / "console.log", accel=accel,
            cpus=1 if config.icount else config.cpus, memory_mib=memory_mib(config.memory),
            devices=devices, out=out, ports={n: pairs[n][1].fileno() for n in PORTS},
            qmp=monitor.fileno(), iommu=config.iommu, icount=config.icount, terminal=terminal,
            shared_memory=config.shared_memory
            or any(isinstance(d.spec, VfioUserSpec) for d in devices),
            append=config.append,
        )
        argv = command_line(qemu, machine)
        say(f"booting {kernel.release} ({accel}, {machine.cpus} CPUs, {machine.memory_mib} MiB)")
        guest = stack.enter_context(_started(
            argv, qemu, ends={n: pairs[n][0] for n in PORTS if n != "qmp"},
            passed=[pairs[n][1] for n in PORTS] + [monitor], folder=folder, config=config,
            terminal=terminal,
        ))
        mark = end_mark.encode()
        status = guest.serve(
            {"out": MarkedStream(stdout, mark), "err": MarkedStream(stderr, mark)}, report, stop)
        guest.power_off()
        console = guest.console_text()
        finished = time.monotonic()
        boot = (guest.ready or finished) - guest.started
        total = finished - guest.started
    faults = tuple(kernel_log.scan(console.splitlines(), config.allow))
    say(f"status {status}; booted in {boot:.1f} s, {total:.1f} s in all")
    return LabResult(status, faults, console, out, accel, kernel.release, boot, total)


def to_stdout(data: bytes) -> None:
    """Write to this process's standard output, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def to_stderr(data: bytes) -> None:
    """Write to this process's standard error, at once."""
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
