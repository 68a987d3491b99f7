"""The layers of docs/architecture.md, held by import-linter; its configuration is in pyproject."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
         "--no-cache", "--no-logo"],
        cwd=folder, env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )


def test_imports_go_down_only() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("udrv/errors.py", "import udrv.nvme", "udrv.errors is not allowed to import udrv.nvme"),
        ("udrv/core/wrong.py", "import udrv.vfio.device", "udrv.core is not allowed to import"),
        ("udrv/newcomer.py", "", "udrv.newcomer"),
    ],
    ids=["upwards", "upwards from a package", "a module on no layer"],
)
def test_a_breach_is_seen(tmp_path: Path, path: str, line: str, complaint: str) -> None:
    for source in (ROOT / "udrv").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    broken = tmp_path / path
    before = broken.read_text() if broken.exists() else ""
    broken.write_text(f"{before}\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    assert complaint in " ".join(result.stdout.split())
