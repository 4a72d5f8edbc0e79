"""The constants of TensorFlow graphs (``GraphDef``): frozen graphs, and SavedModels without variables.

A ``Const`` node holds its value, a ``TensorProto``, in its attribute ``value``. A tensor is called as its
node, one in a function of the graph's library ``function/node``. Nothing of the graph is run. Source:
tensorflow/core/framework/{graph,node_def,attr_value,function}.proto and
tensorflow/core/protobuf/{saved_model,meta_graph}.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ckptkit.base.budget import Budget
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.formats.base import Sample
from ckptkit.formats.foreign import message_of
from ckptkit.formats.protobuf_wire import LENGTH_DELIMITED, WireError, places
from ckptkit.formats.readers import Span, SpanReader
from ckptkit.formats.tf_index import refuse_impossible
from ckptkit.formats.tf_tensor import Elements, elements_of, repeated, tensor_message

_VARIABLES = (b"VarHandleOp", b"VariableV2", b"Variable", b"AutoReloadVariable")
_VALUE = b"value"
_MAX_OP, _MAX_NAME = 100, 10_000
_MAX_ALSO = 1000
_SHOWN = 200


def is_graph(sample: Sample) -> bool:
    """Whether a file begins with the name and operation of a node, or has the fields of a SavedModel."""
    if sample.head[:1] == b"\x08":
        return is_saved_model(sample)
    if sample.head[:1] != b"\x0a":
        return False
    try:  # the first node may be longer than what is looked at
        node = next(places(sample.head, 0, 1 << 40, _enough()))
        inner = places(sample.head, node[2], node[3], _enough())
        (number, wire, start, stop), second = next(inner), next(inner)
    except (WireError, StopIteration, IndexError):
        return False
    operation = sample.head[second[2] : second[3]]
    named = (number, second[0], wire, second[1]) == (1, 2, LENGTH_DELIMITED, LENGTH_DELIMITED)
    return named and _is_word(sample.head[start:stop]) and _is_word(operation) and operation[:1].isupper()


def is_saved_model(sample: Sample) -> bool:
    """Whether a file has the two fields of a SavedModel: its version, and graphs."""
    message = message_of(sample, cut=True) if sample.head[:2] == b"\x08\x01" else {}
    return message.keys() == {1, 2} and isinstance(message[2], bytes)


def _enough() -> Budget:
    return Budget(1 << 20, WireError)


def _is_word(raw: bytes) -> bool:
    return bool(raw) and raw.isascii() and raw.decode().isprintable() and b" " not in raw


class TfGraphReader(SpanReader):
    """A GraphDef, or a SavedModel by its file."""

    format = "graphdef"

    def _open(self) -> None:
        file = self._file
        self._budget = Budget(file.size, file.fault)
        self._lists: dict[str, Elements] = {}  # tensors whose elements are decoded when they are read
        self._others, self._variables = 0, 0
        self._inputs: list[str] = []
        try:
            if file.data[0] == 0x0A:
                self._graph(0, file.size, "")
            else:
                self._saved_model()
        except (WireError, UnicodeDecodeError) as error:
            raise file.fault(f"bad TensorFlow graph: {error}") from error
        if self._others > _MAX_ALSO:
            self._also["…"] = f"{counted(self._others - _MAX_ALSO, 'constant')} more"
        self.metadata = {"inputs": "; ".join(self._inputs)} if self._inputs else {}
        if not self.specs:
            what = "variables, whose values are not in it," if self._variables else "no constants"
            raise file.fault(f"a TensorFlow graph with {what}", hint="give the checkpoint it was made for")

    # -- messages --------------------------------------------------------------------------------------------

    def _messages(self, start: int, stop: int, *numbers: int) -> Iterator[tuple[int, int, int]]:
        """The fields of these numbers, which are texts or messages."""
        for number, wire, at, end in places(self._file.data, start, stop, self._budget):
            if number in numbers:
                if wire != LENGTH_DELIMITED:
                    raise WireError(f"field {number} is not a text or a message")
                yield number, at, end

    def _saved_model(self) -> None:
        for count, (_, at, end) in enumerate(self._messages(0, self._file.size, 2)):
            for _, graph, graph_end in self._messages(at, end, 2):
                self._graph(graph, graph_end, f"graph_{count}/" if count else "")
        if self._variables:
            hint = "give the folder that holds it and its variables/"
            raise self._file.fault("is the graph of a SavedModel, without its variables", hint=hint)

    def _graph(self, start: int, stop: int, before: str) -> None:
        for number, at, end in self._messages(start, stop, 1, 2):
            if number == 1:
                self._node(at, end, before)
                continue
            for _, function, function_end in self._messages(at, end, 1):
                self._function(function, function_end, before)

    def _function(self, start: int, stop: int, before: str) -> None:
        name = ""
        for number, at, end in self._messages(start, stop, 1, 3):
            if number == 3:
                self._node(at, end, f"{before}{name}/")
                continue
            for _, text, text_end in self._messages(at, end, 1):
                name = self._text(text, text_end)

    def _text(self, start: int, stop: int) -> str:
        if stop - start > _MAX_NAME:
            raise WireError(f"a name of {stop - start} bytes")
        return str(self._file.data[start:stop], "utf-8")

    def _node(self, start: int, stop: int, before: str) -> None:
        """Take the value of a constant; note a variable, whose value is elsewhere, and an input."""
        name, operation = (0, 0), b""
        attributes = []
        for number, at, end in self._messages(start, stop, 1, 2, 5):
            if number == 5:
                attributes.append((at, end))
            elif number == 1:
                name = at, end
            else:
                operation = self._file.data[at : min(end, at + _MAX_OP)]
        if operation != b"Const" and operation not in _VARIABLES and operation != b"Placeholder":
            return
        shown = before + self._text(*name)
        self._budget.spend(names=4 * len(shown), nodes=2)
        if operation == b"Placeholder":
            self._inputs.append(shown)
        elif operation != b"Const":
            self._variables += 1
            self.refuse_twice(shown)
            self.left_out[shown] = "a variable, whose value is in a checkpoint and not in the graph"
        else:
            found = [place for one in attributes if (place := self._value(*one))]
            if len(found) != 1:
                raise WireError(f"the constant {shown[:_SHOWN]!r} has {counted(len(found), 'value')}")
            self._constant(shown, *found[0])

    def _value(self, start: int, stop: int) -> tuple[int, int] | None:
        """Where the tensor of an attribute is, which is called ``value``."""
        key, tensor = b"", None
        for number, at, end in self._messages(start, stop, 1, 2):
            if number == 1:
                key = self._file.data[at : min(end, at + 10)]
            else:
                tensor = next(((here, there) for _, here, there in self._messages(at, end, 8)), None)
        return tensor if key == _VALUE else None

    # -- tensors ---------------------------------------------------------------------------------------------

    def _constant(self, name: str, start: int, stop: int) -> None:
        message = tensor_message(self._file.data, start, stop, self._budget)
        dtype = message.dtype
        if dtype is None:
            self._others += 1
            if self._others <= _MAX_ALSO:
                self._also[name] = str(message)
            return
        shape = message.shape
        try:
            refuse_impossible(message.number, shape, dtype.itemsize)
            elements = elements_of(message, dtype)
        except WireError as error:
            raise WireError(f"tensor {name[:_SHOWN]!r}: {error}") from error
        count = math.prod(shape)
        is_run = not elements.packed and (elements.at_most == count or not dtype.itemsize)
        if is_run:
            self.add(name, dtype, shape, [Span(self._file, elements.start, elements.nbytes)])
            return
        if not elements.packed and elements.at_most > count:
            raise WireError(f"tensor {name[:_SHOWN]!r}: {elements.at_most} elements, not {count}")
        if elements.at_most < count:  # it becomes larger than what is stored of it
            self._budget.spend(nbytes=count * dtype.itemsize)
        self.add(name, dtype, shape, None)
        self._lists[name] = elements

    def _decoded(self, name: str) -> Array:
        spec, elements = self.specs[name], self._lists[name]
        try:
            found = elements.array(self._file.data, spec.size, self._file.release)
        except WireError as error:
            raise self._file.fault(f"tensor {name[:_SHOWN]!r}: {error}", elements.start) from error
        array: Array = repeated(found, spec.size).reshape(spec.shape)
        return array
