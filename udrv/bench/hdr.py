# SPDX-License-Identifier: Apache-2.0
"""Latencies as an HdrHistogram log, for HdrHistogram's own tools.

The format is that of HistogramLogWriter in the Java library, version 1.3: a line an interval, with
a histogram in the compressed V2 encoding. The encoding is done by the PyPI package hdrhistogram;
its writer is not used: it writes version 1.2 and fails on the start time.

Nothing is lost on the way: buckets of ours are buckets of an HdrHistogram with two significant
digits, so what HdrHistogram reads is what this process counted, at most 0.8 % too high.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any, TextIO

from udrv.bench.buckets import LIMIT
from udrv.bench.extras import need
from udrv.bench.result import BenchResult

#: Two significant digits: 128 buckets to a power of two, as udrv/core/include/udrv/hist.h has.
_DIGITS = 2
_NS_PER_MS = 1e6


def check_hdr() -> None:
    """Raise `MissingToolError` if the encoder is not installed: before a run, not after it."""
    need("hdrh.histogram", "an HdrHistogram log")


def write_hdr(result: BenchResult, out: TextIO) -> None:
    """Write the intervals of a run (`run(..., intervals=True)`) as a log.

    Values are nanoseconds of `clat`, in an open loop of `lat`. Lines without a tag hold all I/Os.
    Where there were reads and writes, both are there again with the tags "read" and "write".

    Raises `MissingToolError` without the package hdrhistogram, and `OSError`.
    """
    hdrh = need("hdrh.histogram", "an HdrHistogram log")
    for line in _lines(result, hdrh.HdrHistogram):
        out.write(line + "\n")


def _lines(result: BenchResult, histogram: Any) -> Iterator[str]:
    start = result.started_ns / 1e9
    when = datetime.datetime.fromtimestamp(start, datetime.UTC).isoformat(" ", "milliseconds")
    figure = "clat" if result.open_loop is None else "lat, from the intended start"
    yield f"#[udrv-bench {result.setup.host.udrv}: nanoseconds of {figure}]"
    yield "#[Histogram log format version 1.3]"
    yield f"#[StartTime: {start:.3f} (seconds since epoch), {when}]"
    yield f"#[BaseTime: {start:.3f} (seconds since epoch)]"
    yield '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
    mixed = all(any(i.counts[d] for i in result.intervals) for d in (0, 1))
    for interval in result.intervals:
        span = (
            f"{interval.start_ns / 1e9:.3f},"
            f"{(interval.end_ns - interval.start_ns) / 1e9:.3f}"
        )
        reads, writes = interval.counts
        rows = [("", [reads, writes])]
        if mixed:
            rows += [("Tag=read,", [reads]), ("Tag=write,", [writes])]
        for tag, parts in rows:
            hdr = histogram(1, LIMIT - 1, _DIGITS)
            for counts in parts:
                for value, count in counts.items():
                    hdr.record_value(value, count)
            highest = max((value for counts in parts for value in counts), default=0)
            yield f"{tag}{span},{highest / _NS_PER_MS:.3f},{hdr.encode().decode('ascii')}"
