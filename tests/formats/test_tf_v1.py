"""TensorFlow V1 checkpoints built byte by byte; test_tf_bundle_with_tensorflow has TensorFlow's own."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.formats.builtin import may_begin
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.tf_bundle import TfBundleReader
from tests.fuzz.tf_seeds import table_of_blocks
from tests.support import tf_files
from tests.support.damage import mutations, no_maps, survives
from tests.support.tensors import same_bits
from tests.support.tf_files import message, varint
from tests.support.tf_protos import LISTS, NUMBERS, listed, numbers, slices_entry, v1_entries, v1_file

SOURCE = np.random.default_rng(15)
W = SOURCE.standard_normal((6, 4)).astype("float32")
TYPES = sorted(LISTS.keys() - {"bfloat16"})
HELD: dict[str, Any] = {
    "a/w": W,
    "b": np.float32(2.5),
    "empty": np.zeros((0, 3), "float32"),
    **{f"t/{name}": SOURCE.integers(0, 2, (2, 3)).astype(name) for name in TYPES},
}
ROWS = [((0, 2), (0, -1)), ((2, 4), (0, -1))]


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def assert_held(path: Path, held: dict[str, Any] = HELD) -> None:
    with open_reader(path) as reader:
        assert reader.format == "tf1"
        assert reader.path == path
        assert {*reader.specs} == {*held}
        for name, array in held.items():
            assert same_bits(reader.read(name), np.asarray(array)), name
            assert not reader.read(name).flags.writeable
            raw = reader.raw(name)
            assert raw is None or bytes(raw.data) == array.tobytes()
            assert reader.check(name) is True
            reader.release(name)
        reader.check_rest()
        assert not reader.left_out
        assert not reader.extras


@pytest.mark.parametrize("per_block", [1, 3, 1000])
@pytest.mark.parametrize("snappy", [False, True])
def test_a_file_by_hand(tmp_path: Path, snappy: bool, per_block: int) -> None:
    raw = v1_file(v1_entries(HELD, {"a/w": ROWS}), snappy=snappy, per_block=per_block)
    assert_held(write(tmp_path / "m.ckpt", raw))
    assert may_begin("tf1", raw[:200])


def test_where_files_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmap.mmap", no_maps)
    assert_held(write(tmp_path / "m.ckpt", v1_file(v1_entries(HELD, {"a/w": ROWS}), per_block=2)))


def test_numbers_of_a_fixed_size_are_views_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.ckpt", v1_file(v1_entries(HELD)))
    with open_reader(path) as reader:
        assert not reader.read("a/w").flags.owndata
        assert reader.raw("a/w") is not None
        assert reader.raw("t/int32") is None
        view = reader.read("a/w")
    assert same_bits(view, W)


def test_views_outlive_the_reader_and_its_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "m.ckpt", v1_file(v1_entries(HELD), per_block=1, snappy=True))
    with open_reader(path) as reader:
        views = {name: reader.read(name) for name in reader.specs}
        for name in views:
            reader.release(name)
    assert all(same_bits(views[name], np.asarray(array)) for name, array in HELD.items())


SHARDS = {
    "m-00000-of-00002": v1_file(v1_entries({"p": W, "b": HELD["b"]}, {"p": ROWS[:1]})),
    "m-00001-of-00002": v1_file(v1_entries({"p": W, "c": W * 2}, {"p": ROWS[1:]})),
}
STATE = b'model_checkpoint_path: "/home/x/m-?????-of-00002"\n'


@pytest.mark.parametrize("given", ["m", "m-00000-of-00002", "m-00001-of-00002", "checkpoint", "."])
def test_shards(tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable may be in parts, and these in several files."""
    monkeypatch.chdir(tmp_path)
    for name, raw in {**SHARDS, "checkpoint": STATE}.items():
        write(Path(name), raw)
    with open_reader(given) as reader:
        assert reader.format == "tf1"
        assert not reader.notes
        held = {name: reader.read(name) for name in reader.specs}
    assert same_bits(held.pop("p"), W)
    assert same_bits(held.pop("c"), W * 2)
    assert held.keys() == {"b"}


@pytest.mark.parametrize("given", ["m", "m-00000-of-00002", "."])
def test_a_missing_shard_is_named(tmp_path: Path, given: str) -> None:
    write(tmp_path / "m-00000-of-00002", SHARDS["m-00000-of-00002"])
    with pytest.raises(FormatError, match="its shard m-00001-of-00002 is missing"):
        open_reader(tmp_path / given)


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "m-00000-of-00002", SHARDS["m-00000-of-00002"])
    write(tmp_path / "m-00001-of-00002", v1_file(v1_entries({"p": W[:5]})))
    with pytest.raises(FormatError, match="tensor 'p' has another type or shape in another shard"):
        open_reader(tmp_path / "m")
    write(tmp_path / "m-00001-of-00002", v1_file(v1_entries({"p": W})))
    with pytest.raises(FormatError, match="'p': its parts overlap"):
        open_reader(tmp_path / "m")


