"""What a careless caller passes: integers of any width, other devices' objects, copies."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import udrv
from udrv.errors import (
    BufferTypeError,
    ClosedError,
    InvalidRequestError,
    QueueBusyError,
    QueueFullError,
    TargetError,
)
from udrv.nvme import FLUSH, Controller
from udrv.nvme.pair import QueuePair


@pytest.fixture
def ctrl() -> Iterator[Controller]:
    with udrv.open("soft:?size=1M&lba=4096&mqes=4096") as opened:
        yield opened


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.uint64])
def test_integers_of_any_width(ctrl: Controller, kind: Any) -> None:
    """Sizes of rings were once computed in 16 bits: 2000 entries got a ring of 976."""
    entries = min(2000, int(np.iinfo(kind).max))
    with warnings.catch_warnings(action="error"):
        ns = ctrl.namespace(kind(1))
        with ctrl.create_queue(entries=kind(entries)) as queue:
            plain = ctrl.create_queue(entries=entries)
            assert [r.size for r in queue.pair._regions] == [r.size for r in plain.pair._regions]
            batch = queue.batch(kind(3), namespace=ns, buffer=ctrl.alloc(4096))
            assert queue.submit(batch, kind(1), kind(2)) == 2
            assert len(queue.reap(kind(2), kind(5), timeout=10)) == 2
        assert ns.read(kind(100), kind(100), timeout=kind(30)).nbytes == 100 * 4096
        ns.write(kind(5), bytes(4096))
        assert len(ctrl.get_log_page(2, kind(64))) == 64


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf, None, "1", b"1", [1], object(), 1j])
def test_what_is_no_integer(ctrl: Controller, value: Any) -> None:
    ns = ctrl.namespace(1)
    calls: list[Any] = [
        lambda: ctrl.namespace(value), lambda: ctrl.get_log_page(2, value),
        lambda: ns.read(value, 1), lambda: ns.read(0, value), lambda: ns.write(value, bytes(4096)),
        lambda: ctrl.alloc(value), lambda: udrv.open("soft:?size=1M", queues=value),
        lambda: udrv.open("soft:?size=1M", entries=value),
    ]
    if value is not None:
        calls.append(lambda: ctrl.create_queue(entries=value))
    for call in calls:
        with pytest.raises(InvalidRequestError):
            call()
    if not isinstance(value, str):
        with pytest.raises(TargetError):
            udrv.open(value)
    assert ns.read(0, 1).nbytes == 4096


@pytest.mark.parametrize("value", [math.nan, "1", b"1", [1], object(), 1j])
def test_what_is_no_time_limit_sends_nothing(ctrl: Controller, value: Any) -> None:
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=8) as queue:
        batch = queue.batch(2, namespace=ns, buffer=ctrl.alloc(4096))
        queue.submit(batch)
        with pytest.raises(InvalidRequestError):
            queue.reap(2, timeout=value)
        assert len(queue.reap(2, timeout=10)) == 2  # no completion was lost with the error
    calls: list[Any] = [
        lambda: ns.read(0, 1, timeout=value), lambda: ns.flush(timeout=value),
        lambda: ctrl.admin(bytes(64), timeout=value),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError):
            call()


@pytest.mark.parametrize("value", [math.inf, 10**400, 1e300, 2**64])
def test_time_limits_without_an_end(ctrl: Controller, value: Any) -> None:
    assert ctrl.namespace(1).read(0, 1, timeout=value).nbytes == 4096


def test_a_namespace_of_another_controller(ctrl: Controller) -> None:
    """Its NSID means another namespace here: a write would hit the wrong one."""
    with udrv.open("soft:?size=2M") as other, ctrl.create_queue(entries=8) as queue:
        buffer = ctrl.alloc(4096)
        foreign: list[Any] = [other.namespace(1), None, 1]
        for namespace in foreign:
            with pytest.raises(InvalidRequestError, match="no namespace of this controller"):
                queue.batch(1, namespace=namespace, buffer=buffer)
        batch = queue.batch(1, namespace=ctrl.namespace(1), buffer=buffer)
        with pytest.raises(InvalidRequestError):
            batch.bind(other.namespace(1), buffer)
        with ctrl.create_queue(entries=8) as second, pytest.raises(InvalidRequestError):
            second.quarantine(batch)


def test_more_than_the_queue_holds(ctrl: Controller) -> None:
    """A batch is taken in part; a single command (the path of admin commands) is refused."""
    with ctrl.create_queue(entries=4) as queue:
        batch = queue.batch(8, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4096))
        slot = queue.take_slot()
        flush = bytes([FLUSH, 0, 0, 0, 1]).ljust(64, b"\0")
        assert queue.submit(batch) == queue.depth == 3
        assert queue.submit(batch, 3) == 0
        assert isinstance(queue.pair, QueuePair)
        with pytest.raises(QueueFullError, match="reap completions first"):
            queue.pair.submit_raw(flush, slot=slot)
        assert (queue.inflight, queue.counters()["submitted"]) == (3, 3)
        assert len(queue.reap(3, timeout=10)) == 3
        queue.pair.submit_raw(flush, slot=slot, user_data=4711)
        assert queue.reap(1, timeout=10).user_data.tolist() == [4711]


def test_nothing_of_a_device_can_be_copied(ctrl: Controller) -> None:
    """A copy of a batch gave its slot back when it died, and the original's buffer with it."""
    with ctrl.create_queue(entries=8) as queue:
        buffer = ctrl.alloc(4096)
        batch = queue.batch(1, namespace=ctrl.namespace(1), buffer=buffer)
        for thing in (queue, batch):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError):
                    attempt(thing)
        gc.collect()
        queue.reap()
        assert buffer.pins == 1


