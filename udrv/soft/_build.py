"""Builds `udrv.soft._soft` with cffi; `setup.py` names this file.

The C sources know nothing of Python: the same files are built alone for sanitizers (tests/soft).
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

ffibuilder = FFI()
for _part in ("fault.h", "sim.h", "soft.h"):
    ffibuilder.cdef((HERE / "decl" / _part).read_text())
ffibuilder.set_source(
    "udrv.soft._soft",
    "#include <udrv/soft.h>\n#include <udrv/soft_sim.h>",
    # Relative to the directory of setup.py, as setuptools wants them.
    sources=sorted(str(path.relative_to(ROOT)) for path in (HERE / "src").glob("*.c")),
    depends=[
        str(path.relative_to(ROOT))
        for part in ("src", "include/udrv", "decl")
        for path in sorted((HERE / part).glob("*.h"))
    ],
    include_dirs=[str((HERE / "include").relative_to(ROOT))],
    extra_compile_args=[
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-fvisibility=hidden",
        *(["-Werror"] if os.environ.get("UDRV_WERROR") == "1" else []),
    ],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
