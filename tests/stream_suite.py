# SPDX-License-Identifier: Apache-2.0
"""What a stream must tell, whatever the transport: a part of `DriverSuite`."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udrv import errors
from udrv.nvme import FLUSH, READ, Controller, Namespace
from udrv.stream import HOST_ENDED, LATE, REJECTED, Stream

PROPERTY = settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.differing_executors],
)  # fmt: skip

#: opcode, first block, blocks
Command = tuple[int, int, int]


def commands() -> st.SearchStrategy[list[Command]]:
    read = st.tuples(st.just(READ), st.integers(0, 900), st.integers(1, 8))
    return st.lists(st.one_of(read, read, read, st.just((FLUSH, 0, 0))), min_size=1, max_size=40)


def told(stream: Stream, qid: int) -> list[Command]:
    """The records that the stream has of a queue, as commands."""
    rows: list[Command] = []
    for batch in stream.poll():
        if batch.qid == qid:
            assert not (batch.flags & (LATE | REJECTED | HOST_ENDED)).any()
            assert not batch.status.any()
            assert (batch.depth >= 1).all()
            columns = (batch.opcode, batch.slba, batch.nlb)
            rows += zip(*(column.tolist() for column in columns), strict=True)
    return rows


class StreamSuite:
    @given(batches=st.lists(commands(), min_size=1, max_size=6))
    @PROPERTY
    def test_a_stream_tells_every_command_once(
        self, ctrl: Controller, ns: Namespace, batches: list[list[Command]]
    ) -> None:
        with ctrl.stream(period=0.1) as stream, ctrl.create_queue() as queue:
            buffer = ctrl.alloc(8 * ns.lba_size)
            sent: Counter[Command] = Counter()
            for rows in batches:
                batch = queue.batch(len(rows), namespace=ns, buffer=buffer)
                for i, (opcode, slba, nlb) in enumerate(rows):
                    batch.opcode[i], batch.slba[i], batch.nlb[i] = opcode, slba, nlb
                first = 0
                while first < len(rows):
                    first += queue.submit(batch, first)
                    queue.reap(min(1, queue.inflight))
                queue.reap(queue.depth)
                sent.update(rows)
                batch.close()
            assert Counter(told(stream, queue.qid)) == sent
            (counters,) = [one for one in stream.counters() if one["qid"] == queue.qid]
            assert counters["seen"] == counters["delivered"] == sent.total()
            assert queue.counters()["consumed"] == sent.total()
            time.sleep(0.25)
            windows = stream.windows()
            counted = sum(
                int((window.count + window.host_late)[window.qid == queue.qid].sum())
                for window in windows
            )
            assert counted == sent.total()
            index = [one.nsid for one in stream.namespaces].index(ns.nsid)
            assert stream.namespaces[index].nsze == ns.nsze

    def test_latency_of_a_record_is_that_of_the_completion(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        with ctrl.stream() as stream, ctrl.create_queue() as queue:
            n = min(16, queue.depth)
            batch = queue.batch(n, namespace=ns, buffer=ctrl.alloc(n * ns.lba_size))
            batch.opcode[:], batch.nlb[:] = READ, 1
            batch.slba[:], batch.offset[:] = np.arange(n), np.arange(n) * ns.lba_size
            before = time.monotonic_ns()
            assert queue.submit(batch) == n
            latencies: list[int] = []
            while len(latencies) < n:
                latencies += queue.reap(1).latency_ns.tolist()
            records = [one for one in stream.poll() if one.qid == queue.qid]
            recorded = np.concatenate([one.latency for one in records])
            assert recorded.tolist() == [latency >> 4 for latency in latencies]
            assert set(np.concatenate([one.depth for one in records]).tolist()) == {n}
            # the same clock, up to what calibration leaves of a difference
            submitted = np.concatenate([one.submit_ns for one in records]).astype(np.int64)
            slack = 50_000_000
            assert (submitted >= before - slack).all()
            assert (submitted <= time.monotonic_ns() + slack).all()
            batch.close()

    def test_a_controller_has_one_stream(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.stream(records=False) as stream:
            assert ctrl.stream() is stream
            with pytest.raises(errors.InvalidRequestError, match="is on already"):
                ctrl.stream(period=30)
            ns.read(0, 1)
            assert stream.poll() == []
        with pytest.raises(errors.ClosedError):
            stream.poll()
