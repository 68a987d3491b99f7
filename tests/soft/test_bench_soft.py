# SPDX-License-Identifier: Apache-2.0
"""udrv-bench from end to end on the software controller, from Python and from the command line."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

import udrv
from udrv.bench import BenchConfig, Progress, run
from udrv.bench.buckets import bounds
from udrv.errors import (
    CommandTimeoutError,
    ConfirmationRequiredError,
    DataMismatchError,
    DeviceNotFoundError,
    InvalidRequestError,
    LbaRangeError,
)
from udrv.nvme import Controller
from udrv.soft import SoftProcess
from udrv.vfio.user import from_socket


@pytest.fixture
def ctrl(start: Callable[..., SoftProcess]) -> Iterator[Controller]:
    """Not by the name of `soft:`: to the guard, someone else's device."""
    process = start("ns=512:16M+4096:16M&serial=BENCH1")
    with Controller(from_socket(process.socket, "vfio-user:bench"), queues=4) as controller:
        yield controller


def short(**changes: Any) -> BenchConfig:
    return BenchConfig(**{"number_ios": 500, "iodepth": 8, **changes})


# --- from Python -------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["poll", "interrupt", "hybrid"])
@pytest.mark.parametrize("rw", ["read", "randread", "write", "randwrite", "rw", "randrw"])
def test_every_pattern_runs_in_every_way_of_waiting(ctrl: Controller, rw: str, wait: str) -> None:
    result = run(ctrl, short(rw=rw, wait=wait), i_mean="BENCH1:1")
    assert result.ios == result.issued == 500
    assert (result.read.ios > 0) == (rw not in ("write", "randwrite"))
    assert (result.write.ios > 0) == (rw not in ("read", "randread"))
    assert result.read.bytes + result.write.bytes == 500 * 4096
    assert result.setup.wait == wait
    assert not ctrl.namespace(1).controller.create_queue().inflight


@pytest.mark.parametrize("nsid", [1, 2])
@pytest.mark.parametrize("bs", [4096, 12288, 1 << 17])
def test_what_is_written_is_there(ctrl: Controller, nsid: int, bs: int) -> None:
    config = short(
        rw="randrw", bs=bs, verify=True, nsid=nsid, numjobs=3, size=12 << 20, offset=1 << 20,
        number_ios=200,
    )
    ctrl.namespace(nsid).write(0, np.full(1 << 20, 7, np.uint8))
    result = run(ctrl, config, i_mean=f"BENCH1:{nsid}")
    found = result.verification
    assert found is not None
    assert found.failures == 0
    assert found.read_back > 0
    assert found.checked + found.unchecked == found.read_back + result.read.bytes // (
        ctrl.namespace(nsid).lba_size
    )
    assert len(result.job_iops) == 3
    assert (ctrl.namespace(nsid).read(0, (1 << 20) // ctrl.namespace(nsid).lba_size) == 7).all(), (
        "nothing outside of the range was touched"
    )


def test_a_later_run_checks_what_an_earlier_one_wrote_and_finds_damage(ctrl: Controller) -> None:
    whole = {"size": 4 << 20, "number_ios": None, "verify": True, "seed": 77}
    run(ctrl, short(rw="write", **whole), i_mean="BENCH1:1")
    result = run(ctrl, short(rw="read", **whole))
    assert result.verification is not None
    assert result.verification.checked == 8192
    damaged = ctrl.namespace(1).read(1234, 1)
    damaged[100] ^= 1
    ctrl.namespace(1).write(1234, damaged)
    with pytest.raises(DataMismatchError, match="torn or corrupt") as error:
        run(ctrl, short(rw="read", **whole))
    assert error.value.lba == 1234


def test_an_open_loop_reports_its_schedule(ctrl: Controller) -> None:
    slow = run(ctrl, short(rate_iops=200.0, number_ios=40, wait="interrupt"))
    assert slow.open_loop is not None
    assert not slow.saturated
    assert slow.elapsed_ns >= 39 * 10**9 // 200
    fast = run(ctrl, short(rate_iops=5e8, rate_process="poisson", number_ios=2000))
    assert fast.saturated
    assert fast.read.lat.percentiles[50.0] > fast.read.clat.percentiles[50.0]


def test_samples_and_progress_follow_the_run(ctrl: Controller) -> None:
    seen: list[Progress] = []
    result = run(
        ctrl, BenchConfig(runtime=1.3, rate_iops=1000.0, iodepth=4), on_progress=seen.append
    )
    assert 1 <= len(result.samples) <= 2
    assert len(seen) == len(result.samples)
    assert all(0 < p.done <= 1 for p in seen)
    assert sum(s.iops[0] for s in result.samples) > 0


def test_an_exception_in_the_progress_call_ends_the_run_first(ctrl: Controller) -> None:
    def fail(_: Progress) -> None:
        raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="terminal"):
        run(ctrl, BenchConfig(runtime=60.0), on_progress=fail)
    assert run(ctrl, short()).ios == 500