def test_the_newest_of_a_folder(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path / f"m.ckpt-{step}", v1_file(v1_entries({"b": np.float32(step)})))
    with pytest.raises(UsageError, match="holds 2 checkpoints"):
        open_reader(tmp_path)
    write(tmp_path / "checkpoint", b'model_checkpoint_path: "m.ckpt-2"\n')
    with open_reader(tmp_path) as reader:
        assert reader.read("b") == 2


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "m", v1_file(v1_entries({"p": W, "b": W}, {"p": ROWS[1:]})))
    with open_reader(path) as reader:
        assert reader.left_out == {"p": "parts are missing: 16 of 24 elements are there"}
        assert [*reader.specs] == ["b"]


def with_listed(*more: bytes, entries: Any = ()) -> bytes:
    """A file of ``b``, whose list has more."""
    made = v1_entries({"b": W})
    meta = message((1, listed("b", 1, W.shape, [((0, -1),) * 2])), *((1, one) for one in more))
    return v1_file([(b"", message((1, meta))), *made[1:], *entries])


def test_what_is_no_number_is_told(tmp_path: Path) -> None:
    whole = [((0, -1),)]
    raw = with_listed(listed("words", 7, (2,), whole), listed("odd", 90, (2,), whole))
    with open_reader(write(tmp_path / "m", raw)) as reader:
        assert reader.extras == {"words": "strings [2]"}
        assert reader.left_out == {"odd": "elements of a type that is not known here (DataType 90)"}


def test_reference_types(tmp_path: Path) -> None:
    """TF1 typed variables 100 higher."""
    key, value = slices_entry("r", ((0, -1),), message((5, numbers(W[0]))))
    raw = with_listed(listed("r", 101, (4,), [((0, -1),)]), entries=[(key, value)])
    with open_reader(write(tmp_path / "m", raw)) as reader:
        assert same_bits(reader.read("r"), W[0])


def test_it_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tf1 files are read, not written"):
        writer_for("tf1")(tmp_path / "m", [], {})


def test_a_v2_index_is_not_one(tmp_path: Path) -> None:
    tf_files.write_checkpoint(tmp_path / "m", {"b": W})
    for given in ("m", "m.index", "."):
        with open_reader(tmp_path / given) as reader:
            assert reader.format == "tf"
    with pytest.raises(FormatError, match=r"no header entry|damaged header"):
        TfBundleReader(write(tmp_path / "n.index", v1_file(v1_entries({"b": W}))))


# -- damaged and hostile -------------------------------------------------------------------------------------

GOOD = v1_file(v1_entries(HELD, {"a/w": ROWS}))


def listing(*listed: bytes) -> bytes:
    return v1_file([(b"", message((1, message(*((1, one) for one in listed)))))])


def hidden(*names: bytes) -> bytes:
    return v1_file([*v1_entries({"b": W})[:1], *((name, b"") for name in names)])


