"""What a controller says of itself: Identify and log pages, under nvme-cli's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from udrv.cli.output import Json, print_lines, print_table, show
from udrv.cli.targets import Bind, Nsid, Target, choose_namespace, open_controller

if TYPE_CHECKING:
    from udrv.nvme.spec.table import Structure


def id_ctrl(target: Target, as_json: Json = False, bind: Bind = False) -> None:
    """Identify Controller; with --json, the keys and values of `nvme id-ctrl -o json`."""
    with open_controller(target, bind=bind) as controller:
        identify = controller.identify
    show(identify.to_dict(), as_json, lambda: _print_fields(identify, hexadecimal=True))


def id_ns(target: Target, nsid: Nsid = None, as_json: Json = False, bind: Bind = False) -> None:
    """Identify Namespace; with --json, the keys and values of `nvme id-ns -o json`."""
    with open_controller(target, bind=bind) as controller:
        identify = choose_namespace(controller, nsid).identify
    show(identify.to_dict(), as_json, lambda: _print_fields(identify, hexadecimal=True))


def smart_log(target: Target, as_json: Json = False, bind: Bind = False) -> None:
    """SMART / Health Information; with --json, as `nvme smart-log -o json`."""
    from udrv.nvme.spec.logs import CriticalWarning

    with open_controller(target, bind=bind) as controller:
        log = controller.smart_log()

    def for_people() -> None:
        _print_fields(log, hexadecimal=False)
        warnings = CriticalWarning.unpack(log.critical_warning)
        print_lines(
            f"WARNING: {row.text}"
            for name, row in CriticalWarning.ROWS.items()
            if getattr(warnings, name)
        )

    show(log.to_dict(), as_json, for_people)


def error_log(target: Target, as_json: Json = False, bind: Bind = False) -> None:
    """Error Information entries, the newest first; with --json, as `nvme error-log -o json`."""
    from udrv.nvme.status import StatusField, status_name

    with open_controller(target, bind=bind) as controller:
        entries = controller.error_log()

    def for_people() -> None:
        if not entries:
            print_lines(["the error log is empty"])
            return
        rows = []
        for entry in entries:
            status = StatusField.unpack(entry.status_field)
            rows.append((
                entry.error_count, entry.sqid, entry.cmdid,
                f"{status_name(status.sct, status.sc)} ({status.sct:x}h/{status.sc:02x}h)",
                entry.nsid, entry.lba, entry.parm_error_location,
            ))
        print_table(("count", "sqid", "cmdid", "status", "nsid", "lba", "parameter"), rows)

    show({"errors": [entry.to_dict() for entry in entries]}, as_json, for_people)


def _print_fields(structure: Structure, *, hexadecimal: bool) -> None:
    """Print the rows of a structure with their texts, then the tables inside of it."""
    keys = structure.to_dict()
    texts = {row.json or name: row.text for name, row in structure.ROWS.items()}
    fields = {key: value for key, value in keys.items() if not isinstance(value, list)}
    print_table(
        ("field", "value", "meaning"),
        [(key, _value(value, hexadecimal), texts.get(key, "")) for key, value in fields.items()],
    )
    for key, value in keys.items():
        if isinstance(value, list) and value:
            print_lines(["", f"{key}: {texts.get(key, '')}"])
            columns = list(value[0])
            rows = [
                (index, *(item[column] for column in columns)) for index, item in enumerate(value)
            ]
            print_table(("#", *columns), rows)


def _value(value: Any, hexadecimal: bool) -> str:
    if isinstance(value, int) and hexadecimal and value > 9:
        return f"{value} ({value:#x})"
    return str(value)
