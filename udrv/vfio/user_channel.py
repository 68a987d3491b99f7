"""One vfio-user connection: a command goes out, its reply comes back, nothing waits for ever.

A channel knows framing, message ids, file descriptors and time limits; what the messages mean is
in `udrv.vfio.user_proto`, what a device does with them in `udrv.vfio.user`.

Framing that is once lost cannot be found again, so any broken message, and any time limit that
passes, closes the connection. An error *reply* leaves it usable.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from udrv.errors import (
    ClosedError,
    DeviceGoneError,
    DeviceInUseError,
    DeviceNotFoundError,
    ForkedError,
    PermissionDeniedError,
    TargetError,
    VfioError,
    VfioUserProtocolError,
)
from udrv.vfio import user_proto as proto

#: Commands answer from memory; a server that needs longer than this is not going to answer.
REPLY_TIMEOUT_S = 10.0

#: What we are ready to receive, and say so in VERSION.
OUR_MAX_MSG_FDS = 16
OUR_MAX_DATA_XFER_SIZE = 1 << 20

_CONNECT_RETRY_S = 0.005
_MAX_MESSAGE = proto.HEADER_SIZE + proto.ACCESS_SIZE + OUR_MAX_DATA_XFER_SIZE
_CMSG_SPACE = socket.CMSG_SPACE(OUR_MAX_MSG_FDS * 4)


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors, whatever state they are in."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def connect_unix(sock: socket.socket, where: str, name: str, deadline: float) -> None:
    """Connect a stream socket to the path `where` by `deadline` (time.monotonic).

    Raises as `udrv.vfio.user.connect` says; `name` is what errors call the device.
    """
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(where)
            except BlockingIOError:
                # The queue of a UNIX listener is full; there is no event for room in it.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_CONNECT_RETRY_S)
            else:
                return
    except FileNotFoundError as error:
        raise DeviceNotFoundError(
            f"there is no socket {where}", device=name, mend="start the server first"
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"connecting to {where} is not permitted",
            device=name,
            mend=f"{_owner(where)}; write permission on the socket is needed",
        ) from error
    except BlockingIOError as error:
        raise DeviceInUseError(
            "the server accepts no connection now",
            reasons=("its queue of waiting clients is full",),
            device=name,
            mend="it serves another client; wait for that one to leave",
        ) from error
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            is_socket = Path(where).is_socket()
            raise DeviceNotFoundError(
                f"nobody listens on {where}" if is_socket else f"{where} is not a socket",
                device=name,
                mend="the server has ended; start it again" if is_socket else None,
            ) from error
        if error.errno is None:  # Python's own check of sun_path
            raise TargetError(str(error), device=name, mend="use a shorter path") from error
        raise VfioUserProtocolError(
            f"connecting to {where} failed: {error.strerror}",
            device=name,
            mend="a vfio-user server listens on a UNIX stream socket",
        ) from error


def _owner(where: str) -> str:
    try:
        info = Path(where).stat()
    except OSError:
        return "a directory on the way is closed to this user"
    return f"the socket belongs to uid {info.st_uid}, gid {info.st_gid} (mode {info.st_mode:o})"


class Channel:
    """Commands and replies over one connected stream socket, which it owns.

    Every method may raise `DeviceGoneError` (the peer closed), `VfioUserProtocolError` (the peer
    broke the protocol), `VfioError` (an error reply, or ETIMEDOUT), `ClosedError`, `ForkedError`.
    Threads take turns: a lock is held from a command to its reply.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._name = name
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._next_id = 0
        self._closed = False
        self._broken: str | None = None

    @property
    def usable(self) -> bool:
        """Whether a command can be sent at all."""
        return not self._closed and self._broken is None and os.getpid() == self._pid

    def request(
        self,
        command: proto.Command,
        payload: bytes = b"",
        *,
        fds: Sequence[int] = (),
        timeout: float = REPLY_TIMEOUT_S,
        max_reply_fds: int = 0,
    ) -> tuple[bytes, list[int]]:
        """Send a command, return its reply's payload and descriptors (the caller's to close).

        More than `max_reply_fds` descriptors with the reply are a protocol error. `timeout` is in
        seconds, for the whole exchange.
        """
        if os.getpid() != self._pid:
            raise ForkedError(
                "this connection belongs to the parent process",
                device=self._name,
                mend="open the device again in the child",
            )
        with self._lock:
            if self._closed:
                raise ClosedError("the device is closed", device=self._name)
            if self._broken is not None:
                raise self._gone(f"{command.name} cannot be sent, {self._broken}")
            try:
                return self._exchange(
                    command, payload, fds, time.monotonic() + timeout, max_reply_fds
                )
            except VfioUserProtocolError as error:
                self._break("the connection was given up after a broken message")
                error.device = self._name
                raise
            except TimeoutError as error:
                self._break(f"the peer did not answer {command.name} within {timeout:g} s")
                raise VfioError(
                    f"{command.name} was not answered within {timeout:g} s",
                    errno=errno.ETIMEDOUT,
                    device=self._name,
                    mend="the server hangs, or the socket is no vfio-user server's",
                ) from error
            except VfioError:
                raise
            except OSError as error:
                self._break(f"the connection failed ({error})")
                raise self._gone(f"{command.name} failed: {error}") from error
            except BaseException:
                # An interrupt between command and reply: the next reply would be the wrong one.
                self._break("the connection was given up when a command was interrupted")
                raise

    def duplicate(self) -> int:
        """Another descriptor of the socket, the caller's to close; for messages without a reply.

        It ends with the connection, like the socket: `close` shuts both down. Messages on it must
        be small enough to enter the socket in one piece.
        """
        with self._lock:
            if not self.usable:
                raise self._gone("no message can be sent")
            return fcntl.fcntl(self._sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)

    def close(self) -> None:
        """Close the socket; idempotent. In a forked child the parent's connection stays up."""
        self._closed = True
        self._hang_up()

    def _break(self, why: str) -> None:
        self._broken = why
        self._hang_up()

    def _hang_up(self) -> None:
        if os.getpid() == self._pid:
            # what `duplicate` gave away must not keep the connection
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _gone(self, tried: str) -> DeviceGoneError:
        return DeviceGoneError(
            tried,
            device=self._name,
            state="disconnected",
            mend="see whether the server process still runs, and open the device again",
        )

    # --- one exchange, under the lock ----------------------------------------------------------

    def _exchange(
        self,
        command: proto.Command,
        payload: bytes,
        fds: Sequence[int],
        deadline: float,
        max_reply_fds: int,
    ) -> tuple[bytes, list[int]]:
        self._next_id = (self._next_id + 1) & 0xFFFF
        msg_id = self._next_id
        size = proto.HEADER_SIZE + len(payload)
        head = proto.Header(msg_id, command, size, proto.F_TYPE_COMMAND, 0)
        self._send(proto.pack_header(head) + payload, fds, deadline)
        while True:
            header, body, got = self._receive(deadline)
            try:
                if not header.is_reply:
                    # A server without a descriptor for our memory would read and write it by
                    # message. Ours always goes with one, so there is nothing it could need.
                    self._refuse(header, deadline)
                    continue
                if header.msg_id != msg_id or header.command != command:
                    raise VfioUserProtocolError(
                        f"the peer answered command {header.command} (id {header.msg_id}) where "
                        f"{command.name} (id {msg_id}) was asked",
                        mend="the server is faulty",
                    )
                if header.is_error:
                    number = header.error or errno.EIO
                    raise VfioError(
                        f"{command.name} failed: {os.strerror(number)}"
                        if number < 1 << 31
                        else f"{command.name} failed with error {number}",
                        errno=number,
                        device=self._name,
                    )
                if len(got) > max_reply_fds:
                    raise VfioUserProtocolError(
                        f"the peer sent {len(got)} descriptors with {command.name}, at most "
                        f"{max_reply_fds} belong there",
                        mend="the server is faulty",
                    )
                kept, got = got, []
                return body, kept
            finally:
                close_fds(got)

    def _refuse(self, header: proto.Header, deadline: float) -> None:
        if not header.wants_reply:
            return
        answer = proto.Header(
            header.msg_id,
            header.command,
            proto.HEADER_SIZE,
            proto.F_TYPE_REPLY | proto.F_ERROR,
            errno.EOPNOTSUPP,
        )
        self._send(proto.pack_header(answer), (), deadline)

    def _until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)

    def _send(self, data: bytes, fds: Sequence[int], deadline: float) -> None:
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        view = memoryview(data)
        while view:
            self._until(deadline)
            try:
                sent = self._sock.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
            except OSError as error:
                if not ancillary or error.errno not in (errno.EBADF, errno.ETOOMANYREFS):
                    raise
                raise VfioError(
                    f"the descriptors {list(fds)} cannot be sent: {error.strerror}",
                    errno=error.errno,
                    device=self._name,
                ) from error
            ancillary = []
            view = view[sent:]

    def _receive(self, deadline: float) -> tuple[proto.Header, bytes, list[int]]:
        fds: list[int] = []
        try:
            head = self._receive_exactly(proto.HEADER_SIZE, fds, deadline)
            header = proto.parse_header(head, max_size=_MAX_MESSAGE)
            body = self._receive_exactly(header.size - proto.HEADER_SIZE, fds, deadline)
        except BaseException:
            close_fds(fds)
            raise
        return header, body, fds

    def _receive_exactly(self, size: int, fds: list[int], deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._until(deadline)
            part, ancillary, flags, _address = self._sock.recvmsg(
                min(size - len(data), 1 << 16), _CMSG_SPACE, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(raw[: len(raw) - len(raw) % received.itemsize])
                    fds.extend(received)
            if flags & socket.MSG_CTRUNC or len(fds) > OUR_MAX_MSG_FDS:
                raise VfioUserProtocolError(
                    "the peer sent more descriptors than fit",
                    mend=f"we accept {OUR_MAX_MSG_FDS} a message; see also `ulimit -n`",
                )
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
            data += part
        return bytes(data)
