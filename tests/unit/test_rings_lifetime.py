# SPDX-License-Identifier: Apache-2.0
"""No memory is freed under the kernel: not by the user, an exception, a fork, or a close."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
from rings_rig import require_io_uring

from udrv.errors import ClosedError, ForkedError, QueueBusyError, UringError
from udrv.rings import lifetime
from udrv.rings.native import lib
from udrv.rings.uring import Op, Ring, SetupFlag, SqeFlag

DEFERRED = SetupFlag.SINGLE_ISSUER | SetupFlag.DEFER_TASKRUN
setups = pytest.mark.parametrize(
    "setup", [SetupFlag(0), DEFERRED, SetupFlag.SQPOLL], ids=lambda setup: setup.name or "plain"
)


@pytest.fixture(autouse=True, scope="module")
def _io_uring() -> None:
    require_io_uring()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def alive(ref: weakref.ref[Any]) -> bool:
    gc.collect()
    return ref() is not None


def read_into_new_memory(ring: Ring, fd: int) -> weakref.ref[Any]:
    """A read whose memory nobody but the ring knows of."""
    array = np.zeros(4096, np.uint8)
    ring.read(fd, array)
    ring.submit()
    return weakref.ref(array)


# --- memory in flight -----------------------------------------------------------------------------


@setups
def test_memory_lives_until_its_completion_is_reaped(
    setup: SetupFlag, pipe: tuple[int, int]
) -> None:
    with Ring(8, setup) as ring:
        ref = read_into_new_memory(ring, pipe[0])
        assert alive(ref)
        os.write(pipe[1], b"late")
        while not ring.inflight:
            pass
        time.sleep(0.01)
        assert alive(ref), "completed, but nobody has looked"
        held = ref()
        (done,) = ring.wait(1, timeout=10)
        assert done.res == 4
        assert held is not None
        assert held[:5].tobytes() == b"late\0"
        del held
        assert not alive(ref)


def test_memory_in_flight_cannot_be_resized(pipe: tuple[int, int]) -> None:
    buffer = bytearray(10)
    with Ring(8) as ring:
        ring.read(pipe[0], buffer)
        with pytest.raises(BufferError):
            buffer.extend(b"more")
        ring.submit()
        with pytest.raises(BufferError):
            buffer.clear()
    buffer.clear()


def test_memory_of_a_batch_lives_until_its_last_request_is_done(pipe: tuple[int, int]) -> None:
    with Ring(8) as ring:
        array = np.zeros(4096, np.uint8)
        batch = ring.batch(3, array)
        ref = weakref.ref(array)
        batch.fd[:] = pipe[0]
        batch.length[:] = 4
        assert ring.push(batch) == 3
        ring.submit()
        with pytest.raises(AttributeError):
            batch.view = None  # type: ignore[misc]
        del batch, array
        for _ in range(3):
            assert alive(ref)
            os.write(pipe[1], b"data")
            (done,) = ring.wait(1, timeout=10)
            assert done.res == 4
        assert not alive(ref)


def test_the_ring_keeps_what_the_kernel_reads_beside_the_data(pipe: tuple[int, int]) -> None:
    """The vectors of a readv, here of a worker that looks at them later."""
    with Ring(8) as ring:
        parts = [bytearray(2), bytearray(2)]
        ring.readv(pipe[0], parts, flags=SqeFlag.ASYNC)
        ring.submit()
        gc.collect()
        os.write(pipe[1], b"abcd")
        assert ring.wait(1, timeout=10)[0].res == 4
        assert parts == [b"ab", b"cd"]


def test_a_failed_prep_keeps_nothing() -> None:
    with Ring(1) as ring:
        ring.nop()
        array = np.zeros(16, np.uint8)
        ref = weakref.ref(array)
        with pytest.raises(Exception, match="full"):
            ring.read(0, array)
        del array
        assert not alive(ref)


def test_a_registered_buffer_lives_until_its_slot_is_free(pipe: tuple[int, int]) -> None:
    with Ring(8) as ring:
        arrays = [np.zeros(4096, np.uint8) for _ in range(2)]
        refs = [weakref.ref(array) for array in arrays]
        ring.buffers.register(arrays)
        arrays.clear()
        assert alive(refs[0])
        assert alive(refs[1])
        ring.read_fixed(pipe[0], 0, 4)
        ring.submit()
        ring.buffers.update(0, None)
        assert alive(refs[0]), "a request in flight uses it"
        os.write(pipe[1], b"data")
        (done,) = ring.wait(1, timeout=10)
        assert done.res == 4
        assert not alive(refs[0])
        assert alive(refs[1])
    assert not alive(refs[1])


# --- the end --------------------------------------------------------------------------------------


@setups
def test_close_cancels_and_then_lets_go(setup: SetupFlag, pipe: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ring = Ring(4, setup)
        refs = [read_into_new_memory(ring, pipe[0]) for _ in range(3)]
        ring.timeout(600)
        ring.submit()
        ring.poll_add(pipe[0], multishot=True)
        ring.close()
        assert not any(alive(ref) for ref in refs)
        ring.close()
    os.write(pipe[1], b"nobody reads this")


def test_an_exception_closes_as_well(pipe: tuple[int, int]) -> None:
    with pytest.raises(ZeroDivisionError), Ring(8) as ring:
        ref = read_into_new_memory(ring, pipe[0])
        _ = 1 / 0
    with pytest.raises(ClosedError):
        ring.nop()
    assert not alive(ref)


def test_unsubmitted_requests_are_dropped(pipe: tuple[int, int]) -> None:
    with Ring(8) as ring:
        array = np.ones(16, np.uint8)
        ref = weakref.ref(array)
        ring.write(pipe[1], array)
        ring.read(pipe[0], bytearray(1))
        assert ring.counters()["unsubmitted"] == 2
    del array
    assert not alive(ref)
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


def test_a_dropped_ring_is_closed(pipe: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ring = Ring(8)
        ref = read_into_new_memory(ring, pipe[0])
        number = ring.fileno()
        del ring
        assert not alive(ref)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


class Stubborn:
    """The C library, but what is in flight cannot be cancelled."""

    def __getattr__(self, name: str) -> Any:
        if name == "udrv_uring_cancel_all":
            return lambda *_: 0
        return getattr(lib, name)


@pytest.mark.parametrize("how", ["close", "drop"])
def test_what_does_not_end_keeps_its_memory(
    how: str, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    ring = Ring(8)
    ref = read_into_new_memory(ring, pipe[0])
    with monkeypatch.context() as patch:
        patch.setattr(lifetime, "lib", Stubborn())
        with pytest.warns(ResourceWarning, match="memory stays allocated"):
            if how == "close":
                ring.close(timeout=0.05)
            del ring
            gc.collect()
        assert len(lifetime.parked) == 1
        with Ring(2):
            pass
        assert len(lifetime.parked) == 1
        assert alive(ref)
    os.write(pipe[1], b"late")
    deadline = time.monotonic() + 10
    while lifetime.parked and time.monotonic() < deadline:
        with Ring(2):  # sweeps
            pass
    assert not lifetime.parked
    assert not alive(ref)


def test_all_in_flight_is_cancelled_without_sync_cancel_too(pipe: tuple[int, int]) -> None:
    """Before 6.0 by a request for each, of which there may be more than the queue holds."""
    with Ring(2, max_inflight=64) as ring:
        for _ in range(20):
            ring.read(pipe[0], bytearray(1))
            ring.submit()
        assert lib.udrv_uring_cancel_all(ring._state.c, 0) == 0
        done = ring.wait(20, timeout=10)
        while len(done) < 20:
            done += ring.wait(1, timeout=10)
        assert {c.res for c in done} == {-errno.ECANCELED}
        assert ring.counters()["strays"] == 0


CLOSED_CALLS = [
    "nop", "submit", "peek", "wait", "probe", "fileno", "counters", "submit_and_wait",
    "unregister_eventfd",
]  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_CALLS)
def test_a_closed_ring_says_so(name: str) -> None:
    ring = Ring(8)
    ring.close()
    with pytest.raises(ClosedError):
        getattr(ring, name)()
    with pytest.raises(ClosedError):
        ring.buffers.register([bytearray(1)])
    with pytest.raises(ClosedError), ring:
        pass
    assert "closed" in repr(ring)


def test_a_ring_cannot_be_copied() -> None:
    with Ring(8) as ring:
        for copier in (copy.copy, pickle.dumps):
            with pytest.raises(TypeError, match="ring"):
                copier(ring)


def test_the_interpreter_may_end_with_requests_in_flight() -> None:
    code = """
