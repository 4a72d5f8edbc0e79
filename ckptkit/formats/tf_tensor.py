"""Tensors in TensorFlow's messages (``TensorProto``): constants of a graph, parts of a V1 checkpoint.

Elements are in ``tensor_content`` as they are in memory, or in the list of their kind: numbers of a fixed
size as they are in memory too, others as packed varints. A list may be shorter than the tensor; its last
element is meant again and again, and none means zeros. Source: tensorflow/core/framework/tensor.{proto,cc}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.tensors import Array, DType
from ckptkit.formats.protobuf_wire import LENGTH_DELIMITED, VARINT, WireError, packed_numbers, places
from ckptkit.formats.tf_index import NO_NUMBERS, SHAPE, type_of

_CONTENT, _FLOAT8 = 4, 18
_FIXED = {5: ("float32",), 6: ("float64",), 9: ("complex64",), 12: ("complex128",)}
_INTS = """
int32 int16 uint16 int8 uint8 qint8 quint8 qint16 quint16 qint32 int4 uint4 int2 uint2
"""
_VARINTS = {
    7: (*_INTS.split(),),
    10: ("int64",),
    11: ("bool",),
    13: ("float16", "bfloat16"),
    16: ("uint32",),
    17: ("uint64",),
}
_LISTS: Mapping[int, tuple[str, ...]] = {**_FIXED, **_VARINTS}
"""Fields that are lists of numbers, and the element types that each is for; those of a fixed size first."""
_OTHERS = (8, 14, 15)  # texts, resources and variants
Release = Callable[[int, int], None]
_FIELDS = (_CONTENT, *_LISTS, _FLOAT8)


@dataclass(frozen=True)
class TensorMessage:
    """A TensorProto: number and shape as they are told, and where its elements are in the message."""

    number: int = 0
    shape: tuple[int, ...] = ()
    held: Mapping[int, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def dtype(self) -> DType | None:
        """The element type; None for texts, resources and variants."""
        return type_of(self.number)

    def __str__(self) -> str:
        """What it is, for a list of what else is in a file."""
        return f"{self.dtype or NO_NUMBERS[self.number % 100]} {list(self.shape)}"


def tensor_message(data: Any, start: int, stop: int, budget: Budget) -> TensorMessage:
    """The TensorProto in a range; nothing of its elements is copied."""
    budget.spend(nodes=1, steps=20)
    number, shape = 0, ()
    held: dict[int, list[tuple[int, int]]] = {}
    for which, wire, at, end in places(data, start, stop, budget):
        if which == 1 and wire == VARINT:
            number = at
        elif which == 2 and wire == LENGTH_DELIMITED:
            shape = SHAPE.read(bytes(data[at:end]), budget)
        elif which in _FIELDS:
            if wire != LENGTH_DELIMITED:
                raise WireError("elements one by one, which no program writes")
            budget.spend(nodes=1)
            held.setdefault(which, []).append((at, end))
    return TensorMessage(number, shape, held)


@dataclass(frozen=True)
class Elements:
    """Where the elements of a tensor are in some bytes."""

    dtype: DType
    start: int
    stop: int
    packed: bool = False  # as varints, of which only a walk tells how many there are

    @property
    def at_most(self) -> int:
        """How many elements there can be."""
        return self.nbytes // (1 if self.packed else self.dtype.itemsize or 1)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.stop - self.start

    def array(self, data: Any, most: int, release: Release = lambda start, nbytes: None) -> Array:
        """The elements, of which there may be no more than ``most``; a view where they are as in memory."""
        import numpy

        if self.packed:
            width = self.dtype.itemsize
            found = packed_numbers(data, self.start, self.stop, most=most, width=width, release=release)
            return found.view(self.dtype.numpy)
        return numpy.frombuffer(data[self.start : self.stop], self.dtype.numpy)


def elements_of(message: TensorMessage, dtype: DType) -> Elements:
    """Where a tensor of this type has its elements; WireError where they are not in one place for it."""
    held = {which: [place for place in at if place[0] < place[1]] for which, at in message.held.items()}
    held = {which: at for which, at in held.items() if at}
    if not held:
        return Elements(dtype, 0, 0)
    if len(held) > 1 or len(next(iter(held.values()))) > 1:
        raise WireError("elements in several fields")
    ((which, ((start, stop),)),) = held.items()
    fits = which == _CONTENT or dtype.name in _LISTS.get(which, ())
    if not fits and not (which == _FLOAT8 and dtype.name.startswith("float8_")):
        raise WireError(f"elements of {dtype} in field {which}")
    found = Elements(dtype, start, stop, which in _VARINTS)
    if not found.packed and dtype.itemsize and found.nbytes % dtype.itemsize:
        raise WireError(f"{found.nbytes} bytes of {dtype}")
    return found


def repeated(elements: Array, count: int) -> Array:
    """As many elements, the last again and again, zeros where there is none.

    Examples
    --------
    >>> import numpy
    >>> repeated(numpy.array([1, 2]), 4).tolist(), repeated(numpy.array([], int), 2).tolist()
    ([1, 2, 2, 2], [0, 0])
    """
    import numpy

    if len(elements) == count:
        return elements
    found = numpy.zeros(count, elements.dtype)
    found[: len(elements)] = elements
    if len(elements):
        found[len(elements) :] = elements[-1]
    return found
