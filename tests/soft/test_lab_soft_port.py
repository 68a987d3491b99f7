# SPDX-License-Identifier: Apache-2.0
"""What a guest may ask of its controllers, with both ends of the port here."""

from __future__ import annotations

import json
import os
import signal
import threading
import tty
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import udrv
from udrv.errors import LabError
from udrv.lab.devices import parse_device
from udrv.lab.info import LabDevice
from udrv.lab.soft import SoftServer, serving
from udrv.lab.soft_port import FaultCount, SoftPort, answer
from udrv.nvme.status import UnrecoveredReadError
from udrv.soft.faults import Script, fault


def device(name: str) -> LabDevice:
    return LabDevice(name, None, None, (), "", {}, replug=True)


@pytest.fixture
def servers() -> Iterator[dict[int, SoftServer]]:
    with serving([parse_device("soft:?size=1M")]) as (_, servers):
        yield servers


@pytest.fixture
def port(servers: dict[int, SoftServer]) -> Iterator[Path]:
    """A terminal without its manners, which is a virtio port to those who open it."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)

    def serve() -> None:
        asked = b""
        while True:
            try:
                asked += os.read(ours, 4096)
            except OSError:
                return
            *lines, asked = asked.split(b"\n")
            for line in lines:
                os.write(ours, answer(servers, line))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Path(os.ttyname(theirs))
    finally:
        os.close(theirs)
        thread.join()
        os.close(ours)


def test_faults_are_loaded_counted_and_cleared(
    servers: dict[int, SoftServer], port: Path
) -> None:
    media = fault("status", sc=0x81, sct=2, dnr=True, opcodes="read")
    script = Script((media, fault("late", us=1, opcodes="write")))
    with SoftPort(device("soft0"), port) as soft, ExitStack() as stack:
        assert soft.add(script) == [1, 2]
        ctrl = stack.enter_context(udrv.open(f"vfio-user:{servers[0].socket}"))
        with pytest.raises(UnrecoveredReadError):
            ctrl.namespace(1).read(0, 1)
        assert soft.loaded() == [FaultCount(1, 1, 1), FaultCount(2, 0, 0)]
        assert soft.replace(Script((fault("late", us=2),))) == [3]
        soft.clear()
        assert soft.loaded() == []


def test_a_kill_is_a_kill(servers: dict[int, SoftServer], port: Path) -> None:
    with SoftPort(device("soft0"), port) as soft:
        soft.kill()
        with pytest.raises(LabError, match="no controller listens"):
            soft.loaded()
    assert servers[0].process.returncode == -signal.SIGKILL


def test_what_is_refused_is_refused_by_name(port: Path) -> None:
    why = r"no controller 'nvme1' of ours"
    with SoftPort(device("nvme1"), port) as soft, pytest.raises(LabError, match=why):
        soft.kill()
    with pytest.raises(LabError, match="cannot be opened"):
        SoftPort(device("soft0"), Path("/nowhere"))


@given(st.binary() | st.recursive(
    st.none() | st.integers() | st.text(), lambda it: st.lists(it) | st.dictionaries(st.text(), it)
).map(lambda it: json.dumps(it).encode()) | st.fixed_dictionaries(
    {"device": st.just("soft0"), "do": st.text() | st.integers() | st.none()}
).map(lambda it: json.dumps(it).encode()))
def test_any_line_is_answered(line: bytes) -> None:
    assert "error" in json.loads(answer({}, line))
