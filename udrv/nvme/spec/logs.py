"""Log pages (Base 5.16.1): error information, SMART and health, firmware slots.

Temperatures are kelvins, as the device reports them. Counters of 16 bytes are plain integers.
"""

from __future__ import annotations

from typing import Any

from udrv.nvme.spec.table import (
    Bits,
    BytesLike,
    Structure,
    ascii_text,
    bit,
    bitfield,
    bits,
    structure,
    u8,
    u16,
    u32,
    u64,
    uint,
    uints,
    view_of,
)


@bitfield(8, section="Base 5.16.1.3, byte 0")
class CriticalWarning(Bits):
    """Bits of the SMART log's Critical Warning."""

    available_spare: int = bit(0, "Available spare fell below its threshold")
    temp_threshold: int = bit(1, "A temperature is over, or under, its threshold")
    reliability_degraded: int = bit(2, "Media or internal errors degraded the reliability")
    ro: int = bit(3, "All media are read only")
    vmbu_failed: int = bit(4, "The volatile memory backup device failed")
    pmr_ro: int = bit(5, "The Persistent Memory Region is read only or unreliable")


@structure(512, section="Base 5.16.1.3, SMART / Health Information Log Page")
class SmartLog(Structure):
    """SMART / Health Information (log page 02h). Names are nvme-cli's JSON keys."""

    critical_warning: int = u8(0, "Critical Warning, see CriticalWarning")
    temperature: int = u16(1, "Composite Temperature, kelvins")
    avail_spare: int = u8(3, "Available Spare, percent")
    spare_thresh: int = u8(4, "Available Spare Threshold, percent")
    percent_used: int = u8(5, "Percentage Used, 255 is 255 or more")
    endurance_grp_critical_warning_summary: int = u8(6, "Endurance Group Critical Warning Summary")
    data_units_read: int = uint(32, 16, "Data Units Read, thousands of 512 bytes")
    data_units_written: int = uint(48, 16, "Data Units Written, thousands of 512 bytes")
    host_read_commands: int = uint(64, 16, "Host Read Commands")
    host_write_commands: int = uint(80, 16, "Host Write Commands")
    controller_busy_time: int = uint(96, 16, "Controller Busy Time, minutes")
    power_cycles: int = uint(112, 16, "Power Cycles")
    power_on_hours: int = uint(128, 16, "Power On Hours")
    unsafe_shutdowns: int = uint(144, 16, "Unsafe Shutdowns")
    media_errors: int = uint(160, 16, "Media and Data Integrity Errors")
    num_err_log_entries: int = uint(176, 16, "Number of Error Information Log Entries")
    warning_temp_time: int = u32(192, "Warning Composite Temperature Time, minutes")
    critical_comp_time: int = u32(196, "Critical Composite Temperature Time, minutes")
    temp_sensor: tuple[int, ...] = uints(200, 2, 8, "Temperature Sensors 1 to 8, kelvins, 0: none")
    thm_temp1_trans_count: int = u32(216, "Thermal Management Temperature 1 Transition Count")
    thm_temp2_trans_count: int = u32(220, "Thermal Management Temperature 2 Transition Count")
    thm_temp1_total_time: int = u32(224, "Total Time For Thermal Management Temperature 1, seconds")
    thm_temp2_total_time: int = u32(228, "Total Time For Thermal Management Temperature 2, seconds")

    def to_dict(self) -> dict[str, Any]:
        """As nvme-cli: a key for each sensor that exists."""
        out = super().to_dict()
        for number, kelvins in enumerate(out.pop("temp_sensor"), start=1):
            if kelvins:
                out[f"temperature_sensor_{number}"] = kelvins
        return out


@structure(64, section="Base 5.16.1.2, Error Information Log Entry")
class ErrorLogEntry(Structure):
    """One entry of the Error Information log (01h), newest first in the page."""

    error_count: int = u64(0, "Error Count; 0: the entry is not valid")
    sqid: int = u16(8, "Submission Queue ID; FFFFh: no particular queue")
    cmdid: int = u16(10, "Command ID; FFFFh: no particular command")
    status: int = u16(12, "Status Field in bits 15:1, phase tag (may be) in bit 0")
    parm_error_location: int = u16(14, "Parameter Error Location: byte in 7:0, bit in 10:8")
    lba: int = u64(16, "LBA, the first one with the error")
    nsid: int = u32(24, "Namespace")
    vs: int = u8(28, "Vendor Specific Information Available: log page identifier or 0")
    trtype: int = u8(29, "Transport Type")
    cs: int = u64(32, "Command Specific Information")
    trtype_spec_info: int = u16(40, "Transport Type Specific Information")

    @property
    def status_field(self) -> int:
        """The 15 bits of the status, as `udrv.nvme.status.error_from_status` takes them."""
        return self.status >> 1

    def to_dict(self) -> dict[str, Any]:
        """As nvme-cli: status and phase apart."""
        out: dict[str, Any] = {}
        for key, value in super().to_dict().items():
            if key == "status":
                out["status_field"] = value >> 1
                out["phase_tag"] = value & 1
            else:
                out[key] = value
        return out


@bitfield(8, section="Base 5.16.1.4, byte 0")
class ActiveFirmwareInfo(Bits):
    """AFI of the Firmware Slot Information log."""

    active: int = bits(2, 0, "Slot that the running firmware was loaded from")
    next: int = bits(6, 4, "Slot to be activated at the next reset; 0: not reported")


@structure(512, section="Base 5.16.1.4, Firmware Slot Information Log Page")
class FirmwareSlotLog(Structure):
    """Firmware Slot Information (log page 03h)."""

    afi: int = u8(0, "Active Firmware Info, see ActiveFirmwareInfo")
    frs: tuple[str, ...] = ascii_text(8, 8, "Firmware Revision of slots 1 to 7", count=7)


def decode_smart_log(data: BytesLike) -> SmartLog:
    """Decode the 512 bytes of log page 02h."""
    return SmartLog.decode(data)


def decode_error_log(data: BytesLike) -> tuple[ErrorLogEntry, ...]:
    """Decode the whole entries of `data` that are valid (Error Count is not 0), newest first."""
    view = view_of(data)
    size = ErrorLogEntry.SIZE
    entries = (
        ErrorLogEntry.decode(view[start : start + size])
        for start in range(0, len(view) - size + 1, size)
    )
    return tuple(entry for entry in entries if entry.error_count)


def decode_firmware_log(data: BytesLike) -> FirmwareSlotLog:
    """Decode the 512 bytes of log page 03h."""
    return FirmwareSlotLog.decode(data)
