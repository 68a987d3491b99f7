# SPDX-License-Identifier: Apache-2.0
"""A scenario: a drive, what a host does with it, and which drives have which faults.

    blocks = 26_214_400         # of the namespace, in blocks of lba bytes
    lba = 4096
    queues = 1

    [model]                     # as in a script of faults; left out: the defaults
    dies = 32

    [[load]]                    # one after the other, and then from the first again
    duration_us = 1_000_000
    depth = 4                   # commands in flight; 0: nothing is done
    blocks = 1                  # of a command
    reads = 0.7                 # the others are writes
    think_us = 1000             # exponential, between a completion and the next command
    sequential = false

    [[fault]]                   # as in a script of faults
    drives = [0, 3]             # which drives have it, counted from 0; left out: all
    effect = "factor"
    factor = 3
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from udrv.errors import FaultScriptError
from udrv.soft.fault_effects import EFFECTS
from udrv.soft.faults import Fault, Model, from_dict

_MAX_US = 10 * 365 * 86400 * 10**6
_MAX_LOADS = 16

#: What a drive in virtual time can have: there is no host to be confused and no register.
EFFECTS_SIMULATED = (
    "drop", "late", "status", "media_error",
    *(name for name, effect in EFFECTS.items() if effect.code >= EFFECTS["factor"].code),
)  # fmt: skip


def _number(place: str, value: object, low: float, high: float, kind: type) -> Any:
    good = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not good or (isinstance(value, bool) and kind is not bool) or not low <= value <= high:  # type: ignore[operator]
        raise FaultScriptError(
            f"{place}: {value!r} is not {'a number' if kind is float else 'one'} within "
            f"{low:g} to {high:g}", place=place,
        )  # fmt: skip
    return kind(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the host does for `duration_us`; see the module's text for each field."""

    duration_us: int = 1_000_000
    depth: int = 1
    blocks: int = 1
    reads: float = 1.0
    think_us: int = 0
    sequential: bool = False

    def __post_init__(self) -> None:
        for name, low, high, kind in (
            ("duration_us", 1, _MAX_US, int), ("depth", 0, 1024, int), ("blocks", 1, 65535, int),
            ("reads", 0, 1, float), ("think_us", 0, _MAX_US // 64, int),
            ("sequential", 0, 1, bool),
        ):  # fmt: skip
            value = _number(f"load.{name}", getattr(self, name), low, high, kind)
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Placed:
    """A fault, and the drives that have it: numbers from 0, or None for all."""

    fault: Fault
    drives: frozenset[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """See the module's text. Raises `FaultScriptError`, as all that reads one does."""

    blocks: int = 26_214_400
    lba: int = 4096
    queues: int = 1
    timeout_us: int = 30_000_000
    model: Model = field(default_factory=Model)
    loads: tuple[Load, ...] = (Load(),)
    faults: tuple[Placed, ...] = ()

    def __post_init__(self) -> None:
        if self.lba not in (512, 4096):
            raise FaultScriptError(f"lba: {self.lba!r} is neither 512 nor 4096", place="lba")
        _number("blocks", self.blocks, 1, 1 << 50, int)
        _number("queues", self.queues, 1, 64, int)
        _number("timeout_us", self.timeout_us, 1, _MAX_US, int)
        _number("model.overhead_ns", self.model.overhead_ns, 1, 10**9, int)
        if not 1 <= len(self.loads) <= _MAX_LOADS:
            raise FaultScriptError(f"load: 1 to {_MAX_LOADS} of them belong here", place="load")
        for one in self.loads:
            if one.blocks > self.blocks:
                raise FaultScriptError(
                    f"load.blocks: {one.blocks} of a namespace of {self.blocks}",
                    place="load.blocks",
                )
        for number, placed in enumerate(self.faults, 1):
            if placed.fault.effect not in EFFECTS_SIMULATED:
                place = f"fault {number}, effect"
                raise FaultScriptError(
                    f"{place}: {placed.fault.effect} needs a host, or registers", place=place,
                    mend="a scenario takes " + ", ".join(EFFECTS_SIMULATED),
                )


def parse_scenario(text: str) -> Scenario:
    """Read a scenario. Raises `FaultScriptError`, which names the place."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FaultScriptError(f"this is no TOML: {error}", place="") from error
    rows = data.pop("fault", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise FaultScriptError("fault: it is not [[fault]]", place="fault")
    drives = [_drives(number, row.pop("drives", None)) for number, row in enumerate(rows, 1)]
    script = from_dict({"fault": rows, **({"model": data.pop("model")} if "model" in data else {})})
    loads = data.pop("load", None)
    if loads is not None and not isinstance(loads, list):
        raise FaultScriptError("load: it is not [[load]]", place="load")
    tables = ("model", "loads", "faults")
    known = tuple(one.name for one in fields(Scenario) if one.name not in tables)
    _check_keys("", data, known)
    more: dict[str, Any] = {}
    if loads is not None:
        more["loads"] = tuple(_load(row) for row in loads)
    if script.model is not None:
        more["model"] = script.model
    placed = tuple(map(Placed, script.faults, drives))
    return Scenario(faults=placed, **more, **data)


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario from a file. Raises `FaultScriptError`, also if it cannot be read."""
    try:
        return parse_scenario(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FaultScriptError(f"{path} cannot be read: {why}", place="") from error


def _check_keys(place: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in data:
        if key not in known:
            where = f"{place}.{key}".strip(".")
            raise FaultScriptError(
                f"{where}: there is no such key", place=where, mend="valid are " + ", ".join(known)
            )


def _load(row: object) -> Load:
    if not isinstance(row, dict):
        raise FaultScriptError("load: it is not [[load]]", place="load")
    _check_keys("load", row, tuple(one.name for one in fields(Load)))
    return Load(**row)


def _drives(number: int, value: object) -> frozenset[int] | None:
    if value is None:
        return None
    place = f"fault {number}, drives"
    if not isinstance(value, list):
        raise FaultScriptError(f"{place}: {value!r} is no list of drives", place=place)
    return frozenset(_number(place, one, 0, 1 << 31, int) for one in value)
