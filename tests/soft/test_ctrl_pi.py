"""Metadata, and protection information of types 1 to 3 against a second implementation."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minidriver import (
    APPTAG_ERROR,
    COMPARE,
    COMPARE_FAILURE,
    COPY,
    DATA_TRANSFER,
    DATASET,
    FORMAT,
    GUARD_ERROR,
    INVALID_FIELD,
    INVALID_PI,
    OK,
    PAGE,
    READ,
    REFTAG_ERROR,
    VERIFY,
    WRITE,
    WRITE_ZEROES,
    MiniDriver,
    Pair,
)
from nvmkit import FORMATS, Drive, identify, send

ACT, GUARD, APP, REF = 8 << 26, 4 << 26, 2 << 26, 1 << 26
CHECK = GUARD | APP | REF


def crc(data: bytes) -> int:
    """CRC-16 T10-DIF, bit by bit."""
    value = 0
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ (0x8BB7 if value & 0x8000 else 0)) & 0xFFFF
    return value


def test_the_crc_of_these_tests() -> None:
    assert crc(b"123456789") == 0xD0DB  # the check value of CRC-16/T10-DIF
    assert crc(bytes(512)) == 0


@dataclass
class Layout:
    """A format, how metadata is passed, and protection information."""

    index: int
    extended: bool
    pi: int
    first: bool

    @property
    def size(self) -> int:
        return FORMATS[self.index][0]

    @property
    def ms(self) -> int:
        return FORMATS[self.index][1]

    @property
    def cdw10(self) -> int:
        return self.first << 8 | self.pi << 5 | self.extended << 4 | self.index

    def at(self) -> int:
        """Where the tuple is in a block's metadata."""
        return 0 if self.first else self.ms - 8

    def tuple(self, data: bytes, meta: bytes, app: int, ref: int) -> bytes:
        return struct.pack(">HHI", crc(data + meta[: self.at()]), app, ref)

    def protect(self, blocks: list[bytes], metas: list[bytes], app: int, ref: int) -> list[bytes]:
        out = []
        for number, (data, meta) in enumerate(zip(blocks, metas, strict=True)):
            at = self.at()
            here = ref if self.pi == 3 else ref + number & 0xFFFFFFFF
            out.append(meta[:at] + self.tuple(data, meta, app, here) + meta[at + 8 :])
        return out


class Host:
    """Moves blocks and metadata as a layout wants them."""

    def __init__(self, driver: MiniDriver, layout: Layout) -> None:
        self.driver, self.layout = driver, layout
        self.pair: Pair = driver.pair(1)
        assert driver.admin(FORMAT, nsid=1, cdw10=layout.cdw10).status == OK
        self.data, self.meta = driver.pages(12), driver.pages(2) + 4

    def fields(self, blocks: int, with_meta: bool) -> dict[str, int]:
        size = self.layout.size + (self.layout.ms if self.layout.extended and with_meta else 0)
        return self.driver.prps(self.data, blocks * size) | {"mptr": self.driver.bus(self.meta)}

    def fill(self, blocks: list[bytes], metas: list[bytes] | None) -> None:
        memory = self.driver.memory
        if metas and self.layout.extended:
            stream = b"".join(a + b for a, b in zip(blocks, metas, strict=True))
        else:
            stream = b"".join(blocks)
        memory[self.data : self.data + len(stream)] = stream
        if metas and not self.layout.extended:
            memory[self.meta : self.meta + len(metas) * self.layout.ms] = b"".join(metas)

    def get(self, blocks: int, with_meta: bool) -> tuple[list[bytes], list[bytes]]:
        memory, size, ms = self.driver.memory, self.layout.size, self.layout.ms
        step = size + (ms if self.layout.extended and with_meta else 0)
        starts = range(self.data, self.data + blocks * step, step)
        data = [memory[at : at + size] for at in starts]
        if not with_meta:
            return data, []
        if self.layout.extended:
            return data, [memory[at + size : at + step] for at in starts]
        return data, [memory[self.meta + i * ms : self.meta + (i + 1) * ms] for i in range(blocks)]

    def send(
        self, opcode: int, slba: int, blocks: list[bytes], metas: list[bytes] | None, *,
        info: int = 0, app: int = 0, mask: int = 0xFFFF, ref: int | None = None,
    ) -> tuple[int, int]:
        self.fill(blocks, metas)
        return self.driver.rw(
            self.pair, opcode, slba, len(blocks), cdw12=info,
            cdw14=slba if ref is None else ref, cdw15=mask << 16 | app,
            **self.fields(len(blocks), metas is not None),
        ).status

    def read(
        self, slba: int, blocks: int, *, info: int = 0, app: int = 0, mask: int = 0xFFFF,
        ref: int | None = None, with_meta: bool = True,
    ) -> tuple[tuple[int, int], list[bytes], list[bytes]]:
        self.driver.memory[self.data : self.data + PAGE] = b"\xa5" * PAGE
        done = self.driver.rw(
            self.pair, READ, slba, blocks, cdw12=info, cdw14=slba if ref is None else ref,
            cdw15=mask << 16 | app, **self.fields(blocks, with_meta),
        )
        return done.status, *self.get(blocks, with_meta)


