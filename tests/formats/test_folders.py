"""Which checkpoint a folder means."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import CkptkitError, FormatError, UsageError
from ckptkit.formats import folders
from ckptkit.formats.detect import open_reader, writer_for
from tests.support.tensors import specs_of, write_all
from tests.support.torch_files import TENSOR, legacy, table, whole, write_zip

HELD = {"w": np.array([1.5, -2.0], np.float32)}
Lay = Callable[[Path], object]


def write(format: str, name: str, *, value: float = 1.5) -> Lay:
    """A small checkpoint, by which its value is told."""

    def lay(folder: Path) -> None:
        held = {"w": np.array([value], np.float32)}
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_all(writer_for(format)(path, specs_of(held), {}), held)

    return lay


def raw(name: str, data: bytes = b"x") -> Lay:
    def lay(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return lay


def trainer(folder: Path) -> None:
    """What Hugging Face's Trainer leaves beside the weights."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        write_zip(folder / name, whole(table(state=table(a=TENSOR))))
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    (folder / "trainer_state.json").write_text("{}")


ONE: dict[str, tuple[list[Lay], str]] = {
    "torch": ([write("torch", "m.pth")], "torch"),
    "torch, legacy": ([lambda f: (f / "m.bin").write_bytes(legacy(whole(table(w=TENSOR))))], "torch"),
    "npz": ([write("npz", "m.npz")], "npz"),
    "keras": ([write("keras", "m.weights.h5")], "keras"),
    "safetensors": ([write("safetensors", "model.safetensors")], "safetensors"),
    "tf": ([write("tf", "m.ckpt")], "tf"),
    "without an ending": ([write("torch", "weights")], "torch"),
    "beside other things": (
        [
            write("torch", "m.pth"),
            raw("README.md"),
            raw("a.png", b"\x89PNG\r\n\x1a\n"),
            raw("._m.pth"),
            raw("x/y.txt"),
        ],
        "torch",
    ),
    "beside another's temporary file": (
        [write("npz", "m.npz"), write("npz", ".ckptkit-1-m.npz.part")],
        "npz",
    ),
    "one folder down": ([write("torch", "sub/m.pth"), raw("README.md")], "torch"),
    "three folders down": ([write("npz", "a/b/c/m.npz")], "npz"),
    "the upper one": ([write("npz", "m.npz"), write("torch", "old/m.pth")], "npz"),
    "Hugging Face": ([write("safetensors", "model.safetensors"), trainer], "safetensors"),
    "Hugging Face, PyTorch": ([write("torch", "pytorch_model.bin"), trainer], "torch"),
    "Hugging Face, several frameworks": (
        [
            write("torch", "pytorch_model.bin", value=9),
            write("safetensors", "model.safetensors"),
            write("keras", "tf_model.h5", value=9),
            write("torch", "consolidated.00.pth", value=9),
        ],
        "safetensors",
    ),
    "Keras' SavedModel": (
        [
            write("tf", "variables/variables"),
            raw("saved_model.pb"),
            raw("keras_metadata.pb"),
            raw("assets/v.txt"),
        ],
        "tf",
    ),
    "the newest of TensorFlow": (
        [
            write("tf", "m-1", value=9),
            write("tf", "m-2"),
            raw("checkpoint", b'model_checkpoint_path: "/home/x/m-2"\n'),
        ],
        "tf",
    ),
    "an archive": ([lambda f: tarred(f, "m.tar.gz")], "tf"),
}


def tarred(folder: Path, name: str) -> None:
    write("tf", "x/m.ckpt")(folder)
    with tarfile.open(folder / name, "w:gz") as archive:
        archive.add(folder / "x", "x")
    for file in (folder / "x").iterdir():
        file.unlink()
    (folder / "x").rmdir()


