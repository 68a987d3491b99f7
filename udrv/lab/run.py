# SPDX-License-Identifier: Apache-2.0
"""Boot the laboratory, run one command in it, and say how it went."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from udrv.errors import LabError
from udrv.lab import image, kernel_log
from udrv.lab.accel import choose_accel
from udrv.lab.cache import cache_dir, locked, run_dir
from udrv.lab.devices import (
    DEFAULT_DEVICES,
    DeviceSpec,
    MachineSpec,
    NvmeSpec,
    PlacedDevice,
    VfioUserSpec,
    place,
)
from udrv.lab.kernel import Kernel, resolve
from udrv.lab.newer_qemu import resolve_qemu
from udrv.lab.qemu import (
    PORTS,
    Machine,
    Qemu,
    check_devices,
    command_line,
    make_disks,
    memory_mib,
    plug_arguments,
    replug_is_whole,
)
from udrv.lab.soft import serving
from udrv.lab.soft_port import answer
from udrv.lab.vm import BootError, Guest, Limits, MarkedStream, Sink, started

GUEST_OUT = "/run/udrv-lab/out"
_BOOTS = 3

# What of the caller's environment means something in the guest. Not all of it: it would carry
# sockets and display names that lead nowhere, and secrets into a file.
_PASSED = frozenset(
    ("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TERM", "TZ", "COLUMNS", "VIRTUAL_ENV", "CI",
     "NO_COLOR", "FORCE_COLOR", "SOURCE_DATE_EPOCH")
)
_PASSED_PREFIXES = ("PYTHON", "UDRV_", "LC_", "PYTEST_", "HYPOTHESIS_", "ASAN_", "UBSAN_")
_NOT_PASSED = frozenset(("PYTEST_CURRENT_TEST",))

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
    `$UDRV_LAB_OUT`; `boot_seconds` until the command started, `seconds` in all (wall clock, of the
    last of `boots` boots)."""

    status: int
    faults: tuple[kernel_log.Fault, ...]
    console: str
    out: Path
    accel: str
    kernel: str
    boot_seconds: float
    seconds: float
    boots: int = 1


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
        if isinstance(spec, VfioUserSpec):
            entry["namespaces"] = _soft_namespaces(spec)
        else:
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


def _soft_namespaces(spec: VfioUserSpec) -> list[dict[str, object]]:
    if spec.soft is None:  # somebody else's device: what it has is not known
        return []
    return [
        {"nsid": nsid, "lba_size": ns.lba, "metadata": 0, "pi": 0, "zone_size": None,
         "size": Path(ns.file).stat().st_size if ns.size is None and ns.file else ns.size}
        for nsid, ns in enumerate(spec.soft.namespaces, 1)
    ]


def _settings(kernel: Kernel, devices: Sequence[PlacedDevice], mode: str, end: str) -> str:
    size = shutil.get_terminal_size()
    count = sum(len(_soft_namespaces(d.spec)) if isinstance(d.spec, VfioUserSpec)
                else len(d.nsids) for d in devices)
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


def _place_devices(
    config: LabConfig, specs: Sequence[MachineSpec], folder: Path, stack: ExitStack
) -> list[PlacedDevice]:
    disks = folder
    if config.keep_disks:
        disks = cache_dir() / "disks"
        disks.mkdir(exist_ok=True)
        stack.enter_context(locked(disks / "lock"))
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
    wanted = (*(DEFAULT_DEVICES if config.default_devices else ()), *config.devices)
    vfio_user = any(not isinstance(spec, NvmeSpec) for spec in wanted)
    qemu = resolve_qemu(config.qemu, vfio_user=vfio_user, say=say)
    kernel = resolve(config.kernel, say=say)
    accel = choose_accel(qemu, kernel, config.accel, icount=config.icount, say=say)
    out = config.out.absolute() if config.out else Path(tempfile.mkdtemp(prefix="udrv-lab-out-"))
    out.mkdir(parents=True, exist_ok=True)
    mark = f"\x01udrv-lab-end-{secrets.token_hex(8)}\x01"
    with ExitStack() as stack:
        folder = stack.enter_context(run_dir())
        specs, servers = stack.enter_context(serving(wanted, say))
        devices = _place_devices(config, specs, folder, stack)
        check_devices(qemu, devices)
        initramfs = folder / "initramfs"
        image.write(initramfs, image.build(
            kernel,
            command=_command_script(command, config.environment),
            devices=_device_file(kernel, accel, devices),
            settings=_settings(kernel, devices, "shell" if terminal else "run", mark),
        ))
        machine = Machine(
            kernel=kernel, initramfs=initramfs, console=folder / "console.log", accel=accel,
            cpus=1 if config.icount else config.cpus, memory_mib=memory_mib(config.memory),
            devices=devices, out=out, iommu=config.iommu, icount=config.icount,
            terminal=terminal, append=config.append,
            shared_memory=config.shared_memory or vfio_user,
        )
        for attempt in range(1, _BOOTS + 1):
            say(f"booting {kernel.release} "
                f"({accel}, {machine.cpus} CPUs, {machine.memory_mib} MiB)")
            streams = {"out": MarkedStream(stdout, mark.encode()),
                       "err": MarkedStream(stderr, mark.encode())}
            try:
                with _booted(qemu, machine, folder, config) as guest:
                    status = guest.serve(streams, report, stop, partial(answer, servers))
                    guest.power_off()
                    break
            except BootError as error:
                # QEMU before 8.1 may run a stale translation when one emulated CPU patches code
                # that another is about to run (fixed by its commit deba78709ae8), and kernels
                # patch themselves while they boot. Nothing of the command has run yet, so another
                # boot is safe; but a kernel under test is not to be excused.
                if attempt == _BOOTS or accel != "tcg" or config.kernel != "stock":
                    raise
                say(f"boot {attempt} of at most {_BOOTS} failed: {error}")
        console = guest.console_text()
        finished = time.monotonic()
    boot = (guest.ready or finished) - guest.started
    total = finished - guest.started
    faults = tuple(kernel_log.scan(console.splitlines(), config.allow))
    say(f"status {status}; booted in {boot:.1f} s, {total:.1f} s in all")
    return LabResult(status, faults, console, out, accel, kernel.release, boot, total, attempt)


@contextmanager
def _booted(qemu: Qemu, machine: Machine, folder: Path, config: LabConfig) -> Iterator[Guest]:
    """One boot of `machine`, with new ports and a new console."""
    machine.console.unlink(missing_ok=True)
    with ExitStack() as stack:
        pairs = {name: socket.socketpair() for name in PORTS}
        for ours, theirs in pairs.values():
            stack.callback(ours.close)
            stack.callback(theirs.close)
        # The monitor and the guest's QMP port are the two ends of one pair, both QEMU's: no path.
        monitor = pairs["qmp"][0]
        wired = replace(machine, ports={n: pairs[n][1].fileno() for n in PORTS},
                        qmp=monitor.fileno())
        yield stack.enter_context(started(
            command_line(qemu, wired), qemu,
            ends={n: pairs[n][0] for n in PORTS if n != "qmp"},
            passed=[pairs[n][1] for n in PORTS] + [monitor], folder=folder,
            limits=Limits(config.timeout, config.idle_timeout), terminal=machine.terminal,
        ))


def to_stdout(data: bytes) -> None:
    """Write to this process's standard output, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def to_stderr(data: bytes) -> None:
    """Write to this process's standard error, at once."""
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
