# SPDX-License-Identifier: Apache-2.0
"""The first runs of the campaign (`make torture` has 10,000), and that it can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torture
from torture_plan import LBA, Region, WrongError, pattern, plan

from udrv.errors import CommandTimeoutError, UdrvError
from udrv.nvme import Namespace

RUNS = 30


def test_random_workloads_and_faults() -> None:
    found = torture.in_child(0, RUNS)
    assert not found["failures"]
    assert found["errors"], "the faults were met"


def test_a_seed_says_what_a_run_does() -> None:
    assert plan(7) == plan(7)
    assert len({repr(plan(seed)) for seed in range(50)}) == 50


def test_what_a_block_may_hold() -> None:
    region = Region(0)
    region.wrote(3, 2, 5, None)
    region.check(3, pattern(5, 2), silent=False)
    for bad in (pattern(6, 2), np.concatenate([pattern(5, 1), pattern(0, 1)])):
        with pytest.raises(WrongError, match="holds version"):
            region.check(3, bad, silent=False)
        region.check(3, bad, silent=True)
    torn = pattern(5, 1)
    torn[LBA // 2 :] = 0
    with pytest.raises(WrongError, match="torn"):
        region.check(3, torn, silent=False)
    region.wrote(3, 1, 6, UdrvError("failed"))
    region.check(3, pattern(6, 1), silent=False)
    with pytest.raises(WrongError):  # it was read: it does not change back
        region.check(3, pattern(5, 1), silent=False)
    region.wrote(3, 1, 7, CommandTimeoutError("given up"))
    region.wrote(3, 1, 8, None)
    region.check(3, pattern(8, 1), silent=False)
    region.check(3, pattern(7, 1), silent=False)  # the device may still have had it


def test_a_driver_that_loses_a_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign's own test: a seed without faults that matter, and a write that is not sent."""
    harmless = {"event_storm", "add", "throttle", "wrong_sqhd", "bandwidth", "retry"}
    seed = next(
        seed for seed in range(1000)
        if {one.effect for one in plan(seed).faults} <= harmless and plan(seed).steps == 30
    )  # fmt: skip
    write = Namespace.write

    def forget(self: Namespace, lba: int, data: Any, **how: Any) -> None:
        if lba % 2:
            write(self, lba, data, **how)

    torture.one_run(seed)
    monkeypatch.setattr(Namespace, "write", forget)
    with pytest.raises(WrongError, match="holds version"):
        torture.one_run(seed)
