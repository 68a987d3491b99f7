# SPDX-License-Identifier: Apache-2.0
"""Bind plans: every reason is found, refused by the right error, and overridden only if it may be.

The tree is fake and the disks are image files; libblkid, where it is installed, is real.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pci_fakes import NVME, FakeHost, nvme_host

from udrv import pci
from udrv.errors import (
    DeviceInUseError,
    DeviceNotFoundError,
    DriverBindError,
    GroupNotViableError,
    NoIommuError,
    PermissionDeniedError,
)
from udrv.pci import signatures as signature_module
from udrv.pci.signatures import SignaturesUnknownError, signatures


def swap_image() -> bytes:
    """A swap area as mkswap(8) lays it out, for 4 KiB pages."""
    image = bytearray(64 << 10)
    struct.pack_into("=III", image, 1024, 1, 15, 0)
    image[4086:4096] = b"SWAPSPACE2"
    return bytes(image)


def codes(plan: pci.BindPlan) -> list[str]:
    return [reason.code for reason in plan.reasons]


def test_an_idle_function_has_steps_and_no_reasons(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    plan = pci.plan_bind(NVME, host=host)
    assert plan.reasons == ()
    written = [(step.path.name, step.value) for step in plan.steps if step.path]
    assert written == [("driver_override", "vfio-pci"), ("unbind", NVME), ("drivers_probe", NVME)]
    plan.check()


def test_planning_changes_nothing(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host)
    assert host.writes == [] and not host.bind_records.exists()


def test_new_id_is_never_written(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host).execute()
    pci.unbind(NVME, host=host)
    assert host.writes and not any("new_id" in path for path, _ in host.writes)


def test_bind_then_unbind_restores_driver_and_override(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    assert pci.plan_bind(NVME, host=host).execute()
    bound = pci.function(NVME, host=host)
    assert (bound.driver, bound.driver_override) == ("vfio-pci", "vfio-pci")
    record = pci.binding(NVME, host=host)
    assert record is not None and (record.driver, record.scoped) == ("nvme", False)
    assert pci.bindings(host=host) == (record,)
    back = pci.unbind(NVME, host=host)
    assert (back.driver, back.driver_override) == ("nvme", None)
    assert pci.bindings(host=host) == ()


def test_an_earlier_override_comes_back(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    (pci.function(NVME, host=host).path / "driver_override").write_text("nvme\n")
    pci.plan_bind(NVME, host=host).execute()
    assert pci.unbind(NVME, host=host).driver_override == "nvme"


def test_a_function_that_had_no_driver_gets_none_back(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.proc.mkdir()
    device = host.add_function(driver=None)
    (device / "native").write_text("nvme\n")
    host.add_driver("nvme")
    host.add_driver("vfio-pci")
    pci.plan_bind(NVME, host=host).execute()
    assert pci.unbind(NVME, host=host).driver is None


def test_binding_twice_does_nothing_and_keeps_the_first_record(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host).execute()
    record = pci.binding(NVME, host=host)
    again = pci.plan_bind(NVME, host=host)
    assert again.steps == () and again.execute() is False
    assert pci.binding(NVME, host=host) == record


def test_unbind_without_a_record_lets_the_kernel_choose(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host).execute()
    next(host.bind_records.glob("*.json")).unlink()
    assert pci.unbind(NVME, host=host).driver == "nvme"


def test_unbind_of_a_function_on_its_own_driver_does_nothing(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    assert pci.unbind(NVME, host=host).driver == "nvme"
    assert host.writes == []


def test_a_failed_probe_puts_everything_back(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    host.refuses.add("vfio-pci")
    with pytest.raises(DriverBindError, match=r"bound no driver instead of vfio-pci.*dmesg"):
        pci.plan_bind(NVME, host=host).execute()
    after = pci.function(NVME, host=host)
    assert (after.driver, after.driver_override) == ("nvme", None)
    assert pci.bindings(host=host) == ()


def test_a_missing_module_is_loaded_or_named(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    drivers = host.sys / "bus/pci/drivers/vfio-pci"
    (drivers / "bind").unlink()
    drivers.rmdir()
    (host.proc / "sys/kernel").mkdir(parents=True)
    (host.proc / "sys/kernel/modprobe").write_text("/bin/false\n")
    plan = pci.plan_bind(NVME, host=host)
    assert plan.steps[0].text == "load the module vfio-pci"
    with pytest.raises(DriverBindError, match="modprobe vfio-pci"):
        plan.execute()
    assert pci.function(NVME, host=host).driver == "nvme"
    host.loads.add("vfio-pci")
    plan.execute()
    assert pci.function(NVME, host=host).driver == "vfio-pci"


def test_no_such_function(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError):
        pci.plan_bind(NVME, host=FakeHost(tmp_path))


def test_without_an_iommu_nothing_overrides(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.proc.mkdir()
    host.add_function(group=None)
    plan = pci.plan_bind(NVME, host=host)
    with pytest.raises(NoIommuError, match="intel_iommu=on"):
        plan.check(force=True)


def test_another_member_of_the_group_is_named(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    host.add_function("0000:01:00.1", driver="ahci", class_code=0x010601)
    with pytest.raises(GroupNotViableError, match=r"ahci.*udrv bind 0000:01:00.1") as caught:
        pci.plan_bind(NVME, host=host).execute(force=True)
    assert caught.value.members == (("0000:01:00.1", "ahci"),)
    assert host.writes == []


def test_a_bridge_is_refused(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.proc.mkdir()
    host.add_function(class_code=0x060400, driver="pcieport")
    with pytest.raises(DriverBindError, match="bridge"):
        pci.plan_bind(NVME, host=host).check(force=True)


def test_without_the_right_to_write_the_file_is_named(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    host.readonly.add("driver_override")
    with pytest.raises(PermissionDeniedError, match=r"driver_override.*sudo udrv bind"):
        pci.plan_bind(NVME, host=host).check(force=True)
    with pytest.raises(PermissionDeniedError, match=r"sudo udrv unbind"):
        pci.unbind(NVME, host=host)


@pytest.mark.parametrize("by_number", [True, False], ids=["by number", "by source (btrfs)"])
def test_a_mounted_partition_refuses_and_force_does_not_help(
    tmp_path: Path, by_number: bool
) -> None:
    host, disk = nvme_host(tmp_path)
    host.add_block(disk, "nvme0n1p1", (259, 1), partition=True)
    number = "259:1" if by_number else "0:42"
    host.add_mount(number, "/mnt/my\\040data", "/dev/nvme0n1p1")
    plan = pci.plan_bind(NVME, host=host)
    assert codes(plan) == ["mounted"]
    with pytest.raises(DeviceInUseError, match=r"mounted on /mnt/my data: umount") as caught:
        plan.execute(force=True)
    assert caught.value.reasons == ("nvme0n1p1 under nvme0n1 is mounted on /mnt/my data",)
    assert host.writes == []


def test_the_second_disk_of_a_btrfs_is_mounted_too(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    host.add_mount("0:42", "/data", "/dev/sdb", "btrfs")
    devices = host.sys / "fs/btrfs/1234/devices"
    devices.mkdir(parents=True)
    (devices / "sdb").touch()
    (devices / "nvme0n1").touch()
    assert codes(pci.plan_bind(NVME, host=host)) == ["mounted"]


def test_a_mount_on_top_of_device_mapper_is_found(tmp_path: Path) -> None:
    host, disk = nvme_host(tmp_path)
    dm = host.add_block(host.sys / "devices/virtual/block", "dm-3", (253, 3))
    (dm / "dm").mkdir()
    (dm / "dm/name").write_text("vg-home\n")
    host.hold(disk, dm)
    host.add_mount("253:3", "/home", "/dev/mapper/vg-home")
    plan = pci.plan_bind(NVME, host=host)
    assert codes(plan) == ["mounted", "holder"]
    assert "dm-3 (vg-home) under nvme0n1 is mounted on /home" in plan.reasons[0].text
    assert "dmsetup remove vg-home" in plan.reasons[1].mend
    with pytest.raises(DeviceInUseError, match="1 more"):
        plan.check(force=True)


def test_swap_and_loop_users_are_found(tmp_path: Path) -> None:
    host, disk = nvme_host(tmp_path)
    host.add_block(disk, "nvme0n1p2", (259, 2), partition=True)
    (host.proc / "swaps").write_text(
        "Filename\tType\tSize\tUsed\tPriority\n/dev/nvme0n1p2 partition 1 0 -2\n"
    )
    loop = host.sys / "class/block/loop0/loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text("/dev/nvme0n1\n")
    assert codes(pci.plan_bind(NVME, host=host)) == ["loop", "swap"]


def test_a_claim_that_nothing_explains_is_a_reason(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    host.claimed.add("nvme0n1")
    plan = pci.plan_bind(NVME, host=host)
    assert codes(plan) == ["claimed"] and not plan.reasons[0].overridable


def test_a_mount_between_plan_and_execution_is_refused(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    plan = pci.plan_bind(NVME, host=host)
    plan.check()
    host.add_mount("259:0", "/mnt", "/dev/nvme0n1")
    with pytest.raises(DeviceInUseError, match="/mnt"):
        plan.execute()
    assert host.writes == []


@pytest.mark.parametrize("node", ["/dev/nvme0n1", "/dev/ng0n1", "/dev/nvme0"])
def test_an_open_node_names_the_process_and_can_be_forced(tmp_path: Path, node: str) -> None:
    host, _ = nvme_host(tmp_path)
    host.add_process(4711, "smartd", "/dev/null", node)
    plan = pci.plan_bind(NVME, host=host)
    with pytest.raises(DeviceInUseError, match=r"process 4711 \(smartd\).*--force"):
        plan.check()
    assert plan.execute(force=True)


def test_a_signature_refuses_and_can_be_forced(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    (host.dev / "nvme0n1").write_bytes(swap_image())
    plan = pci.plan_bind(NVME, host=host)
    assert codes(plan) == ["signature"]
    with pytest.raises(DeviceInUseError, match=r"carries data: swap.*wipefs.*--force"):
        plan.check()
    plan.check(force=True)


def test_an_unreadable_disk_is_a_reason_not_a_blank(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    (host.dev / "nvme0n1").unlink()
    plan = pci.plan_bind(NVME, host=host)
    assert codes(plan) == ["unchecked", "unchecked"]
    with pytest.raises(DeviceInUseError):
        plan.check()


def test_a_network_interface_that_is_up(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.proc.mkdir()
    device = host.add_function(class_code=0x020000, driver="e1000e")
    (device / "net/eth0").mkdir(parents=True)
    (device / "net/eth0/operstate").write_text("up\n")
    assert codes(pci.plan_bind(NVME, host=host)) == ["network"]


def test_unbind_refuses_while_a_process_has_the_group(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    pci.plan_bind(NVME, host=host).execute()
    host.add_process(99, "qemu", "/dev/vfio/7")
    with pytest.raises(DeviceInUseError, match=r"process 99 \(qemu\) has /dev/vfio/7 open"):
        pci.unbind(NVME, host=host)
    assert pci.function(NVME, host=host).driver == "vfio-pci"


# --- signatures -----------------------------------------------------------------------------------


def test_an_empty_image_has_no_signature(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(64 << 10))
    assert signatures(image) == ()


def test_two_signatures_are_both_told(tmp_path: Path) -> None:
    image = tmp_path / "image"
    data = bytearray(swap_image())
    # A DOS partition table with one Linux partition over the swap area.
    data[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\3\0", 64, 32)
    data[510:512] = b"\x55\xaa"
    image.write_bytes(bytes(data))
    found = signatures(image)
    assert "swap signature" in found and "dos partition table" in found


def test_without_the_library_the_program_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(signature_module, "_libblkid", missing)
    image = tmp_path / "image"
    image.write_bytes(swap_image())
    blkid = tmp_path / "blkid"
    blkid.write_text("#!/bin/sh\necho TYPE=swap\necho USAGE=other\n")
    blkid.chmod(0o755)
    monkeypatch.setattr(signature_module.shutil, "which", lambda *_, **__: str(blkid))
    assert signatures(image) == ("swap signature",)
    blkid.write_text("#!/bin/sh\nexit 2\n")
    assert signatures(image) == ()
    blkid.write_text("#!/bin/sh\nexit 8\n")
    assert signatures(image) == ("more than one signature",)
    blkid.write_text("#!/bin/sh\necho broken >&2\nexit 4\n")
    with pytest.raises(SignaturesUnknownError, match="broken"):
        signatures(image)
    monkeypatch.setattr(signature_module.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SignaturesUnknownError, match="neither"):
        signatures(image)
