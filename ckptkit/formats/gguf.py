"""GGUF files (llama.cpp, ggml), read without the gguf package.

A header of keys and values, then what each tensor is called and where it is; the tensors follow, aligned. Of
quantized types the blocks are carried as they are, under the type's own name. Source: docs/gguf.md of
ggml-org/ggml.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from ckptkit.base.budget import Budget
from ckptkit.base.tensors import DTYPES, DType
from ckptkit.base.text import counted
from ckptkit.formats.readers import Span, SpanReader

MARK = b"GGUF"
_VERSIONS = (2, 3)
_PLAIN = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
_BLOCKS = """
2 Q4_0 32 18    3 Q4_1 32 20    6 Q5_0 32 22    7 Q5_1 32 24    8 Q8_0 32 34    9 Q8_1 32 40
10 Q2_K 256 84    11 Q3_K 256 110    12 Q4_K 256 144    13 Q5_K 256 176    14 Q6_K 256 210    15 Q8_K 256 292
16 IQ2_XXS 256 66    17 IQ2_XS 256 74    18 IQ3_XXS 256 98    19 IQ1_S 256 50    20 IQ4_NL 32 18
21 IQ3_S 256 110    22 IQ2_S 256 82    23 IQ4_XS 256 136    29 IQ1_M 256 56    34 TQ1_0 256 54
35 TQ2_0 256 66    39 MXFP4 32 17    40 NVFP4 64 36    41 Q1_0 128 18
"""
_WORDS = _BLOCKS.split()
BLOCKS: Mapping[int, tuple[DType, int, int]] = {
    int(number): (DType(name, 0, "opaque"), int(elements), int(nbytes))
    for number, name, elements, nbytes in zip(*(_WORDS[start::4] for start in range(4)), strict=True)
}
"""Quantized types by their number: how many elements a block has, and how many bytes."""
_NUMBERS = {code: struct.Struct(f"<{form}") for code, form in enumerate("BbHhIif?") if form}
_NUMBERS |= {code: struct.Struct(f"<{form}") for code, form in ((10, "Q"), (11, "q"), (12, "d"))}
_TEXT, _LIST = 8, 9
_MAX_NAME, _MAX_VALUE = 65_535, 1 << 20
_MAX_DIMS, _MAX_DEPTH = 4, 8
_MAX_ALIGNMENT = 1 << 20
_SHOWN = 200


class GgufReader(SpanReader):
    """A GGUF file."""

    format = "gguf"

    def _open(self) -> None:
        file = self._file
        self._budget = Budget(file.size, file.fault)
        self._at = len(MARK)
        version = self._number("<I")
        if version not in _VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            what = "in big-endian order" if big else f"of version {version}, which is not known here"
            raise file.fault(f"a GGUF file {what}", hint="convert it again with llama.cpp")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        self.metadata = self._pairs(pairs)
        parts = self.metadata.get("split.count", "1")
        if parts not in ("0", "1"):
            self.notes = [
                f"one of {parts[:20]} parts that gguf-split made: the tensors of the others are not read"
            ]
        infos = [self._info() for _ in range(self._few(tensors, 24))]
        text = self.metadata.get("general.alignment", "32")
        alignment = int(text) if text.isdecimal() and len(text) < 10 else 0
        if not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise file.fault(f"an alignment of {text[:40]}")
        start = self._at + -self._at % alignment
        for name, shape, kind, offset in infos:
            self._place_at(name, shape, kind, start + offset, alignment)

    # -- the header ------------------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        if count > self._file.size - self._at:
            raise self._file.fault("the header ends early", self._at, hint="it is truncated: fetch it again")
        self._at += count
        return self._file.data[self._at - count : self._at]

    def _number(self, form: str) -> int:
        (found,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(found)

    def _few(self, count: int, nbytes: int) -> int:
        """A count of things that take some bytes each, and so are no more than fit into the file."""
        if count * nbytes > self._file.size:
            entries = f"{counted(count, 'entry')} in a file of {self._file.size:,} bytes"
            raise self._file.fault(entries, self._at, hint="it is truncated: fetch it again")
        self._budget.spend(nodes=count, steps=4 * count)
        return count

    def _text(self, most: int) -> str:
        count = self._number("<Q")
        if count > most:
            raise self._file.fault(f"a text of {count:,} bytes", self._at)
        self._budget.spend(names=4 * count, steps=4)
        try:
            return self._take(count).decode()
        except UnicodeDecodeError as error:
            raise self._file.fault("a text that is not UTF-8", self._at) from error

    def _pairs(self, count: int) -> dict[str, str]:
        """The keys and values; of a list its length, for a vocabulary has hundreds of thousands."""
        found: dict[str, str] = {}
        for _ in range(self._few(count, 13)):
            key = self._text(_MAX_NAME)
            if key in found:
                raise self._file.fault(f"the key {key[:_SHOWN]!r} occurs twice", self._at)
            found[key] = self._value(self._number("<I"))
        return found

    def _value(self, kind: int, depth: int = 0) -> str:
        if kind == _TEXT:
            return self._text(_MAX_VALUE)
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            (value,) = form.unpack(self._take(form.size))
            return str(value).lower() if isinstance(value, bool) else str(value)
        if kind != _LIST:
            raise self._file.fault(f"a value of type {kind}", self._at)
        inner, count = self._number("<I"), self._number("<Q")
        if inner in _NUMBERS:
            self._skip(count * _NUMBERS[inner].size)
        elif inner == _TEXT:
            for _ in range(self._few(count, 8)):
                self._skip(self._number("<Q"))
        elif inner == _LIST and depth < _MAX_DEPTH:
            for _ in range(self._few(count, 12)):
                self._value(_LIST, depth + 1)
        else:
            raise self._file.fault(f"a list of values of type {inner}", self._at)
        return f"a list of {count:,}"

    def _skip(self, count: int) -> None:
        if count > self._file.size - self._at:
            raise self._file.fault("the header ends early", self._at, hint="it is truncated: fetch it again")
        self._at += count

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor; the first axis in the file is the fastest."""
        name = self._text(_MAX_NAME)
        axes = self._number("<I")
        if axes > _MAX_DIMS:
            raise self._file.fault(f"tensor {name[:_SHOWN]!r} has {counted(axes, 'axis')}", self._at)
        shape = struct.unpack(f"<{axes}Q", self._take(8 * axes))
        return name, shape[::-1], self._number("<I"), self._number("<Q")

    # -- tensors ---------------------------------------------------------------------------------------------

    def _place_at(self, name: str, shape: tuple[int, ...], kind: int, offset: int, alignment: int) -> None:
        shown, size = repr(name[:_SHOWN]), math.prod(shape)
        if kind in _PLAIN:
            dtype = DTYPES[_PLAIN[kind]]
            nbytes = size * dtype.itemsize
        elif kind in BLOCKS:
            dtype, elements, block = BLOCKS[kind]
            if not shape or shape[-1] % elements:
                raise self._file.fault(f"tensor {shown} of {dtype} has rows that are not whole blocks")
            nbytes = size // elements * block
        else:
            self.refuse_twice(name)
            self.left_out[name] = f"elements of type {kind}, which is not known here"
            return
        if offset % alignment or offset + nbytes > self._file.size:
            hint = "it is truncated: fetch it again"
            raise self._file.fault(f"tensor {shown} of {nbytes:,} bytes is not inside the file", offset, hint)
        self.add(name, dtype, shape, [Span(self._file, offset, nbytes)])
