# SPDX-License-Identifier: Apache-2.0
"""`udrv-lab run` from outside: real boots, so only in the full counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from udrv.lab.main import KERNEL_FAULT, LAB_FAILED, TIMED_OUT
from udrv.lab.run import LabConfig, run

pytestmark = [pytest.mark.full(minutes=2), pytest.mark.timeout(600)]


def test_status_output_and_directory_pass_through_and_faults_are_found(tmp_path: Path) -> None:
    out, err = bytearray(), bytearray()
    script = ('pwd; echo "<2>BUG: udrv-lab self test" >/dev/kmsg; echo to-stderr >/dev/stderr; '
              'echo kept >"$UDRV_LAB_OUT/kept"; exit 7')
    result = run(["sh", "-c", script], LabConfig(out=tmp_path),
                 stdout=out.extend, stderr=err.extend)
    assert result.status == 7
    assert out.decode() == f"{Path.cwd()}\n"
    assert err == b"to-stderr\n"
    assert (tmp_path / "kept").read_text() == "kept\n"
    assert [f.text for f in result.faults] == ["BUG: udrv-lab self test"]


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "udrv.lab", "run", *arguments],
                          capture_output=True, text=True, check=False)


def test_time_limit_ends_the_guest_and_shows_its_console() -> None:
    ended = lab("--timeout", "40", "--no-default-devices", "--", "sleep", "1000")
    assert ended.returncode == TIMED_OUT
    assert "no result within the time limit of 40 s" in ended.stderr
    assert "the console's last lines:" in ended.stderr


def test_a_fault_has_a_status_of_its_own() -> None:
    ended = lab("--no-default-devices", "--", "sh", "-c", "echo '<2>BUG: x' >/dev/kmsg")
    assert ended.returncode == KERNEL_FAULT
    assert "fault: BUG: x" in ended.stderr


def test_a_guest_that_dies_is_no_result() -> None:
    ended = lab("--no-default-devices", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 99")
    assert ended.returncode == LAB_FAILED
    assert "the guest ended before the command did" in ended.stderr
    assert "sysrq triggered crash" in ended.stderr


def test_a_killed_laboratory_takes_its_qemu_along() -> None:
    victim = subprocess.Popen([sys.executable, "-m", "udrv.lab", "run", "--", "sleep", "1000"],
                              stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children")
    while not (pids := [int(p) for p in children.read_text().split()]) or not any(
        b"qemu-system" in Path(f"/proc/{p}/cmdline").read_bytes() for p in pids
    ):
        time.sleep(0.05)
    time.sleep(0.5)  # past setpriv, which arms the parent-death signal and becomes QEMU
    victim.kill()
    victim.wait()
    while any(os.path.exists(f"/proc/{p}") for p in pids):  # noqa: PTH110 - the test's time limit ends it
        time.sleep(0.05)


def test_a_boot_that_fails_is_tried_again(tmp_path: Path) -> None:
    # Ends at once the first time, as a guest does whose kernel panics on the way up.
    wrapper = tmp_path / "qemu"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--version*) ;; *) [ -e {tmp_path}/once ] || {{ >{tmp_path}/once; exit 0; }}'
        '\nesac\nexec qemu-system-x86_64 "$@"\n'
    )
    wrapper.chmod(0o755)
    said: list[str] = []
    config = LabConfig(qemu=str(wrapper), accel="tcg", default_devices=False, out=tmp_path / "out")
    result = run(["true"], config, say=said.append)
    assert (result.status, result.boots) == (0, 2)
    assert any(text.startswith("boot 1 of at most 3 failed") for text in said)
