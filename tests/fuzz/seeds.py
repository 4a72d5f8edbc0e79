"""Small good files of every format, to be damaged."""

from __future__ import annotations

import bz2
import functools
import gzip
import importlib.util
import io
import json
import lzma
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tests.fuzz.layers import (
    Layer,
    Seed,
    arrays,
    member_layers,
    raw_layers,
    stored_zip,
    tar,
    whole,
    written,
    zipped,
)
from tests.fuzz.tf_seeds import DATA, table_of_blocks, tf_items, tf_seeds
from tests.support import tf_files, torch_files


def _tar_gz() -> Iterator[Seed]:
    items, data = tf_items(arrays())
    members = {"m/model.index": table_of_blocks([tf_files.block(items)], 0), f"m/model{DATA[1:]}": data}

    def gz(raw: bytes) -> bytes:
        return gzip.compress(raw, 1, mtime=0)

    archive, first = tar(members), 3 * 512  # the first member's headers
    packed = gz(archive)
    inner = [
        Layer("m.tar.gz", archive, gz),
        Layer("m.tar.gz", archive[:first], lambda damaged: gz(damaged + archive[first:])),
    ]
    layers = [*raw_layers({"m.tar.gz": packed}), *inner]
    layers += member_layers("m.tar.gz", members, lambda changed: gz(tar(changed)))
    yield Seed("tar.gz", "gzip", {"m.tar.gz": packed}, "m.tar.gz", layers)
    others = {"m.tar": archive, "m.tar.bz2": bz2.compress(archive), "m.tar.xz": lzma.compress(archive)}
    for name, raw in others.items():
        yield Seed("tar.gz", name, {name: raw}, name, raw_layers({name: raw}))


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
    for name, pickled in _pickles().items():
        members = {
            "archive/data.pkl": pickled,
            "archive/byteorder": b"little",
            "archive/data/0": torch_files.STORAGE,
            "archive/version": b"3\n",
        }
        files = {"m.pth": stored_zip(members)}
        layers = [*raw_layers(files), *member_layers("m.pth", members, stored_zip)]
        layers.append(layers[1])  # the pickle, once more: most can go wrong there
        yield Seed("torch-zip", name, files, "m.pth", layers)
    held = {name: array for name, array in arrays().items() if array.dtype.name != "bool"}
    ours = written("torch", held, "m.pth")
    yield Seed("torch-zip", "written by ckptkit", ours, "m.pth", raw_layers(ours))


def _torch_legacy() -> Iterator[Seed]:
    for name, pickled in _pickles().items():
        files = {"m.pth": torch_files.legacy(pickled)}
        layers = [*raw_layers(files), Layer("m.pth", pickled, torch_files.legacy)]
        yield Seed("torch-legacy", name, files, "m.pth", layers)


def _torch_tar() -> Iterator[Seed]:
    members = torch_files.tar_members()
    files = {"m.pth": tar(members)}
    layers = [*raw_layers(files), *member_layers("m.pth", members, tar)]
    yield Seed("torch-tar", "by hand", files, "m.pth", layers)


# -- safetensors ---------------------------------------------------------------------------------------------


def _safetensors() -> Iterator[Seed]:
    files = written("safetensors", arrays(), "m.safetensors")
    raw = files["m.safetensors"]
    start = 8 + int.from_bytes(raw[:8], "little")

    def wrap(damaged: bytes) -> bytes:
        return len(damaged).to_bytes(8, "little") + damaged + raw[start:]

    layers = [*raw_layers(files), Layer("m.safetensors", raw[8:start].rstrip(), wrap)]
    layers.append(Layer("m.safetensors", raw[:start], lambda damaged: damaged + raw[start:]))
    yield Seed("safetensors", "one file", files, "m.safetensors", [*layers, layers[1]])


def _sharded() -> Iterator[Seed]:
    files = written("safetensors", arrays(), "m.safetensors", max_shard_size=100)
    index = "m.safetensors.index.json"
    layers = [*raw_layers(files), *[Layer(index, files[index], whole)] * 3]
    for opened in (index, "."):
        yield Seed("sharded", f"opened by {opened}", files, opened, layers)
    yield from _sharded_elsewhere()


