# SPDX-License-Identifier: Apache-2.0
"""A controller by its own registers and queues: what VFIO and vfio-user give."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from udrv.errors import ClosedError, NvmeStatusError
from udrv.memory import DmaMemory, Ledger, NullLedger
from udrv.nvme.admin import AdminQueue, AdminResult, active_nsids
from udrv.nvme.backend import Backend, Pair, Step
from udrv.nvme.events import MOST_ARMED, AsyncEvent, configuration
from udrv.nvme.interrupts import Vectors
from udrv.nvme.lifecycle import Lifecycle, State
from udrv.nvme.pair import PRP_MAX_TRANSFER, QueuePair, StateMapper
from udrv.nvme.prp import PrpTables
from udrv.nvme.registers import Registers
from udrv.nvme.shadow import OACS_DOORBELL_BUFFER, ShadowDoorbells, hand_over
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import (
    IDENTIFY_SIZE,
    IdentifyNamespace,
    decode_id_ctrl,
    decode_id_ns,
)
from udrv.nvme.spec.opcodes import Cns, FeatureId
from udrv.vfio.device import Device

ADMIN_ENTRIES = 32
#: Seconds for Delete I/O Queue: a device that hangs is reset instead.
_DELETE_TIMEOUT = 5.0


class DirectBackend(Backend):
    """Drives the registers of a `Device`, which it owns from now on.

    Parameters
    ----------
    device: open; closed with the backend, and if this raises.
    check_memlock: look at RLIMIT_MEMLOCK before mapping (the kernel's VFIO).
    ledger: is told of DMA memory; None for none.
    shadow_doorbells: use Doorbell Buffer Config where the controller has it.

    Attributes
    ----------
    admin_pair: the admin queue's pair, None until `start` made it.
    shadow: shadow doorbells in use, or None.
    """

    def __init__(
        self,
        device: Device,
        *,
        check_memlock: bool = False,
        ledger: Ledger | None = None,
        shadow_doorbells: bool = True,
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
        life.enable(entries=ADMIN_ENTRIES, sq_iova=pair.sq_iova, cq_iova=pair.cq_iova)
        self._tables = PrpTables(self.memory)
        self._admin = AdminQueue(pair, self.memory, life, self._namespaces_changed)

        life.enter(State.IDENTIFY)
        data = self.admin(command.identify(Cns.CONTROLLER), read=IDENTIFY_SIZE).data
        self.identify = decode_id_ctrl(data)
        mdts = self.identify.mdts
        limit = life.cap.min_page_size << mdts if 0 < mdts < 32 else PRP_MAX_TRANSFER
        self.max_transfer = min(limit, PRP_MAX_TRANSFER)

        if self._want_shadow and self.identify.oacs & OACS_DOORBELL_BUFFER:
            # known before the command is sent: a time-out leaves them to close_steps()
            self._shadow_pages = ShadowDoorbells(self.memory, stride=4 << life.cap.dstrd)
            self.shadow = hand_over(self._shadow_pages, self.admin)

        life.enter(State.QUEUES)
        result = self.admin(
            command.set_features(
                FeatureId.NUMBER_OF_QUEUES, command.number_of_queues(queues, queues)
            )
        ).result
        granted = command.NumberOfQueues.unpack(result & 0xFFFF_FFFF)
        self.max_queues = min(queues, granted.nsq + 1, granted.ncq + 1, registers.last_qid)
        self.max_queue_entries = life.cap.max_queue_entries
        feature, value = configuration(self.identify.oaes)
        with contextlib.suppress(NvmeStatusError):  # then it tells what it tells by default
            self.admin(command.set_features(feature, value))
        self._admin.arm_events(min(self.identify.aerl + 1, MOST_ARMED))
        life.enter(State.READY)

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
        self._lifecycle().require(State.READY)

    def check_alive(self) -> None:
        self._lifecycle().check_alive()

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
        return decode_id_ns(data)

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
        qid, entries = rings.qid, rings.entries
        vector = qid if rings.eventfd >= 0 else None
        # what fails without an answer (a time-out) leaves it true
        rings.on_device = True
        try:
            self.admin(command.create_io_cq(qid, entries, iova=rings.cq_iova, vector=vector))
        except NvmeStatusError:
            rings.on_device = False
            raise
        try:
            self.admin(command.create_io_sq(qid, entries, cqid=qid, iova=rings.sq_iova))
        except NvmeStatusError:
            self.admin(command.delete_io_cq(qid))
            rings.on_device = False
            raise

    @property
    def detaches(self) -> bool:
        return self.state is State.READY

    def detach(self, pair: Pair) -> None:
        # a Delete that succeeded is the proof
        self.admin(command.delete_io_sq(pair.qid), timeout=_DELETE_TIMEOUT)
        self.admin(command.delete_io_cq(pair.qid), timeout=_DELETE_TIMEOUT)
        pair.on_device = False

    # --- down -------------------------------------------------------------------------------

    def shutdown(self) -> None:
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
