# SPDX-License-Identifier: Apache-2.0
"""A controller that the kernel's NVMe driver drives: commands by io_uring, admin by ioctl.

| target | transport | I/O |
| --- | --- | --- |
| `/dev/ng0n1` | io_uring-cmd | passthrough to one namespace |
| `/dev/nvme0` | io_uring-cmd | passthrough to each of its namespaces, by their `ngXnY` |
| `/dev/nvme0n1` | io_uring-block | reads, writes and fsyncs of the block device |

The controller is the kernel's: nothing here shuts it down, resets it or deletes its queues, and
`close` leaves it as it was.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from udrv.errors import (
    ClosedError,
    DeviceGoneError,
    DeviceInUseError,
    DeviceNotFoundError,
    InvalidRequestError,
    PermissionDeniedError,
    TargetError,
    UdrvError,
    UnsupportedOnTransport,
)
from udrv.fork import ForkGuard
from udrv.memory import DmaMemory, Ledger
from udrv.nvme import nodes
from udrv.nvme.admin import AdminResult, active_nsids
from udrv.nvme.backend import Backend, Pair, Step
from udrv.nvme.kernel_admin import admin_command
from udrv.nvme.kernel_facts import BlockFacts, synthesised_controller, synthesised_namespace
from udrv.nvme.lifecycle import State
from udrv.nvme.nodes import KernelNode
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import (
    IDENTIFY_SIZE,
    IdentifyNamespace,
    decode_id_ctrl,
    decode_id_ns,
)
from udrv.nvme.spec.opcodes import Cns
from udrv.nvme.spec.registers import Vs
from udrv.nvme.uring_pair import MAX_ENTRIES, MAX_FILES, UringPair
from udrv.pci import HOST, Host, claims

_STATES_GONE = frozenset({"dead", "deleting", "deleting (no IO)"})
#: One command of the block layer's: it splits what is larger than the device takes.
_BLOCK_MAX_TRANSFER = 1 << 20
_PAGE = 4096


class ProcessMapper:
    """Memory of this process: the kernel finds its pages by address, nothing needs a map.

    The IOVAs that `DmaMemory` hands out mean nothing here; commands carry plain addresses.
    """

    iova_ranges = ((1 << 21, (1 << 47) - 1),)
    page_size = _PAGE

    def __init__(self) -> None:
        self.pairs: list[UringPair] = []
        self._addresses: dict[int, int] = {}

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        """Remember where the pool is."""
        self._addresses[iova] = address

    def dma_unmap(self, *, iova: int, size: int) -> None:
        """Take the pool out of every ring's table."""
        address = self._addresses.pop(iova, None)
        if address is not None:
            for pair in list(self.pairs):
                pair.forget_memory(address)


@dataclass(slots=True)
class _File:
    """An open namespace."""

    index: int
    node: KernelNode
    block: KernelNode | None
    fd: int
    #: Opened for writing.
    read_write: bool
    #: Nothing was found that uses the namespace, and `claim` keeps it so.
    checked: bool = False
    claim: int = -1


