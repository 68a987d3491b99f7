# SPDX-License-Identifier: Apache-2.0
"""Queues over io_uring on an ordinary file: bytes, memory, errors and the end."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rings_rig import require_io_uring
from uring_rig import BLOCKS, LBA, FileController, FileNamespace

from udrv import errors
from udrv.nvme import FLUSH, READ, WRITE, Queue
from udrv.nvme.batch import STATUS_CODE
from udrv.nvme.status import HOST_STATUS, error_from_status
from udrv.nvme.uring_pair import HOST_STATUS as C_HOST_STATUS
from udrv.nvme.uring_pair import UringPair, stranded


@pytest.fixture(autouse=True, scope="module")
def _io_uring() -> None:
    require_io_uring()


@pytest.fixture
def ctrl(tmp_path: Path) -> Iterator[FileController]:
    ctrl = FileController(tmp_path / "disk")
    yield ctrl
    ctrl.close()


def run(queue: Queue, batch: object, opcode: int, count: int) -> None:
    batch.opcode[:count] = opcode  # type: ignore[attr-defined]
    done = first = 0
    while done < count:
        first += queue.submit(batch, first, count - first)  # type: ignore[arg-type]
        reaped = queue.reap(1, timeout=20)
        assert len(reaped) and not reaped.status.any(), reaped.result
        done += len(reaped)


@settings(deadline=None, max_examples=30,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_on_any_queue_moves_exactly_its_bytes(
    ctrl: FileController, data: st.DataObject
) -> None:
    """The file is read by the file system, so both ways are checked against somebody else."""
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=40))
    shift = 4 * data.draw(st.integers(0, 600))
    interrupt, one_thread = data.draw(st.booleans()), data.draw(st.booleans())
    depth = data.draw(st.integers(2, 33))
    order = data.draw(st.permutations(range(len(lengths))))
    n = len(lengths)
    slba = np.cumsum([0, *lengths[:-1]]) + np.arange(n)
    offset = shift + np.cumsum([0, *lengths[:-1]]) * LBA
    total = sum(lengths) * LBA
    buf = ctrl.alloc(total + shift)
    want = np.random.default_rng(n).integers(0, 256, total, dtype=np.uint8)
    buf[:shift] = 0x5A
    buf[shift:] = want
    queue = ctrl.queue(depth, interrupt=interrupt, one_thread=one_thread)
    batch = queue.batch(n, namespace=ctrl.namespace, buffer=buf)
    batch.slba[:], batch.nlb[:], batch.offset[:] = slba, lengths, offset
    run(queue, batch, WRITE, n)
    for k in range(n):
        here = int(offset[k]) - shift
        size = lengths[k] * LBA
        assert os.pread(ctrl.fd, size, int(slba[k]) * LBA) == want[here : here + size].tobytes()
    buf[:] = 0xA5
    batch.slba[:] = slba[list(order)]
    batch.nlb[:] = np.array(lengths)[list(order)]
    batch.offset[:] = offset[list(order)]
    run(queue, batch, READ, n)
    assert (buf[shift:] == want).all() and (buf[:shift] == 0xA5).all()
    queue.close()


def test_registered_memory_and_without(ctrl: FileController) -> None:
    queue = ctrl.queue()
    batch = queue.batch(4, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
    run(queue, batch, READ, 4)
    assert queue.counters()["fixed"] == 4
    batch.offset[:] = 4  # no whole blocks: the block layer takes it by its address only
    run(queue, batch, READ, 4)
    assert queue.counters()["fixed"] == 4


def test_memory_that_is_given_back_is_registered_no_longer(ctrl: FileController) -> None:
    queue = ctrl.queue()
    pair = queue.pair
    assert isinstance(pair, UringPair)
    for _ in range(3):
        batch = queue.batch(1, namespace=ctrl.namespace, buffer=ctrl.alloc(8 << 20))
        run(queue, batch, READ, 1)
        assert len(pair._pools) == 1
        batch.close()
        del batch
        queue.reap()
        assert ctrl.memory.trim() == 8 << 20
        assert not pair._pools
    assert queue.counters()["fixed"] == 3


def test_the_first_write_asks_once(ctrl: FileController) -> None:
    queue = ctrl.queue()
    batch = queue.batch(2, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
    namespace = ctrl.namespace
    assert isinstance(namespace, FileNamespace)
    run(queue, batch, READ, 2)
    assert namespace.prepared == 0
    run(queue, batch, WRITE, 2)
    run(queue, batch, WRITE, 2)
    assert namespace.prepared == 1


def test_a_write_that_is_not_allowed_sends_nothing(
    ctrl: FileController, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ctrl.queue()
    batch = queue.batch(2, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
    batch.opcode[1] = WRITE
    monkeypatch.setattr(FileNamespace, "prepare_write", lambda self: None)
    with pytest.raises(errors.PermissionDeniedError, match="row 1"):
        queue.submit(batch)
    assert queue.inflight == 0


def test_errnos_are_errors_of_their_own(ctrl: FileController) -> None:
    queue = ctrl.queue()
    batch = queue.batch(2, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
    batch.slba[:] = 0, BLOCKS - 1
    os.ftruncate(ctrl.fd, LBA)  # what lies behind the end comes short
    assert queue.submit(batch) == 2
    reaped = queue.reap(2, timeout=20)
    by_row = dict(zip(reaped.user_data.tolist(), reaped.status.tolist(), strict=True))
    assert by_row == {0: 0, 1: HOST_STATUS}
    assert HOST_STATUS == C_HOST_STATUS and HOST_STATUS & STATUS_CODE
    error = error_from_status(HOST_STATUS, command="read", qid=1, result=5, device="x")
    assert isinstance(error, errors.KernelIoError) and isinstance(error, OSError)
    assert not isinstance(error, errors.NvmeStatusError)
    assert error.errno == 5 and "EIO" in str(error)


@pytest.mark.parametrize("interrupt", [False, True])
def test_flush_and_eventfd(ctrl: FileController, interrupt: bool) -> None:
    queue = ctrl.queue(interrupt=interrupt)
    batch = queue.batch(1, namespace=ctrl.namespace)
    run(queue, batch, FLUSH, 1)
    assert (queue.pair.eventfd >= 0) is interrupt
    if interrupt:
        assert os.eventfd_read(queue.pair.eventfd) == 1


def test_what_a_block_device_cannot_carry(ctrl: FileController) -> None:
    queue = ctrl.queue()
    batch = queue.batch(1, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
    with pytest.raises(errors.UnsupportedOnTransport):
        queue.submit_raw(batch, bytes([0x02]) + bytes(63), length=512)
    batch.control[0] = 1 << 15
    with pytest.raises(errors.UnsupportedOnTransport, match="row 0"):
        queue.submit(batch)


def test_another_thread_is_told_off(ctrl: FileController) -> None:
    queue = ctrl.queue(one_thread=True)
    batch = queue.batch(1, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
    if not queue.pair.setup_flags & 1 << 12:  # type: ignore[attr-defined]
        pytest.skip("this kernel does not know SINGLE_ISSUER")
    run(queue, batch, READ, 1)
    seen: list[BaseException] = []

    def other() -> None:
        try:
            queue.submit(batch)
        except BaseException as e:  # noqa: BLE001 - looked at below
            seen.append(e)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert [type(e) for e in seen] == [errors.QueueBusyError]
    assert queue.inflight == 0
    run(queue, batch, READ, 1)


def test_closed_with_commands_in_flight(ctrl: FileController) -> None:
    """Those of a pipe come when somebody writes to it: until then nothing is let go."""
    read, write = os.pipe()
    file, ctrl.fd = ctrl.fd, read
    queue = ctrl.queue()
    buf = ctrl.alloc(4096)
    batch = queue.batch(1, namespace=ctrl.namespace, buffer=buf)
    assert queue.submit(batch) == 1
    pair = queue.pair
    assert isinstance(pair, UringPair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udrv.nvme.uring_pair._DRAIN_SECONDS", 0.05)
        with pytest.raises(errors.CommandTimeoutError, match="1 commands on queue 1"):
            queue.close()
    assert stranded() == 1 and buf.pins == 1
    with pytest.raises(errors.ClosedError):
        queue.submit(batch)
    os.write(write, bytes(512))
    queue.close()
    assert stranded() == 0 and buf.pins == 0
    os.close(write)
    os.close(read)
    ctrl.fd = file


def test_setup_errors_are_named(ctrl: FileController) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(errors.UringError, match="EMFILE"):
            ctrl.queue()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors() -> int:
    """Rings and eventfds of this process."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found += any(kind in str(link.readlink()) for kind in ("io_uring", "eventfd"))
    return found


def test_a_queue_that_nobody_closed_gives_its_ring_back(ctrl: FileController) -> None:
    gc.collect()
    before = descriptors()
    for _ in range(3):
        queue = ctrl.queue(interrupt=True)
        batch = queue.batch(2, namespace=ctrl.namespace, buffer=ctrl.alloc(4096))
        run(queue, batch, READ, 2)
        ctrl.queues.clear()
        ctrl.mapper.pairs.clear()
        del queue, batch
        gc.collect()
    assert descriptors() == before
    assert stranded() == 0
