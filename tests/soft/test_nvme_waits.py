# SPDX-License-Identifier: Apache-2.0
"""Polled, asleep and both: for blocking calls and for batches."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import udrv
from udrv import soft
from udrv.errors import InvalidRequestError
from udrv.nvme import HYBRID, Controller
from udrv.vfio.user import from_socket


@pytest.mark.parametrize("wait", ["poll", "interrupt", "hybrid"])
def test_blocking_calls_wait_as_asked(wait: str) -> None:
    with udrv.open("soft:?size=16M&lba=512", wait=wait) as ctrl:
        ns, buffer = ctrl.namespace(1), ctrl.alloc(4096)
        for i in range(50):
            buffer[:] = i
            ns.write(i, buffer)
            assert (ns.read(i, 8, into=buffer) == i).all()
        ns.write(0, bytes(512 * 5000))  # several commands
        (lane,) = ctrl.lanes
        assert lane.queue.interrupt == (wait != "poll")
        if wait == "hybrid":
            assert lane.queue.spin_ns == HYBRID


def test_a_word_that_is_none() -> None:
    with pytest.raises(InvalidRequestError, match="poll, interrupt, hybrid"):
        udrv.open("soft:?size=1M", wait="sleep")
    with pytest.raises(InvalidRequestError, match="without interrupts"):
        udrv.open("soft:?size=1M", wait="hybrid", interrupts=False)


@pytest.mark.parametrize("spin_ns", [0, 20_000, HYBRID])
def test_batches_wait_as_asked(spin_ns: int) -> None:
    with udrv.open("soft:?size=16M&lba=4096") as ctrl:
        ns = ctrl.namespace(1)
        with ctrl.create_queue(interrupt=True, spin_ns=spin_ns) as queue:
            batch = queue.batch(16, namespace=ns, buffer=ctrl.alloc(4096))
            for _ in range(200):
                queue.submit(batch)
                assert len(queue.reap(16, timeout=30)) == 16


@pytest.mark.parametrize("by_lane", [False, True])
def test_a_hybrid_wait_for_a_slow_device_is_asleep(by_lane: bool) -> None:
    """Voluntary switches and CPU time of a thread that waits for a device that does not answer."""
    process = soft.start("size=16M&lba=512")
    with process, Controller(from_socket(process.socket, "soft:"), wait="hybrid") as ctrl:
        ns, buffer = ctrl.namespace(1), ctrl.alloc(512)
        ns.read(0, 1, into=buffer)
        ns.read(0, 1, into=buffer)
        queue = ctrl.create_queue(interrupt=True, spin_ns=HYBRID)
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(512))
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.8, os.kill, [process.pid, signal.SIGCONT]).start()
        begin, cpu = time.monotonic(), time.thread_time()
        if by_lane:
            ns.read(0, 1, into=buffer)
        else:
            queue.submit(batch)
            assert len(queue.reap(1, timeout=0.9)) == 1
        waited, cpu = time.monotonic() - begin, time.thread_time() - cpu
        # a poller would have used all of it; no bound of time, but a share of the wait
        assert cpu < waited / 4
