# SPDX-License-Identifier: Apache-2.0
"""asyncio on the software device: cancellation, time limits, and every order of the end.

A server that is stopped (SIGSTOP) holds commands in flight for as long as a test wants.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from async_suite import run, settled
from test_nvme_driver import TestSoft

from udrv import errors, soft
from udrv.core import lib
from udrv.memory import Buffer
from udrv.nvme import WRITE, Controller, Namespace
from udrv.nvme.aio_queue import AsyncQueue
from udrv.soft import SoftProcess
from udrv.vfio.user import from_socket

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]


class Rig:
    """A controller whose server can be stopped."""

    def __init__(
        self, options: str = "size=64M&lba=4096", *, warm: bool = True, **kwargs: Any
    ) -> None:
        self.process: SoftProcess = soft.start(options)
        self.ctrl = Controller(from_socket(self.process.socket, f"soft:?{options}"), **kwargs)
        self.ns: Namespace = self.ctrl.namespace(1)
        if warm:
            # a pool to take from, and a queue for the first loop: a stopped server makes neither
            self.ctrl.alloc(8 << 20)
            run(self.ns.read_async(0, 1))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It answers nothing, not even whether it is alive: that is not asked meanwhile."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
        self.ctrl.close()
        self.process.close()


@pytest.fixture(params=["interrupt", "polled"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    # a stopped server cannot be asked whether it is alive; a device that hangs could
    monkeypatch.setattr("udrv.nvme.aio_queue._SILENCE", 60.0)
    rig = Rig(interrupts=request.param == "interrupt")
    yield rig
    rig.close()


def descriptors(kind: str = "") -> int:
    """Open ones, of whose names `kind` is a part."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of this very listing
            found += kind in str(link.readlink())
    return found


async def in_flight(queue: AsyncQueue, count: int) -> None:
    for _ in range(1000):
        if queue.inflight == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{queue.inflight} in flight, not {count}")


# --- the same suite, otherwise -------------------------------------------------------------------


class TestPolled(TestSoft):
    """The shared suite without interrupts."""

    @pytest.fixture
    def ctrl(self, target: str, opened: list[Controller]) -> Controller:
        import udrv

        opened.append(udrv.open(target, interrupts=False))
        return opened[0]


for name in [name for name in vars(TestSoft.__mro__[1]) if name.startswith("test_")]:
    setattr(TestPolled, name, None)  # the awaited part of it only


class TestSmallQueue(TestPolled):
    """Seven commands of 16 blocks fit: nearly everything waits, and is split."""

    @pytest.fixture(params=[True, False])
    def ctrl(
        self, request: pytest.FixtureRequest, opened: list[Controller]
    ) -> Controller:
        import udrv

        opened.append(
            udrv.open("soft:?size=64M&lba=512&mdts=1", entries=8, interrupts=request.param)
        )
        return opened[0]


@pytest.mark.skipif(uvloop is None, reason="uvloop is not installed")
class TestUvloop(TestPolled):
    """The shared suite on another event loop."""

    LOOP = uvloop and uvloop.new_event_loop

    @pytest.fixture
    def ctrl(self, target: str, opened: list[Controller]) -> Controller:
        import udrv

        opened.append(udrv.open(target))
        return opened[0]


# --- cancellation --------------------------------------------------------------------------------


