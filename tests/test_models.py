"""Models with settings and weights from the entry, the file or the arguments, in both frameworks."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.convert import Options, execute, plan
from ckptkit.errors import ConversionError, NotFoundError, UsageError
from ckptkit.formats.detect import open_reader
from ckptkit.models import create_model
from ckptkit.synth import Synthetic, write_bundle, write_torch
from tests.conftest import REPOSITORY
from tests.support.moat_reference import golden_input, load_golden
from tests.support.moganet_weights import recipe_state

FRAMEWORKS = ("torch", "keras")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("m") / "model.ckpt"
    write_bundle(Synthetic("tiny-moat0"), prefix)
    return prefix


def need(framework):
    pytest.importorskip("torch" if framework == "torch" else "tensorflow")


def run(model, framework, x):
    """Output of a model on NHWC images, brought back to numpy (and features to NHWC)."""
    if framework == "keras":
        out = model(x)
        return [np.asarray(o) for o in out] if isinstance(out, list) else np.asarray(out)
    import torch

    with torch.inference_mode():
        out = model(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    return [o.numpy().transpose(0, 2, 3, 1) for o in out] if isinstance(out, list) else out.numpy()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_by_id_with_a_checkpoint_gives_the_published_logits(bundle, framework):
    need(framework)
    model = create_model("tiny-moat0-256", framework, checkpoint=bundle)
    golden = load_golden("tiny_moat0_pe_256_pool2").logits
    got = run(model, framework, golden_input(256, 256))
    assert np.abs(got - golden).max() <= 2e-5 * np.abs(golden).max()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_features_are_the_five_stages(bundle, framework):
    need(framework)
    model = create_model("tiny-moat0", framework, checkpoint=bundle, features_only=True)
    shapes = [f.shape for f in run(model, framework, golden_input(96, 64)[:1])]
    sizes = [(48, 32, 32), (24, 16, 32), (12, 8, 64), (6, 4, 128), (3, 2, 256)]
    assert shapes == [(1, *size) for size in sizes]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_another_number_of_classes_keeps_the_body(bundle, framework):
    need(framework)
    x = golden_input(64, 64)[:1]
    ten = create_model("tiny-moat0", framework, checkpoint=bundle, num_classes=10)
    assert run(ten, framework, x).shape == (1, 10)
    whole = create_model("tiny-moat0", framework, checkpoint=bundle, features_only=True)
    headless = create_model("tiny-moat0", framework, checkpoint=bundle, num_classes=None, features_only=True)
    for one, other in zip(run(whole, framework, x), run(headless, framework, x), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_settings_come_from_the_file_unless_given(bundle, tmp_path, framework):
    need(framework)
    target = tmp_path / "x.safetensors"
    with open_reader(bundle) as reader:
        conversion = plan(reader, Options("safetensors"))
        said = {**conversion.metadata, "pool_size": "3"}
        import dataclasses

        execute(dataclasses.replace(conversion, metadata=said), reader, target)
    x = golden_input(64, 64)[:1]
    from_file = run(create_model("tiny-moat0", framework, checkpoint=target), framework, x)
    three = run(create_model("tiny-moat0", framework, checkpoint=bundle, pool_size=3), framework, x)
    two = run(create_model("tiny-moat0", framework, checkpoint=target, pool_size=2), framework, x)
    np.testing.assert_array_equal(from_file, three)
    assert np.abs(two - three).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("moat9", {}, NotFoundError, "moat9"),
        ("tiny-moat0", {"framework": "jax"}, UsageError, "one of torch, keras"),
        ("tiny-moat0", {"checkpoint": True}, UsageError, "needs an entry's id"),
        ("tiny-moat0", {"attn_force_fp32": True}, UsageError, "its settings are pool_size"),
        ("moganet-xt", {}, UsageError, "attn_force_fp32 is not known"),
        ("moganet-xt", {"attn_force_fp32": True, "pool_size": 2}, UsageError, "no setting pool_size"),
        ("moganet-xt-224", {"pos_emb": True}, UsageError, "no position embedding"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(name, options, error, words):
    need("torch")
    with pytest.raises(error, match=words):
        create_model(name, **options)


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


@pytest.fixture(scope="module")
def moganet_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moganet")
    return {
        "openmixup": write_torch(Synthetic("moganet-xt"), folder / "o.pth"),
        "timm": write_torch(Synthetic("moganet-xt", layout="torch", twins=True), folder / "t.pth.tar"),
    }


@pytest.mark.parametrize(
    "case",
    [
        ("moganet-xt-224", "openmixup", {}, "xtiny_224_fp32gate"),
        ("moganet-xt-224-timm", "timm", {}, "xtiny_224_plain"),
        ("moganet-xt", "timm", {"attn_force_fp32": True}, "xtiny_224_fp32gate"),
        ("moganet-xt-224", "openmixup", {"attn_force_fp32": False}, "xtiny_224_plain"),
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_moganets_gate_is_the_entrys_or_as_told(moganet_files, framework, case):
    need(framework)
    name, file, options, golden = case
    model = create_model(name, framework, checkpoint=moganet_files[file], **options)
    expected = np.load(REPOSITORY / f"tests/golden/moganet/golden_{golden}.npz")["logits"]
    got = run(model, framework, golden_input(224, 224))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_moganets_gate_is_never_guessed(moganet_files, tmp_path, framework):
    need(framework)
    with pytest.raises(UsageError, match=r"o\.pth: attn_force_fp32 is not known"):
        create_model("moganet-xt", framework, checkpoint=moganet_files["openmixup"])
    with open_reader(moganet_files["openmixup"]) as reader:
        told = plan(reader, Options("safetensors", settings={"attn_force_fp32": True}))
        execute(told, reader, tmp_path / "told.safetensors")
    model = create_model("moganet-xt", framework, checkpoint=tmp_path / "told.safetensors")
    assert model.attn_force_fp32 is True


def test_the_copy_asked_for_is_loaded(moganet_files):
    torch = pytest.importorskip("torch")
    for weights, suffix in (("auto", ""), ("ema", ""), ("raw", "#raw")):
        model = create_model("moganet-xt-224-timm", checkpoint=moganet_files["timm"], weights=weights)
        expected = recipe_state("moganet-xt", key_suffix=suffix)["head.bias"]
        assert torch.equal(model.head.bias, torch.from_numpy(expected))
    with pytest.raises(UsageError, match="no moving averages"):
        create_model("moganet-xt-224", checkpoint=moganet_files["openmixup"], weights="ema")
