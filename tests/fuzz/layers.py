"""Layers of a file: payloads inside it, each with the way back to a file that is right otherwise."""

from __future__ import annotations

import functools
import io
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptkit.base.tensors import DTYPES, TensorSpec, dtype_of
from ckptkit.formats.detect import writer_for


@dataclass(frozen=True)
class Layer:
    """Bytes that may be damaged, and the way back to the file they are in, whose checksums are then right.

    ``grammar`` is one of `tests.fuzz.grammars.GRAMMARS`: what the bytes are.
    """

    file: str
    payload: bytes
    wrap: Callable[[bytes], bytes]
    grammar: str = ""
    around: Callable[[bytes], Mapping[str, bytes]] | None = None
    """Where other files have to fit too: all of them, in place of ``wrap``."""

    def files(self, damaged: bytes) -> Mapping[str, bytes]:
        """The files that change when the payload does."""
        return {self.file: self.wrap(damaged)} if self.around is None else self.around(damaged)


@dataclass(frozen=True)
class Seed:
    """A good checkpoint: its files by name, and which of them is opened."""

    format: str
    name: str
    files: Mapping[str, bytes]
    opened: str
    layers: Sequence[Layer]
    kind: str = "read"
    """What becomes of it undamaged."""


def whole(raw: bytes) -> bytes:
    return raw


def raw_layers(files: Mapping[str, bytes]) -> list[Layer]:
    return [Layer(name, raw, whole) for name, raw in files.items()]


def arrays() -> dict[str, Any]:
    source = np.random.default_rng(4)
    made: dict[str, Any] = {
        "stem/kernel": source.standard_normal((3, 3, 2, 4)).astype("float32"),
        "stem/bias": source.standard_normal(4).astype("float32"),
        "half": source.standard_normal((2, 3)).astype("float16"),
        "brain": source.standard_normal(5).astype(DTYPES["bfloat16"].numpy),
        "step": np.array(7, "int64"),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 3), "float32"),
        "double": source.standard_normal((4, 2)),
    }
    return made


def written(format: str, arrays: Mapping[str, Any], name: str, **options: Any) -> dict[str, bytes]:
    """Files of one of ckptkit's writers."""
    specs = [TensorSpec(key, dtype_of(array), array.shape) for key, array in arrays.items()]
    with tempfile.TemporaryDirectory() as folder:
        with writer_for(format)(Path(folder) / name, specs, {"layout": "torch"}, **options) as writer:
            for key in writer.order:
                writer.write(key, arrays[key])
            paths = writer.finish()
        return {path.name: path.read_bytes() for path in sorted(paths)}


def nested(layers: Sequence[Layer], file: str, outer: Callable[[bytes], bytes]) -> list[Layer]:
    """Layers of a file that is inside another one."""

    def wrap(inner: Callable[[bytes], bytes], damaged: bytes) -> bytes:
        return outer(inner(damaged))

    return [Layer(file, one.payload, functools.partial(wrap, one.wrap), one.grammar) for one in layers]


# -- tar -----------------------------------------------------------------------------------------------------

_BLOCK = 512


