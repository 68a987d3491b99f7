"""The vfio-user client against servers that are faulty, hostile, or no servers at all."""

from __future__ import annotations

import array
import contextlib
import errno
import multiprocessing
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udrv.errors import (
    AlignmentError,
    ClosedError,
    DeviceGoneError,
    DeviceInUseError,
    DeviceNotFoundError,
    ForkedError,
    InvalidRequestError,
    TargetError,
    UdrvError,
    UnsupportedOnTransport,
    VfioError,
    VfioUserProtocolError,
)
from udrv.vfio import user_proto as proto
from udrv.vfio.device import BAR0, CONFIG, MSIX, Device
from udrv.vfio.user import UserDevice, connect, from_socket

C = proto.Command


class FakeServer:
    """Answers commands from a table; an entry may be a payload, an errno, raw bytes or None.

    Keys are commands; a callable value gets the request's payload and descriptors.
    """

    def __init__(self, **version: int) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.requests: list[tuple[int, bytes, int]] = []
        self.raw: bytes | None = None
        self.before: bytes = b""
        self.echoed: list[proto.Header] = []
        self.fds: list[int] = []
        self.answers: dict[int, object] = {
            C.VERSION: proto.pack_version(proto.Version(0, 1, **({"max_msg_fds": 8} | version))),
            C.DEVICE_GET_INFO: proto.pack_device_info(proto.DeviceInfo(3, 9, 5)),
            C.DEVICE_GET_REGION_INFO: self.region,
            C.DEVICE_GET_IRQ_INFO: lambda data: proto.pack_irq_info(
                proto.Irq(1, struct.unpack_from("=I", data, 8)[0], 4)
            ),
            C.DEVICE_SET_IRQS: b"",
            C.DMA_MAP: b"",
            C.DMA_UNMAP: lambda data: data,
            C.DEVICE_RESET: b"",
            C.REGION_READ: lambda data: data + bytes(struct.unpack_from("=I", data, 12)[0]),
            C.REGION_WRITE: lambda data: data[:16],
        }
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def region(self, data: bytes) -> bytes:
        (index,) = struct.unpack_from("=I", data, 8)
        return proto.pack_region(proto.Region(0, 3, index, 0x4000, 0, None))

    def receive(self) -> tuple[proto.Header, bytes, int] | None:
        data, ancillary, _flags, _ = self.theirs.recvmsg(16, socket.CMSG_SPACE(64))
        while data and len(data) < 16:
            data += self.theirs.recv(16 - len(data))
        if not data:
            return None
        fds = array.array("i")
        for _level, _kind, raw in ancillary:
            fds.frombytes(raw[: len(raw) // 4 * 4])
        for fd in fds:
            os.close(fd)
        header = proto.parse_header(data, max_size=1 << 22)
        body = b""
        while len(body) < header.size - 16:
            body += self.theirs.recv(header.size - 16 - len(body))
        return header, body, len(fds)

    def run(self) -> None:
        try:
            while got := self.receive():
                header, body, nr_fds = got
                if header.is_reply:
                    self.echoed.append(header)
                    continue
                self.requests.append((header.command, body, nr_fds))
                self.answer(header, body)
        except OSError:
            pass
        self.theirs.close()

    def answer(self, header: proto.Header, body: bytes) -> None:
        answer = self.answers.get(header.command, errno.ENOTSUP)
        if callable(answer):
            answer = answer(body)
        if answer is None:
            return
        if answer == "close":
            self.theirs.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(answer, Raw):
            self.theirs.sendall(answer.data)
            if answer.last:
                self.theirs.shutdown(socket.SHUT_WR)
            return
        flags, error, payload = 1, 0, b""
        if isinstance(answer, int):
            flags, error = 0x21, answer
        else:
            assert isinstance(answer, bytes)
            payload = answer
        head = proto.Header(header.msg_id, header.command, 16 + len(payload), flags, error)
        rights = []
        if self.fds and header.command == C.DEVICE_GET_REGION_INFO:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.fds))]
        self.theirs.sendmsg([self.before + proto.pack_header(head) + payload], rights)


class Raw:
    """Bytes to send instead of a reply; after the last, the sending side is closed."""

    def __init__(self, data: bytes, *, last: bool = False) -> None:
        self.data = data
        self.last = last


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.ours.close()
    fake.thread.join(10)


@pytest.fixture
def device(server: FakeServer) -> Iterator[UserDevice]:
    with from_socket(server.ours, "vfio-user:fake", timeout=5) as opened:
        yield opened


def test_it_is_a_device(device: UserDevice) -> None:
    assert isinstance(device, Device)
    assert (device.name, device.transport, device.numa_node) == (
        "vfio-user:fake", "vfio-user", None
    )
    assert device.mapper.page_size == 4096
    assert device.mapper.iova_ranges == ((0x10000, (1 << 48) - 1),)