LAYOUTS = [
    Layout(index, extended, pi, first)
    for index in (1, 3, 4) for extended in (False, True) for pi in (1, 2, 3)
    for first in (False, True)
]


def name(layout: Layout) -> str:
    size, ms = FORMATS[layout.index]
    how = ("x" if layout.extended else "") + ("f" if layout.first else "")
    return f"{size}+{ms}{how}-type{layout.pi}"


@pytest.fixture(params=LAYOUTS, ids=name)
def layout(request: pytest.FixtureRequest) -> Layout:
    assert isinstance(request.param, Layout)
    return request.param


def some(layout: Layout, blocks: int, seed: int = 0) -> tuple[list[bytes], list[bytes]]:
    data = [bytes((seed + i * 7 + k) & 0xFF for k in range(layout.size)) for i in range(blocks)]
    meta = [bytes((seed + i * 3 + k) & 0xFF for k in range(layout.ms)) for i in range(blocks)]
    return data, meta


def refs(layout: Layout) -> int:
    """PRCHK bits that this type allows."""
    return CHECK if layout.pi < 3 else GUARD | APP


def test_round_trip_checked_by_both_sides(drive: Drive, layout: Layout) -> None:
    host = Host(drive("size=1M&lba=512"), layout)
    ident = identify(host.driver, 0, nsid=1)
    assert ident[29] == layout.first << 3 | layout.pi
    data, metas = some(layout, 5)
    metas = layout.protect(data, metas, 0xBEEF, 9)
    assert host.send(WRITE, 9, data, metas, info=refs(layout), app=0xBEEF) == OK
    assert host.read(9, 5, info=refs(layout), app=0xBEEF) == (OK, data, metas)
    assert host.read(11, 2, info=refs(layout), app=0xBEEF)[0] == OK
    assert host.read(9, 5) == (OK, data, metas)  # unchecked
    done = host.driver.rw(host.pair, VERIFY, 9, 5, cdw12=refs(layout), cdw14=9,
                          cdw15=0xFFFFBEEF)
    assert done.status == OK


def test_made_and_taken_away_by_the_controller(drive: Drive, layout: Layout) -> None:
    host = Host(drive("size=1M&lba=512"), layout)
    data, metas = some(layout, 5)
    expected = layout.protect(data, metas, 0x1234, 9)
    only = layout.ms == 8  # then the host neither sends nor gets any metadata
    assert host.send(WRITE, 9, data, None if only else metas, info=ACT, app=0x1234) == OK
    assert host.read(9, 5, info=refs(layout), app=0x1234) == (OK, data, expected)
    status, got, got_meta = host.read(
        9, 5, info=ACT | refs(layout), app=0x1234, with_meta=not only
    )
    assert (status, got) == (OK, data)
    assert got_meta == ([] if only else expected)


