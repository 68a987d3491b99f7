# SPDX-License-Identifier: Apache-2.0
"""What a soft: drive's stream told reaches a detector whole, honest time included.

Whether a slow drive is told is tested on made-up windows (tests/unit/test_ml_live.py): on a machine
that is busy with other things most completions are the host's fault, and rightly no evidence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from udrv import soft
from udrv.ml import Detector, Verdict, WindowBatch
from udrv.ml.live import Watch
from udrv.nvme import Controller
from udrv.vfio.user import from_socket


class Counts(Detector):
    name, version = "counts", "1"

    def __init__(self) -> None:
        super().__init__()
        self.good = self.late = self.in_bands = self.in_hist = 0

    def on_tick(self, batch: WindowBatch) -> Sequence[Verdict]:
        self.good += int(batch.columns["count"].sum())
        self.late += int(batch.columns["host_late"].sum())
        self.in_hist += int(batch.columns["hist"].sum())
        self.in_bands += int(batch.bands["count"].sum())
        return ()


def test_every_completion_of_the_stream_reaches_the_detector() -> None:
    counts = Counts()
    with (
        soft.start("size=16M") as child,
        Controller(from_socket(child.socket, "soft:")) as ctrl,
    ):
        stream = ctrl.stream(period=1.0)
        ns = ctrl.namespace(1)
        buffer = ctrl.alloc(4096)
        watch = Watch(counts, {"soft": stream}, tick_s=1.0, blocks=ns.nsze)
        reads = 0

        def read(seconds: float) -> None:
            nonlocal reads
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                ns.read(reads * 61 % ns.nsze, 1, into=buffer)
                reads += 1
                assert not watch.look()

        read(1.5)
        done = reads
        while counts.good + counts.late < done:  # a tick is over when a later one has windows
            read(0.5)
        assert stream.windows_lost == 0
    assert counts.good + counts.late <= reads
    assert counts.in_hist == counts.in_bands == counts.good
