"""Sizes as people write them: "4k", "1M", "0x1000", and back.

The words are fio's: a suffix is a power of 1024, in either case. In one point we differ: fio's
default takes "4Ki" as 4000, the opposite of IEC 80000-13; here "Ki" is 1024 like "K", so that no
reading of a size is smaller than its writer meant.
"""

from __future__ import annotations

import math
import operator
import re
from typing import Any

from udrv.errors import InvalidRequestError

_EXPONENTS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
#: More digits than any answer has are not read at all: int() refuses thousands of them.
_SIZE = re.compile(r"(0x[0-9a-f]{1,32}|[0-9]{1,40})(?:([kmgtp])i?)?b?", re.IGNORECASE | re.ASCII)
#: A byte count is an unsigned 64-bit number everywhere below.
_LIMIT = 1 << 64


def parse_size(text: str) -> int:
    """Return bytes, 0 to 2^64 - 1.

    Takes a decimal or hexadecimal ("0x") integer with K, M, G, T or P behind it, each with an
    optional "i" and "B": "512", "4k", "4KiB", "1G", "0x200". In hexadecimal, a final "b" is a
    digit. Raise `InvalidRequestError` for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise InvalidRequestError(
            f"reading the size {text!r}", mend='write it as "512", "4k", "1M", "2G" or "0x1000"'
        )
    digits, suffix = found.group(1), (found.group(2) or "").lower()
    base = 16 if digits[:2].lower() == "0x" else 10
    value = int(digits, base) << (10 * _EXPONENTS[suffix])
    if value >= _LIMIT:
        raise InvalidRequestError(f"reading the size {text!r}", mend="it must be below 16 EiB")
    return value


def format_size(size: int) -> str:
    """Return bytes for people: "512 B", "4 KiB", "1.5 GiB"; at most two decimals."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if abs(value) < 1024 or unit == "EiB":
            break
        value /= 1024
    return f"{value:.2f}".rstrip("0").rstrip(".") + f" {unit}"


def integer(value: Any, what: str, *, device: str | None = None) -> int:
    """Return an argument as a plain int; `InvalidRequestError` if it is no integer.

    Not as it came: arithmetic with a numpy uint16 stays in 16 bits, so a size made of it is wrong.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidRequestError(
            f"{what} {value!r} is no integer", device=device, mend="give a whole number"
        ) from error


def spin_time(value: Any, *, device: str | None = None) -> int:
    """Return nanoseconds to poll, 0 to 2**64 - 1, as a plain int; else `InvalidRequestError`."""
    number = integer(value, "spin_ns =", device=device)
    if not 0 <= number < 1 << 64:
        raise InvalidRequestError(
            f"spin_ns = {number}", device=device, mend="nanoseconds from 0 on, or udrv.nvme.HYBRID"
        )
    return number


def seconds(value: Any, *, device: str | None = None) -> float:
    """Return a time limit as a finite float of 0 or more; `InvalidRequestError` if it is none.

    What is longer than a hundred years, infinity included, is a hundred years.
    """
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise InvalidRequestError(
            f"a time limit of {value!r}", device=device, mend="give seconds, or None for no limit"
        )
    return min(max(number, 0.0), 3e9)
