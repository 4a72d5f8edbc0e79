"""A result takes the place of every earlier one of its name, and of nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import CkptkitError, UsageError
from ckptkit.base.files import TEMPORARY
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats import replacing
from ckptkit.formats.detect import open_reader, writer_for

Write = Callable[[Path, int], None]
"""Writes a checkpoint whose tensors have a value to a name."""

TENSORS = 4


def write(format: str, path: Path, value: int, **more: object) -> list[Path]:
    specs = [TensorSpec(f"w{i}", DTYPES["uint8"], (50,)) for i in range(TENSORS)]
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
    "m.bin": {"torch": lambda p, v: write("torch", p, v)},
    "m": {
        "tf": lambda p, v: write("tf", p, v),
        "npz": lambda p, v: write("npz", p, v),
        "shards": lambda p, v: write("safetensors", p, v, max_shard_size=100),
    },
}
BEFORE: dict[str, dict[str, Write]] = {
    **WAYS,
    "m.bin": {**WAYS["m.bin"], "shards": torch_in_shards},
    "m.ckpt": {**WAYS["m.ckpt"], "three data files": tf_of_three_files},
}
ORDERS = [
    pytest.param(name, old, new, id=f"{name}: {new} over {old}")
    for name in WAYS
    for old, new in itertools.product(BEFORE[name], WAYS[name])
]


def held(path: Path) -> int | None:
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
    assert held(folder) == 1
    bystanders = {"m-mine.safetensors", "n.ckpt.data-00000-of-00003", "m.ckpt.data-00000-of-00009", "m.txt"}
    for one in bystanders:
        (folder / one).write_bytes(b"mine")
    WAYS[name][new](folder / name, 2)
    assert names(folder) == names(alone) | bystanders
    for one in bystanders:
        (folder / one).unlink()
    assert held(folder) == 2


@pytest.mark.parametrize(("name", "old", "new"), ORDERS)
def test_without_force_nothing_is_touched(tmp_path: Path, name: str, old: str, new: str) -> None:
    BEFORE[name][old](tmp_path / name, 1)
    before = names(tmp_path)
    if (old == "shards") == (new == "shards") or name == "m.bin":  # of "m" these are m.safetensors…
        with pytest.raises(UsageError, match="exists already"):
            replacing.refuse_existing_checkpoint(tmp_path / name, force=False)
    assert names(tmp_path) == before and held(tmp_path) == 1


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


@pytest.mark.parametrize(("name", "old", "new"), ORDERS)
def test_killed_before_every_change_of_a_name(tmp_path: Path, name: str, old: str, new: str) -> None:
    before = tmp_path / "before"
    before.mkdir()
    BEFORE[name][old](before / name, 1)
    seen: list[int | None] = []
    for step in itertools.count():
        folder = tmp_path / str(step)
        shutil.copytree(before, folder)
        killed = killed_at(step, folder, lambda folder=folder: WAYS[name][new](folder / name, 2))
        seen.append(held(folder))
        assert not any(n.startswith(TEMPORARY) for n in names(folder)) or killed
        WAYS[name][new](folder / name, 2)
        assert held(folder) == 2 and not any(n.startswith(TEMPORARY) for n in names(folder))
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
    real, calls = replacing.StagedFile.rename, iter(range(100))

    def rename(file: replacing.StagedFile) -> Path:
        if next(calls) == failing:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(replacing.StagedFile, "rename", rename)
    with contextlib.suppress(KeyboardInterrupt):
        write("safetensors", tmp_path / "m.safetensors", 2, max_shard_size=100)
    if failing < 3:
        assert names(tmp_path) == before and held(tmp_path) == 1
    else:
        assert held(tmp_path) == 2


def test_a_shard_that_another_index_names_stays(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    write("safetensors", tmp_path / "m.safetensors", 1, max_shard_size=100)
    (tmp_path / "kept.safetensors.index.json").write_bytes(index.read_bytes())
    shards = names(tmp_path) - {index.name}
    write("safetensors", tmp_path / "m.safetensors", 2)
    assert names(tmp_path) == shards | {"m.safetensors"}
    assert held(tmp_path / "kept.safetensors.index.json") == 1


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
    assert names(folder) == {"m.safetensors"} and names(store) == kept and held(store) == 1


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
        assert held(folder) in range(1, 7)
        assert not any(name.startswith(TEMPORARY) for name in names(folder))
