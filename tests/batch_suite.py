# SPDX-License-Identifier: Apache-2.0
"""Batches on several queues at once, on any transport: a part of the driver's suite."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udrv.errors import UnsupportedOnTransport
from udrv.nvme import FLUSH, READ, WRITE, Controller, Namespace, Queue

#: Blocks that one job has to itself.
AREA = 2000


@dataclass(frozen=True)
class Job:
    """What one queue does, in a thread of its own.

    `lengths` and `gaps` are blocks, `shift` the dwords in front of the data in its buffer, `order`
    decides in which order the reads go and how many completions each reap takes.
    """

    nsid_index: int
    entries: int
    interrupt: bool
    lengths: list[int]
    gaps: list[int]
    shift: int
    order: int


JOBS = st.lists(
    st.builds(
        Job,
        nsid_index=st.integers(0, 7),
        entries=st.integers(2, 40),
        interrupt=st.booleans(),
        lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
        gaps=st.lists(st.integers(0, 4), min_size=30, max_size=30),
        shift=st.integers(0, 1030),
        order=st.integers(0, 2**32 - 1),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def submit_and_reap(queue: Queue, batch: object, count: int, rng: np.random.Generator) -> None:
    """All rows, in submissions and reaps of any size; each completes once, and well."""
    seen: list[int] = []
    first = 0
    while len(seen) < count:
        if first < count:
            first += queue.submit(batch, first, int(rng.integers(0, count - first + 1)))  # type: ignore[arg-type]
        if queue.inflight:
            reaped = queue.reap(1, int(rng.integers(1, queue.depth + 1)), timeout=30)
            assert len(reaped) and not reaped.status.any()
            seen.extend(int(u) for u in reaped.user_data)
    assert sorted(seen) == list(range(count))


def run_job(ctrl: Controller, ns: Namespace, number: int, job: Job) -> None:
    rng = np.random.default_rng(job.order)
    size, n = ns.lba_size, len(job.lengths)
    lengths = np.minimum(job.lengths, ns.max_blocks)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    shift = 4 * job.shift
    total = int(lengths.sum()) * size
    buf = ctrl.alloc(shift + total + 64)
    want = rng.integers(0, 256, total, dtype=np.uint8)
    buf[:] = 0x5A
    buf[shift : shift + total] = want
    with queue_of(ctrl, job) as queue:
        batch = queue.batch(n, namespace=ns, buffer=buf)
        slba = AREA * number + starts + np.cumsum(job.gaps[:n])
        batch.opcode[:] = WRITE
        batch.slba[:], batch.nlb[:], batch.offset[:] = slba, lengths, shift + starts * size
        submit_and_reap(queue, batch, n, rng)
        batch.opcode[0] = FLUSH
        assert queue.submit(batch, 0, 1) == 1
        assert not queue.reap(1, timeout=30).status.any()
        buf[shift : shift + total] = 0
        order = rng.permutation(n)
        batch.opcode[:] = READ
        batch.slba[:], batch.nlb[:] = slba[order], lengths[order]
        batch.offset[:] = (shift + starts * size)[order]
        submit_and_reap(queue, batch, n, rng)
        assert (buf[shift : shift + total] == want).all()
        assert (buf[:shift] == 0x5A).all() and (buf[shift + total :] == 0x5A).all()


def queue_of(ctrl: Controller, job: Job) -> Queue:
    """The job's queue, or the nearest to it that this controller has."""
    entries = min(job.entries, ctrl.max_queue_entries)
    if job.interrupt:
        with contextlib.suppress(UnsupportedOnTransport):  # no vector left: polled
            return ctrl.create_queue(entries=entries, interrupt=True)
    return ctrl.create_queue(entries=entries)


class BatchSuite:
    @settings(
        deadline=None, max_examples=15,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                               HealthCheck.differing_executors],
    )  # fmt: skip
    @given(jobs=JOBS)
    def test_any_batches_on_any_queues_move_exactly_their_bytes(
        self, ctrl: Controller, jobs: list[Job]
    ) -> None:
        namespaces = list(ctrl.namespaces.values())
        failures: list[BaseException] = []

        def work(number: int, job: Job) -> None:
            try:
                run_job(ctrl, namespaces[job.nsid_index % len(namespaces)], number, job)
            except BaseException as e:  # noqa: BLE001 - shown by the assertion below
                failures.append(e)

        threads = [
            threading.Thread(target=work, args=(number, job)) for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
