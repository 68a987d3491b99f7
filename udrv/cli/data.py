"""Blocks in and out: `udrv read` and `udrv write`.

Both move the data in pieces, so that a whole namespace fits through a small buffer, and check the
range before the first one. `write` knows the length of its input before it writes anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from udrv.cli.output import Json, print_json, say
from udrv.cli.targets import Bind, Nsid, Target, choose_namespace, number, open_controller
from udrv.errors import AlignmentError, InvalidRequestError, LbaRangeError, UdrvError

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace

#: Bytes of the buffer that everything goes through.
_PIECE = 4 << 20
#: Bytes that `read --json` puts into the document itself.
_JSON_DATA_LIMIT = 1 << 20
#: Bytes that an input without a length is copied by.
_SPOOL_PIECE = 1 << 20

Lba = Annotated[int, typer.Option("--lba", parser=number, metavar="N", help="First block.")]


def read(
    target: Target,
    *,
    lba: Lba = 0,
    blocks: Annotated[
        int, typer.Option("--blocks", parser=number, metavar="N", help="Number of blocks.")
    ] = 1,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE",
                     help="Write the bytes to FILE; - is standard output."),
    ] = None,
    nsid: Nsid = None,
    as_json: Json = False,
    bind: Bind = False,
) -> None:
    """Read blocks: to a file, as bytes into a pipe, or as a hexadecimal dump on a terminal.

    With --json, a description with the SHA-256, and the data in base64 if no FILE takes it.
    """
    if as_json and output == "-":
        raise typer.BadParameter("standard output cannot take both JSON and bytes")
    with open_controller(target, bind=bind) as controller:
        namespace = choose_namespace(controller, nsid)
        _check_range(namespace, lba, blocks)
        size = blocks * namespace.lba_size
        inline = as_json and output is None
        if inline and size > _JSON_DATA_LIMIT:
            raise InvalidRequestError(
                f"{size} bytes are too many for a JSON document", device=target,
                mend=f"name a file with --output, or read up to {_JSON_DATA_LIMIT} bytes",
            )
        digest, kept, position = hashlib.sha256(), bytearray(), lba * namespace.lba_size
        dump = not as_json and output is None and sys.stdout.isatty()
        with _naming_output(output), ExitStack() as stack:
            sink: IO[bytes] | None = None
            if output is not None and output != "-":
                sink = stack.enter_context(Path(output).open("wb"))
            elif not as_json and not dump:
                sink = sys.stdout.buffer
            for piece in _read_pieces(namespace, lba, blocks):
                digest.update(piece)
                if sink is not None:
                    sink.write(piece)
                elif inline:
                    kept += piece
                if dump:
                    for line in hexdump(bytes(piece), position):
                        print(line)
                    position += len(piece)
            if sink is not None:
                sink.flush()
    if as_json:
        report: dict[str, object] = {
            "target": target, "nsid": namespace.nsid, "lba": lba, "blocks": blocks,
            "lba_size": namespace.lba_size, "bytes": size, "sha256": digest.hexdigest(),
            "output": output,
        }
        if inline:
            report["data"] = base64.b64encode(kept).decode("ascii")
        print_json(report)


def write(
    target: Target,
    *,
    lba: Annotated[
        int, typer.Option("--lba", parser=number, metavar="N", help="First block. Required.")
    ],
    source: Annotated[
        str,
        typer.Option("--input", "-i", metavar="FILE", help="Bytes to write; - is standard input."),
    ] = "-",
    i_mean: Annotated[
        str | None,
        typer.Option(
            "--i-mean", metavar="SERIAL:NSID",
            help="The namespace that loses its data, or its EUI-64 or NGUID; needed for all "
            "targets but soft:.",
        ),
    ] = None,
    pad: Annotated[
        bool, typer.Option("--pad", help="Fill the last block up with zeros.")
    ] = False,
    flush: Annotated[
        bool, typer.Option("--flush/--no-flush", help="Flush at the end.")
    ] = True,
    nsid: Nsid = None,
    as_json: Json = False,
    bind: Bind = False,
) -> None:
    """Write a file or standard input to blocks. DESTROYS what the blocks held.

    Nothing is written unless the target is confirmed, the whole input is there, ends on a block
    (or --pad) and fits the namespace.
    """
    from udrv.nvme.guard import confirm_identity

    with open_controller(target, bind=bind) as controller, ExitStack() as stack:
        namespace = choose_namespace(controller, nsid)
        confirm_identity(
            i_mean, target=target, serial=controller.serial, nsid=namespace.nsid,
            eui64=namespace.eui64, nguid=namespace.nguid,
        )
        room = max(namespace.nsze - lba, 0) * namespace.lba_size
        stream, size = _whole_input(source, stack, room)
        if size > room:
            raise LbaRangeError(
                f"the input has more than the {room} bytes that there are from block {lba} on",
                device=target, mend=f"namespace {namespace.nsid} has blocks 0 to "
                f"{namespace.nsze - 1} of {namespace.lba_size} bytes",
            )
        short = -size % namespace.lba_size
        if short and not pad:
            raise AlignmentError(
                f"the input's {size} bytes are no multiple of the block size "
                f"{namespace.lba_size}", device=target,
                mend=f"add {short} bytes, or --pad to fill up with zeros",
            )
        blocks = (size + short) // namespace.lba_size
        _check_range(namespace, lba, blocks)
        digest = hashlib.sha256()
        for piece in _write_pieces(namespace, lba, stream, size):
            digest.update(piece)
        if flush:
            namespace.flush()
    if as_json:
        print_json({
            "target": target, "nsid": namespace.nsid, "lba": lba, "blocks": blocks,
            "lba_size": namespace.lba_size, "bytes": size + short, "sha256": digest.hexdigest(),
            "input": source, "padded": short, "flushed": flush,
        })
    else:
        say(f"{blocks} blocks written from block {lba} of namespace {namespace.nsid}, {target}")


def hexdump(data: bytes, position: int = 0) -> Iterator[str]:
    """Yield lines of 16 bytes as `hexdump -C` does, repeated ones as one "*"."""
    previous, skipped = b"", False
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        if row == previous and start + 16 < len(data):
            if not skipped:
                yield "*"
            skipped = True
            continue
        previous, skipped = row, False
        halves = [" ".join(f"{byte:02x}" for byte in half) for half in (row[:8], row[8:])]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{position + start:08x}  {halves[0]:<23}  {halves[1]:<23}  |{text}|"


@contextmanager
def _naming_output(output: str | None) -> Iterator[None]:
    """Name the file in the error of a write, which does not know it (a full disk)."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, UdrvError) and error.filename is None:
            error.filename = "standard output" if output in (None, "-") else output
        raise


