"""The state machine of a controller's life: every wait ends, and says how."""

from __future__ import annotations

import pytest
from fake_device import SIZE, FakeDevice
from hypothesis import given
from hypothesis import strategies as st

from udrv import errors
from udrv.nvme import Controller, State
from udrv.nvme.lifecycle import TRANSITIONS, Lifecycle
from udrv.nvme.registers import Registers
from udrv.nvme.spec.registers import Cap, Cc
from udrv.vfio.device import CONFIG


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps = 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.sleeps += 1


def lifecycle(device: FakeDevice) -> tuple[Lifecycle, Clock]:
    clock = Clock()
    life = Lifecycle(Registers(device), device.name, sleep=clock.sleep, clock=clock)
    return life, clock


def up(life: Lifecycle) -> None:
    life.disable()
    life.enable(entries=32, sq_iova=0x1000, cq_iova=0x2000)


def test_from_reset_to_ready_and_back() -> None:
    device = FakeDevice(delay=3)
    life, _ = lifecycle(device)
    up(life)
    assert life.state is State.WAIT_READY
    cc = Cc.unpack(device.cc)
    assert (cc.en, cc.iosqes, cc.iocqes, cc.mps, cc.css) == (1, 6, 4, 0, 0)
    life.enter(State.IDENTIFY)
    life.enter(State.QUEUES)
    life.enter(State.READY)
    life.shutdown()
    assert not Cc.unpack(device.cc).en
    assert device.log == ["enable", "disable"]


def test_a_controller_left_running_is_disabled_first() -> None:
    device = FakeDevice(delay=2)
    device.cc, device.ready = Cc(en=1).pack(), 1
    life, _ = lifecycle(device)
    up(life)
    assert device.log == ["disable", "enable"]


def test_an_enable_under_way_is_awaited_before_it_is_undone() -> None:
    device = FakeDevice(delay=5)
    device.cc, device.ready, device.countdown = Cc(en=1).pack(), 0, 5
    life, _ = lifecycle(device)
    life.disable()
    assert device.log == ["disable"]
    assert device.ready == 0


@pytest.mark.parametrize("fatal", [True, False])
def test_an_enable_that_failed_is_undone(fatal: bool) -> None:
    """What an owner that crashed left behind: EN = 1 and never ready. Only EN = 0 mends it."""
    device = FakeDevice(cap=Cap(mqes=63, cqr=1, to=2, css=1), delay=None)
    device.cc, device.ready, device.fatal = Cc(en=1).pack(), 0, fatal
    life, clock = lifecycle(device)
    life.disable()
    assert device.log == ["disable"]
    assert life.state is State.WAIT_DISABLED
    assert clock.now < 0.1 if fatal else 1 <= clock.now <= 3.1


@given(to=st.integers(0, 255))
def test_never_ready_ends_after_cap_to(to: int) -> None:
    device = FakeDevice(cap=Cap(mqes=63, cqr=1, to=to, css=1), delay=None)
    life, clock = lifecycle(device)
    life.disable()
    with pytest.raises(errors.ControllerTimeoutError, match=r"CSTS\.RDY = 1") as caught:
        life.enable(entries=32, sq_iova=0x1000, cq_iova=0x2000)
    assert caught.value.state == State.WAIT_READY.value
    assert life.state is State.FAILED
    assert to * 0.5 <= clock.now <= to * 0.5 + 2.1
    assert isinstance(caught.value, TimeoutError)


def test_never_disabled_ends_too() -> None:
    device = FakeDevice(delay=None)
    device.cc, device.ready = Cc(en=1).pack(), 1
    life, _ = lifecycle(device)
    with pytest.raises(errors.ControllerTimeoutError, match=r"CSTS\.RDY = 0"):
        life.disable()


