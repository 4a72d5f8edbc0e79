"""MogaNet in every direction: names, bytes, copies, settings, and what other libraries make of the files."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.convert.execution import execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.base import get_family
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.synth import Synthetic, write_file
from ckptkit.registry.loading import load_registry
from tests.support.comparing import compare_files
from tests.support.moganet_weights import recipe_state
from tests.support.toys import MOGANET, toy_variants

VARIANTS = get_family("moganet").variants
LARGE = ("moganet-s", "moganet-b", "moganet-l", "moganet-xl")


def convert(source, target, to, *, entry=None, **options):
    with open_reader(source, weights=options.get("weights", "auto")) as reader:
        return execute(
            plan(reader, Options(to, **options), entry=entry), reader, Options(to, **options).target, target
        ).path


def contents(path):
    with open_reader(path) as reader:
        return {name: np.array(reader.read(name)) for name in reader.specs}


def assert_same_bytes(one, other):
    """Compare two files tensor by tensor: names, types, shapes, bytes; returns what else is in them."""
    with open_reader(one) as ours, open_reader(other) as theirs:
        assert dict(ours.specs) == dict(theirs.specs)
        for name in ours.specs:
            assert ours.read(name).tobytes() == theirs.read(name).tobytes(), name
            ours.release(name)
            theirs.release(name)
        return dict(ours.metadata), dict(theirs.metadata)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files as the releases of the smallest variant have them."""
    folder = tmp_path_factory.mktemp("moganet")
    kinds = {
        "openmixup": Synthetic("moganet-xt"),
        "openmixup-ema": Synthetic("moganet-xt", twins=True),
        "timm": Synthetic("moganet-xt", layout="torch"),
        "timm-ema": Synthetic("moganet-xt", layout="torch", twins=True),
    }
    return {name: write_file(synthetic, folder / f"{name}.pth") for name, synthetic in kinds.items()}


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=pytest.mark.slow if v in LARGE else ()) for v in VARIANTS]
)
def test_openmixup_to_torch_to_tf_to_openmixup_is_bit_for_bit(tmp_path, variant):
    source = write_file(Synthetic(variant), tmp_path / "published.pth")
    as_torch = convert(source, tmp_path / "a.pth", "torch")
    as_tf = convert(as_torch, tmp_path / "b.ckpt", "tf")
    as_torch.unlink()
    back = convert(as_tf, tmp_path / "c.pth", "torch", layout="openmixup")
    for file in tmp_path.glob("b.ckpt.*"):
        file.unlink()
    assert_same_bytes(back, source)


