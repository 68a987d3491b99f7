"""Identify data structures (Base 5.17.2, NVM 4.1.5): controller, namespace, lists.

Strings keep the padding that the device sent, so that `to_dict()` prints what nvme-cli prints;
`serial`, `model` and `firmware` are the trimmed ones.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from udrv.errors import BufferTooSmallError, ControllerError
from udrv.nvme.spec.opcodes import NsIdType
from udrv.nvme.spec.table import (
    BytesLike,
    Structure,
    ascii_text,
    blob,
    hexadecimal,
    records,
    structure,
    u8,
    u16,
    u32,
    u64,
    uint,
    utf8z,
    uuid_text,
    view_of,
)

#: Every Identify data structure has this many bytes.
IDENTIFY_SIZE = 4096


@structure(32, section="Base 5.17.2.1, Power State Descriptor")
class PowerState(Structure):
    """One power state; keys of `to_dict()` are nvme-cli's."""

    mp: int = u16(0, "Maximum Power, in 0.01 W or (FLAGS bit 0) 0.0001 W", json="max_power")
    flags: int = u8(3, "Bit 0 MXPS: unit of MP is 0.0001 W; bit 1 NOPS: non-operational")
    enlat: int = u32(4, "Entry Latency, microseconds", json="entry_lat")
    exlat: int = u32(8, "Exit Latency, microseconds", json="exit_lat")
    rrt: int = u8(12, "Relative Read Throughput, lower is better", json="read_tput")
    rrl: int = u8(13, "Relative Read Latency", json="read_lat")
    rwt: int = u8(14, "Relative Write Throughput", json="write_tput")
    rwl: int = u8(15, "Relative Write Latency", json="write_lat")
    idlp: int = u16(16, "Idle Power, in units of IPS", json="idle_power")
    ips: int = u8(18, "Idle Power Scale in bits 7:6")
    actp: int = u16(20, "Active Power, in units of APS", json="active_power")
    apws: int = u8(22, "Active Power Workload in bits 2:0, Active Power Scale in bits 7:6")

    def to_dict(self) -> dict[str, Any]:
        """As nvme-cli: scales and the workload apart."""
        out: dict[str, Any] = {}
        for key, value in super().to_dict().items():
            if key == "ips":
                out["idle_scale"] = value >> 6
            elif key == "apws":
                out["active_power_work"] = value & 7
                out["active_scale"] = value >> 6
            else:
                out[key] = value
        return out


