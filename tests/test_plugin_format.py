"""A format that another package adds works in every command, and nothing of ckptkit is changed for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptkit
from ckptkit.base import packages
from ckptkit.base.errors import FormatError, RegistryError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.names import EXTENSIONS, file_ending, format_named, format_to_write, without_ending
from ckptkit.registry.loading import load_registry
from ckptkit.registry.schema import BUILT_IN_FORMATS, json_schema
from tests.support.commands import Runner, runner
from tests.support.plugins import install
from tests.support.tensors import specs_of, write_all

POINTS = {"ckptkit.formats": {"toy": "ckptkit_toy:TOY"}}
TOY = """
import json
import zlib

import numpy

from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.base import Format, Reader

MARK = b"TOYS"
HELD = ("float32", "float16", "int64")


class Toy(Format):
    name = "toy"
    title = "Toy"
    endings = (".toy", ".toybox")
    aliases = ("plaything",)
    checksum = "Adler-32"

    def matches(self, sample):
        return sample.head.startswith(MARK)

    def open(self, path, how):
        return ToyReader(path)

    def holds(self, spec):
        return spec.dtype.name in HELD

    def writer(self, path, specs, metadata, *, force=False):
        return ToyWriter(path, specs, metadata, force)


class ToyReader(Reader):
    format = "toy"

    def __init__(self, path):
        self.path = path
        head, _, self._data = path.read_bytes()[len(MARK):].partition(b"\\n")
        try:
            found = json.loads(head)
        except ValueError as error:
            raise FormatError(path, "the list of tensors is damaged", offset=len(MARK)) from error
        self.metadata = found["metadata"]
        self.specs = {n: TensorSpec(n, DTYPES[d], tuple(s)) for n, d, s, _, _ in found["tensors"]}
        self._at = {n: at for n, _, _, at, _ in found["tensors"]}
        self._sums = {n: checksum for n, _, _, _, checksum in found["tensors"]}

    def read(self, name):
        self.check(name)
        spec = self.specs[name]
        found = numpy.frombuffer(self._data, spec.dtype.numpy, spec.size, self._at[name])
        return found.reshape(spec.shape)

    def check(self, name, known=None):
        spec = self.specs[name]
        raw = self._data[self._at[name] : self._at[name] + spec.nbytes]
        if zlib.adler32(raw) != self._sums[name]:
            raise FormatError(self.path, f"tensor {name!r}: Adler-32 differs")
        return True


class ToyWriter:
    concurrent = False

    def __init__(self, path, specs, metadata, force):
        if path.exists() and not force:
            raise UsageError(f"{path} is there already", hint="--force replaces it")
        self.path, self.metadata = path, dict(metadata)
        self.specs = {spec.name: spec for spec in specs}
        self.order = list(self.specs)
        self.arrays = {}

    def write(self, name, array):
        from ckptkit.base.checksums import crc32c
        from ckptkit.base.tensors import byte_pieces

        pieces = byte_pieces(array, self.specs[name].dtype)
        self.arrays[name] = b"".join(bytes(piece) for piece in pieces)
        return crc32c(numpy.frombuffer(self.arrays[name], numpy.uint8))

    def finish(self, check=None, late=None):
        rows, at = [], 0
        for name, raw in self.arrays.items():
            spec = self.specs[name]
            rows.append([name, spec.dtype.name, list(spec.shape), at, zlib.adler32(raw)])
            at += len(raw)
        head = json.dumps({"metadata": {**self.metadata, **(late or {})}, "tensors": rows}).encode()
        aside = self.path.with_name(self.path.name + ".tmp")
        aside.write_bytes(MARK + head + b"\\n" + b"".join(self.arrays.values()))
        if check is not None:
            check(aside)
        aside.replace(self.path)
        return [self.path]

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.path.with_name(self.path.name + ".tmp").unlink(missing_ok=True)


TOY = Toy()
"""
READ_ONLY = TOY.replace("class ToyReader", "    read_only = 'nobody plays back'\n\n\nclass ToyReader", 1)
FOLDER = """
from ckptkit.formats.base import Format, Reader


class Box(Format):
    name, title, endings, read_only = "toy", "Toy", (".toy",), "it is a folder"

    def matches(self, sample):
        return sample.is_folder and (sample.path / "box.txt").is_file()

    def open(self, path, how):
        return BoxReader(path)


