# SPDX-License-Identifier: Apache-2.0
"""What the documents name exists: files, links, classes, commands, options, make targets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

import udrv
from udrv import errors
from udrv.bench.main import app as bench
from udrv.cli.main import app as cli
from udrv.lab.main import app as lab
from udrv.nvme import status
from udrv.soft.options import VALID

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "kernel" / "README.md"])
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

PROGRAMS = {"udrv": cli, "udrv-bench": bench, "udrv-lab": lab}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pages
def test_paths_exist(page: Path) -> None:
    text = page.read_text().replace("test_x.py", "")  # a name that stands for any
    named = re.findall(r"(?<![\w./])(?:udrv|tests|docs|benches|tools|kernel)/[\w./*]*\w", text)
    for path in named:
        assert list(ROOT.glob(path)), path


@pages
def test_exceptions_exist(page: Path) -> None:
    for name in re.findall(r"`(\w+Error)`", page.read_text()):
        assert hasattr(errors, name) or hasattr(status, name) or name == "PermissionError", name


@pages
def test_methods_exist(page: Path) -> None:
    public = "Controller|Namespace|Queue|Buffer|Batch"
    for owner, name in re.findall(rf"`(?:udrv\.)?({public})\.(\w+)", page.read_text()):
        assert hasattr(getattr(udrv, owner), name), f"{owner}.{name}"


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= set(targets)


def commands() -> list[str]:
    """Lines of code blocks that start one of our programs, without comments and pipes."""
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            match = re.match(r"(?:    )?((?:udrv|udrv-bench|udrv-lab) .+)", line)
            if match and not match[1].startswith("udrv-lab` "):
                words = shlex.shlex(match[1], posix=True, punctuation_chars="|&")
                words.whitespace_split = True
                code = []
                for word in words:
                    if word in {"|", "&"}:
                        break
                    code.append(word)
                found.append(shlex.join(code))
    return sorted(set(found))


def test_there_are_commands_to_look_at() -> None:
    assert {line.split()[0] for line in commands()} == set(PROGRAMS)
    assert len(commands()) > 12


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line: str) -> None:
    """Up to, and without, doing anything: the options are known and their values fit."""
    program, *words = shlex.split(line)
    command = typer.main.get_command(PROGRAMS[program])
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    if "--help" not in words:
        command.make_context(line, words)


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(Exception, match="--no-such-option"):
        test_commands_are_understood("udrv id-ctrl soft: --no-such-option")


def test_the_options_of_soft_are_all_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/soft.md").read_text(), re.MULTILINE)
    assert set(rows) == set(VALID)


def test_every_error_has_a_row_and_its_tests_name_it() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    rows = dict(re.findall(r"^\| [^|]+ \| `(\w+)`[^|]* \| ([^|]+) \|$", text, re.MULTILINE))
    classes = {
        name for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.UdrvError)
    }
    assert set(rows) == classes - {"UdrvError", "ControllerError"}, "bases apart"
    for name, tests in rows.items():
        for path in re.findall(r"tests/[\w/]+\.py", tests):
            source = (ROOT / path).read_text()
            if name == "NvmeStatusError":
                name = "InvalidFieldError|NvmeStatusError"
            assert re.search(name, source), f"{path} does not name {name}"
