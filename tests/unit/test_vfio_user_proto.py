"""The codecs of vfio-user: what is packed is read back, and no bytes break a parser."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import VfioUserProtocolError
from udrv.vfio import user_proto as proto

U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U63 = st.integers(0, (1 << 63) - 1)
U64 = st.integers(0, (1 << 64) - 1)

PARSERS: list[Callable[[bytes], object]] = [
    lambda data: proto.parse_header(data, max_size=1 << 20),
    proto.parse_version,
    proto.parse_dma_map,
    proto.parse_dma_unmap,
    proto.parse_device_info,
    lambda data: proto.parse_region(data, index=0),
    lambda data: proto.parse_irq_info(data, index=2),
    proto.parse_irq_set,
    lambda data: proto.parse_access(data, offset=0, region=0, count=4, with_data=True),
]


@given(st.integers(0, len(PARSERS) - 1), st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_nothing(which: int, data: bytes) -> None:
    try:
        PARSERS[which](data)
    except VfioUserProtocolError:
        pass


@given(st.lists(st.integers(0, 40) | U32, max_size=40))
def test_region_information_of_plausible_words(words: list[int]) -> None:
    """Small numbers find the capability chain more often than random bytes do."""
    data = struct.pack(f"={len(words)}I", *words)
    try:
        region = proto.parse_region(data, index=0)
    except VfioUserProtocolError:
        return
    for start, size in region.areas or ():
        assert 0 <= start <= start + size <= region.size


@given(st.text(max_size=60))
def test_version_data_of_any_text(text: str) -> None:
    try:
        proto.parse_version(struct.pack("=HH", 0, 1) + text.encode() + b"\0")
    except VfioUserProtocolError:
        pass


@given(
    st.builds(
        proto.Header, msg_id=U16, command=U16, size=st.integers(16, 1 << 20),
        flags=st.sampled_from([0, 1, 0x10]), error=U32,
    )
)
def test_headers(header: proto.Header) -> None:
    data = proto.pack_header(header)
    assert len(data) == proto.HEADER_SIZE
    assert proto.parse_header(data, max_size=1 << 20) == header


@pytest.mark.parametrize(
    ("size", "flags"), [(15, 1), (0, 0), ((1 << 20) + 1, 1), (16, 2), (16, 15), (17, 0x21)]
)
def test_headers_that_cannot_be(size: int, flags: int) -> None:
    data = proto.pack_header(proto.Header(1, 1, size, flags, 0))
    with pytest.raises(VfioUserProtocolError):
        proto.parse_header(data, max_size=1 << 20)


@given(
    st.builds(
        proto.Version, major=U16, minor=U16, max_msg_fds=st.integers(0, 1 << 31),
        max_data_xfer_size=st.integers(8, 1 << 40), max_dma_maps=st.integers(1, 1 << 40),
        pgsizes=st.integers(1, (1 << 64) - 1),
    )
)
def test_versions(version: proto.Version) -> None:
    assert proto.parse_version(proto.pack_version(version)) == version


def test_absent_capabilities_have_the_protocol_s_defaults() -> None:
    for text in (b"", b"{}\0", b'{"capabilities":{}}\0', b'{"capabilities":{"new":[1]}}\0'):
        version = proto.parse_version(struct.pack("=HH", 0, 1) + text)
        assert version == proto.Version(0, 1, 1, 1 << 20, 65535, 4096)


@pytest.mark.parametrize(
    "text",
    ["[]", "1", '{"capabilities":1}', '{"capabilities":{"max_msg_fds":"8"}}',
     '{"capabilities":{"max_msg_fds":true}}', '{"capabilities":{"max_msg_fds":-1}}',
     '{"capabilities":{"max_data_xfer_size":0}}', '{"capabilities":{"pgsizes":0}}',
     '{"capabilities":{"max_dma_maps":1.5}}', "{", "\xff", "[" * 5000],
)
def test_capabilities_that_cannot_be(text: str) -> None:
    with pytest.raises(VfioUserProtocolError):
        proto.parse_version(struct.pack("=HH", 0, 1) + text.encode("latin-1") + b"\0")


@given(U32, U64, U64, U64)
def test_dma_maps(flags: int, offset: int, iova: int, size: int) -> None:
    data = proto.pack_dma_map(flags=flags, offset=offset, iova=iova, size=size)
    assert len(data) == 32
    assert proto.parse_dma_map(data) == (flags, offset, iova, size)
    data = proto.pack_dma_unmap(iova=iova, size=size)
    assert len(data) == 24
    assert proto.parse_dma_unmap(data) == (iova, size)


@given(U32, st.integers(0, 256), st.integers(0, 256), st.binary(max_size=8))
def test_device_information(flags: int, regions: int, irqs: int, later: bytes) -> None:
    info = proto.DeviceInfo(flags, regions, irqs)
    assert proto.parse_device_info(proto.pack_device_info(info) + later) == info


@given(
    st.integers(0, 8), st.integers(0, 7), st.integers(0, 1 << 40), st.integers(0, 1 << 40),
    st.none() | st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20)), max_size=9),
)
def test_regions(
    index: int, flags: int, size: int, offset: int, areas: list[tuple[int, int]] | None
) -> None:
    fitting = None if areas is None else tuple((a, b) for a, b in areas if a + b <= size)
    data = proto.pack_region(proto.Region(0, flags, index, size, offset, fitting))
    region = proto.parse_region(data, index=index)
    assert region.argsz == len(data)
    assert (region.index, region.size, region.offset) == (index, size, offset)
    assert region.areas == fitting
    with pytest.raises(VfioUserProtocolError):
        proto.parse_region(data, index=index + 1)


def test_a_region_without_room_for_its_capabilities() -> None:
    full = proto.pack_region(proto.Region(0, 7, 0, 1 << 14, 0, ((4096, 4096),)))
    region = proto.parse_region(full[:32], index=0)
    assert region.argsz == 64 and region.areas is None


@pytest.mark.parametrize(
    ("at", "value"),
    [(12, 8), (12, 0xFFFF_FFF0), (12, 60), (36, 32), (36, 60), (40, 2), (40, 0xFFFF_FFFF)],
)
def test_capability_chains_that_lead_astray(at: int, value: int) -> None:
    data = bytearray(proto.pack_region(proto.Region(0, 7, 0, 1 << 14, 0, ((4096, 4096),))))
    struct.pack_into("=I", data, at, value)
    with pytest.raises(VfioUserProtocolError):
        proto.parse_region(bytes(data), index=0)


@pytest.mark.parametrize("area", [(4096, 1 << 14), (1 << 14, 1), ((1 << 64) - 1, 1)])
def test_areas_outside_of_their_region(area: tuple[int, int]) -> None:
    data = proto.pack_region(proto.Region(0, 7, 0, 1 << 14, 0, (area,)))
    with pytest.raises(VfioUserProtocolError):
        proto.parse_region(data, index=0)


@given(U32, st.integers(0, 4), st.integers(0, 4096))
def test_interrupts(flags: int, index: int, count: int) -> None:
    irq = proto.Irq(flags, index, count)
    assert proto.parse_irq_info(proto.pack_irq_info(irq), index=index) == irq


@given(U32, U32, U32, U32, st.binary(max_size=20))
def test_interrupt_sets(flags: int, index: int, start: int, count: int, bools: bytes) -> None:
    data = proto.pack_irq_set(flags=flags, index=index, start=start, count=count, bools=bools)
    assert struct.unpack_from("=I", data) == (len(data),)
    assert proto.parse_irq_set(data) == (flags, index, start, count, bools)


@given(U64, U32, st.binary(min_size=1, max_size=64))
def test_accesses(offset: int, region: int, data: bytes) -> None:
    count = len(data)
    payload = proto.pack_access(offset=offset, region=region, count=count, data=data)
    asked = {"offset": offset, "region": region, "count": count}
    assert proto.parse_access(payload, **asked, with_data=True) == data
    assert proto.parse_access(payload[:16], **asked, with_data=False) == b""
    for wrong in ({"offset": offset ^ 1}, {"region": region ^ 1}):
        with pytest.raises(VfioUserProtocolError):
            proto.parse_access(payload, **(asked | wrong), with_data=True)
    with pytest.raises(VfioUserProtocolError):
        proto.parse_access(payload[:-1], **asked, with_data=True)
