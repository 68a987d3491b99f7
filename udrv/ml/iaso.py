# SPDX-License-Identifier: Apache-2.0
"""IASO-like: how often does a drive take so long that its peers would call it a timeout?"""

from __future__ import annotations

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
class IasoConfig:
    """timeout: a step counts as timed out beyond so many times the median of the group.

    growth: the score grows by this share of itself for each step that timed out; recovery: and
    falls by so much for each that did not. Scores are kept within 1 to 100 (ATC '19, section 3).
    eps: scores this near belong together (DBSCAN's, in ucare-uchicago/kratos-failslow: 3).
    least_share: of ticks so far in which a drive was apart, for a verdict (there: 0.1).
    """

    timeout: float = 2.0
    growth: float = 1.0
    recovery: float = 8.333
    eps: float = 3.0
    least_share: float = 0.1


class Iaso(Detector):
    """After Panda et al., "IASO: A Fail-Slow Detection and Mitigation Framework", ATC '19.

    IASO scores nodes by the timeouts that their peers see: multiplicatively up, additively down,
    and compares scores within a group. A drive has no timeouts of its own; here a step counts
    as one if its mean latency is beyond twice the group's median. Drives whose score is in another
    cluster than the group's median, and above it, are apart.

    Sees: drives at least twice as slow, within a tick. Does not see: smaller factors (most real
    ones), tails, parts of a drive, drives without peers.
    """

    name, version = "iaso", "1"
    needs = Needs(columns=("mean_ns",))
    config: IasoConfig

    def __init__(self, config: IasoConfig | None = None) -> None:
        super().__init__(config or IasoConfig())
        self._level: dict[str, float] = {}
        self._apart: dict[str, int] = {}
        self._ticks: dict[str, int] = {}
        self._first: dict[str, int] = {}

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        config = self.config
        values = batch.matrix(batch.mean_ns())
        late = values > config.timeout * row_quantile(values, 0.5)[:, None]
        fine = ~late & ~np.isnan(values)
        level = np.array([self._level.get(name, 1.0) for name in batch.devices])
        for step in range(len(values)):
            level = level * (1 + config.growth * late[step]) - config.recovery * fine[step]
            level = np.clip(level, 1.0, 100.0)
        ranked = np.sort(level)
        gap_above = np.searchsorted(ranked, np.median(ranked), "right")
        # the first score above the median's that has no neighbour below within eps
        limit = np.inf
        for at in range(max(int(gap_above), 1), len(ranked)):
            if ranked[at] - ranked[at - 1] > config.eps:
                limit = ranked[at]
                break
        out = []
        for name, value in zip(batch.devices, level.tolist(), strict=True):
            self._level[name] = value
            ticks = self._ticks[name] = self._ticks.get(name, 0) + 1
            apart = self._apart[name] = self._apart.get(name, 0) + int(value >= limit)
            if apart <= config.least_share * ticks:
                self._first.pop(name, None)
                continue
            first = self._first.setdefault(name, batch.start_ns)
            out.append(self.verdict(
                name, kind="slow", severity=apart / ticks, confidence=0.5, first_ns=first,
                last_ns=batch.end_ns,
                evidence={
                    "statistic": "share of ticks apart from peers", "value": apart / ticks,
                    "threshold": config.least_share, "score": value, "baseline": "peers",
                    "peers": len(batch.devices) - 1,
                },
            ))  # fmt: skip
        return out

    def scores(self) -> Mapping[str, float]:
        return {name: self._apart[name] / ticks for name, ticks in self._ticks.items()}

    def state(self) -> dict[str, StateValue]:
        names = list(self._level)

        def of(values: Mapping[str, float], missing: float = 0) -> npt.NDArray[Any]:
            return np.array([values.get(name, missing) for name in names])

        return {
            "devices": names, "level": of(self._level), "apart": of(self._apart),
            "ticks": of(self._ticks), "first": of(self._first, -1),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        def of(name: str) -> dict[str, Any]:
            return dict(zip(state["devices"], state[name].tolist(), strict=True))

        self._level, self._apart, self._ticks = of("level"), of("apart"), of("ticks")
        self._first = {name: first for name, first in of("first").items() if first >= 0}