class BoxReader(Reader):
    format = "toy"
    specs = {}

    def __init__(self, path):
        self.path = path

    def read(self, name):
        raise KeyError(name)


TOY = Box()
"""
ENTRY = """entries:
- {id: mine, family: moat, variant: moat0, display_name: Mine, layout: torch, format: toy,
   sources: [{url: 'https://example.org/m.toy'}]}
"""
HELD = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array([3], np.int64)}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    packages.forget_plugins()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint of the toy format, which is installed."""
    install(tmp_path / "site", monkeypatch, TOY, POINTS)
    write_all(
        writer_for("safetensors")(tmp_path / "m.safetensors", specs_of(HELD), {"made": "by hand"}), HELD
    )
    write_all(writer_for("toy")(tmp_path / "m.toy", specs_of(HELD), {"made": "by hand"}), HELD)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def test_inspect_reads_it(toy: Path, run: Runner) -> None:
    done = run("inspect", toy / "m.toy", "--json", "--stats")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["format"] == "toy"
    assert [(t["name"], t["dtype"], t["shape"]) for t in found["tensors"]] == [
        ("a.weight", "float32", [2, 3]),
        ("step", "int64", [1]),
    ]
    assert found["metadata"] == {"made": "by hand"}


@pytest.mark.parametrize("to", EXTENSIONS)
def test_convert_both_ways(toy: Path, run: Runner, to: str) -> None:
    there, back = toy / f"there{BUILT_IN[to].endings[0]}", toy / "back.toybox"
    held = {"a/vars/0": HELD["a.weight"]} if to == "keras" else HELD
    write_all(writer_for("toy")(toy / "n.toy", specs_of(held), {}), held)

    done = run("convert", toy / "n.toy", "--layout", "as-is", "-o", there)
    assert done.code == 0, done.err
    done = run("convert", there, "--layout", "as-is", "-o", back)
    assert done.code == 0, done.err

    with open_reader(back) as reader:
        assert reader.format == "toy"
        assert {name: reader.read(name).tolist() for name in reader.specs} == {
            name: array.tolist() for name, array in held.items()
        }
    done = run("diff", toy / "n.toy", back)
    assert done.code == 0, done.out


def test_a_model_of_a_family_goes_there_and_back(toy: Path, run: Runner) -> None:
    assert run("synth", "moganet-xt", "-o", toy / "m.pth").code == 0
    done = run(
        "convert", toy / "m.pth", "--to", "Plaything", "-o", toy / "x.toy", "--set", "attn_force_fp32=true"
    )
    assert done.code == 0, done.err
    assert json.loads(run("inspect", toy / "x.toy", "--json").out)["variant"] == "moganet-xt"
    done = run("convert", toy / "x.toy", "-o", toy / "y.safetensors")
    assert done.code == 0, done.err
    done = run("diff", toy / "m.pth", toy / "y.safetensors")
    assert done.code == 0, done.out


def test_verify_checks_it(toy: Path, run: Runner) -> None:
    done = run("verify", toy / "m.toy", "--deep")
    assert done.code == 0, done.out + done.err
    assert "2 agree with their Adler-32" in done.out

    raw = bytearray((toy / "m.toy").read_bytes())
    raw[-1] ^= 1
    (toy / "m.toy").write_bytes(raw)
    done = run("verify", toy / "m.toy", "--deep")
    assert done.code == 5
    assert "Adler-32 differs" in done.out


def test_python_takes_it(toy: Path) -> None:
    result = ckptkit.convert(toy / "m.toy", to="npz", layout="as-is", output=toy / "p.npz")
    assert Path(result).is_file()
    with np.load(toy / "p.npz") as found:
        assert found["a.weight"].tolist() == HELD["a.weight"].tolist()


def test_names_and_endings_are_known(toy: Path) -> None:
    assert format_named("toy") == format_named("plaything") == "toy"
    assert format_to_write(None, "m.toybox") == format_to_write("toy", "m.v2") == "toy"
    assert (file_ending("m.toy"), without_ending("m.toy")) == (".toy", "m")
    with pytest.raises(
        UsageError, match=r"m\.toy is the name of a toy file, not of npz; give -o m\.npz, or --to toy"
    ):
        format_to_write("npz", "m.toy")
    with pytest.raises(UsageError, match="choose from safetensors, torch, tf, keras, keras2, npz, dcp, toy"):
        format_named("no such")


