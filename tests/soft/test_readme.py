# SPDX-License-Identifier: Apache-2.0
"""The examples that a newcomer copies first, executed as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def block(document: str, heading: str, language: str) -> str:
    """The first fenced block of `language` behind `heading`."""
    behind = (ROOT / document).read_text().split(f"{heading}\n", 1)[1]
    found = re.search(rf"^```{language}\n(.*?)^```$", behind, re.DOTALL | re.MULTILINE)
    assert found, f"{document} has no such block below {heading!r}"
    return found[1]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """In another directory, with this environment's programs first on the PATH."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=120, check=False)


def test_the_python_example_of_the_readme(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block("README.md", "## From Python", "python"))
    result = run([sys.executable, "-W", "error", str(script)], tmp_path)
    assert result.returncode == 0, result.stderr
    greeting, latency = result.stdout.splitlines()
    assert greeting == "b'hello' 1"
    assert int(latency) > 0
    assert result.stderr == ""


def test_the_example_of_the_async_page(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block("docs/async.md", "# asyncio", "python"))
    result = run([sys.executable, "-W", "error", str(script)], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "b'hello'\n1003\n"


@pytest.mark.parametrize(("page", "heading", "output"), [
    ("docs/soft.md", "## What it counted", r"[01]\n"),
    ("docs/faults.md", "# Faults", r"\[LoadedFault\(id=1, .*drop.*LoadedFault\(id=2, .*late.*\]\n"),
])  # fmt: skip
def test_the_other_pages_of_the_software_device(
    page: str, heading: str, output: str, tmp_path: Path
) -> None:
    script = tmp_path / "example.py"
    script.write_text(block(page, heading, "python"))
    result = run([sys.executable, "-W", "error", str(script)], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(output, result.stdout)


def test_the_commands_of_the_soft_page(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    commands = block("docs/soft.md", "# The software device: `soft:`", "")
    socket = tmp_path / "s"
    assert "/tmp/ctrl.sock" in commands
    commands = commands.replace("/tmp/ctrl.sock", str(socket))
    # a person waits until the server says that it is ready
    waiting, found = re.subn(
        r"&( +#.*)$", f"&\nuntil [ -S {socket} ]; do sleep 0.1; done", commands,
        flags=re.MULTILINE)
    assert found == 1
    result = run(["sh", "-eu", "-c", f"trap 'kill $!; wait $!' EXIT\n{waiting}"], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nsze      2097152 " in result.stdout, "1 GiB in blocks of 512 bytes"
    assert "\n# udrv\n" in result.stdout, "the first line of README.md, through the file"
    assert f"ready: udrv id-ctrl vfio-user:{socket}" in result.stdout


@pytest.mark.parametrize("target", ["soft:", "soft:?size=16M"])
def test_the_demo_of_the_makefile(target: str, tmp_path: Path) -> None:
    demo = re.search(r"^DEMO := '[^']*' (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert demo
    short = re.sub(r"--runtime \d+", "--runtime 100ms", demo[1])
    assert short != demo[1]
    result = run(["udrv-bench", "run", target, *short.split()], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "read: " in result.stdout
