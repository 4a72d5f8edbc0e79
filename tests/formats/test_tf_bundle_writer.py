from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptkit.base.errors import ConversionError, IntegrityError, StorageError, UsageError
from ckptkit.base.tensors import DTYPES, DType, TensorSpec, dtype_of
from ckptkit.formats.base import Writer
from ckptkit.formats.tf_bundle import TfBundleReader, TfBundleWriter
from ckptkit.formats.tf_locate import locate
from tests.support.tf_files import write_checkpoint

RANDOM = np.random.default_rng(5)
TENSORS: dict[str, np.ndarray] = {
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


def test_it_is_a_writer(tmp_path: Path) -> None:
    writer: Writer = TfBundleWriter(tmp_path / "m", [], {})
    with writer:
        pass


def test_what_is_written_is_read(tmp_path: Path) -> None:
    metadata = {"entry": "moat0-224", "layout": "deeplab2"}
    files = write(tmp_path / "new" / "m.ckpt", TENSORS, metadata)
    assert [file.name for file in files] == ["m.ckpt.data-00000-of-00001", "m.ckpt.index"]
    assert sorted((tmp_path / "new").iterdir()) == files
    with TfBundleReader(tmp_path / "new" / "m.ckpt", verify=True) as reader:
        assert reader.metadata == metadata
        assert list(reader.specs) == sorted(TENSORS, key=str.encode)
        for name, array in TENSORS.items():
            found = reader.read(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()


def test_order_is_by_bytes_and_crc_is_returned(tmp_path: Path) -> None:
    with TfBundleWriter(tmp_path / "m", specs_of(TENSORS), {}) as writer:
        assert list(writer.order) == ["Z", "a", "a/b", "b", "empty", "scalar", "ä"]
        for name in writer.order:
            assert writer.write(name, TENSORS[name]) == google_crc32c.value(TENSORS[name].tobytes())
        writer.finish()
    data = (tmp_path / "m.data-00000-of-00001").read_bytes()
    assert data == b"".join(TENSORS[name].tobytes() for name in writer.order)


def test_same_entries_as_a_checkpoint_put_together_by_hand(tmp_path: Path) -> None:
    tensors = {name: array for name, array in TENSORS.items() if array.size}
    write(tmp_path / "ours", tensors)
    write_checkpoint(tmp_path / "hand", tensors)
    suffix = ".data-00000-of-00001"
    assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"hand{suffix}").read_bytes()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    reordered = dict(reversed(TENSORS.items()))
    for name, tensors, metadata in [
        ("x", TENSORS, {"a": "1", "b": "2"}),
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
    with pytest.raises(stop), TfBundleWriter(tmp_path / "m", specs_of(TENSORS), {}) as writer:
        writer.write(writer.order[0], TENSORS[writer.order[0]])
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
        ([TensorSpec("", FLOAT, ())], "no name"),
        ([TensorSpec("a\0b", FLOAT, ())], "no name"),
        ([TensorSpec("a\udc80", FLOAT, ())], "no name"),
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
        with pytest.raises(ValueError, match=r"1 tensors .* never written"):
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
