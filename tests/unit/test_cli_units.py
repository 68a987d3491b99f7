"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import InvalidRequestError
from udrv.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("512", 512), ("4k", 4096), ("4K", 4096), ("4kb", 4096), ("4KiB", 4096),
        ("1m", 1 << 20), ("2G", 2 << 30), ("3t", 3 << 40), ("1P", 1 << 50), ("0x200", 512),
        ("0x1k", 1024), ("0x1b", 27), (" 8k ", 8192), ("7b", 7), ("0010", 10),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "", "k", "-1", "+1", "1.5k", "1e3", "1 k", "4x", "1kk", "1_000", "0x", "0xk", "\u0661k",
        "20000P",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="size"):
        parse_size(text)


@given(st.integers(0, 2**20 - 1), st.sampled_from(["", "k", "m", "g", "t"]), st.booleans())
def test_a_suffix_is_a_power_of_1024(count: int, suffix: str, upper: bool) -> None:
    text = f"{count}{suffix.upper() if upper else suffix}"
    assert parse_size(text) == count * 1024 ** " kmgt".index(suffix or " ")


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_themselves(size: int) -> None:
    assert parse_size(str(size)) == parse_size(hex(size)) == size


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_size(text) < 1 << 64
    except InvalidRequestError:
        pass


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (512, "512 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"),
        ((1 << 64) - 1, "16 EiB"), (100, "100 B"), (10240, "10 KiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1023), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB", "PiB"]))
def test_whole_sizes_read_back(count: int, unit: str) -> None:
    exponent = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    size = count * 1024**exponent
    assert parse_size(format_size(size).replace(" ", "")) == size
