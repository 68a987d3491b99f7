# SPDX-License-Identifier: Apache-2.0
"""Asynchronous events of QEMU's controller: a critical warning, raised from outside."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest
from pci_lab import given_back

import udrv
from udrv.lab.info import LabInfo
from udrv.lab.qmp import Qmp
from udrv.nvme import Controller, EventType

SMART_LOG = 2


@pytest.fixture
def ctrl(lab: LabInfo) -> Iterator[Controller]:
    bdf = str(lab.device("UDRVLAB1").bdf)
    with given_back(bdf), udrv.open(f"pci:{bdf}", bind=True) as opened:
        yield opened


def warn(lab: LabInfo, bits: int) -> None:
    """Set SMART critical warnings, as a failing drive would."""
    with Qmp() as qmp:
        qmp.execute("qom-set", {
            "path": f"/machine/peripheral/{lab.device('UDRVLAB1').id}",
            "property": "smart_critical_warning", "value": bits,
        })


def test_a_critical_warning_is_told_and_told_again(lab: LabInfo, ctrl: Controller) -> None:
    assert ctrl.backend.event_counts["armed"] >= 1
    assert ctrl.poll_events() == []
    for bits in (0x04, 0x08):  # reliability degraded; read-only
        warn(lab, bits)
        assert select.select([ctrl.event_fd], [], [], 30)[0]
        events = []
        deadline = time.monotonic() + 30
        while not events and time.monotonic() < deadline:
            events = ctrl.poll_events()
        assert [(e.type, e.log_page) for e in events] == [(EventType.SMART, SMART_LOG)]
        assert not select.select([ctrl.event_fd], [], [], 0)[0], "drained, or a loop would spin"
        assert ctrl.smart_log().critical_warning == bits  # read: the next one may come
        warn(lab, 0)
    assert ctrl.backend.event_counts["refused"] == 0


def test_commands_and_events_share_the_queue(lab: LabInfo, ctrl: Controller) -> None:
    warn(lab, 0x01)
    for _ in range(20):
        assert ctrl.namespace_ids() == (1,)
    deadline = time.monotonic() + 30
    while not (events := ctrl.poll_events()) and time.monotonic() < deadline:
        pass
    assert [e.type for e in events] == [EventType.SMART]
    assert ctrl.smart_log().critical_warning == 1
    warn(lab, 0)
