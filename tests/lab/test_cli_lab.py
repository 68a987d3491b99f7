"""The commands on a real kernel: list, bind with its reasons, write and read, unbind."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from udrv.cli.main import app
from udrv.lab.info import LabDevice

pytestmark = pytest.mark.lab


def _run(*args: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def _json(*args: object, stdin: bytes | None = None) -> Any:
    result = _run(*args, "--json", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _listed(bdf: str) -> dict[str, Any]:
    return next(one for one in _json("list")["devices"] if one["bdf"] == bdf)


def _disk(bdf: str, namespaces: int = 1) -> Path:
    """Return the node of the first namespace when all are there: the kernel scans on its own."""
    for _ in range(600):
        names = [ns["name"] for ns in _listed(bdf)["namespaces"]]
        if len(names) == namespaces and all(Path("/dev", name).exists() for name in names):
            return Path("/dev", names[0])
        time.sleep(0.1)
    raise AssertionError(f"{bdf} has {names}, not {namespaces} namespaces")


@pytest.fixture
def given_back(lab_devices: tuple[LabDevice, ...]) -> Iterator[tuple[str, str]]:
    """(address, serial) of the second device; whatever the test does with its driver is undone."""
    bdf, serial = str(lab_devices[1].bdf), str(lab_devices[1].serial)
    _disk(bdf)
    yield bdf, serial
    _run("unbind", bdf)
    _disk(bdf)


def test_list_shows_serials_and_namespaces(lab_devices: tuple[LabDevice, ...]) -> None:
    for device in lab_devices[:2]:
        bdf = str(device.bdf)
        _disk(bdf, len(device.namespaces))
        listed = _listed(bdf)
        assert listed["driver"] == "nvme"
        assert listed["serial"] == device.serial
        assert listed["iommu_group"] is not None
        assert [
            (ns["nsid"], ns["bytes"], ns["lba_size"]) for ns in listed["namespaces"]
        ] == [(ns.nsid, ns.size, ns.lba_size) for ns in device.namespaces]
        assert listed["namespaces"][0]["i_mean"] == f"{device.serial}:1"
        assert str(device.serial) in _run("list").stdout


def test_bind_write_read_and_unbind(given_back: tuple[str, str]) -> None:
    bdf, target = given_back[0], f"pci:{given_back[0]}"
    disk = _disk(bdf)
    listed = _listed(bdf)
    plan = _json("bind", bdf, "--dry-run", "--force")
    assert plan["changed"] is False
    assert _listed(bdf)["driver"] == "nvme"

    assert _json("bind", bdf, "--force")["changed"] is True
    bound = _listed(bdf)
    assert (bound["driver"], bound["previous_driver"]) == ("vfio-pci", "nvme")
    assert bound["serial"] is None
    assert not disk.exists()

    data = np.random.default_rng(5).bytes(1 << 20)
    refused = _run("write", target, "--lba", 2048, stdin=data)
    assert refused.exit_code == 1
    i_mean = listed["namespaces"][0]["i_mean"]
    assert f"--i-mean {i_mean}" in refused.stderr
    report = _json("write", target, "--lba", 2048, "--i-mean", i_mean, stdin=data)
    assert report["bytes"] == len(data)
    again = _run("read", target, "--lba", 2048, "--blocks", report["blocks"])
    assert again.stdout_bytes == data
    smart = _json("smart-log", target)
    assert smart["host_write_commands"] > 0

    assert _json("unbind", bdf)["driver"] == "nvme"
    with _disk(bdf).open("rb") as file:
        file.seek(2048 * report["lba_size"])
        assert file.read(len(data)) == data


def test_bind_refuses_a_mounted_disk(given_back: tuple[str, str], tmp_path: Path) -> None:
    bdf, _ = given_back
    disk = _disk(bdf)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk, "64M"], check=True)
    try:
        signed = _run("bind", bdf, "--dry-run")
        assert signed.exit_code == 1
        assert "ext4" in signed.stdout
        subprocess.run(["mount", disk, tmp_path], check=True)
        try:
            refused = _run("bind", bdf, "--force")
            assert refused.exit_code == 1
            assert f"mounted on {tmp_path}" in refused.stderr
            assert _listed(bdf)["driver"] == "nvme"
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    finally:
        subprocess.run(["wipefs", "-q", "-a", disk], check=True)


def test_opening_without_a_bind_says_what_to_do(given_back: tuple[str, str]) -> None:
    result = _run("id-ctrl", f"pci:{given_back[0]}")
    assert result.exit_code == 1
    assert "udrv bind" in result.stderr


def test_a_scoped_bind_gives_the_function_back(given_back: tuple[str, str]) -> None:
    bdf, serial = given_back
    out = _json("id-ctrl", f"pci:{bdf}", "--bind")
    assert out["sn"].strip() == serial
    assert _listed(bdf)["driver"] == "nvme"
