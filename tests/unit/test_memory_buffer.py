"""Buffers: numpy arrays that know where they are, as long as they are there."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from memory_fakes import FakeMapper, mapped

from udrv.errors import (
    BufferInUseError,
    BufferTypeError,
    ClosedError,
    InvalidRequestError,
)
from udrv.memory import Buffer, DmaMemory, as_buffer
from udrv.memory.allocation import _PINNED


@pytest.fixture
def memory() -> Iterator[DmaMemory]:
    with DmaMemory(FakeMapper(), device="fake") as heap:
        yield heap
    assert not _PINNED


# --- an array with an address ------------------------------------------------------------------


def test_a_buffer_is_bytes_at_an_aligned_iova(memory: DmaMemory) -> None:
    buffer = memory.alloc(5000)
    assert isinstance(buffer, np.ndarray)
    assert (buffer.dtype, buffer.shape) == (np.uint8, (5000,))
    assert buffer.iova % 4096 == 0
    assert buffer.iova == buffer.pool.iova + buffer.pool_offset
    assert buffer.address == buffer.pool.address + buffer.pool_offset == buffer.ctypes.data
    assert buffer.contiguous
    assert buffer.is_dma


@pytest.mark.parametrize("align", [1, 64, 512, 8192, 1 << 21])
def test_alignment_is_of_iova_and_offset(memory: DmaMemory, align: int) -> None:
    memory.alloc(1)
    buffer = memory.alloc(100, align=align)
    assert buffer.iova % align == buffer.pool_offset % align == 0


@pytest.mark.parametrize(("nbytes", "align"), [(0, 1), (-1, 1), (1, 0), (1, 3), (1, 1 << 22)])
def test_sizes_and_alignments_that_make_no_sense(
    memory: DmaMemory, nbytes: int, align: int
) -> None:
    with pytest.raises(InvalidRequestError, match="fake: "):
        memory.alloc(nbytes, align=align)
    assert memory.pools == ()


def test_views_keep_their_place(memory: DmaMemory) -> None:
    buffer = memory.alloc(8192)
    for view, offset in (
        (buffer[512:], 512),
        (buffer[512:][512:1024], 1024),
        (buffer.view(np.uint32), 0),
        (buffer.view(np.float64)[64:].reshape(8, -1), 512),
        (buffer.reshape(16, 512)[3], 1536),
        (np.asarray(buffer)[7:].view(Buffer), 7),
        (np.frombuffer(buffer, np.uint16)[2:].view(Buffer), 4),
        (np.frombuffer(memoryview(buffer)[16:], np.uint8).view(Buffer), 16),
    ):
        assert isinstance(view, Buffer)
        assert view.iova == buffer.iova + offset
        assert view.pool_offset == buffer.pool_offset + offset
        assert view.address == view.ctypes.data
        assert view.pool is buffer.pool
        assert view.contiguous


def test_a_column_is_not_contiguous(memory: DmaMemory) -> None:
    column = memory.alloc(4096).reshape(64, 64).view(Buffer)[:, 3]
    assert not column.contiguous
    assert column.pool_offset % 4096 == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda b: b.copy(),
        copy.copy,
        copy.deepcopy,
        lambda b: b[[1, 2, 3]],
        lambda b: b[b == 0],
        lambda b: b.astype(np.uint16),
        np.empty_like,
        np.sort,
        lambda b: np.concatenate([b, b]),
        lambda b: np.lib.stride_tricks.as_strided(b, shape=(1 << 22,)),
    ],
)
def test_a_copy_has_no_iova_and_says_why(memory: DmaMemory, make: Callable[[Buffer], Any]) -> None:
    made = make(memory.alloc(64))
    if type(made) is np.ndarray:
        return
    assert not made.is_dma
    for use in (lambda: made.iova, lambda: made.pool_offset, lambda: made.pool, made.pin):
        with pytest.raises(BufferTypeError, match=r"ordinary memory: .*ctrl\.alloc"):
            use()


@pytest.mark.parametrize(
    "result",
    [
        lambda b: b + 1,
        lambda b: 1 - b,
        lambda b: b == 3,
        np.sin,
        lambda b: np.add(b, 1, out=np.zeros(64, np.uint8)),
        lambda b: np.add.accumulate(b),
        lambda b: pickle.loads(pickle.dumps(b, 2)),
        lambda b: pickle.loads(pickle.dumps(b, 5)),
    ],
)
def test_a_result_is_an_ordinary_array(memory: DmaMemory, result: Callable[[Buffer], Any]) -> None:
    buffer = memory.alloc(64, zero=True)
    made = result(buffer)
    assert type(made) is np.ndarray
    assert made.shape == (64,)
    assert not np.shares_memory(made, buffer)
    with pytest.raises(AttributeError):
        made.iova


def test_arithmetic_in_place_stays_in_place(memory: DmaMemory) -> None:
    buffer = memory.alloc(64, zero=True)
    iova = buffer.iova
    buffer += 3
    same = np.multiply(buffer, 2, out=buffer)
    assert same is buffer
    assert buffer.iova == iova
    assert (np.asarray(buffer) == 6).all()
    assert buffer.sum() == 6 * 64
    assert isinstance(buffer.sum(), np.integer)


def test_dlpack_shares_the_memory_and_keeps_it(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    other = np.from_dlpack(buffer)
    buffer[5] = 77
    assert other[5] == 77
    assert np.shares_memory(other, buffer)
    offset = buffer.pool_offset
    del buffer
    assert memory.alloc(4096).pool_offset != offset
    del other
    assert memory.alloc(4096).pool_offset == offset


def test_a_buffer_cannot_be_constructed() -> None:
    with pytest.raises(BufferTypeError, match=r"ctrl\.alloc"):
        Buffer((3,), np.uint8)


def test_zero_clears_recycled_memory(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    offset = buffer.pool_offset
    buffer[:] = 0xEE
    del buffer
    again = memory.alloc(4096, zero=True)
    assert again.pool_offset == offset
    assert not again.any()


# --- how long it lives -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keep",
    [
        lambda b: b,
        lambda b: b[100:200],
        lambda b: b[:0],
        np.asarray,
        memoryview,
        np.from_dlpack,
        lambda b: b.view("u1,u1")[0],
        lambda b: iter(b.reshape(64, -1)),
    ],
)
def test_memory_is_not_handed_out_while_a_view_lives(
    memory: DmaMemory, keep: Callable[[Buffer], Any]
) -> None:
    buffer = memory.alloc(4096)
    offset = buffer.pool_offset
    kept = keep(buffer)
    del buffer
    assert memory.alloc(4096).pool_offset != offset
    del kept
    assert memory.alloc(4096).pool_offset == offset


def test_a_pin_keeps_memory_that_no_array_shows(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    offset = buffer.pool_offset
    first, second = buffer.pinned(), buffer[1:].pinned()
    assert buffer.pins == 2
    del buffer
    gc.collect()
    first.release()
    first.release()  # idempotent: not the second's
    assert memory.alloc(4096).pool_offset != offset
    second.release()
    assert memory.alloc(4096).pool_offset == offset


def test_a_pin_that_is_dropped_is_still_held(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    buffer.pinned()
    gc.collect()
    assert buffer.pins == 1
    buffer.unpin()


def test_a_pin_ends_with_its_context_even_on_an_error(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    with pytest.raises(ZeroDivisionError), buffer.pinned():
        assert buffer.pins == 1
        1 / 0
    assert buffer.pins == 0


def test_unpin_without_pin_is_an_error(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    buffer.pin()
    buffer[5:].unpin()
    with pytest.raises(InvalidRequestError, match="unpin without a pin"):
        buffer.unpin()


def test_a_pin_outlives_close_and_keeps_the_bytes() -> None:
    mapper = FakeMapper()
    memory = DmaMemory(mapper, device="fake")
    buffer = memory.alloc(4096)
    address = buffer.address
    pin = buffer.pinned()
    del buffer
    memory.close()
    del memory
    gc.collect()
    assert mapper.maps == {}
    assert mapped(address, 4096)
    pin.release()
    del pin
    assert not mapped(address, 4096)


# --- free --------------------------------------------------------------------------------------


def test_free_ends_the_use_for_io(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    buffer.free()
    buffer.free()
    for use in (lambda: buffer.iova, buffer.pin, buffer.pinned):
        with pytest.raises(ClosedError, match="fake: the buffer was freed"):
            use()
    with pytest.raises(ClosedError):
        as_buffer(buffer, writable=True, device="fake")


def test_freed_memory_waits_for_the_last_array(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    offset = buffer.pool_offset
    plain = np.asarray(buffer)
    buffer.free()
    del buffer
    assert memory.alloc(4096).pool_offset != offset
    plain[:] = 1
    del plain
    assert memory.alloc(4096).pool_offset == offset


def test_free_is_refused_while_pinned(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    with buffer.pinned():
        with pytest.raises(BufferInUseError, match=r"fake: .* commands in flight use it"):
            buffer.free()
        assert buffer.iova, "a refusal changes nothing"
    buffer.free()


@pytest.mark.parametrize(
    "view", [lambda b: b[10:], lambda b: b.view(np.uint32), lambda b: b[1:][2:].reshape(-1, 1)]
)
def test_free_is_refused_while_other_views_live(
    memory: DmaMemory, view: Callable[[Buffer], Any]
) -> None:
    buffer = memory.alloc(4093 + 3)
    other = view(buffer) if buffer.nbytes else None
    for each in (buffer, other):
        with pytest.raises(BufferInUseError, match="other views"):
            each.free()
    assert buffer.iova
    del each, other
    buffer.free()


def test_another_name_is_no_other_view(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    names = [buffer, buffer]
    names[0].free()
    with pytest.raises(ClosedError):
        buffer.iova


def test_the_only_view_left_can_free(memory: DmaMemory) -> None:
    floats = memory.alloc(4096).view(np.float32)[3:]
    floats.free()
    with pytest.raises(ClosedError):
        floats.iova


# --- as_buffer ---------------------------------------------------------------------------------


def test_as_buffer_takes_buffers_and_what_shares_their_memory(memory: DmaMemory) -> None:
    buffer = memory.alloc(4096)
    assert as_buffer(buffer, writable=True, device="fake", memory=memory) is buffer
    plain = np.asarray(buffer).view(np.uint64)[8:]
    checked = as_buffer(plain, writable=True, device="fake", memory=memory)
    assert checked.iova == buffer.iova + 64
    assert checked.dtype == np.uint64


def read_only(buffer: Buffer) -> Any:
    view = buffer[:]
    view.flags.writeable = False
    return view


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: b"bytes", "a bytes is no DMA memory"),
        (lambda b: bytearray(4096), "a bytearray is no DMA memory"),
        (lambda b: None, "a NoneType is no DMA memory"),
        (lambda b: [1, 2], "a list is no DMA memory"),
        (lambda b: np.zeros(4096, np.uint8), "ordinary memory"),
        (lambda b: b.copy(), "ordinary memory"),
        (lambda b: np.array([object()]), "Python objects"),
        (lambda b: b[::2], "not C-contiguous"),
        (lambda b: b[::-1], "not C-contiguous"),
        (lambda b: b.reshape(64, 64).T, "not C-contiguous"),
        (read_only, "read-only"),
    ],
)
def test_as_buffer_refuses_with_the_mend(
    memory: DmaMemory, make: Callable[[Buffer], Any], message: str
) -> None:
    with pytest.raises(BufferTypeError, match=message) as caught:
        as_buffer(make(memory.alloc(4096)), writable=True, device="pci:x")
    assert caught.value.device == "pci:x"
    assert caught.value.mend
    assert isinstance(caught.value, TypeError)


def test_a_read_only_view_serves_for_writing_to_the_device(memory: DmaMemory) -> None:
    view = read_only(memory.alloc(4096))
    assert as_buffer(view, writable=False, device="fake") is view


def test_as_buffer_refuses_memory_of_another_device(memory: DmaMemory) -> None:
    with DmaMemory(FakeMapper(), device="pci:other") as other:
        buffer = other.alloc(4096)
        with pytest.raises(BufferTypeError, match=r"fake: .*another device, pci:other"):
            as_buffer(buffer, writable=True, device="fake", memory=memory)


# --- regions -----------------------------------------------------------------------------------


def test_a_region_is_cleared_memory_with_all_its_addresses(memory: DmaMemory) -> None:
    memory.alloc(4096)[:] = 0xEE
    region = memory.region(3000)
    assert region.size == 3000
    assert region.iova == region.pool.iova + region.pool_offset
    assert region.address == region.pool.address + region.pool_offset
    assert region.iova % 4096 == 0
    assert not region.buffer().any()
    assert region.buffer().shape == (3000,)
    assert memory.region(64, align=64).iova % 64 == 0


def test_a_forgotten_region_stays_the_devices(memory: DmaMemory) -> None:
    offset = memory.region(4096).pool_offset
    gc.collect()
    assert memory.alloc(4096).pool_offset != offset


def test_a_freed_region_is_recycled_when_its_views_are_gone(memory: DmaMemory) -> None:
    region = memory.region(4096)
    offset, view = region.pool_offset, region.buffer()
    region.free()
    region.free()
    for use in (lambda: region.iova, lambda: region.address, lambda: region.pool, region.buffer):
        with pytest.raises(ClosedError, match="fake: the DMA region was freed"):
            use()
    assert memory.alloc(4096).pool_offset != offset
    del view
    assert memory.alloc(4096).pool_offset == offset
