"""Sizes that are no plain int, or more than there is."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from memory_fakes import FakeMapper

from udrv.errors import DmaMemoryError, InvalidRequestError
from udrv.memory import DmaMemory


@pytest.mark.parametrize(
    "nbytes", [np.uint16(65500), np.int8(100), np.uint8(255), np.uint64(4000), np.int16(32767)]
)
def test_a_size_of_any_integer_type_is_its_value(nbytes: Any) -> None:
    """Rounding up in the type that it came in gave 0, and two buffers one address."""
    with DmaMemory(FakeMapper()) as memory, warnings.catch_warnings(action="error"):
        align: Any = np.uint16(4096)
        buffers = [memory.alloc(nbytes, align=align) for _ in range(3)]
        places = sorted((b.iova, b.iova + b.nbytes) for b in buffers)
        assert all(end <= start for (_, end), (start, _) in pairwise(places))
        assert {b.nbytes for b in buffers} == {int(nbytes)}


@pytest.mark.parametrize("value", [1.5, 4096.0, float("nan"), float("inf"), None, "4096", b"1", []])
def test_what_is_no_integer_is_refused_and_changes_nothing(value: Any) -> None:
    with DmaMemory(FakeMapper()) as memory:
        memory.alloc(4096)
        with pytest.raises(InvalidRequestError):
            memory.alloc(value)
        with pytest.raises(InvalidRequestError):
            memory.alloc(4096, align=value)
        assert memory.used_bytes == 0


@pytest.mark.parametrize("nbytes", [1 << 50, 1 << 63, 1 << 64, 10**400, np.uint64(2**64 - 1)])
def test_more_than_the_machine_has(nbytes: Any) -> None:
    with DmaMemory(FakeMapper()) as memory, pytest.raises(DmaMemoryError):
        memory.alloc(nbytes)