import os
from udrv.rings.uring import Ring
ends = os.pipe()
ring = Ring(8)
for _ in range(5):
    ring.read(ends[0], bytearray(1 << 20))
ring.submit()
keep = [ring]
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- signals, threads, forks ----------------------------------------------------------------------


def test_an_exception_out_of_a_signal_handler_loses_nothing(pipe: tuple[int, int]) -> None:
    class HandlerError(Exception):
        pass

    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise HandlerError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Ring(8) as ring:
            ref = read_into_new_memory(ring, pipe[0])
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(HandlerError):
                ring.wait(1)
            assert ring.inflight == 1
            assert alive(ref)
            os.write(pipe[1], b"x")
            assert ring.wait(1, timeout=10)[0].res == 1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_second_thread_is_refused_while_one_waits(pipe: tuple[int, int]) -> None:
    with Ring(8) as ring:
        ring.read(pipe[0], bytearray(1))
        ring.submit()
        got: list[int] = []
        waiter = threading.Thread(target=lambda: got.extend(c.res for c in ring.wait(1)))
        waiter.start()
        refused: set[str] = set()
        calls = {
            "nop": ring.nop, "submit": ring.submit, "peek": ring.peek, "close": ring.close,
            "counters": ring.counters,
        }  # fmt: skip
        deadline = time.monotonic() + 20
        while refused != set(calls) and time.monotonic() < deadline:
            for name in set(calls) - refused:
                if name in {"nop", "close"} and not refused:
                    continue  # not before the waiter is known to wait
                try:
                    calls[name]()
                except QueueBusyError:
                    refused.add(name)
        os.write(pipe[1], b"x")
        waiter.join()
        assert refused == set(calls)
        assert got == [1]