_FINALISER = """
import gc, warnings, udrv
from udrv.errors import UdrvError
warnings.simplefilter("ignore")

class Closer:
    def __init__(self, ctrl):
        self.ctrl, self.me = ctrl, self

    def __del__(self):
        try:
            self.ctrl.close()
        except UdrvError:
            pass

for _ in range(3):
    closer = Closer(udrv.open("soft:?size=1M"))
    closer.ctrl.namespace(1).read(0, 1)
    del closer
    gc.collect()
print("alive")
"""


def test_closed_by_a_finaliser_in_a_cycle() -> None:
    """The collector runs finalisers in an order of its own: the C handle was freed before."""
    result = subprocess.run(
        [sys.executable, "-c", _FINALISER], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


def test_a_batch_that_another_thread_submits_is_not_changed(ctrl: Controller) -> None:
    """C would send the commands with the old buffer, which nobody holds any more."""
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=8) as queue:
        old, new = ctrl.alloc(4096), ctrl.alloc(4096)
        batch = queue.batch(1, namespace=ns, buffer=old)
        submit, refused = queue._submit_c, []

        def meanwhile(*args: Any) -> int:
            for change in (lambda: batch.bind(ns, new), batch.unbind, batch.close):
                with pytest.raises(QueueBusyError):
                    change()
                refused.append(change)
            return int(submit(*args))

        queue._submit_c = meanwhile
        assert queue.submit(batch) == 1
        queue._submit_c = submit
        assert len(refused) == 3
        assert (old.pins, new.pins) == (1, 0)
        assert len(queue.reap(1)) == 1
        batch.bind(ns, new)
        assert (old.pins, new.pins) == (0, 1)
        assert queue.submit(batch) == len(queue.reap(1)) == 1
        batch.close()


def test_a_batch_that_another_thread_changes_is_not_submitted(
    ctrl: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=8) as queue:
        old, new = ctrl.alloc(4096), ctrl.alloc(4096)
        batch = queue.batch(1, namespace=ns, buffer=old)
        aim, refused = queue.pair.aim, []

        def meanwhile(*args: Any) -> None:
            aim(*args)
            for use in (
                lambda: queue.submit(batch), lambda: queue.submit_raw(batch, bytes(64)),
                lambda: batch.bind(ns, old), batch.unbind, batch.close,
            ):
                with pytest.raises((QueueBusyError, InvalidRequestError)):
                    use()
                refused.append(use)

        monkeypatch.setattr(queue.pair, "aim", meanwhile)
        batch.bind(ns, new)
        monkeypatch.undo()
        assert (len(refused), queue.inflight) == (5, 0)
        assert queue.submit(batch) == len(queue.reap(1)) == 1


