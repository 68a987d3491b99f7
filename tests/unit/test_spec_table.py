"""The table language: what follows from the rows, for every table there is."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import BufferTooSmallError, InvalidRequestError
from udrv.nvme import status
from udrv.nvme.spec import command, identify, logs, registers
from udrv.nvme.spec.table import (
    Bits,
    Kind,
    Row,
    Structure,
    bit,
    bitfield,
    bits,
    structure,
    u8,
    u16,
    uint,
)


def _classes(base: type) -> list[type]:
    found = {
        value
        for module in (command, identify, logs, registers, status)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    return sorted(found, key=lambda cls: cls.__name__)


STRUCTURES: list[type[Structure]] = _classes(Structure)
BITFIELDS: list[type[Bits]] = _classes(Bits)


def test_every_table_is_found() -> None:
    assert len(STRUCTURES) == 9
    assert len(BITFIELDS) >= 35


def _text(row: Row, alphabet: str) -> st.SearchStrategy[str]:
    pad = row.size if row.kind is Kind.ASCII else 0
    return st.text(alphabet, max_size=row.size).map(lambda text: text.ljust(pad))


def _item(row: Row) -> st.SearchStrategy[Any]:
    match row.kind:
        case Kind.UINT:
            return st.integers(0, (1 << 8 * row.size) - 1)
        case Kind.ASCII | Kind.UTF8Z:
            return _text(row, "".join(map(chr, range(0x20, 0x7F))))
        case Kind.HEX:
            return st.binary(min_size=row.size, max_size=row.size).map(bytes.hex)
        case Kind.UUID:
            return st.uuids().map(str)
        case Kind.BYTES:
            return st.binary(min_size=row.size, max_size=row.size)
        case Kind.RECORD:
            assert row.record is not None
            return _instances(row.record)


def _instances(cls: type[Structure]) -> st.SearchStrategy[Structure]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for name, row in cls.ROWS.items():
        if row.count is None:
            fields[name] = _item(row)
        else:
            # One value repeated: 64 independent ones are slow to draw and find nothing more.
            count = row.count
            fields[name] = st.tuples(_item(row), _item(row)).map(
                lambda pair, count=count: (pair[0], *(pair[1],) * (count - 1))
            )
    return st.builds(cls, **fields)


@pytest.mark.parametrize("cls", STRUCTURES, ids=lambda cls: cls.__name__)
def test_structures_survive_the_round_trip(cls: type[Structure]) -> None:
    @given(_instances(cls))
    def run(value: Structure) -> None:
        raw = value.encode()
        assert len(raw) == cls.SIZE
        assert cls.decode(raw) == value

    run()


@pytest.mark.parametrize("cls", STRUCTURES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_any_bytes_decode_and_reserved_ones_do_not_matter(
    cls: type[Structure], data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).integers(0, 256, cls.SIZE, dtype=np.uint8)
    named = np.zeros(cls.SIZE, bool)
    for row in cls.ROWS.values():
        named[row.offset : row.end] = True
    assert cls.decode(np.where(named, raw, 0).astype(np.uint8)) == cls.decode(raw)
    cls.decode(raw).to_dict()


@pytest.mark.parametrize("cls", STRUCTURES, ids=lambda cls: cls.__name__)
def test_dtype_sees_the_same_values_as_decode(cls: type[Structure]) -> None:
    raw = np.random.default_rng(1).integers(0, 256, cls.SIZE, dtype=np.uint8).tobytes()
    decoded, view = cls.decode(raw), np.frombuffer(raw, cls.dtype)[0]
    for name, row in cls.ROWS.items():
        if row.kind is Kind.UINT and row.count is None:
            assert int.from_bytes(np.asarray(view[name]).tobytes(), "little") == getattr(
                decoded, name
            ), name


@pytest.mark.parametrize("cls", STRUCTURES, ids=lambda cls: cls.__name__)
def test_short_data_is_refused(cls: type[Structure]) -> None:
    with pytest.raises(BufferTooSmallError, match=str(cls.SIZE)):
        cls.decode(bytes(cls.SIZE - 1))


@pytest.mark.parametrize("cls", STRUCTURES + BITFIELDS, ids=lambda cls: cls.__name__)
def test_every_row_says_what_it_is(cls: type[Structure] | type[Bits]) -> None:
    assert cls.SECTION.startswith(("Base ", "NVM "))
    assert cls.__doc__
    assert all(row.text for row in cls.ROWS.values())


@pytest.mark.parametrize("cls", BITFIELDS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_bitfields_survive_the_round_trip(cls: type[Bits], data: st.DataObject) -> None:
    value = data.draw(st.integers(0, (1 << cls.WIDTH) - 1))
    assert cls.unpack(value).pack() == value & cls.MASK
    fields = data.draw(
        st.fixed_dictionaries(
            {name: st.integers(0, row.maximum) for name, row in cls.ROWS.items()}
        )
    )
    assert cls.unpack(cls(**fields).pack()).to_dict() == fields


@given(st.integers())
def test_a_value_that_does_not_fit_its_bits_is_refused(value: int) -> None:
    aqa = registers.Aqa(asqs=value)
    if 0 <= value <= 4095:
        assert aqa.pack() == value
    else:
        with pytest.raises(InvalidRequestError, match="asqs"):
            aqa.pack()


def test_a_value_that_does_not_fit_its_bytes_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="vid"):
        identify.IdentifyController(vid=0x10000).encode()
    with pytest.raises(InvalidRequestError, match="sn"):
        identify.IdentifyController(sn="x" * 21).encode()
    with pytest.raises(InvalidRequestError, match="fr"):
        identify.IdentifyController(fr="ü").encode()
    with pytest.raises(InvalidRequestError, match="lbaf"):
        identify.IdentifyNamespace(lbaf=()).encode()
    with pytest.raises(InvalidRequestError, match="nguid"):
        identify.IdentifyNamespace(nguid="00").encode()


def test_strings_keep_their_padding_and_show_what_is_not_ascii() -> None:
    raw = bytearray(4096)
    raw[4:24] = b"S3\xff\x1b".ljust(20)
    raw[24:64] = b"model\0garbage".ljust(40, b"!")
    decoded = identify.decode_id_ctrl(raw)
    assert decoded.sn == "S3\\xff\x1b".ljust(23)
    assert decoded.serial == "S3\\xff\x1b"
    assert decoded.mn == "model"


def test_overlapping_and_overhanging_rows_fail_the_import() -> None:
    with pytest.raises(ValueError, match=r"Overlap\.b"):

        @structure(4, section="Base")
        class Overlap(Structure):
            a: int = u16(0, "a")
            b: int = u8(1, "b")

    with pytest.raises(ValueError, match=r"Overhang\.a"):

        @structure(4, section="Base")
        class Overhang(Structure):
            a: int = uint(2, 3, "a")

    with pytest.raises(ValueError, match=r"Bad\.b"):

        @bitfield(8, section="Base")
        class Bad(Bits):
            a: int = bits(3, 0, "a")
            b: int = bit(3, "b")

    with pytest.raises(ValueError, match=r"Wide\.a"):

        @bitfield(8, section="Base")
        class Wide(Bits):
            a: int = bit(8, "a")


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        identify.decode_id_ctrl(bytes(4096)).mdts = 3  # type: ignore[misc]


def test_sixteen_byte_counters_are_plain_integers() -> None:
    raw = bytearray(512)
    struct.pack_into("<QQ", raw, 32, 5, 7)
    assert logs.decode_smart_log(raw).data_units_read == 5 + (7 << 64)
