"""The commands with standard streams that are closed, full or cut, and inputs without an end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UDRV = f"{sys.executable} -m udrv.cli.main"
BENCH = f"{sys.executable} -m udrv.bench.main"


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", line], capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", **env},
    )


def one_line(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(
    "command",
    ["--version", "--help", "list", "id-ctrl soft: --json", "read soft:",
     "read soft: --blocks 4000"],
)
@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
def test_an_output_that_takes_nothing(command: str, redirect: str) -> None:
    words = {">/dev/full": "No space left", ">&-": "Bad file descriptor"}
    one_line(shell(f"{UDRV} {command} {redirect}"), 1, "udrv: ", words[redirect])


def test_a_full_file_is_named() -> None:
    one_line(shell(f"{UDRV} read soft: -o /dev/full"), 1, "udrv: /dev/full: No space left")


def test_a_reader_that_leaves_is_no_error_to_speak_of() -> None:
    result = shell(f"{UDRV} read soft: --blocks 4000 | head -c 1 >/dev/null")
    assert result.stderr == ""


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_that_are_not_needed(closed: str) -> None:
    """The controller's socket must not become descriptor 0, 1 or 2 of its process."""
    result = shell(f"{UDRV} id-ctrl soft: --json {closed}")
    assert result.returncode == 0, result.stderr
    assert '"sn"' in result.stdout


def test_an_error_goes_nowhere_rather_than_into_the_data() -> None:
    result = shell(f"{UDRV} read soft: --lba 1000000000 2>&-")
    assert (result.returncode, result.stdout) == (1, "")


def test_an_input_that_is_closed_is_not_an_empty_one() -> None:
    one_line(shell(f"{UDRV} write soft: --lba 0 <&-"), 1, "Bad file descriptor")


@pytest.mark.parametrize("source", ["-i /dev/zero", "< /dev/zero", "< <(cat /dev/zero)"])
def test_an_input_without_an_end_does_not_fill_the_disk(source: str) -> None:
    result = shell(f"{UDRV} write 'soft:?size=1M' --lba 0 {source}")
    one_line(result, 1, "more than the 1048576 bytes")


def test_a_file_that_does_not_know_its_length() -> None:
    result = shell(f"{UDRV} write soft: --lba 0 --pad -i /proc/self/status")
    assert result.returncode == 0, result.stderr


def test_characters_that_the_output_does_not_know() -> None:
    result = shell(f"{UDRV} id-ctrl 'x\u00fc'", PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    one_line(result, 1, "x\\xfc")


@pytest.mark.parametrize(
    "option",
    ["--iodepth", "--seed", "--number-ios", "--rwmixread", "--max-errors", "--bs", "--size",
     "--spin", "--runtime", "--timeout"],
)
def test_numbers_of_hundreds_of_digits(option: str) -> None:
    one_line(shell(f"{BENCH} run soft: {option} {'9' * 400}"), 1, "udrv-bench: ")


def test_numbers_of_thousands_of_digits() -> None:
    one_line(shell(f"{BENCH} run soft: --bs {'9' * 5000}"), 1, "reading the size")
    result = shell(f"{UDRV} read soft: --lba {'9' * 5000}")
    assert result.returncode == 2
    assert "5000 characters" in result.stderr


def test_bench_sees_to_its_output_first(tmp_path: Path) -> None:
    result = shell(f"{BENCH} run soft: --runtime 1h -o {tmp_path}/none/out")
    one_line(result, 1, "none/out: No such file")
    one_line(shell(f"{BENCH} run soft: --runtime 10ms >&-"), 1, "Bad file descriptor")
