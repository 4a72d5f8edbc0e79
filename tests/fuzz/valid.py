"""Random valid files, as the real libraries write them; `tests.fuzz.differential` reads them again.

Values are random bits, so that no NaN is like another. Each maker takes a `Draw` and fills a folder.
"""

from __future__ import annotations

import importlib.util
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ckptkit.base.tensors import DTYPES, dtype_of
from tests.fuzz.hdf5_seeds import without_times
from tests.fuzz.layers import written

NAMES = ("weight", "bias", "running_mean", "a b", "größe", "重み", "x" * 90, "0", "q.k.v", "UPPER", "e\u0301")
NUMPY_TYPES = ("<f4", "<f8", "<f2", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "?", "<c8", "<c16")


class Draw(random.Random):
    """What a file is made of, drawn from a seed."""

    def shape(self, most: int = 4) -> tuple[int, ...]:
        """Axes of a small array; often none, now and then an empty one."""
        return tuple(self.choice((1, 2, 3, 3, 4, 5, 7, 16, 0)) for _ in range(self.randint(0, most)))

    def array(self, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Any:
        """An array of random bits (of bools: of random truth)."""
        dtype = np.dtype(self.choice(NUMPY_TYPES) if dtype is None else dtype)
        shape = self.shape() if shape is None else shape
        count = int(np.prod(shape, dtype=int))
        raw = self.randbytes(count * dtype.itemsize)
        if dtype.kind == "b":
            raw = bytes(byte & 1 for byte in raw)
        return np.frombuffer(raw, dtype).reshape(shape)

    def names(self, most: int = 8) -> list[str]:
        """Names of a table, no two alike."""
        made = (f"{self.choice(('', 'block.', 'net/', 'module.'))}{self.choice(NAMES)}" for _ in range(99))
        return list(dict.fromkeys(made))[: self.randint(1, most)]

    def often(self, chance: float) -> bool:
        """Whether something happens that has this chance."""
        return self.random() < chance


# -- numpy ---------------------------------------------------------------------------------------------------


def npz(draw: Draw, folder: Path) -> str:
    """``np.savez`` and ``savez_compressed``; big-endian, Fortran order, every version of the header."""
    held: dict[str, Any] = {}
    for name in draw.names():
        dtype = np.dtype(
            draw.choice((*NUMPY_TYPES, "<g", "<M8[s]", "<U5", "S3", [("a", "<f4"), ("b", "u1")]))
        )
        array = draw.array("u1", (*(shape := draw.shape()), dtype.itemsize)) if dtype.kind in "US" else None
        if array is None:
            array = draw.array(dtype)
        else:
            array = np.full(shape, "aé" if dtype.kind == "U" else b"ab", dtype)
        if draw.often(0.2):
            array = array.astype(array.dtype.newbyteorder(">"))
        if draw.often(0.2):
            array = np.asfortranarray(array)
        held[name] = array
    path = folder / "m.npz"
    kind = draw.choice(("plain", "plain", "compressed", "versions"))
    if kind == "versions":
        with zipfile.ZipFile(path, "w", draw.choice((0, 8))) as archive:
            for name, array in held.items():
                with archive.open(f"{name}.npy", "w", force_zip64=draw.often(0.5)) as member:
                    np.lib.format.write_array(member, array, draw.choice(((1, 0), (2, 0), (3, 0))))
    else:
        (np.savez_compressed if kind == "compressed" else np.savez)(path, **held)
    return "m.npz"


# -- PyTorch -------------------------------------------------------------------------------------------------

TORCH_TYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16",
    "uint32", "uint64", "bool", "complex64", "complex128", "complex32", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
_NEW = ("uint16", "uint32", "uint64", "complex32")
LEGACY_TYPES = tuple(name for name in TORCH_TYPES if name not in _NEW and not name.startswith("float8"))
"""Of others torch writes legacy files that it cannot read."""


def _tensor(draw: Draw, types: Sequence[str] = TORCH_TYPES) -> Any:
    import torch

    dtype = getattr(torch, draw.choice(types) if draw.often(0.6) else "float32")
    raw = draw.array("?" if dtype == torch.bool else "u1", (draw.randint(0, 60) * dtype.itemsize,))
    flat = torch.from_numpy(raw.copy()).view(dtype) if raw.size else torch.empty(0, dtype=dtype)
    size = flat.numel()
    shape = draw.choice([(size,), (1, size), (size // 2, 2), (2, size // 2), (size // 6, 2, 3), (size, 1, 1)])
    tensor = flat[: int(np.prod(shape))].reshape(shape)
    if draw.often(0.3) and tensor.ndim:
        tensor = tensor.transpose(0, -1)
    if draw.often(0.2) and tensor.ndim and tensor.shape[0] > 2:
        tensor = tensor[1 :: draw.choice((1, 2))]
    if draw.often(0.1) and tensor.numel():
        tensor = tensor.reshape(-1)[0]
    if draw.often(0.1) and tensor.ndim and tensor.numel():
        tensor = tensor[:1].expand(3, *tensor.shape[1:])
    return tensor


def _odd_tensor(draw: Draw) -> Any:
    """A tensor of a kind that most state dicts do not have."""
    import torch

    plain = torch.randn(3, 4, generator=torch.Generator().manual_seed(draw.randint(0, 99)))
    makers: Sequence[Callable[[], Any]] = (
        lambda: torch.nn.Parameter(plain),
        lambda: torch.nn.Parameter(plain, requires_grad=False),
        lambda: plain.clone().requires_grad_(True),
        lambda: torch.nn.Buffer(plain),
        lambda: torch.complex(plain, plain).conj(),
        lambda: torch.complex(plain, plain).conj().imag,
        plain.to_sparse,
        lambda: torch.quantize_per_tensor(plain, 0.1, 2, torch.qint8),
        lambda: torch.empty(2, 3, device="meta"),
        lambda: torch.tensor(draw.choice((7, 2.5, True, 1j))),
        plain.numpy,
    )
    return draw.choice(makers)()


def _state_dict(draw: Draw, types: Sequence[str]) -> dict[Any, Any]:
    import torch

    table: dict[Any, Any] = draw.choice((dict, OrderedDict))()
    for name in draw.names(10):
        table[name] = _odd_tensor(draw) if draw.often(0.06) else _tensor(draw, types)
    if not any(isinstance(one, torch.Tensor) for one in table.values()):
        table["weight"] = _tensor(draw, types)  # a table of numpy's arrays alone is none of torch's
    tensors = list(table.values())
    if draw.often(0.4):
        table["tied"] = draw.choice(tensors)
    if draw.often(0.2):
        shared = torch.arange(24, dtype=torch.float32)
        table.update(first=shared[:12].view(3, 4), second=shared[6:18], third=shared.view(4, 6).t())
    if draw.often(0.2):
        table["_extra_state"] = draw.choice((None, 3, "text", {"a": 1}))
    if draw.often(0.3) and isinstance(table, OrderedDict):
        table._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return table


def _training_state(draw: Draw, types: Sequence[str] = TORCH_TYPES) -> Any:
    """What a training script saves: the weights at the top, or beside other things, once or twice."""
    weights = _state_dict(draw, types)
    kind = draw.choice(("flat", "flat", "flat", "wrapped", "averaged", "nested", "module"))
    if kind == "flat":
        if draw.often(0.05):
            return draw.choice(([*weights.values()], next(iter(weights.values())), {}))
        if draw.often(0.05):
            return {
                draw.choice((number, (name, number))): one
                for number, (name, one) in enumerate(weights.items())
            }
        return {"model": [weights]} if draw.often(0.05) else weights
    beside = {"epoch": draw.randint(0, 300), "arch": "moganet", "args": {"lr": 1e-3, "betas": (0.9, 0.999)},
              "best": float("nan"), "losses": [1.5, None, True, -(2**70)]}  # fmt: skip
    if kind == "wrapped":
        optimizer = {
            "state": {0: {"exp_avg": _tensor(draw, types)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        }
        return {**beside, draw.choice(("state_dict", "model")): weights, "optimizer": optimizer}
    if kind == "averaged":
        return {
            "state_dict": weights,
            "state_dict_ema": {key: _tensor(draw, types) for key in weights},
            **beside,
        }
    if kind == "nested":
        return {"generator": weights, "student": {"model": _state_dict(draw, types)}, **beside}
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 2))
    return {
        "model": module.state_dict(),
        "module": torch.nn.ParameterDict({"a": torch.zeros(2)}).state_dict(),
    }


def torch_zip(draw: Draw, folder: Path) -> str:
    """``torch.save``."""
    import torch

    torch.manual_seed(draw.randint(0, 1 << 30))
    torch.serialization.set_crc32_options(draw.often(0.8))
    torch.save(_training_state(draw), folder / "m.pth", pickle_protocol=draw.choice((2, 2, 3, 4, 5)))
    torch.serialization.set_crc32_options(True)
    return "m.pth"


def torch_legacy(draw: Draw, folder: Path) -> str:
    """``torch.save`` as it was before 1.6."""
    import torch

    torch.manual_seed(draw.randint(0, 1 << 30))
    state = _training_state(draw, LEGACY_TYPES)
    protocol = draw.choice((2, 2, 3, 4, 5))
    torch.save(state, folder / "m.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return "m.pth"


# -- safetensors ---------------------------------------------------------------------------------------------

SAFETENSORS_TYPES = (
    *(name for name in TORCH_TYPES if name not in ("complex128", "complex32")),
    "float4_e2m1fn_x2",
)


def safetensors(draw: Draw, folder: Path) -> str:
    """Every type that the library can write, names of any kind, metadata."""
    from safetensors import TensorSpec as Spec
    from safetensors import serialize

    kept, table = [], {}
    names = [
        *draw.names(),
        *draw.sample(("__weird__", "", "a\n", '"', "\\", "\u2028", "../x"), draw.randint(0, 2)),
    ]
    for name in names:
        dtype, shape = draw.choice(SAFETENSORS_TYPES), draw.shape()
        size = 1 if dtype == "float4_e2m1fn_x2" else np.dtype(_by_name(dtype)).itemsize
        raw = draw.array("?" if dtype == "bool" else "u1", (int(np.prod(shape, dtype=int)) * size,)).copy()
        if dtype == "float4_e2m1fn_x2" and not shape:
            continue
        kept.append(raw)
        table[name] = Spec(dtype=dtype, shape=list(shape), data_ptr=raw.ctypes.data, data_len=raw.nbytes)
    metadata = draw.choice((None, {}, {"format": "pt"}, {"größe": "重み\n\u2028", "a" * 99: ""}))
    (folder / "m.safetensors").write_bytes(serialize(table, metadata))
    return "m.safetensors"


def _by_name(name: str) -> Any:
    import ml_dtypes

    return getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name


# -- HDF5 ----------------------------------------------------------------------------------------------------


def h5py(draw: Draw, folder: Path) -> str:
    """Groups, links and datasets of every layout and filter, in the oldest form and the newest."""
    import h5py

    rare = draw.often(0.15)  # what ckptkit refuses by name is in few files: the others are to be compared
    version = draw.choice((None, ("v110", "v110"), "latest") if rare else (None, None, ("earliest", "v108")))
    block = 512 * (rare and draw.often(0.2))
    order = draw.often(0.3)
    file = folder / "m.weights.h5"
    with h5py.File(file, "w", libver=version, userblock_size=block, track_order=order) as root:
        groups = [f"layers/dense_{n}/vars" for n in range(draw.choice((1, 2, 3, 12)))]
        for path in groups:
            group = root.create_group(path, track_order=draw.often(0.3))
            if draw.often(0.5):
                group.attrs["name"] = "dense"
            for number in range(draw.choice((1, 2, 3, 3, 20)) if path == groups[0] else 2):
                _dataset(draw, group, str(number), rare=rare)
        first = root[groups[0]]
        if draw.often(0.2):
            root["tied/vars/0"] = first["0"]
        if draw.often(0.2):
            root["soft"] = h5py.SoftLink(f"/{groups[-1]}")
        if draw.often(0.1):
            root["dangling"] = h5py.SoftLink("/nowhere")
        if rare and draw.often(0.2):
            root["outside"] = h5py.ExternalLink("other.h5", "/x")
        for number in range(draw.choice((0, 0, 1, 12))):
            first.attrs[f"a{number}"] = draw.choice(("text", 3, np.arange(number + 1), "x" * 3000))
        if draw.often(0.1):
            root.create_group("empty")
        if draw.often(0.1):
            _odd_dataset(draw, root, first, rare=rare)
    file.write_bytes(without_times(file.read_bytes()))
    return file.name


def _odd_dataset(draw: Draw, root: Any, group: Any, *, rare: bool) -> None:
    """One that is no table of plain numbers, or whose numbers are elsewhere."""
    import h5py

    def virtual() -> None:
        layout = h5py.VirtualLayout((3,), "<f4")
        layout[:1] = h5py.VirtualSource(".", f"{group.name}/0", (3,))[:1]
        group.create_virtual_dataset("odd", layout)

    def named() -> None:
        root["type"] = np.dtype("<f4")
        group.create_dataset("odd", data=np.arange(3.0), dtype=root["type"])

    makers: list[Callable[[], Any]] = [
        lambda: group.create_dataset("odd", data=draw.array([("a", "<f4"), ("b", ">i2")])),
        lambda: group.create_dataset("odd", data=draw.array("V7")),
        lambda: group.create_dataset("odd", (2,), h5py.vlen_dtype("f4")),
        lambda: group.create_dataset("odd", data=draw.array("i1"), dtype=h5py.enum_dtype({"A": 0}, "i1")),
        lambda: group.create_dataset("odd", data=[group.ref], dtype=h5py.ref_dtype),
        lambda: group.create_dataset("odd", data=draw.array("<c8")),
    ]
    if rare:
        makers += [virtual, named, lambda: group.create_dataset("odd", (3,), "f4", external=[("raw", 0, 12)])]
    draw.choice(makers)()


def _dataset(draw: Draw, group: Any, name: str, *, rare: bool) -> None:
    """One dataset: compact, contiguous or in chunks; some resized, partly written, or of another kind."""
    import h5py

    dtype = np.dtype(draw.choice((*NUMPY_TYPES[:11], "<f4", "<f4")))
    if draw.often(0.2):
        dtype = dtype.newbyteorder(">")
    array = draw.array(dtype)
    if name != "0" and draw.often(0.04):
        group.create_dataset(
            name, data=draw.choice(("text", [b"a", b"bc"], h5py.Empty("f4"), draw.array("?")))
        )
        return
    options: dict[str, Any] = {}
    if array.size and array.ndim and draw.often(0.6):
        options["chunks"] = tuple(draw.randint(1, size) for size in array.shape)
        if draw.often(0.5):
            options["compression"] = "lzf" if rare and draw.often(0.2) else "gzip"
        options |= draw.choice(({}, {"shuffle": True}))
        options |= draw.choice(({}, {}, {"fletcher32": True}))
        if rare and draw.often(0.2) and dtype.kind in "iu":
            options = {"chunks": options["chunks"], "scaleoffset": 0}
            array = array % array.dtype.type(50)  # of random bits libhdf5 cannot read what it wrote
        if draw.often(0.3):
            options["maxshape"] = tuple(draw.choice((None, size + 3)) for size in array.shape)
    if draw.often(0.2):
        options["fillvalue"] = array.dtype.type(draw.randint(0, 100))
    how = draw.choice(("whole", "whole", "whole", "part", "resized", "compact"))
    if how == "part" and array.ndim:
        made = group.create_dataset(name, array.shape, array.dtype, **options)
        made[: array.shape[0] // 2] = array[: array.shape[0] // 2]
    elif how == "resized" and "maxshape" in options:
        made = group.create_dataset(name, data=array, **options)
        made.resize(tuple(max(1, size + draw.choice((-1, 0, 2))) for size in array.shape))
    elif how == "compact" and not options and array.nbytes < 60_000:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        plist.set_obj_track_times(False)
        space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
        kind = h5py.h5t.py_create(array.dtype, logical=True)
        made = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist))
        made[...] = array
    else:
        group.create_dataset(name, data=array, **options)


# -- Keras ---------------------------------------------------------------------------------------------------


def keras(draw: Draw, folder: Path) -> str:
    """``model.save`` and ``save_weights`` of small models."""
    import keras

    keras.utils.set_random_seed(draw.randint(0, 1 << 30))
    keras.backend.clear_session()
    layers = keras.layers
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.LayerNormalization()], name="inner")
    wanted = [
        layers.Dense(4, use_bias=draw.often(0.5)),
        layers.Dense(6, name="größe" if draw.often(0.2) else None),
    ]
    if draw.often(0.5):
        wanted += [inner, layers.Dropout(0.1)]
    if draw.often(0.5):
        wanted.append(layers.BatchNormalization())
    dtype = draw.choice((None, None, "float64", "float16"))
    model = keras.Sequential([keras.Input((draw.randint(1, 5),)), *wanted])
    if dtype is not None:
        model.add(layers.Dense(2, dtype=dtype))
    name = draw.choice(("m.weights.h5", "m.keras"))
    if name == "m.keras":
        if draw.often(0.3):
            model.compile("adam", "mse")
        model.save(folder / name)
    else:
        model.save_weights(folder / name)
    return name


# -- TensorFlow ----------------------------------------------------------------------------------------------

TF_TYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16",
    "uint32", "uint64", "bool", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn", "int4", "uint4",
)  # fmt: skip


def _tf_array(draw: Draw) -> Any:
    name = draw.choice(TF_TYPES) if draw.often(0.6) else "float32"
    dtype = np.dtype(_by_name(name))
    if name in ("int4", "uint4"):
        return (draw.array("u1") % 8).astype(dtype)
    return draw.array("?", None) if name == "bool" else draw.array(dtype)


def _tf_names(draw: Draw, most: int = 12) -> list[str]:
    stems = (
        "net/block_1/kernel",
        "net/block_1/kernel/ExponentialMovingAverage",
        "bias",
        "größe",
        "a b",
        "x" * 200,
    )
    return [f"{draw.choice(stems)}_{number}" for number in range(draw.randint(1, most))]


def tf_object(draw: Draw, folder: Path) -> str:
    """``tf.train.Checkpoint`` of modules, lists and tables of variables."""
    import tensorflow as tf

    def variable() -> Any:
        name = draw.choice(("kernel", "bias", "w", "net/kernel"))
        return tf.Variable(
            tf.constant(draw.array(draw.choice(("<f4", "<f4", "<f8", "<i4", "<i8")))), name=name
        )

    def tree(depth: int) -> Any:
        kind = draw.choice(("variable", "list", "table", "module")) if depth else "variable"
        if kind == "variable":
            return variable()
        inner = [tree(depth - 1) for _ in range(draw.randint(1, 4))]
        if kind == "list":
            return inner
        if kind == "table":
            return {f"{draw.choice(('layer', 'a/b', 'ü', 'e.f'))}{n}": one for n, one in enumerate(inner)}
        module = tf.Module(name="m")
        for number, one in enumerate(inner):
            setattr(module, f"part{number}", one)
        return module

    held = {f"root{number}": tree(draw.randint(0, 3)) for number in range(draw.randint(1, 4))}
    if draw.often(0.3):
        held["shared"] = held["root0"]
    checkpoint = tf.train.Checkpoint(**held)
    if draw.often(0.5):
        checkpoint.write(str(folder / "m"))
        return "m"
    checkpoint.save(str(folder / "m"))
    return draw.choice(("m-1", "."))


def tf_raw(draw: Draw, folder: Path) -> str:
    """``SaveV2`` of arrays by name, in one shard or merged from several."""
    import tensorflow as tf

    held = {name: _tf_array(draw) for name in _tf_names(draw, 30)}
    tensors = {name: tf.constant(array) for name, array in held.items()}
    if draw.often(0.2):
        tensors["texts"] = tf.constant(["a", "ü" * 300, ""])
    _save(tensors, folder / "m", draw.choice((1, 1, 2, 3)))
    return draw.choice(("m", "m.index", "."))


def _save(
    tensors: Mapping[str, Any], prefix: Path, parts: int, slices: Mapping[str, str] | None = None
) -> None:
    import tensorflow as tf

    names = list(tensors)
    prefixes = [f"{prefix}_part{number}" if parts > 1 else str(prefix) for number in range(parts)]
    used = []
    for number, part in enumerate(prefixes):
        own = names[number::parts]
        if own:
            ways = [(slices or {}).get(name, "") for name in own]
            plain = [name.partition("\0")[0] for name in own]
            tf.raw_ops.SaveV2(
                prefix=part,
                tensor_names=plain,
                shape_and_slices=ways,
                tensors=[tensors[name] for name in own],
            )
            used.append(part)
    if parts > 1:
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=used, destination_prefix=str(prefix), delete_old_dirs=False
        )


