"""SIGKILL at a random moment: the device is stopped, can be opened at once, and works."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

import udrv
from udrv import pci
from udrv.lab.info import LabDevice
from udrv.nvme import WRITE

GUARDED = 4096  # blocks from 0 on that the victims write
LANDMARK = 8192  # a block that they do not


@pytest.fixture(scope="module")
def bdf(lab_devices: tuple[LabDevice, ...]) -> Iterator[str]:
    bdf = str(lab_devices[0].bdf)
    pci.plan_bind(bdf).execute()
    yield bdf
    pci.unbind(bdf)


def victim(bdf: str, tell: int) -> None:
    """Opens the device and writes for ever, with as much in flight as the queue takes."""
    os.write(tell, b"s")
    ctrl = udrv.open(f"pci:{bdf}")
    ns = ctrl.namespace(1)
    queue = ctrl.create_queue(entries=64)
    block = 16
    batch = queue.batch(63, namespace=ns, buffer=ctrl.alloc(63 * block * ns.lba_size))
    batch.opcode[:] = WRITE
    batch.nlb[:] = block
    batch.slba[:] = np.arange(63) * block
    batch.offset[:] = np.arange(63) * block * ns.lba_size
    os.write(tell, b"w")
    while True:
        queue.submit(batch)
        queue.reap(1)


def killed_once(bdf: str, rng: random.Random, during_open: bool) -> None:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            victim(bdf, tell)
        finally:
            os._exit(99)  # not reached: a victim that ends by itself is a failure
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"s"
        if during_open:
            time.sleep(rng.uniform(0, 0.6))
        else:
            assert os.read(ready, 1) == b"w"
            time.sleep(rng.uniform(0, 0.05))
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the victim ended by itself"
        os.kill(pid, signal.SIGKILL)
    finally:
        os.close(ready)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def check_works(bdf: str, rng: random.Random) -> None:
    with udrv.open(f"pci:{bdf}") as ctrl:
        ns = ctrl.namespace(1)
        data = np.frombuffer(rng.randbytes(ns.lba_size * 300), np.uint8)
        ns.write(rng.randrange(GUARDED), data)
        ns.write(LANDMARK, data)
        assert (ns.read(LANDMARK, 300) == data).all()


def kill_many(bdf: str, count: int, seed: int) -> None:
    rng = random.Random(seed)
    check_works(bdf, rng)  # also warms up what the victims are forked from
    for k in range(count):
        killed_once(bdf, rng, during_open=k % 5 == 4)
        check_works(bdf, rng)


def test_killed_in_the_middle_of_writes(bdf: str) -> None:
    kill_many(bdf, 5, seed=1)


@pytest.mark.full(minutes=8)
@pytest.mark.timeout(1500)
def test_killed_fifty_times(bdf: str) -> None:
    kill_many(bdf, 50, seed=2)
