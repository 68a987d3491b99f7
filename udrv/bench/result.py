# SPDX-License-Identifier: Apache-2.0
"""What a benchmark found. Times are nanoseconds unless a name says otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from udrv.bench.buckets import Interval
from udrv.bench.config import BenchConfig
from udrv.bench.job import BadData
from udrv.bench.setup import Setup
from udrv.core import ffi, lib
from udrv.errors import UdrvError

#: fio's, and one more.
PERCENTILES = (
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99, 99.999,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Latency:
    """A latency distribution, of a log-linear histogram (percentiles at most 0.8 % too high).

    `buckets` holds (lowest, highest, count) of every bucket that is not empty, ascending.
    """

    count: int
    min: int
    max: int
    mean: float
    stddev: float
    percentiles: dict[float, int]
    buckets: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, hists: Iterable[Any]) -> Latency:
        """Merge `struct udrv_hist`s."""
        total = ffi.new("struct udrv_hist *")
        lib.udrv_hist_reset(total)
        for hist in hists:
            lib.udrv_hist_merge(total, ffi.addressof(hist))
        count = int(total.count)
        if not count:
            return cls(0, 0, 0, 0.0, 0.0, dict.fromkeys(PERCENTILES, 0), ())
        mean = total.sum / count
        spread = max(0.0, total.sum_sq - count * mean * mean)
        counts = ffi.unpack(total.bucket, lib.UDRV_HIST_BUCKETS)
        return cls(
            count=count,
            min=int(total.min),
            max=int(total.max),
            mean=mean,
            stddev=math.sqrt(spread / (count - 1)) if count > 1 else 0.0,
            percentiles={
                p: int(lib.udrv_hist_quantile(total, p / 100)) for p in PERCENTILES
            },
            buckets=tuple(
                (int(lib.udrv_hist_bucket_low(i)), int(lib.udrv_hist_bucket_high(i)), n)
                for i, n in enumerate(counts)
                if n
            ),
        )


@dataclass(frozen=True, slots=True)
class Direction:
    """Reads or writes of all jobs. `ios` and `bytes` are those that succeeded.

    `clat` is from the doorbell to the completion, `lat` from the intended start, `slat` the time
    of the submission call.
    """

    ios: int
    bytes: int
    errors: int
    runtime_ns: int
    slat: Latency
    clat: Latency
    lat: Latency

    @property
    def iops(self) -> float:
        """Commands a second."""
        return self.ios * 1e9 / self.runtime_ns if self.runtime_ns else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes * 1e9 / self.runtime_ns if self.runtime_ns else 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What the run cost this host, all jobs together."""

    cpu_ns: int
    user_ns: int
    system_ns: int
    voluntary_switches: int
    involuntary_switches: int
    sq_doorbells: int
    cq_doorbells: int
    polls: int
    empty_polls: int
    #: Of submitting and waiting, as far as the queue makes them itself (io_uring).
    system_calls: int = 0


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """How the schedule was kept: the worst of all jobs; `backlog` is their sum.

    `saturated`: the device did not keep up; latencies from intent then grow with the runtime.
    """

    saturated: bool
    rate_iops: float
    lag_max_ns: int
    lag_end_ns: int
    backlog: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Logical blocks checked, both while it ran and in the read-back.

    `unchecked` were read, but not written in this run. `first_bad` is the first block that
    differed and in what way.
    """

    checked: int
    unchecked: int
    failures: int
    read_back: int
    first_bad: tuple[int, BadData] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the live counters: (reads, writes) since the one before, rates in a second.

    The percentiles are of `clat`, in an open loop of `lat`; None where nothing completed.
    """

    at_ns: int
    iops: tuple[float, float]
    bandwidth: tuple[float, float]
    p50_ns: tuple[int | None, int | None] = (None, None)
    p99_ns: tuple[int | None, int | None] = (None, None)


@dataclass(slots=True)
class BenchResult:
    """A run and all that is needed to judge it.

    `errors` holds what went wrong while it ran, the worst first; `interrupted`: it was ended by
    the user. `read` and `write` are sums over the jobs, `job_iops` has each job's. `intervals`
    hold every I/O that succeeded, if `run` was asked to keep them; `started_ns` is when it began,
    of the Unix epoch.
    """

    config: BenchConfig
    setup: Setup
    read: Direction
    write: Direction
    elapsed_ns: int
    job_iops: tuple[float, ...]
    cost: Cost
    issued: int
    unfinished: int
    open_loop: OpenLoop | None
    verification: Verification | None
    samples: tuple[Sample, ...] = ()
    intervals: tuple[Interval, ...] = ()
    started_ns: int = 0
    errors: list[UdrvError] = field(default_factory=list)
    interrupted: bool = False

    @property
    def ios(self) -> int:
        """Commands that succeeded."""
        return self.read.ios + self.write.ios

    @property
    def iops(self) -> float:
        """Commands a second, reads and writes."""
        return self.read.iops + self.write.iops

    @property
    def saturated(self) -> bool:
        """Whether this was an open loop that the device did not keep up with."""
        return self.open_loop is not None and self.open_loop.saturated

    def check(self) -> None:
        """Raise the first of `errors`, if there is one."""
        if self.errors:
            raise self.errors[0]


def direction_of(results: Sequence[Any], index: int, runtime_ns: int) -> Direction:
    """Add up reads (0) or writes (1) of `struct udrv_bench_result`s."""
    parts = [result.dir[index] for result in results]
    return Direction(
        ios=sum(int(part.ios) for part in parts),
        bytes=sum(int(part.bytes) for part in parts),
        errors=sum(int(part.errors) for part in parts),
        runtime_ns=runtime_ns,
        slat=Latency.of(part.slat for part in parts),
        clat=Latency.of(part.clat for part in parts),
        lat=Latency.of(part.lat for part in parts),
    )


def cost_of(results: Sequence[Any]) -> Cost:
    """Add up the cost of `struct udrv_bench_result`s."""
    return Cost(
        *(
            sum(int(getattr(result, name)) for result in results)
            for name in Cost.__dataclass_fields__
        )
    )


def open_loop_of(results: Sequence[Any], config: BenchConfig) -> OpenLoop | None:
    """How the schedule was kept, None for a closed loop."""
    if config.rate_iops is None:
        return None
    return OpenLoop(
        saturated=any(result.saturated for result in results),
        rate_iops=config.rate_iops * len(results),
        lag_max_ns=max(int(result.lag_max_ns) for result in results),
        lag_end_ns=max(int(result.lag_end_ns) for result in results),
        backlog=sum(int(result.backlog) for result in results),
    )


def verification_of(
    results: Sequence[Any], read_back: Sequence[Any], config: BenchConfig
) -> Verification | None:
    """What was checked in both phases, None if nothing was to be."""
    if not config.verify:
        return None
    both = [*results, *read_back]
    bad = next((result for result in both if result.verify_failures), None)
    return Verification(
        checked=sum(int(result.blocks_checked) for result in both),
        unchecked=sum(int(result.blocks_unchecked) for result in both),
        failures=sum(int(result.verify_failures) for result in both),
        read_back=sum(int(result.blocks_checked) for result in read_back),
        first_bad=None if bad is None else (int(bad.first_bad_lba), BadData(bad.first_bad_kind)),
    )