@structure(IDENTIFY_SIZE, section="Base 5.17.2.1, Identify Controller")
class IdentifyController(Structure):
    """Identify Controller data structure (CNS 01h)."""

    # Controller capabilities and features
    vid: int = u16(0, "PCI Vendor ID")
    ssvid: int = u16(2, "PCI Subsystem Vendor ID")
    sn: str = ascii_text(4, 20, "Serial Number")
    mn: str = ascii_text(24, 40, "Model Number")
    fr: str = ascii_text(64, 8, "Firmware Revision")
    rab: int = u8(72, "Recommended Arbitration Burst, a power of two")
    ieee: int = uint(73, 3, "IEEE OUI Identifier")
    cmic: int = u8(76, "Controller Multi-Path I/O and Namespace Sharing Capabilities")
    mdts: int = u8(77, "Maximum Data Transfer Size, a power of two of CAP.MPSMIN pages; 0: none")
    cntlid: int = u16(78, "Controller ID")
    ver: int = u32(80, "Version, as property VS")
    rtd3r: int = u32(84, "RTD3 Resume Latency, microseconds")
    rtd3e: int = u32(88, "RTD3 Entry Latency, microseconds")
    oaes: int = u32(92, "Optional Asynchronous Events Supported")
    ctratt: int = u32(96, "Controller Attributes")
    rrls: int = u16(100, "Read Recovery Levels Supported")
    cntrltype: int = u8(111, "Controller Type: 1 I/O, 2 discovery, 3 administrative")
    fguid: str = uuid_text(112, "FRU Globally Unique Identifier")
    crdt1: int = u16(128, "Command Retry Delay Time 1, in 100 ms")
    crdt2: int = u16(130, "Command Retry Delay Time 2, in 100 ms")
    crdt3: int = u16(132, "Command Retry Delay Time 3, in 100 ms")
    nvmsr: int = u8(253, "NVM Subsystem Report")
    vwci: int = u8(254, "VPD Write Cycle Information")
    mec: int = u8(255, "Management Endpoint Capabilities")
    # Admin command set attributes and optional controller capabilities
    oacs: int = u16(256, "Optional Admin Command Support; bit 8: Doorbell Buffer Config")
    acl: int = u8(258, "Abort Command Limit, 0's based")
    aerl: int = u8(259, "Asynchronous Event Request Limit, 0's based")
    frmw: int = u8(260, "Firmware Updates")
    lpa: int = u8(261, "Log Page Attributes")
    elpe: int = u8(262, "Error Log Page Entries, 0's based")
    npss: int = u8(263, "Number of Power States Support, 0's based")
    avscc: int = u8(264, "Admin Vendor Specific Command Configuration")
    apsta: int = u8(265, "Autonomous Power State Transition Attributes")
    wctemp: int = u16(266, "Warning Composite Temperature Threshold, kelvins")
    cctemp: int = u16(268, "Critical Composite Temperature Threshold, kelvins")
    mtfa: int = u16(270, "Maximum Time for Firmware Activation, in 100 ms")
    hmpre: int = u32(272, "Host Memory Buffer Preferred Size, in 4 KiB")
    hmmin: int = u32(276, "Host Memory Buffer Minimum Size, in 4 KiB")
    tnvmcap: int = uint(280, 16, "Total NVM Capacity, bytes")
    unvmcap: int = uint(296, 16, "Unallocated NVM Capacity, bytes")
    rpmbs: int = u32(312, "Replay Protected Memory Block Support")
    edstt: int = u16(316, "Extended Device Self-test Time, minutes")
    dsto: int = u8(318, "Device Self-test Options")
    fwug: int = u8(319, "Firmware Update Granularity, in 4 KiB; FFh: any")
    kas: int = u16(320, "Keep Alive Support: granularity in 100 ms")
    hctma: int = u16(322, "Host Controlled Thermal Management Attributes")
    mntmt: int = u16(324, "Minimum Thermal Management Temperature, kelvins")
    mxtmt: int = u16(326, "Maximum Thermal Management Temperature, kelvins")
    sanicap: int = u32(328, "Sanitize Capabilities")
    hmminds: int = u32(332, "Host Memory Buffer Minimum Descriptor Entry Size, in 4 KiB")
    hmmaxd: int = u16(336, "Host Memory Maximum Descriptors Entries")
    nsetidmax: int = u16(338, "NVM Set Identifier Maximum")
    endgidmax: int = u16(340, "Endurance Group Identifier Maximum")
    anatt: int = u8(342, "ANA Transition Time, seconds")
    anacap: int = u8(343, "Asymmetric Namespace Access Capabilities")
    anagrpmax: int = u32(344, "ANA Group Identifier Maximum")
    nanagrpid: int = u32(348, "Number of ANA Group Identifiers")
    pels: int = u32(352, "Persistent Event Log Size, in 64 KiB")
    domainid: int = u16(356, "Domain Identifier")
    megcap: int = uint(368, 16, "Max Endurance Group Capacity, bytes")
    # NVM command set attributes
    sqes: int = u8(512, "Submission Queue Entry Size: minimum in 3:0, maximum in 7:4, powers of 2")
    cqes: int = u8(513, "Completion Queue Entry Size: minimum in 3:0, maximum in 7:4, powers of 2")
    maxcmd: int = u16(514, "Maximum Outstanding Commands per queue; 0: not reported")
    nn: int = u32(516, "Number of Namespaces: the largest valid NSID")
    oncs: int = u16(520, "Optional NVM Command Support")
    fuses: int = u16(522, "Fused Operation Support")
    fna: int = u8(524, "Format NVM Attributes")
    vwc: int = u8(525, "Volatile Write Cache: bit 0 present, bits 2:1 flush of all namespaces")
    awun: int = u16(526, "Atomic Write Unit Normal, blocks, 0's based")
    awupf: int = u16(528, "Atomic Write Unit Power Fail, blocks, 0's based")
    icsvscc: int = u8(530, "I/O Command Set Vendor Specific Command Configuration")
    nwpc: int = u8(531, "Namespace Write Protection Capabilities")
    acwu: int = u16(532, "Atomic Compare & Write Unit, blocks, 0's based")
    ocfs: int = u16(534, "Copy Descriptor Formats Supported")
    sgls: int = u32(536, "SGL Support")
    mnan: int = u32(540, "Maximum Number of Allowed Namespaces")
    maxdna: int = uint(544, 16, "Maximum Domain Namespace Attachments")
    maxcna: int = u32(560, "Maximum I/O Controller Namespace Attachments")
    subnqn: str = utf8z(768, 256, "NVM Subsystem NVMe Qualified Name")
    # Fabrics only
    ioccsz: int = u32(1792, "I/O Queue Command Capsule Supported Size, in 16 bytes")
    iorcsz: int = u32(1796, "I/O Queue Response Capsule Supported Size, in 16 bytes")
    icdoff: int = u16(1800, "In Capsule Data Offset, in 16 bytes")
    fcatt: int = u8(1802, "Fabrics Controller Attributes")
    msdbd: int = u8(1803, "Maximum SGL Data Block Descriptors")
    ofcs: int = u16(1804, "Optional Fabric Commands Support")
    dctype: int = u8(1806, "Discovery Controller Type")
    psd: tuple[PowerState, ...] = records(2048, PowerState, 32, "Power States 0 to 31", json="psds")
    vs: bytes = blob(3072, 1024, "Vendor Specific")

    @property
    def serial(self) -> str:
        """SN without padding."""
        return self.sn.strip()

    @property
    def model(self) -> str:
        """MN without padding."""
        return self.mn.strip()

    @property
    def firmware(self) -> str:
        """FR without padding."""
        return self.fr.strip()

    def max_transfer_bytes(self, min_page_size: int) -> int | None:
        """Return MDTS in bytes (None: no limit); `min_page_size` is `Cap.min_page_size`.

        A device may send any byte; from 2 EiB on, a limit is none.
        """
        return min_page_size << self.mdts if 0 < self.mdts < 49 else None

    def to_dict(self) -> dict[str, Any]:
        """As nvme-cli: only the power states that exist, SUBNQN only if there is one."""
        out = super().to_dict()
        out["psds"] = out["psds"][: self.npss + 1]
        if not self.subnqn:
            del out["subnqn"]
        return out


