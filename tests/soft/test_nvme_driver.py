"""The driver over vfio-user, on our own software controller."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver_suite import DriverSuite

import udrv
from udrv.nvme import Controller


class TestSoft(DriverSuite):
    """`soft:`, memory-backed; a file where the data must outlive the child process."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> str:
        return f"soft:?size=64M&lba=4096&file={tmp_path / 'disk'}"

    @pytest.fixture
    def opened(self) -> Iterator[list[Controller]]:
        opened: list[Controller] = []
        yield opened
        for ctrl in opened:
            ctrl.close()

    @pytest.fixture
    def ctrl(self, target: str, opened: list[Controller]) -> Controller:
        opened.append(udrv.open(target))
        assert opened[0].transport == "vfio-user"
        return opened[0]

    @pytest.fixture
    def reopen(self, target: str, opened: list[Controller]) -> Callable[[], Controller]:
        def again() -> Controller:
            opened.pop().close()
            opened.append(udrv.open(target))
            return opened[0]

        return again


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("soft") / "nvme.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "udrv.cli.main", "soft", "serve", str(path),
         "ns=512:32M+4096:32M"],
    )  # fmt: skip
    try:
        for _ in range(500):
            if path.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        yield str(path)
    finally:
        process.terminate()
        process.wait(20)


class TestSoftTwoNamespaces(TestSoft):
    """Several namespaces of different block sizes, in memory."""

    @pytest.fixture
    def target(self, server: str) -> str:
        return f"vfio-user:{server}"
