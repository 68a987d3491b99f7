# SPDX-License-Identifier: Apache-2.0
"""Verdicts: what a detector says of a device, as JSON that is the same byte for byte.

A verdict is repeated in each tick in which it holds, with `first_ns` unchanged: (device, scope,
kind, first_ns) tells events apart, and what was not repeated holds no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

from udrv.errors import VerdictError

VERSION: Final = 1
KINDS: Final = ("slow", "slow_tail", "intermittent", "stall", "errors")
SCOPES: Final = ("device", "namespace", "queue", "lba_range")

#: Significant digits of numbers in evidence. Sums in another order differ in the last bits; a log
#: that is compared byte for byte must not show them.
_DIGITS = 6

Evidence = Mapping[str, "float | int | str | list[int] | list[float] | None"]


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a device that a verdict is about.

    `namespace` and `queue` are ids; `first_lba` and `last_lba` are blocks, both included.
    """

    type: str = "device"
    namespace: int | None = None
    queue: int | None = None
    first_lba: int | None = None
    last_lba: int | None = None

    def as_dict(self) -> dict[str, int | str]:
        """The fields that are set."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


DEVICE: Final = Scope()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One detector's statement on one device.

    `severity` (0 to 1) orders verdicts by what the user loses, `confidence` (0 to 1) says how sure
    the detector is, `first_ns` and `last_ns` span the ticks in which it held. `evidence` is never
    empty: statistic, threshold, baseline, ...
    """

    device: str
    kind: str
    severity: float
    confidence: float
    first_ns: int
    last_ns: int
    detector: str
    detector_version: str
    config_hash: str
    evidence: Evidence = field(default_factory=dict)
    scope: Scope = DEVICE

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it. Raises `VerdictError` if it is none."""
        record = {
            "version": VERSION, "device": self.device, "scope": self.scope.as_dict(),
            "kind": self.kind, "severity": _number(self.severity),
            "confidence": _number(self.confidence), "first_ns": self.first_ns,
            "last_ns": self.last_ns, "detector": self.detector,
            "detector_version": self.detector_version, "config_hash": self.config_hash,
            "evidence": {name: _number(value) for name, value in self.evidence.items()},
        }  # fmt: skip
        check(record)
        return record

    def json(self) -> str:
        """One line: sorted keys, integer nanoseconds, six significant digits."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def event(self) -> tuple[str, Scope, str, int]:
        """What stays the same while a verdict is repeated."""
        return self.device, self.scope, self.kind, self.first_ns


def from_json(text: str) -> Verdict:
    """Read a line of a verdict log. Raises `VerdictError`."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise VerdictError(f"a verdict is a line of JSON: {error}") from error
    check(record)
    fields = {name: value for name, value in record.items() if name not in ("version", "scope")}
    return Verdict(scope=Scope(**record["scope"]), **fields)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a verdict (`verdict.schema.json`)."""
    text = files("udrv.ml").joinpath("verdict.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check(record: object) -> None:
    """Raise `VerdictError`, which names the field, unless `record` is a verdict by the schema.

    Only what `verdict.schema.json` uses is understood; a test compares with a full validator's
    answers.
    """
    _check("verdict", record, schema())


def _check(place: str, value: object, rule: Mapping[str, Any]) -> None:
    kinds = rule.get("type")
    if kinds is not None:
        names = [kinds] if isinstance(kinds, str) else kinds
        if not any(_is(value, name) for name in names):
            raise VerdictError(f"{place}: {value!r} is no {' or '.join(names)}")
    if "const" in rule and value != rule["const"]:
        raise VerdictError(f"{place}: {value!r} is not {rule['const']!r}")
    if "enum" in rule and value not in rule["enum"]:
        raise VerdictError(f"{place}: {value!r} is none of {', '.join(rule['enum'])}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < rule.get("minimum", -math.inf) or value > rule.get("maximum", math.inf):
            raise VerdictError(f"{place}: {value!r} is out of range")
    elif isinstance(value, str):
        if len(value) < rule.get("minLength", 0):
            raise VerdictError(f"{place}: it is empty")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            _check(f"{place}[{index}]", one, rule.get("items", {}))
    elif isinstance(value, dict):
        _check_object(place, value, rule)


def _check_object(place: str, value: Mapping[str, object], rule: Mapping[str, Any]) -> None:
    known = rule.get("properties", {})
    for name in rule.get("required", ()):
        if name not in value:
            raise VerdictError(f"{place}: {name} is missing")
    if len(value) < rule.get("minProperties", 0):
        raise VerdictError(f"{place}: it is empty")
    others = rule.get("additionalProperties", True)
    for name, one in value.items():
        if name in known:
            _check(f"{place}.{name}", one, known[name])
        elif others is False:
            raise VerdictError(f"{place}: there is no field {name}")
        elif isinstance(others, dict):
            _check(f"{place}.{name}", one, others)


def _is(value: object, name: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "object": isinstance(value, dict), "array": isinstance(value, list),
        "string": isinstance(value, str), "null": value is None,
        "integer": number and isinstance(value, int),
        "number": number and math.isfinite(value),  # type: ignore[arg-type]
    }[name]  # fmt: skip


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_number(one) for one in value]
    return value
