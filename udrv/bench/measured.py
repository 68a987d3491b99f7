# SPDX-License-Identifier: Apache-2.0
"""Results as a report needs them, from whichever program. Times are nanoseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from udrv.bench.buckets import LIMIT, bounds
from udrv.bench.result import PERCENTILES

#: What a comparison compares: (key, what it is, unit, whether more is better).
FIGURES = (
    ("iops", "IOPS", "", True),
    ("cpu_ns_per_io", "CPU time per I/O", "ns", False),
    ("p50_ns", "p50", "ns", False),
    ("p99_ns", "p99", "ns", False),
    ("p999_ns", "p99.9", "ns", False),
)

#: (lowest, highest, count) of a bucket.
Bucket = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Distribution:
    """One direction of a run: rates a second, and a latency distribution.

    `buckets` ascend and may be empty (fio's plain `json` has percentiles only).
    """

    ios: int
    iops: float
    bandwidth: float
    errors: int
    min: float
    max: float
    mean: float
    stddev: float
    percentiles: dict[float, int]
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of a run: seconds since it began, and by direction what it did until then."""

    seconds: float
    iops: dict[str, float]
    p50_ns: dict[str, int]
    p99_ns: dict[str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """A result. All texts may come from a device or a stranger's file: escape them.

    `figure` is what the latencies are ("clat", or "lat" of an open loop); `directions` has "read",
    "write" and "trim" as far as there was any such I/O.
    """

    label: str
    program: str
    file: str
    figure: str
    job: dict[str, str]
    setup: dict[str, str]
    directions: dict[str, Distribution]
    cpu_ns_per_io: float | None
    points: tuple[Point, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of a case over that of the first; `low` to `high` is the confidence interval.

    `low` and `high` are None where the rounds are too few for one.
    """

    case: str
    figure: str
    ratio: float
    low: float | None
    high: float | None
    rounds: int

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """Interleaved rounds of one job over several cases; `rounds` has the figures of each round."""

    file: str
    method: str
    cases: tuple[str, ...]
    rounds: dict[str, tuple[dict[str, float], ...]]
    ratios: tuple[Ratio, ...]
    warnings: tuple[str, ...]


def udrv_bucket(high: int, count: int) -> Bucket:
    """Return the bucket of ours whose highest value is `high`."""
    return (*bounds(high), count)


def fio_bucket(value: int, count: int) -> Bucket:
    """Return the bucket of fio's that `value` stands for: 64 to a power of two (stat.h)."""
    if value < 128:
        return value, value, count
    width = 1 << (value.bit_length() - 7)
    low = value // width * width
    return low, low + width - 1, count


def percentile(buckets: Iterable[Bucket], percent: float) -> int:
    """Return the highest value of the bucket that holds a percentile, 0 if there are none."""
    ordered = sorted(buckets)
    total = sum(count for _, _, count in ordered)
    rank = max(1, -(-percent * total // 100))
    seen = 0
    for _, high, count in ordered:
        seen += count
        if seen >= rank:
            return high
    return 0


def figures_of(result: Measured) -> dict[str, float]:
    """Return the figures of `FIGURES` of one run, as far as it has them.

    Percentiles are of reads and writes together where there are histograms, else of the direction
    with most I/Os. One that needs more I/Os than there were is left out.
    """
    parts = [part for part in result.directions.values() if part.ios]
    if not parts:
        return {}
    buckets = [bucket for part in parts for bucket in part.buckets]
    main = max(parts, key=lambda part: part.ios)
    ios = sum(part.ios for part in parts)
    together = len(parts) > 1 and all(part.buckets for part in parts)
    found: dict[str, float | None] = {
        "iops": sum(part.iops for part in parts), "cpu_ns_per_io": result.cpu_ns_per_io,
    }
    for key, percent in (("p50_ns", 50.0), ("p99_ns", 99.0), ("p999_ns", 99.9)):
        if (ios if together else main.ios) * (1 - percent / 100) >= 1 - 1e-9:
            found[key] = (
                percentile(buckets, percent) if together else main.percentiles.get(percent)
            )
    return {key: value for key, value in found.items() if value}


def merge(parts: Iterable[Distribution]) -> Distribution:
    """Return the distribution of several runs taken together; rates are their means.

    The spread is the pooled one. Percentiles come from the buckets, if all parts have some.
    """
    found = [part for part in parts if part.ios]
    if not found:
        return Distribution(0, 0.0, 0.0, 0, 0, 0, 0.0, 0.0, {}, ())
    ios = sum(part.ios for part in found)
    mean = sum(part.mean * part.ios for part in found) / ios
    spread = sum(
        part.stddev**2 * (part.ios - 1) + part.ios * (part.mean - mean) ** 2 for part in found
    )
    counts: dict[tuple[int, int], int] = {}
    if all(part.buckets for part in found):
        for part in found:
            for low, high, count in part.buckets:
                counts[low, high] = counts.get((low, high), 0) + count
    buckets = tuple((low, high, count) for (low, high), count in sorted(counts.items()))
    highest = max(part.max for part in found)
    return Distribution(
        ios=ios,
        iops=sum(part.iops for part in found) / len(found),
        bandwidth=sum(part.bandwidth for part in found) / len(found),
        errors=sum(part.errors for part in found),
        min=min(part.min for part in found),
        max=highest,
        mean=mean,
        stddev=(spread / (ios - 1)) ** 0.5 if ios > 1 else 0.0,
        percentiles={
            p: min(percentile(buckets, p), int(min(highest, LIMIT))) for p in PERCENTILES
        } if buckets else {},
        buckets=buckets,
    )
