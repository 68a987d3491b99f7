# SPDX-License-Identifier: Apache-2.0
"""From options to what the C side takes: files opened, `struct udrv_soft_config` filled."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from udrv.errors import (
    DeviceNotFoundError,
    PermissionDeniedError,
    TargetError,
    UdrvError,
)
from udrv.soft._soft import ffi, lib
from udrv.soft.options import NamespaceOptions, SoftOptions


class Config:
    """A filled configuration and the descriptors in it, which `close` closes.

    Raises `TargetError`, `DeviceNotFoundError` or `PermissionDeniedError` for a backing file that
    cannot be used, and `UdrvError` when the disk is full.
    """

    def __init__(
        self,
        options: SoftOptions,
        *,
        sock_fd: int = -1,
        ready_fd: int = -1,
        counters_fd: int = -1,
    ) -> None:
        self.fds: list[int] = []
        self.struct = ffi.new("struct udrv_soft_config *")
        config = self.struct
        config.size = ffi.sizeof("struct udrv_soft_config")
        config.flags = lib.UDRV_SOFT_TRAP_DOORBELLS if options.trap_doorbells else 0
        config.sock_fd = sock_fd
        config.ready_fd = ready_fd
        config.counters_fd = counters_fd
        config.nr_ns = len(options.namespaces)
        config.nn = options.nn
        config.queues = options.queues
        config.entries = options.mqes
        config.mdts = options.mdts
        config.spin_us = options.spin_us
        ffi.memmove(config.serial, options.serial.encode().ljust(20), 20)
        try:
            for index, space in enumerate(options.namespaces):
                fd, size = self._open(space)
                config.ns[index].fd = fd
                config.ns[index].blocks = size // space.lba
                config.ns[index].lba_shift = space.lba.bit_length() - 1
        except BaseException:
            self.close()
            raise

    def packed(self) -> bytes:
        """The bytes of the struct."""
        return bytes(ffi.buffer(self.struct))

    def close(self) -> None:
        """Close the backing files here; idempotent."""
        while self.fds:
            with contextlib.suppress(OSError):
                os.close(self.fds.pop())

    def _open(self, space: NamespaceOptions) -> tuple[int, int]:
        """Return the descriptor (-1: memory) and the size of a namespace's backing."""
        if space.file is None:
            return -1, space.size or 0  # the C side refuses 0
        path = Path(space.file)
        try:
            # A file is made only if its size is known, and none is ever removed: it may be the
            # user's. O_NONBLOCK: a FIFO must not hold us up before it is found not to be a file.
            create = 0 if space.size is None else os.O_CREAT
            fd = os.open(path, os.O_RDWR | create | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            self.fds.append(fd)
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise TargetError(
                    f"{path} is not a regular file",
                    device="soft:",
                    mend="a namespace is backed by a file, or by memory",
                )
            size = info.st_size - info.st_size % space.lba if space.size is None else space.size
            if not size:
                raise TargetError(
                    f"{path} holds no block of {space.lba} bytes",
                    device="soft:",
                    mend="give size= as well, to make it that long",
                )
            if info.st_size < size:
                os.truncate(fd, size)
        except UdrvError:
            raise
        except PermissionError as error:
            raise PermissionDeniedError(
                f"{path} cannot be opened for writing",
                device="soft:",
                mend="write permission on it, or on its directory, is needed",
            ) from error
        except OSError as error:
            if error.errno == errno.ENOENT and path.parent.is_dir():
                raise DeviceNotFoundError(
                    f"there is no file {path}",
                    device="soft:",
                    mend="give size= as well, to make it that long",
                ) from error
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise DeviceNotFoundError(
                    f"there is no directory {path.parent}", device="soft:", mend="create it"
                ) from error
            raise TargetError(
                f"{path} cannot back a namespace: {error.strerror}", device="soft:"
            ) from error
        return fd, size
