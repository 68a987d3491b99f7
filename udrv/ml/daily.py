# SPDX-License-Identifier: Apache-2.0
"""What the published detectors have in common: a score a day and drive, summed over days.

They were made for a day's rows of a host. Here a day is a number of steps (720 of 15 s, which is
what the public data has of each day), collected over ticks; nothing is said before one is full.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from udrv.ml.detector import Detector, Needs, StateValue
from udrv.ml.verdict import Verdict
from udrv.ml.window import WindowBatch

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DailyConfig:
    """Constants that both have. `threshold`: of the sum of the last `days` daily scores."""

    day_steps: int = 720
    days: int = 15
    threshold: float = 50.0


class DailyDetector(Detector):
    """Collects a group's day, scores it (`score_day`), and sums."""

    needs = Needs(columns=("mean_ns", "bytes_per_s"))
    config: DailyConfig

    def __init__(self, config: DailyConfig) -> None:
        super().__init__(config)
        self._pending: dict[str, list[npt.NDArray[np.float32]]] = {}  # (2, steps, devices) each
        self._devices: dict[str, tuple[str, ...]] = {}
        self._daily: dict[str, list[float]] = {}
        self._first: dict[str, int] = {}

    @abstractmethod
    def score_day(self, latency: Floats, load: Floats) -> Floats:
        """Scores of a day's (steps, devices) in ns and bytes/s, NaN where there is no row."""

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        names = tuple(batch.devices)
        if self._devices.setdefault(batch.group, names) != names:
            self._pending.pop(batch.group, None)  # a day of drives that changed is no day
            self._devices[batch.group] = names
        pending = self._pending.setdefault(batch.group, [])
        pending.append(np.stack([
            batch.matrix(batch.mean_ns()), batch.matrix(batch.column("bytes_per_s"))
        ]))  # fmt: skip
        day = self.config.day_steps
        while sum(part.shape[1] for part in pending) >= day:
            rows = np.concatenate(pending, axis=1)
            pending[:] = [rows[:, day:]] if rows.shape[1] > day else []
            latency, load = rows[:, :day].astype(np.float64)
            scores = self.score_day(latency, load)
            for name, score in zip(names, scores.tolist(), strict=True):
                kept = self._daily.setdefault(name, [])
                kept.append(score)
                del kept[: -self.config.days]
        return self._decide(batch)

    def _decide(self, batch: WindowBatch) -> Sequence[Verdict]:
        out = []
        for name in batch.devices:
            kept = self._daily.get(name, [])
            total = sum(kept)
            if not kept or total < self.config.threshold:
                self._first.pop(name, None)
                continue
            first = self._first.setdefault(name, batch.start_ns)
            out.append(self.verdict(
                name, kind="slow", severity=1 - math.exp(-total / self.config.threshold / 4),
                confidence=0.5, first_ns=first, last_ns=batch.end_ns,
                evidence={
                    "statistic": "sum of daily scores", "value": total,
                    "threshold": self.config.threshold, "baseline": "peers",
                    "peers": len(batch.devices) - 1, "daily": list(kept),
                },
            ))  # fmt: skip
        return out

    def scores(self) -> Mapping[str, float]:
        return {name: sum(kept) for name, kept in self._daily.items()}

    def state(self) -> dict[str, StateValue]:
        out: dict[str, StateValue] = {
            "groups": list(self._devices), "devices": list(self._daily),
            "first": np.array([self._first.get(name, -1) for name in self._daily], np.int64),
            "days": np.array([len(kept) for kept in self._daily.values()], np.int64),
            "daily": np.array([one for kept in self._daily.values() for one in kept]),
        }  # fmt: skip
        for at, (group, names) in enumerate(self._devices.items()):
            out[f"names{at}"] = list(names)
            parts = self._pending.get(group) or [np.zeros((2, 0, len(names)), np.float32)]
            out[f"pending{at}"] = np.concatenate(parts, axis=1)
        return out

    def restore(self, state: Mapping[str, Any]) -> None:
        devices = state["devices"]
        ends = np.cumsum(state["days"])
        daily = np.split(np.asarray(state["daily"]), ends[:-1]) if devices else []
        self._daily = {name: kept.tolist() for name, kept in zip(devices, daily, strict=True)}
        firsts = zip(devices, state["first"].tolist(), strict=True)
        self._first = {name: first for name, first in firsts if first >= 0}
        self._devices, self._pending = {}, {}
        for at, group in enumerate(state["groups"]):
            self._devices[group] = tuple(state[f"names{at}"])
            self._pending[group] = [np.array(state[f"pending{at}"])]
