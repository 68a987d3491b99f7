# SPDX-License-Identifier: Apache-2.0
"""Options to jobs, and results to text and to fio's JSON; no device."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

import pytest
from bench_fakes import FakeDevice
from bench_results import latency, result
from hypothesis import given
from hypothesis import strategies as st

from udrv.bench import BenchConfig, to_fio
from udrv.bench.config import PATTERNS, parse_seconds
from udrv.bench.job import HYBRID, SPIN_ONLY, BadData, Process, aligned_new
from udrv.bench.result import (
    PERCENTILES,
    OpenLoop,
    Verification,
    direction_of,
)
from udrv.bench.text import format_ns, histogram, render
from udrv.core import ffi, lib
from udrv.errors import (
    AlignmentError,
    InvalidRequestError,
    LbaRangeError,
    TransferTooLargeError,
    UdrvError,
)

GEOMETRY = {"lba_size": 512, "nsze": 4096, "max_transfer": 1 << 17}

# --- options -----------------------------------------------------------------------------------


@given(
    rw=st.sampled_from(PATTERNS), bs_blocks=st.integers(1, 256), offset=st.integers(0, 5000),
    size=st.none() | st.integers(1, 3 << 20), numjobs=st.integers(1, 5), verify=st.booleans(),
    runtime=st.none() | st.floats(0.001, 100), number=st.none() | st.integers(1, 1000),
    lba_shift=st.sampled_from([9, 12]), nsze=st.integers(1, 4096), seed=st.integers(0, 2**64 - 1),
)
def test_a_job_stays_in_the_range_and_ends(
    rw: str, bs_blocks: int, offset: int, size: int | None, numjobs: int, verify: bool,
    runtime: float | None, number: int | None, lba_shift: int, nsze: int, seed: int,
) -> None:
    lba = 1 << lba_shift
    config = BenchConfig(
        rw=rw, bs=bs_blocks * lba, offset=offset * lba, size=size, numjobs=numjobs, verify=verify,
        runtime=runtime, number_ios=number, seed=seed,
    )
    try:
        specs = config.specs(lba_size=lba, nsze=nsze, max_transfer=1 << 20)
    except LbaRangeError:
        end = offset * lba + (size or 0)
        parts = numjobs if verify and config.writes else 1
        room = (nsze - offset if size is None else size // lba) // bs_blocks
        assert end > nsze * lba or offset > nsze or room < parts
        return
    assert len(specs) == numjobs
    for spec in specs:
        assert spec.unit_blocks == bs_blocks
        assert spec.start_block >= offset
        last = spec.start_block + spec.units * spec.unit_blocks
        assert last <= nsze
        assert size is None or last * lba <= offset * lba + size
        assert spec.runtime_ns or spec.max_ios
        assert spec.max_ios == (number or (0 if spec.runtime_ns else spec.units))
        assert spec.buffer_stride % 4096 == 0
        assert spec.buffer_stride >= config.bs
        assert 0 <= spec.seed < 1 << 64
    if verify and config.writes:
        edges = [(s.start_block, s.start_block + s.units * s.unit_blocks) for s in specs]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(edges))


def test_words_mean_what_they_mean_to_fio() -> None:
    def spec(**options: Any) -> Any:
        return BenchConfig(**options).specs(**GEOMETRY)[0]

    assert (spec(rw="randrw", rwmixread=70).random, spec(rw="randrw", rwmixread=70).read_percent) \
        == (True, 70)
    assert (spec(rw="write").random, spec(rw="write").read_percent) == (False, 0)
    assert spec(rw="read", rwmixread=10).read_percent == 100
    assert spec(wait="poll").spin_ns == SPIN_ONLY
    assert spec(wait="interrupt").spin_ns == 0
    assert spec(wait="hybrid", spin_ns=7000).spin_ns == 7000
    assert spec(wait="hybrid").spin_ns == HYBRID
    assert spec(rate_iops=100.0).process is Process.LINEAR
    assert spec(rate_iops=100.0, rate_process="poisson").process is Process.POISSON
    assert spec().runtime_ns == 5_000_000_000
    assert spec(size=1 << 20).runtime_ns == 0
    assert spec(size=1 << 20).max_ios == 256


@pytest.mark.parametrize("wrong", [
    {"rw": "trim"}, {"rwmixread": 101}, {"bs": 0}, {"iodepth": 0}, {"iodepth": 65535},
    {"numjobs": 0}, {"runtime": 0.0}, {"runtime": float("nan")}, {"size": 0}, {"offset": -1},
    {"number_ios": 0}, {"seed": -1}, {"rate_iops": 0.0}, {"rate_iops": float("inf")},
    {"rate_process": "uniform"}, {"wait": "sleep"}, {"spin_ns": 0}, {"timeout": 0.0},
    {"max_errors": -1},
])  # fmt: skip
def test_what_no_device_could_do_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as error:
        BenchConfig(**wrong)
    assert error.value.mend


@pytest.mark.parametrize(("options", "expected"), [
    ({"bs": 1000}, AlignmentError),
    ({"offset": 100}, AlignmentError),
    ({"bs": 1 << 18}, TransferTooLargeError),
    ({"offset": 1 << 30}, LbaRangeError),
    ({"size": 1 << 30}, LbaRangeError),
    ({"size": 1024}, LbaRangeError),
    ({"rw": "write", "verify": True, "size": 8192, "numjobs": 3}, LbaRangeError),
])  # fmt: skip
def test_what_this_device_cannot_do_is_refused(
    options: dict[str, Any], expected: type[UdrvError]
) -> None:
    with pytest.raises(expected) as error:
        BenchConfig(**options).specs(**GEOMETRY, device="soft:")
    assert error.value.mend
    assert error.value.device == "soft:"


def test_verifying_more_than_memory_is_for_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--size"):
        BenchConfig(rw="write", verify=True, bs=512).specs(
            lba_size=512, nsze=1 << 32, max_transfer=1 << 17
        )


def test_times() -> None:
    times = [parse_seconds(t) for t in ("5", "0.5s", "500ms", "2m", "1h", "50us")]
    assert times == pytest.approx([5, 0.5, 0.5, 120, 3600, 50e-6])
    for wrong in ("", "5x", "-1", "1e3", "ms"):
        with pytest.raises(InvalidRequestError):
            parse_seconds(wrong)


# --- results -----------------------------------------------------------------------------------


#: Keys of fio 3.33's --output-format=json (ioengine=null), of the objects that we have.
FIO_JOB = {"jobname", "groupid", "error", "elapsed", "job options", "read", "write", "trim",
           "job_runtime", "usr_cpu", "sys_cpu", "ctx"}
FIO_DIRECTION = {"io_bytes", "io_kbytes", "bw_bytes", "bw", "iops", "runtime", "total_ios",
                 "short_ios", "drop_ios", "slat_ns", "clat_ns", "lat_ns", "bw_min", "bw_max",
                 "bw_mean", "bw_dev", "bw_samples", "iops_min", "iops_max", "iops_mean",
                 "iops_stddev", "iops_samples"}
FIO_LATENCY = {"min", "max", "mean", "stddev", "N"}
FIO_PERCENTILES = ["1.000000", "5.000000", "10.000000", "20.000000", "30.000000", "40.000000",
                   "50.000000", "60.000000", "70.000000", "80.000000", "90.000000", "95.000000",
                   "99.000000", "99.500000", "99.900000", "99.950000", "99.990000"]


def test_json_has_fios_shape_and_units() -> None:
    document = json.loads(json.dumps(to_fio(result())))
    (job,) = document["jobs"]
    assert set(job) >= FIO_JOB
    for direction in (job["read"], job["write"], job["trim"]):
        assert set(direction) >= FIO_DIRECTION
        for name in ("slat_ns", "clat_ns", "lat_ns"):
            assert set(direction[name]) >= FIO_LATENCY
    read = job["read"]
    assert read["iops"] == 50.0
    assert read["bw_bytes"] == 204_800
    assert read["bw"] == 200
    assert read["runtime"] == 2000
    assert read["total_ios"] == 100
    assert list(read["clat_ns"]["percentile"]) == [*FIO_PERCENTILES, "99.999000"]
    assert read["clat_ns"]["N"] == 100
    assert (read["iops_min"], read["iops_max"], read["iops_mean"], read["iops_samples"]) == (
        40, 60, 50, 2,
    )  # fmt: skip
    assert (job["usr_cpu"], job["sys_cpu"], job["ctx"]) == (40.0, 10.0, 7)
    assert "percentile" not in job["write"]["clat_ns"]
    extra = document["udrv"]
    assert extra["cost"]["doorbells_per_io"] == 1.0
    assert extra["cost"]["cpu_ns_per_io"] == 10_000
    assert extra["setup"]["host"]["cpu_model"] == "Some CPU"
    assert document["udrv version"].startswith("udrv-")


def test_mean_and_deviation_are_fios() -> None:
    some = latency(10, 20, 30, 40)
    assert (some.mean, some.min, some.max, some.count) == (25.0, 10, 40, 4)
    assert abs(some.stddev - (500 / 3) ** 0.5) < 1e-9  # of a sample, not of a population
    assert latency(7).stddev == 0.0


def test_directions_of_several_jobs_add_up() -> None:
    results = []
    keep = []
    for part in range(3):
        pointer, memory = aligned_new("struct udrv_bench_result")
        keep.append(memory)
        lib.udrv_bench_result_reset(pointer)
        pointer.dir[1].ios = 10
        pointer.dir[1].bytes = 100
        pointer.dir[1].errors = part
        for _ in range(10):
            for hist in (pointer.dir[1].slat, pointer.dir[1].clat, pointer.dir[1].lat):
                lib.udrv_hist_record(ffi.addressof(hist), 100 * (part + 1))
        results.append(pointer)
    both = direction_of(results, 1, 10**9)
    assert (both.ios, both.bytes, both.errors, both.iops) == (30, 300, 3, 30.0)
    assert (both.clat.count, both.clat.min, both.clat.max, both.clat.mean) == (30, 100, 300, 200.0)
    assert direction_of(results, 0, 10**9).clat.count == 0


def test_the_text_holds_set_up_percentiles_and_histogram() -> None:
    text = render(result())
    for word in (
        "serial S1", "firmware F1", "vfio-user", "hybrid", "64 entries", "Some CPU",
        "governor performance", "closed loop", "50 IOPS", "99.999 %", "doorbell writes",
    ):
        assert word in text, word
    assert "\x1b" not in text, "a device's name must not drive the terminal"
    assert "SATURATED" not in text
    # 100 I/Os have no 99.5th percentile of their own
    thin = [line for line in text.splitlines() if "fewer" in line]
    assert [line.split()[0] for line in thin] == ["99.5", "99.9", "99.95", "99.99", "99.999"]


def test_what_spoils_a_result_is_said() -> None:
    loop = OpenLoop(True, 1000.0, 5 * 10**9, 4 * 10**9, 4000)
    bad = Verification(100, 0, 2, 100, (17, BadData.STALE))
    error = InvalidRequestError("a command failed")
    text = render(result(
        open_loop=loop, verification=bad, errors=[error], interrupted=True, unfinished=3,
    ))
    for word in ("SATURATED", "4,000 I/Os were due", "2 bad", "a command failed", "INTERRUPTED",
                 "3 I/Os NEVER COMPLETED", "open loop: 1,000 IOPS"):
        assert word in text, word
    extra = to_fio(result(open_loop=loop, verification=bad, errors=[error]))["udrv"]
    assert extra["open_loop"]["saturated"] is True
    assert extra["verify"]["first_bad_kind"] == "stale"
    assert extra["errors"][0]["type"] == "InvalidRequestError"


@given(st.lists(st.integers(0, 2**45), min_size=1, max_size=100))
def test_the_histogram_shows_every_io_once_and_fits_a_screen(values: list[int]) -> None:
    some = latency(*values)
    rows = list(histogram(some))
    assert len(rows) <= 28
    assert sum(count for _, _, count in some.buckets) == len(values)
    shares = [float(m.group(1)) for row in rows if (m := re.search(r"\| +([0-9.]+) %$", row))]
    assert abs(sum(shares) - 100) < 0.01
    assert rows[0].rstrip().endswith("%")
    assert rows[-1].rstrip().endswith("%")


@given(st.floats(0, 1e13))
def test_times_are_printed_within_half_a_percent(ns: float) -> None:
    value, unit = format_ns(ns).split()
    factor = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert abs(float(value) * factor - ns) <= max(0.51, ns * 0.0051)
    assert len(format_ns(ns)) <= 8


def test_percentiles_are_fios_and_one_more() -> None:
    assert [f"{p:.6f}" for p in PERCENTILES] == [*FIO_PERCENTILES, "99.999000"]


def test_an_impossible_depth_is_named() -> None:
    device = FakeDevice()
    spec = dataclasses.replace(BenchConfig().specs(**GEOMETRY)[0], iodepth=0)
    with pytest.raises(InvalidRequestError, match="depth"):
        device.job(spec)
