# SPDX-License-Identifier: Apache-2.0
"""The protocol that a detector follows, and what it declares of itself.

    class Mine(Detector):
        name, version = "mine", "1"

        def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
            ...

    # pyproject.toml
    [project.entry-points."udrv.detectors"]
    mine = "package.module:Mine"

One detector object sees all peer groups of a fleet. It keeps all that it knows in `state()`: a
detector that was restored from it must answer as the one that was saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy.typing as npt

from udrv.ml.verdict import DEVICE, Evidence, Scope, Verdict
from udrv.ml.window import WindowBatch

GROUP: Final = "udrv.detectors"

#: What a state is made of: all of it fits into one .npz file, without pickles.
StateValue = int | float | str | bool | list[str] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a detector asks of its run-time.

    `data`: windows, or records as well. `columns`: those of `WindowBatch` without which it cannot
    work. `budget_us`: the time that one `on_tick` may take; overrunning it is a reason to be
    ejected. `overload`: what the run-time may drop when it falls behind.
    """

    data: Literal["windows", "records"] = "windows"
    columns: tuple[str, ...] = ()
    budget_us: int = 100_000
    overload: Literal["skip", "sample"] = "skip"


class Detector(ABC):
    """Base of all detectors. `config` is a frozen dataclass of plain values."""

    name: ClassVar[str]
    version: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    _hash: str | None = None

    def __init__(self, config: Any = None) -> None:
        self.config = config

    @abstractmethod
    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        """Take one peer group's windows of one tick; return what now holds of its devices."""

    def on_period(self, end_ns: int) -> Sequence[Verdict]:
        """Called when all groups had their tick: what only the fleet as a whole can tell."""
        del end_ns
        return ()

    def scores(self) -> Mapping[str, float]:
        """The present statistic of each device: the higher, the slower. Empty: it has none."""
        return {}

    def state(self) -> dict[str, StateValue]:
        """All that was learnt, to go on from later."""
        return {}

    def restore(self, state: Mapping[str, StateValue]) -> None:
        """Go on from what `state()` returned."""
        del state

    def config_dict(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return dataclasses.asdict(self.config) if self.config is not None else {}

    def config_hash(self) -> str:
        """Tells configurations apart: 12 hexadecimal digits over name, version and values."""
        if self._hash is None:
            text = json.dumps([self.name, self.version, self.config_dict()], sort_keys=True)
            self._hash = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        return self._hash

    def verdict(
        self, device: str, *, kind: str, severity: float, confidence: float, first_ns: int,
        last_ns: int, evidence: Evidence, scope: Scope = DEVICE,
    ) -> Verdict:  # fmt: skip
        """A verdict in this detector's name."""
        return Verdict(
            device=device, kind=kind, severity=min(max(severity, 0.0), 1.0),
            confidence=min(max(confidence, 0.0), 1.0), first_ns=first_ns, last_ns=last_ns,
            detector=self.name, detector_version=self.version, config_hash=self.config_hash(),
            evidence=evidence, scope=scope,
        )  # fmt: skip
