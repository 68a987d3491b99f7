"""The C names of `udrv.soft`, typed. Written by tools/make_stubs.py from decl/*.h: do not edit.

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
    def new(
        self, cdecl: Literal["struct udrv_fault *"], init: Any = ..., /,
    ) -> struct_udrv_fault: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_model *"], init: Any = ..., /,
    ) -> struct_udrv_model: ...
    @overload
    def new(self, cdecl: Literal["struct udrv_sim *"], init: Any = ..., /) -> struct_udrv_sim: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_sim_columns *"], init: Any = ..., /,
    ) -> struct_udrv_sim_columns: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_sim_config *"], init: Any = ..., /,
    ) -> struct_udrv_sim_config: ...
    @overload
    def new(self, cdecl: Literal["struct udrv_soft *"], init: Any = ..., /) -> struct_udrv_soft: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_soft_config *"], init: Any = ..., /,
    ) -> struct_udrv_soft_config: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_truth *"], init: Any = ..., /,
    ) -> struct_udrv_truth: ...
    @overload
    def new(self, cdecl: Any, init: Any = ..., /) -> Any: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_fault *"], value: Any, /) -> struct_udrv_fault: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_model *"], value: Any, /) -> struct_udrv_model: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_sim *"], value: Any, /) -> struct_udrv_sim: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_sim_columns *"], value: Any, /,
    ) -> struct_udrv_sim_columns: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_sim_config *"], value: Any, /,
    ) -> struct_udrv_sim_config: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_soft *"], value: Any, /) -> struct_udrv_soft: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_soft_config *"], value: Any, /,
    ) -> struct_udrv_soft_config: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_truth *"], value: Any, /) -> struct_udrv_truth: ...
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

class struct_udrv_fault:
    opcodes: Any
    lba_first: int
    lba_last: int
    start_us: int
    end_us: int
    period_us: int
    on_us: int
    after: int
    every: int
    count: int
    seed: int
    probability: float
    queue_first: int
    queue_last: int
    nsid: int
    dies: int
    die: int
    stripe: int
    effect: int
    flags: int
    u: Any
    f: Any
    name: Any

class struct_udrv_model:
    dies: int
    channels: int
    stripe: int
    read_ns: int
    program_ns: int
    transfer_ns: int
    overhead_ns: int
    buffer_ns: int
    jitter: float
    seed: int

class struct_udrv_sim: ...

class struct_udrv_sim_columns:
    capacity: int
    truth_capacity: int
    submit_ns: Any
    slba: Any
    latency: Any
    nlb: Any
    depth: Any
    qid: Any
    status: Any
    opcode: Any
    flags: Any
    ns_index: Any
    truth: struct_udrv_truth
    nr: int
    nr_truth: int

class struct_udrv_sim_config:
    end_ns: int
    timeout_us: int
    blocks: int
    seed: int
    lba_shift: int
    queues: int
    nr_loads: int
    nr_faults: int
    model: struct_udrv_model
    load: Any
    fault: Any

class struct_udrv_soft: ...

class struct_udrv_soft_config:
    size: int
    flags: int
    sock_fd: int
    ready_fd: int
    counters_fd: int
    control_fd: int
    faults_fd: int
    truth_fd: int
    nr_ns: int
    nn: int
    queues: int
    entries: int
    mdts: int
    spin_us: int
    cmb_bytes: int
    serial: Any
    ns: Any

class struct_udrv_truth:
    nth: int
    time_ns: int
    submit_ns: int
    onset_ns: int
    added_ns: int
    slba: int
    fault: int
    epoch: int
    cqid: int
    sqid: int
    cid: int
    effect: int
    kind: int
    opcode: int
    flags: int
    reserved: Any

class Lib:
    UDRV_CONTROL_ADD: Final[int]
    UDRV_CONTROL_CLEAR: Final[int]
    UDRV_CONTROL_LIST: Final[int]
    UDRV_CONTROL_REPLACE: Final[int]
    UDRV_CONTROL_SYNC: Final[int]
    UDRV_FAULT_ADD: Final[int]
    UDRV_FAULT_ALL_ONES: Final[int]
    UDRV_FAULT_BANDWIDTH: Final[int]
    UDRV_FAULT_CFS: Final[int]
    UDRV_FAULT_CORRUPT: Final[int]
    UDRV_FAULT_DELETED_QUEUE: Final[int]
    UDRV_FAULT_DROP: Final[int]
    UDRV_FAULT_DUPLICATE: Final[int]
    UDRV_FAULT_EVENT_STORM: Final[int]
    UDRV_FAULT_FACTOR: Final[int]
    UDRV_FAULT_GC: Final[int]
    UDRV_FAULT_HEALTHY: Final[int]
    UDRV_FAULT_LATE: Final[int]
    UDRV_FAULT_MAGIC: Final[int]
    UDRV_FAULT_MAX: Final[int]
    UDRV_FAULT_MEDIA_ERROR: Final[int]
    UDRV_FAULT_MISSING_INTERRUPT: Final[int]
    UDRV_FAULT_NEVER_READY: Final[int]
    UDRV_FAULT_RETRY: Final[int]
    UDRV_FAULT_SHUTDOWN_HANG: Final[int]
    UDRV_FAULT_SLC: Final[int]
    UDRV_FAULT_SLOW_READY: Final[int]
    UDRV_FAULT_SLOW_RESET: Final[int]
    UDRV_FAULT_SPURIOUS_INTERRUPT: Final[int]
    UDRV_FAULT_STALL: Final[int]
    UDRV_FAULT_STATUS: Final[int]
    UDRV_FAULT_THERMAL: Final[int]
    UDRV_FAULT_THROTTLE: Final[int]
    UDRV_FAULT_TORN: Final[int]
    UDRV_FAULT_UNKNOWN_CID: Final[int]
    UDRV_FAULT_VERSION: Final[int]
    UDRV_FAULT_WRONG_PHASE: Final[int]
    UDRV_FAULT_WRONG_SQHD: Final[int]
    UDRV_FAULT_WRONG_SQID: Final[int]
    UDRV_SIM_LATENCY_UNIT: Final[int]
    UDRV_SIM_MAX_DEPTH: Final[int]
    UDRV_SIM_MAX_LOADS: Final[int]
    UDRV_SIM_SATURATED: Final[int]
    UDRV_SOFT_MAX_NS: Final[int]
    UDRV_SOFT_MAX_QUEUES: Final[int]
    UDRV_SOFT_PEER_CLOSED: Final[int]
    UDRV_SOFT_STOPPED: Final[int]
    UDRV_SOFT_TRAP_DOORBELLS: Final[int]
    UDRV_TRUTH_COMPLETION: Final[int]
    UDRV_TRUTH_CONTROLLER: Final[int]
    UDRV_TRUTH_LOST: Final[int]
    def udrv_fault_check(self, fault: struct_udrv_fault, /) -> int: ...
    def udrv_sim_free(self, sim: struct_udrv_sim, /) -> None: ...
    def udrv_sim_new(self, cfg: struct_udrv_sim_config, sim: Any, /) -> int: ...
    def udrv_sim_run(self, sim: struct_udrv_sim, out: struct_udrv_sim_columns, /) -> int: ...
    def udrv_soft_child(self, config: Any, len: int, /) -> int: ...
    def udrv_soft_control(self, ctrl: struct_udrv_soft, /) -> None: ...
    def udrv_soft_free(self, ctrl: struct_udrv_soft, /) -> None: ...
    def udrv_soft_new(self, cfg: struct_udrv_soft_config, ctrl: Any, /) -> int: ...
    def udrv_soft_run(self, ctrl: struct_udrv_soft, sock: int, stop_fd: int, /) -> int: ...
