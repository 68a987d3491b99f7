# SPDX-License-Identifier: Apache-2.0
"""What is not permitted or not there, provoked for real (the sysctl: tests/lab/test_rings_lab.py).

A child process takes away from itself what it then asks for.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rings_rig import require_io_uring

from udrv.errors import (
    InvalidRequestError,
    MemlockError,
    PermissionDeniedError,
    UringDisabledError,
    UringError,
    UringUnsupportedError,
)
from udrv.rings import diagnose
from udrv.rings.flags import Op, SetupFlag, op_name, op_since
from udrv.rings.uring import Ring

pytestmark = pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="system call numbers"
)


@pytest.fixture(autouse=True, scope="module")
def _io_uring() -> None:
    require_io_uring()


# io_uring's system calls have the same numbers everywhere: 425, 426, 427
PRELUDE = """
import ctypes, errno, os, resource, struct
from udrv import errors
from udrv.rings.uring import Op, Ring, SetupFlag

def forbid(first, last, number):
    "A seccomp filter: system calls first to last fail with this errno."
    code = [
        (0x20, 0, 0, 0),                        # load the number of the call
        (0x35, 0, 2, first),                    # below first: allow
        (0x25, 1, 0, last),                     # above last: allow
        (0x06, 0, 0, 0x00050000 | number),      # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),               # SECCOMP_RET_ALLOW
    ]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0      # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())

def become_nobody():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

def show(error):
    print(type(error).__name__, getattr(error, "reason", getattr(error, "errno", "")), "|", error)
"""


def child(code: str) -> str:
    """What a fresh process prints that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TRY = """
try:
    Ring(8)
except errors.UdrvError as error:
    show(error)
    assert isinstance(error, PermissionError)
"""


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS", "EACCES"])
def test_seccomp(name: str) -> None:
    said = child(f"forbid(425, 427, errno.{name}){TRY}")
    assert said.startswith("UringDisabledError seccomp |")
    assert name in said
    assert "seccomp profile" in said


def test_seccomp_that_forbids_some_of_it() -> None:
    said = child("""
with Ring(8) as ring:
    forbid(426, 427, errno.EPERM)
    for call in (ring.submit, ring.probe):
        try:
            if call == ring.submit:
                ring._supported = bytes([1])
                ring.nop()
            call()
        except errors.UdrvError as error:
            show(error)
        ring._supported = None
""")
    assert said.count("UringError 1 |") == 2, said
    assert said.count("seccomp") == 2, said


def test_no_io_uring_in_the_kernel_is_not_blamed_on_seccomp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ENOSYS with no filter about."""
    monkeypatch.setattr(diagnose, "has_seccomp_filter", lambda: False)
    error = diagnose.setup_error(errno.ENOSYS, 8, 0)
    assert isinstance(error, UringUnsupportedError)
    assert error.needs == "5.1"


def test_eperm_that_nothing_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "has_seccomp_filter", lambda: False)
    error = diagnose.setup_error(errno.EPERM, 8, 0)
    assert isinstance(error, UringDisabledError)
    assert error.reason == "unknown"
    assert "SELinux" in str(error)


def test_sqpoll_without_permission() -> None:
    """Linux 5.13 and newer let everybody: the question is put to the real kernel, the EPERM not."""
    error = diagnose.setup_error(errno.EPERM, 8, SetupFlag.SQPOLL)
    assert isinstance(error, PermissionDeniedError)
    assert "CAP_SYS_NICE" in str(error)


def test_memlock() -> None:
    said = child("""
become_nobody()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
with Ring(8) as ring:
    try:
        ring.buffers.register([bytearray(1 << 20), bytearray(1 << 20)])
    except errors.MemlockError as error:
        assert (error.needed, error.limit) == (2 << 20, 65536)
        show(error)
    ring.buffers.register([bytearray(4096)])
