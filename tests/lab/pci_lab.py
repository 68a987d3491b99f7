# SPDX-License-Identifier: Apache-2.0
"""What the lab tests of PCI and VFIO share: waiting, children, and a device put back afterwards."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from udrv import pci

NOBODY = 65534


def wait_for(what: Callable[[], object]) -> None:
    """Until `what` is true; the test's own time limit ends it otherwise."""
    while not what():
        time.sleep(0.02)


def node(bdf: str) -> Path:
    """The device node of the function's first namespace, once the kernel has made it."""
    wait_for(lambda: pci.disks(pci.function(bdf)))
    path = Path("/dev") / pci.disks(pci.function(bdf))[0].name
    wait_for(path.is_block_device)
    return path


@contextlib.contextmanager
def given_back(bdf: str) -> Iterator[None]:
    """The function is on its own driver, with an empty start of its disk, before and after."""
    _give_back(bdf)
    try:
        yield
    finally:
        _give_back(bdf)


def _give_back(bdf: str) -> None:
    if pci.function(bdf).driver != "nvme":
        pci.unbind(bdf, wait=10.0)
    with node(bdf).open("r+b") as disk:
        disk.write(bytes(1 << 20))
        disk.flush()
        os.fsync(disk.fileno())
    # udev-less as the lab is, whoever scans a new disk is done when nobody has it open.
    wait_for(lambda: not pci.plan_bind(bdf).reasons if pci.function(bdf).driver == "nvme" else True)


def in_child(work: Callable[[], Any], *, uid: int | None = None) -> Any:
    """Run `work` in a forked child, as another user if given; return its result or raise its error.

    Forked, not started: a new Python takes seconds on an emulated CPU.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            outcome: tuple[bool, Any] = (True, work())
        except BaseException as error:  # noqa: BLE001 - all of it goes to the parent
            outcome = (False, (type(error), vars(error), str(error), traceback.format_exc()))
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(data)
    if succeeded:
        return value
    kind, attributes, text, trace = value
    error = kind(attributes.pop("tried", text), **attributes)
    error.add_note(trace)
    raise error


@contextlib.contextmanager
def held_by_child(work: Callable[[], object]) -> Iterator[int]:
    """A forked child that has done `work` and keeps its result; yields its process id."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            kept = work()
            os.write(write, b"R")
            while kept is not None:
                time.sleep(600)
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b"R", "the child failed"
        yield child
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
