# SPDX-License-Identifier: Apache-2.0
"""The flags and operations of io_uring by name, and which Linux brought each.

Values: include/uapi/linux/io_uring.h. Releases: io_uring_setup(2), io_uring_enter(2), and the
kernel's history for what the manual pages lack.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class SetupFlag(IntFlag):
    """How a ring works (`IORING_SETUP_*`). SQ_AFF and CQSIZE come with the arguments of `Ring`.

    IOPOLL: completions are polled for, not signalled: O_DIRECT files, NVMe passthrough.
    SQPOLL: a kernel thread takes submissions; no system call while it is awake.
    CLAMP: sizes beyond the kernel's limits are lowered, not refused.
    SUBMIT_ALL: go on submitting behind a request that fails at once.
    COOP_TASKRUN: do not interrupt the process to deliver completions.
    TASKRUN_FLAG: with COOP_TASKRUN or DEFER_TASKRUN, tell in the SQ flags that some are due.
    SQE128, CQE32: room for commands of 80 bytes, for 16 more bytes of result (`uring_cmd`).
    SINGLE_ISSUER: only the thread that made the ring submits.
    DEFER_TASKRUN: completions are delivered when they are asked for (needs SINGLE_ISSUER).
    HYBRID_IOPOLL: IOPOLL that sleeps for a while first (needs IOPOLL).
    """

    IOPOLL = 1 << 0
    SQPOLL = 1 << 1
    SQ_AFF = 1 << 2
    CQSIZE = 1 << 3
    CLAMP = 1 << 4
    SUBMIT_ALL = 1 << 7
    COOP_TASKRUN = 1 << 8
    TASKRUN_FLAG = 1 << 9
    SQE128 = 1 << 10
    CQE32 = 1 << 11
    SINGLE_ISSUER = 1 << 12
    DEFER_TASKRUN = 1 << 13
    HYBRID_IOPOLL = 1 << 17


class SqeFlag(IntFlag):
    """How one request is treated (`IOSQE_*`).

    FIXED_FILE: `fd` is an index of the registered files.
    DRAIN: start when all before it are done.
    LINK: the next request starts when this one is done, and is cancelled if it fails.
    HARDLINK: as LINK, but the next one starts whatever happens.
    ASYNC: hand it to a kernel worker at once.

    BUFFER_SELECT and CQE_SKIP_SUCCESS are refused: with them nobody would know which memory the
    kernel uses, and until when.
    """

    FIXED_FILE = 1 << 0
    DRAIN = 1 << 1
    LINK = 1 << 2
    HARDLINK = 1 << 3
    ASYNC = 1 << 4


class CqeFlag(IntFlag):
    """What a completion says beside its result (`IORING_CQE_F_*`); BUFFER is never asked for.

    MORE: the request goes on, and so does its memory. SOCK_NONEMPTY: the socket has more data.
    NOTIF: a zero-copy send let go of its memory.
    """

    BUFFER = 1 << 0
    MORE = 1 << 1
    SOCK_NONEMPTY = 1 << 2
    NOTIF = 1 << 3


class Feature(IntFlag):
    """What the kernel said about itself when the ring was made (`IORING_FEAT_*`)."""

    SINGLE_MMAP = 1 << 0
    NODROP = 1 << 1
    SUBMIT_STABLE = 1 << 2
    RW_CUR_POS = 1 << 3
    CUR_PERSONALITY = 1 << 4
    FAST_POLL = 1 << 5
    POLL_32BITS = 1 << 6
    SQPOLL_NONFIXED = 1 << 7
    EXT_ARG = 1 << 8
    NATIVE_WORKERS = 1 << 9
    RSRC_TAGS = 1 << 10
    CQE_SKIP = 1 << 11
    LINKED_FILE = 1 << 12
    REG_REG_RING = 1 << 13
    RECVSEND_BUNDLE = 1 << 14
    MIN_TIMEOUT = 1 << 15
    RW_ATTR = 1 << 16
    NO_IOWAIT = 1 << 17


class CancelFlag(IntFlag):
    """What `Ring.cancel` looks for (`IORING_ASYNC_CANCEL_*`); without any, one token."""

    ALL = 1 << 0
    FD = 1 << 1
    ANY = 1 << 2
    FD_FIXED = 1 << 3


class TimeoutFlag(IntFlag):
    """`IORING_TIMEOUT_*`. ABS: a time on the clock, not from now. Default clock: CLOCK_MONOTONIC.

    ETIME_SUCCESS: expiry does not break a chain of links.
    """

    ABS = 1 << 0
    BOOTTIME = 1 << 2
    REALTIME = 1 << 3
    ETIME_SUCCESS = 1 << 5


Op = IntEnum(
    "Op",
    "NOP READV WRITEV FSYNC READ_FIXED WRITE_FIXED POLL_ADD POLL_REMOVE SYNC_FILE_RANGE SENDMSG "
    "RECVMSG TIMEOUT TIMEOUT_REMOVE ACCEPT ASYNC_CANCEL LINK_TIMEOUT CONNECT FALLOCATE OPENAT "
    "CLOSE FILES_UPDATE STATX READ WRITE FADVISE MADVISE SEND RECV OPENAT2 EPOLL_CTL SPLICE "
    "PROVIDE_BUFFERS REMOVE_BUFFERS TEE SHUTDOWN RENAMEAT UNLINKAT MKDIRAT SYMLINKAT LINKAT "
    "MSG_RING FSETXATTR SETXATTR FGETXATTR GETXATTR SOCKET URING_CMD SEND_ZC SENDMSG_ZC "
    "READ_MULTISHOT WAITID FUTEX_WAIT FUTEX_WAKE FUTEX_WAITV FIXED_FD_INSTALL FTRUNCATE BIND "
    "LISTEN RECV_ZC EPOLL_WAIT READV_FIXED WRITEV_FIXED PIPE",
    start=0,
)
Op.__doc__ = "The operations (`IORING_OP_*`); `Ring.probe` says which of them this kernel has."

#: The first release with each setup flag; what is not here has been there since 5.1.
SETUP_SINCE = {
    SetupFlag.CQSIZE: "5.5",
    SetupFlag.CLAMP: "5.6",
    SetupFlag.SUBMIT_ALL: "5.18",
    SetupFlag.COOP_TASKRUN: "5.19",
    SetupFlag.TASKRUN_FLAG: "5.19",
    SetupFlag.SQE128: "5.19",
    SetupFlag.CQE32: "5.19",
    SetupFlag.SINGLE_ISSUER: "6.0",
    SetupFlag.DEFER_TASKRUN: "6.1",
    SetupFlag.HYBRID_IOPOLL: "6.13",
}

#: Flags that a flag cannot be without: one of them.
SETUP_NEEDS = {
    SetupFlag.TASKRUN_FLAG: SetupFlag.COOP_TASKRUN | SetupFlag.DEFER_TASKRUN,
    SetupFlag.SQ_AFF: SetupFlag.SQPOLL,
    SetupFlag.DEFER_TASKRUN: SetupFlag.SINGLE_ISSUER,
    SetupFlag.HYBRID_IOPOLL: SetupFlag.IOPOLL,
}

_OP_SINCE = (
    ("6.16", Op.PIPE), ("6.15", Op.RECV_ZC), ("6.11", Op.BIND), ("6.9", Op.FTRUNCATE),
    ("6.8", Op.FIXED_FD_INSTALL), ("6.7", Op.READ_MULTISHOT), ("6.1", Op.SENDMSG_ZC),
    ("6.0", Op.SEND_ZC), ("5.19", Op.FSETXATTR), ("5.18", Op.MSG_RING), ("5.15", Op.MKDIRAT),
    ("5.11", Op.SHUTDOWN), ("5.8", Op.TEE), ("5.7", Op.SPLICE), ("5.6", Op.FALLOCATE),
    ("5.5", Op.TIMEOUT_REMOVE), ("5.4", Op.TIMEOUT), ("5.3", Op.SENDMSG),
    ("5.2", Op.SYNC_FILE_RANGE), ("5.1", Op.NOP),
)  # fmt: skip


def op_since(opcode: int) -> str | None:
    """The first release with an operation ("5.6"), or None for one that is not known here."""
    if not 0 <= opcode <= max(Op):
        return None
    return next(release for release, first in _OP_SINCE if opcode >= first)


def op_name(opcode: int) -> str:
    """`IORING_OP_READ`, or the number of an operation that is not known here."""
    return f"IORING_OP_{Op(opcode).name}" if 0 <= opcode <= max(Op) else f"operation {opcode}"
