# SPDX-License-Identifier: Apache-2.0
"""What is written on a block device, as libblkid sees it.

libblkid knows some hundred formats and is what mount(8) and wipefs(8) trust; a parser of our own
would be wrong sooner. It is opened when needed, so that it is no dependency of the package.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

_SONAME = "libblkid.so.1"

# <blkid/blkid.h>, libblkid 2.38; stable since 2.15.
_SUBLKS_DEFAULT = (1 << 1) | (1 << 3) | (1 << 5) | (1 << 7)  # LABEL, UUID, TYPE, USAGE
_SUBLKS_BADCSUM = 1 << 10  # a superblock with a bad checksum is still somebody's data

#: More signatures than any real disk has; a bound for the loop over what the library finds.
_MOST = 64


class SignaturesUnknownError(Exception):
    """The device could not be looked at; the text says why."""


def signatures(path: Path) -> tuple[str, ...]:
    """The signatures on a device or image: ("gpt partition table", "ext4 file system").

    Reads only. Raises `SignaturesUnknownError` if the device cannot be read or nothing on this
    machine can judge it.
    """
    try:
        library = _libblkid()
    except OSError:
        return _by_program(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SignaturesUnknownError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _by_library(library, fd, path)
    finally:
        os.close(fd)


@cache
def _libblkid() -> ctypes.CDLL:
    library = ctypes.CDLL(_SONAME, use_errno=True)
    probe = ctypes.c_void_p
    library.blkid_new_probe.restype = probe
    library.blkid_new_probe.argtypes = []
    library.blkid_free_probe.restype = None
    library.blkid_free_probe.argtypes = [probe]
    library.blkid_probe_set_device.argtypes = [
        probe, ctypes.c_int, ctypes.c_int64, ctypes.c_int64,
    ]
    for name in ("superblocks", "partitions"):
        getattr(library, f"blkid_probe_enable_{name}").argtypes = [probe, ctypes.c_int]
        getattr(library, f"blkid_probe_set_{name}_flags").argtypes = [probe, ctypes.c_int]
    library.blkid_do_probe.argtypes = [probe]
    library.blkid_probe_lookup_value.argtypes = [
        probe, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_size_t),
    ]
    return library


def _by_library(library: ctypes.CDLL, fd: int, path: Path) -> tuple[str, ...]:
    probe = library.blkid_new_probe()
    if not probe:
        raise SignaturesUnknownError(f"{_SONAME} is out of memory")
    try:
        # Offset 0 and size 0: the whole device.
        if library.blkid_probe_set_device(probe, fd, 0, 0) != 0:
            raise SignaturesUnknownError(f"{_SONAME} cannot read {path}")
        library.blkid_probe_enable_superblocks(probe, 1)
        library.blkid_probe_set_superblocks_flags(probe, _SUBLKS_DEFAULT | _SUBLKS_BADCSUM)
        library.blkid_probe_enable_partitions(probe, 1)
        found: list[str] = []
        # Not blkid_do_safeprobe: that gives up on a disk with two signatures, and such a disk
        # is the last one to call empty. The loop is that of wipefs(8).
        for _ in range(_MOST):
            answer = library.blkid_do_probe(probe)
            if answer < 0:
                raise SignaturesUnknownError(f"{_SONAME} failed to read {path}")
            if answer != 0:
                break
            found.append(_describe(
                _value(library, probe, b"TYPE"),
                _value(library, probe, b"PTTYPE"),
                _value(library, probe, b"USAGE"),
            ))
        return tuple(dict.fromkeys(found))
    finally:
        library.blkid_free_probe(probe)


def _value(library: ctypes.CDLL, probe: int, name: bytes) -> str | None:
    data, size = ctypes.c_char_p(), ctypes.c_size_t()
    failed = library.blkid_probe_lookup_value(
        probe, name, ctypes.byref(data), ctypes.byref(size)
    )
    if failed or data.value is None:
        return None
    return data.value.decode(errors="replace")


def _describe(kind: str | None, table: str | None, usage: str | None) -> str:
    if kind is None:
        return f"{table or 'unknown'} partition table"
    nouns = {"filesystem": "file system", "raid": "RAID or volume member", "crypto": "encryption"}
    return f"{kind} {nouns.get(usage or '', 'signature')}"


def _by_program(path: Path) -> tuple[str, ...]:
    """blkid(8), where only the program is there (busybox, musl)."""
    program = shutil.which("blkid", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise SignaturesUnknownError(f"neither {_SONAME} nor the program blkid is installed")
    done = subprocess.run(
        [program, "-p", "-o", "export", "--", str(path)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )
    if done.returncode == 8:  # "ambivalent low-level probing result"
        return ("more than one signature",)
    if done.returncode == 2 and not done.stderr.strip():
        if not os.access(path, os.R_OK):
            raise SignaturesUnknownError(f"{path} cannot be read")
        return ()
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise SignaturesUnknownError(f"{program} failed on {path} ({said})")
    values = dict(
        line.split("=", 1) for line in done.stdout.splitlines() if "=" in line
    )
    found = []
    if values.get("PTTYPE"):
        found.append(_describe(None, values["PTTYPE"], None))
    if values.get("TYPE"):
        found.append(_describe(values["TYPE"], None, values.get("USAGE")))
    return tuple(found)
