# SPDX-License-Identifier: Apache-2.0
"""pyliburing: the C library liburing from Python.

`udrv.rings.uring` is for everyone who wants io_uring; `udrv.rings.native` has the C names as they
are. Both need the extension module `udrv.rings._uring`, which is built where liburing is installed.
"""
