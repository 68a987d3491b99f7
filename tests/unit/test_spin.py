# SPDX-License-Identifier: Apache-2.0
"""How long to poll before going to sleep, from how long the waits before took."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from udrv.core import ffi, lib
from udrv.nvme import HYBRID

MOST, LEAST = int(lib.UDRV_SPIN_MOST_NS), int(lib.UDRV_SPIN_LEAST_NS)


class Waits:
    def __init__(self) -> None:
        self.c = ffi.new("struct udrv_spin *")

    def took(self, *waits: int) -> Waits:
        for ns in waits:
            lib.udrv_spin_observe(self.c, ns)
        return self

    @property
    def budget(self) -> int:
        return int(lib.udrv_spin_budget(self.c, HYBRID))


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_the_budget_is_bounded_whatever_came(waits: list[int]) -> None:
    """Nothing overflows; what is asked for by number is what is had."""
    after = Waits().took(*waits)
    assert after.budget == 0 or LEAST <= after.budget <= MOST + LEAST
    assert 0 <= after.c.mean_ns <= 2 * MOST
    for number in (0, 1, 50_000, int(lib.UDRV_SPIN_ONLY)):
        assert lib.udrv_spin_budget(after.c, number) == number


@given(st.integers(100, MOST // 2 - 1000))
def test_short_waits_are_polled_for_twice_as_long(ns: int) -> None:
    """So that the next one, if it is like them, is not slept through."""
    after = Waits().took(*[ns] * 100)
    assert ns < after.budget <= 2 * ns + LEAST


def test_long_waits_are_slept_through_and_short_ones_learnt_again() -> None:
    waits = Waits().took(*[10_000] * 20)
    assert waits.budget
    waits.took(*[10**9] * 8)
    assert waits.budget == 0, "a slow device is not polled for"
    awake = next(n for n in range(100) if waits.took(20_000).budget)
    assert awake < 20, "after a silence, some short waits and it polls again"