def tf_sliced(draw: Draw, folder: Path) -> str:
    """Variables in parts along one axis or two, whose parts are in one shard or several."""
    import tensorflow as tf

    tensors: dict[str, Any] = {}
    slices: dict[str, str] = {}
    for name in _tf_names(draw, 5):
        shape = (draw.randint(2, 9), *draw.choice(((), (3,), (2, 2), (8, 2))))
        whole = draw.array(draw.choice(("<f4", "<f4", "<f8", "<i8", "?")), shape)
        axis = draw.randrange(len(shape))
        cuts = sorted({0, shape[axis], *(draw.randint(1, shape[axis]) for _ in range(draw.randint(0, 3)))})
        for number, (start, stop) in enumerate(pairwise(cuts)):
            box = [slice(None)] * len(shape)
            box[axis] = slice(start, stop)
            extents = ["-"] * len(shape)
            extents[axis] = f"{start},{stop - start}" if len(cuts) > 2 or draw.often(0.5) else "-"
            key = f"{name}\0{number}"
            tensors[key] = tf.constant(whole[tuple(box)].copy())
            slices[key] = f"{' '.join(map(str, shape))} {':'.join(extents)}"
    if draw.often(0.5):
        tensors["plain"] = tf.constant(draw.array("<f4"))
    _save(tensors, folder / "m", draw.choice((1, 1, 2)), slices)
    return "m"


