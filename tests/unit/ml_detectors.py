# SPDX-License-Identifier: Apache-2.0
"""Detectors that a worker process imports: one that is well, and some that are not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import Any

from udrv.ml import Detector, Needs, Verdict, WindowBatch


class Well(Detector):
    """Says of the first device what it was told."""

    name, version = "well", "3"
    needs = Needs(budget_us=20_000_000)

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        return [
            self.verdict(
                batch.devices[0], kind="slow", severity=0.5, confidence=1, first_ns=0,
                last_ns=batch.end_ns, evidence={"statistic": "told"},
            )
        ]  # fmt: skip


class Busy(Well):
    """Takes a minute."""

    name = "busy"
    needs = Needs(budget_us=100_000_000)

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        time.sleep(60)
        return ()


class Loops(Well):
    """Never comes back."""

    name = "loops"
    needs = Needs(budget_us=500_000)

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        while True:
            pass


class HoldsTheGil(Well):
    """Is in C, where no signal handler of Python runs: some hundred years of backtracking."""

    name = "gil"
    needs = Needs(budget_us=500_000)

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        re.match(r"(a+)+$", "a" * 60 + "b")
        return ()


class Raises(Well):
    name = "raises"

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        raise ZeroDivisionError("oh")


class Dies(Well):
    name = "dies"

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        os._exit(3)


class Nonsense(Well):
    name = "nonsense"

    def on_tick(self, batch: WindowBatch) -> Any:
        return ["slow"]


class BadVerdict(Well):
    name = "bad_verdict"

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        return [
            self.verdict("d", kind="sluggish", severity=1, confidence=1, first_ns=0, last_ns=1,
                         evidence={"statistic": "none"})
        ]  # fmt: skip


class Unmade(Well):
    name = "unmade"

    def __init__(self) -> None:
        raise OSError("no model file")
