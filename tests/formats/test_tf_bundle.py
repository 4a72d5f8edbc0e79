from __future__ import annotations

import json
import mmap
import random
import tarfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.formats.base import Reader
from ckptkit.formats.tf_bundle import TfBundleReader
from tests.support.tf_files import (
    entry,
    header,
    masked,
    message,
    part_key,
    table,
    varint,
    write_checkpoint,
    write_raw,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "moat"


def random_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


TENSORS: dict[str, np.ndarray] = {
    "flag": np.array([True, False, True]),  # three bytes: what follows is not aligned
    "float": np.arange(24, dtype="float32").reshape(2, 3, 4) / 7,
    "half": np.array([1.5, -2.25], ml_dtypes.bfloat16),
    "long": np.array(-(2**60), "int64"),
    "none": np.zeros((0, 5), "float32"),
    "wide": np.linspace(0, 1, 5000),
}


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "m", TENSORS)
    return tmp_path / "m"


@pytest.mark.parametrize(("snappy", "per_block"), [(False, 100), (True, 100), (True, 1)])
def test_reads_every_tensor(tmp_path: Path, snappy: bool, per_block: int) -> None:
    write_checkpoint(tmp_path / "m", TENSORS, snappy=snappy, per_block=per_block)
    with TfBundleReader(tmp_path / "m") as reader:
        assert list(reader.specs) == sorted(TENSORS)
        assert reader.keys == {name: name for name in TENSORS}
        assert reader.metadata == {}
        assert list(reader.notes) == []
        for name, array in TENSORS.items():
            assert same(reader.read(name), array)
            assert reader.specs[name].shape == array.shape
            assert reader.specs[name].dtype.name == array.dtype.name
            assert reader.check(name)


def test_it_is_a_reader(prefix: Path) -> None:
    reader: Reader = TfBundleReader(prefix)
    assert (reader.path, reader.format) == (prefix, "tf")
    reader.close()
    reader.close()


def test_views_are_read_only_and_without_a_copy(prefix: Path) -> None:
    reader = TfBundleReader(prefix)
    for name in TENSORS:
        view = reader.read(name)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    base = reader.read("wide")
    while isinstance(base, np.ndarray):
        assert base.base is not None
        base = base.base
    assert isinstance(base, mmap.mmap | memoryview)


def test_views_may_outlive_release(prefix: Path) -> None:
    with TfBundleReader(prefix) as reader:
        view = reader.read("wide")
        for name in TENSORS:
            reader.release(name)
        assert same(view, TENSORS["wide"])


def test_closing_with_live_views_is_no_error(prefix: Path) -> None:
    reader = TfBundleReader(prefix)
    view = reader.read("wide")
    reader.close()
    del view


def test_an_unknown_name_is_refused(prefix: Path) -> None:
    with TfBundleReader(prefix) as reader:
        for verb in (reader.read, reader.check, reader.release):
            with pytest.raises(NotFoundError, match="no tensor 'nothing'"):
                verb("nothing")


def test_several_shards(tmp_path: Path) -> None:
    first, second = random_bytes(40, 1), random_bytes(24, 2)
    entries = [
        (b"", header(3)),
        (b"a", entry(1, (6,), size=24, shard=2, crc=masked(second))),
        (b"b", entry(1, (10,), size=40, shard=0, crc=masked(first))),
    ]
    write_raw(tmp_path / "m", [entries], first, b"", second)
    with TfBundleReader(tmp_path / "m") as reader:
        assert list(reader.specs) == ["b", "a"]  # as the data lies
        assert reader.read("a").tobytes() == second
        assert reader.read("b").tobytes() == first
        assert reader.check("a")
        assert reader.check("b")


def partitioned(prefix: Path) -> tuple[np.ndarray, bytes]:
    """A variable w of 5 x 4 in three parts, cut along both axes, after three bytes of something else."""
    whole = np.arange(20, dtype="float32").reshape(5, 4)
    boxes = [((0, 2), (0, 4)), ((2, 3), (0, 1)), ((2, 3), (1, 3))]
    data, entries = b"\1\0\1", [(b"flag", entry(10, (3,), size=3, crc=masked(b"\1\0\1")))]
    for (row, rows), (column, columns) in boxes:
        raw = whole[row : row + rows, column : column + columns].tobytes()
        key = b"\0w\0\1\1\2" + bytes(128 + number for number in (row, rows, column, columns))
        entries.append((key, entry(1, (rows, columns), offset=len(data), size=len(raw), crc=masked(raw))))
        data += raw
    entries.append((b"w", entry(1, (5, 4), slices=boxes)))
    write_raw(prefix, [[(b"", header()), *sorted(entries)]], data)
    return whole, data


