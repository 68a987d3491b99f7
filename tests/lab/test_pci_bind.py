# SPDX-License-Identifier: Apache-2.0
"""Binding real devices on a real kernel: what refuses it, what undoes it."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pci_lab import NOBODY, given_back, held_by_child, in_child, node, wait_for

from udrv import pci
from udrv.errors import DeviceInUseError, GroupNotViableError, PermissionDeniedError
from udrv.lab.info import LabInfo


@pytest.fixture
def bdf(lab: LabInfo) -> Iterator[str]:
    name = str(lab.device("UDRVLAB1").bdf)
    with given_back(name):
        yield name


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reasons(bdf: str) -> list[str]:
    return [reason.code for reason in pci.plan_bind(bdf).reasons]


def refused(bdf: str, *, force: bool) -> DeviceInUseError:
    with pytest.raises(DeviceInUseError) as caught:
        pci.plan_bind(bdf).execute(force=force)
    assert pci.function(bdf).driver == "nvme"
    return caught.value


def test_the_lab_devices_are_as_sysfs_says(lab: LabInfo) -> None:
    found = pci.functions(class_code=pci.CLASS_NVME)
    assert [f.bdf for f in found] == sorted(str(d.bdf) for d in lab.devices)
    for function in found:
        assert function.driver == "nvme" and function.iommu_group is not None
        lspci = (function.path / "uevent").read_text()
        assert f"PCI_ID={function.vendor:04X}:{function.device:04X}" in lspci


def test_two_namespaces_and_their_character_devices(lab: LabInfo) -> None:
    function = pci.function(str(lab.device("UDRVLAB0").bdf))
    assert len(pci.disks(function)) == 2
    nodes = pci.character_devices(function)
    assert sum(n.name.startswith("ng") for n in nodes) == 2
    assert all((Path("/dev") / n.name).is_char_device() for n in nodes)


def test_bind_and_unbind(bdf: str) -> None:
    disk = node(bdf)
    plan = pci.plan_bind(bdf)
    assert plan.reasons == () and plan.execute()
    bound = pci.function(bdf)
    assert (bound.driver, bound.driver_override, bound.on_vfio) == ("vfio-pci", "vfio-pci", True)
    assert Path(f"/dev/vfio/{bound.iommu_group}").is_char_device()
    wait_for(lambda: not disk.exists())
    assert not pci.plan_bind(bdf).steps
    back = pci.unbind(bdf)
    assert (back.driver, back.driver_override) == ("nvme", None)
    assert node(bdf).is_block_device()


def test_bind_loads_the_module(bdf: str) -> None:
    run("rmmod", "vfio_pci")
    assert pci.plan_bind(bdf).steps[0].text == "load the module vfio-pci"
    pci.plan_bind(bdf).execute()
    assert pci.function(bdf).driver == "vfio-pci"


def test_a_mounted_file_system_cannot_be_forced(bdf: str, tmp_path: Path) -> None:
    disk = node(bdf)
    run("mkfs.ext4", "-q", disk)
    run("mount", disk, tmp_path)
    try:
        assert "mounted" in reasons(bdf)
        for force in (False, True):
            assert f"mounted on {tmp_path}" in refused(bdf, force=force).reasons[0]
    finally:
        run("umount", tmp_path)
    assert reasons(bdf) == ["signature"]
    assert "ext4 file system" in str(refused(bdf, force=False))
    assert pci.plan_bind(bdf).execute(force=True)


def test_a_mount_that_only_another_namespace_sees_cannot_be_forced(
    bdf: str, tmp_path: Path
) -> None:
    disk = node(bdf)
    run("mkfs.ext4", "-q", disk)

    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount {disk} {tmp_path} && echo R && sleep 600"],
        stdout=subprocess.PIPE, start_new_session=True,
    )
    assert holder.stdout is not None and holder.stdout.read(1) == b"R"
    try:
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        assert "claimed" in reasons(bdf)
        refused(bdf, force=True)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    wait_for(lambda: "claimed" not in reasons(bdf))


def test_swap_cannot_be_forced(bdf: str) -> None:
    disk = node(bdf)
    run("mkswap", disk)
    run("swapon", disk)
    try:
        assert "swap" in reasons(bdf)
        assert f"swapoff {disk}" in str(refused(bdf, force=True))
    finally:
        run("swapoff", disk)
    assert reasons(bdf) == ["signature"]


def test_a_device_mapper_holder_cannot_be_forced(bdf: str) -> None:
    run("modprobe", "dm-mod")
    disk = node(bdf)
    run("dmsetup", "create", "udrvtest", "--noudevsync", "--table", f"0 2048 linear {disk} 0")
    try:
        assert reasons(bdf) == ["holder"]
        error = refused(bdf, force=True)
        assert "udrvtest" in error.reasons[0] and "dmsetup remove udrvtest" in str(error)
    finally:
        run("dmsetup", "remove", "--noudevsync", "--retry", "udrvtest")


def test_a_mounted_partition_on_a_partitioned_disk(bdf: str, tmp_path: Path) -> None:
    disk = node(bdf)
    # A DOS partition table (no need for a partitioning program) with one Linux partition.
    table = bytearray(512)
    table[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\3\0", 2048, 65536)
    table[510:] = b"\x55\xaa"
    with disk.open("r+b") as file:
        file.write(table)
    run("blockdev", "--rereadpt", disk)
    part = Path(f"{disk}p1")
    wait_for(part.is_block_device)
    run("mkfs.ext4", "-q", part)
    run("mount", part, tmp_path)
    try:
        assert "mounted" in reasons(bdf)
        refused(bdf, force=True)
    finally:
        run("umount", tmp_path)
    found = refused(bdf, force=False).reasons
    assert any("dos partition table" in text for text in found)
    assert any("ext4" in text and part.name in text for text in found)
    run("wipefs", "-q", "-a", part)
    run("wipefs", "-q", "-a", disk)


def test_an_open_character_device_names_its_process(bdf: str) -> None:
    (generic,) = [
        n.name for n in pci.character_devices(pci.function(bdf)) if n.name.startswith("ng")
    ]
    with held_by_child(lambda: Path(f"/dev/{generic}").open("rb")) as child:
        assert reasons(bdf) == ["open"]
        assert f"process {child} " in str(refused(bdf, force=False))
        # Forced, the node goes away under the process: that is what it was asked for.
        assert pci.plan_bind(bdf).execute(force=True)


def test_an_exclusive_open_cannot_be_forced(bdf: str) -> None:
    disk = node(bdf)
    fd = os.open(disk, os.O_RDONLY | os.O_EXCL)
    try:
        assert "claimed" in reasons(bdf)
        refused(bdf, force=True)
    finally:
        os.close(fd)


def test_another_user_learns_the_file_and_the_command(bdf: str) -> None:
    with pytest.raises(PermissionDeniedError, match=r"driver_override.*sudo udrv bind"):
        in_child(lambda: pci.plan_bind(bdf).check(force=True), uid=NOBODY)
    with pytest.raises(PermissionDeniedError, match="sudo udrv unbind"):
        in_child(lambda: pci.unbind(bdf), uid=NOBODY)


def test_a_group_with_another_host_driver_is_refused(lab: LabInfo) -> None:
    # The chipset's own SATA and SMBus functions share a group on this machine.
    run("modprobe", "-a", "ahci", "i2c_i801")
    with pytest.raises(GroupNotViableError, match="i801_smbus") as caught:
        pci.plan_bind("0000:00:1f.2").execute(force=True)
    assert caught.value.members == (("0000:00:1f.3", "i801_smbus"),)
    assert pci.function("0000:00:1f.2").driver == "ahci"


# --- scoped ------------------------------------------------------------------------------------


def test_a_scoped_binding_ends_with_its_block(bdf: str) -> None:
    with pci.bound(bdf) as held:
        assert held.active and pci.function(bdf).driver == "vfio-pci"
    assert pci.function(bdf).driver == "nvme" and pci.bindings() == ()


def test_a_scoped_binding_ends_with_an_exception(bdf: str) -> None:
    with pytest.raises(KeyError), pci.bound(bdf):
        raise KeyError
    assert pci.function(bdf).driver == "nvme"


@pytest.mark.parametrize("device_open", [False, True], ids=["bound", "open"])
def test_a_scoped_binding_is_undone_after_sigkill(bdf: str, device_open: bool) -> None:
    def victim() -> object:
        held = pci.bound(bdf)
        if not device_open:
            return held
        from udrv.vfio.kernel import open_vfio

        return held, open_vfio(bdf)

    with held_by_child(victim) as child:
        assert pci.function(bdf).driver == "vfio-pci"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wait_for(lambda: pci.function(bdf).driver == "nvme")
        wait_for(lambda: pci.bindings() == ())
    assert pci.function(bdf).driver_override is None
    assert node(bdf).is_block_device()


def test_the_watcher_survives_the_signals_of_a_terminal(bdf: str) -> None:
    def victim() -> object:
        os.setsid()
        return pci.bound(bdf)

    with held_by_child(victim) as child:
        os.killpg(child, signal.SIGKILL)  # as a shell or a supervisor does it
        os.waitpid(child, 0)
        wait_for(lambda: pci.function(bdf).driver == "nvme")
