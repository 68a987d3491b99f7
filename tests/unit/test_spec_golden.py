"""Offsets and bits, held against a second source that shares nothing with our tables.

The structures' offsets and sizes below were printed by `offsetof` and `sizeof` from libnvme 1.3's
<nvme/types.h>; the registers' bits are that header's *_SHIFT and *_MASK. A wrong digit in
`udrv.nvme.spec` fails here.
"""

from __future__ import annotations

import re

import pytest

from udrv.nvme.spec import identify, logs, registers
from udrv.nvme.spec.table import Bits, Structure

POWER_STATE = (32, """
mp 0 2; flags 3 1; enlat 4 4; exlat 8 4; rrt 12 1; rrl 13 1; rwt 14 1; rwl 15 1; idlp 16 2; ips 18
1; actp 20 2; apws 22 1
""")

ID_CTRL = (4096, """
vid 0 2; ssvid 2 2; sn 4 20; mn 24 40; fr 64 8; rab 72 1; ieee 73 3; cmic 76 1; mdts 77 1; cntlid
78 2; ver 80 4; rtd3r 84 4; rtd3e 88 4; oaes 92 4; ctratt 96 4; rrls 100 2; cntrltype 111 1; fguid
112 16; crdt1 128 2; crdt2 130 2; crdt3 132 2; nvmsr 253 1; vwci 254 1; mec 255 1; oacs 256 2; acl
258 1; aerl 259 1; frmw 260 1; lpa 261 1; elpe 262 1; npss 263 1; avscc 264 1; apsta 265 1; wctemp
266 2; cctemp 268 2; mtfa 270 2; hmpre 272 4; hmmin 276 4; tnvmcap 280 16; unvmcap 296 16; rpmbs
312 4; edstt 316 2; dsto 318 1; fwug 319 1; kas 320 2; hctma 322 2; mntmt 324 2; mxtmt 326 2;
sanicap 328 4; hmminds 332 4; hmmaxd 336 2; nsetidmax 338 2; endgidmax 340 2; anatt 342 1; anacap
343 1; anagrpmax 344 4; nanagrpid 348 4; pels 352 4; domainid 356 2; megcap 368 16; sqes 512 1;
cqes 513 1; maxcmd 514 2; nn 516 4; oncs 520 2; fuses 522 2; fna 524 1; vwc 525 1; awun 526 2;
awupf 528 2; icsvscc 530 1; nwpc 531 1; acwu 532 2; ocfs 534 2; sgls 536 4; mnan 540 4; maxdna 544
16; maxcna 560 4; subnqn 768 256; ioccsz 1792 4; iorcsz 1796 4; icdoff 1800 2; fcatt 1802 1; msdbd
1803 1; ofcs 1804 2; dctype 1806 1; psd 2048 1024; vs 3072 1024
""")

LBA_FORMAT = (4, """
ms 0 2; ds 2 1; rp 3 1
""")

ID_NS = (4096, """
nsze 0 8; ncap 8 8; nuse 16 8; nsfeat 24 1; nlbaf 25 1; flbas 26 1; mc 27 1; dpc 28 1; dps 29 1;
nmic 30 1; rescap 31 1; fpi 32 1; dlfeat 33 1; nawun 34 2; nawupf 36 2; nacwu 38 2; nabsn 40 2;
nabo 42 2; nabspf 44 2; noiob 46 2; nvmcap 48 16; npwg 64 2; npwa 66 2; npdg 68 2; npda 70 2; nows
72 2; mssrl 74 2; mcl 76 4; msrc 80 1; nulbaf 82 1; anagrpid 92 4; nsattr 99 1; nvmsetid 100 2;
endgid 102 2; nguid 104 16; eui64 120 8; lbaf 128 256; lbstm 384 8; vs 392 3704
""")

