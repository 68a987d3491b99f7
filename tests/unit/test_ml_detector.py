# SPDX-License-Identifier: Apache-2.0
"""The protocol: plug-ins, state, configuration, and detectors that misbehave."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_data import make_cluster
from typer.testing import CliRunner

from udrv.cli.main import app
from udrv.errors import DetectorError
from udrv.ml import Detector, Verdict, WindowBatch, registry
from udrv.ml.cusum import Cusum, CusumConfig
from udrv.ml.evaluate import run_cluster
from udrv.ml.evidence import Evidence, EvidenceConfig
from udrv.ml.iaso import Iaso
from udrv.ml.kratos import Kratos, KratosConfig
from udrv.ml.metrics import auc, mcc, poisson_upper
from udrv.ml.peers import PeerMean, PeerMedian, PeerP25, log_ratio, row_quantile
from udrv.ml.perseus import Perseus, PerseusConfig
from udrv.ml.public import Cluster, load_cluster
from udrv.ml.threshold import tail_log10_p, tail_threshold

ALL = [
    Evidence, PeerMean, PeerMedian, PeerP25, Iaso,
    lambda: Cusum(CusumConfig(reference=2, limit=0.5)),
    lambda: Perseus(PerseusConfig(day_steps=120, event_steps=10, threshold=1)),
    lambda: Kratos(KratosConfig(day_steps=90, threshold=1)),
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    folder = tmp_path_factory.mktemp("one")
    return load_cluster(make_cluster(folder, hosts=6, disks=12, slow={"3/2": 2.6}))


def batch(mean_ns: Any, **more: Any) -> WindowBatch:
    """A tick from a (steps, devices) array; NaN: no row."""
    values = np.asarray(mean_ns, np.float32)
    step, device = np.nonzero(~np.isnan(values))
    given: dict[str, Any] = {
        "group": "g", "start_ns": 0, "end_ns": 10**9, "step": step, "device": device,
        "devices": [f"d{at}" for at in range(values.shape[1])], "steps": len(values),
        "columns": {
            "mean_ns": values[step, device], "bytes_per_s": np.full(len(step), 1e6, np.float32)
        },
    }  # fmt: skip
    return WindowBatch(**(given | more))


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_restored_detector_answers_as_the_one_that_was_saved(
    kind: Callable[[], Detector], cluster: Cluster
) -> None:
    ticks = list(cluster.ticks(60))
    one, other = kind(), kind()

    def go(detector: Detector, part: Sequence[Any]) -> list[str]:
        lines = []
        for _, end_ns, batches in part:
            for each in batches:
                lines += [verdict.json() for verdict in detector.on_tick(each)]
            lines += [verdict.json() for verdict in detector.on_period(end_ns)]
        return lines

    go(one, ticks[:4])
    saved = {
        name: np.array(value) if isinstance(value, np.ndarray) else value
        for name, value in one.state().items()
    }
    after = go(one, ticks[4:])
    other.restore(saved)
    assert go(other, ticks[4:]) == after
    assert after, "the slow drive was never told"
    assert one.scores() == other.scores()


@pytest.mark.parametrize("kind", ALL)
def test_a_run_is_the_same_twice_byte_for_byte(
    kind: Callable[[], Detector], cluster: Cluster
) -> None:
    logs: list[list[str]] = [[], []]
    for log in logs:
        run_cluster(kind, cluster, on_verdict=lambda one, log=log: log.append(one.json()))
    assert logs[0] == logs[1]


def test_configurations_have_hashes_of_their_own() -> None:
    same = Evidence(EvidenceConfig()).config_hash()
    assert Evidence().config_hash() == same
    assert Evidence(EvidenceConfig(target=1e-5)).config_hash() != same
    assert PeerMean().config_hash() != PeerMedian().config_hash()


# --- what one detector is told -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_windows_without_rows_and_groups_of_one_are_no_evidence(
    kind: Callable[[], Detector],
) -> None:
    detector = kind()
    for values in (np.full((6, 4), np.nan), np.full((6, 1), 1e9), [[1e5, np.nan, np.nan]]):
        assert not list(detector.on_tick(batch(values, group=f"g{np.shape(values)}")))
        assert not list(detector.on_period(10**9))


def test_evidence_takes_a_group_whose_drives_change() -> None:
    rng = np.random.default_rng(0)
    detector = Evidence()
    for tick in range(12):
        names = [f"h/{at}" for at in range(6)] + (["h/new"] if tick > 3 else [])
        values = rng.lognormal(11, 0.05, (60, len(names)))
        if tick > 3:
            values[:, -1] *= 2
        said = [*detector.on_tick(batch(values, devices=names)), *detector.on_period(tick + 1)]
    assert [verdict.device for verdict in said] == ["h/new"]


def test_an_intermittent_spike_is_no_slow_drive() -> None:
    rng = np.random.default_rng(0)
    detector = Evidence()
    for tick in range(12):
        values = rng.lognormal(11, 0.05, (60, 6))
        values[5, 2] *= 1000
        said = [*detector.on_tick(batch(values)), *detector.on_period(tick + 1)]
    assert not said


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)),
               elements=st.floats(1, 2**20, width=32) | st.just(np.float32(np.nan))),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)  # fmt: skip
def test_row_quantiles_are_numpys(values: Any, share: float) -> None:
    with np.errstate(all="ignore"), pytest.warns() if np.isnan(values).all(1).any() else no():
        expected = np.nanquantile(values.astype(np.float64), share, axis=1)
    np.testing.assert_allclose(row_quantile(values, share), expected, rtol=1e-5)


class no:  # noqa: N801 - contextlib.nullcontext under a shorter name
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)),
               elements=st.floats(1, 1000)),
    st.floats(0.01, 100),
)  # fmt: skip
def test_what_the_host_does_to_all_its_drives_cancels(values: Any, factor: float) -> None:
    one = log_ratio(values.astype(np.float32))
    other = log_ratio((values * factor).astype(np.float32))
    np.testing.assert_allclose(one, other, atol=2e-5)


# --- batches that are none -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"end_ns": -5}, "clock stepped"),
        ({"columns": {"mean_ns": np.ones(3)}}, "column mean_ns has 3 rows"),
        ({"columns": {"latency": np.ones(12)}}, "no such column: latency"),
        ({"device": np.full(12, 7)}, "column device is not within 0 to 3"),
        ({"step": np.full(12, -1)}, "column step"),
        ({"dense": True, "devices": ["a"]}, "12 rows are not 3 steps of 1 devices"),
    ],
)
def test_a_batch_that_is_none_is_named(change: dict[str, Any], words: str) -> None:
    good = batch(np.ones((3, 4)))
    good.check()
    with pytest.raises(DetectorError, match=words):
        batch(np.ones((3, 4)), **change).check()


def test_a_missing_column_is_an_error_and_never_zero() -> None:
    with pytest.raises(DetectorError, match="no column mean_ns, nor count and sum_ns"):
        Evidence().on_tick(batch(np.ones((1, 2)), columns={"bytes_per_s": np.ones(2)}))


# --- detectors that misbehave --------------------------------------------------------------------


class Raises(Detector):
    name, version = "raises", "1"

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        raise ZeroDivisionError("oh")


class Nonsense(Detector):
    name, version = "nonsense", "1"

    def on_tick(self, batch: WindowBatch) -> Any:
        return ["slow"]


class Nothing(Detector):
    name, version = "nothing", "1"

    def on_tick(self, batch: WindowBatch) -> Any:
        return None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Raises, "detector raises: it raised ZeroDivisionError: oh"),
        (Nonsense, "detector nonsense: it returned str, not verdicts"),
        (Nothing, "detector nothing: it raised TypeError"),
    ],
)
def test_a_detector_that_raises_or_returns_nonsense_is_named(
    kind: Callable[[], Detector], words: str, cluster: Cluster
) -> None:
    with pytest.raises(DetectorError, match=words):
        run_cluster(kind, cluster)


# --- plug-ins ------------------------------------------------------------------------------------


def plug_in(path: Path, package: str, name: str, target: str) -> None:
    """An installed package with one entry point."""
    info = path / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[udrv.detectors]\n{name} = {target}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_detector.py").write_text(
        "from udrv.ml import Detector\n"
        "class Mine(Detector):\n"
        "    name, version = 'mine', '7'\n"
        "    def on_tick(self, batch): return ()\n"
        "class Nameless(Detector):\n"
        "    def on_tick(self, batch): return ()\n"
        "number = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def listed() -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["detectors", "--json"])
    assert done.exit_code == 0, done.output
    return {one["name"]: one for one in json.loads(done.stdout)}


def test_a_plug_in_is_listed_with_origin_and_version_and_made(site: Path) -> None:
    plug_in(site, "mine", "mine", "mine_detector:Mine")
    assert listed()["mine"] == {
        "name": "mine", "default": False, "origin": "mine", "version": "7", "problem": None,
    }  # fmt: skip
    assert registry.find("mine")().name == "mine"


def test_of_two_of_one_name_neither_is_used(site: Path) -> None:
    plug_in(site, "mine", "mine", "mine_detector:Mine")
    plug_in(site, "other", "mine", "mine_detector:Nameless")
    assert listed()["mine"]["problem"] == "two packages have one of this name"
    with pytest.raises(DetectorError, match="two packages have one of this name"):
        registry.find("mine")


def test_a_plug_in_does_not_take_the_name_of_ours(site: Path) -> None:
    plug_in(site, "mine", "evidence", "mine_detector:Mine")
    assert listed()["evidence (mine)"]["problem"] == "the name is that of a built-in detector"
    assert registry.find("evidence") is Evidence


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mine_detector:number", "no subclass of udrv.ml.Detector"),
        ("mine_detector:Nameless", "has no name"),
        ("mine_detector:Missing", "importing mine_detector:Missing failed: AttributeError"),
        ("no_such_module:Mine", "importing no_such_module:Mine failed: ModuleNotFoundError"),
    ],
)
def test_a_broken_plug_in_is_listed_with_its_problem(site: Path, target: str, words: str) -> None:
    plug_in(site, "mine", "mine", target)
    assert words in listed()["mine"]["problem"]
    with pytest.raises(DetectorError, match=words):
        registry.find("mine")
    assert registry.find("default") is Evidence


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(DetectorError, match="there are cusum, evidence, iaso"):
        registry.find("clairvoyant")
    assert metadata.entry_points(group="udrv.detectors") is not None


# --- figures -------------------------------------------------------------------------------------


def test_figures_of_known_counts() -> None:
    assert mcc(np.array([5.0, 0, 0, 5])) == 1.0
    assert mcc(np.array([0.0, 5, 5, 0])) == -1.0
    assert mcc(np.array([0.0, 0, 5, 5])) == 0.0
    assert poisson_upper(0) == pytest.approx(2.9957, abs=1e-3)
    assert poisson_upper(3) == pytest.approx(7.7537, abs=1e-3)
    assert auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0.875


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(0.1, 100), st.floats(-5, 5))
def test_the_rule_moves_with_scale_and_place(seed: int, scale: float, place: float) -> None:
    scores = np.random.default_rng(seed).normal(size=500)
    cut = tail_threshold(scores)
    assert tail_threshold(scores * scale + place) == pytest.approx(cut * scale + place)
    middle, shoulder = np.quantile(scores, [0.5, 0.9])
    assert tail_log10_p(np.array([cut]), middle, shoulder)[0] == pytest.approx(-4)


def test_few_slow_drives_do_not_move_the_rule_much() -> None:
    scores = np.random.default_rng(3).normal(size=1000)
    spoilt = np.concatenate([scores, np.full(30, 1e6)])
    assert tail_threshold(spoilt) < 1.25 * tail_threshold(scores)
