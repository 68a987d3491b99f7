# SPDX-License-Identifier: Apache-2.0
"""`evidence`: the default detector. Is this drive's mean latency that of its peers, at equal load?

For each step: r = log(latency / median of the group), x = log(load / median of the group). r is
cut off at a few widths of the group's distribution, so that no single step counts for much.

After each tick, over the whole fleet:

1. *Load.* The slope of r on x is taken from how both move together *within* drives (a fault that
   keeps a drive slow does not bias it), per group, drawn towards the fleet's. What the drive's own
   mean load explains is subtracted.
2. *Place.* Drives in the same slot of all hosts share what the slot does (a model of drive, a
   lane): the median over groups is subtracted.
3. *Noise.* How well a drive's mean is known is estimated by batch means at several lengths (the
   longest that has enough batches, if it is the largest: noise that lasts a day is not averaged out
   by an hour of rows), drawn towards its group's. What healthy drives differ by for good is the
   spread over the fleet beyond that.
4. *Decision.* offset / sqrt(spread^2 + noise^2) is compared with that of all drives of the fleet:
   the middle of them gives the healthy distribution (an empirical null: Efron, "Large-Scale
   Simultaneous Hypothesis Testing", JASA 2004), an exponential tail gives the probability that a
   healthy drive is so far out. A drive is slow when that is below the false-alarm target and the
   slowdown is worth telling.

The bounds on false alarms are those of step 4: nothing is tuned to a cluster, the fleet at hand
calibrates it without labels. Statistics cost some numbers a drive; no history is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.by_histogram import ByHistogram
from udrv.ml.detector import Detector, Needs, StateValue
from udrv.ml.fleet_null import fleet_log10_p, robust_spread
from udrv.ml.peers import SMALL_GROUP, log_ratio, row_quantile
from udrv.ml.tails import Stratum, TailConfig, histograms
from udrv.ml.threshold import TARGET
from udrv.ml.verdict import Verdict
from udrv.ml.window import WindowBatch

Array = npt.NDArray[np.float64]

#: Parts that a tick is cut into, so that one tick tells of noise already.
_PARTS: Final = 3
#: The log ratio of a drive's mean load to its peers' that may explain its latency, up or down.
_MOST_LOAD: Final = 1.5
#: Below this, less load may explain that a drive is fast, and does not make one slow: latency has a
#: floor.
_LEAST_LOAD: Final = -0.1
#: Lengths of batch means, in parts of a tick: with ticks of 15 minutes 5 and 15 minutes, 1, 3 h.
_LENGTHS: Final = (1, 3, 12, 36)


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """Constants of `evidence`; none of them was chosen by labels (docs/detection.md).

    target: probability that a healthy drive is flagged at one look.
    release: a verdict is taken back when that probability has risen above so many targets.
    min_slowdown: a smaller ratio to the peers is not worth a verdict, however certain.
    clip: r is cut off at so many robust standard deviations of the group's, at least `clip_floor`
        (a factor of two).
    own_weight: how many batches of the group's a drive's own noise is drawn towards.
    half_life: ticks after which old evidence counts half.
    tails: where there are histograms.
    """

    target: float = TARGET
    release: float = 10.0
    min_slowdown: float = 1.1
    clip: float = 5.0
    clip_floor: float = 0.7
    own_weight: float = 8.0
    half_life: float = 960.0
    tails: TailConfig = field(default_factory=TailConfig)


class _Table:
    """Growing columns of numbers per drive."""

    def __init__(self) -> None:
        self.size = 0
        self.columns: dict[str, Array] = {}
        for name in ("n", "r", "raw", "x"):
            self.columns[name] = np.zeros(0)
        for length in range(len(_LENGTHS)):
            for name in ("part_n", "part_r", "batches", "mean", "square"):
                self.columns[f"{name}{length}"] = np.zeros(0)
        self.columns["first"] = np.full(0, -1.0)

    def grow(self, size: int) -> None:
        for name, column in self.columns.items():
            fill = -1.0 if name == "first" else 0.0
            self.columns[name] = np.concatenate([column, np.full(size - self.size, fill)])
        self.size = size

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a group's tick came to; all but the first two are per device."""

    group: int
    rows: npt.NDArray[np.intp]
    count: Array  # (parts, devices)
    sums: Array  # (parts, devices)
    raw: Array
    loads: Array