# --- what is no vfio-user server ------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Raw(b"SSH-2.0-OpenSSH_9.2p1\r\n"), Raw(b""),
     "close", None, errno.EINVAL, b"", b"\0", struct.pack("=HH", 1, 0), struct.pack("=HH", 0, 2),
     struct.pack("=HH", 0, 1) + b"not json\0",
     Raw(proto.pack_header(proto.Header(77, 1, 20, 1, 0)) + struct.pack("=HH", 0, 1)),
     Raw(proto.pack_header(proto.Header(1, 4, 20, 1, 0)) + struct.pack("=HH", 0, 1)),
     Raw(proto.pack_header(proto.Header(1, 1, 0xFFFF_FFFF, 1, 0)))],
)
def test_a_peer_that_is_no_server(server: FakeServer, answer: object) -> None:
    server.answers[C.VERSION] = answer
    with pytest.raises(VfioUserProtocolError, match="vfio-user:fake"):
        from_socket(server.ours, "vfio-user:fake", timeout=0.3)
    assert server.ours.fileno() == -1


def test_sockets_that_cannot_be_connected(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError, match="no socket"):
        connect(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceNotFoundError, match="not a socket"):
        connect(tmp_path / "file")
    with pytest.raises(TargetError):
        connect(tmp_path / ("x" * 150))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
        with pytest.raises(DeviceNotFoundError, match="nobody listens"):
            connect(tmp_path / "dead")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "datagram"))
        with pytest.raises(VfioUserProtocolError):
            connect(tmp_path / "datagram")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        first.connect(str(tmp_path / "full"))
        with pytest.raises(DeviceInUseError):
            connect(tmp_path / "full", timeout=0.2)


def test_a_listener_that_never_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen(1)
        with pytest.raises(VfioUserProtocolError, match="not answered within"):
            connect(tmp_path / "silent", timeout=0.2)


# --- errors after negotiation ---------------------------------------------------------------------


def test_an_error_reply_keeps_its_errno_and_the_connection(
    server: FakeServer, device: UserDevice
) -> None:
    server.answers[C.REGION_READ] = errno.EPERM
    with pytest.raises(VfioError) as caught:
        device.read(BAR0, 0, 4)
    assert caught.value.errno == errno.EPERM
    server.answers[C.REGION_READ] = 0xFFFF_FFFF
    with pytest.raises(VfioError):
        device.read(BAR0, 0, 4)
    assert device.region_info(1).size == 0x4000


def test_a_peer_that_closes_is_gone_for_good(server: FakeServer, device: UserDevice) -> None:
    server.answers[C.REGION_READ] = "close"
    for _ in range(2):
        with pytest.raises(DeviceGoneError):
            device.read(BAR0, 0, 4)


