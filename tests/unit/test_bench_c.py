# SPDX-License-Identifier: Apache-2.0
"""The load generator in C against a device in C, under the address and undefined sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "udrv" / "core"
FLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    f"-I{CORE}/include",
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("c") / "bench_rig"
    sources = [HERE / "bench_rig.c", *sorted((CORE / "src").glob("*.c"))]
    command = ["gcc", *FLAGS, *map(str, sources), "-o", str(out)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return out


@pytest.mark.parametrize("seed", range(1, 6))
def test_random_jobs_on_a_device_that_completes_in_any_order(program: Path, seed: int) -> None:
    ran = subprocess.run(
        [program, str(seed)], capture_output=True, text=True, timeout=240, check=False,
        env={"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
