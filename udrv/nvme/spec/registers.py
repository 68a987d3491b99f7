"""Controller properties ("registers"): offsets, bit-fields, doorbells (Base 3.1.3).

PCIe memory-mapped controllers have them at the start of BAR 0. A field's unit is in its row.
"""

from __future__ import annotations

from enum import IntEnum

from udrv.errors import InvalidRequestError
from udrv.nvme.spec.table import Bits, bit, bitfield, bits


class Offset(IntEnum):
    """Byte offsets of the properties (Base 3.1.3, Figure "Property Definition")."""

    CAP = 0x00  # 8 bytes, Controller Capabilities
    VS = 0x08  # 4, Version
    INTMS = 0x0C  # 4, Interrupt Mask Set (not with MSI-X)
    INTMC = 0x10  # 4, Interrupt Mask Clear (not with MSI-X)
    CC = 0x14  # 4, Controller Configuration
    CSTS = 0x1C  # 4, Controller Status
    NSSR = 0x20  # 4, NVM Subsystem Reset
    AQA = 0x24  # 4, Admin Queue Attributes
    ASQ = 0x28  # 8, Admin Submission Queue Base Address
    ACQ = 0x30  # 8, Admin Completion Queue Base Address
    CMBLOC = 0x38  # 4, Controller Memory Buffer Location
    CMBSZ = 0x3C  # 4, Controller Memory Buffer Size
    BPINFO = 0x40  # 4, Boot Partition Information
    BPRSEL = 0x44  # 4, Boot Partition Read Select
    BPMBL = 0x48  # 8, Boot Partition Memory Buffer Location
    CMBMSC = 0x50  # 8, Controller Memory Buffer Memory Space Control
    CMBSTS = 0x58  # 4, Controller Memory Buffer Status
    CMBEBS = 0x5C  # 4, Controller Memory Buffer Elasticity Buffer Size
    CMBSWTP = 0x60  # 4, Controller Memory Buffer Sustained Write Throughput
    NSSD = 0x64  # 4, NVM Subsystem Shutdown
    CRTO = 0x68  # 4, Controller Ready Timeouts
    PMRCAP = 0xE00  # 4, Persistent Memory Region Capabilities
    PMRCTL = 0xE04  # 4, Persistent Memory Region Control
    PMRSTS = 0xE08  # 4, Persistent Memory Region Status
    PMREBS = 0xE0C  # 4, Persistent Memory Region Elasticity Buffer Size
    PMRSWTP = 0xE10  # 4, Persistent Memory Region Sustained Write Throughput
    PMRMSCL = 0xE14  # 4, Persistent Memory Region Memory Space Control Lower
    PMRMSCU = 0xE18  # 4, Persistent Memory Region Memory Space Control Upper


#: First doorbell, Submission Queue 0 Tail (Base over PCIe transport 3.1.2.1).
DOORBELL_BASE = 0x1000

#: Written to NSSR or, over NVMe-MI, NSSD: "NVMe" resets the subsystem, "Nrml" and "Abrt" end it.
NSSR_RESET = 0x4E56_4D65
NSSD_NORMAL = 0x4E72_6D6C
NSSD_ABRUPT = 0x4162_7274

#: Bits 63:12 of ASQ and ACQ (Base 3.1.3.9, 3.1.3.10): the queues start on a memory page.
QUEUE_BASE_MASK = 0xFFFF_FFFF_FFFF_F000


def sq_tail_doorbell(qid: int, dstrd: int) -> int:
    """Return the offset of Submission Queue `qid`'s tail doorbell; `dstrd` is CAP.DSTRD."""
    return _doorbell(qid, dstrd, 0)


def cq_head_doorbell(qid: int, dstrd: int) -> int:
    """Return the offset of Completion Queue `qid`'s head doorbell; `dstrd` is CAP.DSTRD."""
    return _doorbell(qid, dstrd, 1)


def _doorbell(qid: int, dstrd: int, which: int) -> int:
    if not (0 <= qid <= 0xFFFF and 0 <= dstrd <= 15):
        raise InvalidRequestError(
            f"doorbell of queue {qid} with stride {dstrd}",
            mend="queues are 0 to 65535, CAP.DSTRD is 0 to 15",
        )
    return DOORBELL_BASE + (2 * qid + which) * (4 << dstrd)