WHOLE = [((0, -1),)]
BAD: dict[str, tuple[bytes, str]] = {
    "cut off": (GOOD[:-1], "not a checkpoint of any known format"),
    "a cut block": (GOOD[40:], "a block of 8 bytes runs past the end"),
    "a list that is none": (v1_file([(b"", b"\x0a\x03abc")]), "damaged list of tensors"),
    "vast": (listing(listed("w", 1, (1 << 61,), WHOLE)), "impossible shape"),
    "negative": (listing(listed("w", 1, (-1,), WHOLE)), "impossible shape"),
    "many axes": (listing(listed("w", 1, (1,) * 40, [((0, -1),) * 40])), "at most 32"),
    "no type": (listing(listed("w", 0, (1,), WHOLE)), "no element type has the number 0"),
    "twice": (
        listing(listed("w", 1, (1,), WHOLE), listed("w", 1, (1,), WHOLE)),
        "two tensors are called 'w'",
    ),
    "a part outside": (listing(listed("w", 1, (4,), [((2, 3),)])), "a part 2:5 leaves"),
    "overlapping": (listing(listed("w", 1, (4,), [((0, 3),), ((2, 2),)])), "its parts overlap"),
    "a part with other axes": (listing(listed("w", 1, (4,), [((0, 1), (0, 1))])), "a part has 2 axes, not 1"),
    "many parts": (
        listing(listed("w", 1, (70,), [((start, 1),) for start in range(60)] * 30)),
        "in a file of|overlap",
    ),
    "control characters": (listing(listed("a\nb", 1, (1,), WHOLE)), "control characters"),
    "a block beyond the end": (
        table_of_blocks(
            [tf_files.block([(b"", b"\x0ax")])], 0, tf_files.block([(b"z", varint(0) + varint(1 << 40))])
        ),
        "bytes between two blocks",
    ),
    "a snappy bomb": (
        table_of_blocks([varint(1 << 34) + bytes(50)], 1, keys=[b"z"]),
        "a snappy block of 55 bytes claims to hold",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path: Path, kind: str) -> None:
    raw, said = BAD[kind]
    path = write(tmp_path / "m.ckpt", raw)
    start = time.process_time()
    with pytest.raises((FormatError, NotFoundError), match=said) as caught:
        open_reader(path)
    assert time.process_time() - start < 1
    assert str(caught.value).isprintable()


def one(held: bytes, kind: int = 1, value: bytes | None = None) -> bytes:
    """A file of one tensor of 24 elements, which is not as it should be."""
    key, made = slices_entry("w", ((0, -1), (0, -1)), held)
    meta = message((1, message((1, listed("w", kind, W.shape, [((0, -1),) * 2])))))
    return v1_file([(b"", meta), (key, made if value is None else value)])


DAMAGED: dict[str, tuple[bytes, str]] = {
    "an element too few": (one(message((5, W.tobytes()[4:]))), "a part of 24 elements has others"),
    "an element too many": (one(message((5, W.tobytes() + bytes(4)))), "a part of 24 elements has others"),
    "a byte too many": (one(message((5, W.tobytes() + b"x"))), "97 bytes of float32"),
    "no elements": (one(b""), "a part of 24 elements has others"),
    "another list": (one(message((10, bytes(24)))), "elements of float32 in field 10"),
    "another type": (one(message((1, 2), (5, W.tobytes()))), "a part of it is float64, not float32"),
    "a number too few": (one(message((10, bytes(23))), NUMBERS["int64"]), "a part of 24 elements has others"),
    "long numbers": (one(message((10, varint(300) * 23)), NUMBERS["int64"]), "a part of 24 elements has 23"),
    "a number too many": (one(message((10, bytes(25))), NUMBERS["int64"]), "not the 24 numbers"),
    "no part": (one(b"", value=b""), "an entry that is not a part of a tensor"),
    "a message that is none": (one(b"", value=b"\xff"), "tensor 'w'"),
    "not there": (with_listed(listed("w", 1, (4,), WHOLE)).replace(b"x", b"x"), "is listed, and not there"),
    "a bool of 2": (one(message((11, b"\2" * 24)), NUMBERS["bool"]), "neither false nor true"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_bad_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    raw, said = DAMAGED[kind]
    with open_reader(write(tmp_path / "m.ckpt", raw)) as reader, pytest.raises(FormatError, match=said):
        reader.read("w")


def test_every_block_has_its_checksum(tmp_path: Path) -> None:
    place = GOOD.index(W.tobytes()[40:60])
    damaged = GOOD[:place] + b"\xff" + GOOD[place + 1 :]
    with pytest.raises(FormatError, match="checksum"):
        open_reader(write(tmp_path / "m.ckpt", damaged))
    raw = v1_file(v1_entries(HELD), per_block=1)
    place = raw.index(W.tobytes()[40:60])
    with open_reader(write(tmp_path / "n.ckpt", raw[:place] + b"\xff" + raw[place + 1 :])) as reader:
        for use in (reader.read, reader.raw, reader.check):
            with pytest.raises(FormatError, match="checksum"):
                use("a/w")
        assert reader.check("b") is True
        with pytest.raises(FormatError, match="checksum"):
            reader.check_rest()


def test_a_part_that_no_list_has(tmp_path: Path) -> None:
    key, value = slices_entry("z", ((0, -1),), message((5, bytes(8))))
    with open_reader(write(tmp_path / "m", with_listed(entries=[(key, value)]))) as reader:
        assert [*reader.specs] == ["b"]
        with pytest.raises(FormatError, match="has a part of 'z' that its list of tensors has not"):
            reader.check_rest()


def test_keys_out_of_order(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="keys are out of order"):
        open_reader(write(tmp_path / "m", hidden(b"\0b", b"\0a")))


def test_a_snappy_block_is_unpacked_within_the_files_means(tmp_path: Path) -> None:
    """A block of zeros packs well, and another of as many is not as large as it says."""
    zeros = np.zeros(1 << 20, "float32")
    path = write(tmp_path / "m", v1_file(v1_entries({"z": zeros}), snappy=True, per_block=1))
    assert path.stat().st_size < 1 << 18
    assert_held(path, {"z": zeros})


def test_mutations(tmp_path: Path) -> None:
    opened = sum(survives(tmp_path / "m", bad, open_reader) for bad in mutations(GOOD, 100, seed=8))
    assert opened < 100
    raw = v1_file(v1_entries(HELD, {"a/w": ROWS}), snappy=True)
    for bad in mutations(raw, 100, seed=9):
        survives(tmp_path / "n", bad, open_reader)
    assert struct.unpack("<Q", raw[-8:])[0] == tf_files.MAGIC