def test_each_field_is_checked_alone(drive: Drive, layout: Layout) -> None:
    host = Host(drive("size=1M&lba=512"), layout)
    data, metas = some(layout, 3)
    good = layout.protect(data, metas, 0x1234, 9)
    at = layout.at()
    wrong = {GUARD: (at, GUARD_ERROR), APP: (at + 2, APPTAG_ERROR)}
    if layout.pi < 3:
        wrong[REF] = (at + 7, REFTAG_ERROR)
    for bit, (place, status) in wrong.items():
        bad = list(good)
        bad[2] = bad[2][:place] + bytes([bad[2][place] ^ 0x40]) + bad[2][place + 1 :]
        assert host.send(WRITE, 9, data, bad, info=bit, app=0x1234) == status
        others = refs(layout) & ~bit
        assert host.send(WRITE, 9, data, bad, info=others, app=0x1234) == OK
        for info, wanted in ((bit, status), (others, OK)):
            assert host.read(9, 3, info=info, app=0x1234)[0] == wanted
            assert host.send(COMPARE, 9, data, bad, info=info, app=0x1234) == wanted
            done = host.driver.rw(host.pair, VERIFY, 9, 3, cdw12=info, cdw14=9, cdw15=0xFFFF1234)
            assert done.status == wanted
        assert host.read(9, 2, info=bit, app=0x1234)[0] == OK  # the third block is the bad one
    assert host.send(WRITE, 9, data, good, info=APP, app=0x1204, mask=0xFF0F) == OK
    assert host.send(WRITE, 9, data, good, info=APP, app=0x1204, mask=0xFFFF) == APPTAG_ERROR


def test_reference_tags_of_each_type(drive: Drive, layout: Layout) -> None:
    host = Host(drive("size=1M&lba=512"), layout)
    data, metas = some(layout, 2)
    status = host.send(WRITE, 9, data, layout.protect(data, metas, 0, 77), info=REF, ref=77)
    assert status == (OK if layout.pi == 2 else INVALID_PI)
    status = host.send(WRITE, 9, data, layout.protect(data, metas, 0, 9), info=REF)
    assert status == (INVALID_PI if layout.pi == 3 else OK)


def test_escapes_are_not_checked(drive: Drive, layout: Layout) -> None:
    host = Host(drive("size=1M&lba=512"), layout)
    data, metas = some(layout, 1)
    at = layout.at()
    for ref in (0xFFFFFFFF, 5):
        meta = metas[0][:at] + struct.pack(">HHI", 0xDEAD, 0xFFFF, ref) + metas[0][at + 8 :]
        free = layout.pi < 3 or ref == 0xFFFFFFFF
        done = host.send(WRITE, 9, data, [meta], info=GUARD)
        assert done == (OK if free else GUARD_ERROR)
    status, got, got_meta = host.read(100, 2, info=refs(layout), app=1)  # never written
    assert status == OK and not any(b"".join(got))
    for meta in got_meta:
        assert meta[at : at + 8] == b"\xff" * 8
        assert not any(meta[:at] + meta[at + 8 :])


