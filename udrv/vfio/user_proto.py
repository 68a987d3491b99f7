"""The messages of vfio-user, as pure functions: no socket, no state.

Source: QEMU's docs/interop/vfio-user.rst, protocol version 0.1; structures that it borrows are
those of <linux/vfio.h>. All integers are in host byte order, as the protocol says.

`pack_*` builds the payload of a message (what follows its header), `parse_*` reads one. A parser
takes any bytes whatsoever and raises `VfioUserProtocolError`, and nothing else, for what is not a
correct message: the peer is another process, and not to be trusted.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass

from udrv.errors import VfioUserProtocolError

VERSION_MAJOR = 0
VERSION_MINOR = 1

#: Limits that apply when the peer does not state its own ("VFIO_USER_VERSION", capabilities).
DEFAULT_MAX_MSG_FDS = 1
DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20
DEFAULT_MAX_DMA_MAPS = 65535
DEFAULT_PGSIZES = 4096

#: Bounds on what a peer may claim; beyond them it is broken, not generous.
MAX_MSG_FDS_LIMIT = 1024
MAX_VERSION_DATA = 1 << 16
MAX_REGIONS = 256
MAX_IRQ_VECTORS = 4096
MAX_SPARSE_AREAS = 256
MAX_REGION_INFO = 32 + 16 * 64 + 16 * MAX_SPARSE_AREAS

_HEADER = struct.Struct("=HHIII")
_VERSION = struct.Struct("=HH")
_DMA_MAP = struct.Struct("=IIQQQ")
_DMA_UNMAP = struct.Struct("=IIQQ")
_DEVICE_INFO = struct.Struct("=IIII")
_REGION_INFO = struct.Struct("=IIIIQQ")
_CAP_HEADER = struct.Struct("=HHI")
_SPARSE = struct.Struct("=II")
_AREA = struct.Struct("=QQ")
_IRQ_INFO = struct.Struct("=IIII")
_IRQ_SET = struct.Struct("=IIIII")
_ACCESS = struct.Struct("=QII")

HEADER_SIZE = _HEADER.size
ACCESS_SIZE = _ACCESS.size

F_TYPE_MASK = 0xF
F_TYPE_COMMAND = 0x0
F_TYPE_REPLY = 0x1
F_NO_REPLY = 0x10
F_ERROR = 0x20

DMA_READ = 1 << 0
DMA_WRITE = 1 << 1

DEVICE_FLAG_RESET = 1 << 0
DEVICE_FLAG_PCI = 1 << 1

REGION_FLAG_READ = 1 << 0
REGION_FLAG_WRITE = 1 << 1
REGION_FLAG_MMAP = 1 << 2
REGION_FLAG_CAPS = 1 << 3
REGION_CAP_SPARSE_MMAP = 1

IRQ_SET_DATA_NONE = 1 << 0
IRQ_SET_DATA_BOOL = 1 << 1
IRQ_SET_DATA_EVENTFD = 1 << 2
IRQ_SET_ACTION_MASK = 1 << 3
IRQ_SET_ACTION_UNMASK = 1 << 4
IRQ_SET_ACTION_TRIGGER = 1 << 5


class Command(enum.IntEnum):
    """Message commands ("Commands")."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13


@dataclass(frozen=True, slots=True)
class Header:
    """The 16 bytes before every message; `size` is of the whole message, header included."""

    msg_id: int
    command: int
    size: int
    flags: int
    error: int

    @property
    def is_reply(self) -> bool:
        """A reply to a command of ours; else a command of the peer's."""
        return self.flags & F_TYPE_MASK == F_TYPE_REPLY

    @property
    def is_error(self) -> bool:
        """The command failed; `error` is an errno or 0."""
        return bool(self.flags & F_ERROR)

    @property
    def wants_reply(self) -> bool:
        """A command to be answered."""
        return not self.is_reply and not self.flags & F_NO_REPLY


