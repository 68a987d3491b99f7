# SPDX-License-Identifier: Apache-2.0
"""Every way in which opening a function through VFIO can be refused, and what the user is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pci_fakes import NVME, FakeHost
from vfio_fakes import CDEV, CONTAINER, GROUP, IOMMU, FakeCalls, vfio_host, with_iommufd

from udrv import pci
from udrv.errors import (
    DeviceInUseError,
    DeviceNotFoundError,
    DriverBindError,
    GroupNotViableError,
    NoIommuError,
    PermissionDeniedError,
    VfioError,
)
from udrv.vfio import kernel_errors
from udrv.vfio.kernel import open_vfio


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return vfio_host(tmp_path)


@pytest.fixture
def calls() -> FakeCalls:
    return FakeCalls()


def test_no_such_function(host: FakeHost, calls: FakeCalls) -> None:
    with pytest.raises(DeviceNotFoundError):
        open_vfio("0000:05:00.0", host=host, calls=calls)


@pytest.mark.parametrize(("driver", "said"), [("nvme", "the driver nvme"), (None, "no driver")])
def test_another_driver_names_the_command(
    tmp_path: Path, calls: FakeCalls, driver: str | None, said: str
) -> None:
    host = FakeHost(tmp_path)
    host.add_function(driver=driver)
    with pytest.raises(DriverBindError, match=f"{said}.*udrv bind {NVME}"):
        open_vfio(NVME, host=host, calls=calls)
    assert calls.log == []


def test_no_iommu(tmp_path: Path, calls: FakeCalls) -> None:
    host = FakeHost(tmp_path)
    host.add_function(driver="vfio-pci", group=None)
    with pytest.raises(NoIommuError, match="intel_iommu=on"):
        open_vfio(NVME, host=host, calls=calls)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("path", [CONTAINER, GROUP])
def test_no_permission_names_file_and_mend(
    host: FakeHost, calls: FakeCalls, number: int, path: str
) -> None:
    calls.fail[f"open {path}"] = number
    with pytest.raises(PermissionDeniedError, match=rf"opening {path} .*chown \S+ {path}"):
        open_vfio(NVME, host=host, calls=calls)


def test_no_permission_tells_owner_group_and_mode(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_function(driver="vfio-pci")
    file = tmp_path / "7"
    file.touch(mode=0o600)
    file.chmod(0o640)
    error = kernel_errors.open_error(
        PermissionError(errno.EACCES, "denied"), str(file), pci.function(NVME, host=host),
        host=host,
    )
    assert isinstance(error, PermissionDeniedError)
    assert "owner " in str(error) and "group " in str(error) and "mode 0640" in str(error)


def test_a_busy_group_names_its_owner(host: FakeHost, calls: FakeCalls) -> None:
    host.add_process(4242, "spdk_tgt", "/dev/vfio/vfio", GROUP)
    calls.fail[f"open {GROUP}"] = errno.EBUSY
    with pytest.raises(DeviceInUseError, match=r"process 4242 \(spdk_tgt\)") as caught:
        open_vfio(NVME, host=host, calls=calls)
    assert len(caught.value.reasons) == 1


def test_a_busy_group_with_a_hidden_owner(host: FakeHost, calls: FakeCalls) -> None:
    calls.fail[f"open {GROUP}"] = errno.EBUSY
    with pytest.raises(DeviceInUseError, match="cannot see"):
        open_vfio(NVME, host=host, calls=calls)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINVAL])
def test_a_bound_character_device_names_its_owner(
    host: FakeHost, calls: FakeCalls, number: int
) -> None:
    with_iommufd(host)
    host.add_process(4242, "qemu", IOMMU, CDEV)
    host.add_process(os.getpid(), "pytest", CDEV)
    calls.fail["DEVICE_BIND_IOMMUFD"] = number
    with pytest.raises(DeviceInUseError, match=r"process 4242 \(qemu\)") as caught:
        open_vfio(NVME, host=host, calls=calls)
    assert len(caught.value.reasons) == 1


def test_missing_module(host: FakeHost, calls: FakeCalls) -> None:
    calls.fail[f"open {CONTAINER}"] = errno.ENOENT
    with pytest.raises(VfioError, match="modprobe vfio-pci"):
        open_vfio(NVME, host=host, calls=calls)
    calls.fail.clear()
    calls.type1 = False
    with pytest.raises(VfioError, match="modprobe vfio_iommu_type1"):
        open_vfio(NVME, host=host, calls=calls)


def test_unknown_api_version(host: FakeHost, calls: FakeCalls) -> None:
    calls.version = 1
    with pytest.raises(VfioError, match="version 1, not 0"):
        open_vfio(NVME, host=host, calls=calls)


def test_a_group_that_is_not_viable_names_the_others(host: FakeHost, calls: FakeCalls) -> None:
    host.add_function("0000:01:00.1", driver="ahci")
    calls.viable = False
    with pytest.raises(GroupNotViableError, match=r"0000:01:00.1 \(ahci\)") as caught:
        open_vfio(NVME, host=host, calls=calls)
    assert caught.value.members == (("0000:01:00.1", "ahci"),)
    with_iommufd(host)
    calls.fail["DEVICE_BIND_IOMMUFD"] = errno.EBUSY
    with pytest.raises(GroupNotViableError):
        open_vfio(NVME, host=host, calls=calls)


def test_no_interrupt_remapping(host: FakeHost, calls: FakeCalls) -> None:
    calls.fail["SET_IOMMU"] = errno.EPERM
    with pytest.raises(VfioError, match="interrupt remapping"):
        open_vfio(NVME, host=host, calls=calls)


def test_broken_capabilities_of_the_iommu(host: FakeHost) -> None:
    class Broken(FakeCalls):
        def do_iommu_get_info(self, where: str, argument: bytearray) -> None:
            super().do_iommu_get_info(where, argument)
            if len(argument) > 24:
                argument[28:32] = b"\x08\0\0\0"

    calls = Broken()
    with pytest.raises(VfioError, match="describes the IOMMU"):
        open_vfio(NVME, host=host, calls=calls)
    assert calls.open_files == {}


def test_something_that_is_no_pci_device(host: FakeHost, calls: FakeCalls) -> None:
    calls.flags = 0
    with pytest.raises(VfioError, match="no PCI device"):
        open_vfio(NVME, host=host, calls=calls)
    assert calls.open_files == {}
