"""Builds the cffi extension modules; everything else is in pyproject.toml.

UDRV_EXTENSIONS=core,soft builds only those (a developer's short cut).
"""

import os
import runpy
import sys
import sysconfig

from setuptools import setup
from setuptools.command.build_ext import build_ext

BUILDERS = {
    "core": "udrv/core/_build.py:ffibuilder",
    "rings": "udrv/rings/_build.py:ffibuilder",
    "soft": "udrv/soft/_build.py:ffibuilder",
}
asked = os.environ.get("UDRV_EXTENSIONS")
wanted = (",".join(BUILDERS) if asked is None else asked).split(",")

# cffi uses the limited API, so one wheel does for 3.11 and newer; a free-threaded Python has none.
limited_api = not sysconfig.get_config_var("Py_GIL_DISABLED")

NO_LIBURING = """\
udrv: no liburing 2.3 or newer: built WITHOUT udrv.rings (io_uring). All else works.
udrv: to have it, install liburing-dev (Fedora, SUSE: liburing-devel) and build again."""


class BuildExt(build_ext):
    """Leaves out udrv.rings._uring where there is no liburing, unless it was asked for by name."""

    def run(self) -> None:
        for extension in list(self.extensions or ()):
            if extension.name != "udrv.rings._uring":
                continue
            found = runpy.run_path("udrv/rings/_build.py")["liburing"]()
            if found:
                for name, value in found.items():
                    getattr(extension, name).extend(value)
            elif asked and "rings" in wanted:
                raise SystemExit("udrv: UDRV_EXTENSIONS names rings, and there is no liburing 2.3")
            else:
                print(NO_LIBURING, file=sys.stderr)
                self.extensions.remove(extension)
        super().run()


setup(
    cmdclass={"build_ext": BuildExt},
    cffi_modules=[BUILDERS[name] for name in wanted if name],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited_api else {},
)
