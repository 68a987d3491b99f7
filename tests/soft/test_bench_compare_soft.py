# SPDX-License-Identifier: Apache-2.0
"""udrv-bench compare and report from end to end, on software controllers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from udrv.bench import BenchConfig
from udrv.bench.compare import compare
from udrv.errors import ConfirmationRequiredError, DeviceNotFoundError


def bench(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "udrv.bench.main", *words],
        capture_output=True, text=True, timeout=120, check=False, **kwargs,
    )


def test_two_targets_are_compared_and_the_page_shows_the_ratios(tmp_path: Path) -> None:
    out, page = tmp_path / "compare.json", tmp_path / "page.html"
    done = bench(
        "compare", "soft:?size=16M", "soft:?size=16M&lba=512", "--wait", "interrupt",
        "--rw", "randrw", "--number-ios", "60", "--rounds", "5", "--iodepth", "4",
        "--output-format", "json", "-o", str(out),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(out.read_text())["compare"]
    ratios = {ratio["figure"]: ratio for ratio in found["ratios"]}
    assert set(ratios) == {"iops", "cpu_ns_per_io", "p50_ns"}
    for ratio in ratios.values():
        assert 0 < ratio["low"] <= ratio["ratio"] <= ratio["high"]
        assert ratio["differs"] == (not ratio["low"] <= 1 <= ratio["high"])
    assert "p99_ns" not in ratios, "60 I/Os have no 99th percentile"
    for case in found["cases"]:
        assert len(case["rounds"]) == 5
        assert case["read"]["total_ios"] + case["write"]["total_ios"] == 300
    done = bench("report", str(out), "-o", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert f'data-value="{ratios["p50_ns"]["ratio"]}"' in text
    assert "95 %" in text


def test_the_table_and_its_warnings_are_printed() -> None:
    done = bench("compare", "soft:?size=16M", "soft:?size=16M", "--number-ios", "2000",
                 "--rounds", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("soft:?size=16M #2", "CPU time per I/O", "*** few rounds (2)", "Student's t"):
        assert words in done.stdout
    assert len(done.stdout.splitlines()[4]) < 200, "no row is folded"


def test_errors_are_one_line() -> None:
    done = bench("compare", "soft:", "--with", "fio")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "fio needs a node of the kernel's driver" in done.stderr
    assert bench("compare", "soft:", "soft:", "--with", "dd").returncode == 2


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Serve a controller with this serial number, and return the path of its socket."""
    with ExitStack() as stack:

        def begin(serial: str) -> Path:
            path = tmp_path / f"{serial}.sock"
            process = stack.enter_context(subprocess.Popen(
                [sys.executable, "-m", "udrv.cli.main", "soft", "serve", str(path),
                 f"size=16M&serial={serial}"],
                stdout=subprocess.PIPE, text=True,
            ))
            stack.callback(process.terminate)
            assert process.stdout is not None
            process.stdout.readline()  # it listens
            return path

        yield begin


def test_what_writes_needs_the_name_of_each_drive(serve: Callable[[str], Path]) -> None:
    targets = [f"vfio-user:{serve(serial)}" for serial in ("C1", "C2")]
    config = BenchConfig(rw="randwrite", number_ios=50)
    for given in ((), ("C1:1",), ("C2:1",), ("C1:2", "C2:2")):
        with pytest.raises(ConfirmationRequiredError, match=r"C[12]:1"):
            compare(targets, config, i_mean=given, rounds=1)
    found = compare(targets, config, i_mean=("C2:1", "C1:1"), rounds=2)
    assert [run.directions["write"].ios for case in found.cases for run in case.runs] == [50] * 4


def test_a_drive_that_became_another_is_noticed(
    serve: Callable[[str], Path], tmp_path: Path
) -> None:
    link = tmp_path / "drive"
    link.symlink_to(serve("FIRST"))
    other = serve("SECOND")

    def swap(number: int, label: str) -> None:
        if number == 2:
            link.unlink(missing_ok=True)
            link.symlink_to(other)

    with pytest.raises(DeviceNotFoundError, match="serial FIRST, and is now SECOND"):
        compare(
            [f"vfio-user:{link}", "soft:?size=16M"], BenchConfig(number_ios=10), rounds=3,
            on_run=swap,
        )


def test_ctrl_c_prints_the_rounds_that_are_complete(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "udrv.bench.main", "compare", "soft:?size=16M", "soft:?size=16M",
         "--runtime", "700ms", "--rounds", "1000", "--wait", "interrupt", "--rate-iops", "500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    seen: set[str] = set()
    while process.poll() is None and len(seen) < 5:  # two to warm up, a round, one of the next
        seen.update(children.read_text().split())
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "*** interrupted; complete rounds until then: 1" in out
    assert "from the intended start" in out, "an open loop without fio"
