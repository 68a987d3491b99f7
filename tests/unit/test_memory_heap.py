"""The heap under threads, garbage collection, forks, and in any order at all."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_fakes import FakeLedger, FakeMapper, mapped

from udrv.errors import (
    BufferInUseError,
    ClosedError,
    DmaMemoryError,
    ForkedError,
)
from udrv.fork import ForkGuard, generation
from udrv.memory import Buffer, DmaMemory, Region, as_buffer, heap

POOL = 2 << 20


# --- finalisers inside of the allocator --------------------------------------------------------


class HookedMapper(FakeMapper):
    """Runs `hook` inside of dma_map: under the heap's lock, in the caller's thread."""

    hook: Callable[[], object] | None = None

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        super().dma_map(fd=fd, offset=offset, address=address, iova=iova, size=size)
        hook, self.hook = self.hook, None
        if hook:
            hook()


def test_garbage_collected_inside_of_alloc_comes_back() -> None:
    mapper = HookedMapper()
    with DmaMemory(mapper, device="fake") as memory:

        class Node:
            def __init__(self) -> None:
                self.me = self
                self.buffer = memory.alloc(4096)

        node = Node()
        offset = node.buffer.pool_offset
        del node
        mapper.hook = gc.collect
        memory.alloc(POOL)  # grows, and collects the node under the lock
        assert mapper.hook is None
        assert memory.alloc(4096).pool_offset == offset


def test_an_allocation_from_inside_of_an_allocation_is_refused() -> None:
    mapper = HookedMapper()
    with DmaMemory(mapper, device="fake") as memory:
        caught: list[BaseException] = []

        def reenter() -> None:
            for call in (lambda: memory.alloc(1), memory.trim, memory.close):
                try:
                    call()
                except DmaMemoryError as error:
                    caught.append(error)

        mapper.hook = reenter
        buffer = memory.alloc(1)
        assert [("entered again" in str(error)) for error in caught] == [True] * 3
        assert buffer.iova
        assert memory.alloc(1).iova


def test_a_signal_handler_may_free_but_not_allocate() -> None:
    mapper = HookedMapper()
    with DmaMemory(mapper, device="fake") as memory:
        held = [memory.alloc(4096)]
        pin = held[0].pinned()
        seen: list[object] = []

        def handler(*_: object) -> None:
            pin.release()
            held.pop().free()
            try:
                memory.alloc(4096)
            except DmaMemoryError as error:
                seen.append(error)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            mapper.hook = lambda: os.kill(os.getpid(), signal.SIGUSR1)
            memory.alloc(POOL)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert len(seen) == 1
        assert not held


def test_threads_never_share_a_chunk() -> None:
    mapper = FakeMapper()
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with DmaMemory(mapper, device="fake") as memory:
            wrong: list[str] = []

            def work(mark: int) -> None:
                try:
                    held: list[Buffer] = []
                    for turn in range(150):
                        buffer = memory.alloc(64 * (1 + (turn * mark) % 50), align=64)
                        buffer[:] = mark
                        held.append(buffer)
                        if turn % 3 == 0:
                            with held.pop(turn % len(held)).pinned():
                                pass
                        if any((np.asarray(each) != mark).any() for each in held):
                            wrong.append("another thread wrote here")
                except Exception as error:  # noqa: BLE001 - shown by the assertion below
                    wrong.append(repr(error))

            threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert memory.used_bytes == 0
    finally:
        sys.setswitchinterval(switch)


def test_a_pin_does_not_wait_for_a_map() -> None:
    mapper = HookedMapper()
    with DmaMemory(mapper, device="fake") as memory:
        buffer = memory.alloc(4096)
        pinned = threading.Event()

        def pin() -> None:
            with buffer.pinned():
                pinned.set()

        def while_mapping() -> None:
            thread = threading.Thread(target=pin)
            thread.start()
            assert pinned.wait(60)
            thread.join()

        mapper.hook = while_mapping
        memory.alloc(POOL)


def test_an_unmap_that_fails_in_a_finaliser_keeps_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranded: list[Any] = []
    monkeypatch.setattr(heap, "_STRANDED", stranded)
    mapper = FakeMapper()
    memory = DmaMemory(mapper, device="fake")
    address = memory.region(4096).address
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_value))
    mapper.fail_unmap = OSError("unmap failed")
    with pytest.warns(ResourceWarning):
        del memory
        gc.collect()
    assert [str(error) for error in unraisable] == ["unmap failed"]
    assert [pool.address for pool in stranded] == [address]
    assert mapped(address, 4096)
    for pool in stranded:
        pool.unmap()
        pool.release()


# --- fork --------------------------------------------------------------------------------------


def report(work: Callable[[], None]) -> None:
    """Run `work` in a forked child; fail with its traceback if it fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - reported to the parent
            import traceback

            os.write(write, traceback.format_exc().encode()[:60000])
        os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        text = stream.read().decode()
    assert os.waitpid(pid, 0)[1] == 0, text