def test_what_it_cannot_hold_is_refused(toy: Path, run: Runner) -> None:
    held = {"x": np.zeros(2, np.complex64)}
    write_all(writer_for("npz")(toy / "c.npz", specs_of(held), {}), held)
    done = run("convert", toy / "c.npz", "--layout", "as-is", "-o", toy / "c.toy")
    assert done.code != 0
    assert "cannot be carried to toy: 'x' (complex64)" in done.err
    assert not (toy / "c.toy").exists()


def test_a_folder_of_one_file_is_that_file(toy: Path) -> None:
    (toy / "only").mkdir()
    (toy / "m.toy").rename(toy / "only" / "m.bin")
    with open_reader(toy / "only") as reader:
        assert (reader.format, reader.path.name) == ("toy", "m.bin")


def test_a_format_may_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch, FOLDER, POINTS)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "box.txt").write_text("a box")
    with open_reader(tmp_path / "m") as reader:
        assert reader.format == "toy"


def test_a_registry_may_have_entries_of_it(toy: Path) -> None:
    (toy / "r.yaml").write_text(ENTRY)
    from ckptkit.families.base import registry_families

    assert load_registry([toy / "r.yaml"], registry_families)["mine"].format == "toy"
    assert json_schema(registry_families())["$defs"]["Entry"]["properties"]["format"]["enum"] == [
        *BUILT_IN_FORMATS,
        "toy",
    ]


def test_the_registry_knows_the_built_in_ones() -> None:
    assert set(BUILT_IN_FORMATS) == set(BUILT_IN)


def test_one_that_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner) -> None:
    install(tmp_path / "site", monkeypatch, READ_ONLY, POINTS)
    write_all(writer_for("npz")(tmp_path / "m.npz", specs_of(HELD), {}), HELD)
    done = run("convert", tmp_path / "m.npz", "--to", "toy", "--layout", "as-is")
    assert done.code == 2
    assert "toy files are read, not written: nobody plays back" in done.err
    with pytest.raises(UsageError, match="cannot tell the format"):
        format_to_write(None, "m.toy")


def test_a_broken_one_warns_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    install(tmp_path / "site", monkeypatch, "import no_such_module", POINTS, version="0.3")
    (tmp_path / "m.what").write_bytes(b"\x01\x02\x03 nothing known")
    with pytest.warns(packages.PluginWarning, match=r"'toy' of ckptkit-toy 0\.3 .* cannot be loaded"):
        done = run("inspect", tmp_path / "m.what")
    assert done.code == 5
    assert "not a checkpoint of any known format" in done.err
    assert "Traceback" not in done.err

    write_all(writer_for("npz")(tmp_path / "m.npz", specs_of(HELD), {}), HELD)
    assert run("inspect", tmp_path / "m.npz").code == 0


def test_one_that_takes_a_built_in_name_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TOY.replace('name = "toy"', 'name = "npz"')
    install(tmp_path / "site", monkeypatch, source, {"ckptkit.formats": {"npz": "ckptkit_toy:TOY"}})
    write_all(writer_for("npz")(tmp_path / "m.npz", specs_of(HELD), {}), HELD)
    with open_reader(tmp_path / "m.npz") as reader:
        assert reader.read("step").tolist() == [3]
    (tmp_path / "m.toy").write_bytes(b"TOYS{}\n")
    with pytest.warns(packages.PluginWarning, match="has a name that is taken"), pytest.raises(FormatError):
        open_reader(tmp_path / "m.toy")


def test_an_unknown_format_of_a_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(ENTRY)
    with pytest.raises(
        RegistryError, match="input should be 'tf', 'torch', 'safetensors', 'keras', 'keras2', 'npz', "
    ):
        load_registry([tmp_path / "r.yaml"])


def test_a_reader_says_nothing_of_what_it_lacks(toy: Path) -> None:
    with open_reader(toy / "m.toy") as reader:
        assert reader.specs["step"] == TensorSpec("step", DTYPES["int64"], (1,))
        nothing = (
            reader.extras,
            reader.also,
            reader.same,
            reader.overlapping,
            reader.left_out,
            reader.optimizer,
        )
        assert not any(nothing)
        assert (reader.state_dict, reader.weights, reader.raw("step")) == (None, None, None)
