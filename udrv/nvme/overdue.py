# SPDX-License-Identifier: Apache-2.0
"""Commands that take too long: first an Abort, then a reset of the controller.

What is the host's fault must not be taken for the device's. A command counts only if two looks,
some time apart, find it in flight beyond its limit and its completion not in the ring: a program
that does not reap, or that was stopped for an hour and goes on, has no overdue commands. And a look
that comes much later than it should starts anew: whoever kept it off the CPU kept others off, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from udrv.errors import CommandTimeoutError, UdrvError
from udrv.nvme.pair import Overdue, QueuePair
from udrv.nvme.timeouts import Timeouts

#: Aborts sent in one look: most controllers take few at a time (ACL).
_MOST_ABORTS = 4


@dataclass(slots=True)
class _Step:
    """How far it has come with one command; times are of the clock, seconds."""

    seen: float
    aborted: float | None = None


class OverdueWatch:
    """Looks now and then (`look`), and does what has to be done.

    Parameters
    ----------
    pairs: the queue pairs in use, the admin queue's first.
    abort: sends Abort for (queue id, command id), of that generation, and waits for its completion;
        false if it cannot be sent now, as an admin command is running; `CommandTimeoutError` if
        there is none.
    reset: resets the controller, given the reason and the generation.
    generation: how many resets began. What a look found is void when one did.
    resetting: whether one is under way.
    """

    def __init__(
        self, timeouts: Timeouts, *, pairs: Callable[[], Sequence[QueuePair]],
        abort: Callable[[int, int, int], bool], reset: Callable[[str, int], object],
        generation: Callable[[], int] = lambda: 0, resetting: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._timeouts = timeouts
        self._limits = {admin: timeouts.table(admin=admin) for admin in (False, True)}
        self._pairs = pairs
        self._abort = abort
        self._reset = reset
        self._clock = clock
        self._generation = generation
        self._resetting = resetting
        self._seen = 0
        self._steps: dict[tuple[int, int, int], _Step] = {}
        self._still: dict[int, tuple[int, float]] = {}
        self._looked = clock()
        #: Seconds between two looks.
        self.period = min(1.0, max(0.02, timeouts.shortest / 4))
        #: Aborts sent, and how many the controller says it carried out.
        self.aborts = 0

    def forget(self) -> None:
        """Start anew: after a reset, no command is what it was."""
        self._steps.clear()
        self._still.clear()

    def look(self) -> None:
        """One look, and the next step for every command that needs one."""
        now = self._clock()
        if now - self._looked > 4 * self.period + 0.5:
            self.forget()
        self._looked = now
        seen = self._generation()
        if seen != self._seen:
            self._seen = seen
            self.forget()
        if self._resetting():
            return
        found = self._found(now)
        for key in [key for key in self._steps if key not in found]:
            del self._steps[key]
        aborts = 0
        for key, command in found.items():
            if self._generation() != seen:  # its id is another command's by now
                return
            step = self._steps.get(key)
            if step is None:
                self._steps[key] = _Step(now)
            elif key[0] == 0:
                self._give_up(f"admin command {command.opcode:#04x}", command)
                return
            elif step.aborted is None:
                if aborts == _MOST_ABORTS or command.cid < 0:
                    step.aborted = now
                    continue
                aborts += 1
                sent = self._try_abort(key[0], command)
                if sent is None:
                    return
                if sent:
                    step.aborted = self._clock()
            elif now - step.aborted >= self._timeouts.abort:
                self._give_up(f"opcode {command.opcode:#04x} on queue {key[0]}", command)
                return

    def _try_abort(self, qid: int, command: Overdue) -> bool | None:
        """Whether it was sent; None: that was the end of patience, and the controller was reset."""
        try:
            if not self._abort(qid, command.cid, self._seen):
                return False
        except CommandTimeoutError:
            self._give_up(f"the Abort of command {command.cid} of queue {qid}", command)
            return None
        except UdrvError:  # refused: Abort Command Limit Exceeded, or the like
            pass
        self.aborts += 1
        return True

    def _give_up(self, what: str, command: Overdue) -> None:
        self.forget()
        self._reset(f"{what} was not completed after {command.age:.1f} s", self._seen)

    def _found(self, now: float) -> dict[tuple[int, int, int], Overdue]:
        found = {}
        for pair in self._pairs():
            if pair.timed:
                for command in pair.overdue(self._limits[pair.qid == 0]):
                    found[(pair.qid, *command.key)] = command
            else:
                self._look_at_untimed(pair, now, found)
        return found

    def _look_at_untimed(
        self, pair: QueuePair, now: float, found: dict[tuple[int, int, int], Overdue]
    ) -> None:
        """Without timestamps only a queue that stands still as a whole can be told."""
        done = int(pair.shared.consumed)
        before, since = self._still.get(pair.qid, (-1, now))
        if done != before or not pair.inflight or pair.unreaped:
            self._still[pair.qid] = (done, now)
        elif now - since > self._timeouts.io:
            if not pair.awaited():  # given up, or ended by a reset and not reaped yet
                self._still[pair.qid] = (done, now)
                return
            found[(pair.qid, -1, done)] = Overdue((-1, done), -1, 0, now - since, 0, 0)
