"""What is built: the limited API, the baseline instruction set, C without Python, current stubs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import make_stubs  # noqa: E402

MODULES = ["udrv.core._core", "udrv.rings._uring", "udrv.soft._soft"]
C_FILES = sorted(ROOT.glob("udrv/*/src/*.c"))
HEADERS = sorted([*ROOT.glob("udrv/*/src/*.h"), *ROOT.glob("udrv/*/include/**/*.h")])
INCLUDES = [f"-I{path}" for path in sorted(ROOT.glob("udrv/*/include"))]
STRICT = ["-std=c11", "-D_GNU_SOURCE=", "-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Any:
    return import_module(request.param)


# --- the binaries ------------------------------------------------------------------------------


def test_the_modules_use_the_limited_api(module: Any) -> None:
    assert Path(module.__file__).name == f"{module.__name__.rpartition('.')[2]}.abi3.so"


def test_the_modules_need_the_c_library_only(module: Any) -> None:
    needed = set(re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", module.__file__)))
    assert needed
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}


def test_the_modules_run_on_any_x86_64(module: Any) -> None:
    text = run("objdump", "-d", "--no-show-raw-insn", module.__file__)
    if "elf64-x86-64" not in text:
        pytest.skip("not an x86-64 build: no instruction set above the baseline is known here")
    assert "%xmm" in text, "the disassembly shows no registers: nothing would be found"
    assert not re.search(r"%[yz]mm\d", text), "AVX instructions without a check of the CPU"
    assert not re.search(r"\b(bzhi|pext|pdep|shlx|sarx|rorx|movbe|popcnt)\w?\s", text)


def test_the_modules_export_their_init_function_only(module: Any) -> None:
    """Two extension modules, or two versions of one, must not bind to each other's symbols."""
    symbols = run("nm", "-D", "--defined-only", "--format=posix", module.__file__)
    names = {line.split()[0] for line in symbols.splitlines()}
    assert {n for n in names if not n.startswith(("PyInit_", "_cffi_pypyinit", "_init", "_fini"))} \
        == set()


# --- the C files -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", C_FILES, ids=lambda p: p.name)
def test_c_compiles_without_python(path: Path) -> None:
    assert "Python.h" not in path.read_text()
    run("gcc", *STRICT, *INCLUDES, path)


def test_c_compiles_for_aarch64() -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no aarch64-linux-gnu-gcc: tools/setup.sh system installs it")
        pytest.skip("no aarch64-linux-gnu-gcc: `make system` installs it")
    run(compiler, *STRICT, *INCLUDES, *C_FILES)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("udrv/*/include/**/*.h")), ids=lambda p: p.name
)
def test_a_header_stands_alone(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "alone.c"
    source.write_text(f'#include "{path}"\n#include "{path}"\nint main(void) {{ return 0; }}\n')
    run("gcc", *STRICT, *INCLUDES, source)


@pytest.mark.parametrize("path", C_FILES + HEADERS, ids=lambda p: p.name)
def test_c_states_its_licence(path: Path) -> None:
    assert "SPDX-License-Identifier: Apache-2.0" in path.read_text().splitlines()[0]


def test_every_licence_that_is_named_is_here() -> None:
    named = set()
    for pattern in ("udrv/**/*.[ch]", "udrv/**/*.py", "tests/**/*.[ch]", "kernel/**/*", "tools/*"):
        for path in ROOT.glob(pattern):
            if path.is_file():
                head = path.read_text(errors="replace")[:400]
                for expression in re.findall(r"SPDX-License-Identifier:\s*(.+)", head):
                    words = re.findall(r"[A-Z][\w.]*-[\w.-]+", expression)
                    named.update(words)
    assert "Apache-2.0" in named
    assert named <= {path.stem for path in (ROOT / "LICENSES").glob("*.txt")}


# --- the stubs ---------------------------------------------------------------------------------


def test_the_stub_is_current(module: Any) -> None:
    stub = ROOT.joinpath(*module.__name__.split(".")).with_suffix(".pyi")
    assert stub.read_text() == make_stubs.make_stub(module.__name__), "run `make stubs`"


def test_the_stub_has_every_name_of_the_module(module: Any) -> None:
    stub = ROOT.joinpath(*module.__name__.split(".")).with_suffix(".pyi")
    tree = ast.parse(stub.read_text())
    lib = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Lib")
    names = {n.name for n in lib.body if isinstance(n, ast.FunctionDef)}
    names |= {n.target.id for n in lib.body
              if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert names == set(dir(module.lib))


# --- the package -------------------------------------------------------------------------------


def test_importing_the_package_loads_no_extension_module() -> None:
    code = "import sys, udrv; print([m for m in sys.modules if '._' in m and 'udrv' in m])"
    assert run(sys.executable, "-c", code).strip() == "['udrv._version']"


def test_every_public_name_is_there() -> None:
    udrv = import_module("udrv")
    for name in udrv.__all__:
        assert getattr(udrv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        _ = udrv.opne
