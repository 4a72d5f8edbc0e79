"""Checkpoints in several files: PyTorch's and Keras' twins of what ``test_safetensors`` has."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.cli.app import main
from ckptkit.formats.detect import open_reader
from ckptkit.formats.keras import KerasH5Writer
from ckptkit.formats.torch_writer import TorchWriter
from tests.support.damage import mutations, survives
from tests.support.hdf5_files import h5py
from tests.support.tensors import specs_of, write_all
from tests.support.torch_files import STORAGE, TENSOR, table, whole, write_zip

FIRST = np.frombuffer(STORAGE, "<f4").tolist()


def write_index(path: Path, homes: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    return path


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """``pytorch_model.bin`` in two files; returns its index."""
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    write_zip(tmp_path / names[0], whole(table(a=TENSOR)))
    write_zip(tmp_path / names[1], whole(table(b=TENSOR, c=TENSOR)))
    homes = {"a": names[0], "b": names[1], "c": names[1]}
    return write_index(tmp_path / "pytorch_model.bin.index.json", homes)


KERAS: dict[str, dict[str, Any]] = {
    "w_00000.weights.h5": {
        "vars": {},
        "layers/dense/vars": {"0": [1.5, 2.5]},
        "layers/bn/vars": {"0": [3.0]},
    },
    "w_00001.weights.h5": {"layers/bn/vars": {"1": [4.0], "2": [5.0]}},
    "w_00002.weights.h5": {"layers/dense_1/vars": {"0": [6.0]}},
}


@pytest.fixture
def keras(tmp_path: Path) -> Path:
    """What ``save_weights(max_shard_size=…)`` writes; returns its index."""
    homes: dict[str, list[str]] = {}
    for file, groups in KERAS.items():
        with h5py.File(tmp_path / file, "w") as root:
            for group, variables in groups.items():
                made = root.create_group(group)
                for name, values in variables.items():
                    made[name] = np.array(values, "f4")
                    homes.setdefault(f"/{group}", []).append(file)
    return write_index(
        tmp_path / "w.weights.json",
        {group: [*dict.fromkeys(files)] if len(files) > 1 else files[0] for group, files in homes.items()},
    )


@pytest.mark.parametrize("by", ["index", "folder", "index of another name"])
def test_shards_of_pytorch(hugging_face: Path, by: str) -> None:
    (hugging_face.parent / "config.json").write_text('{"architectures": ["X"]}')
    path = {"index": hugging_face, "folder": hugging_face.parent}.get(by)
    with open_reader(path or hugging_face.rename(hugging_face.with_name("map.json"))) as reader:
        assert reader.format == "torch"
        assert {name: reader.read(name).reshape(-1).tolist() for name in reader.specs} == dict.fromkeys(
            "abc", FIRST
        )
        assert [reader.check(name) for name in "abc"] == [True] * 3
        assert reader.same == {"c": "b"}
        assert reader.notes == []
        assert reader.left_out == reader.extras == {}
        reader.release("a")


def test_torch_writes_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    held = {"a": torch.arange(6).bfloat16().reshape(2, 3), "b": torch.tensor(7)}
    for number, (name, tensor) in enumerate(held.items(), start=1):
        torch.save({name: tensor}, tmp_path / f"m-{number:05d}-of-00002.bin")
    write_index(tmp_path / "m.bin.index.json", {n: f"m-{i:05d}-of-00002.bin" for i, n in enumerate(held, 1)})
    with open_reader(tmp_path) as reader:
        assert reader.read("a").astype(np.float32).tolist() == held["a"].float().tolist()
        assert reader.read("b").item() == 7


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    """By its own loader; names, index and what is in each shard are those of huggingface_hub."""
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    trainer_utils = pytest.importorskip("transformers.trainer_utils")
    model, filled = (
        torch.nn.ModuleDict(
            {"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8), "c": torch.nn.Linear(8, 8, bias=False)}
        )
        for _ in range(2)
    )
    for one in (model, filled):
        one["c"].weight = one["a"].weight
        one.half().register_buffer("steps", torch.tensor(7))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    hub.save_torch_state_dict(
        model.state_dict(), theirs, safe_serialization=False, max_shard_size=200, shared_tensors_to_discard=[]
    )
    torch.save(model.state_dict(), tmp_path / "m.pth")
    command = f"convert {tmp_path}/m.pth --layout as-is --max-shard-size 200 -o {ours}/pytorch_model.bin"
    with pytest.raises(SystemExit, match="0"):
        main(shlex.split(command))
    index = "pytorch_model.bin.index.json"
    assert json.loads((ours / index).read_text()) == json.loads((theirs / index).read_text())
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for shard in theirs.glob("*.bin"):
        held, wanted = (torch.load(folder / shard.name, weights_only=True) for folder in (ours, theirs))
        assert list(held) == list(wanted)
        assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())
        if "c.weight" in held:
            assert held["c.weight"].data_ptr() == held["a.weight"].data_ptr()
    trainer_utils.load_sharded_checkpoint(filled, ours)
    assert all(torch.equal(filled.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "shard", "index"),
    [
        ("pytorch_model.bin", "pytorch_model-00002-of-00003.bin", "pytorch_model.bin.index.json"),
        ("m.pth", "m-00002-of-00003.pth", "m.pth.index.json"),
        ("m.v2.pt", "m.v2-00002-of-00003.pt", "m.v2.pt.index.json"),
        ("m.pth.tar", "m.pth.tar-00002-of-00003.bin", "m.pth.tar.bin.index.json"),
        ("m", "m-00002-of-00003.bin", "m.bin.index.json"),
    ],
)
def test_names_of_the_shards_of_pytorch(tmp_path: Path, name: str, shard: str, index: str) -> None:
    held = {one: np.full(3, number, "f4") for number, one in enumerate("abcd")}
    more: dict[str, Any] = {"max_shard_size": 12, "shared": {"d": "b"}}
    path = tmp_path / name
    with TorchWriter(path, specs_of(held), {"note": "x"}, **more) as writer:
        for one in writer.order:
            writer.write(one, held[one])
        assert [file.name for file in writer.finish()][1::2] == [shard, index]
    for opened in (tmp_path, tmp_path / index):
        with open_reader(opened) as reader:
            assert {one: reader.read(one)[0] for one in reader.specs} == {"a": 0, "b": 1, "c": 2, "d": 1}
            assert (reader.same, reader.metadata["note"]) == ({"d": "b"}, "x")
    with pytest.raises(UsageError, match="exists already"):
        TorchWriter(path, specs_of(held), {})
    write_all(TorchWriter(path, specs_of({"a": held["a"]}), {}, force=True), {"a": held["a"]})
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("by_folder", [False, True])
def test_shards_of_keras(keras: Path, by_folder: bool) -> None:
    with open_reader(keras.parent if by_folder else keras) as reader:
        assert reader.format == "keras"
        assert {name: reader.read(name).tolist() for name in reader.specs} == {
            "layers/dense/vars/0": [1.5, 2.5],
            **{f"layers/bn/vars/{number}": [3.0 + number] for number in range(3)},
            "layers/dense_1/vars/0": [6.0],
        }


def test_keras_writes_them(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((16,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(16)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(16)(hidden))
    source = np.random.default_rng(4)
    for variable in model.weights:
        variable.assign(source.standard_normal(variable.shape))
    for shard_bytes, count in ((1 << 20, 1), (1100, 3)):
        folder = tmp_path / str(count)
        folder.mkdir()
        model.save_weights(folder / "w.weights.json", max_shard_size=shard_bytes / 1024**3)
        assert len([*folder.glob("*.h5")]) == count
        with open_reader(folder) as reader:
            found = sorted(reader.read(name).tobytes() for name in reader.specs)
        assert found == sorted(np.asarray(variable).tobytes() for variable in model.weights)
    with pytest.raises(
        FormatError, match=r"is one of several shards of Keras weights; give .*/w\.weights\.json"
    ):
        open_reader(folder / "w_00001.weights.h5")
    open_reader(tmp_path / "1" / "w_00000.weights.h5").close()  # its index says that it is all there is


def test_keras_loads_what_is_written(tmp_path: Path) -> None:
    """By its own ``load_weights``, whatever file each layer is in."""
    keras = pytest.importorskip("keras")
    inputs = keras.Input((16,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(16)(inputs))
    inner = keras.Sequential([keras.layers.Dense(8), keras.layers.LayerNormalization()])
    model = keras.Model(inputs, keras.layers.Dense(4)(inner(hidden)))
    source = np.random.default_rng(5)
    for variable in model.weights:
        variable.assign(source.standard_normal(variable.shape))
    values = [np.asarray(variable) for variable in model.weights]
    model.save_weights(tmp_path / "w.weights.h5")
    with open_reader(tmp_path / "w.weights.h5") as reader:
        held = {name: np.array(reader.read(name)) for name in reader.specs}
    for limit, count in ((1 << 20, 1), (1500, 2), (1, 5)):
        target = tmp_path / str(limit) / "m.weights.h5"
        target.parent.mkdir()
        files, _ = write_all(KerasH5Writer(target, specs_of(held), {}, max_shard_size=limit), held)
        shards = [f"m_{number:05d}.weights.h5" for number in range(count)]
        names = [*shards, "m.weights.json"] if count > 1 else ["m.weights.h5"]
        assert [file.name for file in files] == names
        for variable in model.weights:
            variable.assign(np.zeros(variable.shape))
        model.load_weights(files[-1])
        for variable, value in zip(model.weights, values, strict=True):
            np.testing.assert_array_equal(np.asarray(variable), value)
        with open_reader(target.parent) as reader:
            assert {name: reader.read(name).tobytes() for name in reader.specs} == {
                name: array.tobytes() for name, array in held.items()
            }


def test_a_layer_stays_in_one_shard(tmp_path: Path) -> None:
    held = {f"layers/{layer}/vars/{i}": np.full(25, i, "f4") for layer in "ab" for i in range(3)}
    files, _ = write_all(KerasH5Writer(tmp_path / "m.weights.h5", specs_of(held), {}, max_shard_size=1), held)
    index = json.loads(files[-1].read_text())
    assert index == {
        "metadata": {"total_size": 600},
        "weight_map": {"/layers/a/vars": "m_00000.weights.h5", "/layers/b/vars": "m_00001.weights.h5"},
    }


def test_one_shard_of_ours_is_refused_under_any_name(tmp_path: Path) -> None:
    held = {f"layers/{layer}/vars/0": np.zeros(2, "f4") for layer in "ab"}
    files, _ = write_all(KerasH5Writer(tmp_path / "m.weights.h5", specs_of(held), {}, max_shard_size=1), held)
    with pytest.raises(
        FormatError, match=r"is one of several shards of Keras weights; give .*m.weights.json"
    ):
        open_reader(files[1])
    with pytest.raises(FormatError, match="is one of several shards of Keras weights; put"):
        open_reader(files[1].rename(tmp_path / "epoch.weights.h5"))


def test_a_name_that_keras_would_not_find_is_refused(tmp_path: Path) -> None:
    held = {f"layers/{layer}/vars/0": np.zeros(2, "f4") for layer in "ab"}
    with pytest.raises(UsageError, match="under another name"):
        KerasH5Writer(tmp_path / "m.weights.2.weights.h5", specs_of(held), {}, max_shard_size=1)
    KerasH5Writer(tmp_path / "m.weights.2.weights.h5", specs_of(held), {}).discard()


@pytest.mark.parametrize("as_saved", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_the_prefix_of_data_parallel_models(tmp_path: Path, as_saved: bool, others: bool) -> None:
    """It is that of every name only where all shards have it."""
    names = ["module.a", "b" if others else "module.b"]
    for number, name in enumerate(names):
        write_zip(tmp_path / f"m-{number}.bin", whole(table(**{name: TENSOR})))
    index = write_index(tmp_path / "m.bin.index.json", {name: f"m-{i}.bin" for i, name in enumerate(names)})
    with open_reader(index, as_saved=as_saved) as reader:
        assert [*reader.specs] == (names if as_saved or others else ["a", "b"])
        assert reader.notes == (
            [] if as_saved or others else ["the prefix 'module.' of every name is left out"]
        )


# -- sets that do not hold -----------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(index: Path) -> None:
        table = json.loads(index.read_text())
        change(table["weight_map"])
        index.write_text(json.dumps(table))

    return apply


A, B = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
BAD_PYTORCH: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda i: (i.parent / A).unlink(), f"its shard {A} is missing; fetch the missing file"),
    "empty": (lambda i: (i.parent / A).write_bytes(b""), f"{A} is empty"),
    "a page": (lambda i: (i.parent / A).write_bytes(b"<html>"), f"{A} is an HTML page"),
    "swapped": (
        lambda i: shutil.copy(i.parent / B, i.parent / A),
        "its shards do not belong together",
    ),
    "not in the index": (changed(lambda m: m.pop("c")), f"{B} also holds 'c'"),
    "only in the index": (changed(lambda m: m.update(d=B)), f"{B} lacks 'd'"),
    "another format": (
        lambda i: np.savez((i.parent / A).open("wb"), a=np.zeros(3)),
        "file, unlike the others",
    ),
    "upwards": (
        changed(lambda m: m.update(a=f"../{A}")),
        f"places 'a' in '../{A}', which is not the name of a",
    ),
    "a folder": (changed(lambda m: m.update(a=f"x/{A}")), "not the name of a shard"),
    "absolute": (changed(lambda m: m.update(a="/etc/x.bin")), "not the name of a shard"),
    "any file": (changed(lambda m: m.update(a="passwd")), "not the name of a shard"),
    "itself": (changed(lambda m: m.update(a="pytorch_model.bin.index.json")), "not the name of a shard"),
    "an index": (lambda i: (i.parent / A).write_text(i.read_text()), f"{A} is a JSON text"),
    "in two files": (changed(lambda m: m.update(a=[A, B])), f"{B} lacks 'a'"),
    "in no file": (changed(lambda m: m.update(a=[])), f"{A}"),
    "in a list of lists": (changed(lambda m: m.update(a=[[A]])), "not the name of a shard"),
}


@pytest.mark.parametrize("file", ["tf_model-00001-of-00002.h5"])
def test_other_shards_of_transformers_are_named(tmp_path: Path, file: str) -> None:
    index = write_index(
        tmp_path / f"{file.partition('-')[0]}.{file.rpartition('.')[2]}.index.json", {"a": file}
    )
    for opened in (index, tmp_path):
        with pytest.raises(FormatError, match="a TensorFlow model of transformers, in shards"):
            open_reader(opened)


@pytest.mark.parametrize("kind", BAD_PYTORCH)
def test_bad_sets_of_pytorch(hugging_face: Path, kind: str) -> None:
    damage, said = BAD_PYTORCH[kind]
    damage(hugging_face)
    if kind == "in no file":  # then a file that nobody names is not looked at
        with open_reader(hugging_face) as reader:
            assert set(reader.specs) == {"b", "c"}
        return
    with pytest.raises(FormatError) as caught:
        open_reader(hugging_face)
    assert said in str(caught.value)


K0, K1 = "w_00000.weights.h5", "w_00001.weights.h5"


def again(index: Path) -> None:
    """A variable in two files."""
    with h5py.File(index.parent / K1, "a") as file:
        file["layers/bn/vars/0"] = np.zeros(1, "f4")


BAD_KERAS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda i: (i.parent / K1).unlink(), f"its shard {K1} is missing"),
    "of another set": (
        lambda i: shutil.copy(i.parent / K0, i.parent / K1),
        "its shards do not belong together",
    ),
    "a group less": (changed(lambda m: m.pop("/layers/dense_1/vars")), ""),
    "a group elsewhere": (
        changed(lambda m: m.update({"/layers/dense_1/vars": K0})),
        f"{K0} lacks '/layers/dense_1",
    ),
    "a group in one file": (
        changed(lambda m: m.update({"/layers/bn/vars": K1})),
        f"{K0} also holds '/layers/bn",
    ),
    "a variable twice": (again, f"{K1} holds 'layers/bn/vars/0' once more"),
    "upwards": (
        changed(lambda m: m.update({"/layers/bn/vars": [K0, f"../{K1}"]})),
        "not the name of a shard",
    ),
}


@pytest.mark.parametrize("kind", BAD_KERAS)
def test_bad_sets_of_keras(keras: Path, kind: str) -> None:
    damage, said = BAD_KERAS[kind]
    damage(keras)
    if kind == "a group less":
        with open_reader(keras) as reader:
            assert "layers/dense_1/vars/0" not in reader.specs
        return
    with pytest.raises(FormatError) as caught:
        open_reader(keras)
    assert said in str(caught.value)


def test_mutations_of_an_index(keras: Path, hugging_face: Path) -> None:
    for index in (keras, hugging_face):
        raw = index.read_bytes()
        opened = sum(survives(index, damaged, open_reader) for damaged in mutations(raw, 150, seed=6))
        assert 0 < opened < 150


# -- one shard by itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERAS)
def test_one_shard_of_keras_is_refused(keras: Path, name: str) -> None:
    with pytest.raises(FormatError) as caught:
        open_reader(keras.parent / name)
    assert str(caught.value) == (
        f"{keras.parent / name} is one of several shards of Keras weights; give {keras}"
    )
    alone = keras.parent / "alone"
    alone.mkdir()
    shutil.copy(keras.parent / name, alone)
    for opened in (alone / name, alone):
        with pytest.raises(
            FormatError, match=r"is one of several shards .*; put w\.weights\.json and the other"
        ):
            open_reader(opened)


def test_a_renamed_shard_is_known_by_its_gap(keras: Path) -> None:
    (keras.parent / "w_00001.weights.h5").rename(keras.parent / "bn.weights.h5")
    with pytest.raises(FormatError, match="is one of several shards of Keras weights"):
        open_reader(keras.parent / "bn.weights.h5")


def test_a_whole_file_with_a_number_is_read(keras: Path) -> None:
    """Keras' ModelCheckpoint names epochs like shards; the first shard's name is never an epoch's."""
    whole_file = keras.parent / "alone" / "epoch_00012.weights.h5"
    whole_file.parent.mkdir()
    shutil.copy(keras.parent / K0, whole_file)
    open_reader(whole_file).close()
    first = whole_file.rename(whole_file.with_name("epoch 1_00000.weights.h5"))
    with pytest.raises(FormatError) as caught:
        open_reader(first)
    command, source, target = shlex.split((caught.value.hint or "").rpartition(": ")[2])
    assert command == "mv"
    Path(source).rename(target)
    open_reader(target).close()


def test_one_shard_of_pytorch_is_noted(hugging_face: Path) -> None:
    for note in (
        f"one of several shards: the tensors of the others, which {hugging_face.name} names, are not read",
        "one of several shards: the tensors of the others are not read",
    ):
        with open_reader(hugging_face.parent / A) as reader:
            assert [*reader.specs] == ["a"]
            assert reader.notes == [note]
        hugging_face.unlink(missing_ok=True)
