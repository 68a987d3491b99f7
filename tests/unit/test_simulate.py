"""Drives in virtual time: the same twice, labelled truly, and no more than was asked for."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from udrv.cli.main import app
from udrv.errors import FaultScriptError, MissingToolError
from udrv.soft.faults import Fault, Model, fault
from udrv.soft.simulate import (
    CLASSES,
    EFFECTS_SIMULATED,
    LOOK_ALIKES,
    Load,
    Placed,
    Scenario,
    catalogue,
    load_scenario,
    parse_scenario,
    run_drive,
    write_parquet,
)
from udrv.soft.truth import COMPLETION, LOST

TEXT = """
blocks = 100_000
lba = 512
queues = 2

[model]
dies = 16

[[load]]
duration_us = 200_000
depth = 6
blocks = 8
reads = 0.5
think_us = 50

[[load]]
duration_us = 300_000
depth = 2
sequential = true

[[fault]]
drives = [0, 2]
effect = "add"
name = "slow"
us = 100
jitter_us = 300
scope = { probability = 0.1 }

[[fault]]
effect = "media_error"
scope = { lba = [5000, 5999], opcodes = "read" }

[[fault]]
drives = [1]
effect = "drop"
scope = { probability = 0.001, count = 3 }
"""
STEADY = Model(jitter=0)


def whole(scenario: Scenario, **how: Any) -> tuple[dict[str, Any], Any]:
    """All of a drive: columns, and truth."""
    how.setdefault("hours", 2 / 3600)
    chunks = list(run_drive(scenario, **how))
    columns = {
        name: np.concatenate([one.columns[name] for one in chunks]) for name in chunks[0].columns
    }
    return columns, np.concatenate([one.truth for one in chunks])


def one_fault(*faults: Fault, load: Load | None = None, model: Model = STEADY) -> Scenario:
    return Scenario(
        loads=(load or Load(reads=0.5),), model=model, faults=tuple(map(Placed, faults))
    )


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    scenario = parse_scenario(TEXT)
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = write_parquet(
            scenario, tmp_path / f"{name}.parquet", drives=3, hours=2 / 3600, seed=seed
        )
        assert done.truth == tmp_path / f"{name}.truth.parquet"
        files.append((done.completions.read_bytes(), done.truth.read_bytes()))
        assert done.rows == pq.read_metadata(done.completions).num_rows
        assert done.effects == pq.read_metadata(done.truth).num_rows
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]


def test_chunks_of_any_size_are_the_same_drive() -> None:
    scenario = parse_scenario(TEXT)
    expected, labels = whole(scenario, rows=1 << 20)
    for rows in (7, 1000):
        columns, told = whole(scenario, rows=rows)
        assert all((columns[name] == expected[name]).all() for name in expected)
        assert told.tobytes() == labels.tobytes()


def test_drives_differ_and_have_their_own_faults(tmp_path: Path) -> None:
    done = write_parquet(
        parse_scenario(TEXT), tmp_path / "x.parquet", drives=3, hours=2 / 3600, seed=1
    )
    table = pq.read_table(done.completions)
    drive = table["drive"].to_numpy()
    assert (np.diff(drive.astype(int)) >= 0).all()
    truth = pq.read_table(done.truth).to_pylist()
    had = {(row["drive"], row["fault"]) for row in truth}
    assert had == {(0, 1), (0, 2), (1, 2), (1, 3), (2, 1), (2, 2)}
    assert {(row["fault"], row["effect"], row["name"], row["kind"]) for row in truth} == {
        (1, "add", "slow", "completion"), (2, "media_error", "", "completion"),
        (3, "drop", "", "lost"),
    }  # fmt: skip
    slba = table["slba"].to_numpy()
    assert not (slba[drive == 0][:1000] == slba[drive == 1][:1000]).all()


def test_depth_is_what_was_in_flight() -> None:
    columns, _ = whole(parse_scenario(TEXT), drive=2)
    end = columns["submit_ns"] + columns["latency"].astype(np.uint64) * 16
    for qid in (1, 2):
        mine = columns["qid"] == qid
        submit, done = columns["submit_ns"][mine], end[mine]
        assert (np.diff(done.astype(np.int64)) >= -16).all(), "in the order of completion"
        for i in range(0, len(submit), 97):
            # ends are cut to 16 ns
            least = int(((submit < submit[i]) & (done > submit[i])).sum()) + 1
            most = int(((submit <= submit[i]) & (done + 16 > submit[i])).sum())
            assert least <= columns["depth"][mine][i] <= most
    assert columns["depth"].max() == 3
    assert set(columns["nlb"].tolist()) == {1, 8}
    assert (columns["slba"] + columns["nlb"] <= 100_000).all()


@pytest.mark.parametrize(
    "one",
    [
        fault("factor", factor=3, every=7), fault("add", us=500, jitter_us=100, probability=0.1),
        fault("throttle", steps=3, opcodes="read"), fault("retry", us=80, lba=(0, 9_999_999)),
        fault("stall", period_us=500_000, on_us=100_000),
        fault("factor", factor=5, dies=32, die=3, stripe=4), fault("bandwidth", kib_s=30_000),
        fault("thermal", drain_kib_s=10_000, full_kib=2000, empty_kib=500, factor=4),
        fault("gc", drain_kib_s=5_000, full_kib=2000, factor=4),
        fault("slc", drain_kib_s=5_000, full_kib=2000, factor=4), fault("late", us=10, count=9),
    ],
    ids=lambda one: one.effect,
)  # fmt: skip
def test_each_label_is_true_and_nothing_else_is_slow(one: Fault) -> None:
    """One at a time on a drive without chance: who has no label takes what a healthy one takes."""
    load = Load(reads=0.5, think_us=200)
    columns, truth = whole(one_fault(one, load=load), hours=3 / 3600)
    assert 0 < len(truth) < len(columns["slba"]) or one.effect == "bandwidth"
    assert (truth["kind"] == COMPLETION).all()
    assert len(set(truth["nth"].tolist())) == len(truth)
    assert (columns["submit_ns"][truth["nth"]] == truth["submit_ns"]).all()
    assert (columns["slba"][truth["nth"]] == truth["slba"]).all()
    assert (truth["onset_ns"] <= truth["submit_ns"]).all()
    assert (truth["flags"] == (one.effect in ("gc", "slc"))).all()
    added = np.zeros(len(columns["slba"]), np.int64)
    added[truth["nth"]] = truth["added_ns"]
    healthy = columns["latency"].astype(np.int64) * 16 - added
    for opcode, expected in ((2, 8_000 + 55_000 + 4_000), (1, 8_000 + 4_000)):
        mine = healthy[columns["opcode"] == opcode]
        # a command may wait for a die that a write before it keeps busy
        assert (mine > expected - 17).all()
        assert np.median(mine) <= expected
        assert (mine < expected + 400_000).all()


def test_lost_commands_are_not_among_the_completions() -> None:
    scenario = one_fault(fault("drop", every=10, count=5), load=Load(duration_us=100, depth=3))
    scenario = dataclasses.replace(scenario, timeout_us=50_000)
    columns, truth = whole(scenario)
    assert (truth["kind"] == LOST).all()
    assert len(truth) == 5
    keys = set(zip(columns["submit_ns"].tolist(), columns["slba"].tolist(), strict=True))
    assert not keys & set(zip(truth["submit_ns"].tolist(), truth["slba"].tolist(), strict=True))
    assert len(columns["slba"]) > 1000, "the host went on"


def test_a_status_is_in_its_column() -> None:
    columns, truth = whole(one_fault(fault("status", sct=1, sc=0x80, dnr=True, every=5)))
    bad = np.flatnonzero(columns["status"])
    assert bad.tolist() == truth["nth"].tolist() == [*range(0, len(columns["slba"]), 5)]
    assert set(columns["status"][bad].tolist()) == {0x4180}


def test_latency_saturates_with_a_flag() -> None:
    columns, truth = whole(one_fault(fault("add", us=70_000_000, count=1)), hours=0.03)
    flagged = np.flatnonzero(columns["flags"])
    assert flagged.tolist() == truth["nth"].tolist()
    assert columns["latency"][flagged].tolist() == [0xFFFFFFFF]


def test_latency_depends_on_depth() -> None:
    medians = []
    for depth in (1, 32, 256):
        columns, _ = whole(one_fault(load=Load(depth=depth)), hours=0.2 / 3600)
        medians.append(float(np.median(columns["latency"])))
    assert medians[0] < medians[1] < medians[2] / 2


def test_more_than_the_effects_of_one_command() -> None:
    """Six at most, on the machine as here; the truth has what was applied."""
    nine = [fault("add", us=i + 1) for i in range(9)]
    columns, truth = whole(one_fault(*nine), hours=0.01 / 3600)
    assert len(truth) == 6 * len(columns["slba"])
    assert (columns["latency"] * 16.0 > 21_000).all()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x = 1", "x"), ("fault = 1", "fault"), ("fault = [1]", "fault"), ("[[load]", ""),
        ("load = 1", "load"), ("load = [1]", "load"), ("[[load]]\nspeed = 1", "load.speed"),
        ("[[load]]\ndepth = 1025", "load.depth"), ("[[load]]\nreads = 2", "load.reads"),
        ("[[load]]\nreads = nan", "load.reads"), ("[[load]]\nsequential = 1", "load.sequential"),
        ("[[load]]\nblocks = true", "load.blocks"), ("blocks = 1\n[[load]]\nblocks = 2",
                                                     "load.blocks"),
        ("lba = 1024", "lba"), ("queues = 0", "queues"), ("blocks = 'x'", "blocks"),
        ("load = []", "load"), ("[model]\noverhead_ns = 0", "model.overhead_ns"),
        ("[[fault]]\neffect = 'wrong_phase'", "fault 1, effect"),
        ("[[fault]]\neffect = 'add'\nus = 1\ndrives = 3", "fault 1, drives"),
        ("[[fault]]\neffect = 'add'\nus = 1\ndrives = [-1]", "fault 1, drives"),
        ("[[fault]]\neffect = 'add'", "fault 1, us"),
    ],
)  # fmt: skip
def test_what_is_no_scenario(text: str, place: str) -> None:
    with pytest.raises(FaultScriptError) as caught:
        parse_scenario(text)
    assert caught.value.place == place


@settings(max_examples=40, deadline=None)
@given(
    loads=st.lists(
        st.builds(
            Load, duration_us=st.integers(1, 5000), depth=st.integers(0, 40),
            blocks=st.integers(1, 300), reads=st.floats(0, 1), think_us=st.integers(0, 300),
            sequential=st.booleans(),
        ), min_size=1, max_size=4,
    ),
    effects=st.lists(st.sampled_from(EFFECTS_SIMULATED), max_size=8),
    queues=st.integers(1, 4), seed=st.integers(0, 1 << 62), every=st.integers(1, 9),
)  # fmt: skip
def test_any_load_under_any_faults_keeps_its_books(
    loads: list[Load], effects: list[str], queues: int, seed: int, every: int
) -> None:
    params: dict[str, Any] = {
        "us": 50, "factor": 3.0, "sc": 6, "steps": 2, "kib_s": 50_000, "drain_kib_s": 9000,
        "full_kib": 100,
    }  # fmt: skip
    from udrv.soft.fault_effects import EFFECTS

    placed = []
    for effect in effects:
        names = {param.name for param in EFFECTS[effect].params}
        window = {"period_us": 900, "on_us": 100} if effect == "stall" else {}
        given_ = {key: value for key, value in params.items() if key in names}
        placed.append(Placed(fault(effect, every=every, seed=seed >> 3, **given_, **window)))
    scenario = Scenario(
        blocks=1000, loads=tuple(loads), faults=tuple(placed), queues=queues, timeout_us=700
    )
    chunks = list(run_drive(scenario, hours=0.02 / 3600, seed=seed, rows=5000))
    n = sum(len(one.columns["slba"]) for one in chunks)
    for one in chunks:
        assert (one.columns["slba"] + one.columns["nlb"] <= 1000).all()
        assert (one.columns["submit_ns"] < 20_000_000).all()
        assert (one.columns["qid"] <= queues).all()
        assert (one.columns["depth"] >= 1).all()
        assert (one.truth["nth"] < max(n, 1)).all()
        assert ((one.truth["fault"] >= 1) & (one.truth["fault"] <= len(placed))).all()
    keys = [
        (int(row["cqid"]), int(row["nth"]), int(row["fault"]))
        for one in chunks for row in one.truth if row["kind"] == COMPLETION
    ]  # fmt: skip
    assert len(keys) == len(set(keys)), "one row for each effect"


def test_the_catalogue_has_each_class_and_healthy_drives() -> None:
    n = len(CLASSES) + len(LOOK_ALIKES)
    scenario = catalogue(5, drives=4 * n)
    assert catalogue(5, drives=4 * n) == scenario != catalogue(6, drives=4 * n)
    had: dict[int, list[str]] = {}
    for placed in scenario.faults:
        for drive in placed.drives or ():
            had.setdefault(drive, []).append(placed.fault.name)
    assert sorted(had) == [*range(2 * n, 4 * n)]
    assert sorted(name for names in had.values() for name in names) == sorted(
        [*CLASSES, *LOOK_ALIKES] * 2
    )
    crowd = catalogue(1, drives=1000, healthy=0)
    assert len(crowd.faults) == 64 // n * n
    assert set().union(*(placed.drives or () for placed in crowd.faults)) == set(range(1000))
    assert catalogue(1, drives=4, healthy=4).faults == ()


@pytest.mark.parametrize("name", [*CLASSES, *LOOK_ALIKES])
def test_each_class_shows_within_an_hour(name: str) -> None:
    """Two draws of each: a scenario whose fault never shows would be labelled data without it."""
    names = [*CLASSES, *LOOK_ALIKES]
    shown = 0
    for seed in range(2):
        scenario = catalogue(seed, drives=len(names), healthy=0)
        truth = [one.truth for one in run_drive(
            scenario, hours=1, seed=seed, drive=names.index(name), rows=1 << 18)]  # fmt: skip
        rows = np.concatenate(truth)
        shown += len(rows) > 0
        assert ((rows["flags"] & 1 == 1) == (name in LOOK_ALIKES)).all()
    assert shown == 2


# --- files and the command line -------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    script, out = tmp_path / "scenario.toml", tmp_path / "out.parquet"
    script.write_text(TEXT)
    words = ["simulate", str(script), "--drives", "2", "--hours", "0.0005", "--seed", "4"]
    result = CliRunner().invoke(app, [*words, "-o", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["rows"] == pq.read_metadata(out).num_rows
    assert pq.read_schema(out).metadata[b"udrv.record"] == b"1"
    plain = CliRunner().invoke(app, [*words, "-o", str(out)])
    assert "drive 1:" in plain.stderr
    wrong = CliRunner().invoke(app, [*words[:4], "--hours", "0", "-o", str(tmp_path / "no")])
    assert (wrong.exit_code, "hours" in wrong.stderr) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.parquet", "out.truth.parquet", "scenario.toml"
    ]  # fmt: skip


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FaultScriptError, match="cannot be read"):
        load_scenario(tmp_path / "none")
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(FaultScriptError, match="UTF-8"):
        load_scenario(tmp_path / "x")
    with pytest.raises(FaultScriptError, match="cannot be written"):
        write_parquet(Scenario(), tmp_path / "no" / "x.parquet", drives=1, hours=1e-6)
    (tmp_path / "y.truth.parquet").mkdir()
    with pytest.raises(FaultScriptError, match="cannot be written"):
        write_parquet(Scenario(), tmp_path / "y.parquet", drives=1, hours=1e-6)
    assert not (tmp_path / "y.parquet").exists(), "half of it"
    with pytest.raises(FaultScriptError, match="drives"):
        write_parquet(Scenario(), tmp_path / "z.parquet", drives=0, hours=1)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingToolError, match="udrv\\[fleet\\]"):
        write_parquet(Scenario(), tmp_path / "x", drives=1, hours=1)
