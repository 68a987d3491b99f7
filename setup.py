"""Builds the cffi extension modules; everything else is in pyproject.toml.

UDRV_EXTENSIONS=core,soft builds only those (a developer's short cut).
"""

import os
import sysconfig

from setuptools import setup

BUILDERS = {
    "core": "udrv/core/_build.py:ffibuilder",
    "soft": "udrv/soft/_build.py:ffibuilder",
}
wanted = os.environ.get("UDRV_EXTENSIONS", ",".join(BUILDERS)).split(",")

# cffi uses the limited API, so one wheel does for 3.11 and newer; a free-threaded Python has none.
limited_api = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=[BUILDERS[name] for name in wanted if name],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited_api else {},
)
