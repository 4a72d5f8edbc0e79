"""TensorFlow checkpoints: found, read and written."""

from __future__ import annotations

import errno
import io
import json
import mmap
import os
import random
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptkit.base.errors import (
    CkptkitError,
    ConversionError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UsageError,
)
from ckptkit.base.tensors import DTYPES, DType, TensorSpec, dtype_of
from ckptkit.formats.base import Reader, Writer
from ckptkit.formats.tf_bundle import TfBundleReader, TfBundleWriter, locate
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


def lay(folder: Path, *names: str, state: str | None = None) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    if state is not None:
        folder.joinpath("checkpoint").write_text(state)
    return folder


def archive(path: Path, folder: Path, *, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=folder.name)
    return path


PAIR = ("m.index", "m.data-00000-of-00001")


@pytest.mark.parametrize("given", ["m", "m.index", "m.data-00000-of-00001", "m.meta", "checkpoint", ""])
def test_every_way_to_name_one_checkpoint(tmp_path: Path, given: str) -> None:
    folder = lay(tmp_path / "f", *PAIR, "m.meta", state='model_checkpoint_path: "m"')
    assert locate(folder / given) == (folder / "m", None)


@pytest.mark.parametrize(
    "state",
    [
        'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "m-1"\n',
        'all_model_checkpoint_paths: "m-1"\nmodel_checkpoint_path: "m-2"\n',
        'model_checkpoint_path: "/home/somebody/training/m-2"\n',
        'model_checkpoint_path: "C:\\\\runs\\\\m-2"\n',
        'model_checkpoint_path: "./m-2"',
    ],
)
def test_the_state_file_chooses(tmp_path: Path, state: str) -> None:
    folder = lay(tmp_path / "f", "m-1.index", "m-2.index", state=state)
    assert locate(folder)[0] == folder / "m-2"


@pytest.mark.parametrize(
    "state",
    [
        "",
        "garbage",
        'model_checkpoint_path: "gone"',
        'model_checkpoint_path: ""',
        'model_checkpoint_path: ".."',
        f'model_checkpoint_path: "{"m" * 300}"',
        f'model_checkpoint_path: "{"ü" * 125}"',
        'model_checkpoint_path: "a\0b"',
    ],
)
def test_a_state_file_that_says_nothing_useful_is_passed_over(tmp_path: Path, state: str) -> None:
    folder = lay(tmp_path / "f", *PAIR, state=state)
    assert locate(folder)[0] == folder / "m"


