"""One chunk of a pool, how long it lives, and what holds it.

An `Allocation` is the base of every numpy array over its bytes, so Python's reference counts keep
it; when the last array dies, its finaliser puts the chunk on a list that the next `alloc` empties.
The finaliser takes no lock and calls nobody: it may run at any moment, in any thread, inside of the
allocator itself.

What Python cannot see holds an allocation by *pins*: a command in flight is memory that a device
writes to though no array is left. A pin that is never released keeps its memory; losing bytes is
better than a device that writes into somebody else's.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from udrv.errors import BufferInUseError, ClosedError, InvalidRequestError

if TYPE_CHECKING:
    from udrv.memory.pool import Pool

#: Everything pinned is reachable from here, even where the program dropped all else.
_PINNED: dict[int, Allocation] = {}


class Allocation:
    """`size` bytes of `pool` at `offset`. Made by `DmaMemory`.

    `owner` is kept alive by it: as long as memory is in use, so is what maps it. `freed`: after
    `free`. `uses`: an element for each call that is inside of C with a reference to an array of
    it; a pin without a lock. Whoever appends looks at `freed` after that, and `free` looks at
    `uses` after it has set `freed`, so that one of both sees the other.
    """

    __slots__ = (
        "__weakref__", "_pins", "_returns", "freed", "offset", "owner", "pool", "size", "uses",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool,
        offset: int,
        size: int,
        *,
        owner: object,
        returns: deque[tuple[int, int]],
    ) -> None:
        self.pool = pool
        self.offset = offset
        self.size = size
        self.owner = owner
        self._pins = 0
        self.freed = False
        self.uses: list[object] = []
        self._returns = returns

    def __del__(self) -> None:
        # deque.append is atomic. The pool's number and not the pool: an entry that nobody collects
        # any more (the memory was closed) must not keep the mapping.
        self._returns.append((self.pool.id, self.offset))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "typestr": "|u1",
            "shape": (self.size,),
            "data": (self.pool.address + self.offset, False),
        }

    @property
    def pins(self) -> int:
        """How many users outside of Python hold it now."""
        return self._pins + len(self.uses)

    def check(self) -> None:
        """Raise `ForkedError`, or `ClosedError` if freed or closed."""
        self.pool.check()
        if self.freed:
            raise ClosedError(
                "the buffer was freed", device=self.pool.device, mend="allocate another one"
            )

    def pin(self) -> None:
        """Count one more user; errors as of `check`."""
        self.check()
        with self.pool.pin_lock:
            self.check()
            self._pins += 1
            _PINNED[id(self)] = self

    def unpin(self) -> None:
        """Count one user less; `InvalidRequestError` if there is none. Nothing in a forked child.

        Allowed after `close`: then it gives back the host memory.
        """
        if self.pool.guard.forked:
            return
        with self.pool.pin_lock:
            if self._pins == 0:
                raise InvalidRequestError(
                    "unpin without a pin", device=self.pool.device, mend="unpin once for each pin"
                )
            self._pins -= 1
            if self._pins == 0:
                del _PINNED[id(self)]

    def free(self) -> None:
        """No new use from now on; `BufferInUseError` while pinned. Idempotent."""
        with self.pool.pin_lock:
            before, self.freed = self.freed, True
            if self._pins or self.uses:
                self.freed = before
                raise BufferInUseError(
                    f"a buffer of {self.size} bytes was freed while commands in flight use it",
                    device=self.pool.device,
                    mend="reap their completions first, or drop the buffer: it is then freed "
                    "when they complete",
                )


class Pin:
    """One user of a buffer outside of Python; a context manager. `release` is idempotent."""

    __slots__ = ("_allocation",)

    def __init__(self, allocation: Allocation) -> None:
        allocation.pin()
        self._allocation: Allocation | None = allocation

    def release(self) -> None:
        """The user is done. Without it the memory stays pinned, this object alive or not."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.unpin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()
