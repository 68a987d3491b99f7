"""The C tests of tests/unit/c, each in its own process, under the address and undefined-behaviour
sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "c"
NAMES = (
    "qp.c", "qp_reap.c", "qp_recover.c", "qp_state.c", "queue.c", "wait.c", "lane.c", "clock.c",
    "hist.c", "sigbus.c", "stream.c", "stream_pass.c", "stream_read.c", "stream_ring.c", "window.c",
)  # fmt: skip
CORE = [ROOT / "udrv/core/src" / name for name in NAMES]
FLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    f"-I{ROOT}/udrv/core/include",
]
TESTS = [
    (source.stem, name)
    for source in sorted(FOLDER.glob("test_*.c"))
    for name in re.findall(r"^TEST\((\w+)\)", source.read_text(), re.MULTILINE)
]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The test programs, compiled once."""
    folder = tmp_path_factory.mktemp("c")
    built = {}
    for source in sorted(FOLDER.glob("test_*.c")):
        built[source.stem] = folder / source.stem
        command = ["gcc", *FLAGS, str(source), *map(str, CORE), "-o", str(built[source.stem])]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        assert compiled.returncode == 0, compiled.stderr
    return built


@pytest.mark.parametrize(("program", "name"), TESTS, ids=[f"{p}-{n}" for p, n in TESTS])
def test_c(binaries: dict[str, Path], program: str, name: str) -> None:
    ran = subprocess.run(
        [binaries[program], name], capture_output=True, text=True, timeout=120, check=False,
        env={"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_c_test_is_in_its_programs_table(binaries: dict[str, Path]) -> None:
    listed = [
        (program, name)
        for program, binary in binaries.items()
        for name in subprocess.run(
            [binary], capture_output=True, text=True, check=True
        ).stdout.split()
    ]
    assert sorted(listed) == sorted(TESTS)
