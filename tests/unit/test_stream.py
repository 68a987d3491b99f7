# SPDX-License-Identifier: Apache-2.0
"""The stream in Python: lifetimes, other processes, and that nothing is lost without a count."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_process import NSZE, Source, python, stream_of

from udrv import stream as st_api
from udrv.core import lib
from udrv.errors import (
    ClosedError,
    InvalidRequestError,
    StreamBusyError,
    StreamError,
    ViewsAliveError,
)
from udrv.stream import COLUMNS, Stream, StreamNamespace, attach, find

ROWS = int(lib.UDRV_RECORD_ROWS)


def balanced(stream: Stream) -> dict[str, int]:
    """The sum of the counters of all queues, of which the books balance."""
    counters = stream.counters()
    for one in counters:
        assert one["seen"] == sum(
            one[name] for name in ("delivered", "sampled_out", "ring_full", "overrun", "waiting")
        )
    return {name: sum(one[name] for one in counters) for name in counters[0] if name != "qid"}


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def stream(source: Source) -> Iterator[Stream]:
    with stream_of(source, chunks=4) as one:
        yield one


# --- records -------------------------------------------------------------------------------------


def test_columns_are_read_only_views_of_what_completed(source: Source, stream: Stream) -> None:
    source.run(640)
    (batch,) = stream.poll()
    assert (batch.device, batch.qid, len(batch)) == ("model", 9, 640)
    assert batch.slba.tolist() == [row.slba for row in source.batch] * 10
    assert batch.nlb.tolist() == [row.nlb for row in source.batch] * 10
    assert set(batch.depth.tolist()) == {64}
    assert set(batch.opcode.tolist()) == {2}
    assert set(batch.status.tolist()) == {0}
    assert set(batch.column("qid").tolist()) == {9}
    assert batch.seq.tolist() == list(range(640))
    assert (batch.latency_ns == batch.latency.astype(np.uint64) * 16).all()
    assert abs(int(batch.submit_ns[0]) - time.monotonic_ns()) < 60 * 10**9
    for name, dtype in COLUMNS.items():
        column = batch.column(name)
        assert (column.dtype, column.shape) == (dtype, (640,))
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            column.flags.writeable = True
    assert stream.namespaces == (StreamNamespace(1, NSZE, 12),)


def test_a_batch_is_what_came_since_the_last(source: Source, stream: Stream) -> None:
    assert stream.poll() == []
    source.run(64)
    assert [batch.base for batch in stream.poll()] == [0]
    source.run(2 * ROWS)
    taken = stream.poll()
    assert [(batch.base, len(batch)) for batch in taken] == [
        (64, ROWS - 64), (ROWS, ROWS), (2 * ROWS, 64),
    ]  # fmt: skip
    assert stream.poll() == []


def test_a_view_keeps_its_chunk_and_release_says_so(source: Source, stream: Stream) -> None:
    source.run(ROWS)
    (batch,) = stream.poll()
    column = batch.slba
    expected = column.tolist()
    view = column[10:500:3]
    del column
    with pytest.raises(ViewsAliveError, match="views that are in use: drop them"):
        batch.release()
    source.run(20 * ROWS)
    assert view.tolist() == expected[10:500:3]
    assert batch.slba.tolist() == expected, "a release that was refused changed nothing"
    del view
    batch.release()
    batch.release()
    with pytest.raises(ClosedError, match="copy"):
        _ = batch.slba
    source.run(8 * ROWS)
    assert balanced(stream)["ring_full"] == 0


def test_a_chunk_is_free_when_the_last_view_is_gone(source: Source, stream: Stream) -> None:
    source.run(4 * ROWS)
    views = [batch.latency for batch in stream.poll()]  # all four chunks, by views alone
    gc.collect()
    source.run(ROWS)
    lost = balanced(stream)["ring_full"]
    assert lost >= ROWS - 64
    del views
    source.run(ROWS)
    assert balanced(stream)["ring_full"] <= lost + 64
    assert next(batch.base for batch in stream.poll()) >= 5 * ROWS - 64


def test_a_copy_keeps_its_data(source: Source, stream: Stream) -> None:
    source.run(ROWS)
    (batch,) = stream.poll()
    copy = batch.copy()
    latencies = batch.latency_ns
    batch.release()
    del batch
    source.run(20 * ROWS)
    assert (copy.latency_ns == latencies).all()
    assert copy.seq.tolist() == list(range(ROWS))
    with pytest.raises(ValueError, match="read-only"):
        copy.slba[0] = 1
    copy.release()
    assert len(copy.slba) == ROWS


def test_arrow_shares_the_memory_and_keeps_it(source: Source, stream: Stream) -> None:
    source.run(ROWS)
    (batch,) = stream.poll()
    table = batch.arrow()
    assert table.schema.names == list(COLUMNS)
    assert table.schema.metadata[b"udrv.record"] == b"1"
    for name in COLUMNS:
        column = batch.column(name)
        address = column.__array_interface__["data"][0]
        assert table.column(name).buffers()[1].address == address, "a copy"
        assert table.column(name).to_pylist() == column.tolist()
    del column
    expected = table.column("slba").to_pylist()
    with pytest.raises(ViewsAliveError):
        batch.release()
    imported = pa.record_batch(batch)  # by __arrow_c_array__
    assert imported.equals(table)
    del table, batch
    source.run(20 * ROWS)
    assert imported.column("slba").to_pylist() == expected
    del imported
    gc.collect()
    source.run(ROWS)
    assert balanced(stream)["ring_full"] == 0


def test_a_sample_is_every_nth_and_the_rest_is_counted(source: Source) -> None:
    with stream_of(source, sample=10) as stream:
        source.run(640)
        (batch,) = stream.poll()
        assert batch.seq.tolist() == list(range(0, 640, 10))
        assert batch.slba.tolist() == [source.batch[i % 64].slba for i in range(0, 640, 10)]
        counters = balanced(stream)
        assert (counters["sampled_out"], counters["delivered"]) == (576, 64)


def test_without_records_there_are_windows_only(source: Source) -> None:
    with stream_of(source, records=False) as stream:
        source.run(640)
        assert stream.poll() == []
        (counters,) = stream.counters()
        assert (counters["seen"], counters["waiting"]) == (640, 0)


def test_a_stream_that_is_off_costs_its_queue_nothing_more(source: Source) -> None:
    stream = stream_of(source)
    source.run(64)
    stream.close()
    source.run(64)
    with pytest.raises(ClosedError):
        stream.counters()
    with stream_of(source) as again:
        source.run(64)
        (batch,) = again.poll()
        assert batch.base == 128, "seq counts all that the queue consumed"


def test_iteration_ends_with_the_stream(source: Source, stream: Stream) -> None:
    source.run(3 * ROWS)
    stream.stop()
    assert sum(len(batch) for batch in stream) == 3 * ROWS


def test_queues_come_and_go() -> None:
    with stream_of(chunks=2, cells=2) as stream:  # there are 8 places
        held = []
        for qid in range(1, 10):
            one = Source(qid=qid)
            stream.hang(one)
            one.run(64)
            held += stream.poll()
            stream.drop(one)
            one.run(64)
        assert [batch.qid for batch in held] == list(range(1, 9))
        assert stream.queues_untold == 1
        assert all(batch.slba.tolist() == [row.slba for row in one.batch] for batch in held)
        held[2].release()
        one = Source(qid=30)
        stream.hang(one)
        one.run(64)
        (batch,) = stream.poll()
        assert (batch.qid, batch.seq.tolist()) == (30, list(range(64)))
        assert {counters["qid"] for counters in stream.counters()} == {1, 2, 4, 5, 6, 7, 8, 30}


@pytest.mark.parametrize(
    "how", [{"period": 0.01}, {"period": 61}, {"chunks": 1}, {"cells": 1}, {"sample": 0},
            {"chunks": 65}, {"period": float("nan")}, {"sample": -1}, {"cells": "x"}],
)  # fmt: skip
def test_parameters_that_cannot_be_are_refused(how: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        stream_of(**how)


# --- windows -------------------------------------------------------------------------------------


def test_windows_are_exact_whatever_became_of_the_records(source: Source) -> None:
    other = Source(qid=10)
    with stream_of(source, other, chunks=2, period=0.1) as stream:
        total = 0
        windows = []
        for _ in range(12):
            total += source.run(5000) + other.run(500)
            windows += stream.windows()
            time.sleep(0.02)
        time.sleep(0.15)
        windows += stream.windows()
        assert stream.windows_lost == 0
        assert sum(w.seen for w in windows) == total
        assert sum(int(w.count.sum() + w.host_late.sum()) for w in windows) == total
        starts = [w.start_ns for w in windows]
        assert starts == sorted(set(starts))
        for window in windows:
            assert window.end_ns - window.start_ns == 100_000_000
            assert window.start_ns % 100_000_000 == 0
            assert (window.hist.sum(axis=1) == window.count).all()
            assert set(window.qid.tolist()) <= {9, 10}
            assert set(window.opcode.tolist()) <= {2, -1}
            good = window.count > 0
            assert (window.quantile_ns(1.0) == np.where(good, window.max_ns, 0)).all()
            assert (window.sum_ns[good] / window.count[good] <= window.max_ns[good]).all()
            bands = window.bands.get(1)
            if bands is not None:
                assert bands.count.sum() <= window.count.sum()
                assert (bands.above <= bands.count).all()
        assert balanced(stream)["overrun"] > 0


def test_windows_that_nobody_read_in_time_are_counted(source: Source) -> None:
    with stream_of(source, period=0.1) as stream:
        source.run(1)
        assert stream.windows() == []
        for _ in range(8):
            time.sleep(0.11)
            source.run(1)
        time.sleep(0.15)
        windows = stream.windows()
        assert len(windows) == 4
        assert stream.windows_lost == 5


# --- other processes -----------------------------------------------------------------------------


def test_another_process_finds_and_reads_it(source: Source, stream: Stream) -> None:
    (found,) = [one for one in find(os.getpid()) if one.target == "model"]
    assert found.pid == os.getpid()
    child = python(os.getpid(), "slow")
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        total = source.run(3 * ROWS)
        deadline = time.monotonic() + 60
        while balanced(stream)["waiting"] and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(StreamBusyError, match="another consumer"):
            stream.poll()
        assert stream.counters()[0]["delivered"] == total
        stream.stop()
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert int(out) == total


def test_a_reader_cannot_write(stream: Stream) -> None:
    (found,) = [one for one in find(os.getpid()) if one.target == "model"]
    fd = os.open(found.data, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_what_is_no_stream_is_refused(stream: Stream) -> None:
    with pytest.raises(StreamError, match="has no streams of nothing"):
        attach(os.getpid(), "nothing")
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 1 << 20)
        path = f"/proc/self/fd/{fd}"
        with pytest.raises(StreamError, match="no stream"):
            st_api.open_found(st_api.Found(os.getpid(), "x", path, path))
        (found,) = [one for one in find(os.getpid()) if one.target == "model"]
        with open(found.data, "rb") as real:  # noqa: PTH123 - a descriptor's path
            os.pwrite(fd, real.read(4096), 0)
        with pytest.raises(StreamError, match="can shrink"):
            st_api.open_found(st_api.Found(os.getpid(), "x", path, path))
    finally:
        os.close(fd)


@given(
    mode=st.sampled_from(["slow", "die", "stop"]), rounds=st.integers(5, 30),
    count=st.integers(100, 6000), chunks=st.integers(2, 8), sample=st.sampled_from([1, 1, 3]),
)
@settings(
    max_examples=9, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_every_record_is_accounted_for(
    mode: str, rounds: int, count: int, chunks: int, sample: int
) -> None:
    """With a consumer that is slow, one that is killed, and one that is stopped, under load."""
    source = Source()
    with stream_of(source, chunks=chunks, sample=sample) as stream:
        child = python(os.getpid(), mode)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            seen = 0
            for _ in range(rounds):
                seen += source.run(count)
                assert balanced(stream)["seen"] == seen
            if mode == "stop":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGCONT)
            if mode == "die":
                child.kill()
                child.wait()
                assert all(one["delivered"] <= seen for one in stream.counters())
                taken = sum(len(batch) for batch in stream.poll())  # the next one
                counters = balanced(stream)
                assert counters["waiting"] == 0
                assert taken <= counters["delivered"]
        finally:
            child.kill()
            child.wait()
            child.stdout.close()  # type: ignore[union-attr]
        source.run(64 * chunks)
        assert balanced(stream)["seen"] == source.consumed()
