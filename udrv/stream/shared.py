# SPDX-License-Identifier: Apache-2.0
"""The memory of a stream: what is mapped by whom.

Two memfds a device. `data` is written by the driver alone: sealed against shrinking (a reader could
get SIGBUS) and against new writable mappings (F_SEAL_FUTURE_WRITE), so a reader, however it came by
the descriptor, can but read. `reader` is what the one consumer of records writes; the driver only
compares its words. Both are found by their names in /proc/PID/fd: whoever may look there may
attach.

`data` begins with a page that says what it is; the area of a queue follows each `span` bytes from
there on. Only areas that are in use have memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import secrets
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udrv.core import ffi, lib
from udrv.errors import DmaMemoryError, StreamBusyError, StreamError

PAGE = 4096
_MAGIC = b"UDRVSTR1"
#: magic, span, areas, bytes of the device's name, whether the driver closed it; and the name.
_HEADER = struct.Struct("<8sQIII4x")
_CLOSED_AT = 24
_NAME_MAX = 1024

_F_SEAL_FUTURE_WRITE = 0x0010  # Linux 5.1
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_SHRINK = fcntl.F_SEAL_SHRINK
_SEALS = fcntl.F_SEAL_SEAL | _SHRINK | fcntl.F_SEAL_GROW

_LINK = re.compile(r"/memfd:(udrv-stream|udrv-reader):([0-9a-f]{16})(?: \(deleted\))?")


class Mapping:
    """A memfd, mapped; the mapping lives as long as this object."""

    def __init__(self, fd: int, size: int, *, write: bool) -> None:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, prot)
        self.size = size
        # from_buffer() of ctypes wants writable memory
        self._view: Any = ffi.from_buffer(self._map)
        self.address = int(ffi.cast("uintptr_t", self._view))

    def populate(self, offset: int, size: int) -> None:
        """Have the pages now, so that a shortage is an error here and no SIGBUS later."""
        try:
            self._map.madvise(_MADV_POPULATE_WRITE, offset, size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise DmaMemoryError(
                    f"{size} bytes of shared memory for a stream cannot be had: {error.strerror}",
                    mend="stream fewer queues, or with fewer chunks and cells",
                ) from error
            ctypes.memset(self.address + offset, 0, size)

    def clear(self, offset: int, size: int) -> None:
        """All of it 0; nobody may look at it."""
        ctypes.memset(self.address + offset, 0, size)

    def write(self, data: bytes) -> None:
        """At the beginning."""
        ctypes.memmove(self.address, data, len(data))

    def read(self, size: int) -> bytes:
        """From the beginning."""
        return ctypes.string_at(self.address, size)


def _memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


class Owner:
    """The driver's end: makes the two memfds of a device.

    Parameters
    ----------
    target: the device, for whoever finds the stream.
    span: bytes of one queue's area, rounded up to pages.     areas: how many.
    """

    def __init__(self, target: str, span: int, areas: int) -> None:
        self.span = -(-span // PAGE) * PAGE
        self.areas = areas
        token = secrets.token_hex(8)
        name = target.encode()[:_NAME_MAX]
        with ExitStack() as undo:
            size = PAGE + areas * self.span
            self.data_fd = _memfd(f"udrv-stream:{token}", size)
            undo.callback(os.close, self.data_fd)
            self.reader_fd = _memfd(f"udrv-reader:{token}", areas * PAGE)
            undo.callback(os.close, self.reader_fd)
            self.data = Mapping(self.data_fd, size, write=True)
            self.reader = Mapping(self.reader_fd, areas * PAGE, write=True)
            # after our own mapping, the last one that may write
            for seals in (_SEALS | _F_SEAL_FUTURE_WRITE, _SEALS):
                try:
                    fcntl.fcntl(self.data_fd, fcntl.F_ADD_SEALS, seals)
                except OSError as error:  # before Linux 5.1
                    if error.errno != errno.EINVAL:
                        raise
                else:
                    break
            fcntl.fcntl(self.reader_fd, fcntl.F_ADD_SEALS, _SEALS)
            self.data.populate(0, PAGE)
            self.data.write(_HEADER.pack(_MAGIC, self.span, areas, len(name), 0) + name)
            undo.pop_all()

    def area(self, index: int) -> int:
        """Offset of an area in `data`."""
        return PAGE + index * self.span

    def end(self) -> None:
        """Say that nothing more will come."""
        ctypes.c_uint32.from_address(self.data.address + _CLOSED_AT).value = 1

    def close(self) -> None:
        """Give up the descriptors: nobody new finds the stream. Mappings stay as long as used."""
        for name in ("data_fd", "reader_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


@dataclass(frozen=True, slots=True)
class Found:
    """A stream of some process: pid, device, descriptors as paths, and whether it has ended."""

    pid: int
    target: str
    data: str
    reader: str
    ended: bool = False


def find(pid: int | None = None) -> list[Found]:
    """The streams of a process, or of all whose descriptors this process may look at."""
    found = []
    pids = sorted(int(p.name) for p in Path("/proc").glob("[0-9]*")) if pid is None else [pid]
    for one in pids:
        ends: dict[str, dict[str, str]] = {}
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{one}/fd").iterdir():
                with contextlib.suppress(OSError):
                    match = _LINK.fullmatch(str(link.readlink()))
                    if match:
                        ends.setdefault(match[2], {})[match[1]] = str(link)
        for end in ends.values():
            if len(end) == 2:
                with contextlib.suppress(StreamError, OSError):
                    _, target, ended = _header(Path(end["udrv-stream"]))
                    found.append(
                        Found(one, target, end["udrv-stream"], end["udrv-reader"], ended)
                    )
    return found


def _header(path: Path) -> tuple[tuple[int, int], str, bool]:
    with path.open("rb") as file:
        raw = file.read(_HEADER.size + _NAME_MAX)
    if len(raw) < _HEADER.size:
        raise StreamError(f"{path} is no stream")
    magic, span, areas, length, closed = _HEADER.unpack_from(raw)
    if magic != _MAGIC or not span or span % PAGE or not areas or length > _NAME_MAX:
        raise StreamError(
            f"{path} is no stream of this version of udrv",
            mend="use the same version on both sides",
        )
    name = raw[_HEADER.size : _HEADER.size + length]
    return (span, areas), name.decode(errors="replace"), bool(closed)


def _page(mapping: Mapping, index: int) -> Any:
    return ffi.cast("struct udrv_ring_reader *", mapping.address + index * PAGE)


class Attached:
    """A reader's end, of this process or of another: `data` read-only, `reader` on demand.

    Parameters
    ----------
    data, reader: paths of the descriptors, in some /proc/PID/fd.

    Raises `StreamError` for what is no stream, and `OSError`.
    """

    def __init__(self, data: str, reader: str) -> None:
        (self.span, self.areas), self.target, _ = _header(Path(data))
        #: The consumer's pages, once this is the consumer.
        self.reader: Mapping | None = None
        with ExitStack() as undo:
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            size = PAGE + self.areas * self.span
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SHRINK
            if os.fstat(fd).st_size < size or not sealed:
                raise StreamError(f"{data} can shrink under its readers: it is no stream")
            self.data = Mapping(fd, size, write=False)
        first = ffi.cast("char *", self.data.address + PAGE)
        self._shared = [
            ffi.cast("struct udrv_stream_shared *", first + index * self.span)
            for index in range(self.areas)
        ]
        #: Serials of the streams that were checked.
        self._checked = [0] * self.areas
        with ExitStack() as undo:
            # an open file of its own, for the lock
            self._reader_fd = os.open(reader, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, self._reader_fd)
            if os.fstat(self._reader_fd).st_size < self.areas * PAGE:
                raise StreamError(f"{reader} is no stream", device=self.target)
            self._watched = Mapping(self._reader_fd, self.areas * PAGE, write=False)
            undo.pop_all()

    @property
    def closed(self) -> bool:
        """Whether the driver closed it."""
        return bool(ctypes.c_uint32.from_address(self.data.address + _CLOSED_AT).value)

    def look(self, index: int) -> Any:
        """As `page`, to be read only: for whoever is not the consumer."""
        return _page(self._watched, index)

    def streams(self) -> Iterator[tuple[int, Any]]:
        """Index and `struct udrv_stream_shared *` of each area that a queue has, or had last."""
        for index, shared in enumerate(self._shared):
            serial = shared.serial
            if serial == self._checked[index]:  # 0: nobody yet
                if not serial:
                    continue
            elif lib.udrv_stream_check(shared, self.span):
                continue
            else:
                self._checked[index] = serial
            yield index, shared

    def page(self, index: int) -> Any:
        """The `struct udrv_ring_reader *` of an area; only after `claim`."""
        assert self.reader is not None  # noqa: S101 - claimed
        return _page(self.reader, index)

    def claim(self) -> None:
        """Become the one consumer of records; idempotent. Raises `StreamBusyError`.

        By a lock that the kernel gives back when a consumer dies. What a dead one held is let go.
        """
        if self.reader is not None:
            return
        try:
            fcntl.flock(self._reader_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StreamBusyError(
                "another consumer takes its records", device=self.target,
                mend="end it first; any number may read windows",
            ) from None
        self.reader = Mapping(self._reader_fd, self.areas * PAGE, write=True)
        self._let_go()

    def _let_go(self) -> None:
        for index, _ in self.streams():
            for chunk in range(int(lib.UDRV_RING_MAX_CHUNKS)):
                lib.udrv_ring_release(self.page(index), chunk)

    def sweep(self) -> None:
        """Let go of what a consumer held that has died; nothing if one lives."""
        if self.reader is None:
            with contextlib.suppress(StreamBusyError):
                self.claim()
                self.resign()

    def resign(self) -> None:
        """Be the consumer no more; idempotent."""
        if self.reader is not None:
            self.reader = None
            fcntl.flock(self._reader_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """`resign`, and give the descriptor back; mappings stay while they are used. Idempotent."""
        self.resign()
        fd, self._reader_fd = self._reader_fd, -1
        if fd >= 0:
            os.close(fd)
