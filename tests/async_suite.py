# SPDX-License-Identifier: Apache-2.0
"""What awaited I/O must do, whatever the transport: a part of `DriverSuite`.

A subclass may set `LOOP` to another event loop's factory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udrv import errors
from udrv.memory import Buffer
from udrv.nvme import Controller, Namespace
from udrv.nvme.aio_queue import AsyncQueue

PROPERTY = settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.differing_executors],
)  # fmt: skip


def run(
    main: Coroutine[Any, Any, Any],
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def settled(queue: AsyncQueue) -> None:
    """Until the device is done with all of it, and the queue has seen that."""
    for _ in range(20_000):
        if not queue.inflight and not queue.waiting:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{queue.inflight} in flight, {queue.waiting} wait")


class AsyncSuite:
    LOOP: Callable[[], asyncio.AbstractEventLoop] | None = None

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return run(main, type(self).LOOP)

    def test_awaited_data_is_that_of_blocking_calls(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        size = ns.lba_size
        blocks = 3 * ns.max_blocks + 1
        rng = np.random.default_rng(1)
        data = rng.integers(0, 256, blocks * size, dtype=np.uint8)

        async def main() -> None:
            await ns.write_async(11, data, fua=True)
            await ns.flush_async()
            assert (ns.read(11, blocks) == data).all()
            assert (await ns.read_async(11, blocks) == data).all()
            buf = ctrl.alloc(3 * size)
            buf[:] = 0xA5
            part = buf[size : 2 * size]
            assert await ns.read_async(12, 1, into=part) is part
            assert (part == data[size : 2 * size]).all()
            assert (buf[:size] == 0xA5).all() and (buf[2 * size :] == 0xA5).all()
            await ns.write_async(ns.nsze - 1, buf[:size])
            assert bytes(ns.read(ns.nsze - 1, 1)) == b"\xa5" * size
            for kind in (bytes, bytearray, memoryview, np.asarray):
                await ns.write_async(0, bytes(size))
                await ns.write_async(0, kind(data[:size].tobytes())
                                     if kind is not np.asarray else data[:size])  # fmt: skip
                assert (ns.read(0, 1) == data[:size]).all()
            assert buf.pins == 0

        self.run(main())

    @PROPERTY
    @given(data=st.data())
    def test_any_mix_of_tasks_moves_exactly_its_bytes(
        self, ctrl: Controller, ns: Namespace, data: st.DataObject
    ) -> None:
        """Tasks write and read back places of their own; some are cancelled at some moment."""
        size = ns.lba_size
        jobs = data.draw(
            st.lists(
                st.tuples(
                    st.integers(1, 2 * ns.max_blocks + 3) | st.integers(1, 8),
                    st.integers(0, 1100),  # dwords into the buffer
                    st.none() | st.integers(0, 12),  # iterations until it is cancelled
                    st.booleans(),  # a Buffer, or bytes
                ),
                min_size=1, max_size=24,
            ),
            label="jobs",
        )  # fmt: skip
        rng = np.random.default_rng(7)
        buffers: list[Buffer] = []

        async def job(lba: int, blocks: int, shift: int, own: bool) -> None:
            want = rng.integers(0, 256, blocks * size, dtype=np.uint8)
            whole = ctrl.alloc(blocks * size + 4 * shift + 64)
            buffers.append(whole)
            whole[:] = 0x5A
            part = whole[4 * shift : 4 * shift + blocks * size]
            if own:
                part[:] = want
                await ns.write_async(lba, part)
                part[:] = 0
            else:
                await ns.write_async(lba, want.tobytes())
            await ns.read_async(lba, blocks, into=part)
            assert (part == want).all()

        async def cancel(task: asyncio.Task[None], after: int) -> None:
            for _ in range(after):
                await asyncio.sleep(0)
            task.cancel()

        async def main() -> None:
            tasks, lba = [], 5
            for blocks, shift, after, own in jobs:
                task = asyncio.create_task(job(lba, blocks, shift, own))
                lba += blocks + 1
                tasks.append(task)
                if after is not None:
                    tasks.append(asyncio.create_task(cancel(task, after)))
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
            await settled(ctrl.async_queue())
            for whole, (blocks, shift, _, _) in zip(buffers, jobs, strict=False):
                assert whole.pins == 0
                assert (whole[: 4 * shift] == 0x5A).all()
                if len(buffers) == len(jobs):  # else one was cancelled before it began
                    assert (whole[4 * shift + blocks * size :] == 0x5A).all()

        self.run(main())

    def test_ten_times_the_depth(self, ctrl: Controller, ns: Namespace) -> None:
        """Nobody fails, no more are in flight than fit, and those that wait hold no memory."""
        size = ns.lba_size

        async def main() -> None:
            queue = ctrl.async_queue()
            depth = queue.depth
            most = 0
            await ns.write_async(0, bytes(size))  # what the driver itself needs is there now
            before = ctrl.memory.used_bytes

            async def one(k: int) -> None:
                nonlocal most
                await ns.write_async(k, bytes([k % 251]) * size)
                most = max(most, ctrl.memory.used_bytes - before)
                assert queue.inflight <= depth

            await asyncio.gather(*(one(k) for k in range(10 * depth)))
            assert most <= (depth + 8) * max(size, 4096)  # a buffer is aligned to a page
            assert queue.counters()["seats"] <= depth
            assert queue.counters()["transfers"] == 10 * depth + 1
            await settled(queue)
            whole = await ns.read_async(0, 10 * depth)
            assert (whole.reshape(-1, size)[:, 0] == np.arange(10 * depth) % 251).all()

        self.run(main())

    def test_awaited_refusals_are_those_of_blocking_calls(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        size = ns.lba_size

        async def refused(kind: type[Exception], call: Coroutine[Any, Any, Any]) -> None:
            with pytest.raises(kind):
                await call

        async def main() -> None:
            await refused(errors.LbaRangeError, ns.read_async(ns.nsze - 1, 2))
            await refused(errors.LbaRangeError, ns.write_async(ns.nsze, bytes(size)))
            await refused(errors.InvalidRequestError, ns.read_async(0, 0))
            await refused(errors.InvalidRequestError, ns.read_async(0, 1, timeout="1"))
            await refused(errors.AlignmentError, ns.write_async(0, bytes(size + 1)))
            small = ctrl.alloc(size)
            await refused(errors.BufferTooSmallError, ns.read_async(0, 2, into=small))
            ordinary: Any = np.zeros(size, np.uint8)
            await refused(errors.BufferTypeError, ns.read_async(0, 1, into=ordinary))
            crooked = ctrl.alloc(size + 4)[1 : size + 1]
            await refused(errors.AlignmentError, ns.read_async(0, 1, into=crooked))
            freed = ctrl.alloc(size)
            freed.free()
            await refused(errors.ClosedError, ns.read_async(0, 1, into=freed))
            queue = ctrl.async_queue()
            assert (queue.inflight, queue.waiting) == (0, 0)
            await ns.read_async(0, 1, into=small)

        self.run(main())

    def test_outside_of_a_loop(self, ctrl: Controller, ns: Namespace) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            ctrl.async_queue()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_closed_while_it_is_awaited(self, ctrl: Controller, ns: Namespace) -> None:
        """In flight or waiting: each of them is told; nothing touches what was unmapped."""

        async def main() -> None:
            depth = ctrl.async_queue().depth
            buffers = [ctrl.alloc(ns.lba_size) for _ in range(2 * depth)]
            tasks = [asyncio.create_task(ns.read_async(k, 1, into=b))
                     for k, b in enumerate(buffers)]  # fmt: skip
            while not ctrl.async_queue().inflight:
                await asyncio.sleep(0)
            ctrl.close()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            kinds = {type(outcome) for outcome in outcomes}
            assert errors.ClosedError in kinds
            assert kinds <= {errors.ClosedError, Buffer}
            assert all(buffer.pins == 0 for buffer in buffers)
            with pytest.raises(errors.ClosedError):
                await ns.read_async(0, 1)

        self.run(main())

    def test_one_loop_after_the_other(self, ctrl: Controller, ns: Namespace) -> None:
        """More of them than there are queues, each left with commands in flight."""
        buffers = []
        for k in range(ctrl.max_queues + 2):
            buffer = ctrl.alloc(ns.lba_size)
            buffers.append(buffer)

            async def main(buffer: Buffer, k: int) -> None:
                await ns.write_async(k, bytes([k]) * ns.lba_size)
                task = asyncio.create_task(ns.read_async(k, 1, into=buffer))
                await asyncio.sleep(0)
                del task

            self.run(main(buffer, k))

        async def last() -> None:
            for k in range(ctrl.max_queues + 2):
                assert (await ns.read_async(k, 1) == k).all()
            await settled(ctrl.async_queue())
            await ns.read_async(0, 1)
            assert [buffer.pins for buffer in buffers] == [0] * len(buffers)

        self.run(last())

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork() beside threads
    def test_awaited_in_a_forked_child(self, ctrl: Controller, ns: Namespace) -> None:
        """Refused, in the parent's loop and in one of its own; the parent goes on."""

        async def child() -> int:
            try:
                await ns.read_async(5, 1)
            except errors.ForkedError:
                return 0
            return 1

        async def main() -> None:
            await ns.write_async(5, b"\x11" * ns.lba_size)
            buffers = [ctrl.alloc(ns.lba_size) for _ in range(8)]
            tasks = [asyncio.create_task(ns.read_async(5, 1, into=b)) for b in buffers]
            await asyncio.sleep(0)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    # the loop that was inherited shares its selector with the parent: another one
                    asyncio._set_running_loop(None)
                    loop = asyncio.new_event_loop()
                    code = loop.run_until_complete(child())
                    ctrl.close()
                finally:
                    os._exit(code)
            await asyncio.gather(*tasks)
            assert all((buffer == 0x11).all() for buffer in buffers)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0

        self.run(main())