""")
    assert "ulimit -l 2048" in said


def test_memlock_of_the_ring_on_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.12 the ring itself counts."""
    monkeypatch.setattr(diagnose, "kernel_release", lambda: (5, 10))
    monkeypatch.setattr("resource.getrlimit", lambda _which: (65536, 65536))
    error = diagnose.setup_error(errno.ENOMEM, 4096, 0, 400_000)
    assert isinstance(error, MemlockError)
    assert (error.needed, error.limit) == (400_000, 65536)


def test_no_more_files() -> None:
    said = child("""
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    Ring(8)
except errors.UringError as error:
    show(error)
    assert isinstance(error, OSError)
""")
    assert said.startswith(f"UringError {errno.EMFILE} |")
    assert "ulimit -n" in said


# --- too old --------------------------------------------------------------------------------------


def test_a_flag_that_this_kernel_does_not_know_is_found_by_trying() -> None:
    unknown = 1 << 30
    assert diagnose.refused_flags(unknown | SetupFlag.CLAMP | SetupFlag.SQE128) == [unknown]
    error = diagnose.setup_error(errno.EINVAL, 8, unknown | SetupFlag.CLAMP)
    assert isinstance(error, UringUnsupportedError)
    assert f"this kernel ({os.uname().release}) does not know set-up flag 0x40000000" in str(error)


def test_a_kernel_too_old_for_a_flag_names_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "refused_flags", lambda _: [
        int(SetupFlag.SQE128), int(SetupFlag.DEFER_TASKRUN), int(SetupFlag.SINGLE_ISSUER),
    ])  # fmt: skip
    error = diagnose.setup_error(errno.EINVAL, 8, 0)
    assert isinstance(error, UringUnsupportedError)
    assert error.needs == "6.1"
    assert "IORING_SETUP_SQE128, IORING_SETUP_DEFER_TASKRUN" in str(error)


def test_every_flag_that_this_kernel_should_have_works() -> None:
    """As the table of releases says: so an EINVAL is not blamed on the wrong flag."""
    for flag in SetupFlag:
        since = diagnose.SETUP_SINCE.get(flag, "5.1")
        assert bool(diagnose.refused_flags(flag)) == diagnose.older_than(since), flag


def test_an_operation_that_this_kernel_does_not_have() -> None:
    with Ring(8) as ring:
        for opcode in (200, 255, 256, -1):
            with pytest.raises(UringUnsupportedError, match="this kernel has no operation"):
                ring.prep(opcode)
        assert ring.inflight == 0


def test_an_operation_that_is_newer_than_the_kernel_names_the_release() -> None:
    with Ring(8) as ring:
        ring._supported = bytes(256)
        with pytest.raises(UringUnsupportedError, match=r"SOCKET: run Linux 5\.19") as info:
            ring.prep(Op.SOCKET)
        assert info.value.needs == "5.19"


def test_the_table_of_operations_agrees_with_this_kernel() -> None:
    with Ring(8) as ring:
        supported = ring.probe()
    for op in Op:
        since = op_since(op)
        assert since is not None
        if diagnose.older_than(since):
            assert op not in supported, op_name(op)
    old = {op for op in Op if not diagnose.older_than(op_since(op) or "99.0")}
    # those that a configuration can leave out (futexes, networking) apart
    optional = {
        Op.FUTEX_WAIT, Op.FUTEX_WAKE, Op.FUTEX_WAITV, Op.RECV_ZC, Op.EPOLL_CTL, Op.EPOLL_WAIT,
    }
    assert old - supported <= optional


def test_names_and_releases_of_operations() -> None:
    assert (Op.READ, Op.URING_CMD, Op.SENDMSG_ZC, Op.FUTEX_WAITV, Op.PIPE) == (22, 46, 48, 53, 62)
    assert [op_since(op) for op in (Op.NOP, Op.READ, Op.URING_CMD, Op.SEND_ZC, Op.PIPE)] == [
        "5.1", "5.6", "5.19", "6.0", "6.16",
    ]
    assert op_since(200) is None


