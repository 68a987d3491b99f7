# SPDX-License-Identifier: Apache-2.0
"""The scripts of benches/: they answer, are listed, have a section, and read what others print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[2] / "benches"
SCRIPTS = sorted(
    path.stem for path in BENCHES.glob("*.py") if "def main(" in path.read_text()
)
sys.path.append(str(BENCHES))

import lab_icount  # noqa: E402
import lab_support  # noqa: E402
import summary  # noqa: E402
import syscalls  # noqa: E402


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 9


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_answers_help_with_json_and_write(script: str) -> None:
    ran = subprocess.run(
        [sys.executable, BENCHES / f"{script}.py", "--help"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "--json" in ran.stdout
    assert "--write" in ran.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_section_and_is_listed_and_run(script: str) -> None:
    results = (BENCHES / "RESULTS.md").read_text()
    assert results.count(f"<!-- {script}.py: begin -->") == 1
    assert results.count(f"<!-- {script}.py: end -->") == 1
    assert f"`{script}.py`" in (BENCHES / "README.md").read_text()
    makefile = (BENCHES.parent / "Makefile").read_text()
    named = re.search(r"^BENCHES := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert named
    assert script in [*named[1].split(), "summary"]


def test_plots_of_the_results_are_there_and_small() -> None:
    named = re.findall(r"\]\((plots/[^)]+)\)", (BENCHES / "RESULTS.md").read_text())
    assert len(named) == 3
    assert {path.name for path in (BENCHES / "plots").iterdir()} == {Path(n).name for n in named}
    for name in named:
        assert (BENCHES / name).stat().st_size < 100_000


# --- what other programs print -------------------------------------------------------------------


def test_fios_json() -> None:
    text = json.dumps({"jobs": [{
        "job_runtime": 2000, "usr_cpu": 10.0, "sys_cpu": 30.0,
        "read": {"iops": 500.0, "total_ios": 1000,
                 "clat_ns": {"percentile": {"50.000000": 4000, "99.000000": 9000}}},
    }]})  # fmt: skip
    run = lab_support.parse_fio(text, lab_support.FIO_CMD, 8)
    assert (run.iops, run.ios, run.depth, run.p50, run.p99) == (500.0, 1000, 8, 4.0, 9.0)
    assert run.cpu_user == pytest.approx(200)  # 10 % of 2 s, 1000 I/Os
    assert run.cpu == pytest.approx(800)


def test_what_t_io_uring_prints() -> None:
    text = (
        "submitter=0, tid=1, file=/dev/ng0n1\n"
        "IOPS=99000, BW=386MiB/s, IOS/call=1/1\nIOPS=101.00K, BW=394MiB/s, IOS/call=1/1\n"
        "Exiting on timeout\nMaximum IOPS=101.00K\n"
    )
    run = lab_support.parse_t_io_uring(text, 1, user=0.1, system=0.3)
    assert (run.iops, run.ios) == (100_000, 200_000)
    assert run.cpu == pytest.approx(2.0)
    with pytest.raises(SystemExit):
        lab_support.parse_t_io_uring("nothing", 1, 0, 0)


def test_what_the_bare_loop_prints() -> None:
    text = json.dumps({"ios": 10, "elapsed_ns": 10**9, "user_ns": 20_000, "system_ns": 80_000})
    run = lab_support.parse_bare(text, 4)
    assert (run.iops, run.cpu_user, run.cpu_system) == (10.0, 2.0, 8.0)


def test_straces_counts() -> None:
    text = (
        "% time     seconds  usecs/call     calls    errors syscall\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        " 60.00    0.000600           1       600           read\n"
        " 40.00    0.000400           2       200        13 openat\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.001000           1       800        13 total\n"
    )
    assert syscalls.parse_strace(text) == {"read": 600, "openat": 200}


def test_a_profile_leaves_idle_time_out() -> None:
    text = (
        "    50.00%  [kernel.kallsyms]  [k] pv_native_safe_halt\n"
        "    30.00%  [kernel.kallsyms]  [k] nvme_irq\n"
        "    20.00%  /x/_uring.so       [.] udrv_uring_qp_wait\n"
    )
    assert lab_icount.parse_profile(text) == [
        (60.0, "kernel: nvme_irq"), (40.0, "_uring.so: udrv_uring_qp_wait"),
    ]


def test_looks_in_vain_are_told_from_the_ios_they_waited_for() -> None:
    counts = [
        lab_icount.Count("udrv VFIO", "vfio", depth, "polled", ios,
                         10_000 + each * ios + 309 * looks, 0, looks)
        for depth, each in ((1, 1600), (32, 480))
        for ios, looks in ((1500, 9000), (4500, 20_000), (1500, 7000), (4500, 31_000))
    ]  # fmt: skip
    assert lab_icount.cost_of_a_look(counts) == pytest.approx(309)
    assert [f.instructions_per_io for f in lab_icount.figures_of(counts)] == [1600, 480]


def test_what_the_kernel_does_with_nobody_there_is_left_out() -> None:
    counts = [
        lab_icount.Count("fio", "io_uring-cmd", 1, "interrupt", ios,
                         4_000 + 15 * ios + idle // 100, idle)
        for ios, idle in ((100, 40_000), (300, 990_000), (100, 90_000), (300, 50_000))
    ]  # fmt: skip
    (figure,) = lab_icount.figures_of(counts, background=0.01)
    assert (figure.instructions_per_io, figure.low, figure.high) == (15, 15, 15)


def test_the_median_of_the_rounds_counts() -> None:
    counts = [
        lab_icount.Count("fio", "io_uring-cmd", 1, "interrupt", ios, taken, 0)
        for ios, taken in ((100, 5_000), (300, 7_000), (100, 5_000), (300, 9_000), (100, 5_000),
                           (300, 8_000))
    ]  # fmt: skip
    (figure,) = lab_icount.figures_of(counts)
    assert (figure.instructions_per_io, figure.low, figure.high) == (15, 10, 20)


# --- verdicts ------------------------------------------------------------------------------------


def test_goals_find_their_figures_and_say_by_how_much(tmp_path: Path) -> None:
    rows = [
        {"case": "submit + reap", "depth": 32, "bytes": 4096, "addons": ["checks"],
         "instructions_per_io": 100.0},
    ]  # fmt: skip
    (tmp_path / "instructions.json").write_text(json.dumps(rows))
    icount = [
        {"case": "fio io_uring_cmd", "depth": 32, "wait": "interrupt", "instructions_per_io": 1000},
        {"case": "udrv VFIO", "depth": 32, "wait": "interrupt", "instructions_per_io": 200},
    ]
    (tmp_path / "lab_icount.json").write_text(json.dumps(icount))
    verdicts = summary.judge(tmp_path)
    by_name = {v.what: v for v in verdicts}
    assert by_name["4 KiB at depth 32: tracker, PRPs, checks"].said == "missed by 20 (25 %)"
    assert by_name["VFIO, interrupt, depth 32"].figure == 0.2
    assert by_name["VFIO, interrupt, depth 32"].said == "met"
    assert by_name["and records"].said == "not measured yet"
    assert len(by_name) == len(verdicts)


def test_every_goal_names_a_script() -> None:
    assert {goal.script for goal in summary.GOALS} <= set(SCRIPTS)
