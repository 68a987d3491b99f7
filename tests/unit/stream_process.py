# SPDX-License-Identifier: Apache-2.0
"""Processes of the stream's tests: a producer over memory, and consumers that behave badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from qp_model import Pair, Row

from udrv.core import ffi, lib
from udrv.stream import Stream, StreamNamespace, attach

NSZE = 1 << 20
HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]


class Source:
    """A queue pair over memory as a stream wants it: a `Streamed`."""

    def __init__(self, entries: int = 65, qid: int = 9) -> None:
        self.model = Pair(entries, 12, NSZE)
        self.qid = qid
        self.depth = min(entries - 1, 64)
        self.batch = [Row(2, i * 999, 1 + i % 8, 0) for i in range(self.depth)]

    def set_stream(self, stream: Any) -> int:
        return int(lib.udrv_qp_set_stream(self.model.qp, ffi.NULL if stream is None else stream))

    def consumed(self) -> int:
        return int(self.model.state.consumed)

    def run(self, count: int) -> int:
        """At least so many completions. How many there were."""
        done = 0
        while done < count:
            assert self.model.submit(self.batch, [0] * self.depth)[0] == self.depth
            while (command := self.model.fetch()) is not None:
                self.model.post(command.cid)
            done += lib.udrv_qp_reap(self.model.qp, self.model.out, 0, 64)
        return done


def stream_of(*sources: Source, **how: Any) -> Stream:
    """A stream that hangs on all of them."""
    stream = Stream("model", namespaces=[StreamNamespace(1, NSZE, 12)], queues=4, **how)
    for source in sources:
        stream.hang(source)
    return stream


def python(*arguments: object, **how: Any) -> subprocess.Popen[str]:
    """This file in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(HERE), *map(str, arguments)], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path}, **how,
    )


def consume(pid: int, mode: str) -> None:
    """Take records of `pid`; be slow, or die or stop with batches held. Says when it is ready."""
    with attach(pid) as reader:
        kept = []
        rows = 0
        reader.poll()
        print("ready", flush=True)
        while not reader.ended:
            for batch in reader.poll():
                rows += len(batch)
                assert (np.diff(batch.seq.astype(np.int64)) == 1).all()
                assert (batch.latency_ns > 0).all()
                kept = [*kept[-2:], batch]
            if mode == "slow":
                time.sleep(0.02)
            elif len(kept) >= 2 and mode == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif len(kept) >= 2 and mode == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.0005)
        rows += sum(map(len, reader.poll()))
        print(rows, flush=True)


if __name__ == "__main__":
    consume(int(sys.argv[1]), sys.argv[2])
