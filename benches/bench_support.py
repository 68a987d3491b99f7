# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: where results go, and what they were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def cpu() -> str:
    """The processor's name, as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine(command: str) -> str:
    """Date, command and machine, in one line."""
    return (
        f"{datetime.datetime.now(datetime.UTC).date()}, `{command}`. {cpu()}, "
        f"{os.cpu_count()} CPUs, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}."
    )


def write_section(name: str, text: str) -> None:
    """Replace the section of RESULTS.md that the script `name` wrote, or add it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    section = f"{begin}\n{text}\n{end}"
    if begin in old:
        before, rest = old.split(begin, 1)
        new = before + section + rest.split(end, 1)[1]
    else:
        new = old.rstrip() + f"\n\n{section}\n"
    RESULTS.write_text(new)
