# SPDX-License-Identifier: Apache-2.0
"""`--device soft:...` without a guest: the controllers' processes, from start to end."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

import udrv
from udrv.errors import LabError
from udrv.lab.devices import DEFAULT_DEVICES, VfioUserSpec, parse_device
from udrv.lab.soft import SoftServer, serving

SOFT = parse_device("soft:?size=1M")


def gone(server: SoftServer) -> bool:
    return server.process.poll() is not None and not server.socket.exists()


def test_each_is_served_where_qemu_is_told_and_ends_with_the_block() -> None:
    specs = [*DEFAULT_DEVICES, SOFT, parse_device("soft:?size=1M&serial=MINE")]
    with serving(specs) as (placed, servers):
        assert tuple(placed[:2]) == DEFAULT_DEVICES
        assert sorted(servers) == [2, 3]
        serials = []
        for spec in placed[2:]:
            assert isinstance(spec, VfioUserSpec)
            with udrv.open(f"vfio-user:{spec.socket}") as ctrl:
                serials.append(ctrl.serial)
        assert serials == ["UDRVLAB2", "MINE"]
    assert all(gone(server) for server in servers.values())


def test_they_end_after_an_exception_which_stays_the_one_that_is_told() -> None:
    servers: dict[int, SoftServer] = {}
    with pytest.raises(ZeroDivisionError), serving([SOFT, SOFT]) as (_, started):
        servers.update(started)
        raise ZeroDivisionError
    assert len(servers) == 2
    assert all(gone(server) for server in servers.values())


def test_one_that_ended_by_itself_is_told() -> None:
    why = r"soft0.sock ended by itself with status -11"
    with pytest.raises(LabError, match=why), serving([SOFT]) as (_, servers):
        os.kill(servers[0].process.pid, signal.SIGSEGV)
        servers[0].process.wait()


def test_one_that_was_killed_on_purpose_is_not() -> None:
    with serving([SOFT]) as (_, servers):
        servers[0].kill()
    assert servers[0].process.returncode == -signal.SIGKILL


def test_one_that_does_not_start_says_why_and_the_others_end() -> None:
    bad = parse_device("soft:?file=/nowhere/disk&size=1M")
    said: list[str] = []
    with pytest.raises(LabError, match="no directory /nowhere"), serving([SOFT, bad], said.append):
        pytest.fail("the block must not be entered")
    (line,) = said
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(line.rsplit(" ", 1)[1]), 0)
        pytest.fail("the first controller runs on")
