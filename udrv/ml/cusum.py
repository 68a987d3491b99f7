# SPDX-License-Identifier: Apache-2.0
"""A change point on a tail quantile, of each drive by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from udrv.ml.detector import Detector, Needs, StateValue
from udrv.ml.peers import row_quantile
from udrv.ml.verdict import Verdict
from udrv.ml.window import WindowBatch


@dataclass(frozen=True, slots=True)
class CusumConfig:
    """share: the quantile, over the steps of a tick, of the log of mean latency.

    reference: so many ticks are the drive's own healthy history. slack, limit: the textbook's k and
    h in standard deviations (Montgomery, "Statistical Quality Control": 0.5 and 5, a false
    alarm in 465 independent ticks). clip: one tick counts for so much at most. floor: the standard
    deviation is at least so much (log).
    """

    share: float = 0.95
    reference: int = 12
    slack: float = 0.5
    limit: float = 5.0
    clip: float = 4.0
    floor: float = 0.02


class Cusum(Detector):
    """A one-sided CUSUM against own history (Page, "Continuous Inspection Schemes", 1954).

    Needs no peers. Sees: a change of a drive's tail. Does not see: a drive that was slow from the
    start. Takes a change of load for a fault: nothing here is conditioned on load.
    """

    name, version = "cusum", "1"
    needs = Needs(columns=("mean_ns",))
    config: CusumConfig

    def __init__(self, config: CusumConfig | None = None) -> None:
        super().__init__(config or CusumConfig())
        self._history: dict[str, list[float]] = {}
        self._sum: dict[str, float] = {}
        self._first: dict[str, int] = {}

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        config = self.config
        values = np.log(batch.matrix(batch.mean_ns()))
        tails = row_quantile(np.ascontiguousarray(values.T), config.share).tolist()
        out = []
        for name, tail in zip(batch.devices, tails, strict=True):
            if not math.isfinite(tail):
                continue
            history = self._history.setdefault(name, [])
            if len(history) < config.reference:
                history.append(tail)
                continue
            middle = float(np.median(history))
            width = 1.4826 * float(np.median(np.abs(np.array(history) - middle)))
            z = (tail - middle) / max(width, config.floor)
            total = max(self._sum.get(name, 0.0) + min(z, config.clip) - config.slack, 0.0)
            total = min(total, 4 * config.limit)  # so that a mended drive is soon forgiven
            self._sum[name] = total
            if total <= config.limit:
                self._first.pop(name, None)
                continue
            first = self._first.setdefault(name, batch.start_ns)
            out.append(self.verdict(
                name, kind="slow_tail", severity=1 - math.exp(middle - tail),
                confidence=0.5, first_ns=first, last_ns=batch.end_ns,
                evidence={
                    "statistic": "CUSUM of the tail of log latency", "value": total,
                    "threshold": config.limit, "slowdown": math.exp(tail - middle),
                    "baseline": "own history", "ticks": len(history),
                },
            ))  # fmt: skip
        return out

    def scores(self) -> Mapping[str, float]:
        return dict(self._sum)

    def state(self) -> dict[str, StateValue]:
        names = list(self._history)

        def of(values: Mapping[str, float], missing: float) -> npt.NDArray[Any]:
            return np.array([values.get(name, missing) for name in names])

        history = np.full((len(names), self.config.reference), np.nan)
        for at, name in enumerate(names):
            history[at, : len(self._history[name])] = self._history[name]
        return {
            "devices": names, "history": history, "sum": of(self._sum, math.nan),
            "first": of(self._first, -1),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        names = state["devices"]
        self._history = {
            name: row[~np.isnan(row)].tolist()
            for name, row in zip(names, state["history"], strict=True)
        }
        sums = zip(names, state["sum"].tolist(), strict=True)
        self._sum = {name: value for name, value in sums if not math.isnan(value)}
        firsts = zip(names, state["first"].tolist(), strict=True)
        self._first = {name: first for name, first in firsts if first >= 0}
