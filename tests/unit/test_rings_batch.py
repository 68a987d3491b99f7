# SPDX-License-Identifier: Apache-2.0
"""Batches on columns, and what must hold for any mix of requests in any order of completion."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rings_rig import require_io_uring

from udrv.errors import BufferTooSmallError, BufferTypeError, InvalidRequestError, UringError
from udrv.rings.uring import CqeFlag, Op, Ring, SetupFlag, SqeFlag

SIZE = 1 << 16


@pytest.fixture(autouse=True, scope="module")
def _io_uring() -> None:
    require_io_uring()


@pytest.fixture
def fd(tmp_path: Path) -> Any:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 256)
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


def test_a_batch_reads(fd: int) -> None:
    buffer = bytearray(64 * 256)
    with Ring(64) as ring:
        batch = ring.batch(64, buffer)
        batch.fd[:] = fd
        batch.length[:] = 256
        batch.buffer_offset[:] = np.arange(64) * 256
        batch.file_offset[:] = np.arange(64)
        batch.user_data[:] = 1000 + np.arange(64)
        assert ring.push(batch) == 64
        assert ring.counters()["unsubmitted"] == 64
        done = ring.reap(64, submit=True, timeout=10)
        done.check()
        assert sorted(done.user_data) == list(range(1000, 1064))
        assert sorted(done.token) == sorted(batch.token)
        assert set(done.res) == {256}
    content = bytes(range(256)) * 2
    assert bytes(buffer) == b"".join(content[i : i + 256] for i in range(64))


def test_a_batch_of_everything_that_it_can_carry(fd: int) -> None:
    memory = bytearray(b"w" * 100)
    with Ring(8) as ring:
        ring.buffers.register([bytearray(16), memory])
        ring.files.register([fd])
        batch = ring.batch(6, memory)
        batch.opcode[:] = [Op.WRITE_FIXED, Op.FSYNC, Op.NOP, Op.READ_FIXED, Op.WRITE, Op.FSYNC]
        batch.flags[:] = SqeFlag.HARDLINK | SqeFlag.FIXED_FILE
        batch.flags[2] = SqeFlag.HARDLINK
        batch.flags[5] = SqeFlag.FIXED_FILE
        batch.fd[:] = 0
        batch.buf_index[:] = 1
        batch.length[:] = [50, 0, 0, 20, 30, 0]
        batch.file_offset[:] = [7, 0, 0, 200, 300, 0]
        batch.buffer_offset[:] = [0, 0, 0, 80, 0, 0]
        batch.rw_flags[5] = 1  # IORING_FSYNC_DATASYNC
        assert ring.push(batch) == 6
        done = ring.reap(6, submit=True, timeout=10)
        assert dict(zip(done.user_data.tolist(), done.res.tolist(), strict=True)) == {
            0: 50, 1: 0, 2: 0, 3: 20, 4: 30, 5: 0,
        }
    assert os.pread(fd, 50, 7) == b"w" * 50
    assert os.pread(fd, 30, 300) == b"w" * 30
    assert memory[80:] == bytes(range(200, 220))


def test_what_does_not_fit_waits_for_the_next_push(fd: int) -> None:
    with Ring(8) as ring:
        batch = ring.batch(20, bytearray(20))
        batch.fd[:] = fd
        batch.length[:] = 1
        assert ring.push(batch) == 8
        assert ring.push(batch, 8) == 0
        ring.submit()
        assert ring.push(batch, 8) == 8  # max_inflight is 16
        ring.submit()
        assert ring.push(batch, 16) == 0
        assert len(ring.reap(16, timeout=10)) == 16
        assert ring.push(batch, 16, 3) == 3
        assert sorted(ring.reap(3, submit=True, timeout=10).user_data) == [16, 17, 18]
        assert ring.push(batch, 20) == 0
        assert ring.push(batch, 0, 0) == 0


def test_a_chain_is_not_cut(fd: int) -> None:
    with Ring(8) as ring:
        batch = ring.batch(12, bytearray(1))
        batch.opcode[:] = Op.NOP
        batch.flags[4:9] = SqeFlag.LINK  # rows 4 to 9 are a chain
        assert ring.push(batch) == 4
        ring.submit()
        assert ring.push(batch, 4) == 8
        ring.submit()
        ring.reap(12, timeout=10)
        batch.flags[:11] = SqeFlag.LINK
        with pytest.raises(InvalidRequestError, match="chain of links from row 0"):
            ring.push(batch)
        assert ring.inflight == 0


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"length": 11}, BufferTooSmallError, "row 2 .* the buffer has 10 bytes"),
    ({"buffer_offset": 10}, BufferTooSmallError, "row 2"),
    ({"buffer_offset": (1 << 64) - 1}, BufferTooSmallError, "row 2"),
    ({"opcode": Op.READV}, InvalidRequestError, "row 2 .*IORING_OP_READV.* not an operation"),
    ({"opcode": 255}, InvalidRequestError, "row 2"),
    ({"flags": 1 << 5}, InvalidRequestError, "row 2.*flag"),
], ids=str)  # fmt: skip
def test_a_bad_row_names_itself_and_nothing_is_queued(
    fd: int, change: dict[str, int], error: type[Exception], message: str
) -> None:
    with Ring(8) as ring:
        batch = ring.batch(4, bytearray(10))
        batch.fd[:] = fd
        batch.length[:] = 1
        for name, value in change.items():
            getattr(batch, name)[2] = value
        with pytest.raises(error, match=message):
            ring.push(batch)
        assert ring.inflight == 0
        assert not any(hold is not None for hold in ring._state.holds)
        assert ring.push(batch, 0, 2) == 2


def test_a_batch_without_a_buffer_carries_no_data(fd: int) -> None:
    with Ring(8) as ring:
        batch = ring.batch(2)
        batch.fd[:] = fd
        batch.opcode[:] = Op.FSYNC
        assert ring.push(batch) == 2
        batch.opcode[:] = Op.READ
        with pytest.raises(BufferTypeError, match="read-only"):
            ring.push(batch)


def test_read_only_memory_can_be_written_to_a_file_only(fd: int) -> None:
    with Ring(8) as ring:
        with pytest.raises(BufferTypeError):
            ring.batch(1, b"bytes")
        batch = ring.batch(1, b"bytes", writable=False)
        batch.fd[:] = fd
        batch.length[:] = 5
        with pytest.raises(BufferTypeError, match="read-only"):
            ring.push(batch)
        batch.opcode[:] = Op.WRITE
        ring.push(batch)
        assert ring.reap(1, submit=True, timeout=10).res[0] == 5
    assert os.pread(fd, 5, 0) == b"bytes"


def test_a_column_may_not_be_replaced() -> None:
    with Ring(8) as ring:
        batch = ring.batch(2)
        batch.length += 4  # the same column
        batch.length = np.zeros(2, np.uint32)
        with pytest.raises(BufferTypeError, match="replaced"):
            ring.push(batch)


@pytest.mark.parametrize("rows", [(-1, 1), (0, 3), (2, 1), (1, -1), (1 << 40, 1)])
def test_rows_outside_of_the_batch(rows: tuple[int, int]) -> None:
    with Ring(8) as ring, pytest.raises(InvalidRequestError, match="of a batch of 2"):
        ring.push(ring.batch(2), *rows)


def test_reaped_columns_are_views_of_one_reap(fd: int) -> None:
    with Ring(8, SetupFlag.CQE32) as ring:
        for user_data in (1, 2, 3):
            ring.nop(user_data=user_data)
        assert list(ring.reap(2, 2, submit=True, timeout=10).user_data) == [1, 2]
        reaped = ring.reap(1, timeout=10)
        assert (len(reaped), list(reaped.user_data), reaped.big.shape) == (1, [3], (1, 2))
        with pytest.raises(ValueError, match="read-only"):
            reaped.res[0] = 1
        ring.read(-1, bytearray(1), user_data=9)
        with pytest.raises(UringError, match="user_data 9 failed with EBADF"):
            ring.reap(1, submit=True, timeout=10).check()
        assert len(ring.reap()) == 0
        assert len(ring.reap(5, 0)) == 0


# --- properties -----------------------------------------------------------------------------------

request_rows = st.tuples(
    st.booleans(),  # write
    st.integers(0, SIZE - 1),  # file offset
    st.integers(0, 3 * 4096),  # length
    st.booleans(),  # fixed buffer
    st.booleans(),  # fixed file
    st.sampled_from([SqeFlag(0), SqeFlag(0), SqeFlag.ASYNC, SqeFlag.LINK, SqeFlag.HARDLINK,
                     SqeFlag.DRAIN]),
)
setups = st.sampled_from([
    SetupFlag(0), SetupFlag.SQPOLL, SetupFlag.SQE128 | SetupFlag.CQE32,
    SetupFlag.SINGLE_ISSUER | SetupFlag.DEFER_TASKRUN,
])  # fmt: skip


def disjoint(rows: list[Any]) -> list[Any]:
    """Those rows that no write before them in the list overlaps, and no read if they write.

    What two requests in flight do to the same bytes of a file has no order.
    """
    kept: list[Any] = []
    for row in rows:
        write, start, length = row[:3]
        length = min(length, SIZE - start)  # no short reads here
        if length and not any(
            (write or k[0]) and start < k[1] + k[2] and k[1] < start + length for k in kept
        ):
            kept.append((write, start, length, *row[3:]))
    return kept


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.lists(request_rows, min_size=1, max_size=24), min_size=1, max_size=4),
       setup=setups, seed=st.integers(0, 2**32 - 1), single=st.booleans())
def test_any_batch_moves_exactly_the_right_bytes(
    batches: list[list[Any]], setup: SetupFlag, seed: int, single: bool
) -> None:
    rng = np.random.default_rng(seed)
    model = rng.integers(0, 256, SIZE, np.uint8)
    with tempfile.TemporaryFile() as file, Ring(32, setup) as ring:
        file.write(model.tobytes())
        file.flush()
        fd = file.fileno()
        stride = 3 * 4096 + 64  # guard bytes between the rows
        buffer = np.zeros(24 * stride, np.uint8)
        ring.buffers.register([bytearray(1), buffer])
        ring.files.register([-1, fd])
        for rows in map(disjoint, batches):
            if not rows:
                continue
            buffer[:] = rng.integers(0, 256, len(buffer), np.uint8)
            expected = buffer.copy()
            batch = ring.batch(len(rows), buffer)
            for i, (write, start, length, fixed, fixed_file, flags) in enumerate(rows):
                at = i * stride + int(rng.integers(0, 64))
                if write:
                    model[start : start + length] = buffer[at : at + length]
                else:
                    expected[at : at + length] = model[start : start + length]
                if i == len(rows) - 1:
                    flags &= ~(SqeFlag.LINK | SqeFlag.HARDLINK)
                target = 1 if fixed_file else fd
                flags |= SqeFlag.FIXED_FILE if fixed_file else 0
                batch.opcode[i] = (
                    (Op.WRITE_FIXED if fixed else Op.WRITE) if write
                    else (Op.READ_FIXED if fixed else Op.READ)
                )
                batch.flags[i], batch.fd[i], batch.file_offset[i] = flags, target, start
                batch.buffer_offset[i], batch.length[i], batch.buf_index[i] = at, length, 1
                if single:
                    if fixed:
                        prep = ring.write_fixed if write else ring.read_fixed
                        prep(target, 1, length, start, buffer_offset=at, flags=flags, user_data=i)
                    else:
                        call = ring.write if write else ring.read
                        call(target, buffer[at : at + length], start, flags=flags, user_data=i)
            # a write that a read of this batch precedes in the model touches other bytes: any order
            pushed = len(rows) if single else ring.push(batch)
            assert pushed == len(rows)
            done = ring.reap(len(rows), submit=True, timeout=30)
            done.check()
            assert sorted(done.user_data) == list(range(len(rows)))
            lengths = {int(u): int(r) for u, r in zip(done.user_data, done.res, strict=True)}
            assert lengths == {i: row[2] for i, row in enumerate(rows)}
            assert np.array_equal(buffer, expected)
        assert os.pread(fd, SIZE + 1, 0) == model.tobytes()
        assert ring.inflight == 0
        assert ring.counters()["strays"] == 0
        assert not any(hold is not None for hold in ring._state.holds)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.just("poll"), st.booleans()),
        st.tuples(st.just("timeout"), st.sampled_from([0.0, 0.001, 60.0])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("write"), st.integers(1, 9)),
        st.tuples(st.just("submit"), st.none()),
        st.tuples(st.just("peek"), st.integers(1, 8)),
        st.tuples(st.just("wait"), st.integers(1, 3)),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=actions, setup=setups)
def test_every_request_ends_once_and_holds_its_memory_until_then(
    script: list[Any], setup: SetupFlag
) -> None:
    """Reads of a pipe, polls, timeouts, cancelled or not, in any order; at the end a close."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(read_end, True)
    started: dict[int, int] = {}  # token: user data
    ended: set[int] = set()
    mine: set[int] = set()  # reads: those that hold memory
    received = written = 0

    def take(done: list[Any]) -> int:
        got = 0
        for completion in done:
            assert started[completion.token] == completion.user_data
            assert completion.token not in ended
            if completion.flags & CqeFlag.MORE:
                continue
            ended.add(completion.token)
            if completion.token in mine:
                assert completion.res in (-errno.ECANCELED, -errno.EINTR) or completion.res >= 0
                got += max(completion.res, 0)
        return got

    with Ring(8, setup, max_inflight=24) as ring:
        for number, (what, value) in enumerate(script):
            space = 24 - ring.inflight
            if what in {"read", "poll", "timeout", "cancel"}:
                if not space:
                    received += take(ring.peek())
                    continue
                ring.submit()  # there is room in the submission queue then
                if what == "read":
                    token = ring.read(read_end, bytearray(value + 1), user_data=number)
                    mine.add(token)
                elif what == "poll":
                    token = ring.poll_add(read_end, multishot=value, user_data=number)
                elif what == "timeout":
                    token = ring.timeout(value, user_data=number)
                else:
                    tokens = list(started)
                    token = ring.cancel(tokens[value % len(tokens)] if tokens else 12345,
                                        user_data=number)
                started[token] = number
            elif what == "write":
                written += os.write(write_end, b"x" * value)
            elif what == "submit":
                ring.submit()
            elif what == "peek":
                received += take(ring.peek(value))
            else:
                received += take(ring.wait(value, timeout=0.001))
            assert ring.inflight == len(started) - len(ended)
            held = sum(hold is not None for hold in ring._state.holds)
            assert held == len(mine - ended)
        state = ring._state
    assert state.closed
    assert state.holds == []
    assert received <= written
    os.close(read_end)
    os.close(write_end)


def test_columns_that_change_while_they_are_pushed(tmp_path: Path) -> None:
    """Between check and use: what was checked is what the kernel gets."""
    path = tmp_path / "file"
    path.write_bytes(b"\xaa" * 4096)
    memory = np.zeros(1 << 16, np.uint8)
    done = threading.Event()
    with path.open("rb") as file, Ring(4096) as ring:
        batch = ring.batch(4096, memory[:4096])
        batch.fd[:] = file.fileno()
        batch.length[:] = 64

        def change() -> None:
            while not done.is_set():
                batch.buffer_offset[:] = 8192
                batch.buffer_offset[:] = 0

        other = threading.Thread(target=change)
        other.start()
        try:
            for _ in range(1000):
                try:
                    left = ring.push(batch)
                except BufferTooSmallError:
                    assert ring.counters()["unsubmitted"] == 0
                    continue
                while left:
                    left -= len(ring.reap(1, submit=True, timeout=10))
        finally:
            done.set()
            other.join()
        assert not memory[4096:].any(), "written to outside of its buffer"
        batch.buffer_offset[:] = 0
        assert ring.push(batch) == 4096
        assert len(ring.reap(4096, submit=True, timeout=10)) == 4096
