"""The language of the tables: byte-offset structures and bit-fields as frozen dataclasses.

A structure is a class whose every line is one row of the specification's table::

    @structure(4, section="NVM 4.1.5.1, LBA Format")
    class LbaFormat(Structure):
        ms: int = u16(0, "Metadata Size in bytes")
        ds: int = u8(2, "LBA Data Size, a power of two")

From the rows follow `decode`, `encode`, `to_dict`, and `dtype`, the numpy structured dtype with
the same offsets. A row that overlaps another or leaves the structure fails the import. Bytes that
no row names are reserved: they are ignored when decoded and zero when encoded.

Bit-fields work the same way with `bitfield`, `bits` and `bit`; `unpack` takes an integer apart and
`pack` puts it together, refusing a value that does not fit.

Frozen dataclasses, not views of memory: what was decoded does not change when a device writes on.
"""

from __future__ import annotations

import dataclasses
import enum
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, cast, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from udrv.errors import BufferTooSmallError, InvalidRequestError

#: What `decode` reads: anything with the buffer protocol that is contiguous.
BytesLike: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]

_ROW = "udrv.row"


def view_of(data: BytesLike) -> memoryview:
    """Return the bytes of `data` without a copy; raise TypeError if they are not contiguous."""
    # Python 3.11's type stubs know no buffer protocol, hence the cast.
    return memoryview(cast(bytes, data)).cast("B")


