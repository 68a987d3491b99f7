# SPDX-License-Identifier: Apache-2.0
"""Where sysfs, procfs, /dev and /run are: the one seam between `udrv.pci` and the machine.

Every function of the package takes a `Host`. The default is this machine; a test gives one whose
`root` is a directory that it filled itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import DriverBindError


@dataclass(frozen=True)
class Host:
    """A machine, seen through its file systems.

    Parameters
    ----------
    root: the directory under which `sys`, `proc`, `dev` and `run` lie.
    """

    root: Path = Path("/")

    @property
    def sys(self) -> Path:
        """Mount point of sysfs."""
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        """Mount point of procfs."""
        return self.root / "proc"

    @property
    def dev(self) -> Path:
        """The device nodes."""
        return self.root / "dev"

    @property
    def bind_records(self) -> Path:
        """Where bindings are written down; on a tmpfs, as a binding does not survive a boot."""
        return self.root / "run" / "udrv" / "bind"

    def read(self, path: Path) -> str | None:
        """The stripped text of an attribute, None if it is missing or unreadable."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def write(self, path: str | Path, text: str) -> None:
        """One write(2) to a sysfs attribute. Raises the kernel's `OSError`."""
        # Not Path.write_text: that would create a missing attribute in a mistyped directory,
        # and buffering would move the kernel's answer from write() to close().
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def may_write(self, path: Path) -> bool:
        """Whether this process may write the attribute."""
        return os.access(path, os.W_OK)

    def node(self, path: str | Path) -> tuple[int, int] | None:
        """(major, minor) of a device node, None if the path is anything else."""
        try:
            found = os.stat(path)  # noqa: PTH116 - follows links such as /dev/disk/by-id
        except OSError:
            return None
        if not (stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)):
            return None
        return os.major(found.st_rdev), os.minor(found.st_rdev)

    def open_exclusive(self, path: Path) -> int:
        """Open a block device so that nobody else can claim it; raises `OSError` (EBUSY: claimed).

        File systems, swap, dm, md and ZFS all claim their devices; on a block device O_EXCL
        without O_CREAT is such a claim (open(2)).
        """
        return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)

    def load_module(self, name: str) -> None:
        """Ask the kernel's own loader for a module.

        Raises `DriverBindError` if there is no loader or it fails.
        """
        configured = self.read(self.proc / "sys" / "kernel" / "modprobe")
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        program = configured if configured and Path(configured).exists() else None
        program = program or shutil.which("modprobe", path=path)
        mend = f"load the module as root (`modprobe {name}`), or build it into the kernel"
        if program is None:
            raise DriverBindError(
                f"the module {name} is not loaded and no modprobe was found", mend=mend
            )
        done = subprocess.run(
            [program, name], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise DriverBindError(f"{program} {name} failed ({said})", mend=mend)


#: This machine.
HOST = Host()


def describe_errno(error: OSError) -> str:
    """"EBUSY (Device or resource busy)": the symbol to search for, and the words."""
    number = error.errno or 0
    return f"{errno.errorcode.get(number, str(number))} ({os.strerror(number)})"
