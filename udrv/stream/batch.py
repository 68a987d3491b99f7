# SPDX-License-Identifier: Apache-2.0
"""Records as numpy columns: views of the ring's memory, or copies.

A view keeps its chunk from being reused, through the object that it is a view of; when the last one
goes, the driver may write there again. `Batch.release` says whether that is so.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from udrv.core import ffi, lib
from udrv.errors import ClosedError, MissingToolError, ViewsAliveError

#: Version of the columns; in the metadata of Arrow data under "udrv.record".
RECORD_VERSION: Final = int(lib.UDRV_RECORD_VERSION)
#: Columns of a record, in the order of a recording.
COLUMNS: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType({
    "submit_ns": np.dtype(np.uint64), "slba": np.dtype(np.uint64), "latency": np.dtype(np.uint32),
    "nlb": np.dtype(np.uint16), "depth": np.dtype(np.uint16), "qid": np.dtype(np.uint16),
    "status": np.dtype(np.uint16), "opcode": np.dtype(np.uint8), "flags": np.dtype(np.uint8),
    "ns_index": np.dtype(np.uint16),
})  # fmt: skip
_OFFSETS = {name: int(ffi.offsetof("struct udrv_chunk", name)) for name in COLUMNS}

SATURATED: Final = int(lib.UDRV_RECORD_SATURATED)
HOST_LATE: Final = int(lib.UDRV_RECORD_HOST_LATE)
SLEPT: Final = int(lib.UDRV_RECORD_SLEPT)
LATE: Final = int(lib.UDRV_RECORD_LATE)
REJECTED: Final = int(lib.UDRV_RECORD_REJECTED)
HOST_ENDED: Final = int(lib.UDRV_RECORD_HOST_ENDED)

Column = npt.NDArray[Any]


class Holder(Protocol):
    """Who is told when the last view of a chunk is gone."""

    def give_back(self, area: int, chunk: int) -> None:
        """One hold fewer; called from finalisers, in any thread."""


class Hold:
    """A claim on a chunk: the base of all views of it."""

    __slots__ = ("__weakref__", "_area", "_chunk", "_holder", "address")

    def __init__(self, holder: Holder, area: int, chunk: int, address: int) -> None:
        self._holder = holder
        self._area = area
        self._chunk = chunk
        self.address = address

    def __del__(self) -> None:
        self._holder.give_back(self._area, self._chunk)


class _Cells:
    """What numpy makes an array of; the array's base, and so the hold's life."""

    __slots__ = ("__array_interface__", "_hold")

    def __init__(self, hold: Hold, address: int, rows: int, dtype: np.dtype[Any]) -> None:
        self._hold = hold
        self.__array_interface__ = {
            "version": 3, "shape": (rows,), "typestr": dtype.str, "data": (address, True),
        }  # fmt: skip


class Batch:
    """Records of one queue, the oldest first. All columns are read-only.

    `Stream` and `Reader` make them: then the columns are views of the ring. `copy` makes one that
    keeps its data.

    Attributes
    ----------
    device: the target.     qid: of the queue.
    base, stride: row i is completion number `base + i * stride` that was consumed on that queue.
    """

    __slots__ = ("__weakref__", "_columns", "_first", "_hold", "_rows", "base", "device", "qid",
                 "stride")  # fmt: skip

    def __init__(  # noqa: PLR0917 - made for each chunk: keywords cost a third more
        self, device: str, qid: int, base: int, stride: int, rows: int, hold: Hold | None = None,
        first: int = 0, columns: Mapping[str, Column] | None = None,
    ) -> None:
        self.device = device
        self.qid = qid
        self.base = base
        self.stride = stride
        self._rows = rows
        self._hold = hold
        self._first = first
        self._columns = columns

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"<Batch of {self.device}, queue {self.qid}: {self._rows} records from {self.base}>"

    def column(self, name: str) -> Column:
        """One of `COLUMNS`. Raises `ClosedError` after `release`, `KeyError` for another name."""
        dtype = COLUMNS[name]
        if self._columns is not None:
            return self._columns[name]
        hold = self._live()
        at = hold.address + _OFFSETS[name] + self._first * dtype.itemsize
        return np.asarray(_Cells(hold, at, self._rows, dtype))

    def _live(self) -> Hold:
        if self._hold is None:
            raise ClosedError(
                "the batch was released", device=self.device, mend="copy() what you keep"
            )
        return self._hold

    @property
    def submit_ns(self) -> Column:
        """CLOCK_MONOTONIC of the doorbell, nanoseconds."""
        return self.column("submit_ns")

    @property
    def slba(self) -> Column:
        """First block."""
        return self.column("slba")

    @property
    def latency(self) -> Column:
        """From the doorbell to the look that found the completion, in units of 16 ns."""
        return self.column("latency")

    @property
    def latency_ns(self) -> Column:
        """The same in nanoseconds: no view but an array of its own, as the unit is another."""
        latency = self.latency.astype(np.uint64) << np.uint64(4)
        latency.flags.writeable = False
        return latency

    @property
    def nlb(self) -> Column:
        """Blocks, 65535 for more; 0 for commands that are no read or write."""
        return self.column("nlb")

    @property
    def depth(self) -> Column:
        """Commands in flight on the queue after the doorbell, this one included."""
        return self.column("depth")

    @property
    def status(self) -> Column:
        """SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14; 0 is success."""
        return self.column("status")

    @property
    def opcode(self) -> Column:
        """Of the command."""
        return self.column("opcode")

    @property
    def flags(self) -> Column:
        """`SATURATED`, `HOST_LATE`, `SLEPT`, `LATE`, `REJECTED`, `HOST_ENDED`."""
        return self.column("flags")

    @property
    def ns_index(self) -> Column:
        """Index of the namespace in `Reader.namespaces`; 65535 for one that is not there."""
        return self.column("ns_index")

    @property
    def seq(self) -> Column:
        """Number of each completion on its queue; a gap is what was sampled out or dropped."""
        seq = np.arange(self._rows, dtype=np.uint64) * np.uint64(self.stride) + np.uint64(self.base)
        seq.flags.writeable = False
        return seq

    @property
    def columns(self) -> dict[str, Column]:
        """All of `COLUMNS`, by name."""
        return {name: self.column(name) for name in COLUMNS}

    def copy(self) -> Batch:
        """The same records in memory of their own."""
        columns = {name: column.copy() for name, column in self.columns.items()}
        for column in columns.values():
            column.flags.writeable = False
        return Batch(
            self.device, self.qid, self.base, self.stride, self._rows, columns=columns
        )

    def release(self) -> None:
        """Let the driver write here again; idempotent.

        Raises `ViewsAliveError` while a view of this batch (a column, a slice of one, Arrow data)
        exists anywhere; it can be called again later. Without a call it happens when the last view
        and the batch are gone.
        """
        if self._hold is None:
            return
        seen = weakref.ref(self._hold)
        hold, self._hold = self._hold, None
        del hold
        left = seen()
        if left is not None:
            self._hold = left
            raise ViewsAliveError(
                f"{self!r} has views that are in use", device=self.device,
                mend="drop them, or copy() what you keep",
            )

    def arrow(self) -> Any:
        """A `pyarrow.RecordBatch` over the same memory; it keeps it. Raises `MissingToolError`."""
        try:
            import pyarrow as pa
        except ImportError as error:
            raise MissingToolError(
                "Arrow data needs pyarrow", mend="pip install 'udrv[fleet]'"
            ) from error
        arrays = []
        for column in self.columns.values():
            address = column.__array_interface__["data"][0]
            buffer = pa.foreign_buffer(address, column.nbytes, base=column)
            kind = pa.from_numpy_dtype(column.dtype)
            arrays.append(pa.Array.from_buffers(kind, self._rows, [None, buffer]))
        about = {
            "udrv.record": str(RECORD_VERSION), "udrv.device": self.device,
            "udrv.base": str(self.base), "udrv.stride": str(self.stride),
        }  # fmt: skip
        schema = pa.schema(
            [(name, array.type) for name, array in zip(COLUMNS, arrays, strict=True)],
            metadata=about,
        )
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def __arrow_c_array__(self, requested_schema: object | None = None) -> Any:
        """The Arrow PyCapsule interface, over the same memory. Raises `MissingToolError`."""
        return self.arrow().__arrow_c_array__(requested_schema)