def _sharded_elsewhere() -> Iterator[Seed]:
    """The same of PyTorch, and of Keras, whose index names groups."""
    first, second = (torch_files.whole(torch_files.table(**{name: torch_files.TENSOR})) for name in "ab")
    files = {f"m-{number}.bin": stored_zip({"a/data.pkl": pickled, "a/data/0": torch_files.STORAGE})
             for number, pickled in enumerate((first, second))}  # fmt: skip
    files["m.bin.index.json"] = json.dumps({"weight_map": {"a": "m-0.bin", "b": "m-1.bin"}}).encode()
    yield Seed("sharded", "PyTorch", files, "m.bin.index.json", raw_layers(files))
    homes = {f"/layers/d{number}/vars": [f"w_0000{number}.weights.h5"] for number in range(2)}
    files = {}
    for group, (file,) in homes.items():
        held = {f"{group[1:]}/0": np.arange(3, dtype="float32")}
        files[file] = written("keras", held, file)[file]
    files["w.weights.json"] = json.dumps({"weight_map": homes}).encode()
    yield Seed("sharded", "Keras", files, "w.weights.json", raw_layers(files))


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
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):

        def pack(changed: Mapping[str, bytes], method: int = method) -> bytes:
            return zipped(changed, method, b'ckptkit:{"layout":"torch"}')

        files = {"m.npz": pack(members)}
        layers = [*raw_layers(files) * 4, *member_layers("m.npz", members, pack)]
        yield Seed("npz", f"method {method}", files, "m.npz", layers)


def _keras() -> Iterator[Seed]:
    held = {
        f"layers/{name.replace('/', '_')}/vars/{number}": array
        for number, (name, array) in enumerate(arrays().items())
        if array.dtype.name != "bool"
    }
    files = written("keras", held, "m.weights.h5")
    yield Seed("keras", "written by ckptkit", files, "m.weights.h5", raw_layers(files))
    (raw,) = files.values()
    members = {"metadata.json": b'{"keras_version": "3.5.0"}', "config.json": b"{}", "model.weights.h5": raw}
    packed = {"m.keras": stored_zip(members)}
    layers = [*raw_layers(packed), *member_layers("m.keras", members, stored_zip)]
    yield Seed("keras", "model", packed, "m.keras", layers)
    if importlib.util.find_spec("h5py") is not None:
        for track in (False, True):
            other = {"m.weights.h5": _by_h5py(track)}
            yield Seed("keras", f"h5py, track={track}", other, "m.weights.h5", raw_layers(other))
        for fixed in (False, True):
            old = {"m.h5": _by_keras_2(fixed)}
            yield Seed("keras", f"Keras 2, fixed={fixed}", old, "m.h5", raw_layers(old))


def _by_h5py(track: bool) -> bytes:
    """Groups, attributes, links, contiguous, chunked and compressed datasets as libhdf5 writes them."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w", track_order=track) as root:
        root.attrs["note"] = "a text"
        root["tied"] = h5py.SoftLink("/layers/dense_0/vars/0")
        many = root.create_group("many/vars", track_order=track)
        for number in range(12):
            many[str(number)] = np.float32(number)
            many.attrs[f"a{number}"] = "x" * number**3
        for number in range(3):
            variables = root.create_group(f"layers/dense_{number}/vars")
            variables.attrs["name"] = f"dense_{number}"
            variables.create_dataset("0", data=np.arange(12, dtype="float32").reshape(3, 4))
            variables.create_dataset(
                "1", data=np.arange(64, dtype="float32"), chunks=(16,), compression="gzip"
            )
            variables.create_dataset("2", data=np.float64(3), track_times=False)
    return file.getvalue()


def _by_keras_2(fixed: bool) -> bytes:
    """A whole model with its lists in either spelling, the long one in parts."""
    import h5py

    from tests.support.hdf5_files import legacy_weights

    layers = {
        layer: {
            f"{layer}/kernel:0": np.arange(12, dtype="float32").reshape(3, 4),
            f"{layer}/bias:0": np.ones(4),
        }
        for layer in ("b/conv", "a", "top_level_model_weights")
    }
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        root.attrs["model_config"] = "{}"
        legacy_weights(root.create_group("model_weights"), layers, fixed=fixed, split=2 * fixed)
        root["optimizer_weights/iter:0"] = np.int64(1)
    return file.getvalue()


_MAKERS: Mapping[str, Callable[[], Iterator[Seed]]] = {
    "tf": tf_seeds,
    "tar.gz": _tar_gz,
    "torch-zip": _torch_zip,
    "torch-legacy": _torch_legacy,
    "torch-tar": _torch_tar,
    "safetensors": _safetensors,
    "sharded": _sharded,
    "npz": _npz,
    "keras": _keras,
}
FORMATS = tuple(_MAKERS)


@functools.cache
def seeds(format: str) -> tuple[Seed, ...]:
    """Every seed of a format, the same in every process."""
    return tuple(_MAKERS[format]())