def test_partitioned_variables_are_put_together(tmp_path: Path) -> None:
    whole, _ = partitioned(tmp_path / "m")
    with TfBundleReader(tmp_path / "m") as reader:
        assert list(reader.specs) == ["flag", "w"]
        view = reader.read("w")
        assert same(view, whole)
        assert not view.flags.writeable
        assert reader.check("w")
        reader.release("w")
        assert same(reader.read("w"), whole)


def test_a_variable_of_which_parts_are_missing_is_listed_and_the_rest_read(tmp_path: Path) -> None:
    kept, raw = np.arange(6, dtype="float32"), np.arange(4, dtype="float32").tobytes()
    entries = [
        (part_key(b"lost", (0, 2)), entry(1, (2,), offset=40, size=8)),
        (part_key(b"w/Adagrad", (0, 4)), entry(1, (4,), offset=24, size=16, crc=masked(raw))),
        (b"w", entry(1, (6,), size=24, crc=masked(kept.tobytes()))),
        (b"w/Adagrad", entry(1, (6,), slices=[[(0, 4)]])),
    ]
    write_raw(tmp_path / "m", [[(b"", header()), *entries]], kept.tobytes() + raw + bytes(8))
    with TfBundleReader(tmp_path / "m") as reader:
        assert same(reader.read("w"), kept)
        assert list(reader.specs) == ["w"]
        assert reader.left_out == {
            "lost": "parts of a variable that the index does not list",
            "w/Adagrad": "parts are missing: 4 of 6 elements are there",
        }


def test_a_damaged_part_is_found(tmp_path: Path) -> None:
    _, data = partitioned(tmp_path / "m")
    (tmp_path / "m.data-00000-of-00001").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.check("flag")
        with pytest.raises(FormatError, match="'w': checksum"):
            reader.check("w")


@pytest.mark.parametrize("position", [0, 3, 100, 40_000])
def test_every_flipped_data_byte_is_found(prefix: Path, position: int) -> None:
    file = prefix.with_name("m.data-00000-of-00001")
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)
    faults = 0
    with TfBundleReader(prefix) as reader, TfBundleReader(prefix, verify=True) as strict:
        for name in reader.specs:
            try:
                assert reader.check(name)
                strict.read(name)
            except FormatError as error:
                faults += 1
                assert "m.data-00000-of-00001" in str(error)
                assert repr(name) in str(error)
                reader.read(name)  # without verify the bytes are handed out as they are
                with pytest.raises(FormatError):
                    strict.read(name)
    assert faults == 1


def test_a_checksum_over_many_pieces(tmp_path: Path) -> None:
    big = np.frombuffer(random_bytes(9 << 20), "uint8")
    write_checkpoint(tmp_path / "m", {"a": big[:5], "b": big})
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.check("b")


def test_without_a_stored_checksum_check_says_so(tmp_path: Path) -> None:
    write_raw(tmp_path / "m", [[(b"", header()), (b"w", entry(1, (2,), size=8))]], bytes(8))
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.check("w") is False


def test_metadata_is_given_back(tmp_path: Path) -> None:
    text = json.dumps({"layout": "torch"}).encode()
    write_raw(tmp_path / "m", [[(b"", header(1, (21_001, text)))]], b"")
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.metadata == {"layout": "torch"}
        assert reader.specs == {}


def object_based(prefix: Path, *, graph: bytes | None = None, crc: int | None = None, dtype: int = 7) -> None:
    if graph is None:
        attribute = message(
            (1, b"VARIABLE_VALUE"), (2, b"net/kernel"), (3, b"m/k/.ATTRIBUTES/VARIABLE_VALUE")
        )
        graph = message((1, message((2, attribute))))
    length = len(graph).to_bytes(4, "little")
    check = masked(length).to_bytes(4, "little")
    stored = varint(len(graph)) + check + graph
    size = len(stored)
    entries = [
        (b"", header()),
        (
            b"_CHECKPOINTABLE_OBJECT_GRAPH",
            entry(dtype, (), size=size, crc=crc or masked(length + check + graph)),
        ),
        (b"m/b/.ATTRIBUTES/VARIABLE_VALUE", entry(1, (1,), offset=size, size=4)),
        (b"m/k/.ATTRIBUTES/VARIABLE_VALUE", entry(1, (1,), offset=size + 4, size=4)),
    ]
    write_raw(prefix, [entries], stored + np.array([1, 2], "float32").tobytes())


