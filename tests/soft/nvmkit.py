"""What tests of more than the mandatory commands share."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from minidriver import (
    ASYNC_EVENT,
    GET_LOG,
    IDENTIFY,
    OK,
    PAGE,
    WAIT_S,
    MiniDriver,
    command,
)

Drive = Callable[..., MiniDriver]
ALL = 0xFFFFFFFF

#: Index of the format in use: data bytes of a block, and bytes of metadata.
FORMATS = ((512, 0), (512, 8), (4096, 0), (4096, 8), (4096, 64))


def log(driver: MiniDriver, lid: int, size: int, **fields: int) -> bytes:
    page = driver.pages(-(-size // PAGE))
    done = driver.admin(
        GET_LOG, nsid=ALL, **driver.prps(page, size),
        cdw10=(size // 4 - 1) << 16 | fields.pop("flags", 0) | lid, **fields,
    )
    assert done.status == OK, done
    return driver.memory[page : page + size]


def identify(driver: MiniDriver, cns: int, nsid: int = 0, **fields: int) -> bytes:
    page = driver.pages(1)
    driver.memory[page : page + PAGE] = b"\xa5" * PAGE
    done = driver.admin(
        IDENTIFY, nsid=nsid, prp1=driver.bus(page), cdw10=fields.pop("cdw10", 0) | cns, **fields
    )
    assert done.status == OK, done
    return driver.memory[page : page + PAGE]


def nsids(driver: MiniDriver, cns: int = 2) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", identify(driver, cns)) if nsid]


def send(driver: MiniDriver, data: bytes) -> dict[str, int]:
    """Fields of a command that reads `data` from the host."""
    page = driver.pages(max(1, -(-len(data) // PAGE)))
    driver.memory[page : page + len(data)] = data
    return driver.prps(page, max(len(data), 1))


def park(driver: MiniDriver, cid: int) -> None:
    """Send an Asynchronous Event Request and do not wait for it."""
    driver.put(driver.admin_pair, command(ASYNC_EVENT, cid=cid))
    driver.ring(driver.admin_pair)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that takes simulated time, gently."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {WAIT_S} s"
        time.sleep(0.01)
