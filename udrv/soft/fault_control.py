# SPDX-License-Identifier: Apache-2.0
"""The faults of a controller that runs: read, added to, replaced, cleared."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from udrv.errors import (
    ControllerError,
    DeviceInUseError,
    DeviceNotFoundError,
    FaultScriptError,
    PermissionDeniedError,
    TargetError,
)
from udrv.soft._soft import ffi, lib
from udrv.soft.fault_table import pack_fault, unpack_fault
from udrv.soft.faults import MAX_FAULTS, Fault

#: A controller answers between two passes over its queues.
ANSWER_TIMEOUT_S = 10.0

_HEAD = ffi.sizeof("struct udrv_control")
_STATUS = ffi.sizeof("struct udrv_fault_status")
_FAULT_AT = ffi.offsetof("struct udrv_fault_status", "fault")
_MOST = _HEAD + MAX_FAULTS * _STATUS

_ERRORS = {
    errno.ENOSPC: f"a controller holds {MAX_FAULTS} faults",
    errno.ENODATA: "the effect needs a model, and the controller was started without one",
    errno.ENOENT: "no fault of that id is loaded",
    errno.EINVAL: "the controller does not take it",
}


@dataclass(frozen=True, slots=True)
class LoadedFault:
    """A fault of a running controller: how often it matched, and how often it had its effect."""

    id: int
    fault: Fault
    matched: int
    applied: int


class FaultControl:
    """Requests to one controller; a context manager. Its methods may be called by any thread.

    All raise `ControllerError` if the controller does not answer, or sends what is no answer.
    """

    def __init__(self, sock: socket.socket, device: str) -> None:
        self._sock = sock
        self._device = device
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, path: str | os.PathLike[str]) -> Self:
        """A controller that was started with `control=path`.

        Raises `DeviceNotFoundError`, `PermissionDeniedError` or `TargetError`.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.bind("")  # a name of its own, for the answers
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            name = f"soft:{os.fspath(path)}"
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                raise DeviceNotFoundError(
                    "no controller listens there", device=name,
                    mend="start one with control=PATH",
                ) from error
            if isinstance(error, PermissionError):
                raise PermissionDeniedError(
                    "the control socket may not be used", device=name,
                    mend="become the user who started the controller",
                ) from error
            raise TargetError(f"no control socket: {error.strerror}", device=name) from error
        return cls(sock, f"soft:{os.fspath(path)}")

    def add(self, *faults: Fault) -> list[int]:
        """Load faults, all at once or none. Returns their ids. Raises `FaultScriptError`."""
        return self._load(lib.UDRV_CONTROL_ADD, faults)

    def replace(self, *faults: Fault) -> list[int]:
        """Likewise, in place of those that are loaded, with nothing in between."""
        return self._load(lib.UDRV_CONTROL_REPLACE, faults)

    def clear(self, fault_id: int | None = None) -> None:
        """Unload one fault, or all. What it delayed already is still late."""
        if fault_id is not None and not 1 <= fault_id < 1 << 32:
            raise FaultScriptError(f"{fault_id} is no id", place="id", device=self._device)
        self._ask(lib.UDRV_CONTROL_CLEAR, fault_id=fault_id or 0)

    def loaded(self) -> list[LoadedFault]:
        """The faults that are loaded, with their counters."""
        head, body = self._ask(lib.UDRV_CONTROL_LIST)
        if len(body) != head.count * _STATUS:
            raise self._nonsense(f"{head.count} faults in {len(body)} bytes")
        loaded = []
        for at in range(0, len(body), _STATUS):
            raw: Any = ffi.from_buffer("struct udrv_fault_status *", body[at : at + _STATUS])
            try:
                fault = unpack_fault(body[at + _FAULT_AT : at + _STATUS])
            except FaultScriptError as error:
                raise self._nonsense(f"a fault that cannot be ({error.tried})") from error
            loaded.append(LoadedFault(raw.id, fault, raw.matched, raw.applied))
        return loaded

    def sync(self) -> None:
        """Write the ground truth to its file, up to now."""
        self._ask(lib.UDRV_CONTROL_SYNC)

    def close(self) -> None:
        """Close the socket; the faults stay. Idempotent."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _nonsense(self, what: str) -> ControllerError:
        return ControllerError(
            f"the control socket's other end sent {what}", device=self._device,
            mend="is it a controller of this version?",
        )

    def _load(self, op: int, faults: Iterable[Fault]) -> list[int]:
        packed = [pack_fault(one) for one in faults]
        head, _ = self._ask(op, payload=b"".join(packed), count=len(packed))
        return [*range(head.id, head.id + len(packed))]

    def _ask(
        self, op: int, *, payload: bytes = b"", count: int = 0, fault_id: int = 0
    ) -> tuple[Any, bytes]:
        request: Any = ffi.new("struct udrv_control *")
        request.magic, request.version = lib.UDRV_FAULT_MAGIC, lib.UDRV_FAULT_VERSION
        request.op, request.count, request.id = op, count, fault_id
        with self._lock:
            try:
                self._sock.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    while True:  # an answer that somebody did not wait for
                        self._sock.recv(_MOST)
                self._sock.settimeout(ANSWER_TIMEOUT_S)
                self._sock.send(bytes(ffi.buffer(request)) + payload)
                answer = self._sock.recv(_MOST)
            except OSError as error:  # TimeoutError is one
                raise ControllerError(
                    f"the controller does not answer: {error.strerror or error}",
                    device=self._device, mend="does it still run?",
                ) from error
        head: Any = ffi.new("struct udrv_control *")
        ffi.memmove(head, answer, min(len(answer), _HEAD))
        if (head.magic, head.version) != (lib.UDRV_FAULT_MAGIC, lib.UDRV_FAULT_VERSION):
            raise self._nonsense(f"{len(answer)} bytes that are no answer")
        if head.error:
            why = _ERRORS.get(head.error, os.strerror(head.error))
            place = f"fault {head.id + 1}" if head.error in (errno.EINVAL, errno.ENODATA) else "id"
            raise FaultScriptError(f"{place}: {why}", place=place, device=self._device)
        return head, answer[_HEAD:]


def bind_control(path: str | os.PathLike[str]) -> socket.socket:
    """A control socket, mode 600. Its file is the caller's to remove.

    Raises `DeviceInUseError` if a controller listens there, and `TargetError` or
    `DeviceNotFoundError` if it cannot be made.
    """
    path = Path(path)
    name = f"soft:?control={path}"
    if path.is_socket():
        try:
            FaultControl.connect(path).close()
        except DeviceNotFoundError:
            path.unlink()
        else:
            raise DeviceInUseError(
                f"a controller listens on {path} already", device=name, mend="choose another path"
            )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except FileNotFoundError as error:
        sock.close()
        raise DeviceNotFoundError(
            f"there is no directory {path.parent}", device=name, mend="create it"
        ) from error
    except OSError as error:
        sock.close()
        raise TargetError(
            f"no control socket can be made: {error.strerror or error}", device=name,
            mend="choose another path",
        ) from error
    finally:
        os.umask(mask)
    return sock
