"""Shadow doorbells over the kernel's VFIO, on QEMU's NVMe controller (Doorbell Buffer Config).

QEMU never says that it polls: EventIdx is what it saw last, so that the first command that finds it
idle rings. What shadow doorbells save there is the writes while it is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import udrv
from udrv import pci
from udrv.lab.info import LabDevice
from udrv.nvme import READ, WRITE, Controller, Queue
from udrv.nvme.direct import DirectBackend
from udrv.nvme.pair import QueuePair

ROUNDS = 20


@pytest.fixture(scope="module")
def bdf(lab_devices: tuple[LabDevice, ...]) -> Iterator[str]:
    bdf = str(lab_devices[0].bdf)
    pci.plan_bind(bdf).execute()
    yield bdf
    pci.unbind(bdf)


@pytest.fixture
def connect(bdf: str) -> Iterator[Callable[..., Controller]]:
    opened: list[Controller] = []

    def begin(**kw: bool) -> Controller:
        opened.append(udrv.open(f"pci:{bdf}", **kw))
        return opened[-1]

    yield begin
    for ctrl in opened:
        ctrl.close()


def shadowed(ctrl: Controller) -> bool:
    backend = ctrl.backend
    assert isinstance(backend, DirectBackend)
    return backend.shadow is not None


def run(ctrl: Controller, queue: Queue, depth: int) -> None:
    """`depth` writes and as many reads at a time, checked; each is submitted and reaped alone."""
    pair = queue.pair
    assert isinstance(pair, QueuePair)
    pair.c.ring_after_ns = 1 << 60  # nothing makes up for an EventIdx that is wrong
    ns = ctrl.namespace(1)
    buffer = ctrl.alloc(2 * depth * ns.lba_size)
    halves = buffer.reshape(2, depth, ns.lba_size)
    batch = queue.batch(depth, namespace=ns, buffer=buffer)
    batch.slba[:] = np.arange(depth)
    batch.nlb[:] = 1
    for turn in range(ROUNDS):
        halves[0] = (np.arange(depth, dtype=np.uint8) + turn)[:, None]
        for opcode, half in ((WRITE, 0), (READ, 1)):
            batch.opcode[:] = opcode
            batch.offset[:] = (np.arange(depth) + half * depth) * ns.lba_size
            for row in range(depth):
                assert queue.submit(batch, row, 1) == 1
            for _ in range(depth):
                reaped = queue.reap(1, 1, timeout=60)
                assert len(reaped) == 1 and not reaped.status.any()
        assert (halves[0] == halves[1]).all()


@pytest.mark.parametrize("interrupt", [False, True], ids=["polled", "interrupt"])
@pytest.mark.parametrize("depth", [1, 16, 63])
def test_fewer_register_writes_and_the_right_data(
    connect: Callable[..., Controller], depth: int, interrupt: bool,
    record_property: Callable[[str, object], None],
) -> None:
    writes = {}
    for shadow in (False, True):
        ctrl = connect(shadow_doorbells=shadow)
        assert ctrl.identify.oacs & 1 << 8
        assert shadowed(ctrl) is shadow
        with ctrl.create_queue(entries=64, interrupt=interrupt) as queue:
            run(ctrl, queue, depth)
            counters = queue.counters()
        ctrl.close()
        moves = sum(
            counters[name]
            for name in ("sq_doorbells", "cq_doorbells", "sq_shadow", "cq_shadow")
        )
        writes[shadow] = counters["sq_doorbells"] + counters["cq_doorbells"]
        record_property(f"shadow={shadow}", counters)
        print(f"depth={depth} interrupt={interrupt} shadow={shadow}", counters)
        assert counters["completed"] == 2 * ROUNDS * depth
        assert moves == 4 * ROUNDS * depth
    assert writes[False] == 4 * ROUNDS * depth
    assert depth == 1 or writes[True] < writes[False]


def test_queue_ids_are_used_again(connect: Callable[..., Controller]) -> None:
    """QEMU does not clear EventIdx when it makes a queue, so the driver does."""
    ctrl = connect()
    for depth in (5, 3, 7, 1):
        with ctrl.create_queue(entries=16) as queue:
            assert queue.qid == 1
            run(ctrl, queue, depth)


def test_a_reset_ends_it_and_the_next_start_begins_it(connect: Callable[..., Controller]) -> None:
    for shadow in (True, False, True):
        ctrl = connect(shadow_doorbells=shadow)
        ctrl.namespace(1).write(0, bytes([shadow]) * ctrl.namespace(1).lba_size)
        assert (ctrl.namespace(1).read(0, 1) == shadow).all()
        ctrl.close()
