"""A controller: from an open device to namespaces and queues, and back."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Self

from udrv.errors import (
    ClosedError,
    DeviceGoneError,
    DeviceNotFoundError,
    InvalidRequestError,
    UdrvError,
)
from udrv.fork import ForkGuard
from udrv.memory import Buffer, Ledger
from udrv.nvme.about import About
from udrv.nvme.admin import RESHAPING, AdminResult
from udrv.nvme.aio import AsyncQueues
from udrv.nvme.aio_queue import AsyncQueue
from udrv.nvme.backend import Backend
from udrv.nvme.direct import DirectBackend
from udrv.nvme.keeper import Keeper
from udrv.nvme.lane import Lane
from udrv.nvme.leases import Lease, Leases
from udrv.nvme.lifecycle import State
from udrv.nvme.namespace import Namespace
from udrv.nvme.pair import HYBRID
from udrv.nvme.queue import Queue
from udrv.nvme.recovery import Reset
from udrv.nvme.streaming import Streaming
from udrv.nvme.timeouts import Timeouts
from udrv.stream import Stream
from udrv.units import integer, spin_time
from udrv.vfio.device import Departure, Device

DEFAULT_ENTRIES = 256
DEFAULT_QUEUES = 16

#: Seconds that the keeper waits for whoever has the controller, before it looks again.
_DEPART_SECONDS = 1.0

WAITS = ("poll", "interrupt", "hybrid")

#: Slots of the queues that blocking calls share.
_LEASED_ENTRIES = 64


class Controller(About):
    """An NVMe controller that this process drives (`udrv.open` makes them).

    A context manager. `close` deletes the queues, shuts the controller down, unmaps memory and
    closes the device, in this order, also after an exception and also when the device is gone. A
    controller that the kernel drives is left as it is: only what this process opened is closed.

    Parameters
    ----------
    device: open, or a `Backend` over one; the controller owns it from now on and closes it.
    queues: I/O queues to ask the controller for, 1 to 65535; it may grant fewer (`max_queues`).
    entries: slots of a queue's rings where `create_queue` names none; CAP.MQES may say fewer.
    interrupts: arm MSI-X vectors, so that queues with `interrupt=True` can be made.
    wait: how blocking calls wait: "poll", "interrupt" (asleep) or "hybrid" (poll for as long as the
        waits before make worth while, then sleep).
    check_memlock: look at RLIMIT_MEMLOCK before mapping (the kernel's VFIO); not for a `Backend`.
    ledger: is told of DMA memory; None for none; not for a `Backend`.
    shadow_doorbells: use Doorbell Buffer Config where there is one; not for a `Backend`.
    timeouts: time limits of commands, None for the defaults; not for a `Backend`.
    recover: watch over them: abort what is overdue, then reset the controller (docs/recovery.md);
        not on a controller that the kernel drives, which does so itself.
    resources: closed after the device: a scoped binding, a child process.

    Attributes
    ----------
    target, transport: as the user named it; "vfio", "vfio-iommufd", "vfio-user", "io_uring-cmd"
        or "io_uring-block".
    identify: the decoded Identify Controller structure.
    max_transfer: bytes that one command moves (MDTS, and what one PRP list page describes).
    max_queues: I/O queues granted.
    default_entries: slots of a queue where `create_queue` names none.
    """

    def __init__(
        self,
        device: Device | Backend,
        *,
        queues: int = DEFAULT_QUEUES,
        entries: int = DEFAULT_ENTRIES,
        interrupts: bool = True,
        wait: str = "poll",
        check_memlock: bool = False,
        ledger: Ledger | None = None,
        shadow_doorbells: bool = True,
        timeouts: Timeouts | None = None,
        recover: bool = True,
        resources: ExitStack | None = None,
    ) -> None:
        self._resources = ExitStack() if resources is None else resources
        with ExitStack() as undo:
            undo.callback(self._resources.close)
            if isinstance(device, Backend):
                backend = device
            else:
                backend = DirectBackend(
                    device, check_memlock=check_memlock, ledger=ledger,
                    shadow_doorbells=shadow_doorbells, timeouts=timeouts,
                )  # fmt: skip
            undo.pop_all()
        self._backend = backend
        backend.on_namespaces_changed = self._forget_namespaces
        self.target = backend.target
        self.transport = backend.transport
        self.memory = backend.memory
        self._guard = ForkGuard()
        self._lock = threading.RLock()
        self._queues: dict[int, Queue] = {}
        self._leases = Leases(
            lock=self._lock,
            make=lambda: self.create_queue(
                entries=min(_LEASED_ENTRIES, self.default_entries),
                interrupt=wait != "poll",
                spin_ns=HYBRID if wait == "hybrid" else 0,
            ),
            free=lambda: self.max_queues - len(self._queues),
            check=lambda: self._ready().require_ready(),
        )
        self._async = AsyncQueues(
            lock=self._lock,
            make=lambda interrupt: self.create_queue(
                entries=min(self.default_entries, AsyncQueues.MAX_ENTRIES), interrupt=interrupt
            ),
            check=lambda: self._ready().require_ready(),
            check_alive=self.check_alive,
        )
        self._namespaces: dict[int, Namespace] = {}
        self._closed = False  # no new use
        self._released = False  # nothing left to close
        self._gone: DeviceGoneError | None = None  # why it was closed, if not by its user
        self._keeper: Keeper | None = None
        self.max_queues = 0
        self._streaming = Streaming(self, self._lock)
        try:
            queues, entries = integer(queues, "queues ="), integer(entries, "entries =")
            if wait not in WAITS:
                raise InvalidRequestError(
                    f"wait={wait!r}", device=self.target, mend=f"one of {', '.join(WAITS)}"
                )
            if wait != "poll" and not interrupts:
                raise InvalidRequestError(
                    f"wait={wait!r} without interrupts", device=self.target,
                    mend="interrupts=True, or wait='poll'",
                )
            if not 1 <= queues <= 65535 or not 2 <= entries <= 65535:
                raise InvalidRequestError(
                    f"{queues} queues of {entries} entries",
                    device=self.target,
                    mend="1 to 65535 queues of 2 to 65535 entries",
                )
            backend.start(queues, interrupts)
            self.identify = backend.identify
            self.max_transfer = backend.max_transfer
            self.max_queues = backend.max_queues
            self.default_entries = min(entries, backend.max_queue_entries)
            self._keep(recover)
        except BaseException:
            self.close()
            raise

    # --- what it is -------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Controller {self.target} ({self.transport}) {self.state.value}>"

    @property
    def state(self) -> State:
        """The state of the controller's life; `State.CLOSED` after `close`."""
        if self._gone is not None:
            return State.GONE
        return State.CLOSED if self._closed else self._backend.state

    def _ready(self) -> Backend:
        self._guard.check("controller", self.target)
        if self._gone is not None:
            raise copy.copy(self._gone)
        if self._closed or self._backend.state is State.NEW:
            raise ClosedError("the controller is closed", device=self.target, mend="open it again")
        return self._backend

    def check_alive(self) -> None:
        """Raise `DeviceGoneError`, `ControllerFatalError` or `ClosedError` if that is the case."""
        self._ready().check_alive()

    # --- recovery ---------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the controller, and bring it up again with the queues that it had.

        Commands in flight are delivered with the status Command Aborted By Host (see
        `udrv.nvme.status.AbortedByHostError`); what blocks or is awaited is sent again. Features
        that were set go back to their saved values. Also the way out of the state "failed".

        Raises `DeviceGoneError`, `ControllerFatalError` or `ControllerTimeoutError` if it does not
        come up (the state is "failed" or "gone" then), and `UnsupportedOnTransport` where the
        kernel drives the controller.
        """
        self._ready().recover("the program asked for it")

    @property
    def resets(self) -> tuple[Reset, ...]:
        """The last resets of the controller since it was opened, the oldest first."""
        return self._backend.resets

    def _keep(self, recover: bool) -> None:
        watch, departures = self._backend.keep(recover)
        if watch is not None:
            self._keeper = Keeper(
                watch.look, self.depart, period=watch.period, departures=departures,
                name=self.target,
            )  # fmt: skip
            self._keeper.start()

    def depart(self, departure: Departure) -> bool:
        """The device went, or has to be closed now; for the keeper.

        Everybody is told why. Returns false if somebody is in the way: then once more.
        """
        if not self._lock.acquire(timeout=_DEPART_SECONDS):
            return False
        try:
            if self._released:
                return True
            error = DeviceGoneError(
                departure.reason, state=self.state.value, device=self.target,
                mend="open it again when it is back",
            )  # fmt: skip
            self._backend.depart(error, departure.orderly)
            if not departure.orderly:  # its user closes it, nobody waits for that
                return True
            self._gone = error
            with contextlib.suppress(UdrvError):  # mostly it was closed all the same
                self._shut()
            return self._released
        finally:
            self._lock.release()

    # --- admin ------------------------------------------------------------------------------

    def admin(self, sqe: bytes, *, read: int = 0, write: bytes = b"", **kw: Any) -> AdminResult:
        """One admin command, as it is (`udrv.nvme.spec.command` builds them).

        CID and PRPs are filled in; `read` bytes are received or `write` is sent. See
        `AdminQueue.command` for `timeout` and for what it raises.
        """
        backend = self._ready()
        try:
            return backend.admin(sqe, read=read, write=write, **kw)
        finally:
            if sqe[:1] and sqe[0] in RESHAPING:  # also after a time-out: it may go on
                self._forget_namespaces()

    def _forget_namespaces(self) -> None:
        # no lock: called inside of the admin queue's, which others wait for with ours held
        for namespace in list(self._namespaces.values()):
            namespace.stale = True
        self._namespaces.clear()

    def namespace_ids(self) -> tuple[int, ...]:
        """NSIDs of active namespaces, ascending (CNS 02h, as many pages as it takes).

        One only where the target is a namespace of a controller that the kernel drives.
        """
        return self._ready().namespace_ids()

    def namespace(self, nsid: int) -> Namespace:
        """An active namespace; `DeviceNotFoundError` if there is none of that id."""
        nsid = integer(nsid, "a namespace id", device=self.target)
        self._ready()
        with self._lock:
            if nsid not in self._namespaces:
                ids = self.namespace_ids()
                if nsid not in ids:
                    raise DeviceNotFoundError(
                        f"no active namespace {nsid}",
                        device=self.target,
                        mend=f"it has {', '.join(map(str, ids)) or 'none'}",
                    )
                found = self._ready().identify_namespace(nsid)
                self._namespaces[nsid] = Namespace(self, nsid, found)
            return self._namespaces[nsid]

    @property
    def namespaces(self) -> dict[int, Namespace]:
        """All active namespaces by NSID."""
        return {nsid: self.namespace(nsid) for nsid in self.namespace_ids()}

    # --- memory and queues ------------------------------------------------------------------

    def alloc(self, nbytes: int, *, align: int = 4096, zero: bool = False) -> Buffer:
        """DMA memory: a numpy array of `nbytes` bytes that the device can reach."""
        self._ready()
        return self.memory.alloc(nbytes, align=align, zero=zero)

    def create_queue(
        self,
        *,
        entries: int | None = None,
        interrupt: bool = False,
        spin_ns: int = 0,
        one_thread: bool = False,
        timestamps: bool = True,
    ) -> Queue:
        """Create an I/O queue pair on the device.

        Parameters
        ----------
        entries: slots of each ring, 2 to `max_queue_entries`; `entries - 1` commands fit.
        interrupt: completions raise an MSI-X interrupt, so that a waiter can sleep.
        spin_ns: with an interrupt, how long a wait polls before it sleeps: nanoseconds, or `HYBRID`
            of `udrv.nvme` for as long as the waits before make worth while.
        one_thread: a promise that only one thread will submit and reap, the first one to submit:
            cheaper over io_uring, and kept by the kernel (`QueueBusyError`).
        timestamps: take the time of each command. Without, `latency_ns` is 0 and a command costs
            ten instructions less; io_uring takes the time in any case.

        Raises `InvalidRequestError` when all queue ids are in use or a number is out of range,
        `UnsupportedOnTransport` when there is no interrupt vector left for it.
        """
        backend = self._ready()
        backend.require_ready()
        entries = integer(self.default_entries if entries is None else entries, "entries =")
        spin_ns = spin_time(spin_ns, device=self.target)
        most = min(backend.max_queue_entries, 65535)
        if not 2 <= entries <= most:
            raise InvalidRequestError(
                f"a queue of {entries} entries", device=self.target, mend=f"2 to {most}"
            )
        with self._lock:
            qid = next((q for q in range(1, self.max_queues + 1) if q not in self._queues), None)
            if qid is None:
                raise InvalidRequestError(
                    f"all {self.max_queues} queues are in use",
                    device=self.target,
                    mend="close one, or open the controller with queues=N (it may grant fewer)",
                )
            pair = backend.make_pair(
                qid, entries, interrupt, one_thread=one_thread, timestamps=timestamps
            )
            return self._attach(qid, Queue(self, pair, spin_ns))

    def _attach(self, qid: int, queue: Queue) -> Queue:
        pair = queue.pair
        # registered before the device knows of it: what fails here without an answer (a time-out)
        # leaves the memory to close(), which frees it when the controller was disabled
        self._queues[qid] = queue
        try:
            self._streaming.hang(pair)
            self._backend.attach(pair)
        except UdrvError:
            if not pair.on_device:
                self._forget(queue)
            raise
        return queue

    def _forget(self, queue: Queue) -> None:
        """The device does not know of the queue (any more): free it."""
        queue.abandon()
        self._streaming.drop(queue.pair)
        queue.release()
        del self._queues[queue.qid]

    def delete_queue(self, queue: Queue) -> None:
        """Delete both queues on the device, then free their memory (`Queue.close`)."""
        if self._guard.forked:
            return
        with self._lock:
            if self._queues.get(queue.qid) is not queue:
                return
            queue.abandon()
            if self._closed or not self._backend.detaches:
                return  # close() frees it, once it has proof that the device is done
            self._backend.detach(queue.pair)  # one that fails leaves the memory to close()
            self._forget(queue)

    def stream(self, **how: Any) -> Stream:
        """The stream of completions, switched on by the first call; see `Streaming.start`."""
        self._ready().require_ready()
        return self._streaming.start(**how)

    @property
    def queues(self) -> list[Queue]:
        """I/O queues that there are, those of blocking and awaited calls included."""
        return list(self._queues.values())

    @property
    def lanes(self) -> list[Lane]:
        """The lanes of the queues that blocking calls share; for namespaces."""
        return self._leases.lanes

    def lease_queue(self) -> AbstractContextManager[Lease]:
        """A queue and a batch for a blocking call; waits while all are lent."""
        self._ready().require_ready()
        return self._leases.lend()

    def async_queue(self) -> AsyncQueue:
        """What the running event loop's awaited calls go through; made by the first of them.

        `RuntimeError` outside of a loop; otherwise as `create_queue`. It is never closed by hand.
        """
        return self._async.of_running_loop()

    # --- down -------------------------------------------------------------------------------

    def close(self) -> None:
        """Delete queues, shut down, unmap, close the device; idempotent, in a forked child nothing.

        Memory is unmapped after the controller was disabled, or, where that fails, after a reset of
        the function. The first error is raised when everything was tried. A close that was
        interrupted, or that a thread inside of a queue kept from its end (`QueueBusyError`: its
        memory and registers stay mapped), is taken up where it stopped by the next one.
        """
        if self._guard.forked:
            return
        if self._keeper is not None:
            self._keeper.stop()  # and with it a reset that is under way: it has a bound
        self._shut()
        self._gone = None

    def _shut(self) -> None:
        with self._lock:
            if self._released:
                return
            errors: list[Exception] = []

            def attempt(step: Any) -> bool:
                try:
                    step()
                except Exception as e:  # noqa: BLE001 - the first is raised at the end
                    errors.append(e)
                    return False
                return True

            self._leases.clear()
            self._async.close(self.target)
            # a failure that was reported when it was met is not reported again
            known = self._backend.state in (State.FAILED, State.GONE)
            if not self._closed:
                mended = attempt(self._stop_controller) or attempt(self._backend.reset)
                if mended and known:
                    errors.clear()
            self._closed = True
            attempt(self._backend.isolate)
            # nobody may be inside of a queue when its rings are unmapped or its eventfd is closed
            drained = True
            for queue in self._queues.values():
                drained = attempt(queue.abandon) and drained
            drained = attempt(self._backend.drain) and drained
            if drained:
                attempt(self._streaming.stop)
                self._release(attempt)
                self._released = True
        if errors and not (known and isinstance(errors[0], DeviceGoneError)):
            raise errors[0]

    def _release(self, attempt: Callable[[Any], bool]) -> None:
        for step in self._backend.cut_steps():
            attempt(step)
        for queue in self._queues.values():
            attempt(queue.release)
        for step in self._backend.close_steps():
            attempt(step)
        self._queues.clear()
        attempt(self._resources.close)

    def _stop_controller(self) -> None:
        try:
            if self._backend.detaches:
                for queue in list(self._queues.values()):
                    self.delete_queue(queue)
        except UdrvError:
            # a queue that the device does not know (a create or delete that was interrupted),
            # or does not delete: no reason to let it lose what is in its write cache
            if not self._backend.detaches:
                raise
        self._backend.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
