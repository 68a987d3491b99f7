# SPDX-License-Identifier: Apache-2.0
"""KVM or emulation: proved by a guest that reaches user space, not by the presence of a file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

from udrv.errors import LabError
from udrv.lab import image
from udrv.lab.cache import cache_dir, locked, run_dir
from udrv.lab.kernel import Kernel
from udrv.lab.qemu import Machine, Qemu, command_line

PROBE_LIMIT = 20.0  # seconds; KVM that works needs two
_REACHED = b"udrv-lab: user space reached"


def _probe(qemu: Qemu, kernel: Kernel) -> bool:
    """Whether a guest under KVM gets as far as our init."""
    with run_dir() as folder:
        initramfs, console = folder / "initramfs", folder / "console.log"
        image.write(initramfs, image.build(kernel, command="", devices="",
                                           settings="LAB_MODE=probe\n"))
        machine = Machine(kernel=kernel, initramfs=initramfs, console=console, accel="kvm",
                          cpus=1, memory_mib=512)
        process = subprocess.Popen(
            command_line(qemu, machine), env={**os.environ, **qemu.environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(PROBE_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return console.exists() and _REACHED in console.read_bytes()


def _kvm_works(qemu: Qemu, kernel: Kernel, say: Callable[[str], None]) -> bool:
    """The remembered answer for this host kernel and QEMU, or a new one."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False  # not remembered: joining the kvm group changes it
    key = f"{platform.node()} {platform.release()} {platform.version()} / {qemu.version}"
    memory = cache_dir() / "kvm.json"
    with locked(cache_dir() / "kvm.lock"):
        answers = _read(memory)
        if key not in answers:
            say("probing KVM")
            answers[key] = _probe(qemu, kernel)
            memory.write_text(json.dumps(answers, indent=1) + "\n")
        return answers[key]


def _read(memory: Path) -> dict[str, bool]:
    try:
        answers = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(answers, dict):
        return {}
    return {str(k): v for k, v in answers.items() if isinstance(v, bool)}


def choose_accel(qemu: Qemu, kernel: Kernel, wanted: str, *, icount: bool,
                 say: Callable[[str], None]) -> str:
    """"kvm" or "tcg". `wanted` is "auto", "kvm" or "tcg"; instruction counting needs "tcg"."""
    if wanted not in {"auto", "kvm", "tcg"}:
        raise LabError(f"--accel {wanted}: unknown", mend="say auto, kvm or tcg")
    if icount:
        if wanted == "kvm":
            raise LabError("--icount counts instructions, which KVM cannot", mend="--accel tcg")
        return "tcg"
    if wanted != "auto":
        return wanted
    return "kvm" if _kvm_works(qemu, kernel, say) else "tcg"
