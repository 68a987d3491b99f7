"""The driver over the kernel's VFIO, on QEMU's NVMe controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from driver_suite import DriverSuite

import udrv
from udrv import pci
from udrv.lab.info import LabDevice
from udrv.nvme import Controller


@pytest.fixture(scope="module")
def bdf(lab_devices: tuple[LabDevice, ...]) -> Iterator[str]:
    bdf = str(lab_devices[0].bdf)
    pci.plan_bind(bdf).execute()
    yield bdf
    pci.unbind(bdf)


class TestVfio(DriverSuite):
    @pytest.fixture
    def opened(self) -> Iterator[list[Controller]]:
        opened: list[Controller] = []
        yield opened
        for ctrl in opened:
            ctrl.close()

    @pytest.fixture
    def ctrl(self, bdf: str, opened: list[Controller]) -> Controller:
        opened.append(udrv.open(f"pci:{bdf}"))
        assert opened[0].transport == "vfio"
        return opened[0]

    @pytest.fixture
    def reopen(self, bdf: str, opened: list[Controller]) -> Callable[[], Controller]:
        def again() -> Controller:
            opened.pop().close()
            opened.append(udrv.open(f"pci:{bdf}"))
            return opened[0]

        return again
