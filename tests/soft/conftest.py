"""A controller in a child process, and a hand-made driver on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_rig import Rig
from minidriver import MiniDriver

from udrv import soft
from udrv.soft import SoftProcess
from udrv.soft.faults import Script
from udrv.vfio.user import UserDevice, from_socket

#: Another build of the controller (tests/soft/Makefile makes one with sanitizers).
PROGRAM = os.environ.get("UDRV_SOFT_PROGRAM")

Start = Callable[..., SoftProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """`soft.start`, with the end seen to: every controller must end without a word."""
    processes: list[SoftProcess] = []

    def begin(options: str = "size=16M", script: Script | None = None) -> SoftProcess:
        process = soft.start(options, program=[PROGRAM] if PROGRAM else None, faults=script)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.close()
    for process in processes:
        assert process.returncode in (0, 1), process.stderr
        assert "ERROR" not in process.stderr, process.stderr
        assert "runtime error" not in process.stderr, process.stderr


@pytest.fixture
def connect(start: Start) -> Iterator[Callable[..., UserDevice]]:
    """Start a controller with these options and return the device."""
    with ExitStack() as stack:

        def begin(options: str = "size=16M") -> UserDevice:
            process = start(options)
            return stack.enter_context(from_socket(process.socket, f"soft:?{options}"))

        yield begin


@pytest.fixture
def drive(connect: Callable[..., UserDevice]) -> Iterator[Callable[..., MiniDriver]]:
    """Start a controller, and an enabled driver on it."""
    drivers: list[MiniDriver] = []

    def begin(options: str = "size=16M", *, entries: int = 16, enable: bool = True) -> MiniDriver:
        driver = MiniDriver(connect(options), entries=entries, enable=enable)
        drivers.append(driver)
        return driver

    yield begin
    for driver in drivers:
        driver.close()


@pytest.fixture
def rig(start: Start, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Start a controller with faults, and a driver on it that is not enabled yet."""
    made: list[Rig] = []

    def make(options: str = "lba=512", script: Script | None = None) -> Rig:
        made.append(Rig(start, tmp_path, options, script))
        return made[-1]

    yield make
    for one in made:
        one.close()
