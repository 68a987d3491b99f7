# SPDX-License-Identifier: Apache-2.0
"""Comparisons: the schedule, the statistics, fio's job, and what is said about all of them."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench_results import latency, result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from udrv.bench import BenchConfig, compare_out, fio, nodes, to_fio
from udrv.bench.compare import Case, Compared, Interrupted, compare, compare_cases, make_cases
from udrv.bench.load import from_document, load
from udrv.bench.measured import Distribution, Measured, figures_of
from udrv.bench.place import Place
from udrv.bench.ratios import METHOD, ratio_of, ratios_of, student
from udrv.errors import (
    DeviceGoneError,
    DeviceNotFoundError,
    InvalidRequestError,
    MissingToolError,
    ResultFileError,
    ToolFailedError,
)

FIGURES = ("iops", "cpu_ns_per_io", "p50_ns", "p99_ns", "p999_ns")


def measured(label: str, iops: float, *values: int, cpu: float | None = 500.0) -> Measured:
    found = latency(*values)
    distribution = Distribution(
        found.count, iops, 4096 * iops, 0, found.min, found.max, found.mean, found.stddev,
        dict(found.percentiles), found.buckets,
    )
    return Measured(
        label, "udrv-0", label, "clat", {"rw": "randread"}, {"transport": "none"},
        {"read": distribution} if values else {}, cpu,
    )


def cases(rates: dict[str, list[float]], log: list[str] | None = None) -> tuple[Case, ...]:
    """Cases that give these IOPS, one a call, the first as their warm-up."""
    made = []
    for label, values in rates.items():
        left = iter(values)

        def measure(config: BenchConfig, label: str = label, left: Any = left) -> Measured:
            if log is not None:
                log.append(f"{label} {config.runtime}")
            return measured(label, next(left), *range(1000, 4000))

        made.append(Case(label, False, measure))
    return tuple(made)


# --- the schedule ------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (1, 1, 2):
        log: list[str] = []
        made = cases({name: [1.0] * 9 for name in "abc"}, log)
        found = compare_cases(made, BenchConfig(runtime=2.0, seed=seed), rounds=8)
        assert [len(case.runs) for case in found.cases] == [8, 8, 8]
        assert log[:3] == ["a 0.5", "b 0.5", "c 0.5"], "the warm-up is short, and not counted"
        groups = [tuple(log[i : i + 3]) for i in range(3, len(log), 3)]
        assert all(sorted(group) == ["a 2.0", "b 2.0", "c 2.0"] for group in groups)
        orders.append(groups)
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) > 1, "not the same order every time"


def test_only_complete_rounds_count_when_the_user_ends_it() -> None:
    for how in (Interrupted, KeyboardInterrupt, DeviceGoneError):
        runs = 0

        def measure(config: BenchConfig, how: type[BaseException] = how) -> Measured:
            nonlocal runs
            runs += 1
            if runs == 8:  # 2 warm-ups, 2 rounds of 2, one run of the third
                try:
                    raise KeyboardInterrupt
                finally:  # the teardown of what was half done fails
                    raise how("half done")
            return measured("x", 1.0, 1000)

        pair = (Case("a", False, measure), Case("b", False, measure))
        found = compare_cases(pair, BenchConfig(), rounds=5)
        assert found.interrupted
        assert [len(case.runs) for case in found.cases] == [2, 2]
        assert "complete rounds until then: 2" in found.warnings[0]


def test_an_error_ends_the_comparison() -> None:
    with pytest.raises(StopIteration):
        compare_cases(cases({"a": [1.0] * 3, "b": [1.0] * 2}), BenchConfig(), rounds=2)


# --- the statistics ----------------------------------------------------------------------------


def test_ratios_are_of_the_same_round() -> None:
    # a drift that doubles everything in each round does not widen the interval
    made = cases({"a": [1.0, 10, 20, 40, 80, 160], "b": [1.0, 11, 22.1, 43.9, 88, 176]})
    found = compare_cases(made, BenchConfig(), rounds=5)
    iops = next(ratio for ratio in found.ratios if ratio.figure == "iops")
    assert iops.ratio == pytest.approx(1.1, rel=2e-3)
    assert iops.low is not None
    assert iops.high is not None
    assert 1.09 < iops.low < iops.ratio < iops.high < 1.11
    assert iops.differs


def test_an_interval_is_students() -> None:
    """Against the textbook: mean and standard deviation of the logarithms, t of 4 degrees."""
    first, own = [1.0] * 5, [math.exp(x) for x in (0.1, 0.2, 0.3, 0.4, 0.5)]
    found = ratio_of("b", "iops", first, own)
    assert found is not None
    half = 2.776 * math.sqrt(0.025) / math.sqrt(5)
    assert found.ratio == pytest.approx(math.exp(0.3))
    assert found.low == pytest.approx(math.exp(0.3 - half))
    assert found.high == pytest.approx(math.exp(0.3 + half))
    assert (student(1), student(30), student(1000)) == (12.706, 2.042, 2.042)


@pytest.mark.parametrize("rounds", [3, 5, 12])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(rounds: int) -> None:
    random_ = random.Random(rounds)
    hits, trials = 0, 3000
    for _ in range(trials):
        first = [random_.lognormvariate(5, 0.2) for _ in range(rounds)]
        own = [a * random_.lognormvariate(math.log(1.3), 0.1) for a in first]
        found = ratio_of("b", "iops", first, own)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.3 <= found.high
    assert 0.93 < hits / trials < 0.97


def test_one_round_has_no_interval_and_no_difference() -> None:
    found = ratio_of("b", "iops", [1.0], [9.0])
    assert found is not None
    assert (found.low, found.high, found.differs) == (None, None, False)
    assert ratio_of("b", "iops", [], []) is None


def test_a_bucket_apart_is_no_difference() -> None:
    rounds = {"a": [{"p50_ns": 12800.0}] * 6, "b": [{"p50_ns": 12860.0}] * 6}
    (ours,) = ratios_of(rounds, {"a": False, "b": False})
    assert not ours.differs, "0.5 %: less than a bucket"
    rounds["b"] = [{"p50_ns": 12960.0}] * 6
    (ours,) = ratios_of(rounds, {"a": False, "b": False})
    assert ours.differs, "1.25 %"
    (fios,) = ratios_of(rounds, {"a": False, "b": True})
    assert not fios.differs, "fio's buckets are twice as wide"


@given(st.lists(st.tuples(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9)), min_size=2, max_size=12))
def test_the_ratio_lies_in_its_interval_and_turns_round(pairs: list[tuple[float, float]]) -> None:
    there = ratio_of("b", "iops", [a for a, _ in pairs], [b for _, b in pairs])
    back = ratio_of("b", "iops", [b for _, b in pairs], [a for a, _ in pairs])
    assert there is not None
    assert back is not None
    assert there.low is not None
    assert there.high is not None
    assert back.high is not None
    assert there.low <= there.ratio * (1 + 1e-9)
    assert there.ratio <= there.high * (1 + 1e-9)
    assert there.low * back.high == pytest.approx(1, rel=1e-6)


def test_percentiles_that_need_more_ios_are_left_out() -> None:
    assert set(figures_of(measured("x", 1.0, *range(1, 100)))) == {
        "iops", "cpu_ns_per_io", "p50_ns"}  # fmt: skip
    assert set(figures_of(measured("x", 1.0, *range(1, 1001)))) == set(FIGURES)
    assert figures_of(measured("x", 1.0)) == {}


def test_percentiles_of_a_mix_are_of_all_its_ios() -> None:
    one = measured("x", 10.0, *[1000] * 700)
    one.directions["write"] = measured("x", 5.0, *[5000] * 600).directions["read"]
    found = figures_of(one)
    assert found["iops"] == 15.0
    assert 1000 <= found["p50_ns"] < 1010
    assert 5000 <= found["p99_ns"] < 5050
    assert "p999_ns" in found, "together they are enough"


# --- what is said ------------------------------------------------------------------------------


def compared(rounds: int = 6, **rates: list[float]) -> Compared:
    made = cases(rates or {"a": [1.0, *[10.0] * rounds], "b": [1.0, *[12.0, 12.5] * rounds]})
    return compare_cases(made, BenchConfig(), rounds=rounds)


def text_of(found: Compared) -> str:
    out = io.StringIO()
    compare_out.print_comparison(found, Console(file=out, width=200, markup=False))
    return out.getvalue()


def test_the_table_has_method_interval_and_what_is_left_out() -> None:
    text = " ".join(text_of(compared()).split())
    assert METHOD in text
    for words in ("6 interleaved rounds", "1.225", "~ 1.000", "Not in it: interrupt handlers",
                  "4 of 5 ratios show no difference"):  # fmt: skip
        assert words in text


def test_few_rounds_and_a_busy_machine_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.5, 0.0, 0.0))
    text = text_of(compared(rounds=3))
    assert "*** few rounds (3)" in text
    assert "*** the load average was 99.5" in text
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    quiet = text_of(compared(rounds=5))
    assert "few rounds" not in quiet
    assert "load average" not in quiet


def test_control_characters_of_a_label_do_not_reach_the_terminal() -> None:
    assert "\x1b[31m" not in text_of(compared(rounds=2, **{"a\x1b[31m": [1.0] * 3, "b": [2.0] * 3}))


def test_the_json_is_what_a_report_reads(tmp_path: Path) -> None:
    found = compared()
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(compare_out.to_json(found)))
    loaded = load([path])
    (comparison,) = loaded.comparisons
    assert comparison.cases == ("a", "b")
    assert comparison.ratios == found.ratios
    assert comparison.rounds == {case.label: tuple(case.rounds) for case in found.cases}
    assert comparison.warnings == found.warnings
    assert [one.label for one in loaded.results] == ["a", "b"]
    read = loaded.results[0].directions["read"]
    assert read.ios == 6 * 3000
    assert read.buckets == tuple(
        (low, high, 6 * n) for low, high, n in latency(*range(1000, 4000)).buckets
    )


@given(data=st.data())
def test_a_damaged_comparison_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    document = json.loads(json.dumps(compare_out.to_json(compared(rounds=2))))
    compare_ = document["compare"]
    key = data.draw(st.sampled_from(sorted(compare_)))
    value = data.draw(st.sampled_from([None, 7, "x", [], {}, [7], [{}], [[]], {"a": {}}, True]))
    compare_[key] = value
    path = tmp_path_factory.mktemp("damaged") / "x.json"
    path.write_text(json.dumps(document))
    try:
        load([path])
    except ResultFileError as error:
        assert str(path) in str(error)


# --- fio ---------------------------------------------------------------------------------------


def test_fios_job_is_ours() -> None:
    config = BenchConfig(
        rw="randrw", rwmixread=70, bs=8192, iodepth=16, numjobs=2, runtime=1.5, size=1 << 30,
        offset=4096, seed=9, rate_iops=1000.0, rate_process="poisson",
    )
    words = fio.fio_words(config, "/dev/ng0n1", ["--ioengine=io_uring_cmd", "--cmd_type=nvme"])
    for word in ("--rw=randrw", "--rwmixread=70", "--bs=8192", "--iodepth=16", "--numjobs=2",
                 "--group_reporting", "--norandommap", "--randseed=9",
                 "--time_based", "--runtime=1500000us", f"--size={1 << 30}", "--offset=4096",
                 "--rate_iops=700,300", "--rate_process=poisson", "--cmd_type=nvme"):  # fmt: skip
        assert word in words
    assert any(word.endswith(":99.9:99.95:99.99:99.999") for word in words)
    counted = fio.fio_words(BenchConfig(number_ios=5), "/dev/a:b", [])
    assert "--number_ios=5" in counted
    assert "--time_based" not in counted
    assert "--filename=/dev/a\\:b" in counted, "a colon separates files"


def test_fio_runs_our_job_on_a_file(tmp_path: Path) -> None:
    if shutil.which("fio") is None:
        pytest.fail("fio is not installed: make system")
    path = tmp_path / "disk:1"
    path.write_bytes(bytes(1 << 20))
    config = BenchConfig(rw="randread", bs=8192, iodepth=4, numjobs=2, runtime=0.3, seed=3)
    found = fio.run_fio(config, str(path), ["--ioengine=psync"])
    assert found.program.startswith("fio-")
    read = found.directions["read"]
    assert read.ios > 0
    assert read.bandwidth == pytest.approx(read.iops * 8192, rel=0.02)
    assert 99.999 in read.percentiles, "the percentiles are ours"
    assert sum(count for *_, count in read.buckets) == read.ios
    assert found.job["bs"] == "8 KiB"
    assert set(figures_of(found)) >= {"iops", "cpu_ns_per_io", "p50_ns", "p99_ns"}


def test_what_fio_says_when_it_fails_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ToolFailedError, match=r"status \d+: .*no_such_engine.*the command was"):
        fio.run_fio(BenchConfig(runtime=0.1), str(tmp_path / "x"), ["--ioengine=no_such_engine"])


def test_a_fio_that_prints_garbage_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fio"
    fake.write_text("#!/bin/sh\nfor w; do case $w in --output=*) echo '{1' >${w#*=};; esac; done\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ToolFailedError, match="no JSON"):
        fio.run_fio(BenchConfig(runtime=0.1), str(tmp_path / "x"), ["--ioengine=null"])


def test_no_fio_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingToolError, match="apt-get install fio"):
        make_cases(["/dev/ng0n1"], with_fio=True)


def test_a_node_is_one_that_fio_can_use(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError, match="udrv list"):
        fio.engine_of(str(tmp_path / "ng0n1"))
    with pytest.raises(InvalidRequestError, match="/dev/ng0n1 or /dev/nvme0n1"):
        fio.engine_of("/dev/null")
    assert nodes.node_serial("/dev/null") is None
    assert nodes.node_serial("/nonexistent") is None
    assert nodes.identity_of("/dev/null") is None
    with pytest.raises(DeviceNotFoundError, match="namespace 7 of the drive with serial S did not"):
        nodes.find(nodes.Identity("S", 7, "ng[0-9]*"), device="/dev/ng0n7", seconds=0)


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(("targets", "with_fio", "complaint"), [
    (["soft:"], False, "comparing one target"),
    ([], True, "comparing one target"),
    (["soft:", "pci:0000:01:00.0"], True, "none is among the targets.*--bind"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_a_mend(
    targets: list[str], with_fio: bool, complaint: str
) -> None:
    with pytest.raises(InvalidRequestError, match=complaint) as error:
        compare(targets, BenchConfig(), with_fio=with_fio)
    assert error.value.mend


def test_more_that_is_refused() -> None:
    pair = ["soft:", "soft:"]
    with pytest.raises(InvalidRequestError, match="verify"):
        compare(pair, BenchConfig(verify=True))
    with pytest.raises(InvalidRequestError, match="0 rounds"):
        compare(pair, BenchConfig(), rounds=0)


def test_cases_have_labels_of_their_own() -> None:
    made = make_cases(["soft:", "soft:", "/dev/ng0n1", "/dev/ng0n1?iopoll=1"], with_fio=True)
    labels = [case.label for case in made]
    assert labels[:4] == ["soft:", "soft: #2", "/dev/ng0n1", "/dev/ng0n1?iopoll=1"]
    assert [case.fio for case in made] == [False] * 4 + [True] * 2
    assert labels[4].endswith(" /dev/ng0n1")
    assert len(make_cases(["/dev/ng0n1"] * 2, with_fio=True)) == 3, "fio once for a target"


def test_an_open_loop_is_compared_from_the_intended_start_unless_fio_takes_part() -> None:
    made = to_fio(result())
    made["udrv"]["open_loop"] = {"saturated": False}
    made["jobs"][0]["read"]["lat_ns"]["max"] = 777_777
    assert from_document(Place(made, "x"))[0].directions["read"].max == 777_777
    (found,) = from_document(Place(made, "x"), figure="clat")
    assert found.directions["read"].max == 100_000
    assert found.figure == "clat"


