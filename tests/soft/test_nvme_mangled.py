# SPDX-License-Identifier: Apache-2.0
"""A server whose replies were changed on the way: the driver ends with an error that has a name.

Between a real controller and the driver stands a relay that changes bytes of replies, cuts them,
or keeps their descriptors.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import random
import socket
import threading
from pathlib import Path

import pytest

from udrv import soft
from udrv.errors import UdrvError
from udrv.nvme import Controller
from udrv.vfio import user_proto as proto
from udrv.vfio.user import from_socket
from udrv.vfio.user_channel import Channel

SPACE = socket.CMSG_SPACE(64)


class Relay:
    """Changes what the server answers; `chance` of each reply, after the first `spared`."""

    def __init__(self, server: socket.socket, seed: int, *, spared: int, chance: float) -> None:
        self.ours, self._client = socket.socketpair()
        self._server = server
        self._random = random.Random(seed)
        self._spared, self._chance = spared, chance
        self.changed = 0
        self.threads = [
            threading.Thread(target=self._run, args=(self._requests,), daemon=True),
            threading.Thread(target=self._run, args=(self._replies,), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """End both directions; what the driver has not closed is closed."""
        self.ours.close()
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads)
        self._client.close()

    def _run(self, work: object) -> None:
        with contextlib.suppress(OSError, proto.VfioUserProtocolError):
            assert callable(work)
            work()
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _requests(self) -> None:
        while True:
            data, fds = self._take(self._client, 65536)
            if not data:
                return
            self._give(self._server, data, fds)

    def _replies(self) -> None:
        while True:
            head, fds = self._take(self._server, proto.HEADER_SIZE)
            if not head:
                return
            size = proto.parse_header(head, max_size=1 << 20).size
            body = b""
            while len(head) + len(body) < size:
                more, late = self._take(self._server, size - len(head) - len(body))
                body, fds = body + more, fds + late
            data = bytearray(head + body)
            self._spared -= 1
            if self._spared < 0 and self._random.random() < self._chance:
                self.changed += 1
                data, fds = self._mangle(data, fds)
            self._give(self._client, bytes(data), fds)

    def _mangle(self, data: bytearray, fds: list[int]) -> tuple[bytearray, list[int]]:
        kind = self._random.random()
        if kind < 0.05 and fds:
            for fd in fds:
                os.close(fd)
            return data, []
        if kind < 0.1:
            return data[: self._random.randrange(len(data)) + 1], fds
        # mostly of the payload; the header is sixteen bytes among many
        first = proto.HEADER_SIZE if kind < 0.8 and len(data) > proto.HEADER_SIZE else 0
        for _ in range(self._random.choice([1, 1, 2, 8])):
            at = self._random.randrange(first, len(data))
            data[at] = self._random.choice([0, 0xFF, data[at] ^ 1 << self._random.randrange(8)])
        return data, fds

    @staticmethod
    def _take(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
        data, ancillary, _, _ = sock.recvmsg(size, SPACE)
        fds = array.array("i")
        for _, _, raw in ancillary:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        return data, list(fds)

    @staticmethod
    def _give(sock: socket.socket, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sock.sendmsg([data], rights)
        finally:
            for fd in fds:
                os.close(fd)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that was cut is waited for; here for less than ten seconds."""
    request = Channel.request

    def quick(self: Channel, *args: object, **kw: object) -> object:
        kw["timeout"] = 0.3
        return request(self, *args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(Channel, "request", quick)


def descriptors() -> list[str]:
    gc.collect()
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory itself
            found.append(str(entry.readlink()).split(":")[0])
    return sorted(found)


def one(options: str, seed: int) -> str:
    """Open, read, write and close through a relay; how it ended."""
    with soft.start(options) as process:
        relay = Relay(process.socket, seed, spared=seed % 24, chance=0.2)
        try:
            with Controller(from_socket(relay.ours, "vfio-user:mangled")) as ctrl:
                ns = ctrl.namespace(1)
                ns.write(0, ns.read(0, 1, timeout=0.5), timeout=0.5)
                ctrl.smart_log()
        except UdrvError as error:
            assert error.device == "vfio-user:mangled", error
            return type(error).__name__
        finally:
            relay.close()
    return "none"


@pytest.mark.parametrize("doorbells", ["mapped", "trapped"])
@pytest.mark.parametrize("first", range(0, 48, 8))
def test_changed_replies_are_errors_with_a_name(doorbells: str, first: int) -> None:
    before = descriptors()
    ends = {one(f"size=1M&doorbells={doorbells}", seed) for seed in range(first, first + 8)}
    assert len(ends) > 1, ends  # not all of one kind: it was not the first message each time
    assert descriptors() == before