SMART = (512, """
critical_warning 0 1; temperature 1 2; avail_spare 3 1; spare_thresh 4 1; percent_used 5 1;
endu_grp_crit_warn_sumry 6 1; data_units_read 32 16; data_units_written 48 16; host_reads 64 16;
host_writes 80 16; ctrl_busy_time 96 16; power_cycles 112 16; power_on_hours 128 16;
unsafe_shutdowns 144 16; media_errors 160 16; num_err_log_entries 176 16; warning_temp_time 192 4;
critical_comp_time 196 4; temp_sensor 200 16; thm_temp1_trans_count 216 4; thm_temp2_trans_count
220 4; thm_temp1_total_time 224 4; thm_temp2_total_time 228 4
""")

ERROR_LOG = (64, """
error_count 0 8; sqid 8 2; cmdid 10 2; status_field 12 2; parm_error_location 14 2; lba 16 8; nsid
24 4; vs 28 1; trtype 29 1; cs 32 8; trtype_spec_info 40 2
""")

FIRMWARE_SLOT = (512, """
afi 0 1; frs 8 56
""")


#: libnvme's C name -> ours, where ours is nvme-cli's JSON key or the specification's acronym.
RENAMED = {
    "endu_grp_crit_warn_sumry": "endurance_grp_critical_warning_summary",
    "host_reads": "host_read_commands",
    "host_writes": "host_write_commands",
    "ctrl_busy_time": "controller_busy_time",
    "status_field": "status",
}

#: libnvme has the Logical Block Storage Tag Mask of the NVM-specific structure (CNS 05h) here;
#: NVM 1.0 calls these bytes vendor specific, and so they belong to our `vs`.
NOT_OURS = {"lbstm"}

STRUCTURES: list[tuple[type[Structure], tuple[int, str]]] = [
    (identify.PowerState, POWER_STATE),
    (identify.IdentifyController, ID_CTRL),
    (identify.LbaFormat, LBA_FORMAT),
    (identify.IdentifyNamespace, ID_NS),
    (logs.SmartLog, SMART),
    (logs.ErrorLogEntry, ERROR_LOG),
    (logs.FirmwareSlotLog, FIRMWARE_SLOT),
]


def _rows(text: str) -> dict[str, tuple[int, int]]:
    rows = {}
    for item in re.split(r";\s*", " ".join(text.split())):
        name, offset, size = item.split()
        if name not in NOT_OURS:
            rows[RENAMED.get(name, name)] = (int(offset), int(size))
    return rows


@pytest.mark.parametrize(("ours", "theirs"), STRUCTURES, ids=lambda v: getattr(v, "__name__", ""))
def test_structures_have_libnvme_offsets(
    ours: type[Structure], theirs: tuple[int, str]
) -> None:
    size, text = theirs
    assert size == ours.SIZE
    assert ours.dtype.itemsize == size
    golden = _rows(text)
    mine = {name: (row.offset, row.end - row.offset) for name, row in ours.ROWS.items()}
    if ours is identify.IdentifyNamespace:
        golden["vs"] = (384, 3712)  # see NOT_OURS
    assert mine == golden


@pytest.mark.parametrize(("ours", "theirs"), STRUCTURES, ids=lambda v: getattr(v, "__name__", ""))
def test_decode_reads_each_field_at_its_golden_offset(
    ours: type[Structure], theirs: tuple[int, str]
) -> None:
    # Ascending bytes: the value of a field tells which bytes it came from.
    data = bytes((7 * position + 1) % 251 for position in range(ours.SIZE))
    decoded = ours.decode(data)
    for name, (offset, size) in _rows(theirs[1]).items():
        value = getattr(decoded, name)
        if isinstance(value, int):
            assert value == int.from_bytes(data[offset : offset + size], "little"), name


