# SPDX-License-Identifier: Apache-2.0
"""Recovery on a controller that is not ours, behind a real IOMMU: resets, unbinding, unplugging."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pci_lab import given_back, wait_for

import udrv
from udrv import pci
from udrv.errors import DeviceGoneError
from udrv.lab.info import LabDevice, LabInfo
from udrv.lab.qmp import Qmp
from udrv.nvme import Controller, State, Timeouts
from udrv.nvme.queue import Queue

ABORTED = 0x371
#: Of an emulated CPU that shares two cores with its device.
QUICK = Timeouts(io=2.0, abort=2.0)


@pytest.fixture
def device(lab: LabInfo) -> LabDevice:
    return lab.device("UDRVLAB1")


@pytest.fixture
def bdf(device: LabDevice) -> Iterator[str]:
    with given_back(str(device.bdf)), pci.bound(str(device.bdf)):
        yield str(device.bdf)


def reads(ctrl: Controller, queue: Queue, n: int = 4) -> list[int]:
    ns = ctrl.namespace(1)
    batch = queue.batch(n, namespace=ns, buffer=ctrl.alloc(n * ns.lba_size))
    batch.slba[:] = np.arange(n)
    batch.offset[:] = np.arange(n) * ns.lba_size
    queue.submit(batch)
    got: list[int] = []
    while len(got) < n:
        reaped = queue.reap(1, timeout=60)
        assert len(reaped)
        got += reaped.status.tolist()
    return got


# Before the test that freezes the disk: QEMU keeps a drive whose commands a reset took away while
# its disk held them, and never says that it was deleted.
def test_a_drive_that_is_pulled_out(bdf: str, device: LabDevice) -> None:
    with udrv.open(f"pci:{bdf}") as ctrl:
        ns = ctrl.namespace(1)
        with Qmp() as qmp:
            qmp.unplug(device)
            try:
                wait_for(lambda: ctrl.state is State.GONE)
                with pytest.raises(DeviceGoneError):
                    ns.read(0, 1)
                assert not Path(f"/sys/bus/pci/devices/{bdf}").exists()
            finally:
                ctrl.close()
                qmp.plug(device)
    wait_for(Path(f"/sys/bus/pci/devices/{bdf}").exists)
    wait_for(lambda: pci.function(bdf).driver == "nvme")  # as any drive that is plugged in


def test_a_reset_rebuilds_queues_of_qemus_controller(bdf: str) -> None:
    with udrv.open(f"pci:{bdf}") as ctrl:
        ns = ctrl.namespace(1)
        data = np.random.default_rng(3).integers(0, 256, 64 * ns.lba_size, dtype=np.uint8)
        ns.write(0, data)
        ns.flush()
        polled = ctrl.create_queue(entries=16)
        asleep = ctrl.create_queue(entries=16, interrupt=True)
        lane = ctrl.alloc(ns.lba_size)
        ns.read(5, 1, into=lane)
        for _ in range(5):
            ctrl.reset()
            assert ctrl.state is State.READY
            assert reads(ctrl, polled) == [0] * 4
            assert reads(ctrl, asleep) == [0] * 4
            ns.read(5, 1, into=lane)
            assert (lane == data[5 * ns.lba_size : 6 * ns.lba_size]).all()
            assert (ns.read(0, 64) == data).all()
        assert len(ctrl.resets) == 5
        assert ctrl.backend.event_counts["armed"] >= 1


def test_commands_that_hang_end_in_a_reset(bdf: str, device: LabDevice) -> None:
    """QEMU's Abort does not get a command back that its disk holds; the reset does."""
    with udrv.open(f"pci:{bdf}", timeouts=QUICK) as ctrl, Qmp() as qmp:
        ns = ctrl.namespace(1)
        ns.write(0, np.full(ns.lba_size, 9, np.uint8))
        other = ctrl.create_queue(entries=16, interrupt=True)
        qmp.freeze(device.id)
        thawed = threading.Timer(12.0, lambda: qmp.thaw(device.id))
        thawed.start()
        try:
            found: list[list[int]] = []
            thread = threading.Thread(target=lambda: found.append(reads(ctrl, other, 15)))
            thread.start()
            got = ns.read(0, 1)  # sent again until the disk lets it through
            thread.join(60)
        finally:
            thawed.join()
        assert (got == 9).all()
        assert ctrl.resets
        assert set(found[0]) <= {0, ABORTED} and len(found[0]) == 15
        assert ctrl.state is State.READY
        assert (ns.read(0, 1) == 9).all()


def test_reset_under_load_loses_nothing(bdf: str) -> None:
    """Four threads that write and read back, while somebody resets the controller."""
    wrong: list[BaseException] = []
    end = threading.Event()

    def work(ctrl: Controller, n: int) -> None:
        try:
            ns = ctrl.namespace(1)
            turn = 0
            while not end.is_set() or not turn:
                turn += 1
                pattern = np.full(4 * ns.lba_size, (17 * n + turn) % 256, np.uint8)
                ns.write(1000 * n, pattern)
                assert (ns.read(1000 * n, 4) == pattern).all()
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)

    with udrv.open(f"pci:{bdf}", wait="interrupt") as ctrl:
        threads = [threading.Thread(target=work, args=(ctrl, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):  # more within a minute are refused
            time.sleep(0.3)
            ctrl.reset()
        end.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_the_kernel_gets_a_device_back_that_it_asks_for(bdf: str) -> None:
    """An unbind waits until this process let go of the device, which it does by itself."""
    with udrv.open(f"pci:{bdf}") as ctrl:
        ns = ctrl.namespace(1)
        buffer = ns.read(0, 1)
        told: list[BaseException] = []

        def wait() -> None:
            queue = ctrl.create_queue(entries=8, interrupt=True)
            try:
                while True:
                    reads(ctrl, queue)
            except BaseException as error:  # noqa: BLE001 - looked at below
                told.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        Path("/sys/bus/pci/drivers/vfio-pci/unbind").write_text(bdf)  # returns, or the test ends
        thread.join(30)
        assert not thread.is_alive()
        assert told and not isinstance(told[0], AssertionError)
        assert ctrl.state is State.GONE
        with pytest.raises(DeviceGoneError, match="asks for it back"):
            ns.read(0, 1)
        assert pci.function(bdf).driver is None
        assert buffer.nbytes == ns.lba_size and int(buffer[0]) >= 0, "memory of the process stays"
    assert ctrl.state is State.CLOSED
    Path("/sys/bus/pci/drivers/vfio-pci/bind").write_text(bdf)
    with udrv.open(f"pci:{bdf}") as again:
        assert again.namespace(1).read(0, 1).nbytes
