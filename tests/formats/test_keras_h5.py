"""Keras 3's weights files: Keras' and h5py's, ours, and hostile ones."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import textwrap
import zipfile
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
from ckptkit.formats.base import bytes_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.keras_h5 import KerasH5Reader, KerasH5Writer
from tests.support.damage import mutations, survives
from tests.support.hdf5_files import HOSTILE, KERNEL, compact, h5py, keras_file
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
    with pytest.raises(FormatError, match=r"newer .* not supported; write it anew"):
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
        with pytest.raises(ValueError, match=r"1 tensors of .* never written"):
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
    from ckptkit.formats.keras_h5 import KerasH5Writer
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
