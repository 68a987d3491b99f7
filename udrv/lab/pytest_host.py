# SPDX-License-Identifier: Apache-2.0
"""The host's half of the pytest plugin: one guest per session, and the reports that come back."""

from __future__ import annotations

import json
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from udrv.errors import LabError
from udrv.lab import kernel_log, run
from udrv.lab.devices import parse_device

SELECTION = "UDRV_LAB_SELECTION"  # names the file that says which tests the guest is to run
_OUTPUT_KEPT = 20_000  # bytes of the guest pytest's own output, for when it goes wrong


def lost_report(
    item: pytest.Item, text: str, when: Literal["call", "teardown"] = "call"
) -> pytest.TestReport:
    """A failure of `item` that no guest has reported."""
    now = time.time()
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed", longrepr=text, when=when, start=now, stop=now,
    )


def guest_command(config: pytest.Config, nodeids: list[str]) -> list[str]:
    """The pytest to run in the guest for `nodeids` (which it reads from the selection file)."""
    files = dict.fromkeys(str(config.rootpath / n.split("::", 1)[0]) for n in nodeids)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               "--rootdir", str(config.rootpath), f"--tb={config.getoption('tbstyle')}",
               f"--maxfail={config.getoption('maxfail') or 0}"]
    if config.inipath is not None:
        command += ["-c", str(config.inipath)]
    if config.getoption("showlocals"):
        command.append("--showlocals")
    if config.pluginmanager.hasplugin("timeout"):
        # The other method ends the whole process, and with it all the tests that follow.
        command.append("--timeout-method=signal")
    return [*command, *files]


@dataclass(frozen=True)
class LabMachine:
    """What sets a test's guest apart from that of the others; made of the mark `lab_machine`.

    `devices` are all that it has, None for the usual ones.
    """

    devices: tuple[str, ...] | None = None
    iommu: bool = True
    append: str = ""

    @classmethod
    def of(cls, item: pytest.Item) -> LabMachine:
        """That of one test. Raises `pytest.UsageError` for a mark that is not one."""
        mark = item.get_closest_marker("lab_machine")
        if mark is None:
            return cls()
        try:
            return cls(tuple(mark.args), **mark.kwargs)
        except TypeError as error:
            raise pytest.UsageError(f"{item.nodeid}: lab_machine: {error}") from None

    def config(self, option: Callable[[str], Any], out: Path) -> run.LabConfig:
        """The run, by the session's options and this; `out` is the guest's $UDRV_LAB_OUT."""
        more = option("lab_device") if self.devices is None else self.devices
        return run.LabConfig(
            cpus=option("lab_cpus"), memory=option("lab_memory"), accel=option("lab_accel"),
            kernel=option("lab_kernel"), append=f"{option('lab_append')} {self.append}".strip(),
            qemu=option("lab_qemu"), iommu=self.iommu, default_devices=self.devices is None,
            devices=tuple(parse_device(text) for text in more),
            timeout=None, idle_timeout=option("lab_idle_timeout"), out=out,
            environment={SELECTION: f"{run.GUEST_OUT}/selection.json"},
        )


class HostSession:
    """A guest that runs the lab tests `nodeids`, in a thread of its own."""

    def __init__(
        self, config: pytest.Config, nodeids: list[str], machine: LabMachine
    ) -> None:
        self._config = config
        self._machine = machine
        self._nodeids = nodeids
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._finished: set[str] = set()
        self._handled: list[str] = []
        self._troubles: list[str] = []
        self._partial = b""
        self._output = b""
        self._over = False
        self._stop = threading.Event()
        self._result: run.LabResult | None = None
        self._error = ""
        self._first_lost: str | None = None
        self.summary = ""
        self._out = Path(tempfile.mkdtemp(prefix="udrv-lab-out-"))
        (self._out / "selection.json").write_text(json.dumps(nodeids))
        self._thread = threading.Thread(target=self._run, name="udrv-lab", daemon=True)
        self._thread.start()

    # --- in the thread ---

    def _run(self) -> None:
        try:
            lab = self._machine.config(self._config.getoption, self._out)
            self._result = run.run(
                guest_command(self._config, self._nodeids), lab, stdout=self._keep,
                stderr=self._keep, report=self._feed, stop=self._stop.is_set,
            )
        except LabError as error:
            self._error = str(error)
        except Exception as error:  # noqa: BLE001 - it is reported as each test's failure
            self._error = f"{type(error).__name__}: {error}"
        finally:
            self._messages.put(None)

    def _keep(self, data: bytes) -> None:
        self._output = (self._output + data)[-_OUTPUT_KEPT:]

    def _feed(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                message = {"trouble": f"a broken report line: {line[:200]!r}"}
            self._messages.put(message)

    # --- in pytest's thread ---

    def _next(self) -> bool:
        """Take in one message; False when there are no more."""
        if self._over:
            return False
        message = self._messages.get()
        if message is None:
            self._over = True
            return False
        if "report" in message:
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=message["report"])
            self._reports.setdefault(report.nodeid, []).append(report)
        elif "finish" in message:
            self._finished.add(message["finish"])
        elif "kernel" in message:
            self._handled += message["kernel"]
        elif "trouble" in message:
            self._troubles.append(message["trouble"])
        return True

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of one test, as they come; a failure if they do not."""
        nodeid = item.nodeid
        while True:
            yield from self._reports.pop(nodeid, [])
            if nodeid in self._finished:
                return
            if not self._next():
                break
        yield from self._reports.pop(nodeid, [])
        if self._first_lost is not None:
            text = f"guest ended before this test reported; {self._first_lost} says how"
        else:
            self._first_lost = nodeid
            text = self._why_lost()
        yield lost_report(item, text)

    def _why_lost(self) -> str:
        if self._error:
            text = f"guest ended before this test reported: {self._error}"
        elif self._result is not None:
            tail = "\n  ".join(self._result.console.splitlines()[-20:])
            text = (f"guest ended before this test reported: its pytest ended with status "
                    f"{self._result.status}; the console's last lines:\n  {tail}")
        else:
            text = "guest ended before this test reported"
        for trouble in self._troubles:
            text += f"\n\n{trouble}"
        if self._output and not self._troubles:
            text += f"\n\nits output:\n{self._output.decode('utf-8', 'replace')[-4000:]}"
        return text

    def is_last(self, nodeid: str) -> bool:
        """Whether no lab test comes after this one."""
        return nodeid == self._nodeids[-1]

    def finish(self) -> list[str]:
        """Wait for the guest's end; what its kernel log holds that no test has answered for."""
        while self._next():
            pass
        self._thread.join()
        if self._result is None:
            return []
        result = self._result
        self.summary = (
            f"{len(self._nodeids)} tests in kernel {result.kernel} ({result.accel}): "
            f"booted in {result.boot_seconds:.1f} s, {result.seconds:.1f} s in all")
        if result.boots > 1:
            self.summary += f"; it came up at boot {result.boots} only"
        if any(p.name != "selection.json" for p in self._out.iterdir()):
            self.summary += f"; results are in {self._out}"
        else:
            (self._out / "selection.json").unlink()
            self._out.rmdir()
        allow = [f"^{re.escape(text)}$" for text in self._handled]
        faults = kernel_log.scan(result.console.splitlines(), allow)
        return [f"the kernel log holds a fault outside of any test:\n{f}" for f in faults]

    def abandon(self) -> None:
        """End the guest if it still runs (after -x or Ctrl-C)."""
        self._stop.set()
        self._thread.join(30)
