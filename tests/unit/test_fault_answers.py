# SPDX-License-Identifier: Apache-2.0
"""What comes from the other end of a control socket, whatever that is."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import ControllerError, FaultScriptError
from udrv.soft._soft import ffi, lib
from udrv.soft.fault_control import FaultControl
from udrv.soft.fault_table import SIZE, pack_fault, unpack_fault
from udrv.soft.faults import Fault

MAGIC, VERSION = lib.UDRV_FAULT_MAGIC, lib.UDRV_FAULT_VERSION
STATUS = ffi.sizeof("struct udrv_fault_status")
U32 = st.integers(0, 2**32 - 1)


def ask(answer: bytes) -> object:
    """What `loaded` makes of this answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def answer_once() -> None:
        theirs.recv(65536)
        theirs.send(answer)

    server = threading.Thread(target=answer_once)
    server.start()
    try:
        with FaultControl(ours, "soft:fuzz") as control:
            return control.loaded()
    finally:
        server.join()
        theirs.close()


def head(count: int, *, magic: int = MAGIC, error: int = 0) -> bytes:
    return struct.pack("=IIIIIi", magic, VERSION, 1, count, 0, error)


@given(st.binary(max_size=900))
def test_noise_is_no_answer(data: bytes) -> None:
    with pytest.raises(ControllerError, match="is it a controller of this version"):
        ask(data)


@given(st.integers(0, 3), st.integers(0, 3), st.binary(max_size=8), st.integers(-200, 200))
def test_counts_that_do_not_fit(count: int, sent: int, rest: bytes, error: int) -> None:
    body = (bytes(24) + pack_fault(Fault("drop"))) * sent + rest
    if error:
        with pytest.raises(FaultScriptError):
            ask(head(count, error=error) + body)
    elif len(body) == count * STATUS:
        assert isinstance(ask(head(count) + body), list)
    else:
        with pytest.raises(ControllerError, match="faults in"):
            ask(head(count) + body)


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 255)), max_size=12),
       st.integers(0, 60))  # fmt: skip
def test_a_fault_with_bytes_changed_is_one_or_is_refused(
    changes: list[tuple[int, int]], effect: int
) -> None:
    data = bytearray(pack_fault(Fault("drop")))
    data[ffi.offsetof("struct udrv_fault", "effect")] = effect
    for at, value in changes:
        data[at] = value
    try:
        found = unpack_fault(bytes(data))
    except FaultScriptError:
        return
    assert pack_fault(found)

