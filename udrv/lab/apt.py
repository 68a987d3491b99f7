# SPDX-License-Identifier: Apache-2.0
"""apt, used without changing the machine: package lists of the lab's own, files unpacked, nothing
installed. apt checks what it downloads against the signed index of its source."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from udrv.errors import LabError


def output_of(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    """Standard output of a command; `LabError` with its error output when it fails."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(
            f"{argv[0]} is not installed",
            mend="the laboratory needs Debian or Ubuntu; elsewhere use --kernel PATH and "
            "--qemu PATH",
        ) from error
    if done.returncode:
        tail = (done.stderr or done.stdout).strip()[-800:]
        raise LabError(f"'{' '.join(argv)}' failed with status {done.returncode}: {tail}")
    return done.stdout


def private_state(state: Path) -> list[str]:
    """Options for an apt whose package lists and downloads are below `state` (made if missing)."""
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}",
            "-o", f"Dir::Cache::archives={state}/archives"]


def sandbox() -> list[str]:
    """Options that keep apt, as root, from becoming _apt, which cannot write below a home."""
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def foreign_state(state: Path, sources: Iterable[str]) -> list[str]:
    """Options for an apt of another release: its `sources` only, and nothing taken as installed.

    The machine's other settings (its proxy, for one) stay as they are. Works without privilege.
    """
    options = private_state(state)
    (state / "sources.list").write_text("".join(f"{line}\n" for line in sources))
    (state / "status").write_text("")
    return [*options, *sandbox(),
            "-o", f"Dir::State={state}", "-o", f"Dir::State::status={state}/status",
            "-o", f"Dir::Etc::sourcelist={state}/sources.list",
            "-o", "Dir::Etc::sourceparts=/dev/null",
            "-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null",
            "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64",
            "-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Languages=none",
            "-o", "Debug::NoLocking=1"]


def unpack(packages: Path, root: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Unpack every package in the directory `packages` below `root`."""
    for package in sorted(packages.glob("*.deb")):
        say(f"unpacking {package.name}")
        output_of(["dpkg-deb", "-x", str(package), str(root)])


def replace_tree(target: Path, new: Path) -> None:
    """Put the directory `new` in the place of `target`."""
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
