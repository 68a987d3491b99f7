# SPDX-License-Identifier: Apache-2.0
"""HdrHistogram logs, read back with HdrHistogram's own tools: the Python and the Java library."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bench_results import result
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import example, given
from hypothesis import strategies as st

from udrv.bench import extras
from udrv.bench.buckets import LIMIT, Interval, bounds, quantile, snapshot, sparse
from udrv.bench.hdr import check_hdr, write_hdr
from udrv.bench.result import BenchResult
from udrv.core import ffi, lib
from udrv.errors import MissingToolError

JAR = Path("/usr/share/java/hdrhistogram.jar")
VALUES = st.lists(
    st.integers(0, 300) | st.integers(0, LIMIT + 1000) | st.integers(0, 41).map(lambda e: 1 << e),
    max_size=60,
)


def hist_of(values: list[int]) -> object:
    hist = ffi.new("struct udrv_hist *")
    lib.udrv_hist_reset(hist)
    for value in values:
        lib.udrv_hist_record(hist, value)
    return hist


def result_with(reads: list[list[int]], writes: list[list[int]]) -> BenchResult:
    """A result whose intervals of half a second hold these values."""
    made = result()
    made.intervals = tuple(
        Interval(i * 5 * 10**8, (i + 1) * 5 * 10**8,
                 (sparse(snapshot([hist_of(r)])), sparse(snapshot([hist_of(w)]))))
        for i, (r, w) in enumerate(zip(reads, writes, strict=True)) if r or w
    )  # fmt: skip
    made.started_ns = 1_700_000_000_123_000_000
    return made


def read_back(path: Path, tag: str | None = None) -> tuple[HdrHistogram, int]:
    total, lines = HdrHistogram(1, LIMIT - 1, 2), 0
    reader = HistogramLogReader(str(path), total)
    while (one := reader.get_next_interval_histogram()) is not None:
        if one.get_tag() == tag:
            total.add(one)
            lines += 1
    assert reader.get_start_time_sec() == pytest.approx(1_700_000_000.123)
    reader.input_file.close()
    return total, lines


# --- buckets -----------------------------------------------------------------------------------


@given(st.integers(0, LIMIT * 2))
@example(LIMIT - 1)
@example(LIMIT)
def test_a_bucket_holds_its_value_and_is_narrow(value: int) -> None:
    low, high = bounds(value)
    assert low <= min(value, LIMIT - 1) <= high
    assert high - low <= low / 128
    assert bounds(low) == bounds(high) == (low, high)


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_the_histograms_own(values: list[int], share: float) -> None:
    hist = hist_of(values)
    found = quantile(snapshot([hist]), share)
    if not values:
        assert found is None
    else:
        assert found is not None
        own = lib.udrv_hist_quantile(hist, share)
        assert bounds(found) == bounds(own), "the C side knows the true minimum and maximum"


def test_a_look_adds_the_jobs_up() -> None:
    total = snapshot([hist_of([5, 5, 1000]), hist_of([5, LIMIT * 4])])
    assert sparse(total) == {5: 3, bounds(1000)[1]: 1, LIMIT - 1: 1}
    assert total.dtype == np.uint64


# --- the log -----------------------------------------------------------------------------------


@given(VALUES, VALUES)
def test_every_bucket_comes_back(reads: list[int], writes: list[int]) -> None:
    out = io.StringIO()
    write_hdr(result_with([reads], [writes]), out)
    payloads = [line.rpartition(",")[2] for line in out.getvalue().splitlines()[5:]]
    parts = [reads + writes, reads, writes] if reads and writes else [reads + writes]
    parts = parts if reads or writes else []
    for payload, values in zip(payloads, parts, strict=True):
        hdr = HdrHistogram.decode(payload.encode())
        assert hdr.get_total_count() == len(values)
        for value in values:
            low, high = bounds(value)
            assert hdr.get_count_at_value(min(value, LIMIT - 1)) == sum(
                low <= min(v, LIMIT - 1) <= high for v in values
            ), "HdrHistogram's bucket is ours"
            assert hdr.get_highest_equivalent_value(high) == high


def test_a_log_has_the_lines_that_the_format_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "run.hlog"
    with path.open("w") as out:
        write_hdr(result_with([[1000] * 10, [2000] * 5], [[], [7]]), out)
    lines = path.read_text().splitlines()
    assert lines[1] == "#[Histogram log format version 1.3]"
    assert lines[2].startswith("#[StartTime: 1700000000.123 (seconds since epoch), 2023-11-14 ")
    assert lines[4].startswith('"StartTimestamp","Interval_Length","Interval_Max"')
    assert [line.split("HIST")[0] for line in lines[5:]] == [
        "0.000,0.500,0.001,", "Tag=read,0.000,0.500,0.001,", "Tag=write,0.000,0.500,0.000,",
        "0.500,0.500,0.002,", "Tag=read,0.500,0.500,0.002,", "Tag=write,0.500,0.500,0.000,",
    ]
    for tag, count in ((None, 16), ("read", 15), ("write", 1)):
        total, intervals = read_back(path, tag)
        assert (total.get_total_count(), intervals) == (count, 2)


@pytest.mark.skipif(
    shutil.which("java") is None or not JAR.exists(), reason="no java, or no libhdrhistogram-java"
)
def test_the_java_tool_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "run.hlog"
    random = np.random.default_rng(1)
    values = [int(v) for v in random.lognormal(10, 1.5, 3000)]
    with path.open("w") as out:
        write_hdr(result_with([values[:1000], values[1000:]], [[], []]), out)
    done = subprocess.run(
        ["java", "-cp", str(JAR), "org.HdrHistogram.HistogramLogProcessor", "-i", str(path),
         "-csv", "-outputValueUnitRatio", "1"],
        capture_output=True, text=True, check=True,
    )
    rows = [line.split(",") for line in done.stdout.splitlines() if line[:1].isdigit()]
    ordered = sorted(values)
    assert int(rows[-1][2]) == 3000
    for value, _, count, *_ in rows:
        true = ordered[int(count) - 1]
        assert true <= float(value) <= true * (1 + 1 / 128) + 1


# --- without the package -----------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(extras, "import_module", gone)
    with pytest.raises(MissingToolError, match=r"hdrh.*pip install 'udrv\[report\]'"):
        check_hdr()
