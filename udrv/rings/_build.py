"""Builds `udrv.rings._uring`: liburing, and the C files of src/, behind the declarations of decl/.

liburing is linked statically, so that the extension needs the C library only. Where its archive is
missing, or is not position independent, the shared library does, and `liburing` says so. Without
liburing at all setup.py leaves this extension out: nothing else of udrv needs it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORE = ROOT / "udrv/core"

# --exclude-libs: the symbols of liburing.a stay inside. -z text: an archive that is not position
# independent is refused when it is linked, not when it is loaded.
STATIC = ["-l:liburing.a", "-Wl,--exclude-libs,ALL", "-Wl,-z,text"]
SHARED = ["-luring"]

# What a liburing older than 2.3 does not have; and references that pull in most of the archive.
PROBE = """
#include <liburing.h>
int probe(struct io_uring *ring, struct io_uring_sync_cancel_reg *reg, struct io_uring_params *p);
int probe(struct io_uring *ring, struct io_uring_sync_cancel_reg *reg, struct io_uring_params *p)
{
	p->flags = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_SQE128;
	return io_uring_queue_init_params(8, ring, p) + io_uring_register_sync_cancel(ring, reg)
		+ io_uring_submit_and_get_events(ring);
}
"""


def links(arguments: list[str]) -> bool:
    """Whether a shared object that uses liburing can be made with `arguments`."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = [
        word for name in ("CPPFLAGS", "CFLAGS", "LDFLAGS")
        for word in shlex.split(os.environ.get(name, ""))
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE)
        command = [*compiler, *flags, "-shared", "-fPIC", f"-o{folder}/probe.so", str(source)]
        try:
            done = subprocess.run([*command, *arguments], capture_output=True, check=False)
        except OSError:
            return False
    return done.returncode == 0


def liburing() -> dict[str, Any] | None:
    """What the Extension needs in order to link liburing, or None where there is none."""
    if links(STATIC):
        return {"extra_link_args": STATIC}
    if links(SHARED):
        print(
            "udrv: no position independent liburing.a: udrv.rings._uring needs liburing.so at run "
            "time",
            file=sys.stderr,
        )
        return {"extra_link_args": SHARED, "define_macros": [("UDRV_LIBURING_SHARED", "1")]}
    return None


def relative(path: Path) -> str:
    """As setuptools wants it: relative to setup.py."""
    return os.path.relpath(path, ROOT)


ffibuilder = FFI()
for header in sorted((HERE / "decl").glob("*.h")):
    ffibuilder.cdef(header.read_text())
ffibuilder.set_source(
    "udrv.rings._uring",
    "".join(f"#include <udrv/{path.name}>\n" for path in sorted(HERE.glob("include/udrv/*.h"))),
    sources=[relative(path) for path in sorted((HERE / "src").glob("*.c"))],
    depends=[
        relative(path)
        for folder in (HERE / "src", HERE / "decl", HERE / "include/udrv", CORE / "include/udrv")
        for path in sorted(folder.glob("*.h"))
    ],
    include_dirs=[relative(HERE / "include"), relative(CORE / "include")],
    extra_compile_args=[
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Wextra",
        "-fvisibility=hidden",
        *(["-Werror"] if os.environ.get("UDRV_WERROR") == "1" else []),
    ],
)
