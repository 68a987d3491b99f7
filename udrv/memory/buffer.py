"""`Buffer`: a numpy array that a device can reach; `Region`: the same for a driver's own use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from udrv.errors import BufferInUseError, BufferTypeError, ClosedError
from udrv.memory.allocation import Allocation, Pin

if TYPE_CHECKING:
    from udrv.memory.pool import Pool

_NOT_DMA = "allocate it with ctrl.alloc(nbytes) and copy the data in: a bounce buffer"

_probe = np.zeros(1)[:]
#: What sys.getrefcount(array.base) says when the array is the only one with that base. Measured,
#: as interpreters differ in what they count.
_ALONE = sys.getrefcount(_probe.base)


def _allocation_of(obj: object) -> Allocation | None:
    """The allocation that an array's memory belongs to, by its chain of bases.

    By the bases and not by an attribute that views inherit: a copy, or the result of a ufunc, is
    made "like" the buffer, but owns other memory, and its chain says so.
    """
    while obj is not None:
        if isinstance(obj, Allocation):
            return obj
        if isinstance(obj, np.ndarray):
            obj = obj.base
        elif isinstance(obj, memoryview):
            obj = obj.obj
        else:
            return None
    return None


class Buffer(np.ndarray[Any, np.dtype[Any]]):
    """DMA memory as a numpy array: one dimension of bytes, as `DmaMemory.alloc` returns it.

    Slices, `.view(dtype)` and `.reshape` of it are Buffers as well, know their IOVA and keep the
    memory. A copy, a pickle or the result of arithmetic is ordinary memory: its `iova` raises
    `BufferTypeError`. `np.asarray`, `np.from_dlpack` and `memoryview` share the bytes and keep
    them too.

    The memory goes back to the heap when the last array over it is gone *and* no pin is held. After
    a fork the child still sees the bytes (they are shared memory), but no Buffer of the parent can
    be used for I/O there.
    """

    __slots__ = ("_place", "aimed")

    _place: tuple[Allocation, int]
    #: What a driver worked out for this very array, to be used again; views do not inherit it.
    aimed: tuple[Any, ...]

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        """Refuse: ordinary memory is no Buffer."""
        raise BufferTypeError("a Buffer cannot be constructed", mend="use ctrl.alloc(nbytes)")

    # --- where it is -----------------------------------------------------------------------------

    def _locate(self) -> tuple[Allocation, int]:
        """The allocation and the offset in its pool; remembered, as an array never moves."""
        try:
            return self._place
        except AttributeError:
            pass
        allocation = _allocation_of(self)
        if allocation is None:
            raise BufferTypeError(
                "this array is a copy or a result and lies in ordinary memory", mend=_NOT_DMA
            )
        address: int = self.__array_interface__["data"][0]
        self._place = (allocation, address - allocation.pool.address)
        return self._place

    @property
    def allocation(self) -> Allocation:
        """What it is a part of, for drivers; `BufferTypeError` for ordinary memory."""
        return self._locate()[0]

    @property
    def is_dma(self) -> bool:
        """True if it lies in DMA memory, whatever the state of that memory."""
        return _allocation_of(self) is not None

    @property
    def iova(self) -> int:
        """The device's address of the first element.

        Raises `BufferTypeError` for ordinary memory, `ClosedError` after `free` or after the
        controller was closed, `ForkedError` in a forked child.
        """
        allocation, offset = self._locate()
        allocation.check()
        return allocation.pool.iova + offset

    @property
    def pool(self) -> Pool:
        """The pool that it lies in; `BufferTypeError` for ordinary memory."""
        return self._locate()[0].pool

    @property
    def pool_offset(self) -> int:
        """Bytes from the start of the pool; `BufferTypeError` for ordinary memory."""
        return self._locate()[1]

    @property
    def address(self) -> int:
        """This process's address of the first element; `BufferTypeError` for ordinary memory."""
        allocation, offset = self._locate()
        return allocation.pool.address + offset

    @property
    def contiguous(self) -> bool:
        """True if the elements follow each other in C order: what a transfer needs."""
        return self.flags.c_contiguous

    # --- how long it lives -----------------------------------------------------------------------

    def pin(self) -> None:
        """Keep the memory although nothing in Python refers to it, until `unpin`; counted.

        For code that lets a device or C work on the memory. Errors as of `iova`.
        """
        self._locate()[0].pin()

    def unpin(self) -> None:
        """Undo one `pin`, of this or any other view; `InvalidRequestError` if there is none."""
        self._locate()[0].unpin()

    def pinned(self) -> Pin:
        """`pin` as an object: a context manager, or kept with the command and released with it."""
        return Pin(self._locate()[0])

    @property
    def pins(self) -> int:
        """How many pins are held on the memory that this is a view of."""
        return self._locate()[0].pins

    def free(self) -> None:
        """Give the memory up for I/O now, rather than when the last view dies. Idempotent.

        Raises `BufferInUseError`, and changes nothing, while it is pinned or while another Buffer
        over the same allocation is alive. After it, `iova` and `pin` raise `ClosedError`: no device
        writes here any more. The bytes themselves stay readable, and are handed out again only when
        no array shows them: an array cannot be revoked, and a pointer that `np.asarray`, torch or C
        took from it cannot be seen.
        """
        allocation = self._locate()[0]
        if allocation.pool.guard.forked:
            return
        # Every Buffer of an allocation has the same base (numpy follows bases of one type to the
        # last), so that base's reference count is the number of Buffers.
        if sys.getrefcount(self.base) > _ALONE and not allocation.freed:
            raise BufferInUseError(
                f"a buffer of {allocation.size} bytes was freed while other views of it are alive",
                device=allocation.pool.device,
                mend="drop the views first (del), or just drop them all: that frees it, too",
            )
        allocation.free()

    if TYPE_CHECKING:
        # numpy's annotations say that a slice of a subclass is a plain ndarray; it is a Buffer.
        def __getitem__(self, key: Any, /) -> Any: ...

    # --- what is not a Buffer any more -----------------------------------------------------------

    def __array_wrap__(
        self,
        array: npt.NDArray[Any],
        context: tuple[Any, ...] | None = None,
        return_scalar: bool = False,
    ) -> Any:
        """Results of arithmetic are ordinary arrays, unless `out=` (or +=) says where they go."""
        if isinstance(array, Buffer):
            return array
        return array[()] if array.ndim == 0 else array

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle the bytes as an ordinary array: an IOVA means nothing elsewhere."""
        return self.view(np.ndarray).__reduce_ex__(protocol)


def buffer_over(allocation: Allocation) -> Buffer:
    """All bytes of an allocation."""
    # The array in the middle is a Buffer so that numpy makes it the base of all later ones.
    return np.asarray(allocation).view(Buffer).view()


def as_buffer(
    obj: object, *, writable: bool, device: str | None, memory: object | None = None
) -> Buffer:
    """Check an argument for I/O.

    Parameters
    ----------
    obj: a `Buffer`, or any numpy array that shares the memory of one.
    writable: True if the device will write to it (a read command).
    device: the target's name, for messages.
    memory: the `DmaMemory` that it must come from: an IOVA of one device is nothing, or worse,
        something else, to another.

    Raises `BufferTypeError` for anything but writable (if asked), C-contiguous DMA memory of that
    device, `ClosedError` if it was freed or closed, `ForkedError` in a forked child.
    """

    def refuse(what: str, mend: str = _NOT_DMA) -> NoReturn:
        raise BufferTypeError(what, device=device, mend=mend)

    if not isinstance(obj, np.ndarray):
        refuse(f"a {type(obj).__name__} is no DMA memory")
    if obj.dtype.hasobject:
        refuse("an array of Python objects cannot be transferred", "use an array of plain numbers")
    allocation = _allocation_of(obj)
    if allocation is None:
        refuse("the array lies in ordinary memory, which the device cannot reach")
    if memory is not None and allocation.owner is not memory:
        refuse(f"the buffer belongs to another device, {allocation.pool.device}")
    allocation.check()
    if not obj.flags.c_contiguous:
        refuse(
            f"an array of shape {obj.shape} and strides {obj.strides} is not C-contiguous",
            "pass whole rows, or read into a contiguous buffer and copy from there",
        )
    if writable and not obj.flags.writeable:
        refuse("the array is read-only, and the device is to write to it", "pass a writable view")
    return obj if isinstance(obj, Buffer) else obj.view(Buffer)


class Region:
    """DMA memory for a driver's own structures: queues, PRP lists, data of admin commands.

    It belongs to the driver until `free`: dropping the object does not return the memory, because a
    device may still be working on a queue that Python has forgotten. `DmaMemory.close` returns
    all. Every attribute but `size` raises `ClosedError` after `free`.
    """

    __slots__ = ("_allocation", "_device", "_forget", "size")

    def __init__(self, allocation: Allocation, forget: Callable[[Allocation], None]) -> None:
        #: Bytes asked for.
        self.size = allocation.size
        self._allocation: Allocation | None = allocation
        self._device = allocation.pool.device
        self._forget = forget

    def _held(self) -> Allocation:
        if self._allocation is None:
            raise ClosedError(
                "the DMA region was freed", device=self._device, mend="allocate another one"
            )
        return self._allocation

    @property
    def pool(self) -> Pool:
        """The pool that it lies in."""
        return self._held().pool

    @property
    def pool_offset(self) -> int:
        """Bytes from the start of the pool."""
        return self._held().offset

    @property
    def address(self) -> int:
        """This process's address of the first byte; valid while this object holds the memory."""
        held = self._held()
        return held.pool.address + held.offset

    @property
    def iova(self) -> int:
        """The device's address of the first byte; `ClosedError` once closed, `ForkedError` too."""
        held = self._held()
        return held.pool.iova + held.offset

    def buffer(self) -> Buffer:
        """A numpy view of its bytes; it keeps them, as any Buffer does."""
        return buffer_over(self._held())

    def free(self) -> None:
        """The device is done with it. Idempotent; Buffers over it defer the return to their end."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            self._forget(allocation)
