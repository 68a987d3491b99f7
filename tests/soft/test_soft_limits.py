"""Limits of the process, and a client that takes its replies a little at a time."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
from pathlib import Path

import pytest

import udrv
from udrv import soft
from udrv.errors import UdrvError
from udrv.vfio import user_proto as proto


def outcome(limit: int) -> bytes:
    """Open a controller in a forked child with so many descriptors; what came of it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            with udrv.open("soft:?size=1M") as ctrl:
                ctrl.namespace(1).read(0, 1)
            said = b"works"
        except UdrvError as error:
            said = b"ulimit" if "ulimit -n" in str(error) else str(error).encode()
        except BaseException as error:  # noqa: BLE001 - it is the answer
            said = repr(error).encode()
        os.write(theirs, said)
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    answer = os.read(ours, 4096)
    os.close(ours)
    return answer


def test_few_descriptors_are_an_error_of_ours_with_a_mend() -> None:
    udrv.open("soft:?size=1M").close()  # what is imported late needs descriptors, too
    base = len(list(Path("/proc/self/fd").iterdir()))
    outcomes = [outcome(limit) for limit in range(base, base + 40)]
    assert set(outcomes) == {b"ulimit", b"works"}
    assert outcomes == sorted(outcomes), "once it works, more descriptors do no harm"


def test_a_client_that_trickles_does_not_keep_the_server(tmp_path: Path) -> None:
    """The time limit is one of the whole reply, so that the server can be stopped."""
    path = tmp_path / "socket"
    stop, ready, ended = socket.socketpair(), threading.Event(), threading.Event()

    def serve() -> None:
        soft.serve(path, "size=1M", stop_fd=stop[0].fileno(), on_ready=ready.set)
        ended.set()

    threading.Thread(target=serve, daemon=True).start()
    assert ready.wait(10)
    with socket.socket(socket.AF_UNIX) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        client.connect(str(path))
        version = proto.pack_version(proto.Version(0, 1))
        client.sendall(proto.pack_header(proto.Header(1, 1, 16 + len(version), 0, 0)) + version)
        access = proto.pack_access(offset=0, region=0, count=8192)
        read = struct.pack("=HHIII", 7, 9, 16 + len(access), 0, 0) + access
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            for _ in range(100_000):
                client.sendall(read)  # until the server sticks in a reply
        stop[1].send(b"x")
        for _ in range(40):
            if ended.wait(0.5):
                break
            with contextlib.suppress(OSError):
                client.recv(4096)
        assert ended.is_set()
