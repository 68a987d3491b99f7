# SPDX-License-Identifier: Apache-2.0
"""`udrv-lab` says what is wrong in a line, before it boots anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--allow", "["], "regular expression"),
        (["--device", "nvme,ns=512:99999999T"], "99999999T"),
        (["--device", "nonsense"], "docs/lab.md"),
        (["--env", "1=2"], "NAME=VALUE"),
        (["--out", "FILE"], "FILE"),
    ],
)
def test_a_bad_option_is_one_line_and_status_125(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "FILE").write_text("in the way")
    ran = subprocess.run(
        [sys.executable, "-m", "udrv.lab", "run", *arguments, "--", "true"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100,
    )  # fmt: skip
    assert ran.returncode == 125, ran.stderr
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def test_debug_shows_the_traceback_and_keeps_the_status() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "udrv.lab", "--debug", "run", "--env", "1=2", "--", "true"],
        capture_output=True, text=True, check=False, timeout=100,
    )
    assert ran.returncode == 125
    assert "Traceback" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("udrv-lab: --env"), "the line comes last"
