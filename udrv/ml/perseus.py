# SPDX-License-Identifier: Apache-2.0
"""Perseus: latency above what the host's own load-latency curve allows, for long enough."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from udrv.ml.daily import DailyConfig, DailyDetector

Floats = npt.NDArray[np.float64]

#: Score of a day by the mean slowdown of its events and by how long they lasted, in events of 5
#: minutes: FAST '23, table 2 (extreme to minor risk), with the steps of the public evaluation.
_RISK: Final = (
    (5.0, ((24, 100.0), (12, 25.0), (6, 10.0))),
    (2.0, ((24, 25.0), (12, 10.0), (6, 5.0))),
    (0.0, ((24, 10.0), (12, 5.0), (6, 1.0))),
)


@dataclass(frozen=True, slots=True)
class PerseusConfig(DailyConfig):
    """The published constants.

    eps, neighbours: of DBSCAN, on standardised values (ucare-uchicago/kratos-failslow: 0.125, 5).
    degree, bound: of the polynomial; the one-sided quantile of its prediction (there: 4, 97.5 %).
    event_steps: length of a window (20 steps of 15 s). least_events: fewer in a day score nothing.
    threshold: of the sum over 15 days (there: 50).
    """

    eps: float = 0.125
    neighbours: int = 5
    degree: int = 4
    bound: float = 0.975
    event_steps: int = 20
    least_events: int = 2


class Perseus(DailyDetector):
    """Lu et al., "Perseus: A Fail-Slow Detection Framework for Cloud Storage Systems", FAST '23.

    For each host and day: (throughput, latency) of all drives, outliers removed by density, then a
    polynomial of latency over throughput and the upper bound of its predictions. A window is an
    event if the median of its upper half of latency / bound is above 1. Events' slowdown and
    duration give the day's risk score, and 15 days are summed.

    As published but for: PCA of two values onto two components is a rotation, which DBSCAN does not
    see, and is left out; DBSCAN works on a grid of cells of `eps` (a core cell has `neighbours`
    points in itself and the eight around it); the curve is applied to the outliers too, as the
    paper does.

    Sees: drives slow for hours. Does not see: the first hours, tails, intermittent faults, parts of
    a drive, a host whose drives are all slow. Throughput falls with the fault, which
    bends its curve.
    """

    name, version = "perseus", "1"
    config: PerseusConfig

    def __init__(self, config: PerseusConfig | None = None) -> None:
        super().__init__(config or PerseusConfig())

    def score_day(self, latency: Floats, load: Floats) -> Floats:
        known = np.isfinite(latency) & np.isfinite(load)
        out = np.zeros(latency.shape[1])
        x, y = load[known], latency[known]
        if len(x) < 8 or np.count_nonzero(known.any(axis=0)) < 2 or not (x.std() and y.std()):
            return out
        usual = self._densest(x, y)
        if np.count_nonzero(usual) <= self.config.degree + 1:
            return out
        ratio = np.full(latency.shape, np.nan)
        ratio[known] = y / self._bound(x, x[usual], y[usual])
        for device in range(len(out)):
            out[device] = self._risk(ratio[known[:, device], device])
        return out

    def _densest(self, x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
        """Which points lie in the largest dense cluster."""
        config = self.config
        cells = np.stack([(x - x.mean()) / x.std(), (y - y.mean()) / y.std()])
        column, row = np.floor(cells / config.eps).astype(np.int64)
        places = list(zip(column.tolist(), row.tolist(), strict=True))
        counts = Counter(places)

        def around(cell: tuple[int, int]) -> list[tuple[int, int]]:
            a, b = cell
            return [
                (a + i, b + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (a + i, b + j) in counts
            ]

        near = {cell: around(cell) for cell in counts}
        core = {
            cell for cell in counts if sum(counts[one] for one in near[cell]) >= config.neighbours
        }
        cluster: dict[tuple[int, int], int] = {}
        size: Counter[int] = Counter()
        for number, start in enumerate(sorted(core)):
            todo = deque([] if start in cluster else [start])
            while todo:
                cell = todo.popleft()
                if cell in cluster:
                    continue
                cluster[cell] = number
                size[number] += counts[cell]
                if cell in core:
                    todo.extend(near[cell])
        if not size:
            return np.zeros(len(x), bool)
        largest = size.most_common(1)[0][0]
        return np.array([cluster.get(cell) == largest for cell in places])

    def _bound(self, at: Floats, x: Floats, y: Floats) -> Floats:
        """The upper prediction bound of latency at a load."""
        middle, scale = x.mean(), x.std() or 1.0
        powers = np.arange(self.config.degree + 1)
        design = ((x - middle) / scale)[:, None] ** powers
        pinned = np.clip(at, x.min(), x.max())  # a polynomial means nothing beyond its data
        wanted = ((pinned - middle) / scale)[:, None] ** powers
        inverse = np.linalg.pinv(design.T @ design)
        weights = inverse @ design.T @ y
        left = y - design @ weights
        variance = float(left @ left) / max(len(y) - design.shape[1], 1)
        reach = NormalDist().inv_cdf(self.config.bound)
        spread = np.sqrt(variance * (1 + np.einsum("ij,jk,ik->i", wanted, inverse, wanted)))
        upper: Floats = wanted @ weights + reach * spread
        return np.maximum(upper, np.finfo(np.float64).tiny)

    def _risk(self, ratio: Floats) -> float:
        events = []
        for start in range(0, len(ratio), self.config.event_steps):
            window = np.sort(ratio[start : start + self.config.event_steps])
            top = window[window >= np.median(window)]
            slowdown = float(np.median(top))
            if slowdown > 1:
                events.append(slowdown)
        if len(events) < self.config.least_events:
            return 0.0
        mean = math.fsum(events) / len(events)
        for least, steps in _RISK:
            if mean >= least:
                return next((score for length, score in steps if len(events) >= length), 0.0)
        return 0.0
