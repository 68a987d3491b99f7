# SPDX-License-Identifier: Apache-2.0
"""From options to what the C side takes: files opened, `struct udrv_soft_config` filled."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from udrv.errors import (
    DeviceNotFoundError,
    PermissionDeniedError,
    TargetError,
    UdrvError,
)
from udrv.soft._soft import ffi, lib
from udrv.soft.options import NamespaceOptions, SoftOptions

if TYPE_CHECKING:
    from udrv.soft.faults import Script


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
        control_fd: int = -1,
        script: Script | None = None,
    ) -> None:
        self.fds: list[int] = []
        self.control: Path | None = None
        self.struct = ffi.new("struct udrv_soft_config *")
        config = self.struct
        config.size = ffi.sizeof("struct udrv_soft_config")
        config.flags = lib.UDRV_SOFT_TRAP_DOORBELLS if options.trap_doorbells else 0
        config.sock_fd = sock_fd
        config.ready_fd = ready_fd
        config.counters_fd = counters_fd
        config.control_fd = control_fd
        config.faults_fd = -1
        config.truth_fd = -1
        config.nr_ns = len(options.namespaces)
        config.nn = options.nn
        config.queues = options.queues
        config.entries = options.mqes
        config.mdts = options.mdts
        config.spin_us = options.spin_us
        config.cmb_bytes = options.cmb
        ffi.memmove(config.serial, options.serial.encode().ljust(20), 20)
        try:
            for index, space in enumerate(options.namespaces):
                fd, size = self._open(space)
                config.ns[index].fd = fd
                config.ns[index].blocks = size // space.lba
                config.ns[index].lba_shift = space.lba.bit_length() - 1
            self._open_faults(options, script)
        except BaseException:
            self.close()
            raise

    def packed(self) -> bytes:
        """The bytes of the struct."""
        return bytes(ffi.buffer(self.struct))

    def close(self) -> None:
        """Close the files here, and remove the control socket; idempotent."""
        self.close_fds()
        if self.control is not None:
            self.control.unlink(missing_ok=True)
            self.control = None

    def close_fds(self) -> None:
        """Close the files here; idempotent."""
        while self.fds:
            with contextlib.suppress(OSError):
                os.close(self.fds.pop())

    def _open_faults(self, options: SoftOptions, script: Script | None) -> None:
        """What there is to inject, where it is noted, and where it is changed."""
        config = self.struct
        if options.faults is not None:
            if script is not None:
                raise TargetError("faults= and a script are given", device="soft:")
            from udrv.soft.faults import load

            script = load(options.faults)
        if script is not None:
            from udrv.soft.fault_table import pack_script

            config.faults_fd = os.memfd_create("udrv-soft-faults", os.MFD_CLOEXEC)
            self.fds.append(config.faults_fd)
            os.write(config.faults_fd, pack_script(script))
        if options.truth is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            try:
                config.truth_fd = os.open(options.truth, flags, 0o666)
            except OSError as error:
                raise TargetError(
                    f"{options.truth} cannot be written: {error.strerror}", device="soft:"
                ) from error
            self.fds.append(config.truth_fd)
        if options.control is not None:
            from udrv.soft.fault_control import bind_control

            config.control_fd = bind_control(options.control).detach()
            self.fds.append(config.control_fd)
            self.control = Path(options.control)

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
