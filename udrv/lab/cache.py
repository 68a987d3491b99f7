# SPDX-License-Identifier: Apache-2.0
"""Where the lab keeps things: kernels, disks, and the directories of runs under way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from udrv.errors import LabError


def cache_dir() -> Path:
    """`$UDRV_CACHE`, else `$XDG_CACHE_HOME/udrv`, else `~/.cache/udrv`; made if missing."""
    if explicit := os.environ.get("UDRV_CACHE"):
        path = Path(explicit)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        path = Path(xdg) / "udrv"
    else:
        path = Path.home() / ".cache" / "udrv"
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"the cache directory {path} cannot be made: {error.strerror}",
            mend="set UDRV_CACHE to a directory that you may write to",
        ) from error
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if missing): one process at a time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(runs: Path) -> None:
    """Remove the directories of runs that were killed: their locks are free."""
    for lock in runs.glob("*/lock"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def run_dir() -> Iterator[Path]:
    """A directory for one run (disks, initramfs, console log), removed at the end."""
    runs = cache_dir() / "runs"
    runs.mkdir(exist_ok=True)
    with locked(cache_dir() / "runs.lock"):  # or a sweep could meet a lock made but not yet held
        _sweep(runs)
        path = Path(tempfile.mkdtemp(prefix="run-", dir=runs))
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)
