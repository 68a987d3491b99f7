"""What `udrv` prints is what nvme-cli prints, field by field, for the same controller.

nvme-cli asks through the kernel's driver, `udrv` through VFIO after a rebind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from udrv.cli.main import app
from udrv.lab.info import LabDevice

pytestmark = pytest.mark.lab

#: Fields that only one of the two prints, with the reason.
ONLY_OURS = {
    "dctype": "Base 2.0 (TP 8010) has it, nvme-cli 2.3 does not print it",
}
ONLY_THEIRS: dict[str, str] = {}

#: SMART fields that may grow between the two questions: the kernel's driver reads partition tables,
#: asks for what the controller lacks (which it logs), and time passes.
GROW = {
    "data_units_read", "data_units_written", "host_read_commands", "host_write_commands",
    "controller_busy_time", "power_on_hours", "num_err_log_entries", "unsafe_shutdowns",
}


def _theirs(*args: str) -> Any:
    done = subprocess.run(
        ["nvme", *args, "-o", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _ours(*args: str) -> Any:
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _as_ours(theirs: Any, ours: Any) -> Any:
    """Undo two habits of nvme-cli 2.x's JSON: 128-bit numbers are strings, 32-bit ones signed."""
    if isinstance(ours, int) and isinstance(theirs, str) and theirs.isdigit():
        return int(theirs)
    if isinstance(ours, int) and isinstance(theirs, int) and theirs < 0:
        return theirs + (1 << 32)
    return theirs


def _differences(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            if key not in ours:
                if key not in ONLY_THEIRS:
                    yield f"{path}{key}: only nvme-cli has it ({theirs[key]!r})"
            elif key not in theirs:
                if key not in ONLY_OURS:
                    yield f"{path}{key}: only udrv has it ({ours[key]!r})"
            else:
                yield from _differences(theirs[key], ours[key], f"{path}{key}.")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield f"{path}: {len(theirs)} entries, udrv has {len(ours)}"
        for index, pair in enumerate(zip(theirs, ours, strict=False)):
            yield from _differences(*pair, f"{path}{index}.")
    elif path.rstrip(".") in GROW:
        if not _as_ours(theirs, ours) <= ours:
            yield f"{path}: nvme-cli {theirs!r}, later udrv {ours!r}"
    elif _as_ours(theirs, ours) != ours:
        yield f"{path}: nvme-cli {theirs!r}, udrv {ours!r}"


@pytest.fixture(scope="module", params=[0, 1], ids=["device0", "device1"])
def answers(
    request: pytest.FixtureRequest, lab_devices: tuple[LabDevice, ...]
) -> Iterator[dict[str, tuple[Any, Any]]]:
    """{question: (nvme-cli's answer, ours)} of one device, which is given back at the end."""
    device = lab_devices[request.param]
    bdf = str(device.bdf)
    node, nsids = _kernel_node(bdf, len(device.namespaces))
    assert [entry["nsid"] for entry in _theirs("list-ns", node)["nsid_list"]] == nsids
    theirs = {"id-ctrl": _theirs("id-ctrl", node), "smart-log": _theirs("smart-log", node)}
    for nsid in nsids:
        theirs[f"id-ns {nsid}"] = _theirs("id-ns", node, "-n", str(nsid))
    bound = _ours("bind", bdf)
    try:
        assert bound["changed"], bound
        target = f"pci:{bdf}"
        ours = {"id-ctrl": _ours("id-ctrl", target), "smart-log": _ours("smart-log", target)}
        for nsid in nsids:
            ours[f"id-ns {nsid}"] = _ours("id-ns", target, "--nsid", str(nsid))
        if request.param == 0:
            ours["id-ctrl of the installed command"] = _installed("id-ctrl", target)
            theirs["id-ctrl of the installed command"] = theirs["id-ctrl"]
        yield {question: (theirs[question], ours[question]) for question in theirs}
    finally:
        _ours("unbind", bdf)


def _kernel_node(bdf: str, namespaces: int) -> tuple[str, list[int]]:
    """Return "/dev/nvmeX" and its namespaces, when the kernel has finished with both."""
    nsids: list[int] = []
    for _ in range(600):
        listed = next(one for one in _ours("list")["devices"] if one["bdf"] == bdf)
        nsids = [ns["nsid"] for ns in listed["namespaces"]]
        if listed["state"] == "live" and len(nsids) == namespaces:
            return f"/dev/{listed['controller']}", nsids
        time.sleep(0.1)
    raise AssertionError(f"{bdf} has the namespaces {nsids}, not {namespaces} of them")


def _installed(*args: str) -> Any:
    """Run the command in a process of its own, as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "udrv.cli.main", *args, "--json"],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_field_equals_that_of_nvme_cli(answers: dict[str, tuple[Any, Any]]) -> None:
    questions = {question.split()[0] for question in answers}
    assert questions == {"id-ctrl", "id-ns", "smart-log"}
    found = [
        f"{question}: {difference}"
        for question, (theirs, ours) in answers.items()
        for difference in _differences(theirs, ours)
    ]
    assert not found, "\n".join(found)


def test_the_comparison_saw_all_fields(answers: dict[str, tuple[Any, Any]]) -> None:
    # If nvme-cli printed next to nothing, the test above would prove next to nothing.
    least = {"id-ctrl": 80, "id-ns": 30, "smart-log": 20}
    for question, (theirs, _) in answers.items():
        assert len(theirs) >= least[question.split()[0]], question
