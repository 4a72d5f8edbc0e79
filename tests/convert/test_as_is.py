"""``--layout as-is``: any model, from every format into every other, only the container changed."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.loading import load_tensors
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.base import bytes_of
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.keras import unloadable
from ckptkit.formats.names import EXTENSIONS
from tests.support.tensors import OPAQUE, raw_safetensors, same_bits, specs_of, write_all

FORMATS = ("safetensors", "torch", "tf", "keras", "keras2", "npz", "dcp")

_RANDOM = np.random.default_rng(11)
FLOATS = {
    "encoder/0/kernel": _RANDOM.standard_normal((3, 3, 4, 8), dtype=np.float32),
    "encoder/0/bias": _RANDOM.standard_normal(8),
    "encoder/half": _RANDOM.standard_normal((2, 3)).astype(np.float16),
    "temperature": np.array(0.07, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
INTEGERS = {
    "steps": np.array(12345678901, np.int64),
    "ids": np.arange(6, dtype=np.int32).reshape(2, 3),
    "bytes": np.arange(5, dtype=np.uint8),
}
IN_EVERY_FORMAT = {**FLOATS, **INTEGERS}
"""Element types that all five containers can name; names that are paths, as HDF5 needs them."""
FOR_KERAS = {f"{name}/vars/0": array for name, array in IN_EVERY_FORMAT.items()}
"""The same by names that Keras finds."""


@pytest.mark.parametrize(("to", "ending"), [("safetensors", ".safetensors"), ("keras", ".weights.h5")])
def test_the_path_of_shards_is_that_of_their_index(tmp_path, to, ending):
    tensors = {f"layers/dense_{n}/vars/0": np.full(60, n, "f4") for n in range(4)}
    source = write(tmp_path / "a.npz", "npz", tensors)
    with open_reader(source) as reader:
        decided = plan(reader, Options(to, layout="as-is", max_shard_size=600))
        made = execute(decided, reader, Target(to, None, 600), tmp_path / f"b{ending}")
    assert made.path.is_file() and len(made.files) == 3
    assert_same(held(made.path), tensors)


def convert(source, target, to, **options):
    with open_reader(source, weights=options.get("weights", "auto")) as reader:
        decided = plan(reader, Options(to, layout="as-is", **options))
        execute(decided, reader, Target(to, options.get("dtype"), options.get("max_shard_size")), target)
    return decided


def held(path):
    with open_reader(path) as reader:
        return {name: np.array(reader.read(name)) for name in reader.specs}


def write(path, format, arrays, metadata=None):
    write_all(writer_for(format)(path, specs_of(arrays), metadata or {}), arrays)
    return path


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


@pytest.mark.parametrize(("first", "second"), [*itertools.product(FORMATS, FORMATS)])
def test_every_pair_of_formats_there_and_back_bit_for_bit(tmp_path, first, second):
    arrays = FOR_KERAS if "keras" in {first, second} else IN_EVERY_FORMAT
    source = write(tmp_path / f"a{EXTENSIONS[first]}", first, arrays, {"author": "someone"})
    there = tmp_path / f"b{EXTENSIONS[second]}"
    back = tmp_path / f"c{EXTENSIONS[first]}"
    convert(source, there, second)
    convert(there, back, first)
    assert_same(held(there), arrays)
    assert_same(held(back), arrays)
    with open_reader(back) as reader:
        assert reader.metadata["author"] == "someone"
        assert reader.metadata["layout"] == "as-is"


ODD = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "uint16": np.uint16,
}
HELD_BY = {
    "bfloat16": {"safetensors", "torch", "tf", "keras", "dcp"},
    "float8_e4m3fn": {"safetensors", "torch", "tf", "dcp"},
    "bool": set(FORMATS),
    "complex64": set(FORMATS),
    "complex128": {"torch", "tf", "npz", "keras", "keras2", "dcp"},
    "uint16": set(FORMATS),
}


@pytest.mark.parametrize(("name", "to"), [*itertools.product(ODD, FORMATS)])
def test_odd_types_are_kept_or_refused_by_name(tmp_path, name, to):
    values = (np.arange(6) % 2 == 0) if name == "bool" else np.linspace(0, 3, 6)
    arrays = {"odd/vars/0": values.astype(ODD[name]), "odd/vars/1": np.ones(3, np.float32)}
    source = write(tmp_path / "a.pth", "torch", arrays)
    target = tmp_path / f"b{EXTENSIONS[to]}"
    if to in HELD_BY[name]:
        convert(source, target, to)
        assert_same(held(target), arrays)
        return
    with pytest.raises(ConversionError) as caught:
        convert(source, target, to)
    assert f"1 tensor cannot be carried to {to}: 'odd/vars/0' ({name})" in str(caught.value)
    offered = caught.value.hint.split(";")[0].removeprefix("choose --to ").split(" or ")
    assert set(offered) == HELD_BY[name]
    assert ("--dtype" in caught.value.hint) == (name in {"bfloat16", "float8_e4m3fn"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


class TestOpaqueTypes:
    """Element types of which only the bytes are known; see also `test_element_types`."""

    @pytest.fixture
    def source(self, tmp_path):
        return raw_safetensors(tmp_path / "q.safetensors", OPAQUE)

    @pytest.mark.parametrize("shards", [None, 8])
    def test_are_carried_as_they_are_also_into_shards(self, tmp_path, source, shards):
        with open_reader(source) as reader:
            decided = plan(reader, Options("safetensors", layout="as-is", max_shard_size=shards))
            written = execute(
                decided, reader, Target("safetensors", None, shards), tmp_path / "r.safetensors"
            )
        assert len(written.files) == (1 if shards is None else 5)
        with open_reader(written.path) as reader:
            assert {name: spec.dtype.safetensors for name, spec in reader.specs.items()} == {
                name: code for name, (code, _, _) in OPAQUE.items()
            }
            for name, (_, shape, raw) in OPAQUE.items():
                assert reader.specs[name].shape == tuple(shape)
                assert bytes(bytes_of(reader, name).data) == raw

    def test_go_to_torch_and_back_where_torch_has_them(self, tmp_path, source):
        torch = pytest.importorskip("torch")
        held = {name: OPAQUE[name] for name in ("w", "scale", "pairs")}
        convert(raw_safetensors(source, held), tmp_path / "a.pth", "torch")
        loaded = torch.load(tmp_path / "a.pth", weights_only=True)
        assert (loaded["scale"].dtype, loaded["scale"].shape) == (torch.float8_e8m0fnu, (3,))
        assert (loaded["pairs"].dtype, loaded["pairs"].shape) == (torch.float4_e2m1fn_x2, (2, 3))
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "safetensors")
        library = pytest.importorskip("safetensors.torch")
        again = library.load_file(tmp_path / "b.safetensors")
        for name, one in loaded.items():
            assert again[name].dtype == one.dtype
            assert torch.equal(again[name].view(torch.uint8), one.view(torch.uint8))

    def test_a_refusal_names_all_of_them_and_the_way_out(self, tmp_path, source):
        with pytest.raises(ConversionError) as caught:
            convert(source, tmp_path / "a.pth", "torch")
        assert str(caught.value).startswith(
            f"{source}: 2 tensors cannot be carried to torch: 'six' (float6_e2m3fn); 'unheard' (Q7_X)"
        )
        assert caught.value.hint.startswith("choose --to safetensors; a file of --rules")
        assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]

    def test_pairs_that_leave_half_a_byte_a_row_do_not_go_to_torch(self, tmp_path, source):
        raw_safetensors(source, {"odd": ("F4", [2, 3], b"123")})
        with pytest.raises(ConversionError, match=r"'odd' \(float4_e2m1fn_x2\)"):
            convert(source, tmp_path / "a.pth", "torch")

    def test_load_gives_void_and_refuses_what_no_array_can_hold(self, tmp_path, source):
        said = r"'pairs' \(float4_e2m1fn_x2\); 'six' .*; 'unheard'"
        with open_reader(source) as reader, pytest.raises(ConversionError, match=said):
            load_tensors(reader, "as-is")
        raw_safetensors(source, {"scale": OPAQUE["scale"], "new": ("Z16", [2], b"1234")})
        with open_reader(source) as reader:
            loaded = load_tensors(reader, "as-is")
        assert (loaded["new"].dtype, loaded["new"].tobytes()) == (np.dtype("V2"), b"1234")
        assert (loaded["scale"].shape, loaded["scale"].tobytes()) == ((3,), b"abc")


def test_what_is_no_tensor_is_told_and_what_cannot_be_read_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2), words=np.array(["x"]))
    assert convert(tmp_path / "a.npz", tmp_path / "a.pth", "torch").also == {"words": "texts [1]"}
    brain = np.ones(2, ml_dtypes.bfloat16)
    np.savez(tmp_path / "b.npz", brain=brain, evil=np.array([None]), record=np.zeros(2, "i4,f8"))
    said = (
        r"3 tensors cannot be carried to torch: 'brain' \(void16: bfloat16 .* looks so\); "
        r"'record' \(record of f0, f1\); 'evil' \(Python objects"
    )
    with pytest.raises(ConversionError, match=said):
        convert(tmp_path / "b.npz", tmp_path / "b.pth", "torch")
    said = r"1 tensor cannot be read: 'evil'"
    with open_reader(tmp_path / "b.npz") as reader, pytest.raises(ConversionError, match=said):
        load_tensors(reader, "as-is")


def test_dtype_casts_floats_and_leaves_the_rest(tmp_path):
    source = write(tmp_path / "a.safetensors", "safetensors", IN_EVERY_FORMAT)
    convert(source, tmp_path / "b.pth", "torch", dtype="bfloat16")
    wanted = {name: array.astype(ml_dtypes.bfloat16) for name, array in FLOATS.items()}
    assert_same(held(tmp_path / "b.pth"), {**wanted, **INTEGERS})


class TestSharedTensors:
    @pytest.fixture
    def tied(self, tmp_path):
        return self.written(tmp_path / "tied.pth")

    def written(self, path, ending=""):
        """Written by torch: one tensor under two names, its transpose, and a part of it."""
        torch = pytest.importorskip("torch")
        weight = torch.arange(30, dtype=torch.float32).reshape(6, 5)
        tensors = {
            "decoder": weight,
            "part": weight[2:4],
            "embed": weight,
            "turned": weight.T,
            "alone": weight[0].clone(),
        }
        tensors = {f"{name}{ending}": tensor for name, tensor in tensors.items()}
        torch.save(tensors, path)
        return path, {name: t.numpy().copy() for name, t in tensors.items()}

    @pytest.mark.parametrize("to", ["safetensors", "tf", "keras", "npz"])
    def test_are_expanded_where_the_target_cannot_share(self, tmp_path, to):
        source, wanted = self.written(tmp_path / "tied.pth", ending="/vars/0")
        target = tmp_path / f"b{EXTENSIONS[to]}"
        decided = convert(source, target, to)
        assert_same(held(target), wanted)
        assert decided.notes == ("3 tensors share memory with others: each is written by itself, in full",)

    def test_are_written_once_from_torch_to_torch(self, tmp_path, tied):
        import torch

        source, wanted = tied
        target = tmp_path / "b.pth"
        decided = convert(source, target, "torch")
        assert decided.shared == {"embed": "decoder"}
        assert decided.nbytes == 4 * (30 + 10 + 30 + 5)
        assert decided.notes == (
            "1 tensor is another one under a second name: written once, and shared as before",
            "2 tensors share memory with others: each is written by itself, in full",
        )
        loaded = torch.load(target, weights_only=True, mmap=True)
        assert list(loaded) == list(wanted)
        assert loaded["embed"].data_ptr() == loaded["decoder"].data_ptr()
        assert loaded["part"].data_ptr() != loaded["decoder"].data_ptr()
        assert_same({name: tensor.numpy() for name, tensor in loaded.items()}, wanted)
        assert_same(held(target), wanted)

    def test_stay_shared_when_cast(self, tmp_path, tied):
        import torch

        convert(tied[0], tmp_path / "b.pth", "torch", dtype="float16")
        loaded = torch.load(tmp_path / "b.pth", weights_only=True)
        assert loaded["embed"].dtype == torch.float16
        assert loaded["embed"].data_ptr() == loaded["decoder"].data_ptr()
        np.testing.assert_array_equal(loaded["embed"].numpy(), tied[1]["embed"].astype(np.float16))


class TestRealFiles:
    def test_torch_with_both_copies(self, tmp_path):
        torch = pytest.importorskip("torch")
        copies = {"state_dict": {"w": torch.zeros(3)}, "state_dict_ema": {"w": torch.ones(3)}, "epoch": 7}
        torch.save(copies, tmp_path / "a.pth")
        for weights, value in (("auto", 1.0), ("ema", 1.0), ("raw", 0.0)):
            target = tmp_path / f"{weights}.safetensors"
            decided = convert(tmp_path / "a.pth", target, "safetensors", weights=weights)
            assert held(target)["w"].tolist() == [value] * 3
            copy = "raw" if weights == "raw" else "ema"
            assert decided.metadata["weights"] == copy
            assert f"the file holds raw weights and moving averages; taking {copy}" in decided.notes

    def test_tensorflow_checkpoint_without_its_strings(self, tmp_path):
        tensorflow = pytest.importorskip("tensorflow")
        tensors = {
            "scope/w": np.arange(6, dtype=np.float32),
            "flag": [True, False],
            "words": ["some", "text"],
        }
        prefix = str(tmp_path / "model.ckpt")
        tensorflow.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=[tensorflow.constant(value) for value in tensors.values()],
        )
        decided = convert(prefix, tmp_path / "b.safetensors", "safetensors")
        arrays = held(tmp_path / "b.safetensors")
        assert {name: array.tolist() for name, array in arrays.items()} == {
            "scope/w": [0, 1, 2, 3, 4, 5],
            "flag": [True, False],
        }
        assert decided.also == {"words": "strings [2]"}

    def test_safetensors_library_reads_and_writes_it(self, tmp_path):
        library = pytest.importorskip("safetensors.numpy")
        arrays = {"a.weight": FLOATS["encoder/0/kernel"], "n": INTEGERS["steps"]}
        library.save_file(arrays, tmp_path / "a.safetensors", metadata={"licence": "apache-2.0"})
        decided = convert(tmp_path / "a.safetensors", tmp_path / "b.npz", "npz")
        assert decided.metadata["licence"] == "apache-2.0"
        convert(tmp_path / "b.npz", tmp_path / "c.safetensors", "safetensors")
        assert_same(library.load_file(tmp_path / "c.safetensors"), arrays)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"head": False}, "--no-head"),
        ({"variant": "moat0"}, "--variant"),
        ({"allow_missing_bn": True}, "--allow-missing-bn"),
        ({"settings": {"attn_force_fp32": True}}, "--set"),
        ({"resolution": (384, 384)}, "--resolution"),
        ({"weights": "ema"}, "has no ema weights"),
    ],
)
def test_options_of_an_architecture_are_refused(tmp_path, options, named):
    source = write(tmp_path / "a.npz", "npz", FLOATS)
    with pytest.raises(UsageError, match=named):
        convert(source, tmp_path / "b.pth", "torch", **options)
    assert not (tmp_path / "b.pth").exists()


def test_no_tensors_are_refused(tmp_path):
    source = write(tmp_path / "a.safetensors", "safetensors", {})
    with pytest.raises(ConversionError, match="no tensors"):
        convert(source, tmp_path / "b.pth", "torch")


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["a", "a/b"], ["a", "a/b"]),
        (["layers/dense/vars/0", "stem.conv.weight"], ["stem.conv.weight"]),
        (["d/kernel", "d/vars"], ["d/kernel", "d/vars"]),
        (["layers/dense/vars/1", "layers/conv/vars/0"], ["layers/dense/vars/1"]),
        (["layers/dense/vars/0", "layers/dense/vars/2"], ["layers/dense/vars/0", "layers/dense/vars/2"]),
        (["layers/dense/vars/00"], ["layers/dense/vars/00"]),
        (["vars/0", "layers/d/vars/0", "layers/d/vars/1", "layers/n/vars/mean"], []),
    ],
    ids=str,
)
def test_names_that_keras_could_not_load_are_refused(tmp_path, names, lost):
    source = write(tmp_path / "a.npz", "npz", {name: np.ones(2) for name in names})
    target = tmp_path / "b.weights.h5"
    if not lost:
        convert(source, target, "keras")
        assert set(held(target)) == set(names)
        return
    with pytest.raises(ConversionError, match=f"Keras could not load {len(lost)} tensor") as refused:
        convert(source, target, "keras")
    assert ", ".join(map(repr, sorted(lost))) in str(refused.value)
    assert "--to safetensors" in refused.value.hint and "--rules" in refused.value.hint
    assert not target.exists()


def test_keras_loads_what_is_written_for_it_and_nothing_that_is_refused(tmp_path):
    """The rule that `unloadable` states, asked of Keras itself."""
    keras = pytest.importorskip("keras")
    h5py = pytest.importorskip("h5py")
    arrays = {
        "layers/dense/vars/0": np.ones((2, 3), np.float32),
        "layers/dense/vars/1": np.zeros(3, np.float32),
    }

    def loads(tensors):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        with h5py.File(tmp_path / "x.weights.h5", "w") as file:
            for name, array in tensors.items():
                file[name] = array
        try:
            model.load_weights(tmp_path / "x.weights.h5")
        except Exception:
            return False
        return True

    for names in (["layers/dense/vars/0", "layers/dense/vars/1"], ["dense/kernel", "dense/bias"], ["0", "1"]):
        tensors = dict(zip(names, arrays.values(), strict=True))
        assert loads(tensors) is (unloadable(tensors) == [])
    moved = {
        "layers/dense/vars/1": arrays["layers/dense/vars/0"],
        "layers/dense/vars/2": np.zeros(3, np.float32),
    }
    assert not loads(moved) and unloadable(moved)


def test_where_an_earlier_source_came_from_is_not_carried_over(tmp_path):
    before = {"source_sha256": "1" * 64, "source_index_sha256": "2" * 64, "entry": "moat0-224"}
    source = write(tmp_path / "a.npz", "npz", FLOATS, before)
    with open_reader(source) as reader:
        decided = plan(reader, Options("torch", layout="as-is")).with_metadata({"source_sha256": "3" * 64})
    assert decided.metadata["source_sha256"] == "3" * 64
    assert "source_index_sha256" not in decided.metadata
    assert decided.metadata["entry"] == "moat0-224"


def test_load_gives_the_files_own_names(tmp_path):
    source = write(tmp_path / "a.npz", "npz", IN_EVERY_FORMAT)
    with open_reader(source) as reader:
        loaded = load_tensors(reader, "as-is")
    assert_same(loaded, IN_EVERY_FORMAT)
    assert list(loaded) == list(IN_EVERY_FORMAT)
    assert all(array.flags.owndata and array.flags.c_contiguous for array in loaded.values())
    with open_reader(source) as reader, pytest.raises(UsageError, match="--variant"):
        load_tensors(reader, "as-is", variant="moat0")


def test_shards_are_made_and_put_together(tmp_path):
    source = write(tmp_path / "a.npz", "npz", IN_EVERY_FORMAT)
    convert(source, tmp_path / "b.safetensors", "safetensors", max_shard_size=600)
    shards = sorted(path.name for path in tmp_path.glob("b-*.safetensors"))
    assert len(shards) > 1
    convert(tmp_path / "b.safetensors.index.json", tmp_path / "c.npz", "npz")
    assert_same(held(tmp_path / "c.npz"), IN_EVERY_FORMAT)
