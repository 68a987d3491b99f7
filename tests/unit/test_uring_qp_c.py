# SPDX-License-Identifier: Apache-2.0
"""The C tests of tests/unit/c_uring: a queue over io_uring, its kernel played by the test."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "c_uring"
SOURCES = sorted(ROOT.glob("udrv/rings/src/uring_qp*.c"))
FLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    f"-I{ROOT}/udrv/core/include", f"-I{ROOT}/udrv/rings/include",
]  # fmt: skip
TESTS = re.findall(r"^TEST\((\w+)\)", (FOLDER / "test_uring_qp.c").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("c") / "test_uring_qp"
    command = ["gcc", *FLAGS, str(FOLDER / "test_uring_qp.c"), *map(str, SOURCES), "-o", str(out)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return out


@pytest.mark.parametrize("name", TESTS)
def test_c(binary: Path, name: str) -> None:
    ran = subprocess.run(
        [binary, name], capture_output=True, text=True, timeout=120, check=False,
        env={"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_c_test_is_in_the_programs_table(binary: Path) -> None:
    listed = subprocess.run([binary], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == sorted(TESTS)
