# SPDX-License-Identifier: Apache-2.0
"""What a controller needs of a transport: a `Backend`, which makes `Pair`s.

`udrv.nvme.direct` drives a controller's own registers and queues (VFIO, vfio-user);
`udrv.nvme.kernel` sends commands through the kernel's NVMe driver. `Controller`, `Queue` and
`Namespace` know nothing else of either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from udrv.errors import DeviceGoneError, UnsupportedOnTransport
from udrv.memory import Buffer, DmaMemory
from udrv.nvme.admin import AdminResult
from udrv.nvme.events import AsyncEvent
from udrv.nvme.lifecycle import State
from udrv.nvme.overdue import OverdueWatch
from udrv.nvme.recovery import Reset
from udrv.nvme.spec.identify import IdentifyController, IdentifyNamespace
from udrv.vfio.device import Departure

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace

#: One step of taking a backend down; each is tried, whatever the others did.
Step = Callable[[], object]


class Pair(Protocol):
    """One queue of a transport: its C handle, and how to submit to it and wait on it.

    Attributes
    ----------
    device: the target, for messages.     qid: 1 to 65535; 0 is the admin queue.
    entries: slots as asked for.          depth: commands that fit.
    eventfd: readable when completions came, -1 for a queue that is polled.
    submit_c, reap_c: `submit_c(c, batch.c, first, count, bad)` and `reap_c(c, completions.c, first,
        max)`, the C functions themselves: called for every submit and reap, and so bound once.
        After `close` they return -UDRV_ECLOSED for as long as anybody has `c`.
    on_device: the device (or the kernel) may reach this queue's memory.
    timed: commands have timestamps.
    """

    device: str
    qid: int
    entries: int
    depth: int
    eventfd: int
    submit_c: Any
    reap_c: Any
    on_device: bool
    timed: bool

    @property
    def c(self) -> Any:
        """The C handle. Raises `ClosedError` after `free`."""

    def fail(self, code: int, where: str) -> NoReturn:
        """Raise what a negative return value of the C functions stands for."""

    def submit_command(
        self, batch: Any, sqe: bytes, offset: int, length: int, user_data: int
    ) -> int:
        """One command on the slot and buffer of a `struct udrv_batch *`.

        Returns 1, 0 where no slot is free, or what `fail` takes.
        """

    @property
    def loop_c(self) -> Any:
        """A `struct udrv_queue *`, for loops in C that serve any transport."""

    @property
    def inflight(self) -> int:
        """Commands that the device may still touch, those in quarantine included."""

    def slot_inflight(self, slot: int) -> int:
        """The same of one slot."""

    @property
    def halted(self) -> bool:
        """The controller is being reset: submitting waits until that is over."""

    def pause(self, timeout: float | None = None) -> None:
        """After -UDRV_EHALTED: return when it is over, or after `timeout` seconds; or raise."""

    def wait(
        self, completions: Any, minimum: int, maximum: int, timeout_ns: int, spin_ns: int
    ) -> int:
        """Reap at least `minimum`, or what came within a tenth of a second or `timeout_ns`."""

    def quarantine(self, slot: int | None = None) -> int:
        """Give up what is in flight (of one slot, or of all). Returns how many commands."""

    def ring(self) -> bool:
        """Wake a device that may sleep over commands; False where that cannot be (see qp.h)."""

    def counters(self) -> dict[str, int]:
        """Totals since creation, by name."""

    def aim(self, batch: Any, namespace: Namespace, buffer: Buffer | None) -> None:
        """Write into a `struct udrv_batch *` where its data and its namespace are."""

    def set_stream(self, stream: Any) -> int:
        """Hang a `struct udrv_stream *` on it, or take it off (None); 0 or a negative error."""

    def consumed(self) -> int:
        """Completions consumed so far, rejected ones included."""

    def close(self) -> None:
        """Refuse further calls and wait until nobody is inside. Memory stays until `free`."""

    def free(self) -> None:
        """Give memory back. Only with proof that the device is done with it; idempotent."""


class Backend(ABC):
    """A transport, opened for one controller; owns what it opened, and never outlives it.

    Attributes
    ----------
    target, transport: as of `Controller`.
    memory: DMA memory of this controller.
    identify: Identify Controller; from `start` on, as the limits below.
    max_transfer: bytes that one command may move.
    max_queues: I/O queues that there can be at a time.
    max_queue_entries: slots that a queue may have.
    identify_synthesised: Identify data was put together from what the kernel tells: most is 0.
    sleeps_without_eventfd: whoever waits on a queue sleeps in a system call of its own; without
        an eventfd (`create_queue(interrupt=False)`) each completion is cheaper.
    """

    target: str
    transport: str
    memory: DmaMemory
    identify: IdentifyController
    max_transfer: int = 0
    max_queues: int = 0
    max_queue_entries: int = 0
    identify_synthesised: bool = False
    sleeps_without_eventfd: bool = False

    #: Called when the controller said that its namespaces changed; set by the owner.
    on_namespaces_changed: Callable[[], None] | None = None

    # --- up ---------------------------------------------------------------------------------

    @abstractmethod
    def start(self, queues: int, interrupts: bool) -> None:
        """Bring the controller to the state ready and learn what it is; called once."""

    @property
    @abstractmethod
    def state(self) -> State:
        """Where the controller is in its life."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The specification's version that the controller reports."""

    @property
    @abstractmethod
    def interrupt_vectors(self) -> int:
        """Interrupt vectors armed, the admin queue's included; 0 if everything is polled."""

    @abstractmethod
    def require_ready(self) -> None:
        """Raise `ControllerStateError` unless commands can be sent."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raise `DeviceGoneError` or `ControllerFatalError` if that is the case."""

    # --- commands and queues ----------------------------------------------------------------

    @abstractmethod
    def admin(
        self, sqe: bytes, *, read: int = 0, write: bytes = b"", **kw: Any
    ) -> AdminResult:
        """One admin command; see `AdminQueue.command`."""

    @abstractmethod
    def namespace_ids(self) -> tuple[int, ...]:
        """NSIDs of the active namespaces that the target stands for, ascending."""

    @abstractmethod
    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h)."""

    def prepare_write(self, nsid: int) -> None:  # noqa: B027 - most have nothing to do
        """Raise where writing to the namespace would destroy what is in use; once is enough."""

    @abstractmethod
    def make_pair(
        self, qid: int, entries: int, interrupt: bool, *, one_thread: bool = False,
        timestamps: bool = True,
    ) -> Pair:
        """Memory and handle of a queue that the device does not know of yet.

        See `Controller.create_queue`; what a transport has no use for, it leaves.
        """

    @abstractmethod
    def attach(self, pair: Pair) -> None:
        """Make it known to the device; `pair.on_device` says afterwards whether it is."""

    @property
    @abstractmethod
    def detaches(self) -> bool:
        """Whether `detach` makes sense now; if not, `close` has the proof that frees queues."""

    @abstractmethod
    def detach(self, pair: Pair) -> None:
        """Return with proof that the device is done with the pair; raise where there is none."""

    # --- recovery ---------------------------------------------------------------------------

    def recover(self, reason: str) -> None:
        """See `Controller.reset`."""
        raise UnsupportedOnTransport(
            "the kernel's driver resets its controllers", device=self.target,
            mend="nvme reset /dev/nvmeN, or drive the controller over VFIO",
        )

    @property
    def resets(self) -> tuple[Reset, ...]:
        """See `Controller.resets`."""
        return ()

    def keep(self, recover: bool) -> tuple[OverdueWatch | None, Sequence[Departure]]:
        """What a keeper is to look at; `recover`: and to act on what is overdue."""
        return None, ()

    def depart(self, error: DeviceGoneError, orderly: bool) -> None:  # noqa: B027
        """Tell everybody that the device goes; `orderly`: it works until it is closed."""

    @property
    def patience(self) -> float:
        """Seconds that a command may take in all, with all that is done to get it back."""
        return 120.0

    # --- events -----------------------------------------------------------------------------

    def poll_events(self) -> list[AsyncEvent]:
        """See `Controller.poll_events`."""
        raise UnsupportedOnTransport(
            "asynchronous events go to the kernel's driver", device=self.target,
            mend="watch the kernel's uevents, or drive the controller over VFIO",
        )

    @property
    def event_counts(self) -> dict[str, int]:
        """Requests armed, events dropped, requests refused; empty where they are not ours."""
        return {}

    @property
    def event_fd(self) -> int:
        """Readable when an event may have come; -1 where there is none."""
        return -1

    # --- down, in this order ----------------------------------------------------------------

    @abstractmethod
    def shutdown(self) -> None:
        """Orderly end of the controller, from whatever state it is in."""

    @abstractmethod
    def reset(self) -> None:
        """The last resort where `shutdown` failed."""

    @abstractmethod
    def isolate(self) -> None:
        """Keep the device from memory, as far as the transport can."""

    @abstractmethod
    def drain(self) -> None:
        """Return when nobody is inside of the backend's own queues; `QueueBusyError` if not."""

    @abstractmethod
    def cut_steps(self) -> Sequence[Step]:
        """What must be done before the queues are freed: end interrupts, unmap memory."""

    @abstractmethod
    def close_steps(self) -> Sequence[Step]:
        """What is done after the queues were freed: the rest, the device last."""
