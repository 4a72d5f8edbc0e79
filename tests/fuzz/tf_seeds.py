"""TensorFlow checkpoints to damage: their index down to the bytes of a compressed block, and their data."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import cramjam
import numpy as np

from ckptkit.base.tensors import DTYPES
from tests.fuzz.layers import Layer, Seed, arrays, raw_layers, whole, written
from tests.support import tf_files, tf_protos
from tests.support.tf_files import entry, header, masked, message, varint

# -- TensorFlow ----------------------------------------------------------------------------------------------

_Items = Sequence[tuple[bytes, bytes]]


def table_of_blocks(
    blocks: Sequence[bytes], kind: int, index: bytes | None = None, keys: Sequence[bytes] = ()
) -> bytes:
    """A table of stored blocks, each with a right checksum; ``index`` stands in for the right index block.

    ``keys`` are the last ones of the blocks; without them each is said to be behind any name.
    """
    file, handles = b"", []

    def append(stored: bytes, kind: int) -> bytes:
        nonlocal file
        typed = stored + bytes([kind])
        handle = varint(len(file)) + varint(len(stored))
        file += typed + struct.pack("<I", masked(typed))
        return handle

    for number, stored in enumerate(blocks):
        handles.append((keys[number] if keys else b"\xff%c" % number, append(stored, kind)))
    footer = append(tf_files.block([]), 0)
    footer += append(tf_files.block(handles) if index is None else index, 0)
    return file + footer + bytes(40 - len(footer)) + struct.pack("<Q", tf_files.MAGIC)


def _replaced(items: _Items, number: int, part: int) -> Callable[[bytes], bytes]:
    """Wrap a damaged key (part 0) or value (part 1) into a table that is right otherwise."""

    def wrap(damaged: bytes) -> bytes:
        changed = [list(item) for item in items]
        changed[number][part] = damaged
        return table_of_blocks([tf_files.block([(key, value) for key, value in changed])], 0)

    return wrap


def _stored(raw: bytes, kind: int) -> bytes:
    return bytes(cramjam.snappy.compress_raw(raw)) if kind else raw


def _index_layers(items: _Items, index: str, kind: int) -> list[Layer]:
    """Values, keys, blocks (compressed or not) and the index block of a table."""
    raw = tf_files.block(items)
    handles = tf_files.block([(b"\xff", varint(0) + varint(len(raw)))])
    return [
        *(
            Layer(index, value, _replaced(items, number, 1), "protobuf")
            for number, (_, value) in enumerate(items)
        ),
        *(Layer(index, key, _replaced(items, number, 0)) for number, (key, _) in enumerate(items) if key),
        Layer(index, _stored(raw, kind), lambda damaged: table_of_blocks([damaged], kind)),
        Layer(index, raw, lambda damaged: table_of_blocks([_stored(damaged, kind)], kind)),
        Layer(index, handles, lambda damaged: table_of_blocks([raw], 0, damaged)),
    ]


def _tf_seed(name: str, items: _Items, *data: bytes, kind: int = 0, more: Sequence[Layer] = ()) -> Seed:
    files = {"m.index": table_of_blocks([_stored(tf_files.block(items), kind)], kind)}
    files |= {f"m.data-{i:05d}-of-{len(data):05d}": raw for i, raw in enumerate(data)}
    return Seed("tf", name, files, "m", [*raw_layers(files), *_index_layers(items, "m.index", kind), *more])


def tf_items(arrays: Mapping[str, Any]) -> tuple[list[tuple[bytes, bytes]], bytes]:
    data, items = b"", [(b"", header())]
    for name in sorted(arrays):
        raw = arrays[name].tobytes()
        number = DTYPES[arrays[name].dtype.name].tf
        assert number is not None
        items.append(
            (
                name.encode(),
                entry(number, arrays[name].shape, offset=len(data), size=len(raw), crc=masked(raw)),
            )
        )
        data += raw
    return items, data


def _object_graph(graph: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    length = len(graph).to_bytes(4, "little")
    stored = varint(len(graph)) + masked(length).to_bytes(4, "little") + graph
    crc = masked(length + masked(length).to_bytes(4, "little") + graph)
    values = np.array([1, 2, 3], "float32").tobytes()
    items = [
        (b"", header()),
        (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(7, (), size=len(stored), crc=crc)),
        (b"m/b/.ATTRIBUTES/VARIABLE_VALUE", entry(1, (1,), offset=len(stored), size=4)),
        (b"m/k/.ATTRIBUTES/VARIABLE_VALUE", entry(1, (2,), offset=len(stored) + 4, size=8)),
    ]
    return items, stored + values


def _graph_index(graph: bytes) -> bytes:
    return table_of_blocks([tf_files.block(_object_graph(graph)[0])], 0)


def tf_seeds() -> Iterator[Seed]:
    items, data = tf_items(arrays())
    yield _tf_seed("plain", items, data, more=[Layer(DATA, data, whole, around=_with_values)] * 3)
    yield _tf_seed("snappy", items, data, kind=1)
    ours = written("tf", arrays(), "m")
    yield Seed("tf", "written by ckptkit", ours, "m", raw_layers(ours))
    yield _tf_folder()
    parts = np.arange(12, dtype="float32").reshape(4, 3)
    first, second = parts[:1].tobytes(), parts[1:].tobytes()
    sliced = [
        (b"", header(2)),
        (b"\0w\0\1\1\2\x80\x81\x80\x7f", entry(1, (1, 3), size=12, crc=masked(first))),
        (b"\0w\0\1\1\2\x81\x83\x80\x7f", entry(1, (3, 3), size=36, crc=masked(second), shard=1)),
        (b"w", entry(1, (4, 3), slices=[[(0, 1), None], [(1, 3), None]])),
    ]
    yield _tf_seed("partitioned", sliced, first, second)
    graph = message((1, message((1, message((1, 1), (2, b"k"))), (2, _attribute(b"net/kernel", b"m/k")))))
    graph += message((1, message((2, _attribute(b"net/bias", b"m/b")))))
    with_graph, held = _object_graph(graph)
    yield _tf_seed("objects", with_graph, held)
    files = {"m.index": _graph_index(graph), DATA: held}
    layers = [Layer(DATA, graph, whole, "protobuf", _with_graph)] * 3
    yield Seed("tf", "graph", files, "m", layers)
    yield _shared_keys()


def _tf_folder() -> Seed:
    """A folder whose ``checkpoint`` file says which checkpoint is meant."""
    items, data = tf_items(arrays())
    state = b'model_checkpoint_path: "m"\nall_model_checkpoint_paths: "m"\n'
    files = {"checkpoint": state, "m.index": table_of_blocks([tf_files.block(items)], 0), DATA: data}
    return Seed("tf", "folder", files, ".", [Layer("checkpoint", state, whole, "lines")])


DATA = "m.data-00000-of-00001"


def _attribute(name: bytes, path: bytes) -> bytes:
    return message((1, b"VARIABLE_VALUE"), (2, name), (3, path + b"/.ATTRIBUTES/VARIABLE_VALUE"))


def _with_graph(damaged: bytes) -> dict[str, bytes]:
    """Index and data for another object graph, all checksums right."""
    return {"m.index": _graph_index(damaged), DATA: _object_graph(damaged)[1]}


def _with_values(damaged: bytes) -> dict[str, bytes]:
    """Other values, and the index with their checksums."""
    held, place = {}, 0
    for name, array in sorted(arrays().items()):
        raw = damaged[place : place + array.nbytes].ljust(array.nbytes, b"\1")
        place += array.nbytes
        held[name] = np.frombuffer(raw, array.dtype).reshape(array.shape)
    items, data = tf_items(held)
    return {"m.index": table_of_blocks([tf_files.block(items)], 0), DATA: data}


def _shared_keys() -> Seed:
    """Several blocks whose keys share their beginnings, as TensorFlow writes them."""
    items, data = tf_items({f"net/block_{number}/kernel": np.float32([number]) for number in range(40)})
    parts = [items[start : start + 14] for start in range(0, len(items), 14)]
    blocks, keys = [_compressed_block(part) for part in parts], [part[-1][0] for part in parts]

    def wrap(number: int, damaged: bytes) -> bytes:
        return table_of_blocks([*blocks[:number], damaged, *blocks[number + 1 :]], 0, keys=keys)

    files = {"m.index": table_of_blocks(blocks, 0, keys=keys), DATA: data}
    layers = [Layer("m.index", block, functools.partial(wrap, number)) for number, block in enumerate(blocks)]
    return Seed("tf", "shared keys", files, "m", [*raw_layers(files), *layers])


def _compressed_block(items: _Items) -> bytes:
    """A block in which a key says how much it shares with the one before it; a restart every four."""
    body, starts, before = b"", [], b""
    for number, (key, value) in enumerate(items):
        shared = 0
        if number % 4 == 0:
            starts.append(len(body))
        else:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(before, key, strict=False))
            shared = sum(1 for _ in same)
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return body + struct.pack(f"<{len(starts) + 1}I", *starts, len(starts))


def tf1_seeds() -> Iterator[Seed]:
    """Checkpoints of TensorFlow's older format: one file, a table of SavedTensorSlices; and shards of it."""
    held = {name: array for name, array in arrays().items() if array.dtype.name in tf_protos.LISTS}
    whole_axis = (0, -1)
    held["w"] = np.arange(12, dtype="float32").reshape(4, 3)
    cuts = {"w": [((0, 1), whole_axis), ((1, 3), whole_axis)]}
    items = tf_protos.v1_entries(held, cuts)
    for kind in (0, 1):
        files = {"m.ckpt": table_of_blocks([_stored(tf_files.block(items), kind)], kind)}
        layers = [*raw_layers(files), *_index_layers(items, "m.ckpt", kind)]
        layers += [Layer("m.ckpt", items[0][1], _replaced(items, 0, 1), "protobuf")] * 6
        yield Seed("tf1", f"kind {kind}", files, "m.ckpt", layers)
    blocks = [_compressed_block(items[start : start + 3]) for start in range(0, len(items), 3)]
    keys = [items[min(start + 2, len(items) - 1)][0] for start in range(0, len(items), 3)]
    files = {"m.ckpt": table_of_blocks(blocks, 0, keys=keys)}
    yield Seed("tf1", "blocks", files, "m.ckpt", raw_layers(files))
    shards = [tf_protos.v1_entries({"w": held["w"]}, {"w": [cut]}) for cut in cuts["w"]]
    files = {f"s-0000{n}-of-00002": tf_protos.v1_file(one) for n, one in enumerate(shards)}
    layers = [*raw_layers(files), *_index_layers(shards[1], "s-00001-of-00002", 0)]
    yield Seed("tf1", "shards", files, "s", layers)


def graphdef_seeds() -> Iterator[Seed]:
    """Graphs of constants, as bytes and in lists; one in a SavedModel, with functions."""
    held = {name: array for name, array in arrays().items() if array.dtype.name in tf_protos.LISTS}
    for listed in (False, True):
        nodes = [tf_protos.const(name, tf_protos.tensor(one, listed=listed)) for name, one in held.items()]
        nodes.append(tf_protos.const("short", tf_protos.tensor(np.int32([1, 2]), listed=True, shape=(2, 4))))
        nodes += [tf_protos.node("x", "Placeholder"), tf_protos.node("a", "Add")]
        raw = tf_protos.graph(*nodes, functions={"f": nodes[:2]})
        model = tf_protos.saved_model(raw, raw)
        for name, made in (("m.pb", raw), ("saved_model.pb", model)):
            layers = [*raw_layers({name: made}), *[Layer(name, made, whole, "protobuf")] * 3]
            yield Seed("graphdef", f"{name}, {listed}", {name: made}, name, layers)
