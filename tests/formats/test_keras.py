"""Keras 3's weights files: Keras' and h5py's, ours, and hostile ones."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.cli.output import ExitCode
from ckptkit.formats.base import bytes_of
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.formats.detect import open_reader
from ckptkit.formats.keras import Keras2Writer, KerasH5Reader, KerasH5Writer
from tests.support.commands import runner
from tests.support.damage import mutations, survives
from tests.support.hdf5_files import HOSTILE, KERNEL, compact, h5py, keras_file, legacy_file, legacy_weights
from tests.support.moat_files import tiny_tensors, write_tiny
from tests.support.parity_cases import models_here
from tests.support.tensors import arrays, same_bits, specs_of, write_all

WITHOUT = frozenset(name for name in DTYPES if name.startswith("float8"))
META = {"layout": "keras-h5", "note": "ü"}


def brain_float(file: Any) -> None:
    """bfloat16 as Keras' own store writes it."""
    made = file["dense/vars"].create_dataset("1", data=np.array([1.5, -2], ml_dtypes.bfloat16))
    made.attrs["dtype"] = "bfloat16"


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("libver", [None, "earliest", "latest", ("v110", "v110")])
def test_what_h5py_writes_is_read_as_views(tmp_path: Path, libver: Any) -> None:
    path = keras_file(tmp_path / "m.h5", lambda f: f.__setitem__("top/vars/0", np.int64(7)), libver=libver)
    with KerasH5Reader(path) as reader:
        assert list(reader.specs) == ["dense/vars/0", "top/vars/0"]
        assert reader.specs["dense/vars/0"] == TensorSpec("dense/vars/0", DTYPES["float32"], (3, 4))
        assert reader.metadata == {}
        assert (reader.notes, reader.also) == ((), {})
        view = reader.read("dense/vars/0")
        assert same_bits(view, KERNEL)
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert reader.read("top/vars/0").item() == 7
        assert reader.check("dense/vars/0") is False  # HDF5 keeps no checksum of plain data
        reader.release("dense/vars/0")


@pytest.mark.parametrize(
    "dtype", [f"{e}{t}" for e in "<>" for t in ("f2", "f4", "f8", "i1", "i2", "i8", "u4")]
)
def test_element_types(tmp_path: Path, dtype: str) -> None:
    wanted = np.array([[1, 2, 100]], dtype)
    path = keras_file(tmp_path / "m.h5", lambda f: f["dense/vars"].create_dataset("1", data=wanted))
    with KerasH5Reader(path) as reader:
        got = reader.read("dense/vars/1")
    assert got.tolist() == [[1, 2, 100]]
    assert got.dtype == wanted.dtype.newbyteorder("=")
    assert not got.flags.writeable


def test_bfloat16_is_known_by_keras_attribute(tmp_path: Path) -> None:
    with KerasH5Reader(keras_file(tmp_path / "m.h5", brain_float)) as reader:
        assert same_bits(reader.read("dense/vars/1"), np.array([1.5, -2], ml_dtypes.bfloat16))


def test_compact_and_empty_datasets(tmp_path: Path) -> None:
    def more(file: Any) -> None:
        compact(file)
        file["empty"] = np.zeros((0, 3), "f4")

    with KerasH5Reader(keras_file(tmp_path / "m.h5", more)) as reader:
        assert reader.read("compact").tolist() == [1.5, 2.5, 3.5]
        assert reader.read("empty").shape == (0, 3)


