# SPDX-License-Identifier: Apache-2.0
"""`udrv soft serve`: a software controller on a UNIX socket, for any vfio-user client."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from udrv.errors import (
    ControllerError,
    DeviceInUseError,
    DeviceNotFoundError,
    PermissionDeniedError,
    TargetError,
)
from udrv.soft._soft import ffi, lib
from udrv.soft.config import Config
from udrv.soft.options import SoftOptions, parse_options

if TYPE_CHECKING:
    from udrv.soft._soft import struct_udrv_soft

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Bytes of a path that others can connect to (unix(7)).
_SUN_PATH = 107
_LISTEN_BACKLOG = 8


def serve(
    socket_path: str | os.PathLike[str],
    options: str | SoftOptions = "",
    *,
    stop_fd: int | None = None,
    on_ready: Callable[[], None] | None = None,
    on_client_end: Callable[[str], None] | None = None,
) -> None:
    """Serve a controller on `socket_path`, one client at a time, until told to stop.

    Clients that connect while another is served wait for it to leave. Between two clients the
    controller is reset; its namespaces keep their data. SIGTERM and SIGINT end the call; with
    `stop_fd` (a descriptor that becomes readable) or outside of the main thread, no signal handler
    is touched. `on_ready` is called when clients can connect, `on_client_end` with the reason each
    time one left.

    The socket file is made with mode 600 and removed at the end. Raises `DeviceInUseError` if
    somebody listens on the path already, `TargetError` (not a socket, bad options, path too long),
    `DeviceNotFoundError` (no such directory), `PermissionDeniedError`.
    """
    path = Path(socket_path)
    if isinstance(options, str):
        options = parse_options(options)
    config = Config(options)
    try:
        with _controller(config) as controller, _listening(path) as listener:
            in_main = threading.current_thread() is threading.main_thread()
            with contextlib.ExitStack() as stack:
                if stop_fd is None:
                    stop_fd = stack.enter_context(_signals()) if in_main else -1
                if on_ready is not None:
                    on_ready()
                control_fd = config.struct.control_fd
                _accept_loop(controller, listener, stop_fd, control_fd, on_client_end)
    finally:
        config.close()


@contextlib.contextmanager
def _controller(config: Config) -> Iterator[struct_udrv_soft]:
    out = ffi.new("struct udrv_soft **")
    error = lib.udrv_soft_new(config.struct, out)
    if error:
        raise ControllerError(
            f"the controller cannot be made: {os.strerror(-error)}",
            state="starting",
            device="soft:",
        )
    try:
        yield out[0]
    finally:
        lib.udrv_soft_free(out[0])


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    name = f"vfio-user:{path}"
    _clear_the_way(path, name)
    if len(os.fsencode(path)) > _SUN_PATH:
        raise TargetError(
            f"{path} is too long for a socket", device=name,
            mend=f"use one of {_SUN_PATH} bytes at most",
        )  # fmt: skip
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceNotFoundError(
            f"there is no directory {path.parent}", device=name, mend="create it"
        ) from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # under another name until it listens: who sees the socket can connect to it
        hidden = f".udrv-{os.getpid()}-{threading.get_native_id()}"
        try:
            mask = os.umask(0o177)  # no moment in which others could connect
            try:
                listener.bind(f"/proc/self/fd/{folder}/{hidden}")
            finally:
                os.umask(mask)
            listener.listen(_LISTEN_BACKLOG)
            try:
                os.link(hidden, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.unlink(hidden, dir_fd=folder)
        except PermissionError as error:
            raise PermissionDeniedError(
                f"no socket can be made in {path.parent}",
                device=name,
                mend="write permission on that directory is needed",
            ) from error
        except FileExistsError as error:
            raise DeviceInUseError(
                f"{path} was taken while we looked", device=name, mend="choose another path"
            ) from error
        except OSError as error:
            raise TargetError(str(error), device=name, mend="use a shorter path") from error
        finally:
            os.close(folder)
        made = path.stat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                now = path.stat()
                if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                    path.unlink()


def _clear_the_way(path: Path, name: str) -> None:
    """Remove the socket of a server that is dead; refuse anything else that is in the way."""
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise TargetError(
                f"{path} exists and is not a socket", device=name, mend="choose another path"
            )
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue of clients is full: very much alive
        except PermissionError as error:
            raise PermissionDeniedError(
                f"{path} is there and cannot be tried", device=name, mend="choose another path"
            ) from error
        except OSError as error:
            raise TargetError(
                f"{path} is in the way ({error.strerror})", device=name, mend="choose another path"
            ) from error
    raise DeviceInUseError(
        f"a server listens on {path} already",
        reasons=("it accepts connections",),
        device=name,
        mend="end it, or choose another path",
    )


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable when a stop signal comes, also while C code runs."""
    ours, theirs = socket.socketpair()
    previous = {}
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        old_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            for number in _STOP_SIGNALS:
                # The handler has nothing to do: its being there is what writes to the socket.
                previous[number] = signal.signal(number, lambda _number, _frame: None)
            yield ours.fileno()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)


def _accept_loop(
    controller: struct_udrv_soft,
    listener: socket.socket,
    stop_fd: int,
    control_fd: int,
    on_client_end: Callable[[str], None] | None,
) -> None:
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    if stop_fd >= 0:
        poller.register(stop_fd, select.POLLIN)
    if control_fd >= 0:
        poller.register(control_fd, select.POLLIN)
    while True:
        ready = {fd for fd, _event in poller.poll()}
        if stop_fd in ready:
            return
        if control_fd in ready:
            lib.udrv_soft_control(controller)
        if listener.fileno() not in ready:
            continue
        client, _address = listener.accept()
        with client:
            status = lib.udrv_soft_run(controller, client.fileno(), stop_fd)
        if status == lib.UDRV_SOFT_STOPPED:
            return
        if on_client_end is not None:
            on_client_end("it closed" if status == 0 else os.strerror(-status))
