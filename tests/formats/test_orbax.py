"""Orbax checkpoints: those that Orbax itself saves, and others that tensorstore makes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, MissingDependencyError, UsageError
from ckptkit.formats.detect import open_reader, writer_for
from tests.support.orbax_files import orbax_files, tree
from tests.support.tensors import same_bits

pytest.importorskip("tensorstore")

W = np.random.default_rng(16).standard_normal((5, 4)).astype("float32")
HELD: dict[str, Any] = {
    "params/a/kernel": W,
    "params/a/bias": W[0].astype(ml_dtypes.bfloat16),
    "params/list/0": np.arange(3),
    "flags": np.array([True, False]),
    "step": np.int32(7),
}


def place(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def assert_held(path: Path, held: Mapping[str, Any] = HELD) -> None:
    with open_reader(path) as reader:
        assert reader.format == "orbax"
        assert {*reader.specs} == {*held}
        assert not reader.left_out
        for name, array in held.items():
            assert same_bits(reader.read(name), np.asarray(array)), name
            assert not reader.read(name).flags.writeable


# -- against Orbax -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Orbax saves: its stores by name, and a folder of steps."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    orbax = pytest.importorskip("orbax.checkpoint")
    jax = pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("orbax")
    arrays = {"a": {"kernel": jax.numpy.asarray(W), "bias": jax.numpy.asarray(HELD["params/a/bias"])}}
    state: dict[str, Any] = {"params": {**arrays, "list": [np.arange(3)]}, "flags": HELD["flags"]}
    state["step"] = HELD["step"]
    more = {**state, "rate": 0.5, "name": "run", "nothing": None, "empty": {}}
    kinds = {"ocdbt": {}, "zarr": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}
    kinds["zarr3 in folders"] = {"use_zarr3": True, "use_ocdbt": False}
    for name, options in kinds.items():
        orbax.PyTreeCheckpointer(**options).save(folder / name, more)
    small = jax.tree.map(lambda _: orbax.SaveArgs(chunk_byte_size=16), more)
    orbax.PyTreeCheckpointer(use_ocdbt=False).save(folder / "chunks", more, save_args=small)
    standard = orbax.StandardCheckpointer()
    standard.save(folder / "standard", state)
    standard.wait_until_finished()
    with orbax.CheckpointManager(folder / "steps") as manager:
        for step in (1, 2):
            items = {"state": orbax.args.StandardSave(state), "note": orbax.args.JsonSave({"a": 1})}
            manager.save(step, args=orbax.args.Composite(**items))
        manager.wait_until_finished()
    return folder


@pytest.mark.parametrize("name", ["ocdbt", "zarr", "zarr3", "zarr3 in folders", "chunks"])
def test_a_tree(saved: Path, name: str) -> None:
    if name == "chunks":
        assert len([*(saved / name / "params.a.kernel").iterdir()]) > 4
    assert_held(saved / name, {**HELD, "rate": np.float64(0.5)})
    with open_reader(saved / name) as reader:
        assert reader.extras == {"name": "run", "nothing": "None", "empty": "an empty Dict"}


def test_a_standard_checkpoint_and_steps(saved: Path) -> None:
    for given in ("standard", "steps/2", "steps/1/state"):
        assert_held(saved / given)
    with pytest.raises(UsageError, match="holds 2 checkpoints"):
        open_reader(saved / "steps")


# -- made by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_stores(tmp_path: Path, driver: str, ocdbt: bool, chunk: int | None) -> None:
    assert_held(place(tmp_path, orbax_files(HELD, driver, ocdbt=ocdbt, chunk=chunk)))


def test_without_its_tree_names_are_those_of_the_store(tmp_path: Path) -> None:
    files = orbax_files({"a/w": W})
    del files["_METADATA"]
    assert_held(place(tmp_path, files), {"a.w": W})


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    files = orbax_files({"w": W})
    files["_METADATA"] = tree({"w": "jax.Array", "a/lost": "jax.Array", "text": "string"})
    with open_reader(place(tmp_path, {**files, "checkpoint": b"x"})) as reader:
        aggregate = "an aggregate file of older versions of Orbax, which is not read"
        assert reader.left_out == {"a/lost": "its array (jax.Array) is not there", "checkpoint": aggregate}
        assert reader.extras == {"text": "a text"}


def test_several_items_are_named(tmp_path: Path) -> None:
    for item in ("ema", "state"):
        place(tmp_path / item, orbax_files({"w": W}))
    (tmp_path / "_CHECKPOINT_METADATA").write_bytes(b"{}")
    with pytest.raises(UsageError, match="2 items with arrays") as caught:
        open_reader(tmp_path)
    assert caught.value.hint == "name one: ema, state"


def test_without_tensorstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, orbax_files({"w": W}))
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingDependencyError, match="needs tensorstore") as caught:
        open_reader(tmp_path)
    assert "pip install" in (caught.value.hint or "")
    assert "tensorstore" in (caught.value.hint or "")


def test_it_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="orbax files are read, not written"):
        writer_for("orbax")(tmp_path / "m", [], {})


# -- damaged and hostile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ocdbt", [True, False])
def test_no_link_is_followed(tmp_path: Path, ocdbt: bool) -> None:
    outside = place(tmp_path / "outside", orbax_files({"w": W}, ocdbt=False))
    folder = place(tmp_path / "m", orbax_files({"v": W}, ocdbt=ocdbt))
    (folder / "w").symlink_to(outside / "w")
    with pytest.raises(FormatError, match="is a link in an Orbax checkpoint"):
        open_reader(folder)


def zarray(**more: Any) -> bytes:
    usual = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "<f4", "compressor": None}
    return json.dumps({**usual, "fill_value": None, "filters": None, "order": "C", **more}).encode()


HOSTILE = {
    "vast": zarray(shape=[1 << 40], chunks=[1 << 40]),
    "a vast chunk": zarray(chunks=[1 << 40]),
    "vast in many chunks": zarray(shape=[1 << 50]),
    "beyond all bounds": zarray(shape=[1 << 61] * 2, chunks=[1, 1]),
    "negative": zarray(shape=[-1]),
    "no description": b"[]",
    "not JSON": b"\xff{",
    "another store": json.dumps({"driver": "file", "path": "/etc/passwd"}).encode(),
    "a codec that nobody knows": zarray(compressor={"id": "evil"}),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_descriptions_are_refused(tmp_path: Path, kind: str) -> None:
    place(tmp_path, {"w/.zarray": HOSTILE[kind], "w/0": bytes(8), "_METADATA": tree({"w": "jax.Array"})})
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(tmp_path)
    assert time.process_time() - start < 1
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_damaged_elements(tmp_path: Path) -> None:
    files = orbax_files({"w": W}, ocdbt=False)
    (chunk,) = [name for name in files if name.startswith("w/") and not name.endswith(".zarray")]
    place(tmp_path, {**files, chunk: files[chunk][:-3]})
    with open_reader(tmp_path) as reader, pytest.raises(FormatError, match="tensor 'w'"):
        reader.read("w")


@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_store_without_arrays(tmp_path: Path, ocdbt: bool) -> None:
    files = {"_METADATA": tree({"a": "None"})}
    with pytest.raises(FormatError, match="without arrays"):
        open_reader(place(tmp_path, files if not ocdbt else {**files, "d/x": b""}))
