"""`udrv list` on a machine made of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from udrv.cli.listing import collect
from udrv.cli.main import app
from udrv.pci import Host

_IDS = {
    "vendor": "0x1b36", "device": "0x0010", "class": "0x010802", "revision": "0x02",
    "subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "driver_override": "(null)",
}


def _write(directory: Path, **attributes: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in attributes.items():
        (directory / name).write_text(text + "\n")
    return directory


def _link(where: Path, to: Path) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    where.symlink_to(to)


def _function(root: Path, bdf: str, driver: str, group: int, class_code: str = "0x010802") -> Path:
    path = _write(
        root / "sys/devices/pci0000:00" / bdf, **(_IDS | {"class": class_code}), numa_node="1"
    )
    _link(path / "driver", _write(root / "sys/bus/pci/drivers" / driver))
    _link(path / "iommu_group", _write(root / "sys/kernel/iommu_groups" / str(group)))
    _link(root / "sys/bus/pci/devices" / bdf, path)
    return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A function on nvme with one namespace, one on vfio-pci, and a network card."""
    root = tmp_path
    for name in ("proc", "dev", "run"):
        (root / name).mkdir()
    (root / "proc/self").mkdir()
    kernel = _function(root, "0000:01:00.0", "nvme", 3)
    controller = _write(
        kernel / "nvme/nvme0", serial="S\x07A1", model="QEMU NVMe Ctrl", firmware_rev="7.2.0",
        state="live",
    )
    disk = _write(
        controller / "nvme0n1", nsid="1", size="2097152", eui="00 25 38 00 00 00 00 01",
        nguid="00000000-0000-0000-0000-000000000000",
    )
    _write(disk / "queue", logical_block_size="4096")
    block = root / "sys/class/block"
    _link(disk / "subsystem", _write(block))
    _link(block / "nvme0n1", disk)
    _function(root, "0000:02:00.0", "vfio-pci", 4)
    _function(root, "0000:03:00.0", "e1000e", 5, class_code="0x020000")
    _write(
        root / "run/udrv/bind",
        **{"0000:02:00.0.json": json.dumps({
            "bdf": "0000:02:00.0", "driver": "nvme", "driver_override": None,
            "bound_to": "vfio-pci", "token": "t", "scoped": False,
        })},
    )
    (root / "proc/self/mountinfo").write_text(
        "36 1 259:1 / /data rw - ext4 /dev/nvme0n1 rw\n"
    )
    (disk / "dev").write_text("259:1\n")
    return Host(root)


def test_functions_and_namespaces(host: Host) -> None:
    kernel, user = collect(host)
    assert kernel["target"] == "pci:0000:01:00.0"
    assert kernel["driver"] == "nvme"
    assert (kernel["iommu_group"], kernel["numa_node"], kernel["controller"]) == (3, 1, "nvme0")
    assert (kernel["serial"], kernel["model"]) == ("S\x07A1", "QEMU NVMe Ctrl")
    assert kernel["namespaces"] == [{
        "name": "nvme0n1", "targets": ["/dev/nvme0n1"], "nsid": 1, "bytes": 1 << 30,
        "lba_size": 4096,
        "eui64": "0025380000000001", "nguid": None, "i_mean": "S\x07A1:1",
    }]
    assert any("mounted on /data" in text for text in kernel["in_use"])
    assert user["driver"] == "vfio-pci"
    assert user["previous_driver"] == "nvme"
    assert user["serial"] is None
    assert user["namespaces"] == []
    assert user["in_use"] == []


def test_namespaces_are_in_the_order_of_their_nsid(host: Host) -> None:
    # As a 6.12 kernel was seen to do: nvme0n1 is NSID 2, nvme0n2 is NSID 1.
    controller = host.sys / "devices/pci0000:00/0000:01:00.0/nvme/nvme0"
    (controller / "nvme0n1/nsid").write_text("2\n")
    first = _write(controller / "nvme0n2", nsid="1", size="8")
    _link(first / "subsystem", host.sys / "class/block")
    _link(host.sys / "class/block/nvme0n2", first)
    found = collect(host)[0]["namespaces"]
    assert [(ns["name"], ns["nsid"]) for ns in found] == [("nvme0n2", 1), ("nvme0n1", 2)]


def test_passthrough_nodes_come_first(host: Host) -> None:
    controller = host.sys / "devices/pci0000:00/0000:01:00.0/nvme/nvme0"
    _write(controller / "ng3n2", dev="243:1")  # of another namespace
    _write(controller / "ng3n1", dev="243:2")  # as after a hot plug: another number in front
    assert collect(host)[0]["namespaces"][0]["targets"] == ["/dev/ng3n1", "/dev/nvme0n1"]


def test_json_and_tables(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udrv.pci.HOST", host)
    result = CliRunner().invoke(app, ["list", "--json"])
    assert json.loads(result.stdout)["devices"] == collect(host)
    text = CliRunner().invoke(app, ["list"]).stdout
    assert "pci:0000:02:00.0" in text
    assert "S\\x07A1:1" in text
    assert "\x07" not in text
    assert "1 GiB" in text
    assert "mounted on /data" in text


def test_a_machine_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udrv.pci.HOST", Host(tmp_path))
    assert CliRunner().invoke(app, ["list"]).stdout == "no NVMe functions found\n"
    assert json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout) == {"devices": []}
