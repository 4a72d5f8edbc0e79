"""Checkpoints of torch.distributed (DCP) that ckptkit writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import DTYPES, DType, TensorSpec
from ckptkit.formats.dcp_writer import DcpWriter
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import is_folder
from tests.formats.test_dcp import quiet

HELD: dict[str, np.ndarray[Any, Any]] = {
    "w": np.arange(12, dtype="f4").reshape(3, 4),
    "m.b": np.array([1.5, -2.0], "f2"),
    "none": np.zeros((0, 3), "f4"),
    "scalar": np.array(7, "i8"),
    "ok": np.array([True, False]),
    "c": np.array([1 + 2j], "c8"),
    "ünï": np.ones(3, "f8"),
}
SPECS = [TensorSpec(name, DTYPES[array.dtype.name], array.shape) for name, array in HELD.items()]


def write(path: Path, **options: Any) -> list[Path]:
    with DcpWriter(path, SPECS, {"layout": "x"}, **options) as writer:
        for name in reversed(writer.order):
            writer.write(name, HELD[name])
        return writer.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files = write(tmp_path / "a.dcp")
    assert names(tmp_path / "a.dcp") == [".metadata", "__0_0.distcp", "ckptkit.json"]
    assert sorted(path.name for path in files) == names(tmp_path / "a.dcp")
    with open_reader(tmp_path / "a.dcp") as reader:
        assert dict(reader.specs) == {spec.name: spec for spec in SPECS}
        assert reader.metadata == {"layout": "x"}
        assert reader.notes == []
        for name, array in HELD.items():
            assert reader.read(name).tobytes() == array.tobytes()
            assert reader.check(name)
            assert reader.raw(name) is not None
        assert reader.read("w").ctypes.data % 64 == 0, "aligned in the file, as torch.save does"


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, max_shard_size=40)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_several_files(tmp_path: Path) -> None:
    write(tmp_path / "a", max_shard_size=40)
    assert [name for name in names(tmp_path / "a") if name.endswith(".distcp")] == [
        *("__0_0.distcp", "__0_1.distcp", "__0_2.distcp")
    ]
    with open_reader(tmp_path / "a") as reader:
        assert {name: reader.read(name).tobytes() for name in HELD} == {
            name: array.tobytes() for name, array in HELD.items()
        }


@pytest.mark.parametrize("max_shard_size", [None, 40])
def test_torch_loads_it(tmp_path: Path, max_shard_size: int | None) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    write(tmp_path / "a", max_shard_size=max_shard_size)
    loaded = {name: torch.zeros_like(torch.from_numpy(array.copy())) for name, array in HELD.items()}
    with quiet():
        checkpoint.load(loaded, checkpoint_id=tmp_path / "a", no_dist=True)
        dcp_to_torch_save(tmp_path / "a", tmp_path / "a.pth")
    assert {name: tensor.numpy().tobytes() for name, tensor in loaded.items()} == {
        name: array.tobytes() for name, array in HELD.items()
    }
    assert list(torch.load(tmp_path / "a.pth")) == list(HELD)


def test_what_torch_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="torch has no Q7"):
        DcpWriter(tmp_path / "a", [TensorSpec("w", DType("Q7", 1, "opaque"), (2,))], {})
    with pytest.raises(UsageError, match="allow larger ones"):
        specs = [TensorSpec(f"w{index}", DTYPES["float32"], (2,)) for index in range(501)]
        DcpWriter(tmp_path / "a", specs, {}, max_shard_size=8)
    assert names(tmp_path) == []


def test_nothing_is_there_before_it_is_whole(tmp_path: Path) -> None:
    with DcpWriter(tmp_path / "a", SPECS, {}) as writer:
        writer.write("w", HELD["w"])
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == []

    def refuse(path: Path) -> None:
        with open_reader(path) as reader:
            assert len(reader.specs) == len(HELD)
        assert not (tmp_path / "a").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), DcpWriter(tmp_path / "a", SPECS, {}) as writer:
        for name in writer.order:
            writer.write(name, HELD[name])
        writer.finish(refuse)
    assert names(tmp_path) == []


def test_an_earlier_one_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", max_shard_size=40)
    with pytest.raises(UsageError, match="exists already; give --force"):
        write(tmp_path / "a")
    write(tmp_path / "a", force=True)
    assert names(tmp_path / "a") == [".metadata", "__0_0.distcp", "ckptkit.json"]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("stranger", ["model.pth", ".gitignore"])
def test_files_of_others_stay(tmp_path: Path, stranger: str) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / stranger).write_text("mine")
    with pytest.raises(UsageError, match="which ckptkit did not write"):
        write(tmp_path / "a", force=True)
    assert (tmp_path / "a" / stranger).read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file"):
        write(tmp_path / "file", force=True)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__0_0.distcp").write_text("somebody's, without .metadata")
    with pytest.raises(UsageError, match="which ckptkit did not write"):
        write(tmp_path / "parts", force=True)


def test_damaged_metadata_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "ckptkit.json").write_text(json.dumps({"x": 1}))
    with pytest.raises(Exception, match="metadata is not a table of texts"):
        open_reader(tmp_path / "a")


def test_a_name_with_a_slash_is_the_folder_itself(tmp_path: Path) -> None:
    """Where nothing is, an empty folder or a checkpoint is; else the default name is put into it."""
    assert not is_folder(f"{tmp_path}/new/", to="dcp")
    assert is_folder(f"{tmp_path}/new/", to="torch")
    assert is_folder(f"{tmp_path}/new/", to="dcp", results=2)
    (tmp_path / "empty").mkdir()
    assert not is_folder(f"{tmp_path}/empty/", to="fsdp")
    write(tmp_path / "a.dcp")
    assert not is_folder(f"{tmp_path}/a.dcp")
    assert is_folder(str(tmp_path), to="dcp")
