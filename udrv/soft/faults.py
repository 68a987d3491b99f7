# SPDX-License-Identifier: Apache-2.0
"""Faults for the software controller: a script of them, as TOML or as Python.

    [model]                     # latency of a healthy drive; left out: as fast as the machine
    dies = 32

    [[fault]]
    effect = "late"             # see EFFECTS, and docs/faults.md for what each is to a driver
    us = 500
    scope = { opcodes = ["read"], lba = [0, 999], probability = 0.01, seed = 7, count = 20 }

`parse` reads that text, `to_toml` writes it; in Python, one of them is
`fault("late", us=500, opcodes="read")`. All times are microseconds, counted from the moment a fault
is loaded.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from udrv.errors import FaultScriptError
from udrv.soft.fault_effects import EFFECTS, HEALTHY, MAX_US, Number, Param

MAX_FAULTS = 64
FOREVER = (1 << 64) - 1
_INT = (1 << 63) - 1  # TOML's integers
_NAME_BYTES = 32
ANY_IO_QUEUE = (1, 65535)
_VALID_EFFECTS = "valid are " + ", ".join(EFFECTS)

IO_OPCODES = {
    "flush": 0x00, "write": 0x01, "read": 0x02, "write_uncorrectable": 0x04, "compare": 0x05,
    "write_zeroes": 0x08, "dsm": 0x09, "verify": 0x0C, "copy": 0x19,
}  # fmt: skip
ADMIN_OPCODES = {
    "delete_sq": 0x00, "create_sq": 0x01, "get_log_page": 0x02, "delete_cq": 0x04,
    "create_cq": 0x05, "identify": 0x06, "abort": 0x08, "set_features": 0x09,
    "get_features": 0x0A,
}  # fmt: skip


def _refuse(place: str, why: str, mend: str | None = None) -> NoReturn:
    raise FaultScriptError(f"{place}: {why}", place=place, mend=mend)


def _integer(place: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(place, f"{value!r} is no integer")
    if not low <= value <= high:
        _refuse(place, f"{value} is not within {low} to {high}")
    return value


def _pair(place: str, value: object, high: int) -> tuple[int, int]:
    """One number, or the first and the last of a range."""
    if isinstance(value, list | tuple):
        if len(value) != 2:
            _refuse(place, f"{value!r} is not a first and a last one")
        first, last = (_integer(place, one, 0, high) for one in value)
        if last < first:
            _refuse(place, f"{last} comes before {first}")
        return first, last
    one = _integer(place, value, 0, high)
    return one, one


def _opcodes(place: str, value: object, admin: bool) -> tuple[int, ...]:
    names = ADMIN_OPCODES if admin else IO_OPCODES
    found = set()
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, str):
            if one not in names:
                _refuse(place, f"there is no opcode {one!r}", "valid are " + ", ".join(names))
            found.add(names[one])
        else:
            found.add(_integer(place, one, 0, 255))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which commands a fault applies to, and when. Raises `FaultScriptError`.

    opcodes: numbers, or names of `IO_OPCODES` (of `ADMIN_OPCODES` where `queue` is 0); none: all.
    lba: first and last block, or one; commands without blocks are not in any range.
    queue: submission queue, or first and last; 0 is the admin queue; all I/O queues by default.
    namespace: 0 is any.     die, dies, stripe: only blocks `b` with `b // stripe % dies == die`.
    start_us, end_us: since the fault was loaded.
    period_us, on_us: active for `on_us` at the start of each period.
    after: matching commands to let through.     every: of those behind, each n-th.
    probability: of those, with this one (`seed`).     count: effects, then it is spent.
    """

    opcodes: tuple[int, ...] = ()
    lba: tuple[int, int] | None = None
    queue: tuple[int, int] = ANY_IO_QUEUE
    namespace: int = 0
    dies: int = 0
    die: int = 0
    stripe: int = 0
    start_us: int = 0
    end_us: int | None = None
    period_us: int = 0
    on_us: int = 0
    after: int = 0
    every: int = 1
    count: int | None = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("queue", _pair("scope.queue", self.queue, 65535))
        put("opcodes", _opcodes("scope.opcodes", self.opcodes, self.queue == (0, 0)))
        if self.lba is not None:
            put("lba", _pair("scope.lba", self.lba, _INT))
        for name, low, high in (
            ("namespace", 0, 0xFFFFFFFE), ("dies", 0, 65536), ("die", 0, 65535),
            ("stripe", 0, 0xFFFFFFFF), ("start_us", 0, MAX_US), ("period_us", 0, MAX_US),
            ("on_us", 0, MAX_US), ("after", 0, _INT), ("every", 1, _INT), ("seed", 0, _INT),
        ):  # fmt: skip
            _integer(f"scope.{name}", getattr(self, name), low, high)
        if self.end_us is not None:
            _integer("scope.end_us", self.end_us, self.start_us + 1, MAX_US)
        if self.count is not None:
            _integer("scope.count", self.count, 1, _INT)
        put("probability", _real("scope.probability", self.probability, 0.0, 1.0))
        if not self.probability:
            _refuse("scope.probability", "0 is never")
        if bool(self.period_us) != bool(self.on_us) or self.on_us > self.period_us:
            _refuse("scope.on_us", "it is not 1 to period_us")
        if self.die >= max(self.dies, 1) or bool(self.dies) != bool(self.stripe):
            _refuse("scope.die", "dies, stripe (blocks) and a die below dies belong together")


