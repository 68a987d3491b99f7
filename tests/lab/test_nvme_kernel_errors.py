# SPDX-License-Identifier: Apache-2.0
"""What the kernel's driver refuses, and to whom: each by its name, with the mend."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_lab import controller_node, node_of
from pci_lab import NOBODY, in_child, wait_for

import udrv
import udrv.nvme.kernel  # before a child that may read no file of root's
from udrv import errors
from udrv.lab.info import LabDevice
from udrv.lab.qmp import Qmp
from udrv.nvme import READ, WRITE
from udrv.nvme.spec import command
from udrv.nvme.spec.opcodes import AdminOpcode, Cns


@pytest.fixture
def device(lab_devices: tuple[LabDevice, ...]) -> LabDevice:
    controller_node(lab_devices[1])
    return lab_devices[1]


@pytest.fixture
def generic(device: LabDevice) -> Path:
    return node_of(device, 1, "generic")


@pytest.fixture
def block(device: LabDevice) -> Path:
    return node_of(device, 1, "block")


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode & 0o777
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


def as_nobody(work: Callable[[], Any]) -> Any:
    return in_child(work, uid=NOBODY)


# --- permission ------------------------------------------------------------------------------


def test_no_permission_names_the_file_and_its_mode(generic: Path) -> None:
    with pytest.raises(errors.PermissionDeniedError) as caught:
        as_nobody(lambda: udrv.open(str(generic)))
    text = str(caught.value)
    assert f"{generic} cannot be opened for reading" in text
    assert "crw------- root:root" in text
    assert "would work" not in text, "the block node is closed, too"


def test_the_block_node_is_offered_and_not_taken(generic: Path, block: Path) -> None:
    with mode(block, 0o666), pytest.raises(errors.PermissionDeniedError) as caught:
        as_nobody(lambda: udrv.open(str(generic)))
    assert f"udrv.open('{block}') would work" in str(caught.value)


def test_a_node_open_for_reading_reads_and_does_not_write(
    generic: Path, block: Path, device: LabDevice
) -> None:
    """Linux 6.2 and newer let anybody with the file's permission send harmless commands."""
    with udrv.open(str(block)) as ctrl:
        data = np.arange(512, dtype=np.uint8)
        ctrl.namespace(1).write(9, data)

    def work() -> tuple[bool, str, str, str]:
        with udrv.open(str(generic)) as ctrl:
            ns = ctrl.namespace(1)
            same = bool((ns.read(9, 1) == data).all())
            refused = []
            for call in (
                lambda: ns.write(9, bytes(512)),
                lambda: ctrl.smart_log(),
            ):
                try:
                    call()
                    refused.append("nothing")
                except errors.UdrvError as e:
                    refused.append(f"{type(e).__name__}: {e}")
            return same, refused[0], refused[1], ctrl.serial

    with mode(generic, 0o444):
        same, write, smart, serial = as_nobody(work)
    assert same
    assert write.startswith("PermissionDeniedError") and "for writing" in write
    assert smart.startswith("PermissionDeniedError") and "CAP_SYS_ADMIN" in smart
    assert serial == device.serial
    with udrv.open(str(block)) as ctrl:
        assert (ctrl.namespace(1).read(9, 1) == data).all(), "nothing was written"


def test_a_block_device_without_privilege(block: Path, device: LabDevice) -> None:
    def work() -> tuple[bool, str, str]:
        with udrv.open(str(block)) as ctrl:
            ns = ctrl.namespace(1)
            want = np.arange(1024, dtype=np.uint32).view(np.uint8)
            ns.write(40, want)
            return bool((ns.read(40, 8) == want).all()), ctrl.transport, ctrl.serial

    with mode(block, 0o666):
        assert as_nobody(work) == (True, "io_uring-block", device.serial)


def test_io_uring_switched_off(generic: Path) -> None:
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    before = switch.read_text()
    switch.write_text("2")
    try:
        with pytest.raises(errors.UringDisabledError, match="io_uring_disabled is 2") as caught:
            udrv.open(str(generic))
        assert caught.value.reason == "sysctl"
    finally:
        switch.write_text(before)


