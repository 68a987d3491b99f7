# SPDX-License-Identifier: Apache-2.0
"""A binding that ends with its owner: on close, on an exception, and on the owner's death.

SIGKILL leaves a process no chance to clean up, so another one does it. `udrv.pci.watcher` is
started and ready *before* the binding is made, and waits on a pidfd: unlike a pipe's end of file
that is not kept open by a forked child, and unlike a process id it cannot be reused.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

from udrv.errors import DeviceNotFoundError, DriverBindError
from udrv.pci import watcher
from udrv.pci.bind import VFIO_DRIVER, binding, locked, plan_bind, undo, wait_until_released
from udrv.pci.host import HOST, Host
from udrv.pci.sysfs import function

#: Seconds within which the watcher must be ready; an emulated CPU needs several.
_START_LIMIT = 60.0


class ScopedBinding:
    """Holds a function on VFIO until `close`. Made by `bound`; a context manager.

    A function that was on VFIO before stays there: only what this object changed is undone.
    Close the device before its binding. In a forked child `close` does nothing.
    """

    def __init__(self, bdf: str, *, driver: str, force: bool, host: Host) -> None:
        self._host = host
        self._owner = os.getpid()
        self._watcher: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._token = secrets.token_hex(8)
        plan = plan_bind(bdf, driver=driver, host=host)
        self.bdf = plan.function.bdf
        plan.check(force=force)  # a refusal costs no process
        if not plan.steps:
            return
        try:
            self._start_watcher()
            if not plan.execute(force=force, scoped=True, token=self._token):
                self._release_watcher()
        except BaseException:
            self.close()  # the bind undoes itself, but a Ctrl-C may come just after it
            raise

    @property
    def active(self) -> bool:
        """Whether there is something to undo."""
        return self._watcher is not None

    def close(self) -> None:
        """Put the function's driver back; idempotent.

        Raises `DeviceInUseError` if the device is still open (close it, then call this again;
        the watcher stays on guard), `DriverBindError` if the kernel does not do it.
        """
        if self._watcher is None or os.getpid() != self._owner:
            return
        with locked(self.bdf, host=self._host):
            record = binding(self.bdf, host=self._host)
            if record is not None and record.token == self._token:
                try:
                    found = function(self.bdf, host=self._host)
                except DeviceNotFoundError:  # unplugged: only the record is left
                    watcher_record = watcher.record_path(str(self._host.root), self.bdf)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(watcher_record)  # noqa: PTH108
                else:
                    wait_until_released(found, wait=0.0, host=self._host)
                    undo(found, record, host=self._host)
        self._release_watcher()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _start_watcher(self) -> None:
        target = f"pci:{self.bdf}"
        if not sys.executable:
            raise DriverBindError(
                "a scoped binding needs a watcher process, and sys.executable is empty",
                device=target, mend=f"bind it beforehand: udrv bind {self.bdf}",
            )
        ours, theirs = socket.socketpair()
        pidfd = os.pidfd_open(self._owner)
        try:
            self._watcher = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", watcher.__file__, str(self._host.root),
                    self.bdf, self._token, str(pidfd), str(theirs.fileno()),
                ],
                pass_fds=(pidfd, theirs.fileno()),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                # Not in our session: the terminal's signals and a kill of our process group
                # must not take the watcher with us.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise DriverBindError(
                f"the watcher process did not start: {error}", device=target,
                mend=f"bind it beforehand: udrv bind {self.bdf}",
            ) from error
        finally:
            os.close(pidfd)
            theirs.close()
        self._control = ours
        # A dead watcher shows as end of file, which poll() reports as readable too.
        ready, _, _ = select.select([ours], [], [], _START_LIMIT)
        if not ready or ours.recv(1) != b"R":
            self._watcher.kill()
            self._release_watcher()
            raise DriverBindError(
                "the watcher process did not get ready", device=target,
                mend=f"bind it beforehand: udrv bind {self.bdf}",
            )

    def _release_watcher(self) -> None:
        process, control = self._watcher, self._control
        self._watcher = self._control = None
        if control is not None:
            with control, contextlib.suppress(OSError):  # it may be dead: then nothing to tell
                control.send(b"D")
        if process is not None:
            if control is None:  # interrupted while it was started: nobody can tell it
                process.kill()
            process.wait()


def bound(
    bdf: str, *, driver: str = VFIO_DRIVER, force: bool = False, host: Host = HOST
) -> ScopedBinding:
    """Bind a function to VFIO for as long as the returned object is open.

    `with bound("0000:01:00.0"): ...` undoes the binding at the end of the block, also on an
    exception; if this process is killed, a watcher process undoes it.

    Parameters
    ----------
    force: overrides the overridable reasons, see `BindPlan.check`.

    Raises what `plan_bind`, `BindPlan.check` and `BindPlan.execute` raise.
    """
    return ScopedBinding(bdf, driver=driver, force=force, host=host)
