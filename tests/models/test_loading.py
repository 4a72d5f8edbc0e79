"""What of a checkpoint goes into a model, what is refused, and what the model says of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.loading import load_tensors
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader
from ckptkit.models import create_model
from ckptkit.models.synth import Synthetic, write_bundle
from tests.support.exporting import write_safetensors
from tests.support.moat_reference import golden_input, variable_shapes
from tests.support.models import FRAMEWORKS, need, run
from tests.support.moganet_weights import recipe_state


def test_a_file_of_another_kind_is_refused(bundle, tmp_path):
    need("torch")
    with pytest.raises(ConversionError, match="unlike tiny-moat1"):
        create_model("tiny-moat1", checkpoint=bundle)
    with pytest.raises(UsageError, match="has position embedding"):
        create_model("tiny-moat0-256-noposemb", checkpoint=bundle)
    with pytest.raises(UsageError, match="has position embedding"):
        create_model("tiny-moat0", checkpoint=bundle, pos_emb=False)
    write_bundle(Synthetic("tiny-moat0", bn_statistics=False), tmp_path / "no-bn.ckpt")
    with pytest.raises(ConversionError, match="no BatchNorm moving statistics"):
        create_model("tiny-moat0", checkpoint=tmp_path / "no-bn.ckpt")


def test_the_copy_asked_for_is_loaded(moganet_files):
    torch = pytest.importorskip("torch")
    for weights, suffix in (("auto", ""), ("ema", ""), ("raw", "#raw")):
        model = create_model("moganet-xt-224-timm", checkpoint=moganet_files["timm"], weights=weights)
        expected = recipe_state("moganet-xt", key_suffix=suffix)["head.bias"]
        assert torch.equal(model.head.bias, torch.from_numpy(expected))
    with pytest.raises(UsageError, match="no moving averages"):
        create_model("moganet-xt-224", checkpoint=moganet_files["openmixup"], weights="ema")


@pytest.fixture(scope="module")
def state(bundle):
    """The checkpoint's tensors under canonical names."""
    with open_reader(bundle) as reader:
        return load_tensors(reader)


def saved(state, path):
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    return path


