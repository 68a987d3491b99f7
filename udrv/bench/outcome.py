# SPDX-License-Identifier: Apache-2.0
"""What went wrong in a run, as typed errors."""

from __future__ import annotations

from typing import Any

from udrv.bench.job import BadData, Job
from udrv.errors import CommandTimeoutError, DataMismatchError, UdrvError
from udrv.nvme import Batch, Controller, Namespace, Queue
from udrv.nvme.status import error_from_status

_OPCODES = {1: "write", 2: "read"}


def errors_of(
    job: Job, code: int, *, controller: Controller, namespace: Namespace, queue: Queue, batch: Batch
) -> list[UdrvError]:
    """Return what went wrong in a job, the cause before its consequences; quarantine what is left.

    `code` is what `Job.run` returned.
    """
    errors: list[UdrvError] = []
    results = [result for result in (job.result, job.verified) if result is not None]
    left = sum(int(result.unfinished) for result in results)
    if left:
        queue.quarantine(batch)
    if left or code < 0:
        try:
            controller.check_alive()
        except UdrvError as e:
            errors.append(e)
    if code < 0:
        try:
            queue.pair.fail(code, f"queue {queue.qid}")
        except UdrvError as e:
            errors.append(e)
    elif left:
        errors.append(
            CommandTimeoutError(
                f"{left} commands on queue {queue.qid} did not complete: nothing did for "
                f"{job.spec.timeout_ns / 1e9:g} s",
                device=controller.target,
                mend="their memory is in quarantine until the queue is deleted; a slow device "
                "needs a longer --timeout",
            )
        )
    for result in results:
        if result.dir[0].errors or result.dir[1].errors:
            errors.append(_status_error(job, result, namespace, queue))
        if result.verify_failures:
            errors.append(_mismatch(result, namespace))
    return errors


def _status_error(job: Job, result: Any, namespace: Namespace, queue: Queue) -> UdrvError:
    return error_from_status(
        int(result.first_status),
        command=f"{_OPCODES[int(result.first_opcode)]} nsid={namespace.nsid} "
        f"slba={int(result.first_error_slba)} nlb={job.spec.unit_blocks}",
        qid=queue.qid,
        result=int(result.first_result),
        device=namespace.controller.target,
    )


def _mismatch(result: Any, namespace: Namespace) -> UdrvError:
    lba = int(result.first_bad_lba)
    return DataMismatchError(
        f"{int(result.verify_failures)} of {int(result.blocks_checked)} blocks of namespace "
        f"{namespace.nsid} differ, the first is {lba} "
        f"({BadData(result.first_bad_kind).explain()})",
        lba=lba,
        device=namespace.controller.target,
        mend="data was lost on the way to the medium or back",
    )
