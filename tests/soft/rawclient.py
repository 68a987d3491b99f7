"""A vfio-user client that says whatever a test likes."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Callable

from udrv.soft import SoftProcess
from udrv.vfio import user_proto as proto

Start = Callable[..., SoftProcess]
EINVAL, EEXIST, ENOENT, EOPNOTSUPP = 22, 17, 2, 95


class Raw:
    """A client that says whatever it likes."""

    def __init__(self, sock: socket.socket, *, negotiate: bool = True) -> None:
        self.sock = sock
        sock.settimeout(10)
        if negotiate:
            error, _ = self.ask(1, proto.pack_version(proto.Version(0, 1, max_msg_fds=8)))
            assert error == 0

    def send(
        self, command: int, payload: bytes = b"", *, fds: tuple[int, ...] = (), flags: int = 0,
        size: int | None = None,
    ) -> None:
        total = 16 + len(payload) if size is None else size
        data = struct.pack("=HHIII", 7, command, total, flags, 0) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def reply(self) -> tuple[int, bytes]:
        head = b""
        while len(head) < 16:
            part = self.sock.recv(16 - len(head))
            if not part:
                raise EOFError
            head += part
        msg_id, _command, size, flags, error = struct.unpack("=HHIII", head)
        assert msg_id == 7
        assert flags & 0xF == 1
        assert bool(flags & 0x20) == bool(error)
        body = b""
        while len(body) < size - 16:
            body += self.sock.recv(size - 16 - len(body))
        return error, body

    def ask(
        self, command: int, payload: bytes = b"", *, fds: tuple[int, ...] = ()
    ) -> tuple[int, bytes]:
        self.send(command, payload, fds=fds)
        return self.reply()

    def closed(self) -> bool:
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


def alive(raw: Raw) -> bool:
    error, body = raw.ask(9, proto.pack_access(offset=8, region=0, count=4))
    return error == 0 and body[16:] == b"\0\0\2\0"
