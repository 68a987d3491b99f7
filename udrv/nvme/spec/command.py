"""Submission and completion queue entries, and the commands that we send (Base 3.3.3, 5; NVM 3.2).

A builder returns the 64 bytes of one submission queue entry. `cid` may stay 0: the queue pair
stores the one that it chose. `prp1` and `prp2` are I/O virtual addresses. Counts are real counts
here; the builders turn them into the specification's 0's based values. A value that does not fit
raises `InvalidRequestError`.
"""

from __future__ import annotations

from udrv.errors import InvalidRequestError
from udrv.nvme.spec.opcodes import NSID_ALL, AdminOpcode, FeatureSelect, IoOpcode
from udrv.nvme.spec.table import Bits, Structure, bit, bitfield, bits, structure, u8, u16, u32, u64
from udrv.units import integer

SQE_SIZE = 64
CQE_SIZE = 16


@structure(SQE_SIZE, section="Base 3.3.3.1, Common Command Format")
class SubmissionEntry(Structure):
    """A submission queue entry with PRPs."""

    opcode: int = u8(0, "Opcode")
    flags: int = u8(1, "CDW0 bits 15:8, see CommandFlags")
    cid: int = u16(2, "Command Identifier; FFFFh is reserved for the error log")
    nsid: int = u32(4, "Namespace Identifier")
    cdw2: int = u32(8, "Command Dword 2")
    cdw3: int = u32(12, "Command Dword 3")
    mptr: int = u64(16, "Metadata Pointer")
    prp1: int = u64(24, "PRP Entry 1")
    prp2: int = u64(32, "PRP Entry 2")
    cdw10: int = u32(40, "Command Dword 10")
    cdw11: int = u32(44, "Command Dword 11")
    cdw12: int = u32(48, "Command Dword 12")
    cdw13: int = u32(52, "Command Dword 13")
    cdw14: int = u32(56, "Command Dword 14")
    cdw15: int = u32(60, "Command Dword 15")


@structure(CQE_SIZE, section="Base 3.3.3.2, Completion Queue Entry")
class CompletionEntry(Structure):
    """A completion queue entry."""

    result: int = u32(0, "Command specific (Dword 0)")
    dw1: int = u32(4, "Command specific (Dword 1)")
    sqhd: int = u16(8, "Submission Queue Head Pointer")
    sqid: int = u16(10, "Submission Queue Identifier")
    cid: int = u16(12, "Command Identifier")
    status_phase: int = u16(14, "Phase Tag in bit 0, Status Field in bits 15:1")

    @property
    def phase(self) -> int:
        """Phase Tag."""
        return self.status_phase & 1

    @property
    def status(self) -> int:
        """The 15 bits of the Status Field; 0 is success."""
        return self.status_phase >> 1


@bitfield(8, section="Base 3.3.3.1, Command Dword 0")
class CommandFlags(Bits):
    """Byte 1 of a submission queue entry."""

    fuse: int = bits(1, 0, "Fused Operation: 0 normal, 1 first, 2 second")
    psdt: int = bits(7, 6, "PRP or SGL for Data Transfer: 0 PRP")


# --- dwords of the admin commands ----------------------------------------------------------------


@bitfield(32, section="Base 5.17.1, Command Dword 10")
class IdentifyCdw10(Bits):
    """Identify."""

    cns: int = bits(7, 0, "Controller or Namespace Structure")
    cntid: int = bits(31, 16, "Controller Identifier")


@bitfield(32, section="Base 5.17.1, Command Dword 11")
class IdentifyCdw11(Bits):
    """Identify."""

    cnssid: int = bits(15, 0, "CNS Specific Identifier, such as an NVM Set")
    csi: int = bits(31, 24, "Command Set Identifier")


@bitfield(32, section="Base 5.16, Command Dword 10")
class GetLogPageCdw10(Bits):
    """Get Log Page."""

    lid: int = bits(7, 0, "Log Page Identifier")
    lsp: int = bits(14, 8, "Log Specific Parameter")
    rae: int = bit(15, "Retain Asynchronous Event")
    numdl: int = bits(31, 16, "Number of Dwords Lower, 0's based")


