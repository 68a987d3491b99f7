"""The exception tree. Every error that this package raises on purpose is a `UdrvError`.

Each names the device, what was tried, and the mend: the reader of a traceback at three in the
morning needs nothing else. NVMe statuses have a class each in `udrv.nvme.status`, all of them
under `NvmeStatusError`.

Where Python has a built-in class of the same meaning (`PermissionError`, `ValueError`,
`TimeoutError`, ...), ours inherits from it too, so that code which knows nothing of udrv still
catches it.
"""

from __future__ import annotations

from collections.abc import Sequence


class UdrvError(Exception):
    """Base of all errors.

    Parameters
    ----------
    tried: what was attempted and how it failed, one sentence without a full stop.
    device: the target as the user named it ("pci:0000:01:00.0"), or None if none is involved.
    mend: what the user can do about it, or None if nothing is known.

    Attributes
    ----------
    maybe_done: the device may have carried out the command that failed, or a part of it. False is
        sure; True means that nobody knows.
    """

    maybe_done: bool = False

    def __init__(self, tried: str, *, device: str | None = None, mend: str | None = None) -> None:
        super().__init__(tried)
        self.tried = tried
        self.device = device
        self.mend = mend

    def __str__(self) -> str:
        colon = " " if (self.device or "").endswith(":") else ": "  # "soft:" has one already
        where = f"{self.device}{colon}" if self.device else ""
        mend = f": {self.mend}" if self.mend else ""
        return f"{where}{self.tried}{mend}"


# --- finding and opening a device ------------------------------------------------------------


class TargetError(UdrvError, ValueError):
    """The target string is not one that `udrv.open` knows."""


class DeviceNotFoundError(UdrvError, FileNotFoundError):
    """No such device, socket or namespace."""


class PermissionDeniedError(UdrvError, PermissionError):
    """A file or an operation is not permitted; the message names which file and which group."""


class NoIommuError(UdrvError):
    """The device has no IOMMU group: VFIO cannot protect memory from it."""


