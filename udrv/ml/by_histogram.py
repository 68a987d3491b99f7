# SPDX-License-Identifier: Apache-2.0
"""The part of `evidence` that works on histograms: findings of `udrv.ml.tails` as verdicts.

Beside them, two things that need no statistics to speak of: commands that took so long that an
application would call them hung (*stall*), and commands that failed (*errors*).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.tails import LEVELS, Finding, GroupTails, TailConfig
from udrv.ml.verdict import DEVICE, Scope, Verdict
from udrv.ml.window import BANDS, WindowBatch

#: A command this long, and so many times the drive's mean, is a stall; one alone is no verdict.
STALL_NS: Final = 250e6
_STALL_TIMES: Final = 50.0
_STALLS: Final = 2
#: Failed commands: this share is expected of any drive, and these ratios of it are tried.
_ERROR_SHARE: Final = 1e-5
_ERROR_RATIO: Final = 100.0
#: A drive is slow, and not only its tail, if this share of its commands moved beyond the median.
_BULK: Final = 0.2
#: Ticks without anything after which a verdict is taken back, and stalls are forgotten.
_HOLD: Final = 60

MakeVerdict = Callable[..., Verdict]


@dataclass
class _Device:
    """What is known of one device beside its histograms."""

    first_ns: int = -1
    last_tick: int = 0
    ticks: int = 0  # with a finding, since first_ns
    seen: int = 0  # ticks with I/O since first_ns
    observed_ns: float = 0.0
    expected_ns: float = 0.0
    stalls: list[int] = field(default_factory=list)  # ticks
    stall_ns: float = 0.0
    errors: float = 0.0  # CUSUM
    commands: float = 0.0
    failed: float = 0.0


class ByHistogram:
    """One peer group."""

    def __init__(self, devices: Sequence[str], config: TailConfig) -> None:
        self.tails = GroupTails(tuple(devices), config)
        self._config = config
        self._known = [_Device() for _ in devices]

    def on_tick(self, batch: WindowBatch, verdict: MakeVerdict) -> list[Verdict]:
        """Take a tick; return what holds now."""
        findings = {one.device: one for one in self.tails.on_tick(batch)}
        tick = self.tails.ticks
        out = []
        sums = self.tails.mean_ns.tolist()
        per_device = _per_device(batch, len(self._known))
        for at, (name, known) in enumerate(zip(batch.devices, self._known, strict=True)):
            count, errors, longest = per_device[at]
            known.commands += count
            usual = sums[at][1] / count if count else 0.0
            known.stalls = [one for one in known.stalls if tick - one <= _HOLD]
            if longest >= max(STALL_NS, _STALL_TIMES * usual):
                known.stalls.append(tick)
                known.stall_ns = max(known.stall_ns, longest)
            self._errors(known, count, errors)
            found = findings.get(at)
            kind = self._kind(known, found)
            if kind is None and (known.first_ns < 0 or tick - known.last_tick > _HOLD):
                known.first_ns = -1
                continue
            if known.first_ns < 0:
                known.first_ns = batch.start_ns
                known.ticks = known.seen = 0
                known.observed_ns = known.expected_ns = 0.0
            known.seen += count > 0
            known.ticks += kind is not None
            if kind is None:
                continue
            known.last_tick = tick
            known.observed_ns += sums[at][0]
            known.expected_ns += sums[at][1]
            said, scope = self._said(known, found, kind, batch.blocks)
            out.append(verdict(
                name, kind=kind, first_ns=known.first_ns, last_ns=batch.end_ns, scope=scope, **said
            ))  # fmt: skip
        return out

    def _errors(self, known: _Device, count: float, errors: float) -> None:
        share = max(_ERROR_SHARE, (known.failed + 1) / (known.commands + 1 / _ERROR_SHARE))
        gain = errors * math.log(_ERROR_RATIO) - count * share * (_ERROR_RATIO - 1)
        known.errors = min(max(known.errors + gain, 0.0), 3 * self._config.limit)
        if known.errors < self._config.limit / 4:
            known.failed += errors

    def _kind(self, known: _Device, found: Finding | None) -> str | None:
        if known.errors >= self._config.limit:
            return "errors"
        if len(known.stalls) >= _STALLS:
            return "stall"
        if found is None:
            return None
        if known.first_ns >= 0 and known.seen >= 8 and known.ticks * 2 < known.seen:
            return "intermittent"
        return "slow" if found.bulk > _BULK else "slow_tail"

    def _said(
        self, known: _Device, found: Finding | None, kind: str, blocks: int
    ) -> tuple[dict[str, Any], Scope]:
        """Severity, confidence and evidence, and the scope."""
        slowdown = known.observed_ns / known.expected_ns if known.expected_ns else 1.0
        severity = max(1 - 1 / max(slowdown, 1.0), 0.05)
        evidence: dict[str, Any] = {"slowdown": slowdown, "commands": round(known.commands)}
        if found is None or kind in ("stall", "errors"):
            severity = max(severity, 0.5)
            evidence |= {
                "statistic": kind, "baseline": "none",
                "stalls": len(known.stalls), "longest_ns": round(known.stall_ns),
                "errors": known.errors, "threshold": self._config.limit,
            }  # fmt: skip
        else:
            evidence |= {
                "statistic": f"CUSUM of commands beyond the {1 - LEVELS[found.level]:.1%} quantile",
                "value": found.evidence, "threshold": self._config.limit,
                "observed": found.observed, "expected": found.expected,
                "baseline": found.baseline,
                "peers": len(self._known) - 1,
            }  # fmt: skip
        scope = DEVICE
        if found is not None and found.queue is not None:
            scope = Scope("queue", queue=found.queue)
        elif found is not None and found.bands is not None:
            first, last = found.bands
            evidence["bands"] = [first, last]
            if blocks:
                scope = Scope(
                    "lba_range", first_lba=first * blocks // BANDS,
                    last_lba=(last + 1) * blocks // BANDS - 1,
                )  # fmt: skip
        confidence = 1.0 if found is None else 1 - math.exp(-found.evidence / 4)
        return {"severity": severity, "confidence": confidence, "evidence": evidence}, scope

    # --- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays from which `restore` goes on."""
        rows = [
            [one.first_ns, one.last_tick, one.ticks, one.seen, one.observed_ns, one.expected_ns,
             one.stall_ns, one.errors, one.commands, one.failed]
            for one in self._known
        ]  # fmt: skip
        stalls = [[at, tick] for at, one in enumerate(self._known) for tick in one.stalls]
        first = [one.first_ns for one in self._known]
        return {
            **self.tails.state(), "known": np.array(rows, np.float64),
            "first_ns": np.array(first, np.int64),
            "stalls": np.array(stalls, np.int64).reshape(-1, 2),
        }  # fmt: skip

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go on from `state()`."""
        self.tails.restore(state)
        self._known = []
        for first, row in zip(state["first_ns"].tolist(), state["known"].tolist(), strict=True):
            self._known.append(_Device(
                first_ns=first, last_tick=int(row[1]), ticks=int(row[2]), seen=int(row[3]),
                observed_ns=row[4], expected_ns=row[5], stall_ns=row[6], errors=row[7],
                commands=row[8], failed=row[9],
            ))  # fmt: skip
        for at, tick in state["stalls"].tolist():
            self._known[at].stalls.append(tick)


def _per_device(batch: WindowBatch, devices: int) -> list[list[float]]:
    """Commands, failed ones, and the longest, of each device; host-late windows left out."""
    out = np.zeros((devices, 3))
    if not len(batch) or batch.key is None:
        return out.tolist()
    count = batch.column("count")
    rows = count > 0
    if "host_late" in batch.columns:
        rows &= batch.columns["host_late"] * 9 <= count
    who = batch.device[rows]
    np.add.at(out[:, 0], who, count[rows])
    if "errors" in batch.columns:
        np.add.at(out[:, 1], who, batch.columns["errors"][rows])
    if "max_ns" in batch.columns:
        np.maximum.at(out[:, 2], who, batch.columns["max_ns"][rows])
    return out.tolist()
