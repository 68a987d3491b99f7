# SPDX-License-Identifier: Apache-2.0
"""Evidence from histograms: does a drive take long more often than it did, or than its peers do?

For each device, and each *stratum* of load (opcode, size class, depth bucket), a reference
histogram gives thresholds: its median, 90th, 99th and 99.9th percentile, and its end. In a tick, O
commands are beyond such a threshold where E were to be expected; both are summed over strata, so
that a change of load moves neither. O against E is a Poisson likelihood ratio for "r times as
many", for several r, divided by how much more than Poisson O varied before (bursts: garbage
collection), and summed as a CUSUM (Page 1954): it decides as soon as there is enough, forgets what
ends, and one tick alone cannot decide.

References are kept apart: *own* (what the drive itself did), *peers* (what the others of its group
did) and *calibration* (given from outside). What all peers do at the same time is nobody's fault:
E is at least what the drive would have if it were as the others are in the same tick. A tick is
learnt when it is some ticks old and nothing was suspicious since.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.reduce import BUCKETS, edges_ns
from udrv.ml.window import BANDS, WindowBatch, WindowKey

Array = npt.NDArray[np.float64]
Stratum = tuple[int, int, int]

#: Tail probabilities of the thresholds (0: beyond all that was seen).
LEVELS: Final = np.array([0.5, 0.1, 0.01, 0.001, 0.0])
#: Rate ratios that are tried.
RATIOS: Final = np.array([1.5, 4.0, 16.0])
BASELINES: Final = ("own", "peers", "calibration")
#: So many buckets beyond a foreign reference's threshold: drives of one model differ (1.3 times).
_SLACK: Final = (0, 3, 3)
_MIDDLES: Final = np.append((edges_ns()[:-1] + edges_ns()[1:]) / 2, edges_ns()[-1])
_LOG_RATIOS: Final = np.log(RATIOS)
#: A reference of fewer commands is none.
_LEAST: Final = 50.0
#: The last threshold is so many buckets beyond the highest of the reference (1.4 times).
_BEYOND: Final = 4
#: Commands beyond each threshold that a reference is taken to have had besides those it had.
_PRIOR: Final = np.where(LEVELS > 0, 0.5, 0.25)


_STATE: Final = (
    "score", "seen", "spread", "band_score", "band_seen", "band_spread", "mean_ns"
)


@dataclass(frozen=True, slots=True)
class TailConfig:
    """limit: of the CUSUM, in nats: a healthy drive has some thousand chances a day to reach it.

    once: what a tick can add, as a share of the limit. warm_up: ticks that are learnt unseen.
    delay: ticks that one must be old to be learnt. suspicion: share of the limit from which on
    nothing is learnt. margin: standard errors by which an expectation from few commands is raised.
    """

    limit: float = 20.0
    once: float = 0.6
    warm_up: int = 12
    delay: int = 4
    suspicion: float = 0.25
    margin: float = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A scope of a device whose evidence is beyond the limit.

    `bulk`: the share of commands that are beyond the reference's median and usually are not.
    """

    device: int
    baseline: str
    queue: int | None
    bands: tuple[int, int] | None
    level: int
    evidence: float
    observed: float
    expected: float
    bulk: float


