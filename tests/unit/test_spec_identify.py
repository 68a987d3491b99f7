"""Identify and log pages: nvme-cli's keys, and devices that send nonsense."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import BufferTooSmallError, ControllerError, UdrvError
from udrv.nvme.spec import identify, logs
from udrv.nvme.spec.identify import IdentifyController, IdentifyNamespace, LbaFormat, PowerState


def _words(text: str) -> list[str]:
    return text.split()


#: In nvme-cli 2.3's order (`nvme id-ctrl -o json`, `id-ns`, `smart-log`, `error-log`).
ID_CTRL_KEYS = _words("""
    vid ssvid sn mn fr rab ieee cmic mdts cntlid ver rtd3r rtd3e oaes ctratt rrls
    cntrltype fguid crdt1 crdt2 crdt3 nvmsr vwci mec oacs acl aerl frmw lpa elpe npss avscc apsta
    wctemp cctemp mtfa hmpre hmmin tnvmcap unvmcap rpmbs edstt dsto fwug kas hctma mntmt mxtmt
    sanicap hmminds hmmaxd nsetidmax endgidmax anatt anacap anagrpmax nanagrpid pels domainid
    megcap sqes cqes maxcmd nn oncs fuses fna vwc awun awupf icsvscc nwpc acwu ocfs sgls mnan
    maxdna maxcna subnqn ioccsz iorcsz icdoff fcatt msdbd ofcs psds
""")
PSD_KEYS = _words("""
    max_power flags entry_lat exit_lat read_tput read_lat write_tput write_lat idle_power
    idle_scale active_power active_power_work active_scale
""")
ID_NS_KEYS = _words("""
    nsze ncap nuse nsfeat nlbaf flbas mc dpc dps nmic rescap fpi dlfeat nawun nawupf
    nacwu nabsn nabo nabspf noiob nvmcap nsattr nvmsetid npwg npwa npdg npda nows mssrl mcl msrc
    nulbaf anagrpid endgid eui64 nguid lbafs
""")
SMART_KEYS = _words("""
    critical_warning temperature avail_spare spare_thresh percent_used
    endurance_grp_critical_warning_summary data_units_read data_units_written host_read_commands
    host_write_commands controller_busy_time power_cycles power_on_hours unsafe_shutdowns
    media_errors num_err_log_entries warning_temp_time critical_comp_time temperature_sensor_1
    temperature_sensor_8 thm_temp1_trans_count thm_temp2_trans_count thm_temp1_total_time
    thm_temp2_total_time
""")
ERROR_KEYS = _words("""
    error_count sqid cmdid status_field phase_tag parm_error_location lba nsid vs trtype
    cs trtype_spec_info
