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
RUNS = {"vfio_user": 40_000, "nvme": 15_000, "control": 6_000, "qp": 40_000}


@pytest.fixture(scope="module")
def programs() -> Path:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fuzz"), "plain"], check=True)
    return ROOT / "build" / "fuzz"


def test_each_fuzzer_has_its_short_run() -> None:
    assert {path.stem for path in (ROOT / "fuzz").glob("fuzz_*.c")} == {f"fuzz_{t}" for t in RUNS}


def run(program: Path, runs: int, left: Path, **environment: str) -> None:
    ran = subprocess.run(
        [program, str(runs), "1"],
        env=os.environ | {"FUZZ_KEEP": str(left), "UBSAN_OPTIONS": "print_stacktrace=1"}
        | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}\nthe input is in {left}"
    assert f"{runs} runs" in ran.stdout


@pytest.mark.parametrize("target", RUNS)
def test_short_run(programs: Path, tmp_path: Path, target: str) -> None:
    """What fails is left in `input`, for `build/fuzz/TARGET-plain FILE`."""
    run(programs / f"{target}-plain", RUNS[target], tmp_path / "input")


def test_memory_that_changes_while_it_is_read(programs: Path, tmp_path: Path) -> None:
    """A value that is looked at twice would be two values, sooner or later."""
    run(programs / "nvme-plain", 4_000, tmp_path / "input", FUZZ_RACE="1")
