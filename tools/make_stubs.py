"""Write the type stubs of the cffi modules: `udrv/core/_core.pyi` and its like.

Usage: python tools/make_stubs.py [--check] [MODULE...]

The names, constants and struct fields are asked of the built modules themselves; only the names of
function parameters come from the text of `decl/*.h`, as cffi does not keep them. With --check
nothing is written, and the exit status is 1 if a committed stub is not what would be written.
"""

from __future__ import annotations

import keyword
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("udrv.core._core", "udrv.rings._uring", "udrv.soft._soft")
OPTIONAL = "udrv.rings._uring"  # setup.py leaves it out where there is no liburing
WIDTH = 100

HEADER = '''\
"""The C names of `{package}`, typed. Written by tools/make_stubs.py from decl/*.h: do not edit.

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
'''

FOOTER = '''\
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
'''

PROTOTYPE = re.compile(r"\b(\w+)\s*\(([^(){};]*)\)\s*;", re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def parameter_names(folder: Path) -> dict[str, list[str]]:
    """The parameter names of each prototype in the headers of `folder`."""
    names = {}
    for header in sorted(folder.glob("*.h")):
        text = COMMENT.sub("", header.read_text())
        for function, parameters in PROTOTYPE.findall(text):
            found = [re.findall(r"\w+", parameter) for parameter in parameters.split(",")]
            last = [words[-1] for words in found if words and words != ["void"]]
            names[function] = [f"{n}_" if keyword.iskeyword(n) else n for n in last]
    return names


def struct_name(ctype: Any) -> str | None:
    """`x` for struct x, as a value or through one pointer; else None."""
    if ctype.kind == "pointer":
        ctype = ctype.item
    if ctype.kind in ("struct", "union") and ctype.cname.startswith(("struct ", "union ")):
        return "struct_" + str(ctype.cname.split()[1])
    return None


def python_type(ctype: Any, structs: set[str]) -> str:
    """The Python type that cffi converts a C type to. A struct is added to `structs`."""
    if ctype.kind == "void":
        return "None"
    if ctype.kind == "enum":
        return "int"
    if ctype.kind == "primitive":
        special = {"char": "bytes", "_Bool": "bool", "float": "float", "double": "float"}
        return special.get(ctype.cname, "int")
    name = struct_name(ctype)
    if name is None:
        return "Any"
    structs.add(name)
    return name


def struct_class(ffi: Any, name: str, structs: set[str]) -> list[str]:
    """A class with the fields of a struct, none for an opaque one."""
    ctype = ffi.typeof(name.replace("_", " ", 1))
    try:
        ffi.sizeof(ctype)
    except ffi.error:  # declared and not defined: cffi aborts if it is asked for the fields
        return ["", f"class {name}: ..."]
    fields = ctype.fields or []
    if not fields:
        return ["", f"class {name}: ..."]
    lines = [f"    {field}: {python_type(info.type, structs)}" for field, info in fields]
    return ["", f"class {name}:", *lines]


def wrapped(start: str, items: list[str], end: str) -> list[str]:
    """A definition on one line, or with its parameters on lines of their own."""
    line = start + ", ".join(items) + end
    if len(line) <= WIDTH:
        return [line]
    inner = textwrap.wrap(
        ", ".join(items) + ",", WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8
    )
    return [start, *inner, f"    {end}"]


def lib_class(ffi: Any, lib: Any, names: dict[str, list[str]], structs: set[str]) -> list[str]:
    """The functions, constants and variables of a module."""
    constants, functions = [], []
    for name in sorted(dir(lib)):
        value = getattr(lib, name)
        if isinstance(value, int):
            constant = name.isupper()
            constants.append(f"    {name}: {'Final[int]' if constant else 'int'}")
        elif isinstance(value, ffi.CData):
            constants.append(f"    {name}: {python_type(ffi.typeof(value), structs)}")
        else:
            ctype = ffi.typeof(value)
            known = names.get(name, [])
            if len(known) != len(ctype.args):
                raise SystemExit(f"{name}: {len(ctype.args)} parameters, {len(known)} names found")
            parameters = [
                f"{parameter}: {python_type(arg, structs)}"
                for parameter, arg in zip(known, ctype.args, strict=True)
            ]
            result = python_type(ctype.result, structs)
            arguments = ["self", *parameters, "/"] if parameters else ["self"]
            functions += wrapped(f"    def {name}(", arguments, f") -> {result}: ...")
    return ["", "class Lib:", *constants, *functions]


def constructors(structs: set[str]) -> list[str]:
    """ffi.new() and ffi.cast(), which give what their first argument names."""
    lines = []
    for method, tail in (("new", "init: Any = ..."), ("cast", "value: Any")):
        for name in sorted(structs):
            cdecl = f'cdecl: Literal["{name.replace("_", " ", 1)} *"]'
            lines.append("    @overload")
            lines += wrapped(f"    def {method}(", ["self", cdecl, tail, "/"], f") -> {name}: ...")
        lines += ["    @overload", f"    def {method}(self, cdecl: Any, {tail}, /) -> Any: ..."]
    return lines


def make_stub(module_name: str) -> str:
    """The text of a module's stub."""
    module = import_module(module_name)
    package = module_name.rpartition(".")[0]
    names = parameter_names(ROOT.joinpath(*package.split("."), "decl"))
    structs: set[str] = set()
    lib_lines = lib_class(module.ffi, module.lib, names, structs)
    bodies: dict[str, list[str]] = {}
    while missing := structs - bodies.keys():  # a struct's fields may name further structs
        bodies.update({name: struct_class(module.ffi, name, structs) for name in missing})
    lines = HEADER.format(package=package).splitlines()
    lines += [*constructors(structs), *FOOTER.splitlines()]
    for name in sorted(bodies):
        lines += bodies[name]
    return "\n".join([*lines, *lib_lines]) + "\n"


def main(argv: list[str]) -> int:
    """Write the stubs, or compare them."""
    stale = 0
    for module_name in [arg for arg in argv if arg != "--check"] or MODULES:
        path = ROOT.joinpath(*module_name.split(".")).with_suffix(".pyi")
        try:
            text = make_stub(module_name)
        except ModuleNotFoundError as exc:
            if module_name != OPTIONAL or exc.name != OPTIONAL:
                raise
            print(f"{module_name} is not built: its stub stays as it is", file=sys.stderr)
            continue
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if "--check" in argv:
            print(f"{path.relative_to(ROOT)} is not current: run `make stubs`", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