def test_a_cancelled_read_keeps_its_memory_until_the_device_is_done(rig: Rig) -> None:
    async def main() -> None:
        buffer = rig.ctrl.alloc(4096)
        await rig.ns.write_async(1, b"\x77" * 4096)
        queue = rig.ctrl.async_queue()
        with rig.stopped():
            task = asyncio.create_task(rig.ns.read_async(1, 1, into=buffer))
            await in_flight(queue, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (queue.inflight, buffer.pins) == (1, 1)
            with pytest.raises(errors.BufferInUseError):
                buffer.free()
            place = (buffer.pool.id, buffer.pool_offset)
            del buffer
            others = [rig.ctrl.alloc(4096) for _ in range(64)]
            assert place not in [(b.pool.id, b.pool_offset) for b in others]
        await settled(queue)
        assert queue.counters()["late"] == 1
        del others
        assert place in [(b.pool.id, b.pool_offset) for b in
                         [rig.ctrl.alloc(4096) for _ in range(70)]]  # fmt: skip
        assert (await rig.ns.read_async(1, 1) == 0x77).all()

    run(main())


def test_cancelled_while_it_waits_for_room(rig: Rig) -> None:
    """It leaves at once, sends nothing, and those behind it move up."""

    async def main() -> None:
        queue = rig.ctrl.async_queue()
        depth = queue.depth
        with rig.stopped():
            first = [asyncio.create_task(rig.ns.read_async(k, 1)) for k in range(depth)]
            await in_flight(queue, depth)
            buffers = [rig.ctrl.alloc(4096) for _ in range(100)]
            rest = [asyncio.create_task(rig.ns.read_async(k, 1, into=b))
                    for k, b in enumerate(buffers)]  # fmt: skip
            await asyncio.sleep(0)
            assert queue.waiting == 100
            for task in rest[::2]:
                task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert queue.waiting == 50
            assert [b.pins for b in buffers] == [0] * 100
            buffers[0].free()
        await asyncio.gather(*first)
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(o) for o in outcomes] == [asyncio.CancelledError, Buffer] * 50
        assert queue.counters()["late"] == 0

    run(main())


def test_a_limit_by_asyncio_timeout(rig: Rig) -> None:
    async def main() -> None:
        queue = rig.ctrl.async_queue()
        with rig.stopped():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await rig.ns.read_async(0, 1000)
            assert queue.inflight
        await settled(queue)
        await rig.ns.read_async(0, 1000)

    run(main())


def test_a_task_group_that_fails(rig: Rig) -> None:
    """One bad read cancels the others; nothing is freed under the device, nobody hangs."""

    async def main() -> None:
        queue = rig.ctrl.async_queue()
        buffers = [rig.ctrl.alloc(4096) for _ in range(50)]

        async def bad() -> None:
            await in_flight(queue, 50)
            await rig.ns.read_async(rig.ns.nsze, 1)

        with rig.stopped():
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    for k, buffer in enumerate(buffers):
                        group.create_task(rig.ns.read_async(k, 1, into=buffer))
                    group.create_task(bad())
            assert [type(e) for e in caught.value.exceptions] == [errors.LbaRangeError]
            assert [b.pins for b in buffers] == [1] * 50
        await settled(queue)
        assert [b.pins for b in buffers] == [0] * 50
        assert queue.counters()["late"] == 50

    run(main())


def test_a_coroutine_that_is_never_awaited_sends_nothing(rig: Rig) -> None:
    async def main() -> None:
        queue = rig.ctrl.async_queue()
        before = queue.counters()["submits"]
        with pytest.warns(RuntimeWarning, match="never awaited"):
            rig.ns.read_async(0, 1)  # type: ignore[unused-coroutine]
            gc.collect()
        with rig.stopped():
            coroutine = rig.ns.read_async(0, 1)
            coroutine.send(None)
            coroutine.close()  # as the collector does
            assert (queue.inflight, queue.waiting) == (1, 0)
            task: Any = asyncio.create_task(rig.ns.read_async(0, 1))
            await in_flight(queue, 2)
            del task
            gc.collect()
        await settled(queue)
        assert queue.counters()["submits"] == before + 2

    run(main())


# --- time limits and a device that is gone --------------------------------------------------------