@pytest.mark.parametrize("value", [-1, 1.5, "1", 2**70, [1]])
def test_what_is_no_number_of_completions(ctrl: Controller, value: Any) -> None:
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=8) as queue:
        assert queue.submit(queue.batch(3, namespace=ns, buffer=ctrl.alloc(4096))) == 3
        if value != 2**70:  # more than there are is all that there are
            with pytest.raises(InvalidRequestError):
                queue.reap(0, value)
        if value not in (-1, 2**70):  # at least -1 is as much as at least 0
            with pytest.raises(InvalidRequestError):
                queue.reap(value)
        assert len(queue.reap(3)) == 3, "nothing was taken"


def test_a_misspelt_column_is_no_attribute(ctrl: Controller) -> None:
    with ctrl.create_queue() as queue:
        batch = queue.batch(4, namespace=ctrl.namespace(1))
        for name in ("sbla", "lba", "blocks"):
            with pytest.raises(InvalidRequestError, match=f"no column '{name}': it has slba, "):
                setattr(batch, name, [1, 2, 3, 4])
        with pytest.raises(BufferTypeError, match=r"slba of a batch was replaced.*slba\[:\]"):
            setattr(batch, "slba", [1, 2, 3, 4])  # noqa: B010 - mypy knows that it is no list


def test_messages_tell_two_controllers_apart(ctrl: Controller) -> None:
    with udrv.open("soft:?size=2M") as other, ctrl.create_queue() as queue:
        batch = other.create_queue().batch(1, namespace=other.namespace(1))
        with pytest.raises(InvalidRequestError, match=r"size=2M, not to .*another controller"):
            queue.submit(batch)
        with pytest.raises(InvalidRequestError, match="all rows from row 9 of a batch of 4"):
            queue.submit(queue.batch(4, namespace=ctrl.namespace(1)), 9)


@pytest.mark.parametrize("value", [-5, 1.5, "1", 2**64])
def test_what_is_no_time_to_spin(ctrl: Controller, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="spin_ns"):
        ctrl.create_queue(interrupt=True, spin_ns=value)
    with ctrl.create_queue(interrupt=True) as queue:
        assert queue.qid == 1, "nothing was taken"
        batch = queue.batch(2, namespace=ctrl.namespace(1), buffer=ctrl.alloc(4096))
        assert queue.submit(batch) == 2
        with pytest.raises(InvalidRequestError, match="spin_ns"):
            queue.reap(2, spin_ns=value)
        assert len(queue.reap(2, spin_ns=2**64 - 1)) == 2


def test_what_objects_look_like(ctrl: Controller) -> None:
    with ctrl.create_queue(entries=8) as queue:
        batch = queue.batch(2, namespace=ctrl.namespace(1))
        assert repr(batch) == f"<Batch of 2 commands, of {queue!r}>"
        assert repr(queue) == f"<Queue 1 of {ctrl.target}, 8 entries>"
        assert repr(queue.reap()) == "<Reaped, 0 completions>"
    assert repr(queue).startswith("<Queue 1"), "closed, too"


def test_what_is_no_batch_and_no_number_of_completions(ctrl: Controller) -> None:
    queue = ctrl.create_queue(entries=8)
    for what in ([1, 2], None, np.zeros(4)):
        with pytest.raises(InvalidRequestError, match="is no batch"):
            queue.submit(what)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="at least 3 completions, but at most 2"):
        queue.reap(3, 2)


def test_a_closed_controller_gives_no_namespaces() -> None:
    with udrv.open("soft:?size=1M") as opened:
        opened.namespace(1)
    with pytest.raises(ClosedError):
        opened.namespace(1)
