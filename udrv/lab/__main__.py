# SPDX-License-Identifier: Apache-2.0
"""`python -m udrv.lab` is `udrv-lab`."""

from udrv.lab.main import main

main()
