"""The weights of ONNX models, read without onnx: initializers, and the tensors of ``Constant`` nodes.

A model is one protocol buffer; the elements of a tensor are in it, or in a file beside it. Nothing of the
graph is run; its inputs and outputs are told as metadata. Source: onnx/onnx.proto and docs/ExternalData.md
of the onnx project.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, OPAQUE, Array, DType, RawTensor
from ckptkit.base.text import counted
from ckptkit.formats.base import Sample
from ckptkit.formats.foreign import message_of
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.protobuf_wire import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    WireError,
    packed_numbers,
    places,
)
from ckptkit.formats.readers import Span, SpanReader

_NAMES = """
float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 complex128
bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1fn_x2 float8_e8m0fnu
uint2 int2
"""
_TYPE_NAMES = dict(enumerate(_NAMES.split(), start=1))
_TEXTS = 8
_PACKED = {
    "uint4": DType("uint4", 0, "opaque", bits=4),
    "int4": DType("int4", 0, "opaque", bits=4),
    "uint2": DType("uint2", 0, "opaque", bits=2),
    "int2": DType("int2", 0, "opaque", bits=2),
}
"""Types whose elements share bytes, the first in the lowest bits."""
_TYPES: Mapping[int, DType] = {
    number: ({**OPAQUE, **DTYPES} | _PACKED)[name] for number, name in _TYPE_NAMES.items() if number != _TEXTS
}
_FLOATS, _INTS, _LONGS, _RAW, _DOUBLES, _UNSIGNED = 4, 5, 7, 9, 10, 11
"""Fields of a tensor that hold its elements: floats and numbers of a type, or the bytes."""
_FIXED = {_FLOATS: ("float32", "complex64"), _DOUBLES: ("float64", "complex128")}
_LONG_TYPES = {_LONGS: ("int64",), _UNSIGNED: ("uint32", "uint64")}
_HOLDS = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
"""Fields of an attribute that hold weights."""
_OPSETS, _TRAINING, _FUNCTIONS = 8, 20, 25
"""Fields of a model beside its graph."""
_MAX_DEPTH = 20
_MAX_FILES = 1000
_MAX_TEXT = 1 << 20
_MAX_ALSO = 1000
_MANY = 16
"""Numbers in one attribute: so many are weights, fewer are scales or sizes."""
_SHOWN = 200


def is_onnx(sample: Sample) -> bool:
    """Whether a file is a protocol buffer with the fields of an ONNX model, its graph among them."""
    if sample.head[:1] != b"\x08":
        return False
    message = message_of(sample, cut=True)
    is_model = isinstance(message.get(1), int) and isinstance(message.get(7), bytes)
    return is_model and message.keys() <= {*range(1, 10), 14, 20, 25, 26}


@dataclass
class _Tensor:
    """A tensor as its message describes it."""

    name: str = ""
    kind: int = 0
    shape: list[int] = field(default_factory=list)
    held: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)  # wire type, start and stop
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


class OnnxReader(SpanReader):
    """An ONNX model."""

    format = "onnx"

    def _open(self) -> None:
        file = self._file
        self._budget = Budget(file.size, file.fault)
        self._numbers: dict[
            str, tuple[int, int, int]
        ] = {}  # tensors in varints: where they are, and the field
        self._beside: dict[str, MappedFile] = {}
        self._nodes: set[str] = set()
        self._others = 0
        try:
            self.metadata = self._model()
        except (WireError, UnicodeDecodeError) as error:
            raise file.fault(f"bad ONNX model: {error}") from error
        if self._others > _MAX_ALSO:
            self._also["…"] = f"{counted(self._others - _MAX_ALSO, 'constant')} more"
        if not self.specs and not self.left_out:
            raise file.fault("an ONNX graph without weights", hint="give the model that has them")

    # -- messages --------------------------------------------------------------------------------------------

    def _fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        return places(self._file.data, start, stop, self._budget)

    def _messages(self, start: int, stop: int, **numbers: int) -> Iterator[tuple[str, int, int]]:
        """The fields of these numbers that are texts or messages, by name."""
        names = {number: name for name, number in numbers.items()}
        for number, wire, at, end in self._fields(start, stop):
            if number in names:
                if wire != LENGTH_DELIMITED:
                    raise WireError(f"field {number} is not a text or a message")
                yield names[number], at, end

    def _text(self, start: int, stop: int) -> str:
        if stop - start > _MAX_TEXT:
            raise WireError(f"a text of {stop - start} bytes")
        self._budget.spend(names=4 * (stop - start), nodes=1)
        return str(self._file.data[start:stop], "utf-8")

    def _pair(self, start: int, stop: int) -> tuple[str, str]:
        """A key and its value."""
        held = {name: self._text(*at) for name, *at in self._messages(start, stop, key=1, value=2)}
        return held.get("key", ""), held.get("value", "")

    def _model(self) -> dict[str, str]:
        """The tensors of a model's graph and functions; returns what it says about itself."""
        told: dict[str, str] = {}
        beside: dict[int, list[tuple[int, int]]] = {_OPSETS: [], _TRAINING: [], _FUNCTIONS: []}
        size = self._file.size
        for number, wire, at, end in self._fields(0, size):
            if number == 1 and wire == VARINT:
                told["ir_version"] = str(at)
            elif wire != LENGTH_DELIMITED:
                continue
            elif number in (2, 3):
                told["producer"] = f"{told.get('producer', '')} {self._text(at, end)}".strip()
            elif number == 7:
                told |= self._graph(at, end, "", 0)
            elif number == 14:
                key, value = self._pair(at, end)
                told.setdefault(key, value)
            elif number in beside:
                beside[number].append((at, end))
        if beside[_TRAINING]:
            self._note("training_info", "graphs of a training, which are not read")
        self._functions(beside[_FUNCTIONS])
        if beside[_OPSETS]:
            told["opset"] = ", ".join(self._opset(*place) for place in beside[_OPSETS])
        return told

    def _opset(self, start: int, stop: int) -> str:
        domain, version = "ai.onnx", 0
        for number, wire, at, end in self._fields(start, stop):
            if number == 1 and wire == LENGTH_DELIMITED:
                domain = self._text(at, end) or domain
            elif number == 2 and wire == VARINT:
                version = at
        return f"{domain} {version}"

    def _functions(self, places: Sequence[tuple[int, int]]) -> None:
        """The tensors of functions, under a function's name; of two that share it, with its domain too."""
        held = []
        for place in places:
            told = dict.fromkeys(("name", "domain", "overload"), "")
            nodes = []
            for what, at, end in self._messages(*place, name=1, node=7, domain=10, overload=13):
                if what == "node":
                    nodes.append((at, end))
                else:
                    told[what] = self._text(at, end)
            held.append((told, nodes))
        count = Counter(told["name"] for told, _ in held)
        for told, nodes in held:
            whole = ":".join(filter(None, (told["domain"], told["name"], told["overload"])))
            before = told["name"] if count[told["name"]] == 1 else whole
            for at, end in nodes:
                self._node(at, end, f"{before}/", 0)

    def _graph(self, start: int, stop: int, before: str, depth: int) -> dict[str, str]:
        """The tensors of a graph, whose names get something ``before`` them; its inputs and outputs."""
        if depth > _MAX_DEPTH:
            raise WireError(f"more than {_MAX_DEPTH} graphs in each other")
        sides: dict[str, dict[str, str]] = {"inputs": {}, "outputs": {}}
        numbers = {"node": 1, "initializer": 5, "inputs": 11, "outputs": 12, "sparse": 15}
        for what, at, end in self._messages(start, stop, **numbers):
            if what == "node":
                self._node(at, end, before, depth)
            elif what == "initializer":
                self._take(self._tensor(at, end), before)
            elif what == "sparse":
                self._sparse(at, end, before)
            elif not depth:
                name, text = self._value_info(at, end)
                sides[what][name] = text
        held = self.specs.keys() | self.left_out.keys() | self._also.keys()  # which IR 3 has among its inputs
        kept = {side: [text for name, text in of.items() if name not in held] for side, of in sides.items()}
        return {side: "; ".join(texts) for side, texts in kept.items() if texts}

    def _node(self, start: int, stop: int, before: str, depth: int) -> None:
        """What a node holds: the tensor of a ``Constant``, and the graphs of an ``If`` or a ``Loop``."""
        name = output = operator = ""
        attributes = []
        for what, at, end in self._messages(start, stop, output=2, name=3, op_type=4, attribute=5):
            if what == "attribute":
                attributes.append((at, end))
            elif what == "output":
                output = output or self._text(at, end)
            elif what == "name":
                name = self._text(at, end)
            else:
                operator = self._text(at, end)
        is_constant = operator == "Constant"
        own = before + (output if is_constant else name or output)
        if attributes and own in self._nodes:  # a node's name need not be its own, its output is
            own = before + output
        self._nodes.add(own)
        for place in attributes:
            self._attribute(*place, own, depth, of_constant=is_constant)

    def _attribute(self, start: int, stop: int, before: str, depth: int, *, of_constant: bool) -> None:
        """The graphs and tensors of an attribute, which may be told before its name is.

        The value of a constant has the name of the constant.
        """
        name, held, numbers = "", [], 0
        for number, wire, at, end in self._fields(start, stop):
            if number == 7 and wire in (LENGTH_DELIMITED, FIXED32):
                numbers += (end - at) // 4
            elif number == 1 and wire == LENGTH_DELIMITED:
                name = self._text(at, end)
            elif number in _HOLDS:
                if wire != LENGTH_DELIMITED:
                    raise WireError(f"field {number} is not a message")
                held.append((_HOLDS[number], at, end))
        name = before if of_constant else f"{before}/{name}"
        for index, place in enumerate(held):
            own = name if len(held) == 1 else f"{name}/{index}"
            self._take_value(*place, name if place[0] == "graph" else own, depth, of_constant=of_constant)
        if numbers >= (1 if of_constant else _MANY):
            self._note(name, f"{counted(numbers, 'number')} in the graph itself")

    def _take_value(
        self, what: str, start: int, stop: int, name: str, depth: int, *, of_constant: bool
    ) -> None:
        if what == "graph":
            self._graph(start, stop, f"{name}/", depth + 1)
        elif what == "sparse":
            self._leave_out(name, "a sparse tensor")
        else:
            tensor = self._tensor(start, stop)
            if of_constant or math.prod(tensor.shape) != 1:  # as ConstantOfShape has it
                self._constant(tensor, name)

    def _value_info(self, start: int, stop: int) -> tuple[str, str]:
        """An input or output: its name, element type and shape."""
        name, kind, sizes = "", "", []
        for what, at, end in self._messages(start, stop, name=1, type=2):
            if what == "name":
                name = self._text(at, end)
                continue
            for _, inner, inner_end in self._messages(at, end, tensor=1):
                for number, wire, here, there in self._fields(inner, inner_end):
                    if number == 1 and wire == VARINT:
                        kind = _TYPE_NAMES.get(here, f"type {here}")
                    elif number == 2 and wire == LENGTH_DELIMITED:
                        sizes = [self._axis(*place) for _, *place in self._messages(here, there, dim=1)]
        return name, f"{name} {kind} [{', '.join(sizes)}]" if kind else name

    def _axis(self, start: int, stop: int) -> str:
        for number, wire, at, end in self._fields(start, stop):
            if number == 1 and wire == VARINT:
                return str(at)
            if number == 2 and wire == LENGTH_DELIMITED:
                return self._text(at, end)
        return "?"

    # -- tensors ---------------------------------------------------------------------------------------------

    def _tensor(self, start: int, stop: int) -> _Tensor:
        self._budget.spend(nodes=1, steps=20)
        found = _Tensor()
        for number, wire, at, end in self._fields(start, stop):
            if number == 1:
                found.shape += [at] if wire == VARINT else self._sizes(at, end)
            elif number == 2 and wire == VARINT:
                found.kind = at
            elif number == 8 and wire == LENGTH_DELIMITED:
                found.name = self._text(at, end)
            elif number == 13 and wire == LENGTH_DELIMITED:
                key, value = self._pair(at, end)
                found.external[key] = value
            elif number == 14 and wire == VARINT:
                found.is_external = at == 1
            elif number in (_FLOATS, _INTS, 6, _LONGS, _RAW, _DOUBLES, _UNSIGNED):
                self._budget.spend(nodes=1)
                found.held.setdefault(number, []).append((wire, at, end))
        return found

    def _sizes(self, start: int, stop: int) -> list[int]:
        """Sizes of axes that are packed into one field."""
        if stop - start > 10 * 64:
            raise WireError("a shape of too many axes")
        data, sizes, value, shift = bytes(self._file.data[start:stop]), [], 0, 0
        for byte in data:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                sizes.append(value)
                value = shift = 0
        if shift:
            raise WireError("a shape that ends early")
        return sizes

    def _constant(self, tensor: _Tensor, name: str) -> None:
        """A constant is a weight, unless it is a single number, or a list of integers: a shape, or axes."""
        dtype = _TYPES.get(tensor.kind)
        is_plain = dtype is not None and dtype.kind in ("int", "uint", "bool") and len(tensor.shape) < 2
        if is_plain or not tensor.shape or dtype is None:
            self._note(
                name, f"a constant of the graph, {_TYPE_NAMES.get(tensor.kind, tensor.kind)} {tensor.shape}"
            )
        else:
            tensor.name = name
            self._take(tensor, "")

    def _note(self, name: str, text: str) -> None:
        self._others += 1
        if self._others <= _MAX_ALSO:
            self._also[name] = text[:_SHOWN]

    def _sparse(self, start: int, stop: int, before: str) -> None:
        for _, at, end in self._messages(start, stop, values=1):
            name = before + self._tensor(at, end).name
            self._leave_out(name, "a sparse tensor")

    def _leave_out(self, name: str, why: str) -> None:
        self.refuse_twice(name)
        self.left_out[name] = why

    def _take(self, tensor: _Tensor, before: str) -> None:
        """Take a tensor under its name, where its elements can be found."""
        name = before + tensor.name
        self._budget.spend(names=len(name))
        if tensor.kind == _TEXTS:
            self._note(name, f"texts {tensor.shape}")
            return
        dtype = _TYPES.get(tensor.kind)
        if dtype is None:
            self._leave_out(name, f"elements of type {tensor.kind}, which is not known here")
            return
        if any(size >= 1 << 62 for size in tensor.shape):
            raise WireError(f"tensor {name[:_SHOWN]!r} has a negative size, or one beyond all bounds")
        nbytes = -(-math.prod(tensor.shape) * (dtype.bits or 8 * dtype.itemsize) // 8)
        if tensor.is_external:
            self.add(name, dtype, tensor.shape, [self._outside(name, tensor.external, nbytes)])
            return
        if len(tensor.held) > 1:
            raise WireError(f"tensor {name[:_SHOWN]!r} has its elements in two fields")
        number, held = next(iter(tensor.held.items()), (_RAW, []))
        if number == _RAW or (number in _FIXED and dtype.name in _FIXED[number]):
            wires = {LENGTH_DELIMITED, *((FIXED32, FIXED64) if number != _RAW else ())}
            if any(wire not in wires for wire, _, _ in held) or (number == _RAW and len(held) > 1):
                raise WireError(f"tensor {name[:_SHOWN]!r} has its elements in pieces of the wrong kind")
            self.add(name, dtype, tensor.shape, [Span(self._file, at, end - at) for _, at, end in held])
            return
        self._take_numbers(name, dtype, tensor, number, held)

    def _take_numbers(
        self, name: str, dtype: DType, tensor: _Tensor, number: int, held: Sequence[tuple[int, int, int]]
    ) -> None:
        """Take a tensor whose elements are numbers of any length, which are decoded when it is read."""
        fits = dtype.name in _LONG_TYPES.get(number, ())
        if number == _INTS:
            fits = dtype.itemsize <= 4 and dtype.name not in ("float32", "uint32")
        if not fits:
            raise WireError(f"tensor {name[:_SHOWN]!r} of {dtype} has its elements in field {number}")
        if len(held) != 1 or held[0][0] != LENGTH_DELIMITED:
            raise WireError(f"tensor {name[:_SHOWN]!r} has its elements one by one, which no program writes")
        _, at, end = held[0]
        count = self._count(dtype, tensor.shape)
        if not count <= end - at <= 10 * count:
            numbers = counted(count, "number")
            raise WireError(f"tensor {name[:_SHOWN]!r} of {numbers} has {end - at} bytes of them")
        self.add(name, dtype, tensor.shape, None)
        self._numbers[name] = at, end, count

    @staticmethod
    def _count(dtype: DType, shape: Sequence[int]) -> int:
        """Numbers of a tensor: one for each element, or for each byte of those that share bytes."""
        return -(-math.prod(shape) * dtype.bits // 8) if dtype.bits else math.prod(shape)

    def _decoded(self, name: str) -> Array:
        spec, (start, stop, count) = self.specs[name], self._numbers[name]
        width = spec.dtype.itemsize or 1
        try:
            found = packed_numbers(
                self._file.data, start, stop, most=count, width=width, release=self._file.release
            )
            if len(found) < count:
                raise WireError(f"not the {counted(count, 'number')} that it should have")
        except WireError as error:
            raise self._file.fault(f"tensor {name[:_SHOWN]!r}: {error}", start) from error
        if not spec.dtype.itemsize:
            return found
        array: Array = found.view(spec.dtype.numpy).reshape(spec.shape)
        return array

    def _raw(self, name: str) -> RawTensor | None:
        if name in self._numbers and not self.specs[name].dtype.itemsize:
            return RawTensor(self.specs[name].shape, self._decoded(name).data)
        return super()._raw(name)

    # -- files beside the model ------------------------------------------------------------------------------

    def _outside(self, name: str, external: Mapping[str, str], nbytes: int) -> Span:
        """The bytes of a tensor in a file beside the model."""
        location = external.get("location", "")
        offset, length = (self._number(name, external.get(key)) for key in ("offset", "length"))
        if length is not None and length != nbytes:
            raise self._file.fault(
                f"tensor {name[:_SHOWN]!r} of {nbytes} bytes has {length} in {location[:_SHOWN]!r}"
            )
        if nbytes == 0:
            return Span(self._file, 0, 0)
        file = self._beside.get(location) or self._map(name, location)
        if (offset or 0) + nbytes > file.size:
            what = f"tensor {name[:_SHOWN]!r} of {self.path.name} ends beyond it"
            raise FormatError(file.path, what, hint="the file is truncated: fetch it again")
        return Span(file, offset or 0, nbytes)

    def _number(self, name: str, text: str | None) -> int | None:
        if text is None:
            return None
        if not text.isascii() or not text.isdecimal() or len(text) > 18:
            raise self._file.fault(f"tensor {name[:_SHOWN]!r} has the offset or length {text[:40]!r}")
        return int(text)

    def _map(self, name: str, location: str) -> MappedFile:
        """Map a file that the model names: in its folder or below, and reached through no link."""
        way = PurePosixPath(location)
        plain = location and len(location) < 4096 and "\0" not in location and "\\" not in location
        inside = not way.is_absolute() and not PureWindowsPath(location).drive and ".." not in way.parts
        if not plain or not inside or not way.parts:
            what = f"tensor {name[:_SHOWN]!r} is in {location[:_SHOWN]!r}, which is not in the model's folder"
            raise self._file.fault(what, hint="save the model with its weights in that folder")
        if len(self._beside) >= _MAX_FILES:
            raise self._file.fault(f"more than {_MAX_FILES} files of weights")
        path = self.path.parent
        for part in way.parts:
            path = path / part
            if path.is_symlink():
                raise self._file.fault(
                    f"its file {location[:_SHOWN]!r} is reached through a link", hint="copy it there"
                )
        if not path.is_file():
            hint = "put it beside the model"
            raise self._file.fault(f"its file of weights {location[:_SHOWN]!r} is missing", hint=hint)
        file = self._beside[location] = MappedFile(path)
        self._files.append(file)
        return file
