"""Scripts of faults: what is read, what is refused and where, and nothing is lost on the way."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import FaultScriptError
from udrv.soft import faults
from udrv.soft.fault_effects import EFFECTS, MAX_US
from udrv.soft.fault_table import SIZE, pack_fault, pack_script, unpack_fault
from udrv.soft.faults import Fault, Model, Scope, Script, fault, parse, to_toml

EXAMPLE = """
[model]
dies = 16

[[fault]]
effect = "late"
name = "slow reads"
us = 500
scope = { opcodes = ["read", 0x0c], lba = [0, 999], queue = 2, probability = 0.25, seed = 7 }

[[fault]]
effect = "factor"
factor = 10
scope = { start_us = 1_000_000, period_us = 60_000_000, on_us = 30_000_000 }
"""


def test_an_example() -> None:
    script = parse(EXAMPLE)
    assert script == Script(
        (
            fault("late", us=500, name="slow reads", opcodes=("read", 12), lba=(0, 999), queue=2,
                  probability=0.25, seed=7),
            Fault("factor", {"factor": 10.0},
                  Scope(start_us=10**6, period_us=6 * 10**7, on_us=3 * 10**7)),
        ),
        Model(dies=16),
    )  # fmt: skip
    assert script.faults[0].scope.opcodes == (2, 12)


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("[[fault]", "", "no TOML"),
        ("fault = 1", "fault", "not \\[\\[fault\\]\\]"),
        ("[[fault]]", "fault 1, effect", "missing"),
        ("[[fault]]\neffect = 'lost'", "fault 1, effect", "valid are drop, late"),
        ("[[fault]]\neffect = []", "fault 1, effect", "no effect"),
        ("[[fault]]\neffect = 'late'", "fault 1, us", "needs it"),
        ("[[fault]]\neffect = 'late'\nus = true", "fault 1, us", "no integer"),
        ("[[fault]]\neffect = 'late'\nus = 1.5", "fault 1, us", "no integer"),
        ("[[fault]]\neffect = 'late'\nus = -1", "fault 1, us", "not within 0"),
        ("[[fault]]\neffect = 'drop'\nus = 1", "fault 1, us", "no such parameter.*has none"),
        ("[[fault]]\neffect = 'drop'\nname = 3", "fault 1, name", "no text"),
        (f"[[fault]]\neffect = 'drop'\nname = '{'x' * 33}'", "fault 1, name", "longer than 32"),
        ("[[fault]]\neffect = 'drop'\nhealthy = 1", "fault 1, healthy", "neither true"),
        ("[[fault]]\neffect = 'status'\nsc = 0", "fault 1, sc", "success"),
        ("[[fault]]\neffect = 'factor'\nfactor = nan", "fault 1, factor", "not within"),
        ("[[fault]]\neffect = 'factor'\nfactor = 2.0", "fault 1", "add a \\[model\\] table"),
        ("[[fault]]\neffect = 'stall'", "fault 1, scope.period_us", "needs a period"),
        ("[[fault]]\neffect = 'gc'\nfull_kib = 1\nempty_kib = 1\nfactor = 2\ndrain_kib_s = 1",
         "fault 1, empty_kib", "not below"),
        ("[[fault]]\neffect = 'cfs'\ntimed = true\nscope.every = 2", "fault 1, timed", "once"),
        ("[[fault]]\neffect = 'drop'\nscope = 1", "fault 1, scope", "no table"),
        ("[[fault]]\neffect = 'drop'\nscope.lbas = 1", "fault 1, scope.lbas", "no such key"),
        ("[[fault]]\neffect = 'drop'\nscope.lba = [2, 1]", "fault 1, scope.lba", "before 2"),
        ("[[fault]]\neffect = 'drop'\nscope.lba = [1, 2, 3]", "fault 1, scope.lba", "first and"),
        ("[[fault]]\neffect = 'drop'\nscope.opcodes = 'raed'", "fault 1, scope.opcodes",
         "valid are flush"),
        ("[[fault]]\neffect = 'drop'\nscope = { opcodes = 'read', queue = 0 }",
         "fault 1, scope.opcodes", "valid are delete_sq"),
        ("[[fault]]\neffect = 'drop'\nscope.probability = 0", "fault 1, scope.probability",
         "never"),
        ("[[fault]]\neffect = 'drop'\nscope.probability = 1.1", "fault 1, scope.probability",
         "not within 0 to 1"),
        ("[[fault]]\neffect = 'drop'\nscope.end_us = 0", "fault 1, scope.end_us", "not within 1"),
        ("[[fault]]\neffect = 'drop'\nscope.on_us = 1", "fault 1, scope.on_us", "period_us"),
        ("[[fault]]\neffect = 'drop'\nscope.die = 1", "fault 1, scope.die", "belong together"),
        ("[model]\ndies = 0", "model.dies", "not within 1 to 256"),
        ("[model]\ndies = 4", "model.channels", "not within 1 to 4"),
        ("[model]\nspeed = 4", "model.speed", "no such key"),
        ("[[fault]]\neffect = 'drop'\n" * 65, "fault", "65 of them where 64"),
    ],
)
def test_what_is_refused_and_where(text: str, place: str, why: str) -> None:
    with pytest.raises(FaultScriptError, match=why) as caught:
        pack_script(parse(text))
    assert caught.value.place == place
    assert place in caught.value.tried


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FaultScriptError, match="cannot be read"):
        faults.load(tmp_path / "none")
    (tmp_path / "script").write_bytes(b"\xff")
    with pytest.raises(FaultScriptError, match="UTF-8"):
        faults.load(tmp_path / "script")
    (tmp_path / "script").write_text("[[fault]]\neffect = 'late'")
    with pytest.raises(FaultScriptError, match="script: fault 1, us") as caught:
        faults.load(tmp_path / "script")
    assert caught.value.place == "fault 1, us"


# --- generated -----------------------------------------------------------------------------------


def numbers(low: float, high: float) -> st.SearchStrategy[int]:
    return st.integers(int(low), int(high)) | st.sampled_from([int(low), int(high)])


@st.composite
def scopes(draw: st.DrawFn) -> Scope:
    period = draw(numbers(0, MAX_US))
    dies = draw(numbers(0, 65536))
    start = draw(numbers(0, MAX_US - 1))
    span = st.tuples(numbers(0, (1 << 63) - 1), numbers(0, (1 << 63) - 1)).map(sorted).map(tuple)
    queues = st.tuples(numbers(0, 65535), numbers(0, 65535)).map(sorted).map(tuple)
    return Scope(
        opcodes=tuple(draw(st.sets(numbers(0, 255)))),
        lba=draw(st.none() | span),  # type: ignore[arg-type]
        queue=draw(queues),  # type: ignore[arg-type]
        namespace=draw(numbers(0, 0xFFFFFFFE)),
        dies=dies, die=draw(numbers(0, dies - 1)) if dies else 0,
        stripe=draw(numbers(1, 0xFFFFFFFF)) if dies else 0,
        start_us=start, end_us=draw(st.none() | numbers(start + 1, MAX_US)),
        period_us=period, on_us=draw(numbers(1, period)) if period else 0,
        after=draw(numbers(0, (1 << 63) - 1)), every=draw(numbers(1, (1 << 63) - 1)),
        count=draw(st.none() | numbers(1, (1 << 63) - 1)), seed=draw(numbers(0, (1 << 63) - 1)),
        probability=draw(st.floats(0, 1, exclude_min=True)),
    )  # fmt: skip


@st.composite
def some_faults(draw: st.DrawFn) -> Fault:
    effect = draw(st.sampled_from(list(EFFECTS)))
    params: dict[str, Any] = {}
    for param in EFFECTS[effect].params:
        if param.kind is bool:
            params[param.name] = draw(st.booleans())
        elif param.kind is float:
            params[param.name] = draw(st.floats(param.low, param.high))
        else:
            params[param.name] = draw(numbers(param.low, param.high))
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    try:
        return Fault(effect, params, draw(scopes()), draw(text), draw(st.booleans()))
    except FaultScriptError:  # what does not go together
        plain = {"us": 1, "factor": 2.0, "drain_kib_s": 1, "full_kib": 2, "sc": 1, "cid": 7}
        names = {param.name for param in EFFECTS[effect].params}
        scope = Scope(period_us=9, on_us=4) if effect == "stall" else Scope()
        return Fault(effect, {k: v for k, v in plain.items() if k in names}, scope)


models = st.builds(
    lambda dies, channels, jitter, rest: Model(
        dies=dies, channels=min(channels, dies), jitter=jitter, read_ns=rest
    ),
    st.integers(1, 256), st.integers(1, 64), st.floats(0, 1), st.integers(0, 10**9),
)  # fmt: skip


@given(some_faults())
def test_the_controller_takes_and_gives_back_what_python_accepts(one: Fault) -> None:
    data = pack_fault(one)
    assert len(data) == SIZE
    assert unpack_fault(data) == one


@given(st.lists(some_faults(), max_size=5), models)
def test_toml_and_back(rows: list[Fault], model: Model) -> None:
    script = Script(tuple(rows), model)
    text = to_toml(script)
    assert parse(text) == script
    assert to_toml(parse(text)) == text
    assert len(pack_script(script)) == len(pack_script(Script((), model))) + SIZE * len(rows)


@given(st.text() | st.text(alphabet="[]={}fault\n\"'01.e_ "))
def test_garbage_is_refused_by_name(text: str) -> None:
    try:
        parse(text)
    except FaultScriptError:
        pass


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["read", "drop", "late"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = ["effect", "name", "healthy", "scope", "us", "factor", "sct", "sc", "dnr", "full_kib", "x"]
SCOPE_KEYS = [one.name for one in fields(Scope)]


@given(
    st.dictionaries(
        st.sampled_from(["fault", "model", "y"]),
        junk | st.lists(
            st.dictionaries(
                st.sampled_from(KEYS),
                junk | st.sampled_from(list(EFFECTS))
                | st.dictionaries(st.sampled_from(SCOPE_KEYS), junk),
            ),
            max_size=3,
        ),
    )
)  # fmt: skip
def test_garbage_of_the_right_shape_is_refused_by_name(data: dict[str, Any]) -> None:
    try:
        script = faults.from_dict(data)
    except FaultScriptError as error:
        assert error.tried
    else:
        assert parse(to_toml(script)) == script


def test_a_number_that_is_none_is_written_as_toml_reads_it() -> None:
    text = to_toml(Script((fault("retry", us=1, again=1e-300),)))
    assert tomllib.loads(text)["fault"][0]["again"] == 1e-300
    with pytest.raises(FaultScriptError):
        fault("retry", us=1, again=math.inf)