def test_another_thread_may_not_use_a_single_issuer_s_ring(pipe: tuple[int, int]) -> None:
    with Ring(8, DEFERRED) as ring:
        ref = read_into_new_memory(ring, pipe[0])
        raised: list[UringError] = []

        def use() -> None:
            for call in (ring.submit_and_wait, ring.close):
                try:
                    call()
                except UringError as error:
                    raised.append(error)

        ring.nop()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert [error.errno for error in raised] == [errno.EEXIST] * 2
        assert all("only the thread that made the ring" in str(error) for error in raised)
        assert alive(ref)
        os.write(pipe[1], b"x")
        assert len(ring.wait(1, timeout=10)) == 1


def test_a_forked_child_must_not_use_it_and_cannot_harm_it(pipe: tuple[int, int]) -> None:
    with Ring(8) as ring:
        buffer = bytearray(5)
        ring.read(pipe[0], buffer)
        ring.submit()
        child = os.fork()
        if not child:
            code = 1
            try:
                ring.close()
                for call in (ring.nop, ring.submit, ring.peek, ring.counters):
                    try:
                        call()
                    except ForkedError:
                        code = 0
                    else:
                        code = 2
                        break
                del ring
                gc.collect()
                lifetime.sweep_parked()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.write(pipe[1], b"still")
        assert ring.wait(1, timeout=10)[0].res == 5
        assert buffer == b"still"


def test_a_completion_of_no_request_is_counted_and_frees_nothing(pipe: tuple[int, int]) -> None:
    """Another ring may send one with any user data that it likes (IORING_OP_MSG_RING)."""
    with Ring(8) as ring, Ring(8) as other:
        array = np.zeros(16, np.uint8)
        ref = weakref.ref(array)
        token = ring.read(pipe[0], array)
        ring.submit()
        del array
        forged = [token + (1 << 32), token + 1, token & 0xFFFFFFFF, (1 << 63) + 5, 1 << 20]
        for user_data in forged:
            # its "data": addr 0; user data there: off
            other.prep(Op.MSG_RING, ring.fileno(), length=7, offset=user_data)
            assert other.submit_and_wait(1, timeout=10)[0].check() == 0
        assert ring.peek() == []
        assert ring.counters()["strays"] == len(forged)
        assert ring.inflight == 1
        assert alive(ref)
        os.write(pipe[1], b"x")
        assert [c.token for c in ring.wait(1, timeout=10)] == [token]


def test_native_is_liburing_s_ring() -> None:
    with Ring(8, SetupFlag.SQE128) as ring:
        assert ring.native.ring_fd == ring.fileno()
        assert ring.native.flags & int(SetupFlag.SQE128)
        assert ring.prep(Op.NOP) > 0
