"""The header of a safetensors file: its JSON, strictly read, and the ranges it promises, checked.

Source: the format description of the safetensors project (8-byte length, JSON, data) and the checks of its
reference library: tensors follow each other without gap or overlap and fill the file to its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import KNOWN, DType, TensorSpec
from ckptkit.formats.json_text import JsonError, JsonWalk, is_count, utf8
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The reference library's own limit."""

MAX_NAME = 10_000
"""Characters of a tensor's name: ours, so that one name does not fill a terminal."""
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
    """Read and check the header of a safetensors file."""
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
    budget = Budget(file.size, lambda reason: FormatError(path, reason))
    walk = JsonWalk(utf8(file, LENGTH_BYTES, length), budget)
    try:
        return _Checked(path, LENGTH_BYTES + length, file.size, budget).header(walk)
    except JsonError as error:
        raise FormatError(path, str(error)) from error


class _Checked:
    """Turns the table into specs, row by row."""

    def __init__(self, path: Path, start: int, size: int, budget: Budget) -> None:
        self._path = path
        self._budget = budget
        self._start = start
        self._room = size - start
        self._dtypes = dict(BY_CODE)

    def header(self, walk: JsonWalk) -> Header:
        metadata: dict[str, str] | None = None
        begins: dict[str, int] = {}
        specs: dict[str, TensorSpec] = {}
        for name in walk.names():
            if name == METADATA_KEY:
                self._refuse_twice(name, metadata is not None)
                metadata = self._metadata(walk)
                continue
            if len(name) > MAX_NAME:
                raise self._error(f"a tensor has a name of {len(name)} characters: {name[:80]!r}…")
            self._refuse_twice(name, name in specs)
            self._budget.spend(nodes=1)
            begin, end, shape, code = self._row(name, walk.value())
            begins[name] = begin
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
        walk.end()
        ordered = self._in_order(specs, begins)
        for name in begins:
            begins[name] += self._start
        return Header(ordered, begins, metadata or {})

    def _error(self, reason: str) -> FormatError:
        return FormatError(self._path, reason, hint="the file is damaged or truncated: fetch it again")

    def _refuse_twice(self, name: str, twice: bool) -> None:
        if twice:
            raise self._error(f"bad JSON: the key {name[:80]!r} occurs twice")

    def _metadata(self, walk: JsonWalk) -> dict[str, str]:
        table: dict[str, str] = {}
        if walk.null():
            return table
        for key in walk.names():
            self._refuse_twice(key, key in table)
            table[key] = text = walk.string()
            self._budget.spend(nodes=1, names=len(key) + len(text))
        return table

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

    def _in_order(self, specs: dict[str, TensorSpec], begins: Mapping[str, int]) -> dict[str, TensorSpec]:
        """The tensors in the order of their bytes, which belong to one each."""
        ordered = specs
        if any(one > other for one, other in pairwise(begins.values())):
            ends = {name: (begins[name], begins[name] + spec.nbytes, name) for name, spec in specs.items()}
            ordered = {name: specs[name] for name in sorted(specs, key=ends.__getitem__)}
        position = 0
        for name, spec in ordered.items():
            if begins[name] != position:
                what = "overlaps the one before it" if begins[name] < position else "leaves a hole before it"
                raise self._error(f"tensor {name!r} at {begins[name]} {what}")
            position += spec.nbytes
        if position != self._room:
            raise self._error(f"{self._room - position} bytes behind the last tensor belong to none")
        return ordered
