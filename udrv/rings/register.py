# SPDX-License-Identifier: Apache-2.0
"""What is registered with a ring once instead of looked up for each request.

A registered buffer is pinned: the kernel writes to its pages whatever becomes of the Python object,
so the table keeps the object until the slot holds another or the table is unregistered, and a
request keeps the one that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from udrv.errors import InvalidRequestError, UdrvError
from udrv.rings.columns import view_of
from udrv.rings.diagnose import register_error
from udrv.rings.native import ffi, lib
from udrv.units import integer

if TYPE_CHECKING:
    from udrv.rings._uring import struct_io_uring

#: IORING_MAX_REG_BUFFERS, IORING_MAX_FIXED_FILES
_MAX_BUFFERS = 1 << 14
_MAX_FILES = 1 << 20


class Registrar(Protocol):
    """What the tables need of a ring."""

    @property
    def native(self) -> struct_io_uring:
        """The C ring; raises if the ring cannot be used."""

    @property
    def registered(self) -> dict[str, Any]:
        """What must live as long as the ring does."""


def _count(value: int, limit: int) -> int:
    value = integer(value, "a table size")
    if not 1 <= value <= limit:
        raise InvalidRequestError(f"a table of {value}", mend=f"1 to {limit}")
    return value


class BufferTable:
    """The registered buffers of a ring (`Ring.buffers`), for `read_fixed`, `write_fixed`.

    All methods raise `MemlockError` where RLIMIT_MEMLOCK is too low, `UringUnsupportedError` on
    old kernels, `UringError` for the rest.
    """

    def __init__(self, ring: Registrar) -> None:
        self._ring = ring

    @property
    def _views(self) -> list[Any]:
        """The memory in each slot, None in empty ones; the ring's, so that it ends with it."""
        return self._ring.registered.get("buffers", [])  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._views)

    def view(self, index: int) -> Any:
        """The memory in slot `index`; `InvalidRequestError` if there is none."""
        views = self._views
        index = integer(index, "a buffer index")
        if not 0 <= index < len(views) or views[index] is None:
            _ = self._ring.native  # closed, perhaps
            raise InvalidRequestError(
                f"no buffer is registered at index {index} of {len(views)}",
                mend="Ring.buffers.register([...]), or update() an empty slot",
            )
        return views[index]

    @contextmanager
    def _kept(self, views: list[Any]) -> Iterator[None]:
        """The ring keeps `views`, whatever interrupts the registration."""
        keep = self._ring.registered.setdefault("being registered", [])
        keep.append(views)
        try:
            yield
        except UdrvError:
            raise
        except BaseException:  # at a moment nobody knows: the kernel may have taken them
            views = []
            raise
        finally:
            keep[:] = [kept for kept in keep if kept is not views]

    def register(self, buffers: Sequence[Any]) -> None:
        """Register these buffers as 0, 1, ...; each is writable and 1 GiB at most."""
        ring = self._ring.native
        views = [view_of(buffer, writable=True) for buffer in buffers]
        _count(len(views), _MAX_BUFFERS)
        vectors = ffi.new("struct iovec[]", [(view, len(view)) for view in views])
        with self._kept(views):
            failed = lib.io_uring_register_buffers(ring, vectors, len(views))
            if failed:
                size = sum(len(view) for view in views)
                raise register_error(-failed, "buffers", since="5.1", memory=size)
            self._ring.registered["buffers"] = views

    def register_sparse(self, count: int) -> None:
        """Register `count` empty slots (Linux 5.19), to be filled by `update`."""
        ring = self._ring.native
        failed = lib.io_uring_register_buffers_sparse(ring, _count(count, _MAX_BUFFERS))
        if failed:
            raise register_error(-failed, "a sparse table of buffers", since="5.19")
        self._ring.registered["buffers"] = [None] * count

    def update(self, index: int, buffer: Any) -> None:
        """Put `buffer` (None: nothing) into slot `index` (Linux 5.13).

        Requests in flight go on with the buffer that they were made with.
        """
        ring = self._ring.native
        index = integer(index, "a buffer index")
        if not 0 <= index < len(self._views):
            raise InvalidRequestError(f"slot {index} of a table of {len(self._views)} buffers")
        view = None if buffer is None else view_of(buffer, writable=True)
        size = 0 if view is None else len(view)
        vector = ffi.new("struct iovec[]", [(ffi.NULL if view is None else view, size)])
        # a request in flight holds the old one by itself
        with self._kept([view, self._views[index]]):
            done = lib.io_uring_register_buffers_update_tag(ring, index, vector, ffi.NULL, 1)
            if done != 1:
                raise register_error(-done, "a buffer", since="5.13", memory=size)
            self._views[index] = view

    def unregister(self) -> None:
        """Let go of all; waits until no request uses them."""
        failed = lib.io_uring_unregister_buffers(self._ring.native)
        if failed:
            raise register_error(-failed, "buffers", since="5.1")
        self._ring.registered.pop("buffers", None)


class FileTable:
    """The registered files of a ring (`Ring.files`), for requests with `SqeFlag.FIXED_FILE`.

    The kernel holds the files themselves: their descriptors may be closed.
    """

    def __init__(self, ring: Registrar) -> None:
        self._ring = ring
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def register(self, fds: Sequence[int]) -> None:
        """Register these files as 0, 1, ...; -1 is an empty slot (Linux 5.5)."""
        ring = self._ring.native
        count = _count(len(fds), _MAX_FILES)
        failed = lib.io_uring_register_files(ring, ffi.new("int[]", list(fds)), count)
        if failed:
            raise register_error(-failed, "files", since="5.1")
        self._size = count

    def register_sparse(self, count: int) -> None:
        """Register `count` empty slots (Linux 5.19), to be filled by `update`."""
        ring = self._ring.native
        failed = lib.io_uring_register_files_sparse(ring, _count(count, _MAX_FILES))
        if failed:
            raise register_error(-failed, "a sparse table of files", since="5.19")
        self._size = count

    def update(self, index: int, fd: int) -> None:
        """Put file `fd` (-1: nothing) into slot `index` (Linux 5.5)."""
        index = integer(index, "a file index")
        if not 0 <= index < self._size:
            raise InvalidRequestError(f"slot {index} of a table of {self._size} files")
        files = ffi.new("int[]", [fd])
        done = lib.io_uring_register_files_update(self._ring.native, index, files, 1)
        if done != 1:
            raise register_error(-done, "a file", since="5.5")

    def unregister(self) -> None:
        """Let go of all; waits until no request uses them."""
        failed = lib.io_uring_unregister_files(self._ring.native)
        if failed:
            raise register_error(-failed, "files", since="5.1")
        self._size = 0
