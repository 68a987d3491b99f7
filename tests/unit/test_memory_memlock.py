"""RLIMIT_MEMLOCK, with the kernel's arithmetic."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from udrv.errors import MemlockError
from udrv.memory import memlock

STATUS = """Name:\tpython3
VmPeak:\t   20000 kB
VmLck:\t     128 kB
VmPin:\t    4096 kB
CapInh:\t0000000000000000
CapEff:\t{caps:016x}
"""
IPC_LOCK = 1 << 14


def test_pinned_pages_of_others_do_not_count() -> None:
    # io_uring and RDMA raise VmPin; type 1 compares locked_vm, which is VmLck.
    assert memlock.locked_bytes(STATUS.format(caps=0)) == 128 * 1024


def test_a_status_without_the_field_counts_as_zero() -> None:
    assert memlock.locked_bytes("Name:\tkthread\n") == 0


@pytest.mark.parametrize(
    ("caps", "namespace", "exempt"),
    [
        (IPC_LOCK, 0xEFFFFFFD, True),
        (IPC_LOCK, 0xF0000001, False),  # root of a container's own user namespace
        (~IPC_LOCK & 0x1FF_FFFF_FFFF, 0xEFFFFFFD, False),
        (0, 0xEFFFFFFD, False),
    ],
)
def test_only_a_capability_of_the_initial_namespace_exempts(
    caps: int, namespace: int, exempt: bool
) -> None:
    assert memlock.is_exempt(STATUS.format(caps=caps), user_namespace=namespace) is exempt


def test_what_is_locked_already_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(_: Path, **__: Any) -> str:
        return STATUS.format(caps=0)

    limit = 1 << 20
    monkeypatch.setattr(Path, "read_text", status)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    memlock.require_memlock(limit - 128 * 1024, device="fake")
    with pytest.raises(MemlockError) as caught:
        memlock.require_memlock(limit - 128 * 1024 + 1, device="fake")
    assert caught.value.needed == limit + 1
    assert caught.value.limit == limit
    assert "ulimit -l 1025" in str(caught.value)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    memlock.require_memlock(1 << 50)


def test_this_process_can_be_read() -> None:
    text = Path("/proc/self/status").read_text()
    assert memlock.locked_bytes(text) >= 0
    if os.geteuid() != 0 and "CapEff:\t0000000000000000" in text:
        assert not memlock.is_exempt(text)


def test_without_proc_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    memlock.require_memlock(1 << 30)