@structure(4, section="NVM 4.1.5.1, LBA Format Data Structure")
class LbaFormat(Structure):
    """One LBA format."""

    ms: int = u16(0, "Metadata Size, bytes per block")
    ds: int = u8(2, "LBA Data Size, a power of two; 0: the format is not available")
    rp: int = u8(3, "Relative Performance in bits 1:0: 0 best, 3 degraded")


@structure(IDENTIFY_SIZE, section="NVM 4.1.5.1, Identify Namespace")
class IdentifyNamespace(Structure):
    """Identify Namespace data structure, NVM command set (CNS 00h). An inactive one is all zero."""

    nsze: int = u64(0, "Namespace Size, blocks")
    ncap: int = u64(8, "Namespace Capacity, blocks")
    nuse: int = u64(16, "Namespace Utilization, blocks")
    nsfeat: int = u8(24, "Namespace Features; bit 4 OPTPERF: NPWG to NOWS are defined")
    nlbaf: int = u8(25, "Number of LBA Formats, 0's based")
    flbas: int = u8(26, "Formatted LBA Size: index in 3:0 and 6:5, bit 4 metadata interleaved")
    mc: int = u8(27, "Metadata Capabilities")
    dpc: int = u8(28, "End-to-end Data Protection Capabilities")
    dps: int = u8(29, "End-to-end Data Protection Type Settings")
    nmic: int = u8(30, "Namespace Multi-path I/O and Namespace Sharing Capabilities")
    rescap: int = u8(31, "Reservation Capabilities")
    fpi: int = u8(32, "Format Progress Indicator")
    dlfeat: int = u8(33, "Deallocate Logical Block Features")
    nawun: int = u16(34, "Namespace Atomic Write Unit Normal, blocks, 0's based")
    nawupf: int = u16(36, "Namespace Atomic Write Unit Power Fail, blocks, 0's based")
    nacwu: int = u16(38, "Namespace Atomic Compare & Write Unit, blocks, 0's based")
    nabsn: int = u16(40, "Namespace Atomic Boundary Size Normal, blocks, 0's based")
    nabo: int = u16(42, "Namespace Atomic Boundary Offset, LBA")
    nabspf: int = u16(44, "Namespace Atomic Boundary Size Power Fail, blocks, 0's based")
    noiob: int = u16(46, "Namespace Optimal I/O Boundary, blocks")
    nvmcap: int = uint(48, 16, "NVM Capacity, bytes")
    npwg: int = u16(64, "Namespace Preferred Write Granularity, blocks, 0's based")
    npwa: int = u16(66, "Namespace Preferred Write Alignment, blocks, 0's based")
    npdg: int = u16(68, "Namespace Preferred Deallocate Granularity, blocks, 0's based")
    npda: int = u16(70, "Namespace Preferred Deallocate Alignment, blocks, 0's based")
    nows: int = u16(72, "Namespace Optimal Write Size, blocks, 0's based")
    mssrl: int = u16(74, "Maximum Single Source Range Length, blocks")
    mcl: int = u32(76, "Maximum Copy Length, blocks")
    msrc: int = u8(80, "Maximum Source Range Count, 0's based")
    nulbaf: int = u8(82, "Number of Unique Capability LBA Formats")
    anagrpid: int = u32(92, "ANA Group Identifier")
    nsattr: int = u8(99, "Namespace Attributes; bit 0: write protected")
    nvmsetid: int = u16(100, "NVM Set Identifier")
    endgid: int = u16(102, "Endurance Group Identifier")
    nguid: str = hexadecimal(104, 16, "Namespace Globally Unique Identifier")
    eui64: str = hexadecimal(120, 8, "IEEE Extended Unique Identifier")
    lbaf: tuple[LbaFormat, ...] = records(128, LbaFormat, 64, "LBA Formats 0 to 63", json="lbafs")
    vs: bytes = blob(384, 3712, "Vendor Specific")

    @property
    def format_index(self) -> int:
        """Index of the format in use (FLBAS; bits 6:5 count only with more than 16 formats)."""
        high = (self.flbas >> 5) & 3 if self.nlbaf + self.nulbaf > 15 else 0
        return high << 4 | (self.flbas & 15)

    @property
    def format(self) -> LbaFormat:
        """The format in use."""
        return self.lbaf[self.format_index]

    @property
    def lba_size(self) -> int:
        """Bytes of data in a block; raise `ControllerError` if the device reports nonsense."""
        ds = self.format.ds
        if not 9 <= ds <= 31:
            raise ControllerError(
                f"Identify Namespace: LBADS of format {self.format_index} is {ds}",
                mend="9 to 31 are sound (NVM 4.1.5.1); format the namespace",
            )
        return 1 << ds

    @property
    def metadata_size(self) -> int:
        """Bytes of metadata with each block."""
        return self.format.ms

    @property
    def metadata_interleaved(self) -> bool:
        """Metadata follows each block in the data buffer (FLBAS bit 4)."""
        return bool(self.flbas & 0x10) and self.metadata_size > 0

    def to_dict(self) -> dict[str, Any]:
        """As nvme-cli: only the formats that exist, NPWG to NOWS only if NSFEAT defines them."""
        out = super().to_dict()
        out["lbafs"] = out["lbafs"][: self.nlbaf + 1]
        if not self.nsfeat & 0x10:
            for key in ("npwg", "npwa", "npdg", "npda", "nows"):
                del out[key]
        return out


