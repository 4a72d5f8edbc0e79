"""Conversions carried out: the same numbers everywhere, and nothing half-done."""

from __future__ import annotations

import functools
import hashlib
import itertools

import google_crc32c
import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError, IntegrityError, UsageError
from ckptkit.base.tensors import RawTensor
from ckptkit.convert.execution import Target, check_written, execute, tensor_crc32c
from ckptkit.convert.loading import load_tensors
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.moat.published import synthetic_tensor
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.formats.tf_bundle import TfBundleReader
from ckptkit.models.synth import Synthetic, write_bundle
from tests.support.toys import MOAT, toy_variants


def convert(source, target, to, **options):
    with open_reader(source) as reader:
        return execute(
            plan(reader, Options(to, **options)), reader, Options(to, **options).target, target
        ).path


def contents(path):
    with open_reader(path) as reader:
        return {name: np.array(reader.read(name)) for name in reader.specs}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].shape == other[name].shape, name
        assert one[name].tobytes() == other[name].tobytes(), name


def published(path):
    return {name: tensor for name, tensor in contents(path).items() if name != "global_step"}


@pytest.mark.parametrize("between", ["safetensors", "torch", "keras", "npz"])
def test_tf_there_and_back_gives_the_same_bytes_under_the_same_names(bundles, tmp_path, between):
    middle = convert(bundles["plain"], tmp_path / ("m" + EXTENSIONS[between]), between)
    back = convert(middle, tmp_path / "back.ckpt", "tf")
    assert_same(contents(back), published(bundles["plain"]))


FORMATS = ("safetensors", "torch", "tf", "keras", "npz")


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """A small checkpoint in a format and a layout, converted once."""
    folder = tmp_path_factory.mktemp("direct")
    write_bundle(Synthetic(MOAT), folder / "published")

    @functools.cache
    def converted(format, layout):
        target = folder / f"{format}-{layout}{EXTENSIONS[format]}"
        return convert(folder / "published", target, format, layout=layout)

    return converted


@pytest.fixture(autouse=True, scope="module")
def _toys():
    with toy_variants():
        yield


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(FORMATS, 2)))
def test_every_pair_of_formats_carries_every_layout(direct, tmp_path, one, other):
    expected = contents(direct("safetensors", "torch"))
    for layout in ("torch", "deeplab2", "keras", "keras-h5"):
        target = tmp_path / f"{layout}{EXTENSIONS[other]}"
        got = contents(convert(direct(one, layout), target, other, layout="torch"))
        assert_same(got, expected)


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_input_gives_the_same_bytes(bundles, tmp_path, to):
    digests = []
    for run in ("a", "b"):
        with open_reader(bundles["plain"]) as reader:
            done = execute(
                plan(reader, Options(to)), reader, Options(to).target, tmp_path / run / ("x" + EXTENSIONS[to])
            )
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in done.files])
    assert digests[0] == digests[1]


def test_values_are_the_recipes(bundles, tmp_path):
    got = contents(convert(bundles["plain"], tmp_path / "x.safetensors", "safetensors"))
    kernel = synthetic_tensor("moat/block_03_01/expand_conv/kernel", (1, 1, 256, 1024))
    np.testing.assert_array_equal(got["stages.3.1.expand_conv.weight"][:, :, 0, 0], kernel[0, 0].T)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_ema_and_raw_are_told_apart(bundles, tmp_path, weights):
    got = contents(convert(bundles["twins"], tmp_path / "x.safetensors", "safetensors", weights=weights))
    name = "moat/stem/conv_0/bias"
    key = name if weights == "ema" else f"{name}#raw"
    np.testing.assert_array_equal(got["stem.conv_0.bias"], synthetic_tensor(name, (32,), key=key))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_round_to_nearest(bundles, tmp_path, dtype):
    narrow = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    got = contents(convert(bundles["plain"], tmp_path / "x.safetensors", "safetensors", dtype=dtype))
    exact = synthetic_tensor("moat/stem/norm_0/gamma", (32,))
    np.testing.assert_array_equal(got["stem.norm_0.weight"], exact.astype(narrow))


def test_load_gives_arrays_of_their_own(bundles):
    with open_reader(bundles["plain"]) as reader:
        state = load_tensors(reader)
    kernel = state["stages.0.0.expand_conv.weight"]
    assert kernel.flags.c_contiguous and kernel.flags.writeable
    expected = synthetic_tensor("moat/block_00_00/expand_conv/kernel", (1, 1, 32, 128))
    np.testing.assert_array_equal(kernel, expected.transpose(3, 2, 0, 1))


