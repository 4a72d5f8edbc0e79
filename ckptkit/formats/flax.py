"""Flax's msgpack files (``flax.serialization.to_bytes``, ``flax_model.msgpack``), without Flax and msgpack.

A file is one msgpack value: tables in tables, whose leaves are arrays. An array is an extension (type 1, or 3
for a scalar of numpy) that holds its shape, the name of its element type and its bytes; one of more than 1 GB
is a table of such chunks. A tensor's name is the keys that lead to it, as Flax's ``flatten_dict(sep="/")``
joins them: ``params/Dense_0/kernel``. Sources: https://github.com/msgpack/msgpack/blob/master/spec.md and
flax/serialization.py (``_MsgpackExtType``, ``_chunk``).
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.tensors import DTYPES, OPAQUE, DType
from ckptkit.base.text import counted
from ckptkit.formats.base import Sample
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.readers import Span, SpanReader

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 100
_SHOWN = 80
_MAX_ALSO = 1000
_LARGE = 64 << 10
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,40}(\[[A-Za-z0-9]{1,8}\])?")
_NAMED = {**OPAQUE, **DTYPES}
_NUMBERS = {
    code: struct.Struct(f">{form}") for code, form in zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True)
}
"""What is a number of a fixed size."""
_SIZED: dict[int, tuple[str, int]] = {
    **{0xC4 + power: ("bytes", 1 << power) for power in range(3)},
    **{0xD9 + power: ("text", 1 << power) for power in range(3)},
    **{0xC7 + power: ("extension", 1 << power) for power in range(3)},
    **{0xDC + power: ("list", 2 << power) for power in range(2)},
    **{0xDE + power: ("table", 2 << power) for power in range(2)},
}
"""What has its length before it, and in how many bytes."""
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True)
class _Bytes:
    """A run of bytes, or of an extension of some type, that stays in the file."""

    start: int
    nbytes: int
    kind: int | None = None


@dataclass(frozen=True)
class _Array:
    """An array in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def may_be_flax(sample: Sample) -> bool:
    """Whether a file begins as a table whose first key is a text, and then a value of Flax's."""
    head = sample.head
    first = head[0] if head else 0
    at = 1 if 0x81 <= first <= 0x8F else {0xDE: 3, 0xDF: 5}.get(first, 0)
    while at and at < len(head):  # keys down to the first leaf
        length, start = head[at] & 0x1F, at + 1
        if head[at] == 0xD9:
            length, start = head[start] if start < len(head) else 0, start + 1
        elif not 0xA1 <= head[at] <= 0xBF:
            return False
        key, at = head[start : start + length], start + length
        if not length or not key.isascii() or not key.decode().isprintable():
            return False
        code = head[at] if at < len(head) else 0x80
        if not 0x81 <= code <= 0x8F and code not in (0xDE, 0xDF):
            return code != 0xC1 and (code < 0xA0 or code >= 0xC0)
        at += {0xDE: 3, 0xDF: 5}.get(code, 1)
    return bool(at)


