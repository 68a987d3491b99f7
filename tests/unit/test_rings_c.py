# SPDX-License-Identifier: Apache-2.0
"""Random calls on a ring in C, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rings_rig import require_io_uring

from udrv.rings.flags import SetupFlag

HERE = Path(__file__).resolve().parent
UDRV = HERE.parents[1] / "udrv"
FLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    f"-I{UDRV}/core/include", f"-I{UDRV}/rings/include",
]  # fmt: skip
SETUPS = [
    SetupFlag(0), SetupFlag.SQE128 | SetupFlag.CQE32, SetupFlag.COOP_TASKRUN, SetupFlag.SQPOLL,
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_io_uring()
    out = tmp_path_factory.mktemp("c") / "rings_rig"
    sources = [HERE / "rings_rig.c", UDRV / "rings/src/uring.c", UDRV / "rings/src/uring_io.c"]
    command = ["gcc", *FLAGS, *map(str, sources), "-o", str(out), "-luring"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return out


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name or "plain")
@pytest.mark.parametrize("seed", range(1, 4))
def test_random_calls(program: Path, seed: int, setup: SetupFlag) -> None:
    ran = subprocess.run(
        [program, str(seed), str(int(setup))], capture_output=True, text=True, timeout=120,
        check=False,
        env={"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
