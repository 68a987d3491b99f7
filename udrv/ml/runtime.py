# SPDX-License-Identifier: Apache-2.0
"""Detectors in processes of their own, each call measured, and ejected when they misbehave.

A detector that loops for ever, holds the GIL, leaks or dies must not cost the driver anything, nor
the other detectors. So each has its own process; batches go to it through a pipe and verdicts come
back. The parent never waits for one longer than its time budget: it goes on, and what the detector
did not take in time is dropped and counted. One that overran, raised, died or returned nonsense is
killed, and the reason kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Final, Literal, Self

from udrv.errors import DetectorError, VerdictError
from udrv.ml.detector import Detector
from udrv.ml.verdict import Verdict, check
from udrv.ml.window import WindowBatch

#: A process that was made has this long to import its detector.
START_S: Final = 60.0
_END_S: Final = 2.0
#: Replies longer than this are nonsense: a verdict is some hundred bytes.
_MAX_VERDICTS: Final = 100_000

_Call = tuple[Literal["tick", "period"], WindowBatch | int]


@dataclass
class Status:
    """What became of one detector.

    `ejected`: why, or None while it runs. `calls`, `dropped`: batches that it took, and that it was
    spared while it was busy. `longest_us`: its longest call, by its own process's clock.
    """

    name: str
    version: str = ""
    ejected: str | None = None
    calls: int = 0
    dropped: int = 0
    longest_us: int = 0
    pid: int = 0


@dataclass
class _Worker:
    status: Status
    process: Any
    pipe: Connection
    outbox: SimpleQueue[_Call | None]
    budget_s: float
    waiting: int = 0  # 1: it was made, or called, and has not answered
    since: float = 0.0  # when that was
    ready: bool = False
    poster: Thread | None = None
    said: list[Verdict] = field(default_factory=list)


class Runtime:
    """Runs detectors beside the caller.

        with Runtime([Evidence, Mine]) as runtime:
            for batch in source:
                verdicts = runtime.on_tick(batch)

    Parameters
    ----------
    make: functions without arguments that return a detector (classes, say); they are called in
        the worker, and must be importable there.
    budget_s: the longest call, instead of what each detector declares (`Needs.budget_us`).
    """

    def __init__(
        self, make: Iterable[Callable[[], Detector]], *, budget_s: float | None = None
    ) -> None:
        context = get_context("forkserver")
        self._workers: list[_Worker] = []
        try:
            for one in make:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, one), daemon=True)
                process.start()
                theirs.close()
                status = Status(str(getattr(one, "name", "detector")), pid=process.pid or 0)
                worker = _Worker(
                    status, process, ours, SimpleQueue(), budget_s or -1.0, 1, time.monotonic()
                )
                self._workers.append(worker)
                worker.poster = Thread(target=_post, args=(worker,), daemon=True)
                worker.poster.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def status(self) -> list[Status]:
        """All detectors, those that were ejected included."""
        return [worker.status for worker in self._workers]

    def on_tick(self, batch: WindowBatch) -> list[Verdict]:
        """Give a batch to all detectors; return the verdicts that have come so far."""
        return self._send(("tick", batch))

    def on_period(self, end_ns: int) -> list[Verdict]:
        """Tell that all groups had their tick."""
        return self._send(("period", end_ns))

    def settle(self, timeout_s: float = 60.0) -> list[Verdict]:
        """Wait until every detector has answered or is ejected; return what they said."""
        until = time.monotonic() + timeout_s
        while any(one.waiting and not one.status.ejected for one in self._workers):
            self._look()
            if time.monotonic() > until:
                break
            time.sleep(0.001)
        return self._taken()

    def close(self) -> None:
        """End all processes, whatever they do. May be called again."""
        for worker in self._workers:
            worker.outbox.put(None)
        for worker in self._workers:
            if worker.status.ejected is None:
                worker.process.join(_END_S if worker.ready else 0.1)
            _kill(worker)

    # --- the parent's side ---------------------------------------------------------------------

    def _send(self, call: _Call) -> list[Verdict]:
        self._look()
        for worker in self._workers:
            if worker.status.ejected is not None:
                continue
            if worker.waiting:
                worker.status.dropped += 1  # it is still at the last one: it may skip
                continue
            worker.since = time.monotonic()
            worker.waiting = 1
            worker.outbox.put(call)
        self._look()
        return self._taken()

    def _taken(self) -> list[Verdict]:
        said = [verdict for worker in self._workers for verdict in worker.said]
        for worker in self._workers:
            worker.said.clear()
        return said

    def _look(self) -> None:
        for worker in self._workers:
            if worker.status.ejected is None:
                try:
                    while worker.waiting and worker.pipe.poll():
                        self._answer(worker, worker.pipe.recv())
                except (EOFError, OSError):
                    worker.process.join(_END_S)  # its end of the pipe goes before it does
                    code = worker.process.exitcode
                    self._eject(worker, f"its process ended (status {code})")
                except Exception as error:  # noqa: BLE001 - what it sent cannot even be unpickled
                    self._eject(worker, f"it sent nonsense: {type(error).__name__}: {error}")
                self._overrun(worker)

    def _overrun(self, worker: _Worker) -> None:
        if worker.status.ejected is not None or not worker.waiting:
            return
        limit = worker.budget_s if worker.ready else START_S
        spent = time.monotonic() - worker.since
        if spent > limit:
            what = "a call" if worker.ready else "its start"
            self._eject(worker, f"{what} took more than {limit:g} s")

    def _answer(self, worker: _Worker, reply: Any) -> None:
        kind, *rest = reply
        worker.waiting = 0
        if kind == "ready":
            worker.status.name, worker.status.version, budget_us = rest
            worker.ready = True
            if worker.budget_s < 0:
                worker.budget_s = budget_us / 1e6
            return
        if kind == "raised":
            self._eject(worker, f"it raised {rest[0]}")
            return
        said, took_us = rest
        worker.status.calls += 1
        worker.status.longest_us = max(worker.status.longest_us, took_us)
        try:
            worker.said.extend(_verdicts(said))
        except (DetectorError, VerdictError, TypeError) as error:
            self._eject(worker, f"it returned nonsense: {error}")

    def _eject(self, worker: _Worker, why: str) -> None:
        worker.status.ejected = why
        worker.waiting = 0
        _kill(worker)


def _verdicts(said: Any) -> Sequence[Verdict]:
    if not isinstance(said, list) or len(said) > _MAX_VERDICTS:
        raise DetectorError(f"{type(said).__name__} instead of verdicts")
    for one in said:
        if not isinstance(one, Verdict):
            raise DetectorError(f"{type(one).__name__} among verdicts")
        check(one.as_dict())
    return said


def _post(worker: _Worker) -> None:
    """A thread: a process that was stopped does not read, and the pipe holds less than a batch."""
    with contextlib.suppress(OSError):  # it was killed
        while (call := worker.outbox.get()) is not None:
            worker.pipe.send(call)
        worker.pipe.send(None)


def _kill(worker: _Worker) -> None:
    """SIGKILL: a detector may ignore anything else."""
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.outbox.put(None)
    if worker.poster is not None:
        worker.poster.join()  # writing to a dead process fails; only then may the number be reused
    worker.pipe.close()


def _serve(pipe: Connection, make: Callable[[], Detector]) -> None:
    """The worker: one call at a time until the parent leaves."""
    try:
        detector = make()
        pipe.send(("ready", detector.name, detector.version, detector.needs.budget_us))
        while (call := pipe.recv()) is not None:
            kind, what = call
            began = time.monotonic()
            said = list(detector.on_tick(what) if kind == "tick" else detector.on_period(what))
            pipe.send(("said", said, round((time.monotonic() - began) * 1e6)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except BaseException as error:  # noqa: BLE001 - a stranger's code may raise anything
        with contextlib.suppress(OSError):
            pipe.send(("raised", f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None
