"""Pools: made whole or not at all, and taken down in the right order."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_fakes import FakeLedger, FakeMapper, mapped, pool_descriptors, pool_mappings

from udrv.errors import (
    ClosedError,
    DmaMemoryError,
    InvalidRequestError,
    MemlockError,
    VfioError,
)
from udrv.memory import Buffer, DmaMemory, Region

POOL = 2 << 20


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    gc.collect()
    before = (len(pool_mappings()), len(pool_descriptors()))
    yield
    gc.collect()
    assert (len(pool_mappings()), len(pool_descriptors())) == before


def huge_pages_free() -> int:
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"HugePages_Free:\s+(\d+)", text)
    return int(found[1]) if found else 0


# --- what a pool is ----------------------------------------------------------------------------


def test_pool_is_a_sealed_memfd_mapped_for_the_device() -> None:
    mapper = FakeMapper()
    with DmaMemory(mapper, device="fake") as memory:
        region = memory.region(4096)
        pool = region.pool
        assert mapper.maps == {pool.iova: (pool.address, POOL)}
        assert pool.iova % POOL == 0
        assert os.fstat(pool.fd).st_size == POOL
        seals = fcntl.fcntl(pool.fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_SHRINK
        assert seals & fcntl.F_SEAL_SEAL
        assert fcntl.fcntl(pool.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        for size in (0, 2 * POOL):
            with pytest.raises(PermissionError):
                os.ftruncate(pool.fd, size)


def test_another_mapping_of_the_descriptor_sees_the_same_bytes() -> None:
    with DmaMemory(FakeMapper(), device="fake") as memory:
        memory.alloc(4096)
        buffer = memory.alloc(4096)
        with mmap.mmap(buffer.pool.fd, POOL) as other:
            buffer[:4] = [1, 2, 3, 4]
            assert other[buffer.pool_offset : buffer.pool_offset + 4] == b"\1\2\3\4"


def test_every_page_is_present_before_the_device_is_told() -> None:
    class Checking(FakeMapper):
        def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
            assert os.fstat(fd).st_blocks * 512 >= size
            super().dma_map(fd=fd, offset=offset, address=address, iova=iova, size=size)

    mapper = Checking()
    with DmaMemory(mapper, device="fake") as memory:
        memory.alloc(3 * POOL)
        assert memory.mapped_bytes == 3 * POOL


def test_pages_are_present_on_kernels_without_populate(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldKernel(mmap.mmap):
        def madvise(self, option: int, *_: Any) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", OldKernel)
    with DmaMemory(FakeMapper(), device="fake") as memory:
        pool = memory.region(1).pool
        assert os.fstat(pool.fd).st_blocks * 512 >= POOL


def test_a_numa_node_is_a_hint() -> None:
    for node in (0, 63, 64, 1000):
        with DmaMemory(FakeMapper(), device="fake", numa_node=node) as memory:
            memory.alloc(1)[0] = 1


@pytest.mark.skipif(huge_pages_free() > 0, reason="this machine has huge pages reserved")
def test_without_huge_pages_plain_ones_serve() -> None:
    with DmaMemory(FakeMapper(), device="fake") as memory:
        assert not memory.region(1).pool.huge
    with (
        DmaMemory(FakeMapper(), device="fake", huge_pages=True) as memory,
        pytest.raises(DmaMemoryError, match="nr_hugepages"),
    ):
        memory.alloc(1)


@pytest.mark.skipif(huge_pages_free() < 2, reason="this machine has no huge pages reserved")
def test_huge_pages_are_used_when_they_are_there() -> None:
    before = huge_pages_free()
    with DmaMemory(FakeMapper(), device="fake") as memory:
        buffer = memory.alloc(POOL + 1)
        assert buffer.pool.huge
        buffer[:] = 1
        assert huge_pages_free() == before - 2
    del buffer
    assert huge_pages_free() == before


def test_huge_pages_that_vanish_while_populating_are_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A reservation can be lost to a cgroup's limit after mmap() said yes.
    flags: list[int] = []

    def memfd(name: str, wanted: int) -> int:
        flags.append(wanted)
        return real(name, wanted & ~(os.MFD_HUGETLB | 0x3F << 26))

    class Short(mmap.mmap):
        def madvise(self, option: int, *_: Any) -> None:
            if option == 23 and flags[-1] & os.MFD_HUGETLB:
                raise OSError(errno.EFAULT, "Bad address")

    real = os.memfd_create
    monkeypatch.setattr(os, "memfd_create", memfd)
    monkeypatch.setattr(mmap, "mmap", Short)
    with DmaMemory(FakeMapper(), device="fake") as memory:
        assert not memory.region(1).pool.huge
    assert [bool(wanted & os.MFD_HUGETLB) for wanted in flags] == [True, False]


# --- a failure at each step --------------------------------------------------------------------


def fail_charge(monkeypatch: pytest.MonkeyPatch, mapper: FakeMapper, ledger: FakeLedger) -> None:
    ledger.limit = 0


def fail_map(monkeypatch: pytest.MonkeyPatch, mapper: FakeMapper, ledger: FakeLedger) -> None:
    mapper.fail_map = VfioError("map refused", errno=errno.ENOMEM)


def fail_iova(monkeypatch: pytest.MonkeyPatch, mapper: FakeMapper, ledger: FakeLedger) -> None:
    mapper.iova_ranges = ((0, 4095),)


def fail_call(module: Any, name: str, code: int) -> Callable[..., None]:
    def install(monkeypatch: pytest.MonkeyPatch, mapper: FakeMapper, ledger: FakeLedger) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(module, name, fail)

    return install


def fail_populate(monkeypatch: pytest.MonkeyPatch, mapper: FakeMapper, ledger: FakeLedger) -> None:
    class Poor(mmap.mmap):
        def madvise(self, option: int, *_: Any) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", Poor)


def fail_seal(monkeypatch: pytest.MonkeyPatch, mapper: FakeMapper, ledger: FakeLedger) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, *args: Any) -> Any:
        if command == fcntl.F_ADD_SEALS:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return real(fd, command, *args)

    monkeypatch.setattr(fcntl, "fcntl", refuse)


STEPS = {
    "charge": (fail_charge, RuntimeError, "over the grant"),
    "memfd_create": (fail_call(os, "memfd_create", errno.EMFILE), DmaMemoryError, "ulimit -n"),
    "memfd_noexec": (fail_call(os, "memfd_create", errno.EACCES), DmaMemoryError, "seccomp"),
    "ftruncate": (fail_call(os, "ftruncate", errno.ENOMEM), DmaMemoryError, "free memory"),
    "seal": (fail_seal, DmaMemoryError, "not permitted"),
    "mmap": (fail_call(mmap, "mmap", errno.ENOMEM), DmaMemoryError, "free memory"),
    "populate": (fail_populate, DmaMemoryError, "free memory"),
    "iova": (fail_iova, DmaMemoryError, "no IOVA is left"),
    "dma_map": (fail_map, VfioError, "map refused"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_nothing(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install, error, message = STEPS[step]
    mapper, ledger = FakeMapper(), FakeLedger()
    with monkeypatch.context() as patch:
        install(patch, mapper, ledger)
        memory = DmaMemory(mapper, ledger=ledger, device="fake")
        before = memory._iovas.free_spans
        with pytest.raises(error, match=message) as caught:
            memory.alloc(POOL)
        assert caught.tb is not None
        # At once, not when some garbage is collected: the traceback above is still alive.
        assert pool_mappings() == []
        assert pool_descriptors() == []
        assert ledger.held.get("dma_bytes", 0) == 0
        assert mapper.maps == {}
        assert memory._iovas.free_spans == before
        assert memory.pools == ()
    # And the next attempt starts afresh.
    if step not in ("iova",):
        ledger.limit = None
        assert memory.alloc(POOL).iova in mapper.maps
        assert ledger.held == {"dma_bytes": POOL}
    memory.close()
    assert ledger.held.get("dma_bytes", 0) == 0


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_map_costs_its_address_and_no_more(after: bool) -> None:
    """Ctrl-C before or after the kernel made the map: nobody knows, so it is not reused."""
    mapper = FakeMapper()
    dma_map = mapper.dma_map

    def interrupted(**kwargs: int) -> None:
        if after:
            dma_map(**kwargs)
        raise KeyboardInterrupt

    with DmaMemory(mapper) as memory:
        mapper.dma_map = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            memory.alloc(4096)
        mapper.dma_map = dma_map  # type: ignore[method-assign]
        memory.alloc(4096)
        assert len(memory.pools) == 1


def test_errors_of_the_host_name_device_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_call(os, "ftruncate", errno.ENOMEM)(monkeypatch, FakeMapper(), FakeLedger())
    with (
        DmaMemory(FakeMapper(), device="pci:0000:01:00.0") as memory,
        pytest.raises(DmaMemoryError, match=r"pci:0000:01:00\.0: 2097152 bytes.*Cannot allocate"),
    ):
        memory.alloc(1)


# --- the way down ------------------------------------------------------------------------------


def test_unmapped_for_the_device_before_the_memory_goes() -> None:
    mapper, ledger = FakeMapper(), FakeLedger()
    memory = DmaMemory(mapper, ledger=ledger, device="fake")
    for _ in range(3):
        memory.alloc(POOL)
        memory.region(POOL)
    count = len(memory.pools)
    checked = []

    def still_there(address: int, size: int) -> None:
        assert mapped(address, size)
        assert ledger.held["dma_bytes"] >= size
        checked.append(address)

    mapper.on_unmap = still_there
    memory.close()
    assert len(checked) == count
    assert mapper.maps == {}
    assert ledger.held == {"dma_bytes": 0}
    assert pool_mappings() == []
    assert pool_descriptors() == []


def test_all_pools_are_unmapped_before_any_memory_goes() -> None:
    mapper = FakeMapper()
    memory = DmaMemory(mapper, device="fake")
    regions = [memory.region(POOL) for _ in range(3)]
    addresses = [region.address for region in regions]
    mapper.on_unmap = lambda *_: [mapped(a, POOL) or pytest.fail("gone") for a in addresses]  # type: ignore[func-returns-value,assignment]
    del regions
    memory.close()


def test_views_outlive_close_without_their_iova() -> None:
    mapper = FakeMapper()
    memory = DmaMemory(mapper, device="fake")
    buffer = memory.alloc(8192)
    view = np.asarray(buffer[4096:])
    region = memory.region(4096)
    view[:] = 7
    memory.close()
    assert mapper.maps == {}
    assert pool_descriptors() == [] or len(pool_descriptors()) == 1  # mmap's own, before 3.13

    def refused(buffer: Buffer, region: Region) -> None:
        for use in (
            lambda: buffer.iova,
            lambda: region.iova,
            buffer.pin,
            lambda: buffer.pool.fd,
            lambda: buffer.pool.iova,
        ):
            with pytest.raises(ClosedError, match=r"fake: .*closed"):
                use()

    refused(buffer, region)
    assert view[0] == buffer[4096] == 7
    buffer[:] = 9
    del buffer, region
    assert (view == 9).all()
    assert len(pool_mappings()) == 1
    del view
    assert pool_mappings() == []


def test_close_is_idempotent_and_the_context_closes() -> None:
    mapper = FakeMapper()
    with DmaMemory(mapper, device="fake") as memory:
        memory.alloc(1)
    assert memory.closed
    memory.close()
    assert [kind for kind, _ in mapper.events] == ["map", "unmap"]
    for call in (lambda: memory.alloc(1), lambda: memory.region(1)):
        with pytest.raises(ClosedError):
            call()


def test_a_failed_unmap_keeps_the_memory_and_can_be_tried_again() -> None:
    mapper, ledger = FakeMapper(), FakeLedger()
    memory = DmaMemory(mapper, ledger=ledger, device="fake")
    first = memory.region(POOL).address
    memory.region(POOL)
    mapper.fail_unmap = VfioError("unmap failed", errno=errno.EIO)
    with pytest.raises(VfioError, match="unmap failed"):
        memory.close()
    assert len(mapper.maps) == 1, "the other pool is unmapped all the same"
    assert mapped(first, POOL)
    assert ledger.held == {"dma_bytes": POOL}
    with pytest.raises(ClosedError):
        memory.alloc(1)
    memory.close()
    assert mapper.maps == {}
    assert ledger.held == {"dma_bytes": 0}


def test_a_mapper_that_closed_first_has_dropped_its_maps() -> None:
    mapper, ledger = FakeMapper(), FakeLedger()
    memory = DmaMemory(mapper, ledger=ledger, device="fake")
    memory.alloc(1)
    mapper.fail_unmap = ClosedError("the device was closed")
    memory.close()
    assert ledger.held == {"dma_bytes": 0}
    assert memory.pools == ()


def test_memory_that_nobody_closed_is_unmapped_with_a_warning() -> None:
    mapper = FakeMapper()
    memory = DmaMemory(mapper, device="fake")
    memory.region(4096)
    view = memory.alloc(4096)
    del memory
    gc.collect()
    assert len(mapper.maps) == 1, "a view keeps what maps it"
    with pytest.warns(ResourceWarning, match="fake: DMA memory was not closed"):
        del view
        gc.collect()
    assert mapper.maps == {}


# --- growth ------------------------------------------------------------------------------------


def test_small_requests_share_a_pool_and_large_ones_get_their_own() -> None:
    with DmaMemory(FakeMapper(), device="fake") as memory:
        small = [memory.alloc(4096) for _ in range(8)]
        assert len({buffer.pool.id for buffer in small}) == 1
        large = memory.alloc(5 * POOL + 1)
        assert large.pool.size == 6 * POOL
        assert large.iova + large.nbytes <= large.pool.iova + large.pool.size
        assert memory.mapped_bytes == 7 * POOL
        assert memory.used_bytes >= 8 * 4096 + 5 * POOL + 1


def test_pool_size_is_honoured() -> None:
    with DmaMemory(FakeMapper(), device="fake", pool_size=4 * POOL) as memory:
        assert memory.alloc(1).pool.size == 4 * POOL
    for size in (0, 4096, POOL + 1, -POOL):
        with pytest.raises(InvalidRequestError, match="multiple"):
            DmaMemory(FakeMapper(), device="fake", pool_size=size)


def test_trim_returns_what_nobody_uses() -> None:
    mapper, ledger = FakeMapper(), FakeLedger()
    with DmaMemory(mapper, ledger=ledger, device="fake") as memory:
        kept = memory.alloc(POOL)
        memory.alloc(4 * POOL)
        assert memory.trim() == 4 * POOL
        assert ledger.held == {"dma_bytes": POOL}
        assert list(mapper.maps) == [kept.iova]
        assert memory.trim() == 0


def test_empty_pools_make_room_under_a_limit() -> None:
    ledger = FakeLedger(limit=2 * POOL, error=DmaMemoryError)
    with DmaMemory(FakeMapper(), ledger=ledger, device="fake") as memory:
        memory.alloc(POOL)
        kept = memory.alloc(2 * POOL)  # only if the first, dead, pool goes
        assert ledger.held == {"dma_bytes": 2 * POOL}
        with pytest.raises(DmaMemoryError, match="over the grant"):
            memory.alloc(POOL)
        assert kept.iova


# --- RLIMIT_MEMLOCK ----------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns or raises in a forked child, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = f"returned {work()}"
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode()[:60000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        text = stream.read().decode()
    assert os.waitpid(pid, 0)[1] == 0, text
    return text


def limited(limit: int, size: int) -> Callable[[], object]:
    def work() -> object:
        import resource

        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        if os.geteuid() == 0:
            os.setuid(65534)  # drops CAP_IPC_LOCK
        mapper = FakeMapper()
        with DmaMemory(mapper, device="fake", check_memlock=True) as memory:
            try:
                memory.alloc(size)
            except MemlockError as error:
                return (error.needed, error.limit, len(mapper.events), str(error))
        return "allowed"

    return work


def test_a_memlock_limit_too_low_is_said_before_mapping() -> None:
    text = in_child(limited(POOL - 4096, POOL))
    assert text.startswith(f"returned ({POOL}, {POOL - 4096}, 0,"), text
    for part in ("ulimit -l 2048", "limits.d", "LimitMEMLOCK=2048K", "fake: "):
        assert part in text


def test_a_memlock_limit_that_is_just_enough_is_enough() -> None:
    assert in_child(limited(POOL, POOL)) == "returned allowed"
