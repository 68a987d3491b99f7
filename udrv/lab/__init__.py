# SPDX-License-Identifier: Apache-2.0
"""udrv-lab: a real kernel, an IOMMU and NVMe controllers, without hardware.

`udrv.lab.run.run` boots a stock kernel in QEMU on the host's own root file system and runs one
command in it; `udrv.lab.pytest_plugin` runs a whole pytest session that way. docs/lab.md is the
guide.
"""