def test_an_existing_output_is_refused(bundles, tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        convert(bundles["plain"], target, "safetensors")
    assert target.read_bytes() == b"precious"


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def copied(prefix, folder):
    folder.mkdir()
    for file in prefix.parent.glob(prefix.name + ".*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / prefix.name


def test_a_flipped_byte_in_the_source_is_found_and_nothing_is_written(bundles, tmp_path):
    source = copied(bundles["plain"], tmp_path / "source")
    flip(source.with_name("model.ckpt.data-00000-of-00001"), 5_000_000)
    with pytest.raises(FormatError, match="checksum"):
        convert(source, tmp_path / "out" / "x.safetensors", "safetensors")
    assert list((tmp_path / "out").iterdir()) == []


class Liar:
    """A writer that writes other bytes of one tensor than it was given, and tells the checksum of those."""

    def __init__(self, writer, name):
        self._writer, self._name = writer, name

    def __getattr__(self, attribute):
        return getattr(self._writer, attribute)

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        return self._writer.__exit__(*arguments)

    def write(self, name, array):
        if name != self._name:
            return self._writer.write(name, array)
        right = np.frombuffer(array.data, np.float32) if isinstance(array, RawTensor) else array
        wrong = right.reshape(array.shape).copy()
        wrong.flat[0] = -wrong.flat[0]
        self._writer.write(name, wrong)
        return google_crc32c.value(right.tobytes())


@pytest.mark.parametrize(
    ("to", "max_shard_size"),
    [*((to, None) for to in FORMATS), *((to, 5_000_000) for to in ("safetensors", "torch", "keras"))],
)
def test_a_result_that_is_not_what_was_written_does_not_stay(
    bundles, tmp_path, monkeypatch, to, max_shard_size
):
    real = Target.writer
    monkeypatch.setattr(Target, "writer", lambda *given, **how: Liar(real(*given, **how), name))
    target = Target(to, max_shard_size=max_shard_size)
    with open_reader(bundles["plain"]) as reader:
        conversion = plan(reader, Options(to, max_shard_size=max_shard_size))
        name = conversion.specs[100].name
        with pytest.raises(IntegrityError, match=f"{name} read back differs"):
            execute(conversion, reader, target, tmp_path / "x.out")
        assert list(tmp_path.iterdir()) == []
        execute(conversion, reader, target, tmp_path / "x.out", check=False)
    assert len(list(tmp_path.iterdir())) >= 1


@pytest.mark.parametrize(
    ("to", "max_shard_size"),
    [("safetensors", None), *((to, 5_000_000) for to in ("safetensors", "torch", "keras")), ("tf", None)],
)
def test_what_stood_there_stays_when_the_new_result_does_not_hold(
    bundles, tmp_path, monkeypatch, to, max_shard_size
):
    target = Target(to, max_shard_size=max_shard_size)
    with open_reader(bundles["plain"]) as reader:
        conversion = plan(reader, Options(to, max_shard_size=max_shard_size))
        name = conversion.specs[100].name
        execute(conversion, reader, target, tmp_path / "x.safetensors")
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        real = Target.writer
        monkeypatch.setattr(Target, "writer", lambda *given, **how: Liar(real(*given, **how), name))
        with pytest.raises(IntegrityError, match="read back differs"):
            execute(conversion, reader, target, tmp_path / "x.safetensors", force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bytes_that_change_on_the_disk_are_found(bundles, tmp_path):
    target = tmp_path / "x.safetensors"
    with open_reader(bundles["plain"]) as reader:
        conversion = plan(reader, Options("safetensors"))
        done = execute(conversion, reader, Target("safetensors"), target)
    said = {"specs": conversion.specs, "checksums": done.checksums, "output": target}
    check_written(target, **said)
    flip(target, target.stat().st_size - 100)
    with pytest.raises(IntegrityError, match="read back differs"):
        check_written(target, **said)


def test_crc32c_of_a_view_is_that_of_its_bytes():
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    assert tensor_crc32c(array.T) == tensor_crc32c(np.ascontiguousarray(array.T))
    # Published check value of crc32c (RFC 3720, B.4): 32 bytes of zeros.
    assert tensor_crc32c(np.zeros(8, np.float32)) == 0x8A9136AA


def test_moving_averages_survive_object_based_files(tmp_path, shared_folder):
    target = convert(shared_folder / "checkpoints/tiny_moat0_pe_tf2.tar.gz", tmp_path / "x.ckpt", "tf")
    with TfBundleReader(shared_folder / "checkpoints/tiny_moat0_pe.tar.gz") as reader:
        expected = {n: np.array(reader.read(n)) for n in reader.specs if n != "global_step"}
    assert_same(contents(target), expected)
