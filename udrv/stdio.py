# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a command line: closed by the caller, full, or narrower than Unicode.

Python starts with `sys.stdout` None where descriptor 1 is closed, and the next file or socket that
is opened becomes descriptor 1: what is meant for a person would then go into it. And what Python
writes when it ends, it writes too late to say in one line that it could not.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run(name: str, app: Callable[[], object]) -> NoReturn:
    """Run a command line and exit with its status.

    Closed standard descriptors are filled before. If standard output cannot take what was written
    to it, the end is one line after `name` on standard error and status 1; a pipe whose reader
    left gets no line.
    """
    fill()
    status: object
    try:
        app()
        status = 0
    except SystemExit as end:
        status = end.code
    except OSError as error:  # of the parser: --help and --version; commands see to their own
        status = _complain(name, error)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not status:
            status = _complain(name, error)
        # what is still in the buffer goes nowhere, in silence, when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
    sys.exit(status)


def fill() -> None:
    """Open what is missing of descriptors 0 to 2, and let no character stop an output.

    Reading from a filled 0 and writing to a filled 1 fail (EBADF), as they would have: an input
    that was closed is not an empty one, and an output that goes nowhere is no success. A filled 2
    takes everything: nobody wanted to be told.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # the lowest free descriptor: those below are there by now
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Raw(0, "r")))
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Raw(1, "w")))
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Raw(2, "w")), line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Raw(io.FileIO):
    """A standard descriptor; it stays open when its stream is collected."""

    def __init__(self, fd: int, mode: str) -> None:
        super().__init__(fd, mode, closefd=False)


def _complain(name: str, error: OSError) -> int:
    if error.errno != errno.EPIPE:
        where = error.filename or "standard output"
        print(f"{name}: {where}: {error.strerror or error}", file=sys.stderr)
    return 1