def test_fatal_status_while_waiting() -> None:
    device = FakeDevice(delay=None)
    life, clock = lifecycle(device)
    life.disable()
    device.fatal = True
    with pytest.raises(errors.ControllerFatalError, match=r"CSTS\.CFS") as caught:
        life.enable(entries=32, sq_iova=0x1000, cq_iova=0x2000)
    assert caught.value.state == State.WAIT_READY.value
    assert clock.now < 0.1


def test_a_fatal_controller_can_still_be_disabled() -> None:
    device = FakeDevice()
    life, _ = lifecycle(device)
    up(life)
    device.fatal = True
    with pytest.raises(errors.ControllerFatalError):
        life.check_alive()
    life.stop()
    assert device.log[-1] == "disable"


def test_gone_before_it_was_looked_at() -> None:
    device = FakeDevice()
    device.gone = True
    with pytest.raises(errors.DeviceGoneError, match="all ones"):
        lifecycle(device)


@pytest.mark.parametrize("moment", ["disable", "enable", "shutdown", "check"])
def test_gone_at_any_moment(moment: str) -> None:
    device = FakeDevice()
    life, _ = lifecycle(device)
    if moment == "disable":
        device.gone = True
        with pytest.raises(errors.DeviceGoneError):
            life.disable()
    else:
        life.disable()
        if moment == "enable":
            device.gone = True
            with pytest.raises(errors.DeviceGoneError):
                life.enable(entries=32, sq_iova=0x1000, cq_iova=0x2000)
        else:
            life.enable(entries=32, sq_iova=0x1000, cq_iova=0x2000)
            device.gone = True
            with pytest.raises(errors.DeviceGoneError, match="configuration space"):
                life.shutdown() if moment == "shutdown" else life.check_alive()
    assert life.state is State.GONE


def test_all_ones_in_csts_alone_prove_nothing() -> None:
    """Configuration space answers: the device is there, and one odd read is forgiven."""
    device = FakeDevice(delay=2)
    life, _ = lifecycle(device)
    device.csts_lies = 2
    up(life)
    device.csts_lies = 1
    life.check_alive()
    device.csts_lies = 1000
    with pytest.raises(errors.ControllerFatalError, match="configuration space answers"):
        life.check_alive()


@pytest.mark.parametrize(("rtd3e_us", "limit"), [(0, 10), (30_000_000, 30), (2**32 - 1, 60)])
def test_a_shutdown_that_hangs_ends(rtd3e_us: int, limit: int) -> None:
    device = FakeDevice()
    device.shutdown_hangs = True
    life, clock = lifecycle(device)
    up(life)
    with pytest.raises(errors.ControllerTimeoutError, match="shutdown"):
        life.shutdown(rtd3e_us=rtd3e_us)
    assert limit <= clock.now <= limit + 1


class Pulled(FakeDevice):
    """Its slot reads zeroes, as QEMU's do, and configuration space all ones."""

    pulled = False

    def read(self, index: int, offset: int, size: int) -> bytes:
        if not self.pulled:
            return super().read(index, offset, size)
        return (b"\xff" if index == CONFIG else b"\0") * size


def test_a_wait_for_a_device_that_was_pulled_says_so() -> None:
    device = Pulled()
    life, _ = lifecycle(device)
    life.disable()
    device.pulled = True
    with pytest.raises(errors.DeviceGoneError, match="configuration space reads all ones"):
        life.enable(entries=64, sq_iova=0, cq_iova=0)
    assert life.state is State.GONE


@pytest.mark.parametrize(
    ("cap", "what"),
    [(Cap(mqes=63, css=0x80), "NVM command set"), (Cap(mqes=63, css=1, mpsmin=1), "page")],
)
def test_controllers_that_this_driver_cannot_drive(cap: Cap, what: str) -> None:
    with pytest.raises(errors.UnsupportedOnTransport, match=what):
        lifecycle(FakeDevice(cap=cap))


