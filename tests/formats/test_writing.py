"""What every writer promises: tensors in any order, and the place of every earlier result of the name."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from ckptkit.base.errors import CkptkitError, ConversionError, UsageError
from ckptkit.base.files import TEMPORARY
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats import writing
from ckptkit.formats.detect import open_reader, writer_for
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
        with pytest.raises(ValueError, match=r"1 tensor was never written"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


SHARDED = [
    pytest.param(partial(SafetensorsWriter, max_shard_size=1000), "m.safetensors", id="shards"),
    pytest.param(partial(KerasH5Writer, max_shard_size=1000), "m.weights.h5", id="shards of Keras"),
    pytest.param(partial(TorchWriter, max_shard_size=1000), "m.bin", id="shards of PyTorch"),
]


@pytest.mark.parametrize(("kind", "name"), [*WRITERS, *SHARDED])
def test_metadata_told_late_gives_the_same_bytes_as_told_at_once(
    kind: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    held = {"a/vars/0": np.arange(300, dtype=np.float32), "b/vars/0": np.ones((2, 40), np.float16)}
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
    path = next((file for file in others if file.name.endswith(".json")), tmp_path / "late" / name)
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


# ----------------------------------------------------------------------------------------------------
# A result takes the place of every earlier one of its name, and of nothing else.

Write = Callable[[Path, int], None]
"""Writes a checkpoint whose tensors have a value to a name."""

TENSORS = 4


def write(format: str, path: Path, value: int, **more: object) -> list[Path]:
    specs = [TensorSpec(f"w{i}/vars/0", DTYPES["uint8"], (50,)) for i in range(TENSORS)]
    with writer_for(format)(path, specs, {}, force=True, **more) as writer:
        for name in writer.order:
            writer.write(name, np.full(50, value, np.uint8))
        return list(writer.finish())


def torch_in_shards(path: Path, value: int) -> None:
    """As Hugging Face's libraries wrote PyTorch files."""
    homes = {}
    for i in range(TENSORS):
        name = f"{path.name.removesuffix('.bin')}-{i + 1:05}-of-{TENSORS:05}.bin"
        spec = TensorSpec(f"w{i}", DTYPES["uint8"], (50,))
        with writer_for("torch")(path.with_name(name), [spec], {}, force=True) as writer:
            writer.write(spec.name, np.full(50, value, np.uint8))
            writer.finish()
        homes[spec.name] = name
    path.with_name(path.name + ".index.json").write_text(json.dumps({"weight_map": homes}))


def tf_of_three_files(path: Path, value: int) -> None:
    """As a saver with three data files would: the index names their number."""
    write("tf", path, value)
    from ckptkit.base.checksums import crc32c
    from ckptkit.formats.tf_index import (
        BundleEntry,
        BundleHeader,
        build_table,
        encode_entry,
        encode_header,
        index_path,
        mask,
        shard_path,
    )

    body = bytes([value]) * 50
    for i in range(3):
        shard_path(path, i, 3).write_bytes(body * 2 if i == 0 else body)
    places = {0: (0, 0), 1: (0, 50), 2: (1, 0), 3: (2, 0)}
    entries = [
        (f"w{i}".encode(), encode_entry(BundleEntry(4, (50,), shard, offset, 50, mask(crc32c(body)))))
        for i, (shard, offset) in places.items()
    ]
    header = encode_header(BundleHeader(num_shards=3, metadata={}))
    index_path(path).write_bytes(build_table([(b"", header), *entries]))
    shard_path(path, 0, 1).unlink()