""")


def test_id_ctrl_has_the_keys_of_nvme_cli_and_one_more() -> None:
    keys = IdentifyController(subnqn="nqn.x").to_dict().keys()
    # DCTYPE is in Base 2.0, but nvme-cli 2.3 does not print it.
    assert keys == {*ID_CTRL_KEYS, "dctype"}
    assert "subnqn" not in IdentifyController().to_dict()


def test_power_states_have_the_keys_and_values_of_nvme_cli() -> None:
    state = PowerState(mp=2500, flags=2, enlat=5, exlat=6, idlp=3, ips=0x81, actp=4, apws=0x42)
    out = state.to_dict()
    assert list(out) == PSD_KEYS
    assert out == {
        "max_power": 2500, "flags": 2, "entry_lat": 5, "exit_lat": 6, "read_tput": 0,
        "read_lat": 0, "write_tput": 0, "write_lat": 0, "idle_power": 3, "idle_scale": 2,
        "active_power": 4, "active_power_work": 2, "active_scale": 1,
    }


@pytest.mark.parametrize(("npss", "states"), [(0, 1), (4, 5), (31, 32), (255, 32)])
def test_only_the_power_states_that_exist(npss: int, states: int) -> None:
    assert len(IdentifyController(npss=npss).to_dict()["psds"]) == states


def test_id_ctrl_values() -> None:
    raw = bytearray(4096)
    raw[73:76] = bytes([0x54, 0x52, 0x00])
    raw[112:128] = bytes(range(16))
    raw[280:296] = (1 << 70).to_bytes(16, "little")
    raw[768:776] = b"nqn.2014"
    out = identify.decode_id_ctrl(raw).to_dict()
    assert out["ieee"] == 0x5254
    assert out["fguid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert out["tnvmcap"] == 1 << 70
    assert out["subnqn"] == "nqn.2014"
    json.dumps(out)


@pytest.mark.parametrize(
    ("mdts", "limit"), [(0, None), (5, 131072), (7, 524288), (48, 1 << 60), (255, None)]
)
def test_mdts(mdts: int, limit: int | None) -> None:
    assert IdentifyController(mdts=mdts).max_transfer_bytes(4096) == limit


def test_id_ns_has_the_keys_of_nvme_cli() -> None:
    assert IdentifyNamespace(nsfeat=0x10).to_dict().keys() == set(ID_NS_KEYS)
    without = set(ID_NS_KEYS) - {"npwg", "npwa", "npdg", "npda", "nows"}
    assert IdentifyNamespace(nsfeat=0xEF).to_dict().keys() == without


def test_id_ns_values() -> None:
    raw = bytearray(4096)
    struct.pack_into("<QQQ", raw, 0, 1 << 40, 2, 3)
    raw[25] = 1
    raw[104:120] = bytes(range(0xA0, 0xB0))
    raw[120:128] = bytes.fromhex("0025380000000001")
    struct.pack_into("<HBB", raw, 132, 8, 12, 2)
    out = identify.decode_id_ns(raw).to_dict()
    assert out["nsze"] == 1 << 40
    assert out["nguid"] == "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    assert out["eui64"] == "0025380000000001"
    assert out["lbafs"] == [{"ms": 0, "ds": 0, "rp": 0}, {"ms": 8, "ds": 12, "rp": 2}]


def _formats(index: int, fmt: LbaFormat) -> tuple[LbaFormat, ...]:
    return tuple(fmt if i == index else LbaFormat() for i in range(64))


@pytest.mark.parametrize(
    ("flbas", "nlbaf", "index"),
    [(0x00, 0, 0), (0x13, 7, 3), (0x63, 15, 3), (0x63, 16, 0x33), (0x2F, 63, 0x1F)],
)
def test_the_format_in_use(flbas: int, nlbaf: int, index: int) -> None:
    ns = IdentifyNamespace(
        flbas=flbas, nlbaf=nlbaf, lbaf=_formats(index, LbaFormat(ds=12, ms=16))
    )
    assert ns.format_index == index
    assert ns.lba_size == 4096
    assert ns.metadata_size == 16
    assert ns.metadata_interleaved is bool(flbas & 0x10)


@pytest.mark.parametrize("ds", [0, 8, 32, 255])
def test_a_block_size_that_makes_no_sense_is_an_error(ds: int) -> None:
    ns = IdentifyNamespace(lbaf=_formats(0, LbaFormat(ds=ds)))
    with pytest.raises(ControllerError, match="LBADS"):
        _ = ns.lba_size


def test_nsid_list() -> None:
    raw = struct.pack("<1024I", 1, 2, 7, *([0] * 1021))
    assert identify.decode_nsid_list(raw) == (1, 2, 7)
    full = struct.pack("<1024I", *range(1, 1025))
    assert identify.decode_nsid_list(full) == tuple(range(1, 1025))
    assert identify.decode_nsid_list(bytes(4096)) == ()
    with pytest.raises(BufferTooSmallError):
        identify.decode_nsid_list(bytes(4095))


@pytest.mark.parametrize("nsids", [(2, 1), (3, 3)])
def test_an_nsid_list_that_does_not_ascend_is_an_error(nsids: tuple[int, int]) -> None:
    with pytest.raises(ControllerError, match="follows"):
        identify.decode_nsid_list(struct.pack("<2I", *nsids).ljust(4096, b"\0"))


def test_ns_descriptors() -> None:
    raw = (
        bytes([3, 16, 0, 0]) + bytes(range(16))
        + bytes([4, 1, 0, 0, 2])
        + bytes([9, 2, 0, 0, 0xAB, 0xCD])
    ).ljust(4096, b"\0")
    found = identify.decode_ns_descriptors(raw)
    assert [(d.name, d.text) for d in found] == [
        ("uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f"), ("csi", "02"), ("nidt-9", "abcd"),
    ]


@pytest.mark.parametrize(
    "head", [bytes([1, 16, 0, 0]), bytes([4, 2, 0, 0])], ids=["eui64 of 16", "csi of 2"]
)
def test_a_descriptor_of_the_wrong_length_is_an_error(head: bytes) -> None:
    with pytest.raises(ControllerError, match="bytes long"):
        identify.decode_ns_descriptors(head.ljust(4096, b"\1"))


def test_a_descriptor_that_leaves_the_page_is_an_error() -> None:
    with pytest.raises(ControllerError, match="bytes long"):
        identify.decode_ns_descriptors(bytes([9, 255, 0, 0]) + bytes(100))


@given(st.binary(max_size=4096))
def test_descriptors_of_a_hostile_device_end_or_raise(raw: bytes) -> None:
    try:
        found = identify.decode_ns_descriptors(raw)
    except UdrvError:
        return
    assert sum(4 + len(d.nid) for d in found) <= len(raw)


def test_smart_log_has_the_keys_of_nvme_cli() -> None:
    log = logs.SmartLog(temperature=310, temp_sensor=(311, 0, 0, 0, 0, 0, 0, 318))
    out = log.to_dict()
    assert out.keys() == set(SMART_KEYS)
    assert (out["temperature_sensor_1"], out["temperature_sensor_8"]) == (311, 318)


def test_error_log() -> None:
    entry = logs.ErrorLogEntry(error_count=3, status=0x4005 << 1 | 1, lba=9)
    later = logs.ErrorLogEntry(error_count=2)
    found = logs.decode_error_log(
        entry.encode() + later.encode() + bytes(64) + later.encode()[:63]
    )
    assert found == (entry, later)
    assert found[0].status_field == 0x4005
    out = found[0].to_dict()
    assert list(out) == ERROR_KEYS
    assert (out["status_field"], out["phase_tag"], out["lba"]) == (0x4005, 1, 9)


def test_firmware_log() -> None:
    raw = bytes([0x21]) + bytes(7) + b"FW1.0   " + bytes(8) + b"FW2" + bytes(485)
    log = logs.decode_firmware_log(raw)
    assert log.frs == ("FW1.0   ", "", "FW2", "", "", "", "")
    assert logs.ActiveFirmwareInfo.unpack(log.afi) == logs.ActiveFirmwareInfo(active=1, next=2)


def test_critical_warning_bits() -> None:
    assert logs.CriticalWarning.unpack(0x08).ro == 1