def tf_v1(draw: Draw, folder: Path) -> str:
    """``tf.compat.v1.train.Saver``, in either of its formats; variables whole or partitioned."""
    import tensorflow as tf

    v1 = tf.compat.v1
    version = draw.choice((v1.train.SaverDef.V2,) * 7 + (v1.train.SaverDef.V1,))
    with tf.Graph().as_default():
        for name in ("net/kernel", "net/bias", "emb", "step")[: draw.randint(1, 4)]:
            array = draw.array(draw.choice(("<f4", "<i8", "<f4")), (draw.randint(1, 6), draw.randint(1, 3)))
            parts = v1.fixed_size_partitioner(draw.randint(1, 3)) if draw.often(0.4) else None
            start = (
                array.tolist()
                if array.dtype.kind == "i"
                else np.nan_to_num(array, posinf=1, neginf=1).tolist()
            )

            def values(shape: Any, dtype: Any = None, partition_info: Any = None, start: Any = start) -> Any:
                whole = tf.constant(start, dtype)
                if partition_info is None:
                    return whole
                return tf.slice(whole, partition_info.var_offset, shape)

            v1.get_variable(
                name, array.shape, array.dtype, values, partitioner=parts, use_resource=draw.often(0.5)
            )
        saver = v1.train.Saver(write_version=version, sharded=draw.often(0.2))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            saver.save(
                session, str(folder / "m.ckpt"), global_step=draw.choice((None, 3)), write_meta_graph=False
            )
    return "."


