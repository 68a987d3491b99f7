# SPDX-License-Identifier: Apache-2.0
"""What a run of torture.py does, by its seed, and what each block may hold then."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from udrv.errors import CommandTimeoutError
from udrv.soft.faults import Fault, Model, fault

LBA = 512
BLOCKS = 4096
REGION = 512  # blocks of one thread

#: After these, wrong data is no fault of the driver's: nothing in the protocol tells of it.
SILENT = frozenset({"corrupt", "torn", "duplicate", "unknown_cid", "wrong_sqid"})


# --- what a seed says ----------------------------------------------------------------------------


@dataclass
class Plan:
    """A run: options of the controller and of `udrv.open`, faults, what each thread does."""

    seed: int
    options: str
    how: dict[str, Any]
    faults: tuple[Fault, ...]
    model: Model | None
    threads: list[int]
    steps: int

    @property
    def silent(self) -> bool:
        """Whether data may be wrong without a word."""
        return any(one.effect in SILENT for one in self.faults)


def random_fault(rng: random.Random, model: bool) -> Fault:
    """Any effect, with a scope in which it will be met, mostly for a while only."""
    scope: dict[str, Any] = {
        "after": rng.choice([0, 0, 3, 20]), "every": rng.choice([1, 2, 7]),
        "count": rng.choice([1, 1, 2, 5]), "probability": rng.choice([1.0, 0.5, 0.1]),
        "seed": rng.randrange(1 << 30),
    }  # fmt: skip
    if rng.random() < 0.3:
        scope["lba"] = (first := rng.randrange(BLOCKS), min(BLOCKS - 1, first + rng.randrange(600)))
    if rng.random() < 0.3:
        scope["opcodes"] = rng.choice(["read", "write", "flush"])
    if rng.random() < 0.06:
        scope.pop("lba", None)
        scope.update(queue=0, opcodes=rng.choice(["identify", "get_log_page", "create_sq",
                                                  "delete_sq", "create_cq", "abort"]))  # fmt: skip
    us = rng.choice([100, 5_000, 50_000, 400_000, 2_000_000])
    plain: list[tuple[str, dict[str, Any]]] = [
        ("drop", {}), ("drop", {}), ("late", {"us": us}), ("late", {"us": us}),
        ("duplicate", {"us": rng.choice([0, 1000])}), ("wrong_phase", {}), ("unknown_cid", {}),
        ("unknown_cid", {"extra": True}), ("wrong_sqid", {}), ("wrong_sqhd", {}),
        ("spurious_interrupt", {}), ("missing_interrupt", {}), ("deleted_queue", {}),
        ("cfs", {}), ("all_ones", {}), ("all_ones", {"us": 20_000}), ("slow_ready", {"us": us}),
        ("slow_reset", {"us": us}), ("event_storm", {}), ("media_error", {}),
        ("status", {"sct": rng.randrange(4), "sc": rng.randrange(1, 256),
                    "dnr": rng.random() < 0.5, "executed": rng.random() < 0.5}),
        ("corrupt", {"bits": 3}), ("torn", {"blocks": 1}),
        ("add", {"us": us // 10, "jitter_us": us // 20}), ("throttle", {"steps": 4}),
        ("retry", {"us": 300}), ("bandwidth", {"kib_s": 50_000}),
    ]  # fmt: skip
    if model:
        plain += [("factor", {"factor": 30.0})]
    if rng.random() < 0.02:
        plain = [("never_ready", {}), ("shutdown_hang", {})]  # each costs seconds
    effect, parameters = rng.choice(plain)
    if effect in ("cfs", "all_ones", "never_ready", "slow_ready", "slow_reset", "shutdown_hang"):
        kept = ("count", "after", "lba", "opcodes", "queue")
        scope = {name: value for name, value in scope.items() if name in kept}
        if effect not in ("cfs", "all_ones"):
            scope = {"count": scope["count"]}
        if effect == "shutdown_hang":
            scope = {}
    return fault(effect, **parameters, **scope)


def plan(seed: int) -> Plan:
    """What the run of this seed does."""
    rng = random.Random(seed)
    model = Model() if rng.random() < 0.1 else None
    options = (
        f"mdts={rng.choice([1, 3, 5])}&doorbells={rng.choice(['mapped', 'mapped', 'trapped'])}"
        f"&mqes={rng.choice([8, 64, 1024])}&queues={rng.choice([4, 16])}"
    )
    how = {
        "wait": rng.choice(["poll", "interrupt", "hybrid"]),
        "shadow_doorbells": rng.random() < 0.7,
    }
    if how["wait"] == "poll":
        how["interrupts"] = rng.random() < 0.5
    faults = tuple(random_fault(rng, model is not None) for _ in range(rng.choice([1, 1, 2, 3])))
    threads = [rng.randrange(1 << 30) for _ in range(rng.choice([1, 1, 2, 3]))]
    return Plan(seed, options, how, faults, model, threads, rng.choice([5, 15, 30]))


# --- what may be read ----------------------------------------------------------------------------


class WrongError(Exception):
    """What may not be."""


@dataclass
class Region:
    """Blocks of one thread, and which versions each may hold.

    `haunted`: of writes that were given up, whose commands the device may still have.
    """

    base: int
    possible: list[set[int]] = field(default_factory=lambda: [{0} for _ in range(REGION)])
    haunted: list[set[int]] = field(default_factory=lambda: [set() for _ in range(REGION)])

    def wrote(self, at: int, count: int, version: int, error: BaseException | None) -> None:
        for block in range(at, at + count):
            if error is None:
                self.possible[block] = {version} | self.haunted[block]
            else:
                self.possible[block].add(version)
                if isinstance(error, CommandTimeoutError):
                    self.haunted[block].add(version)

    def check(self, at: int, data: np.ndarray, silent: bool) -> None:
        words = data.view("<u4").reshape(-1, LBA // 4)
        for block, row in enumerate(words, at):
            version = int(row[0])
            if silent:
                continue
            if (row != version).any():
                raise WrongError(f"block {self.base + block} is torn: {sorted(set(row.tolist()))}")
            if version not in self.possible[block]:
                raise WrongError(
                    f"block {self.base + block} holds version {version}, not one of "
                    f"{sorted(self.possible[block])}"
                )
            self.possible[block] = {version} | self.haunted[block]


def pattern(version: int, blocks: int) -> np.ndarray:
    return np.full(blocks * LBA // 4, version, "<u4").view(np.uint8)