@pytest.mark.parametrize("kind", ONE)
def test_the_only_checkpoint(tmp_path: Path, kind: str) -> None:
    lays, format = ONE[kind]
    for lay in lays:
        lay(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.format == format
        assert [*reader.specs] == ["w"]
        assert kind == "torch, legacy" or reader.read("w").tolist() == [1.5]


def test_a_saved_model_is_called_by_its_folder(tmp_path: Path) -> None:
    write("tf", "variables/variables")(tmp_path)
    raw("saved_model.pb", b"\x08\x01")(tmp_path)
    with open_reader(tmp_path) as by_folder, open_reader(tmp_path / "saved_model.pb") as by_graph:
        assert by_folder.path == by_graph.path == tmp_path
        assert by_graph.read("w").tolist() == [1.5]


def test_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lay in (write("torch", "model/a.pth"), write("torch", "model/b.pth"), write("npz", "model/c.npz")):
        lay(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_reader("model")
    assert str(caught.value) == "model/ holds 3 checkpoints; name one: a.pth, b.pth, c.npz"
    for name in ("a.pth", "b.pth", "c.npz"):
        open_reader(Path("model", name)).close()
    assert str(_refusal("model/")) == str(caught.value)
    with pytest.raises(UsageError, match=r"^\./ holds 3 checkpoints; name one: model/a\.pth, model/b"):
        open_reader(".")


def _refusal(path: str) -> CkptkitError:
    with pytest.raises(CkptkitError) as caught:
        open_reader(path)
    return caught.value


SEVERAL: dict[str, list[Lay]] = {
    "TensorFlow and PyTorch": [write("tf", "m.ckpt"), write("torch", "m.pth")],
    "two prefixes": [write("tf", "m-1"), write("tf", "m-2")],
    "Hugging Face and an own one": [write("safetensors", "model.safetensors"), write("torch", "ema.pth")],
    "below": [write("torch", "a/m.pth"), write("torch", "b/m.pth")],
    "eight": [write("npz", f"m{i}.npz") for i in range(8)],
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_of_a_kind(tmp_path: Path, kind: str) -> None:
    for lay in SEVERAL[kind]:
        lay(tmp_path)
    error = _refusal(str(tmp_path))
    assert isinstance(error, UsageError)
    assert error.message.endswith(f"holds {len(SEVERAL[kind])} checkpoints")
    assert str(error).endswith(" more") == (kind == "eight")


def test_a_folder_of_hugging_faces_cache(tmp_path: Path) -> None:
    """Blobs are named by their hash; the snapshot of ``main`` has the names, as links."""
    revision = "a" * 40
    write("safetensors", "blobs/model.safetensors")(tmp_path)
    (tmp_path / "blobs" / "model.safetensors").rename(tmp_path / "blobs" / ("b" * 64))
    (tmp_path / "snapshots" / revision).mkdir(parents=True)
    (tmp_path / "snapshots" / ("c" * 40)).mkdir()
    (tmp_path / "snapshots" / revision / "model.safetensors").symlink_to(f"../../blobs/{'b' * 64}")
    raw("refs/main", revision.encode())(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.read("w").tolist() == [1.5]
    raw("refs/main", b"../../..")(tmp_path)
    with pytest.raises(UsageError, match="holds 2 checkpoints"):
        open_reader(tmp_path)


def test_a_shard_without_its_index_is_a_part(tmp_path: Path) -> None:
    write("safetensors", "model-00001-of-00002.safetensors")(tmp_path)
    with pytest.raises(
        FormatError, match=r"/ holds a shard without its index; fetch model\.safetensors\.index"
    ):
        open_reader(tmp_path)
    open_reader(tmp_path / "model-00001-of-00002.safetensors").close()


def test_shards_without_their_index(tmp_path: Path) -> None:
    for number in (1, 2):
        write("safetensors", f"model-0000{number}-of-00002.safetensors")(tmp_path)
    with pytest.raises(
        FormatError, match=r"/ holds 2 shards without their index; fetch model\.safetensors\.index"
    ):
        open_reader(tmp_path)


NONE: dict[str, tuple[list[Lay], str]] = {
    "empty": ([], "/ is empty"),
    "hidden files": ([raw(".DS_Store"), raw("._x")], "/ is empty"),
    "texts": ([raw("b.txt"), raw("a.txt")], "/ holds no checkpoint, only a.txt, b.txt"),
    "a pointer": (
        [raw("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), raw("README.md")],
        "/ holds no checkpoint; model.safetensors is a Git LFS pointer",
    ),
    "another model": (
        [raw("config.json", b'{"model_type": "x"}'), raw("m.gguf", b"GGUF\x03\0\0\0")],
        "/ holds no checkpoint; m.gguf is a GGUF file",
    ),
    "what the Trainer keeps": ([trainer], "/ holds no checkpoint, only config.json, optimizer.pt"),
}


@pytest.mark.parametrize("kind", NONE)
def test_no_checkpoint(tmp_path: Path, kind: str) -> None:
    lays, said = NONE[kind]
    for lay in lays:
        lay(tmp_path)
    error = _refusal(str(tmp_path))
    assert isinstance(error, FormatError)
    assert f"{tmp_path}{said}" in str(error)


def test_links_lead_round_in_no_circle(tmp_path: Path) -> None:
    write("npz", "a/m.npz")(tmp_path)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "linked.npz").symlink_to("a/m.npz")
    with open_reader(tmp_path) as reader:
        assert reader.read("w").tolist() == [1.5]


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_very_many_files_are_not_all_looked_at(
    tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_MAX_ENTRIES", 50)
    for number in range(60):
        raw(Path(below, f"{number}.txt").as_posix())(tmp_path)
    with pytest.raises(UsageError, match=r"more than 50 files.*; name the checkpoint"):
        open_reader(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    tmp_path.chmod(0)
    with pytest.raises(CkptkitError, match="permission denied"):
        open_reader(tmp_path)