def _check_range(namespace: Namespace, lba: int, blocks: int) -> None:
    if blocks < 1:
        raise InvalidRequestError("there is nothing to transfer", mend="1 block or more")
    if lba + blocks > namespace.nsze:
        raise LbaRangeError(
            f"blocks {lba} to {lba + blocks - 1} of namespace {namespace.nsid}",
            device=namespace.controller.target, mend=f"it has blocks 0 to {namespace.nsze - 1}",
        )


def _piece_blocks(namespace: Namespace) -> int:
    return max(1, _PIECE // namespace.lba_size)


def _read_pieces(namespace: Namespace, lba: int, blocks: int) -> Iterator[memoryview]:
    """Yield the bytes in order; each piece is valid until the next is asked for."""
    step = min(_piece_blocks(namespace), blocks)
    buffer = namespace.controller.alloc(step * namespace.lba_size)
    for start in range(0, blocks, step):
        count = min(step, blocks - start)
        part = buffer[: count * namespace.lba_size]
        namespace.read(lba + start, count, into=part)
        yield memoryview(part)


def _write_pieces(
    namespace: Namespace, lba: int, stream: IO[bytes], size: int
) -> Iterator[memoryview]:
    """Write `size` bytes, the last block filled up with zeros, and yield what was written."""
    block = namespace.lba_size
    step = _piece_blocks(namespace) * block
    buffer = namespace.controller.alloc(min(step, size + -size % block))
    done = 0
    while done < size:
        want = min(step, size - done)
        view = buffer.data
        got = 0
        while got < want:
            part = stream.readinto(view[got:want])  # type: ignore[attr-defined]  # opened as binary
            if not part:
                raise InvalidRequestError(
                    f"the input ended after {done + got} of {size} bytes",
                    mend=f"it was cut while it was read; {done // block} blocks are written",
                )
            got += part
        filled = want + -want % block
        buffer[want:filled] = 0
        namespace.write(lba + done // block, buffer[:filled])
        yield view[:filled]
        done += want


def _whole_input(source: str, stack: ExitStack, room: int) -> tuple[IO[bytes], int]:
    """Return the input and its length.

    What does not know its length (a pipe, a terminal, a file of /proc) is copied to a temporary
    file first, up to one byte more than the `room` bytes that there are: it may have no end.
    """
    stream: IO[bytes] = sys.stdin.buffer
    if source != "-":
        stream = stack.enter_context(Path(source).open("rb"))  # noqa: SIM115 - the stack closes it
    if not _knows_length(stream):
        spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - likewise
        while piece := stream.read(min(_SPOOL_PIECE, room + 1 - spool.tell())):
            spool.write(piece)
        spool.seek(0)
        stream = spool
    start = stream.tell()
    size = stream.seek(0, 2) - start
    stream.seek(start)
    return stream, size


def _knows_length(stream: IO[bytes]) -> bool:
    try:
        info = os.fstat(stream.fileno())
    except io.UnsupportedOperation:
        return stream.seekable()  # bytes in memory, where a program calls the command
    return stat.S_ISBLK(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_size > 0)