def _real(place: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(place, f"{value!r} is no number")
    if not low <= value <= high:  # not a number is in no range
        _refuse(place, f"{value} is not within {low:g} to {high:g}")
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """How fast a healthy drive is; see `struct udrv_model`. Times are nanoseconds.

    `dies` work in parallel behind `channels`; a `stripe` is bytes on one die; writes wait only
    where a die is more than `buffer_ns` behind; `jitter` is relative. The defaults are a drive of
    the middle class: 70 us to read 4 KiB, 12 us to write it.
    """

    dies: int = 32
    channels: int = 8
    stripe: int = 16384
    read_ns: int = 55_000
    program_ns: int = 200_000
    transfer_ns: int = 4_000
    overhead_ns: int = 8_000
    buffer_ns: int = 2_000_000
    jitter: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("dies", 1, 256), ("channels", 1, min(64, self.dies)), ("stripe", 512, 1 << 20),
            ("read_ns", 0, 10**9), ("program_ns", 0, 10**9), ("transfer_ns", 0, 10**9),
            ("overhead_ns", 0, 10**9), ("buffer_ns", 0, 10**9), ("seed", 0, _INT),
        ):  # fmt: skip
            _integer(f"model.{name}", getattr(self, name), low, high)
        object.__setattr__(self, "jitter", _real("model.jitter", self.jitter, 0, 1))


@dataclass(frozen=True, slots=True)
class Fault:
    """One effect (of `EFFECTS`, with its parameters) and where it applies.

    `healthy` marks in the ground truth what a detector must not flag. Raises `FaultScriptError`.
    """

    effect: str
    params: Mapping[str, Number] = field(default_factory=dict)
    scope: Scope = field(default_factory=Scope)
    name: str = ""
    healthy: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.effect, str) or self.effect not in EFFECTS:
            _refuse("effect", f"there is no effect {self.effect!r}", _VALID_EFFECTS)
        spec = EFFECTS[self.effect]
        known = {param.name: param for param in spec.params}
        for name in self.params:
            if name not in known:
                valid = ", ".join(known) or "none"
                _refuse(name, f"{self.effect} has no such parameter", f"it has {valid}")
        object.__setattr__(
            self, "params", {param.name: _value(self, param) for param in spec.params}
        )
        if not isinstance(self.name, str) or "\0" in self.name:
            _refuse("name", f"{self.name!r} is no text without a NUL")
        try:
            size = len(self.name.encode())
        except UnicodeEncodeError:
            _refuse("name", f"{self.name!r} is no Unicode text")
        if size > _NAME_BYTES:
            _refuse("name", f"it is longer than {_NAME_BYTES} bytes")
        if not isinstance(self.healthy, bool):
            _refuse("healthy", f"{self.healthy!r} is neither true nor false")
        object.__setattr__(self, "healthy", self.healthy or self.effect in HEALTHY)
        _check_together(self)

    def __hash__(self) -> int:
        return hash((self.effect, tuple(self.params.items()), self.scope, self.name))


def _value(of: Fault, param: Param) -> Number:
    if param.name not in of.params:
        if param.default is None:
            _refuse(param.name, f"{of.effect} needs it", f"it is {param.low:g} to {param.high:g}")
        return param.default
    value = of.params[param.name]
    if param.kind is bool:
        if not isinstance(value, bool):
            _refuse(param.name, f"{value!r} is neither true nor false")
        return value
    if param.kind is float:
        return _real(param.name, value, param.low, param.high)
    return _integer(param.name, value, int(param.low), int(param.high))


def _check_together(of: Fault) -> None:
    """What one field alone does not tell."""
    p, scope = of.params, of.scope
    if of.effect == "status" and not (p["sct"] or p["sc"]):
        _refuse("sc", "status 0 is success")
    if of.effect == "add" and not (p["us"] or p["jitter_us"]):
        _refuse("us", "nothing would be added")
    if of.effect == "factor" and p["factor"] <= 1:
        _refuse("factor", "it is not above 1")
    if of.effect == "stall" and not scope.period_us and scope.end_us is None:
        _refuse("scope.period_us", "a stall needs a period, or an end_us")
    if of.effect in ("thermal", "gc", "slc") and p["empty_kib"] >= p["full_kib"]:
        _refuse("empty_kib", "it is not below full_kib")
    if p.get("timed") and (
        scope.after or scope.every != 1 or scope.probability < 1 or scope.period_us
        or scope.end_us is not None
    ):  # fmt: skip
        _refuse("timed", "what waits for start_us comes once: no other choice goes with it")


