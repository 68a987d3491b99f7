# SPDX-License-Identifier: Apache-2.0
"""The driver through the kernel's NVMe driver, on QEMU's controller: passthrough and block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from driver_suite import DriverSuite
from kernel_lab import controller_node, node_of

import udrv
from udrv.lab.info import LabDevice
from udrv.nvme import Controller


class TestPassthrough(DriverSuite):
    """One namespace by /dev/ngXnY."""

    TRANSPORT = "io_uring-cmd"

    @pytest.fixture
    def target(self, lab_devices: tuple[LabDevice, ...]) -> str:
        return str(node_of(lab_devices[0], 1, "generic"))

    @pytest.fixture
    def opened(self) -> Iterator[list[Controller]]:
        opened: list[Controller] = []
        yield opened
        for ctrl in opened:
            ctrl.close()

    @pytest.fixture
    def ctrl(self, target: str, opened: list[Controller]) -> Controller:
        opened.append(udrv.open(target))
        assert opened[0].transport == self.TRANSPORT
        return opened[0]

    @pytest.fixture
    def reopen(self, target: str, opened: list[Controller]) -> Callable[[], Controller]:
        def again() -> Controller:
            opened.pop().close()
            opened.append(udrv.open(target))
            return opened[0]

        return again


class TestPolledPassthrough(TestPassthrough):
    """The same with IOPOLL: the kernel polls the device's poll queue."""

    @pytest.fixture
    def target(self, lab_devices: tuple[LabDevice, ...]) -> str:
        return f"{node_of(lab_devices[0], 1, 'generic')}?iopoll=1"


class TestWholeController(TestPassthrough):
    """/dev/nvmeX: both namespaces, each by its ngXnY."""

    @pytest.fixture
    def target(self, lab_devices: tuple[LabDevice, ...]) -> str:
        return str(controller_node(lab_devices[0]))


class TestBlock(TestPassthrough):
    """/dev/nvmeXnY: plain reads and writes of the block device."""

    TRANSPORT = "io_uring-block"

    @pytest.fixture
    def target(self, lab_devices: tuple[LabDevice, ...]) -> str:
        return str(node_of(lab_devices[0], 2, "block"))
