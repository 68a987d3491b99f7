# SPDX-License-Identifier: Apache-2.0
"""Which namespace belongs to which controller, by the tree of a sysfs that a test made."""

from __future__ import annotations

from pathlib import Path

import pytest

from udrv import errors
from udrv.nvme import nodes
from udrv.nvme.kernel_admin import admin_command
from udrv.nvme.kernel_facts import BlockFacts, synthesised_controller
from udrv.pci import Host

PCI = "sys/devices/pci0000:00/0000:01:00.0/nvme"
VIRTUAL = "sys/devices/virtual/nvme-subsystem"


def add(path: Path, subsystem: str, root: Path, **attributes: str) -> Path:
    path.mkdir(parents=True)
    target = root / "sys/class" / subsystem
    target.mkdir(parents=True, exist_ok=True)
    (path / "subsystem").symlink_to(target)
    (target / path.name).symlink_to(path)
    for name, text in ({"dev": "1:1"} | attributes).items():
        (path / name).write_text(text + "\n")
    return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """One controller with a namespace of its own, two that share one by multipath."""
    root = tmp_path
    plain = add(root / PCI / "nvme0", "nvme", root, cntlid="0", state="live", serial="S0")
    add(plain / "ng0n1", "nvme-generic", root)
    block = add(plain / "nvme0n1", "block", root, nsid="7")
    add(block / "nvme0n1p1", "block", root, partition="1")
    shared = root / VIRTUAL / "nvme-subsys1"
    add(shared, "nvme-subsystem", root)
    for number, state in ((1, "connecting"), (2, "live")):
        path = add(root / PCI / f"nvme{number}", "nvme", root, cntlid=str(number), state=state)
        (shared / path.name).symlink_to(path)
        hidden = path / f"nvme1c{number}n1"
        hidden.mkdir()
        (hidden / "nsid").write_text("1\n")
    add(shared / "ng1n1", "nvme-generic", root)
    add(shared / "nvme1n1", "block", root, nsid="1")
    add(shared / "ng1n12", "nvme-generic", root)
    return Host(root)


def names(found: tuple[nodes.KernelNode, ...]) -> list[str]:
    return [node.path.name for node in found]


def test_namespaces_of_a_controller(host: Host) -> None:
    plain = host.root / PCI / "nvme0"
    assert names(nodes.namespaces_below(plain, "generic", host=host)) == ["ng0n1"]
    assert nodes.parents_of(plain, host=host) == (plain,)
    assert nodes.controllers_of(plain) == (plain,)


def test_a_shared_namespace_is_below_its_subsystem(host: Host) -> None:
    shared = host.root / VIRTUAL / "nvme-subsys1"
    second = host.root / PCI / "nvme2"
    assert nodes.parents_of(second, host=host) == (second, shared)
    assert names(nodes.namespaces_below(second, "block", host=host)) == []
    assert names(nodes.namespaces_below(shared, "block", host=host)) == ["nvme1n1"]
    assert [c.name for c in nodes.controllers_of(shared)] == ["nvme2", "nvme1"], "live first"


def test_the_two_nodes_of_a_namespace(host: Host) -> None:
    shared = host.root / VIRTUAL / "nvme-subsys1"
    one, twelve = nodes.namespaces_below(shared, "generic", host=host)
    found = nodes.sibling(one, "block", host=host)
    assert found is not None and found.path == host.dev / "nvme1n1"
    assert nodes.sibling(twelve, "block", host=host) is None
    # as a kernel does after a hot plug: the numbers in front differ
    add(shared / "nvme4n12", "block", host.root, nsid="3")
    found = nodes.sibling(twelve, "block", host=host)
    assert found is not None and found.path == host.dev / "nvme4n12"


def test_what_is_no_node_of_the_driver(host: Host) -> None:
    plain = host.root / PCI / "nvme0"
    with pytest.raises(errors.TargetError, match=r"whole namespace, .*nvme0n1"):
        nodes.node_of(plain / "nvme0n1/nvme0n1p1", host=host)
    assert nodes.node_of(host.root / "sys", host=host) is None
    disk = add(host.root / "sys/devices/ata/sda", "block", host.root)
    assert nodes.node_of(disk, host=host) is None
    for path in ("/dev/null", "/dev/zero"):
        with pytest.raises(errors.TargetError, match="no NVMe"):
            nodes.resolve(path)


def test_a_kernel_without_passthrough_nodes_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceNotFoundError):
        nodes.resolve(str(tmp_path / "ng0n9"), host=host)
    old = tmp_path / "old"
    (old / "sys/class/nvme").mkdir(parents=True)
    with pytest.raises(errors.UnsupportedOnTransport, match="makes no such nodes"):
        nodes.resolve(str(tmp_path / "ng0n9"), host=Host(old))
    for name in ("ng0n9", "nvme0n9", "nvme9"):
        with pytest.raises(errors.DeviceNotFoundError, match="driver is not loaded"):
            nodes.resolve(str(tmp_path / name), host=Host(tmp_path / "nothing"))


@pytest.mark.parametrize(("sectors", "segments", "limit"), [
    ("128", "33", 128 << 10), ("1024", "127", 126 * 4096), ("512", "1", 512 << 10), ("", "", 4096),
])  # fmt: skip
def test_how_much_one_command_moves(
    tmp_path: Path, sectors: str, segments: str, limit: int
) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    for name, text in (("max_hw_sectors_kb", sectors), ("max_segments", segments)):
        if text:
            (queue / name).write_text(text + "\n")
    facts = BlockFacts.read(tmp_path, Host())
    assert facts.max_transfer == limit
    assert facts.dma_alignment == 511 and not facts.io_poll


def test_a_controller_put_together(host: Host) -> None:
    made = synthesised_controller(host.root / PCI / "nvme0", host)
    assert (made.sn.strip(), made.mn.strip(), made.ver) == ("S0", "", 0)
    assert len(made.encode()) == 4096
    assert synthesised_controller(None, host).sn.strip() == ""


def test_admin_commands_that_are_refused_before_the_kernel() -> None:
    with open("/dev/null", "rb") as file:  # noqa: PTH123

        def send(sqe: bytes, **kwargs: object) -> None:
            admin_command(file.fileno(), sqe, device="x", path="/dev/null", **kwargs)  # type: ignore[arg-type]

        for sqe in (bytes([0x01]) + bytes(63), bytes([0x7C]) + bytes(63),
                    bytes([6, 0x40]) + bytes(62), bytes([6, 1]) + bytes(62),
                    bytes([6]) + bytes(15) + b"\1" + bytes(47)):  # fmt: skip
            with pytest.raises(errors.UnsupportedOnTransport):
                send(sqe)
        with pytest.raises(errors.InvalidRequestError):
            send(bytes(63))
        with pytest.raises(errors.InvalidRequestError):
            send(bytes([6]) + bytes(63), read=4, write=b"1234")
        with pytest.raises(errors.UnsupportedOnTransport, match="takes no admin commands"):
            send(bytes([6]) + bytes(63), read=4096)
