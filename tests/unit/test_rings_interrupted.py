# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any line of udrv.rings: memory in flight stays, and the ring can be closed."""

from __future__ import annotations

import gc
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from rings_rig import require_io_uring

import udrv.rings
from udrv.rings import lifetime
from udrv.rings.uring import Op, Ring

FOLDER = str(Path(udrv.rings.__file__).parent)


@pytest.fixture(autouse=True, scope="module")
def _io_uring() -> None:
    require_io_uring()


def interrupted(call: Callable[[], object], line: int) -> bool:
    """Whether `call` was interrupted: it is, when it has got to line number `line` of ours."""
    left = line

    def trace(frame: FrameType, event: str, _arg: object) -> object:
        nonlocal left
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return left <= 0


def alive(ref: weakref.ref[np.ndarray]) -> bool:  # type: ignore[type-arg]
    return ref() is not None


def gone(ref: weakref.ref[np.ndarray]) -> bool:  # type: ignore[type-arg]
    if ref() is not None:  # collecting takes long, and there should be no need
        gc.collect()
    return ref() is None


def use(ring: Ring, how: str, fd: int, array: object) -> None:
    """A read of `fd`, or something with one."""
    if how == "read":
        ring.read(fd, array)
    elif how == "batch":
        batch = ring.batch(2, array)
        batch.fd[:] = fd
        batch.length[:] = 4
        batch.opcode[1] = Op.NOP
        ring.push(batch)
    else:
        ring.buffers.update(1, array)
        ring.read_fixed(fd, 1)
        ring.buffers.update(1, None)
    ring.reap(1, timeout=0.0, submit=True)


def memory_in_flight_stays(how: str, line: int, ends: tuple[int, int]) -> bool:
    with Ring(8) as ring:
        first, second = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
        refs = weakref.ref(first), weakref.ref(second)
        if how == "fixed":
            ring.buffers.register_sparse(2)
        more = interrupted(partial(use, ring, how, ends[0], first), line)
        del first
        ring.submit()
        mine = ring.inflight
        # takes a group of its own, whatever the interrupt did to the list of free ones
        other = ring.read(ends[0], second)
        del second
        ring.submit()
        while ring.peek():
            pass
        assert alive(refs[1])
        if mine and ring.inflight == 2:
            assert alive(refs[0]), f"line {line}"
        while ring.inflight:
            os.write(ends[1], b"data")
            if other in {done.token for done in ring.wait(1, timeout=10)}:
                assert gone(refs[1]), f"line {line}"
    assert gone(refs[0]), f"line {line}"
    return more


@pytest.mark.parametrize("how", ["read", "batch", "fixed"])
def test_memory_in_flight_stays(how: str) -> None:
    line, more = 0, True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while more:
            line += 1
            ends = os.pipe()
            more = memory_in_flight_stays(how, line, ends)
            for end in ends:
                os.close(end)
    assert line > 20, "the trace does not see the lines"


def test_a_close_may_be_interrupted_and_called_again() -> None:
    line, more = 0, True
    while more:
        line += 1
        ends = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ring = Ring(8)
            array = np.zeros(64, np.uint8)
            ref = weakref.ref(array)
            ring.read(ends[0], array)
            del array
            ring.submit()
            number = ring.fileno()
            more = interrupted(ring.close, line)
            if ring._state.holds and any(view is not None for view in ring._state.holds):
                assert alive(ref), f"line {line}"
            ring.close()
            assert gone(ref), f"line {line}"
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)
        assert not lifetime.parked
        for end in ends:
            os.close(end)
    assert line > 10, "the trace does not see the lines"


def test_making_a_ring_may_be_interrupted() -> None:
    line, more = 0, True
    before = len(list(Path("/proc/self/fd").iterdir()))
    while more:
        line += 1
        more = interrupted(lambda: Ring(8), line)
        gc.collect()
        assert not lifetime.parked, f"line {line}"
        assert len(list(Path("/proc/self/fd").iterdir())) == before, f"line {line}"
    assert line > 20, "the trace does not see the lines"
