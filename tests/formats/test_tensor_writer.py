"""What every writer promises: tensors in any order and from several threads give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from ckptkit.base.errors import ConversionError
from ckptkit.formats.detect import open_reader
from ckptkit.formats.keras import KerasH5Writer
from ckptkit.formats.npz import NpzWriter
from ckptkit.formats.safetensors import SafetensorsWriter
from ckptkit.formats.tf_bundle import TfBundleWriter
from ckptkit.formats.torch_writer import TorchWriter
from tests.support.tensors import Array, specs_of, write_all

META = {"layout": "torch", "note": "ü"}
WRITERS = [
    pytest.param(SafetensorsWriter, "m.safetensors", id="safetensors"),
    pytest.param(TorchWriter, "m.pth", id="torch"),
    pytest.param(TfBundleWriter, "m", id="tf"),
    pytest.param(NpzWriter, "m.npz", id="npz"),
    pytest.param(KerasH5Writer, "m.weights.h5", id="keras"),
]


@pytest.fixture(scope="module")
def held() -> dict[str, Array]:
    """A few dozen tensors, some of several pieces, some empty, some transposed."""
    source = np.random.default_rng(8)
    sizes = [(3, 5), (), (0, 4), (1300, 1100), (64,), (2000, 700), (1,)] * 5
    made = {f"t{i}": source.standard_normal(size).astype(np.float32) for i, size in enumerate(sizes)}
    return {name: array.T if i % 2 else array for i, (name, array) in enumerate(made.items())}


@pytest.mark.parametrize(("kind", "name"), WRITERS)
def test_any_order_and_any_thread_give_the_same_bytes(
    kind: Callable[..., Any], name: str, held: dict[str, Array], tmp_path: Path
) -> None:
    files, sums = write_all(kind(tmp_path / "in order" / name, specs_of(held), META), held)
    with kind(tmp_path / "any order" / name, specs_of(held), META) as writer:
        assert writer.concurrent
        backwards = list(reversed(writer.order))
        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(backwards, pool.map(lambda n: writer.write(n, held[n]), backwards), strict=True))
        others = writer.finish()
    assert found == sums == {n: google_crc32c.value(held[n].tobytes()) for n in held}
    assert [file.name for file in files] == [file.name for file in others]
    for file, other in zip(files, others, strict=True):
        assert file.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("kind", "name"), WRITERS)
def test_misuse_is_refused(kind: Callable[..., Any], name: str, tmp_path: Path) -> None:
    held = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    with kind(tmp_path / name, specs_of(held), {}) as writer:
        with pytest.raises(ValueError, match="'c' is not to be written"):
            writer.write("c", held["a"])
        with pytest.raises(ValueError, match="'a' has shape"):
            writer.write("a", held["b"])
        writer.write("a", held["a"])
        with pytest.raises(ValueError, match=r"'a' .* was before"):
            writer.write("a", held["a"])
        with pytest.raises(ValueError, match=r"1 tensors .* never written"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


SHARDED = pytest.param(partial(SafetensorsWriter, max_shard_size=1000), "m.safetensors", id="shards")


@pytest.mark.parametrize(("kind", "name"), [*WRITERS, SHARDED])
def test_metadata_told_late_gives_the_same_bytes_as_told_at_once(
    kind: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    held = {"a": np.arange(300, dtype=np.float32), "b": np.ones((2, 40), np.float16)}
    told = META | {"source_sha256": "1f" * 32}
    files, _ = write_all(kind(tmp_path / "at once" / name, specs_of(held), told), held)
    checked: list[Path] = []
    with kind(tmp_path / "late" / name, specs_of(held), META | {"source_sha256": "0" * 64}) as writer:
        for tensor in writer.order:
            writer.write(tensor, held[tensor])
        others = writer.finish(checked.append, {"source_sha256": "1f" * 32})
    assert len(checked) == 1
    assert [file.name for file in files] == [file.name for file in others]
    for file, other in zip(files, others, strict=True):
        assert file.read_bytes() == other.read_bytes()
    path = next((file for file in others if file.name.endswith(".index.json")), tmp_path / "late" / name)
    with open_reader(path) as reader:
        assert reader.metadata["source_sha256"] == "1f" * 32


@pytest.mark.parametrize("late", [{"layout": "longer than it was"}, {"new": "key"}], ids=["length", "key"])
@pytest.mark.parametrize(("kind", "name"), WRITERS)
def test_late_metadata_without_a_place_is_refused(
    kind: Callable[..., Any], name: str, late: dict[str, str], tmp_path: Path
) -> None:
    held = {"a": np.zeros(3, np.float32)}
    with kind(tmp_path / name, specs_of(held), META) as writer:
        writer.write("a", held["a"])
        with pytest.raises(ValueError, match="late metadata"):
            writer.finish(None, late)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [TorchWriter, TfBundleWriter, NpzWriter])
def test_more_than_can_be_read_back_is_refused_before_it_is_written(
    writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "most", 2)
    specs = specs_of({name: np.zeros(1, "float32") for name in "abc"})
    with pytest.raises(ConversionError, match=r"m: 3 tensors; such a file is read with 2 at most"):
        writer(tmp_path / "m", specs, {})
    assert list(tmp_path.iterdir()) == []
