# SPDX-License-Identifier: Apache-2.0
"""Tests marked `lab` run in a guest; see udrv/lab/pytest_plugin.py."""

pytest_plugins = ["udrv.lab.pytest_plugin"]
