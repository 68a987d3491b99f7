"""What a controller must do, whatever the transport: one suite, subclassed for each.

A subclass gives the fixture `ctrl` (an open controller whose namespaces may be overwritten) and
the fixture `reopen` (closes `ctrl`, opens the same device again).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
from async_suite import AsyncSuite
from batch_suite import BatchSuite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_suite import StreamSuite

import udrv
from udrv import errors
from udrv.memory import Buffer
from udrv.nvme import FLUSH, READ, WRITE, Controller, Namespace, State
from udrv.nvme.spec import command
from udrv.nvme.spec.opcodes import Cns, LogId
from udrv.nvme.status import InvalidFieldError, InvalidOpcodeError

RNG = np.random.default_rng(20)

#: `ctrl` is shared by the examples of a property: each of them states all that it relies on.
PROPERTY = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.differing_executors],
)  # fmt: skip


def random_bytes(n: int) -> np.ndarray:
    return RNG.integers(0, 256, n, dtype=np.uint8)


class DriverSuite(AsyncSuite, BatchSuite, StreamSuite):
    @pytest.fixture
    def ctrl(self) -> Controller:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[[], Controller]:
        raise NotImplementedError

    @pytest.fixture
    def ns(self, ctrl: Controller) -> Namespace:
        return ctrl.namespace(ctrl.namespace_ids()[0])

    # --- identity ---------------------------------------------------------------------------

    def test_ready_and_identified(self, ctrl: Controller) -> None:
        assert ctrl.state is State.READY
        assert ctrl.serial and ctrl.model
        assert ctrl.max_queues >= 1
        assert 4096 <= ctrl.max_transfer <= 2 << 20
        for ns in ctrl.namespaces.values():
            assert ns.lba_size in (512, 4096)
            assert ns.nsze > 0

    def test_no_such_namespace(self, ctrl: Controller) -> None:
        with pytest.raises(errors.DeviceNotFoundError, match="no active namespace 4711"):
            ctrl.namespace(4711)

    def test_smart_counts_what_was_read(self, ctrl: Controller, ns: Namespace) -> None:
        before = ctrl.smart_log().host_read_commands
        for _ in range(3):
            ns.read(0, 1)
        assert ctrl.smart_log().host_read_commands == before + 3

    # --- blocking I/O -----------------------------------------------------------------------

    def test_every_namespace_keeps_its_own_data(self, ctrl: Controller) -> None:
        data = {nsid: random_bytes(ns.lba_size * 7) for nsid, ns in ctrl.namespaces.items()}
        for nsid, ns in ctrl.namespaces.items():
            ns.write(3, data[nsid])
            ns.flush()
        for nsid, ns in ctrl.namespaces.items():
            assert (ns.read(3, 7) == data[nsid]).all()

    def test_transfer_above_the_limit_is_split(self, ctrl: Controller, ns: Namespace) -> None:
        blocks = 3 * ns.max_blocks + 1
        data = random_bytes(blocks * ns.lba_size)
        ns.write(11, data)
        assert (ns.read(11, blocks) == data).all()

    def test_last_block(self, ns: Namespace) -> None:
        data = random_bytes(ns.lba_size)
        ns.write(ns.nsze - 1, data)
        assert (ns.read(ns.nsze - 1, 1) == data).all()

    def test_kinds_of_data(self, ns: Namespace) -> None:
        raw = random_bytes(ns.lba_size * 2)
        for data in (
            raw.tobytes(), bytearray(raw), memoryview(raw), raw, raw.view(np.uint64),
            raw.view(np.float32).reshape(2, -1),
        ):  # fmt: skip
            ns.write(0, bytes(ns.lba_size * 2))
            ns.write(0, data, fua=True)
            assert (ns.read(0, 2) == raw).all()

    def test_read_into_a_slice_leaves_the_rest_alone(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        data = random_bytes(ns.lba_size)
        ns.write(0, data)
        buf = ctrl.alloc(ns.lba_size * 3)
        buf[:] = 0xA5
        ns.read(0, 1, into=buf[ns.lba_size : 2 * ns.lba_size])
        assert (buf[ns.lba_size : 2 * ns.lba_size] == data).all()
        assert (buf[: ns.lba_size] == 0xA5).all()
        assert (buf[2 * ns.lba_size :] == 0xA5).all()

    @PROPERTY
    @given(data=st.data())
    def test_any_transfer_moves_exactly_its_bytes(
        self, ctrl: Controller, ns: Namespace, data: st.DataObject
    ) -> None:
        size = ns.lba_size
        blocks = data.draw(st.integers(1, 2 * ns.max_blocks + 3), label="blocks")
        lba = data.draw(st.integers(0, 4096), label="lba")
        shift = 4 * data.draw(st.integers(0, 1100), label="dwords into the buffer")
        buf = ctrl.alloc(blocks * size + shift + 64)
        part = buf[shift : shift + blocks * size]
        part[:] = random_bytes(blocks * size)
        want = np.array(part)
        ns.write(lba, part)
        buf[:] = 0x5A
        ns.read(lba, blocks, into=part)
        assert (part == want).all()
        assert (buf[:shift] == 0x5A).all() and (buf[shift + blocks * size :] == 0x5A).all()

    def test_many_threads(self, ctrl: Controller, ns: Namespace) -> None:
        failures: list[BaseException] = []

        def work(k: int) -> None:
            try:
                rng = np.random.default_rng(k)
                for i in range(20):
                    data = rng.integers(0, 256, ns.lba_size * 4, dtype=np.uint8)
                    lba = 1000 * (k + 1) + 4 * i
                    ns.write(lba, data)
                    assert (ns.read(lba, 4) == data).all()
            except BaseException as e:  # noqa: BLE001 - shown by the assertion below
                failures.append(e)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not failures

    # --- what is refused before it reaches the device ------------------------------------------

    def test_refusals(self, ctrl: Controller, ns: Namespace) -> None:
        commands = ctrl.smart_log().host_read_commands + ctrl.smart_log().host_write_commands
        with pytest.raises(errors.LbaRangeError, match=f"blocks 0 to {ns.nsze - 1}"):
            ns.read(ns.nsze - 1, 2)
        with pytest.raises(errors.LbaRangeError):
            ns.read(-1, 1)
        with pytest.raises(errors.LbaRangeError):
            ns.write(ns.nsze, bytes(ns.lba_size))
        with pytest.raises(errors.InvalidRequestError):
            ns.read(0, 0)
        with pytest.raises(errors.InvalidRequestError, match="nothing to write"):
            ns.write(0, b"")
        with pytest.raises(errors.AlignmentError, match="block size"):
            ns.write(0, bytes(ns.lba_size + 1))
        with pytest.raises(errors.BufferTooSmallError):
            ns.read(0, 2, into=ctrl.alloc(ns.lba_size))
        with pytest.raises(errors.BufferTypeError, match="ordinary memory"):
            ns.read(0, 1, into=np.zeros(ns.lba_size, np.uint8))  # type: ignore[arg-type]
        with pytest.raises(errors.BufferTypeError, match="contiguous"):
            ns.read(0, 1, into=ctrl.alloc(2 * ns.lba_size)[::2])
        with pytest.raises(errors.BufferTypeError, match="contiguous"):
            ns.write(0, np.zeros((ns.lba_size, 2), np.uint8)[:, 0])
        with pytest.raises(errors.BufferTypeError):
            ns.write(0, np.array([object()] * ns.lba_size))
        read_only = ctrl.alloc(ns.lba_size)
        read_only.flags.writeable = False
        with pytest.raises(errors.BufferTypeError, match="read-only"):
            ns.read(0, 1, into=read_only)
        after = ctrl.smart_log().host_read_commands + ctrl.smart_log().host_write_commands
        assert after == commands

    def test_misaligned_data_address(self, ctrl: Controller, ns: Namespace) -> None:
        with pytest.raises(errors.AlignmentError, match="multiple of 4"):
            ns.read(0, 1, into=ctrl.alloc(ns.lba_size + 4)[1 : ns.lba_size + 1])

    def test_a_bad_row_stops_the_whole_batch(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(entries=16) as queue:
            batch = queue.batch(8, namespace=ns, buffer=ctrl.alloc(8 * ns.lba_size))
            batch.offset[:] = np.arange(8) * ns.lba_size
            for column, value, error in (
                (batch.slba, ns.nsze, errors.LbaRangeError),
                (batch.nlb, 0, errors.LbaRangeError),
                (batch.offset, 8 * ns.lba_size, errors.BufferTooSmallError),
                (batch.offset, 2, errors.AlignmentError),
                (batch.opcode, 0x7F, errors.InvalidRequestError),
            ):
                good = column[5]
                column[5] = value
                with pytest.raises(error, match="row 5"):
                    queue.submit(batch)
                column[5] = good
            batch.nlb[5] = min(ns.max_blocks + 1, 65536)
            with pytest.raises(errors.InvalidRequestError, match="row 5"):
                queue.submit(batch)
            batch.nlb[5] = 1
            assert queue.counters()["submitted"] == 0
            assert queue.inflight == 0
            assert queue.submit(batch) == 8
            assert len(queue.reap(8, timeout=20)) == 8

    # --- batches ------------------------------------------------------------------------------

    @pytest.mark.parametrize("interrupt", [False, True])
    def test_full_queue_and_ring_wrap(
        self, ctrl: Controller, ns: Namespace, interrupt: bool
    ) -> None:
        with ctrl.create_queue(entries=8, interrupt=interrupt) as queue:
            batch = queue.batch(20, namespace=ns, buffer=ctrl.alloc(20 * ns.lba_size))
            batch.offset[:] = np.arange(20) * ns.lba_size
            seen: list[int] = []
            first = 0
            for _ in range(200):
                first += queue.submit(batch, first)
                assert queue.inflight <= queue.depth == 7
                reaped = queue.reap(1, timeout=20)
                assert len(reaped) and not reaped.status.any()
                seen.extend(int(u) for u in reaped.user_data)
                if len(seen) == 20:
                    break
            assert sorted(seen) == list(range(20))
            assert (queue.counters()["duplicate"], queue.counters()["bad_cid"]) == (0, 0)

    @PROPERTY
    @given(data=st.data())
    def test_any_batch_moves_exactly_its_bytes(
        self, ctrl: Controller, ns: Namespace, data: st.DataObject
    ) -> None:
        """Writes of any mix of sizes at disjoint places, then reads of them in another order."""
        size = ns.lba_size
        limit = min(ns.max_blocks, 40)
        lengths = data.draw(st.lists(st.integers(1, limit), min_size=1, max_size=40))
        gaps = data.draw(st.lists(st.integers(0, 5), min_size=len(lengths),
                                  max_size=len(lengths)))  # fmt: skip
        entries = data.draw(st.integers(2, 32))
        order = data.draw(st.permutations(range(len(lengths))))
        n = len(lengths)
        slba = np.cumsum([0, *lengths[:-1]]) + np.cumsum(gaps)
        offset = np.cumsum([0, *lengths[:-1]]) * size
        total = sum(lengths) * size
        buf = ctrl.alloc(total)
        want = random_bytes(total)
        buf[:] = want
        with ctrl.create_queue(entries=entries) as queue:
            batch = queue.batch(n, namespace=ns, buffer=buf)

            def run(opcode: int) -> None:
                batch.opcode[:] = opcode
                done = first = 0
                while done < n:
                    first += queue.submit(batch, first)
                    reaped = queue.reap(1, timeout=20)
                    assert len(reaped) and not reaped.status.any()
                    done += len(reaped)

            batch.slba[:], batch.nlb[:], batch.offset[:] = slba, lengths, offset
            run(WRITE)
            buf[:] = 0
            batch.slba[:] = slba[list(order)]
            batch.nlb[:] = np.array(lengths)[list(order)]
            batch.offset[:] = offset[list(order)]
            run(READ)
            assert (buf == want).all()

    def test_flush_in_a_batch(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(entries=8) as queue:
            batch = queue.batch(2, namespace=ns)
            batch.opcode[:] = FLUSH
            assert queue.submit(batch) == 2
            assert not queue.reap(2, timeout=20).status.any()

    def test_quarantined_commands_are_counted_and_not_delivered(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        with ctrl.create_queue(entries=16) as queue:
            batch = queue.batch(10, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
            assert queue.submit(batch) == 10
            assert queue.quarantine(batch) == 10
            assert batch.inflight == queue.inflight == 10
            with pytest.raises(errors.BufferInUseError):
                batch.bind(ns, ctrl.alloc(ns.lba_size))
            while queue.inflight:
                assert len(queue.reap(1, timeout=0.05)) == 0
            assert queue.counters()["late"] == 10
            batch.bind(ns, ctrl.alloc(ns.lba_size))

    def test_memory_in_flight_outlives_every_name(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(entries=32) as queue:
            buf = ctrl.alloc(ns.lba_size)
            place = (buf.pool.id, buf.pool_offset)
            batch = queue.batch(16, namespace=ns, buffer=buf)
            queue.submit(batch)
            del buf, batch
            others = [ctrl.alloc(ns.lba_size) for _ in range(64)]
            assert place not in [(b.pool.id, b.pool_offset) for b in others]
            while queue.inflight:
                queue.reap(1, timeout=20)
            queue.reap()
            del others
            got = [ctrl.alloc(ns.lba_size) for _ in range(70)]
            assert place in [(b.pool.id, b.pool_offset) for b in got]

    def test_free_in_flight_is_refused(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(entries=4) as queue:
            buf = ctrl.alloc(ns.lba_size)
            batch = queue.batch(1, namespace=ns, buffer=buf)
            queue.submit(batch)
            with pytest.raises(errors.BufferInUseError):
                buf.free()
            queue.reap(1, timeout=20)

    def test_another_controllers_buffer_is_refused(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        with udrv.open("soft:?size=1M") as other:
            foreign: Buffer = other.alloc(ns.lba_size)
            with pytest.raises(errors.BufferTypeError, match="another device"):
                ns.read(0, 1, into=foreign)

    # --- queues -------------------------------------------------------------------------------

    def test_all_queues_and_again(self, ctrl: Controller, ns: Namespace) -> None:
        used = set()
        for _ in range(3):
            queues = [ctrl.create_queue(entries=4) for _ in range(ctrl.max_queues)]
            with pytest.raises(errors.InvalidRequestError, match="in use"):
                ctrl.create_queue(entries=4)
            for queue in queues:
                batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
                queue.submit(batch)
                assert not queue.reap(1, timeout=20).status.any()
                batch.close()
            for queue in queues:
                queue.close()
                queue.close()
            del queues, queue, batch
            used.add(ctrl.memory.used_bytes)
        assert len(used) == 1, "each round gives back all that it took"

    def test_a_queue_without_timestamps(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(timestamps=False) as queue:
            batch = queue.batch(4, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
            for _ in range(3):
                queue.submit(batch)
                reaped = queue.reap(4, timeout=20)
                assert not reaped.status.any() and len(reaped) == 4
                if ctrl.transport.startswith("vfio"):
                    assert not reaped.latency_ns.any()

    def test_queue_sizes_out_of_range(self, ctrl: Controller) -> None:
        for entries in (-1, 0, 1, ctrl.max_queue_entries + 1):
            with pytest.raises(errors.InvalidRequestError, match="entries"):
                ctrl.create_queue(entries=entries)

    def test_a_lent_queue_refuses_python(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(entries=4) as queue:
            batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
            with queue.lease_c():
                with pytest.raises(errors.QueueBusyError):
                    queue.submit(batch)
                with pytest.raises(errors.QueueBusyError):
                    queue.reap()
            assert queue.submit(batch) == 1
            queue.reap(1, timeout=20)

    def test_a_closed_queue_refuses(self, ctrl: Controller, ns: Namespace) -> None:
        queue = ctrl.create_queue(entries=4)
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
        queue.close()
        with pytest.raises(errors.ClosedError):
            queue.submit(batch)
        with pytest.raises(errors.ClosedError):
            queue.reap()

    def test_interrupts_wake_a_sleeper(self, ctrl: Controller, ns: Namespace) -> None:
        with ctrl.create_queue(entries=8, interrupt=True) as queue:
            batch = queue.batch(4, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
            for _ in range(20):
                assert queue.submit(batch) == 4
                assert len(queue.reap(4, timeout=20, spin_ns=0)) == 4

    # --- admin --------------------------------------------------------------------------------

    def test_statuses_are_typed(self, ctrl: Controller) -> None:
        with pytest.raises(InvalidOpcodeError) as caught:
            ctrl.admin(bytes([0x7F]) + bytes(63))
        assert (caught.value.sct, caught.value.sc, caught.value.qid) == (0, 1, 0)
        assert caught.value.dnr
        assert ctrl.target in str(caught.value)
        with pytest.raises(InvalidFieldError) as field:
            ctrl.admin(command.identify(0xFE), read=4096)
        assert "identify" in field.value.command

    def test_admin_data_of_many_sizes(self, ctrl: Controller) -> None:
        whole = ctrl.get_log_page(LogId.SMART, 512)
        assert ctrl.get_log_page(LogId.SMART, 4)[:1] == whole[:1]
        assert len(ctrl.admin(command.identify(Cns.CONTROLLER), read=4096).data) == 4096

    # --- the end ------------------------------------------------------------------------------

    def test_reopened_at_once(
        self, ctrl: Controller, ns: Namespace, reopen: Callable[[], Controller]
    ) -> None:
        data = random_bytes(ns.lba_size)
        ns.write(77, data)
        ns.flush()
        nsid = ns.nsid
        again = reopen()
        assert (again.namespace(nsid).read(77, 1) == data).all()

    def test_closed_refuses_and_closes_twice(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        queue = ctrl.create_queue(entries=8)
        buf = ctrl.alloc(ns.lba_size)
        batch = queue.batch(4, namespace=ns, buffer=buf)
        queue.submit(batch)  # closed with commands in flight
        ctrl.close()
        ctrl.close()
        assert ctrl.state is State.CLOSED
        buf[:] = 1  # the view outlives the device
        for refused in (
            lambda: ns.read(0, 1),
            lambda: queue.submit(batch),
            lambda: queue.reap(),
            lambda: ctrl.alloc(1),
            lambda: ctrl.create_queue(),
            lambda: ctrl.smart_log(),
            lambda: buf.iova,
        ):
            with pytest.raises(errors.ClosedError):
                refused()

    def test_close_ends_another_threads_wait(self, ctrl: Controller, ns: Namespace) -> None:
        """The waiter gets an error; nobody touches memory that was unmapped."""
        queue = ctrl.create_queue(entries=8)
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
        started = threading.Event()
        seen: list[BaseException] = []

        def wait() -> None:
            try:
                while True:
                    queue.submit(batch)
                    started.set()
                    queue.reap(1, timeout=20)
            except BaseException as e:  # noqa: BLE001 - looked at below
                seen.append(e)

        thread = threading.Thread(target=wait)
        thread.start()
        started.wait(20)
        ctrl.close()
        thread.join(20)
        assert not thread.is_alive()
        assert [type(e) for e in seen] == [errors.ClosedError]

    def test_a_forked_child_is_refused_and_harms_nothing(
        self, ctrl: Controller, ns: Namespace
    ) -> None:
        data = random_bytes(ns.lba_size)
        ns.write(5, data)
        queue = ctrl.create_queue(entries=8)
        batch = queue.batch(1, namespace=ns, buffer=ctrl.alloc(ns.lba_size))
        pid = os.fork()
        if pid == 0:
            wrong = 0
            for k, call in enumerate((
                lambda: ns.read(5, 1), lambda: queue.submit(batch), lambda: queue.reap(),
                lambda: ctrl.smart_log(), lambda: ctrl.alloc(1), lambda: ctrl.create_queue(),
                lambda: queue.batch(1, namespace=ns),
            )):  # fmt: skip
                try:
                    call()
                    wrong |= 1 << k
                except errors.ForkedError:
                    pass
                except BaseException:  # noqa: BLE001 - reported by the exit status
                    wrong |= 1 << k
            queue.close()
            ctrl.close()
            os._exit(wrong)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert (ns.read(5, 1) == data).all()
        queue.submit(batch)
        assert len(queue.reap(1, timeout=20)) == 1