WAYS: dict[str, dict[str, Write]] = {
    "m.safetensors": {
        "one file": lambda p, v: write("safetensors", p, v),
        "two shards": lambda p, v: write("safetensors", p, v, max_shard_size=100),
        "four shards": lambda p, v: write("safetensors", p, v, max_shard_size=50),
    },
    "m.ckpt": {
        "tf": lambda p, v: write("tf", p, v),
        "torch": lambda p, v: write("torch", p, v),
    },
    "m.bin": {
        "one file": lambda p, v: write("torch", p, v),
        "two shards": lambda p, v: write("torch", p, v, max_shard_size=100),
    },
    "m.weights.h5": {
        "one file": lambda p, v: write("keras", p, v),
        "two shards": lambda p, v: write("keras", p, v, max_shard_size=100),
        "four shards": lambda p, v: write("keras", p, v, max_shard_size=50),
    },
    "m": {
        "tf": lambda p, v: write("tf", p, v),
        "npz": lambda p, v: write("npz", p, v),
        "shards": lambda p, v: write("safetensors", p, v, max_shard_size=100),
    },
}
BEFORE: dict[str, dict[str, Write]] = {
    **WAYS,
    "m.bin": {**WAYS["m.bin"], "shards of others": torch_in_shards},
    "m.ckpt": {**WAYS["m.ckpt"], "three data files": tf_of_three_files},
}
ORDERS = [
    pytest.param(name, old, new, id=f"{name}: {new} over {old}")
    for name in WAYS
    for old, new in itertools.product(BEFORE[name], WAYS[name])
]

MORE_OF_IT = [
    *(("one file", "four shards"), ("four shards", "one file"), ("four shards", "four shards")),
    *(("two shards", "four shards"), ("four shards", "two shards")),
    *(("npz", "shards"), ("npz", "tf"), ("tf", "npz")),
]
"""Orders that change names as others do, and more of them."""
AS_SAFETENSORS = {"m.bin": "two shards", "m.weights.h5": "one file"}
"""Of whose shards, changed as those of safetensors are, only what replaces this is quick."""


def takes_long(name: str, old: str, new: str) -> bool:
    """Whether a row is slow, because a quick one does the same."""
    return (old, new) in MORE_OF_IT or AS_SAFETENSORS.get(name, old) != old


def value_at(path: Path) -> int | None:
    """The value of all tensors at a path; None where nothing opens. A mixture fails."""
    try:
        with open_reader(path) as reader:
            values = {int(v) for name in reader.specs for v in np.unique(reader.read(name))}
            assert len(reader.specs) == TENSORS
    except CkptkitError:
        return None
    assert len(values) == 1, "a mixture"
    return values.pop()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "old", "new"), ORDERS)
def test_what_opens_is_the_new_one(tmp_path: Path, name: str, old: str, new: str) -> None:
    alone, folder = tmp_path / "alone", tmp_path / "folder"
    for place in (alone, folder):
        place.mkdir()
    WAYS[name][new](alone / name, 2)
    BEFORE[name][old](folder / name, 1)
    assert value_at(folder) == 1
    bystanders = {"m-mine.safetensors", "n.ckpt.data-00000-of-00003", "m.ckpt.data-00000-of-00009", "m.txt"}
    for one in bystanders:
        (folder / one).write_bytes(b"mine")
    WAYS[name][new](folder / name, 2)
    assert names(folder) == names(alone) | bystanders
    for one in bystanders:
        (folder / one).unlink()
    assert value_at(folder) == 2


