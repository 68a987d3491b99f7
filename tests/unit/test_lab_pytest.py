# SPDX-License-Identifier: Apache-2.0
"""The host's half of the pytest plugin, with a guest that is played by a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.reports import pytest_report_to_serializable

from udrv.errors import LabError
from udrv.lab import kernel_log, pytest_host
from udrv.lab.devices import parse_device
from udrv.lab.run import LabConfig, LabResult

pytest_plugins = ["pytester"]

Report = Callable[[bytes], None]

TESTS = """
    import pytest
    @pytest.mark.lab
    def test_one(): raise AssertionError("this body must never run on the host")
    @pytest.mark.lab
    def test_two(): raise AssertionError("this body must never run on the host")
    def test_ordinary(): pass
"""


def send(report: Report, nodeid: str, outcome: Any, longrepr: Any = None) -> None:
    """What the guest's plugin sends for one test."""
    made = pytest.TestReport(
        nodeid=nodeid, location=("test_it.py", 0, nodeid), keywords={}, outcome=outcome,
        longrepr=longrepr, when="call", duration=0.5, start=0, stop=0.5,
    )
    report(json.dumps({"report": pytest_report_to_serializable(made)}).encode() + b"\n")
    report(json.dumps({"finish": nodeid}).encode() + b"\n")


def result(out: Path | None, console: str = "", status: int = 0) -> LabResult:
    assert out is not None
    faults = tuple(kernel_log.scan(console.splitlines()))
    return LabResult(status, faults, console, out, "tcg", "6.12", 1.0, 2.0)


@pytest.fixture
def play(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run pytest on TESTS with a guest that `guest(report, out)` plays."""

    def run_pytest(
        guest: Callable[[Report, Path | None], LabResult], *args: str
    ) -> pytest.RunResult:
        def run(command: list[str], config: LabConfig, *, report: Report, **_: Any) -> LabResult:
            assert config.out is not None
            assert config.environment[pytest_host.SELECTION].endswith("/selection.json")
            chosen = json.loads((config.out / "selection.json").read_text())
            assert all(nodeid.split("::")[0] in " ".join(command) for nodeid in chosen)
            return guest(report, config.out)

        monkeypatch.setattr(pytest_host.run, "run", run)
        pytester.makeconftest('pytest_plugins = ["udrv.lab.pytest_plugin"]')
        pytester.makepyfile(test_it=TESTS)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)

    return run_pytest


def test_reports_become_this_sessions_own(
    play: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        send(report, "test_it.py::test_one", "passed")
        send(report, "test_it.py::test_two", "failed", "it broke in the guest")
        return result(out, status=1)

    ran = play(guest, "-v", "--junitxml=j.xml")
    ran.assert_outcomes(passed=2, failed=1)
    ran.stdout.fnmatch_lines(["*test_one PASSED*", "*test_two FAILED*", "*it broke in the guest*"])
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    assert 'tests="3"' in (pytester.path / "j.xml").read_text()


def test_reports_may_come_in_pieces(play: Callable[..., pytest.RunResult]) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        whole: list[bytes] = []
        send(whole.append, "test_it.py::test_one", "passed")
        send(whole.append, "test_it.py::test_two", "passed")
        for byte in b"".join(whole):
            report(bytes([byte]))
        return result(out)

    play(guest).assert_outcomes(passed=3)


def test_a_test_that_did_not_report_has_failed(play: Callable[..., pytest.RunResult]) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        send(report, "test_it.py::test_one", "passed")
        return result(out, console="the last words", status=3)

    ran = play(guest)
    ran.assert_outcomes(passed=2, failed=1)
    ran.stdout.fnmatch_lines(["*guest ended before this test reported*", "*the last words*"])


def test_no_laboratory_fails_every_test_with_the_mend(
    play: Callable[..., pytest.RunResult],
) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        raise LabError("qemu is not installed", mend="apt-get install -y qemu-system-x86")

    ran = play(guest)
    ran.assert_outcomes(passed=1, failed=2)
    ran.stdout.fnmatch_lines(["*apt-get install -y qemu-system-x86*"])


def test_a_kernel_fault_outside_of_tests_fails_the_session(
    play: Callable[..., pytest.RunResult],
) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        send(report, "test_it.py::test_one", "passed")
        send(report, "test_it.py::test_two", "passed")
        return result(out, console="[ 1.0] BUG: after the last test")

    ran = play(guest)
    ran.assert_outcomes(passed=3, errors=1)
    ran.stdout.fnmatch_lines(["*BUG: after the last test*"])
    assert ran.ret == pytest.ExitCode.TESTS_FAILED


def test_a_kernel_fault_that_a_test_answered_for_is_not_reported_twice(
    play: Callable[..., pytest.RunResult],
) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        report(b'{"kernel": ["BUG: (on purpose) [x]"]}\n')
        send(report, "test_it.py::test_one", "passed")
        send(report, "test_it.py::test_two", "passed")
        return result(out, console="[ 1.0] BUG: (on purpose) [x]\n[ 1.1] Call Trace:")

    play(guest).assert_outcomes(passed=3)


def test_no_guest_for_ordinary_tests(play: Callable[..., pytest.RunResult]) -> None:
    def guest(report: Report, out: Path | None) -> LabResult:
        raise AssertionError("a guest was booted")

    play(guest, "-k", "ordinary").assert_outcomes(passed=1, deselected=2)


MACHINES = """
    import pytest
    pytestmark = pytest.mark.lab
    def test_usual(): ...
    @pytest.mark.lab_machine("soft:?size=1M", iommu=False, append="quiet")
    def test_own(): ...
    @pytest.mark.lab_machine("soft:?size=1M", iommu=False, append="quiet")
    def test_same(): ...
    @pytest.mark.lab_machine("soft:?size=2M")
    def test_other(): ...
    def test_usual_too(): ...
"""


def test_a_guest_for_each_machine_that_tests_ask_for(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted: list[tuple[list[str], LabConfig]] = []

    def run(command: list[str], config: LabConfig, *, report: Report, **_: Any) -> LabResult:
        assert config.out is not None
        chosen = json.loads((config.out / "selection.json").read_text())
        booted.append(([nodeid.partition("::")[2] for nodeid in chosen], config))
        for nodeid in chosen:
            send(report, nodeid, "passed")
        return result(config.out)

    monkeypatch.setattr(pytest_host.run, "run", run)
    pytester.makeconftest('pytest_plugins = ["udrv.lab.pytest_plugin"]')
    pytester.makepyfile(test_it=MACHINES)
    ran = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--lab-append=loud")
    ran.assert_outcomes(passed=5)
    assert [names for names, _ in booted] == [
        ["test_usual", "test_usual_too"], ["test_own", "test_same"], ["test_other"]]
    usual, own, other = (config for _, config in booted)
    assert (usual.default_devices, usual.devices, usual.iommu) == (True, (), True)
    assert (own.default_devices, own.devices, own.iommu, own.append) == (
        False, (parse_device("soft:?size=1M"),), False, "loud quiet")
    assert (other.devices, other.iommu, other.append) == (
        (parse_device("soft:?size=2M"),), True, "loud")
    ran.stdout.fnmatch_lines(["2 tests in kernel*", "2 tests in kernel*", "1 tests in kernel*"])


def test_a_machine_that_is_none_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["udrv.lab.pytest_plugin"]')
    pytester.makepyfile(test_it="""
        import pytest
        @pytest.mark.lab
        @pytest.mark.lab_machine(colour="red")
        def test_it(): ...
    """)
    ran = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert ran.ret != pytest.ExitCode.OK
    ran.stderr.fnmatch_lines(["*lab_machine*colour*"])
