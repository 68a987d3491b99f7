# SPDX-License-Identifier: Apache-2.0
"""Reading results: ours, fio's own, and anything else, which is refused by name."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bench_results import latency, result
from hypothesis import given
from hypothesis import strategies as st

from udrv.bench import to_fio
from udrv.bench.load import from_document, load
from udrv.bench.measured import Distribution, fio_bucket, merge, percentile, udrv_bucket
from udrv.bench.place import Place
from udrv.core import lib
from udrv.errors import ResultFileError, UdrvError


@cache
def fio(shape: str) -> str:
    """What the installed fio prints (no device: its engine "null")."""
    if shutil.which("fio") is None:
        pytest.fail("fio is not installed: make system")
    done = subprocess.run(
        ["fio", "--name=job", "--ioengine=null", "--size=16M", "--rw=randrw", "--rwmixread=70",
         "--norandommap", "--bs=4k", "--iodepth=4", "--number_ios=20000",
         f"--output-format={shape}"],
        capture_output=True, text=True, check=True,
    )
    return done.stdout


def ours() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(to_fio(result())))
    return document


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


# --- what is right -----------------------------------------------------------------------------


def test_ours_comes_back(tmp_path: Path) -> None:
    made = result()
    (found,) = load([write(tmp_path / "a.json", to_fio(made))]).results
    assert (found.label, found.figure, found.program[:5]) == ("soft:", "clat", "udrv-")
    assert set(found.directions) == {"read"}, "there were no writes"
    read = found.directions["read"]
    assert (read.ios, read.iops, read.bandwidth) == (100, 50.0, 204_800)
    assert read.percentiles == made.read.clat.percentiles
    assert read.buckets == made.read.clat.buckets
    assert (read.min, read.max, read.mean) == (1000, 100_000, 50_500)
    assert read.stddev == pytest.approx(made.read.clat.stddev)
    assert found.cpu_ns_per_io == 10_000
    assert [point.iops["read"] for point in found.points] == [40.0, 60.0]
    assert found.points[0].p99_ns == {}, "a file from before there were any, or no I/O"
    assert found.job["bs"] == "4 KiB"
    assert found.setup["serial"] == "S1"


@pytest.mark.parametrize("shape", ["json", "json+"])
def test_fios_own_comes_back(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "fio.json"
    path.write_text("fio: a note that it prints before the document\n" + fio(shape))
    job = json.loads(fio(shape))["jobs"][0]
    (found,) = load([path]).results
    assert found.program.startswith("fio-")
    for name, direction in found.directions.items():
        fios = job[name]
        assert (direction.ios, direction.iops) == (fios["total_ios"], fios["iops"])
        assert direction.percentiles == {
            float(p): ns for p, ns in fios["clat_ns"]["percentile"].items()
        }
        assert sum(count for *_, count in direction.buckets) in (direction.ios, 0)
        assert bool(direction.buckets) == (shape == "json+")
        for percent, ns in direction.percentiles.items() if direction.buckets else ():
            low = fio_bucket(percentile(direction.buckets, percent), 1)[0]
            assert low <= ns <= percentile(direction.buckets, percent) + 1
    assert set(found.directions) == {"read", "write"}
    busy = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1e6
    ios = sum(direction.ios for direction in found.directions.values())
    assert found.cpu_ns_per_io == pytest.approx(busy / ios)
    assert found.job["bs"] == "4 KiB"


def test_labels_are_told_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, ours()) for name in ("a.json", "b.json")]
    other = tmp_path / "folder"
    other.mkdir()
    paths.append(write(other / "b.json", ours()))
    labels = [found.label for found in load(paths).results]
    assert labels[0] == "soft: (a.json)"
    assert len(set(labels)) == 3


def test_what_went_wrong_is_kept(tmp_path: Path) -> None:
    made = to_fio(result(unfinished=3, interrupted=True, errors=[UdrvError("the cable is out")]))
    (found,) = load([write(tmp_path / "a.json", made)]).results
    assert [warning.split()[0] for warning in found.warnings] == ["3", "interrupted:", "the"]


# --- what is not -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a document."""
    inner = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())
    return [path, *(p for key, v in inner for p in places(v, (*path, key)))]


DOCUMENTS = {
    "udrv": lambda: ours(),
    "fio": lambda: json.loads(fio("json+")),
}


