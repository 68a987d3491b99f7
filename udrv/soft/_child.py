# SPDX-License-Identifier: Apache-2.0
"""The program of a `soft:` child; run as `python -I -S _child.py CONFIG DIRECTORY...`.

CONFIG is a `struct udrv_soft_config` in hexadecimal, the directories are where the extension
module and cffi's run time lie. Nothing else is imported: it must start in a few milliseconds,
and it must not depend on how the parent set up its interpreter.
"""

import sys

if __name__ == "__main__":
    sys.path.extend(sys.argv[2:])
    from _soft import lib  # type: ignore[import-not-found]

    config = bytes.fromhex(sys.argv[1])
    sys.exit(lib.udrv_soft_child(config, len(config)))
