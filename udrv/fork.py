"""Which process an object belongs to.

A device, its DMA memory and its queues belong to the process that opened them: the IOMMU maps, the
pinned pages and the doorbells are that process's. A forked child inherits copies of the Python
objects and must not use them. Every such object holds a `ForkGuard`, made when it is made:

- whatever would *use* the object calls `ForkGuard.check` first, which raises `ForkedError`;
- whatever only *releases* it (`close`, `free`, `__exit__`, finalisers) returns at once if `forked`:
  the parent's resources are not the child's to give back, and an error out of an `__exit__` would
  hide the exception that the child is ending with.

Ask the guard before taking a lock: another thread of the parent may have held it at the fork, and
in the child nobody is left to release it.
"""

from __future__ import annotations

import os

from udrv.errors import ForkedError

_generation = 0


def _in_child() -> None:
    global _generation
    _generation += 1


# A counter and not os.getpid(): no system call, and a pid can come again. A fork made by C code
# that then runs Python in the child calls PyOS_AfterFork_Child, and so this hook, too.
os.register_at_fork(after_in_child=_in_child)


def generation() -> int:
    """The number of forks between the first importer of this module and this process."""
    return _generation


class ForkGuard:
    """Remembers the process that it was made in."""

    __slots__ = ("_born",)

    def __init__(self) -> None:
        self._born = _generation

    @property
    def forked(self) -> bool:
        """True in a child of the process that made this guard."""
        return self._born != _generation

    def check(self, what: str, device: str | None) -> None:
        """Raise `ForkedError` in a forked child; `what` names the object ("DMA memory")."""
        if self._born != _generation:
            raise ForkedError(
                f"{what} of the parent process was used in a forked child",
                device=device,
                mend="open the device in the child, or fork before it is opened",
            )