@pytest.mark.parametrize(("name", "old", "new"), ORDERS)
def test_without_force_nothing_is_touched(tmp_path: Path, name: str, old: str, new: str) -> None:
    BEFORE[name][old](tmp_path / name, 1)
    before = names(tmp_path)
    if (old == "shards") == (new == "shards") or name == "m.bin":  # of "m" these are m.safetensors…
        with pytest.raises(UsageError, match="exists already"):
            writing.refuse_existing_checkpoint(tmp_path / name, force=False)
    assert names(tmp_path) == before and value_at(tmp_path) == 1


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Run something in a process that is killed before its n-th change of a name; whether it was."""
    child = os.fork()
    if not child:
        left = [step]

        def counted(real):
            def call(*arguments, **named):
                if str(arguments[0]).startswith(str(folder)):
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                return real(*arguments, **named)

            return call

        for owner, call in itertools.product((os, Path), ("rename", "replace", "unlink")):
            setattr(owner, call, counted(getattr(owner, call)))
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param(*one.values, id=one.id, marks=pytest.mark.slow if takes_long(*one.values) else ())
        for one in ORDERS
    ],
)
def test_killed_before_every_change_of_a_name(tmp_path: Path, name: str, old: str, new: str) -> None:
    before = tmp_path / "before"
    before.mkdir()
    BEFORE[name][old](before / name, 1)
    seen: list[int | None] = []
    for step in itertools.count():
        folder = tmp_path / str(step)
        shutil.copytree(before, folder)
        killed = killed_at(step, folder, lambda folder=folder: WAYS[name][new](folder / name, 2))
        seen.append(value_at(folder))
        assert not any(n.startswith(TEMPORARY) for n in names(folder)) or killed
        WAYS[name][new](folder / name, 2)
        assert value_at(folder) == 2 and not any(n.startswith(TEMPORARY) for n in names(folder))
        if not killed:
            break
        left = names(folder)
        shutil.rmtree(folder)
    assert left == names(folder), "what was begun is ended by the next"
    assert len(seen) > 1 and seen[0] == 1 and seen[-1] == 2
    after = seen[seen.index(2) :]
    assert set(after) == {2}, f"once it stands, it stays: {seen}"
    assert [one for one in seen if one is not None] == sorted(one for one in seen if one is not None)


@pytest.mark.parametrize("failing", range(4))
def test_what_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    write("safetensors", tmp_path / "m.safetensors", 1)
    before = names(tmp_path)
    real, calls = writing.StagedFile.rename, iter(range(100))

    def rename(file: writing.StagedFile) -> Path:
        if next(calls) == failing:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(writing.StagedFile, "rename", rename)
    with contextlib.suppress(KeyboardInterrupt):
        write("safetensors", tmp_path / "m.safetensors", 2, max_shard_size=100)
    if failing < 3:
        assert names(tmp_path) == before and value_at(tmp_path) == 1
    else:
        assert value_at(tmp_path) == 2


def test_a_shard_that_another_index_names_stays(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    write("safetensors", tmp_path / "m.safetensors", 1, max_shard_size=100)
    (tmp_path / "kept.safetensors.index.json").write_bytes(index.read_bytes())
    shards = names(tmp_path) - {index.name}
    write("safetensors", tmp_path / "m.safetensors", 2)
    assert names(tmp_path) == shards | {"m.safetensors"}
    assert value_at(tmp_path / "kept.safetensors.index.json") == 1


def test_what_an_index_names_beside_its_own_shards_stays(tmp_path: Path) -> None:
    victim = tmp_path / "n-00001-of-00002.safetensors"
    victim.write_bytes(b"another's")
    (tmp_path / "other.safetensors").write_bytes(b"another's")
    homes = {"a": victim.name, "b": "other.safetensors", "c": "m.safetensors"}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    write("safetensors", tmp_path / "m.safetensors", 2)
    assert names(tmp_path) == {victim.name, "other.safetensors", "m.safetensors"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {"a": "../x"}}'])
def test_a_damaged_index_goes_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(text)
    (tmp_path / "m-00001-of-00002.safetensors").write_bytes(b"mine")
    write("safetensors", tmp_path / "m.safetensors", 2)
    assert names(tmp_path) == {"m-00001-of-00002.safetensors", "m.safetensors"}


def test_links_among_the_old_are_removed_and_what_they_lead_to_is_not(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    store.mkdir()
    folder.mkdir()
    write("safetensors", store / "m.safetensors", 1, max_shard_size=100)
    for name in names(store) - {"m.safetensors.index.json"}:
        (folder / name).symlink_to(store / name)
    shutil.copy(store / "m.safetensors.index.json", folder)
    kept = names(store)
    write("safetensors", folder / "m.safetensors", 2)
    assert names(folder) == {"m.safetensors"} and names(store) == kept and value_at(store) == 1


def test_writers_of_all_kinds_at_once_leave_one_whole(tmp_path: Path) -> None:
    for round_ in range(4):
        folder = tmp_path / str(round_)
        folder.mkdir()
        children = []
        for number, way in enumerate((*WAYS["m.safetensors"].values(),) * 2, 1):
            child = os.fork()
            if not child:
                try:
                    for _ in range(3):
                        way(folder / "m.safetensors", number)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
        assert value_at(folder) in range(1, 7)
        assert not any(name.startswith(TEMPORARY) for name in names(folder))