# --- what no kernel takes -------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    ({"entries": 0}, "0 entries"),
    ({"entries": -1}, "-1 entries"),
    ({"entries": 40000}, "1 to 32768"),
    ({"entries": 1.5}, "no integer"),
    ({"cq_entries": 4}, "4 completion entries for 8"),
    ({"cq_entries": 100_000}, "at most 65536"),
    ({"max_inflight": 0}, "0 requests in flight"),
    ({"setup": SetupFlag.DEFER_TASKRUN}, "without SetupFlag.SINGLE_ISSUER"),
    ({"setup": SetupFlag.HYBRID_IOPOLL}, "without SetupFlag.IOPOLL"),
    ({"sqpoll_cpu": 0}, "without SetupFlag.SQPOLL"),
    ({"setup": SetupFlag.SQPOLL | SetupFlag.COOP_TASKRUN}, "with SetupFlag.SQPOLL"),
    ({"setup": 1 << 14}, "layout"),
    ({"setup": SetupFlag.SQPOLL, "sqpoll_cpu": 1 << 20}, "each flag alone is known"),
], ids=str)  # fmt: skip
def test_a_ring_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InvalidRequestError, match=message):
        Ring(**{"entries": 8, **arguments})  # type: ignore[arg-type]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("code", "number", "mend"), [
    ("ring.files.unregister()", errno.ENXIO, "nothing is registered"),
    ("ring.buffers.unregister()", errno.ENXIO, "nothing is registered"),
    ("ring.unregister_eventfd()", errno.ENXIO, "nothing is registered"),
    ("ring.files.register([987654])", errno.EBADF, "no open file"),
    ("ring.files.register([0]); ring.files.register([0])", errno.EBUSY, "unregister them first"),
    ("ring.buffers.register([b1]); ring.buffers.register([b1])", errno.EBUSY, "unregister"),
], ids=str)  # fmt: skip
def test_registering(code: str, number: int, mend: str) -> None:
    with Ring(8) as ring:
        with pytest.raises(UringError, match=mend) as info:
            exec(code, {"ring": ring, "b1": bytearray(16)})
        assert info.value.errno == number


def test_mapped_files_cannot_be_registered(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, Ring(8) as ring:
        mapped = mmap.mmap(file.fileno(), 4096)
        with pytest.raises(UringError, match="anonymous memory") as info:
            ring.buffers.register([mapped])
        assert info.value.errno in (errno.EOPNOTSUPP, errno.EFAULT)


def test_tables_have_a_size() -> None:
    with Ring(8) as ring:
        for call in (ring.buffers.register_sparse, ring.files.register_sparse):
            for size in (0, -1, 1 << 21):
                with pytest.raises(InvalidRequestError, match="a table of"):
                    call(size)
        ring.files.register_sparse(2)
        ring.buffers.register_sparse(2)
        for call_2 in (lambda: ring.files.update(2, 0), lambda: ring.buffers.update(-1, None)):
            with pytest.raises(InvalidRequestError, match="slot"):
                call_2()


def test_a_request_that_fails_says_which() -> None:
    with Ring(8) as ring:
        ring.read(-1, bytearray(1), user_data=77)
        (done,) = ring.submit_and_wait(1, timeout=10)
        with pytest.raises(UringError, match=r"user_data 77 failed with EBADF") as info:
            done.check()
        assert info.value.errno == errno.EBADF


def test_threads_are_not_confused_by_errno() -> None:
    """The errno is what the call returned, not what another thread left behind."""
    errors: list[int | None] = []

    def fail() -> None:
        with Ring(8) as ring:
            for _ in range(50):
                try:
                    ring.files.register([987654])
                except UringError as error:
                    errors.append(error.errno)

    threads = [threading.Thread(target=fail) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [errno.EBADF] * 150


def test_the_release_of_the_running_kernel() -> None:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert found
    assert diagnose.kernel_release() == (int(found[1]), int(found[2]))
    assert diagnose.older_than("99.1")
    assert not diagnose.older_than("5.1")
