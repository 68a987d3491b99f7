# SPDX-License-Identifier: Apache-2.0
"""A verdict is one line of JSON, the same bytes for the same values, and nothing else passes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import VerdictError
from udrv.ml.verdict import KINDS, SCOPES, Scope, Verdict, check, from_json, schema

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
shares = st.floats(0, 1)
times = st.integers(0, 1 << 63)
verdicts = st.builds(
    Verdict, device=st.text(min_size=1), kind=st.sampled_from(KINDS), severity=shares,
    confidence=shares, first_ns=times, last_ns=times, detector=st.text(min_size=1),
    detector_version=st.text(min_size=1), config_hash=st.text(min_size=1),
    evidence=st.dictionaries(
        st.text(), numbers | st.integers() | st.text() | st.none() | st.lists(numbers), min_size=1
    ),
    scope=st.builds(
        Scope, type=st.sampled_from(SCOPES), namespace=st.none() | st.integers(1, 9),
        queue=st.none() | st.integers(0, 9), first_lba=st.none() | times,
        last_lba=st.none() | times,
    ),
)  # fmt: skip


def one(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "version": 1, "device": "soft:", "scope": {"type": "device"}, "kind": "slow",
        "severity": 0.5, "confidence": 1.0, "first_ns": 1, "last_ns": 2, "detector": "evidence",
        "detector_version": "1", "config_hash": "abc", "evidence": {"value": 1.5},
    }  # fmt: skip
    record.update(changes)
    return record


@given(verdicts)
def test_written_and_read_it_is_written_as_the_same_bytes(verdict: Verdict) -> None:
    line = verdict.json()
    assert "\n" not in line
    assert from_json(line).json() == line
    keys = list(json.loads(line))
    assert keys == sorted(keys)


@given(verdicts)
def test_integers_stay_integers(verdict: Verdict) -> None:
    record = json.loads(verdict.json())
    assert (record["first_ns"], record["last_ns"]) == (verdict.first_ns, verdict.last_ns)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"kind": "sluggish"}, "verdict.kind"), ({"severity": 1.1}, "verdict.severity"),
        ({"severity": float("nan")}, "verdict.severity"), ({"first_ns": 1.0}, "verdict.first_ns"),
        ({"first_ns": -1}, "verdict.first_ns"), ({"device": ""}, "verdict.device"),
        ({"evidence": {}}, "verdict.evidence"), ({"evidence": {"a": {}}}, "verdict.evidence.a"),
        ({"evidence": {"a": [1, "b"]}}, r"verdict.evidence.a\[1\]"), ({"version": 2}, "version"),
        ({"scope": {"type": "room"}}, "verdict.scope.type"), ({"scope": {}}, "type is missing"),
        ({"scope": {"type": "queue", "queue": True}}, "verdict.scope.queue"),
        ({"more": 1}, "there is no field more"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_the_place(change: dict[str, Any], place: str) -> None:
    check(one())
    with pytest.raises(VerdictError, match=place):
        check(one(**change))


@pytest.mark.parametrize("name", schema()["required"])
def test_every_field_is_needed(name: str) -> None:
    record = one()
    del record[name]
    with pytest.raises(VerdictError, match=f"{name} is missing"):
        check(record)


def test_no_json_is_a_verdict_error() -> None:
    with pytest.raises(VerdictError, match="a line of JSON"):
        from_json("{")


def test_the_schema_uses_only_what_check_understands() -> None:
    known = {
        "$schema", "title", "type", "additionalProperties", "required", "properties", "const",
        "enum", "minimum", "maximum", "minLength", "minProperties", "items",
    }  # fmt: skip

    def walk(rule: dict[str, Any]) -> None:
        assert set(rule) <= known
        for part in rule.get("properties", {}).values():
            walk(part)
        for name in ("items", "additionalProperties"):
            if isinstance(rule.get(name), dict):
                walk(rule[name])

    walk(schema())