@bitfield(64, section="Base 3.1.3.1", offset=Offset.CAP)
class Cap(Bits):
    """Controller Capabilities."""

    mqes: int = bits(15, 0, "Maximum Queue Entries Supported, 0's based")
    cqr: int = bit(16, "Contiguous Queues Required")
    ams: int = bits(18, 17, "Arbitration Mechanism Supported: bit 0 WRR with urgent, 1 vendor")
    to: int = bits(31, 24, "Timeout of a change of CSTS.RDY, in 500 ms")
    dstrd: int = bits(35, 32, "Doorbell Stride, 4 << DSTRD bytes")
    nssrs: int = bit(36, "NVM Subsystem Reset Supported")
    css: int = bits(44, 37, "Command Sets Supported: bit 0 NVM, 6 one or more I/O sets, 7 none")
    bps: int = bit(45, "Boot Partition Support")
    cps: int = bits(47, 46, "Controller Power Scope")
    mpsmin: int = bits(51, 48, "Memory Page Size Minimum, 4096 << MPSMIN bytes")
    mpsmax: int = bits(55, 52, "Memory Page Size Maximum, 4096 << MPSMAX bytes")
    pmrs: int = bit(56, "Persistent Memory Region Supported")
    cmbs: int = bit(57, "Controller Memory Buffer Supported")
    nsss: int = bit(58, "NVM Subsystem Shutdown Supported")
    crms: int = bits(60, 59, "Controller Ready Modes: bit 0 with media, bit 1 independent of media")

    @property
    def timeout_seconds(self) -> float:
        """CAP.TO in seconds."""
        return self.to * 0.5

    @property
    def max_queue_entries(self) -> int:
        """CAP.MQES as a count."""
        return self.mqes + 1

    @property
    def min_page_size(self) -> int:
        """Bytes of the smallest memory page; MDTS counts in these."""
        return 4096 << self.mpsmin

    @property
    def max_page_size(self) -> int:
        """Bytes of the largest memory page."""
        return 4096 << self.mpsmax


@bitfield(32, section="Base 3.1.3.2", offset=Offset.VS)
class Vs(Bits):
    """Version."""

    ter: int = bits(7, 0, "Tertiary Version Number")
    mnr: int = bits(15, 8, "Minor Version Number")
    mjr: int = bits(31, 16, "Major Version Number")

    def __str__(self) -> str:
        return f"{self.mjr}.{self.mnr}.{self.ter}"


@bitfield(32, section="Base 3.1.3.5", offset=Offset.CC)
class Cc(Bits):
    """Controller Configuration."""

    en: int = bit(0, "Enable")
    css: int = bits(6, 4, "I/O Command Set Selected: 0 NVM, 6 all supported, 7 admin only")
    mps: int = bits(10, 7, "Memory Page Size, 4096 << MPS bytes")
    ams: int = bits(13, 11, "Arbitration Mechanism Selected: 0 round robin")
    shn: int = bits(15, 14, "Shutdown Notification: 0 none, 1 normal, 2 abrupt")
    iosqes: int = bits(19, 16, "I/O Submission Queue Entry Size, a power of two")
    iocqes: int = bits(23, 20, "I/O Completion Queue Entry Size, a power of two")
    crime: int = bit(24, "Controller Ready Independent of Media Enable")


class ShutdownStatus(IntEnum):
    """CSTS.SHST."""

    NORMAL_OPERATION = 0
    OCCURRING = 1
    COMPLETE = 2


class ShutdownNotification(IntEnum):
    """CC.SHN."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


@bitfield(32, section="Base 3.1.3.6", offset=Offset.CSTS)
class Csts(Bits):
    """Controller Status."""

    rdy: int = bit(0, "Ready")
    cfs: int = bit(1, "Controller Fatal Status")
    shst: int = bits(3, 2, "Shutdown Status: 0 none, 1 occurring, 2 complete")
    nssro: int = bit(4, "NVM Subsystem Reset Occurred, cleared by writing 1")
    pp: int = bit(5, "Processing Paused")
    st: int = bit(6, "Shutdown Type: 0 controller, 1 NVM subsystem")


@bitfield(32, section="Base 3.1.3.8", offset=Offset.AQA)
class Aqa(Bits):
    """Admin Queue Attributes."""

    asqs: int = bits(11, 0, "Admin Submission Queue Size, 0's based")
    acqs: int = bits(27, 16, "Admin Completion Queue Size, 0's based")


@bitfield(32, section="Base 3.1.3.11", offset=Offset.CMBLOC)
class Cmbloc(Bits):
    """Controller Memory Buffer Location."""

    bir: int = bits(2, 0, "Base Indicator Register")
    cqmms: int = bit(3, "CMB Queue Mixed Memory Support")
    cqpds: int = bit(4, "CMB Queue Physically Discontiguous Support")
    cdpmls: int = bit(5, "CMB Data Pointer Mixed Locations Support")
    cdpcils: int = bit(6, "CMB Data Pointer and Command Independent Locations Support")
    cdmmms: int = bit(7, "CMB Data Metadata Mixed Memory Support")
    cqda: int = bit(8, "CMB Queue Dword Alignment")
    ofst: int = bits(31, 12, "Offset in units of CMBSZ.SZU")


@bitfield(32, section="Base 3.1.3.12", offset=Offset.CMBSZ)
class Cmbsz(Bits):
    """Controller Memory Buffer Size."""

    sqs: int = bit(0, "Submission Queue Support")
    cqs: int = bit(1, "Completion Queue Support")
    lists: int = bit(2, "PRP and SGL List Support")
    rds: int = bit(3, "Read Data Support")
    wds: int = bit(4, "Write Data Support")
    szu: int = bits(11, 8, "Size Units, 4096 << 4 * SZU bytes")
    sz: int = bits(31, 12, "Size in units of SZU")

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer; 0 if SZU has a reserved value."""
        return self.sz * (4096 << (4 * self.szu)) if self.szu <= 6 else 0


