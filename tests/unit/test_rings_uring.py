# SPDX-License-Identifier: Apache-2.0
"""Each operation of a ring, on the real kernel: files, pipes, sockets, eventfds."""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rings_rig import require_io_uring

from udrv.errors import (
    BufferTooSmallError,
    BufferTypeError,
    InvalidRequestError,
    QueueFullError,
    UringError,
)
from udrv.rings.uring import (
    CancelFlag,
    Completion,
    CqeFlag,
    Feature,
    Op,
    Ring,
    SetupFlag,
    SqeFlag,
    TimeoutFlag,
)

BLOCK = 4096
CONTENT = os.urandom(16 * BLOCK)
SINGLE = SetupFlag.SINGLE_ISSUER
#: Ways to make a ring that change how submission and completion go, not what they mean.
SETUPS = [
    SetupFlag(0),
    SetupFlag.SUBMIT_ALL,
    SetupFlag.SQE128,
    SetupFlag.CQE32,
    SetupFlag.SQE128 | SetupFlag.CQE32,
    SetupFlag.COOP_TASKRUN | SetupFlag.TASKRUN_FLAG,
    SINGLE | SetupFlag.DEFER_TASKRUN,
    SINGLE | SetupFlag.DEFER_TASKRUN | SetupFlag.SQE128 | SetupFlag.CQE32,
    SetupFlag.SQPOLL,
]


@pytest.fixture(autouse=True, scope="module")
def _io_uring() -> None:
    require_io_uring()


@pytest.fixture(params=SETUPS, ids=lambda setup: setup.name or "plain")
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    with Ring(8, request.param) as made:
        yield made


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def one(ring: Ring) -> Completion:
    (done,) = ring.submit_and_wait(1, timeout=10)
    return done


def by_user_data(done: list[Completion]) -> dict[int, int]:
    return {completion.user_data: completion.res for completion in done}


# --- operations -----------------------------------------------------------------------------------


def test_nop_returns_the_user_data_and_the_token(ring: Ring) -> None:
    token = ring.nop(user_data=(1 << 64) - 1)
    done = one(ring)
    assert done == Completion((1 << 64) - 1, 0, 0, token, (0, 0))
    assert ring.inflight == 0


def test_read_and_write(ring: Ring, fd: int) -> None:
    data = bytearray(b"x" * 100)
    ring.write(fd, data, 5000, user_data=1)
    assert one(ring).check() == 100
    back = np.zeros(102, np.uint8)
    ring.read(fd, back, 4999)
    assert one(ring).check() == 102
    assert back.tobytes() == CONTENT[4999:5000] + data + CONTENT[5100:5101]


def test_the_position_of_the_file_is_minus_one(ring: Ring, fd: int) -> None:
    os.lseek(fd, 4096, os.SEEK_SET)
    buffer = bytearray(10)
    ring.read(fd, buffer, -1)
    one(ring).check()
    assert bytes(buffer) == CONTENT[4096:4106]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 4106


def test_vectors(ring: Ring, fd: int) -> None:
    ring.writev(fd, [b"one", b"", b"three"], 10)
    assert one(ring).check() == 8
    parts = [bytearray(3), bytearray(5)]
    ring.readv(fd, parts, 10)
    assert one(ring).check() == 8
    assert parts == [b"one", b"three"]


def test_fsync(ring: Ring, fd: int) -> None:
    ring.write(fd, b"data", flags=SqeFlag.LINK, user_data=1)
    ring.fsync(fd, user_data=2, flags=SqeFlag.LINK)
    ring.fsync(fd, data_only=True, user_data=3)
    assert by_user_data(ring.submit_and_wait(3, timeout=10)) == {1: 4, 2: 0, 3: 0}


def test_open_read_close(ring: Ring, tmp_path: Path) -> None:
    path = tmp_path / "opened"
    ring.openat(path, os.O_RDWR | os.O_CREAT, 0o640)
    opened = one(ring).check()
    assert os.get_inheritable(opened) is False
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    ring.close_fd(opened)
    assert one(ring).check() == 0
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_send_and_receive(ring: Ring) -> None:
    left, right = socket.socketpair()
    with left, right:
        buffer = bytearray(16)
        ring.recv(right.fileno(), buffer, user_data=1)
        ring.send(left.fileno(), b"over the wire", user_data=2)
        assert by_user_data(ring.submit_and_wait(2, timeout=10)) == {1: 13, 2: 13}
        assert buffer == b"over the wire\0\0\0"