@pytest.mark.parametrize("program", DOCUMENTS)
@given(data=st.data())
def test_a_damaged_document_is_read_or_refused_by_name(program: str, data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENTS[program]())
    paths = places(document)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(paths[1:]))
        inner = document
        for key in way:
            try:
                inner = inner[key]
            except (KeyError, IndexError, TypeError):
                break
        else:
            try:
                if data.draw(st.booleans()):
                    inner[last] = data.draw(JSON)
                else:
                    del inner[last]
            except (KeyError, IndexError, TypeError):
                pass  # an earlier damage took it
    try:
        found = from_document(Place(document, "x.json"))
    except ResultFileError as error:
        assert str(error).startswith("x.json: ")
        assert error.mend
    else:
        for one in found:
            for direction in one.directions.values():
                assert direction.ios > 0
                assert all(low <= high for low, high, _ in direction.buckets)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "no JSON"),
    (b"\xff\xfe\x00", "no JSON"),
    (b"[1, 2]", "no JSON"),
    (b"{", "no JSON"),
    (b'{"a":' * 100_000, "no JSON"),
    (b"{}", "neither udrv-bench's nor fio's"),
    (b'{"fio version": "fio-3.33", "jobs": []}', "has no job"),
    (b'{"fio version": "fio-3.33", "jobs": {}}', "jobs is no array"),
    (b'{"fio version": "fio-3.33", "jobs": [7]}', r"jobs\[0\] is no object"),
    (b'{"fio version": "fio-2.1", "jobs": [{"jobname": "a", "read": {"total_ios": 1}}]}',
     r"jobs\[0\].read has no 'lat_ns'"),
    (b'{"udrv version": "1", "jobs": [{}]}', "has no 'udrv'"),
    (b'{"udrv version": "1", "compare": {"figure": "clat", "cases": 3}}',
     "compare.cases is no array"),
])  # fmt: skip
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ResultFileError, match=complaint) as error:
        load([path])
    assert str(path) in str(error.value)


@pytest.mark.parametrize("value", [True, -1, 1e400, float("nan"), "5", 1 << 70, 1.5, []])
def test_a_count_is_a_count(value: object) -> None:
    document = ours()
    document["jobs"][0]["read"]["total_ios"] = value
    with pytest.raises(ResultFileError, match=r"jobs\[0\].read.total_ios is no"):
        from_document(Place(document, "x.json"))


def test_a_bin_is_a_time() -> None:
    document = ours()
    document["jobs"][0]["read"]["clat_ns"]["bins"] = {"soon": 3}
    with pytest.raises(ResultFileError, match="has a key 'soon'"):
        from_document(Place(document, "x.json"))


# --- distributions -----------------------------------------------------------------------------


@given(st.integers(0, 1 << 50))
def test_fios_buckets_hold_their_value(value: int) -> None:
    low, high, count = fio_bucket(value, 3)
    assert low <= value <= high
    assert high - low <= low / 64
    assert count == 3


def of(*values: int) -> Distribution:
    found = latency(*values)
    return Distribution(
        found.count, 100.0, 4096.0, 0, found.min, found.max, found.mean, found.stddev,
        dict(found.percentiles), found.buckets,
    )


@given(st.lists(st.lists(st.integers(0, 1 << 41), max_size=20), min_size=1, max_size=4))
def test_runs_taken_together_are_one_run_of_all_their_ios(runs: list[list[int]]) -> None:
    whole, merged = of(*[v for run in runs for v in run]), merge(of(*run) for run in runs)
    assert (merged.ios, merged.min, merged.max) == (whole.ios, whole.min, whole.max)
    assert merged.buckets == whole.buckets
    if whole.ios:
        assert merged.percentiles == whole.percentiles
        assert merged.mean == pytest.approx(whole.mean)
        assert merged.stddev == pytest.approx(whole.stddev, rel=1e-6, abs=whole.max * 1e-6)


def test_our_bucket_is_known_by_its_highest_value() -> None:
    for index in (0, 255, 256, 1000, lib.UDRV_HIST_BUCKETS - 1):
        low, high = lib.udrv_hist_bucket_low(index), lib.udrv_hist_bucket_high(index)
        assert udrv_bucket(high, 9) == (low, high, 9)
