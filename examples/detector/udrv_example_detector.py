# SPDX-License-Identifier: Apache-2.0
"""A detector in forty lines: a drive is slow while its mean latency is above a ceiling.

It is an example and not a good detector: no ceiling fits two models of drive. What it shows is all
that a detector needs: a configuration, what it needs, a verdict with evidence, state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from udrv.ml import Detector, Needs, Verdict, WindowBatch


@dataclass(frozen=True)
class CeilingConfig:
    """`ceiling_ns`: of a drive's mean latency in one tick."""

    ceiling_ns: float = 100_000.0


class Ceiling(Detector):
    """See the module's text."""

    name, version = "example_ceiling", "0.1"
    needs = Needs(columns=("mean_ns",), budget_us=10_000)

    def __init__(self, config: CeilingConfig | None = None) -> None:
        super().__init__(config or CeilingConfig())
        self._since: dict[str, int] = {}

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        means = batch.mean_ns()
        out = []
        for at, device in enumerate(batch.devices):
            mine = means[batch.device == at]
            mean = float(np.mean(mine)) if len(mine) else 0.0
            if not mean > self.config.ceiling_ns:
                self._since.pop(device, None)
                continue
            since = self._since.setdefault(device, batch.start_ns)
            out.append(self.verdict(
                device, kind="slow", severity=1 - self.config.ceiling_ns / mean, confidence=0.5,
                first_ns=since, last_ns=batch.end_ns,
                evidence={
                    "statistic": "mean latency", "value": mean,
                    "threshold": self.config.ceiling_ns, "windows": len(mine),
                    "excess_log": math.log(mean / self.config.ceiling_ns),
                },
            ))  # fmt: skip
        return out

    def state(self) -> dict[str, Any]:
        return {"devices": list(self._since), "since": np.array(list(self._since.values()))}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._since = dict(zip(state["devices"], state["since"].tolist(), strict=True))
