"""What the real libraries write, carried into every container, read by the real libraries there.

What each library writes and reads alone has its tests beside each format (test_tf_bundle_with_tensorflow.py,
test_torch_zip.py, test_torch_writer.py, test_safetensors.py, test_npz.py, test_keras.py).
"""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import RawTensor
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.names import EXTENSIONS
from tests.support.carrying import carry
from tests.support.comparing import compare_files, inspect_file
from tests.support.damage import no_maps
from tests.support.tensors import same_bits, specs_of, write_all

Arrays = dict[str, Any]


def tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def values(shape: tuple[int, ...], dtype: Any = "float32", seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# -- what writes ---------------------------------------------------------------------------------------------


def tf_partitioned_over_shards(folder: Path) -> tuple[Path, Arrays]:
    """A TF1 saver with ``sharded=True``: one data file per device, parts of one variable in several."""
    tf = tensorflow()
    v1 = tf.compat.v1
    whole, plain = values((9, 4), seed=1), values((3, 3, 2, 5), seed=2)
    with tf.Graph().as_default(), v1.Session(config=v1.ConfigProto(device_count={"CPU": 3})) as session:
        for number in range(3):
            with tf.device(f"/cpu:{number}"):
                part = whole[3 * number : 3 * number + 3]
                info = v1.Variable.SaveSliceInfo("scope/parted", [9, 4], [3 * number, 0], [3, 4])
                variable = v1.Variable(part, name=f"part{number}", use_resource=False)
                variable._set_save_slice_info(info)
        with tf.device("/cpu:1"):
            v1.get_variable("kernel", initializer=plain, use_resource=True)
        session.run(v1.global_variables_initializer())
        v1.train.Saver(sharded=True).save(session, str(folder / "m"), write_meta_graph=False)
    assert len(list(folder.glob("m.data-*"))) == 3
    return folder / "m", {"scope/parted": whole, "kernel": plain}


def tf_checkpoint(folder: Path) -> tuple[Path, Arrays]:
    """tf.train.Checkpoint with bfloat16, float16, a bool and an empty variable."""
    tf = tensorflow()
    held = {
        "dense/kernel": values((4, 5)),
        "half": values((3,), "float16"),
        "brain": values((2, 6), ml_dtypes.bfloat16),
        "flag": np.array(True),
        "none": np.zeros((0, 4), "float32"),
    }
    module = tf.Module()
    module.held = [tf.Variable(array, name=name) for name, array in held.items()]
    tf.train.Checkpoint(model=module).save(str(folder / "ckpt"))
    return folder, {**held, "save_counter": np.array(1, "int64")}


def tf_checkpoint_in_shards(folder: Path) -> tuple[Path, Arrays]:
    """tf.train.Checkpoint that cuts its variables at a largest shard size."""
    tf = tensorflow()
    sharding = getattr(tf.train.experimental, "MaxShardSizePolicy", None)
    if sharding is None:
        pytest.skip("this TensorFlow writes one shard")
    held = {"big": values((64, 16), seed=4), "small": values((5,), seed=5)}
    module = tf.Module()
    module.held = [tf.Variable(array, name=name) for name, array in held.items()]
    options = tf.train.CheckpointOptions(experimental_sharding_callback=sharding(max_shard_size=2000))
    tf.train.Checkpoint(model=module).write(str(folder / "m"), options=options)
    assert len(list(folder.glob("m.data-*"))) > 1
    return folder / "m", held


def tf_saved_model(folder: Path) -> tuple[Path, Arrays]:
    """A SavedModel with a function and a bfloat16 variable."""
    tf = tensorflow()

    class Model(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.kernel = tf.Variable(values((4, 5)), name="dense/kernel")
            self.brain = tf.Variable(values((3,), ml_dtypes.bfloat16), name="brain")

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return x @ self.kernel

    model = Model()
    tf.saved_model.save(model, str(folder / "saved"))
    return folder / "saved", {"dense/kernel": model.kernel.numpy(), "brain": model.brain.numpy()}


def _torch_tensors(torch: Any) -> tuple[dict[str, Any], Arrays]:
    """Shared storages, views without order, bfloat16; and the same as arrays."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    brain = torch.linspace(-3, 3, 10).to(torch.bfloat16)
    held = {
        "embed": base,
        "head": base,
        "part": base[1:3, ::2],
        "turned": base.t(),
        "spread": torch.ones(1, 3).expand(4, 3),
        "channels": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "brain": brain,
        "brain part": brain[3:7],
        "half": torch.randn(3, 2).half(),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }
    wanted = {}
    for name, tensor in held.items():
        flat = tensor.contiguous()
        wanted[name] = (
            flat.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if flat.dtype == torch.bfloat16
            else flat.numpy()
        )
    return held, wanted


def torch_zip(folder: Path) -> tuple[Path, Arrays]:
    torch = pytest.importorskip("torch")
    held, wanted = _torch_tensors(torch)
    torch.save({"state_dict": held, "epoch": 3}, folder / "m.pth")
    return folder / "m.pth", wanted


def torch_legacy(folder: Path) -> tuple[Path, Arrays]:
    torch = pytest.importorskip("torch")
    held, wanted = _torch_tensors(torch)
    torch.save({"state_dict": held}, folder / "m.pth", _use_new_zipfile_serialization=False)
    return folder / "m.pth", wanted


def torch_tied_model(folder: Path) -> tuple[Path, Arrays]:
    """safetensors.torch.save_model writes one of two tied parameters."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    library.save_model(model, str(folder / "m.safetensors"))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return folder / "m.safetensors", {name: state[name] for name in ("0.weight", "0.bias", "1.bias")}


def numpy_archive(folder: Path) -> tuple[Path, Arrays]:
    held = {
        "a/kernel": values((3, 4), "float64"),
        "turned": np.asfortranarray(values((5, 2))),
        "big endian": values((4,), ">f4"),
        "step": np.array(9, "int64"),
    }
    np.savez_compressed(folder / "m.npz", **held)
    return folder / "m.npz", {
        name: array.astype(array.dtype.newbyteorder("=")) for name, array in held.items()
    }


SOURCES: dict[str, Callable[[Path], tuple[Path, Arrays]]] = {
    function.__name__: function
    for function in (
        tf_partitioned_over_shards, tf_checkpoint, tf_checkpoint_in_shards, tf_saved_model, torch_zip,
        torch_legacy, torch_tied_model, numpy_archive,
    )
}  # fmt: skip


# -- what reads ----------------------------------------------------------------------------------------------


def by_tensorflow(path: Path) -> Arrays:
    loaded = tensorflow().train.load_checkpoint(str(path))
    return {name: np.asarray(loaded.get_tensor(name)) for name in loaded.get_variable_to_shape_map()}


def by_torch(path: Path) -> Arrays:
    torch = pytest.importorskip("torch")
    return _as_arrays(torch, torch.load(path, weights_only=True))


def by_safetensors_torch(path: Path) -> Arrays:
    torch = pytest.importorskip("torch")
    return _as_arrays(torch, pytest.importorskip("safetensors.torch").load_file(path))


def _as_arrays(torch: Any, held: dict[str, Any]) -> Arrays:
    return {
        name: tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
        for name, tensor in held.items()
    }


def by_numpy(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


LIBRARIES: dict[str, Callable[[Path], Arrays]] = {
    "tf": by_tensorflow,
    "torch": by_torch,
    "safetensors": by_safetensors_torch,
    "npz": by_numpy,
}


def assert_same(found: Arrays, wanted: Arrays) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("source", SOURCES)
def test_from_each_library_into_each(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    path, wanted = SOURCES[source](tmp_path / "source")
    with open_reader(path) as reader:
        extra = set(reader.specs) - set(wanted)
        assert extra <= {"Variable", "save_counter"}, extra
        for name, array in wanted.items():
            assert reader.read(name).dtype == array.dtype, name
            assert reader.read(name).tobytes() == array.tobytes(), name
    expected = {**wanted, **{name: _read(path, name) for name in extra}}
    for format, library in LIBRARIES.items():
        if format == "npz" and any(array.dtype == ml_dtypes.bfloat16 for array in wanted.values()):
            continue  # numpy's own container has no name for it
        target = carry(path, tmp_path / f"m{EXTENSIONS[format]}", format)
        assert_same(library(target), expected)
    monkeypatch.setattr(mmap, "mmap", no_maps)
    assert_same({name: _read(path, name) for name in expected}, expected)


def _read(path: Path, name: str) -> Any:
    with open_reader(path) as reader:
        return np.array(reader.read(name))


# -- damage --------------------------------------------------------------------------------------------------

MARK = values((32,), seed=5)


def keras_archive(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["layers/dense/vars/0"] = MARK
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"name": "MARK"}')
        archive.write(path.with_suffix(".h5"), "model.weights.h5")


def chunked_weights(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("dense/vars/0", data=MARK, chunks=(32,), fletcher32=True)


CHECKED: dict[str, tuple[Callable[[Path], object], str]] = {
    "m.npz": (lambda path: np.savez(path, w=MARK), "m.npz"),
    "m.pth": (lambda path: write_checkpoint(path, "torch"), "m.pth"),
    "m.keras": (keras_archive, "m.keras"),
    "m.weights.h5": (chunked_weights, "m.weights.h5"),
    "m": (lambda path: write_checkpoint(path, "tf"), "m.data-00000-of-00001"),
}


def write_checkpoint(path: Path, format: str) -> None:
    write_all(writer_for(format)(path, specs_of({"w": MARK}), {}), {"w": MARK})


@pytest.mark.parametrize("kind", CHECKED)
def test_no_command_takes_a_value_whose_checksum_does_not_hold(tmp_path: Path, kind: str) -> None:
    make, file = CHECKED[kind]
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
        make(folder / kind)
    raw = bytearray((bad / file).read_bytes())
    place = raw.index(MARK.tobytes())
    raw[place + 6] ^= 1
    (bad / file).write_bytes(raw)
    uses: dict[str, Callable[[], object]] = {
        "inspect": lambda: inspect_file(bad / kind, stats=True),
        "load": lambda: ckptkit.load(bad / kind, "as-is"),
        "convert": lambda: ckptkit.convert(bad / kind, "safetensors", tmp_path / "x", layout="as-is"),
        "diff": lambda: compare_files(good / kind, bad / kind),
    }
    for use in uses.values():
        with pytest.raises(FormatError, match=r"CRC-32|checksum"):
            use()
    assert not (tmp_path / "x").exists()
    report = ckptkit.verify(bad / kind, deep=True)
    assert report.damaged
    assert not ckptkit.verify(good / kind, deep=True).damaged


TOLD = {
    "m.keras": (keras_archive, b'{"name": "MARK"}'),
    "m.pth": (lambda path: write_checkpoint(path, "torch"), b"little"),
    "pickle.pth": (lambda path: write_checkpoint(path, "torch"), b"FloatStorage"),
    "version.pth": (lambda path: write_checkpoint(path, "torch"), b"3\n"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_an_archive_says_beside_its_tensors_is_checked_too(tmp_path: Path, kind: str) -> None:
    make, text = TOLD[kind]
    make(tmp_path / kind)
    raw = bytearray((tmp_path / kind).read_bytes())
    raw[raw.index(text) + len(text) // 2] ^= 1
    (tmp_path / kind).write_bytes(raw)
    with pytest.raises(FormatError, match="CRC-32"):
        open_reader(tmp_path / kind)


def test_a_long_member_beside_the_weights_is_checked_by_a_deep_look(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=MARK)
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("readme.txt", "weights of a model", zipfile.ZIP_DEFLATED)
        archive.writestr("notes.txt", "epoch 90")
    raw = (tmp_path / "m.npz").read_bytes()
    assert not ckptkit.verify(tmp_path / "m.npz", deep=True).damaged
    (tmp_path / "m.npz").write_bytes(raw.replace(b"epoch 90", b"epoch 91"))
    report = ckptkit.verify(tmp_path / "m.npz", deep=True)
    assert report.damaged


@pytest.mark.parametrize("format", EXTENSIONS)
def test_bools_of_other_bytes_are_refused(tmp_path: Path, format: str) -> None:
    held = {"w/vars/0": np.array([True, False, True] * 20)}
    path = tmp_path / f"m{EXTENSIONS[format]}"
    write_all(writer_for(format)(path, specs_of(held), {}), held)
    with open_reader(path) as reader:
        assert same_bits(reader.read("w/vars/0"), held["w/vars/0"])
    odd = {"w/vars/0": RawTensor((60,), memoryview(bytes([1, 0, 2] * 20)))}
    with writer_for(format)(path, specs_of(held), {}, force=True) as writer:
        writer.write("w/vars/0", odd["w/vars/0"])
        writer.finish()
    with open_reader(path) as reader, pytest.raises(FormatError, match="holds byte 0x02"):
        reader.check("w/vars/0")
        reader.read("w/vars/0")
