# SPDX-License-Identifier: Apache-2.0
"""`udrv evaluate` on a small made-up data set, and on the real one where it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_data import make_cluster, make_labels, public_folder
from typer.testing import CliRunner

from udrv.cli.main import app
from udrv.errors import DataSetError
from udrv.ml.evaluate import HORIZONS, best_cuts, evaluate_folder, rows, run_cluster
from udrv.ml.evidence import Evidence
from udrv.ml.peers import PeerMedian
from udrv.ml.public import load_cluster, load_labels

RUN = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failslow")
    make_cluster(path, slow={"3/2": 1.6, "7/5": 2.5})
    make_labels(path, "3/2", "7/5")
    return path


def test_the_slow_drives_are_found_and_no_others(folder: Path) -> None:
    result = evaluate_folder(folder, ["default"])
    last = [row for row in result["rows"] if row["horizon_s"] == "all"]
    assert [(row["cluster"], row["tp"], row["fp"], row["fn"]) for row in last] == [
        ("cluster_T", 2, 0, 0), ("all", 2, 0, 0),
    ]  # fmt: skip
    assert all(row["ttd_s"] is None and row["mcc"] == 1.0 for row in last)


def test_rows_are_those_of_each_detector_cluster_and_horizon(folder: Path) -> None:
    done = RUN.invoke(app, ["evaluate", "--data", str(folder), "--detector", "default",
                            "--detector", "peer_median", "--json"])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["rows"]
    assert [(row["detector"], row["cluster"], row["horizon_s"]) for row in found] == [
        (detector, cluster, "all" if horizon is None else horizon)
        for detector in ("evidence", "peer_median")
        for horizon in HORIZONS
        for cluster in ("cluster_T", "all")
    ]
    keys = {"mcc", "precision", "recall", "ttd_s", "false_alarms_per_drive_day", "ns_per_record"}
    assert all(keys <= set(row) for row in found)


def test_a_drive_with_more_load_or_less_than_its_peers_is_not_slow(tmp_path: Path) -> None:
    path = make_cluster(
        tmp_path, slow={"3/2": 1.6}, busy_drives={"2/3": 3.0, "9/1": 4.0},
        calm_drives={"5/1": 0.2, "8/4": 0.3},
    )  # fmt: skip
    cluster = load_cluster(path)
    looks = run_cluster(Evidence, cluster).looks
    assert looks[-1].held == {"cluster_T/host_3/disk2"}
    peers = run_cluster(PeerMedian, cluster).looks[-1]
    assert peers.scores["cluster_T/host_9/disk1"] > 0.3, "by latency alone it is"


def test_labels_are_not_looked_at_by_a_run(folder: Path) -> None:
    path = folder / "cluster_T.parquet"
    with_labels = run_cluster(Evidence, load_cluster(path, load_labels(folder)))
    without = run_cluster(Evidence, load_cluster(path))
    assert [look.held for look in with_labels.looks] == [look.held for look in without.looks]


def test_a_horizon_is_steps_of_data_and_not_the_pause(folder: Path) -> None:
    cluster = load_cluster(folder / "cluster_T.parquet")
    assert cluster.steps_in(3600) == 240
    ends = [last for last, _, _ in cluster.ticks(60)]
    assert ends == [60, 120, 180, 240, 300, 360]
    look = run_cluster(Evidence, cluster).looks[HORIZONS.index(3600)]
    assert look.data_s == 3600.0
    wall = cluster.times_s[-1] - cluster.times_s[0]
    assert wall > 75_600


def test_idle_missing_and_repeated_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    table = pq.read_table(make_cluster(tmp_path, hosts=2, disks=6, steps=60, slow={}))
    columns = {name: table[name].to_numpy().astype(float) for name in table.column_names}
    columns["latency_x100"][3] = np.nan
    columns["throughput"][5] = 0
    columns["throughput"][[7, 3]] = np.nan
    again = {name: np.append(column, column[:2]) for name, column in columns.items()}
    again["latency_x100"][-2:] = 999_999  # what a clock that was set back writes
    kinds = {"ts": pa.int64(), "host": pa.int32(), "disk": pa.int32()}
    path = tmp_path / "cluster_U.parquet"
    pq.write_table(pa.table({
        name: pa.array(column, kinds.get(name, pa.float64()), from_pandas=True)
        for name, column in again.items()
    }), path)  # fmt: skip
    cluster = load_cluster(path)
    assert cluster.dropped == {"missing value": 2, "idle": 1, "repeated": 2}
    assert cluster.rows == 722
    batches = next(cluster.ticks(60))[2]
    assert [len(batch) for batch in batches] == [357, 360]
    for batch in batches:
        batch.check()
    assert np.nanmax(cluster.latency_us) < 1000


def test_a_drive_that_appears_late_and_one_that_goes_are_judged_by_what_there_is(
    tmp_path: Path,
) -> None:
    table = pq.read_table(make_cluster(tmp_path, slow={"3/2": 2.0}))
    ts, host, disk = (table[name].to_numpy() for name in ("ts", "host", "disk"))
    late = (host == 1) & (disk == 1) & (ts < np.unique(ts)[130])
    gone = (host == 2) & (disk == 1) & (ts > np.unique(ts)[100])
    gone |= (host == 5) & (ts < np.unique(ts)[90])  # a whole host
    pq.write_table(table.filter(pa.array(~(late | gone))), tmp_path / "cluster_T.parquet")
    run = run_cluster(Evidence, load_cluster(tmp_path / "cluster_T.parquet"))
    assert run.looks[-1].held == {"cluster_T/host_3/disk2"}


def test_hosts_whose_seconds_differ_are_on_one_raster(tmp_path: Path) -> None:
    table = pq.read_table(make_cluster(tmp_path, slow={"3/2": 2.0}))
    shifted = table["ts"].to_numpy() + table["host"].to_numpy() % 15
    at = table.column_names.index("ts")
    path = tmp_path / "cluster_T.parquet"
    pq.write_table(table.set_column(at, "ts", pa.array(shifted, pa.int32())), path)
    cluster = load_cluster(path)
    assert cluster.latency_us.shape[1] <= 362  # the pause and the ends are not on the raster
    assert sum(cluster.dropped.values()) == 0
    assert cluster.step_s == 15
    assert run_cluster(Evidence, cluster).looks[-1].held == {"cluster_T/host_3/disk2"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "no whole Parquet file"),
        (lambda path: path.write_bytes(b"PAR1 and no more"), "no whole Parquet file"),
        (lambda path: path.write_bytes(b""), "no whole Parquet file"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "no column ts, host, disk"),
        (lambda path: pq.write_table(pq.read_table(path).slice(0, 0), path), "no rows"),
        (
            lambda path: pq.write_table(
                pq.read_table(path).drop(["host"]).append_column("host", pa.array(["x"] * 4320)),
                path,
            ),
            "column host is string",
        ),
    ],
)
def test_a_truncated_or_foreign_file_is_named(
    tmp_path: Path, spoil: object, words: str
) -> None:
    path = make_cluster(tmp_path, slow={}, hosts=6, disks=6, steps=120)
    make_labels(tmp_path)
    assert callable(spoil)
    spoil(path)
    with pytest.raises(DataSetError, match=words) as caught:
        evaluate_folder(tmp_path, ["default"])
    assert str(path) in str(caught.value)


def test_a_missing_key_is_an_error_and_not_a_drive_of_its_own(tmp_path: Path) -> None:
    path = make_cluster(tmp_path, slow={}, hosts=6, disks=6, steps=120)
    table = pq.read_table(path)
    holes = pa.array([None, *table["host"].to_pylist()[1:]], pa.int16())
    at = table.column_names.index("host")
    pq.write_table(table.set_column(at, "host", holes), path)
    with pytest.raises(DataSetError, match="column host has missing values"):
        load_cluster(path)


def test_an_empty_folder_and_one_without_labels(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["evaluate", "--data", str(tmp_path)])
    assert done.exit_code == 1
    make_cluster(tmp_path, slow={}, hosts=2, disks=6, steps=60)
    with pytest.raises(DataSetError, match=r"labels\.csv: it cannot be read"):
        evaluate_folder(tmp_path, ["default"])


def test_the_plateau_holds_the_cuts_that_part_slow_from_fine(folder: Path) -> None:
    cluster = load_cluster(folder / "cluster_T.parquet", load_labels(folder))
    run = run_cluster(PeerMedian, cluster)
    low, high = best_cuts([run], None)
    scores = run.looks[-1].scores
    slow = [score for device, score in scores.items() if device in cluster.slow]
    fine = [score for device, score in scores.items() if device not in cluster.slow]
    assert max(fine) <= low < high < min(slow)


def test_a_labelled_drive_without_rows_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster_T.parquet").write_bytes((folder / "cluster_T.parquet").read_bytes())
    make_labels(tmp_path, "3/2", "99/1")
    about = evaluate_folder(tmp_path, ["peer_median"])["clusters"]["cluster_T"]
    assert (about["slow"], about["labels_without_data"]) == (1, 1)


def test_public_data_or_what_is_made_up_in_its_stead(
    folder: Path, record_property: object, capsys: pytest.CaptureFixture[str]
) -> None:
    real = public_folder()
    where = real or folder
    path = where / ("cluster_A.parquet" if real else "cluster_T.parquet")
    with capsys.disabled():
        print(f" [{'public' if real else 'generated'} data] ", end="")
    cluster = load_cluster(path, load_labels(where))
    keep = cluster.steps_in(3600)
    cluster.times_s = cluster.times_s[:keep]
    cluster.latency_us = cluster.latency_us[:, :keep]
    cluster.bytes_per_s = cluster.bytes_per_s[:, :keep]
    row = rows([run_cluster(Evidence, cluster)])[-1]
    assert row["mcc"] == 1.0
