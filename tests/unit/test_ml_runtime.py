# SPDX-License-Identifier: Apache-2.0
"""A detector that misbehaves is ejected with its reason, and the others go on."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable

import ml_detectors as some
import numpy as np
import pytest

from udrv.ml import Detector, WindowBatch
from udrv.ml.runtime import Runtime


def batch(end_ns: int = 10) -> WindowBatch:
    return WindowBatch(
        group="g", start_ns=0, end_ns=end_ns, devices=["d0", "d1"], device=np.arange(2),
        step=np.zeros(2, int), columns={"mean_ns": np.ones(2)},
    )  # fmt: skip


def test_verdicts_come_back_from_the_process() -> None:
    with Runtime([some.Well]) as runtime:
        runtime.settle()
        said = runtime.on_tick(batch(7)) + runtime.settle()
        status = runtime.status[0]
    assert [(one.device, one.last_ns, one.detector) for one in said] == [("d0", 7, "well")]
    assert (status.name, status.version, status.calls, status.ejected) == ("well", "3", 1, None)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (some.Raises, "it raised ZeroDivisionError: oh"),
        (some.Loops, "a call took more than 0.5 s"),
        (some.HoldsTheGil, "a call took more than 0.5 s"),
        (some.Dies, "its process ended (status 3)"),
        (some.Nonsense, "it returned nonsense: str among verdicts"),
        (some.BadVerdict, "it returned nonsense: verdict.kind: 'sluggish' is none of"),
        (some.Unmade, "it raised OSError: no model file"),
    ],
)
def test_one_that_misbehaves_is_ejected_with_the_reason_and_others_go_on(
    bad: Callable[[], Detector], why: str
) -> None:
    with Runtime([bad, some.Well]) as runtime:
        runtime.settle()
        for end_ns in (1, 2):
            last = runtime.on_tick(batch(end_ns)) + runtime.settle()
        spoilt, well = runtime.status
        with pytest.raises(ProcessLookupError):
            os.kill(spoilt.pid, 0)
    assert spoilt.ejected is not None
    assert why in spoilt.ejected
    assert (well.ejected, well.calls) == (None, 2)
    assert [one.last_ns for one in last] == [2]


def test_what_a_busy_detector_cannot_take_is_dropped_and_counted() -> None:
    with Runtime([some.Busy]) as runtime:
        runtime.settle()
        for _ in range(5):
            assert runtime.on_tick(batch()) == []
        assert (runtime.status[0].dropped, runtime.status[0].ejected) == (4, None)


def test_closing_ends_every_process_also_after_an_exception() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyError), Runtime([some.Well, some.Busy]) as runtime:
        runtime.settle()
        runtime.on_tick(batch())
        pids = [status.pid for status in runtime.status]
        raise KeyError
    assert set(multiprocessing.active_children()) == before
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    runtime.close()


def test_a_stopped_process_does_not_stop_the_caller() -> None:
    large = dataclasses.replace(
        batch(), columns={"mean_ns": np.ones(2), "hist": np.zeros((2, 1 << 20))}
    )
    with Runtime([some.Well], budget_s=0.2) as runtime:
        runtime.settle()
        os.kill(runtime.status[0].pid, signal.SIGSTOP)
        runtime.on_tick(large)
        runtime.settle()
        assert runtime.status[0].ejected == "a call took more than 0.2 s"