def test_zeroes_deallocation_and_copy(drive: Drive, layout: Layout) -> None:
    host = Host(drive("size=1M&lba=512"), layout)
    driver, pair = host.driver, host.pair
    data, metas = some(layout, 4)
    metas = layout.protect(data, metas, 0x1234, 8)
    assert host.send(WRITE, 8, data, metas) == OK
    zero, none = bytes(layout.size), bytes(layout.ms)
    assert driver.rw(pair, WRITE_ZEROES, 9, 1, cdw12=ACT, cdw14=9, cdw15=0x1234).status == OK
    made = layout.protect([zero], [none], 0x1234, 9)
    assert host.read(9, 1, info=refs(layout), app=0x1234) == (OK, [zero], made)
    assert driver.rw(pair, WRITE_ZEROES, 9, 1).status == OK
    assert host.read(9, 1) == (OK, [zero], [none])
    assert driver.rw(pair, WRITE_ZEROES, 9, 1, cdw12=GUARD).status == INVALID_PI
    ranges = send(driver, struct.pack("<IIQ", 0, 1, 10))
    assert driver.run(pair, DATASET, nsid=1, cdw11=4, **ranges).status == OK
    status, got, got_meta = host.read(10, 1, info=refs(layout), app=3)
    assert (status, got) == (OK, [zero])
    assert got_meta[0][layout.at() :][:8] == b"\xff" * 8
    assert host.read(8, 1) == (OK, data[:1], metas[:1])
    assert host.read(11, 1) == (OK, data[3:], metas[3:])
    # Copy: kept as it is, or checked, taken away and made anew
    source = struct.pack("<QQHHIIHH", 0, 8, 0, 0, 0, 8, 0x1234, 0xFFFF)

    def copy(info: int, **more: int) -> tuple[int, int]:
        return driver.run(pair, COPY, nsid=1, cdw10=50, cdw12=info, **send(driver, source),
                          **more).status

    assert copy(0) == OK
    assert host.read(50, 1) == (OK, data[:1], metas[:1])
    assert copy(ACT) == copy(8 << 12) == INVALID_FIELD
    check = refs(layout) >> 26 << 12
    assert copy(8 << 12 | check | ACT, cdw14=50, cdw15=0x4321) == OK
    anew = layout.protect(data[:1], metas[:1], 0x4321, 50)
    assert host.read(50, 1, info=refs(layout), app=0x4321) == (OK, data[:1], anew)


@pytest.mark.parametrize("index", [1, 3, 4])
@pytest.mark.parametrize("extended", [False, True])
def test_metadata_without_protection(drive: Drive, index: int, extended: bool) -> None:
    plain = Layout(index, extended, 0, False)
    host = Host(drive("size=1M&lba=512"), plain)
    assert identify(host.driver, 0, nsid=1)[26] == extended << 4 | index
    data, metas = some(plain, 6)
    assert host.send(WRITE, 3, data, metas, info=ACT | CHECK) == OK  # nothing to check, or make
    assert host.read(3, 6, info=CHECK) == (OK, data, metas)
    assert host.send(COMPARE, 3, data, metas) == OK
    metas[5] = bytes([metas[5][0] ^ 1]) + metas[5][1:]
    assert host.send(COMPARE, 3, data, metas) == COMPARE_FAILURE
    assert host.driver.rw(host.pair, WRITE_ZEROES, 4, 1).status == OK
    assert host.read(4, 1) == (OK, [bytes(plain.size)], [bytes(plain.ms)])


def test_the_metadata_pointer_is_checked(drive: Drive) -> None:
    host = Host(drive("size=1M&lba=512"), Layout(1, False, 1, False))
    page = host.driver.bus(host.data)
    for opcode in (READ, WRITE, COMPARE):
        for mptr, status in ((2, INVALID_FIELD), (1 << 50, DATA_TRANSFER),
                             ((1 << 64) - 8, DATA_TRANSFER), (0x10_0000 + (8 << 20) - 4,
                                                              DATA_TRANSFER)):
            done = host.driver.rw(host.pair, opcode, 0, 2, prp1=page, mptr=mptr)
            assert done.status == status


def test_the_largest_transfer_counts_interleaved_metadata(drive: Drive) -> None:
    for extended, blocks, status in ((True, 16, INVALID_FIELD), (True, 15, OK), (False, 16, OK)):
        host = Host(drive("size=1M&lba=512&mdts=1"), Layout(1, extended, 0, False))
        assert host.send(WRITE, 0, *some(host.layout, blocks)) == status


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=512, max_size=512), st.integers(0, 0xFFFF), st.integers(0, 2000))
def check_any_block(host: Host, data: bytes, app: int, slba: int) -> None:
    assert host.send(WRITE, slba, [data], None, info=ACT, app=app) == OK
    meta = host.layout.protect([data], [bytes(8)], app, slba)
    assert host.read(slba, 1) == (OK, [data], meta)


def test_guards_of_any_data(drive: Drive) -> None:
    host = Host(drive("size=1M&lba=512"), Layout(1, True, 1, False))
    check_any_block(host)
