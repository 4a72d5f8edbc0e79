"""Small good files of every format, to be damaged."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import importlib.util
import io
import json
import lzma
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ckptkit.formats import protobuf_wire
from tests.fuzz.distributed_seeds import DISTRIBUTED
from tests.fuzz.hdf5_seeds import keras_seeds
from tests.fuzz.layers import (
    Layer,
    Seed,
    arrays,
    member_layers,
    raw_layers,
    stored_zip,
    tar,
    tar_layers,
    whole,
    with_zip64_end,
    written,
    zip64_end_layers,
    zip_layers,
    zipped,
)
from tests.fuzz.other_seeds import OTHERS
from tests.fuzz.tf_seeds import DATA, graphdef_seeds, table_of_blocks, tf1_seeds, tf_items, tf_seeds
from tests.support import foreign_files, tf_files, torch_files
from tests.support.orbax_files import orbax_files


def _tar_gz() -> Iterator[Seed]:
    items, data = tf_items(arrays())
    members = {"m/model.index": table_of_blocks([tf_files.block(items)], 0), f"m/model{DATA[1:]}": data}

    def gz(raw: bytes) -> bytes:
        return gzip.compress(raw, 1, mtime=0)

    xz = functools.partial(lzma.compress, preset=0)  # the usual preset takes 94 MB
    packers: dict[str, Callable[[bytes], bytes]] = {
        "m.tar.gz": gz, "m.tar": whole, "m.tar.bz2": bz2.compress, "m.tar.xz": xz
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        packers["m.tar.zst"] = importlib.import_module("backports.zstd").compress
    forms = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    for (name, pack), form in zip(packers.items(), forms * 2, strict=False):
        held = {f"{'x' * 120 * (form == tarfile.GNU_FORMAT)}{path}": raw for path, raw in members.items()}
        archive = tar(held, form)
        packed = pack(archive)

        def around(changed: Mapping[str, bytes], pack: Any = pack, form: int = form) -> bytes:
            return bytes(pack(tar(changed, form)))

        layers = [
            *raw_layers({name: packed}),
            Layer(name, archive, pack),
            *tar_layers(name, archive, pack),
            *member_layers(name, held, around),
        ]
        yield Seed("tar.gz", name, {name: packed}, name, layers)


# -- PyTorch -------------------------------------------------------------------------------------------------


def _pickles() -> dict[str, bytes]:
    """Pickles of state dicts as training code leaves them, put together by hand."""
    from tests.support.torch_files import TENSOR, call, number, table, tensor, text

    plain = table(weight=TENSOR, bias=tensor(shape=(1,), offset=1), t=tensor(shape=(2, 1), strides=(1, 2)))
    ordered = (
        call("collections", "OrderedDict")
        + b"("
        + text("weight")
        + TENSOR
        + b"u}"
        + text("_metadata")
        + b"}sb"
    )
    nested = table(
        epoch=number(7),
        arch=text("moganet"),
        state_dict=plain,
        state_dict_ema=ordered,
        args=call("argparse", "Namespace")
        + table(lr=b"G" + struct.pack(">d", 1e-3), opt=text("adamw"))
        + b"b",
        losses=b"](" + number(1) + number(2) + b"e",
        shape=b"(" + number(3) + b"t",
    )
    import pickle

    python = pickle.dumps({"a": [1, 2.5, None, True], "b": ("x", b"raw", {3}), "c": {"d": -(2**70)}}, 2)[2:-1]
    both = table(model=plain, extra=python)
    return {"plain": torch_files.whole(plain), "ordered": torch_files.whole(ordered),
            "nested": torch_files.whole(nested), "python": torch_files.whole(both)}  # fmt: skip


def _torch_zip() -> Iterator[Seed]:
    for number, (name, pickled) in enumerate(_pickles().items()):
        members = {
            "archive/data.pkl": pickled,
            "archive/byteorder": b"little",
            "archive/data/0": torch_files.STORAGE,
            "archive/version": b"3\n",
        }
        pack = _ZIPS[number % len(_ZIPS)]
        raw = pack(members)
        layers = member_layers("m.pth", members, pack, {"archive/data.pkl": "pickle"})
        layers += [layers[0]] * 3  # the pickle, once more: most can go wrong there
        layers += [*zip_layers("m.pth", raw), *raw_layers({"m.pth": raw})]
        yield Seed("torch-zip", name, {"m.pth": raw}, "m.pth", layers)
    raw = with_zip64_end(stored_zip(members))
    layers = [*zip64_end_layers("m.pth", raw), *raw_layers({"m.pth": raw})]
    yield Seed("torch-zip", "64-bit end", {"m.pth": raw}, "m.pth", layers)
    ours = written("torch", arrays(), "m.pth")
    with zipfile.ZipFile(io.BytesIO(ours["m.pth"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    layers = [*raw_layers(ours), *zip_layers("m.pth", ours["m.pth"])]
    layers += member_layers("m.pth", members, stored_zip, {"archive/data.pkl": "pickle"})
    yield Seed("torch-zip", "written by ckptkit", ours, "m.pth", layers)


def _torch_module() -> Iterator[Seed]:
    """A whole pickled module, and a scripted one with its code."""
    from tests.support.torch_files import TENSOR, call, table, text

    def pickled(kind: str, **modules: bytes) -> bytes:
        passing = text("_non_persistent_buffers_set") + b"]" + text("passing") + b"a"
        buffers = text("_buffers") + table(mean=TENSOR, passing=TENSOR)
        buffers += text("bank") + b"](" + TENSOR + b"e" + text("packed") + call("torch", "ScriptObject")
        held = text("_parameters") + table(weight=TENSOR, none=b"N") + text("_modules") + table(**modules)
        return call("nobody.has", kind) + b"}(" + held + buffers + passing + b"ub"

    inner = call("__torch__", "Inner") + table(bias=TENSOR) + b"b"
    scripted = call("__torch__", "Net") + table(weight=TENSOR, mere=TENSOR, inner=inner) + b"b"
    code = b'class Net(Module):\n  __parameters__ = ["weight", ]\n  __buffers__ = []\n'
    for name, made in {"pickled": pickled("Net", a=pickled("A"), b=b"N"), "scripted": scripted}.items():
        members = {"archive/data.pkl": torch_files.whole(made), "archive/data/0": torch_files.STORAGE}
        if name == "scripted":
            members |= {"archive/constants.pkl": b"\x80\x02).", "archive/code/__torch__.py": code}
        raw = stored_zip(members)
        layers = member_layers("m.pth", members, stored_zip, {"archive/data.pkl": "pickle"})
        layers += [*[layers[0]] * 3, *raw_layers({"m.pth": raw})]
        yield Seed("torch-module", name, {"m.pth": raw}, "m.pth", layers)


_ZIPS: tuple[Callable[[Mapping[str, bytes]], bytes], ...] = (
    stored_zip,
    functools.partial(zipped, method=zipfile.ZIP_STORED, zip64=True),
    stored_zip,
    functools.partial(zipped, method=zipfile.ZIP_STORED, streamed=True),
)


def _torch_legacy() -> Iterator[Seed]:
    for name, made in _pickles().items():
        pickled = made.replace(b"tQ", b"NtQ")  # a storage there also says of which other it is a view
        files = {"m.pth": torch_files.legacy(pickled)}
        layers = [*raw_layers(files), Layer("m.pth", pickled, torch_files.legacy, "pickle")]
        rest = files["m.pth"]
        place = 0
        for _ in range(5):  # magic number, version, the system, the object, the keys of storages
            stop = place + _pickle_length(rest[place:])

            def wrap(damaged: bytes, place: int = place, stop: int = stop, rest: bytes = rest) -> bytes:
                return rest[:place] + damaged + rest[stop:]

            layers.append(Layer("m.pth", rest[place:stop], wrap, "pickle"))
            place = stop
        layers.append(Layer("m.pth", rest[place:], functools.partial(bytes.__add__, rest[:place])))
        yield Seed("torch-legacy", name, files, "m.pth", layers)


def _pickle_length(raw: bytes) -> int:
    return max(place for _, _, place in pickletools.genops(raw) if place is not None) + 1


def _torch_tar() -> Iterator[Seed]:
    members = torch_files.tar_members()
    files = {"m.pth": tar(members)}
    pickles = {"pickle": "pickle", "sys_info": "pickle"}
    layers = [*raw_layers(files), *member_layers("m.pth", members, tar, pickles)]
    layers += tar_layers("m.pth", files["m.pth"], whole)
    yield Seed("torch-tar", "by hand", files, "m.pth", layers)


# -- safetensors ---------------------------------------------------------------------------------------------


def _safetensors() -> Iterator[Seed]:
    files = written("safetensors", arrays(), "m.safetensors")
    raw = files["m.safetensors"]
    start = 8 + int.from_bytes(raw[:8], "little")

    def wrap(damaged: bytes) -> bytes:
        return len(damaged).to_bytes(8, "little") + damaged + raw[start:]

    layers = [*raw_layers(files), Layer("m.safetensors", raw[8:start].rstrip(), wrap, "json")]
    layers.append(Layer("m.safetensors", raw[:start], lambda damaged: damaged + raw[start:]))
    yield Seed("safetensors", "one file", files, "m.safetensors", [*layers, layers[1]])


def _sharded() -> Iterator[Seed]:
    files = written("safetensors", arrays(), "m.safetensors", max_shard_size=100)
    index = "m.safetensors.index.json"
    layers = [*raw_layers(files), *[Layer(index, files[index], whole, "json")] * 3]
    for opened in (index, "."):
        yield Seed("sharded", f"opened by {opened}", files, opened, layers)
    yield from _sharded_elsewhere()


def _sharded_elsewhere() -> Iterator[Seed]:
    """The same of PyTorch, and of Keras, whose index names groups."""
    first, second = (torch_files.whole(torch_files.table(**{name: torch_files.TENSOR})) for name in "ab")
    files = {f"m-{number}.bin": stored_zip({"a/data.pkl": pickled, "a/data/0": torch_files.STORAGE})
             for number, pickled in enumerate((first, second))}  # fmt: skip
    files["m.bin.index.json"] = json.dumps({"weight_map": {"a": "m-0.bin", "b": "m-1.bin"}}).encode()
    layers = [*raw_layers(files), Layer("m.bin.index.json", files["m.bin.index.json"], whole, "json")]
    yield Seed("sharded", "PyTorch", files, "m.bin.index.json", layers)
    homes = {f"/layers/d{number}/vars": [f"w_0000{number}.weights.h5"] for number in range(2)}
    files = {}
    for group, (file,) in homes.items():
        held = {f"{group[1:]}/0": np.arange(3, dtype="float32")}
        files[file] = written("keras", held, file)[file]
    files["w.weights.json"] = json.dumps({"weight_map": homes}).encode()
    layers = [*raw_layers(files), Layer("w.weights.json", files["w.weights.json"], whole, "json")]
    yield Seed("sharded", "Keras", files, "w.weights.json", layers)


# -- npz and Keras -------------------------------------------------------------------------------------------


def _npz() -> Iterator[Seed]:
    held = {name: array for name, array in arrays().items() if array.dtype.name != "bfloat16"}
    held["big endian"] = np.arange(3, dtype=">f8")
    held["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    members = {}
    for name, array in held.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, array)
        members[f"{name}.npy"] = file.getvalue()
    ways = ({"method": 0}, {"method": 8}, {"method": 8, "zip64": True}, {"method": 8, "streamed": True})
    for options in ways:

        def pack(changed: Mapping[str, bytes], options: Any = options) -> bytes:
            return zipped(changed, comment=b'ckptkit:{"layout":"torch"}', **options)

        files = {"m.npz": pack(members)}
        layers = [
            *raw_layers(files) * 4,
            *member_layers("m.npz", members, pack),
            *_npy_headers(members, pack),
        ]
        layers += zip_layers("m.npz", files["m.npz"])
        yield Seed("npz", f"{options}", files, "m.npz", layers)
    raw = with_zip64_end(pack(members))
    layers = [*zip64_end_layers("m.npz", raw), *raw_layers({"m.npz": raw})]
    yield Seed("npz", "64-bit end", {"m.npz": raw}, "m.npz", layers)


def _npy_headers(
    members: Mapping[str, bytes], pack: Callable[[Mapping[str, bytes]], bytes]
) -> Iterator[Layer]:
    """The header of each array, with its length right, in either version of it."""
    for number, (name, raw) in enumerate(members.items()):
        size = 10 + int.from_bytes(raw[8:10], "little")

        def wrap(
            damaged: bytes, name: str = name, raw: bytes = raw, size: int = size, new: int = number % 2
        ) -> bytes:
            length = (
                len(damaged).to_bytes(4 if new else 2, "little")
                if len(damaged) < 65536 or new
                else b"\xff\xff"
            )
            head = b"\x93NUMPY" + bytes([2 if new else 1, 0]) + length + damaged
            return pack({**members, name: head + raw[size:]})

        yield Layer("m.npz", raw[10:size], wrap, "python")


def _paddle() -> Iterator[Seed]:
    """Arrays by name, and a tensor of a nested object, as ``paddle.save`` pickles them."""
    names = {"StructuredToParameterName@@": {"w": "linear_0.w_0"}}
    held = {"w": np.arange(6, dtype="float32").reshape(2, 3), "b": np.arange(3, dtype="uint16")}
    for protocol in (2, 4):
        raw = pickle.dumps(held | names, protocol)
        layers = [*raw_layers({"m.pdparams": raw}), *[Layer("m.pdparams", raw, whole, "pickle")] * 3]
        yield Seed("paddle", f"protocol {protocol}", {"m.pdparams": raw}, "m.pdparams", layers)


# -- Flax, ONNX and GGUF -------------------------------------------------------------------------------------


def _flax() -> Iterator[Seed]:
    held = arrays()
    state = {"step": 7, "name": "run", "rate": 0.5, "list": [1, None, True, b"raw"]}
    seeds = {
        "nested": {"params": {"a": {key: held[key] for key in held}}, **state},
        "chunked": {"w": foreign_files.flax_chunks(np.arange(24, dtype="float32").reshape(4, 6), 10)},
    }
    for name, value in seeds.items():
        raw = foreign_files.msgpack(value)
        yield Seed("flax", name, {"m.msgpack": raw}, "m.msgpack", raw_layers({"m.msgpack": raw}) * 3)


def _onnx() -> Iterator[Seed]:
    tensors = [foreign_files.onnx_tensor(name, array) for name, array in arrays().items()]
    plain = np.arange(4)
    numbers = b"".join(map(protobuf_wire.varint, plain.tolist()))
    tensors.append(foreign_files.onnx_tensor("n", plain, fields=protobuf_wire.bytes_field(7, numbers)))
    inner = foreign_files.onnx_graph(tensors[:2])
    nodes = [
        foreign_files.onnx_node("Constant", "c", foreign_files.onnx_attribute("value", tensor=tensors[0])),
        foreign_files.onnx_node("If", "y", foreign_files.onnx_attribute("then_branch", graph=inner)),
        foreign_files.onnx_node("Own", "z", foreign_files.onnx_attribute("table", tensor=tensors[1])),
    ]
    sides = protobuf_wire.bytes_field(11, foreign_files.onnx_value("x", 1, "N", 3))
    whole_one = foreign_files.onnx_graph(tensors, nodes, sides)
    function = protobuf_wire.bytes_field(1, b"F") + protobuf_wire.bytes_field(7, nodes[0])
    beside = protobuf_wire.bytes_field(25, function) + protobuf_wire.bytes_field(
        25, function + protobuf_wire.bytes_field(13, b"v")
    )
    raw = foreign_files.onnx_model(whole_one, beside)
    layers = [*raw_layers({"m.onnx": raw}), Layer("m.onnx", raw, whole, "protobuf")]
    layers += [Layer("m.onnx", whole_one, foreign_files.onnx_model, "protobuf")] * 2
    for tensor in tensors:
        wrap = functools.partial(_in_place_of, tensors, tensor)
        layers.append(Layer("m.onnx", tensor, wrap, "protobuf"))
    yield Seed("onnx", "in one file", {"m.onnx": raw}, "m.onnx", layers)
    place = {"location": "sub/w.bin", "offset": 4, "length": 16}
    outside = foreign_files.onnx_tensor("w", np.arange(4, dtype="float32"), external=place)
    model = foreign_files.onnx_model(foreign_files.onnx_graph([outside]))
    files = {"m.onnx": model, "sub/w.bin": bytes(4) + np.arange(4, dtype="float32").tobytes()}
    layers = [*raw_layers(files), *[Layer("m.onnx", model, whole, "protobuf")] * 2]
    yield Seed("onnx", "with a file beside it", files, "m.onnx", layers)


def _in_place_of(tensors: list[bytes], one: bytes, damaged: bytes) -> bytes:
    graph = foreign_files.onnx_graph([damaged if tensor is one else tensor for tensor in tensors])
    return foreign_files.onnx_model(graph)


def _gguf() -> Iterator[Seed]:
    plain = {"float32": 0, "float16": 1, "int8": 24, "int32": 26, "int64": 27, "float64": 28, "bfloat16": 30}
    tensors = {
        name: (plain[array.dtype.name], array.shape, array.tobytes())
        for name, array in arrays().items()
        if array.dtype.name in plain and array.ndim < 5
    }
    tensors["quantized"] = (8, (2, 64), bytes(range(136)))
    pairs = {
        "general.architecture": struct.pack("<I", 8) + foreign_files.gguf_text("toy"),
        "general.alignment": struct.pack("<II", 4, 32),
        "toy.rate": struct.pack("<Id", 12, 0.5),
        "tokens": struct.pack("<IIQ", 9, 8, 2) + foreign_files.gguf_text("a") + foreign_files.gguf_text("bc"),
    }
    raw = foreign_files.gguf_file(tensors, pairs)
    layers = [*raw_layers({"m.gguf": raw}), Layer("m.gguf", raw[:300], lambda d: d + raw[300:])]
    layers.append(Layer("m.gguf", raw[:24], lambda d: d + raw[24:]))
    yield Seed("gguf", "by hand", {"m.gguf": raw}, "m.gguf", layers, "opened, a tensor refused")


def _orbax() -> Iterator[Seed]:
    held = {name: array for name, array in arrays().items() if array.dtype.name != "float8_e4m3b11fnuz"}
    for ocdbt in (True, False):
        for driver in ("zarr", "zarr3"):
            files = orbax_files(held, driver, ocdbt=ocdbt)
            layers = [*raw_layers(files)]
            texts = [name for name in files if name.endswith(("_METADATA", ".zarray", "zarr.json"))]
            layers += [Layer(name, files[name], whole, "json") for name in texts]
            yield Seed("orbax", f"{driver}, {ocdbt}", files, ".", layers)


_MAKERS: Mapping[str, Callable[[], Iterator[Seed]]] = {
    "tf": tf_seeds,
    "tar.gz": _tar_gz,
    "torch-zip": _torch_zip,
    "torch-module": _torch_module,
    "torch-legacy": _torch_legacy,
    "torch-tar": _torch_tar,
    "safetensors": _safetensors,
    "sharded": _sharded,
    "npz": _npz,
    "keras": keras_seeds,
    "paddle": _paddle,
    "flax": _flax,
    "onnx": _onnx,
    "gguf": _gguf,
    "tf1": tf1_seeds,
    **({"orbax": _orbax} if importlib.util.find_spec("tensorstore") else {}),
    "graphdef": graphdef_seeds,
    **DISTRIBUTED,
    **OTHERS,
}
BY_HAND = ("orbax",)
"""Formats for a long run alone: tensorstore calls its files by chance, so no two processes have the same."""
FORMATS = tuple(name for name in _MAKERS if name not in BY_HAND)


@functools.cache
def seeds(format: str) -> tuple[Seed, ...]:
    """Every seed of a format, the same in every process."""
    return tuple(_MAKERS[format]())