class GroupNotViableError(UdrvError):
    """Another device of the IOMMU group is bound to a host driver.

    `members` holds (bdf, driver or None) of each of the others.
    """

    def __init__(
        self,
        tried: str,
        *,
        members: Sequence[tuple[str, str | None]] = (),
        device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.members = tuple(members)


class MemlockError(UdrvError, MemoryError):
    """RLIMIT_MEMLOCK is too low. `needed` and `limit` are bytes."""

    def __init__(
        self, tried: str, *, needed: int, limit: int, device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.needed = needed
        self.limit = limit


class DeviceInUseError(UdrvError):
    """The device is mounted, held, swapped on, open elsewhere, or carries data signatures.

    `reasons` lists each fact found.
    """

    def __init__(
        self, tried: str, *, reasons: Sequence[str] = (), device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.reasons = tuple(reasons)


class DriverBindError(UdrvError):
    """The kernel did not bind or unbind a driver."""


class UnsupportedOnTransport(UdrvError):  # noqa: N818 - no fault, a boundary: its name says of what
    """This transport cannot carry what was asked for."""


class VfioError(UdrvError, OSError):
    """A VFIO call failed for a reason that has no class of its own; `errno` is kept."""

    def __init__(
        self, tried: str, *, errno: int | None = None, device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.errno = errno


class VfioUserProtocolError(UdrvError, ConnectionError):
    """The peer is not a vfio-user server, or broke the protocol."""


# --- io_uring ----------------------------------------------------------------------------------


class UringNotBuiltError(UdrvError, ImportError):
    """udrv was built without liburing: `udrv.rings` has nothing to work with."""


class UringDisabledError(UdrvError, PermissionError):
    """io_uring is switched off here. `reason` is "sysctl", "seccomp" or "unknown"."""

    def __init__(
        self, tried: str, *, reason: str, device: str | None = None, mend: str | None = None
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.reason = reason


class UringUnsupportedError(UdrvError):
    """The running kernel is too old for an operation or a flag of io_uring, or has no io_uring.

    `needs` is the first release that has it ("6.1"), or None if that is not known.
    """

    def __init__(
        self, tried: str, *, needs: str | None = None, device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.needs = needs


class UringError(UdrvError, OSError):
    """io_uring failed for a reason that has no class of its own; `errno` is kept."""

    def __init__(
        self, tried: str, *, errno: int | None = None, device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.errno = errno


# --- memory ------------------------------------------------------------------------------------


class DmaMemoryError(UdrvError, MemoryError):
    """DMA memory cannot be had: no IOVA left, no memory, or the kernel refused the map."""


class BufferInUseError(UdrvError):
    """Memory that a command in flight (or a live view) still uses cannot be freed now."""


# --- the controller ----------------------------------------------------------------------------


class ControllerError(UdrvError):
    """The controller misbehaved; `state` names the state it was in."""

    def __init__(
        self, tried: str, *, state: str | None = None, device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.state = state


class ControllerTimeoutError(ControllerError, TimeoutError):
    """The controller did not change state within its own limit (CAP.TO)."""


class ControllerFatalError(ControllerError):
    """CSTS.CFS is set, or resets do not help: the controller gave up."""

    maybe_done = True


class ControllerStateError(ControllerError):
    """The call does not fit the state that the controller is in."""


class DeviceGoneError(ControllerError):
    """Registers and configuration space read all ones: removed, unplugged or dead."""

    maybe_done = True


class CommandTimeoutError(UdrvError, TimeoutError):
    """A command did not complete in time; its buffer stays in quarantine (docs/architecture.md)."""

    maybe_done = True


# --- what the caller got wrong -------------------------------------------------------------------


class InvalidRequestError(UdrvError, ValueError):
    """Refused before it reached the device."""


class LbaRangeError(InvalidRequestError):
    """The blocks lie (in part) outside of the namespace."""


class AlignmentError(InvalidRequestError):
    """A length or an address is not a multiple of what the device needs."""


class BufferTooSmallError(InvalidRequestError):
    """The buffer is shorter than the transfer."""


class TransferTooLargeError(InvalidRequestError):
    """One command is larger than MDTS, or the driver's own limit, allows."""


class BufferTypeError(UdrvError, TypeError):
    """Not DMA memory, not contiguous, read-only, or of a wrong dtype."""


class ConfirmationRequiredError(UdrvError):
    """A destructive call without `--i-mean SERIAL:NSID` (or with another device's)."""


class ClosedError(UdrvError, ValueError):
    """The object, or what owns it, was closed."""


class ForkedError(UdrvError, RuntimeError):
    """The object belongs to the parent process; a forked child must open its own."""


class QueueBusyError(UdrvError, RuntimeError):
    """Another thread is inside this queue: a queue has one owner at a time."""


class QueueFullError(UdrvError):
    """No free command slot; reap completions first."""


# --- what the device answered --------------------------------------------------------------------


class NvmeStatusError(UdrvError):
    """A command completed with an error status (NVMe base specification, "Status Field").

    Attributes
    ----------
    sct: Status Code Type, 0 to 7.        sc: Status Code, 0 to 255.
    crd: Command Retry Delay index, 0 to 3.
    more: more information is in the Error Information log.
    dnr: Do Not Retry.
    command: a description of the command ("read nsid=1 slba=0 nlb=8").
    qid: the queue it was submitted on; 0 is the admin queue.
    result: Dword 0 of the completion.
    """

    def __init__(
        self,
        tried: str,
        *,
        sct: int,
        sc: int,
        crd: int = 0,
        more: bool = False,
        dnr: bool = False,
        command: str = "",
        qid: int = 0,
        result: int = 0,
        device: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.sct = sct
        self.sc = sc
        self.crd = crd
        self.more = more
        self.dnr = dnr
        self.command = command
        self.qid = qid
        self.result = result


class KernelIoError(UdrvError, OSError):
    """The kernel's driver did not carry a command out: no status of the device, but an errno.

    Attributes
    ----------
    errno: of the kernel.     command: a description ("read nsid=1 slba=0 nlb=8").
    qid: the queue it was submitted on; 0 for an admin command.
    """

    maybe_done = True

    def __init__(
        self, tried: str, *, errno: int, command: str = "", qid: int = 0,
        device: str | None = None, mend: str | None = None,
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.errno = errno
        self.command = command
        self.qid = qid


class DataMismatchError(UdrvError):
    """Data that was read is not what was written. `lba` is the first block that differs."""

    def __init__(
        self, tried: str, *, lba: int, device: str | None = None, mend: str | None = None
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.lba = lba


# --- tools beside us -----------------------------------------------------------------------------


class MissingToolError(UdrvError):
    """A program or a Python package that this needs is not installed."""


class ToolFailedError(UdrvError):
    """A program that this runs (fio) failed; the message holds what it said."""


class ResultFileError(UdrvError, ValueError):
    """A file does not hold what a benchmark wrote; the message names the place in it."""


class FaultScriptError(UdrvError, ValueError):
    """A script of faults is not valid. `place` says where ("fault 2, scope.lba")."""

    def __init__(
        self, tried: str, *, place: str, device: str | None = None, mend: str | None = None
    ) -> None:
        super().__init__(tried, device=device, mend=mend)
        self.place = place


# --- the completion stream -----------------------------------------------------------------------


class StreamError(UdrvError):
    """There is no stream here, or not one of this version, or it cannot be had as asked for."""


class StreamBusyError(StreamError):
    """Another consumer takes the records of this stream: there can be one."""


class ViewsAliveError(UdrvError, BufferError):
    """Memory of the stream cannot be given back while arrays show it."""


# --- detectors -----------------------------------------------------------------------------------


class DetectorError(UdrvError, ValueError):
    """A detector, or what it was given or said, is not as `udrv.ml.detector` has it."""


class VerdictError(UdrvError, ValueError):
    """This is no verdict: the message names the field."""


class DataSetError(UdrvError, ValueError):
    """A data set or a recording cannot be read, or is not what it is named."""


# --- the laboratory ------------------------------------------------------------------------------


class LabError(UdrvError):
    """The laboratory could not be set up, did not boot, or its kernel reported a fault."""