def test_a_reply_that_never_comes(
    server: FakeServer, device: UserDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers[C.DEVICE_RESET] = None
    monkeypatch.setattr("udrv.vfio.user.RESET_TIMEOUT_S", 0.1)
    with pytest.raises(VfioError) as caught:
        device.reset()
    assert caught.value.errno == errno.ETIMEDOUT
    with pytest.raises(DeviceGoneError):  # a late reply would be taken for another one's
        device.read(BAR0, 0, 4)


@pytest.mark.parametrize("cut", [-1, 1])
def test_replies_of_a_wrong_length(server: FakeServer, device: UserDevice, cut: int) -> None:
    size = 20 + cut
    server.answers[C.REGION_READ] = lambda data: (data + bytes(64))[:size]
    with pytest.raises(VfioUserProtocolError, match="vfio-user:fake"):
        device.read(BAR0, 0, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([C.DEVICE_GET_REGION_INFO, C.DEVICE_GET_IRQ_INFO, C.REGION_READ,
                     C.DMA_MAP, C.DEVICE_SET_IRQS, C.DEVICE_GET_INFO, C.VERSION]),
    st.binary(max_size=100),
    st.booleans(),
)
def test_fuzzed_replies_raise_nothing_else(command: C, data: bytes, framed: bool) -> None:
    fake = FakeServer()
    fake.answers[command] = data if framed else Raw(data, last=True)
    try:
        with from_socket(fake.ours, "vfio-user:fuzz", timeout=1) as device:
            device.region_info(BAR0)
            device.irq_info(MSIX)
            device.read(BAR0, 0, 4)
            fd = os.memfd_create("fuzz")
            try:
                device.mapper.dma_map(fd=fd, offset=0, address=0, iova=1 << 20, size=4096)
            finally:
                os.close(fd)
    except UdrvError as error:
        assert isinstance(
            error, VfioUserProtocolError | VfioError | DeviceGoneError | InvalidRequestError
        )
    finally:
        fake.ours.close()
        fake.thread.join(10)


def test_server_commands_are_refused_and_skipped(
    server: FakeServer, device: UserDevice
) -> None:
    payload = struct.pack("=QQ", 0x10000, 16)
    read = proto.pack_header(proto.Header(9, C.DMA_READ, 32, 0, 0)) + payload
    quiet = proto.pack_header(proto.Header(10, C.DMA_READ, 32, 0x10, 0)) + payload
    device.region_info(BAR0)
    server.before = read + quiet
    assert device.read(BAR0, 0, 4) == bytes(4)
    server.before = b""
    device.reset()  # after this, the refusal has been read too
    assert [(h.msg_id, h.error, h.flags) for h in server.echoed] == [(9, errno.EOPNOTSUPP, 0x21)]


# --- regions --------------------------------------------------------------------------------------


def test_long_accesses_are_split_to_what_the_server_takes() -> None:
    fake = FakeServer(max_data_xfer_size=100)
    with from_socket(fake.ours, "x") as device:
        assert device.read(BAR0, 0, 250) == bytes(250)
        device.write(BAR0, 16, b"a" * 201)
    got = [struct.unpack_from("=QII", body) for c, body, _ in fake.requests if c in (9, 10)]
    assert got == [(0, 0, 100), (100, 0, 100), (200, 0, 50),
                   (16, 0, 100), (116, 0, 100), (216, 0, 1)]
    fake.thread.join(10)


def test_accesses_are_checked_here(device: UserDevice, server: FakeServer) -> None:
    for offset, size in ((0x4000, 1), (0x3FFF, 2), (-1, 4), (0, 0)):
        with pytest.raises(InvalidRequestError):
            device.read(BAR0, offset, size)
    for index in (-1, 9):
        with pytest.raises(VfioError):
            device.region_info(index)
    assert not any(command == C.REGION_READ for command, _, _ in server.requests)


def test_mapping_needs_a_file_that_is_long_enough(server: FakeServer, device: UserDevice) -> None:
    fd = os.memfd_create("region")
    os.ftruncate(fd, 0x2000)
    server.fds = [fd]
    server.answers[C.DEVICE_GET_REGION_INFO] = lambda data: proto.pack_region(
        proto.Region(0, 7, struct.unpack_from("=I", data, 8)[0], 0x4000, 0,
                     ((0x1000, 0x1000), (0x3000, 0x1000)))
    )
    with contextlib.closing(device.mmap_area(BAR0, 0x1000, 0x1000)) as area:
        assert (area.offset, area.size) == (0x1000, 0x1000)
        assert area.address % 4096 == 0
    area.close()  # idempotent
    with pytest.raises(ClosedError):
        _ = area.address
    with pytest.raises(VfioUserProtocolError):  # touching it would be a SIGBUS
        device.mmap_area(BAR0, 0x3000, 0x1000)
    for offset, size in ((0, 0x1000), (0x1000, 0x2000), (0x2000, 0x1000), (0x1000, 0)):
        with pytest.raises(UnsupportedOnTransport):
            device.mmap_area(BAR0, offset, size)
    with pytest.raises(AlignmentError):
        device.mmap_area(BAR0, 0x1800, 0x800)
    os.close(fd)


def test_unexpected_descriptors_are_closed(server: FakeServer, device: UserDevice) -> None:
    fds = [os.memfd_create("a"), os.memfd_create("b")]
    server.fds = fds
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(VfioUserProtocolError, match="2 descriptors"):
        device.region_info(BAR0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    for fd in fds:
        os.close(fd)


def test_bus_master_is_harmless_without_configuration_space() -> None:
    fake = FakeServer()
    fake.answers[C.DEVICE_GET_INFO] = proto.pack_device_info(proto.DeviceInfo(3, CONFIG, 5))
    with from_socket(fake.ours, "x") as device:
        device.set_bus_master(True)
    assert not any(command == C.REGION_WRITE for command, _, _ in fake.requests)
    fake.thread.join(10)


# --- memory ---------------------------------------------------------------------------------------


def test_maps_are_checked_here_and_undone_at_the_end(
    server: FakeServer, device: UserDevice
) -> None:
    fd = os.memfd_create("dma")
    mapper = device.mapper
    args = {"fd": fd, "offset": 0, "address": 0}
    for iova, size in ((1, 4096), (1 << 20, 100), (1 << 20, 0)):
        with pytest.raises(AlignmentError):
            mapper.dma_map(**args, iova=iova, size=size)
    for iova, size in ((0, 4096), (1 << 48, 4096), ((1 << 48) - 4096, 8192)):
        with pytest.raises(InvalidRequestError):
            mapper.dma_map(**args, iova=iova, size=size)
    with pytest.raises(VfioError):
        mapper.dma_unmap(iova=1 << 20, size=4096)
    for iova in (1 << 20, 2 << 20):
        mapper.dma_map(**args, iova=iova, size=8192)
    with pytest.raises(VfioError):
        mapper.dma_unmap(iova=1 << 20, size=4096)
    mapper.dma_unmap(iova=1 << 20, size=8192)
    with pytest.raises(VfioError) as caught:
        mapper.dma_map(fd=999_999, offset=0, address=0, iova=1 << 30, size=4096)
    assert caught.value.errno == errno.EBADF
    os.close(fd)
    device.close()
    device.close()
    unmapped = [proto.parse_dma_unmap(b) for c, b, _ in server.requests if c == C.DMA_UNMAP]
    assert unmapped == [(1 << 20, 8192), (2 << 20, 8192)]
    assert [n for c, _, n in server.requests if c == C.DMA_MAP] == [1, 1]
    with pytest.raises(ClosedError):
        device.read(BAR0, 0, 4)
    with pytest.raises(ClosedError):
        mapper.dma_map(**args, iova=1 << 20, size=4096)


def test_the_server_s_limit_of_maps() -> None:
    fake = FakeServer(max_dma_maps=1)
    fd = os.memfd_create("dma")
    with from_socket(fake.ours, "x") as device:
        device.mapper.dma_map(fd=fd, offset=0, address=0, iova=1 << 20, size=4096)
        with pytest.raises(VfioError) as caught:
            device.mapper.dma_map(fd=fd, offset=0, address=0, iova=2 << 20, size=4096)
        assert caught.value.errno == errno.ENOSPC
    os.close(fd)
    fake.thread.join(10)


# --- interrupts -----------------------------------------------------------------------------------


def sets(server: FakeServer) -> list[tuple[int, int, int, int]]:
    """(flags, start, count, descriptors) of every DEVICE_SET_IRQS."""
    found = []
    for command, body, nr_fds in server.requests:
        if command == C.DEVICE_SET_IRQS:
            flags, _index, start, count, _ = proto.parse_irq_set(body)
            found.append((flags, start, count, nr_fds))
    return found


def test_vectors_are_armed_in_runs(server: FakeServer, device: UserDevice) -> None:
    fds = [os.eventfd(0) for _ in range(3)]
    device.set_irqs(MSIX, [fds[0], -1, fds[1], fds[2]])
    assert sets(server) == [(36, 0, 1, 1), (36, 2, 2, 2)]
    device.set_irqs(MSIX, [fds[0]])  # replaces: disarms first
    assert sets(server)[2:] == [(33, 0, 0, 0), (36, 0, 1, 1)]
    device.disable_irqs(MSIX)
    device.disable_irqs(MSIX)
    assert sets(server)[4:] == [(33, 0, 0, 0)]
    with pytest.raises(VfioError):
        device.set_irqs(MSIX, [-1] * 5)
    for fd in fds:
        os.close(fd)


def test_vectors_are_armed_in_parts_that_the_server_takes() -> None:
    fake = FakeServer(max_msg_fds=1)
    fd = os.eventfd(0)
    with from_socket(fake.ours, "x") as device:
        device.set_irqs(MSIX, [fd, fd, fd])
    os.close(fd)
    assert sets(fake) == [(36, 0, 1, 1), (36, 1, 1, 1), (36, 2, 1, 1), (33, 0, 0, 0)]
    fake.thread.join(10)


# --- processes and threads ------------------------------------------------------------------------


def in_fork(action: Callable[[], object]) -> str:
    """The name of what `action` raises in a forked child."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            action()
            sender.send("nothing")
        except UdrvError as error:
            sender.send(type(error).__name__)

    process = context.Process(target=child)
    process.start()
    process.join(20)
    return str(receiver.recv())


def test_a_forked_child_cannot_use_it_nor_end_it(server: FakeServer, device: UserDevice) -> None:
    assert in_fork(lambda: device.read(BAR0, 0, 4)) == ForkedError.__name__
    assert in_fork(device.close) == "nothing"
    assert not any(command == C.DMA_UNMAP for command, _, _ in server.requests)
    assert device.read(BAR0, 0, 4) == bytes(4)


def test_threads_take_turns(server: FakeServer, device: UserDevice) -> None:
    server.answers[C.REGION_READ] = lambda data: (
        data + data[:8] if struct.unpack_from("=I", data, 12)[0] == 8 else data
    )
    wrong: list[int] = []

    def reader(offset: int) -> None:
        for _ in range(100):
            if device.read(BAR0, offset, 8) != struct.pack("=Q", offset):
                wrong.append(offset)

    threads = [threading.Thread(target=reader, args=(8 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
