# SPDX-License-Identifier: Apache-2.0
"""Gives a function back to its driver; as a program, when the process that borrowed it dies.

Run by path with `python -I -S` (see `udrv.pci.scoped`), so that it starts in a fraction of the
time of an ordinary Python and depends on nothing that the owner's environment can change. It must
therefore import nothing but small parts of the standard library: no `udrv`, no site-packages.

Arguments: ROOT BDF TOKEN PIDFD CONTROL. It writes one byte to CONTROL when it is ready, then
sleeps until either
- CONTROL delivers a byte: the owner undid the binding itself, nothing to do; or
- PIDFD is readable: the owner is dead. The record of the binding says what to put back; its token
  must be ours, or someone has bound the function anew.
End of file on CONTROL means nothing: the owner's children may or may not hold the other end. Only
the pidfd tells death from silence.
"""

# pathlib would double the start-up time
# ruff: noqa: PTH108, PTH112, PTH115, PTH118, PTH119, PTH120, PTH123

import errno
import os
import select
import signal
import sys
from collections.abc import Callable

Write = Callable[[str, str], None]


class RestoreError(Exception):
    """The function could not be given back; the text says what failed."""


def record_path(root: str, bdf: str) -> str:
    """Where the binding of a function is written down (JSON, see `udrv.pci.bind`)."""
    return os.path.join(root, "run/udrv/bind", f"{bdf}.json")


def write_attribute(path: str, text: str) -> None:
    """One write(2); raises the kernel's `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def restore(
    root: str,
    bdf: str,
    *,
    bound_to: str,
    driver: str | None,
    override: str | None,
    write: Write = write_attribute,
) -> None:
    """Put back the driver and the driver_override that the function had.

    Blocks while anyone has the function open through VFIO: the kernel waits for the last close.
    A function that is gone, or that someone already gave another driver, is left alone.

    Parameters
    ----------
    bound_to: the driver that the binding put there.
    driver, override: what was there before; None for nothing.

    Raises `RestoreError`.
    """
    bus = os.path.join(root, "sys/bus/pci")
    device = f"{bus}/devices/{bdf}"
    if not os.path.isdir(device):
        return
    try:
        # First, so that no probe between the next two steps gives it back to VFIO.
        write(f"{device}/driver_override", (override or "") + "\n")
        current = _driver(device)
        if current not in (bound_to, None) or current == driver:
            return
        if current is not None:
            write(f"{device}/driver/unbind", bdf)
        if driver is None:
            return
        write(f"{bus}/drivers_probe", bdf)
        if _driver(device) is None and os.path.isdir(f"{bus}/drivers/{driver}"):
            # Another driver's failed probe does not stop the one that was there from trying.
            write(f"{bus}/drivers/{driver}/bind", bdf)
    except OSError as error:
        raise RestoreError(f"writing {error.filename or 'an attribute'} failed: {error}") from error
    current = _driver(device)
    if current != driver:
        raise RestoreError(
            f"the kernel bound {current or 'no driver'}, not {driver}, which it had before"
        )


def _driver(device: str) -> str | None:
    try:
        return os.path.basename(os.readlink(f"{device}/driver"))
    except OSError:
        return None


def _on_death(root: str, bdf: str, token: str) -> None:
    # Imported only now: the owner waits for our start, nobody waits for this.
    import fcntl
    import json
    import syslog

    path = record_path(root, bdf)
    with open(f"{os.path.dirname(path)}/{bdf}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(path) as file:
                record = json.load(file)
        except FileNotFoundError:
            return
        if record.get("token") != token:
            return
        try:
            restore(
                root, bdf, bound_to=record["bound_to"], driver=record["driver"],
                override=record["driver_override"],
            )
        except RestoreError as error:
            # Nobody listens to our standard error any more. The record stays, so that
            # `udrv unbind` can try again.
            syslog.openlog("udrv-watcher", syslog.LOG_PID, syslog.LOG_DAEMON)
            syslog.syslog(syslog.LOG_ERR, f"{bdf}: could not give it back: {error}")
            return
        os.unlink(path)


def main(arguments: list[str]) -> int:
    """The program; returns its exit status."""
    root, bdf, token = arguments[:3]
    pidfd, control = int(arguments[3]), int(arguments[4])
    # A terminal's Ctrl-C, and an orderly stop of the whole service, reach us together with the
    # owner; we must outlive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.write(control, b"R")
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if control in ready:
            try:
                released = bool(os.read(control, 1))
            except OSError as error:
                if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                    raise
                released = False
            if released:
                return 0
            poll.unregister(control)
        if pidfd in ready:
            _on_death(root, bdf, token)
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