@given(dstrd=st.integers(0, 15), queues=st.integers(1, 65535))
def test_doorbells_stand_where_the_stride_puts_them_and_within_the_bar(
    dstrd: int, queues: int
) -> None:
    """Base over PCIe 3.1.2.1: SQ y at 1000h + 2y strides, CQ y one stride further."""
    registers = Registers(FakeDevice())
    stride = 4 << dstrd
    registers.map_doorbells(queues, stride=stride)
    room = SIZE - 0x1000
    assert registers.last_qid == min(queues, room // (2 * stride) - 1)
    if registers.last_qid < 0:
        with pytest.raises(errors.UnsupportedOnTransport):
            registers.doorbells(0)
        return
    base, _ = registers.doorbells(0)
    last = registers.last_qid
    assert registers.doorbells(last) == (base + 2 * last * stride, base + (2 * last + 1) * stride)
    with pytest.raises(errors.UnsupportedOnTransport):
        registers.doorbells(room // (2 * stride))


@given(path=st.lists(st.sampled_from(list(State)), max_size=12))
def test_only_the_named_transitions(path: list[State]) -> None:
    life, _ = lifecycle(FakeDevice())
    for state in path:
        before = life.state
        if state is before or state in TRANSITIONS[before]:
            life.enter(state)
            assert life.state is state
        else:
            with pytest.raises(errors.ControllerStateError, match=before.value):
                life.enter(state)
            assert life.state is before


def test_every_state_can_end() -> None:
    for state, to in TRANSITIONS.items():
        assert state is State.CLOSED or State.CLOSED in to


# --- teardown of a controller that did not come up -----------------------------------------------


def test_failed_open_unmaps_before_it_closes() -> None:
    """Bus mastering goes off and memory is unmapped, in this order, and the device is closed."""
    device = FakeDevice(cap=Cap(mqes=63, cqr=1, to=0, css=1), delay=None)
    with pytest.raises(errors.ControllerTimeoutError):
        Controller(device)
    order = [device.log.index(step) for step in (
        "bus_master=True", "enable", "disable", "bus_master=False", "disable_irqs", "dma_unmap",
        "unmap_bar", "close",
    )]  # fmt: skip
    assert order == sorted(order)
    assert not device.mapper.mapped
    assert device.closed == 1


def hangs_when_disabled() -> FakeDevice:
    device = FakeDevice(cap=Cap(mqes=63, cqr=1, to=0, css=1), delay=None)
    device.cc, device.ready = Cc(en=1).pack(), 1
    return device


def test_a_controller_that_cannot_be_disabled_is_reset() -> None:
    device = hangs_when_disabled()
    with pytest.raises(errors.ControllerTimeoutError):
        Controller(device)
    assert device.log.index("reset") < device.log.index("bus_master=False")
    assert "bus_master=True" not in device.log
    assert device.closed == 1


def test_failed_open_and_failed_reset_still_close() -> None:
    device = hangs_when_disabled()
    device.reset_fails = True
    with pytest.raises(errors.UdrvError) as caught:
        Controller(device)
    chain: BaseException | None = caught.value
    seen = set()
    while chain is not None:
        seen.add(type(chain))
        chain = chain.__context__
    assert errors.ControllerTimeoutError in seen
    assert "bus_master=False" in device.log
    assert not device.mapper.mapped
    assert device.closed == 1


def test_a_gone_device_is_closed_without_another_word() -> None:
    device = FakeDevice()
    device.gone = True
    with pytest.raises(errors.DeviceGoneError):
        Controller(device)
    assert not device.mapper.mapped
    assert device.closed == 1


@pytest.mark.parametrize(("queues", "entries"), [(0, 16), (65536, 16), (1, 1), (1, 65536)])
def test_impossible_wishes_close_the_device(queues: int, entries: int) -> None:
    device = FakeDevice()
    with pytest.raises(errors.InvalidRequestError):
        Controller(device, queues=queues, entries=entries)
    assert device.closed == 1