@bitfield(32, section="Base 3.1.3.13", offset=Offset.BPINFO)
class Bpinfo(Bits):
    """Boot Partition Information."""

    bpsz: int = bits(14, 0, "Boot Partition Size in 128 KiB")
    brs: int = bits(25, 24, "Boot Read Status: 0 none, 1 reading, 2 done, 3 failed")
    abpid: int = bit(31, "Active Boot Partition ID")


@bitfield(32, section="Base 3.1.3.14", offset=Offset.BPRSEL)
class Bprsel(Bits):
    """Boot Partition Read Select."""

    bprsz: int = bits(9, 0, "Boot Partition Read Size in 4 KiB")
    bprof: int = bits(29, 10, "Boot Partition Read Offset in 4 KiB")
    bpid: int = bit(31, "Boot Partition Identifier")


@bitfield(64, section="Base 3.1.3.16", offset=Offset.CMBMSC)
class Cmbmsc(Bits):
    """Controller Memory Buffer Memory Space Control."""

    cre: int = bit(0, "Capabilities Registers Enabled")
    cmse: int = bit(1, "Controller Memory Space Enable")
    cba: int = bits(63, 12, "Controller Base Address, bits 63:12")


@bitfield(32, section="Base 3.1.3.17", offset=Offset.CMBSTS)
class Cmbsts(Bits):
    """Controller Memory Buffer Status."""

    cbai: int = bit(0, "Controller Base Address Invalid")


@bitfield(32, section="Base 3.1.3.18", offset=Offset.CMBEBS)
class Cmbebs(Bits):
    """Controller Memory Buffer Elasticity Buffer Size."""

    cmbszu: int = bits(3, 0, "Size Units: 0 bytes, 1 KiB, 2 MiB, 3 GiB")
    cmbrbb: int = bit(4, "Read Bypass Behavior")
    cmbwbz: int = bits(31, 8, "Size in units of CMBSZU")


@bitfield(32, section="Base 3.1.3.19", offset=Offset.CMBSWTP)
class Cmbswtp(Bits):
    """Controller Memory Buffer Sustained Write Throughput."""

    cmbswtu: int = bits(3, 0, "Units: 0 bytes/s, 1 KiB/s, 2 MiB/s, 3 GiB/s")
    cmbswtv: int = bits(31, 8, "Throughput in units of CMBSWTU")


@bitfield(32, section="Base 3.1.3.21", offset=Offset.CRTO)
class Crto(Bits):
    """Controller Ready Timeouts."""

    crwmt: int = bits(15, 0, "Controller Ready With Media Timeout, in 500 ms")
    crimt: int = bits(31, 16, "Controller Ready Independent of Media Timeout, in 500 ms")


@bitfield(32, section="Base 3.1.3.22", offset=Offset.PMRCAP)
class Pmrcap(Bits):
    """Persistent Memory Region Capabilities."""

    rds: int = bit(3, "Read Data Support")
    wds: int = bit(4, "Write Data Support")
    bir: int = bits(7, 5, "Base Indicator Register")
    pmrtu: int = bits(9, 8, "Time Units: 0 is 500 ms, 1 is one minute")
    pmrwbm: int = bits(13, 10, "Write Barrier Mechanisms")
    pmrto: int = bits(23, 16, "Timeout in units of PMRTU")
    cmss: int = bit(24, "Controller Memory Space Supported")


@bitfield(32, section="Base 3.1.3.23", offset=Offset.PMRCTL)
class Pmrctl(Bits):
    """Persistent Memory Region Control."""

    en: int = bit(0, "Enable")


@bitfield(32, section="Base 3.1.3.24", offset=Offset.PMRSTS)
class Pmrsts(Bits):
    """Persistent Memory Region Status."""

    err: int = bits(7, 0, "Error")
    nrdy: int = bit(8, "Not Ready")
    hsts: int = bits(11, 9, "Health Status")
    cbai: int = bit(12, "Controller Base Address Invalid")


@bitfield(32, section="Base 3.1.3.25", offset=Offset.PMREBS)
class Pmrebs(Bits):
    """Persistent Memory Region Elasticity Buffer Size."""

    pmrszu: int = bits(3, 0, "Size Units: 0 bytes, 1 KiB, 2 MiB, 3 GiB")
    rbb: int = bit(4, "Read Bypass Behavior")
    pmrwbz: int = bits(31, 8, "Size in units of PMRSZU")


@bitfield(32, section="Base 3.1.3.26", offset=Offset.PMRSWTP)
class Pmrswtp(Bits):
    """Persistent Memory Region Sustained Write Throughput."""

    pmrswtu: int = bits(3, 0, "Units: 0 bytes/s, 1 KiB/s, 2 MiB/s, 3 GiB/s")
    pmrswtv: int = bits(31, 8, "Throughput in units of PMRSWTU")


@bitfield(32, section="Base 3.1.3.27", offset=Offset.PMRMSCL)
class Pmrmscl(Bits):
    """Persistent Memory Region Memory Space Control Lower."""

    cmse: int = bit(1, "Controller Memory Space Enable")
    cba: int = bits(31, 12, "Controller Base Address, bits 31:12")