@bitfield(32, section="Base 5.16, Command Dword 11")
class GetLogPageCdw11(Bits):
    """Get Log Page."""

    numdu: int = bits(15, 0, "Number of Dwords Upper")
    lsi: int = bits(31, 16, "Log Specific Identifier")


@bitfield(32, section="Base 5.16, Command Dword 14")
class GetLogPageCdw14(Bits):
    """Get Log Page."""

    uuid_index: int = bits(6, 0, "UUID Index")
    ot: int = bit(23, "Offset Type: 0 bytes, 1 index")
    csi: int = bits(31, 24, "Command Set Identifier")


@bitfield(32, section="Base 5.4 and 5.5, Command Dword 10")
class CreateQueueCdw10(Bits):
    """Create I/O Completion Queue and Create I/O Submission Queue."""

    qid: int = bits(15, 0, "Queue Identifier")
    qsize: int = bits(31, 16, "Queue Size, 0's based")


@bitfield(32, section="Base 5.4, Command Dword 11")
class CreateCqCdw11(Bits):
    """Create I/O Completion Queue."""

    pc: int = bit(0, "Physically Contiguous")
    ien: int = bit(1, "Interrupts Enabled")
    iv: int = bits(31, 16, "Interrupt Vector")


@bitfield(32, section="Base 5.5, Command Dword 11")
class CreateSqCdw11(Bits):
    """Create I/O Submission Queue."""

    pc: int = bit(0, "Physically Contiguous")
    qprio: int = bits(2, 1, "Queue Priority: 0 urgent, 1 high, 2 medium, 3 low")
    cqid: int = bits(31, 16, "Completion Queue Identifier")


@bitfield(32, section="Base 5.27, Command Dword 10")
class SetFeaturesCdw10(Bits):
    """Set Features."""

    fid: int = bits(7, 0, "Feature Identifier")
    sv: int = bit(31, "Save")


@bitfield(32, section="Base 5.15, Command Dword 10")
class GetFeaturesCdw10(Bits):
    """Get Features."""

    fid: int = bits(7, 0, "Feature Identifier")
    sel: int = bits(10, 8, "Select")


@bitfield(32, section="Base 5.27.1.5, Command Dword 11 and completion Dword 0")
class NumberOfQueues(Bits):
    """Feature 07h: asked for in Command Dword 11, granted in Dword 0 of the completion."""

    nsq: int = bits(15, 0, "Number of I/O Submission Queues, 0's based; FFFFh is not allowed")
    ncq: int = bits(31, 16, "Number of I/O Completion Queues, 0's based; FFFFh is not allowed")


@bitfield(32, section="Base 5.1, Command Dword 10")
class AbortCdw10(Bits):
    """Abort."""

    sqid: int = bits(15, 0, "Submission Queue Identifier of the command to abort")
    cid: int = bits(31, 16, "Command Identifier of the command to abort")


# --- dwords of the I/O commands ------------------------------------------------------------------


@bitfield(32, section="NVM 3.2.4 and 3.2.6, Command Dword 12")
class ReadWriteCdw12(Bits):
    """Read and Write."""

    nlb: int = bits(15, 0, "Number of Logical Blocks, 0's based")
    dtype: int = bits(23, 20, "Directive Type (Write)")
    stc: int = bit(24, "Storage Tag Check")
    prchk: int = bits(28, 26, "Protection Information Check: guard, application tag, reference tag")
    pract: int = bit(29, "Protection Information Action")
    fua: int = bit(30, "Force Unit Access")
    lr: int = bit(31, "Limited Retry")


# --- builders: admin -----------------------------------------------------------------------------


def _zeros_based(what: str, count: int, limit: int) -> int:
    if not 1 <= count <= limit:
        raise InvalidRequestError(f"{what}: {count}", mend=f"1 to {limit}")
    return count - 1


