"""Builds `udrv.core._core`: the C files of src/ behind the declarations of decl/ (cffi, API mode).

The C compiler checks each declaration against the headers in include/, so a struct that changes
there and not here fails to build instead of corrupting memory.
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PREAMBLE = "".join(
    f"#include <udrv/{path.name}>\n" for path in sorted((HERE / "include/udrv").glob("*.h"))
)

# no -march: a wheel that is made here runs on any machine of the architecture
# Hidden: calls between the files are direct, and no other library can take the place of a symbol.
# No SLP: to pair two stores in a vector register takes more instructions here than it saves.
CFLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-O2", "-fno-tree-slp-vectorize", "-Wall", "-Wextra",
    "-fvisibility=hidden",
]  # fmt: skip
if os.environ.get("UDRV_WERROR") == "1":
    CFLAGS.append("-Werror")


def relative(path: Path) -> str:
    """As setuptools wants it: relative to setup.py."""
    return os.path.relpath(path, ROOT)


ffibuilder = FFI()
for header in sorted((HERE / "decl").glob("*.h")):
    ffibuilder.cdef(header.read_text())
ffibuilder.set_source(
    "udrv.core._core",
    PREAMBLE,
    sources=[relative(path) for path in sorted((HERE / "src").glob("*.c"))],
    depends=[
        relative(path)
        for folder in ("include/udrv", "decl")
        for path in sorted((HERE / folder).glob("*.h"))
    ],
    include_dirs=[relative(HERE / "include")],
    extra_compile_args=CFLAGS,
)