READ = {
    "booleans": np.array([[True, False]]),
    "complex": np.array([1 + 2j, 3], "c8"),
    "big complex": np.array([1 + 2j, 3], ">c16"),
    "enumeration": np.array([0, 5], h5py.enum_dtype({"A": 0, "B": 5}, basetype="i2")),
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("chunks", [None, (1,)])
def test_booleans_complex_numbers_and_enumerations_are_read(tmp_path: Path, kind: str, chunks: Any) -> None:
    wanted = READ[kind]

    def more(file: Any) -> None:
        file.create_dataset("odd", data=wanted, chunks=chunks and (1,) * wanted.ndim, dtype=wanted.dtype)

    with KerasH5Reader(keras_file(tmp_path / "m.h5", more)) as reader:
        read = reader.read("odd")
        assert (read.dtype, read.tolist()) == (wanted.dtype.newbyteorder("="), wanted.tolist())
        assert (reader.left_out, reader.also) == ({}, {})


OPAQUE_DATASETS = {
    "void16": np.array([b"ab", b"cd"], "V2"),
    "void64": np.array(["2020-01-01"], "M8[D]").astype(h5py.opaque_dtype(np.dtype("M8[D]"))),
    "record of a, b": np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")]),
    "float of 80 bits in 16 bytes": np.array([1, 3], np.longdouble) / 3,
}


@pytest.mark.parametrize("kind", OPAQUE_DATASETS)
@pytest.mark.parametrize("chunks", [None, True])
def test_other_elements_are_opaque(tmp_path: Path, kind: str, chunks: Any) -> None:
    wanted = OPAQUE_DATASETS[kind]

    def more(file: Any) -> None:
        file.create_dataset("odd", data=wanted, chunks=chunks)

    with KerasH5Reader(keras_file(tmp_path / "m.h5", more)) as reader:
        spec = reader.specs["odd"]
        assert (spec.dtype.kind, spec.dtype.name, spec.shape) == ("opaque", kind, wanted.shape)
        assert bytes(bytes_of(reader, "odd").data) == wanted.tobytes()


NOT_CARRIED = {
    "references": (h5py.ref_dtype, "references to other objects"),
    "lists": (h5py.vlen_dtype(np.dtype("f4")), "lists of any length"),
}
NO_TENSORS = {
    "text": ("hello", "texts"),
    "bytes": (np.array([b"ab"]), "texts"),
    "null": (h5py.Empty("f4"), "declared to be empty"),
    "type": (np.dtype("f4"), "neither a group nor a dataset"),
}


@pytest.mark.parametrize("kind", [*NOT_CARRIED, *NO_TENSORS])
def test_what_cannot_be_carried_or_is_no_tensor_is_told(tmp_path: Path, kind: str) -> None:
    value, said = {**NOT_CARRIED, **NO_TENSORS}[kind]

    def more(file: Any) -> None:
        if kind in NOT_CARRIED:
            file.create_dataset("odd", (2,), dtype=value)
        else:
            file["odd"] = value

    with KerasH5Reader(keras_file(tmp_path / "m.h5", more)) as reader:
        assert list(reader.specs) == ["dense/vars/0"]
        found = {"odd": said}
        assert (reader.left_out, reader.also) == ((found, {}) if kind in NOT_CARRIED else ({}, found))


def test_groups_of_many_members(tmp_path: Path) -> None:
    """More than one table, and more than one node of the tree over them."""
    values = {f"v{i}": np.full(1, i, "i4") for i in range(700)}
    path = keras_file(tmp_path / "m.h5", lambda f: [f.__setitem__(f"a/{k}", v) for k, v in values.items()])
    with KerasH5Reader(path) as reader:
        assert {name: reader.read(f"a/{name}").item() for name in values} == {
            name: value.item() for name, value in values.items()
        }


def many(file: Any, count: int, *, track: bool) -> None:
    """Groups, variables and attributes made in an order that is not that of their names."""
    order = np.random.default_rng(3).permutation(count)
    for number in order:
        made = file.create_group(f"layers/dense_{number}/vars", track_order=track)
        for attribute in range(12):
            made.attrs[f"a{attribute}"] = "x" * attribute * 900  # the longest do not fit into a heap's blocks
        made.attrs["name"] = f"dense_{number}"
        made["0"] = np.full(3, number, "f4")
    variables = file.create_group("optimizer/vars", track_order=track)
    for number in order:
        variables[str(number)] = np.int64(number)


@pytest.mark.parametrize("libver", [None, "latest"])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("count", [3, 9, 300])
def test_groups_that_track_order(tmp_path: Path, count: int, track: bool, libver: Any) -> None:
    with h5py.File(tmp_path / "m.h5", "w", libver=libver, track_order=track) as file:
        many(file, count, track=track)
    expected: dict[str, Any] = {}

    def take(name: str, held: Any) -> None:
        if isinstance(held, h5py.Dataset):
            expected[name] = held[()]

    with h5py.File(tmp_path / "m.h5") as file, KerasH5Reader(tmp_path / "m.h5") as reader:
        file.visititems(take)
        assert len(expected) == 2 * count
        assert {name: reader.read(name).tolist() for name in reader.specs} == {
            name: value.tolist() for name, value in expected.items()
        }
        in_order = [name for name in reader.specs if name.startswith("optimizer/")]
        assert in_order == [f"optimizer/vars/{name}" for name in file["optimizer/vars"]]


@pytest.mark.parametrize(
    "link",
    [
        lambda f: f["dense/vars/0"],
        lambda f: h5py.SoftLink("/dense/vars/0"),
        lambda f: h5py.SoftLink("/tied/over/0"),
    ],
    ids=["hard", "soft", "soft, by another"],
)
@pytest.mark.parametrize("track", [True, False])
def test_one_dataset_under_two_names(tmp_path: Path, track: bool, link: Any) -> None:
    """As a script ties weights, or h5py's user saves space."""

    def tie(file: Any) -> None:
        file["tied/over"] = h5py.SoftLink("/dense/vars")
        file["tied/vars/0"] = link(file)

    path = keras_file(tmp_path / "m.h5", tie, track_order=track)
    with KerasH5Reader(path) as reader:
        assert {*reader.specs} == {"dense/vars/0", "tied/vars/0", "tied/over/0"}
        assert all(same_bits(reader.read(name), KERNEL) for name in reader.specs)
        assert reader.same == {"tied/vars/0": "dense/vars/0", "tied/over/0": "dense/vars/0"}
        assert {*reader.overlapping} == {*reader.same}
        assert (reader.notes, reader.also) == ((), {})


LINKS: dict[str, tuple[Any, str]] = {
    "to nowhere": (h5py.SoftLink("/gone/vars/0"), "a soft link to /gone/vars/0, which is not in the file"),
    "through a dataset": (h5py.SoftLink("/dense/vars/0/x"), "which is not in the file"),
    "to itself": (h5py.SoftLink("/dense/x"), "which is not in the file"),
    "to a group around it": (h5py.SoftLink("/dense"), "a link back to a group around it"),
    "to the root": (h5py.SoftLink("/"), "a link back to a group around it"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_that_lead_nowhere_are_noted(tmp_path: Path, kind: str) -> None:
    link, said = LINKS[kind]
    with KerasH5Reader(keras_file(tmp_path / "m.h5", lambda f: f.__setitem__("dense/x", link))) as reader:
        assert [*reader.specs] == ["dense/vars/0"]
        assert list(reader.also) == ["dense/x"]
        assert said in reader.also["dense/x"]


def test_a_group_that_is_a_member_of_itself(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.h5", lambda f: f.__setitem__("dense/again", f["dense"]))
    with KerasH5Reader(path) as reader:
        assert [*reader.specs] == ["dense/vars/0"]
        assert reader.also == {"dense/again": "a link back to a group around it"}


def test_a_whole_keras_model(tmp_path: Path) -> None:
    weights = keras_file(tmp_path / "x.h5")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "m.keras", "w", method) as archive:
            archive.writestr("config.json", "{}")
            archive.write(weights, "model.weights.h5")
        if method == zipfile.ZIP_STORED:
            with KerasH5Reader(tmp_path / "m.keras") as reader:
                assert same_bits(reader.read("dense/vars/0"), KERNEL)
        else:
            with pytest.raises(FormatError, match="compressed; unpack the archive"):
                KerasH5Reader(tmp_path / "m.keras")


def test_unknown_names(tmp_path: Path) -> None:
    with KerasH5Reader(keras_file(tmp_path / "m.h5")) as reader:
        for method in (reader.read, reader.check, reader.release):
            with pytest.raises(NotFoundError, match="no tensor 'x'"):
                method("x")


# -- hostile and foreign files -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    put, said = HOSTILE[kind]
    path = keras_file(tmp_path / "m.h5", put)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(FormatError) as caught:
        KerasH5Reader(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_newer_structures_say_what_to_do(tmp_path: Path) -> None:
    packed = lambda f: f.create_dataset("c", data=np.zeros((20, 20)), chunks=(5, 5))  # noqa: E731
    path = keras_file(tmp_path / "m.h5", packed, libver="latest")
    with pytest.raises(FormatError, match=r"newer .* not supported; write it again"):
        KerasH5Reader(path)


@pytest.mark.parametrize(
    ("mark", "kind"),
    [("", "an HDF5 file"), ("_NCProperties", "a netCDF file"), ("encoding-type", "of AnnData")],
)
def test_hdf5_of_other_programs_is_named(tmp_path: Path, mark: str, kind: str) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["measurements/a"] = np.arange(3)
        file.attrs.update({mark: "x"} if mark else {})
    with pytest.raises(FormatError) as caught:
        KerasH5Reader(path)
    assert f"{kind}, not Keras weights (it holds measurements/a)" in str(caught.value)
    *_, interpreter, flag, code = shlex.split(caught.value.hint or "")
    assert (interpreter, flag) == ("python", "-c")
    exec(code, {})
    with open_reader(tmp_path / "m.npz") as reader:
        assert reader.read("measurements/a").tolist() == [0, 1, 2]


def test_a_file_behind_a_user_block_is_refused(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.h5", userblock_size=512)
    with pytest.raises(FormatError, match="HDF5 superblock"):
        KerasH5Reader(path)


def test_datasets_that_share_bytes(tmp_path: Path) -> None:
    held = {"a/vars/0": np.ones(32, "f4"), "b/vars/0": np.zeros(32, "f4")}
    path = tmp_path / "m.weights.h5"
    write_all(KerasH5Writer(path, specs_of(held), META), held)
    raw = path.read_bytes()
    place = b"\x03\x01" + (256).to_bytes(8, "little")  # where the second one's bytes are
    assert raw.count(place) == 1
    path.write_bytes(raw.replace(place, b"\x03\x01" + (192).to_bytes(8, "little")))
    with pytest.raises(FormatError, match="overlap"):
        KerasH5Reader(path)


def every_structure(path: Path, libver: Any) -> bytes:
    def more(file: Any) -> None:
        brain_float(file)
        compact(file)
        packed = {"compression": "gzip", "shuffle": True, "fletcher32": True} if libver is None else {}
        file.create_dataset("c", data=np.arange(200, dtype=">i8").reshape(10, 20), **packed)
        for index in range(12):
            file[f"many/layer_{index}/vars/0"] = np.full(3, index, "f8")
        file["many"].attrs.update({f"a{index}": index * "x" for index in range(9)})
        file["tied/vars"] = h5py.SoftLink("/many/layer_3/vars")

    return keras_file(path, more, libver=libver, track_order=libver is not None).read_bytes()


@pytest.mark.parametrize("libver", [None, "latest"])
def test_truncations_and_mutations(tmp_path: Path, libver: Any) -> None:
    raw = every_structure(tmp_path / "x.h5", libver)
    path = tmp_path / "m.h5"
    assert survives(path, raw, KerasH5Reader)
    for stop in range(0, len(raw), 97):
        assert not survives(path, raw[:stop], KerasH5Reader)
    opened = sum(survives(path, damaged, KerasH5Reader) for damaged in mutations(raw, 400, seed=5))
    assert 0 < opened < 400


def test_mutations_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    held = arrays(without=WITHOUT)
    write_all(KerasH5Writer(path, specs_of(held), META), held)
    raw = path.read_bytes()
    structures = range(raw.index(b"GCOL"), len(raw))
    cases = [*mutations(raw, 50, seed=6, within=range(96)), *mutations(raw, 150, seed=7, within=structures)]
    assert 0 < sum(survives(path, damaged, KerasH5Reader) for damaged in cases) < len(cases)


# -- writing -------------------------------------------------------------------------------------------------


def test_h5py_reads_ours(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    path = tmp_path / "m.weights.h5"
    files, sums = write_all(KerasH5Writer(path, specs_of(held), META), held)
    assert files == [path]
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item}) if hasattr(item, "shape") else None)
        assert found.keys() == held.keys()
        for name, wanted in held.items():
            got = found[name][()]
            if wanted.dtype == ml_dtypes.bfloat16:
                assert found[name].attrs["dtype"] == "bfloat16"
                got = np.array(found[name], dtype=ml_dtypes.bfloat16)
            assert same_bits(np.asarray(got), wanted), name
            assert sums[name] == google_crc32c.value(wanted.tobytes())
            assert wanted.nbytes == 0 or found[name].id.get_offset() % 64 == 0
    with KerasH5Reader(path) as reader:
        assert reader.metadata == META
        assert {spec.name: spec for spec in specs_of(held)} == dict(reader.specs)
        assert all(same_bits(reader.read(name), wanted) for name, wanted in held.items())


PART = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(st.lists(PART.filter(lambda p: p != "."), min_size=1, max_size=4).map(tuple), max_size=30)
)
def test_any_tree_of_names(tmp_path: Path, names: set[tuple[str, ...]]) -> None:
    inner = {name[:length] for name in names for length in range(1, len(name))}
    held = {"/".join(n): np.full(2, i, "i2") for i, n in enumerate(sorted(names - inner))}
    path = tmp_path / "m.weights.h5"
    write_all(KerasH5Writer(path, specs_of(held), META, force=True), held)
    with KerasH5Reader(path) as reader, h5py.File(path) as file:
        assert reader.specs.keys() == held.keys()
        for name, wanted in held.items():
            assert same_bits(reader.read(name), wanted)
            assert file[name][()].tolist() == wanted.tolist()


@pytest.mark.parametrize("count", [8, 9, 256, 257, 3000])
def test_groups_of_any_width(tmp_path: Path, count: int) -> None:
    held = {f"{i:x}": np.array(i, "i4") for i in range(count)}
    path = tmp_path / "m.weights.h5"
    write_all(KerasH5Writer(path, specs_of(held), {}), held)
    with h5py.File(path) as file:
        assert len(file) == count
        assert {name: file[name][()].item() for name in file} == {f"{i:x}": i for i in range(count)}
    with KerasH5Reader(path) as reader:
        assert reader.specs.keys() == held.keys()


def test_any_order_and_any_thread(tmp_path: Path) -> None:
    held = {f"l{i}/vars/0": np.random.default_rng(i).standard_normal((50, 60)) for i in range(20)}
    for run, names in (("a", list(held)), ("b", list(reversed(held)))):
        with KerasH5Writer(tmp_path / run, specs_of(held), META) as writer, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name, to=writer: to.write(name, held[name]), names))
            writer.finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    for name in ("a", "b"):
        write_all(KerasH5Writer(tmp_path / name, specs_of(held), dict(reversed(META.items()))), held)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_types_keras_could_not_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"a Keras weights file cannot hold 'w' as {name}$"):
        KerasH5Writer(tmp_path / "m.weights.h5", [TensorSpec("w", DTYPES[name], (2,))], {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a/b"],
        ["a/b", "a"],
        ["a/b/c", "a/b"],
        [""],
        ["/a"],
        ["a/"],
        ["a//b"],
        ["a/./b"],
        ["a\0b"],
        ["x" * 1025],
        ["/".join("x" * 66)],
        ["a", "a"],
        ["\udc80"],
    ],
    ids=repr,
)
def test_names_hdf5_cannot_hold(tmp_path: Path, names: list[str]) -> None:
    specs = [TensorSpec(name, DTYPES["float32"], ()) for name in names]
    with pytest.raises(ConversionError, match=r"m\.weights\.h5"):
        KerasH5Writer(tmp_path / "m.weights.h5", specs, {})
    assert list(tmp_path.iterdir()) == []