def test_the_generation_counts_forks_and_guards_notice() -> None:
    guard, before = ForkGuard(), generation()
    guard.check("a thing", "fake")
    assert not guard.forked

    def child() -> None:
        assert generation() == before + 1
        assert guard.forked
        with pytest.raises(ForkedError, match="fake: a thing of the parent process"):
            guard.check("a thing", "fake")
        ForkGuard().check("a thing", "fake")

    report(child)
    assert generation() == before
    guard.check("a thing", "fake")


def test_a_forked_child_cannot_use_anything_and_releases_nothing() -> None:
    mapper = FakeMapper()
    ledger = FakeLedger()
    memory = DmaMemory(mapper, ledger=ledger, device="fake")
    buffer, pinned_one = memory.alloc(4096), memory.alloc(4096)
    region = memory.region(4096)
    pin = pinned_one.pinned()
    buffer[:] = 5

    def refused(memory: DmaMemory, buffer: Buffer, region: Region) -> None:
        for use in (
            lambda: memory.alloc(1),
            lambda: memory.region(1),
            memory.trim,
            lambda: memory.used_bytes,
            lambda: buffer.iova,
            lambda: buffer.pool.fd,
            lambda: buffer.pool.iova,
            buffer.pin,
            buffer.pinned,
            lambda: region.iova,
            lambda: as_buffer(buffer, writable=True, device="fake"),
        ):
            with pytest.raises(ForkedError, match="fake: "):
                use()

    def child() -> None:
        nonlocal buffer, region, memory
        refused(memory, buffer, region)
        assert buffer[0] == 5
        # Releasing is silent: an error out of __exit__ would hide what the child ends with.
        buffer.free()
        pin.release()
        region.free()
        memory.close()
        events = list(mapper.events)
        with memory:
            pass
        del buffer, region, memory
        gc.collect()
        assert mapper.events == events
        assert ledger.held == {"dma_bytes": POOL}
        with DmaMemory(FakeMapper(), device="child") as own:
            with own.alloc(4096).pinned():
                pass
            assert own.alloc(4096).iova

    report(child)
    assert [kind for kind, _ in mapper.events] == ["map"]
    assert (np.asarray(buffer) == 5).all()
    assert pinned_one.pins == 1
    pin.release()
    memory.close()


def test_finalisers_in_a_forked_child_touch_nothing() -> None:
    mapper = FakeMapper()
    memory = DmaMemory(mapper, device="fake")
    memory.region(4096)
    buffer = memory.alloc(4096)
    gone = weakref.ref(memory)

    def child() -> None:
        nonlocal buffer, memory
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            del buffer, memory
            gc.collect()
        assert gone() is None
        assert warned == []
        assert [kind for kind, _ in mapper.events] == ["map"]

    report(child)
    assert buffer.iova in range(buffer.pool.iova, buffer.pool.iova + POOL)
    memory.close()


def test_a_fork_inside_of_another_threads_allocation_does_not_hang_the_child() -> None:
    mapper = HookedMapper()
    with DmaMemory(mapper, device="fake") as memory:
        buffer = memory.alloc(4096)
        inside, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with buffer.pool.pin_lock:
                inside.set()
                go_on.wait(60)

        mapper.hook = hold
        thread = threading.Thread(target=lambda: memory.alloc(POOL))
        thread.start()
        assert inside.wait(60)

        def child() -> None:
            signal.alarm(60)
            for use in (lambda: memory.alloc(1), memory.trim, buffer.pin):
                with pytest.raises(ForkedError):
                    use()
            memory.close()
            buffer.free()

        try:
            report(child)
        finally:
            go_on.set()
            thread.join()


# --- in any order ------------------------------------------------------------------------------


