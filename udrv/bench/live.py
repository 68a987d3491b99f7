# SPDX-License-Identifier: Apache-2.0
"""A run as it goes: rates from the live counters of its jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from udrv.bench.buckets import Counts, Interval, quantile, snapshot, sparse
from udrv.bench.job import Job
from udrv.bench.result import Sample

#: Seconds between two samples, as fio's.
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a run.

    `elapsed` is seconds since the phase began, `done` the part of it that is over (0 to 1);
    (reads, writes) a second and bytes a second since the look before; `phase` is "running" or
    "verifying".
    """

    elapsed: float
    done: float
    iops: tuple[float, float]
    bandwidth: tuple[float, float]
    errors: int
    inflight: int
    phase: str


OnProgress = Callable[[Progress], None]


class Watch:
    """Samples the jobs of one phase at most every `SAMPLE_SECONDS`.

    Parameters
    ----------
    figure: "clat" or "lat": whose percentiles the samples have.
    keep: collect `intervals`, too: what each histogram gained from look to look.
    """

    def __init__(
        self, jobs: Sequence[Job], phase: str, on_progress: OnProgress | None, *,
        figure: str = "clat", keep: bool = False,
    ) -> None:
        self.samples: list[Sample] = []
        self.intervals: list[Interval] = []
        self._jobs = jobs
        self._phase = phase
        self._on_progress = on_progress
        self._figure = figure
        self._keep = keep
        self._start = self._last = time.monotonic_ns()
        self._before = (0, 0, 0, 0)
        # zeros when the jobs have not begun, and what they have done when this is the read-back
        self._seen = self._counts()

    def look(self) -> None:
        """Take a sample if it is time for one."""
        now = time.monotonic_ns()
        span = (now - self._last) / 1e9
        if span < SAMPLE_SECONDS:
            return
        ios = [job.ios for job in self._jobs]
        moved = [job.transferred for job in self._jobs]
        after = (
            sum(i[0] for i in ios), sum(i[1] for i in ios),
            sum(m[0] for m in moved), sum(m[1] for m in moved),
        )  # fmt: skip
        rates = [(a - b) / span for a, b in zip(after, self._before, strict=True)]
        gained = self._gained(now)
        self._last, self._before = now, after
        sample = Sample(
            now - self._start, (rates[0], rates[1]), (rates[2], rates[3]),
            p50_ns=(quantile(gained[0], 0.5), quantile(gained[1], 0.5)),
            p99_ns=(quantile(gained[0], 0.99), quantile(gained[1], 0.99)),
        )
        self.samples.append(sample)
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    elapsed=(now - self._start) / 1e9,
                    done=min(1.0, self._done(now, sum(after[:2]))),
                    iops=sample.iops,
                    bandwidth=sample.bandwidth,
                    errors=sum(job.errors for job in self._jobs),
                    inflight=sum(job.inflight for job in self._jobs),
                    phase=self._phase,
                )
            )

    def finish(self) -> None:
        """When the jobs have ended: keep what came since the last look, so that none is missing."""
        self._gained(time.monotonic_ns())

    def _counts(self) -> list[Counts]:
        return [
            snapshot(getattr(job.result.dir[d], self._figure) for job in self._jobs)
            for d in (0, 1)
        ]

    def _gained(self, now: int) -> list[Counts]:
        after = self._counts()
        gained = [a - b for a, b in zip(after, self._seen, strict=True)]
        self._seen = after
        if self._keep:
            reads, writes = (sparse(counts) for counts in gained)
            if reads or writes:
                self.intervals.append(
                    Interval(self._last - self._start, now - self._start, (reads, writes))
                )
        return gained

    def _done(self, now: int, ios: int) -> float:
        spec = self._jobs[0].spec
        if self._phase != "running":
            return ios / sum(job.spec.units for job in self._jobs)
        by_time = (now - self._start) / spec.runtime_ns if spec.runtime_ns else 0.0
        by_number = ios / (spec.max_ios * len(self._jobs)) if spec.max_ios else 0.0
        return max(by_time, by_number)