def test_the_longest_names_are_read_again(tmp_path: Path) -> None:
    held = {"x" * 1024: np.ones(1), "/".join(["y"] * 64): np.ones(1)}
    write_all(KerasH5Writer(tmp_path / "m", specs_of(held), {}), held)
    assert KerasH5Reader(tmp_path / "m").specs.keys() == held.keys()


def test_metadata_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="metadata"):
        KerasH5Writer(tmp_path / "m", [], {"a": "x" * 60_000})
    write_all(KerasH5Writer(tmp_path / "m", [], {"a": "x" * 59_000}), {})
    assert KerasH5Reader(tmp_path / "m").metadata == {"a": "x" * 59_000}
    with h5py.File(tmp_path / "m") as file:
        assert file.attrs["ckptkit"].decode() == '{"a":"' + "x" * 59_000 + '"}'


def test_misuse_is_refused(tmp_path: Path) -> None:
    held = {"a": np.ones(3, "f4"), "b": np.ones(2, "f4")}
    with KerasH5Writer(tmp_path / "m", specs_of(held), {}) as writer:
        with pytest.raises(ValueError, match="announced was"):
            writer.write("a", held["b"])
        writer.write("a", held["a"])
        for name in ("a", "c"):
            with pytest.raises(ValueError, match="not to be written"):
                writer.write(name, held["a"])
        with pytest.raises(ValueError, match=r"1 tensor was never written"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m").write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        KerasH5Writer(tmp_path / "m", specs_of(held), {})
    assert (tmp_path / "m").read_bytes() == b"mine"


WRITE = """
    import resource, signal, sys, time
    from pathlib import Path
    import numpy as np
    from ckptkit.base.errors import StorageError
    from ckptkit.formats.keras import KerasH5Writer
    from ckptkit.base.tensors import DTYPES, TensorSpec
    if sys.argv[2] == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    specs = [TensorSpec(f"l/vars/{i}", DTYPES["float32"], (25_000,)) for i in range(2)]
    try:
        with KerasH5Writer(Path(sys.argv[1]), specs, {}) as writer:
            writer.write("l/vars/0", np.ones(25_000, "f4"))
            print("half", flush=True)
            if sys.argv[2] == "wait":
                time.sleep(60)
            writer.write("l/vars/1", np.ones(25_000, "f4"))
            writer.finish()
    except StorageError as error:
        print(error)
"""


def child(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    target = tmp_path / "m.weights.h5"
    writing = child(target, "wait")
    assert writing.stdout is not None
    assert writing.stdout.readline() == "half\n"
    writing.send_signal(signal.SIGKILL)
    writing.communicate()
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    child(target, "").communicate(timeout=60)
    assert list(tmp_path.iterdir()) == [target]
    assert len(KerasH5Reader(target).specs) == 2


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    said, _ = child(tmp_path / "m.weights.h5", "full").communicate(timeout=60)
    assert "m.weights.h5: file too large" in said
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------
# The ``.h5`` files of Keras 1 and 2: Keras' own, h5py's in every spelling of the lists, and hostile ones.

LEGACY_KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([1.5, -2, 3, 4], np.float32)
LAYERS: dict[str, dict[str, Any]] = {
    "input_1": {},
    "zeta": {"zeta/kernel:0": LEGACY_KERNEL, "zeta/bias:0": BIAS},
    "block/conv": {"block/conv/kernel:0": LEGACY_KERNEL * 2},
    "block": {"block/gamma:0": BIAS * 2},
}
"""As tf-keras 2.21 spells them: layers in the model's order, groups in groups, a layer without weights."""
NAMES = ["zeta/kernel", "zeta/bias", "block/conv/kernel", "block/gamma"]
OUTSIDE = {"top_level_model_weights": {"scale:0": np.float32([7])}}


def read(path: Path) -> tuple[dict[str, Any], KerasH5Reader]:
    reader = open_reader(path)
    assert isinstance(reader, KerasH5Reader)
    with reader:
        return {name: reader.read(name) for name in reader.specs}, reader


# -- the format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [0, 2, 4], ids=lambda split: f"split {split}")
@pytest.mark.parametrize("fixed", [False, True], ids=["any length", "fixed length"])
def test_weights_come_in_the_order_of_the_lists(tmp_path: Path, fixed: bool, split: int) -> None:
    held, reader = read(legacy_file(tmp_path / "m.h5", LAYERS, fixed=fixed, split=split))
    assert list(held) == NAMES
    assert same_bits(held["zeta/kernel"], LEGACY_KERNEL)
    assert same_bits(held["zeta/bias"], BIAS)
    assert same_bits(held["block/conv/kernel"], LEGACY_KERNEL * 2)
    assert same_bits(held["block/gamma"], BIAS * 2)
    assert not held["zeta/kernel"].flags.writeable
    assert not held["zeta/kernel"].flags.owndata
    assert reader.format == "keras2"
    assert reader.metadata == {"keras_version": "2.15.0", "backend": "tensorflow"}
    assert (reader.notes, reader.also) == ((), {})


def whole_model(path: Path, layers: Any = LAYERS, **options: Any) -> Path:
    """What Keras 2's ``model.save`` writes."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": "x" * 70_000})
        file.attrs["training_config"] = b"{}"
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["backend"] = "tensorflow"
        legacy_weights(file.create_group("model_weights"), layers, **options)
        optimizer = file.create_group("optimizer_weights")
        optimizer.attrs["weight_names"] = [b"Adam/iter:0", b"Adam/zeta/kernel/m:0"]
        optimizer["Adam/iter:0"] = np.int64(5)
        optimizer["Adam/zeta/kernel/m:0"] = LEGACY_KERNEL
        optimizer["Adam/name"] = "text"
    return path


@pytest.mark.parametrize("fixed", [False, True], ids=["any length", "fixed length"])
def test_a_whole_model_is_its_weights(tmp_path: Path, fixed: bool) -> None:
    held, reader = read(whole_model(tmp_path / "m.h5", {**LAYERS, **OUTSIDE}, fixed=fixed))
    assert list(held) == [*NAMES, "scale"]
    assert same_bits(held["zeta/kernel"], LEGACY_KERNEL)
    assert held["scale"].tolist() == [7]
    assert reader.metadata == {"keras_version": "2.15.0", "backend": "tensorflow"}
    assert reader.also == {"optimizer_weights": "3 tensors of the optimizer"}


def test_a_model_that_says_its_version_beside_the_weights_only(tmp_path: Path) -> None:
    path = whole_model(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        del file.attrs["keras_version"], file.attrs["backend"]
    assert read(path)[1].metadata == {"keras_version": "2.15.0", "backend": "tensorflow"}


def test_keras_1_has_no_versions_and_no_scopes(tmp_path: Path) -> None:
    path = legacy_file(
        tmp_path / "m.h5", {"dense_1": {"dense_1_W": LEGACY_KERNEL, "dense_1_b": BIAS}}, fixed=True
    )
    with h5py.File(path, "a") as file:
        del file.attrs["keras_version"], file.attrs["backend"]
    held, reader = read(path)
    assert list(held) == ["dense_1_W", "dense_1_b"]
    assert reader.metadata == {}


def test_weights_without_a_scope_have_their_layers_names_whatever_else_there_is(tmp_path: Path) -> None:
    layers = {"b": {"kernel": LEGACY_KERNEL}, "a": {"kernel": LEGACY_KERNEL + 1}, "other": {"gamma": BIAS}}
    held, _ = read(legacy_file(tmp_path / "m.h5", {**layers, **OUTSIDE}))
    assert list(held) == ["b/kernel", "a/kernel", "other/gamma", "scale"]
    assert same_bits(held["b/kernel"], LEGACY_KERNEL)
    assert same_bits(held["a/kernel"], LEGACY_KERNEL + 1)
    alone, _ = read(legacy_file(tmp_path / "b.h5", {"b": layers["b"]}))
    assert list(alone) == ["b/kernel"]


@pytest.mark.parametrize(
    ("layer", "weight", "name"),
    [
        ("dense", "dense/kernel:0", "dense/kernel"),
        ("dense", "my_model/dense/kernel:0", "my_model/dense/kernel"),
        ("dense_1", "dense_1_W", "dense_1_W"),
        ("dense", "dense", "dense"),
        ("resnet50", "conv1_conv/kernel:0", "resnet50/conv1_conv/kernel"),
        ("k", "kernel:0", "k/kernel"),
        ("kernel", "key/kernels:0", "kernel/key/kernels"),
        ("a.b", "axb/kernel:0", "a.b/axb/kernel"),
        ("top_level_model_weights", "scale:0", "scale"),
    ],
)
def test_a_name_is_whole(tmp_path: Path, layer: str, weight: str, name: str) -> None:
    held, _ = read(legacy_file(tmp_path / "m.h5", {layer: {weight: LEGACY_KERNEL}}))
    assert list(held) == [name]


def test_weights_that_would_meet_have_their_layers_names_too(tmp_path: Path) -> None:
    layers = {
        "d": {"d/w:0": LEGACY_KERNEL},
        "e": {"d/w:0": LEGACY_KERNEL + 1},
        "x": {"d/w": BIAS},
        "d/w": {"d/w": BIAS + 1},
    }
    held, _ = read(legacy_file(tmp_path / "m.h5", layers))
    assert list(held) == ["d/d/w", "e/d/w", "x/d/w", "d/w/d/w"]


def test_a_layer_shared_by_two_models_is_in_both(tmp_path: Path) -> None:
    """Keras 2 saves its weights with either, under the same name."""
    weights = {"shared/kernel:0": LEGACY_KERNEL}
    held, _ = read(whole_model(tmp_path / "m.h5", {"left": weights, "right": weights}))
    assert list(held) == ["left/shared/kernel", "right/shared/kernel"]


def test_only_the_end_of_a_name_is_tensorflows(tmp_path: Path) -> None:
    weights = {"a:0/kernel:0": LEGACY_KERNEL, "a:0/kernel_1:0": LEGACY_KERNEL, "a:0/kernel:1": LEGACY_KERNEL}
    assert list(read(legacy_file(tmp_path / "m.h5", {"a": weights}))[0]) == [
        "a:0/kernel",
        "a:0/kernel_1",
        "a:0/kernel:1",
    ]


def test_several_slashes_lead_where_one_does(tmp_path: Path) -> None:
    """libhdf5 takes them for one when it writes, so the file has the name in its list only."""
    held, _ = read(legacy_file(tmp_path / "m.h5", {"a": {"m//kernel:0": LEGACY_KERNEL, "m/bias:0": BIAS}}))
    assert list(held) == ["a/m/kernel", "a/m/bias"]


PACKED: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "chunks": {"chunks": True},
}


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<i8", "|u1"])
@pytest.mark.parametrize("stored", ["plain", *PACKED])
def test_element_types_and_storage(tmp_path: Path, dtype: str, stored: str) -> None:
    wanted = np.arange(96).reshape(8, 12).astype(dtype)
    path = legacy_file(tmp_path / "m.h5", {"a": {"kernel:0": wanted}}, **PACKED.get(stored, {}))
    with open_reader(path) as reader:
        got = reader.read("a/kernel")
        assert reader.check("a/kernel") is (stored == "gzip")
    assert same_bits(got, wanted.astype(wanted.dtype.newbyteorder("=")))


def test_scalars_and_empty_weights(tmp_path: Path) -> None:
    weights = {"count:0": np.int64(3), "none:0": np.zeros((0, 3), np.float32)}
    held, _ = read(legacy_file(tmp_path / "m.h5", {"a": weights}))
    assert held["a/count"].item() == 3
    assert held["a/none"].shape == (0, 3)


def test_what_is_not_listed_or_no_tensor_is_told(tmp_path: Path) -> None:
    def more(file: Any) -> None:
        file["zeta/zeta/extra"] = BIAS
        file["optimizer_weights/step"] = BIAS  # in a file of weights alone this is no optimizer's
        file["note"] = "text"

    words = {"mask:0": np.array([True]), "words:0": np.array([b"a"])}
    layers = {**LAYERS, "mask": words}
    held, reader = read(legacy_file(tmp_path / "m.h5", layers, more))
    assert list(held) == [*NAMES, "mask"]
    assert held["mask"].tolist() == [True]
    unlisted = "listed by no layer's weight_names"
    assert reader.also == {
        "mask/words": "texts",
        "note": unlisted,
        "optimizer_weights/step": unlisted,
        "zeta/zeta/extra": unlisted,
    }


@pytest.mark.parametrize(
    "policy", ["bfloat16", {"class_name": "DTypePolicy", "config": {"name": "bfloat16"}}]
)
def test_bfloat16_is_read_where_the_models_configuration_says_so(tmp_path: Path, policy: Any) -> None:
    kernel = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    layers = [
        {"config": {"name": "half", "dtype": policy}},
        {"config": {"name": "mixed", "dtype": "float32"}},
    ]

    def config(file: Any) -> None:
        file.attrs["model_config"] = json.dumps({"config": {"name": "net", "layers": layers}})

    weights = {"half": {"half/kernel:0": kernel}, "mixed": {"mixed/kernel:0": kernel}}
    held, reader = read(legacy_file(tmp_path / "m.h5", weights, config))
    assert same_bits(held["half/kernel"], kernel)
    assert reader.specs["mixed/kernel"].dtype.is_opaque


@pytest.mark.parametrize(
    "config", ["no JSON", "[" * 100_000, '"bfloat16"', '{"dtype": "bfloat16", "name": 3}']
)
def test_a_configuration_that_says_nothing_of_use(tmp_path: Path, config: str) -> None:
    def more(file: Any) -> None:
        file.attrs["model_config"] = np.bytes_(config[:60_000])

    assert [*read(legacy_file(tmp_path / "m.h5", LAYERS, more))[0]] == NAMES


def test_bfloat16_of_keras_2_is_carried_as_elements_of_two_bytes(tmp_path: Path) -> None:
    """The file says only that: whoever wants numbers has to be told what they are."""
    kernel = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    path = legacy_file(tmp_path / "m.h5", {**LAYERS, "half": {"half/kernel:0": kernel}})
    with KerasH5Reader(path) as reader:
        spec = reader.specs["half/kernel"]
        assert (spec.dtype.kind, spec.dtype.name, spec.shape) == ("opaque", "void16", (2, 3))
        assert bytes(bytes_of(reader, "half/kernel").data) == kernel.tobytes()


@pytest.mark.parametrize("fixed", [False, True], ids=["any length", "fixed length"])
def test_lists_longer_than_an_attribute(tmp_path: Path, fixed: bool) -> None:
    """Many small layers with long names: most of the file is lists."""
    prefix = "a_rather_long_scope_as_found_in_generated_code/of_more_than_one_part/"
    layers = {f"layer_{i}": {f"{prefix}layer_{i}/w:0": np.float32(i)} for i in range(900)}
    layers["rest"] = {f"{prefix}w_{i}:0": np.float32(-i) for i in range(900)}
    path = legacy_file(tmp_path / "m.h5", layers, fixed=fixed, split=3)
    held, _ = read(path)
    assert [array.item() for array in held.values()] == [*range(900), *(-i for i in range(900))]
    assert list(held)[899] == f"{prefix}layer_899/w"


LEGACY_STEP = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=4
)
LEGACY_STEP = LEGACY_STEP.filter(lambda step: step.strip(".") and not step.endswith(":0"))
NAME = st.lists(LEGACY_STEP, min_size=1, max_size=3).map("/".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.dictionaries(LEGACY_STEP, st.lists(LEGACY_STEP, unique=True, max_size=4), max_size=5),
    scopes=st.booleans(),
)
def test_any_names(tmp_path: Path, model: dict[str, list[str]], scopes: bool) -> None:
    layers = {
        layer: {(f"{layer}/{name}:0" if scopes else name): np.int32([i, j]) for j, name in enumerate(names)}
        for i, (layer, names) in enumerate(model.items())
        if layer != "top_level_model_weights"
    }
    path = legacy_file(tmp_path / "m.h5", layers)
    pairs = [(layer, name) for layer, weights in layers.items() for name in weights]
    wanted = []
    for layer, name in pairs:
        begun = name == layer or name.startswith((f"{layer}_", f"{layer}:"))  # as of dense_1: dense_1_W
        wanted.append(name[:-2] if scopes else name if begun else f"{layer}/{name}")
    twice = {name for name in wanted if wanted.count(name) > 1}
    wanted = [
        f"{layer}/{one}" if one in twice else one for (layer, _), one in zip(pairs, wanted, strict=True)
    ]
    held, _ = read(path)
    assert list(held) == wanted
    assert [a.tolist() for a in held.values()] == [layers[layer][name].tolist() for layer, name in pairs]


# -- writing them --------------------------------------------------------------------------------------------


def write_keras_2(path: Path, held: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    write_all(Keras2Writer(path, specs_of(held), metadata or {}, force=True), held)
    return path


def test_keras_2_as_h5py_sees_it(tmp_path: Path) -> None:
    held = {"zeta/kernel": LEGACY_KERNEL, "zeta/bias": BIAS, "block/conv/kernel": BIAS, "scale": np.int64(7)}
    path = write_keras_2(tmp_path / "m.h5", held, META)
    with h5py.File(path) as file:
        attributes = {name: value.tolist() for name, value in file.attrs.items() if name != "ckptkit"}
        assert attributes == {
            "layer_names": [b"zeta", b"block"],
            "backend": b"tensorflow",
            "keras_version": b"2",
        }
        assert {name: group.attrs["weight_names"].tolist() for name, group in file.items()} == {
            "zeta": [b"zeta/kernel:0", b"zeta/bias:0"],
            "block": [b"block/conv/kernel:0"],
            "top_level_model_weights": [b"scale:0"],
        }
        assert same_bits(file["zeta/zeta/kernel:0"][()], LEGACY_KERNEL)
    found, reader = read(path)
    assert list(found) == list(held)
    assert all(same_bits(found[name], np.asarray(array)) for name, array in held.items())
    assert (reader.format, reader.metadata) == ("keras2", META)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(NAME, max_size=12))
def test_keras_2_gives_any_names_back(tmp_path: Path, names: set[str]) -> None:
    steps = {name: name.split("/") for name in names}
    inner = {"/".join(parts[:length]) for parts in steps.values() for length in range(1, len(parts))}
    held = {name: np.int32([i, 1]) for i, name in enumerate(sorted(names - inner))}
    found, _ = read(write_keras_2(tmp_path / "m.h5", held))
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in held.items()
    }


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_keras_2_lists_of_any_length(tmp_path: Path, count: int) -> None:
    held = {f"a_layer_with_a_long_name_{i}/kernel": np.int32(i) for i in range(count)}
    held |= {f"one/w{i}_of_a_long_name_that_fills_an_attribute": np.int32(-i) for i in range(count)}
    held["scale"] = np.int32(9)
    path = write_keras_2(tmp_path / "m.h5", held)
    with h5py.File(path) as file:
        parts = [name for name in file.attrs if name.startswith("layer_names")]
        assert parts == (["layer_names"] if count < 2 else ["layer_names0", "layer_names1"])
        assert sum(len(file.attrs[name]) for name in parts) == (count + 1 if count else 0)
    found, _ = read(path)
    assert list(found) == list(held)


def test_keras_2_has_no_bfloat16() -> None:
    able = {name for name in ("float32", "bfloat16", "int8") if BUILT_IN["keras2"].holds(spec_of(name))}
    assert able == {"float32", "int8"}


def spec_of(dtype: str) -> TensorSpec:
    return TensorSpec("w", DTYPES[dtype], (2,))


# -- hostile files -------------------------------------------------------------------------------------------


def attribute(name: str, value: Any, group: str = "/") -> Callable[[Any], None]:
    return lambda file: file[group].attrs.__setitem__(name, value)


def without(name: str, group: str = "/") -> Callable[[Any], None]:
    return lambda file: file[group].attrs.__delitem__(name)


def weights_of_zeta(*names: str) -> Callable[[Any], None]:
    return attribute("weight_names", [name.encode() for name in names], "zeta")


LEGACY_HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "a layer without a group": (attribute("layer_names", [b"gone"]), "no group of the layer gone"),
    "a layer that is a dataset": (
        attribute("layer_names", [b"zeta/zeta/kernel:0"]),
        "no group of the layer zeta/zeta/kernel:0",
    ),
    "a layer twice": (attribute("layer_names", [b"zeta", b"zeta"]), "zeta is listed twice"),
    "layers that are numbers": (attribute("layer_names", [1, 2]), "layer_names is not a list of texts"),
    "layers in a table": (
        attribute("layer_names", np.array([[b"zeta"]])),
        "layer_names is not a list of texts",
    ),
    "layers that are no UTF-8": (
        attribute("layer_names", np.array([b"\xff\xfe"])),
        "layer_names is not a list of texts",
    ),
    "a layer above the root": (attribute("layer_names", [b"../zeta"]), "a layer named '../zeta'"),
    "a layer without a name": (attribute("layer_names", [b""]), "a layer named ''"),
    "no weight names": (without("weight_names", "zeta"), "group zeta: no attribute weight_names"),
    "weights that are numbers": (
        attribute("weight_names", 1.5, "zeta"),
        "group zeta: its attribute weight_names is not a list of texts",
    ),
    "a weight without data": (
        weights_of_zeta("zeta/kernel:0", "zeta/gone:0"),
        "no dataset zeta/zeta/gone:0, which its layer lists",
    ),
    "a weight that is a group": (weights_of_zeta("zeta"), "no dataset zeta/zeta, which its layer lists"),
    "a weight that is a type": (
        lambda f: (weights_of_zeta("type")(f), f.__setitem__("zeta/type", np.dtype("f4"))),
        "no dataset zeta/type, which its layer lists",
    ),
    "a weight of another layer": (weights_of_zeta("../block/block/gamma:0"), "a weight named '../block"),
    "a weight by its whole path": (
        weights_of_zeta("/zeta/zeta/kernel:0"),
        "a weight named '/zeta/zeta/kernel:0'",
    ),
    "a weight in its own place": (weights_of_zeta("./zeta/kernel:0"), "a weight named './zeta/kernel:0'"),
    "a weight without a name": (weights_of_zeta(":0"), "a weight named ':0'"),
    "a weight of slashes": (weights_of_zeta("//"), "a weight named '//'"),
    "a weight twice": (weights_of_zeta("zeta/kernel:0", "zeta/kernel:0"), "zeta/zeta/kernel is listed twice"),
    "a weight in two spellings": (
        weights_of_zeta("zeta/kernel:0", "zeta//kernel:0"),
        "zeta/zeta/kernel is listed twice",
    ),
    "two weights of one name": (
        lambda f: (weights_of_zeta("zeta/bias", "zeta/bias:0")(f), f.__setitem__("zeta/zeta/bias", BIAS)),
        "zeta/zeta/bias is listed twice",
    ),
    "one dataset of two layers": (
        attribute("weight_names", [b"conv/block/conv/kernel:0"], "block"),
        "block/conv/block/conv/kernel:0 is listed twice",
    ),
    "a part missing": (
        lambda f: (
            without("layer_names")(f),
            attribute("layer_names0", [b"zeta"])(f),
            attribute("layer_names2", [b"block"])(f),
        ),
        "parts missing, or too many, of the attribute layer_names",
    ),
    "whole and in parts": (attribute("layer_names0", [b"zeta"]), "parts missing, or too many"),
    "a link out of the file": (
        lambda f: f.__setitem__("zeta/x", h5py.ExternalLink("/etc/passwd", "/x")),
        "link to another file",
    ),
}


@pytest.mark.parametrize("kind", LEGACY_HOSTILE)
def test_hostile_legacy_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    put, said = LEGACY_HOSTILE[kind]
    path = legacy_file(tmp_path / "m.h5", LAYERS, put)
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_architecture_without_weights(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = "{}"
        file["model_weights"] = LEGACY_KERNEL
    with pytest.raises(FormatError, match="without weights: neither layer_names nor a group model_weights"):
        open_reader(tmp_path / "m.h5")


@pytest.mark.parametrize("track", [True, False])
def test_lists_in_newer_structures(tmp_path: Path, track: bool) -> None:
    """HDF5's newer way keeps more than eight attributes outside of an object's header."""
    with h5py.File(tmp_path / "m.h5", "w", libver="latest", track_order=track) as file:
        legacy_weights(file, {"a": {f"w_{i}:0": BIAS + i for i in range(6)}})
        weights = [name.encode() for name in file["a"]]
        del file["a"].attrs["weight_names"]
        for number in range(9):
            file["a"].attrs[f"weight_names{number}"] = weights if number == 0 else []
    held, _ = read(tmp_path / "m.h5")
    assert {name: value.tolist() for name, value in held.items()} == {
        f"a/w_{i}": (BIAS + i).tolist() for i in range(6)
    }


# -- Keras 0.x -----------------------------------------------------------------------------------------------


def first_keras(path: Path, layers: list[list[Any]], more: Callable[[Any], object] | None = None) -> Path:
    """What ``save_weights`` of Keras 0.x wrote."""
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = len(layers)
        for number, weights in enumerate(layers):
            group = file.create_group(f"layer_{number}")
            group.attrs["nb_params"] = len(weights)
            for place, value in enumerate(weights):
                group.create_dataset(f"param_{place}", data=value)
        if more is not None:
            more(file)
    return path


def test_weights_of_the_first_keras(tmp_path: Path) -> None:
    layers: list[list[Any]] = [[LEGACY_KERNEL, BIAS], [], *[[BIAS + i] for i in range(9)]]
    held, reader = read(first_keras(tmp_path / "m.h5", layers, lambda f: f.__setitem__("layer_1/x", BIAS)))
    assert {name: value.tolist() for name, value in held.items()} == {
        f"layer_{i}/param_{j}": value.tolist()
        for i, weights in enumerate(layers)
        for j, value in enumerate(weights)
    }
    assert reader.also == {"layer_1/x": "not among its layer's nb_params"}


COUNTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a layer missing": (lambda f: f.__delitem__("layer_1"), "no group layer_1 of the 2 layers"),
    "a weight missing": (lambda f: f.__delitem__("layer_0/param_1"), "no layer_0/param_1 of the 2"),
    "no count of weights": (without("nb_params", "layer_1"), "group layer_1: its attribute nb_params is not"),
    "a count that is a text": (attribute("nb_layers", "2"), "its attribute nb_layers is not a count"),
    "a count below zero": (attribute("nb_params", -1, "layer_0"), "its attribute nb_params is not a count"),
    "a huge count": (attribute("nb_layers", np.uint64(1 << 63)), "no group layer_2 of the 9,223,372,"),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_counts_of_the_first_keras_must_hold(tmp_path: Path, kind: str) -> None:
    put, said = COUNTS[kind]
    with pytest.raises(FormatError) as caught:
        open_reader(first_keras(tmp_path / "m.h5", [[LEGACY_KERNEL, BIAS], [BIAS]], put))
    assert said in str(caught.value)


def test_one_text_in_every_place_of_a_list(tmp_path: Path) -> None:
    """A megabyte that a list refers to 4000 times would be 4 GB of names."""
    path = legacy_file(tmp_path / "m.h5", {"a": {f"w_{i:04}:0": np.float32(0) for i in range(2000)}})
    with h5py.File(path, "a") as file:
        file.attrs["long"] = "x" * 1_000_000
    raw = path.read_bytes()
    place = raw.index(b"x" * 1_000_000)
    collection = raw.rindex(b"GCOL", 0, place)
    to_long = (1_000_000).to_bytes(4, "little") + collection.to_bytes(8, "little")
    reference = raw.index(to_long)
    first = raw.index(b"weight_names\0") + 16
    start = raw.index((8).to_bytes(4, "little"), first + 40)
    bomb = bytearray(raw)
    bomb[start : start + 2000 * 16] = raw[reference : reference + 16] * 2000
    path.write_bytes(bomb)
    with pytest.raises(FormatError, match="structures that overlap"):
        open_reader(path)


@pytest.mark.parametrize("fixed", [False, True], ids=["any length", "fixed length"])
def test_truncations_and_mutations_of_legacy_files(tmp_path: Path, fixed: bool) -> None:
    raw = whole_model(tmp_path / "x.h5", {**LAYERS, **OUTSIDE}, fixed=fixed).read_bytes()
    path = tmp_path / "m.h5"
    assert survives(path, raw, open_reader)
    structures = [place for place in range(0, len(raw), 61) if raw[place : place + 61] != b"x" * 61]
    for stop in structures:
        assert not survives(path, raw[:stop], open_reader)
    small = legacy_file(tmp_path / "x.h5", {**LAYERS, **OUTSIDE}, fixed=fixed).read_bytes()
    opened = sum(survives(path, damaged, open_reader) for damaged in mutations(small, 250, seed=9))
    assert 0 < opened < 250


# -- commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "home"))
    return runner(capsys)


def moat_as_keras_2(path: Path, whole: bool) -> Path:
    """tiny-moat0 by its published names, in the layers that they name."""
    layers: dict[str, dict[str, Any]] = {}
    for name, array in tiny_tensors().items():
        layer = name.split("/")[0] if "/" in name else "top_level_model_weights"
        layers.setdefault(layer, {})[f"{name}:0"] = array
    if whole:
        return whole_model(path, layers, fixed=True, split=3)
    return legacy_file(path, layers)


@pytest.mark.parametrize("whole", [False, True], ids=["weights", "whole model"])
def test_a_moat_is_recognised_and_converts_like_the_published_file(run, tmp_path: Path, whole: bool) -> None:
    published = write_tiny(tmp_path / "moat.ckpt")
    legacy = moat_as_keras_2(tmp_path / "moat.h5", whole)
    inspected = run("inspect", legacy, "--json")
    assert inspected.code == ExitCode.OK, inspected.err
    said = json.loads(inspected.out)
    assert (said["format"], said["layout"], said["variant"]) == ("keras2", "deeplab2", "tiny-moat0")
    results = []
    for source in (published, legacy):
        target = tmp_path / f"{source.suffix[1:]}.safetensors"
        converted = run("convert", source, "--to", "safetensors", "-o", target)
        assert converted.code == ExitCode.OK, converted.err
        raw = target.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        origins = [key for key in header["__metadata__"] if key.startswith("source_")]
        results.append(({key: header["__metadata__"].pop(key) for key in origins}, header, raw[end:]))
    assert [key for origin, *_ in results for key in origin] == ["source_index_sha256", "source_sha256"]
    assert results[0][1:] == results[1][1:]


def test_a_conversion_as_is_keeps_names_and_bytes(run, tmp_path: Path) -> None:
    source = whole_model(tmp_path / "m.h5", {**LAYERS, **OUTSIDE})
    target = tmp_path / "m.safetensors"
    done = run("convert", source, "--to", "safetensors", "--layout", "as-is", "-o", target)
    assert done.code == ExitCode.OK, done.err
    state = read_safetensors(target)
    assert state.keys() == {*NAMES, "scale"}
    assert same_bits(state["block/conv/kernel"], LEGACY_KERNEL * 2)


def read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def test_keras_itself_is_not_asked_to_load_it(run, tmp_path: Path) -> None:
    """Keras 3's ``load_weights`` goes by the file's name and refuses it: `parity` fills the model itself."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("torch")
    with models_here():
        done = run("parity", moat_as_keras_2(tmp_path / "moat.weights.h5", whole=True), "--resolution", "64")
    assert done.code == ExitCode.OK, done.err
    assert "reads the original (keras2, layout deeplab2, float32)" in done.out


# -- what Keras writes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    pytest.importorskip("tensorflow")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def model(keras: Any) -> Any:
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.Dense(2, dtype="float16")], name="in"
    )
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    made = keras.Model(image, layers.Dense(5, name="head")(inner(x)))
    source = np.random.default_rng(4)
    made.set_weights([source.integers(0, 90, w.shape).astype(w.dtype) for w in made.get_weights()])
    made.compile("adam", "mse")
    made.optimizer.build(made.trainable_variables)
    return made