def test_object_based_checkpoints_get_variable_names(tmp_path: Path) -> None:
    object_based(tmp_path / "m")
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.keys == {
            "m/b": "m/b/.ATTRIBUTES/VARIABLE_VALUE",
            "net/kernel": "m/k/.ATTRIBUTES/VARIABLE_VALUE",
        }
        assert reader.read("net/kernel").tolist() == [2.0]
        assert list(reader.notes) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"graph": b"\x0a\xff"}, "damaged object graph"),
        ({"crc": 1}, "checksum"),
        ({"dtype": 20}, "not one string"),
    ],
)
def test_a_damaged_object_graph_is_refused(
    tmp_path: Path, changes: dict[str, bytes | int], reason: str
) -> None:
    object_based(tmp_path / "m", **changes)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=reason):
        TfBundleReader(tmp_path / "m")


def test_archives_are_read_and_tidied_up(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, scratch = tmp_path / "x.tar.gz", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(f"{prefix}.index", "run/m.index")
        tar.add(f"{prefix}.data-00000-of-00001", "run/m.data-00000-of-00001")
    with TfBundleReader(archive) as reader:
        assert reader.path == archive
        assert len(list(scratch.iterdir())) == 1
        assert all(same(reader.read(name), array) for name, array in TENSORS.items())
    assert list(scratch.iterdir()) == []
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(f"{prefix}.index", "run/m.index")
    with pytest.raises(FormatError, match="is missing"):
        TfBundleReader(archive)
    assert list(scratch.iterdir()) == []


def test_a_truncated_index_is_refused_at_every_length(prefix: Path) -> None:
    index = prefix.with_name("m.index")
    whole = index.read_bytes()
    for size in range(len(whole)):
        index.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"m\.index"):
            TfBundleReader(prefix)


def test_truncated_data_is_refused_at_every_length(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"a": np.arange(7, dtype="uint8"), "b": np.arange(9, dtype="int32")})
    data = tmp_path / "m.data-00000-of-00001"
    whole = data.read_bytes()
    for size in range(len(whole)):
        data.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"m\.data-00000-of-00001: truncated"):
            TfBundleReader(tmp_path / "m")


def test_data_that_shrinks_while_open_is_noticed(prefix: Path) -> None:
    with TfBundleReader(prefix) as reader:
        prefix.with_name("m.data-00000-of-00001").write_bytes(b"short")
        with pytest.raises(FormatError, match="became shorter"):
            reader.read("wide")


def read_all(path: Path) -> dict[str, bytes]:
    with TfBundleReader(path) as reader:
        for name in reader.specs:
            reader.check(name)
        return {name: reader.read(name).tobytes() for name in reader.specs}


def test_flipped_index_bytes_are_refused_or_harmless(prefix: Path) -> None:
    index = prefix.with_name("m.index")
    whole = index.read_bytes()
    expected = {name: array.tobytes() for name, array in TENSORS.items()}
    refused = 0
    for position in range(len(whole)):
        for bit in (0x01, 0x80):
            index.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            try:
                assert read_all(prefix) == expected
            except FormatError:
                refused += 1
    assert refused >= 2 * (len(whole) - 40)  # only padding in the footer is covered by nothing


