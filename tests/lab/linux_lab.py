# SPDX-License-Identifier: Apache-2.0
"""What the tests of Linux's own driver on our controller share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from kernel_lab import controller_node, node_of

from udrv.lab.info import LabDevice


def sh(*words: object, status: int = 0, timeout: float = 200) -> str:
    """Run a program; its standard output, if it ended with `status`."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          errors="replace", check=False, timeout=timeout)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def nvme(*words: object, status: int = 0) -> str:
    """`nvme` (nvme-cli) with those words."""
    return sh("nvme", *words, status=status)


def nvme_json(*words: object) -> Any:
    """The same, with its output as JSON."""
    return json.loads(nvme(*words, "-o", "json"))


def fio_words(node: Path, **options: object) -> list[str]:
    """fio's command line for one job on `node`; an option that is None stands alone."""
    given: dict[str, object] = {"name": "job", "filename": node, "direct": 1, "iodepth": 32,
                                "ioengine": "io_uring", "bs": "4k", **options}
    words = [f"--{name}" if value is None else f"--{name}={value}"
             for name, value in given.items()]
    return ["fio", "--output-format=json", *words]


def fio(node: Path, **options: object) -> dict[str, Any]:
    """Run it; the job's part of its report. Any error, of I/O or of what was read back, fails."""
    report = json.loads(sh(*fio_words(node, **options)))
    job: dict[str, Any] = report["jobs"][0]
    assert job["error"] == 0
    return job


class Load:
    """fio under way: random reads and writes, verified, until it is told to end."""

    def __init__(self, node: Path, **options: object) -> None:
        words = fio_words(node, **{"rw": "randrw", "size": "64M", "verify": "crc32c",
                                   "verify_backlog": 64, "time_based": None, "runtime": 600,
                                   **options})
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True)
        wait_for(lambda: in_flight(node) or self.process.poll() is not None)

    def end(self) -> tuple[dict[str, Any], str]:
        """Its job's report, and all that it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # it ends its jobs and reports
        said, _ = self.process.communicate(timeout=120)
        at = said.find("\n{")
        assert at >= 0, said
        report, _ = json.JSONDecoder().raw_decode(said[at + 1:])
        return report["jobs"][0], said

    def end_well(self) -> dict[str, Any]:
        """The same; any error, of I/O or of what was read back, fails."""
        job, said = self.end()
        assert job["error"] == 0, said
        assert self.process.returncode in {0, 128}, said  # 128: by our signal
        assert job["write"]["total_ios"] > 0
        return job

    def close(self) -> None:
        """End it by force, if it still runs; idempotent."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_flight(node: Path) -> int:
    """Commands of the block device that are with the driver now."""
    reads, writes = Path(f"/sys/block/{node.name}/inflight").read_text().split()
    return int(reads) + int(writes)


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    """Until `what` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def state(device: LabDevice) -> str:
    """live, resetting, deleting, dead...; "" where the driver has none."""
    for path in Path(f"/sys/bus/pci/devices/{device.bdf}/nvme").glob("nvme*/state"):
        return path.read_text().strip()
    return ""


def live(device: LabDevice) -> Path:
    """/dev/nvmeX, once it is live (again)."""
    wait_for(lambda: state(device) == "live")
    return controller_node(device)


def block(device: LabDevice, nsid: int = 1) -> Path:
    """/dev/nvmeXnY of a namespace, once it is there."""
    return node_of(device, nsid, "block")


def queue_setting(node: Path, name: str) -> str:
    """A file of /sys/block/.../queue."""
    return Path(f"/sys/block/{node.name}/queue/{name}").read_text().strip()


class KernelLines:
    """What the kernel says from now on."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._lines: list[str] = []

    def __del__(self) -> None:
        os.close(self._fd)

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.all())

    def all(self) -> list[str]:
        """All of it so far, without times."""
        while True:
            try:
                record = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return self._lines
            except BrokenPipeError:
                continue  # overwritten before we came: a flood of I/O errors
            # "level,sequence,time,flags;message", then lines of properties
            message = record.decode("utf-8", "replace").partition(";")[2]
            self._lines.append(message.split("\n", 1)[0])

    def of_driver(self) -> list[str]:
        """Those of the NVMe driver and of the block layer."""
        return [line for line in self.all() if "nvme" in line or "blk" in line]