def assert_holds(held: dict[str, Any], model: Any) -> None:
    wanted = {variable.path: np.asarray(variable) for variable in model.weights}
    assert held.keys() == wanted.keys()
    assert all(same_bits(held[name], array) for name, array in wanted.items())


def test_keras_loads_by_name_what_is_written_for_keras_2(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(image))
    made = keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))
    random = np.random.default_rng(2)
    held = {
        variable.path: random.standard_normal(variable.shape, np.float32)
        for layer in reversed(made.layers)
        for variable in layer.weights
    }
    made.load_weights(write_keras_2(tmp_path / "m.h5", held), by_name=True)
    assert len(held) == 8
    assert all(same_bits(np.asarray(variable), held[variable.path]) for variable in made.weights)


def test_keras_own_whole_model(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "m.h5")
    held, reader = read(tmp_path / "m.h5")
    assert len(held) == 2 + 4 + 4 + 2
    assert_holds(held, model)
    assert reader.metadata["backend"] == "tensorflow"
    assert reader.metadata["keras_version"].startswith("3.")
    states = len(model.optimizer.variables)
    assert reader.also == {"optimizer_weights": f"{states} tensors of the optimizer"}


def test_keras_own_weights_with_lists_in_parts(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.legacy.saving import legacy_h5_format

    monkeypatch.setattr(legacy_h5_format, "HDF5_OBJECT_HEADER_LIMIT", 50)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
        assert {"layer_names0", "layer_names1"} <= set(file.attrs)
    assert_holds(read(tmp_path / "m.h5")[0], model)
