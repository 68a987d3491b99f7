# SPDX-License-Identifier: Apache-2.0
"""Everything in this directory runs inside the laboratory."""

from __future__ import annotations

from collections.abc import Generator

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test; called for this directory only."""
    item.add_marker("lab")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself (importorskip) would be a lab test that nobody runs."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"a lab module may not skip: {report.longrepr}"
    return report