def tar(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            info.mtime = 1234567890.5 if form == tarfile.PAX_FORMAT else 1  # the fraction makes a pax header
            archive.addfile(info, io.BytesIO(raw))
    return file.getvalue()


def with_checksum(block: bytes) -> bytes:
    """A tar header whose checksum is right."""
    block = block[:_BLOCK].ljust(_BLOCK, b"\0")
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def tar_layers(file: str, raw: bytes, pack: Callable[[bytes], bytes]) -> list[Layer]:
    """Every header of an archive, each with a right checksum, and what pax and GNU headers say."""
    layers, place = [], 0
    while raw[place : place + 1].strip(b"\0"):
        head = raw[place : place + _BLOCK]
        start, size = place + _BLOCK, int(head[124:135], 8)
        stop = start + -(-size // _BLOCK) * _BLOCK

        def wrap(damaged: bytes, place: int = place) -> bytes:
            return pack(raw[:place] + with_checksum(damaged) + raw[place + _BLOCK :])

        def said(damaged: bytes, head: bytes = head, place: int = place, stop: int = stop) -> bytes:
            sized = with_checksum(head[:124] + b"%011o\0" % len(damaged) + head[136:])
            padded = damaged + bytes(-len(damaged) % _BLOCK)
            return pack(raw[:place] + sized + padded + raw[stop:])

        layers.append(Layer(file, head, wrap))
        if head[156:157] in b"xgLK":
            layers.append(Layer(file, raw[start : start + size], said, "lines"))
        place = stop
    return layers


# -- zip -----------------------------------------------------------------------------------------------------


def zipped(
    members: Mapping[str, bytes],
    method: int,
    comment: bytes = b"",
    *,
    zip64: bool = False,
    streamed: bool = False,
) -> bytes:
    """An archive; ``streamed`` ones have sizes and checksums behind each member (data descriptors)."""
    file = io.BytesIO()
    with zipfile.ZipFile(_Unseekable(file) if streamed else file, "w", method) as archive:
        for name, raw in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(raw)
        archive.comment = comment
    return file.getvalue()


class _Unseekable(io.RawIOBase):
    """A pipe, into which an archive is written."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


def stored_zip(members: Mapping[str, bytes]) -> bytes:
    return zipped(members, zipfile.ZIP_STORED)


def member_layers(
    file: str,
    members: Mapping[str, bytes],
    pack: Callable[[Mapping[str, bytes]], bytes],
    grammars: Mapping[str, str] | None = None,
) -> list[Layer]:
    """One layer per member: the archive around a damaged member is right."""

    def wrap(name: str, damaged: bytes) -> bytes:
        return pack({**members, name: damaged})

    return [
        Layer(file, raw, functools.partial(wrap, name), (grammars or {}).get(name, ""))
        for name, raw in members.items()
        if raw
    ]


_LOCAL, _CENTRAL, _END = (struct.Struct(f"<{widths}") for widths in ("4s5H3I2H", "4s6H3I5H2I", "4s4H2IH"))


def zip_layers(file: str, raw: bytes) -> list[Layer]:
    """Headers of an archive: each by itself, a member's two in the same way, the directory and its end.

    Around a changed piece the offsets are moved, so that everything else is still found.
    """
    end = raw.rindex(b"PK\5\6")
    _, _, _, _, count, size, start, _ = _END.unpack_from(raw, end)

    def spliced(place: int, length: int, damaged: bytes) -> bytes:
        """The archive with another piece; what lies behind it is moved, and found."""
        moved = len(damaged) - length
        whole = bytearray(raw[:place] + damaged + raw[place + length :])
        at = start + (moved if place < start else 0)
        for known in centrals if place < start else ():
            offset = _CENTRAL.unpack_from(raw, known)[16]
            if offset > place:
                struct.pack_into("<I", whole, known + moved + 42, offset + moved)
        into = end + moved if place < end else end
        if place < end:
            struct.pack_into("<2I", whole, into + 12, size + (moved if place >= start else 0), at)
        return bytes(whole)

    centrals, place = [], start
    for _ in range(count):
        centrals.append(place)
        fields = _CENTRAL.unpack_from(raw, place)
        place += _CENTRAL.size + sum(fields[10:13])
    layers = [
        Layer(file, raw[end:], functools.partial(spliced, end, len(raw) - end), "zip end"),
        Layer(file, raw[start:end], functools.partial(spliced, start, end - start)),
    ]
    for here, there in zip(centrals, [*centrals[1:], end], strict=True):
        offset = _CENTRAL.unpack_from(raw, here)[16]
        name, extra = _LOCAL.unpack_from(raw, offset)[9:11]
        local = _LOCAL.size + name + extra

        def both(damaged: bytes, here: int = here, offset: int = offset) -> bytes:
            """Flags, method, time, date, checksum and sizes, alike in both headers."""
            whole = bytearray(raw)
            damaged = damaged[:20].ljust(20, b"\0")
            whole[offset + 6 : offset + 26] = damaged
            whole[here + 8 : here + 28] = damaged
            return bytes(whole)

        layers += [
            Layer(file, raw[here:there], functools.partial(spliced, here, there - here), "zip central"),
            Layer(file, raw[offset : offset + local], functools.partial(spliced, offset, local), "zip local"),
        ]
        if (
            raw[offset + 6 : offset + 26] == raw[here + 8 : here + 28]
        ):  # not with 64-bit sizes, or descriptors
            layers.append(Layer(file, raw[offset + 6 : offset + 26], both, "zip both"))
    return layers


_RECORD64, _LOCATOR64 = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")


def with_zip64_end(raw: bytes) -> bytes:
    """An archive whose end says nothing but that its 64-bit records do."""
    end = raw.rindex(b"PK\5\6")
    _, _, _, _, count, size, start, comment = _END.unpack_from(raw, end)
    record = _RECORD64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = _LOCATOR64.pack(b"PK\6\7", 0, end, 1)
    short = _END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, comment)
    return raw[:end] + record + locator + short + raw[end + _END.size :]


def zip64_end_layers(file: str, raw: bytes) -> list[Layer]:
    """The 64-bit records of `with_zip64_end`."""
    locator = raw.rindex(b"PK\6\7")
    record = locator - _RECORD64.size

    def wrap(place: int, damaged: bytes, size: int) -> bytes:
        return raw[:place] + damaged[:size].ljust(size, b"\0") + raw[place + size :]

    return [
        Layer(file, raw[place : place + size], functools.partial(wrap, place, size=size), grammar)
        for place, size, grammar in (
            (record, _RECORD64.size, "zip64 end"),
            (locator, _LOCATOR64.size, "zip64 locator"),
        )
    ]