class Kind(enum.Enum):
    """How the bytes of one row are read."""

    UINT = "little-endian unsigned integer"
    ASCII = "ASCII, padded with spaces"
    UTF8Z = "UTF-8, ended and padded with zeros"
    HEX = "bytes in order, as lower-case hexadecimal digits"
    UUID = "16 bytes in order, as a UUID string"
    BYTES = "bytes"
    RECORD = "another structure"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row: `count` items of `size` bytes each, from byte `offset`.

    `json` is the key in `to_dict()`; an empty one keeps the row out of it (vendor bytes).
    """

    offset: int
    size: int
    kind: Kind
    text: str
    count: int | None = None
    json: str | None = None
    record: type[Structure] | None = None

    @property
    def end(self) -> int:
        """The first byte behind the row."""
        return self.offset + self.size * (1 if self.count is None else self.count)


def _row(row: Row) -> Any:
    one: object
    match row.kind:
        case Kind.UINT:
            one = 0
        case Kind.ASCII | Kind.UTF8Z:
            one = ""
        case Kind.HEX:
            one = "00" * row.size
        case Kind.UUID:
            one = str(uuid.UUID(int=0))
        case Kind.BYTES:
            one = bytes(row.size)
        case Kind.RECORD:
            one = row.record() if row.record else None
    default = one if row.count is None else (one,) * row.count
    return dataclasses.field(default=default, metadata={_ROW: row})


def u8(offset: int, text: str, json: str | None = None) -> Any:
    """One byte."""
    return _row(Row(offset, 1, Kind.UINT, text, json=json))


def u16(offset: int, text: str, json: str | None = None) -> Any:
    """Two bytes, little-endian."""
    return _row(Row(offset, 2, Kind.UINT, text, json=json))


def u32(offset: int, text: str, json: str | None = None) -> Any:
    """Four bytes, little-endian."""
    return _row(Row(offset, 4, Kind.UINT, text, json=json))


def u64(offset: int, text: str, json: str | None = None) -> Any:
    """Eight bytes, little-endian."""
    return _row(Row(offset, 8, Kind.UINT, text, json=json))


def uint(offset: int, size: int, text: str, json: str | None = None) -> Any:
    """`size` bytes, little-endian: the 3-byte OUI, the 16-byte counters."""
    return _row(Row(offset, size, Kind.UINT, text, json=json))


def uints(offset: int, size: int, count: int, text: str, json: str | None = None) -> Any:
    """A tuple of `count` little-endian integers of `size` bytes."""
    return _row(Row(offset, size, Kind.UINT, text, count=count, json=json))


def ascii_text(offset: int, size: int, text: str, count: int | None = None) -> Any:
    """ASCII, padded with spaces; the padding is kept, as nvme-cli prints it."""
    return _row(Row(offset, size, Kind.ASCII, text, count=count))


def utf8z(offset: int, size: int, text: str) -> Any:
    """UTF-8 up to the first zero."""
    return _row(Row(offset, size, Kind.UTF8Z, text))


def hexadecimal(offset: int, size: int, text: str) -> Any:
    """Identifiers that the specification defines as big-endian (EUI-64, NGUID)."""
    return _row(Row(offset, size, Kind.HEX, text))


def uuid_text(offset: int, text: str) -> Any:
    """16 bytes, printed as a UUID."""
    return _row(Row(offset, 16, Kind.UUID, text))


def blob(offset: int, size: int, text: str) -> Any:
    """Bytes without a meaning of their own; not in `to_dict()`."""
    return _row(Row(offset, size, Kind.BYTES, text, json=""))


def records(offset: int, record: type[Structure], count: int, text: str, json: str) -> Any:
    """A tuple of `count` structures."""
    return _row(Row(offset, record.SIZE, Kind.RECORD, text, count=count, json=json, record=record))


class Structure:
    """Base of all structures; see the module's text."""

    SIZE: ClassVar[int]
    SECTION: ClassVar[str]
    ROWS: ClassVar[Mapping[str, Row]]
    dtype: ClassVar[np.dtype[np.void]]

    @classmethod
    def decode(cls, data: BytesLike) -> Self:
        """Read the first `SIZE` bytes of `data`; raise `BufferTooSmallError` if there are fewer."""
        view = view_of(data)
        if len(view) < cls.SIZE:
            raise BufferTooSmallError(
                f"decoding {cls.__name__} ({cls.SECTION}) from {len(view)} bytes",
                mend=f"it is {cls.SIZE} bytes long",
            )
        return cls(**{name: _read(row, view) for name, row in cls.ROWS.items()})

    def encode(self) -> bytes:
        """Return the `SIZE` bytes; raise `InvalidRequestError` if a value does not fit its row."""
        out = bytearray(self.SIZE)
        for name, row in self.ROWS.items():
            value = getattr(self, name)
            items = [value] if row.count is None else list(value)
            if row.count is not None and len(items) != row.count:
                raise InvalidRequestError(
                    f"encoding {type(self).__name__}.{name}: {len(items)} items",
                    mend=f"it has {row.count}",
                )
            label = f"{type(self).__name__}.{name}"
            for index, item in enumerate(items):
                start = row.offset + index * row.size
                out[start : start + row.size] = _bytes_of(label, row, item)
        return bytes(out)

    def to_dict(self) -> dict[str, Any]:
        """Return plain integers, strings, lists and dicts under nvme-cli's keys."""
        return {
            row.json or name: _plain(getattr(self, name))
            for name, row in self.ROWS.items()
            if row.json != ""
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.to_dict() if isinstance(value, Structure) else value


def _read(row: Row, view: memoryview) -> object:
    if row.count is None:
        return _value(row, view[row.offset : row.end])
    return tuple(
        _value(row, view[start : start + row.size])
        for start in range(row.offset, row.end, row.size)
    )


def _value(row: Row, raw: memoryview) -> object:
    match row.kind:
        case Kind.UINT:
            return int.from_bytes(raw, "little")
        case Kind.ASCII:
            # A device may put anything here: what is not ASCII stays visible as an escape.
            return bytes(raw).split(b"\0", 1)[0].decode("ascii", "backslashreplace")
        case Kind.UTF8Z:
            return bytes(raw).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        case Kind.HEX:
            return bytes(raw).hex()
        case Kind.UUID:
            return str(uuid.UUID(bytes=bytes(raw)))
        case Kind.BYTES:
            return bytes(raw)
        case Kind.RECORD:
            return row.record.decode(raw) if row.record else None


def _bytes_of(name: str, row: Row, value: Any) -> bytes:
    try:
        match row.kind:
            case Kind.UINT:
                return int(value).to_bytes(row.size, "little")
            case Kind.ASCII:
                raw = value.encode("ascii").ljust(row.size, b" ")
            case Kind.UTF8Z:
                raw = value.encode("utf-8").ljust(row.size, b"\0")
            case Kind.HEX:
                raw = bytes.fromhex(value)
            case Kind.UUID:
                raw = uuid.UUID(value).bytes
            case Kind.BYTES:
                raw = bytes(value)
            case Kind.RECORD:
                raw = value.encode()
    except (OverflowError, ValueError) as exc:
        raise InvalidRequestError(
            f"encoding {name}: {value!r} does not fit", mend=f"{row.size} bytes, {row.kind.value}"
        ) from exc
    if len(raw) != row.size:
        raise InvalidRequestError(
            f"encoding {name}: {value!r} is {len(raw)} bytes", mend=f"it has {row.size}"
        )
    return bytes(raw)


def _format(row: Row) -> Any:
    one: Any
    if row.kind is Kind.RECORD and row.record is not None:
        one = row.record.dtype
    elif row.kind in (Kind.ASCII, Kind.UTF8Z):
        one = f"S{row.size}"
    elif row.kind is Kind.UINT and row.size in (1, 2, 4, 8):
        one = f"<u{row.size}"
    elif row.kind is Kind.UINT and row.size == 16:
        one = ("<u8", 2)  # low half, high half
    else:
        one = ("u1", row.size)
    return one if row.count is None else (one, row.count)


_S = TypeVar("_S", bound=Structure)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def structure(size: int, *, section: str) -> Callable[[type[_S]], type[_S]]:
    """Turn a class of rows into a frozen dataclass of `size` bytes."""

    def decorate(cls: type[_S]) -> type[_S]:
        cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        rows = {
            field.name: field.metadata[_ROW]
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # it is one, since above
        }
        end = 0
        for name, row in rows.items():
            if row.offset < end or row.end > size:
                raise ValueError(f"{cls.__name__}.{name}: bytes {row.offset} to {row.end - 1}")
            end = row.end
        cls.SIZE = size
        cls.SECTION = section
        cls.ROWS = MappingProxyType(rows)
        cls.dtype = np.dtype(
            {
                "names": list(rows),
                "formats": [_format(row) for row in rows.values()],
                "offsets": [row.offset for row in rows.values()],
                "itemsize": size,
            }
        )
        return cls

    return decorate


# --- bit-fields ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class BitRow:
    """Bits `msb`:`lsb`, inclusive, as the specification writes them."""

    msb: int
    lsb: int
    text: str

    @property
    def maximum(self) -> int:
        """The largest value that fits."""
        return (1 << (self.msb - self.lsb + 1)) - 1


def bits(msb: int, lsb: int, text: str) -> Any:
    """Bits `msb` down to `lsb`."""
    return dataclasses.field(default=0, metadata={_ROW: BitRow(msb, lsb, text)})


def bit(position: int, text: str) -> Any:
    """One bit, 0 or 1."""
    return bits(position, position, text)


class Bits:
    """Base of all bit-fields: `WIDTH` bits, and `OFFSET` in bytes where it is a register."""

    WIDTH: ClassVar[int]
    OFFSET: ClassVar[int | None]
    SECTION: ClassVar[str]
    ROWS: ClassVar[Mapping[str, BitRow]]
    #: All bits that a row names; the others are reserved, ignored and written as zero.
    MASK: ClassVar[int]

    @classmethod
    def unpack(cls, value: int) -> Self:
        """Take the low `WIDTH` bits of `value` apart."""
        return cls(
            **{name: (value >> row.lsb) & row.maximum for name, row in cls.ROWS.items()}
        )

    def pack(self) -> int:
        """Put the fields together; raise `InvalidRequestError` if one does not fit its bits."""
        out = 0
        for name, row in self.ROWS.items():
            value = int(getattr(self, name))
            if not 0 <= value <= row.maximum:
                raise InvalidRequestError(
                    f"packing {type(self).__name__}.{name}={value}",
                    mend=f"bits {row.msb}:{row.lsb} hold 0 to {row.maximum}",
                )
            out |= value << row.lsb
        return out

    def to_dict(self) -> dict[str, int]:
        """Return the fields by name."""
        return {name: int(getattr(self, name)) for name in self.ROWS}


_B = TypeVar("_B", bound=Bits)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def bitfield(
    width: int, *, section: str, offset: int | None = None
) -> Callable[[type[_B]], type[_B]]:
    """Turn a class of bit rows into a frozen dataclass of `width` bits."""

    def decorate(cls: type[_B]) -> type[_B]:
        cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        rows = {
            field.name: field.metadata[_ROW]
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # it is one, since above
        }
        mask = 0
        for name, row in rows.items():
            own = row.maximum << row.lsb
            if mask & own or row.msb >= width:
                raise ValueError(f"{cls.__name__}.{name}: bits {row.msb}:{row.lsb}")
            mask |= own
        cls.WIDTH = width
        cls.OFFSET = offset
        cls.SECTION = section
        cls.ROWS = MappingProxyType(rows)
        cls.MASK = mask
        return cls

    return decorate
