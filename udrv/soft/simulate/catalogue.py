# SPDX-License-Identifier: Apache-2.0
"""The fail-slow catalogue: a scenario with a drive, or some, of each class, and look-alikes.

The classes are those that field studies of slow drives tell of (Gunawi et al., "Fail-Slow at
Scale", FAST '18; Lu et al., "Perseus", FAST '23). Severity and place of each are drawn from the
seed, on ranges that are ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from udrv.soft.faults import Fault, fault
from udrv.soft.simulate.scenario import Load, Placed, Scenario

_MS = 1000
_S = 1_000_000


def _ratio(rng: random.Random, low: float, high: float) -> float:
    """Between, on a logarithmic scale."""
    return float(low * (high / low) ** rng.random())


def _between(rng: random.Random, low: int, high: int) -> int:
    return round(_ratio(rng, low, high))


def _flip_flop(rng: random.Random) -> Fault:
    period = _between(rng, 60 * _S, 1800 * _S)
    share = _ratio(rng, 0.01, 0.5)
    return fault(
        "factor", factor=_ratio(rng, 1.5, 20), period_us=period, on_us=max(round(period * share), 1)
    )


def _stall(rng: random.Random) -> Fault:
    period = _between(rng, 60 * _S, 3600 * _S)
    return fault("stall", period_us=period, on_us=_between(rng, 1 * _S, 10 * _S))


def _slow_die(rng: random.Random) -> Fault:
    dies = rng.choice([8, 16, 32, 64])
    return fault(
        "factor", factor=_ratio(rng, 2, 10), dies=dies, die=rng.randrange(dies), stripe=4
    )


def _retry(rng: random.Random) -> Fault:
    first = rng.randrange(20_000_000)
    span = _between(rng, 100_000, 6_000_000)
    return fault("retry", us=_between(rng, 60, 1000), opcodes="read", lba=(first, first + span))


def _bucket(effect: str, low: float, high: float) -> Callable[[random.Random], Fault]:
    """Fills within seconds under the load below, and drains when that pauses."""

    def make(rng: random.Random) -> Fault:
        full = _between(rng, 20_000, 200_000)
        return fault(
            effect, factor=_ratio(rng, low, high), full_kib=full, empty_kib=full // 4,
            drain_kib_s=_between(rng, 1000, 10_000),
        )  # fmt: skip

    return make


#: Each class by its name, which is the name of its fault in the ground truth.
CLASSES: dict[str, Callable[[random.Random], Fault]] = {
    "permanent": lambda rng: fault("factor", factor=_ratio(rng, 1.05, 170)),
    "additive": lambda rng: fault("add", us=_between(rng, 100, _S)),
    "tail": lambda rng: fault("factor", factor=_ratio(rng, 5, 100), probability=0.01),
    "throttled": lambda rng: fault("throttle", steps=_between(rng, 1, 40)),
    "stall": _stall,
    "retry": _retry,
    "slow_die": _slow_die,
    "spikes": lambda rng: fault(
        "factor", factor=_ratio(rng, 10, 60), probability=_ratio(rng, 0.001, 0.02)
    ),
    "thermal": _bucket("thermal", 1.5, 8),
    "bandwidth": lambda rng: fault("bandwidth", kib_s=_between(rng, 2_000, 50_000)),
    "flip_flop": _flip_flop,
    "one_queue": lambda rng: fault("factor", factor=_ratio(rng, 2, 20), queue=1),
    "reads": lambda rng: fault("factor", factor=_ratio(rng, 2, 20), opcodes="read"),
    "writes": lambda rng: fault("factor", factor=_ratio(rng, 2, 20), opcodes="write"),
}

#: What a healthy drive does, too; marked so in the ground truth.
LOOK_ALIKES: dict[str, Callable[[random.Random], Fault]] = {
    "gc": _bucket("gc", 1.5, 5),
    "slc": _bucket("slc", 2, 10),
}

#: Two minutes: quiet, busy, writing, nothing. A change of load is a look-alike by itself.
LOADS = (
    Load(duration_us=60 * _S, depth=2, reads=0.7, think_us=20 * _MS),
    Load(duration_us=10 * _S, depth=16, reads=0.7, think_us=5 * _MS),
    Load(duration_us=10 * _S, depth=4, blocks=32, reads=0.1, think_us=10 * _MS),
    Load(duration_us=40 * _S, depth=0),
)


def catalogue(seed: int = 0, *, drives: int, healthy: int | None = None) -> Scenario:
    """A scenario in which each drive from `healthy` on has one class, or one look-alike.

    Classes follow each other over the drives; the first `healthy` drives (None: half of them) have
    nothing. At most 64 faults have room: beyond that drives share one, of the same severity.
    """
    rng = random.Random(seed)  # noqa: S311 - a scenario, no secret
    first = drives // 2 if healthy is None else healthy
    makers = {**CLASSES, **LOOK_ALIKES}
    names = list(makers)
    places = max(min(drives - first, 64 // len(names) * len(names)), 0)
    placed = []
    for place in range(places):
        name = names[place % len(names)]
        one = makers[name](rng)
        placed.append(
            Placed(replace(one, name=name), frozenset(range(first + place, drives, places)))
        )
    return Scenario(queues=2, loads=LOADS, faults=tuple(placed))