def fault(
    effect: str, *, name: str = "", healthy: bool = False, scope: Scope | None = None, **rest: Any
) -> Fault:
    """A `Fault` from one list of keywords: parameters of the effect, and fields of `Scope`."""
    where = {key: rest.pop(key) for key in _SCOPE_KEYS if key in rest}
    if scope is not None and where:
        _refuse("scope", "it is given twice")
    return Fault(effect, rest, scope or Scope(**where), name, healthy)


_SCOPE_KEYS = tuple(one.name for one in fields(Scope))
_MODEL_KEYS = tuple(one.name for one in fields(Model))


@dataclass(frozen=True, slots=True)
class Script:
    """Faults, and the healthy drive that they befall (None: the machine's own speed).

    Raises `FaultScriptError` if there are too many.
    """

    faults: tuple[Fault, ...] = ()
    model: Model | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "faults", tuple(self.faults))
        if len(self.faults) > MAX_FAULTS:
            _refuse("fault", f"{len(self.faults)} of them where {MAX_FAULTS} have room")

    def check_model(self) -> None:
        """Raise `FaultScriptError` if a fault needs a model and there is none.

        Faults that are added to a running controller need the one that it was started with.
        """
        for number, one in enumerate(self.faults, 1):
            if EFFECTS[one.effect].needs_model and self.model is None:
                _refuse(
                    f"fault {number}", f"{one.effect} needs a model of the healthy drive",
                    "add a [model] table",
                )  # fmt: skip


def parse(text: str) -> Script:
    """Read a script. Raises `FaultScriptError`, which names the place and what is valid there."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FaultScriptError(f"this is no TOML: {error}", place="") from error
    except RecursionError as error:
        raise FaultScriptError("this is nested too deeply", place="") from error
    return from_dict(data)


def load(path: str | Path) -> Script:
    """Read a script from a file. Raises `FaultScriptError`, and for a file that cannot be read."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FaultScriptError(f"{path} cannot be read: {why}", place="") from error
    except FaultScriptError as error:
        raise FaultScriptError(
            f"{path}: {error.tried}", place=error.place, mend=error.mend
        ) from error


def from_dict(data: Mapping[str, Any]) -> Script:
    """A script from what `tomllib` made of it; raises as `parse` does."""
    _known("", data, ("fault", "model"))
    model = None
    if "model" in data:
        model = Model(**_table("model", data["model"], _MODEL_KEYS))
    rows = data.get("fault", [])
    if not isinstance(rows, list):
        _refuse("fault", "it is not [[fault]]")
    return Script(tuple(_row(number, row) for number, row in enumerate(rows, 1)), model)


def _row(number: int, row: object) -> Fault:
    try:
        given = dict(_table("", row, None))
        if "effect" not in given:
            _refuse("effect", "it is missing", _VALID_EFFECTS)
        scope = Scope(**_table("scope", given.pop("scope", {}), _SCOPE_KEYS))
        return Fault(
            given.pop("effect"), scope=scope, name=given.pop("name", ""),
            healthy=given.pop("healthy", False), params=given,
        )  # fmt: skip
    except FaultScriptError as error:
        place = f"fault {number}, {error.place}"
        raise FaultScriptError(
            f"fault {number}, {error.tried}", place=place, mend=error.mend
        ) from error


def _table(place: str, value: object, keys: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(place, f"{value!r} is no table")
    if keys is not None:
        _known(place, value, keys)
    return value


def _known(place: str, data: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in data:
        if key not in keys:
            where = f"{place}.{key}".strip(".")
            _refuse(where, "there is no such key", "valid are " + ", ".join(keys))


# --- written -------------------------------------------------------------------------------------


def to_toml(script: Script) -> str:
    """The text that `parse` reads back to the same; what is at its default is left out."""
    lines = []
    if script.model is not None:
        lines += ["[model]", *_lines(script.model, Model()), ""]
    for one in script.faults:
        lines += ["[[fault]]", f"effect = {_toml(one.effect)}"]
        if one.name:
            lines.append(f"name = {_toml(one.name)}")
        if one.healthy:
            lines.append("healthy = true")
        lines += [f"{key} = {_toml(value)}" for key, value in one.params.items()]
        scope = _lines(one.scope, Scope())
        lines += ["scope = { " + ", ".join(scope) + " }"] if scope else []
        lines.append("")
    return "\n".join(lines)


def _lines(value: Scope | Model, default: Scope | Model) -> list[str]:
    pairs = ((one.name, getattr(value, one.name)) for one in fields(value))
    return [f"{key} = {_toml(it)}" for key, it in pairs if it != getattr(default, key)]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
