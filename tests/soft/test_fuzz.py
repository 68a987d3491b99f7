# SPDX-License-Identifier: Apache-2.0
"""A short run of each fuzzer of fuzz/, the same inputs every time; `make fuzz` is the long one.

Built with gcc, the address and the undefined-behaviour sanitizer, and driven by fuzz/driver.c, so
that it runs where there is no libFuzzer.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Inputs, some seconds of each.
RUNS = {"vfio_user": 40_000, "nvme": 20_000, "control": 6_000, "qp": 40_000}


@pytest.fixture(scope="module")
def programs() -> Path:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fuzz"), "plain"], check=True)
    return ROOT / "build" / "fuzz"


def test_each_fuzzer_has_its_short_run() -> None:
    assert {path.stem for path in (ROOT / "fuzz").glob("fuzz_*.c")} == {f"fuzz_{t}" for t in RUNS}


@pytest.mark.parametrize("target", RUNS)
def test_short_run(programs: Path, tmp_path: Path, target: str) -> None:
    """What fails is left in `input`, for `build/fuzz/TARGET-plain FILE`."""
    left = tmp_path / "input"
    ran = subprocess.run(
        [programs / f"{target}-plain", str(RUNS[target]), "1"],
        env=os.environ | {"FUZZ_KEEP": str(left), "UBSAN_OPTIONS": "print_stacktrace=1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}\nthe input is in {left}"
    assert f"{RUNS[target]} runs" in ran.stdout
