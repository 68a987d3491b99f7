# SPDX-License-Identifier: Apache-2.0
"""PCI functions from sysfs: what they are, who uses them, and safe moves between drivers.

    >>> plan = plan_bind("0000:01:00.0")        # changes nothing
    >>> for reason in plan.reasons: print(reason)
    >>> plan.execute()                          # stays until unbind("0000:01:00.0")
    >>> with bound("0000:02:00.0"): ...         # undone at the end, even by SIGKILL
"""

from udrv.pci.bind import (
    NO_IOMMU_MEND,
    VFIO_DRIVER,
    BindPlan,
    BindRecord,
    Step,
    binding,
    bindings,
    plan_bind,
    unbind,
    vfio_users,
)
from udrv.pci.host import HOST, Host
from udrv.pci.scoped import ScopedBinding, bound
from udrv.pci.storage import (
    DeviceNode,
    StackedNode,
    character_devices,
    disks,
    function_of_block_device,
    generic_node,
    stacked,
)
from udrv.pci.sysfs import (
    CLASS_NVME,
    IommuGroup,
    PciFunction,
    function,
    functions,
    iommu_group,
    parse_bdf,
)
from udrv.pci.usage import Process, Reason, claims, processes_with_path, usage

__all__ = [
    "BindPlan",
    "BindRecord",
    "CLASS_NVME",
    "DeviceNode",
    "HOST",
    "Host",
    "IommuGroup",
    "NO_IOMMU_MEND",
    "PciFunction",
    "Process",
    "Reason",
    "ScopedBinding",
    "StackedNode",
    "Step",
    "VFIO_DRIVER",
    "binding",
    "bindings",
    "bound",
    "character_devices",
    "claims",
    "disks",
    "function",
    "function_of_block_device",
    "functions",
    "generic_node",
    "iommu_group",
    "parse_bdf",
    "plan_bind",
    "processes_with_path",
    "stacked",
    "unbind",
    "usage",
    "vfio_users",
]
