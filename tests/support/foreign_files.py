"""Files of Flax, ONNX and GGUF put together byte by byte from their specifications, without their libraries.

So tests can also build what no library would write, and run where none is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckptkit.formats.protobuf_wire import bytes_field, number_field

# -- msgpack: https://github.com/msgpack/msgpack/blob/master/spec.md ----------------------------------------


class Extension:
    """An extension of some type."""

    def __init__(self, kind: int, payload: bytes) -> None:
        self.kind, self.payload = kind, payload


def _counted(count: int, short: tuple[int, int] | None, codes: Sequence[int]) -> bytes:
    """The code of something that has a length: in the code itself, or in the bytes after it."""
    if short is not None and count < short[1]:
        return bytes([short[0] | count])
    width = next(width for width in (1, 2, 4) if count < 1 << 8 * width and codes[(1, 2, 4).index(width)])
    return bytes([codes[(1, 2, 4).index(width)]]) + count.to_bytes(width, "big")


def msgpack(value: Any) -> bytes:
    """A value; arrays of numpy are packed as Flax packs them."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return bytes([value]) if 0 <= value < 128 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return _counted(len(raw), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + raw
    if isinstance(value, bytes):
        return _counted(len(value), None, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, (list, tuple)):
        return _counted(len(value), (0x90, 16), (0, 0xDC, 0xDD)) + b"".join(map(msgpack, value))
    if isinstance(value, dict):
        items = b"".join(msgpack(key) + msgpack(inner) for key, inner in value.items())
        return _counted(len(value), (0x80, 16), (0, 0xDE, 0xDF)) + items
    if isinstance(value, Extension):
        fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(value.payload))
        head = bytes([fixed]) if fixed else _counted(len(value.payload), None, (0xC7, 0xC8, 0xC9))
        return head + bytes([value.kind]) + value.payload
    return msgpack(flax_array(value))


def flax_array(array: Any, kind: int = 1, dtype: str = "") -> Extension:
    """An array as flax/serialization.py packs it: its shape, the name of its type, its bytes."""
    array = np.asarray(array)
    return Extension(kind, msgpack((array.shape, dtype or array.dtype.name, array.tobytes("C"))))


def flax_chunks(array: Any, length: int) -> dict[str, Any]:
    """An array in chunks of ``length`` elements, as Flax cuts those of more than 1 GB."""
    flat = array.reshape(-1)
    chunks = {str(i): flat[at : at + length] for i, at in enumerate(range(0, flat.size, length))}
    shape = {str(axis): size for axis, size in enumerate(array.shape)}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}


# -- ONNX: onnx/onnx.proto -----------------------------------------------------------------------------------

ONNX_NUMBERS = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9,
    "float16": 10, "float64": 11, "uint32": 12, "uint64": 13, "complex64": 14, "complex128": 15,
    "bfloat16": 16,
}  # fmt: skip


def onnx_tensor(name: str, array: Any = None, **more: Any) -> bytes:
    """A ``TensorProto`` with its elements in ``raw_data``, or with what is given instead.

    ``fields`` are the bytes of fields that hold the elements, ``external`` keys and values of another file.
    """
    array = np.asarray(array)
    made = b"".join(number_field(1, size) if size else b"\x08\x00" for size in more.get("shape", array.shape))
    made += number_field(2, more.get("kind", ONNX_NUMBERS.get(array.dtype.name, 0))) + bytes_field(
        8, name.encode()
    )
    for key, value in more.get("external", {}).items():
        made += bytes_field(13, bytes_field(1, key.encode()) + bytes_field(2, str(value).encode()))
    if "external" in more:
        return made + number_field(14, 1)
    fields = more.get("fields")
    return made + (bytes_field(9, array.tobytes()) if fields is None else fields)


def onnx_node(operator: str, output: str, *attributes: bytes, name: str = "") -> bytes:
    """A ``NodeProto``."""
    made = bytes_field(2, output.encode()) + (bytes_field(3, name.encode()) if name else b"")
    return made + bytes_field(4, operator.encode()) + b"".join(bytes_field(5, one) for one in attributes)


def onnx_attribute(name: str, *, tensor: bytes | None = None, graph: bytes | None = None) -> bytes:
    """An ``AttributeProto``."""
    made = bytes_field(1, name.encode())
    return made + (bytes_field(5, tensor) if tensor is not None else bytes_field(6, graph or b""))


def onnx_value(name: str, kind: int, *sizes: int | str) -> bytes:
    """A ``ValueInfoProto`` of a tensor."""
    axes = [number_field(1, s) if isinstance(s, int) else bytes_field(2, s.encode()) for s in sizes]
    shape = b"".join(bytes_field(1, axis) for axis in axes)
    kind_of = number_field(1, kind) + bytes_field(2, shape)
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, kind_of))


def onnx_graph(tensors: Sequence[bytes] = (), nodes: Sequence[bytes] = (), more: bytes = b"") -> bytes:
    """A ``GraphProto``."""
    made = b"".join(bytes_field(1, node) for node in nodes) + bytes_field(2, b"g")
    return made + b"".join(bytes_field(5, tensor) for tensor in tensors) + more


def onnx_model(graph: bytes, more: bytes = b"") -> bytes:
    """A ``ModelProto``."""
    return (
        number_field(1, 8)
        + bytes_field(2, b"test")
        + bytes_field(7, graph)
        + bytes_field(8, number_field(2, 17))
        + more
    )


# -- GGUF: docs/gguf.md of ggml-org/ggml ---------------------------------------------------------------------


def gguf_text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw


def gguf_file(
    tensors: Mapping[str, tuple[int, Sequence[int], bytes]],
    pairs: Mapping[str, bytes] | None = None,
    *,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """A file of tensors: the number of a type, the shape as numpy has it, and the bytes.

    ``pairs`` are keys and encoded values, each its type (4 bytes) and its bytes.
    """
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs or {}))
    head += b"".join(gguf_text(key) + value for key, value in (pairs or {}).items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += bytes(-len(data) % alignment)
        head += gguf_text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data)
        )
        data += raw
    return head + bytes(-len(head) % alignment) + data
