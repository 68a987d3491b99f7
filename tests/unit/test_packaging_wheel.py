"""The source archive builds a wheel, and the wheel works where nothing of this checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "UDRV_EXTENSIONS")}
PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.full(minutes=4)
@pytest.mark.timeout(600)
def test_the_wheel_of_the_source_archive_works_elsewhere(tmp_path: Path) -> None:
    # a copy, so that neither build sees what was built here before
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    source = tmp_path / "source"
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
            (source / name).chmod((ROOT / name).stat().st_mode)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=source)
    (archive,) = tmp_path.glob("udrv-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel_options = ["--no-deps", "--no-build-isolation", "-w", tmp_path]
    run(sys.executable, *PIP, "wheel", *wheel_options, unpacked, cwd=tmp_path)

    (wheel,) = tmp_path.glob("udrv-*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    for package, module in (("core", "_core"), ("rings", "_uring"), ("soft", "_soft")):
        assert f"udrv/{package}/{module}.abi3.so" in names
        assert f"udrv/{package}/{module}.pyi" in names
        assert f"udrv/{package}/{module}.c" not in names
    assert {"udrv/py.typed", "udrv/core/decl/qp.h", "udrv/core/include/udrv/qp.h"} <= names
    for folder in ("udrv/lab/guest", "udrv/bench/templates"):
        files = {str(p.relative_to(ROOT)) for p in (ROOT / folder).iterdir() if p.is_file()}
        assert files
        assert files <= names
    python_files = {str(p.relative_to(ROOT)) for p in (ROOT / "udrv").rglob("*.py")}
    assert python_files <= names
    assert not [n for n in names if not n.startswith(("udrv/", "udrv-"))]

    run(sys.executable, "-m", "venv", tmp_path / "fresh", cwd=tmp_path)
    python = tmp_path / "fresh/bin/python"
    run(python, *PIP, "install", wheel, cwd=tmp_path)
    modules = "udrv, udrv.core, udrv.rings.native, udrv.soft._soft"
    code = f"import {modules}; print(udrv.__file__, udrv.Controller)"
    assert str(tmp_path / "fresh") in run(python, "-I", "-c", code, cwd=tmp_path)
    for script in ("udrv", "udrv-bench", "udrv-lab"):
        assert "Usage" in run(tmp_path / "fresh/bin" / script, "--help", cwd=tmp_path)
    print_iops = "print(c.namespace(1).read(0, 1).nbytes)"
    code = f"import udrv\nwith udrv.open('soft:?size=16M&lba=512') as c: {print_iops}"
    assert run(python, "-I", "-c", code, cwd=tmp_path).strip() == "512"
