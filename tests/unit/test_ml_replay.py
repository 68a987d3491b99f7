# SPDX-License-Identifier: Apache-2.0
"""`udrv replay` and `udrv explain`: the same bytes for the same recording, and words for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_data import make_cluster
from typer.testing import CliRunner, Result

from udrv.cli.main import app
from udrv.ml.verdict import from_json

SCENARIO = """
blocks = 1_000_000
queues = 2
[[load]]
duration_us = 60_000_000
depth = 2
reads = 0.7
think_us = 100_000
[[fault]]
drives = [1]
effect = "factor"
factor = 3
name = "slow"
scope = { start_us = 1_200_000_000 }
"""


def udrv(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    (folder / "s.toml").write_text(SCENARIO)
    done = udrv("simulate", folder / "s.toml", "--drives", 3, "--hours", 0.6, "-o",
                folder / "run.parquet")  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "run.parquet"


def test_the_same_recording_gives_the_same_bytes(recording: Path, tmp_path: Path) -> None:
    logs = []
    for name in ("a", "b"):
        done = udrv("replay", recording, "--detector", "default", "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
        logs.append((tmp_path / name).read_bytes())
    assert logs[0] == logs[1]
    verdicts = [from_json(line) for line in logs[0].decode().splitlines()]
    assert {verdict.device for verdict in verdicts} == {"drive1"}
    assert 1200e9 <= verdicts[0].first_ns < verdicts[0].last_ns <= 1380e9


def test_in_other_row_groups_the_log_is_the_same(recording: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(recording), tmp_path / "x.parquet", row_group_size=777)
    one, other = (udrv("replay", path).stdout for path in (recording, tmp_path / "x.parquet"))
    assert one == other
    assert one


def test_groups_of_peers_are_as_told(recording: Path) -> None:
    done = udrv("replay", recording, "--peers", 1)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["evidence"].get("peers") for one in said} == {0}


def test_a_cluster_of_the_public_data_is_replayed(tmp_path: Path) -> None:
    path = make_cluster(tmp_path, slow={"3/2": 2.0})
    done = udrv("replay", path)
    assert {json.loads(line)["device"] for line in done.stdout.splitlines()} == {
        "cluster_T/host_3/disk2"
    }


def test_explain_says_it_in_words(recording: Path, tmp_path: Path) -> None:
    udrv("replay", recording, "-o", tmp_path / "log")
    done = udrv("explain", tmp_path / "log")
    assert done.exit_code == 0, done.output
    first = done.stdout.splitlines()[0]
    assert first.startswith("drive1 is slow, 2.9")
    assert "against what it did before" in done.stdout
    assert "observed ####" in done.stdout
    assert "expected #" in done.stdout
    none = udrv("explain", tmp_path / "log", "--device", "drive0")
    assert (none.exit_code, none.stdout) == (0, "")


def spoil(recording: Path, path: Path, **columns: object) -> Path:
    table = pq.read_table(recording)
    for name, column in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(column, table.schema.field(name).type))
    pq.write_table(table, path)
    return path


def test_a_clock_that_steps_back_is_told_with_its_place(recording: Path, tmp_path: Path) -> None:
    times = pq.read_table(recording)["submit_ns"].to_numpy().copy()
    times[5000:6000] -= np.uint64(100 * 10**9)
    path = spoil(recording, tmp_path / "x.parquet", submit_ns=times)
    done = udrv("replay", path)
    assert done.exit_code == 1
    assert "the clock of drive 0 steps back by " in done.stderr
    assert "after its completion 4999" in done.stderr


def test_a_clock_that_jumps_by_years_is_told(recording: Path, tmp_path: Path) -> None:
    times = pq.read_table(recording)["submit_ns"].to_numpy().copy()
    times[-1] += np.uint64(5 * 10**17)
    done = udrv("replay", spoil(recording, tmp_path / "x.parquet", submit_ns=times))
    assert done.exit_code == 1
    assert "ticks of 60 s: take longer ticks, or look at its time stamps" in done.stderr


def test_drives_that_are_mixed_are_told(recording: Path, tmp_path: Path) -> None:
    drives = pq.read_table(recording)["drive"].to_numpy().copy()
    drives[100:200] = 2
    done = udrv("replay", spoil(recording, tmp_path / "x.parquet", drive=drives))
    assert done.exit_code == 1
    assert "drive 0 is in two places" in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1", "no whole Parquet file"), (b"", "no whole Parquet file"),
        (None, "there is no such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_bytes(content)
    done = udrv("replay", path)
    assert done.exit_code == 1
    assert words in done.stderr


def test_a_foreign_file_and_a_truncated_one(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    assert "neither a recording of completions nor" in udrv("replay", path).stderr
    path.write_bytes(recording.read_bytes()[:-1000])
    assert "no whole Parquet file" in udrv("replay", path).stderr


def test_a_log_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"version": 1}\n')
    done = udrv("explain", tmp_path / "log")
    assert done.exit_code == 1
    assert "verdict: device is missing" in done.stderr
