"""The header of a safetensors file: its JSON, strictly read, and the ranges it promises, checked.

Source: the format description of the safetensors project (8-byte length, JSON, data) and the checks of its
reference library: tensors follow each other without gap or overlap and fill the file to its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptkit.errors import FormatError
from ckptkit.formats.json_text import is_count, strict_json, utf8
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.tensors import KNOWN, DType, TensorSpec

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The reference library's own limit."""

_MAX_NAME = 10_000
METADATA_KEY = "__metadata__"
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
"""What a type that is not known here may be called."""
BY_CODE: Mapping[str, DType] = {d.safetensors: d for d in KNOWN if d.safetensors}


@dataclass(frozen=True)
class Header:
    """What a header says: specs and file offsets of the tensors, and metadata."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]


def read_header(file: MappedFile) -> Header:
    """Read and check the header of a safetensors file.

    Raises
    ------
    FormatError
        Truncated, damaged or hostile.
    """
    path = file.path
    length = int.from_bytes(file.data[:LENGTH_BYTES], "little")
    if file.size < LENGTH_BYTES or length > file.size - LENGTH_BYTES:
        raise FormatError(
            path,
            f"header of {length} bytes in a file of {file.size}",
            offset=0,
            hint="it is truncated or no safetensors file: fetch it again",
        )
    if length > MAX_HEADER_BYTES:
        raise FormatError(path, f"header of {length} bytes, more than {MAX_HEADER_BYTES}", offset=0)
    table = strict_json(path, utf8(file, LENGTH_BYTES, length))
    return _Checked(path, LENGTH_BYTES + length, file.size).header(table)


class _Checked:
    """Turns the parsed table into specs, one check after the other."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._path = path
        self._start = start
        self._room = size - start
        self._dtypes = dict(BY_CODE)

    def header(self, table: dict[str, Any]) -> Header:
        metadata = self._metadata(table.pop(METADATA_KEY, {}))
        ranges: list[tuple[int, int, str]] = []
        specs: dict[str, TensorSpec] = {}
        for name, row in table.items():
            if len(name) > _MAX_NAME:
                raise self._error(f"a tensor has a name of {len(name)} characters: {name[:80]!r}…")
            begin, end, shape, code = self._row(name, row)
            ranges.append((begin, end, name))
            dtype = self._dtypes.get(code)
            if dtype is None:
                if not _CODE.fullmatch(code):
                    raise self._error(f"tensor {name!r} has the dtype {code[:80]!r}")
                dtype = self._dtypes[code] = DType(code, 0, "opaque", safetensors=code)
            stored = None if dtype.itemsize or dtype.bits else end - begin
            specs[name] = spec = TensorSpec(name, dtype, shape, stored)
            whole_bytes = spec.size * dtype.bits % 8 == 0 if dtype.bits else True
            if spec.nbytes != end - begin or not whole_bytes:
                raise self._error(f"tensor {name!r} of {spec.nbytes} bytes has a range of {end - begin}")
        ranges.sort()
        self._refuse_gaps(ranges)
        ordered = {name: specs[name] for _, _, name in ranges}
        offsets = {name: self._start + begin for begin, _, name in ranges}
        return Header(ordered, offsets, metadata)

    def _error(self, reason: str) -> FormatError:
        return FormatError(self._path, reason, hint="the file is damaged or truncated: fetch it again")

    def _metadata(self, value: object) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self._error(f"{METADATA_KEY} is no table of texts")
        return value

    def _row(self, name: str, row: object) -> tuple[int, int, tuple[int, ...], str]:
        if not isinstance(row, dict) or not row.keys() >= {"dtype", "shape", "data_offsets"}:
            raise self._error(f"tensor {name!r} lacks dtype, shape or data_offsets")
        code, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
        if not isinstance(code, str):
            raise self._error(f"tensor {name!r} has a dtype that is no text")
        if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
            raise self._error(f"tensor {name!r} has a shape that is no list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
            raise self._error(f"tensor {name!r} has data_offsets that are no pair of positions")
        begin, end = offsets
        if not begin <= end <= self._room:
            raise self._error(f"tensor {name!r} lies at {begin}..{end} of {self._room} bytes of data")
        return begin, end, tuple(shape), code

    def _refuse_gaps(self, ranges: list[tuple[int, int, str]]) -> None:
        position = 0
        for begin, end, name in ranges:
            if begin != position:
                what = "overlaps the one before it" if begin < position else "leaves a hole before it"
                raise self._error(f"tensor {name!r} at {begin} {what}")
            position = end
        if position != self._room:
            raise self._error(f"{self._room - position} bytes behind the last tensor belong to none")
