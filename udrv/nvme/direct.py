# SPDX-License-Identifier: Apache-2.0
"""A controller by its own registers and queues: what VFIO and vfio-user give."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from udrv.errors import (
    ClosedError,
    ControllerError,
    ControllerFatalError,
    ControllerStateError,
    DeviceGoneError,
    NvmeStatusError,
    UdrvError,
)
from udrv.memory import DmaMemory, Ledger, NullLedger
from udrv.nvme import flight
from udrv.nvme.admin import AdminQueue, AdminResult, active_nsids
from udrv.nvme.backend import Backend, Pair, Step
from udrv.nvme.events import MOST_ARMED, AsyncEvent, configuration
from udrv.nvme.interrupts import Vectors
from udrv.nvme.lifecycle import Lifecycle, State
from udrv.nvme.overdue import OverdueWatch
from udrv.nvme.pair import PRP_MAX_TRANSFER, QueuePair, StateMapper
from udrv.nvme.prp import PrpTables
from udrv.nvme.recovery import Recovery, Reset
from udrv.nvme.registers import Registers
from udrv.nvme.shadow import OACS_DOORBELL_BUFFER, ShadowDoorbells, hand_over
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import (
    IDENTIFY_SIZE,
    IdentifyController,
    IdentifyNamespace,
    decode_id_ctrl,
    decode_id_ns,
)
from udrv.nvme.spec.opcodes import Cns, FeatureId
from udrv.nvme.timeouts import Timeouts
from udrv.vfio.device import Departs, Departure, Device

ADMIN_ENTRIES = 32
#: Seconds for Delete I/O Queue: a device that hangs is reset instead.
_DELETE_TIMEOUT = 5.0
#: A queue that resets keep from being created is tried so many times.
_ATTACH_TRIES = 3


class DirectBackend(Backend):
    """Drives the registers of a `Device`, which it owns from now on.

    Parameters
    ----------
    device: open; closed with the backend, and if this raises.
    check_memlock: look at RLIMIT_MEMLOCK before mapping (the kernel's VFIO).
    ledger: is told of DMA memory; None for none.
    shadow_doorbells: use Doorbell Buffer Config where the controller has it.
    timeouts: time limits of commands; None for the defaults.

    Attributes
    ----------
    admin_pair: the admin queue's pair, None until `start` made it.
    shadow: shadow doorbells in use, or None.
    recovery: resets of the controller.     watch: overdue commands, once `keep` was called.
    """

    def __init__(
        self,
        device: Device,
        *,
        check_memlock: bool = False,
        ledger: Ledger | None = None,
        shadow_doorbells: bool = True,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.target = device.name
        self.transport = device.transport
        self._device = device
        self._registers: Registers | None = None
        self._vectors: Vectors | None = None
        self._life: Lifecycle | None = None
        self._admin: AdminQueue | None = None
        self.admin_pair: QueuePair | None = None
        self._want_shadow = shadow_doorbells
        self._shadow_pages: ShadowDoorbells | None = None
        self.shadow: ShadowDoorbells | None = None
        self._timeouts = Timeouts() if timeouts is None else timeouts
        self._attached: dict[int, QueuePair] = {}
        self._attach_lock = threading.RLock()  # also of a signal handler inside of it
        self._namespaces: dict[int, IdentifyNamespace] = {}
        self._why: UdrvError | None = None
        self._wanted = 0
        self.watch: OverdueWatch | None = None
        self.recovery = Recovery(self)
        ledger = NullLedger() if ledger is None else ledger
        with ExitStack() as undo:
            undo.callback(device.close)
            self._state = DmaMemory(StateMapper(), device=device.name, huge_pages=False)
            self.memory = DmaMemory(
                device.mapper, ledger=ledger, device=device.name, check_memlock=check_memlock,
                numa_node=device.numa_node,
            )  # fmt: skip
            undo.pop_all()

    # --- up ---------------------------------------------------------------------------------

    def start(self, queues: int, interrupts: bool) -> None:
        registers = self._registers = Registers(self._device)
        life = self._life = Lifecycle(registers, self.target)
        life.disable()
        # only now: a controller that an earlier owner left running must not reach memory
        self._device.set_bus_master(True)
        registers.map_doorbells(queues, stride=4 << life.cap.dstrd)
        self._vectors = Vectors(self._device, queues if interrupts else 0)
        pair = self.admin_pair = QueuePair(
            device=self.target,
            memory=self.memory,
            state=self._state,
            qid=0,
            entries=ADMIN_ENTRIES,
            max_transfer=PRP_MAX_TRANSFER,
            doorbells=registers.doorbells(0),
            eventfd=self._vectors.eventfd(0) if len(self._vectors) else -1,
        )
        self._tables = PrpTables(self.memory)
        self._admin = AdminQueue(
            pair, self.memory, life, self._namespaces_changed, timeouts=self._timeouts,
            recovery=self.recovery,
        )  # fmt: skip
        pair.wait_over = self._admin.halted
        self.identify = self._enable()
        mdts = self.identify.mdts
        limit = life.cap.min_page_size << mdts if 0 < mdts < 32 else PRP_MAX_TRANSFER
        self.max_transfer = min(limit, PRP_MAX_TRANSFER)
        if self._want_shadow and self.identify.oacs & OACS_DOORBELL_BUFFER:
            # known before the command is sent: a time-out leaves them to close_steps()
            self._shadow_pages = ShadowDoorbells(self.memory, stride=4 << life.cap.dstrd)
            self.shadow = hand_over(self._shadow_pages, self.admin)
        self._wanted = queues
        self.max_queues = min(queues, self._negotiate(), registers.last_qid)
        self.max_queue_entries = life.cap.max_queue_entries
        life.enter(State.READY)

    def _enable(self) -> IdentifyController:
        """From disabled to an admin queue that works; returns who answers there."""
        life, pair = self._lifecycle(), self.admin_pair
        assert pair is not None  # noqa: S101 - made before
        life.enable(entries=ADMIN_ENTRIES, sq_iova=pair.sq_iova, cq_iova=pair.cq_iova)
        life.enter(State.IDENTIFY)
        data = self.admin(command.identify(Cns.CONTROLLER), read=IDENTIFY_SIZE).data
        return decode_id_ctrl(data)

    def _negotiate(self) -> int:
        """Ask for queues and for events; returns how many queues were granted."""
        assert self._admin is not None  # noqa: S101 - made before
        self._lifecycle().enter(State.QUEUES)
        wanted = command.number_of_queues(self._wanted, self._wanted)
        result = self.admin(command.set_features(FeatureId.NUMBER_OF_QUEUES, wanted)).result
        granted = command.NumberOfQueues.unpack(result & 0xFFFF_FFFF)
        feature, value = configuration(self.identify.oaes)
        with contextlib.suppress(NvmeStatusError):  # then it tells what it tells by default
            self.admin(command.set_features(feature, value))
        self._admin.arm_events(min(self.identify.aerl + 1, MOST_ARMED))
        return min(granted.nsq + 1, granted.ncq + 1)

    @property
    def state(self) -> State:
        return State.NEW if self._life is None else self._life.state

    @property
    def version(self) -> str:
        return str(self._lifecycle().version)

    @property
    def interrupt_vectors(self) -> int:
        return len(self._vectors) if self._vectors is not None else 0

    def _lifecycle(self) -> Lifecycle:
        if self._life is None:
            raise ClosedError("the controller is not up", device=self.target, mend="open it again")
        return self._life

    def require_ready(self) -> None:
        self.recovery.wait_over()
        if self._why is not None:
            raise copy.copy(self._why)
        self._lifecycle().require(State.READY)

    def check_alive(self) -> None:
        if self.recovery.under_way:
            return  # it has a bound, and tells what came of it
        if self._why is not None:
            raise copy.copy(self._why)
        try:
            self._lifecycle().check_alive()
        except (ControllerFatalError, DeviceGoneError) as error:
            self._strike(error)
            raise

    # --- resets and failure -----------------------------------------------------------------

    def _strike(self, error: ControllerError) -> None:
        """The controller did something that it does not come back from by itself."""
        if self.state in (State.FAILED, State.GONE):  # else it is not up, or going down
            path = self.write_record(error.tried)
            if path is not None:
                error.mend = f"{error.mend or ''}; flight record: {path}".lstrip("; ")
            self.fail(error)

    def fail(self, error: UdrvError) -> None:
        life = self._life
        if life is not None and life.state not in (State.FAILED, State.GONE, State.CLOSED):
            life.enter(State.GONE if isinstance(error, DeviceGoneError) else State.FAILED)
        if self._why is None or not isinstance(self._why, DeviceGoneError):
            self._why = error
        for pair in self._pairs():
            pair.broken(self._why)

    def _pairs(self) -> list[QueuePair]:
        """In use on the device, the admin queue's first."""
        with self._attach_lock:
            attached = list(self._attached.values())
        return [] if self.admin_pair is None else [self.admin_pair, *attached]

    def begin_reset(self) -> Sequence[QueuePair]:
        if self._why is not None and self.state is State.GONE:
            raise copy.copy(self._why)
        self._lifecycle().enter(State.RESETTING)
        return self._pairs()

    def stop_device(self) -> None:
        life = self._lifecycle()
        try:
            life.disable()
        except DeviceGoneError:
            raise
        except ControllerError:  # it does not: then by the bus
            self._device.reset()
            life.enter(State.RESETTING)
            life.disable()

    def start_again(self, pairs: Sequence[QueuePair]) -> None:
        assert self._admin is not None and self._registers is not None  # noqa: S101 - was READY
        self._why = None
        self._device.set_bus_master(True)  # a reset of the function clears it
        self._admin.restarted()
        identify, before = self._enable(), self.identify
        if (identify.sn, identify.mn) != (before.sn, before.mn):
            raise DeviceGoneError(
                f"after a reset another drive answers: serial {identify.sn.strip()!r}, not "
                f"{before.sn.strip()!r}",
                state=self.state.value, device=self.target,
                mend="close it, and open the one that you mean",
            )
        self.identify = identify
        if self.shadow is not None:
            self.admin(command.doorbell_buffer_config(*self.shadow.iovas))
        self._negotiate()
        for pair in pairs[1:]:
            self._create(pair)
        self._lifecycle().enter(State.READY)
        if any(self._changed(nsid) for nsid in list(self._namespaces)):
            self._namespaces_changed()

    def _changed(self, nsid: int) -> bool:
        """Whether a namespace is not what it was when it was last identified."""
        before = self._namespaces[nsid]
        try:
            now = self.identify_namespace(nsid)
        except NvmeStatusError:
            return True
        return dataclasses.replace(now, nuse=0) != dataclasses.replace(before, nuse=0)

    def write_record(self, reason: str) -> Path | None:
        life = self._life
        try:
            registers: dict[str, int] | str = life.registers() if life is not None else {}
        except UdrvError as error:
            registers = error.tried
        about = {}
        if self.max_transfer:  # identified
            about = {"serial": self.identify.sn.strip(), "model": self.identify.mn.strip(),
                     "firmware": self.identify.fr.strip()}  # fmt: skip
        return flight.record(
            device=self.target, reason=reason, state=self.state.value, about=about,
            registers=registers, pairs=self._pairs(),
        )  # fmt: skip

    # --- looked after by a thread -------------------------------------------------------------

    def recover(self, reason: str) -> None:
        if self._admin is not None:
            self._admin.check_holder()  # it could not be brought up again
        self.recovery.run(reason)

    @property
    def resets(self) -> tuple[Reset, ...]:
        return tuple(self.recovery.history)

    @property
    def patience(self) -> float:
        limits, cap = self._timeouts, self._lifecycle().cap
        if self._admin is None or not self._admin.resets:
            return limits.io
        return limits.io + 2 * limits.abort + 3 * cap.timeout_seconds + 30.0

    def depart(self, error: DeviceGoneError, orderly: bool) -> None:
        if orderly:  # whoever waits is told why, when the queues are deleted
            for pair in self._pairs():
                pair.why = error
        else:
            self.fail(error)

    def keep(self, recover: bool) -> tuple[OverdueWatch, Sequence[Departure]]:
        assert self._admin is not None  # noqa: S101 - READY
        self._admin.resets = recover
        watch = self.watch = OverdueWatch(
            self._timeouts, pairs=self._watched if recover else list, abort=self._abort,
            reset=self.recovery.run, generation=lambda: self.recovery.generation,
            resetting=lambda: self.recovery.under_way,
        )  # fmt: skip
        return watch, self._device.departures() if isinstance(self._device, Departs) else ()

    def _watched(self) -> list[QueuePair]:
        if self._why is not None or self._admin is None:
            return []
        return self._pairs()[self._admin.own_limit :]  # with a limit of its caller's: without it

    def _abort(self, qid: int, cid: int, generation: int) -> bool:
        assert self._admin is not None  # noqa: S101 - READY
        return self._admin.abort(qid, cid, generation)

    # --- commands and queues ----------------------------------------------------------------

    def admin(
        self, sqe: bytes, *, read: int = 0, write: bytes = b"", **kw: Any
    ) -> AdminResult:
        if self._admin is None:
            raise ClosedError("the admin queue is not up", device=self.target)
        return self._admin.command(sqe, read=read, write=write, **kw)

    def _namespaces_changed(self) -> None:
        if self.on_namespaces_changed is not None:
            self.on_namespaces_changed()

    def poll_events(self) -> list[AsyncEvent]:
        return [] if self._admin is None else self._admin.poll_events()

    @property
    def event_counts(self) -> dict[str, int]:
        return {} if self._admin is None else self._admin.event_counts

    @property
    def event_fd(self) -> int:
        return self.admin_pair.eventfd if self.admin_pair is not None else -1

    def namespace_ids(self) -> tuple[int, ...]:
        return active_nsids(self.admin, self.target)

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        data = self.admin(command.identify(Cns.NAMESPACE, nsid=nsid), read=IDENTIFY_SIZE).data
        found = self._namespaces[nsid] = decode_id_ns(data)
        return found

    def make_pair(
        self, qid: int, entries: int, interrupt: bool, *, one_thread: bool = False,
        timestamps: bool = True,
    ) -> Pair:
        assert self._registers is not None and self._vectors is not None  # noqa: S101 - READY
        return QueuePair(
            device=self.target,
            memory=self.memory,
            state=self._state,
            qid=qid,
            entries=entries,
            max_transfer=self.max_transfer,
            doorbells=self._registers.doorbells(qid),
            shadow=self.shadow.entry(qid) if self.shadow is not None else None,
            eventfd=self._vectors.eventfd(qid) if interrupt else -1,
            tables=self._tables,
            timestamps=timestamps,
        )

    def attach(self, pair: Pair) -> None:
        rings = cast(QueuePair, pair)
        rings.wait_over = self.recovery.require_over
        # what fails without an answer (a time-out) leaves it true
        rings.on_device = True
        for _ in range(_ATTACH_TRIES):
            generation = self.recovery.generation
            try:
                self._create(rings)
            except NvmeStatusError:
                if generation == self.recovery.generation:
                    rings.on_device = False
                    raise
            with self._attach_lock:
                # the next reset will make it again; one that has begun may not
                if generation == self.recovery.generation:
                    self._attached[rings.qid] = rings
                    return
            with contextlib.suppress(NvmeStatusError):
                self._delete(rings.qid)
        raise ControllerStateError(
            f"the controller was reset again and again while queue {rings.qid} was being created",
            state=self.state.value, device=self.target, mend="see its flight records",
        )  # fmt: skip

    def _create(self, pair: QueuePair) -> None:
        qid, entries = pair.qid, pair.entries
        vector = qid if pair.eventfd >= 0 else None
        self.admin(command.create_io_cq(qid, entries, iova=pair.cq_iova, vector=vector))
        try:
            self.admin(command.create_io_sq(qid, entries, cqid=qid, iova=pair.sq_iova))
        except NvmeStatusError:
            # it may be there all the same (a status that lies), and a reset may have deleted both
            for delete in (command.delete_io_sq, command.delete_io_cq):
                with contextlib.suppress(NvmeStatusError):
                    self.admin(delete(qid))
            raise

    def _delete(self, qid: int) -> None:
        self.admin(command.delete_io_sq(qid), timeout=_DELETE_TIMEOUT)
        self.admin(command.delete_io_cq(qid), timeout=_DELETE_TIMEOUT)

    @property
    def detaches(self) -> bool:
        self.recovery.wait_over()
        return self.state is State.READY

    def detach(self, pair: Pair) -> None:
        with self._attach_lock:
            self._attached.pop(pair.qid, None)  # from now on no reset makes it again
            generation = self.recovery.generation
        try:
            self._delete(pair.qid)  # a Delete that succeeded is the proof
        except NvmeStatusError:
            if generation == self.recovery.generation:
                raise
            self.require_ready()  # or a reset since
        pair.on_device = False

    # --- down -------------------------------------------------------------------------------

    def shutdown(self) -> None:
        self.recovery.end()
        life = self._life
        if life is None:
            return
        if life.state is State.READY:
            life.shutdown(self.identify.rtd3e)
        elif life.state not in (State.NEW, State.GONE):
            life.stop()

    def reset(self) -> None:
        self._device.reset()

    def isolate(self) -> None:
        self._device.set_bus_master(False)

    def drain(self) -> None:
        if self.admin_pair is not None:
            self.admin_pair.close()

    def cut_steps(self) -> Sequence[Step]:
        # unmapped before queues are freed: the proof that the release of trackers and buffers needs
        ends: list[Step] = [] if self._vectors is None else [self._vectors.close]
        return [*ends, self.memory.close]

    def close_steps(self) -> Sequence[Step]:
        steps: list[Step] = []
        if self.admin_pair is not None:
            steps.append(self.admin_pair.free)
        if self._admin is not None:
            steps.append(self._admin.release)
        if self._registers is not None:
            steps.append(self._registers.close)
        if self._shadow_pages is not None:
            steps.append(self._shadow_pages.release)
        return [*steps, self._state.close, self._device.close]