def test_a_state_file_of_nothing_but_lines_is_read_at_once(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", *PAIR, state="\n" * 1_000_000 + "x")
    start = time.process_time()
    assert locate(folder)[0] == folder / "m"
    assert time.process_time() - start < 1


def test_a_state_file_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    lay(tmp_path, "secret.index")
    folder = lay(tmp_path / "f", *PAIR, state='model_checkpoint_path: "../secret"')
    assert locate(folder)[0] == folder / "m"


def test_saved_models(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "saved_model.pb", "variables/variables.index", "assets/x.index")
    assert locate(folder)[0] == folder / "variables/variables"


def test_one_checkpoint_in_a_folder_below(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "readme", "deep/er/m.index")
    assert locate(folder)[0] == folder / "deep/er/m"


def test_a_state_file_in_a_folder_below(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "readme")
    lay(folder / "run", "m-1.index", "m-2.index", state='model_checkpoint_path: "m-2"')
    assert locate(folder)[0] == folder / "run/m-2"


def test_several_checkpoints_are_listed(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "a.index", "b.index")
    with pytest.raises(UsageError, match=r"holds 2 checkpoints: a, b; give the prefix"):
        locate(folder)


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("nothing", NotFoundError, "no such file"),
        ("lonely.data-00000-of-00001", NotFoundError, r"lonely\.index: no such file"),
        ("empty", FormatError, "holds no TensorFlow checkpoint"),
        ("page.tar.gz", FormatError, r"is an HTML page \('404'\), not a tar archive"),
        ("zero.tar.gz", FormatError, "is empty, not a tar archive"),
        ("pipe", FormatError, "neither a file nor a folder"),
        ("", FormatError, "holds no TensorFlow checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, name: str, error: type[CkptkitError], reason: str) -> None:
    folder = lay(tmp_path / "f", "lonely.data-00000-of-00001")
    (folder / "empty").mkdir()
    (folder / "page.tar.gz").write_text("<!DOCTYPE html><title>404</title>")
    (folder / "zero.tar.gz").touch()
    os.mkfifo(folder / "pipe")
    with pytest.raises(error, match=reason):
        locate(folder / name)


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar", "w"), ("x", "w:xz")]
)
def test_archives_are_read_directly(tmp_path: Path, name: str, mode: str) -> None:
    folder = lay(tmp_path / "run", *PAIR, "big.log", "._m.index", state='model_checkpoint_path: "m"')
    prefix, temporary = locate(archive(tmp_path / name, folder, mode=mode))
    assert temporary is not None
    root = Path(temporary.name)
    assert root.stat().st_mode & 0o077 == 0
    copied = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    assert copied == ["run/checkpoint", "run/m.data-00000-of-00001", "run/m.index"]
    assert prefix == root / "run/m"
    temporary.cleanup()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_archives_behind_each_other_are_read_whole(tmp_path: Path, mode: str) -> None:
    parts = [
        archive(tmp_path / name, lay(tmp_path / f"of {name}" / "run", name), mode=mode).read_bytes()
        for name in PAIR
    ]
    (tmp_path / "joined").write_bytes(b"".join(parts))
    prefix, temporary = locate(tmp_path / "joined")
    assert temporary is not None
    assert {file.name for file in prefix.parent.iterdir()} == set(PAIR)
    temporary.cleanup()


def test_archived_saved_model(tmp_path: Path) -> None:
    folder = lay(tmp_path / "sm", "variables/variables.index", "variables/variables.data-00000-of-00001")
    prefix, temporary = locate(archive(tmp_path / "x.tar.gz", folder))
    assert temporary is not None
    assert prefix.relative_to(temporary.name) == Path("sm/variables/variables")
    temporary.cleanup()


def test_an_archive_pays_for_the_files_that_it_becomes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        for number in range(2_500):
            tar.addfile(tarfile.TarInfo(f"d/m-{number}.index"))
    with pytest.raises(FormatError, match="steps of work in a file of"):
        locate(tmp_path / "m.tar.gz")


@pytest.mark.parametrize("names", [(), ("a.index", "b.index")])
def test_an_archive_that_is_refused_leaves_nothing(
    tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    folder = lay(tmp_path / "run", *names)
    target = archive(tmp_path / "x.tar.gz", folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(FormatError, match=r"x\.tar\.gz"):
        locate(target)
    assert list(scratch.iterdir()) == []


def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "deep" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    target = tmp_path / "x.tar"
    with tarfile.open(target, "w") as tar:
        for name in ("m.index", "../../evil.index"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(FormatError, match=r"'\.\.'"):
        locate(target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "scratch", "x.tar"]


# ----------------------------------------------------------------------------------------------------
#

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


# ----------------------------------------------------------------------------------------------------
#

RANDOM = np.random.default_rng(5)
WRITTEN: dict[str, np.ndarray] = {
    "b": RANDOM.standard_normal((3, 5, 7)).astype("float32"),
    "a/b": np.array([True, False, True]),
    "a": RANDOM.standard_normal((600, 700)),
    "Z": np.arange(10, dtype=ml_dtypes.bfloat16),
    "scalar": np.array(7, "int64"),
    "empty": np.zeros((2, 0, 3), "float32"),
    "ä": np.arange(4, dtype="uint8"),
}


def specs_of(tensors: dict[str, np.ndarray]) -> list[TensorSpec]:
    return [TensorSpec(name, dtype_of(array), array.shape) for name, array in tensors.items()]


def write(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None, **options: bool
) -> list[Path]:
    with TfBundleWriter(path, specs_of(tensors), metadata or {}, **options) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
        return writer.finish()


def test_a_writer_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    writer: Writer = TfBundleWriter(tmp_path / "m", [], {})
    with writer:
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    metadata = {"entry": "moat0-224", "layout": "deeplab2"}
    files = write(tmp_path / "new" / "m.ckpt", WRITTEN, metadata)
    assert [file.name for file in files] == ["m.ckpt.data-00000-of-00001", "m.ckpt.index"]
    assert sorted((tmp_path / "new").iterdir()) == files
    with TfBundleReader(tmp_path / "new" / "m.ckpt", verify=True) as reader:
        assert reader.metadata == metadata
        assert list(reader.specs) == sorted(WRITTEN, key=str.encode)
        for name, array in WRITTEN.items():
            found = reader.read(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()


def test_order_is_by_bytes_and_crc_is_returned(tmp_path: Path) -> None:
    with TfBundleWriter(tmp_path / "m", specs_of(WRITTEN), {}) as writer:
        assert list(writer.order) == ["Z", "a", "a/b", "b", "empty", "scalar", "ä"]
        for name in writer.order:
            assert writer.write(name, WRITTEN[name]) == google_crc32c.value(WRITTEN[name].tobytes())
        writer.finish()
    data = (tmp_path / "m.data-00000-of-00001").read_bytes()
    assert data == b"".join(WRITTEN[name].tobytes() for name in writer.order)


def test_same_entries_as_a_checkpoint_put_together_by_hand(tmp_path: Path) -> None:
    tensors = {name: array for name, array in WRITTEN.items() if array.size}
    write(tmp_path / "ours", tensors)
    write_checkpoint(tmp_path / "hand", tensors)
    suffix = ".data-00000-of-00001"
    assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"hand{suffix}").read_bytes()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    reordered = dict(reversed(WRITTEN.items()))
    for name, tensors, metadata in [
        ("x", WRITTEN, {"a": "1", "b": "2"}),
        ("y", reordered, {"b": "2", "a": "1"}),
    ]:
        write(tmp_path / name, tensors, metadata)
    for suffix in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"y{suffix}").read_bytes()


def test_strided_arrays_and_casts(tmp_path: Path) -> None:
    kernel = RANDOM.standard_normal((16, 8, 300, 40)).astype("float32")
    turned = kernel.transpose(2, 3, 1, 0)
    specs = [
        TensorSpec("half", DTYPES["bfloat16"], turned.shape),
        TensorSpec("same", DTYPES["float32"], turned.shape),
        TensorSpec("swapped", DTYPES["int32"], (5,)),
    ]
    with TfBundleWriter(tmp_path / "m", specs, {}) as writer:
        for name, array in zip(writer.order, (turned, turned, np.arange(5, dtype=">i4")), strict=True):
            writer.write(name, array)
        writer.finish()
    with TfBundleReader(tmp_path / "m", verify=True) as reader:
        np.testing.assert_array_equal(reader.read("same"), turned)
        np.testing.assert_array_equal(reader.read("half"), turned.astype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(reader.read("swapped"), np.arange(5))


NAMES = st.text(
    st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
)
ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in ("f2", "f4", "f8", "i1", "u8", "?", "c8")]),
    hnp.array_shapes(min_dims=0, min_side=0),
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(NAMES, ARRAYS, max_size=20))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> None:
    prefix = tmp_path_factory.mktemp("trip") / "m"
    write(prefix, tensors)
    with TfBundleReader(prefix, verify=True) as reader:
        found = {name: reader.read(name) for name in reader.specs}
        assert found.keys() == tensors.keys()
        for name, array in tensors.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()


def test_a_prefix_may_be_given_as_its_index(tmp_path: Path) -> None:
    write(tmp_path / "m.index", {"a": np.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data-00000-of-00001", "m.index"]


@pytest.mark.parametrize("existing", ["m.index", "m.data-00000-of-00001"])
def test_an_existing_file_is_refused(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UsageError, match=existing):
        TfBundleWriter(tmp_path / "m", [], {})
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_force_replaces(tmp_path: Path) -> None:
    write(tmp_path / "m", {"a": np.zeros(3)})
    write(tmp_path / "m", {"b": np.ones(2)}, force=True)
    with TfBundleReader(tmp_path / "m", verify=True) as reader:
        assert reader.read("b").tolist() == [1, 1]
        assert list(reader.specs) == ["b"]


def test_until_the_end_an_old_checkpoint_stands(tmp_path: Path) -> None:
    write(tmp_path / "m", {"a": np.zeros(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with TfBundleWriter(tmp_path / "m", specs_of({"b": np.ones(2)}), {}, force=True) as writer:
        writer.write("b", np.ones(2))
        assert {path.name: path.read_bytes() for path in tmp_path.glob("m*")} == before
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    with (
        pytest.raises(stop),
        TfBundleWriter(tmp_path / "m", specs_of(WRITTEN), {}) as writer,
    ):
        writer.write(writer.order[0], WRITTEN[writer.order[0]])
        raise stop
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fails_while_renaming_leaves_nothing(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StorageError, match="Input/output error"):
        write(tmp_path / "m", {"a": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


CHILD = """
import resource, sys, time
from pathlib import Path
import numpy as np
from ckptkit.base.errors import StorageError
from ckptkit.formats.tf_bundle import TfBundleWriter
from ckptkit.base.tensors import DTYPES, TensorSpec

prefix, what = Path(sys.argv[1]), sys.argv[2]
ones = np.ones(1 << 18, "float32")
specs = [TensorSpec(name, DTYPES["float32"], ones.shape) for name in "ab"]
if what == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with TfBundleWriter(prefix, specs, {}, force=True) as writer:
        writer.write("a", ones)
        if what == "kill":
            print("half way", flush=True)
            time.sleep(60)
        writer.write("b", ones)
except StorageError as error:
    print(error)
"""


def child(prefix: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(prefix), what], stdout=subprocess.PIPE, text=True
    )


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "m", {"old": np.zeros(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said, _ = child(tmp_path / "m", "full").communicate(timeout=60)
    assert "file too large" in said
    assert "m.data-00000-of-00001" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_killed_writer_leaves_the_old_checkpoint_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    write(tmp_path / "m", {"old": np.zeros(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with child(tmp_path / "m", "kill") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.kill()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("m*")} == before
    assert len(list(tmp_path.iterdir())) > len(before)
    write(tmp_path / "m", {"new": np.ones(3)}, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


FLOAT = DTYPES["float32"]


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([TensorSpec("a", FLOAT, ()), TensorSpec("a", FLOAT, ())], "two tensors have the name 'a'"),
        ([TensorSpec("", FLOAT, ())], "cannot be the name"),
        ([TensorSpec("a\0b", FLOAT, ())], "cannot be the name"),
        ([TensorSpec("a\udc80", FLOAT, ())], "cannot be the name"),
        ([TensorSpec("a", DType("odd", 1, "float", None, None, None), ())], "TensorFlow has no odd"),
    ],
)
def test_specs_that_cannot_be_written(tmp_path: Path, specs: list[TensorSpec], reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        TfBundleWriter(tmp_path / "m", specs, {})
    assert list(tmp_path.iterdir()) == []


def test_misuse_is_refused(tmp_path: Path) -> None:
    specs = [TensorSpec(name, FLOAT, (2,)) for name in "ab"]
    with TfBundleWriter(tmp_path / "m", specs, {}) as writer:
        with pytest.raises(ValueError, match="'c' is not to be written"):
            writer.write("c", np.zeros(2, "float32"))
        with pytest.raises(ValueError, match="has shape"):
            writer.write("a", np.zeros(3, "float32"))
        writer.write("a", np.zeros(2, "float32"))
        with pytest.raises(ValueError, match=r"'a' .* was before"):
            writer.write("a", np.zeros(2, "float32"))
        with pytest.raises(ValueError, match=r"1 tensor was never written"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_checked_before_an_older_one_goes(tmp_path: Path) -> None:
    older, newer = {"w": np.zeros(4, np.float32)}, {"w": np.ones(4, np.float32)}
    files = write(tmp_path / "m", older)
    before = [file.read_bytes() for file in files]
    seen = []

    def refuse(path: Path) -> None:
        with TfBundleReader(path) as reader:
            seen.append(reader.read("w").tolist())
        assert locate(tmp_path)[0] == tmp_path / "m"  # the new one is nobody's checkpoint yet
        raise IntegrityError("refused")

    with TfBundleWriter(tmp_path / "m", specs_of(newer), {}, force=True) as writer:
        writer.write("w", newer["w"])
        with pytest.raises(IntegrityError, match="refused"):
            writer.finish(refuse)
    assert seen == [[1.0] * 4]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [file.read_bytes() for file in files] == before
