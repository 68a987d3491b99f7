"""The C names of `udrv.rings`, typed. Written by tools/make_stubs.py from decl/*.h: do not edit.

The manual of each name is its header in include/udrv/. A `struct_` class is a C struct as seen
through a pointer; it exists for type checkers only (import it under TYPE_CHECKING). What has no
class here is Any: cffi checks it at run time.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar, overload

T = TypeVar("T")

class FFI:
    CData: Any
    CType: Any
    NULL: Any
    errno: int
    class error(Exception): ...
    @overload
    def new(self, cdecl: Literal["struct io_uring *"], init: Any = ..., /) -> struct_io_uring: ...
    @overload
    def new(
        self, cdecl: Literal["struct io_uring_params *"], init: Any = ..., /,
    ) -> struct_io_uring_params: ...
    @overload
    def new(self, cdecl: Literal["struct iovec *"], init: Any = ..., /) -> struct_iovec: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_qp_anomalies *"], init: Any = ..., /,
    ) -> struct_udrv_qp_anomalies: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring *"], init: Any = ..., /,
    ) -> struct_udrv_uring: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_batch *"], init: Any = ..., /,
    ) -> struct_udrv_uring_batch: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_completions *"], init: Any = ..., /,
    ) -> struct_udrv_uring_completions: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_config *"], init: Any = ..., /,
    ) -> struct_udrv_uring_config: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_counters *"], init: Any = ..., /,
    ) -> struct_udrv_uring_counters: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_counts *"], init: Any = ..., /,
    ) -> struct_udrv_uring_counts: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_op *"], init: Any = ..., /,
    ) -> struct_udrv_uring_op: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_qp *"], init: Any = ..., /,
    ) -> struct_udrv_uring_qp: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_uring_tracker *"], init: Any = ..., /,
    ) -> struct_udrv_uring_tracker: ...
    @overload
    def new(self, cdecl: Any, init: Any = ..., /) -> Any: ...
    @overload
    def cast(self, cdecl: Literal["struct io_uring *"], value: Any, /) -> struct_io_uring: ...
    @overload
    def cast(
        self, cdecl: Literal["struct io_uring_params *"], value: Any, /,
    ) -> struct_io_uring_params: ...
    @overload
    def cast(self, cdecl: Literal["struct iovec *"], value: Any, /) -> struct_iovec: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_qp_anomalies *"], value: Any, /,
    ) -> struct_udrv_qp_anomalies: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_uring *"], value: Any, /) -> struct_udrv_uring: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_batch *"], value: Any, /,
    ) -> struct_udrv_uring_batch: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_completions *"], value: Any, /,
    ) -> struct_udrv_uring_completions: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_config *"], value: Any, /,
    ) -> struct_udrv_uring_config: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_counters *"], value: Any, /,
    ) -> struct_udrv_uring_counters: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_counts *"], value: Any, /,
    ) -> struct_udrv_uring_counts: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_op *"], value: Any, /,
    ) -> struct_udrv_uring_op: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_qp *"], value: Any, /,
    ) -> struct_udrv_uring_qp: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_uring_tracker *"], value: Any, /,
    ) -> struct_udrv_uring_tracker: ...
    @overload
    def cast(self, cdecl: Any, value: Any, /) -> Any: ...
    def addressof(self, cdata: Any, /, *field_or_index: str | int) -> Any: ...
    def alignof(self, cdecl: Any, /) -> int: ...
    def buffer(self, cdata: Any, size: int = ..., /) -> Any: ...
    @overload
    def from_buffer(self, data: Any, /, *, require_writable: bool = ...) -> Any: ...
    @overload
    def from_buffer(self, cdecl: Any, data: Any, /, require_writable: bool = ...) -> Any: ...
    def from_handle(self, cdata: Any, /) -> Any: ...
    def gc(self, cdata: T, destructor: Callable[[T], object], size: int = ...) -> T: ...
    def getctype(self, cdecl: Any, extra: str = ..., /) -> str: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def new_handle(self, x: object, /) -> Any: ...
    def offsetof(self, cdecl: Any, /, *field_or_index: str | int) -> int: ...
    def release(self, cdata: Any, /) -> None: ...
    def sizeof(self, cdecl: Any, /) -> int: ...
    def string(self, cdata: Any, maxlen: int = ..., /) -> Any: ...
    def typeof(self, cdecl: Any, /) -> Any: ...
    def unpack(self, cdata: Any, length: int, /) -> Any: ...

ffi: FFI
lib: Lib

class struct_io_uring:
    flags: int
    ring_fd: int
    features: int

class struct_io_uring_params:
    sq_entries: int
    cq_entries: int
    flags: int
    sq_thread_cpu: int
    sq_thread_idle: int
    features: int
    wq_fd: int

class struct_iovec:
    iov_base: Any
    iov_len: int

class struct_udrv_qp_anomalies:
    bad_cid: int
    duplicate: int
    late: int

class struct_udrv_uring:
    ring: struct_io_uring
    nr_slots: int
    prepared: int
    completed: int
    strays: int
    overflows: int

class struct_udrv_uring_batch:
    capacity: int
    writable: int
    base: int
    size: int
    opcode: Any
    flags: Any
    fd: Any
    file_offset: Any
    buffer_offset: Any
    length: Any
    rw_flags: Any
    buf_index: Any
    user_data: Any
    token: Any

class struct_udrv_uring_completions:
    capacity: int
    user_data: Any
    token: Any
    res: Any
    flags: Any
    big: Any

class struct_udrv_uring_config:
    qid: int
    depth: int
    flags: int
    eventfd: int
    max_transfer: int
    timeout_ms: int
    align_mask: int

class struct_udrv_uring_counters:
    submitted: int
    completed: int
    consumed: int
    enters: int
    fixed: int
    anomalies: struct_udrv_qp_anomalies

class struct_udrv_uring_counts:
    inflight: int
    unsubmitted: int
    ready: int
    dropped: int
    backlog: int

class struct_udrv_uring_op:
    off: int
    addr: int
    user_data: int
    addr3: int
    fd: int
    len: int
    op_flags: int
    file_index: int
    group: int
    ioprio: int
    buf_index: int
    opcode: int
    flags: int

class struct_udrv_uring_qp:
    trackers: struct_udrv_uring_tracker
    free: Any
    depth: int
    counters: struct_udrv_uring_counters
    setup_flags: int

class struct_udrv_uring_tracker: ...

class Lib:
    IORING_SETUP_CLAMP: Final[int]
    IORING_SETUP_COOP_TASKRUN: Final[int]
    IORING_SETUP_CQE32: Final[int]
    IORING_SETUP_CQSIZE: Final[int]
    IORING_SETUP_DEFER_TASKRUN: Final[int]
    IORING_SETUP_IOPOLL: Final[int]
    IORING_SETUP_SINGLE_ISSUER: Final[int]
    IORING_SETUP_SQE128: Final[int]
    IORING_SETUP_SQPOLL: Final[int]
    IORING_SETUP_SQ_AFF: Final[int]
    IORING_SETUP_SUBMIT_ALL: Final[int]
    IORING_SETUP_TASKRUN_FLAG: Final[int]
    UDRV_LIBURING_SHARED: Final[int]
    UDRV_LIBURING_VERSION: Final[int]
    UDRV_STATUS_HOST: Final[int]
    UDRV_URING_BLOCK: Final[int]
    UDRV_URING_BUFFERS: Final[int]
    UDRV_URING_CMD_MAX: Final[int]
    UDRV_URING_EBUFFER: Final[int]
    UDRV_URING_EBUSY: Final[int]
    UDRV_URING_ECHAIN: Final[int]
    UDRV_URING_ECLOSED: Final[int]
    UDRV_URING_EFLAGS: Final[int]
    UDRV_URING_EINVAL: Final[int]
    UDRV_URING_EOPCODE: Final[int]
    UDRV_URING_EREADONLY: Final[int]
    UDRV_URING_ESLOTS: Final[int]
    UDRV_URING_ESQFULL: Final[int]
    UDRV_URING_FILES: Final[int]
    UDRV_URING_FIXED_CMD: Final[int]
    UDRV_URING_IOPOLL: Final[int]
    UDRV_URING_MAX_DEPTH: Final[int]
    UDRV_URING_NO_BUFFER: Final[int]
    UDRV_URING_NO_GROUP: Final[int]
    UDRV_URING_ONE_THREAD: Final[int]
    def io_uring_queue_exit(self, ring: struct_io_uring, /) -> None: ...
    def io_uring_queue_init_params(
        self, entries: int, ring: struct_io_uring, p: struct_io_uring_params, /,
    ) -> int: ...
    def io_uring_register_buffers(
        self, ring: struct_io_uring, iovecs: struct_iovec, nr: int, /,
    ) -> int: ...
    def io_uring_register_buffers_sparse(self, ring: struct_io_uring, nr: int, /) -> int: ...
    def io_uring_register_buffers_update_tag(
        self, ring: struct_io_uring, off: int, iovecs: struct_iovec, tags: Any, nr: int, /,
    ) -> int: ...
    def io_uring_register_eventfd(self, ring: struct_io_uring, fd: int, /) -> int: ...
    def io_uring_register_eventfd_async(self, ring: struct_io_uring, fd: int, /) -> int: ...
    def io_uring_register_files(self, ring: struct_io_uring, files: Any, nr: int, /) -> int: ...
    def io_uring_register_files_sparse(self, ring: struct_io_uring, nr: int, /) -> int: ...
    def io_uring_register_files_update(
        self, ring: struct_io_uring, off: int, files: Any, nr: int, /,
    ) -> int: ...
    def io_uring_unregister_buffers(self, ring: struct_io_uring, /) -> int: ...
    def io_uring_unregister_eventfd(self, ring: struct_io_uring, /) -> int: ...
    def io_uring_unregister_files(self, ring: struct_io_uring, /) -> int: ...
    def udrv_uring_cancel_all(self, u: struct_udrv_uring, sync: int, /) -> int: ...
    def udrv_uring_core_init(self, clock: Any, /) -> int: ...
    def udrv_uring_counts(
        self, u: struct_udrv_uring, counts: struct_udrv_uring_counts, /,
    ) -> int: ...
    def udrv_uring_discard(self, u: struct_udrv_uring, /) -> int: ...
    def udrv_uring_exit(self, u: struct_udrv_uring, /) -> int: ...
    def udrv_uring_free(self, u: struct_udrv_uring, /) -> None: ...
    def udrv_uring_new(self, slots: int, /) -> struct_udrv_uring: ...
    def udrv_uring_open(
        self, u: struct_udrv_uring, entries: int, params: struct_io_uring_params, /,
    ) -> int: ...
    def udrv_uring_prep(self, u: struct_udrv_uring, op: struct_udrv_uring_op, /) -> int: ...
    def udrv_uring_prep_cmd(
        self, u: struct_udrv_uring, op: struct_udrv_uring_op, command: Any, size: int, /,
    ) -> int: ...
    def udrv_uring_prep_timeout(
        self, u: struct_udrv_uring, op: struct_udrv_uring_op, sec: int, nsec: int, /,
    ) -> int: ...
    def udrv_uring_probe(self, u: struct_udrv_uring, supported: Any, count: int, /) -> int: ...
    def udrv_uring_push(
        self, u: struct_udrv_uring, batch: struct_udrv_uring_batch, first: int, count: int, group:
        int, bad: Any, /,
    ) -> int: ...
    def udrv_uring_qp_as_queue(self, qp: struct_udrv_uring_qp, queue: Any, /) -> None: ...
    def udrv_uring_qp_buffer(
        self, qp: struct_udrv_uring_qp, index: int, address: Any, len: int, /,
    ) -> int: ...
    def udrv_uring_qp_close(self, qp: struct_udrv_uring_qp, /) -> None: ...
    def udrv_uring_qp_drain(self, qp: struct_udrv_uring_qp, timeout_ns: int, /) -> int: ...
    def udrv_uring_qp_exit(self, qp: struct_udrv_uring_qp, /) -> None: ...
    def udrv_uring_qp_file(self, qp: struct_udrv_uring_qp, index: int, fd: int, /) -> int: ...
    def udrv_uring_qp_inflight(self, qp: struct_udrv_uring_qp, /) -> int: ...
    def udrv_uring_qp_init(
        self, qp: struct_udrv_uring_qp, config: struct_udrv_uring_config, /,
    ) -> int: ...
    def udrv_uring_qp_quarantine(self, qp: struct_udrv_uring_qp, slot: int, /) -> int: ...
    def udrv_uring_qp_reap(
        self, qp: struct_udrv_uring_qp, out: Any, first: int, max: int, /,
    ) -> int: ...
    def udrv_uring_qp_set_stream(self, qp: struct_udrv_uring_qp, stream: Any, /) -> int: ...
    def udrv_uring_qp_slot_inflight(self, qp: struct_udrv_uring_qp, slot: int, /) -> int: ...
    def udrv_uring_qp_submit(
        self, qp: struct_udrv_uring_qp, batch: Any, first: int, count: int, bad: Any, /,
    ) -> int: ...
    def udrv_uring_qp_submit_raw(
        self, qp: struct_udrv_uring_qp, batch: Any, sqe: Any, offset: int, len: int, user_data: int,
        /,
    ) -> int: ...
    def udrv_uring_qp_wait(
        self, qp: struct_udrv_uring_qp, out: Any, min: int, max: int, timeout_ns: int, spin_ns: int,
        /,
    ) -> int: ...
    def udrv_uring_reap(
        self, u: struct_udrv_uring, out: struct_udrv_uring_completions, max: int, /,
    ) -> int: ...
    def udrv_uring_released(self, u: struct_udrv_uring, /) -> int: ...
    def udrv_uring_submit(self, u: struct_udrv_uring, /) -> int: ...
    def udrv_uring_wait(
        self, u: struct_udrv_uring, count: int, timeout_ns: int, submit: int, /,
    ) -> int: ...
