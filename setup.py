"""Builds the cffi extension modules; everything else is in pyproject.toml.

UDRV_EXTENSIONS=core,soft builds only those (a developer's short cut).
"""

import os

from setuptools import setup

BUILDERS = {
    "core": "udrv/core/_build.py:ffibuilder",
    "soft": "udrv/soft/_build.py:ffibuilder",
}
wanted = os.environ.get("UDRV_EXTENSIONS", ",".join(BUILDERS)).split(",")

setup(cffi_modules=[BUILDERS[name] for name in wanted if name])
