# SPDX-License-Identifier: Apache-2.0
"""`udrv evaluate`: a detector on labelled data, by horizon.

A drive counts as flagged at a horizon if the detector holds a verdict on it in the tick that ends
the horizon: what it would answer to whoever asks then. An alarm that was raised and taken back in
between still counts as a false alarm. Labels are looked at after the detector has run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from udrv.errors import DetectorError
from udrv.ml import metrics
from udrv.ml.detector import Detector
from udrv.ml.public import Cluster, cluster_files, load_cluster, load_labels
from udrv.ml.registry import find
from udrv.ml.verdict import Verdict

#: Horizons in seconds of data; None: all there is.
HORIZONS: Final = (900, 3600, 10800, 21600, 54000, None)
#: A detector is called every 15 minutes of data.
TICK_S: Final = 900
_BOOTSTRAP: Final = 1000
_T = TypeVar("_T")


@dataclass
class Look:
    """What a detector said at a horizon. `raised`: verdicts so far as (device, first_ns)."""

    horizon_s: int | None
    data_s: float
    held: frozenset[str]
    scores: dict[str, float]
    raised: frozenset[tuple[str, int]]


@dataclass
class Run:
    """A detector's way through one cluster; `seconds` is CPU time in the detector."""

    detector: str
    cluster: str
    devices: list[str]
    slow: frozenset[str]
    rows: int
    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    verdicts: int = 0