def test_mutated_entries_behind_a_good_checksum(tmp_path: Path) -> None:
    """Damage that no checksum finds: only ckptkit's own checks stand between it and the memory map."""
    source = random.Random(3)
    parts = [
        (b"", header(1, (21_001, b'{"a":"b"}'))),
        (b"\0w\0\1\1\1\x80\x82", entry(1, (2,), offset=20, size=8, crc=1)),
        (b"\0w\0\1\1\1\x82\x83", entry(1, (3,), offset=28, size=12, crc=1)),
        (b"a", entry(1, (5,), size=20, crc=1)),
        (b"b", entry(9, (), offset=40, size=8, crc=1)),
        (b"w", entry(1, (5,), slices=[[(0, 2)], [(2, 3)]])),
    ]
    data = random_bytes(48)
    write_raw(tmp_path / "m", [parts], data)
    index = tmp_path / "m.index"
    refused = read = 0
    for _ in range(2000):
        mutated = [(bytearray(key), bytearray(value)) for key, value in parts]
        for _ in range(source.randrange(1, 4)):
            key, value = source.choice(mutated)
            target = value if source.random() < 0.9 or not key else key
            action, place = source.random(), source.randrange(len(target))
            if action < 0.6:
                target[place] = source.choice([0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)])
            elif action < 0.8:
                target[place:place] = source.randbytes(source.randrange(1, 11))
            else:
                del target[place : place + source.randrange(1, 4)]
        entries = sorted((bytes(key), bytes(value)) for key, value in mutated)
        index.write_bytes(table([entries]))
        try:
            with TfBundleReader(tmp_path / "m") as reader:
                for name, spec in reader.specs.items():
                    assert reader.read(name).nbytes == spec.nbytes <= len(data)
            read += 1
        except FormatError:
            refused += 1
    assert refused > 500
    assert read > 100


@pytest.mark.parametrize("suffix", [".tar.gz", ".index", ".ckpt"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1", b"\x1f\x8b"]
)
def test_files_that_are_something_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="x"):
        TfBundleReader(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="model"):
        TfBundleReader(tmp_path / "model")


def recipe(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of the published recipe (facts/moat.md), before scaling."""
    return np.random.Generator(np.random.Philox(key=zlib.crc32(key.encode()))).standard_normal(
        shape, dtype=np.float32
    )


TF1_EXTRA = {"ExponentialMovingAverage", "AdamWeightDecay", "AdamWeightDecay_1", "beta1_power", "global_step"}
EXTRA = {
    "tiny_moat0_pe": {"global_step"},
    "tiny_moat0_nope_ema": TF1_EXTRA,
    "tiny_moat0_pe_tf2": {"save_counter"},
}
"""Last part of the names beside the model's own."""


def as_built_in_tf2(name: str) -> str:
    """A model built in TF2 calls its stem's variables ``conv_0/kernel``, not ``moat/stem/conv_0/kernel``."""
    return name.removeprefix("moat/stem/")


@pytest.mark.parametrize("name", EXTRA)
def test_checkpoints_of_the_published_code(shared_folder: Path, name: str) -> None:
    variables = json.loads((GOLDEN / "moat_variables.json").read_text())["tiny-moat0"]["variables"]
    checks = json.loads((GOLDEN / "det_weights_check.json").read_text())
    wanted = {n: tuple(s) for n, s, _ in variables if "nope" not in name or "relative_position" not in n}
    called = {n: as_built_in_tf2(n) if name.endswith("tf2") else n for n in wanted}
    with TfBundleReader(shared_folder / "checkpoints" / f"{name}.tar.gz", verify=True) as reader:
        assert {n: reader.specs[called[n]].shape for n in wanted} == wanted
        assert {n.split("/")[-1] for n in set(reader.specs) - set(called.values())} == EXTRA[name]
        assert list(reader.notes) == []
        for n in wanted:
            twin = f"{called[n]}/ExponentialMovingAverage"
            values = reader.read(twin if twin in reader.specs else called[n])
            assert values.dtype == np.dtype("float32")
            np.testing.assert_allclose(values.ravel()[:3], checks[n]["first"], rtol=1e-6)
            np.testing.assert_allclose(values.sum(dtype="float64"), checks[n]["sum64"], rtol=1e-6, atol=1e-6)


def test_raw_twins_of_the_published_code(shared_folder: Path) -> None:
    key = zlib.crc32(b"moat/stem/conv_0/bias#raw")  # the recipe of facts/moat.md
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(32, dtype=np.float32)
    with TfBundleReader(shared_folder / "checkpoints" / "tiny_moat0_nope_ema.tar.gz") as reader:
        np.testing.assert_array_equal(reader.read("moat/stem/conv_0/bias"), np.float32(0.05) * normal)


def test_object_paths_of_the_published_code(shared_folder: Path) -> None:
    names = json.loads((shared_folder / "facts" / "moat_tf2_keys.json").read_text())
    expected = {key: as_built_in_tf2(name) for key, name in names.items() if name is not None}
    with TfBundleReader(shared_folder / "checkpoints" / "tiny_moat0_pe_tf2.tar.gz") as reader:
        found = {key: name for name, key in reader.keys.items()}
    assert expected.items() <= found.items()
    assert set(found.values()) - set(expected.values()) == {"save_counter"}