class HeapMachine(RuleBasedStateMachine):
    """alloc, slice, pin, free, drop, collect, trim, close: no byte is ever handed out twice.

    The model is the machine's own account: for each allocation, what holds it (arrays, pins). Bytes
    that are held carry the allocation's pattern, and nobody else may have written there.
    """

    @initialize()
    def start(self) -> None:
        self.mapper, self.ledger = FakeMapper(), FakeLedger()
        self.memory = DmaMemory(self.mapper, ledger=self.ledger, device="fake")
        self.next = 1
        self.arrays: list[tuple[int, Any]] = []
        self.pins: list[tuple[int, Any]] = []
        #: allocation: (pool id, offset, size)
        self.places: dict[int, tuple[int, int, int]] = {}
        self.freed: set[int] = set()
        self.closed = False

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.memory.close()
            for _, pin in self.pins:
                pin.release()
            self.arrays.clear()
            self.pins.clear()
            assert self.mapper.maps == {}
            assert self.ledger.held.get("dma_bytes", 0) == 0

    def _held(self) -> set[int]:
        return {number for number, _ in self.arrays} | {number for number, _ in self.pins}

    def _pick(self, items: list[tuple[int, Any]], index: int) -> tuple[int, Any]:
        return items[index % len(items)]

    @precondition(lambda self: not self.closed)
    @rule(
        size=st.one_of(st.integers(1, 20000), st.integers(POOL - 5000, 2 * POOL)),
        shift=st.integers(0, 21),
        zero=st.booleans(),
    )
    def alloc(self, size: int, shift: int, zero: bool) -> None:
        held = self._held()
        buffer = self.memory.alloc(size, align=1 << shift, zero=zero)
        assert buffer.nbytes == size
        assert buffer.iova % (1 << shift) == 0
        iova, length = next(
            (iova, length)
            for iova, (_, length) in self.mapper.maps.items()
            if iova <= buffer.iova < iova + length
        )
        assert buffer.iova + size <= iova + length
        assert not (zero and buffer.any())
        pool, start = buffer.pool.id, buffer.pool_offset
        for number in held:
            other, at, length = self.places[number]
            assert pool != other or start + size <= at or at + length <= start, "handed out twice"
        number, self.next = self.next, self.next + 1
        buffer[:] = number % 251
        self.places[number] = (pool, start, size)
        self.arrays.append((number, buffer))

    @precondition(lambda self: self.arrays)
    @rule(index=st.integers(0, 99), cut=st.integers(0, 9), plain=st.booleans())
    def view(self, index: int, cut: int, plain: bool) -> None:
        number, array = self._pick(self.arrays, index)
        view = array[array.size * cut // 10 :]
        self.arrays.append((number, np.asarray(view) if plain else view))

    @precondition(lambda self: self.arrays)
    @rule(index=st.integers(0, 99))
    def drop(self, index: int) -> None:
        self.arrays.pop(index % len(self.arrays))

    @precondition(lambda self: self.arrays)
    @rule(index=st.integers(0, 99))
    def pin(self, index: int) -> None:
        number, array = self._pick(self.arrays, index)
        try:
            self.pins.append((number, array.view(Buffer).pinned()))
        except ClosedError:
            assert self.closed or number in self.freed
        else:
            assert not self.closed
            assert number not in self.freed

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0, 99))
    def unpin(self, index: int) -> None:
        self.pins.pop(index % len(self.pins))[1].release()

    @precondition(lambda self: any(isinstance(a, Buffer) for _, a in self.arrays))
    @rule(index=st.integers(0, 99))
    def free(self, index: int) -> None:
        buffers = [(n, a) for n, a in self.arrays if isinstance(a, Buffer)]
        number, buffer = self._pick(buffers, index)
        pinned = any(n == number for n, _ in self.pins)
        buffers_alive = sum(n == number for n, _ in buffers)
        try:
            buffer.free()
        except BufferInUseError:
            # A plain view of a Buffer keeps that Buffer alive, seen by the machine or not.
            plain = any(n == number and not isinstance(a, Buffer) for n, a in self.arrays)
            assert pinned or buffers_alive > 1 or plain
            assert number not in self.freed
        else:
            assert number in self.freed or (not pinned and buffers_alive == 1)
            self.freed.add(number)

    @rule()
    def collect(self) -> None:
        gc.collect()

    @precondition(lambda self: not self.closed)
    @rule()
    def trim(self) -> None:
        self.memory.trim()
        held = self._held()
        assert {pool.id for pool in self.memory.pools} == {self.places[n][0] for n in held}

    @precondition(lambda self: self.next > 5)
    @rule()
    def close(self) -> None:
        self.memory.close()
        self.closed = True

    @invariant()
    def nobody_wrote_into_what_is_held(self) -> None:
        if not hasattr(self, "memory"):
            return
        for number, array in self.arrays:
            assert (np.asarray(array) == number % 251).all()
            if isinstance(array, Buffer):
                usable = not self.closed and number not in self.freed
                try:
                    assert array.iova - array.pool.iova == array.pool_offset
                    assert usable
                except ClosedError:
                    assert not usable

    @invariant()
    def the_accounts_agree(self) -> None:
        if not hasattr(self, "memory"):
            return
        mapped = sum(size for _, size in self.mapper.maps.values())
        assert mapped == self.memory.mapped_bytes == self.ledger.held.get("dma_bytes", 0)
        if not self.closed:
            expected = sum(-(-self.places[number][2] // 64) * 64 for number in self._held())
            assert self.memory.used_bytes == expected


TestHeapMachine = HeapMachine.TestCase
TestHeapMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
