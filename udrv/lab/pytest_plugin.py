# SPDX-License-Identifier: Apache-2.0
"""pytest inside the laboratory, seen from outside as if it ran here.

On the host, tests marked `lab` are not run: at the first of them one guest is booted (one for each
machine that the mark `lab_machine` tells), a pytest in it runs exactly the selected ones, and its
reports come back over a virtio port, line by line, and are given to this session as its own. So -v,
-x, --junitxml, the summary and the exit status work as for any other test. A test whose report did
not come back has failed.

Inside the guest, this plugin gives the fixtures, sends the reports, and fails a test during which
the kernel log got a line that `udrv.lab.kernel_log` takes for a fault. The mark
`kernel_log_allow(REGEX, ...)` excuses lines that a test provokes on purpose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from udrv.lab import info, kernel_log
from udrv.lab.pytest_host import SELECTION, HostSession, LabMachine, lost_report

_REPORT_PORT = Path("/dev/virtio-ports/udrv.report")
_KMSG = Path("/dev/kmsg")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The host's options; the guest's pytest accepts and ignores them."""
    group = parser.getgroup("udrv-lab", "the laboratory that runs tests marked lab")
    group.addoption("--lab-kernel", default="stock", help="stock, a kernel image or directory")
    group.addoption("--lab-accel", default="auto", help="auto, kvm or tcg")
    group.addoption("--lab-memory", default="2048M", help="the guest's memory")
    group.addoption("--lab-cpus", default=2, type=int, help="the guest's CPUs")
    group.addoption("--lab-append", default="", help="more kernel parameters")
    group.addoption("--lab-qemu", default=None, help="another QEMU, or the root it is in")
    group.addoption("--lab-device", action="append", default=[], help="one more device")
    group.addoption("--lab-idle-timeout", default=600.0, type=float,
                    help="seconds without a report after which the guest is given up")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the side that this process is on."""
    config.addinivalue_line("markers", "lab: runs inside a real kernel in QEMU")
    config.addinivalue_line(
        "markers", "lab_machine(*devices, iommu=True, append=''): in a guest of its own, with "
        "these devices (as --device says them) and no others; tests with the same mark share it")
    config.addinivalue_line(
        "markers", "kernel_log_allow(*regex): kernel lines that this test provokes on purpose")
    if info.in_guest():
        config.pluginmanager.register(_GuestPlugin(config), "udrv-lab-guest")
    else:
        config.pluginmanager.register(_HostPlugin(config), "udrv-lab-host")


@pytest.fixture(scope="session")
def lab() -> info.LabInfo:
    """The laboratory: kernel, accel, out (a directory that the host keeps) and devices."""
    return info.load()


@pytest.fixture(scope="session")
def lab_devices(lab: info.LabInfo) -> tuple[info.LabDevice, ...]:
    """The laboratory's devices, in the order of their definition."""
    return lab.devices


# --- outside -------------------------------------------------------------------------------------


class _HostPlugin:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._sessions: dict[LabMachine, HostSession] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self._config.pluginmanager.hasplugin("timeout"):
            return
        for item in items:
            if item.get_closest_marker("lab"):
                # The guest's pytest limits each test; here the first one waits for the boot too.
                item.add_marker(pytest.mark.timeout(0), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not item.get_closest_marker("lab"):
            return None
        machine = LabMachine.of(item)
        if machine not in self._sessions:
            ids = [i.nodeid for i in item.session.items
                   if i.get_closest_marker("lab") and LabMachine.of(i) == machine]
            self._sessions[machine] = HostSession(self._config, ids, machine)
        session = self._sessions[machine]
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in session.reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        if session.is_last(item.nodeid):
            for text in session.finish():
                item.ihook.pytest_runtest_logreport(report=lost_report(item, text, "teardown"))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        for session in self._sessions.values():
            session.abandon()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        summaries = [session.summary for session in self._sessions.values() if session.summary]
        if summaries:
            terminalreporter.section("laboratory")
        for summary in summaries:
            terminalreporter.write_line(summary)


# --- inside --------------------------------------------------------------------------------------


class _KernelLog:
    """New lines of the kernel's log, from the moment of construction."""

    def __init__(self) -> None:
        self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            except BrokenPipeError:
                found.append("udrv-lab: WARNING: kernel log lines were lost")
                continue
            # "level,sequence,time,flags;message", then lines of properties that begin with a space
            _, _, message = record.decode("utf-8", "replace").partition(";")
            found.append(message.split("\n", 1)[0])


class _GuestPlugin:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._log = _KernelLog()
        self._port: int | None = None
        selection = os.environ.get(SELECTION)
        self._selection: list[str] | None = None
        if selection is not None:
            self._selection = json.loads(Path(selection).read_text())
            self._port = os.open(_REPORT_PORT, os.O_WRONLY | os.O_CLOEXEC)

    def _send(self, **message: object) -> None:
        if self._port is None:
            return
        data = json.dumps(message, default=str).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data):]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if self._selection is None:
            return
        by_id = {item.nodeid: item for item in items}
        wanted = [by_id[nodeid] for nodeid in self._selection if nodeid in by_id]
        config.hook.pytest_deselected(items=[i for i in items if i not in set(wanted)])
        items[:] = wanted

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._send(trouble=f"collecting {report.nodeid} failed:\n{report.longreprtext}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send(report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send(finish=nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("lab"):
            # What no machine runs is not tested: a skip here would hide it.
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"a lab test may not skip: {why}"
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            result = yield
        except BaseException:
            faults = self._faults(item)
            if faults:
                item.add_report_section("call", "kernel log", "\n".join(map(str, faults)))
            raise
        self._check(item)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        self._check(item)
        return result

    def _faults(self, item: pytest.Item) -> list[kernel_log.Fault]:
        lines = self._log.lines()
        allow = [str(a) for mark in item.iter_markers("kernel_log_allow") for a in mark.args]
        every = kernel_log.scan(lines)
        if every:
            # The host reads the whole log in the end and must not report these a second time.
            self._send(kernel=[fault.text for fault in every])
        return kernel_log.scan(lines, allow)

    def _check(self, item: pytest.Item) -> None:
        faults = self._faults(item)
        if faults:
            shown = "\n\n".join(map(str, faults[:3]))
            pytest.fail(f"the kernel log got {len(faults)} fault(s) during this test:\n{shown}",
                        pytrace=False)

    def pytest_unconfigure(self) -> None:
        if self._port is not None:
            os.close(self._port)
            self._port = None
