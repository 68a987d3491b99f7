# SPDX-License-Identifier: Apache-2.0
"""`--device soft:...`: our own controller as a PCI device of the guest.

Each is a process, `udrv soft serve` on a socket, that QEMU's `vfio-user-pci` is a client of. They
are started before QEMU and end after it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from udrv.errors import LabError
from udrv.lab.devices import DeviceSpec, MachineSpec, SoftSpec, VfioUserSpec
from udrv.soft.options import DEFAULT_SERIAL, SoftOptions

_START_LIMIT = 30.0
_STOP_LIMIT = 10.0


@dataclass
class SoftServer:
    """A controller's process. `killed` is set by `kill`: its end is then no failure."""

    options: SoftOptions
    socket: Path
    control: Path
    log: Path
    process: subprocess.Popen[bytes]
    killed: bool = field(default=False)

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace").strip()[-1000:]

    def kill(self) -> None:
        """SIGKILL, as if the device were pulled out in the middle of something."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it; `LabError` if it had ended before, and nobody had killed it."""
        status = self.process.poll()
        if status is None:
            self.process.terminate()
            try:
                status = self.process.wait(_STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise LabError(f"the controller of {self.socket.name} did not end when told to, "
                               f"and was killed; it said: {self.said()}") from None
        if status and not self.killed:
            raise LabError(f"the controller of {self.socket.name} ended by itself with status "
                           f"{status}; it said: {self.said()}")


def _start(options: SoftOptions, folder: Path, name: str) -> SoftServer:
    socket, log = folder / f"{name}.sock", folder / f"{name}.log"
    control = Path(options.control) if options.control else folder / f"{name}.control"
    options = replace(options, control=str(control))
    argv = [sys.executable, "-m", "udrv.cli.main", "soft", "serve", str(socket), str(options)]
    if shutil.which("setpriv"):  # it ends with us, whatever ends us
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   start_new_session=True)
    server = SoftServer(options, socket, control, log, process)
    deadline = time.monotonic() + _START_LIMIT
    while "ready:" not in server.said():
        if process.poll() is not None:
            raise LabError(f"the controller soft:?{options} did not start: {server.said()}",
                           mend="`udrv soft serve` takes the same options; docs/soft.md has them")
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise LabError(f"the controller soft:?{options} was not ready within "
                           f"{_START_LIMIT:g} s")
        time.sleep(0.02)
    return server


@contextmanager
def serving(
    specs: Sequence[DeviceSpec], say: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[list[MachineSpec], dict[int, SoftServer]]]:
    """Start the controller of each `SoftSpec`.

    Yields the devices with sockets in their place, and the servers by their index among `specs`.
    All end with the block; `LabError` if one had ended before (unless the block itself raised).
    """
    servers: dict[int, SoftServer] = {}
    placed: list[MachineSpec] = []
    with ExitStack() as stack:
        folder: Path | None = None
        for index, spec in enumerate(specs):
            if not isinstance(spec, SoftSpec):
                placed.append(spec)
                continue
            if folder is None:  # not in the cache: a socket's path has 107 characters at most
                folder = Path(stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="udrv-lab-soft-")))
            options = spec.options
            if options.serial == DEFAULT_SERIAL:  # two of one serial would be one subsystem
                options = replace(options, serial=f"UDRVLAB{index}")
            server = _start(options, folder, f"soft{index}")
            stack.callback(server.stop)
            servers[index] = server
            placed.append(VfioUserSpec(str(server.socket), server.options))
            say(f"soft{index} is a controller of our own, process {server.process.pid}")
        yield placed, servers