@dataclass(frozen=True, slots=True)
class NsDescriptor:
    """One Namespace Identification Descriptor: `nidt` is its type, `nid` its bytes in order."""

    nidt: int
    nid: bytes

    @property
    def name(self) -> str:
        """"eui64", "nguid", "uuid", "csi", or "nidt-N" for a type that is not known."""
        try:
            return NsIdType(self.nidt).name.lower()
        except ValueError:
            return f"nidt-{self.nidt}"

    @property
    def text(self) -> str:
        """The identifier as people write it."""
        if self.nidt == NsIdType.UUID and len(self.nid) == 16:
            return str(uuid.UUID(bytes=self.nid))
        return self.nid.hex()


def decode_id_ctrl(data: BytesLike) -> IdentifyController:
    """Decode CNS 01h."""
    return IdentifyController.decode(data)


def decode_id_ns(data: BytesLike) -> IdentifyNamespace:
    """Decode CNS 00h of an NVM command set namespace."""
    return IdentifyNamespace.decode(data)


def decode_nsid_list(data: BytesLike) -> tuple[int, ...]:
    """Decode CNS 02h (or 10h): ascending NSIDs up to the first zero, at most 1024 (Base 5.17.2.2).

    Raise `ControllerError` if they do not ascend: asking on from such a list would never end.
    """
    view = view_of(data)
    if len(view) < IDENTIFY_SIZE:
        raise BufferTooSmallError(
            f"decoding a Namespace List from {len(view)} bytes", mend=f"it is {IDENTIFY_SIZE} long"
        )
    out: list[int] = []
    for start in range(0, IDENTIFY_SIZE, 4):
        nsid = int.from_bytes(view[start : start + 4], "little")
        if nsid == 0:
            break
        if out and nsid <= out[-1]:
            raise ControllerError(
                f"Namespace List: NSID {nsid} follows {out[-1]}",
                mend="the controller breaks Base 5.17.2.2; update its firmware",
            )
        out.append(nsid)
    return tuple(out)


#: NIDL that each known type must have (Base 5.17.2.3).
_NIDL: dict[int, int] = {
    NsIdType.EUI64: 8,
    NsIdType.NGUID: 16,
    NsIdType.UUID: 16,
    NsIdType.CSI: 1,
}


def decode_ns_descriptors(data: BytesLike) -> tuple[NsDescriptor, ...]:
    """Decode CNS 03h (Base 5.17.2.3).

    Raise `ControllerError` for a length that leaves the page or contradicts its type.
    """
    view = view_of(data)
    out: list[NsDescriptor] = []
    position = 0
    while position + 4 <= len(view):
        nidt, nidl = view[position], view[position + 1]
        if nidl == 0:
            break
        end = position + 4 + nidl
        if end > len(view) or _NIDL.get(nidt, nidl) != nidl:
            raise ControllerError(
                f"Namespace Identification Descriptor of type {nidt} at byte {position} "
                f"says it is {nidl} bytes long",
                mend="the controller breaks Base 5.17.2.3; update its firmware",
            )
        out.append(NsDescriptor(nidt, bytes(view[position + 4 : end])))
        position = end
    return tuple(out)