def test_a_command_that_does_not_complete_in_time_async(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a blocking call; the memory stays, and comes back with the completion."""

    async def main() -> None:
        queue = rig.ctrl.async_queue()
        monkeypatch.setattr(queue, "_check_alive", lambda: None)
        buffer = rig.ctrl.alloc(4096)
        depth = queue.depth
        with rig.stopped():
            with pytest.raises(errors.CommandTimeoutError, match=r"1 commands .* quarantine"):
                await rig.ns.read_async(0, 1, into=buffer, timeout=0.05)
            assert buffer.pins == 1
            tasks = [asyncio.create_task(rig.ns.read_async(0, 1)) for _ in range(depth - 1)]
            await in_flight(queue, depth)
            with pytest.raises(errors.CommandTimeoutError, match="no room"):
                await rig.ns.read_async(0, 1, timeout=0.05)
            assert (queue.inflight, queue.waiting) == (depth, 0)
        await asyncio.gather(*tasks)
        await settled(queue)
        assert (buffer.pins, queue.counters()["late"]) == (0, 1)
        await rig.ns.read_async(0, 1, into=buffer)

    run(main())


@pytest.mark.parametrize("interrupts", [True, False])
def test_killed_server_is_told_to_everybody_who_waits(interrupts: bool) -> None:
    rig = Rig(interrupts=interrupts)
    try:

        async def main() -> None:
            queue = rig.ctrl.async_queue()
            count = 3 * queue.depth
            os.kill(rig.process.pid, signal.SIGSTOP)
            tasks = [asyncio.create_task(rig.ns.read_async(k, 1)) for k in range(count)]
            await in_flight(queue, queue.depth)
            os.kill(rig.process.pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(o) for o in outcomes] == [errors.DeviceGoneError] * count
            assert len({id(o) for o in outcomes}) == count, "a traceback of its own for each"
            with pytest.raises(errors.ControllerError):
                await rig.ns.read_async(0, 1)

        run(main())
    finally:
        rig.close()


def test_a_status_is_the_error_of_the_first_part(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's own limit is passed by telling the driver that the namespace is longer."""

    async def main() -> None:
        ns = rig.ns
        blocks, real = 4 * ns.max_blocks, ns.nsze
        monkeypatch.setattr(ns, "nsze", real + blocks)
        with pytest.raises(errors.NvmeStatusError) as blocking:
            ns.read(real - 3, blocks)
        with pytest.raises(errors.NvmeStatusError) as awaited:
            await ns.read_async(real - 3, blocks)
        assert type(awaited.value) is type(blocking.value)
        assert awaited.value.command == blocking.value.command
        await settled(rig.ctrl.async_queue())

    run(main())


# --- the end, in every order ----------------------------------------------------------------------


def test_asyncio_run_ends_with_commands_in_flight(rig: Rig) -> None:
    """Tasks are cancelled by it, the loop is closed; the next loop gets the queue and the rest."""
    buffers = [rig.ctrl.alloc(4096) for _ in range(20)]
    rig.ns.write(0, np.repeat(np.arange(100, dtype=np.uint8), 4096))

    async def first() -> None:
        queue = rig.ctrl.async_queue()
        tasks = [asyncio.create_task(rig.ns.read_async(k, 1, into=b))
                 for k, b in enumerate(buffers)]  # fmt: skip
        await in_flight(queue, 20)
        del tasks

    async def second() -> None:
        queue = rig.ctrl.async_queue()
        assert queue.inflight >= 20
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await rig.ns.read_async(0, 1)

    async def third() -> None:
        wrong: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        for k in range(100):  # each waits for its own completion, and not for one of theirs
            assert (await rig.ns.read_async(k, 1) == k).all()
        await settled(rig.ctrl.async_queue())
        assert not wrong
        await rig.ns.read_async(0, 1)
        assert [b.pins for b in buffers] == [0] * 20

    with rig.stopped():
        run(first())
        assert [b.pins for b in buffers] == [1] * 20
        open_files = descriptors()
        for _ in range(5):
            run(second())
        assert descriptors() <= open_files
    run(third())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_closed_under_pending_tasks(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = rig.ctrl.alloc(4096)
    loop = asyncio.new_event_loop()
    with rig.stopped():

        async def begin() -> asyncio.Task[Buffer]:
            task = asyncio.create_task(rig.ns.read_async(0, 1, into=buffer))
            await in_flight(rig.ctrl.async_queue(), 1)
            return task

        task = loop.run_until_complete(begin())
        loop.close()
        del task
        gc.collect()
        assert buffer.pins == 1
    run(rig.ns.read_async(0, 1))
    rig.ctrl.close()
    assert buffer.pins == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("closes_the_loop", [True, False])
def test_the_controller_is_closed_beside_a_loop_that_stands_still(
    rig: Rig, closes_the_loop: bool
) -> None:
    buffer = rig.ctrl.alloc(4096)
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[Buffer]:
        task = asyncio.create_task(rig.ns.read_async(0, 1, into=buffer))
        await in_flight(rig.ctrl.async_queue(), 1)
        return task

    os.kill(rig.process.pid, signal.SIGSTOP)
    task = loop.run_until_complete(begin())
    os.kill(rig.process.pid, signal.SIGCONT)
    rig.ctrl.close()
    assert buffer.pins == 0
    if not closes_the_loop:
        with pytest.raises(errors.ClosedError):
            loop.run_until_complete(task)
    loop.close()
    del task
    gc.collect()
    assert descriptors("eventfd") == 0


def test_closed_by_another_thread(rig: Rig) -> None:
    async def main() -> None:
        queue = rig.ctrl.async_queue()
        count = 2 * queue.depth
        tasks = []
        with rig.stopped():
            tasks = [asyncio.create_task(rig.ns.read_async(k, 1)) for k in range(count)]
            await in_flight(queue, queue.depth)
        thread = threading.Thread(target=rig.ctrl.close)
        thread.start()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(o) for o in outcomes} <= {errors.ClosedError, Buffer}
        assert errors.ClosedError in {type(o) for o in outcomes}
        thread.join(30)
        assert not thread.is_alive()

    run(main())


def test_another_thread_is_inside_for_a_moment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As close() is in another thread: everybody goes on, or is told what that thread says."""

    async def main() -> None:
        queue = rig.ctrl.async_queue()._queue
        await rig.ns.write_async(0, np.repeat(np.arange(200, dtype=np.uint8), 4096))
        for name in ("submit", "reap"):
            real, calls = getattr(queue, name), [0]

            def busy(*args: Any, real: Any = real, calls: list[int] = calls) -> Any:
                calls[0] += 1
                if calls[0] % 3:
                    raise errors.QueueBusyError("another thread is inside this queue")
                return real(*args)

            monkeypatch.setattr(queue, name, busy)
        reads = await asyncio.gather(*(rig.ns.read_async(k, 1) for k in range(200)))
        assert all((read == k).all() for k, read in enumerate(reads))

    run(main())


def test_a_write_that_is_refused_is_told_to_its_caller_only(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace of the kernel's driver may be mounted: found out when it is first written to."""

    async def main() -> None:
        queue = rig.ctrl.async_queue()
        submit = queue._queue.submit

        def in_use(batch: Any, *args: Any) -> int:
            if batch.opcode[0] == WRITE:
                raise errors.DeviceInUseError("it is mounted")
            return submit(batch, *args)

        monkeypatch.setattr(queue._queue, "submit", in_use)
        calls = [rig.ns.read_async(k, 1) for k in range(50)]
        calls.insert(20, rig.ns.write_async(0, bytes(4096)))  # type: ignore[arg-type]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes.pop(20), errors.DeviceInUseError)
        assert {type(outcome) for outcome in outcomes} == {Buffer}
        assert queue.broken is None

    run(main())


def test_closed_while_a_completion_is_looked_at(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread may be as far as that the queue's memory is gone; nobody is forgotten."""

    def closed(batch: Any) -> None:
        raise errors.ClosedError("queue 1 is closed")

    async def main() -> None:
        tasks = [asyncio.create_task(rig.ns.read_async(k, 1)) for k in range(600)]
        monkeypatch.setattr("udrv.nvme.batch.Batch.unbind", closed)
        done, pending = await asyncio.wait(tasks, timeout=20)
        assert not pending
        assert errors.ClosedError in {type(task.exception()) for task in done}
        monkeypatch.undo()

    run(main())


def test_two_loops_in_two_threads(rig: Rig) -> None:
    failures: list[BaseException] = []
    queues: list[AsyncQueue] = []

    async def work(k: int) -> None:
        queues.append(rig.ctrl.async_queue())
        rng = np.random.default_rng(k)

        async def one(j: int) -> None:
            data = rng.integers(0, 256, 4096 * 3, dtype=np.uint8)
            lba = 5000 * k + 3 * j
            await rig.ns.write_async(lba, data)
            assert (await rig.ns.read_async(lba, 3) == data).all()

        for _ in range(3):
            await asyncio.gather(*(one(j) for j in range(300)))

    def thread(k: int) -> None:
        try:
            run(work(k))
        except BaseException as e:  # noqa: BLE001 - shown by the assertion below
            failures.append(e)

    threads = [threading.Thread(target=thread, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not failures
    assert len({id(queue) for queue in queues}) == 2


@pytest.mark.parametrize("when", ["before", "behind"])
def test_interrupted_around_the_doorbell(
    rig: Rig, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a callback: those that wait are told, the memory stays, and it goes on."""
    buffer = rig.ctrl.alloc(4096)
    tasks: list[asyncio.Task[Buffer]] = []
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        queue = rig.ctrl.async_queue()
        submit = queue._queue.submit

        def interrupted(*args: Any) -> int:
            if when == "behind":
                submit(*args)
            raise KeyboardInterrupt

        tasks.append(asyncio.create_task(rig.ns.read_async(0, 1)))
        await in_flight(queue, 1)  # those behind it are gathered
        monkeypatch.setattr(queue._queue, "submit", interrupted)
        for _ in range(3):
            tasks.append(asyncio.create_task(rig.ns.read_async(0, 1, into=buffer)))
        await asyncio.sleep(60)

    async def outcomes() -> list[Any]:
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def again() -> None:
        assert (await rig.ns.read_async(0, 1, into=buffer) == 0).all()
        await settled(rig.ctrl.async_queue())

    with rig.stopped():
        main = loop.create_task(begin())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main)
        monkeypatch.undo()
        main.cancel()
        told = loop.run_until_complete(outcomes())
        assert [type(outcome) for outcome in told] == [errors.UdrvError] * 4
        assert "interrupted by KeyboardInterrupt" in str(told[0])
        assert buffer.pins == 1
    loop.run_until_complete(again())  # the same loop, and then another
    run(again())
    loop.close()
    rig.ctrl.close()
    assert buffer.pins == 0


# --- fairness, gathering, idleness ----------------------------------------------------------------


@pytest.mark.parametrize("interrupts", [True, False])
def test_room_beside_big_transfers(
    interrupts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone has a quarter of the queue; many have equal parts of it, by turns of eight."""
    monkeypatch.setattr("udrv.nvme.aio_queue._SILENCE", 60.0)
    rig = Rig("size=64M&lba=4096&mdts=1", interrupts=interrupts)  # 8 KiB a command
    try:

        async def main() -> None:
            queue = rig.ctrl.async_queue()
            buffers = [rig.ctrl.alloc(4 << 20) for _ in range(8)]  # 512 commands each
            small = rig.ctrl.alloc(4096)
            # what maps a pool, or prepares lists for it, is done while somebody answers
            await asyncio.gather(*(rig.ns.read_async(0, 1, into=b) for b in (*buffers, small)))
            tasks = []
            with rig.stopped():
                share = queue.depth // 4
                for k, buffer in enumerate(buffers):
                    tasks.append(asyncio.create_task(rig.ns.read_async(0, 1024, into=buffer)))
                    if k == 0:
                        await in_flight(queue, share)
                        tasks.append(asyncio.create_task(rig.ns.read_async(0, 1, into=small)))
                        await in_flight(queue, share + 1)
                await in_flight(queue, queue.depth)
                counts = {id(t.buffer): t.inflight for t in queue._seats.transfers()}
                assert counts.pop(id(small)) == 1
                assert counts.pop(id(buffers[0])) == share
                assert len(counts) == 7
                assert max(counts.values()) - min(counts.values()) <= 8, counts
            await asyncio.gather(*tasks)

        run(main())
    finally:
        rig.close()


@pytest.mark.parametrize("interrupts", [True, False])
def test_a_big_transfer_does_not_keep_small_ones_waiting(interrupts: bool) -> None:
    rig = Rig("size=64M&lba=4096&mdts=1", interrupts=interrupts)  # 8 KiB a command
    try:

        async def main() -> None:
            order: list[str] = []
            buffers = [rig.ctrl.alloc(32 << 20) for _ in range(6)]

            async def big(buffer: Buffer) -> None:
                await rig.ns.read_async(0, 8192, into=buffer)
                order.append("big")

            async def small() -> None:
                await asyncio.sleep(0)
                for k in range(20):
                    await rig.ns.read_async(k, 1)
                order.append("small")

            # six want more than the whole queue; those 20 in a row still come first
            await asyncio.gather(*(big(buffer) for buffer in buffers), small())
            assert order == ["small"] + ["big"] * 6

        run(main())
    finally:
        rig.close()


def test_more_big_transfers_than_the_queue_is_deep(rig: Rig) -> None:
    async def main() -> None:
        queue = rig.ctrl.async_queue()
        blocks = 3 * rig.ns.max_blocks
        buffer = rig.ctrl.alloc(blocks * 4096)
        await asyncio.gather(
            *(rig.ns.read_async(0, blocks, into=buffer) for _ in range(queue.depth + 50))
        )
        assert queue.counters()["seats"] <= queue.depth
        assert buffer.pins == 0

    run(main())


class CountingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.selects = 0

    def select(self, timeout: float | None = None) -> Any:
        self.selects += 1
        return super().select(timeout)


@asynccontextmanager
async def counted(
    selector: CountingSelector, queue: AsyncQueue
) -> AsyncIterator[Callable[[], tuple[int, int]]]:
    """Iterations of the loop, and looks at the queue, since the block began."""
    selects, reaps = selector.selects, queue.counters()["reaps"]
    yield lambda: (selector.selects - selects, queue.counters()["reaps"] - reaps)


def test_no_busy_loop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle: nothing at all. With a command that takes long: no more than the back-off says."""
    selector = CountingSelector()

    async def main() -> None:
        queue = rig.ctrl.async_queue()
        with monkeypatch.context() as silence:
            silence.setattr("udrv.nvme.aio_queue._SILENCE", 0.02)
            await asyncio.gather(*(rig.ns.read_async(k, 1) for k in range(50)))
            await settled(queue)
        async with counted(selector, queue) as count:
            await asyncio.sleep(0.3)
            selects, reaps = count()
            assert selects <= 3  # one of them may be the last time limit's
            assert reaps <= 1
        with rig.stopped():
            task = asyncio.create_task(rig.ns.read_async(0, 1))
            await in_flight(queue, 1)
            await asyncio.sleep(0.05)  # looking in each iteration has ended
            async with counted(selector, queue) as count:
                await asyncio.sleep(0.4)
                selects, reaps = count()
                assert selects <= (3 if queue.interrupt else 3 + 0.4 / 0.008)
                assert reaps <= selects
        await task

    run(main(), lambda: asyncio.SelectorEventLoop(selector))


def test_completions_of_a_loop_that_sleeps_are_found(rig: Rig) -> None:
    """By the interrupt, or by the timer; with nothing else going on in the loop."""

    async def main() -> None:
        queue = rig.ctrl.async_queue()
        with rig.stopped():
            task = asyncio.create_task(rig.ns.read_async(0, 1))
            await in_flight(queue, 1)
            await asyncio.sleep(0.05)
            wakeups = queue.counters()["wakeups"]
        await task
        if queue.interrupt:
            assert queue.counters()["wakeups"] > wakeups

    run(main())


def test_a_lost_interrupt_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    try:

        async def main() -> None:
            queue = rig.ctrl.async_queue()
            assert queue.interrupt
            asyncio.get_running_loop().remove_reader(queue._fd)
            monkeypatch.setattr(queue, "_check_alive", lambda: None)
            for k in range(3):
                with rig.stopped():
                    task = asyncio.create_task(rig.ns.read_async(k, 1))
                    await in_flight(queue, 1)
                    await asyncio.sleep(0.05)  # nobody looks any more
                await task

        run(main())
    finally:
        rig.close()


def test_no_vector_is_left_for_it() -> None:
    """The device has fewer than queues: it looks for completions by a timer."""
    rig = Rig(warm=False)
    try:
        vectors = rig.ctrl.backend._vectors
        while len(vectors) > 1:  # as many as a device with few has
            os.close(vectors._eventfds.pop())

        async def main() -> None:
            assert not rig.ctrl.async_queue().interrupt
            await asyncio.gather(*(rig.ns.read_async(k, 1) for k in range(1000)))

        run(main())
    finally:
        rig.close()


def test_no_queue_is_left_for_it() -> None:
    rig = Rig("size=64M&queues=2", warm=False)
    try:
        with (
            rig.ctrl.create_queue(entries=4), rig.ctrl.create_queue(entries=4),
            pytest.raises(errors.InvalidRequestError, match="all 2 queues are in use"),
        ):  # fmt: skip
            run(rig.ns.read_async(0, 1))
        run(rig.ns.read_async(0, 1))
    finally:
        rig.close()


def test_the_queue_is_no_deeper_than_there_are_slots() -> None:
    rig = Rig("size=64M&mqes=4096", entries=4096)
    try:

        async def main() -> None:
            assert rig.ctrl.async_queue().depth == lib.UDRV_QP_SLOTS - 1
            buffer = rig.ctrl.alloc(4096)
            await asyncio.gather(*(rig.ns.read_async(0, 1, into=buffer) for _ in range(5000)))
            assert buffer.pins == 0

        run(main())
    finally:
        rig.close()