def test_poll(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll_add(pipe[0], select.POLLIN)
    ring.submit()
    assert ring.wait(1, timeout=0.02) == []
    os.write(pipe[1], b"x")
    (done,) = ring.wait(1, timeout=10)
    assert done.res & select.POLLIN


def test_poll_multishot_goes_on_until_it_is_removed(ring: Ring) -> None:
    counter = os.eventfd(0, os.EFD_NONBLOCK)
    token = ring.poll_add(counter, select.POLLIN, multishot=True, user_data=1)
    ring.submit()
    for _ in range(3):
        os.eventfd_write(counter, 1)
        (done,) = ring.wait(1, timeout=10)
        assert (done.user_data, done.token) == (1, token)
        assert done.flags & CqeFlag.MORE
        assert os.eventfd_read(counter) == 1
        assert ring.inflight == 1
    ring.poll_remove(token, user_data=2)
    done_list = ring.submit_and_wait(2, timeout=10)
    while len(done_list) < 2:
        done_list += ring.wait(1, timeout=10)
    assert by_user_data(done_list) == {1: -errno.ECANCELED, 2: 0}
    assert ring.inflight == 0
    os.close(counter)


def test_timeout(ring: Ring) -> None:
    before = time.monotonic()
    ring.timeout(0.05)
    assert one(ring).res == -errno.ETIME
    assert time.monotonic() - before >= 0.05


def test_timeout_at_a_time_that_is_past(ring: Ring) -> None:
    ring.timeout(1.0, timeout_flags=TimeoutFlag.ABS | TimeoutFlag.REALTIME)
    assert one(ring).res == -errno.ETIME


def test_timeout_that_counts(ring: Ring) -> None:
    ring.timeout(60, count=1, user_data=1)
    ring.submit()
    ring.nop(user_data=2)
    done = ring.submit_and_wait(2, timeout=10)
    assert by_user_data(done) == {1: 0, 2: 0}


def test_timeout_remove(ring: Ring) -> None:
    token = ring.timeout(60, user_data=1)
    ring.submit()
    ring.timeout_remove(token, user_data=2)
    assert by_user_data(ring.submit_and_wait(2, timeout=10)) == {1: -errno.ECANCELED, 2: 0}


def test_cancel_one_of_two_with_the_same_user_data(ring: Ring, pipe: tuple[int, int]) -> None:
    first, second = bytearray(1), bytearray(1)
    kept = ring.read(pipe[0], first, user_data=7)
    cancelled = ring.read(pipe[0], second, user_data=7)
    ring.submit()
    ring.cancel(cancelled, user_data=8)
    done = ring.submit_and_wait(2, timeout=10)
    assert {(c.token, c.res) for c in done if c.user_data == 7} == {(cancelled, -errno.ECANCELED)}
    os.write(pipe[1], b"k")
    (done_last,) = ring.wait(1, timeout=10)
    assert (done_last.token, done_last.res, first) == (kept, 1, b"k")


def test_cancel_what_is_done_finds_nothing(ring: Ring) -> None:
    token = ring.nop()
    one(ring)
    ring.nop()  # takes the same slot: its token is another
    ring.cancel(token, user_data=1)
    done = ring.submit_and_wait(2, timeout=10)
    assert by_user_data(done)[1] == -errno.ENOENT


def test_cancel_everything_of_a_file(ring: Ring, pipe: tuple[int, int]) -> None:
    for user_data in (1, 2):
        ring.read(pipe[0], bytearray(1), user_data=user_data)
    ring.submit()
    ring.cancel(fd=pipe[0], cancel_flags=CancelFlag.FD | CancelFlag.ALL, user_data=3)
    done = by_user_data(ring.submit_and_wait(3, timeout=10))
    assert done == {1: -errno.ECANCELED, 2: -errno.ECANCELED, 3: 2}


# --- order ----------------------------------------------------------------------------------------


def test_a_link_runs_in_order(ring: Ring, fd: int) -> None:
    buffer = bytearray(6)
    ring.write(fd, b"linked", 77, user_data=1, flags=SqeFlag.LINK)
    ring.read(fd, buffer, 77, user_data=2)
    assert by_user_data(ring.submit_and_wait(2, timeout=10)) == {1: 6, 2: 6}
    assert buffer == b"linked"


def test_a_broken_link_cancels_what_follows(ring: Ring, fd: int) -> None:
    ring.read(fd, bytearray(10), len(CONTENT) - 5, user_data=1, flags=SqeFlag.LINK)  # short
    ring.nop(user_data=2, flags=SqeFlag.LINK)
    ring.nop(user_data=3)
    ring.nop(user_data=4)
    done = by_user_data(ring.submit_and_wait(4, timeout=10))
    assert done == {1: 5, 2: -errno.ECANCELED, 3: -errno.ECANCELED, 4: 0}


def test_a_hard_link_goes_on(ring: Ring, fd: int) -> None:
    ring.read(-1, bytearray(10), user_data=1, flags=SqeFlag.HARDLINK)
    ring.nop(user_data=2)
    assert by_user_data(ring.submit_and_wait(2, timeout=10)) == {1: -errno.EBADF, 2: 0}


def test_link_timeout_cancels_the_read(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.read(pipe[0], bytearray(1), user_data=1, flags=SqeFlag.LINK)
    ring.link_timeout(0.02, user_data=2)
    done = by_user_data(ring.submit_and_wait(2, timeout=10))
    assert done[1] == -errno.ECANCELED
    assert done[2] == -errno.ETIME


def test_drain_waits_for_what_is_before(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.read(pipe[0], bytearray(1), user_data=1)
    ring.nop(user_data=2, flags=SqeFlag.DRAIN)
    ring.submit()
    assert ring.wait(1, timeout=0.02) == []
    os.write(pipe[1], b"x")
    done = ring.wait(2, timeout=10)
    assert [c.user_data for c in done] == [1, 2]


def test_async_is_the_same(ring: Ring, fd: int) -> None:
    buffer = bytearray(50)
    ring.read(fd, buffer, 3, flags=SqeFlag.ASYNC)
    assert one(ring).check() == 50
    assert bytes(buffer) == CONTENT[3:53]


# --- registered things ----------------------------------------------------------------------------


def test_fixed_buffers(ring: Ring, fd: int) -> None:
    first, second = bytearray(BLOCK), mmap.mmap(-1, BLOCK)
    ring.buffers.register([first, second])
    assert len(ring.buffers) == 2
    ring.read_fixed(fd, 1, 100, 30, buffer_offset=7)
    assert one(ring).check() == 100
    assert second[7:107] == CONTENT[30:130]
    first[:] = b"\xa5" * BLOCK
    ring.write_fixed(fd, 0)
    assert one(ring).check() == BLOCK
    assert os.pread(fd, BLOCK, 0) == bytes(first)
    ring.buffers.unregister()
    with pytest.raises(InvalidRequestError, match="no buffer is registered"):
        ring.read_fixed(fd, 0)


def test_a_sparse_table_of_buffers(ring: Ring, fd: int) -> None:
    ring.buffers.register_sparse(4)
    with pytest.raises(InvalidRequestError, match="index 2 of 4"):
        ring.read_fixed(fd, 2)
    buffer = bytearray(BLOCK)
    ring.buffers.update(2, buffer)
    ring.read_fixed(fd, 2, offset=BLOCK)
    assert one(ring).check() == BLOCK
    assert bytes(buffer) == CONTENT[BLOCK : 2 * BLOCK]
    ring.buffers.update(2, None)
    with pytest.raises(InvalidRequestError):
        ring.read_fixed(fd, 2)


def test_a_fixed_request_must_fit_its_buffer(ring: Ring, fd: int) -> None:
    ring.buffers.register([bytearray(100)])
    for length, start in ((101, 0), (1, 100), (50, 51), (None, 101), (1, -1), (-1, 0)):
        with pytest.raises(BufferTooSmallError, match="which has 100"):
            ring.read_fixed(fd, 0, length, buffer_offset=start)


def test_fixed_files(ring: Ring, fd: int) -> None:
    other = os.dup(fd)
    ring.files.register([-1, other])
    os.close(other)  # the kernel holds the file
    buffer = bytearray(10)
    ring.read(1, buffer, 1, flags=SqeFlag.FIXED_FILE)
    assert one(ring).check() == 10
    assert bytes(buffer) == CONTENT[1:11]
    ring.read(0, bytearray(1), flags=SqeFlag.FIXED_FILE)
    assert one(ring).res == -errno.EBADF
    ring.files.update(0, fd)
    ring.read(0, buffer, 2, flags=SqeFlag.FIXED_FILE)
    assert one(ring).check() == 10
    ring.files.unregister()
    ring.files.register_sparse(3)
    assert len(ring.files) == 3


def test_eventfd_counts_completions(ring: Ring) -> None:
    counter = os.eventfd(0, os.EFD_NONBLOCK)
    ring.register_eventfd(counter)
    ring.nop()
    ring.nop()
    assert len(ring.submit_and_wait(2, timeout=10)) == 2
    assert os.eventfd_read(counter) >= 1
    ring.unregister_eventfd()
    ring.nop()
    one(ring)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(counter)
    os.close(counter)


# --- the ring -------------------------------------------------------------------------------------


def test_what_the_kernel_says_of_itself(ring: Ring) -> None:
    assert Feature.NODROP in ring.features
    assert {Op.NOP, Op.READ, Op.WRITE, Op.ASYNC_CANCEL} <= ring.probe()
    assert ring.fileno() >= 0
    assert not os.get_inheritable(ring.fileno())
    assert (ring.entries, ring.cq_entries, ring.max_inflight) == (8, 16, 16)


def test_sizes_are_rounded_up() -> None:
    with Ring(5, cq_entries=20) as ring:
        assert (ring.entries, ring.cq_entries, ring.max_inflight) == (8, 32, 32)
    with Ring(1 << 20, SetupFlag.CLAMP) as ring:
        assert (ring.entries, ring.cq_entries) == (1 << 15, 1 << 16)


def test_a_full_submission_queue(ring: Ring) -> None:
    for _ in range(8):
        ring.nop()
    with pytest.raises(QueueFullError, match="submission queue is full: submit"):
        ring.nop()
    assert ring.submit() == 8
    assert len(ring.wait(8, timeout=10)) == 8


def test_too_many_in_flight(ring: Ring) -> None:
    for _ in range(2):
        for _ in range(8):
            ring.timeout(60)
        ring.submit()
    with pytest.raises(QueueFullError, match="max_inflight"):
        ring.nop()
    with pytest.raises(QueueFullError, match="max_inflight"):
        ring.read(0, bytearray(1))


def test_the_completion_queue_overflows_and_nothing_is_lost(ring: Ring) -> None:
    with Ring(8, ring.setup, max_inflight=64) as wide:
        for user_data in range(40):
            wide.nop(user_data=user_data)
            wide.submit()
        deadline = time.monotonic() + 10
        while not wide.counters()["backlog"] and time.monotonic() < deadline:
            time.sleep(0.001)  # the SQPOLL thread
        done: list[Completion] = []
        while len(done) < 40:
            got = wide.wait(1, timeout=10)
            assert got, f"only {len(done)} completions"
            done += got
        assert sorted(c.user_data for c in done) == list(range(40))
        counters = wide.counters()
        assert counters["overflows"] > 0
        assert (counters["dropped"], counters["strays"], counters["backlog"]) == (0, 0, 0)
        assert counters["completed"] == 40


def test_waiting_for_more_than_is_outstanding_ends(ring: Ring) -> None:
    assert ring.wait(1) == []
    ring.nop()
    assert ring.wait(1) == []  # not submitted
    assert len(ring.submit_and_wait(3)) == 1


def test_peek_finds_what_is_there_without_waiting(ring: Ring) -> None:
    assert ring.peek() == []
    for user_data in range(3):
        ring.nop(user_data=user_data)
    ring.submit()
    deadline = time.monotonic() + 10
    done: list[Completion] = []
    while len(done) < 3 and time.monotonic() < deadline:
        done += ring.peek(1)
    assert [c.user_data for c in done] == [0, 1, 2]


def test_a_wait_is_woken_by_another_thread_s_write(ring: Ring, pipe: tuple[int, int]) -> None:
    timer = threading.Timer(0.25, os.write, (pipe[1], b"x"))
    timer.start()
    ring.read(pipe[0], bytearray(1))
    (done,) = ring.submit_and_wait(1)
    assert done.res == 1
    timer.join()


def test_a_kernel_without_timed_waits(pipe: tuple[int, int]) -> None:
    """Before 5.11: the wait is made of poll(). The feature bit is cleared here to get there."""
    with Ring(8) as ring:
        ring.native.features &= ~int(Feature.EXT_ARG)
        ring.read(pipe[0], bytearray(1), user_data=1)
        ring.submit()
        assert ring.wait(1, timeout=0.02) == []
        os.write(pipe[1], b"x")
        assert by_user_data(ring.wait(1, timeout=10)) == {1: 1}
        ring.nop()
        ring.timeout(0.02)
        assert len(ring.submit_and_wait(2, timeout=10)) == 2


def test_iopoll_reads(tmp_path: Path) -> None:
    """Polled, or refused by a file system or a device that cannot: nothing else, and no hang."""
    path = tmp_path / "polled"
    path.write_bytes(CONTENT)
    buffer = mmap.mmap(-1, BLOCK)
    try:
        polled = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT on the file system of {tmp_path}: {error}")
    with Ring(8, SetupFlag.IOPOLL) as ring:
        ring.read(polled, buffer, BLOCK)
        (done,) = ring.submit_and_wait(1, timeout=20)
        assert done.res in (BLOCK, -errno.EOPNOTSUPP)
        if done.res == BLOCK:
            assert buffer[:] == CONTENT[BLOCK : 2 * BLOCK]
        ring.read(0, bytearray(1))  # stdin cannot be polled for
        (done,) = ring.submit_and_wait(1, timeout=20)
        with pytest.raises(UringError):
            done.check()
    os.close(polled)


def test_sqpoll_on_a_cpu_with_an_idle_time(fd: int) -> None:
    cpu = min(os.sched_getaffinity(0))
    with Ring(8, SetupFlag.SQPOLL, sqpoll_idle_ms=5, sqpoll_cpu=cpu) as ring:
        assert SetupFlag.SQ_AFF in ring.setup
        for pause in (0.0, 0.05):  # awake, asleep
            time.sleep(pause)
            buffer = bytearray(10)
            ring.read(fd, buffer, 20)
            assert one(ring).check() == 10
            assert bytes(buffer) == CONTENT[20:30]


def test_a_command_of_a_driver() -> None:
    """SOCKET_URING_OP_SIOCINQ (6.7) is a command that needs no device."""
    left, right = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with left, right, udp, Ring(8, SetupFlag.SQE128 | SetupFlag.CQE32) as ring:
        udp.bind(("127.0.0.1", 0))
        udp.sendto(b"seven!!", udp.getsockname())
        ring.uring_cmd(udp.fileno(), 0, b"")
        done = one(ring)
        assert done.res in (7, -errno.EOPNOTSUPP)
        ring.uring_cmd(udp.fileno(), 999, struct.pack("80x"))
        assert one(ring).res == -errno.EOPNOTSUPP
        with pytest.raises(InvalidRequestError):
            ring.uring_cmd(udp.fileno(), 0, bytes(81))
    with Ring(8) as ring, pytest.raises(InvalidRequestError):
        ring.uring_cmd(0, 0, bytes(17))


# --- what cannot be asked for ---------------------------------------------------------------------


def test_memory_that_cannot_be_used(ring: Ring) -> None:
    for buffer in (b"read-only", "text", 7, memoryview(bytes(3)), np.zeros((4, 4))[:, 0]):
        with pytest.raises(BufferTypeError, match="cannot be used as memory"):
            ring.read(0, buffer)
    assert ring.inflight == 0


@pytest.mark.parametrize("flags", [1 << 5, 1 << 6, 255], ids=hex)
def test_flags_that_would_lose_track_of_memory(ring: Ring, flags: int) -> None:
    with pytest.raises(InvalidRequestError, match="SqeFlag"):
        ring.read(0, bytearray(1), flags=flags)
    assert ring.inflight == 0
    assert not any(ring._state.holds)


@pytest.mark.parametrize("wrong", [
    {"user_data": -1}, {"user_data": 1 << 64}, {"user_data": 1.5}, {"fd": 1 << 40},
    {"flags": 256}, {"length": -1}, {"offset": 1 << 64},
], ids=str)  # fmt: skip
def test_numbers_out_of_range(ring: Ring, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="IORING_OP_NOP"):
        ring.prep(Op.NOP, **wrong)
    assert ring.inflight == 0


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e30])
def test_times_out_of_range(ring: Ring, seconds: float) -> None:
    with pytest.raises(InvalidRequestError, match="timeout"):
        ring.timeout(seconds)
    if seconds != float("inf") and seconds != 1e30:
        if seconds == seconds:
            assert ring.wait(1, timeout=seconds) == []
        else:
            with pytest.raises(InvalidRequestError):
                ring.wait(1, timeout=seconds)
