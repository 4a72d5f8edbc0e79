"""Every element type of every format's own specification, carried into every format.

Each is there with the same bytes, or the conversion is refused and names it, or it is no tensor (texts) and
listed as such: never skipped. One file a format holds them all, so a refusal has to name every one of them.
"""

from __future__ import annotations

import re
import warnings

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import ConversionError
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.base import bytes_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS, FORMATS
from tests.support.hdf5_files import h5py, keras_file
from tests.support.tensors import raw_safetensors
from tests.support.tf_files import entry, header, masked, write_raw

ALL = frozenset(FORMATS)
BFLOAT16 = ALL - {"npz", "keras2"}
TORCH_TOO = frozenset({"safetensors", "torch", "dcp"})
ML = TORCH_TOO | {"tf"}
NO_C128 = ALL - {"safetensors"}
SAME = {name: frozenset({name}) for name in FORMATS}
REFUSED: frozenset[str] = frozenset()
ONLY_LISTED = None

# name of the type -> where its elements can go. A tensor has twelve elements, of bytes that all differ.
SAFETENSORS = {
    **dict.fromkeys(
        ["BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "F64", "I64", "U64", "C64"], ALL
    ),
    "BF16": BFLOAT16,
    **dict.fromkeys(["F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], ML),
    **dict.fromkeys(["F8_E8M0", "F4"], TORCH_TOO),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2", "Q7_X"], SAME["safetensors"]),
}
"""Those of the safetensors library 0.8, and one that nobody has heard of."""

TF = {
    **dict.fromkeys([1, 2, 3, 4, 5, 6, 8, 9, 10, 17, 19, 22, 23], ALL),
    14: BFLOAT16,  # bfloat16
    18: NO_C128,  # complex128
    **dict.fromkeys([24, 25, 26, 28], ML),  # float8
    # quantized, float8_e4m3b11fnuz, int4, uint4, int2, uint2, float4, and a number of the future
    **dict.fromkeys([11, 12, 13, 15, 16, 27, 29, 30, 31, 32, 33, 77], SAME["tf"]),
    **dict.fromkeys([7, 20, 21], ONLY_LISTED),  # string, resource, variant
}
"""Numbers of tensorflow/core/framework/types.proto."""

TORCH = {
    **dict.fromkeys(["bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"], ALL),
    **dict.fromkeys(["float16", "float32", "float64", "complex64"], ALL),
    "complex128": NO_C128,
    "bfloat16": BFLOAT16,
    **dict.fromkeys(["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"], ML),
    **dict.fromkeys(["float8_e8m0fnu", "float4_e2m1fn_x2"], TORCH_TOO),
    **dict.fromkeys(
        ["complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"], frozenset({"torch", "dcp"})
    ),
}
"""Element types of torch 2.13, less those that it cannot save and those of quantized tensors."""

NUMPY = {
    **dict.fromkeys("?bBhHiIlLqQefdF", ALL),
    "D": NO_C128,
    **dict.fromkeys(["g", "G", "M8[s]", "m8[us]", "M8", "V2", "V5", "i4,f8", "(2,)f4,V3"], SAME["npz"]),
    **dict.fromkeys([">f4", ">i2", ">c8"], ALL),
    **dict.fromkeys(["O", "O,f4"], REFUSED),
    **dict.fromkeys(["U3", "S3"], ONLY_LISTED),
}
"""numpy's type characters, and types made of them."""

HDF5 = {
    **dict.fromkeys(
        [
            "bool",
            "int8",
            "uint16",
            "int32",
            ">i4",
            "uint64",
            "float16",
            "float32",
            ">f8",
            "complex64",
            "enum",
        ],
        ALL,
    ),
    "complex128": NO_C128,
    "bfloat16": BFLOAT16,
    **dict.fromkeys(
        ["float128", "time", "bits", "opaque", "datetime", "record", "array", "odd_integer"], REFUSED
    ),
    **dict.fromkeys(["reference", "region", "list"], REFUSED),
    **dict.fromkeys(["text", "fixed_text", "empty"], ONLY_LISTED),
}
"""The twelve classes of HDF5's datatype message."""


def name_of(kind):
    """A name that every container takes, and Keras too."""
    return "t_" + re.sub(r"\W", lambda found: f"_{ord(found[0]):x}", str(kind)) + "/vars/0"


def raw(count):
    return bytes(1 + number % 251 for number in range(count))


def write_safetensors(path, kinds):
    bits = {"BOOL": 8, "F4": 4, "Q7_X": 7 * 8}
    held = {}
    for kind in kinds:
        width = bits.get(kind) or int(re.match(r"[A-Z]+(\d+)", kind)[1])
        held[kind] = b"\1\0" * 6 if kind == "BOOL" else raw(12 * width // 8)
    raw_safetensors(path, {name_of(kind): (kind, [3, 4], one) for kind, one in held.items()})
    return {name_of(kind): one for kind, one in held.items()}


TF_SIZES = {
    2: 8,
    1: 4,
    3: 4,
    5: 2,
    8: 8,
    9: 8,
    13: 4,
    14: 2,
    15: 2,
    16: 2,
    17: 2,
    18: 16,
    19: 2,
    22: 4,
    23: 8,
}


def write_tf(path, kinds):
    entries, held, data = [(b"", header())], {}, b""
    for kind in kinds:
        one = b"\1\0" * 6 if kind == 10 else raw(12 * TF_SIZES.get(kind, 1))
        name = name_of(kind)
        place = {"offset": len(data), "size": len(one), "crc": masked(one)}
        entries.append((name.encode(), entry(kind, (3, 4), **place)))
        held[name], data = one, data + one
    write_raw(path, [sorted(entries)], data)
    return held


def write_dcp(path, kinds):
    from torch.distributed.checkpoint import save

    return write_torch(path, kinds, lambda made, path: save(made, checkpoint_id=path, no_dist=True))


def write_torch(path, kinds, save=None):
    torch = pytest.importorskip("torch")
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex32 is experimental
        for kind in kinds:
            dtype = getattr(torch, kind)
            flat = (
                torch.tensor([0, 1] * 12, dtype=torch.uint8) if kind == "bool" else torch.arange(192).byte()
            )
            made[name_of(kind)] = flat[: 12 * dtype.itemsize].view(dtype).reshape(3, 4)
        (save or torch.save)(made, path)
        return {name: bytes(one.view(torch.uint8).reshape(-1).tolist()) for name, one in made.items()}


def write_npz(path, kinds):
    made, held = {}, {}
    for kind in kinds:
        dtype = np.dtype(kind)
        one = np.zeros((3, 4), dtype)
        if not dtype.hasobject:
            bits = raw(one.nbytes) if dtype.kind != "b" else b"\1\0" * 6
            one = np.frombuffer(bits, dtype).reshape(3, 4)
        made[name_of(kind)] = one
        little = one if dtype.names or dtype.kind == "V" else one.astype(dtype.newbyteorder("<"))
        held[name_of(kind)] = little.tobytes()
    np.savez(path, **made)
    return held


def write_hdf5(path, kinds):
    """The low-level interface: h5py makes no datasets of some types."""
    odd = h5py.h5t.STD_I32LE.copy()
    odd.set_precision(24)
    special = {
        "enum": h5py.h5t.py_create(h5py.enum_dtype({"A": 0, "B": 5}, basetype="i2")),
        "bfloat16": h5py.h5t.py_create(np.dtype(ml_dtypes.bfloat16)),
        "time": h5py.h5t.UNIX_D32LE,
        "bits": h5py.h5t.STD_B16LE,
        "opaque": h5py.h5t.py_create(np.dtype("V2")),
        "datetime": h5py.h5t.py_create(h5py.opaque_dtype(np.dtype("M8[D]")), logical=True),
        "record": h5py.h5t.py_create(np.dtype("i4,f8"), logical=True),
        "array": h5py.h5t.py_create(np.dtype(("f4", (2,)))),
        "odd_integer": odd,
        "reference": h5py.h5t.py_create(h5py.ref_dtype, logical=True),
        "region": h5py.h5t.py_create(h5py.regionref_dtype, logical=True),
        "list": h5py.h5t.py_create(h5py.vlen_dtype(np.dtype("f4")), logical=True),
        "text": h5py.h5t.py_create(h5py.string_dtype(), logical=True),
        "fixed_text": h5py.h5t.py_create(np.dtype("S3")),
    }
    held = {}

    def more(file):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        for kind in kinds:
            name = name_of(kind)
            file.require_group(name.removesuffix("/0"))
            if kind == "empty":
                file[name] = h5py.Empty("f4")
                continue
            stored = special.get(kind) or h5py.h5t.py_create(np.dtype(kind), logical=True)
            space = h5py.h5s.create_simple((3, 4))
            dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), stored, space, plist))
            if kind == "bfloat16":
                dataset.attrs["dtype"] = "bfloat16"
            held[name] = bytes(12 * stored.get_size())
            if kind not in special:
                dataset[...] = np.arange(12).reshape(3, 4).astype(kind)
                held[name] = dataset[...].astype(np.dtype(kind).newbyteorder("<")).tobytes()

    keras_file(path, more)
    with h5py.File(path) as file:
        held["dense/vars/0"] = file["dense/vars/0"][()].tobytes()
    return held


def write_keras2(path, kinds):
    """The same datasets where Keras 2 has them, as its lists of layers and weights say."""
    held = write_hdf5(path, kinds)
    with h5py.File(path, "r+") as file:
        layers = sorted(file)
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            file.move(f"{layer}/vars/0", f"{layer}/{layer}/vars/0:0")
            file[layer].attrs["weight_names"] = [f"{layer}/vars/0:0".encode()]
            del file[f"{layer}/vars"]
    return held


WRITERS = {
    "safetensors": (write_safetensors, SAFETENSORS),
    "tf": (write_tf, TF),
    "torch": (write_torch, TORCH),
    "npz": (write_npz, NUMPY),
    "keras": (write_hdf5, HDF5),
    "keras2": (write_keras2, HDF5),
    "dcp": (write_dcp, {kind: homes for kind, homes in TORCH.items() if "bits" not in kind}),  # cannot save
}


def carried(source, target, to):
    with open_reader(source) as reader:
        decided = plan(reader, Options(to, layout="as-is"))
        execute(decided, reader, Target(to), target)
    return decided


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_element_type_is_carried_or_refused_by_name(tmp_path, format, to):
    write, table = WRITERS[format]
    able = [kind for kind, homes in table.items() if homes is ONLY_LISTED or to in homes]
    unable = {name_of(kind) for kind in table if kind not in able}
    source, target = tmp_path / f"a{EXTENSIONS[format]}", tmp_path / f"b{EXTENSIONS[to]}"
    if unable:
        write(source, table)
        with pytest.raises(ConversionError) as caught:
            carried(source, target, to)
        assert set(re.findall(r"'(t_\w+/vars/0)'", str(caught.value))) == unable
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("b")] == []
    wanted = write(source, able)
    decided = carried(source, target, to)
    listed = {name_of(kind) for kind in able if table[kind] is ONLY_LISTED}
    assert set(decided.also) == listed
    with open_reader(target) as reader:
        assert set(reader.specs) == wanted.keys() - listed
        for name, spec in reader.specs.items():
            assert bytes(bytes_of(reader, name).data) == wanted[name], name
            assert spec.nbytes == len(wanted[name])


def test_the_tables_are_whole(tmp_path):
    """What the libraries themselves say that there is; of TensorFlow, see its own tests."""
    safetensors = pytest.importorskip("safetensors")
    head = b'{"w": {"dtype": "?", "shape": [], "data_offsets": [0, 0]}}'
    (tmp_path / "x").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.safe_open(tmp_path / "x", "numpy")
    codes = set(re.findall("`([A-Z][A-Z0-9_]+)`", str(caught.value)))
    assert codes | {"Q7_X"} == set(SAFETENSORS)
    torch = pytest.importorskip("torch")
    theirs = {str(one).removeprefix("torch.") for one in vars(torch).values() if isinstance(one, torch.dtype)}
    bits = {f"{sign}int{width}" for sign in ("", "u") for width in range(1, 8)}
    quantized = {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}
    assert theirs - bits - quantized == set(TORCH)
    for name in bits:
        with pytest.raises(KeyError):
            torch.save(torch.zeros(1, dtype=torch.uint8).view(getattr(torch, name)), tmp_path / "x.pth")
    assert set(np.typecodes["All"]) - set("SUVMm") - set("pPnN") <= set(NUMPY)  # pointers are integers
