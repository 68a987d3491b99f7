# SPDX-License-Identifier: Apache-2.0
"""Tests marked `lab` run in a guest; see udrv/lab/pytest_plugin.py.

Tests marked `full` stop in time: with UDRV_TEST_DEADLINE (seconds since the epoch; .ci/run sets it)
one is started only if the minutes that its mark names are left. What was not started is named in
the summary, so that it can be run by hand.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import hypothesis
import pytest

# no timed assertion: machines are slow, shared and emulated
hypothesis.settings.register_profile("udrv", deadline=None)
hypothesis.settings.load_profile("udrv")

# flight records of faults that tests make are not their user's
os.environ.setdefault("UDRV_FLIGHT_DIR", "")

# A shell's background job ignores SIGINT, its children do so too, and tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["udrv.lab.pytest_plugin"]

NO_TIME = "no time left"


class Deadline:
    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._lab_is_over = False
        self._not_run: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        mark = item.get_closest_marker("full")
        if mark is None:
            return None
        fits = time.time() + 60 * float(mark.kwargs.get("minutes", 1)) <= self._deadline
        if item.get_closest_marker("lab"):
            # the guest runs its tests in a row: after one that does not fit, none does
            fits = fits and not self._lab_is_over
            self._lab_is_over = not fits
        if fits:
            return None
        self._not_run.append(item.nodeid)
        path, line, _ = item.location
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for when, outcome in (("setup", "skipped"), ("teardown", "passed")):
            reason = (path, line or 0, f"Skipped: {NO_TIME}") if outcome == "skipped" else None
            report = pytest.TestReport(
                item.nodeid, item.location, dict.fromkeys(item.keywords, 1),
                outcome, reason, when,  # type: ignore[arg-type]
            )
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._not_run:
            terminalreporter.section(f"not run, {NO_TIME}")
            for nodeid in self._not_run:
                terminalreporter.write_line(f"NOT RUN {nodeid}")


def pytest_sessionstart(session: pytest.Session) -> None:
    deadline = os.environ.get("UDRV_TEST_DEADLINE")
    if deadline:
        # registered this late, it is asked before the laboratory's plugin
        session.config.pluginmanager.register(Deadline(float(deadline)), "udrv-deadline")
