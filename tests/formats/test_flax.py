"""Msgpack files: those that Flax writes, and others put together byte by byte from the specification."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.base.tensors import DTYPES
from ckptkit.formats.builtin import may_begin
from ckptkit.formats.detect import open_reader, writer_for
from tests.support.damage import mutations, survives
from tests.support.foreign_files import Extension, flax_array, flax_chunks, msgpack
from tests.support.tensors import same_bits

SOURCE = np.random.default_rng(3)
HELD: dict[str, Any] = {
    "params/Dense_0/kernel": SOURCE.standard_normal((3, 4)).astype("float32"),
    "params/Dense_0/bias": np.zeros(4, "float16"),
    "params/norm/scale": SOURCE.standard_normal(5).astype(ml_dtypes.bfloat16),
    "batch_stats/count": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float32"),
    "mask": np.array([True, False]),
    "wave": np.array([1 + 2j], "complex64"),
}


def nested(held: dict[str, Any]) -> dict[str, Any]:
    """Tables in tables, as ``unflatten_dict(sep="/")`` makes them."""
    root: dict[str, Any] = {}
    for name, value in held.items():
        *folders, last = name.split("/")
        table = root
        for folder in folders:
            table = table.setdefault(folder, {})
        table[last] = value
    return root


def write(path: Path, value: Any) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else msgpack(value))
    return path


def assert_held(path: Path, held: dict[str, Any]) -> None:
    with open_reader(path) as reader:
        assert reader.format == "flax"
        assert list(reader.specs) == list(held)
        for name, array in held.items():
            assert same_bits(reader.read(name), array), name
            raw = reader.raw(name)
            assert raw is None or bytes(raw.data) == array.tobytes()
            assert reader.check(name) is False
            reader.release(name)


def test_a_file_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "m.bin", nested(HELD))  # the name says nothing
    assert_held(path, HELD)
    assert may_begin("flax", path.read_bytes()[:512])


def test_what_flax_writes(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    path = write(tmp_path / "flax_model.msgpack", serialization.to_bytes(nested(HELD)))
    assert_held(path, HELD)
    assert path.read_bytes() == msgpack(nested(HELD)), "ours would be a test of itself"
    assert_held(tmp_path, HELD)


def test_a_training_state_of_flax(tmp_path: Path) -> None:
    """Numbers and texts are told, and lists have numbers for names."""
    serialization = pytest.importorskip("flax.serialization")
    state = {
        "step": 1200,
        "opt_state": [{"mu": HELD["params/Dense_0/kernel"]}, {}],
        "rate": 0.5,
        "name": "a run",
        "z": 1 + 2j,
        "loss": np.float32(0.25),
        "none": None,
    }
    write(tmp_path / "c.msgpack", serialization.to_bytes(state))
    with open_reader(tmp_path / "c.msgpack") as reader:
        assert [*reader.specs] == ["opt_state/0/mu", "loss"]
        assert reader.read("loss").item() == 0.25
        assert reader.extras == {
            "step": "1200",
            "rate": "0.5",
            "name": "a run",
            "z": "1.0 + 2.0i",
            "none": "None",
        }


def test_large_arrays_are_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    held = {"a/w": SOURCE.standard_normal((5, 3, 2)).astype("float32"), "a/b": np.zeros(4, "float32")}
    path = write(tmp_path / "m.msgpack", serialization.to_bytes(nested(held)))
    assert path.read_bytes().count(b"__msgpack_chunked_array__") == 1
    assert_held(path, held)
    by_hand = {"a": {"w": flax_chunks(held["a/w"], 10), "b": held["a/b"]}}
    assert path.read_bytes() == msgpack(by_hand)


def test_shards_of_transformers(tmp_path: Path) -> None:
    """As ``FlaxPreTrainedModel.save_pretrained`` wrote them: each shard nested, names in the index joined."""
    import json

    names = [f"flax_model-0000{number}-of-00002.msgpack" for number in (1, 2)]
    parts = [dict(list(HELD.items())[:3]), dict(list(HELD.items())[3:])]
    for name, part in zip(names, parts, strict=True):
        write(tmp_path / name, nested(part))
    homes = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    for opened in (index, tmp_path):
        assert_held(opened, HELD)
    with open_reader(tmp_path / names[0]) as reader:
        assert "one of several shards" in reader.notes[0]


def test_an_unknown_type_is_carried_as_bytes(tmp_path: Path) -> None:
    array = flax_array(np.arange(6, dtype="uint16").reshape(2, 3), dtype="float15_x")
    path = write(tmp_path / "m.msgpack", {"a": {"w": array}})
    with open_reader(path) as reader:
        assert str(reader.specs["a/w"].dtype) == "float15_x"
        assert reader.specs["a/w"].nbytes == 12
        raw = reader.raw("a/w")
        assert raw is not None and bytes(raw.data) == np.arange(6, dtype="uint16").tobytes()


def test_it_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="flax files are read, not written"):
        writer_for("flax")(tmp_path / "m.msgpack", [], {})


# -- damaged and hostile -------------------------------------------------------------------------------------

TABLE = b"\x81\xa1w"
DEEP = b"\x81\xa1w" * 5000 + b"\x01"
W = np.arange(4, dtype="float32")


def chunked(**changes: Any) -> bytes:
    return msgpack({"w": flax_chunks(W, 2) | changes})


BAD: dict[str, tuple[bytes, str]] = {
    "cut off": (msgpack({"w": W})[:-1], "it ends early"),
    "more": (msgpack({"w": W}) + b"\0", "1 bytes after its end"),
    "a key twice": (b"\x82" + 2 * (msgpack("w") + msgpack(W)), "the key 'w' occurs twice"),
    "two ways to one name": (msgpack({"a/b": W, "a": {"b": W}}), "two tensors are called 'a/b'"),
    "no arrays": (msgpack({"w": 3}), "a msgpack file without arrays"),
    "deep": (DEEP, "more than 100 tables in each other"),
    "a list of four billion": (TABLE + b"\xdd\xff\xff\xff\xff", "it ends early"),
    "a table of four billion": (TABLE + b"\xdf\xff\xff\xff\xff", "it ends early"),
    "a text of four billion": (TABLE + b"\xdb\xff\xff\xff\xff", "it ends early"),
    "an array of four billion": (TABLE + b"\xc9\xff\xff\xff\xff\x01", "it ends early"),
    "no such code": (b"\x82" + msgpack("w") + msgpack(W) + msgpack("x") + b"\xc1", "0xc1"),
    "a table as key": (b"\x82" + msgpack("w") + msgpack(W) + b"\x80\x01", "neither a text nor a number"),
    "no UTF-8": (TABLE + b"\xd9\x01\xff", "not UTF-8"),
    "an array of nothing": (msgpack({"w": Extension(1, b"")}), "it ends early"),
    "an array of two": (msgpack({"w": Extension(1, msgpack([[4], "float32"]))}), "is not its shape"),
    "a shape of texts": (msgpack({"w": Extension(1, msgpack([["4"], "float32", b""]))}), "is not its shape"),
    "a shape of bools": (msgpack({"w": Extension(1, msgpack([[True], "int8", b"1"]))}), "is not its shape"),
    "short": (msgpack({"w": Extension(1, msgpack([[5], "float32", b"1234"]))}), "needs 20 bytes, not 4"),
    "negative": (msgpack({"w": Extension(1, msgpack([[-1], "float32", b"1234"]))}), "has the shape [-1]"),
    "vast": (msgpack({"w": Extension(1, msgpack([[1 << 40] * 4, "float32", b""]))}), "needs"),
    "a type of no size": (msgpack({"w": Extension(1, msgpack([[3], "odd", b"1234"]))}), "of type 'odd'"),
    "a type of control characters": (
        msgpack({"w": Extension(1, msgpack([[1], "\x1b[31m", b"1"]))}),
        "of type",
    ),
    "chunks of two types": (chunked(chunks={"0": W[:2], "1": W[2:].astype("int32")}), "not those of one"),
    "a chunk less": (chunked(chunks={"0": W[:2]}), "not those of one array"),
    "no chunks": (chunked(chunks={}), "not those of one array"),
    "chunks without numbers": (chunked(chunks={"0": W[:2], "x": W[2:]}), "are not numbered"),
    "a chunk that is none": (chunked(chunks={"0": 3}), "is not its shape"),
    "no shape": (chunked(shape=3), "are not numbered"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path: Path, kind: str) -> None:
    raw, said = BAD[kind]
    path = write(tmp_path / "m.msgpack", raw)
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert time.process_time() - start < 1
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def test_many_small_values_are_bounded(tmp_path: Path) -> None:
    """Each byte of it is a value: the budget ends it, not the memory."""
    raw = (
        b"\x82"
        + msgpack("w")
        + msgpack(W)
        + msgpack("x")
        + b"\xdd"
        + (3 << 20).to_bytes(4, "big")
        + b"\1" * (3 << 20)
    )
    start = time.process_time()
    with pytest.raises(FormatError, match=r"more than [\d,]+ (steps of work|values and entries)"):
        open_reader(write(tmp_path / "m.msgpack", raw))
    assert time.process_time() - start < 3


def test_mutations(tmp_path: Path) -> None:
    path = tmp_path / "m.msgpack"
    raw = msgpack(nested(HELD) | {"big": flax_chunks(W, 2)})
    opened = sum(survives(path, damaged, open_reader) for damaged in mutations(raw, 300, seed=8))
    assert 0 < opened < 300


def test_every_type_that_flax_can_name() -> None:
    jnp = pytest.importorskip("jax.numpy")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float32", "int8", "uint32", "bool_"):
        dtype = np.dtype(getattr(jnp, name))
        assert DTYPES[dtype.name].numpy == dtype