# -- ckptkit's own writers -----------------------------------------------------------------------------------


def ours(format: str, file: str) -> Callable[[Draw, Path], str]:
    """A maker of what ckptkit writes of random arrays."""

    def make(draw: Draw, folder: Path) -> str:
        kinds = {"npz": NUMPY_TYPES, "keras": NUMPY_TYPES[:11], "tf": TF_TYPES[:-2]}.get(format, ())
        held: dict[str, Any] = {}
        for number, name in enumerate(draw.names()):
            dtype = np.dtype(_by_name(draw.choice(kinds or tuple(DTYPES_BOTH))))
            key = f"layers/d{number}/vars/0" if format == "keras" else name
            held[key] = draw.array("?" if dtype.kind == "b" else dtype)
        options = (
            {"max_shard_size": draw.randint(20, 500)} if format == "safetensors" and draw.often(0.3) else {}
        )
        for name, raw in written(format, held, file, **options).items():
            (folder / name).write_bytes(raw)
        expected = {key: (dtype_of(one).name, one.shape, one.tobytes()) for key, one in held.items()}
        (folder / EXPECTED).write_bytes(pickle.dumps(expected))
        return file

    return make


EXPECTED = "expected.pickle"
"""Beside what ckptkit wrote: what it was given, by name."""
DTYPES_BOTH = [
    name for name, dtype in DTYPES.items() if dtype.safetensors and dtype.torch and dtype.kind != "opaque"
]

MAKERS: Mapping[str, tuple[str, Callable[[Draw, Path], str]]] = {
    "npz": ("numpy", npz),
    "torch-zip": ("torch", torch_zip),
    "torch-legacy": ("torch", torch_legacy),
    "safetensors": ("safetensors", safetensors),
    "h5py": ("h5py", h5py),
    "keras": ("keras", keras),
    "tf-object": ("tensorflow", tf_object),
    "tf-raw": ("tensorflow", tf_raw),
    "tf-sliced": ("tensorflow", tf_sliced),
    "tf-v1": ("tensorflow", tf_v1),
    "to-npz": ("numpy", ours("npz", "m.npz")),
    "to-torch": ("torch", ours("torch", "m.pth")),
    "to-safetensors": ("safetensors", ours("safetensors", "m.safetensors")),
    "to-keras": ("h5py", ours("keras", "m.weights.h5")),
    "to-tf": ("tensorflow", ours("tf", "m")),
}
"""Of each kind of file: which package writes or reads it, and what makes one."""


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