def values(model, framework):
    """A model's tensors by name, without BatchNorm's counters."""
    if framework == "keras":
        return {v.path: v.numpy() for v in model.weights}
    tensors = model.state_dict().items()
    return {name: tensor.numpy() for name, tensor in tensors if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def values_of_bundle(bundle):
    """What a framework's model holds of the TensorFlow checkpoint, whose logits were proven above."""

    @lru_cache
    def of(framework):
        return values(create_model("tiny-moat0", framework, checkpoint=bundle), framework)

    return of


@pytest.mark.parametrize(
    ("framework", "file"),
    [
        ("torch", ("torch", "m.pth")),
        ("torch", ("safetensors", "m.safetensors")),
        ("torch", ("npz", "m.npz")),
        ("torch", ("keras", "m.weights.h5")),
        ("torch", ("tf", "again.ckpt")),
        ("keras", ("torch", "m.pth")),
        ("keras", ("keras", "m.weights.h5")),
    ],
    ids=str,
)
def test_every_format_is_the_same_model(bundle, values_of_bundle, tmp_path, framework, file):
    need(framework)
    format, name = file
    with open_reader(bundle) as reader:
        execute(plan(reader, Options(format)), reader, Target(format), tmp_path / name)
    model = create_model("tiny-moat0", framework, checkpoint=tmp_path / name)
    tensors = values(model, framework)
    expected = values_of_bundle(framework)
    assert tensors.keys() == expected.keys()
    for tensor, array in expected.items():
        np.testing.assert_array_equal(tensors[tensor], array, err_msg=tensor)
    assert model.loaded.path == tmp_path / name
    assert (model.loaded.initialised, model.loaded.misfits) == ((), ())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_record_says_what_was_loaded(bundle, moganet_files, framework):
    need(framework)
    loaded = create_model("tiny-moat0-256", framework, checkpoint=bundle, pool_size=3).loaded
    assert (loaded.variant, loaded.entry, loaded.path) == ("tiny-moat0", "tiny-moat0-256", bundle)
    as_published = {"se_activation": "swish", "layer_norm_epsilon": 1e-5, "input_order": "rgb"}
    assert loaded.settings == {"pool_size": 3, "window_size": None, "global_attention": False} | as_published
    assert loaded.tensors == len(recipe_names())
    if framework == "torch":
        timm = create_model("moganet-xt-224-timm", checkpoint=moganet_files["timm"]).loaded
        assert (timm.weights, timm.settings) == ("ema", {"attn_force_fp32": False})
    fresh = create_model("tiny-moat0", framework, num_classes=2).loaded
    assert (fresh.path, fresh.tensors, fresh.entry) == (None, 0, None)


def recipe_names():
    return [name for name in variable_shapes("tiny-moat0", True) if name != "global_step"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_new_head_is_said_to_be_new(bundle, caplog, framework):
    need(framework)
    model = create_model("tiny-moat0", framework, checkpoint=bundle, num_classes=10)
    (said,) = caplog.messages
    assert said.endswith("the head of 10 classes is new and must be trained: the file has one of 1000")
    names = {
        "torch": ("head.weight", "head.bias"),
        "keras": ("moat/logits_head/kernel", "moat/logits_head/bias"),
    }
    assert model.loaded.initialised == names[framework]
    logits = run(model, framework, golden_input(64, 64)[:1])
    assert np.ptp(logits) > 0
    caplog.clear()
    create_model("tiny-moat0", framework, checkpoint=bundle, num_classes=None)
    assert caplog.messages == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_classes_are_the_files_unless_given(state, tmp_path, framework):
    need(framework)
    ten = {**state, "head.weight": state["head.weight"][:10], "head.bias": state["head.bias"][:10]}
    model = create_model("tiny-moat0", framework, checkpoint=saved(ten, tmp_path / "ten.safetensors"))
    bias = model.head.bias.detach() if framework == "torch" else model.logits_head.bias
    np.testing.assert_array_equal(bias.numpy(), state["head.bias"][:10])
    assert run(model, framework, golden_input(64, 64)[:1]).shape == (1, 10)
    assert model.loaded.initialised == ()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_headless_file(state, tmp_path, framework, caplog):
    need(framework)
    body = {name: array for name, array in state.items() if name.split(".")[0] not in ("head", "norm")}
    file = saved(body, tmp_path / "body.safetensors")
    for asked in ({}, {"num_classes": 1000}, {"num_classes": 10})[: 3 if framework == "torch" else 1]:
        with pytest.raises(
            ConversionError, match=r"body.safetensors: no classification head .*num_classes=None"
        ):
            create_model("tiny-moat0", framework, checkpoint=file, **asked)
    x = golden_input(64, 64)[:1]
    for asked in ({"num_classes": 0}, {"features_only": True}):
        model = create_model("tiny-moat0", framework, checkpoint=file, **asked)
        assert len(run(model, framework, x)) == 5
        assert model.loaded.initialised == ()
    model = create_model("tiny-moat0", framework, checkpoint=file, num_classes=10, strict=False)
    assert run(model, framework, x).shape == (1, 10)
    assert len(model.loaded.initialised) == 4
    assert caplog.messages[-1].endswith("must be trained: the file has none")


def test_a_backbone_out_of_a_detectors_checkpoint(tmp_path):
    need("torch")
    body = {n: array for n, array in recipe_state("moganet-xt").items() if not n.startswith("head.")}
    around = {"neck.convs.0.weight": np.zeros(3, np.float32), "bbox_head.fc.bias": np.zeros(3, np.float32)}
    whole = {f"backbone.{name}": array for name, array in body.items()} | around
    file = write_safetensors(tmp_path / "det.safetensors", whole)
    with pytest.raises(ConversionError, match="no classification head"):
        create_model("moganet-xt", checkpoint=file, attn_force_fp32=False)
    model = create_model("moganet-xt", checkpoint=file, attn_force_fp32=False, features_only=True)
    assert (model.loaded.initialised, model.loaded.misfits) == ((), ())
    assert model.state_dict().keys() == body.keys()
    np.testing.assert_array_equal(model.state_dict()["norm4.running_var"].numpy(), body["norm4.running_var"])


@pytest.fixture
def damaged(state, tmp_path):
    """One tensor gone, one too many, one of another shape."""
    tensors = {name: array for name, array in state.items() if name != "stages.1.0.shrink_conv.bias"}
    tensors["stages.1.0.extra"] = np.zeros((3, 4), np.float32)
    tensors["stages.3.1.attention.q.bias"] = tensors["stages.3.1.attention.q.bias"][:-1]
    return saved(tensors, tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_strict_loading_names_every_tensor_that_does_not_fit(damaged, framework):
    need(framework)
    with pytest.raises(ConversionError) as raised:
        create_model("tiny-moat0", framework, checkpoint=damaged)
    said = str(raised.value)
    assert said.startswith(f"{damaged}: its tensors do not fit tiny-moat0: ")
    for words in (
        "1 missing (stages.1.0.shrink_conv.bias [64])",
        "1 unexpected (stages.1.0.extra [3, 4])",
        "1 misshaped (stages.3.1.attention.q.bias [255] instead of [256])",
        "strict=False loads what fits",
    ):
        assert words in said


def test_loading_what_fits(state, damaged, caplog):
    pytest.importorskip("torch")
    model = create_model("tiny-moat0", checkpoint=damaged, strict=False)
    assert model.loaded.initialised == ("stages.1.0.shrink_conv.bias", "stages.3.1.attention.q.bias")
    assert [misfit.fault for misfit in model.loaded.misfits] == ["missing", "unexpected", "misshaped"]
    assert "stages.1.0.extra" in caplog.messages[-1]
    for name, tensor in model.state_dict().items():
        if name in state and name not in model.loaded.initialised:
            np.testing.assert_array_equal(tensor.numpy(), state[name], err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_missing_statistics_and_position_tables_may_be_let_pass(state, tmp_path, framework, caplog):
    need(framework)
    plain = {
        name: array
        for name, array in state.items()
        if "running_" not in name and not name.endswith("relative_position_embedding")
    }
    file = saved(plain, tmp_path / "plain.safetensors")
    allowed = {"allow_missing_bn": True}, {"strict": False, "pos_emb": True}
    for options in allowed if framework == "torch" else allowed[1:]:
        model = create_model("tiny-moat0", framework, checkpoint=file, **options)
        assert "no BatchNorm moving statistics" in caplog.messages[-1]
    tables = [name for name in model.loaded.initialised if "relative_position" in name]
    assert len(tables) == 9
    assert np.isfinite(run(model, framework, golden_input(64, 64)[:1])).all()


def test_a_file_of_another_family_is_named(bundle, moganet_files):
    pytest.importorskip("torch")
    with pytest.raises(ConversionError, match=r"unlike moganet-xt, this is a checkpoint of tiny-moat0"):
        create_model("moganet-xt-224", checkpoint=bundle)
    with pytest.raises(ConversionError, match=r"o\.pth: unlike moat0, this is a checkpoint of moganet-xt"):
        create_model("moat0", checkpoint=moganet_files["openmixup"])
