"""The life of a controller as a state machine (NVMe Base 2.0, "Controller Initialization",
"Controller Shutdown" and "Controller Level Reset").

Every wait has a bound, every wait looks for a device that is gone (all ones) and for one that gave
up (CSTS.CFS), and the state in which something went wrong is part of the error.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import NoReturn

from udrv.errors import (
    ControllerFatalError,
    ControllerStateError,
    ControllerTimeoutError,
    DeviceGoneError,
    UdrvError,
    UnsupportedOnTransport,
)
from udrv.nvme.registers import ALL_ONES_32, ALL_ONES_64, Registers
from udrv.nvme.spec.registers import (
    Aqa,
    Cap,
    Cc,
    Csts,
    Offset,
    ShutdownNotification,
    ShutdownStatus,
    Vs,
)


class State(enum.Enum):
    """Where a controller is between `open` and `close`."""

    NEW = "new"
    DISABLE = "disable"
    WAIT_DISABLED = "wait for CSTS.RDY = 0"
    CONFIGURE = "configure"
    ENABLE = "enable"
    WAIT_READY = "wait for CSTS.RDY = 1"
    IDENTIFY = "identify"
    QUEUES = "negotiate queues"
    READY = "ready"
    RESETTING = "reset"
    SHUTDOWN = "shut down"
    FAILED = "failed"
    GONE = "gone"
    CLOSED = "closed"


_ENDS = frozenset({State.SHUTDOWN, State.FAILED, State.GONE, State.CLOSED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: _ENDS | {State.DISABLE},
    State.DISABLE: _ENDS | {State.WAIT_DISABLED},
    State.WAIT_DISABLED: _ENDS | {State.CONFIGURE},
    State.CONFIGURE: _ENDS | {State.ENABLE},
    State.ENABLE: _ENDS | {State.WAIT_READY},
    State.WAIT_READY: _ENDS | {State.IDENTIFY},
    State.IDENTIFY: _ENDS | {State.QUEUES},
    State.QUEUES: _ENDS | {State.READY},
    State.READY: _ENDS | {State.RESETTING},
    State.RESETTING: _ENDS | {State.DISABLE},
    State.SHUTDOWN: frozenset({State.FAILED, State.GONE, State.CLOSED}),
    State.FAILED: frozenset({State.SHUTDOWN, State.GONE, State.CLOSED, State.RESETTING}),
    State.GONE: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}

#: Bound of an orderly shutdown where the controller names none (RTD3E = 0), in seconds.
_SHUTDOWN_SECONDS = 10.0
#: And where it names one: it may name 71 minutes, and close() would take them if it hangs. Linux
#: has the same limit (nvme_init_identify).
_SHUTDOWN_SECONDS_MAX = 60.0
#: What the controller is given beyond its own CAP.TO: an emulated one may run at any speed.
_GRACE_SECONDS = 2.0
#: CSTS bits that this driver looks at; others are reserved.
_CSTS_BITS = 0x7F
#: Reads of a CSTS of all ones, a millisecond apart, before it counts as fatal.
_TRIES = 5


class Lifecycle:
    """Takes a controller from reset to ready and back.

    Parameters
    ----------
    sleep, clock: of `time`; tests give others.
    """

    def __init__(
        self,
        registers: Registers,
        device: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registers = registers
        self._device = device
        self._sleep = sleep
        self._clock = clock
        self.state = State.NEW
        raw = registers.read64(Offset.CAP)
        if raw == ALL_ONES_64:
            self._gone("CAP reads all ones")
        self.cap = Cap.unpack(raw)
        self.version = Vs.unpack(registers.read32(Offset.VS))
        if not self.cap.css & 1:
            raise UnsupportedOnTransport(
                f"the controller has no NVM command set (CAP.CSS = {self.cap.css:#x})",
                device=device,
                mend="this driver speaks the NVM command set",
            )
        if self.cap.mpsmin:
            raise UnsupportedOnTransport(
                f"the controller's smallest page is {self.cap.min_page_size} bytes",
                device=device,
                mend="this driver uses pages of 4096 bytes (CC.MPS = 0)",
            )

    def enter(self, state: State) -> None:
        """Change state; `ControllerStateError` for a change that is not in `TRANSITIONS`."""
        if state is self.state:
            return
        if state not in TRANSITIONS[self.state]:
            raise ControllerStateError(
                f"cannot go from state '{self.state.value}' to '{state.value}'",
                state=self.state.value,
                device=self._device,
            )
        self.state = state

    def require(self, *states: State) -> None:
        """Raise `ControllerStateError` unless in one of `states`."""
        if self.state not in states:
            raise ControllerStateError(
                f"the controller is in state '{self.state.value}'",
                state=self.state.value,
                device=self._device,
                mend="open it again" if self.state in _ENDS else None,
            )

    # --- up -------------------------------------------------------------------------------

    def disable(self) -> None:
        """CC.EN = 0 and wait for CSTS.RDY = 0: from then on the device touches no memory."""
        self.enter(State.DISABLE)
        cc = Cc.unpack(self._registers.read32(Offset.CC))
        csts = self._csts()
        if cc.en and not (csts and csts.rdy):
            # "the host should not clear EN before RDY is 1": an earlier enable is under way. One
            # that failed or hangs is undone all the same: only EN = 0 gets out of that.
            self._wait(
                "the end of an earlier enable",
                lambda csts: csts.rdy == 1 or csts.cfs == 1,
                must=False,
            )
        if cc.en:
            self._registers.write32(Offset.CC, 0)
        self.enter(State.WAIT_DISABLED)
        self._wait("CSTS.RDY = 0", lambda csts: csts.rdy == 0, fatal_ends=False)

    def enable(self, *, entries: int, sq_iova: int, cq_iova: int) -> None:
        """Write AQA, ASQ, ACQ and CC, and wait for CSTS.RDY = 1."""
        self.enter(State.CONFIGURE)
        self._registers.write32(Offset.AQA, Aqa(asqs=entries - 1, acqs=entries - 1).pack())
        self._registers.write64(Offset.ASQ, sq_iova)
        self._registers.write64(Offset.ACQ, cq_iova)
        self.enter(State.ENABLE)
        cc = Cc(en=1, css=0, mps=0, ams=0, iosqes=6, iocqes=4)
        self._registers.write32(Offset.CC, cc.pack())
        self.enter(State.WAIT_READY)
        self._wait("CSTS.RDY = 1", lambda csts: csts.rdy == 1)

    # --- down -----------------------------------------------------------------------------

    def shutdown(self, rtd3e_us: int = 0) -> None:
        """Orderly shutdown, then disable; after it the device touches no memory.

        `rtd3e_us` is Identify Controller's RTD3 Entry Latency in microseconds, 0 if not reported;
        no more than a minute of it is granted.
        """
        self.enter(State.SHUTDOWN)
        seconds = min(max(_SHUTDOWN_SECONDS, rtd3e_us / 1e6), _SHUTDOWN_SECONDS_MAX)
        cc = Cc.unpack(self._registers.read32(Offset.CC))
        if cc.en:
            value = cc.pack() & ~(3 << 14) | ShutdownNotification.NORMAL << 14
            self._registers.write32(Offset.CC, value)
            self._wait(
                "the end of shutdown processing",
                lambda csts: csts.shst == ShutdownStatus.COMPLETE,
                seconds=seconds,
            )
        self.stop()

    def stop(self) -> None:
        """CC.EN = 0 and wait, in whatever state: the last resort before a reset by the bus."""
        cc = Cc.unpack(self._registers.read32(Offset.CC))
        if cc.en:
            self._registers.write32(Offset.CC, 0)
        self._wait("CSTS.RDY = 0", lambda csts: csts.rdy == 0, fatal_ends=False)

    # --- waiting ----------------------------------------------------------------------------

    def _csts(self) -> Csts | None:
        """CSTS; None while it cannot be read although the device is there."""
        try:
            raw = self._registers.read32(Offset.CSTS)
            if raw != ALL_ONES_32:
                return Csts.unpack(raw & _CSTS_BITS)
            self._registers.check_alive(self.state.value)
        except DeviceGoneError:  # all ones, or the server of a vfio-user device went
            self.enter(State.GONE)
            raise
        return None

    def check_alive(self) -> None:
        """Raise `DeviceGoneError` or `ControllerFatalError` if that is what happened."""
        for _ in range(_TRIES):
            csts = self._csts()
            if csts is not None:
                if csts.cfs:
                    self._fatal("CSTS.CFS is set: the controller reports a fatal error")
                return
            self._sleep(0.001)
        self._fatal("CSTS reads all ones, although configuration space answers")

    def _wait(
        self,
        what: str,
        done: Callable[[Csts], bool],
        *,
        seconds: float | None = None,
        fatal_ends: bool = True,
        must: bool = True,
    ) -> None:
        if seconds is None:
            seconds = self.cap.timeout_seconds + _GRACE_SECONDS
        deadline = self._clock() + seconds
        pause = 0.0001
        while True:
            late = self._clock() >= deadline  # before the read: the last look is after the limit
            csts = self._csts()
            if csts is not None:
                if done(csts):
                    return
                if csts.cfs and fatal_ends:
                    self._fatal("CSTS.CFS is set: the controller reports a fatal error")
            if late and not must:
                return
            if late:
                where = self.state.value
                self._check_present(where)
                self.enter(State.FAILED)
                raise ControllerTimeoutError(
                    f"no {what} within {seconds:g} s (CAP.TO is {self.cap.timeout_seconds:g} s, "
                    f"state '{where}')",
                    state=where,
                    device=self._device,
                    mend="reset the function or power-cycle the device",
                )
            self._sleep(pause)
            pause = min(pause * 2, 0.01)

    def _check_present(self, where: str) -> None:
        """Whether a wait was in vain because nobody is there: QEMU's empty slots read zeroes."""
        try:
            self._registers.check_present(where)
        except DeviceGoneError:
            self.enter(State.GONE)
            raise
        except UdrvError:
            pass  # no configuration space, or no answer: the caller has an error to tell

    def _fatal(self, what: str) -> NoReturn:
        where = self.state.value
        if State.FAILED in TRANSITIONS[self.state]:
            self.enter(State.FAILED)
        raise ControllerFatalError(
            what,
            state=where,
            device=self._device,
            mend="reset it (Controller.reset), or close it and open it again",
        )

    def registers(self) -> dict[str, int]:
        """Those that say how it stands, by name; for records of what went wrong."""
        read32, read64 = self._registers.read32, self._registers.read64
        return {
            "CAP": read64(Offset.CAP), "VS": read32(Offset.VS), "CC": read32(Offset.CC),
            "CSTS": read32(Offset.CSTS), "AQA": read32(Offset.AQA), "ASQ": read64(Offset.ASQ),
            "ACQ": read64(Offset.ACQ),
        }  # fmt: skip

    def _gone(self, what: str) -> NoReturn:
        self._registers.check_alive(self.state.value)
        raise DeviceGoneError(
            what, state=self.state.value, device=self._device,
            mend="the device does not answer: rescan the bus or power-cycle it",
        )  # fmt: skip
