"""Reading safetensors files and shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import open_reader
from ckptkit.formats.safetensors_file import SafetensorsReader, SafetensorsWriter
from tests.support.damage import mutations, survives
from tests.support.tensors import same_bits

WEIGHTS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.half": np.arange(5, dtype=np.float16),
    "c.step": np.array(7, np.int64),
    "d.flag": np.array([True, False]),
    "e.none": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    numpy_side: Any = pytest.importorskip("safetensors.numpy")
    numpy_side.save_file(WEIGHTS, tmp_path / "m.safetensors", metadata={"format": "np", "entry": "x"})
    return tmp_path / "m.safetensors"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards with their index, by the reference library."""
    numpy_side: Any = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "sharded"
    folder.mkdir()
    homes = {}
    for number, names in enumerate((["a.weight"], ["b.half", "c.step"], ["d.flag", "e.none"]), start=1):
        file = f"model-{number:05d}-of-00003.safetensors"
        numpy_side.save_file({n: WEIGHTS[n] for n in names}, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 100}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def assert_holds_the_weights(reader: Reader) -> None:
    with reader:
        assert set(reader.specs) == set(WEIGHTS)
        for name, wanted in WEIGHTS.items():
            view = reader.read(name)
            assert same_bits(view, wanted)
            assert not view.flags.writeable
            assert not view.size or not view.flags.owndata
            assert reader.check(name) is False
            reader.release(name)
            assert same_bits(reader.read(name), wanted)


def test_one_file(path: Path) -> None:
    assert_holds_the_weights(SafetensorsReader(path))
    assert SafetensorsReader(path).metadata == {"format": "np", "entry": "x"}
    assert SafetensorsReader(str(path)).format == "safetensors"


def test_torch_writes_it(tmp_path: Path) -> None:
    torch_side: Any = pytest.importorskip("safetensors.torch")
    torch: Any = pytest.importorskip("torch")
    torch_side.save_file({"w": torch.arange(6).bfloat16().reshape(2, 3)}, tmp_path / "m.safetensors")
    with SafetensorsReader(tmp_path / "m.safetensors") as reader:
        assert reader.specs["w"].dtype.name == "bfloat16"
        assert reader.read("w").astype(np.float32).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_shards_by_folder_and_by_index(shards: Path) -> None:
    assert_holds_the_weights(open_reader(shards))
    assert_holds_the_weights(open_reader(shards / "model.safetensors.index.json"))
    assert open_reader(shards).metadata == {"format": "pt"}


def test_a_folder_with_one_file(path: Path) -> None:
    assert_holds_the_weights(open_reader(path.parent))


def test_a_folder_with_several(path: Path) -> None:
    shutil.copy(path, path.with_name("other.safetensors"))
    with pytest.raises(UsageError, match=r"holds 2 checkpoints; name one: m\.safe.*, other\.safe"):
        open_reader(path.parent)


def test_a_folder_with_none(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is empty"):
        open_reader(tmp_path)


def test_unknown_names(path: Path) -> None:
    with SafetensorsReader(path) as reader:
        for method in (reader.read, reader.check, reader.release):
            with pytest.raises(NotFoundError, match="no tensor 'x'"):
                method("x")
    with pytest.raises(NotFoundError):
        SafetensorsReader(path.with_name("missing.safetensors"))


def reindexed(folder: Path, change: Any) -> None:
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    index.write_text(json.dumps(change(table) or table))


FIRST = "model-00001-of-00003.safetensors"
BAD_SETS: dict[str, Any] = {
    "shard missing": lambda folder: (folder / FIRST).unlink(),
    "shard empty": lambda folder: (folder / FIRST).write_bytes(b""),
    "shard cut": lambda folder: (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-1]),
    "shard of another set": lambda folder: shutil.copy(
        folder / FIRST.replace("00001", "00002", 1), folder / FIRST
    ),
    "tensor not in the index": lambda folder: reindexed(
        folder, lambda t: t["weight_map"].pop("b.half") and None
    ),
    "tensor only in the index": lambda folder: reindexed(folder, lambda t: t["weight_map"].update(z=FIRST)),
    "no map": lambda folder: reindexed(folder, lambda t: {"metadata": {}}),
    "empty map": lambda folder: reindexed(folder, lambda t: {"weight_map": {}}),
    "map is a list": lambda folder: reindexed(folder, lambda t: {"weight_map": ["a"]}),
    "path upwards": lambda folder: reindexed(
        folder, lambda t: t["weight_map"].update(z=f"../sharded/{FIRST}")
    ),
    "absolute path": lambda folder: reindexed(
        folder, lambda t: t["weight_map"].update(z=str(folder / FIRST))
    ),
    "Windows path": lambda folder: reindexed(folder, lambda t: t["weight_map"].update(z="C:\\x.safetensors")),
    "another extension": lambda folder: reindexed(folder, lambda t: t["weight_map"].update(z="passwd")),
    "file is a number": lambda folder: reindexed(folder, lambda t: t["weight_map"].update(z=3)),
    "NUL in a name": lambda folder: reindexed(folder, lambda t: t["weight_map"].update(z="a\0.safetensors")),
    "thousands of shards": lambda folder: reindexed(
        folder, lambda t: {"weight_map": {str(i): f"{i}.safetensors" for i in range(2000)}}
    ),
    "no JSON": lambda folder: (folder / "model.safetensors.index.json").write_text("hello"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_sets_of_shards(shards: Path, case: str) -> None:
    BAD_SETS[case](shards)
    with pytest.raises(FormatError) as caught:
        open_reader(shards)
    assert "\n" not in str(caught.value)


def test_every_truncation(path: Path) -> None:
    raw = path.read_bytes()
    for stop in range(len(raw)):
        assert not survives(path, raw[:stop], SafetensorsReader), stop


def test_mutations_of_the_header(path: Path) -> None:
    raw = path.read_bytes()
    header = range(8 + int.from_bytes(raw[:8], "little"))
    opened = sum(survives(path, d, SafetensorsReader) for d in mutations(raw, 1500, seed=5, within=header))
    assert 0 < opened < 1500


def test_mutations_of_the_index(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    raw = index.read_bytes()
    for damaged in mutations(raw, 300, seed=6):
        index.write_bytes(damaged)
        try:
            open_reader(index).close()
        except CkptkitError as error:
            assert isinstance(error, (FormatError, NotFoundError))


def test_raw_bytes_are_those_of_the_tensor(tmp_path):
    specs = [
        TensorSpec("a", DTYPES["float32"], (3, 5)),
        TensorSpec("b", DTYPES["bfloat16"], (7,)),
        TensorSpec("c", DTYPES["int64"], ()),
        TensorSpec("d", DTYPES["uint8"], (0, 4)),
    ]
    rng = np.random.default_rng(5)
    arrays = {s.name: rng.integers(0, 100, s.shape).astype(s.dtype.numpy) for s in specs}
    with SafetensorsWriter(tmp_path / "x.safetensors", specs, {}) as writer:
        for name in writer.order:
            writer.write(name, arrays[name])
        writer.finish()
    with SafetensorsReader(tmp_path / "x.safetensors") as reader:
        for name, array in arrays.items():
            assert (reader.raw(name).shape, bytes(reader.raw(name).data)) == (array.shape, array.tobytes())
