# SPDX-License-Identifier: Apache-2.0
"""What a drive's latency is beside that of its peers, and the baselines that stop there."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.detector import Detector, Needs, StateValue
from udrv.ml.verdict import Verdict
from udrv.ml.window import WindowBatch

Floats = npt.NDArray[np.float32]

#: Below this many drives a drive is compared with the others only; with more, it hardly moves the
#: centre that it is a part of.
SMALL_GROUP: Final = 5


def row_quantile(values: Floats, share: float) -> Floats:
    """The quantile of each row (linear between neighbours), NaNs left out; NaN for an empty row.

    As numpy.nanquantile over the last axis, for short rows a hundred times as fast.
    """
    ranked = np.sort(values, axis=-1)  # NaNs last
    width = values.shape[-1]
    if not np.isnan(ranked[..., -1]).any():
        at = (width - 1) * share
        low = int(at)
        high = min(low + 1, width - 1)
        above = ranked[..., high] - ranked[..., low]
        return np.asarray(ranked[..., low] + above * np.float32(at - low), np.float32)
    known = width - np.isnan(ranked).sum(axis=-1)
    at_row = np.maximum(known - 1, 0) * share
    low_row = at_row.astype(np.intp)
    high_row = np.minimum(low_row + 1, np.maximum(known - 1, 0))
    below = np.take_along_axis(ranked, low_row[..., None], -1)[..., 0]
    above = np.take_along_axis(ranked, high_row[..., None], -1)[..., 0] - below
    return np.asarray(below + above * (at_row - low_row), np.float32)


def log_ratio(values: Floats, *, whole: bool = False) -> Floats:
    """Log of each value over the median of the group, per step: (steps, devices) in and out.

    In a group of fewer than `SMALL_GROUP` it is the median of the others. A step in which fewer
    than two drives have a value is NaN: there is nothing to compare with. `whole`: the caller knows
    that there is no NaN.
    """
    logs = np.log(values)
    if values.shape[1] >= SMALL_GROUP:
        if whole:
            ranked = np.sort(logs, axis=1)
            half = values.shape[1] // 2
            low = ranked[:, half] if values.shape[1] % 2 else ranked[:, half - 1]
            middle = (low + ranked[:, half]) * np.float32(0.5)
            ratio: Floats = logs - middle[:, None]
            return ratio
        centre = row_quantile(logs, 0.5)
        there = np.count_nonzero(~np.isnan(logs), axis=1)
        if there.min(initial=SMALL_GROUP) < 2:
            centre = np.where(there < 2, np.float32(np.nan), centre)
        return np.subtract(logs, centre[:, None])
    out = np.full_like(logs, np.nan)
    for device in range(values.shape[1]):
        others = np.delete(logs, device, axis=1)
        if others.shape[1]:
            out[:, device] = logs[:, device] - row_quantile(others, 0.5)
    return out


def _mean(values: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step without rows
        return np.asarray(np.nanmean(values, axis=1), np.float32)


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """`thresholds` of the mean log ratio: (seconds of data from which on it holds, threshold)."""

    thresholds: tuple[tuple[float, float], ...]

    @classmethod
    def by_rule(cls, name: str) -> PeerConfig:
        """The thresholds of `thresholds.json`, which the rule gave (docs/detection.md)."""
        text = files("udrv.ml").joinpath("thresholds.json").read_text(encoding="utf-8")
        return cls(tuple((float(since), float(cut)) for since, cut in json.loads(text)[name]))


class PeerBaseline(Detector):
    """A drive is slow if, on average so far, its latency is some ratio above its group's centre.

    The statistic is the mean over all steps so far of log(latency / centre of the group in that
    step). It is what the literature calls peer comparison (e.g. Panda et al., "IASO", ATC '19,
    section 4; Lu et al., "Perseus", FAST '23, section 3.2, who find that no fixed threshold fits
    all clusters). No published constant: the threshold comes by the rule of docs/detection.md.
    """

    needs = Needs(columns=("mean_ns",))
    share: float | None = None  # the quantile that is the centre; None: the mean

    def __init__(self, config: PeerConfig | None = None) -> None:
        super().__init__(config or PeerConfig.by_rule(self.name))
        self._sum: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._data_ns: dict[str, int] = {}

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        values = batch.matrix(batch.mean_ns())
        share = self.share
        centre = _mean(values) if share is None else row_quantile(values, share)
        logs = np.log(values / centre[:, None])
        sums, counts = np.nansum(logs, axis=0), np.count_nonzero(~np.isnan(logs), axis=0)
        for device, total, count in zip(
            batch.devices, sums.tolist(), counts.tolist(), strict=True
        ):
            self._sum[device] = self._sum.get(device, 0.0) + total
            self._count[device] = self._count.get(device, 0) + count
        return self._decide(batch)

    def _decide(self, batch: WindowBatch) -> Sequence[Verdict]:
        # a pause within a tick is no data
        ticked = min(batch.end_ns - batch.start_ns, batch.steps * batch.step_ns)
        span = self._data_ns.get(batch.group, 0) + ticked
        self._data_ns[batch.group] = span
        threshold = math.inf
        for seconds, value in self.config.thresholds:
            if span >= seconds * 1e9:
                threshold = value
        out = []
        for device in batch.devices:
            count = self._count[device]
            score = self._sum[device] / count if count else 0.0
            if not score > threshold:
                self._first.pop(device, None)
                continue
            first = self._first.setdefault(device, batch.start_ns)
            out.append(self.verdict(
                device, kind="slow", severity=1 - math.exp(-score), confidence=0.5,
                first_ns=first, last_ns=batch.end_ns,
                evidence={
                    "statistic": "mean log ratio to peers", "value": score,
                    "threshold": threshold, "slowdown": math.exp(score), "windows": count,
                    "baseline": "peers", "peers": len(batch.devices) - 1,
                },
            ))  # fmt: skip
        return out

    def scores(self) -> Mapping[str, float]:
        return {
            name: self._sum[name] / count for name, count in self._count.items() if count
        }

    def state(self) -> dict[str, StateValue]:
        names = list(self._sum)
        return {
            "devices": names, "sum": np.array([self._sum[one] for one in names]),
            "count": np.array([self._count[one] for one in names]),
            "first": np.array([self._first.get(one, -1) for one in names]),
            "groups": list(self._data_ns),
            "data_ns": np.array(list(self._data_ns.values()), np.int64),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        names = state["devices"]
        self._sum = dict(zip(names, state["sum"].tolist(), strict=True))
        self._count = dict(zip(names, state["count"].tolist(), strict=True))
        firsts = zip(names, state["first"].tolist(), strict=True)
        self._first = {name: first for name, first in firsts if first >= 0}
        self._data_ns = dict(zip(state["groups"], state["data_ns"].tolist(), strict=True))


class PeerMean(PeerBaseline):
    """The group's centre is its mean."""

    name, version = "peer_mean", "1"


class PeerMedian(PeerBaseline):
    """The group's centre is its median."""

    name, version = "peer_median", "1"
    share = 0.5


class PeerP25(PeerBaseline):
    """The group's centre is its 25th percentile, which few slow drives cannot move."""

    name, version = "peer_p25", "1"
    share = 0.25
