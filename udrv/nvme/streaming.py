# SPDX-License-Identifier: Apache-2.0
"""Which queues of a controller tell its stream of their completions: all, once it is on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from udrv.errors import InvalidRequestError
from udrv.nvme.backend import Pair
from udrv.stream import Stream, StreamNamespace

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace
    from udrv.nvme.queue import Queue


class StreamingOwner(Protocol):
    """What it needs of the controller."""

    target: str
    transport: str
    max_queues: int

    @property
    def queues(self) -> Sequence[Queue]:
        """I/O queues that there are."""

    @property
    def namespaces(self) -> Mapping[int, Namespace]:
        """All active namespaces by NSID."""


class Streaming:
    """The stream of one controller, off at first. `lock` orders queues that come and go."""

    def __init__(self, owner: StreamingOwner, lock: threading.RLock) -> None:
        self._owner = owner
        self._lock = lock
        self._stream: Stream | None = None
        self._how: dict[str, Any] = {}

    def start(self, **how: Any) -> Stream:
        """The stream, switched on by the first call.

        Its parameters are those of `udrv.stream.Stream`: `records` (True), `period` of windows (1.0
        seconds), `chunks` (16), `cells` (64), `sample` (1). All queues tell it, those to come too,
        but for queues with `timestamps=False`. Closing it switches it off.

        Raises `InvalidRequestError` for parameters that cannot be, or differ from those that it was
        switched on with; `QueueBusyError` while a C loop runs on a queue; `DmaMemoryError`.
        """
        owner, device = self._owner, self._owner.target
        with self._lock:
            if self._stream is not None:
                if how and how != self._how:
                    raise InvalidRequestError(
                        f"the stream is on already, with {self._how or 'defaults'}",
                        device=device, mend="close it first, or ask for it without parameters",
                    )
                return self._stream
            try:
                stream = Stream(
                    device, queues=owner.max_queues, on_close=self._closed,
                    namespaces=[
                        StreamNamespace(ns.nsid, ns.nsze, ns.lba_size.bit_length() - 1)
                        for ns in owner.namespaces.values()
                    ],
                    # the kernel's queues are everybody's
                    depth_exact=owner.transport.startswith("vfio"), **how,
                )  # fmt: skip
            except TypeError as error:
                raise InvalidRequestError(
                    f"a stream: {error}", device=device,
                    mend="records=, period=, chunks=, cells=, sample=",
                ) from error
            try:
                for queue in owner.queues:
                    if queue.pair.timed:
                        stream.hang(queue.pair)
            except BaseException:
                stream.close()
                raise
            self._stream, self._how = stream, how
            return stream

    def _closed(self, stream: Stream) -> None:
        with self._lock:
            if self._stream is stream:
                self._stream = None

    def hang(self, pair: Pair) -> None:
        """A new queue; one without timestamps has nothing to tell."""
        if self._stream is not None and pair.timed:
            self._stream.hang(pair)

    def drop(self, pair: Pair) -> None:
        """A queue that is closed, before its memory goes."""
        if self._stream is not None:
            self._stream.drop(pair)

    def stop(self) -> None:
        """The controller is closed: nothing more is told. What there is can be read still."""
        if self._stream is not None:
            self._stream.stop()