def run_cluster(
    make: Callable[[], Detector], cluster: Cluster,
    horizons: Sequence[int | None] = HORIZONS, *,
    on_verdict: Callable[[Verdict], None] | None = None,
) -> Run:  # fmt: skip
    """Let a new detector see a cluster in ticks of 15 minutes.

    Raises `DetectorError` if the detector raises, or returns what is no verdict.
    """
    detector = make()
    steps = max(TICK_S // cluster.step_s, 1)
    out = Run(detector.name, cluster.name, cluster.devices(), cluster.slow, cluster.rows)
    ends: dict[int, list[int | None]] = {}
    for horizon in horizons:
        ends.setdefault(cluster.steps_in(horizon), []).append(horizon)
    raised: set[tuple[str, int]] = set()
    for so_far, end_ns, batches in cluster.ticks(steps):
        began = time.thread_time()
        said: list[Verdict] = []
        for batch in batches:
            said.extend(checked(detector, detector.on_tick, batch))
        said.extend(checked(detector, detector.on_period, end_ns))
        out.seconds += time.thread_time() - began
        out.verdicts += len(said)
        raised.update((verdict.device, verdict.first_ns) for verdict in said)
        if on_verdict is not None:
            for verdict in said:
                on_verdict(verdict)
        for horizon in ends.get(so_far, ()):
            out.looks.append(Look(
                horizon, so_far * float(cluster.step_s),
                frozenset(verdict.device for verdict in said), dict(detector.scores()),
                frozenset(raised),
            ))  # fmt: skip
    out.looks.sort(key=lambda look: horizons.index(look.horizon_s))
    return out


def checked(
    detector: Detector, call: Callable[[_T], Iterable[Verdict]], what: _T
) -> list[Verdict]:
    """What `call(what)` returns. Raises `DetectorError` if it raises, or returns no verdicts."""
    try:
        said = list(call(what))
    except DetectorError:
        raise
    except Exception as error:
        raise DetectorError(
            f"it raised {type(error).__name__}: {error}", device=f"detector {detector.name}"
        ) from error
    for one in said:
        if not isinstance(one, Verdict):
            raise DetectorError(
                f"it returned {type(one).__name__}, not verdicts",
                device=f"detector {detector.name}",
            )
    return said


def rescored(run: Run, name: str, threshold: Mapping[int | None, float]) -> Run:
    """The same run as if the detector flagged every score above a threshold, by horizon."""
    looks = []
    for look in run.looks:
        cut = threshold[look.horizon_s]
        held = frozenset(one for one, score in look.scores.items() if score > cut)
        looks.append(Look(
            look.horizon_s, look.data_s, held, look.scores, frozenset((one, 0) for one in held)
        ))  # fmt: skip
    return Run(name, run.cluster, run.devices, run.slow, run.rows, looks, run.seconds)


# --- a folder ------------------------------------------------------------------------------------


def evaluate_folder(
    folder: str | Path, detectors: Sequence[str], *, with_plateau: bool = False
) -> dict[str, Any]:
    """Score detectors on each cluster of a folder, in as many processes as there are CPUs.

    Returns `rows` and `clusters` (what was read and dropped). Raises `DataSetError` and
    `DetectorError`.
    """
    names = [find(name).name for name in detectors]
    paths = sorted(cluster_files(folder), key=lambda path: -path.stat().st_size)
    labels = load_labels(folder)
    jobs = [(path, labels, names) for path in paths]
    workers = min(len(jobs), os.cpu_count() or 1)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            done = list(pool.map(_one_cluster, jobs))
    else:
        done = [_one_cluster(job) for job in jobs]
    done.sort(key=lambda one: str(one[0]["name"]))
    runs = [run for _, some in done for run in some]
    if with_plateau:
        for name in names:
            of_one = [run for run in runs if run.detector == name]
            if of_one[0].looks[0].scores:
                runs.extend(plateau(of_one))
    return {
        "rows": rows(runs),
        "clusters": {about.pop("name"): about for about, _ in done},
    }


def _one_cluster(
    job: tuple[Path, dict[str, set[tuple[int, int]]], list[str]],
) -> tuple[dict[str, Any], list[Run]]:
    path, labels, names = job
    cluster = load_cluster(path, labels)
    about = {
        "name": cluster.name, "rows": cluster.rows, "drives": len(cluster.devices()),
        "slow": len(cluster.slow), "labels_without_data": cluster.labels_without_data,
        "data_s": len(cluster.times_s) * cluster.step_s, "dropped": cluster.dropped,
    }  # fmt: skip
    return about, [run_cluster(find(name), cluster) for name in names]


# --- figures -------------------------------------------------------------------------------------


def rows(runs: Sequence[Run], *, seed: int = 0) -> list[dict[str, Any]]:
    """A row per detector, cluster (and "all") and horizon."""
    out = []
    for detector in dict.fromkeys(run.detector for run in runs):
        mine = [run for run in runs if run.detector == detector]
        for at, look in enumerate(mine[0].looks):
            parts = [(run, run.looks[at]) for run in mine]
            cells = [_cell(run, one) for run, one in parts]
            for (run, _), cell in zip(parts, cells, strict=True):
                out.append(_row(detector, run.cluster, look.horizon_s, [cell], seed))
            out.append(_row(detector, "all", look.horizon_s, cells, seed))
    return out


@dataclass
class _Cell:
    groups: metrics.Counts
    false_alarms: int
    healthy_days: float
    rows: int
    seconds: float


def _cell(run: Run, look: Look) -> _Cell:
    """Counts of tp, fp, fn, tn per group."""
    at: dict[str, int] = {}
    counts = np.zeros((len({device.rpartition("/")[0] for device in run.devices}), 4))
    for device in run.devices:
        group = at.setdefault(device.rpartition("/")[0], len(at))
        flagged, slow = device in look.held, device in run.slow
        counts[group, (0 if slow else 1) if flagged else (2 if slow else 3)] += 1
    healthy = len(run.devices) - len(run.slow)
    return _Cell(
        counts, sum(device not in run.slow for device, _ in look.raised),
        healthy * look.data_s / 86400, run.rows, run.seconds,
    )  # fmt: skip


def _row(
    detector: str, cluster: str, horizon: int | None, cells: Sequence[_Cell], seed: int
) -> dict[str, Any]:
    total = sum((cell.groups.sum(axis=0) for cell in cells), np.zeros(4))
    drawn = sum(
        (metrics.resampled(cell.groups, times=_BOOTSTRAP, seed=seed + at)
         for at, cell in enumerate(cells)), np.zeros((_BOOTSTRAP, 4)),
    )  # fmt: skip
    days = sum(cell.healthy_days for cell in cells)
    alarms = sum(cell.false_alarms for cell in cells)
    records = sum(cell.rows for cell in cells)
    seconds = sum(cell.seconds for cell in cells)
    row: dict[str, Any] = {
        "detector": detector, "cluster": cluster,
        "horizon_s": "all" if horizon is None else horizon,
    }  # fmt: skip
    for name in ("mcc", "precision", "recall"):
        figure = getattr(metrics, name)
        value = float(figure(total))
        row[name] = None if math.isnan(value) else round(value, 4)
        span = metrics.interval(figure(drawn))
        row[f"{name}_low"], row[f"{name}_high"] = (
            None if edge is None else round(edge, 4) for edge in (span.low, span.high)
        )
    row.update(
        ttd_s=None, false_alarms_per_drive_day=round(alarms / days, 6) if days else None,
        false_alarms_per_drive_day_upper95=(
            round(metrics.poisson_upper(alarms) / days, 6) if days else None
        ),
        ns_per_record=round(seconds * 1e9 / records, 1) if records else None,
        **{name: int(value) for name, value in zip(("tp", "fp", "fn", "tn"), total, strict=True)},
    )  # fmt: skip
    return row


# --- the plateau of a fixed cut ------------------------------------------------------------------


def best_cuts(runs: Sequence[Run], horizon: int | None) -> tuple[float, float]:
    """The range of cuts that gives the highest MCC over all these clusters (labels are used)."""
    scores, slow = [], []
    for run in runs:
        look = next(one for one in run.looks if one.horizon_s == horizon)
        for device, score in look.scores.items():
            scores.append(score)
            slow.append(device in run.slow)
    order = np.argsort(scores)
    ranked, is_slow = np.array(scores)[order], np.array(slow)[order]
    below_slow = np.concatenate([[0], np.cumsum(is_slow)])
    below_fine = np.concatenate([[0], np.cumsum(~is_slow)])
    tp, fp = below_slow[-1] - below_slow, below_fine[-1] - below_fine
    figures = metrics.mcc(np.stack([tp, fp, below_slow, below_fine], axis=-1))
    best = np.flatnonzero(figures == figures.max())
    edges = np.concatenate([[ranked[0] - 1e-9], ranked])  # cut k flags what is above ranked[k-1]
    low, high = best[0], best[-1]
    top = ranked[min(high, len(ranked) - 1)]
    return float(edges[low]), float(np.nextafter(top, -np.inf))


def plateau(runs: Sequence[Run]) -> list[Run]:
    """Each cluster under the cuts that are best on all others: low, middle and high edge."""
    out = []
    for run in runs:
        others = [one for one in runs if one.cluster != run.cluster]
        if not others:
            continue
        cuts = {look.horizon_s: best_cuts(others, look.horizon_s) for look in run.looks}
        for edge, share in (("low", 0.0), ("middle", 0.5), ("high", 1.0)):
            chosen = {at: low + (high - low) * share for at, (low, high) in cuts.items()}
            out.append(rescored(run, f"{run.detector}/loco-{edge}", chosen))
    return out
