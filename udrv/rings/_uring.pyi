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
    def new(self, cdecl: Any, init: Any = ..., /) -> Any: ...
    @overload
    def cast(self, cdecl: Literal["struct io_uring *"], value: Any, /) -> struct_io_uring: ...
    @overload
    def cast(
        self, cdecl: Literal["struct io_uring_params *"], value: Any, /,
    ) -> struct_io_uring_params: ...
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
    def io_uring_queue_exit(self, ring: struct_io_uring, /) -> None: ...
    def io_uring_queue_init_params(
        self, entries: int, ring: struct_io_uring, p: struct_io_uring_params, /,
    ) -> int: ...
    def udrv_uring_free(self, ring: struct_io_uring, /) -> None: ...
    def udrv_uring_new(self) -> struct_io_uring: ...
