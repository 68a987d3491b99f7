# SPDX-License-Identifier: Apache-2.0
"""Kratos: how else than its peers does a drive stand out?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.daily import DailyConfig, DailyDetector

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KratosConfig(DailyConfig):
    """The published constants (ucare-uchicago/kratos-failslow).

    deviations: a step is flagged beyond so many standard deviations over its group's mean.
    bins: of the histograms. least_z, least_share: of a day that scores. threshold: of 15 days.
    """

    threshold: float = 1000.0
    deviations: float = 2.0
    bins: int = 10
    least_z: float = 1.5
    least_share: float = 0.10


#: Score of a day by the sum of divergences from all peers.
_DIVERGENCE_SCORES: Final = ((3.0, 100.0), (1.5, 25.0), (1.0, 10.0), (0.5, 5.0), (-1.0, 1.0))


class Kratos(DailyDetector):
    """Kratos (ucare-uchicago/kratos-failslow): how else than its peers does a drive stand out?

    In each step a drive is flagged if its latency per byte is two standard deviations above the
    mean of its host. A counter goes up with each flag and down without, not below 0. The day's
    distribution of that counter is compared with each peer's by Kullback-Leibler divergence; the
    sum, if it stands out among the drives of the host, gives the day's score. 15 days are summed.

    Sees: drives that stand out for days. Does not see: anything soon (1000 points are ten days at
    the highest score), tails, parts of a drive, drives without peers.
    """

    name, version = "kratos", "1"
    config: KratosConfig

    def __init__(self, config: KratosConfig | None = None) -> None:
        super().__init__(config or KratosConfig())

    def score_day(self, latency: Floats, load: Floats) -> Floats:
        devices = latency.shape[1]
        out = np.zeros(devices)
        per_byte = latency / np.maximum(load, 1e-6)
        known = np.isfinite(per_byte)
        counters = [
            _counter(flags[there])
            for flags, there in zip(self._flags(per_byte, known).T, known.T, strict=True)
        ]
        have = [at for at in range(devices) if len(counters[at])]
        if len(have) < 2:
            return out
        divergence = np.array([
            sum(self._divergence(counters[one], counters[other]) for other in have if other != one)
            for one in have
        ])  # fmt: skip
        highest = divergence.max()
        others = divergence[divergence != highest]
        if len(others) < 2 or not others.std(ddof=1):
            return out
        z = (divergence - others.mean()) / others.std(ddof=1)
        for at, value, deviation in zip(have, divergence, z, strict=True):
            share = np.count_nonzero(counters[at]) / len(counters[at])
            if deviation > self.config.least_z and share > self.config.least_share:
                out[at] = next(score for least, score in _DIVERGENCE_SCORES if value > least)
        return out

    def _flags(self, per_byte: Floats, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        count = np.maximum(known.sum(axis=1), 1)
        filled = np.where(known, per_byte, 0.0)
        mean = filled.sum(axis=1) / count
        off = np.where(known, per_byte - mean[:, None], 0.0)
        deviation = np.sqrt((off**2).sum(axis=1) / np.maximum(count - 1, 1))
        flags: npt.NDArray[np.bool_] = off >= self.config.deviations * deviation[:, None]
        return flags & known

    def _divergence(self, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
        low, high = min(one.min(), other.min()), max(one.max(), other.max())
        if low == high:
            return 0.0
        p, q = (
            np.histogram(values, self.config.bins, (low, high))[0] / (len(values) + 1) + 1e-6
            for values in (one, other)
        )
        p, q = p / p.sum(), q / q.sum()
        return float((p * np.log(p / q)).sum())


def _counter(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A random walk of +1 and -1 that is held at 0: the sum above its lowest point so far."""
    walk = np.cumsum(np.where(flags, 1, -1))
    if not len(walk):
        return walk
    return np.asarray(walk - np.minimum(np.minimum.accumulate(walk), 0))
