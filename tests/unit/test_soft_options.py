"""The grammar of `soft:?...`."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import TargetError
from udrv.soft.options import VALID, NamespaceOptions, SoftOptions, parse_options

LBA = st.sampled_from([512, 4096])
PATH = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1
)


@st.composite
def namespaces(draw: st.DrawFn) -> NamespaceOptions:
    lba = draw(LBA)
    file = draw(st.none() | PATH)
    size = draw(st.integers(1, 1 << 40)) * lba
    return NamespaceOptions(lba, draw(st.none() | st.just(size)) if file else size, file)


@given(
    spaces=st.lists(namespaces(), min_size=1, max_size=32),
    more=st.integers(0, 10),
    queues=st.integers(1, 128),
    mqes=st.integers(2, 65536),
    mdts=st.integers(1, 9),
    serial=st.text("".join(map(chr, range(32, 127))), min_size=1, max_size=20),
    trapped=st.booleans(),
    spin=st.integers(0, 1_000_000),
)
def test_round_trip(
    spaces: list[NamespaceOptions], more: int, queues: int, mqes: int, mdts: int, serial: str,
    trapped: bool, spin: int,
) -> None:
    options = SoftOptions(
        tuple(spaces), len(spaces) + more, queues, mqes, mdts, serial, trapped, spin
    )
    assert parse_options(str(options)) == options


@given(st.text(max_size=60) | st.text(string.printable + "&=+:", max_size=60))
def test_any_text_is_options_or_a_target_error(text: str) -> None:
    try:
        options = parse_options(text)
    except TargetError:
        return
    assert 1 <= len(options.namespaces) <= 32 <= 32 * options.nn


@given(st.sampled_from(sorted(VALID)), st.text("0123456789kKmMgG:+-/% ", max_size=12))
def test_any_value_is_taken_or_refused_by_name(name: str, value: str) -> None:
    try:
        parse_options(f"{name}={value}")
    except TargetError as error:
        assert name in str(error)


def test_defaults() -> None:
    options = parse_options("")
    assert options == SoftOptions()
    assert options.namespaces == (NamespaceOptions(4096, 1 << 30, None),)


@pytest.mark.parametrize(
    ("text", "size"),
    [("size=512&lba=512", 512), ("size=4K", 4096), ("size=1m", 1 << 20), ("size=2G", 2 << 30),
     ("size=1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_options(text).namespaces[0].size == size


def test_files() -> None:
    assert parse_options("file=/a%26b").namespaces == (NamespaceOptions(4096, None, "/a&b"),)
    assert parse_options("size=1M&file=x").namespaces == (NamespaceOptions(4096, 1 << 20, "x"),)
    spaces = parse_options("ns=512:1G+4096:512M:/d%3a%2B+512::/e").namespaces
    assert spaces == (
        NamespaceOptions(512, 1 << 30), NamespaceOptions(4096, 512 << 20, "/d:+"),
        NamespaceOptions(512, None, "/e"),
    )


def test_an_unknown_option_names_the_valid_ones() -> None:
    with pytest.raises(TargetError, match="no option 'sise'") as caught:
        parse_options("sise=1G")
    assert all(name in str(caught.value) for name in VALID)


@pytest.mark.parametrize(
    "text",
    ["size", "size=", "size=0", "size=1", "size=4097", "size=1X", "size=-1", "size=1.5G",
     "size=9999999999999999999T", "lba=1024", "lba=x", "queues=0", "queues=129", "queues=+1",
     "mqes=1", "mqes=65537", "mdts=0", "mdts=10", "nn=0", "nn=4294967294", "serial=",
     "serial=123456789012345678901", "serial=%0a", "serial=%C3%A9", "doorbells=on", "spin=1000001",
     "size=1G&size=1G", "ns=512:1M&size=1M", "ns=512:1M&file=x", "ns=", "ns=512", "ns=512:",
     "ns=512:1M+", "ns=512:1M:", "file=", "file=%00", "ns=1M:512", "&", "size=1M&",
     "ns=" + "+".join(["512:1M"] * 33), "queues=٣"],
)
def test_refused(text: str) -> None:
    with pytest.raises(TargetError):
        parse_options(text)


@given(st.none() | PATH, st.none() | PATH, st.none() | PATH)
def test_paths_of_faults_may_hold_anything(
    faults: str | None, truth: str | None, control: str | None
) -> None:
    options = SoftOptions(faults=faults, truth=truth, control=control)
    assert parse_options(str(options)) == options
