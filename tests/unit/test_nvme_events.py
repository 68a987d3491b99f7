# SPDX-License-Identifier: Apache-2.0
"""Event requests: always armed, every completion told once, none lost without a count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from udrv.nvme.events import MOST_KEPT, Events, EventType, decode_event


class Device:
    """Numbers commands, as the admin queue does."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.changes = 0
        self.events = Events(self.submit, self.changed)

    def submit(self, sqe: bytes) -> int:
        assert sqe[0] == 0x0C and len(sqe) == 64
        self.sent.append(len(self.sent) + 100)
        return self.sent[-1]

    def changed(self) -> None:
        self.changes += 1


def test_the_fields_of_dword_0() -> None:
    event = decode_event(0x00_02_01_01)
    assert (event.type, event.info, event.log_page) == (EventType.SMART, 1, 2)
    assert decode_event(0x00_04_00_02).namespaces_changed
    assert not decode_event(0x00_04_01_02).namespaces_changed
    assert decode_event(5).type == 5, "a type without a name is its number"


@given(st.integers(1, 4), st.lists(st.integers(0, 2**32 - 1), max_size=40), st.data())
def test_each_is_told_once_and_requests_stay_armed(
    count: int, dwords: list[int], data: st.DataObject
) -> None:
    device = Device()
    events = device.events
    events.arm(count)
    held = list(device.sent)
    told = []
    for dword in dwords:
        number = held.pop(data.draw(st.integers(0, len(held) - 1)))
        assert events.completed(number, 0, dword | 0xFEED << 32)
        assert not events.completed(number, 0, dword), "a second completion is no event"
        held.append(device.sent[-1])
        assert events.armed == count
        if data.draw(st.booleans()):
            told += events.fetch()
    told += events.fetch()
    assert [event.dword0 for event in told] == dwords
    assert device.changes == sum(event.namespaces_changed for event in told)
    assert not events.completed(7, 0, 0), "of another command"


def test_a_refused_request_is_not_sent_again() -> None:
    device = Device()
    device.events.arm(2)
    assert device.events.completed(device.sent[0], 0x0105, 0)  # Limit Exceeded
    assert (device.events.armed, device.events.refused, len(device.sent)) == (1, 1, 2)
    assert device.events.fetch() == []


def test_events_that_nobody_fetches_are_bounded_and_counted() -> None:
    device = Device()
    device.events.arm(1)
    for number in range(MOST_KEPT + 5):
        device.events.completed(device.sent[-1], 0, 1 | number << 8 & 0xFF00)
    assert (len(device.events.fetch()), device.events.dropped) == (MOST_KEPT, 5)
