# SPDX-License-Identifier: Apache-2.0
"""Figures of a detector from counts of drives, and how far to trust them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]  # (..., 4): tp, fp, fn, tn


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval; None where the figure is not defined."""

    low: float | None
    high: float | None


def mcc(counts: Counts) -> npt.NDArray[np.float64]:
    """Matthews correlation of (..., 4) counts; 0 where a margin is empty (Chicco & Jurman 2020)."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    out: npt.NDArray[np.float64] = np.zeros(below.shape)
    np.divide(tp * tn - fp * fn, below, out=out, where=below > 0)
    return out


def precision(counts: Counts) -> npt.NDArray[np.float64]:
    """tp / (tp + fp); NaN where nothing was flagged."""
    tp, fp, *_ = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _ratio(tp, tp + fp)


def recall(counts: Counts) -> npt.NDArray[np.float64]:
    """tp / (tp + fn); NaN where nothing is slow."""
    tp, _, fn, _ = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _ratio(tp, tp + fn)


def _ratio(above: Any, below: Any) -> npt.NDArray[np.float64]:
    out: npt.NDArray[np.float64] = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=out, where=np.asarray(below) > 0)
    return out


def resampled(groups: Counts, *, times: int, seed: int) -> Counts:
    """Bootstrap: sums over as many groups as there are, drawn with replacement.

    Drives of one group share their centre, so groups are drawn and not drives. (times, 4).
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=times)
    return np.asarray(weights @ groups, np.float64)


def interval(values: npt.NDArray[np.float64]) -> Interval:
    """The middle 95 % of values; those that are not defined are left out."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Interval(None, None)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))


def poisson_upper(events: int, confidence: float = 0.95) -> float:
    """The one-sided upper bound of a Poisson mean of which `events` were seen (exact).

    The mean at which so few events have probability 1 - confidence: 3.0 for none.
    """
    low, high = 0.0, events + 10.0 * math.sqrt(events + 1) + 10
    for _ in range(80):
        middle = (low + high) / 2
        term = total = math.exp(-middle)
        for k in range(1, events + 1):
            term *= middle / k
            total += term
        low, high = (middle, high) if total > 1 - confidence else (low, middle)
    return high


def auc(positive: npt.NDArray[Any], negative: npt.NDArray[Any]) -> float:
    """The probability that a positive's score is above a negative's; ties count half."""
    if not len(positive) or not len(negative):
        return math.nan
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, "left")
    not_above = np.searchsorted(ranked, positive, "right")
    return float((below + not_above).mean() / (2 * len(ranked)))
