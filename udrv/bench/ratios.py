# SPDX-License-Identifier: Apache-2.0
"""Ratios of paired rounds with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from udrv.bench.measured import FIGURES, Ratio

CONFIDENCE = 0.95
#: Fewer rounds give an interval, and a warning: one odd round decides.
FEW_ROUNDS = 5
#: Student's t, 97.5 %, of 1 to 30 degrees of freedom (any table; e.g. NIST's e-Handbook 1.3.6.7.2).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
METHOD = (
    "Ratios are geometric means over the rounds, each round paired with the same round of the "
    "first case. Intervals: 95 %, Student's t on the logarithms of the paired ratios; those of "
    "percentiles are widened by a bucket of the histograms (0.8 %, against fio 1.6 %). Each holds "
    "for itself: of 20 true null differences one is expected to look like a difference."
)


def student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t; past 30 degrees of freedom that of 30.

    So it is never too small, and at most 4 % too large.
    """
    return _T[min(degrees, len(_T)) - 1]


def ratio_of(
    case: str, figure: str, first: Sequence[float], own: Sequence[float], resolution: float = 0.0
) -> Ratio | None:
    """Return the ratio of paired values, None if there is no pair.

    `resolution` is by what share a single value may be off: the interval is widened by it. One
    pair gives no interval.
    """
    logs = [math.log(b / a) for a, b in zip(first, own, strict=True)]
    if not logs:
        return None
    mean = statistics.fmean(logs)
    low = high = None
    if len(logs) > 1:
        half = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        half += math.log1p(resolution)
        low, high = math.exp(mean - half), math.exp(mean + half)
    return Ratio(case, figure, math.exp(mean), low, high, len(logs))


def ratios_of(
    rounds: Mapping[str, Sequence[Mapping[str, float]]], from_fio: Mapping[str, bool]
) -> tuple[Ratio, ...]:
    """Return all ratios to the first case that can be had: rounds that both have a figure for."""
    names = list(rounds)
    found = []
    for case in names[1:]:
        for figure, *_ in FIGURES:
            pairs = [
                (a[figure], b[figure])
                for a, b in zip(rounds[names[0]], rounds[case], strict=True)
                if a.get(figure) and b.get(figure)
            ]
            resolution = 0.0
            if figure.startswith("p"):
                resolution = 1 / 64 if from_fio[names[0]] or from_fio[case] else 1 / 128
            one = ratio_of(case, figure, [a for a, _ in pairs], [b for _, b in pairs], resolution)
            if one is not None:
                found.append(one)
    return tuple(found)