class _Msgpack:
    """Values in a range of a file; texts are decoded, and bytes stay where they are."""

    def __init__(self, file: MappedFile, start: int, stop: int, budget: Budget) -> None:
        self._file, self._data, self._budget = file, file.data, budget
        self.at, self._stop = start, stop

    def error(self, reason: str) -> Exception:
        """The refusal of what is at this place."""
        return self._file.fault(f"bad msgpack: {reason}", self.at)

    def whole(self) -> Any:
        """The one value of the range."""
        found = self.value(0)
        if self.at != self._stop:
            raise self.error(f"{self._stop - self.at:,} bytes after its end")
        return found

    def _take(self, count: int) -> int:
        """Go over some bytes; returns where they begin."""
        if count > self._stop - self.at:
            raise self.error("it ends early")
        self.at += count
        return self.at - count

    def _uint(self, width: int) -> int:
        start = self._take(width)
        return int.from_bytes(self._data[start : start + width], "big")

    def value(self, depth: int) -> Any:
        """The next value."""
        self._budget.spend(nodes=1, steps=8)
        code = self._data[self._take(1)]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            form = _NUMBERS[code]
            start = self._take(form.size)
            return form.unpack(self._data[start : start + form.size])[0]
        if 0xD4 <= code <= 0xD8:
            return self._held("extension", 1 << (code - 0xD4), depth)
        if code in _SIZED:
            what, width = _SIZED[code]
            return self._held(what, self._uint(width), depth)
        if code == 0xC1:
            raise self.error("a byte 0xc1, which means nothing")
        what = "table" if code < 0x90 else "list" if code < 0xA0 else "text"
        return self._held(what, code & (0x0F if code < 0xA0 else 0x1F), depth)

    def _held(self, what: str, count: int, depth: int) -> Any:
        if what in ("bytes", "extension"):
            kind = self._uint(1) if what == "extension" else None
            start = self._take(count)
            if count >= _LARGE:  # a look at what precedes it may have mapped much of it
                self._file.release(start, count)
            return _Bytes(start, count, kind)
        if what == "text":
            return self._text(count)
        if depth >= _MAX_DEPTH:
            raise self.error(f"more than {_MAX_DEPTH} tables in each other")
        if what == "list":
            self._refuse_more(count)
            return [self.value(depth + 1) for _ in range(count)]
        self._refuse_more(2 * count)
        table: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, (str, int)):
                raise self.error("a key that is neither a text nor a number")
            if str(key) in table:
                raise self.error(f"the key {str(key)[:_SHOWN]!r} occurs twice")
            table[str(key)] = self.value(depth + 1)
        return table

    def _text(self, count: int) -> str:
        start = self._take(count)
        self._budget.spend(names=4 * count)
        try:
            return str(self._data[start : start + count], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error("a text that is not UTF-8") from error

    def _refuse_more(self, count: int) -> None:
        if count > self._stop - self.at:
            raise self.error("it ends early")


class FlaxReader(SpanReader):
    """A msgpack file of Flax."""

    format = "flax"

    def _open(self) -> None:
        file = self._file
        self._budget = Budget(file.size, file.fault)
        root = _Msgpack(file, 0, file.size, self._budget).whole()
        if not isinstance(root, dict):
            raise file.fault("a msgpack file whose value is not a table, unlike those of Flax")
        self._others = 0
        self._collect(root, "")
        if self._others > _MAX_ALSO:
            self._also["…"] = f"{counted(self._others - _MAX_ALSO, 'value')} more"
        if not self.specs and not self.left_out:
            raise file.fault(
                "a msgpack file without arrays", hint="give the file that flax.serialization.to_bytes wrote"
            )

    def _collect(self, value: Any, name: str) -> None:
        """Take the arrays of a value, and note what else is in it."""
        self._budget.spend(names=len(name), steps=8)
        if isinstance(value, dict) and _CHUNKED in value:
            self._add(name, self._chunks(name, value))
        elif isinstance(value, (dict, list)):
            held = value.items() if isinstance(value, dict) else ((str(n), v) for n, v in enumerate(value))
            for key, inner in held:
                self._collect(inner, f"{name}/{key}" if name else key)
        elif isinstance(value, _Bytes) and value.kind in (_ARRAY, _SCALAR):
            self._add(name, [self._array(value)])
        else:
            self._others += 1
            if self._others <= _MAX_ALSO:
                self._also[name] = self._described(value)

    def _described(self, value: Any) -> str:
        if isinstance(value, _Bytes):
            if value.kind == _COMPLEX:
                parts = self._inside(value)
                if isinstance(parts, list) and len(parts) == 2:
                    return f"{parts[0]} + {parts[1]}i"[:_SHOWN]
            what = "bytes" if value.kind is None else f"bytes of the extension {value.kind}"
            return f"{value.nbytes:,} {what}"
        return str(value)[:_SHOWN]

    def _inside(self, value: _Bytes) -> Any:
        return _Msgpack(self._file, value.start, value.start + value.nbytes, self._budget).whole()

    def _array(self, value: Any) -> _Array:
        """An array, as ``_ndarray_to_bytes`` packs it: its shape, its type and its bytes."""
        is_array = isinstance(value, _Bytes) and value.kind in (_ARRAY, _SCALAR)
        parts = self._inside(value) if is_array else None
        if isinstance(parts, list) and len(parts) == 3:
            shape, dtype, held = parts
            sizes = isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(n) is int for n in shape)
            if sizes and isinstance(dtype, str) and isinstance(held, _Bytes) and held.kind is None:
                return _Array(dtype, tuple(shape), held.start, held.nbytes)
        raise self._file.fault(
            "an array that is not its shape, its type and its bytes", value.start if is_array else None
        )

    def _chunks(self, name: str, table: dict[str, Any]) -> list[_Array]:
        """The chunks of an array, the first of which has the shape of all."""
        shape, chunks = (self._numbered(name, table.get(key)) for key in ("shape", "chunks"))
        arrays = [self._array(chunk) for chunk in chunks]
        alike = len({array.dtype for array in arrays}) == 1 and all(len(one.shape) == 1 for one in arrays)
        sizes = [size for size in shape if type(size) is int and 0 <= size < 1 << 62]
        if not alike or len(sizes) != len(shape) or sum(one.shape[0] for one in arrays) != math.prod(sizes):
            raise self._file.fault(f"the chunks of {name[:200]!r} are not those of one array")
        return [_Array(one.dtype, tuple(sizes), one.start, one.nbytes) for one in arrays]

    def _numbered(self, name: str, table: Any) -> list[Any]:
        """A table whose keys are 0, 1, 2 … as a list."""
        if not isinstance(table, dict) or table.keys() != {str(number) for number in range(len(table))}:
            raise self._file.fault(f"the chunks of {name[:200]!r} are not numbered")
        return [table[str(number)] for number in range(len(table))]

    def _add(self, name: str, arrays: list[_Array]) -> None:
        first = arrays[0]
        spans = [Span(self._file, array.start, array.nbytes) for array in arrays]
        self.add(name, self._dtype(name, arrays), first.shape, spans)

    def _dtype(self, name: str, arrays: list[_Array]) -> DType:
        """The element type of a name of numpy's or ml_dtypes'; an opaque one where it is not known."""
        text, size = arrays[0].dtype, math.prod(arrays[0].shape)
        if text in _NAMED and _NAMED[text].itemsize:
            return _NAMED[text]
        width, rest = divmod(sum(array.nbytes for array in arrays), size) if size > 0 else (1, 0)
        if rest or not width or not _TYPE.fullmatch(text):
            raise self._file.fault(f"tensor {name[:200]!r} has elements of type {text[:_SHOWN]!r}")
        return DType(text, width, "opaque")
