"""Memory on both sides of a vfio-user connection: theirs mapped here, ours shared with them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import time

from udrv.core import sigbus
from udrv.errors import AlignmentError, ClosedError, InvalidRequestError, UdrvError, VfioError
from udrv.vfio import user_proto as proto
from udrv.vfio.user_channel import REPLY_TIMEOUT_S, Channel

_IOVA_FIRST = 0x10000
_IOVA_LAST = (1 << 48) - 1


class UserMappedArea:
    """A part of a region in this process's memory (a `MappedArea`)."""

    def __init__(self, fd: int, file_offset: int, offset: int, size: int) -> None:
        # Only a regular file has a size that mmap can check: past the end of what is behind a
        # device node, a touch is a SIGBUS.
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        # And the size stays, where the server allows it (a memfd made for sealing). Of a plain
        # file, what the server cuts off later is noticed by the watch below.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._map = mmap.mmap(fd, size, offset=file_offset)
        self._offset = offset
        self._size = size
        # The buffer export ends with the temporary, or close() would be refused.
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        try:
            self._watch = sigbus.watch(self._address, size)
        except BaseException:
            self._map.close()
            raise
        self._closed = False

    @property
    def offset(self) -> int:
        """Byte offset of the first mapped byte in its region."""
        return self._offset

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return self._size

    @property
    def address(self) -> int:
        """Virtual address of the first mapped byte; raises `ClosedError` once unmapped."""
        if self._closed:
            raise ClosedError("the mapped area is closed")
        return self._address

    @property
    def gone(self) -> bool:
        """Whether the server cut its file short."""
        return self._watch.gone

    def close(self) -> None:
        """Unmap; idempotent."""
        self._closed = True
        self._watch.close()
        self._map.close()

    def __del__(self) -> None:
        # the mapping goes with its last reference, and others may be put in its place: their faults
        # must not be hidden
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.close()


class UserMapper:
    """Maps memory for the server (a `Mapper`); it keeps what is mapped, for `close`."""

    def __init__(self, channel: Channel, name: str, version: proto.Version) -> None:
        self._channel = channel
        self._name = name
        self._page_size = version.pgsizes & -version.pgsizes
        self._max_maps = version.max_dma_maps
        self._maps: dict[int, int] = {}

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """One range: a server has no IOMMU of its own. Address 0 stays out, to catch zeroes."""
        return ((_IOVA_FIRST, _IOVA_LAST),)

    @property
    def page_size(self) -> int:
        """Smallest page that the server maps, bytes."""
        return self._page_size

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        """Share `size` bytes of `fd` from `offset` at `iova`; `address` is not used here.

        Raises `AlignmentError`, or `VfioError` with the server's errno (EEXIST: overlaps).
        """
        del address
        if size <= 0 or (iova | size | offset) % self._page_size:
            raise AlignmentError(
                f"DMA map of {size:#x} bytes at file offset {offset:#x} to IOVA {iova:#x}",
                device=self._name,
                mend=f"all three must be multiples of {self._page_size}, and size positive",
            )
        if iova < _IOVA_FIRST or iova + size - 1 > _IOVA_LAST or offset >= 1 << 63:
            raise InvalidRequestError(
                f"DMA map of {size:#x} bytes to IOVA {iova:#x} lies outside of "
                f"{_IOVA_FIRST:#x} to {_IOVA_LAST:#x}",
                device=self._name,
            )
        if len(self._maps) >= self._max_maps:
            raise VfioError(
                f"the server takes {self._max_maps} DMA maps, all in use",
                errno=errno.ENOSPC,
                device=self._name,
                mend="use fewer, larger pools",
            )
        self._channel.request(
            proto.Command.DMA_MAP,
            proto.pack_dma_map(
                flags=proto.DMA_READ | proto.DMA_WRITE, offset=offset, iova=iova, size=size
            ),
            fds=(fd,),
        )
        self._maps[iova] = size

    def dma_unmap(self, *, iova: int, size: int) -> None:
        """Undo one `dma_map`; the server's answer proves that it let go of the memory.

        So does the end of the connection, for us: a server that has not noticed it yet may go on
        writing, but only into the memfd that it was given, whose pages nobody else ever gets.
        """
        if iova not in self._maps and not self._channel.usable:
            raise ClosedError("the connection is closed, and its maps with it", device=self._name)
        if self._maps.get(iova) != size:
            raise VfioError(
                f"DMA unmap of {size:#x} bytes at IOVA {iova:#x}, which is no map of ours",
                errno=errno.ENOENT,
                device=self._name,
                mend="unmap exactly what was mapped",
            )
        self._unmap(iova, size, REPLY_TIMEOUT_S)

    def _unmap(self, iova: int, size: int, timeout: float) -> None:
        try:
            self._channel.request(
                proto.Command.DMA_UNMAP,
                proto.pack_dma_unmap(iova=iova, size=size),
                timeout=timeout,
            )
        except UdrvError:
            if self._channel.usable:  # the server refused: nobody knows what it still maps
                raise
        del self._maps[iova]

    def unmap_all(self, deadline: float) -> None:
        """Undo every map that is left, until `deadline` (time.monotonic) at the latest."""
        for iova, size in tuple(self._maps.items()):
            self._unmap(iova, size, max(deadline - time.monotonic(), 0.0))
