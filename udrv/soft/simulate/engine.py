# SPDX-License-Identifier: Apache-2.0
"""One drive: `udrv/soft_sim.h` with numpy columns."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from udrv.errors import FaultScriptError
from udrv.soft._soft import ffi, lib
from udrv.soft.fault_table import SIZE, pack_fault, pack_model
from udrv.soft.faults import Fault
from udrv.soft.simulate.scenario import Scenario
from udrv.soft.truth import TRUTH

#: The columns of a completion record, version 1, and their types. `latency` is in units of 16 ns.
COLUMNS = {
    "submit_ns": np.uint64, "slba": np.uint64, "latency": np.uint32, "nlb": np.uint16,
    "depth": np.uint16, "qid": np.uint16, "status": np.uint16, "opcode": np.uint8,
    "flags": np.uint8, "ns_index": np.uint16,
}  # fmt: skip
_NS_PER_HOUR = 3600 * 10**9
_MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Completions in their order, and the ground truth that came with them (dtype `TRUTH`).

    `fault` in the truth is the number of the scenario's fault, from 1. Both are the reader's.
    """

    columns: dict[str, npt.NDArray[Any]]
    truth: npt.NDArray[np.void]


def drive_seed(seed: int, drive: int) -> int:
    """The seed of one of many drives."""
    digest = hashlib.blake2b(f"{seed}/{drive}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MAX_SEED


def run_drive(
    scenario: Scenario, *, hours: float, seed: int = 0, drive: int = 0, rows: int = 1 << 20
) -> Iterator[Chunk]:
    """Simulate one drive, in chunks of at most `rows` completions.

    The same arguments give the same bytes. Raises `FaultScriptError` if `hours` is not above 0 or
    beyond ten years.
    """
    config: Any = ffi.new("struct udrv_sim_config *")
    if not 0 < hours <= 87600:
        raise FaultScriptError(f"hours: {hours} is not above 0 and up to 87600", place="hours")
    mixed = drive_seed(seed, drive)
    config.end_ns = int(hours * _NS_PER_HOUR)
    config.timeout_us, config.blocks = scenario.timeout_us, scenario.blocks
    config.seed, config.lba_shift = mixed, scenario.lba.bit_length() - 1
    config.queues, config.nr_loads = scenario.queues, len(scenario.loads)
    model = dataclasses.replace(scenario.model, seed=scenario.model.seed ^ mixed)
    ffi.memmove(ffi.addressof(config, "model"), pack_model(model), ffi.sizeof(config.model))
    for index, load in enumerate(scenario.loads):
        for name in ("duration_us", "think_us", "depth", "blocks", "sequential", "reads"):
            setattr(config.load[index], name, getattr(load, name))
    numbers: list[int] = []
    for number, placed in enumerate(scenario.faults, 1):
        if placed.drives is None or drive in placed.drives:
            at = ffi.addressof(config.fault, len(numbers))
            ffi.memmove(at, pack_fault(_reseeded(placed.fault, mixed)), SIZE)
            numbers.append(number)
    config.nr_faults = len(numbers)
    out = ffi.new("struct udrv_sim **")
    error = lib.udrv_sim_new(config, out)
    if error:
        raise FaultScriptError(f"the simulation would not take it ({error})", place="")
    try:
        yield from _chunks(out[0], rows, np.array([0, *numbers], np.uint32))
    finally:
        lib.udrv_sim_free(out[0])


def _reseeded(one: Fault, mixed: int) -> Fault:
    """The same fault, by chance on other commands than in the drive beside it."""
    scope = dataclasses.replace(one.scope, seed=one.scope.seed ^ mixed)
    return dataclasses.replace(one, scope=scope)


def _chunks(sim: Any, rows: int, numbers: npt.NDArray[np.uint32]) -> Iterator[Chunk]:
    more = True
    while more:
        columns = {name: np.empty(rows, kind) for name, kind in COLUMNS.items()}
        truth = np.zeros(max(rows, 64), TRUTH)
        view: Any = ffi.new("struct udrv_sim_columns *")
        view.capacity, view.truth_capacity = rows, len(truth)
        for name, column in columns.items():
            setattr(view, name, ffi.cast(ffi.typeof(getattr(view, name)), column.ctypes.data))
        view.truth = ffi.cast("struct udrv_truth *", truth.ctypes.data)
        more = bool(lib.udrv_sim_run(sim, view))
        told = truth[: view.nr_truth]
        told["fault"] = numbers[told["fault"]]
        if view.nr or len(told):
            yield Chunk({name: column[: view.nr] for name, column in columns.items()}, told)
