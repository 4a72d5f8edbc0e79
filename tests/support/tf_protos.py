"""Graphs and V1 checkpoints of TensorFlow put together byte by byte from its protocol buffers, without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.support import tf_files
from tests.support.tf_files import message, shape_message, varint

NUMBERS = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8, "int64": 9,
    "bool": 10, "qint8": 11, "quint8": 12, "qint32": 13, "bfloat16": 14, "qint16": 15, "quint16": 16,
    "uint16": 17, "complex128": 18, "float16": 19, "uint32": 22, "uint64": 23, "float8_e5m2": 24,
    "float8_e4m3fn": 25, "float8_e4m3fnuz": 26, "float8_e4m3b11fnuz": 27, "float8_e5m2fnuz": 28,
    "int4": 29, "uint4": 30,
}  # fmt: skip
"""tensorflow/core/framework/types.proto."""
LISTS = {
    "float32": 5, "float64": 6, **dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8"), 7),
    "complex64": 9, "int64": 10, "bool": 11, "complex128": 12, "float16": 13, "bfloat16": 13, "uint32": 16,
    "uint64": 17,
}  # fmt: skip
"""Fields of a TensorProto that are lists of one kind."""


def numbers(array: Any) -> bytes:
    """The elements of an array as a list has them: its bytes, or packed varints."""
    array = np.asarray(array)
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.view("<u2")
    elif array.dtype.kind not in "iub":
        return array.tobytes()
    return b"".join(varint(int(value)) for value in array.reshape(-1))


def tensor(array: Any, *, listed: bool = False, **more: Any) -> bytes:
    """A ``TensorProto``; ``kind``, ``shape`` and ``held`` (fields of elements) may contradict the array."""
    array = np.asarray(array)
    kind = more.get("kind", NUMBERS.get(array.dtype.name, 0))
    held = message((LISTS[array.dtype.name], numbers(array))) if listed else message((4, array.tobytes()))
    shape = shape_message(more.get("shape", array.shape))
    return message((1, kind), (2, shape)) + more.get("held", held)


def attribute(name: str, value: bytes) -> bytes:
    """One of a node: its name, and an ``AttrValue``."""
    return message((5, message((1, name.encode()), (2, value))))


def node(name: str, operation: str, *attributes: bytes) -> bytes:
    """A ``NodeDef``."""
    head = message((1, name.encode()), (2, operation.encode()), (3, b"input"), (4, b"/device:CPU:0"))
    return head + b"".join(attributes)


def const(name: str, value: bytes) -> bytes:
    """A node that holds a ``TensorProto``."""
    return node(name, "Const", attribute("dtype", message((6, 1))), attribute("value", message((8, value))))


def graph(*nodes: bytes, functions: Mapping[str, Sequence[bytes]] | None = None) -> bytes:
    """A ``GraphDef``."""
    library = [
        message((1, message((1, message((1, name.encode()))), *((3, one) for one in held))))
        for name, held in (functions or {}).items()
    ]
    made = message(*((1, one) for one in nodes), (4, message((1, 1987))))
    return made + (message((2, b"".join(library))) if library else b"")


def saved_model(*graphs: bytes) -> bytes:
    """A ``SavedModel`` of graphs."""
    metas = [message((1, message((4, b"serve"))), (2, one)) for one in graphs]
    return message((1, 1), *((2, meta) for meta in metas))


# -- V1 checkpoints: tensorflow/core/util/saved_tensor_slice.proto -------------------------------------------

Extents = Sequence[tuple[int, int]]
"""Start and length along each axis; a length of -1 is the whole axis."""


def slice_message(extents: Extents) -> bytes:
    """A ``TensorSliceProto``."""
    one = (b"" if length < 0 else message((1, start), (2, length)) for start, length in extents)
    return message(*((1, extent) for extent in one))


def listed(name: str, kind: int, shape: Sequence[int], slices: Iterable[Extents]) -> bytes:
    """A ``SavedSliceMeta``."""
    return message(
        (1, name.encode()), (2, shape_message(shape)), (3, kind), *((4, slice_message(one)) for one in slices)
    )


def slices_entry(name: str, extents: Extents, held: bytes) -> tuple[bytes, bytes]:
    """The key and the value (``SavedTensorSlices``) of a part, whose elements are in fields of its tensor."""
    saved = message((1, name.encode()), (2, slice_message(extents)), (3, held))
    return tf_files.part_key(name.encode(), *extents), message((2, saved))


def v1_entries(
    tensors: Mapping[str, Any], parts: Mapping[str, Sequence[Extents]] | None = None
) -> list[tuple[bytes, bytes]]:
    """What a file has: the list of its tensors, and their parts, which ``parts`` cuts."""
    metas, entries = [], []
    for name, value in tensors.items():
        array = np.asarray(value)
        cuts = (parts or {}).get(name) or [((0, -1),) * array.ndim]
        metas.append((1, listed(name, NUMBERS[array.dtype.name], array.shape, cuts)))
        for cut in cuts:
            box = tuple(slice(start, None if size < 0 else start + size) for start, size in cut)
            held = message((LISTS[array.dtype.name], numbers(array[box])))
            entries.append(slices_entry(name, cut, held))
    meta = message((1, message(*metas, (2, message((1, 1))))))
    return [(b"", meta), *sorted(entries)]


def v1_file(entries: Sequence[tuple[bytes, bytes]], *, per_block: int = 1000, snappy: bool = False) -> bytes:
    """A table of such entries."""
    blocks = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    return tf_files.table(blocks, snappy=snappy)