class GroupTails:
    """What is known of one peer group."""

    def __init__(self, devices: tuple[str, ...], config: TailConfig) -> None:
        self.devices = devices
        self.config = config
        self.ticks = 0
        self.strata: dict[Stratum, int] = {}
        self.queues: list[int] = []
        count = len(devices)
        self.reference = np.zeros((count, 0, BUCKETS))
        self.calibration = np.zeros((0, BUCKETS))
        self.pending: deque[Array] = deque()
        self.pending_spread: deque[Array] = deque()
        self._new_spread = np.zeros((count, len(LEVELS), 2))  # of the last tick
        self.score = np.zeros((len(BASELINES), count, 1, len(LEVELS), len(RATIOS)))
        self.seen = np.zeros((len(BASELINES), count, 1, len(LEVELS), 3))  # O, E, all since S was 0
        self.spread = np.zeros((count, len(LEVELS), 2))  # sums of (O - E)^2 and of E
        self.band_score = np.zeros((count, BANDS, len(RATIOS)))
        self.band_seen = np.zeros((count, BANDS, 2))
        self.band_spread = np.zeros((count, 2))
        self.mean_ns = np.zeros((count, 2))  # of the last tick: sum observed, sum expected

    # --- from rows to arrays -------------------------------------------------------------------

    def _index(self, keys: list[WindowKey]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Stratum and queue of each key; new ones are given room."""
        strata, queues = [], []
        for key in keys:
            stratum = (key.opcode, key.size_class, key.depth_bucket)
            strata.append(self.strata.setdefault(stratum, len(self.strata)))
            if key.queue not in self.queues:
                self.queues.append(key.queue)
            queues.append(self.queues.index(key.queue))
        self.reference = _grown(self.reference, 1, len(self.strata))
        self.calibration = _grown(self.calibration, 0, len(self.strata))
        self.pending = deque(_grown(each, 1, len(self.strata)) for each in self.pending)
        self.score = _grown(self.score, 2, 1 + len(self.queues))
        self.seen = _grown(self.seen, 2, 1 + len(self.queues))
        return np.array(strata, np.intp), np.array(queues, np.intp)

    def on_tick(self, batch: WindowBatch) -> list[Finding]:
        """Take a tick; return what is beyond the limit now."""
        if batch.key is None or not len(batch):
            return []
        strata, queues = self._index(list(batch.keys))
        stratum, queue = strata[batch.key], queues[batch.key]
        count = batch.column("count")
        usable = count > 0
        if "host_late" in batch.columns:  # the host was late: this tells nothing of the drive
            # those that are left are the long ones, where the host was late often
            usable &= batch.columns["host_late"] * 9 <= count
        shape = (len(self.devices), len(self.queues), len(self.strata))
        where = (batch.device[usable], queue[usable], stratum[usable])
        hist = _gathered(np.ravel_multi_index(where, shape), batch.column("hist")[usable], shape)
        whole = hist.sum(axis=1)
        self.ticks += 1
        if self.ticks > 2:
            self._weigh(whole, hist)
        self._bands(batch)
        self._slowdown(whole)
        self._learn(whole)
        return [] if self.ticks <= self.config.warm_up else self._findings()

    def calibrate(self, known: Mapping[Stratum, Array]) -> None:
        """Set the reference that comes from outside."""
        for stratum, hist in known.items():
            at = self.strata.setdefault(stratum, len(self.strata))
            self.calibration = _grown(self.calibration, 0, len(self.strata))
            self.calibration[at] = hist

    # --- evidence ------------------------------------------------------------------------------

    def _weigh(self, whole: Array, hist: Array) -> None:
        margin = self.config.margin
        tail = _tail(whole)
        queues = [_tail(hist[:, place]) for place in range(len(self.queues))]
        for number, name in enumerate(BASELINES):
            histograms = self._of(name)
            if histograms is None:
                continue
            reference = _tail(histograms)
            at = _thresholds(reference, _SLACK[number])
            observed = _observed(tail, reference, at)
            expected = _expected(tail, reference, at, margin)
            if name == "own":
                self._new_spread = np.stack([(observed - expected) ** 2, expected], axis=-1)
            burst = self._burst()
            if name != "own":
                burst = np.broadcast_to(np.median(burst, axis=0), burst.shape)
            expected = np.maximum(expected, _peers_now(tail, reference, at))
            self._add(number, 0, observed, expected, burst, commands=_commands(tail))
            for place, one in enumerate(queues):
                seen = _observed(one, reference, at)
                bound = _expected(one, reference, at, margin)
                bound = np.maximum(bound, _peers_now(one, reference, at))
                self._add(number, 1 + place, seen, bound, burst, commands=_commands(one))

    def _of(self, name: str) -> Array | None:
        if name == "own":
            return self.reference
        if name == "peers":
            if len(self.devices) < 3:
                return None
            return np.asarray(self.reference.sum(axis=0) - self.reference)
        if not self.calibration.any():
            return None
        return np.broadcast_to(self.calibration, self.reference.shape)

    def _burst(self) -> Array:
        """How much more than Poisson counts vary: (devices, levels), at least 1."""
        gap, expected = self.spread[..., 0], self.spread[..., 1]
        return np.maximum((gap + 5) / (expected + 5), 1.0)

    def _add(
        self, number: int, place: int, seen: Array, expected: Array, burst: Array, *,
        commands: Array,
    ) -> None:  # fmt: skip
        """One tick's observed and expected counts, (devices, levels), into a CUSUM."""
        gain = seen[..., None] * _LOG_RATIOS - expected[..., None] * (RATIOS - 1)
        gain = np.minimum(gain / burst[..., None], self.config.once * self.config.limit)
        score = np.maximum(self.score[number, :, place] + gain, 0.0)
        score = np.minimum(score, 3 * self.config.limit)
        self.score[number, :, place] = score
        running = score.max(axis=-1, keepdims=True) > 0
        both = np.stack([seen, expected, np.broadcast_to(commands, seen.shape)], axis=-1)
        self.seen[number, :, place] = np.where(running, self.seen[number, :, place] + both, 0.0)

    def _slowdown(self, whole: Array) -> None:
        """Mean latency of this tick, and what it would be by the drive's own reference."""
        count = self.reference.sum(axis=-1)
        known = count >= _LEAST
        mean = (self.reference @ _MIDDLES) / np.maximum(count, 1)
        self.mean_ns[:, 0] = np.where(known, whole @ _MIDDLES, 0).sum(axis=1)
        self.mean_ns[:, 1] = np.where(known, whole.sum(axis=-1) * mean, 0).sum(axis=1)

    def _bands(self, batch: WindowBatch) -> None:
        if "over_p99" not in batch.bands:
            return
        over, count = (batch.bands[name].astype(np.float64) for name in ("over_p99", "count"))
        share = over.sum(axis=1) / np.maximum(count.sum(axis=1), 1)
        expected = 1.5 * count * share[:, None]
        if self.ticks <= self.config.warm_up:
            self.band_spread += np.stack(
                [((over - expected) ** 2).sum(axis=1), expected.sum(axis=1)], axis=-1
            )
        burst = np.maximum((self.band_spread[:, 0] + 5) / (self.band_spread[:, 1] + 5), 1.0)
        gain = over[..., None] * _LOG_RATIOS - expected[..., None] * (RATIOS - 1)
        gain = np.minimum(gain / burst[:, None, None], self.config.once * self.config.limit)
        score = np.clip(self.band_score + gain, 0.0, 3 * self.config.limit)
        self.band_score = score
        running = (score.max(axis=-1) > 0)[..., None]
        new = np.stack([over, expected], axis=-1)
        self.band_seen = np.where(running, self.band_seen + new, 0.0)

    # --- learning ------------------------------------------------------------------------------

    @property
    def _gate(self) -> float:
        return self.config.suspicion * self.config.limit

    def _learn(self, whole: Array) -> None:
        if self.ticks <= self.config.warm_up:
            self.reference += whole
            self.spread += self._new_spread
            return
        self.pending.append(whole)
        self.pending_spread.append(self._new_spread)
        suspect = self.score.max(axis=(0, 2, 3, 4)) >= self._gate
        for each in (*self.pending, *self.pending_spread):
            each[suspect] = 0.0
        if len(self.pending) > self.config.delay:
            self.reference += self.pending.popleft()
            self.spread += self.pending_spread.popleft()

    # --- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays from which `restore` goes on."""
        strata = np.array(list(self.strata), np.int64).reshape(-1, 3)
        return {
            "ticks": np.array(self.ticks), "strata": strata,
            "queues": np.array(self.queues, np.int64), "reference": self.reference.copy(),
            "calibration": self.calibration.copy(), "pending": np.array(list(self.pending)),
            "pending_spread": np.array(list(self.pending_spread)),
            **{name: getattr(self, name).copy() for name in _STATE},
        }  # fmt: skip

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go on from `state()`."""
        self.ticks = int(state["ticks"])
        self.strata = {
            (row[0], row[1], row[2]): at for at, row in enumerate(state["strata"].tolist())
        }
        self.queues = state["queues"].tolist()
        for name in ("reference", "calibration", *_STATE):
            setattr(self, name, np.array(state[name]))
        self.pending = deque(np.array(one) for one in state["pending"])
        self.pending_spread = deque(np.array(one) for one in state["pending_spread"])

    # --- decisions -----------------------------------------------------------------------------

    def _findings(self) -> list[Finding]:
        out = []
        for device in range(len(self.devices)):
            score = self.score[:, device]
            number, place, level, _ = np.unravel_index(int(score.argmax()), score.shape)
            bands = self._slow_bands(device)
            if float(score[number, place, level].max()) < self.config.limit:
                if bands is None:
                    continue
                seen = self.band_seen[device, bands[0] : bands[1] + 1].sum(axis=0).tolist()
                best = float(self.band_score[device].max())
                out.append(Finding(device, "own", None, bands, 2, best, seen[0], seen[1], 0.0))
                continue
            seen = self.seen[number, device, place, level].tolist()
            above, usual, commands = self.seen[number, device, place, 0].tolist()
            queue = self._slow_queue(int(number), device)
            out.append(Finding(
                device, BASELINES[number], queue, bands if queue is None else None, int(level),
                float(score[number, place, level].max()), seen[0], seen[1],
                (above - usual) / max(commands, 1.0),
            ))  # fmt: skip
        return out

    def _slow_queue(self, number: int, device: int) -> int | None:
        """The queue that all of it comes from, if one of several."""
        if len(self.queues) < 2:
            return None
        seen, expected, _ = np.moveaxis(self.seen[number, device, 1:], -1, 0)
        ratio = (seen + 0.5) / (expected + 0.5)  # (queues, levels)
        if np.count_nonzero(seen.sum(axis=1) + expected.sum(axis=1)) < 2:
            ratio = np.where(expected > 0, ratio, 1.0)
        ranked = np.sort(ratio, axis=0)
        level = int((ranked[-1] / np.maximum(ranked[-2], 1.0)).argmax())
        if ranked[-1, level] < 4 * max(ranked[-2, level], 1.0):
            return None
        worst = int(ratio[:, level].argmax())
        return int(self.queues[worst])

    def _slow_bands(self, device: int) -> tuple[int, int] | None:
        """First and last of the bands beyond the limit, if they are few."""
        beyond = np.flatnonzero(self.band_score[device].max(axis=-1) >= self.config.limit)
        if not len(beyond) or len(beyond) > BANDS // 2:
            return None
        return int(beyond[0]), int(beyond[-1])


def histograms(batch: WindowBatch) -> dict[Stratum, Array]:
    """A tick's histograms by stratum, all devices and queues together."""
    out: dict[Stratum, Array] = {}
    if batch.key is None:
        return out
    hist = batch.column("hist")
    for at, key in enumerate(batch.keys):
        stratum = (key.opcode, key.size_class, key.depth_bucket)
        total = hist[batch.key == at].sum(axis=0, dtype=np.float64)
        out[stratum] = out[stratum] + total if stratum in out else total
    return out


def _gathered(
    place: npt.NDArray[np.intp], rows: npt.NDArray[Any], shape: tuple[int, ...]
) -> Array:
    """Rows summed by their place; as numpy.add.at, which takes ten times as long."""
    out = np.zeros((math.prod(shape), BUCKETS))
    if len(place):
        order = np.argsort(place, kind="stable")
        ranked = place[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        out[ranked[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return out.reshape(*shape, BUCKETS)


def _tail(hist: Array) -> Array:
    """Commands in each bucket or beyond, and a 0 behind the last: (..., buckets + 1)."""
    tail = np.cumsum(hist[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([tail, np.zeros_like(tail[..., :1])], axis=-1)


def _commands(tail: Array) -> Array:
    """All commands: (devices, 1)."""
    return np.asarray(tail[..., :1].sum(axis=1))


def _thresholds(tail: Array, slack: int) -> npt.NDArray[np.intp]:
    """The bucket of each level's threshold in a reference: (..., levels)."""
    total = tail[..., :1]
    at = np.count_nonzero(tail[..., None, :-1] > LEVELS[:, None] * total[..., None], axis=-1)
    return np.asarray(np.minimum(at + slack + np.where(LEVELS > 0, 0, _BEYOND), BUCKETS))


def _expected(tail: Array, reference: Array, at: npt.NDArray[np.intp], margin: float) -> Array:
    """How many of `tail` would be beyond thresholds by the reference: (devices, levels).

    An upper bound by `margin` standard errors of what the reference tells; a stratum without
    reference does not count.
    """
    total = reference[..., :1]
    share = np.where(total >= _LEAST, tail[..., :1] / np.maximum(total, 1), 0.0)
    beyond = np.take_along_axis(reference, at, axis=-1) + _PRIOR
    return np.asarray(
        (share * beyond).sum(axis=1) + margin * np.sqrt((share**2 * beyond).sum(axis=1))
    )


def _observed(tail: Array, reference: Array, at: npt.NDArray[np.intp]) -> Array:
    known = reference[..., :1] >= _LEAST
    return np.asarray(np.where(known, np.take_along_axis(tail, at, axis=-1), 0.0).sum(axis=1))


def _peers_now(tail: Array, reference: Array, at: npt.NDArray[np.intp]) -> Array:
    """How many would be beyond thresholds if the drive were as the others are in this tick."""
    others = tail.sum(axis=0) - tail
    total = others[..., :1]
    known = (reference[..., :1] >= _LEAST) & (total > 0)
    share = np.where(known, tail[..., :1] / np.maximum(total, 1), 0.0)
    return np.asarray((share * np.take_along_axis(others, at, axis=-1)).sum(axis=1))


def _grown(values: Array, axis: int, size: int) -> Array:
    missing = size - values.shape[axis]
    if missing <= 0:
        return values
    room = list(values.shape)
    room[axis] = missing
    return np.concatenate([values, np.zeros(room)], axis=axis)