#: Shift and mask, from the header's enums (nvme_cap, nvme_cc, ...).
REGISTER_BITS: dict[type[Bits], str] = {
    registers.Cap: """mqes 0 ffff; cqr 16 1; ams 17 3; to 24 ff; dstrd 32 f; nssrs 36 1; css 37 ff;
        bps 45 1; mpsmin 48 f; mpsmax 52 f; pmrs 56 1; cmbs 57 1; crms 59 3""",
    registers.Vs: "ter 0 ff; mnr 8 ff; mjr 16 ffff",
    registers.Cc: """en 0 1; css 4 7; mps 7 f; ams 11 7; shn 14 3; iosqes 16 f; iocqes 20 f;
        crime 24 1""",
    registers.Csts: "rdy 0 1; cfs 1 1; shst 2 3; nssro 4 1; pp 5 1",
    registers.Aqa: "asqs 0 fff; acqs 16 fff",
    registers.Cmbloc: """bir 0 7; cqmms 3 1; cqpds 4 1; cdpmls 5 1; cdpcils 6 1; cdmmms 7 1;
        cqda 8 1; ofst 12 fffff""",
    registers.Cmbsz: "sqs 0 1; cqs 1 1; lists 2 1; rds 3 1; wds 4 1; szu 8 f; sz 12 fffff",
    registers.Bpinfo: "bpsz 0 7fff; brs 24 3; abpid 31 1",
    # The header's mask for BPROF has 12 bits; Base 3.1.3.14 says 29:10, which is 20.
    registers.Bprsel: "bprsz 0 3ff; bprof 10 fffff; bpid 31 1",
    registers.Cmbmsc: "cre 0 1; cmse 1 1; cba 12 fffffffffffff",
    registers.Cmbsts: "cbai 0 1",
    registers.Crto: "crwmt 0 ffff; crimt 16 ffff",
    registers.Pmrcap: "rds 3 1; wds 4 1; bir 5 7; pmrtu 8 3; pmrwbm 10 f; pmrto 16 ff; cmss 24 1",
    registers.Pmrctl: "en 0 1",
    registers.Pmrsts: "err 0 ff; nrdy 8 1; hsts 9 7; cbai 12 1",
    registers.Pmrebs: "pmrszu 0 f; rbb 4 1; pmrwbz 8 ffffff",
    registers.Pmrswtp: "pmrswtu 0 f; pmrswtv 8 ffffff",
    registers.Pmrmscl: "cmse 1 1; cba 12 fffff",
}

#: In Base 2.0, but not in that header.
NOT_IN_HEADER = {(registers.Cap, "cps"), (registers.Cap, "nsss"), (registers.Csts, "st")}


@pytest.mark.parametrize("ours", REGISTER_BITS, ids=lambda v: v.__name__)
def test_register_bits_have_libnvme_shifts_and_masks(ours: type[Bits]) -> None:
    golden = {}
    for item in REGISTER_BITS[ours].split(";"):
        name, shift, mask = item.split()
        golden[name] = (int(shift), int(mask, 16))
    mine = {
        name: (row.lsb, row.maximum)
        for name, row in ours.ROWS.items()
        if (ours, name) not in NOT_IN_HEADER
    }
    assert mine == golden


def test_register_offsets() -> None:
    golden = {
        "CAP": 0x00, "VS": 0x08, "INTMS": 0x0C, "INTMC": 0x10, "CC": 0x14, "CSTS": 0x1C,
        "NSSR": 0x20, "AQA": 0x24, "ASQ": 0x28, "ACQ": 0x30, "CMBLOC": 0x38, "CMBSZ": 0x3C,
        "BPINFO": 0x40, "BPRSEL": 0x44, "BPMBL": 0x48, "CMBMSC": 0x50, "CMBSTS": 0x58,
        "CMBEBS": 0x5C, "CMBSWTP": 0x60, "NSSD": 0x64, "CRTO": 0x68, "PMRCAP": 0xE00,
        "PMRCTL": 0xE04, "PMRSTS": 0xE08, "PMREBS": 0xE0C, "PMRSWTP": 0xE10, "PMRMSCL": 0xE14,
        "PMRMSCU": 0xE18,
    }
    assert {entry.name: int(entry) for entry in registers.Offset} == golden


@pytest.mark.parametrize(
    ("qid", "dstrd", "tail", "head"),
    [(0, 0, 0x1000, 0x1004), (1, 0, 0x1008, 0x100C), (3, 2, 0x1060, 0x1070)],
)
def test_doorbells(qid: int, dstrd: int, tail: int, head: int) -> None:
    assert registers.sq_tail_doorbell(qid, dstrd) == tail
    assert registers.cq_head_doorbell(qid, dstrd) == head
