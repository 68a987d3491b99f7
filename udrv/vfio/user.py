"""The vfio-user client: a device that another process serves over a UNIX socket.

`connect` opens a server's socket, `from_socket` takes one that is connected already (`udrv.soft`
starts its controller that way). Both return a `udrv.vfio.device.Device`, so that a driver cannot
tell it from a PCI function behind the kernel's VFIO.

Protocol: QEMU's docs/interop/vfio-user.rst. Memory always goes to the server as a descriptor;
a server that wants to read and write it by message is refused.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from udrv.errors import (
    AlignmentError,
    ClosedError,
    DeviceGoneError,
    ForkedError,
    InvalidRequestError,
    UdrvError,
    UnsupportedOnTransport,
    VfioError,
    VfioUserProtocolError,
)
from udrv.vfio import device as dev
from udrv.vfio import user_proto as proto
from udrv.vfio.user_channel import (
    OUR_MAX_DATA_XFER_SIZE,
    OUR_MAX_MSG_FDS,
    Channel,
    close_fds,
    connect_unix,
)
from udrv.vfio.user_memory import UserMappedArea, UserMapper

#: A socket that accepts and then says nothing is given up after this many seconds.
CONNECT_TIMEOUT_S = 5.0
#: "VFIO_USER_DEVICE_RESET may take an arbitrarily long time"; ours may not.
RESET_TIMEOUT_S = 60.0
#: Closing says good-bye in order, but no longer than this.
CLOSE_TIMEOUT_S = 5.0

#: Bytes of one REGION_WRITE. The kernel takes what it can hold in one piece (16 KiB, at the least)
#: of a UNIX stream socket's message as a whole or not at all.
_WRITE_CHUNK = 8192

_PCI_COMMAND = 4
_PCI_COMMAND_MEMORY = 1 << 1
_PCI_COMMAND_MASTER = 1 << 2


def connect(path: str | os.PathLike[str], *, timeout: float = CONNECT_TIMEOUT_S) -> UserDevice:
    """Connect to the vfio-user server that listens on the UNIX socket `path`.

    `timeout` (seconds) bounds the connection and the negotiation. Raises `DeviceNotFoundError`
    (no such socket, or nobody listens), `PermissionDeniedError`, `DeviceInUseError` (the server
    accepts no more clients now), `TargetError` (a path too long for a socket), and
    `VfioUserProtocolError` (something else listens there).
    """
    where = os.fspath(path)
    name = f"vfio-user:{where}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connect_unix(sock, where, name, time.monotonic() + timeout)
        return from_socket(sock, name, timeout=timeout)
    except BaseException:
        sock.close()
        raise


def from_socket(
    sock: socket.socket, name: str, *, timeout: float = CONNECT_TIMEOUT_S
) -> UserDevice:
    """Negotiate over a connected stream socket; the device owns the socket from here on.

    `name` is what errors call the device. Raises `VfioUserProtocolError` if the peer is no
    vfio-user server, which silence for `timeout` seconds proves as well.
    """
    channel = Channel(sock, name)
    try:
        return UserDevice(channel, name, timeout=timeout)
    except VfioUserProtocolError:
        channel.close()
        raise
    except (DeviceGoneError, VfioError) as error:
        channel.close()
        raise VfioUserProtocolError(
            f"the peer did not complete the negotiation ({error.tried})",
            device=name,
            mend="is it a vfio-user server, and free?",
        ) from error
    except BaseException:
        channel.close()
        raise


class UserDevice:
    """A device behind a vfio-user connection (a `udrv.vfio.device.Device`)."""

    def __init__(self, channel: Channel, name: str, *, timeout: float) -> None:
        self._channel = channel
        self._name = name
        self._pid = os.getpid()
        self._closed = False
        self._regions: dict[int, tuple[dev.RegionInfo, int, int]] = {}
        self._armed: set[int] = set()
        self._posts: int | None = None
        self._departures: list[int] = []
        self._version = self._negotiate(timeout)
        payload, _ = channel.request(
            proto.Command.DEVICE_GET_INFO, proto.pack_device_info(), timeout=timeout
        )
        with self._naming():
            self._info = proto.parse_device_info(payload)
        if not self._info.flags & proto.DEVICE_FLAG_PCI:
            raise VfioUserProtocolError(
                f"the server's device is not a PCI device (flags {self._info.flags:#x})",
                device=name,
                mend="NVMe over vfio-user is a PCI device",
            )
        self._mapper = UserMapper(channel, name, self._version)

    def _negotiate(self, timeout: float) -> proto.Version:
        ours = proto.Version(
            proto.VERSION_MAJOR,
            proto.VERSION_MINOR,
            max_msg_fds=OUR_MAX_MSG_FDS,
            max_data_xfer_size=OUR_MAX_DATA_XFER_SIZE,
        )
        payload, _ = self._channel.request(
            proto.Command.VERSION, proto.pack_version(ours), timeout=timeout
        )
        with self._naming():
            theirs = proto.parse_version(payload)
        if theirs.major != ours.major or theirs.minor > ours.minor:
            raise VfioUserProtocolError(
                f"the server answered version {theirs.major}.{theirs.minor} to our "
                f"{ours.major}.{ours.minor}",
                device=self._name,
                mend="it must be the same major and no later minor version",
            )
        return theirs

    # --- identity ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The target, as errors show it."""
        return self._name

    @property
    def transport(self) -> str:
        """Always "vfio-user"."""
        return "vfio-user"

    @property
    def numa_node(self) -> int | None:
        """A process has no NUMA node of its own."""
        return None

    @property
    def mapper(self) -> UserMapper:
        """Maps memory for the server."""
        return self._mapper

    # --- regions -------------------------------------------------------------------------------

    def region_info(self, index: int) -> dev.RegionInfo:
        """Raise `VfioError` for an index that the device does not have."""
        return self._region(index)[0]

    def _region(self, index: int) -> tuple[dev.RegionInfo, int, int]:
        """Return (information, descriptor or -1, base offset in the descriptor's file)."""
        self._check_open()
        known = self._regions.get(index)
        if known is not None:
            return known
        if not 0 <= index < self._info.num_regions:
            raise VfioError(
                f"region {index} does not exist (the device has {self._info.num_regions})",
                errno=errno.EINVAL,
                device=self._name,
            )
        region, fds = self._ask_region(index)
        areas: tuple[tuple[int, int], ...] = ()
        if region.flags & proto.REGION_FLAG_MMAP and fds:
            whole = ((0, region.size),)
            areas = whole if region.areas is None else region.areas
        info = dev.RegionInfo(index, region.flags, region.size, areas)
        entry = (info, fds[0] if fds else -1, region.offset)
        self._regions[index] = entry
        return entry

    def _ask_region(self, index: int) -> tuple[proto.Region, list[int]]:
        argsz = 4096
        for _attempt in range(2):
            payload, fds = self._channel.request(
                proto.Command.DEVICE_GET_REGION_INFO,
                proto.pack_region_request(index, argsz),
                max_reply_fds=1,
            )
            try:
                with self._naming():
                    region = proto.parse_region(payload, index=index)
            except BaseException:
                close_fds(fds)
                raise
            if region.argsz <= max(argsz, len(payload)):
                return region, fds
            close_fds(fds)
            argsz = min(region.argsz, proto.MAX_REGION_INFO)
        raise VfioUserProtocolError(
            f"region {index} wants {region.argsz} bytes for its capabilities",
            device=self._name,
            mend=f"at most {proto.MAX_REGION_INFO} are taken; the server is faulty",
        )

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of a region, in one access where the server's limit allows it."""
        self._check_range(index, offset, size)
        data = bytearray()
        while len(data) < size:
            at = offset + len(data)
            count = min(size - len(data), self._chunk)
            payload, _ = self._channel.request(
                proto.Command.REGION_READ,
                proto.pack_access(offset=at, region=index, count=count),
            )
            with self._naming():
                data += proto.parse_access(
                    payload, offset=at, region=index, count=count, with_data=True
                )
        return bytes(data)

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write a region, likewise."""
        self._check_range(index, offset, len(data))
        done = 0
        # small enough to enter the socket in one piece, so that no posted write comes in between
        chunk = min(self._chunk, _WRITE_CHUNK)
        while done < len(data):
            part = data[done : done + chunk]
            payload, _ = self._channel.request(
                proto.Command.REGION_WRITE,
                proto.pack_access(
                    offset=offset + done, region=index, count=len(part), data=bytes(part)
                ),
            )
            with self._naming():
                proto.parse_access(
                    payload, offset=offset + done, region=index, count=len(part), with_data=False
                )
            done += len(part)

    def posted_write(self, index: int, offset: int) -> dev.PostedWrite:
        """A REGION_WRITE of 4 bytes without a reply; see `udrv.vfio.device.PostsWrites`."""
        self._check_range(index, offset, 4)
        if self._posts is None:
            self._posts = self._channel.duplicate()
        access = proto.pack_access(offset=offset, region=index, count=4, data=bytes(4))
        size = proto.HEADER_SIZE + len(access)
        head = proto.Header(
            0, proto.Command.REGION_WRITE, size, proto.F_TYPE_COMMAND | proto.F_NO_REPLY, 0
        )
        return dev.PostedWrite(self._posts, proto.pack_header(head) + access, size - 4)

    def mmap_area(self, index: int, offset: int, size: int) -> UserMappedArea:
        """Map a part of a region; see `udrv.vfio.device.Device.mmap_area`."""
        info, fd, base = self._region(index)
        inside = any(
            start <= offset and offset + size <= start + length
            for start, length in info.mmap_areas
        )
        if size <= 0 or not inside:
            raise UnsupportedOnTransport(
                f"bytes {offset:#x} to {offset + size:#x} of region {index} cannot be mapped",
                device=self._name,
                mend="use read() and write(); RegionInfo.mmap_areas says what can be mapped",
            )
        if (base + offset) % mmap.ALLOCATIONGRANULARITY:
            raise AlignmentError(
                f"region {index} cannot be mapped from {offset:#x}",
                device=self._name,
                mend=f"map from a multiple of {mmap.ALLOCATIONGRANULARITY}",
            )
        try:
            return UserMappedArea(fd, base + offset, offset, size)
        except (OSError, ValueError, OverflowError) as error:
            # A ValueError is Python's: the file is shorter than the server says, and a touch of
            # such a mapping would be a SIGBUS.
            raise VfioUserProtocolError(
                f"region {index} says that it can be mapped at {offset:#x}, and cannot ({error})",
                device=self._name,
                mend="the server is faulty",
            ) from error

    @property
    def _chunk(self) -> int:
        return min(self._version.max_data_xfer_size, OUR_MAX_DATA_XFER_SIZE)

    def _check_range(self, index: int, offset: int, size: int) -> None:
        region = self.region_info(index)
        if offset < 0 or size <= 0 or offset + size > region.size:
            raise InvalidRequestError(
                f"bytes {offset:#x} to {offset + size:#x} lie outside of region {index} "
                f"({region.size:#x} bytes)",
                device=self._name,
            )

    # --- interrupts ----------------------------------------------------------------------------

    def irq_info(self, index: int) -> dev.IrqInfo:
        """Raise `VfioError` for an index that the device does not have."""
        self._check_open()
        if not 0 <= index < self._info.num_irqs:
            raise VfioError(
                f"interrupt index {index} does not exist (the device has {self._info.num_irqs})",
                errno=errno.EINVAL,
                device=self._name,
            )
        payload, _ = self._channel.request(
            proto.Command.DEVICE_GET_IRQ_INFO, proto.pack_irq_info(proto.Irq(0, index, 0))
        )
        with self._naming():
            irq = proto.parse_irq_info(payload, index=index)
        return dev.IrqInfo(index, irq.flags, irq.count)

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        """Arm vectors with these eventfds, in place of what was armed on the index before."""
        count = self.irq_info(index).count
        if len(eventfds) > count:
            raise VfioError(
                f"{len(eventfds)} eventfds for the {count} vectors of interrupt index {index}",
                errno=errno.EINVAL,
                device=self._name,
            )
        if self._version.max_msg_fds < 1:
            raise UnsupportedOnTransport(
                "the server takes no descriptors, so it cannot interrupt",
                device=self._name,
                mend="poll for completions",
            )
        self.disable_irqs(index)
        at = 0
        while at < len(eventfds):
            if eventfds[at] < 0:
                at += 1
                continue
            end = at + 1
            limit = min(at + self._version.max_msg_fds, at + OUR_MAX_MSG_FDS, len(eventfds))
            while end < limit and eventfds[end] >= 0:
                end += 1
            self._armed.add(index)
            self._channel.request(
                proto.Command.DEVICE_SET_IRQS,
                proto.pack_irq_set(
                    flags=proto.IRQ_SET_DATA_EVENTFD | proto.IRQ_SET_ACTION_TRIGGER,
                    index=index,
                    start=at,
                    count=end - at,
                ),
                fds=eventfds[at:end],
            )
            at = end

    def disable_irqs(self, index: int) -> None:
        """Disarm all vectors of the index; nothing is sent if none was armed."""
        self._check_open()
        if index in self._armed:
            self._disarm(index, CLOSE_TIMEOUT_S)

    def _disarm(self, index: int, timeout: float) -> None:
        self._channel.request(
            proto.Command.DEVICE_SET_IRQS,
            proto.pack_irq_set(
                flags=proto.IRQ_SET_DATA_NONE | proto.IRQ_SET_ACTION_TRIGGER,
                index=index,
                start=0,
                count=0,
            ),
            timeout=timeout,
        )
        self._armed.discard(index)

    # --- the whole device ------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the device; raises `UnsupportedOnTransport` if the server has no reset."""
        self._check_open()
        if not self._info.flags & proto.DEVICE_FLAG_RESET:
            raise UnsupportedOnTransport("the server offers no reset", device=self._name)
        self._channel.request(proto.Command.DEVICE_RESET, timeout=RESET_TIMEOUT_S)

    def departures(self) -> Sequence[dev.Departure]:
        """The connection: a server that ends hangs up."""
        self._check_open()
        try:
            fd = self._channel.duplicate()
        except OSError as error:
            raise VfioError(
                f"the connection cannot be watched: {error.strerror}", errno=error.errno,
                device=self._name, mend="raise the limit of open files (`ulimit -n`)",
            ) from error
        self._departures.append(fd)
        return [dev.Departure(fd, select.POLLRDHUP, "the server closed the connection", False)]

    def set_bus_master(self, enable: bool) -> None:
        """Set or clear memory space and bus mastering, if the server shows configuration space."""
        self._check_open()
        if self._info.num_regions <= dev.CONFIG or self.region_info(dev.CONFIG).size < 64:
            return
        (command,) = struct.unpack("<H", self.read(dev.CONFIG, _PCI_COMMAND, 2))
        wanted = command | _PCI_COMMAND_MEMORY | _PCI_COMMAND_MASTER
        if not enable:
            wanted = command & ~_PCI_COMMAND_MASTER
        self.write(dev.CONFIG, _PCI_COMMAND, struct.pack("<H", wanted))

    def close(self) -> None:
        """Disarm, unmap and disconnect, `CLOSE_TIMEOUT_S` at most; idempotent.

        Mapped areas stay valid until each is closed. In a forked child nothing is said to the
        server: the connection is the parent's.
        """
        if self._closed:
            return
        self._closed = True
        close_fds(self._departures)
        if self._channel.usable:
            deadline = time.monotonic() + CLOSE_TIMEOUT_S
            # A peer that fails here is disconnected all the same, and that ends its DMA.
            with contextlib.suppress(UdrvError):
                for index in tuple(self._armed):
                    self._disarm(index, max(deadline - time.monotonic(), 0.0))
                self._mapper.unmap_all(deadline)
        self._channel.close()
        if self._posts is not None:
            close_fds([self._posts])
        close_fds([fd for _info, fd, _base in self._regions.values() if fd >= 0])
        self._regions.clear()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Parsers know no device; the reader of their error wants to."""
        try:
            yield
        except VfioUserProtocolError as error:
            error.device = self._name
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the device is closed", device=self._name)
        if os.getpid() != self._pid:
            raise ForkedError(
                "this device belongs to the parent process",
                device=self._name,
                mend="open the device again in the child",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