def identify(
    cns: int, *, nsid: int = 0, cntid: int = 0, cnssid: int = 0, csi: int = 0,
    prp1: int = 0, prp2: int = 0, cid: int = 0,
) -> bytes:
    """Identify (Base 5.17): 4096 bytes of the structure `cns` go to `prp1` and `prp2`."""
    return SubmissionEntry(
        opcode=AdminOpcode.IDENTIFY, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2,
        cdw10=IdentifyCdw10(cns=cns, cntid=cntid).pack(),
        cdw11=IdentifyCdw11(cnssid=cnssid, csi=csi).pack(),
    ).encode()


def get_log_page(
    lid: int, nbytes: int, *, nsid: int = NSID_ALL, offset: int = 0, lsp: int = 0, lsi: int = 0,
    rae: bool = False, csi: int = 0, uuid_index: int = 0,
    prp1: int = 0, prp2: int = 0, cid: int = 0,
) -> bytes:
    """Get Log Page (Base 5.16): `nbytes` (a multiple of 4) from byte `offset` (likewise)."""
    nbytes, offset = integer(nbytes, "a length"), integer(offset, "an offset")
    if nbytes % 4 or offset % 4:
        raise InvalidRequestError(
            f"Get Log Page of {nbytes} bytes from {offset}", mend="both are multiples of 4"
        )
    numd = _zeros_based("dwords of a log page", nbytes // 4, 1 << 32)
    return SubmissionEntry(
        opcode=AdminOpcode.GET_LOG_PAGE, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2,
        cdw10=GetLogPageCdw10(lid=lid, lsp=lsp, rae=int(rae), numdl=numd & 0xFFFF).pack(),
        cdw11=GetLogPageCdw11(numdu=numd >> 16, lsi=lsi).pack(),
        cdw12=offset & 0xFFFF_FFFF,
        cdw13=offset >> 32,
        cdw14=GetLogPageCdw14(uuid_index=uuid_index, csi=csi).pack(),
    ).encode()


def create_io_cq(
    qid: int, entries: int, *, iova: int, vector: int | None = None, contiguous: bool = True,
    cid: int = 0,
) -> bytes:
    """Create I/O Completion Queue (Base 5.4); no `vector`: without interrupts, to be polled."""
    return SubmissionEntry(
        opcode=AdminOpcode.CREATE_IO_CQ, cid=cid, prp1=iova,
        cdw10=CreateQueueCdw10(qid=qid, qsize=_zeros_based("queue entries", entries, 65536)).pack(),
        cdw11=CreateCqCdw11(
            pc=int(contiguous), ien=int(vector is not None), iv=vector or 0
        ).pack(),
    ).encode()


def create_io_sq(
    qid: int, entries: int, *, cqid: int, iova: int, priority: int = 0, contiguous: bool = True,
    nvmsetid: int = 0, cid: int = 0,
) -> bytes:
    """Create I/O Submission Queue (Base 5.5) that completes to `cqid`, which must exist."""
    return SubmissionEntry(
        opcode=AdminOpcode.CREATE_IO_SQ, cid=cid, prp1=iova,
        cdw10=CreateQueueCdw10(qid=qid, qsize=_zeros_based("queue entries", entries, 65536)).pack(),
        cdw11=CreateSqCdw11(pc=int(contiguous), qprio=priority, cqid=cqid).pack(),
        cdw12=nvmsetid,
    ).encode()


def delete_io_sq(qid: int, *, cid: int = 0) -> bytes:
    """Delete I/O Submission Queue (Base 5.7); before its completion queue."""
    cdw10 = CreateQueueCdw10(qid=qid).pack()
    return SubmissionEntry(opcode=AdminOpcode.DELETE_IO_SQ, cid=cid, cdw10=cdw10).encode()


def delete_io_cq(qid: int, *, cid: int = 0) -> bytes:
    """Delete I/O Completion Queue (Base 5.6)."""
    cdw10 = CreateQueueCdw10(qid=qid).pack()
    return SubmissionEntry(opcode=AdminOpcode.DELETE_IO_CQ, cid=cid, cdw10=cdw10).encode()


def set_features(
    fid: int, value: int, *, nsid: int = 0, save: bool = False,
    cdw12: int = 0, cdw13: int = 0, cdw14: int = 0, cdw15: int = 0,
    prp1: int = 0, prp2: int = 0, cid: int = 0,
) -> bytes:
    """Set Features (Base 5.27): `value` is Command Dword 11."""
    return SubmissionEntry(
        opcode=AdminOpcode.SET_FEATURES, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2,
        cdw10=SetFeaturesCdw10(fid=fid, sv=int(save)).pack(), cdw11=value,
        cdw12=cdw12, cdw13=cdw13, cdw14=cdw14, cdw15=cdw15,
    ).encode()


def get_features(
    fid: int, *, nsid: int = 0, select: int = FeatureSelect.CURRENT, cdw11: int = 0,
    prp1: int = 0, prp2: int = 0, cid: int = 0,
) -> bytes:
    """Get Features (Base 5.15)."""
    return SubmissionEntry(
        opcode=AdminOpcode.GET_FEATURES, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2,
        cdw10=GetFeaturesCdw10(fid=fid, sel=select).pack(), cdw11=cdw11,
    ).encode()


def number_of_queues(submission: int, completion: int) -> int:
    """Return Command Dword 11 of Set Features 07h for these counts, 1 to 65535 each."""
    return NumberOfQueues(
        nsq=_zeros_based("I/O submission queues", submission, 65535),
        ncq=_zeros_based("I/O completion queues", completion, 65535),
    ).pack()


def abort(sqid: int, victim: int, *, cid: int = 0) -> bytes:
    """Abort (Base 5.1) command `victim` on `sqid`. Its completion proves nothing about memory."""
    return SubmissionEntry(
        opcode=AdminOpcode.ABORT, cid=cid, cdw10=AbortCdw10(sqid=sqid, cid=victim).pack()
    ).encode()


def async_event_request(*, cid: int = 0) -> bytes:
    """Asynchronous Event Request (Base 5.2)."""
    return SubmissionEntry(opcode=AdminOpcode.ASYNC_EVENT_REQUEST, cid=cid).encode()


def doorbell_buffer_config(shadow_iova: int, eventidx_iova: int, *, cid: int = 0) -> bytes:
    """Doorbell Buffer Config (Base 5.8): both buffers are one memory page, page aligned."""
    return SubmissionEntry(
        opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, cid=cid, prp1=shadow_iova, prp2=eventidx_iova
    ).encode()


# --- builders: NVM command set -------------------------------------------------------------------


def _read_write(
    opcode: int, *, nsid: int, slba: int, blocks: int, fua: bool, prp1: int, prp2: int, cid: int
) -> bytes:
    if not 0 <= slba < 1 << 64:
        raise InvalidRequestError(f"starting LBA {slba}", mend="0 to 2^64 - 1")
    return SubmissionEntry(
        opcode=opcode, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2,
        cdw10=slba & 0xFFFF_FFFF,
        cdw11=slba >> 32,
        cdw12=ReadWriteCdw12(nlb=_zeros_based("blocks", blocks, 65536), fua=int(fua)).pack(),
    ).encode()


def read(
    nsid: int, slba: int, blocks: int, *, fua: bool = False, prp1: int = 0, prp2: int = 0,
    cid: int = 0,
) -> bytes:
    """Read (NVM 3.2.4) `blocks`, 1 to 65536, from `slba`."""
    return _read_write(
        IoOpcode.READ, nsid=nsid, slba=slba, blocks=blocks, fua=fua, prp1=prp1, prp2=prp2, cid=cid
    )


def write(
    nsid: int, slba: int, blocks: int, *, fua: bool = False, prp1: int = 0, prp2: int = 0,
    cid: int = 0,
) -> bytes:
    """Write (NVM 3.2.6) `blocks`, 1 to 65536, to `slba`."""
    return _read_write(
        IoOpcode.WRITE, nsid=nsid, slba=slba, blocks=blocks, fua=fua, prp1=prp1, prp2=prp2, cid=cid
    )


def flush(nsid: int, *, cid: int = 0) -> bytes:
    """Flush (Base 7.1); `NSID_ALL` where VWC allows it."""
    return SubmissionEntry(opcode=IoOpcode.FLUSH, cid=cid, nsid=nsid).encode()
