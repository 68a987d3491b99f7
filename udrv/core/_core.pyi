"""The C names of `udrv.core`, typed. Written by tools/make_stubs.py from decl/*.h: do not edit.

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
        self, cdecl: Literal["struct udrv_bands *"], init: Any = ..., /,
    ) -> struct_udrv_bands: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_batch *"], init: Any = ..., /,
    ) -> struct_udrv_batch: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_bench_job *"], init: Any = ..., /,
    ) -> struct_udrv_bench_job: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_bench_live *"], init: Any = ..., /,
    ) -> struct_udrv_bench_live: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_bench_result *"], init: Any = ..., /,
    ) -> struct_udrv_bench_result: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_clock *"], init: Any = ..., /,
    ) -> struct_udrv_clock: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_command *"], init: Any = ..., /,
    ) -> struct_udrv_command: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_completion *"], init: Any = ..., /,
    ) -> struct_udrv_completion: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_completions *"], init: Any = ..., /,
    ) -> struct_udrv_completions: ...
    @overload
    def new(self, cdecl: Literal["struct udrv_hist *"], init: Any = ..., /) -> struct_udrv_hist: ...
    @overload
    def new(self, cdecl: Literal["struct udrv_lane *"], init: Any = ..., /) -> struct_udrv_lane: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_overdue *"], init: Any = ..., /,
    ) -> struct_udrv_overdue: ...
    @overload
    def new(self, cdecl: Literal["struct udrv_qp *"], init: Any = ..., /) -> struct_udrv_qp: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_qp_anomalies *"], init: Any = ..., /,
    ) -> struct_udrv_qp_anomalies: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_qp_config *"], init: Any = ..., /,
    ) -> struct_udrv_qp_config: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_qp_shared *"], init: Any = ..., /,
    ) -> struct_udrv_qp_shared: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_queue *"], init: Any = ..., /,
    ) -> struct_udrv_queue: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_queue_ops *"], init: Any = ..., /,
    ) -> struct_udrv_queue_ops: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_ring_reader *"], init: Any = ..., /,
    ) -> struct_udrv_ring_reader: ...
    @overload
    def new(self, cdecl: Literal["struct udrv_spin *"], init: Any = ..., /) -> struct_udrv_spin: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_stream *"], init: Any = ..., /,
    ) -> struct_udrv_stream: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_stream_config *"], init: Any = ..., /,
    ) -> struct_udrv_stream_config: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_stream_counters *"], init: Any = ..., /,
    ) -> struct_udrv_stream_counters: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_stream_shared *"], init: Any = ..., /,
    ) -> struct_udrv_stream_shared: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_taken *"], init: Any = ..., /,
    ) -> struct_udrv_taken: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_window *"], init: Any = ..., /,
    ) -> struct_udrv_window: ...
    @overload
    def new(
        self, cdecl: Literal["struct udrv_window_row *"], init: Any = ..., /,
    ) -> struct_udrv_window_row: ...
    @overload
    def new(self, cdecl: Any, init: Any = ..., /) -> Any: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_bands *"], value: Any, /) -> struct_udrv_bands: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_batch *"], value: Any, /) -> struct_udrv_batch: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_bench_job *"], value: Any, /,
    ) -> struct_udrv_bench_job: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_bench_live *"], value: Any, /,
    ) -> struct_udrv_bench_live: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_bench_result *"], value: Any, /,
    ) -> struct_udrv_bench_result: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_clock *"], value: Any, /) -> struct_udrv_clock: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_command *"], value: Any, /,
    ) -> struct_udrv_command: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_completion *"], value: Any, /,
    ) -> struct_udrv_completion: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_completions *"], value: Any, /,
    ) -> struct_udrv_completions: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_hist *"], value: Any, /) -> struct_udrv_hist: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_lane *"], value: Any, /) -> struct_udrv_lane: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_overdue *"], value: Any, /,
    ) -> struct_udrv_overdue: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_qp *"], value: Any, /) -> struct_udrv_qp: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_qp_anomalies *"], value: Any, /,
    ) -> struct_udrv_qp_anomalies: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_qp_config *"], value: Any, /,
    ) -> struct_udrv_qp_config: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_qp_shared *"], value: Any, /,
    ) -> struct_udrv_qp_shared: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_queue *"], value: Any, /) -> struct_udrv_queue: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_queue_ops *"], value: Any, /,
    ) -> struct_udrv_queue_ops: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_ring_reader *"], value: Any, /,
    ) -> struct_udrv_ring_reader: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_spin *"], value: Any, /) -> struct_udrv_spin: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_stream *"], value: Any, /) -> struct_udrv_stream: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_stream_config *"], value: Any, /,
    ) -> struct_udrv_stream_config: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_stream_counters *"], value: Any, /,
    ) -> struct_udrv_stream_counters: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_stream_shared *"], value: Any, /,
    ) -> struct_udrv_stream_shared: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_taken *"], value: Any, /) -> struct_udrv_taken: ...
    @overload
    def cast(self, cdecl: Literal["struct udrv_window *"], value: Any, /) -> struct_udrv_window: ...
    @overload
    def cast(
        self, cdecl: Literal["struct udrv_window_row *"], value: Any, /,
    ) -> struct_udrv_window_row: ...
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

class struct_udrv_bands:
    count_above: Any
    sum_ns: Any
    max_ns: Any
    rotation: int

class struct_udrv_batch:
    capacity: int
    nsid: int
    lba_shift: int
    pool_id: int
    nsze: int
    iova: int
    len: int
    pool_offset: int
    prp_table: int
    commands: struct_udrv_command
    slot: int
    file: int
    buf_index: int
    writable: int

class struct_udrv_bench_job:
    queue: struct_udrv_queue
    base: struct_udrv_batch
    buffer: Any
    scratch: Any
    verify_table: Any
    live: struct_udrv_bench_live
    result: struct_udrv_bench_result
    flags: int
    process: int
    read_percent: int
    iodepth: int
    unit_blocks: int
    buffer_stride: int
    start_block: int
    units: int
    seed: int
    pattern_seed: int
    runtime_ns: int
    max_ios: int
    max_errors: int
    timeout_ns: int
    spin_ns: int
    rate_iops: float
    stop: int

class struct_udrv_bench_live:
    ios: Any
    bytes: Any
    errors: int
    inflight: int

class struct_udrv_bench_result:
    dir: Any
    elapsed_ns: int
    issued: int
    unfinished: int
    timed_out: int
    first_status: int
    first_opcode: int
    saturated: int
    first_bad_kind: int
    first_result: int
    first_error_slba: int
    blocks_checked: int
    blocks_unchecked: int
    verify_failures: int
    first_bad_lba: int
    lag_max_ns: int
    lag_end_ns: int
    backlog: int
    sq_doorbells: int
    cq_doorbells: int
    system_calls: int
    polls: int
    empty_polls: int
    cpu_ns: int
    user_ns: int
    system_ns: int
    voluntary_switches: int
    involuntary_switches: int

class struct_udrv_clock:
    source: int
    mult: int

class struct_udrv_command:
    slba: int
    offset: int
    user_data: int
    nlb: int
    control: int
    opcode: int

class struct_udrv_completion:
    user_data: int
    result: int
    latency_ns: int
    status: int

class struct_udrv_completions:
    capacity: int
    rows: struct_udrv_completion

class struct_udrv_hist:
    count: int
    sum: int
    min: int
    max: int
    sum_sq: float
    saturated: int
    bucket: Any

class struct_udrv_lane:
    batch: struct_udrv_batch
    done: struct_udrv_completion
    holder: int

class struct_udrv_overdue:
    submit_ticks: int
    age_ns: int
    user_data: int
    slba: int
    len: int
    cid: int
    opcode: int

class struct_udrv_qp:
    shared: struct_udrv_qp_shared
    closed: int
    eventfd: int
    ring_after_ns: int

class struct_udrv_qp_anomalies:
    bad_cid: int
    duplicate: int
    bad_sqid: int
    late: int

class struct_udrv_qp_config:
    qid: int
    entries: int
    eventfd: int
    max_transfer: int
    flags: int
    shared: Any
    sq: Any
    cq: Any
    prp: Any
    prp_iova: int
    sq_doorbell: Any
    cq_doorbell: Any
    sq_shadow: Any
    cq_shadow: Any
    sq_event: Any
    cq_event: Any
    sq_post: Any
    cq_post: Any
    post_fd: int
    post_len: int
    post_at: int

class struct_udrv_qp_shared:
    magic: int
    abi: int
    epoch: int
    qid: int
    entries: int
    nr_trackers: int
    trackers_offset: int
    free_offset: int
    slots_offset: int
    size: int
    sq_posted: int
    sq_rung: int
    nr_free: int
    submitted: int
    sq_doorbells: int
    sq_shadow: int
    forced: int
    cq_head: int
    cq_rung: int
    cq_phase: int
    consumed: int
    completed: int
    cq_doorbells: int
    cq_shadow: int
    anomalies: struct_udrv_qp_anomalies

class struct_udrv_queue:
    ops: struct_udrv_queue_ops
    handle: Any

class struct_udrv_queue_ops: ...

class struct_udrv_ring_reader:
    hold: Any
    next: int

class struct_udrv_spin:
    mean_ns: int

class struct_udrv_stream: ...

class struct_udrv_stream_config:
    qid: int
    flags: int
    chunks: int
    cells: int
    stride: int
    period_ns: int
    serial: int

class struct_udrv_stream_counters:
    seen: int
    delivered: int
    sampled_out: int
    ring_full: int
    overrun: int
    host_late: int
    rejected: int
    late: int

class struct_udrv_stream_shared:
    magic: int
    abi: int
    record_version: int
    flags: int
    qid: int
    size: int
    chunks: int
    chunks_offset: int
    cells: int
    stride: int
    clock_source: int
    period_ns: int
    pass_mark: int
    generation: int
    rotation: int
    nr_keys: int
    nr_namespaces: int
    serial: int
    ns: Any

class struct_udrv_taken:
    base: int
    index: int
    first: int
    end: int

class struct_udrv_window:
    rotation: int
    start_ns: int
    end_ns: int
    seen: int
    host_late: int
    rejected: int
    ended: int
    max_gap_ns: int

class struct_udrv_window_row:
    key: int
    low: int
    high: int
    count: int
    sum_ns: int
    max_ns: int
    sum_sq: float
    errors: int
    threshold_ns: int

class Lib:
    IOMMU_DESTROY: Final[int]
    IOMMU_IOAS_ALLOC: Final[int]
    IOMMU_IOAS_IOVA_RANGES: Final[int]
    IOMMU_IOAS_MAP: Final[int]
    IOMMU_IOAS_MAP_FIXED_IOVA: Final[int]
    IOMMU_IOAS_MAP_READABLE: Final[int]
    IOMMU_IOAS_MAP_WRITEABLE: Final[int]
    IOMMU_IOAS_UNMAP: Final[int]
    UDRV_BANDS: Final[int]
    UDRV_BENCH_BAD_GENERATION: Final[int]
    UDRV_BENCH_BAD_LBA: Final[int]
    UDRV_BENCH_BAD_MAGIC: Final[int]
    UDRV_BENCH_BAD_PAYLOAD: Final[int]
    UDRV_BENCH_BAD_SEED: Final[int]
    UDRV_BENCH_CLOSED: Final[int]
    UDRV_BENCH_GOOD: Final[int]
    UDRV_BENCH_LINEAR: Final[int]
    UDRV_BENCH_MAX_DEPTH: Final[int]
    UDRV_BENCH_POISSON: Final[int]
    UDRV_BENCH_RANDOM: Final[int]
    UDRV_BENCH_READBACK: Final[int]
    UDRV_BENCH_VERIFY: Final[int]
    UDRV_CLOCK_CNTVCT: Final[int]
    UDRV_CLOCK_GETTIME: Final[int]
    UDRV_CLOCK_TSC: Final[int]
    UDRV_EAGAIN: Final[int]
    UDRV_EALIGN: Final[int]
    UDRV_EBUFFER: Final[int]
    UDRV_EBUSY: Final[int]
    UDRV_ECLOSED: Final[int]
    UDRV_EFORKED: Final[int]
    UDRV_EFULL: Final[int]
    UDRV_EHALTED: Final[int]
    UDRV_EINVAL: Final[int]
    UDRV_EOPCODE: Final[int]
    UDRV_ERANGE: Final[int]
    UDRV_EREADONLY: Final[int]
    UDRV_ESIZE: Final[int]
    UDRV_ETRANSPORT: Final[int]
    UDRV_HIST_BITS: Final[int]
    UDRV_HIST_BUCKETS: Final[int]
    UDRV_KEYS: Final[int]
    UDRV_KEY_REST: Final[int]
    UDRV_NS_UNKNOWN: Final[int]
    UDRV_QP_HALTED: Final[int]
    UDRV_QP_PRP_MAX_TRANSFER: Final[int]
    UDRV_QP_SLOTS: Final[int]
    UDRV_QP_UNTIMED: Final[int]
    UDRV_RECORD_HOST_ENDED: Final[int]
    UDRV_RECORD_HOST_LATE: Final[int]
    UDRV_RECORD_LATE: Final[int]
    UDRV_RECORD_REJECTED: Final[int]
    UDRV_RECORD_ROWS: Final[int]
    UDRV_RECORD_SATURATED: Final[int]
    UDRV_RECORD_SLEPT: Final[int]
    UDRV_RECORD_VERSION: Final[int]
    UDRV_RING_MAX_CHUNKS: Final[int]
    UDRV_SIGBUS_RANGES: Final[int]
    UDRV_SPIN_LEAST_NS: Final[int]
    UDRV_SPIN_MEASURED: Final[int]
    UDRV_SPIN_MOST_NS: Final[int]
    UDRV_SPIN_ONLY: Final[int]
    UDRV_STATUS_ABORTED_BY_HOST: Final[int]
    UDRV_STREAM_DEPTH_EXACT: Final[int]
    UDRV_STREAM_MAX_PERIOD_NS: Final[int]
    UDRV_STREAM_MIN_PERIOD_NS: Final[int]
    UDRV_STREAM_RECORDS: Final[int]
    UDRV_WINDOWS: Final[int]
    UDRV_WINDOW_MAX_CELLS: Final[int]
    UDRV_WINDOW_NAMESPACES: Final[int]
    VFIO_API_VERSION: Final[int]
    VFIO_CHECK_EXTENSION: Final[int]
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: Final[int]
    VFIO_DEVICE_BIND_IOMMUFD: Final[int]
    VFIO_DEVICE_FLAGS_PCI: Final[int]
    VFIO_DEVICE_FLAGS_RESET: Final[int]
    VFIO_DEVICE_GET_INFO: Final[int]
    VFIO_DEVICE_GET_IRQ_INFO: Final[int]
    VFIO_DEVICE_GET_REGION_INFO: Final[int]
    VFIO_DEVICE_RESET: Final[int]
    VFIO_DEVICE_SET_IRQS: Final[int]
    VFIO_DMA_MAP_FLAG_READ: Final[int]
    VFIO_DMA_MAP_FLAG_WRITE: Final[int]
    VFIO_GET_API_VERSION: Final[int]
    VFIO_GROUP_FLAGS_CONTAINER_SET: Final[int]
    VFIO_GROUP_FLAGS_VIABLE: Final[int]
    VFIO_GROUP_GET_DEVICE_FD: Final[int]
    VFIO_GROUP_GET_STATUS: Final[int]
    VFIO_GROUP_SET_CONTAINER: Final[int]
    VFIO_GROUP_UNSET_CONTAINER: Final[int]
    VFIO_IOMMU_GET_INFO: Final[int]
    VFIO_IOMMU_INFO_CAPS: Final[int]
    VFIO_IOMMU_INFO_PGSIZES: Final[int]
    VFIO_IOMMU_MAP_DMA: Final[int]
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final[int]
    VFIO_IOMMU_UNMAP_DMA: Final[int]
    VFIO_IRQ_INFO_EVENTFD: Final[int]
    VFIO_IRQ_INFO_NORESIZE: Final[int]
    VFIO_IRQ_SET_ACTION_TRIGGER: Final[int]
    VFIO_IRQ_SET_DATA_EVENTFD: Final[int]
    VFIO_IRQ_SET_DATA_NONE: Final[int]
    VFIO_REGION_INFO_CAP_SPARSE_MMAP: Final[int]
    VFIO_REGION_INFO_FLAG_CAPS: Final[int]
    VFIO_REGION_INFO_FLAG_MMAP: Final[int]
    VFIO_REGION_INFO_FLAG_READ: Final[int]
    VFIO_REGION_INFO_FLAG_WRITE: Final[int]
    VFIO_SET_IOMMU: Final[int]
    VFIO_TYPE1v2_IOMMU: int
    udrv_clock: struct_udrv_clock
    udrv_fork_generation: int
    def udrv_bench_result_reset(self, result: struct_udrv_bench_result, /) -> None: ...
    def udrv_bench_run(self, job: struct_udrv_bench_job, /) -> int: ...
    def udrv_bench_schedule(
        self, process: int, rate_iops: float, seed: int, out: Any, n: int, /,
    ) -> None: ...
    def udrv_bench_scratch_size(self, iodepth: int, /) -> int: ...
    def udrv_core_init(self) -> int: ...
    def udrv_hist_bucket_high(self, index: int, /) -> int: ...
    def udrv_hist_bucket_low(self, index: int, /) -> int: ...
    def udrv_hist_index(self, v: int, /) -> int: ...
    def udrv_hist_merge(self, to: struct_udrv_hist, from_: struct_udrv_hist, /) -> None: ...
    def udrv_hist_quantile(self, h: struct_udrv_hist, quantile: float, /) -> int: ...
    def udrv_hist_record(self, h: struct_udrv_hist, v: int, /) -> None: ...
    def udrv_hist_reset(self, h: struct_udrv_hist, /) -> None: ...
    def udrv_lane_give_up(
        self, lane: struct_udrv_lane, target: struct_udrv_batch, slot: int, /,
    ) -> int: ...
    def udrv_lane_held(self, lane: struct_udrv_lane, target: struct_udrv_batch, /) -> int: ...
    def udrv_lane_init(
        self, lane: struct_udrv_lane, queue: struct_udrv_queue, slot: int, spin_ns: int, slice_ns:
        int, /,
    ) -> None: ...
    def udrv_lane_lend(self, lane: struct_udrv_lane, lent: int, /) -> int: ...
    def udrv_lane_run(
        self, lane: struct_udrv_lane, target: struct_udrv_batch, opcode: int, slba: int, nlb: int,
        /,
    ) -> int: ...
    def udrv_lane_wait(self, lane: struct_udrv_lane, target: struct_udrv_batch, /) -> int: ...
    def udrv_mmio_read32(self, addr: Any, /) -> int: ...
    def udrv_mmio_read64(self, addr: Any, /) -> int: ...
    def udrv_mmio_write32(self, addr: Any, value: int, /) -> None: ...
    def udrv_mmio_write64(self, addr: Any, value: int, /) -> None: ...
    def udrv_pattern_check(
        self, block: Any, bytes: int, lba: int, seed: int, generation: int, /,
    ) -> int: ...
    def udrv_pattern_fill(
        self, block: Any, bytes: int, lba: int, seed: int, generation: int, /,
    ) -> None: ...
    def udrv_qp_as_queue(self, qp: struct_udrv_qp, queue: struct_udrv_queue, /) -> None: ...
    def udrv_qp_close(self, qp: struct_udrv_qp, /) -> None: ...
    def udrv_qp_free(self, qp: struct_udrv_qp, /) -> None: ...
    def udrv_qp_halt(self, qp: struct_udrv_qp, /) -> int: ...
    def udrv_qp_inflight(self, qp: struct_udrv_qp, /) -> int: ...
    def udrv_qp_init(self, qp: struct_udrv_qp, config: struct_udrv_qp_config, /) -> int: ...
    def udrv_qp_new(self) -> struct_udrv_qp: ...
    def udrv_qp_overdue(
        self, qp: struct_udrv_qp, limits_ns: Any, out: struct_udrv_overdue, max: int, /,
    ) -> int: ...
    def udrv_qp_quarantine(self, qp: struct_udrv_qp, slot: int, /) -> int: ...
    def udrv_qp_reap(
        self, qp: struct_udrv_qp, out: struct_udrv_completions, first: int, max: int, /,
    ) -> int: ...
    def udrv_qp_release_all(self, qp: struct_udrv_qp, /) -> int: ...
    def udrv_qp_restart(self, qp: struct_udrv_qp, /) -> int: ...
    def udrv_qp_resume(self, qp: struct_udrv_qp, /) -> None: ...
    def udrv_qp_ring(self, qp: struct_udrv_qp, /) -> int: ...
    def udrv_qp_set_stream(self, qp: struct_udrv_qp, s: struct_udrv_stream, /) -> int: ...
    def udrv_qp_shared_size(self, entries: int, /) -> int: ...
    def udrv_qp_slot_inflight(self, qp: struct_udrv_qp, slot: int, /) -> int: ...
    def udrv_qp_submit(
        self, qp: struct_udrv_qp, batch: struct_udrv_batch, first: int, count: int, bad: Any, /,
    ) -> int: ...
    def udrv_qp_submit_raw(
        self, qp: struct_udrv_qp, sqe: Any, iova: int, len: int, pool_id: int, pool_offset: int,
        offset: int, slot: int, user_data: int, /,
    ) -> int: ...
    def udrv_qp_unreaped(self, qp: struct_udrv_qp, /) -> int: ...
    def udrv_qp_wait(
        self, qp: struct_udrv_qp, out: struct_udrv_completions, min: int, max: int, timeout_ns: int,
        spin_ns: int, /,
    ) -> int: ...
    def udrv_ring_release(self, reader: struct_udrv_ring_reader, index: int, /) -> None: ...
    def udrv_ring_take(
        self, sh: struct_udrv_stream_shared, reader: struct_udrv_ring_reader, generation: Any,
        first: Any, end: Any, base: Any, /,
    ) -> int: ...
    def udrv_ring_take_all(
        self, sh: struct_udrv_stream_shared, reader: struct_udrv_ring_reader, out:
        struct_udrv_taken, max: int, /,
    ) -> int: ...
    def udrv_sigbus_gone(self, range: int, /) -> int: ...
    def udrv_sigbus_unwatch(self, range: int, /) -> None: ...
    def udrv_sigbus_watch(self, start: Any, size: int, /) -> int: ...
    def udrv_spin_budget(self, s: struct_udrv_spin, spin_ns: int, /) -> int: ...
    def udrv_spin_observe(self, s: struct_udrv_spin, waited_ns: int, /) -> None: ...
    def udrv_stream_add_namespace(
        self, s: struct_udrv_stream, nsid: int, nsze: int, lba_shift: int, /,
    ) -> int: ...
    def udrv_stream_check(self, shared: Any, size: int, /) -> int: ...
    def udrv_stream_count(
        self, sh: struct_udrv_stream_shared, reader: struct_udrv_ring_reader, out:
        struct_udrv_stream_counters, waiting: Any, /,
    ) -> int: ...
    def udrv_stream_handle_size(self) -> int: ...
    def udrv_stream_init(
        self, s: struct_udrv_stream, config: struct_udrv_stream_config, shared: Any, reader: Any,
        seq: int, /,
    ) -> int: ...
    def udrv_stream_size(self, config: struct_udrv_stream_config, /) -> int: ...
    def udrv_window_read(
        self, sh: struct_udrv_stream_shared, rotation: int, window: struct_udrv_window, rows:
        struct_udrv_window_row, hist: Any, bands: struct_udrv_bands, max: int, /,
    ) -> int: ...
