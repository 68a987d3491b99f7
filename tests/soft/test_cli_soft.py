"""The commands on the software controller, as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from udrv.cli.main import app

LBA = 4096


def _run(*args: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def _json(*args: object, stdin: bytes | None = None) -> Any:
    result = _run(*args, "--json", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file of 64 MiB for a namespace."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return path


def test_identify_and_logs() -> None:
    ctrl = _json("id-ctrl", "soft:?size=64M&serial=CLI1")
    assert ctrl["sn"].strip() == "CLI1"
    ns = _json("id-ns", "soft:?size=64M&lba=512")
    assert ns["nsze"] == (64 << 20) // 512
    assert ns["lbafs"][ns["flbas"] & 15]["ds"] == 9
    assert "temperature" in _json("smart-log", "soft:?size=64M")
    assert _json("error-log", "soft:?size=64M")["errors"] == []
    for command in ("id-ctrl", "id-ns", "smart-log", "error-log"):
        assert _run(command, "soft:?size=64M").exit_code == 0


def test_what_is_written_is_in_the_file_and_reads_back(disk: Path, tmp_path: Path) -> None:
    target = f"soft:?file={disk}&lba={LBA}"
    data = np.random.default_rng(3).bytes(9 << 20)
    report = _json("write", target, "--lba", 5, stdin=data)
    assert report["bytes"] == len(data)
    with disk.open("rb") as file:
        file.seek(5 * LBA)
        assert file.read(len(data)) == data
    out = tmp_path / "out"
    report = _json("read", target, "--lba", 5, "--blocks", len(data) // LBA, "-o", out)
    assert out.read_bytes() == data
    assert report["sha256"] == hashlib.sha256(data).hexdigest()


def test_padding_reaches_to_the_end_of_the_block_and_no_further(disk: Path) -> None:
    disk.write_bytes(b"\xaa" * (4 * LBA))
    result = _run("write", f"soft:?file={disk}&lba={LBA}", "--lba", 1, "--pad", stdin=b"xyz")
    assert result.exit_code == 0, result.stderr
    wanted = b"\xaa" * LBA + b"xyz".ljust(LBA, b"\0") + b"\xaa" * (2 * LBA)
    assert disk.read_bytes() == wanted


def test_the_namespace_has_to_be_named_if_there_are_two() -> None:
    target = "soft:?ns=4096:16M+512:8M"
    result = _run("id-ns", target)
    assert result.exit_code == 1
    assert "(1, 2): choose one with --nsid" in result.stderr
    assert _json("id-ns", target, "--nsid", 2)["nsze"] == (8 << 20) // 512
    assert "no active namespace 3" in _run("id-ns", target, "--nsid", 3).stderr


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("soft:?size=x", "size"), ("nonsense", "is no target"),
        ("vfio-user:/nonexistent.sock", "/nonexistent.sock"), ("pci:zz", "PCI address"),
    ],
)
def test_targets_that_cannot_be_opened(target: str, text: str) -> None:
    result = _run("id-ctrl", target)
    assert result.exit_code == 1
    assert result.stderr.startswith("udrv: ")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`udrv soft serve` in a process of its own, and the target that it announced."""
    socket = tmp_path / "nvme.sock"
    child = subprocess.Popen(
        [sys.executable, "-m", "udrv.cli.main", "soft", "serve", str(socket),
         "size=64M&lba=4096&serial=SERVED", "--json"],
        stdout=subprocess.PIPE, text=True,
    )
    try:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        assert ready == {"event": "ready", "target": f"vfio-user:{socket}"}
        yield child, ready["target"]
    finally:
        child.kill()
        child.communicate()


def test_serve_keeps_the_data_from_one_client_to_the_next(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    child, target = server
    assert child.stdout is not None
    assert _json("id-ctrl", target)["sn"].strip() == "SERVED"
    data = os.urandom(3 * LBA)
    # Somebody else's controller is not ours to overwrite.
    refused = _run("write", target, "--lba", 1, stdin=data)
    assert refused.exit_code == 1
    assert "--i-mean SERVED:1" in refused.stderr
    assert _run("write", target, "--lba", 1, "--i-mean", "SERVED:1", stdin=data).exit_code == 0
    assert _run("read", target, "--lba", 1, "--blocks", 3).stdout_bytes == data
    for _client in range(4):
        assert json.loads(child.stdout.readline())["event"] == "client-end"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert json.loads(out) == {"event": "stopped"}
    assert child.returncode == 0
    assert not Path(target.removeprefix("vfio-user:")).exists()


def test_serve_where_somebody_listens_already(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    result = _run("soft", "serve", server[1].removeprefix("vfio-user:"))
    assert result.exit_code == 1
    assert "listens" in result.stderr


def test_a_closed_pipe_ends_quietly(disk: Path) -> None:
    command = [sys.executable, "-m", "udrv.cli.main", "read", f"soft:?file={disk}",
               "--blocks", str((64 << 20) // LBA)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read(10) == bytes(10)
        child.stdout.close()
        said = child.stderr.read()
    assert said == b""
    assert child.returncode == 1


def test_faults_of_a_served_controller(tmp_path: Path) -> None:
    """Loaded before a client comes, met by it, counted after it left."""
    sock, control, script = tmp_path / "sock", tmp_path / "control", tmp_path / "script"
    script.write_text('[[fault]]\neffect = "media_error"\nname = "bad"\nscope.lba = 3\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "udrv.cli.main", "soft", "serve", str(sock), "--json",
         f"size=16M&control={control}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready"
        assert control.stat().st_mode & 0o777 == 0o600
        assert _json("soft", "fault", control, "list") == []
        assert _json("soft", "fault", control, "add", script) == {"ids": [1]}
        text = script.read_bytes()
        assert _json("soft", "fault", control, "add", "-", stdin=text) == {"ids": [2]}
        assert _run("soft", "fault", control, "clear", 2).exit_code == 0
        assert _run("read", f"vfio-user:{sock}", "--lba", 4, "--blocks", 1, "-o", tmp_path / "x"
                    ).exit_code == 0
        failed = _run("read", f"vfio-user:{sock}", "--lba", 3, "--blocks", 1, "-o", tmp_path / "x")
        assert failed.exit_code == 1
        assert "unrecovered" in failed.stderr.lower()
        [one] = _json("soft", "fault", control, "list")
        # it was tried again five times
        assert (one["id"], one["fault"]["name"], one["matched"], one["applied"]) == (1, "bad", 6, 6)
        assert "media_error" in _run("soft", "fault", control, "list").stdout
        assert _run("soft", "fault", control, "sync").exit_code == 0
        wrong = _run("soft", "fault", control, "clear", 7)
        assert (wrong.exit_code, "no fault of that id" in wrong.stderr) == (1, True)
        assert _run("soft", "fault", control, "add").exit_code == 2
        assert _run("soft", "fault", control, "list", script).exit_code == 2
        assert _run("soft", "fault", control, "clear", "x").exit_code == 2
        assert _run("soft", "fault", control, "replace", script).exit_code == 0
        assert _run("soft", "fault", control, "clear").exit_code == 0
        assert _json("soft", "fault", control, "list") == []
    finally:
        process.terminate()
        process.wait(20)
    assert not control.exists()
    assert _run("soft", "fault", control, "list").exit_code == 1