def test_writing_needs_the_drives_name_and_reading_does_not(ctrl: Controller) -> None:
    before = bytes(ctrl.namespace(1).read(0, 64))
    for wrong in (None, "BENCH1:2", "OTHER:1"):
        with pytest.raises(ConfirmationRequiredError, match="BENCH1:1"):
            run(ctrl, short(rw="write"), i_mean=wrong)
    assert bytes(ctrl.namespace(1).read(0, 64)) == before
    assert run(ctrl, short(rw="read")).ios == 500


@pytest.mark.parametrize(("options", "expected"), [
    ({"nsid": 9}, DeviceNotFoundError),
    ({"offset": 16 << 20}, LbaRangeError),
    ({"offset": 17 << 20}, LbaRangeError),
    ({"numjobs": 5}, InvalidRequestError),
    ({"iodepth": 60000}, InvalidRequestError),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_mend(
    ctrl: Controller, options: dict[str, Any], expected: type[udrv.UdrvError]
) -> None:
    with pytest.raises(expected) as error:
        run(ctrl, short(**options))
    assert error.value.mend


def test_the_deepest_queue(ctrl: Controller) -> None:
    depth = min(ctrl.max_queue_entries, 4096) - 1
    result = run(ctrl, short(iodepth=depth, bs=512, number_ios=3 * depth))
    assert result.ios == 3 * depth


# --- a device that stops -----------------------------------------------------------------------


def test_a_device_that_hangs_is_given_up_and_named(start: Callable[..., SoftProcess]) -> None:
    process = start("size=16M")
    with Controller(from_socket(process.socket, "vfio-user:bench"), queues=1) as ctrl:
        timer = threading.Timer(0.3, os.kill, [process.pid, signal.SIGSTOP])
        resume = threading.Timer(1.5, os.kill, [process.pid, signal.SIGCONT])
        timer.start()
        resume.start()
        try:
            result = run(
                ctrl, BenchConfig(runtime=60.0, timeout=0.3, iodepth=4), check=False
            )
        finally:
            timer.join()
            resume.join()
        assert result.unfinished == 4
        assert any(isinstance(e, CommandTimeoutError) for e in result.errors)
        assert result.read.ios > 0, "the figures until then are kept"
        assert result.elapsed_ns < 30 * 10**9


# --- from the command line ---------------------------------------------------------------------


def bench(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "udrv.bench.main", "run", *words],
        capture_output=True, text=True, timeout=120, check=False, **kwargs,
    )


def test_the_command_prints_percentiles_histogram_and_set_up() -> None:
    done = bench("soft:?size=16M&serial=CLI1", "--iodepth", "32", "--runtime", "300ms")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("99.999 %", "####", "serial CLI1", "polled", "IOPS", "clock "):
        assert word in done.stdout


def test_json_goes_to_a_file_and_agrees_with_itself(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = bench(
        "soft:?size=16M", "--rw", "randrw", "--rwmixread", "70", "--number-ios", "2000",
        "--output-format", "json", "--output", str(out), "--wait", "interrupt",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    document = json.loads(out.read_text())
    job = document["jobs"][0]
    assert job["read"]["total_ios"] + job["write"]["total_ios"] == 2000
    for name in ("read", "write"):
        direction = job[name]
        assert direction["io_bytes"] == direction["total_ios"] * 4096
        assert direction["clat_ns"]["N"] == direction["total_ios"]
        values = list(direction["clat_ns"]["percentile"].values())
        assert values == sorted(values)
        assert direction["lat_ns"]["mean"] >= direction["clat_ns"]["mean"]
    assert document["udrv"]["setup"]["transport"] == "vfio-user"
    assert document["udrv"]["setup"]["wait"] == "interrupt"


def test_errors_are_one_line_and_status_one() -> None:
    done = bench("soft:?size=16M", "--nsid", "5")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no active namespace 5" in done.stderr
    assert bench("soft:", "--bs", "4x").returncode == 1
    assert bench("soft:", "--output-format", "xml").returncode == 2
    assert bench("pci:0000:ff:1f.7").returncode == 1


def test_a_saturated_open_loop_is_said_aloud() -> None:
    words = ("soft:?size=16M", "--rate-iops", "500000000", "--runtime", "300ms")
    assert "*** SATURATED" in bench(*words).stdout
    in_json = bench(*words, "--output-format", "json")
    assert "SATURATED" in in_json.stderr
    assert json.loads(in_json.stdout)["udrv"]["open_loop"]["saturated"] is True


def test_a_terminal_sees_live_rates_and_ctrl_c_prints_what_there_is() -> None:
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "udrv.bench.main", "run", "soft:?size=16M", "--runtime", "100",
         "--rate-iops", "500", "--wait", "interrupt"],
        stdout=subprocess.PIPE, stderr=other_end, text=True, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(other_end)
    seen = b""
    try:
        while b"in flight" not in seen:
            assert select.select([terminal], [], [], 60)[0], seen
            seen += os.read(terminal, 4096)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the controller, too
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(terminal)
    assert process.returncode == 130
    assert "INTERRUPTED" in out
    assert "IOPS" in out
    assert b"IOPS" in seen


# --- HdrHistogram ------------------------------------------------------------------------------


def test_intervals_hold_every_io_and_samples_have_percentiles(ctrl: Controller) -> None:
    config = BenchConfig(rw="randrw", runtime=1.3, iodepth=4)
    result = run(ctrl, config, i_mean="BENCH1:1", intervals=True)
    for index, direction in enumerate((result.read, result.write)):
        total = Counter[int]()
        for interval in result.intervals:
            assert interval.start_ns < interval.end_ns
            total.update(interval.counts[index])
        assert total == {high: count for _, high, count in direction.clat.buckets}
    ends = [interval.end_ns for interval in result.intervals]
    assert [interval.start_ns for interval in result.intervals] == [0, *ends[:-1]]
    for sample in result.samples:
        for low, high in zip(sample.p50_ns, sample.p99_ns, strict=True):
            assert low is not None
            assert high is not None
            assert result.read.clat.min <= low <= high
    assert run(ctrl, short()).intervals == (), "kept on request only"


def test_an_hdr_log_has_the_runs_percentiles(tmp_path: Path) -> None:
    log, out = tmp_path / "run.hlog", tmp_path / "result.json"
    done = bench(
        "soft:?size=16M", "--iodepth", "8", "--runtime", "700ms", "--hdr", str(log),
        "--output-format", "json", "-o", str(out),
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(out.read_text())["jobs"][0]["read"]
    total = HdrHistogram(1, 1 << 42, 2)
    reader = HistogramLogReader(str(log), total)
    while reader.add_next_interval_histogram():
        pass
    reader.input_file.close()
    assert total.get_total_count() == read["clat_ns"]["N"] == read["total_ios"]
    for percent, value in read["clat_ns"]["percentile"].items():
        # it rounds the rank to the nearest, we round it up: at most one I/O apart
        ranks = [100 * (float(percent) / 100 * read["total_ios"] + d) / read["total_ios"]
                 for d in (-1, 1)]
        low, high = (total.get_value_at_percentile(max(0, min(100, rank))) for rank in ranks)
        assert low <= bounds(value)[1] <= high, "ours is never above the true maximum"
    assert json.loads(out.read_text())["udrv"]["samples"][0]["p99_ns"][1] is None