FORMATS = ("safetensors", "torch", "tf", "keras", "npz")
LAYOUTS = ("torch", "openmixup", "keras")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small file as OpenMixup publishes them."""
    with toy_variants():
        yield write_file(Synthetic(MOGANET), tmp_path_factory.mktemp("toy") / "published.pth")


@pytest.fixture(scope="module")
def direct(toy, tmp_path_factory):
    """The small file in a format and a layout, converted once."""
    folder = tmp_path_factory.mktemp("direct")

    @functools.cache
    def converted(format, layout):
        target = folder / f"{format}-{layout}{EXTENSIONS[format]}"
        return convert(toy, target, format, layout=layout)

    return converted


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_format_and_layout_gives_back_what_was_published(toy, direct, tmp_path, format, layout):
    back = convert(direct(format, layout), tmp_path / "back.pth", "torch", layout="openmixup")
    assert_same_bytes(back, toy)


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(FORMATS, 2), ("torch", "torch")])
def test_every_pair_of_formats_carries_every_layout(direct, tmp_path, first, second):
    """What comes by way of another format is what comes straight; the test above shows what that is."""
    for one, other in zip(LAYOUTS, (*LAYOUTS[1:], LAYOUTS[0]), strict=True):
        target = tmp_path / f"{other}{EXTENSIONS[second]}"
        last = convert(direct(first, one), target, second, layout=other)
        metadata, straight = assert_same_bytes(last, direct(second, other))
        assert metadata["layout"] == other
        assert metadata == straight


@pytest.mark.parametrize("release", ["openmixup", "timm"])
@pytest.mark.parametrize(("weights", "suffix"), [("auto", ""), ("ema", ""), ("raw", "#raw")])
def test_the_copies_are_told_apart(published, tmp_path, release, weights, suffix):
    got = contents(
        convert(published[f"{release}-ema"], tmp_path / "x.safetensors", "safetensors", weights=weights)
    )
    chosen, averages = recipe_state("moganet-xt", key_suffix=suffix), recipe_state("moganet-xt")
    for name, expected in chosen.items():
        # OpenMixup keeps one set of BatchNorm statistics, which belongs to the averages.
        shared = release == "openmixup" and ".running_" in name
        np.testing.assert_array_equal(got[name], averages[name] if shared else expected, err_msg=name)


def test_raw_weights_with_the_averages_statistics_say_so(published):
    with open_reader(published["openmixup-ema"]) as reader:
        notes = plan(reader, Options("safetensors", weights="raw")).notes
    assert any("statistics are those of the moving averages" in note for note in notes)


@pytest.mark.parametrize(
    ("id", "release", "expected"),
    [
        ("moganet-s-224", "openmixup", ("ema", "true")),
        ("moganet-xt-224", "openmixup", (None, "true")),
        ("moganet-xt-224-timm", "timm", (None, "false")),
        ("moganet-xt-224-timm", "timm-ema", ("ema", "false")),
    ],
)
def test_copy_and_gate_travel_with_the_file(published, tmp_path, id, release, expected):
    entry = load_registry()[id].model_copy(update={"variant": "moganet-xt"})
    first = convert(published[release], tmp_path / "1.safetensors", "safetensors", entry=entry)
    for to in FORMATS:
        again = convert(first, tmp_path / f"2{EXTENSIONS[to]}", to)
        with open_reader(again) as reader:
            said = (reader.metadata.get("weights"), reader.metadata["attn_force_fp32"])
            assert said == expected
            assert reader.metadata["entry"] == id
            assert "pos_emb" not in reader.metadata


def test_a_gate_nobody_told_is_not_written_and_a_note_says_so(published, tmp_path):
    with open_reader(published["openmixup"]) as reader:
        conversion = plan(reader, Options("safetensors"))
    assert "attn_force_fp32" not in conversion.metadata
    assert any("attn_force_fp32 is not known" in note for note in conversion.notes)
    told = convert(
        published["openmixup"], tmp_path / "x.safetensors", "safetensors", settings={"attn_force_fp32": True}
    )
    with open_reader(told) as reader:
        assert reader.metadata["attn_force_fp32"] == "true"
        assert not any("not known" in note for note in plan(reader, Options("tf")).notes)


def test_a_converted_copy_is_not_passed_off_as_the_other(published, tmp_path):
    averages = convert(published["timm-ema"], tmp_path / "x.safetensors", "safetensors")
    with open_reader(averages) as reader, pytest.raises(UsageError, match=r"moving averages \(EMA\) only"):
        plan(reader, Options("tf", weights="raw"))


@pytest.mark.parametrize("layout", ["openmixup", "torch"])
@pytest.mark.parametrize("release", ["openmixup", "timm"])
def test_without_the_head_names_are_the_backbones_own(published, tmp_path, release, layout):
    path = convert(published[release], tmp_path / "b.pth", "torch", layout=layout, head=False)
    expected = {n: v for n, v in recipe_state("moganet-xt").items() if not n.startswith("head.")}
    got = contents(path)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("attn_force_fp32", [False, True])
def test_a_headless_file_loads_strictly_where_dense_prediction_builds_the_backbone(
    published, tmp_path, attn_force_fp32
):
    torch = pytest.importorskip("torch")
    from ckptkit.families.moganet.torch_model import build

    path = convert(published["openmixup"], tmp_path / "b.pth", "torch", layout="openmixup", head=False)
    backbone = build("moganet-xt", attn_force_fp32=attn_force_fp32, num_classes=None)
    backbone.load_state_dict(torch.load(path, weights_only=True), strict=True)


class TestOtherLibraries:
    """What ckptkit wrote, opened by the libraries it is for."""

    @pytest.mark.parametrize("layout", ["torch", "openmixup"])
    def test_torch_load(self, published, tmp_path, layout):
        torch = pytest.importorskip("torch")
        path = convert(published["openmixup"], tmp_path / "x.pth", "torch", layout=layout)
        opened = torch.load(path, weights_only=True, mmap=True)
        prefix = "backbone." if layout == "openmixup" else ""
        for name, array in recipe_state("moganet-xt").items():
            if not name.startswith("head."):
                np.testing.assert_array_equal(opened[prefix + name].numpy(), array)
        assert len(opened) == 705

    def test_safetensors_load_file(self, published, tmp_path):
        pytest.importorskip("torch")
        from safetensors.torch import load_file

        opened = load_file(convert(published["openmixup"], tmp_path / "x.safetensors", "safetensors"))
        state = recipe_state("moganet-xt")
        assert opened.keys() == state.keys()
        for name, array in state.items():
            np.testing.assert_array_equal(opened[name].numpy(), array)

    def test_tensorflow_load_checkpoint(self, published, tmp_path):
        tf = pytest.importorskip("tensorflow")
        opened = tf.train.load_checkpoint(str(convert(published["timm"], tmp_path / "x.ckpt", "tf")))
        state = recipe_state("moganet-xt")
        assert len(opened.get_variable_to_shape_map()) == len(state)
        expected = {
            "moganet/blocks3_9/attn/value/dw_conv2/kernel": state[
                "blocks3.9.attn.value.DW_conv2.weight"
            ].transpose(2, 3, 0, 1),
            "moganet/patch_embed1/conv_1/kernel": state["patch_embed1.projection.3.weight"].transpose(
                2, 3, 1, 0
            ),
            "moganet/blocks1_0/layer_scale_1": state["blocks1.0.layer_scale_1"].reshape(-1),
            "moganet/norm4/moving_variance": state["norm4.running_var"],
            "moganet/norm4/num_batches_tracked": state["norm4.num_batches_tracked"],
            "moganet/head/kernel": state["head.weight"].T,
        }
        for name, array in expected.items():
            np.testing.assert_array_equal(opened.get_tensor(name), array)

    def test_ckptkits_own_keras_model(self, published, tmp_path):
        pytest.importorskip("tensorflow")
        import ckptkit

        path = convert(published["openmixup"], tmp_path / "x.ckpt", "tf", settings={"attn_force_fp32": True})
        model = ckptkit.create_model("moganet-xt", framework="keras", checkpoint=path)
        by_name = {v.path: v for v in model.weights}
        kernel = recipe_state("moganet-xt")["blocks2.1.mlp.fc1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(by_name["moganet/blocks2_1/mlp/fc1/kernel"].numpy(), kernel)


def test_bytes_that_do_not_change_are_moved_without_numpy(published, tmp_path):
    """Its import takes a quarter of a short conversion's time."""
    code = (
        "import sys; from ckptkit.cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "-q", "convert", str(published["openmixup"])]
    for to in ("safetensors", "torch"):
        target = tmp_path / f"x{EXTENSIONS[to]}"
        done = subprocess.run(
            [*command, "--to", to, "-o", str(target)], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False", done.stderr
        state = recipe_state("moganet-xt")
        got = contents(target)
        assert got.keys() == state.keys()
        for name, array in state.items():
            np.testing.assert_array_equal(got[name], array)


# -- which tensors -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Weights and their averages, which are one more, as trainers of three kinds save them."""
    torch = pytest.importorskip("torch")
    raw = {name: torch.from_numpy(array) for name, array in recipe_state("moganet-xt").items()}
    ema = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in raw.items()}

    def wrapped(state, prefix, **others):
        return {**others, **{prefix + name: tensor for name, tensor in state.items()}}

    count = torch.tensor(3)
    files = {
        "torch.compile": {
            "model_state_dict": wrapped(raw, "_orig_mod.", total_ops=torch.zeros(1)),
            "ema_model_state_dict": wrapped(ema, "module._orig_mod.", n_averaged=count),
        },
        "mmengine": {
            "meta": {"mmengine_version": "0.10.7"},
            "state_dict": dict(ema),
            "ema_state_dict": wrapped(raw, "module.", steps=count),
        },
        "Lightning": {
            "state_dict": wrapped(ema, "model."),
            "current_model_state": wrapped(raw, "model."),
            "averaging_state": {"n_averaged": count},
        },
    }
    folder = tmp_path_factory.mktemp("copies")
    for name, held in files.items():
        torch.save(held, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in files}


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("trainer", ["torch.compile", "mmengine", "Lightning"])
def test_the_copy_that_is_asked_for_is_converted(copies, tmp_path, trainer, weights):
    """``raw`` is never the averages, wherever a hook saves them."""
    target = ckptkit.convert(copies[trainer], output=tmp_path / "m.safetensors", weights=weights)
    with open_reader(target) as reader:
        assert reader.metadata["weights"] == weights
        for name, array in recipe_state("moganet-xt").items():
            wanted = array + 1 if weights == "ema" and array.dtype.kind == "f" else array
            assert reader.read(name).tobytes() == wanted.tobytes(), name
    assert ckptkit.verify(copies[trainer], weights=weights).weights == weights


def test_which_copy_is_taken_unasked(copies):
    """The averages where a hook makes them the checkpoint's weights; else nobody knows."""
    head = recipe_state("moganet-xt")["head.bias"]
    for trainer in ("mmengine", "Lightning"):
        assert ckptkit.load(copies[trainer])["head.bias"].tobytes() == (head + 1).tobytes()
    with pytest.raises(FormatError, match=r"holds 2 state dicts: model_state_dict, ema_model_state_dict"):
        ckptkit.load(copies["torch.compile"])
    chosen = ckptkit.load(copies["torch.compile"], state_dict="model_state_dict")
    assert chosen["head.bias"].tobytes() == head.tobytes()
    with pytest.raises(UsageError, match="model_state_dict holds the raw weights, not the ema ones"):
        ckptkit.load(copies["torch.compile"], state_dict="model_state_dict", weights="ema")


def test_copies_of_different_trainers_are_compared_tensor_by_tensor(copies):
    found = compare_files(copies["torch.compile"], copies["mmengine"], weights="raw")
    assert found.same
    assert found.paired == len(recipe_state("moganet-xt"))
    other = compare_files(copies["torch.compile"], copies["Lightning"], weights="raw", weights_b="ema")
    floats = [array for array in recipe_state("moganet-xt").values() if array.dtype.kind == "f"]
    assert len(other.changed) == len(floats)
    assert all(one.values.max_abs == pytest.approx(1, abs=1e-6) for one in other.changed)


def test_a_model_is_filled_with_the_copy_that_is_asked_for(copies):
    pytest.importorskip("torch")
    model = ckptkit.create_model(
        "moganet-xt", checkpoint=copies["mmengine"], weights="raw", attn_force_fp32=False
    )
    assert model.loaded.weights == "raw"
    assert model.head.bias.detach().numpy().tobytes() == recipe_state("moganet-xt")["head.bias"].tobytes()


def test_what_stands_beside_a_wrapped_model_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    state = {f"model.{name}": torch.from_numpy(array) for name, array in recipe_state("moganet-xt").items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}}, tmp_path / "m.ckpt")
    with pytest.raises(ConversionError, match=r"1 tensor \(criterion\.weight\) not known to moganet-xt"):
        ckptkit.convert(tmp_path / "m.ckpt", output=tmp_path / "m.safetensors")
