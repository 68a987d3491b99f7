# SPDX-License-Identifier: Apache-2.0
"""A BAR that the kernel takes away while doorbells are written: an error, and no dead process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from pci_lab import given_back

import udrv
from udrv import pci
from udrv.errors import ControllerError, DeviceGoneError
from udrv.lab.info import LabInfo
from udrv.nvme import Controller, State
from udrv.vfio import CONFIG
from udrv.vfio.kernel import open_vfio
from udrv.vfio.kernel_device import KernelDevice

PCI_COMMAND = 4
PCI_COMMAND_MEMORY = 2


@pytest.fixture
def bdf(lab: LabInfo) -> Iterator[str]:
    name = str(lab.device("UDRVLAB1").bdf)
    with given_back(name), pci.bound(name):
        yield name


def switch_memory_off(device: KernelDevice) -> None:
    """Clear Memory Space Enable: vfio-pci zaps the BARs, and every access is a SIGBUS."""
    command = int.from_bytes(device.read(CONFIG, PCI_COMMAND, 2), "little")
    device.write(CONFIG, PCI_COMMAND, (command & ~PCI_COMMAND_MEMORY).to_bytes(2, "little"))


def test_a_bar_that_is_switched_off_is_an_error(bdf: str) -> None:
    device = open_vfio(bdf)
    with Controller(device, check_memlock=True) as ctrl:
        ns = ctrl.namespace(1)
        ns.write(8, np.full(ns.lba_size, 7, np.uint8))
        switch_memory_off(device)
        with pytest.raises(DeviceGoneError, match="SIGBUS"):
            ns.read(8, 1)
        assert ctrl.state is State.GONE
    # the device itself is well, and so is this process
    with udrv.open(f"pci:{bdf}") as again:
        assert (again.namespace(1).read(8, 1) == 7).all()


def test_a_bar_that_is_switched_off_under_several_threads(bdf: str) -> None:
    device = open_vfio(bdf)
    seen: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                ns.read(0, 8)
        except BaseException as e:  # noqa: BLE001 - looked at below
            seen.append(e)

    with Controller(device, check_memlock=True) as ctrl:
        ns = ctrl.namespace(1)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        time.sleep(0.3)
        switch_memory_off(device)
        for t in threads:
            t.join()
    assert len(seen) == 3
    assert any(isinstance(e, DeviceGoneError) for e in seen), seen
    assert all(isinstance(e, ControllerError) for e in seen), seen
    with udrv.open(f"pci:{bdf}") as again:
        again.namespace(1).read(0, 1)
