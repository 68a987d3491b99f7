# SPDX-License-Identifier: Apache-2.0
"""The stream of a whole driver on the software drive: every way to do I/O, faults, and a host that
does not run, which must not be taken for a drive that is slow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import udrv
from udrv import soft
from udrv.errors import InvalidRequestError, NvmeStatusError, StreamError
from udrv.nvme import FLUSH, READ, WRITE, Controller
from udrv.soft.faults import Script, fault
from udrv.stream import COLUMNS, HOST_LATE, Batch, attach, record
from udrv.vfio.user import from_socket

HOST = Path(__file__).with_name("stream_host.py")


def all_of(batches: list[Batch], name: str) -> np.ndarray:
    return np.concatenate([batch.column(name) for batch in batches])


@pytest.fixture
def ctrl() -> Iterator[Controller]:
    with udrv.open("soft:?size=16M", stream={"period": 0.1}) as one:
        yield one


def test_every_way_to_do_io_is_told(ctrl: Controller) -> None:
    ns = ctrl.namespace(1)
    buffer = ctrl.alloc(64 * 4096)
    ns.write(5, b"x" * 4096)
    ns.read(5, 1, into=ctrl.alloc(4096))
    ns.flush()

    async def three() -> None:
        target = ctrl.alloc(4096)
        for lba in (7, 8, 9):
            await ns.read_async(lba, 1, into=target)

    asyncio.run(three())
    with ctrl.create_queue() as queue:
        batch = queue.batch(64, namespace=ns, buffer=buffer)
        batch.opcode[:], batch.nlb[:] = READ, 1
        batch.slba[:] = np.arange(64) * 11
        batch.offset[:] = np.arange(64) * 4096
        assert queue.submit(batch) == 64
        assert len(queue.reap(64)) == 64
        qid = queue.qid
    batches = ctrl.stream().poll()  # the queue is closed: its records are not
    mine = [one for one in batches if one.qid == qid]
    assert sorted(all_of(mine, "slba").tolist()) == (np.arange(64) * 11).tolist()
    assert set(all_of(mine, "depth").tolist()) == {64}
    others = [one for one in batches if one.qid != qid]
    opcodes, blocks = all_of(others, "opcode").tolist(), all_of(others, "slba").tolist()
    told = sorted(zip(opcodes, blocks, strict=True))
    assert told == [(FLUSH, 0), (WRITE, 5), (READ, 5), (READ, 7), (READ, 8), (READ, 9)]
    counters = ctrl.stream().counters()
    assert sum(one["seen"] for one in counters) == 70
    assert sum(one["delivered"] for one in counters) == 70
    time.sleep(0.25)
    windows = ctrl.stream().windows()
    assert sum(int(w.count.sum() + w.host_late.sum()) for w in windows) == 70
    assert {int(n) for w in windows for n in w.nsid} == {1}
    assert {int(n) for w in windows for n in w.size_class if n > 9} == {12}
    assert ctrl.stream().depth_exact
    assert ctrl.stream().namespaces[0].nsze == ns.nsze


def test_a_queue_without_timestamps_has_nothing_to_tell(ctrl: Controller) -> None:
    ns = ctrl.namespace(1)
    with ctrl.create_queue(timestamps=False) as queue:
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(4096))
        batch.opcode[0], batch.nlb[0] = READ, 1
        queue.submit(batch)
        assert len(queue.reap(1)) == 1
    assert all(one["seen"] == 0 for one in ctrl.stream().counters())


def test_it_is_switched_on_once_and_off_again() -> None:
    with udrv.open("soft:?size=16M") as ctrl:
        ns = ctrl.namespace(1)
        ns.read(0, 1)
        stream = ctrl.stream(period=0.5)
        assert ctrl.stream() is stream
        assert ctrl.stream(period=0.5) is stream
        with pytest.raises(InvalidRequestError, match="is on already"):
            ctrl.stream(period=1)
        ns.read(1, 1)
        (batch,) = stream.poll()
        assert batch.slba.tolist() == [1]
        stream.close()
        ns.read(2, 1)
        with pytest.raises(InvalidRequestError, match="records=, period="):
            ctrl.stream(perriod=1)
        again = ctrl.stream(records=False)
        assert again is not stream
        ns.read(3, 1)
        assert again.counters()[0]["seen"] == 1
    with pytest.raises(InvalidRequestError, match=r"0\.1 to 60"):
        udrv.open("soft:?size=16M", stream={"period": 1000})


def test_faults_are_in_the_records() -> None:
    script = Script((
        fault("media_error", opcodes="read", lba=(100, 100)),
        fault("add", opcodes="read", us=150_000, lba=(200, 200)),
    ))  # fmt: skip
    with soft.start("size=16M", faults=script) as child:
        device = from_socket(child.socket, "soft:")
        with Controller(device) as ctrl:
            stream = ctrl.stream(period=0.1)
            ns = ctrl.namespace(1)
            for lba in (1, 100, 200):
                if lba == 100:
                    with pytest.raises(NvmeStatusError):
                        ns.read(lba, 1)
                else:
                    ns.read(lba, 1)
            (batch,) = stream.poll()
            tries = len(batch) - 2  # a read that fails is tried again
            assert batch.slba.tolist() == [1, *[100] * tries, 200]
            failed = batch.status != 0
            assert failed.tolist() == [False, *[True] * tries, False]
            assert set((batch.status[failed] & 0x7FF).tolist()) == {0x281}
            assert batch.latency_ns[-1] >= 150_000_000
            time.sleep(0.25)
            windows = stream.windows()
            assert sum(int(w.errors.sum()) for w in windows) == tries
            if not batch.flags[-1] & HOST_LATE:
                highest = max(int(w.bands[1].max_ns.max()) for w in windows if 1 in w.bands)
                assert highest >= 150_000_000


@pytest.mark.parametrize("mode", ["stopped", "gil", "starved"])
def test_a_host_that_does_not_run_is_no_slow_drive(mode: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    host = subprocess.Popen(
        [sys.executable, str(HOST), mode, str(stop)], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        with attach(host.pid) as reader:
            kept = reader.poll()
            if mode == "stopped":
                for _ in range(5):
                    time.sleep(0.1)
                    host.send_signal(signal.SIGSTOP)
                    time.sleep(0.3)
                    host.send_signal(signal.SIGCONT)
                time.sleep(0.1)
                stop.touch()
            assert host.stdout.readline() == "done\n"
            kept += reader.poll()
            latency = np.concatenate([batch.latency_ns for batch in kept])
            flags = all_of(kept, "flags")
            long = {"stopped": 250, "gil": 50, "starved": 3}[mode] * 1_000_000
            hit = latency >= long
            late = (flags & HOST_LATE) != 0
            assert (hit & late).any(), latency.max()
            if mode == "stopped":  # nothing else takes so long
                assert late[hit].all()
            time.sleep(0.3)
            (counters,) = [one for one in reader.counters() if one["seen"]]
            assert counters["host_late"] >= (hit & late).sum()
            windows = reader.windows()
            assert windows
            gaps = max(w.max_gap_ns for w in windows)
            assert gaps > 0
        host.communicate("\n", timeout=60)
        assert host.returncode == 0
    finally:
        host.kill()
        host.wait()


# --- the command line ----------------------------------------------------------------------------


def run_udrv(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "udrv.cli.main", *arguments], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_stream_is_recorded_and_watched_by_others(ctrl: Controller, tmp_path: Path) -> None:
    ns, buffer = ctrl.namespace(1), ctrl.alloc(4096)
    me, file = str(os.getpid()), tmp_path / "run.parquet"
    listed = json.loads(run_udrv("stream", "list", "--json").communicate()[0])
    assert {"pid": os.getpid(), "target": ctrl.target} in listed
    recorder = run_udrv("record", me, "-o", str(file), "--seconds", "4", "--json")
    watcher = run_udrv("stream", "attach", me, "--seconds", "4", "--json")
    sent = 0
    while recorder.poll() is None or watcher.poll() is None:
        ns.read(sent % 1000, 1, into=buffer)
        sent += 1
        time.sleep(0.0005)
    out, err = recorder.communicate()
    assert recorder.returncode == 0, err
    done = json.loads(out)
    table = pq.read_table(file)
    assert table.num_rows == done["rows"] > 100
    assert table.schema.names == ["drive", *COLUMNS]
    assert table.schema.metadata[b"udrv.record"] == b"1"
    blocks = table.column("slba").to_numpy()
    assert (np.diff(blocks.astype(np.int64)) % 1000 == 1).all(), "in their order, none missing"
    assert done["lost"] == 0
    *windows, last = map(json.loads, watcher.communicate()[0].splitlines())
    assert watcher.returncode == 0
    assert len(windows) >= 10
    assert last["counters"][0]["seen"] <= sent
    assert all(row["nsid"] == 1 for window in windows for row in window["rows"])
    replayed = run_udrv("replay", str(file), "--detector", "evidence", "--tick", "1")
    _, err = replayed.communicate()
    assert replayed.returncode == 0, err


def test_a_recording_that_cannot_be_written_leaves_nothing(
    ctrl: Controller, tmp_path: Path
) -> None:
    ctrl.namespace(1).read(0, 1)
    with pytest.raises(StreamError, match="cannot be written"):
        record(ctrl.stream(), tmp_path / "no" / "such.parquet", seconds=0)
    file = tmp_path / "run.parquet"
    done = record(ctrl.stream(), file, seconds=0)
    assert (done.rows, done.lost, done.rejected) == (1, 0, 0)
    assert pq.read_table(file).column("slba").to_pylist() == [0]
