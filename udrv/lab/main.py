# SPDX-License-Identifier: Apache-2.0
"""The command `udrv-lab`."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from udrv import stdio
from udrv._version import __version__
from udrv.errors import LabError
from udrv.lab import kernel as kernels
from udrv.lab import newer_qemu
from udrv.lab import run as runs
from udrv.lab.devices import DeviceSpec, parse_device
from udrv.lab.qemu import find_qemu
from udrv.lab.vm import LabTimeoutError
from udrv.program import Debug

KERNEL_FAULT = 123
TIMED_OUT = 124
LAB_FAILED = 125

app = typer.Typer(
    name="udrv-lab",
    help="A real kernel in QEMU, with an IOMMU and NVMe controllers, on this machine's own root "
    "file system (read-only, under an overlay).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)



def _version(wanted: bool) -> None:
    if wanted:
        print(f"udrv-lab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        # the errors are caught where their exit statuses are, outside of typer: see _main()
        ctx.call_on_close(_show_traceback)


def _show_traceback() -> None:
    if sys.exc_info()[0] not in (None, typer.Exit, SystemExit):
        traceback.print_exc()


Cpus = Annotated[int, typer.Option(min=1, max=255, help="Virtual CPUs.")]
Memory = Annotated[str, typer.Option(help="Guest memory, e.g. 2048M or 4G.")]
Accel = Annotated[str, typer.Option(help="auto (KVM if it is proved to work), kvm or tcg.")]
KernelOption = Annotated[
    str, typer.Option(help="stock, a kernel image, or a directory with boot/ and lib/modules/.")
]
Device = Annotated[
    list[str] | None,
    typer.Option("--device", help="One more device: nvme,serial=S,ns=512:1G+4096:512M,zns,..., "
                 "soft:?OPTIONS (our own controller) or vfio-user:SOCKET. May be given several "
                 "times."),
]
NoDefaults = Annotated[
    bool, typer.Option("--no-default-devices", help="Only the devices of --device.")
]
KeepDisks = Annotated[
    bool, typer.Option("--keep-disks", help="Disks keep their content from run to run.")
]
QemuOption = Annotated[
    str | None,
    typer.Option(help="Another QEMU: its path, the root directory that it is installed in, or "
                 "fetched: that of fetch-qemu."),
]
Append = Annotated[str, typer.Option(help="More kernel parameters.")]
NoIommu = Annotated[bool, typer.Option("--no-iommu", help="A machine without an IOMMU.")]
SharedMemory = Annotated[
    bool, typer.Option("--shared-memory", help="Guest memory in a memfd that peers can map.")
]
Icount = Annotated[
    bool,
    typer.Option("--icount", help="The clock counts instructions: one CPU, single-threaded TCG."),
]
Out = Annotated[
    Path | None, typer.Option(help="The directory that is $UDRV_LAB_OUT in the guest.")
]
Env = Annotated[
    list[str] | None, typer.Option("--env", help="NAME=VALUE for the command. Repeatable.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Regular expression of kernel lines that are no fault."),
]


def _say(text: str) -> None:
    print(f"udrv-lab: {text}", file=sys.stderr, flush=True)


def _environment(pairs: list[str] | None) -> dict[str, str]:
    result = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise LabError(f"--env {pair!r}: not NAME=VALUE")
        result[name] = value
    return result


def _patterns(texts: list[str] | None) -> tuple[str, ...]:
    for text in texts or ():
        try:
            re.compile(text)
        except re.error as error:
            raise LabError(
                f"--allow {text!r} is no regular expression: {error}", mend="escape it with \\"
            ) from error
    return tuple(texts or ())


def _devices(texts: list[str] | None) -> tuple[DeviceSpec, ...]:
    return tuple(parse_device(text) for text in texts or ())


def _finish(result: runs.LabResult, out: Path | None) -> int:
    if out is None:
        try:
            result.out.rmdir()
        except OSError:  # not empty: the command left something
            _say(f"results are in {result.out}")
    if result.faults:
        _say("THE KERNEL LOG HOLDS FAULTS:")
        print(result.console, file=sys.stderr)
        for fault in result.faults:
            _say(f"fault: {fault.text}")
        _say(f"the command's own status was {result.status}")
        return KERNEL_FAULT
    return result.status


@app.command(context_settings={"allow_interspersed_args": False})
def run(  # noqa: PLR0917 - the command line's options
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run, after --.")],
    cpus: Cpus = 2,
    memory: Memory = "2048M",
    accel: Accel = "auto",
    kernel: KernelOption = "stock",
    timeout: Annotated[
        float, typer.Option(min=0, help="Wall-clock limit in seconds; 0 for none.")
    ] = 1500,
    device: Device = None,
    no_default_devices: NoDefaults = False,
    keep_disks: KeepDisks = False,
    icount: Icount = False,
    qemu: QemuOption = None,
    append: Append = "",
    no_iommu: NoIommu = False,
    shared_memory: SharedMemory = False,
    out: Out = None,
    env: Env = None,
    allow: Allow = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No lines of our own.")] = False,
) -> None:
    """Run COMMAND in a freshly booted guest, in this directory; exit with its status.

    Other statuses: 123 the kernel log holds a fault, 124 the time limit ran out, 125 the
    laboratory itself failed.
    """
    config = runs.LabConfig(
        cpus=cpus, memory=memory, accel=accel, kernel=kernel, timeout=timeout or None,
        devices=_devices(device), default_devices=not no_default_devices, keep_disks=keep_disks,
        icount=icount, qemu=qemu, append=append, iommu=not no_iommu, shared_memory=shared_memory,
        out=out, environment=_environment(env), allow=_patterns(allow),
    )
    result = runs.run(command, config, stdout=runs.to_stdout, stderr=runs.to_stderr,
                      say=(lambda _: None) if quiet else _say)
    raise typer.Exit(_finish(result, out))


@app.command()
def shell(  # noqa: PLR0917 - the command line's options
    cpus: Cpus = 2,
    memory: Memory = "2048M",
    accel: Accel = "auto",
    kernel: KernelOption = "stock",
    device: Device = None,
    no_default_devices: NoDefaults = False,
    keep_disks: KeepDisks = False,
    qemu: QemuOption = None,
    append: Append = "",
    no_iommu: NoIommu = False,
    shared_memory: SharedMemory = False,
    out: Out = None,
    env: Env = None,
    allow: Allow = None,
) -> None:
    """An interactive shell in a guest; leaving it switches the guest off."""
    if not sys.stdin.isatty():
        raise LabError("a shell needs a terminal", mend="udrv-lab run -- COMMAND needs none")
    config = runs.LabConfig(
        cpus=cpus, memory=memory, accel=accel, kernel=kernel, timeout=None,
        devices=_devices(device), default_devices=not no_default_devices, keep_disks=keep_disks,
        qemu=qemu, append=append, iommu=not no_iommu, shared_memory=shared_memory, out=out,
        environment={"PS1": "(lab) # ", **_environment(env)}, allow=_patterns(allow),
    )
    # Without the user's start files: the environment is passed on already, and what they start
    # costs half a minute under emulation.
    login = ["/bin/bash", "--norc"] if Path("/bin/bash").exists() else ["/bin/sh"]
    result = runs.run([*login, "-i"], config, say=_say, terminal=True)
    raise typer.Exit(_finish(result, out))


@app.command()
def fetch(
    refresh: Annotated[bool, typer.Option("--refresh", help="Even if the cache has one.")] = False,
) -> None:
    """Put the stock kernel into the cache; nothing is installed."""
    kernel = kernels.fetch(refresh=refresh, say=_say)
    _say(f"kernel {kernel.release} is in {kernel.image.parent.parent}")


@app.command("fetch-qemu")
def fetch_qemu(
    refresh: Annotated[bool, typer.Option("--refresh", help="Even if the cache has one.")] = False,
    mirror: Annotated[
        str | None, typer.Option(help="The Debian archive; by default the machine's own mirror.")
    ] = None,
) -> None:
    """Put a QEMU with vfio-user-pci into the cache, for soft: and vfio-user: devices.

    It is Debian's, from the backports; nothing is installed, and no privilege is needed.
    """
    root = newer_qemu.fetch_qemu(refresh=refresh, mirror=mirror, say=_say)
    _say(f"{find_qemu(str(root)).version} is in {root}")


def main() -> None:
    """Entry point: errors as one message and a status, not as a traceback."""
    stdio.run("udrv-lab", _main)


def _main() -> None:
    try:
        app()
    except LabTimeoutError as error:
        _say(str(error))
        sys.exit(TIMED_OUT)
    except (LabError, OSError) as error:  # OSError: a disk too large, an --out in the way
        _say(str(error))
        sys.exit(LAB_FAILED)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
