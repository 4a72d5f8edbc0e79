"""PyTorch files of every container, read without torch."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import pickle
import re
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.formats.base import bytes_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.torch_reader import TorchReader
from tests.support.damage import mutations, read_all, survives
from tests.support.torch_files import (
    STORAGE,
    TENSOR,
    call,
    hostile,
    legacy,
    number,
    numbers,
    storage,
    table,
    tar_members,
    tensor,
    text,
    whole,
    write_tar,
    write_zip,
)
from tests.support.torch_files import (
    name as global_name,
)
from tests.support.torch_files import (
    name as named,
)


def unpacked(archive: Path, folder: Path) -> Path:
    """What ``unzip`` makes of an archive."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder / opened.namelist()[0].partition("/")[0]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def same(torch: Any, ours: np.ndarray[Any, Any], theirs: Any) -> bool:
    """Bit for bit, shape and element type."""
    flat = torch.empty(theirs.numel(), dtype=theirs.dtype).copy_(theirs.detach().reshape(-1))
    raw = flat.view(torch.uint8).numpy().tobytes()
    name = str(theirs.dtype).removeprefix("torch.")
    return ours.dtype.name == name and ours.shape == tuple(theirs.shape) and ours.tobytes() == raw


def tensors_of_every_kind(torch: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    base = torch.randn(4, 6)
    made = {
        "float32": base.clone(),
        "transposed": base.clone().t(),
        "strided": torch.randn(10, 12)[1::2, 2::3],
        "expanded": torch.randn(1, 5).expand(7, 5),
        "shared whole": base,
        "shared part": base[1:3],
        "shared column": base[:, 2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "empty in the middle": torch.zeros(2, 0, 3),
        "one with odd strides": torch.randn(8, 1)[3:4].as_strided((1, 1), (977, 331)),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "bool": torch.tensor([True, False, True]),
        "complex64": torch.randn(3, dtype=torch.complex64),
        "complex128": torch.randn(3, dtype=torch.complex128),
    }
    for name in ("float16", "bfloat16", "float64"):
        made[name] = torch.randn(3, 5).to(getattr(torch, name))
    for name in ("int8", "int16", "int32", "int64", "uint8"):
        made[name] = torch.randint(0, 100, (2, 7)).to(getattr(torch, name))
    return made


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_kind_of_tensor(torch: Any, tmp_path: Path, zipped: bool) -> None:
    made = tensors_of_every_kind(torch)
    if zipped:
        for name in ("uint16", "uint32", "uint64"):
            made[name] = torch.randint(0, 100, (2, 7)).to(getattr(torch, name))
        for name in ("float8_e4m3fn", "float8_e5m2"):
            made[name] = torch.randn(3, 5).to(getattr(torch, name))
    path = tmp_path / "m.pth"
    torch.save(collections.OrderedDict(made), path, _use_new_zipfile_serialization=zipped)
    with TorchReader(path) as reader:
        assert list(reader.specs) == list(made)
        for name, expected in made.items():
            assert same(torch, reader.read(name), expected), name
            assert reader.specs[name].shape == tuple(expected.shape)
            assert not reader.read(name).flags.writeable
            assert reader.check(name) is zipped
            reader.release(name)
            assert same(torch, reader.read(name), expected), name
        assert reader.notes == []
        assert reader.state_dicts == ("",)


def test_contiguous_tensors_are_views_of_the_file(torch: Any, tmp_path: Path) -> None:
    torch.save({"w": torch.randn(100, 100), "t": torch.randn(100, 100).t()}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        for name in reader.specs:
            assert reader.read(name).base is not None
            assert not reader.read(name).flags.owndata


def test_shared_storage_is_stored_and_read_once(torch: Any, tmp_path: Path) -> None:
    weight = torch.randn(50, 20)
    torch.save({"embed": weight, "head": weight}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert np.shares_memory(reader.read("embed"), reader.read("head"))


def test_data_parallel_prefix_is_left_out(torch: Any, tmp_path: Path) -> None:
    model = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert list(reader.specs) == list(model.module.state_dict())
        assert any("module." in note for note in reader.notes)


def test_prefix_stays_where_not_every_name_has_it(torch: Any, tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "m.pth")
    assert list(TorchReader(tmp_path / "m.pth").specs) == ["module.a", "b"]


@pytest.mark.parametrize("counter", ["n_averaged", "steps"])
def test_averaged_models_count_beside_their_prefix(torch: Any, tmp_path: Path, counter: str) -> None:
    torch.save({counter: torch.tensor(3), "module.a": torch.ones(1)}, tmp_path / "m.pth")
    assert list(TorchReader(tmp_path / "m.pth").specs) == [counter, "a"]
    assert list(TorchReader(tmp_path / "m.pth", as_saved=True).specs) == [counter, "module.a"]
    torch.save({counter: torch.tensor(3), f"module.{counter}": torch.ones(1)}, tmp_path / "m.pth")
    assert list(TorchReader(tmp_path / "m.pth").specs) == [counter, f"module.{counter}"]


def test_a_state_dict_with_its_metadata(torch: Any, tmp_path: Path) -> None:
    """``state_dict()`` gives an OrderedDict with an attribute, ``_metadata``, that pickles as BUILD."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        expected = model.state_dict()
        assert list(reader.specs) == list(expected)
        assert all(same(torch, reader.read(name), expected[name]) for name in expected)
        assert reader.specs["1.num_batches_tracked"].shape == ()


NESTS = {
    "state_dict": (["state_dict"], "state_dict"),
    "model": (["model"], "model"),
    "module": (["module"], "module"),
    "raw and ema": (["state_dict_ema", "state_dict"], "state_dict"),
    "model and ema": (["model_ema", "model"], "model"),
    "an unknown place": (["params"], "params"),
}


@pytest.mark.parametrize("case", NESTS)
def test_finds_the_state_dict(torch: Any, tmp_path: Path, case: str) -> None:
    keys, chosen = NESTS[case]
    held = {key: {"w": torch.full((2,), float(number))} for number, key in enumerate(keys)}
    torch.save(
        {"epoch": 7, **held, "optimizer": {"state": {0: {"m": torch.ones(2)}}, "lr": 0.1}}, tmp_path / "m.pth"
    )
    with TorchReader(tmp_path / "m.pth") as reader:
        assert set(reader.state_dicts) == set(keys)
        assert reader.state_dicts[0] == reader.state_dict == chosen
        assert reader.read("w")[0] == keys.index(chosen)
        assert reader.extras["epoch"] == "7"
    for place, key in enumerate(keys):
        with TorchReader(tmp_path / "m.pth", state_dict=key) as reader:
            assert reader.read("w")[0] == place


def test_a_wrong_choice_lists_the_right_ones(torch: Any, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"w": torch.ones(1)}, "state_dict_ema": {"w": torch.ones(1)}}, tmp_path / "m.pth"
    )
    with pytest.raises(NotFoundError, match="no state dict 'ema', it has 'state_dict', 'state_dict_ema'"):
        TorchReader(tmp_path / "m.pth", state_dict="ema")


def test_several_unknown_tables_are_not_guessed_between(torch: Any, tmp_path: Path) -> None:
    torch.save({"generator": {"w": torch.ones(1)}, "critic": {"w": torch.ones(1)}}, tmp_path / "m.pth")
    with pytest.raises(FormatError, match="generator, critic"):
        TorchReader(tmp_path / "m.pth")
    assert TorchReader(tmp_path / "m.pth", state_dict="critic").state_dict == "critic"


def test_what_is_no_tensor_is_noted_and_skipped(torch: Any, tmp_path: Path) -> None:
    torch.save(
        {"w": torch.ones(1), "step": 3, "cfg": argparse.Namespace(a=1), 5: torch.zeros(1)}, tmp_path / "m.pth"
    )
    with TorchReader(tmp_path / "m.pth") as reader:
        assert list(reader.specs) == ["w", "5"]
        assert [note.split(" is ")[0] for note in reader.notes] == ["step", "cfg"]
        assert reader.also == {"step": "3", "cfg": "argparse.Namespace(a=1)"}
        assert reader.left_out == {}


UNSUPPORTED = {
    "a sparse tensor": lambda torch: torch.eye(3).to_sparse(),
    "a quantized tensor": lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "a lazy view (conj)": lambda torch: torch.randn(3, dtype=torch.complex64).conj(),
    "a meta tensor": lambda torch: torch.ones(3, device="meta"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_tensors_are_left_out_by_name(torch: Any, tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"ok": torch.ones(1), "odd.one": UNSUPPORTED[kind](torch)}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert list(reader.specs) == ["ok"]
        assert list(reader.left_out) == ["odd.one"]
        assert kind in reader.left_out["odd.one"]


OPAQUE_TYPES = ["float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "bits8", "bits16", "bits2x4"]


@pytest.mark.parametrize("kind", OPAQUE_TYPES)
def test_types_of_which_only_bytes_are_known(torch: Any, tmp_path: Path, kind: str) -> None:
    raw = torch.arange(48, dtype=torch.uint8).reshape(4, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = raw.view(getattr(torch, kind))
        torch.save({"odd": odd, "part": odd[1:3], "turned": odd.T}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.left_out == {}
        spec = reader.specs["odd"]
        packed = 2 if kind.endswith("_x2") else 1  # torch counts the bytes of packed pairs
        assert (spec.dtype.kind, spec.dtype.torch) == ("opaque", kind)
        assert spec.shape == (4, packed * odd.shape[1])
        for key, wanted in (("odd", odd), ("part", odd[1:3]), ("turned", odd.T)):
            carried = bytes_of(reader, key)
            assert carried.shape == reader.specs[key].shape
            assert bytes(carried.data) == bytes(wanted.contiguous().view(torch.uint8).reshape(-1).tolist())
            assert len(carried.data) == reader.specs[key].nbytes


@pytest.mark.parametrize(("size", "stored", "width"), [(4, 8, 2), (4, 4, 1), (4, 9, None), (0, 0, None)])
def test_a_type_that_only_torch_knows(tmp_path: Path, size: int, stored: int, width: int | None) -> None:
    """Its size shows where the tensor fills its storage; else the tensor is left out by name."""
    path = tmp_path / "m.pth"
    where = storage(kind="UntypedStorage", module="torch.storage", count=stored)
    made = global_name("torch._utils", "_rebuild_tensor_v3") + b"(" + where + number(0) + numbers(size)
    made += numbers(1) + b"\x89}" + global_name("torch", "float7_odd") + b"tR"
    with TorchReader(write_zip(path, whole(table(w=made)), storages={"0": bytes(range(stored))})) as reader:
        if width is None:
            assert reader.left_out == {"w": "elements of type float7_odd, which is not known here"}
        else:
            assert (reader.specs["w"].dtype.torch, reader.specs["w"].nbytes) == ("float7_odd", stored)
            assert bytes(bytes_of(reader, "w").data) == bytes(range(stored))


def test_tensors_with_attributes_and_subclasses(torch: Any, tmp_path: Path) -> None:
    marked = torch.ones(3)
    marked.note = "hello"
    torch.save({"marked": marked, "buffer": torch.nn.Buffer(torch.zeros(2))}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.read("marked").tolist() == [1, 1, 1]
        assert reader.read("buffer").tolist() == [0, 0]


# -- arrays, byte orders, and tensors inside of other things ------------------------------------------------

LONG = np.random.default_rng(7).integers(0, 256, 1_200_000, "uint8")
"""Longer than what is kept in memory, and half of it two bytes each where text stands for bytes."""

ARRAYS: dict[str, Any] = {
    "plain": np.arange(200, dtype="f4").reshape(10, 20),
    "turned": np.arange(6, dtype="f8").reshape(2, 3).T,
    "big-endian": np.arange(3, dtype=">i4"),
    "boolean": np.array([True, False]),
    "complex": np.array([1 + 2j], "c8"),
    "no axes": np.array(2.5),
    "empty": np.zeros((0, 3), "f4"),
    "long": LONG,
    "long and turned": LONG[:600_000].reshape(3, -1).T,
    "long and big-endian": LONG[:800_000].view(">u4"),
    "number": np.float32(1.5),
    "half": np.arange(4, dtype="f2"),
}


def saved(torch: Any, path: Path, how: str, protocol: int, held: Any) -> Path:
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(held, protocol))
    else:
        torch.save(held, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how == "zip")
    return path


@pytest.mark.parametrize("how", ["plain pickle", "zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_are_tensors(torch: Any, tmp_path: Path, how: str, protocol: int) -> None:
    path = saved(torch, tmp_path / "m.pth", how, protocol, {"model": ARRAYS, "__author__": "x"})
    with TorchReader(path) as reader:
        assert (list(reader.specs), dict(reader.left_out)) == (list(ARRAYS), {})
        assert dict(reader.also) == {"__author__": "x"}
        for name, array in ARRAYS.items():
            wanted = array.astype(array.dtype.newbyteorder("<"))
            found = reader.read(name)
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
            assert found.tobytes() == wanted.tobytes(), name
            assert not found.flags.writeable
            raw = reader.raw(name)
            assert raw is None or bytes(raw.data) == wanted.tobytes(), name
            assert reader.check(name) is False
            reader.release(name)
            del raw, found


def test_arrays_of_bfloat16(torch: Any, tmp_path: Path) -> None:
    array = np.arange(3).astype(ml_dtypes.bfloat16)
    with TorchReader(saved(torch, tmp_path / "m.pkl", "plain pickle", 2, {"w": array})) as reader:
        assert reader.specs["w"].dtype.name == "bfloat16"
        assert reader.read("w").tobytes() == array.tobytes()


def python_2(array: Any) -> bytes:
    """An array as Python 2 pickled it, which had one type for text and bytes."""
    kind = global_name("numpy", "dtype") + b"U\x02" + array.dtype.str[1:].encode() + b"K\x00K\x01\x87R"
    state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = array.tobytes()
    shape = numbers(*array.shape)
    return (
        call("numpy.core.multiarray", "_reconstruct", global_name("numpy", "ndarray"), b"K\x00\x85U\x01b")
        + b"(K\x01" + shape + kind + state + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )  # fmt: skip


def test_arrays_that_python_2_pickled(tmp_path: Path) -> None:
    """Whether their bytes happen to be text or not: detectron2's model zoo is full of them."""
    held = {
        "text": np.frombuffer(b"ab\0\0", "f4"),
        "no text": np.array([-1.5, 2], "f4"),
        "long": np.arange(60_000, dtype="f8"),
    }
    path = tmp_path / "m.pkl"
    path.write_bytes(whole(table(blobs=table(**{key: python_2(array) for key, array in held.items()}))))
    with TorchReader(path) as reader:
        assert {key: reader.read(key).tobytes() for key in reader.specs} == {
            key: array.tobytes() for key, array in held.items()
        }


def test_long_arrays_stay_in_the_file(torch: Any, tmp_path: Path) -> None:
    """A detector's pickle is hundreds of megabytes of arrays: opening it reads none of them."""
    held = {f"w{n}": np.full(1 << 20, n, "f4") for n in range(24)}
    path = saved(torch, tmp_path / "m.pkl", "plain pickle", 4, held)
    tracemalloc.start()
    with TorchReader(path) as reader:
        assert reader.read("w3").max() == 3
        del held
        assert not reader.read("w3").flags.owndata
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_what_cannot_be_read_is_left_out_by_name(torch: Any, tmp_path: Path) -> None:
    held = {
        "w": torch.ones(2),
        "texts": np.array(["a"]),
        "objects": np.array([None]),
        "masked": np.ma.array([1, 2], mask=[0, 1]),
        "long double": np.array([1], np.longdouble),
        "dates": np.array(["2020"], "M8[D]"),
        "packed": (torch.ones(1), None),
        "deep": {"a": [{"b": (torch.ones(1),)}]},
        "numbers": (1, 2.5),
        "_extra_state": None,
    }
    torch.save(held, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert list(reader.specs) == ["w"]
        assert reader.left_out == {
            "texts": "an array of texts [1]",
            "objects": "an array of Python objects [1]",
            "masked": "an array of class numpy.ma.MaskedArray",
            "long double": "an array of f16 [1]",
            "dates": "an array of M8 [1]",
            "packed": "tensors in (tensor of float32 [1], None)",
            "deep": "tensors in {a: [{b: list of 1 value}]}",
        }
        assert list(reader.also) == ["numbers", "_extra_state"]


def test_packed_parameters_of_a_quantized_layer(torch: Any, tmp_path: Path) -> None:
    """They are a tuple of a quantized tensor and a bias; the rest of the file is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.nn.quantized.dynamic.Linear(3, 3)
        torch.save(layer.state_dict(), tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert list(reader.specs) == ["scale", "zero_point"]
        assert list(reader.left_out) == ["_packed_params._packed_params"]
        assert "a quantized tensor" in reader.left_out["_packed_params._packed_params"]


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "int8", "bool", "complex64", "complex128"],
)
def test_archives_of_a_big_endian_machine(torch: Any, tmp_path: Path, dtype: str) -> None:
    """``torch.load`` swaps the bytes too, by the record that says so."""
    value = (torch.arange(12).reshape(3, 4) * 1.25).to(getattr(torch, dtype))
    torch.save({"w": value, "turned": value.t()}, tmp_path / "little.pth")
    with zipfile.ZipFile(tmp_path / "little.pth") as little, zipfile.ZipFile(tmp_path / "m.pth", "w") as big:
        for member in little.namelist():
            raw = little.read(member)
            if member.endswith("/byteorder"):
                raw = b"big"
            elif "/data/" in member:
                width = value.element_size() // (2 if value.is_complex() else 1)
                raw = np.frombuffer(raw, f"u{width}").byteswap().tobytes()
            big.writestr(member, raw)
    theirs = torch.load(tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        for name in ("w", "turned"):
            assert same(torch, reader.read(name), theirs[name])
            assert same(torch, reader.read(name), value if name == "w" else value.t())
            assert reader.raw(name) is None or value.element_size() == 1
            assert reader.check(name)


def test_tensors_of_other_devices(tmp_path: Path) -> None:
    """A TPU's tensors are saved as numpy arrays, or as tensors of the CPU."""
    array = python_2(np.array([1, 2], "f4"))
    rest = text("xla:0") + b"\x89"
    state = table(
        array=call(
            "torch._utils", "_rebuild_device_tensor_from_numpy", array, global_name("torch", "float32"), rest
        ),
        tensor=call(
            "torch._utils",
            "_rebuild_device_tensor_from_cpu_tensor",
            TENSOR,
            global_name("torch", "float32"),
            rest,
        ),
        other=call("torch._utils", "_rebuild_xla_tensor", array, global_name("torch", "bfloat16"), rest),
    )
    with TorchReader(write_zip(tmp_path / "m.pth", whole(state))) as reader:
        assert reader.read("array").tolist() == [1, 2]
        assert reader.read("tensor").tobytes() == STORAGE
        assert reader.left_out == {"other": "a tensor of a special device"}


# -- what is no state dict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"), [([1, 2], "only \\[1, 2\\]"), ({"epoch": 3}, "only {epoch: 3}"), (3, "only 3")]
)
def test_a_file_without_state_dict(torch: Any, tmp_path: Path, value: object, said: str) -> None:
    torch.save(value, tmp_path / "m.pth")
    with pytest.raises(FormatError, match=said):
        TorchReader(tmp_path / "m.pth")


def test_archives_without_checksums(torch: Any, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(100)}, tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.check("w") is False


def test_a_flipped_bit_is_found_by_check(torch: Any, tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.float32)
    torch.save({"a": torch.ones(50), "w": torch.from_numpy(values)}, tmp_path / "m.pth")
    raw = bytearray((tmp_path / "m.pth").read_bytes())
    raw[raw.index(values.tobytes()) + 17] ^= 4
    (tmp_path / "m.pth").write_bytes(raw)
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.check("a")
        with pytest.raises(FormatError, match="'w': CRC-32"):
            reader.check("w")


def test_unknown_names(tmp_path: Path) -> None:
    with TorchReader(write_zip(tmp_path / "m.pth", whole(table(w=TENSOR)))) as reader:
        for method in (reader.read, reader.check, reader.release):
            with pytest.raises(NotFoundError, match="no tensor 'x'"):
                method("x")
    with pytest.raises(NotFoundError):
        TorchReader(tmp_path / "missing.pth")


# -- the published tools' files ------------------------------------------------------------------------------

SHARED = {
    "moga_xtiny_openmixup.pth": ("openmixup", 0),
    "moga_xtiny_openmixup_published.pth": ("openmixup", 0),
    "moga_xtiny_openmixup_ema.pth": ("openmixup", 570),
    "moganet_xtiny_timm.pth.tar": ("timm", 0),
}


@pytest.mark.parametrize("file", SHARED)
def test_published_files(shared_folder: Path, file: str) -> None:
    layout, raw_buffers = SHARED[file]
    rows = json.loads((shared_folder / "facts" / "moganet_state_dicts.json").read_text())["moganet-xt"][
        "tensors"
    ]
    expected = {}
    for name, shape, dtype, _ in rows:
        openmixup = f"head.fc.{name[5:]}" if name.startswith("head.") else f"backbone.{name}"
        expected[openmixup if layout == "openmixup" else name] = (tuple(shape), dtype)
    with TorchReader(shared_folder / "checkpoints" / file) as reader:
        found = {n: (s.shape, s.dtype.name) for n, s in reader.specs.items() if not n.startswith("ema_")}
        assert found == expected
        assert len(reader.specs) - len(found) == raw_buffers
        assert sum(s.size for s in reader.specs.values() if s.dtype.is_float) > 2_900_000


def test_what_the_timm_file_says(shared_folder: Path) -> None:
    with TorchReader(shared_folder / "checkpoints" / "moganet_xtiny_timm.pth.tar") as reader:
        assert reader.state_dicts == ("state_dict", "state_dict_ema")
        assert reader.extras["arch"] == "moganet_xtiny"
        assert reader.extras["epoch"] == "299"
        assert reader.extras["args.model"] == "moganet_xtiny"
        assert reader.extras["args.img_size"] == "224"


@pytest.mark.parametrize("file", SHARED)
def test_published_files_read_as_torch_reads_them(torch: Any, shared_folder: Path, file: str) -> None:
    path = shared_folder / "checkpoints" / file
    theirs = torch.load(path, weights_only=False, map_location="cpu")  # made by this project's own people
    for key in TorchReader(path).state_dicts:
        with TorchReader(path, state_dict=key) as reader:
            assert set(reader.specs) == set(theirs[key])
            for name in reader.specs:
                assert same(torch, reader.read(name), theirs[key][name]), name


# -- hostile and damaged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("case", hostile(Path("x"), "x"))
def test_hostile_neighbours_of_a_state_dict(tmp_path: Path, case: str, form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pth"
    pickled = whole(table(state_dict=table(w=TENSOR), evil=hostile(canary, "ckptkit_trap")[case]))
    if form == "zip":
        write_zip(path, pickled)
    else:
        path.write_bytes(legacy(pickled))
    with contextlib.suppress(FormatError), TorchReader(path) as reader:
        assert reader.read("w").tolist() == [1.5, -2.0]
        assert "\x1b" not in "".join(reader.extras.values())
    assert not canary.exists()


BAD_TENSORS = {
    "longer than its storage": tensor(shape=(3,)),
    "offset behind the end": tensor(offset=1),
    "stride beyond the end": tensor(strides=(2,)),
    "negative size": tensor(shape=(-2,)),
    "negative stride": tensor(strides=(-1,)),
    "negative offset": tensor(offset=-1),
    "sizes and strides differ": tensor(shape=(1, 2)),
    "overflowing size": tensor(shape=(1 << 62, 4), strides=(1, 1)),
    "overflowing product": tensor(shape=(1 << 61, 1 << 61), strides=(0, 0)),
    "expansion bomb": tensor(shape=(1 << 40,), strides=(0,)),
    "too many axes": tensor(shape=(1,) * 40, strides=(1,) * 40),
    "storage declared too long": tensor(store=storage(count=3), shape=(3,)),
    "storage declared too short": tensor(store=storage(count=1)),
    "storage missing": tensor(store=storage(key="9")),
    "storage outside": tensor(store=storage(key="../data.pkl")),
    "storage of another width": tensor(store=storage(kind="DoubleStorage")),
    "no storage": tensor(store=text("0")),
    "size is text": b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage()
    + b"K\x00"
    + text("2")
    + b"K\x01\x85\x89}tR",
    "too few arguments": b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"tR",
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(tmp_path: Path, case: str) -> None:
    path = write_zip(tmp_path / "m.pth", whole(table(w=BAD_TENSORS[case])))
    with pytest.raises(FormatError, match=r"m\.pth") as caught:
        TorchReader(path)
    assert "\n" not in str(caught.value)


def test_a_storage_of_no_known_type_is_left_out(tmp_path: Path) -> None:
    made = table(w=tensor(store=storage(kind="Float4Storage")))
    with TorchReader(write_zip(tmp_path / "m.pth", whole(made))) as reader:
        assert reader.left_out == {"w": "elements of type Float4, which is not known here"}


def test_strange_but_right_tensors(tmp_path: Path) -> None:
    made = table(
        a=tensor(shape=(3, 2), strides=(0, 1)),
        b=tensor(shape=(1, 2), strides=(1 << 61, 1)),
        c=tensor(shape=(0,), strides=(1,), offset=2),
        d=tensor(shape=(), strides=(), offset=1),
    )
    with TorchReader(write_zip(tmp_path / "m.pth", whole(made))) as reader:
        assert reader.read("a").tolist() == [[1.5, -2.0]] * 3
        assert reader.read("b").tolist() == [[1.5, -2.0]]
        assert reader.read("c").tolist() == []
        assert reader.read("d").tolist() == -2.0


GOOD = whole(table(w=TENSOR))
BAD_ARCHIVES: dict[str, Any] = {
    "odd byte order": lambda path: write_zip(path, GOOD, records={"byteorder": b"middle" * 100}),
    "deflated": lambda path: write_zip(path, GOOD, compression=zipfile.ZIP_DEFLATED),
    "metadata is no JSON": lambda path: write_zip(path, GOOD, records={"ckptkit.json": b"{"}),
    "metadata is a list": lambda path: write_zip(path, GOOD, records={"ckptkit.json": b"[]"}),
    "metadata with numbers": lambda path: write_zip(path, GOOD, records={"ckptkit.json": b'{"a": 1}'}),
    "metadata nested deeply": lambda path: write_zip(path, GOOD, records={"ckptkit.json": b"[" * 100_000}),
    "no data.pkl": lambda path: write_zip(path, GOOD, root="a/b"),
    "empty pickle": lambda path: write_zip(path, b""),
    "plain pickle": lambda path: path.write_bytes(whole(table(w=text("x")))),
    "something else": lambda path: path.write_bytes(b"hello, world" * 100),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives(tmp_path: Path, case: str) -> None:
    BAD_ARCHIVES[case](tmp_path / "m.pth")
    with pytest.raises(FormatError, match=r"m\.pth"):
        TorchReader(tmp_path / "m.pth")


def test_two_archives_in_one(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pth", GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", GOOD)
    with pytest.raises(FormatError, match=r"2 data\.pkl"):
        TorchReader(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_every_truncation(tmp_path: Path, form: str) -> None:
    path = tmp_path / "m.pth"
    raw = write_zip(path, GOOD).read_bytes() if form == "zip" else legacy(GOOD)
    for stop in range(len(raw)):
        assert not survives(path, raw[:stop], TorchReader), stop
    assert survives(path, raw, TorchReader)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_mutations(tmp_path: Path, form: str) -> None:
    path = tmp_path / "m.pth"
    made = whole(table(state_dict=table(a=TENSOR, b=tensor(shape=(1,), offset=1)), epoch=text("3")))
    raw = write_zip(path, made).read_bytes() if form == "zip" else legacy(made)
    opened = sum(survives(path, damaged, TorchReader) for damaged in mutations(raw, 1500, seed=3))
    assert 0 < opened < 1500


def test_reader_closes_when_views_live(tmp_path: Path) -> None:
    reader = TorchReader(write_zip(tmp_path / "m.pth", GOOD))
    view = reader.read("w")
    reader.close()
    assert view.tobytes() == STORAGE


def test_a_reader_reads_everything(tmp_path: Path) -> None:
    read_all(TorchReader(write_zip(tmp_path / "m.pth", GOOD)))


@pytest.mark.parametrize(
    ("weights", "value", "opened"),
    [(None, 1.0, "raw"), ("raw", 1.0, "raw"), ("ema", 2.0, "ema"), ("auto", 2.0, "ema")],
)
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_the_copy_asked_for_is_opened(tmp_path, plain, weights, value, opened):
    torch = pytest.importorskip("torch")
    averages = f"{plain}_ema"
    path = tmp_path / "m.pth"
    torch.save({plain: {"w": torch.ones(1)}, averages: {"w": torch.full((1,), 2.0)}}, path)
    with TorchReader(path, weights=weights) as reader:
        assert (float(reader.read("w")[0]), reader.weights) == (value, opened)
        assert reader.also == {averages if opened == "raw" else plain: "another state dict"}
    with TorchReader(path, state_dict=averages, weights="raw") as reader:
        assert reader.weights == "ema", "a state dict asked for by name is the one"


@pytest.mark.parametrize("weights", [None, "auto", "ema", "raw"])
def test_a_file_with_one_copy_opens_whatever_is_asked(tmp_path, weights):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pth"
    torch.save({"state_dict": {"w": torch.ones(1)}, "arch": "m"}, path)
    with TorchReader(path, weights=weights) as reader:
        assert reader.weights is None
        assert list(reader.specs) == ["w"]


def test_raw_bytes_are_those_of_the_tensor_or_none_where_they_lie_in_another_order(tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "whole": whole,
        "rows": whole[1:3],
        "columns": whole[:, 1:3],
        "turned": whole.T,
        "spread": torch.ones(1).expand(5),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "unit": whole[:, :1].T,
        "bf16": whole.bfloat16(),
    }
    torch.save(state, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        raw = {name: reader.raw(name) for name in reader.specs}
        assert {name for name, found in raw.items() if found is None} == {
            "columns",
            "turned",
            "spread",
            "unit",
        }
        for name, found in raw.items():
            if found is not None:
                assert found.shape == reader.specs[name].shape
                assert bytes(found.data) == reader.read(name).tobytes(), name
        raw.clear()
        del found


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_that_share_memory_are_told(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    flat = torch.arange(24, dtype=torch.float32)
    tensors = {
        "a": flat[:6].reshape(2, 3),
        "b": flat[6:12],
        "a again": flat[:6].reshape(2, 3),
        "a turned": flat[:6].reshape(2, 3).T,
        "across": flat[10:14],
        "nothing": flat[:0],
        "nothing again": flat[:0],
        "elsewhere": flat[:6].reshape(2, 3).clone(),
    }
    torch.save(tensors, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.same == {"a again": "a"}
        assert sorted(reader.overlapping) == ["a again", "a turned", "across"]


# -- an archive that somebody unpacked -----------------------------------------------------------------------


def test_an_unpacked_archive_is_the_archive(torch: Any, tmp_path: Path) -> None:
    held = tensors_of_every_kind(torch)
    held["tied"] = held[next(iter(held))]
    torch.save({"state_dict": held, "epoch": 3}, tmp_path / "m.pth")
    folder = unpacked(tmp_path / "m.pth", tmp_path / "x")
    with open_reader(tmp_path / "m.pth") as archive:
        for opened in (folder, tmp_path / "x"):
            with open_reader(opened) as reader:
                assert reader.path == folder
                assert reader.specs == archive.specs
                assert reader.extras == archive.extras
                assert reader.same == archive.same
                assert reader.overlapping == archive.overlapping
                for name in reader.specs:
                    assert bytes_of(reader, name).data == bytes_of(archive, name).data
                    assert reader.check(name) is False
                    reader.release(name)


def test_a_big_endian_archive_unpacked(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pth", whole(table(w=TENSOR)), records={"byteorder": b"big"})
    with open_reader(unpacked(tmp_path / "m.pth", tmp_path)) as reader:
        assert reader.read("w").tolist() == np.frombuffer(STORAGE, ">f4").tolist()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a storage missing": (lambda f: (f / "data" / "0").unlink(), "needs storage '0', which is missing"),
    "a storage cut": (lambda f: (f / "data" / "0").write_bytes(STORAGE[:4]), "and has 4"),
    "a storage empty": (lambda f: (f / "data" / "0").write_bytes(b""), "and has 0"),
    "a link": (
        lambda f: ((f / "data" / "0").unlink(), (f / "data" / "0").symlink_to("/etc/passwd")),
        "is not a file of its own",
    ),
    "a folder": (lambda f: (f / "data" / "x").mkdir(), "is not a file of its own"),
    "no pickle": (lambda f: (f / "data.pkl").write_bytes(b""), "empty"),
    "a damaged pickle": (lambda f: (f / "data.pkl").write_bytes(b"\x80\x02}"), "bad pickle"),
    "another byte order": (lambda f: (f / "byteorder").write_bytes(b"middle"), "neither little nor big"),
    "a long byte order": (lambda f: (f / "byteorder").write_bytes(b"big" * 9), "more than 16 bytes"),
    "TorchScript": (lambda f: (f / "constants.pkl").write_bytes(b""), "is a TorchScript archive, unpacked"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders(tmp_path: Path, kind: str) -> None:
    damage, said = BAD_FOLDERS[kind]
    write_zip(tmp_path / "m.pth", whole(table(w=TENSOR)), records={"version": b"3\n"})
    folder = unpacked(tmp_path / "m.pth", tmp_path)
    damage(folder)
    with pytest.raises(FormatError) as caught:
        open_reader(folder)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)


# -- archives that torch would read in another way -----------------------------------------------------------


def test_checksums_of_an_archive_that_has_none(torch: Any, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.check("w") is False
        assert reader.read("w").tolist() == [1, 1, 1]


def test_one_checksum_of_zero_among_others_is_compared(torch: Any, tmp_path: Path) -> None:
    torch.save({"w": torch.arange(50.0)}, tmp_path / "m.pth")
    raw = bytearray((tmp_path / "m.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        (info,) = (one for one in archive.infolist() if one.filename.endswith("data/0"))
    for start in (m.start() for m in re.finditer(re.escape(info.CRC.to_bytes(4, "little")), bytes(raw))):
        raw[start : start + 4] = bytes(4)
    (tmp_path / "m.pth").write_bytes(raw)
    with TorchReader(tmp_path / "m.pth") as reader, pytest.raises(FormatError, match="CRC-32"):
        reader.read("w")


def test_records_that_are_one_to_torch(tmp_path: Path) -> None:
    """It looks for records without regard to letter case."""
    path = write_zip(tmp_path / "m.pth", whole(table(w=TENSOR)), records={"DATA/0": bytes(8)})
    with pytest.raises(FormatError, match="which ignores letter case"):
        TorchReader(path)


def test_a_first_entry_of_another_folder(tmp_path: Path) -> None:
    """Torch takes the folder of the first entry for that of all records."""
    path = write_zip(tmp_path / "m.pth", whole(table(w=TENSOR)))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "n.pth", "w") as new:
        new.writestr("other/version", "3\n")
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(FormatError, match="whose first entry is not in"):
        TorchReader(tmp_path / "n.pth")


def test_views_of_few_bytes_are_bounded_by_the_file(torch: Any, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 22)}, tmp_path / "m.pth")
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.read("w").strides == (0,)
    torch.save({"w": torch.zeros(1).expand(1 << 26)}, tmp_path / "m.pth")
    with pytest.raises(FormatError, match="share 4 bytes of data"):
        TorchReader(tmp_path / "m.pth")


STREAM = whole(table(w=TENSOR))


def open_raw(folder: Path, raw: bytes) -> TorchReader:
    (folder / "m.pth").write_bytes(raw)
    return TorchReader(folder / "m.pth")


def test_stream_by_hand(tmp_path: Path) -> None:
    with open_raw(tmp_path, legacy(STREAM)) as reader:
        assert reader.read("w").tolist() == [1.5, -2.0]
        assert reader.check("w") is False


def view(key: str, offset: int, count: int) -> bytes:
    """A persistent id that is a view of storage "0" (4 float32)."""
    parts = text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + number(4)
    return b"(" + parts + b"(" + text(key) + number(offset) + number(count) + b"ttQ"


def test_views_of_storages(tmp_path: Path) -> None:
    pickled = whole(
        table(a=tensor(store=view("v1", 1, 3), shape=(2,), offset=1), b=tensor(store=view("v2", 0, 2)))
    )
    with open_raw(tmp_path, legacy(pickled, {"0": (4, struct.pack("<4f", 10, 11, 12, 13))})) as reader:
        assert reader.read("a").tolist() == [12, 13]
        assert reader.read("b").tolist() == [10, 11]


BAD_STREAMS: dict[str, bytes] = {
    "big-endian": legacy(STREAM, little=False),
    "another protocol": legacy(STREAM).replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2), 1),
    "storage too long for the file": legacy(STREAM, {"0": (3, STORAGE)}),
    "storage of negative length": legacy(STREAM, {"0": (-1, STORAGE)}),
    "storage of absurd length": legacy(STREAM, {"0": (1 << 62, STORAGE)}),
    "storage shorter than declared": legacy(STREAM, {"0": (1, STORAGE[:4])}),
    "storage of another name": legacy(STREAM, {"1": (2, STORAGE)}),
    "storage that nobody uses": legacy(STREAM, {"0": (2, STORAGE), "1": (2, STORAGE)}),
    "view beyond its storage": legacy(whole(table(a=tensor(store=view("v", 3, 2)))), {"0": (4, STORAGE * 2)}),
    "malformed view": legacy(
        whole(table(a=tensor(store=view("v", 0, 2).replace(text("v") + number(0), text("v"))))),
        {"0": (4, STORAGE * 2)},
    ),
    "keys are no list": legacy(STREAM).replace(pickle.dumps(["0"], 2), pickle.dumps({"0": 1}, 2)),
    "system info is no table": legacy(STREAM)[:15] + pickle.dumps(1001, 2) + pickle.dumps(3, 2),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_bad_streams(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError, match=r"m\.pth"):
        open_raw(tmp_path, BAD_STREAMS[case])


def test_tar(tmp_path: Path) -> None:
    with TorchReader(write_tar(tmp_path / "m.pth", tar_members())) as reader:
        assert reader.read("w").tolist() == [[0, 3], [1, 4], [2, 5]]
        assert reader.read("v").tolist() == [3, 4]
        assert reader.format == "torch"


def test_tar_reads_as_torch_reads_it(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    path = write_tar(tmp_path / "m.pth", tar_members())
    theirs = torch.load(path, weights_only=False)  # three lines above we wrote it
    with TorchReader(path) as reader:
        assert {n: reader.read(n).tolist() for n in reader.specs} == {
            n: t.tolist() for n, t in theirs.items()
        }


@pytest.mark.parametrize("missing", ["pickle", "storages", "tensors"])
def test_tar_without_a_member(tmp_path: Path, missing: str) -> None:
    members = tar_members()
    del members[missing]
    with pytest.raises(FormatError, match=f"a tar without {missing}"):
        TorchReader(write_tar(tmp_path / "m.pth", members))


@pytest.mark.parametrize("between", [0, 700, 2 << 20])
def test_tars_behind_each_other_are_read_whole(tmp_path: Path, between: int) -> None:
    members = tar_members()
    first = write_tar(
        tmp_path / "a", {name: members.pop(name) for name in ("sys_info", "storages")}
    ).read_bytes()
    second = write_tar(tmp_path / "b", members).read_bytes()
    path = tmp_path / "m.pth"
    path.write_bytes(first + bytes(between // 512 * 512) + second)
    with TorchReader(path) as reader:
        assert reader.read("w").tolist() == [[0, 3], [1, 4], [2, 5]]
    for garbage in (b"x", b"garbage" * 200):
        path.write_bytes(write_tar(tmp_path / "c", tar_members()).read_bytes() + garbage)
        with pytest.raises(FormatError, match="what follows the end mark is not a tar archive"):
            TorchReader(path)


def changed(member: str, old: bytes, new: bytes) -> dict[str, bytes]:
    members = tar_members()
    assert members[member].count(old) >= 1
    return {**members, member: members[member].replace(old, new)}


BAD_TARS = {
    "storage too long": changed("storages", struct.pack("<q", 6), struct.pack("<q", 7000)),
    "storage of unknown type": changed("storages", b"FloatStorage", b"Evil_Storage"),
    "view beyond its storage": changed(
        "storages", number(51) + number(50) + number(2), number(51) + number(50) + number(9)
    ),
    "view of nothing": changed("storages", number(51) + number(50), number(51) + number(99)),
    "too many storages": changed("storages", pickle.dumps(1, 2), pickle.dumps(2_000_000, 2)),
    "more storages than there are": changed("storages", pickle.dumps(1, 2), pickle.dumps(3, 2)),
    "tensor of many axes": changed("tensors", struct.pack("<i4x2q", 2, 2, 3)[:4], struct.pack("<i", 99)),
    "tensor of negative size": changed("tensors", struct.pack("<2q", 2, 3), struct.pack("<2q", 2, -3)),
    "tensor beyond its storage": changed("tensors", struct.pack("<2q", 2, 3), struct.pack("<2q", 2, 300)),
    "tensor without storage": changed("tensors", number(70) + number(50), number(70) + number(70)),
    "more tensors than there are": changed("tensors", pickle.dumps(2, 2), pickle.dumps(5, 2)),
    "unknown tensor": changed("pickle", text("70"), text("88")),
    "key is no number": changed("pickle", text("70"), text("7x")),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_bad_tars(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError, match=r"m\.pth"):
        TorchReader(write_tar(tmp_path / "m.pth", BAD_TARS[case]))


def test_tar_mutations(tmp_path: Path) -> None:
    raw = write_tar(tmp_path / "m.pth", tar_members()).read_bytes()
    opened = sum(
        survives(tmp_path / "m.pth", damaged, TorchReader) for damaged in mutations(raw, 1500, seed=4)
    )
    assert 0 < opened < 1500


BEHIND = {
    "legacy": legacy(STREAM) + b"x",
    "two legacy files": legacy(STREAM) * 2,
    "plain pickle": pickle.dumps({"w": 1}) + b"x",
}


@pytest.mark.parametrize("case", BEHIND)
def test_bytes_behind_the_end_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="after its end belong to nothing"):
        open_raw(tmp_path, BEHIND[case])


def test_keys_of_the_memo_that_collide_are_refused(tmp_path: Path) -> None:
    colliding = b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(1, 9))
    with pytest.raises(FormatError, match="memo index out of range"):
        open_raw(tmp_path, legacy(whole(b"N" + colliding)))


def test_a_state_dict_under_endless_keys_is_refused(tmp_path: Path) -> None:
    long = text("k" * 600)
    with pytest.raises(FormatError, match="under keys of more than 1000 characters"):
        open_raw(tmp_path, legacy(whole(b"}" + long + b"}" + long + table(w=TENSOR) + b"ss")))