class KernelBackend(Backend):
    """See the module. Made by `open_kernel`."""

    sleeps_without_eventfd = True

    def __init__(
        self, target: str, node: KernelNode, *, iopoll: bool = False, ledger: Ledger | None = None,
        host: Host = HOST,
    ) -> None:
        self.target = target
        self.block = node.kind == "block"
        self.transport = "io_uring-block" if self.block else "io_uring-cmd"
        self.iopoll = iopoll
        self._host = host
        self._node = node
        self._lock = threading.RLock()
        self._guard = ForkGuard()
        self._files: dict[int, _File] = {}
        self._interrupts = True
        self._ready = False
        self._fd = -1
        self._nsid: int | None = None
        self._align_mask = 3
        self._controller: Path | None = next(iter(nodes.controllers_of(node.parent)), None)
        self._mapper = ProcessMapper()
        self.memory = DmaMemory(
            self._mapper, ledger=ledger, device=target, numa_node=self._numa_node()
        )

    def _numa_node(self) -> int | None:
        text = self._attribute("numa_node") or self._attribute("device/numa_node")
        return int(text) if text and text.isdigit() else None

    def _attribute(self, name: str) -> str | None:
        return self._host.read(self._controller / name) if self._controller else None

    # --- up ---------------------------------------------------------------------------------

    def start(self, queues: int, interrupts: bool) -> None:
        self._interrupts = interrupts
        if self._node.kind == "controller":
            self._fd = nodes.open_node(self._node.path, os.O_RDONLY, target=self.target)
        else:
            first = self._open_first()
            self._fd = first.fd
        self._learn()
        self.max_queues = queues
        self.max_queue_entries = MAX_ENTRIES
        self._ready = True
        # now, and not at the first read: what keeps io_uring from working here
        self.make_pair(0, 2, False).free()

    def _open_first(self) -> _File:
        """The only namespace of a target that is one."""
        node = self._node
        fd, read_write = self._open(node)
        try:
            nsid = self._nsid_of(fd)
        except BaseException:
            os.close(fd)
            raise
        self._nsid = nsid
        block = node if self.block else nodes.sibling(node, "block", host=self._host)
        self._files[nsid] = _File(0, node, block, fd, read_write)
        return self._files[nsid]

    def _nsid_of(self, fd: int) -> int:
        try:
            return nodes.read_nsid(fd)
        except OSError as error:
            raise TargetError(
                f"{self._node.path} does not tell its namespace id ({error.strerror})",
                device=self.target, mend="it is no NVMe namespace",
            ) from None

    def _open(self, node: KernelNode) -> tuple[int, bool]:
        """(descriptor, whether it may write)."""
        hint = None
        if node.kind == "generic":
            block = nodes.sibling(node, "block", host=self._host)
            if block is not None and os.access(block.path, os.R_OK):
                hint = f"{block.path} can be opened: udrv.open({str(block.path)!r}) would work"
            try:  # without O_EXCL there is no harm in it, whatever is done with it later
                return os.open(node.path, os.O_RDWR | os.O_CLOEXEC), True
            except OSError:
                pass
        flags = os.O_RDONLY | (os.O_DIRECT if node.kind == "block" else 0)
        return nodes.open_node(node.path, flags, target=self.target, hint=hint), False

    def _learn(self) -> None:
        """Identify Controller and the limits."""
        try:
            data = self.admin(command.identify(Cns.CONTROLLER), read=IDENTIFY_SIZE).data
            self.identify = decode_id_ctrl(data)
        except (PermissionDeniedError, UnsupportedOnTransport):
            if not self.block:
                raise
            self.identify = synthesised_controller(self._controller, self._host)
            self.identify_synthesised = True
        facts = [BlockFacts.read(node.directory, self._host) for node in self._blocks()]
        if self.iopoll and not (facts and all(one.io_poll for one in facts)):
            raise UnsupportedOnTransport(
                "the device has no poll queues, which IOPOLL needs", device=self.target,
                mend="load the driver with nvme.poll_queues=N (a module parameter or on the "
                "kernel's command line), or open it without iopoll=1",
            )
        if self.block:
            self.max_transfer = _BLOCK_MAX_TRANSFER
            self._align_mask = max([3, *(one.dma_alignment for one in facts)])
            return
        mdts = self.identify.mdts
        limits = [_PAGE << mdts] if 0 < mdts < 20 else []
        limits += [one.max_transfer for one in facts]
        self.max_transfer = max(min([_BLOCK_MAX_TRANSFER * 2, *limits]), _PAGE)

    def _blocks(self) -> list[KernelNode]:
        """The block nodes of the namespaces that the target stands for, as far as there are any."""
        if self._nsid is not None:
            block = self._files[self._nsid].block
            return [block] if block is not None else []
        return [
            node for parent in nodes.parents_of(self._node.directory, host=self._host)
            for node in nodes.namespaces_below(parent, "block", host=self._host)
        ]

    # --- what it is -------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return State.READY if self._ready else State.NEW

    @property
    def version(self) -> str:
        return str(Vs.unpack(self.identify.ver)) if self.identify.ver else "unknown"

    @property
    def interrupt_vectors(self) -> int:
        return 1 + self.max_queues if self._interrupts else 0

    def require_ready(self) -> None:
        if not self._ready:
            raise ClosedError("the controller is closed", device=self.target, mend="open it again")

    def check_alive(self) -> None:
        """Raise `DeviceGoneError` if the kernel gave the controller up, or it was removed."""
        self.require_ready()
        if self._controller is None:
            return
        state = self._attribute("state")
        if state is None or state in _STATES_GONE:
            raise DeviceGoneError(
                f"the kernel's controller {self._controller.name} is {state or 'gone'}",
                state=state, device=self.target,
                mend="look at the kernel's log (dmesg); rescan the bus or power-cycle the device",
            )

    # --- admin ------------------------------------------------------------------------------

    def admin(self, sqe: bytes, *, read: int = 0, write: bytes = b"", **kw: Any) -> AdminResult:
        return admin_command(
            self._fd, sqe, device=self.target, path=str(self._node.path), read=read, write=write,
            **kw,
        )

    def namespace_ids(self) -> tuple[int, ...]:
        if self._nsid is not None:
            return (self._nsid,)
        return active_nsids(self.admin, self.target)

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        try:
            data = self.admin(command.identify(Cns.NAMESPACE, nsid=nsid), read=IDENTIFY_SIZE).data
        except (PermissionDeniedError, UnsupportedOnTransport):
            if not self.block:
                raise
            self.identify_synthesised = True
            return synthesised_namespace(self._files[nsid].fd, self._node.directory, self._host)
        return decode_id_ns(data)

    # --- namespaces -------------------------------------------------------------------------

    def file_of(self, nsid: int) -> tuple[int, int, bool]:
        """(index in file tables, descriptor, whether writing was allowed)."""
        with self._lock:
            file = self._file(nsid)
            return file.index, file.fd, file.checked

    def _file(self, nsid: int) -> _File:
        self.require_ready()
        if nsid in self._files:
            return self._files[nsid]
        if self._nsid is not None:
            raise InvalidRequestError(
                f"{self.target} is namespace {self._nsid}, not {nsid}", device=self.target,
                mend="open the controller's node (/dev/nvme0) for all of its namespaces",
            )
        index = len(self._files)
        if index >= MAX_FILES:
            raise InvalidRequestError(
                f"more than {MAX_FILES} namespaces of one controller", device=self.target
            )
        for parent in nodes.parents_of(self._node.directory, host=self._host):
            for node in nodes.namespaces_below(parent, "generic", host=self._host):
                fd, read_write = self._open(node)
                if nodes.read_nsid(fd) == nsid:
                    block = nodes.sibling(node, "block", host=self._host)
                    self._files[nsid] = _File(index, node, block, fd, read_write)
                    return self._files[nsid]
                os.close(fd)
        raise DeviceNotFoundError(
            f"namespace {nsid} has no node for passthrough (ngXnY)", device=self.target,
            mend="it needs Linux 5.13 or newer; a namespace that was just attached shows up "
            "after a rescan (nvme ns-rescan)",
        )

    def prepare_write(self, nsid: int) -> None:
        """Make sure that nothing uses the namespace, and keep it so until `close`.

        Raises `DeviceInUseError` where it is mounted, held or claimed, `PermissionDeniedError`
        where its node can only be read.
        """
        with self._lock:
            file = self._file(nsid)
            if file.checked:
                return
            if not file.read_write and not self.block:  # says why not, or it is permitted by now
                self._replace(file, nodes.open_node(
                    file.node.path, os.O_RDWR, target=self.target
                ))  # fmt: skip
            if file.block is not None:
                self._claim(file, file.block)
            file.checked = True

    def _claim(self, file: _File, block: KernelNode) -> None:
        reasons = claims(block.directory.name, host=self._host)
        if reasons:
            raise DeviceInUseError(
                f"writing to {block.path} would destroy what uses it: "
                + "; ".join(reason.text for reason in reasons),
                reasons=[reason.text for reason in reasons], device=self.target,
                mend=reasons[0].mend,
            )
        flags = os.O_EXCL | (os.O_RDWR | os.O_DIRECT if self.block else os.O_RDONLY)
        try:
            fd = nodes.open_node(block.path, flags, target=self.target)
        except PermissionDeniedError:
            if self.block:
                raise
            return  # passthrough is permitted and the block node is not: sysfs had to do
        except UdrvError as error:
            raise DeviceInUseError(
                f"{block.path} is claimed by somebody ({error.tried})", device=self.target,
                reasons=[error.tried], mend="end what uses it",
            ) from None
        if not self.block:
            file.claim = fd  # nobody mounts it while we write
            return
        self._replace(file, fd)

    def _replace(self, file: _File, fd: int) -> None:
        """From now on the namespace is reached by `fd`, which is open for writing."""
        old, file.fd = file.fd, fd
        file.read_write = True
        for pair in list(self._mapper.pairs):
            pair.refresh_file(file.index, fd)
        if self._fd == old:
            self._fd = fd
        os.close(old)

    # --- queues -----------------------------------------------------------------------------

    def make_pair(
        self, qid: int, entries: int, interrupt: bool, *, one_thread: bool = False,
        timestamps: bool = True,
    ) -> Pair:
        pair = UringPair(
            self, qid=qid, entries=entries, interrupt=interrupt, one_thread=one_thread,
            block=self.block, iopoll=self.iopoll, max_transfer=self.max_transfer,
            align_mask=self._align_mask,
        )
        self._mapper.pairs.append(pair)
        return pair

    def drop_pair(self, pair: UringPair) -> None:
        """No more memory or files to be taken from it."""
        if pair in self._mapper.pairs:
            self._mapper.pairs.remove(pair)

    def attach(self, pair: Pair) -> None:
        """Nothing to do: the device knows of the kernel's queues only."""

    @property
    def detaches(self) -> bool:
        return True

    def detach(self, pair: Pair) -> None:
        cast(UringPair, pair).drain()

    # --- down -------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The kernel's business."""

    def reset(self) -> None:
        """Likewise."""

    def isolate(self) -> None:
        """Likewise."""

    def drain(self) -> None:
        """No queue of its own."""

    def cut_steps(self) -> Sequence[Step]:
        return ()

    def close_steps(self) -> Sequence[Step]:
        return (self.memory.close, self._close_files)

    def __del__(self) -> None:
        # nobody closed it: give the descriptors back, and with them the claim on a block device
        if sys is None or sys.is_finalizing() or not getattr(self, "_ready", False):
            return
        if not self._guard.forked:
            warnings.warn(f"{self.target} was not closed", ResourceWarning, stacklevel=2)
            self._close_files()

    def _close_files(self) -> None:
        with self._lock:
            self._ready = False
            descriptors = {self._fd}
            for file in self._files.values():
                descriptors |= {file.fd, file.claim}
            self._files.clear()
            self._fd = -1
            for fd in descriptors - {-1}:
                os.close(fd)


def open_kernel(target: str, *, ledger: Ledger | None = None, host: Host = HOST) -> KernelBackend:
    """The backend of a target below /dev, with options behind a question mark.

    `iopoll=1`: poll the device in the kernel instead of waiting for its interrupt; it must have
    poll queues. Raises `TargetError`, `DeviceNotFoundError`, `UnsupportedOnTransport`.
    """
    path, _, query = target.partition("?")
    iopoll = False
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name != "iopoll" or value not in ("0", "1"):
            raise TargetError(f"{target!r}: no option {option!r}", mend="there is iopoll=1 only")
        iopoll = value == "1"
    return KernelBackend(
        target, nodes.resolve(path, host=host), iopoll=iopoll, ledger=ledger, host=host
    )
