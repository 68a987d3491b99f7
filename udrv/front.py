"""The front door: from a target string to a `Controller`.

| target | transport |
| --- | --- |
| `pci:0000:01:00.0` | a PCI function bound to vfio-pci |
| `vfio-user:/run/nvme.sock` | a controller served by another process |
| `soft:?size=1G&lba=4096` | our software controller, in a child process |
| `/dev/ng0n1`, `/dev/nvme0` | the kernel's driver: io_uring passthrough to one namespace, to all |
| `/dev/nvme0n1` | the kernel's driver: io_uring on the block device |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from udrv import pci
from udrv.errors import TargetError
from udrv.memory import Ledger
from udrv.nvme.controller import DEFAULT_ENTRIES, DEFAULT_QUEUES, Controller
from udrv.nvme.timeouts import Timeouts
from udrv.vfio.device import Device

_Opener = Callable[[str, bool, ExitStack], Device]


def _open_pci(rest: str, bind: bool, resources: ExitStack) -> Device:
    from udrv.vfio.kernel import open_vfio

    if bind:
        resources.enter_context(pci.bound(rest))
    return open_vfio(rest)


def _open_vfio_user(rest: str, bind: bool, resources: ExitStack) -> Device:
    from udrv.vfio.user import connect

    if not rest:
        raise TargetError("vfio-user: needs the path of a socket", mend="vfio-user:/run/nvme.sock")
    return connect(rest)


def _open_soft(rest: str, bind: bool, resources: ExitStack) -> Device:
    from udrv import soft
    from udrv.vfio.user import from_socket

    process = resources.enter_context(soft.start(rest.removeprefix("?")))
    return from_socket(process.socket, f"soft:{rest}")


def _open_kernel(target: str, ledger: Ledger | None, **how: Any) -> Controller:
    from udrv.nvme.kernel import open_kernel

    return Controller(open_kernel(target, ledger=ledger), **how)


_SCHEMES: dict[str, _Opener] = {
    "pci": _open_pci,
    "vfio-user": _open_vfio_user,
    "soft": _open_soft,
}


def open(
    target: str,
    *,
    bind: bool = False,
    queues: int = DEFAULT_QUEUES,
    entries: int = DEFAULT_ENTRIES,
    interrupts: bool = True,
    wait: str = "poll",
    ledger: Ledger | None = None,
    shadow_doorbells: bool = True,
    timeouts: Timeouts | None = None,
    recover: bool = True,
    stream: bool | Mapping[str, Any] = False,
) -> Controller:
    """Open a controller and bring it to the state ready.

    Parameters
    ----------
    target: one of

        pci:0000:01:00.0            a PCI function bound to vfio-pci (or see `bind`)
        vfio-user:/run/nvme.sock    a controller that another process serves
        /dev/ng0n1                  a namespace that the kernel drives, by io_uring passthrough;
                                    /dev/ng0n1?iopoll=1 polls the device in the kernel
        /dev/nvme0                  all namespaces of such a controller, likewise
        /dev/nvme0n1                such a namespace as a block device, where passthrough is not
                                    permitted
        soft:?size=1G&lba=4096      a software controller of its own, in a child process; `soft:`
                                    alone has 1 GiB in blocks of 4096 bytes, and
                                    `help(udrv.soft.options)` lists all options
    bind: for `pci:`, bind the function to vfio-pci for the life of the controller, if nothing
        speaks against it (a mount, a holder, a signature, another member of the IOMMU group). The
        old driver gets it back on close, after an exception, and after a SIGKILL.
    queues: I/O queues to ask for, 1 to 65535.
    entries: default slots of a queue, 2 to 65535.
    interrupts: arm MSI-X, so that queues with interrupts can be made.
    wait: how blocking calls wait for their commands: "poll" (a CPU is busy meanwhile), "interrupt"
        (asleep) or "hybrid" (poll for as long as the waits before make worth while, then sleep).
        The latter two need an interrupt: where the device has none, the first blocking call
        raises `UnsupportedOnTransport`.
    ledger: is told of DMA memory before it is mapped.
    shadow_doorbells: where the controller has Doorbell Buffer Config, tell it of commands through
        memory, and write its registers only when it asks for that.
    timeouts: seconds that commands may take, by the class of their opcode.
    recover: what is overdue is aborted, and if that does not help the controller is reset and its
        queues are made again (docs/recovery.md). Both: not where the kernel drives the controller.
    stream: True, or parameters of `Controller.stream`: have all queues tell of their completions,
        from the start (docs/stream.md).

    Raises `TargetError`, `DeviceNotFoundError`, `PermissionDeniedError`, `NoIommuError`,
    `GroupNotViableError`, `DeviceInUseError`, `MemlockError`, `VfioUserProtocolError`,
    `UringNotBuiltError`, `UringDisabledError`, `UringUnsupportedError`, `UnsupportedOnTransport`,
    `ControllerError` and its kin; all are `UdrvError`s.
    """
    if not isinstance(target, str):
        raise TargetError(
            f"a {type(target).__name__} is no target", mend="targets are text: str(...) of a path"
        )
    if target.startswith("/"):
        if bind:
            raise TargetError(f"bind=True fits pci: targets only, not {target!r}")
        return _streamed(
            _open_kernel(
                target, ledger, queues=queues, entries=entries, interrupts=interrupts, wait=wait
            ),
            stream,
        )
    scheme, colon, rest = target.partition(":")
    opener = _SCHEMES.get(scheme) if colon else None
    if opener is None:
        raise TargetError(
            f"{target!r} is no target",
            mend="write pci:0000:01:00.0, /dev/ng0n1, /dev/nvme0, /dev/nvme0n1, "
            "vfio-user:/path/to.sock or soft:?size=1G",
        )
    if bind and scheme != "pci":
        raise TargetError(f"bind=True fits pci: targets only, not {target!r}")
    with ExitStack() as resources:
        device = opener(rest, bind, resources)
        # the controller owns the device at once, also if its constructor raises; what is below the
        # device (a child process, a binding) it takes over by the same token
        ctrl = Controller(
            device,
            queues=queues,
            entries=entries,
            interrupts=interrupts,
            wait=wait,
            check_memlock=device.transport == "vfio",
            ledger=ledger,
            shadow_doorbells=shadow_doorbells,
            timeouts=timeouts,
            recover=recover,
            resources=resources.pop_all(),
        )
    return _streamed(ctrl, stream)


def _streamed(ctrl: Controller, stream: bool | Mapping[str, Any]) -> Controller:
    """With its stream on, if that was asked for; closed if that fails."""
    if stream is not False:
        try:
            ctrl.stream(**({} if stream is True else stream))
        except BaseException:
            ctrl.close()
            raise
    return ctrl


def discover() -> list[str]:
    """Targets of all NVMe functions of this machine ("pci:0000:01:00.0"), in address order."""
    return [f"pci:{function.bdf}" for function in pci.functions() if function.is_nvme]
