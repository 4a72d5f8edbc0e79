"""What we write, the reference library reads, and its bytes are the ones it would have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.files import StagedFile
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats import safetensors_writer
from ckptkit.formats.detect import open_reader
from ckptkit.formats.safetensors_file import SafetensorsReader
from ckptkit.formats.safetensors_writer import SafetensorsWriter, file_bytes
from tests.support.tensors import arrays, same_bits, some_arrays, specs_of, write_all

WITHOUT = frozenset({"complex128", "float8_e4m3b11fnuz"})
META = {"layout": "torch", "entry": "tiny-moat0"}


def test_the_reference_library_reads_it(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    torch_side: Any = pytest.importorskip("safetensors.torch")
    held = arrays(without=WITHOUT)
    write_all(SafetensorsWriter(tmp_path / "m.safetensors", specs_of(held), META), held)
    loaded = torch_side.load_file(tmp_path / "m.safetensors")
    assert set(loaded) == set(held)
    for name, wanted in held.items():
        assert tuple(loaded[name].shape) == wanted.shape
        assert str(loaded[name].dtype) == f"torch.{wanted.dtype.name}"
        assert loaded[name].reshape(-1).view(torch.uint8).numpy().tobytes() == wanted.tobytes(), name


def test_numpy_reads_it(tmp_path: Path) -> None:
    numpy_side: Any = pytest.importorskip("safetensors.numpy")
    held = {n: a for n, a in arrays(without=WITHOUT).items() if not n.startswith(("of bfloat", "of float8"))}
    write_all(SafetensorsWriter(tmp_path / "m.safetensors", specs_of(held), META), held)
    loaded = numpy_side.load_file(tmp_path / "m.safetensors")
    assert all(same_bits(loaded[name], held[name]) for name in held)


def test_bytes_are_those_of_the_reference_library(tmp_path: Path) -> None:
    numpy_side: Any = pytest.importorskip("safetensors.numpy")
    source = np.random.default_rng(0)
    held = {
        "b": source.standard_normal((3, 5), dtype=np.float32),
        "a": source.standard_normal(7, dtype=np.float32),
        "c": np.arange(3, dtype=np.int64),
        "d": np.arange(5, dtype=np.float16),
        "é": np.arange(3, dtype=np.float32),
    }
    write_all(SafetensorsWriter(tmp_path / "m.safetensors", specs_of(held), {}), held)
    assert (tmp_path / "m.safetensors").read_bytes() == numpy_side.save(held, metadata={"format": "pt"})


def test_header_and_alignment(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    writer = SafetensorsWriter(tmp_path / "m.safetensors", specs_of(held), META)
    sizes = [held[name].dtype.itemsize for name in writer.order]
    assert sizes == sorted(sizes, reverse=True)
    write_all(writer, held)
    raw = (tmp_path / "m.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    table = json.loads(raw[8 : 8 + length])
    assert table.pop("__metadata__") == {"format": "pt", **META}
    for name, row in table.items():
        if held[name].size:
            assert (8 + length + row["data_offsets"][0]) % held[name].dtype.itemsize == 0


def test_same_input_same_bytes(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    for name in ("a", "b"):
        write_all(SafetensorsWriter(tmp_path / name, specs_of(held), dict(reversed(META.items()))), held)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_size_is_known_before_a_byte_is_written(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    path, metadata = tmp_path / "m.safetensors", {"entry": "moat0-224", "note": "ü"}
    said = file_bytes(path, specs_of(held), metadata)
    write_all(SafetensorsWriter(path, specs_of(held), metadata), held)
    assert path.stat().st_size == said


def test_write_returns_crc32c_and_casts(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((400, 300), dtype=np.float32)
    spec = TensorSpec("w", DTYPES["float16"], (300, 400))
    _, sums = write_all(SafetensorsWriter(tmp_path / "m.safetensors", [spec], {}), {"w": values.T})
    assert sums == {"w": google_crc32c.value(values.T.astype(np.float16).tobytes())}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=some_arrays(without=WITHOUT))
def test_round_trip(tmp_path: Path, held: dict[str, Any]) -> None:
    write_all(SafetensorsWriter(tmp_path / "m.safetensors", specs_of(held), META, force=True), held)
    with SafetensorsReader(tmp_path / "m.safetensors") as reader:
        assert reader.metadata == {"format": "pt", **META}
        assert set(reader.specs) == set(held)
        assert all(same_bits(reader.read(name), array) for name, array in held.items())


# -- shards --------------------------------------------------------------------------------------------------

LAYERS = {f"layer{i}.w": np.full(25, i, np.float32) for i in range(7)}  # 100 bytes each


@pytest.mark.parametrize(("limit", "count"), [(700, 1), (699, 2), (300, 3), (250, 4), (100, 7), (1, 7)])
def test_shards(tmp_path: Path, limit: int, count: int) -> None:
    target = tmp_path / "model.safetensors"
    files, _ = write_all(SafetensorsWriter(target, specs_of(LAYERS), META, max_shard_size=limit), LAYERS)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    if count == 1:
        assert files == [target]
        return
    assert [f.name for f in files[:-1]] == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    index = json.loads(files[-1].read_text())
    assert files[-1].name == "model.safetensors.index.json"
    assert index["metadata"]["total_size"] == 700
    assert set(index["weight_map"]) == set(LAYERS)
    for opened in (tmp_path, files[-1]):
        with open_reader(opened) as reader:
            assert reader.metadata == {"format": "pt", **META}
            assert all(same_bits(reader.read(name), array) for name, array in LAYERS.items())


def test_transformers_style_loading_of_shards(tmp_path: Path) -> None:
    numpy_side: Any = pytest.importorskip("safetensors.numpy")
    write_all(SafetensorsWriter(tmp_path / "m.safetensors", specs_of(LAYERS), {}, max_shard_size=250), LAYERS)
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert same_bits(numpy_side.load_file(tmp_path / file)[name], LAYERS[name])


def test_force_replaces_a_set_of_shards_wholly(tmp_path: Path) -> None:
    target, bystander = tmp_path / "m.safetensors", tmp_path / "m-mine.safetensors"
    bystander.write_bytes(b"mine")
    write_all(SafetensorsWriter(target, specs_of(LAYERS), {}, max_shard_size=100), LAYERS)
    with pytest.raises(UsageError, match=r"index\.json exists"):
        SafetensorsWriter(target, specs_of(LAYERS), {}, max_shard_size=300)
    files, _ = write_all(
        SafetensorsWriter(target, specs_of(LAYERS), {}, force=True, max_shard_size=300), LAYERS
    )
    assert sorted(tmp_path.iterdir()) == sorted([*files, bystander])
    assert bystander.read_bytes() == b"mine"


def test_an_interrupted_set_leaves_nothing(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "m.safetensors", specs_of(LAYERS), {}, max_shard_size=200)
    with pytest.raises(KeyboardInterrupt), writer:
        for name in writer.order[:5]:
            writer.write(name, LAYERS[name])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(4))
def test_a_failed_rename_leaves_no_half_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    original, calls = StagedFile.rename, iter(range(100))

    def rename(file: StagedFile) -> Path:
        if next(calls) == failing:
            raise KeyboardInterrupt
        return original(file)

    monkeypatch.setattr(StagedFile, "rename", rename)
    writer = SafetensorsWriter(tmp_path / "m.safetensors", specs_of(LAYERS), {}, max_shard_size=300)
    with pytest.raises(KeyboardInterrupt):
        write_all(writer, LAYERS)
    assert list(tmp_path.iterdir()) == []


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TensorSpec("w", DTYPES["complex128"], (2,)), "no name for complex128"),
        (TensorSpec("__metadata__", DTYPES["float32"], (2,)), "another use"),
    ],
)
def test_what_the_format_cannot_say(tmp_path: Path, spec: TensorSpec, said: str) -> None:
    with pytest.raises(ConversionError, match=said):
        SafetensorsWriter(tmp_path / "m.safetensors", [spec], {})


@pytest.mark.parametrize("limit", [0, -5])
def test_impossible_limits(tmp_path: Path, limit: int) -> None:
    with pytest.raises(UsageError):
        SafetensorsWriter(tmp_path / "m.safetensors", specs_of(LAYERS), {}, max_shard_size=limit)


def test_too_many_shards(tmp_path: Path) -> None:
    specs = [TensorSpec(str(i), DTYPES["float32"], (2,)) for i in range(501)]
    with pytest.raises(UsageError, match="501 shards"):
        SafetensorsWriter(tmp_path / "m.safetensors", specs, {}, max_shard_size=1)


def test_a_header_readers_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writer, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ConversionError, match="header"):
        write_all(SafetensorsWriter(tmp_path / "m.safetensors", specs_of(LAYERS), {}), LAYERS)
    assert list(tmp_path.iterdir()) == []
