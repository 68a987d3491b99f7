# SPDX-License-Identifier: Apache-2.0
"""udrv.rings where liburing is whole, has no archive, or is not there at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# a compiler that cannot find what the first line names
WRAPPER = """#!/bin/sh
for word; do
    case " $MISSING " in *" $word "*) exit 1 ;; esac
done
exec gcc "$@"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What an extension build of udrv.rings needs, alone."""
    folder = tmp_path / "source"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "LICENSES/Apache-2.0.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    ignore = shutil.ignore_patterns("*.so", "_core.c", "_soft.c", "_uring.c", "__pycache__")
    shutil.copytree(ROOT / "udrv", folder / "udrv", ignore=ignore)
    return folder


def build(source: Path, missing: str, extensions: str | None = None) -> str:
    """Build the extensions in place with a compiler that lacks `missing`; what it said."""
    wrapper = source / "cc"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    environment = {**os.environ, "CC": str(wrapper), "MISSING": missing}
    environment.pop("UDRV_EXTENSIONS", None)
    if extensions is not None:
        environment["UDRV_EXTENSIONS"] = extensions
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=source,
        env=environment, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def python(source: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HERE = "import udrv; assert udrv.__file__.startswith('{source}'), udrv.__file__; "
LINKAGE = HERE + "from udrv.rings.native import lib; print(lib.UDRV_LIBURING_SHARED)"


def test_without_an_archive_the_shared_library_is_linked_and_that_is_said(source: Path) -> None:
    # only this extension: core and soft have nothing to do with it
    said = build(source, "-l:liburing.a", "rings")
    assert "needs liburing.so at run time" in said
    assert python(source, LINKAGE.format(source=source)) == "1"
    needed = subprocess.run(
        ["objdump", "-p", source / "udrv/rings/_uring.abi3.so"], capture_output=True, text=True,
        check=True,
    ).stdout
    assert "liburing.so" in needed


def test_without_liburing_the_rest_is_built_and_the_error_has_the_mend(source: Path) -> None:
    said = build(source, "-l:liburing.a -luring")
    assert "WITHOUT udrv.rings" in said
    assert "install liburing-dev" in said
    assert not list(source.glob("udrv/rings/*.so"))
    code = HERE.format(source=source) + """
from udrv.errors import UringNotBuiltError
import udrv.rings
try:
    import udrv.rings.native
except UringNotBuiltError as exc:
    assert isinstance(exc, ImportError)
    print(exc)
"""
    assert "install liburing-dev" in python(source, code)
    code = HERE.format(source=source) + "c = udrv.open('soft:?size=16M'); print(c.close())"
    assert python(source, code) == "None"


def test_rings_asked_for_by_name_must_be_built(source: Path) -> None:
    with pytest.raises(AssertionError, match="there is no liburing"):
        build(source, "-l:liburing.a -luring", "rings")


def test_here_liburing_is_linked_statically() -> None:
    """Debian's archive is position independent."""
    from udrv.rings.native import lib

    assert lib.UDRV_LIBURING_SHARED == 0
    assert lib.UDRV_LIBURING_VERSION >= 203
