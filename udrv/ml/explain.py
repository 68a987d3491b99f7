# SPDX-License-Identifier: Apache-2.0
"""A verdict in words, and its evidence as bars."""

from __future__ import annotations

import datetime
from typing import Any, Final

from udrv.ml.verdict import Verdict

_KINDS: Final = {
    "slow": "is slow", "slow_tail": "has a slow tail", "intermittent": "is slow from time to time",
    "stall": "stalls", "errors": "fails commands",
}  # fmt: skip
_BASELINES: Final = {
    "peers": "the other drives of its group", "own": "what it did before",
    "own history": "what it did before", "calibration": "the calibration",
}  # fmt: skip
_WIDTH: Final = 40


def explain(verdict: Verdict) -> list[str]:
    """Lines for people: what, where, since when, how sure, and why."""
    evidence = verdict.evidence
    what = f"{verdict.device}{_where(verdict)} {_KINDS[verdict.kind]}"
    slowdown = evidence.get("slowdown")
    if isinstance(slowdown, int | float) and slowdown > 1.005:
        what += f", {slowdown:.2f} times as slow as expected"
    lines = [
        what + ".",
        f"First seen {_time(verdict.first_ns)}, last {_time(verdict.last_ns)} "
        f"({(verdict.last_ns - verdict.first_ns) / 1e9:.0f} s).",
        f"Severity {verdict.severity:.2f}, confidence {verdict.confidence:.4f}, by "
        f"{verdict.detector} {verdict.detector_version} (configuration {verdict.config_hash}).",
    ]
    statistic = evidence.get("statistic")
    if statistic:
        against = _BASELINES.get(str(evidence.get("baseline")))
        lines.append(f"Evidence: {statistic}" + (f", against {against}." if against else "."))
    lines += _bars(evidence)
    told = {"statistic", "baseline", "slowdown"}
    rest = [f"{name} {_value(value)}" for name, value in sorted(evidence.items())
            if name not in told]  # fmt: skip
    if rest:
        lines.append("  " + ", ".join(rest))
    return lines


def _where(verdict: Verdict) -> str:
    scope = verdict.scope
    if scope.type == "queue":
        return f", queue {scope.queue},"
    if scope.type == "lba_range":
        return f", blocks {scope.first_lba} to {scope.last_lba},"
    if scope.type == "namespace":
        return f", namespace {scope.namespace},"
    return ""


def _time(ns: int) -> str:
    """A date for a Unix time, seconds for a clock that began at 0."""
    if ns < 10**17:
        return f"at {ns / 1e9:.0f} s"
    when = datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def _bars(evidence: Any) -> list[str]:
    for pair in (("observed", "expected"), ("value", "threshold"),
                 ("log10_p", "threshold_log10_p")):  # fmt: skip
        values = [evidence.get(name) for name in pair]
        if all(isinstance(one, int | float) for one in values):
            longest = max(abs(one) for one in values) or 1
            return [
                f"  {name:>18} {'#' * max(round(abs(one) / longest * _WIDTH), 1):<{_WIDTH}} "
                f"{_value(one)}"
                for name, one in zip(pair, values, strict=True)
            ]
    return []


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(_value(one) for one in value)
    return str(value)