def test_no_poll_queues(generic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken from it in sysfs alone: the module has some in the laboratory."""
    monkeypatch.setattr(
        "udrv.nvme.kernel_facts.Host.read",
        lambda self, path: "0" if path.name == "io_poll" else path.read_text().strip()
        if path.exists() else None,
    )  # fmt: skip
    with pytest.raises(errors.UnsupportedOnTransport, match="poll_queues"):
        udrv.open(f"{generic}?iopoll=1")


def test_targets_that_are_none(generic: Path, tmp_path: Path) -> None:
    for target in ("/dev/null", "/dev/zero", str(tmp_path), f"{generic}?iopol=1",
                   f"{generic}?iopoll=2"):  # fmt: skip
        with pytest.raises(errors.TargetError):
            udrv.open(target)
    with pytest.raises(errors.DeviceNotFoundError):
        udrv.open("/dev/ng77n1")
    with pytest.raises(errors.TargetError, match="bind"):
        udrv.open(str(generic), bind=True)


# --- what is in use --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generic", "block"])
def test_a_mounted_namespace_is_not_written_to(
    device: LabDevice, block: Path, kind: str, tmp_path: Path
) -> None:
    node = node_of(device, 1, kind)
    subprocess.run(["mkfs.ext2", "-q", "-F", str(block), "16M"], check=True)
    subprocess.run(["mount", str(block), str(tmp_path)], check=True)
    try:
        with udrv.open(str(node)) as ctrl:
            ns = ctrl.namespace(1)
            ns.read(0, 1)
            with pytest.raises(errors.DeviceInUseError, match=f"mounted on {tmp_path}") as caught:
                ns.write(0, bytes(512))
            assert caught.value.mend == f"umount {tmp_path}"
            with ctrl.create_queue(entries=4) as queue:
                batch = queue.batch(2, namespace=ns, buffer=ctrl.alloc(1024))
                batch.opcode[1] = WRITE
                with pytest.raises(errors.DeviceInUseError):
                    queue.submit(batch)
                assert queue.inflight == 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    with udrv.open(str(node)) as ctrl:
        ctrl.namespace(1).write(2, bytes(512))
        mounted = subprocess.run(["mount", str(block), str(tmp_path)], check=False,
                                 capture_output=True)  # fmt: skip
        assert mounted.returncode != 0, "mounted while it is written to"
    with block.open("r+b") as disk:
        disk.write(bytes(1 << 20))


def test_a_partition_is_no_target(block: Path) -> None:
    table = bytearray(512)  # one Linux partition of 4096 sectors
    table[446:462] = struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 0x83, 0, 0, 0, 2048, 4096)
    table[510:] = b"\x55\xaa"
    with block.open("r+b") as disk:
        disk.write(table)
    subprocess.run(["blockdev", "--rereadpt", str(block)], check=True)
    part = Path(f"{block}p1")
    try:
        wait_for(part.is_block_device)
        with pytest.raises(errors.TargetError, match=f"whole namespace, {block}"):
            udrv.open(str(part))
    finally:
        with block.open("r+b") as disk:
            disk.write(bytes(1 << 20))
        subprocess.run(["blockdev", "--rereadpt", str(block)], check=True)


# --- what passthrough does not carry ---------------------------------------------------------


def test_the_kernels_own_commands_are_refused(generic: Path) -> None:
    with udrv.open(str(generic)) as ctrl:
        for opcode in (AdminOpcode.CREATE_IO_SQ, AdminOpcode.DELETE_IO_CQ, AdminOpcode.ABORT):
            with pytest.raises(errors.UnsupportedOnTransport, match="kernel"):
                ctrl.admin(bytes([opcode]) + bytes(63))
        for byte1 in (0x01, 0x40):  # fused, SGL
            with pytest.raises(errors.UnsupportedOnTransport, match="fused"):
                ctrl.admin(bytes([6, byte1]) + bytes(62), read=4096)


def test_raw_commands(generic: Path) -> None:
    """Write Zeroes and Compare, which the batch path does not carry; and what nothing carries."""

    def sqe(opcode: int, *, slba: int = 0, nlb: int = 0, flags: int = 0) -> bytes:
        raw = bytearray(64)
        raw[0], raw[1] = opcode, flags
        raw[4] = 1
        raw[40:48] = slba.to_bytes(8, "little")
        raw[48:52] = nlb.to_bytes(4, "little")
        return bytes(raw)

    with udrv.open(str(generic)) as ctrl, ctrl.create_queue(entries=8) as queue:
        ns = ctrl.namespace(1)
        buf = ctrl.alloc(4096)
        buf[:] = 7
        ns.write(100, buf)
        batch = queue.batch(1, namespace=ns, buffer=buf)
        assert queue.submit_raw(batch, sqe(0x05, slba=100, nlb=7), length=4096, user_data=5) == 1
        reaped = queue.reap(1, timeout=20)
        assert (int(reaped.user_data[0]), int(reaped.status[0])) == (5, 0), "the same"
        assert queue.submit_raw(batch, sqe(0x08, slba=102, nlb=1)) == 1
        assert not queue.reap(1, timeout=20).status.any()
        assert queue.submit_raw(batch, sqe(0x05, slba=100, nlb=7), length=4096) == 1
        assert int(queue.reap(1, timeout=20).status[0]) & 0x7FF == 0x285, "Compare Failure"
        assert not ns.read(102, 2).any()
        for flags in (0x01, 0x40):
            with pytest.raises(errors.UnsupportedOnTransport):
                queue.submit_raw(batch, sqe(0x02, flags=flags), length=512)
        assert queue.submit_raw(batch, sqe(0x7F)) == 1
        assert int(queue.reap(1, timeout=20).status[0]) & 0x7FF == 0x001, "Invalid Opcode"


def test_an_errno_is_no_status(generic: Path) -> None:
    """A length that is not what the command says is refused by the device or by the kernel."""
    raw = bytearray(64)
    raw[0], raw[4] = 0x02, 2  # another namespace than the node's
    with udrv.open(str(generic)) as ctrl, ctrl.create_queue(entries=8) as queue:
        batch = queue.batch(1, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4096))
        queue.submit_raw(batch, bytes(raw), length=512)
        reaped = queue.reap(1, timeout=20)
        assert int(reaped.status[0]) == 0x8370
        assert int(reaped.result[0]) == 22  # EINVAL


def test_a_block_device_without_identify(
    block: Path, device: LabDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Linux 6.2, without privilege: sysfs has to do, and it is said."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise errors.PermissionDeniedError("no", device="x")

    with udrv.open(str(block)) as ctrl:
        assert not ctrl.identify_synthesised
        want = ctrl.namespace(1)
        data = np.arange(512, dtype=np.uint8)
        want.write(3, data)
    monkeypatch.setattr("udrv.nvme.kernel.admin_command", refuse)
    with udrv.open(str(block)) as ctrl:
        ns = ctrl.namespace(1)
        assert ctrl.identify_synthesised
        assert ctrl.serial == device.serial and ctrl.version == "unknown"
        assert (ns.nsze, ns.lba_size, ns.metadata_size) == (want.nsze, want.lba_size, 0)
        assert (ns.read(3, 1) == data).all()
        with pytest.raises(errors.PermissionDeniedError):
            ctrl.smart_log()


# --- the end of a device ---------------------------------------------------------------------


@pytest.mark.kernel_log_allow(r"nvme.*|I/O error.*|Buffer I/O.*")
def test_unplugged(device: LabDevice, generic: Path) -> None:
    """Commands end with an error, the controller is said to be gone, and close() works."""
    ctrl = udrv.open(str(generic))
    queue = ctrl.create_queue(entries=8)
    ns = ctrl.namespace(1)
    batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(512))
    batch.opcode[:] = READ
    with Qmp() as qmp:
        try:
            qmp.unplug(device)
            with pytest.raises((errors.KernelIoError, errors.NvmeStatusError,
                                errors.DeviceGoneError)):  # fmt: skip
                for _ in range(2000):
                    ns.read(0, 1)
            with pytest.raises(errors.DeviceGoneError):
                for _ in range(2000):
                    ctrl.check_alive()
                    os.sched_yield()
            queue.close()
            ctrl.close()
        finally:
            with contextlib.suppress(errors.UdrvError):
                ctrl.close()
            qmp.plug(device)
    controller_node(device)
    with udrv.open(str(node_of(device, 1, "generic"))) as again:
        again.namespace(1).read(0, 1)
        assert len(again.admin(command.identify(Cns.CONTROLLER), read=4096).data) == 4096
