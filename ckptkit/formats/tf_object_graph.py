"""Object-based TensorFlow checkpoints: from object paths back to variable names.

``tf.train.Checkpoint`` and SavedModel store a variable under the path by which Python reaches it
(``model/layers/0/kernel/.ATTRIBUTES/VARIABLE_VALUE``) and, beside the tensors, a graph of those objects
that also has each variable's own name. Source: tensorflow/core/protobuf/trackable_object_graph.proto; the
form of stored strings: WriteStringTensor in tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ckptkit.checksums import crc32c
from ckptkit.formats.leveldb_table import mask
from ckptkit.formats.protobuf_wire import WireError, fields, read_varint

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
MAX_GRAPH_BYTES = 256 << 20
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_VALUE_ATTRIBUTE = "VARIABLE_VALUE"
_SAVE_COUNTER = "save_counter"
_SHOWN = 3


@dataclass
class _Node:
    """One object: the keys and names of its variables, and the slot variables it (an optimizer) made."""

    attributes: list[tuple[str, str, str]] = field(default_factory=list)  # attribute, variable name, key
    slots: list[tuple[int, str, int]] = field(default_factory=list)  # variable's node, slot, slot's node


def decode_string_scalar(data: bytes) -> bytes:
    """Read a scalar string tensor as it lies in a data file.

    Parameters
    ----------
    data : bytes
        Length as a varint, masked CRC-32C of the length, then the string.

    Raises
    ------
    WireError
        When lengths or checksum disagree.
    """
    size, position = read_varint(data)
    start = position + 4
    if start + size != len(data):
        raise WireError(f"a string of {size} bytes in {len(data)}")
    if mask(_length_crc32c(size)) != int.from_bytes(data[position:start], "little"):
        raise WireError("the checksum of a string's length differs")
    return data[start:]


def string_checksum(text: bytes) -> int:
    """Masked CRC-32C that a bundle's entry has for a scalar string.

    It is not that of the stored bytes: the length is taken as a fixed-width number, not as the varint.
    """
    length = _length_crc32c(len(text))
    return mask(crc32c(text, crc32c(mask(length).to_bytes(4, "little"), length)))


def _length_crc32c(size: int) -> int:
    return crc32c(size.to_bytes(4 if size < 1 << 32 else 8, "little"))


def variable_names(keys: Iterable[str], graph: bytes) -> tuple[dict[str, str], list[str]]:
    """Give every key of an object-based checkpoint its variable's name.

    A variable is called what the graph calls it, or its object path where the graph says nothing; a slot
    variable ``<variable>/<slot>``; ``save_counter`` keeps its path. Where a name is taken already, the
    later key keeps its path.

    Parameters
    ----------
    keys : iterable of str
        Keys in the order of the index.
    graph : bytes
        TrackableObjectGraph, serialized.

    Returns
    -------
    names : dict
        Key -> name; names are distinct.
    notes : list of str
        What was unusual.

    Raises
    ------
    WireError
        When the graph is damaged.
    """
    wanted = _names_in(graph)
    names: dict[str, str] = {}
    taken: set[str] = set()
    shared: list[str] = []
    for key in keys:
        path = key.removesuffix(VALUE_SUFFIX)
        name = path if path == _SAVE_COUNTER else wanted.get(key) or path
        if name in taken:
            shared.append(name)
            name = next((free for free in (path, key) if free not in taken), "")
            if not name:
                raise WireError(f"no distinct name for {key!r}")
        names[key] = name
        taken.add(name)
    notes = []
    if shared:
        some = sorted(set(shared))
        listed = ", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")
        notes.append(
            f"{len(shared)} variables are listed under their object path, "
            f"because their name belongs to another one too: {listed}"
        )
    return names, notes


def _names_in(graph: bytes) -> dict[str, str]:
    """Key -> variable name, as far as the graph knows it."""
    nodes = [_node(item.payload()) for item in fields(graph) if item.number == 1]
    names = {key: name for node in nodes for _, name, key in node.attributes if name}
    for node in nodes:
        for variable, slot, slot_variable in node.slots:
            if not (0 <= variable < len(nodes) and 0 <= slot_variable < len(nodes)):
                raise WireError(f"a slot variable of object {variable} of {len(nodes)}")
            owner, key = _value_key(nodes[variable]), _value_key(nodes[slot_variable])
            if owner and key and slot:
                names[key] = f"{names.get(owner) or owner.removesuffix(VALUE_SUFFIX)}/{slot}"
    return names


def _value_key(node: _Node) -> str:
    return next((key for attribute, _, key in node.attributes if attribute == _VALUE_ATTRIBUTE), "")


def _node(data: bytes) -> _Node:
    node = _Node()
    for item in fields(data):
        if item.number == 2:
            texts = {f.number: f.text() for f in fields(item.payload()) if f.number in (1, 2, 3)}
            node.attributes.append((texts.get(1, ""), texts.get(2, ""), texts.get(3, "")))
        elif item.number == 3:
            slot = {f.number: f for f in fields(item.payload())}
            node.slots.append(
                (
                    slot[1].signed() if 1 in slot else 0,
                    slot[2].text() if 2 in slot else "",
                    slot[3].signed() if 3 in slot else 0,
                )
            )
    return node