@dataclass(frozen=True, slots=True)
class Version:
    """What a peer said of itself. Sizes are bytes; absent capabilities have their defaults."""

    major: int
    minor: int
    max_msg_fds: int = DEFAULT_MAX_MSG_FDS
    max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER_SIZE
    max_dma_maps: int = DEFAULT_MAX_DMA_MAPS
    pgsizes: int = DEFAULT_PGSIZES


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Reply to DEVICE_GET_INFO."""

    flags: int
    num_regions: int
    num_irqs: int


@dataclass(frozen=True, slots=True)
class Region:
    """Reply to DEVICE_GET_REGION_INFO.

    `argsz` is the size that a full reply needs: if it is larger than the request's, the
    capabilities were left out and the question is to be asked again. `offset` is where the region
    starts in the file that came with the reply. `areas` is None without a sparse mmap capability.
    """

    argsz: int
    flags: int
    index: int
    size: int
    offset: int
    areas: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True)
class Irq:
    """Reply to DEVICE_GET_IRQ_INFO."""

    flags: int
    index: int
    count: int


def _bad(what: str) -> VfioUserProtocolError:
    return VfioUserProtocolError(
        f"the peer sent {what}", mend="it is no vfio-user server, or a faulty one"
    )


def _need_exactly(what: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise _bad(f"a {what} of {len(data)} bytes where {size} belong")


# --- header ------------------------------------------------------------------------------------


def pack_header(header: Header) -> bytes:
    """Return the 16 bytes of a header."""
    return _HEADER.pack(header.msg_id, header.command, header.size, header.flags, header.error)


def parse_header(data: bytes, *, max_size: int) -> Header:
    """Read a header and check all of it that can be checked without knowing the request.

    `max_size` bounds the whole message in bytes.
    """
    _need_exactly("header", data, HEADER_SIZE)
    header = Header(*_HEADER.unpack(data))
    if header.flags & F_TYPE_MASK not in (F_TYPE_COMMAND, F_TYPE_REPLY):
        raise _bad(f"a message of unknown type (flags {header.flags:#x})")
    if not HEADER_SIZE <= header.size <= max_size:
        raise _bad(f"a message that claims {header.size} bytes ({HEADER_SIZE} to {max_size} fit)")
    if header.is_error and header.is_reply and header.size != HEADER_SIZE:
        raise _bad("an error reply with a payload")
    return header


# --- VERSION -----------------------------------------------------------------------------------


def pack_version(version: Version) -> bytes:
    """Return the payload of a VERSION message, request or reply."""
    capabilities = {
        "max_msg_fds": version.max_msg_fds,
        "max_data_xfer_size": version.max_data_xfer_size,
        "max_dma_maps": version.max_dma_maps,
        "pgsizes": version.pgsizes,
    }
    text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return _VERSION.pack(version.major, version.minor) + text.encode() + b"\0"


def parse_version(data: bytes) -> Version:
    """Read a VERSION payload; unknown capabilities are ignored, known ones are range-checked."""
    if not _VERSION.size <= len(data) <= MAX_VERSION_DATA:
        raise _bad(f"a VERSION of {len(data)} bytes")
    major, minor = _VERSION.unpack_from(data)
    text = data[_VERSION.size :]
    if not text:
        return Version(major, minor)
    if text[-1] != 0:
        raise _bad("version data without the terminating NUL")
    try:
        parsed: object = json.loads(text[:-1].decode())
    except (ValueError, RecursionError) as error:
        raise _bad("version data that is not JSON") from error
    capabilities = parsed.get("capabilities", {}) if isinstance(parsed, dict) else None
    if not isinstance(capabilities, dict):
        raise _bad("version data that is no JSON object")

    def number(name: str, default: int, low: int, high: int) -> int:
        value = capabilities.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise _bad(f"a capability {name} that is no integer of {low} to {high}")
        return value

    return Version(
        major=major,
        minor=minor,
        max_msg_fds=number("max_msg_fds", DEFAULT_MAX_MSG_FDS, 0, 1 << 31),
        max_data_xfer_size=number(
            "max_data_xfer_size", DEFAULT_MAX_DATA_XFER_SIZE, 8, (1 << 63) - 1
        ),
        max_dma_maps=number("max_dma_maps", DEFAULT_MAX_DMA_MAPS, 1, (1 << 63) - 1),
        pgsizes=number("pgsizes", DEFAULT_PGSIZES, 1, (1 << 64) - 1),
    )


# --- DMA ---------------------------------------------------------------------------------------


def pack_dma_map(*, flags: int, offset: int, iova: int, size: int) -> bytes:
    """Return the payload of DMA_MAP; the file goes with the message as SCM_RIGHTS."""
    return _DMA_MAP.pack(_DMA_MAP.size, flags, offset, iova, size)


def parse_dma_map(data: bytes) -> tuple[int, int, int, int]:
    """Return (flags, offset, iova, size) of a DMA_MAP payload."""
    _need_exactly("DMA_MAP", data, _DMA_MAP.size)
    _argsz, flags, offset, iova, size = _DMA_MAP.unpack(data)
    return flags, offset, iova, size


def pack_dma_unmap(*, iova: int, size: int) -> bytes:
    """Return the payload of DMA_UNMAP."""
    return _DMA_UNMAP.pack(_DMA_UNMAP.size, 0, iova, size)


def parse_dma_unmap(data: bytes) -> tuple[int, int]:
    """Return (iova, size) of a DMA_UNMAP payload, request or reply."""
    _need_exactly("DMA_UNMAP", data, _DMA_UNMAP.size)
    _argsz, _flags, iova, size = _DMA_UNMAP.unpack(data)
    return iova, size


# --- device, regions, interrupts -----------------------------------------------------------------


def pack_device_info(info: DeviceInfo | None = None) -> bytes:
    """Return the payload of DEVICE_GET_INFO: the request without `info`, the reply with it."""
    if info is None:
        return _DEVICE_INFO.pack(_DEVICE_INFO.size, 0, 0, 0)
    return _DEVICE_INFO.pack(_DEVICE_INFO.size, info.flags, info.num_regions, info.num_irqs)


def parse_device_info(data: bytes) -> DeviceInfo:
    """Read the reply to DEVICE_GET_INFO (longer ones are of later protocol versions)."""
    if len(data) < _DEVICE_INFO.size:
        raise _bad(f"device information of {len(data)} bytes")
    argsz, flags, regions, irqs = _DEVICE_INFO.unpack_from(data)
    if argsz < _DEVICE_INFO.size or regions > MAX_REGIONS or irqs > MAX_REGIONS:
        raise _bad(f"device information with argsz {argsz}, {regions} regions, {irqs} interrupts")
    return DeviceInfo(flags, regions, irqs)


def pack_region_request(index: int, argsz: int) -> bytes:
    """Return the payload of the request DEVICE_GET_REGION_INFO; `argsz` bytes of reply fit."""
    return _REGION_INFO.pack(argsz, 0, index, 0, 0, 0)


def pack_region(region: Region) -> bytes:
    """Return the payload of the reply to DEVICE_GET_REGION_INFO."""
    if region.areas is None:
        return _REGION_INFO.pack(
            _REGION_INFO.size, region.flags & ~REGION_FLAG_CAPS, region.index, 0,
            region.size, region.offset,
        )
    cap = _CAP_HEADER.pack(REGION_CAP_SPARSE_MMAP, 1, 0) + _SPARSE.pack(len(region.areas), 0)
    cap += b"".join(_AREA.pack(*area) for area in region.areas)
    head = _REGION_INFO.pack(
        _REGION_INFO.size + len(cap), region.flags | REGION_FLAG_CAPS, region.index,
        _REGION_INFO.size, region.size, region.offset,
    )
    return head + cap


def parse_region(data: bytes, *, index: int) -> Region:
    """Read the reply to DEVICE_GET_REGION_INFO for region `index`.

    Checked: the index, the chain of capabilities (bounds, loops), and that every mappable area
    lies in the region.
    """
    if not _REGION_INFO.size <= len(data) <= MAX_REGION_INFO:
        raise _bad(f"region information of {len(data)} bytes")
    argsz, flags, got, cap_offset, size, offset = _REGION_INFO.unpack_from(data)
    if got != index:
        raise _bad(f"information of region {got} where {index} was asked for")
    if argsz < _REGION_INFO.size or size > 1 << 63 or offset > 1 << 63:
        raise _bad(f"region {index} with argsz {argsz}, size {size:#x}, offset {offset:#x}")
    areas = None
    if flags & REGION_FLAG_CAPS and argsz <= len(data):
        areas = _parse_region_caps(data, cap_offset, index, size)
    return Region(argsz, flags, index, size, offset, areas)


def _parse_region_caps(
    data: bytes, at: int, index: int, size: int
) -> tuple[tuple[int, int], ...] | None:
    areas = None
    seen = 0
    while at:
        seen += 1
        if at < _REGION_INFO.size or at + _CAP_HEADER.size > len(data) or seen > 64:
            raise _bad(f"region {index} with a broken chain of capabilities")
        cap_id, version, following = _CAP_HEADER.unpack_from(data, at)
        if cap_id == REGION_CAP_SPARSE_MMAP and version == 1:
            areas = _parse_sparse(data, at + _CAP_HEADER.size, index, size)
        at = following
    return areas


def _parse_sparse(data: bytes, at: int, index: int, size: int) -> tuple[tuple[int, int], ...]:
    if at + _SPARSE.size > len(data):
        raise _bad(f"region {index} with a cut sparse mmap capability")
    count, _reserved = _SPARSE.unpack_from(data, at)
    at += _SPARSE.size
    if count > MAX_SPARSE_AREAS or at + count * _AREA.size > len(data):
        raise _bad(f"region {index} with {count} mappable areas in {len(data)} bytes")
    areas = tuple(_AREA.unpack_from(data, at + i * _AREA.size) for i in range(count))
    for start, length in areas:
        if start + length > size:
            raise _bad(f"region {index} with a mappable area outside of itself")
    return areas


def pack_irq_info(irq: Irq) -> bytes:
    """Return the payload of DEVICE_GET_IRQ_INFO; a request has flags and count 0."""
    return _IRQ_INFO.pack(_IRQ_INFO.size, irq.flags, irq.index, irq.count)


def parse_irq_info(data: bytes, *, index: int) -> Irq:
    """Read the reply to DEVICE_GET_IRQ_INFO for `index`."""
    if len(data) < _IRQ_INFO.size:
        raise _bad(f"interrupt information of {len(data)} bytes")
    _argsz, flags, got, count = _IRQ_INFO.unpack_from(data)
    if got != index or count > MAX_IRQ_VECTORS:
        raise _bad(f"information of interrupt {got} with {count} vectors where {index} was asked")
    return Irq(flags, got, count)


def pack_irq_set(*, flags: int, index: int, start: int, count: int, bools: bytes = b"") -> bytes:
    """Return the payload of DEVICE_SET_IRQS; eventfds go with the message as SCM_RIGHTS."""
    return _IRQ_SET.pack(_IRQ_SET.size + len(bools), flags, index, start, count) + bools


def parse_irq_set(data: bytes) -> tuple[int, int, int, int, bytes]:
    """Return (flags, index, start, count, bools) of a DEVICE_SET_IRQS payload."""
    if len(data) < _IRQ_SET.size:
        raise _bad(f"a DEVICE_SET_IRQS of {len(data)} bytes")
    _argsz, flags, index, start, count = _IRQ_SET.unpack_from(data)
    return flags, index, start, count, data[_IRQ_SET.size :]


# --- region access -------------------------------------------------------------------------------


def pack_access(*, offset: int, region: int, count: int, data: bytes = b"") -> bytes:
    """Return the payload of REGION_READ or REGION_WRITE, request or reply."""
    return _ACCESS.pack(offset, region, count) + data


def parse_access(
    payload: bytes, *, offset: int, region: int, count: int, with_data: bool
) -> bytes:
    """Read the reply to an access and return its data; it must echo what was asked."""
    _need_exactly("region access reply", payload, _ACCESS.size + (count if with_data else 0))
    if _ACCESS.unpack_from(payload) != (offset, region, count):
        raise _bad("the reply to another region access than the one that was asked")
    return payload[_ACCESS.size :]