class Evidence(Detector):
    """See the module's text."""

    name, version = "evidence", "1"
    needs = Needs(columns=("mean_ns",))
    config: EvidenceConfig

    def __init__(self, config: EvidenceConfig | None = None) -> None:
        super().__init__(config or EvidenceConfig())
        self._table = _Table()
        self._names: list[str] = []
        self._row: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._devices: list[tuple[str, ...]] = []  # per group, as it named them last
        self._members: list[npt.NDArray[np.intp]] = []  # their rows in the table
        self._slope = np.zeros((0, 2))  # per group: sum of x*r, sum of x*x, within drives
        self._looked: list[_Seen] = []
        self._score = np.zeros(0)
        self._part_count = 0
        self._by_histogram: dict[str, ByHistogram] = {}
        self._calibration: dict[Stratum, Array] = {}
        self._slots = np.zeros(0, np.intp)  # per drive: which slot of its group it is in

    # --- one group, one tick -------------------------------------------------------------------

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        if "hist" in batch.columns:
            return self._on_histograms(batch)
        at = self._group(batch)
        if not len(batch):
            return ()
        logs = log_ratio(batch.matrix(batch.mean_ns()), whole=batch.dense)
        known = ~np.isnan(logs)
        whole = (batch.dense and len(batch.devices) >= SMALL_GROUP) or bool(known.all())
        if not whole:
            logs = np.where(known, logs, np.float32(0))
        size = np.abs(logs if whole else logs[known]).reshape(-1)
        if not len(size):
            return ()  # nobody had a peer
        width = 1.4826 * float(np.partition(size, len(size) // 2)[len(size) // 2])
        limit = np.float32(max(self.config.clip * width, self.config.clip_floor))
        cut = np.minimum(np.maximum(logs, -limit), limit)
        sums, count = self._parts(cut, known, whole)
        total = count.sum(axis=0)
        loads = np.zeros_like(total)
        load = self._load(batch)
        if load is not None:
            loads = load.sum(axis=0).astype(np.float64)
            self._learn_slope(at, cut, load, sums=sums.sum(axis=0), loads=loads, total=total)
        raw = logs.sum(axis=0).astype(np.float64)
        self._looked.append(_Seen(at, self._members[at], count, sums, raw, loads))
        return ()

    def calibrate(self, ticks: Iterable[WindowBatch]) -> None:
        """Learn what a drive of this model does when it is well, from windows with histograms.

        It is a third baseline beside peers and own history: for drives that were slow before anyone
        looked, and have no peers. All groups that are seen from now on use it; it is kept in the
        state.
        """
        for batch in ticks:
            for stratum, hist in histograms(batch).items():
                known = self._calibration.get(stratum)
                self._calibration[stratum] = hist if known is None else known + hist

    def _on_histograms(self, batch: WindowBatch) -> Sequence[Verdict]:
        group = self._by_histogram.get(batch.group)
        if group is None or group.tails.devices != tuple(batch.devices):
            group = ByHistogram(batch.devices, self.config.tails)
            group.tails.calibrate(self._calibration)
            self._by_histogram[batch.group] = group
        return group.on_tick(batch, self.verdict)

    def _group(self, batch: WindowBatch) -> int:
        """The group's number; its devices have rows in the table from now on."""
        names = tuple(batch.devices)
        at = self._groups.setdefault(batch.group, len(self._devices))
        if at == len(self._devices):
            self._devices.append(())
            self._members.append(np.zeros(0, np.intp))
            self._slope = np.concatenate([self._slope, np.zeros((1, 2))])
        if self._devices[at] != names:
            for name in names:
                if self._row.setdefault(name, len(self._names)) == len(self._names):
                    self._names.append(name)
            self._table.grow(len(self._names))
            self._devices[at] = names
            self._members[at] = np.array([self._row[name] for name in names], np.intp)
        return at

    @staticmethod
    def _parts(
        cut: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], whole: bool
    ) -> tuple[Array, Array]:
        """Sums and counts of values of the tick's parts: (parts, devices)."""
        steps, devices = cut.shape
        if steps < 2 * _PARTS:
            starts = [0]
        elif whole and not steps % _PARTS:
            sums = cut.reshape(_PARTS, -1, devices).sum(axis=1).astype(np.float64)
            return sums, np.full((_PARTS, devices), float(steps // _PARTS))
        else:
            starts = [steps * part // _PARTS for part in range(_PARTS)]
        sums = np.add.reduceat(cut, starts, axis=0, dtype=np.float64)
        return sums, np.add.reduceat(known, starts, axis=0, dtype=np.float64)

    @staticmethod
    def _load(batch: WindowBatch) -> npt.NDArray[np.float32] | None:
        for name in ("depth_mean", "bytes_per_s"):
            if name in batch.columns:
                load = log_ratio(batch.matrix(batch.columns[name]), whole=batch.dense)
                load = np.minimum(np.maximum(load, np.float32(-2)), np.float32(2))
                return load if batch.dense else np.nan_to_num(load, copy=False, nan=0.0)
        return None

    def _learn_slope(
        self, at: int, cut: npt.NDArray[np.float32], load: npt.NDArray[np.float32],
        *, sums: Array, loads: Array, total: Array,
    ) -> None:  # fmt: skip
        share = loads / np.maximum(total, 1)
        product = np.einsum("ij,ij->j", cut, load) - sums * share
        square = np.einsum("ij,ij->j", load, load) - loads * share
        # the median drive, so that no drive in trouble decides
        product.sort()
        square.sort()
        middle = len(product) // 2
        self._slope[at] += product[middle], square[middle]

    # --- the fleet -----------------------------------------------------------------------------

    def on_period(self, end_ns: int) -> Sequence[Verdict]:
        if not self._looked:
            return ()
        self._accumulate()
        offset, noise, fresh = self._offsets()
        spread = robust_spread(offset[fresh], noise[fresh])
        z = offset / np.sqrt(spread**2 + noise**2)
        log10_p = np.zeros(len(offset))
        log10_p[fresh] = fleet_log10_p(z[fresh])
        self._score = -log10_p
        return self._decide(end_ns, offset, noise, spread=spread, log10_p=log10_p, fresh=fresh)

    def _accumulate(self) -> None:
        table, config = self._table, self.config
        keep = 0.5 ** (1 / config.half_life)
        for name, column in table.columns.items():
            if not name.startswith(("part", "first")):
                np.multiply(column, keep, out=column)
        self._slope *= keep
        for seen in self._looked:
            table["n"][seen.rows] += seen.count.sum(axis=0)
            table["r"][seen.rows] += seen.sums.sum(axis=0)
            table["raw"][seen.rows] += seen.raw
            table["x"][seen.rows] += seen.loads
        for part in range(max(len(seen.count) for seen in self._looked)):
            n, r = np.zeros(table.size), np.zeros(table.size)
            for seen in self._looked:
                if part < len(seen.count):
                    n[seen.rows], r[seen.rows] = seen.count[part], seen.sums[part]
            self._batch_means(n, r)
        self._looked.clear()

    def _batch_means(self, n: Array, r: Array) -> None:
        """Add a part to the batch being filled at each length; close those that are full."""
        table = self._table
        self._part_count += 1
        for index, length in enumerate(_LENGTHS):
            part_n, part_r = table[f"part_n{index}"], table[f"part_r{index}"]
            part_n += n
            part_r += r
            if self._part_count % length:
                continue
            full = part_n > 0
            mean = part_r[full] / part_n[full]
            table[f"batches{index}"][full] += 1
            table[f"mean{index}"][full] += mean
            table[f"square{index}"][full] += mean * mean
            part_n[:] = 0
            part_r[:] = 0

    def _offsets(self) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """Each drive's offset beyond load and place, its standard error, and who has data."""
        table = self._table
        n = table["n"]
        fresh = n > 0
        share = 1 / np.maximum(n, 1e-9)
        offset = table["r"] * share
        slope = self._slopes()
        load = np.clip(table["x"] * share, -_MOST_LOAD, _MOST_LOAD)
        full = offset - slope * load
        least = np.maximum(offset - slope * np.maximum(load, _LEAST_LOAD), 0.0)
        offset = np.where(load < _LEAST_LOAD, np.minimum(full, least), full)
        offset -= self._places(offset, fresh)
        return offset, np.sqrt(self._noise()), fresh

    def _slopes(self) -> Array:
        both = self._slope
        mean = both.mean(axis=0)
        if mean[1] <= 0:
            return np.zeros(self._table.size)
        fleet = mean[0] / mean[1]
        drawn = np.clip((both[:, 0] + fleet * mean[1]) / (both[:, 1] + mean[1]), 0.0, 1.0)
        out = np.zeros(self._table.size)
        for who, slope in zip(self._members, drawn.tolist(), strict=True):
            out[who] = slope
        return out

    def _places(self, offset: Array, fresh: npt.NDArray[np.bool_]) -> Array:
        """The median over groups of each slot, drawn towards none where groups are few."""
        if len(self._slots) != len(self._names):
            places: dict[str, int] = {}
            self._slots = np.array([
                places.setdefault(name.rpartition("/")[2], len(places)) for name in self._names
            ])  # fmt: skip
        out = np.zeros(len(offset))
        order = np.argsort(self._slots, kind="stable")
        ends = np.cumsum(np.bincount(self._slots))
        for slot in np.split(order, ends[:-1]):
            rows = slot[fresh[slot]]
            if len(rows) >= 8:
                out[rows] = np.median(offset[rows]) * len(rows) / (len(rows) + 8)
        return out

    def _noise(self) -> Array:
        """Variance of each drive's mean: the largest over the lengths of batches."""
        table, weight = self._table, self.config.own_weight
        out = np.zeros(table.size)
        for index in range(len(_LENGTHS)):
            batches = table[f"batches{index}"]
            enough = batches >= 2.5
            if not enough.any():
                continue
            safe = np.maximum(batches, 1e-9)
            mean = table[f"mean{index}"] / safe
            variance = np.maximum(table[f"square{index}"] / safe - mean * mean, 0.0)
            variance *= safe / np.maximum(safe - 1, 1e-9)
            pooled = self._over_groups(np.where(enough, variance, np.nan))
            drawn = (weight * pooled + (batches - 1) * variance) / (weight + batches - 1)
            np.maximum(out, np.where(enough, drawn / safe, 0.0), out=out)
        return out

    def _over_groups(self, values: Array) -> Array:
        """Each group's median, for each of its drives; NaNs are left out, a group of NaNs is 0."""
        widest = max(len(who) for who in self._members)
        rows = np.full((len(self._members), widest), np.nan, np.float32)
        at = np.repeat(np.arange(len(rows)), [len(who) for who in self._members])
        within = np.concatenate([np.arange(len(who)) for who in self._members])
        who = np.concatenate(self._members)
        rows[at, within] = values[who]
        out = np.zeros(len(values))
        out[who] = np.nan_to_num(row_quantile(rows, 0.5))[at]
        return out

    def _decide(
        self, end_ns: int, offset: Array, noise: Array, *, spread: float, log10_p: Array,
        fresh: npt.NDArray[np.bool_],
    ) -> Sequence[Verdict]:  # fmt: skip
        config, first = self.config, self._table["first"]
        target = math.log10(config.target)
        worth = math.log(config.min_slowdown)
        held = first >= 0
        start = fresh & (log10_p < target) & (offset > worth)
        stay = held & (log10_p < target + math.log10(config.release)) & (offset > 0.8 * worth)
        now = start | stay
        first[~now] = -1
        first[start & ~held] = end_ns
        raw = self._table["raw"] / np.maximum(self._table["n"], 1e-9)
        out = []
        for at in np.flatnonzero(now).tolist():
            slowdown = max(float(raw[at]), float(offset[at]))
            out.append(self.verdict(
                self._names[at], kind="slow", severity=1 - math.exp(-slowdown),
                confidence=1 - 10 ** float(log10_p[at]), first_ns=int(first[at]), last_ns=end_ns,
                evidence={
                    "statistic": "mean log ratio to peers at equal load",
                    "value": float(offset[at]), "standard_error": float(noise[at]),
                    "fleet_spread": spread, "log10_p": float(log10_p[at]),
                    "threshold_log10_p": target, "slowdown": math.exp(slowdown),
                    "baseline": "peers", "windows": round(float(self._table["n"][at])),
                },
            ))  # fmt: skip
        return out

    def scores(self) -> Mapping[str, float]:
        return dict(zip(self._names, self._score.tolist(), strict=False))

    def state(self) -> dict[str, StateValue]:
        return {
            "names": list(self._names), "groups": list(self._groups),
            "sizes": np.array([len(who) for who in self._members], np.int64),
            "members": np.concatenate([np.zeros(0, np.intp), *self._members]),
            "slope": self._slope.copy(), "parts": self._part_count, "score": self._score.copy(),
            **{name: column.copy() for name, column in self._table.columns.items()},
            "calibration_strata": np.array(list(self._calibration), np.int64),
            "calibration": np.array(list(self._calibration.values())),
            "histogram_groups": list(self._by_histogram),
            **{
                f"histogram{at}/{name}": value
                for at, group in enumerate(self._by_histogram.values())
                for name, value in group.state().items()
            },
            **{
                f"histogram{at}/devices": list(group.tails.devices)
                for at, group in enumerate(self._by_histogram.values())
            },
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self._names = list(state["names"])
        self._row = {name: at for at, name in enumerate(self._names)}
        self._groups = {name: at for at, name in enumerate(state["groups"])}
        ends = np.cumsum(state["sizes"]).tolist()
        self._members = np.split(np.asarray(state["members"], np.intp), ends[:-1])
        self._devices = [tuple(self._names[row] for row in who) for who in self._members]
        self._slope, self._score = np.array(state["slope"]), np.array(state["score"])
        self._part_count = int(state["parts"])
        self._looked = []
        self._calibration = {
            (row[0], row[1], row[2]): np.array(hist)
            for row, hist in zip(
                state["calibration_strata"].tolist(), state["calibration"], strict=True
            )
        }
        self._by_histogram = {}
        for at, name in enumerate(state["histogram_groups"]):
            prefix = f"histogram{at}/"
            group = ByHistogram(state[f"{prefix}devices"], self.config.tails)
            group.restore({
                key.removeprefix(prefix): value
                for key, value in state.items() if key.startswith(prefix)
            })  # fmt: skip
            self._by_histogram[name] = group
        self._table.size = len(self._names)
        self._table.columns = {name: np.array(state[name]) for name in self._table.columns}
