"""Models with settings and weights from the entry, the file or the arguments, in both frameworks."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.analysis.model_source import SourceRequest, open_source
from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.filling import load_state, tensors_of
from ckptkit.formats.detect import open_reader
from ckptkit.models import create_model
from ckptkit.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.support.moat_reference import golden_input, load_golden
from tests.support.models import FRAMEWORKS, need, run, torch_images
from tests.support.toys import MOAT, SETTINGS, toy_file, toy_variants


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Checkpoints of both families' models of one block a stage."""
    with toy_variants():
        yield {variant: toy_file(tmp_path_factory.mktemp("toys"), variant) for variant in SETTINGS}


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
def test_another_number_of_classes_keeps_the_body(toys, framework):
    need(framework)
    x = golden_input(64, 64)[:1]
    options = {"checkpoint": toys[MOAT]}
    ten = create_model(MOAT, framework, **options, num_classes=10)
    assert run(ten, framework, x).shape == (1, 10)
    whole = create_model(MOAT, framework, **options, features_only=True)
    headless = create_model(MOAT, framework, **options, num_classes=None, features_only=True)
    for one, other in zip(run(whole, framework, x), run(headless, framework, x), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("variant", SETTINGS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_new_head_on_the_same_body(toys, framework, variant):
    need(framework)
    x = golden_input(64, 64)[:1]
    file = toys[variant]
    model = create_model(variant, framework, checkpoint=file, **SETTINGS[variant])
    before = run(model, framework, x)
    stages = run(
        create_model(variant, framework, checkpoint=file, features_only=True, **SETTINGS[variant]),
        framework,
        x,
    )
    assert model.num_features == stages[-1].shape[-1]
    model.reset_classifier(0)
    for stage, same in zip(run(model, framework, x), stages, strict=True):
        np.testing.assert_array_equal(stage, same)
    model.reset_classifier(7)
    logits = run(model, framework, x)
    assert logits.shape == (1, 7) and model.num_classes == 7 and np.ptp(logits) > 0
    model.reset_classifier(1000)
    load_state(
        model,
        {
            name: tensor.numpy()
            for name, tensor in tensors_of(
                create_model(variant, framework, checkpoint=file, **SETTINGS[variant])
            ).items()
        },
    )
    np.testing.assert_array_equal(run(model, framework, x), before)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("variant", SETTINGS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_backbone_gets_a_head(framework, variant):
    need(framework)
    model = create_model(variant, framework, num_classes=None, **SETTINGS[variant])
    model.reset_classifier(7)
    assert run(model, framework, golden_input(64, 64)[:1]).shape == (1, 7)
    whole = create_model(variant, framework, num_classes=7, **SETTINGS[variant])
    assert {name: t.shape for name, t in tensors_of(model).items()} == {
        name: t.shape for name, t in tensors_of(whole).items()
    }


def test_keras_saves_and_trains_a_new_head(toys, tmp_path):
    need("keras")
    from ckptkit.families.keras_backend import keras

    model = create_model(MOAT, "keras", checkpoint=toys[MOAT])
    x = golden_input(64, 64)
    model.predict(x, verbose=0)
    model.reset_classifier(3)
    assert model.predict(x, verbose=0).shape == (2, 3)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras")(x), model(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kernel = model.trainable_variables[0].numpy()
    model.fit(x, np.array([0, 2]), verbose=0)
    assert (model.trainable_variables[0].numpy() != kernel).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_settings_come_from_the_file_unless_given(toys, tmp_path, framework):
    need(framework)
    target = tmp_path / "x.safetensors"
    with Workspace().locate(toys[MOAT]).open() as reader:
        conversion = plan(reader, Options("safetensors"))
        said = {**conversion.metadata, "pool_size": "3"}
        import dataclasses

        execute(dataclasses.replace(conversion, metadata=said), reader, Target("safetensors"), target)
    x = golden_input(64, 64)[:1]
    from_file = run(create_model(MOAT, framework, checkpoint=target), framework, x)
    three = run(create_model(MOAT, framework, checkpoint=toys[MOAT], pool_size=3), framework, x)
    two = run(create_model(MOAT, framework, checkpoint=target, pool_size=2), framework, x)
    np.testing.assert_array_equal(from_file, three)
    assert np.abs(two - three).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("moat9", {}, NotFoundError, "moat9"),
        ("tiny-moat0", {"framework": "jax"}, UsageError, "choose from torch, keras, onnxruntime"),
        ("tiny-moat0", {"checkpoint": True}, UsageError, "needs an entry's id"),
        ("tiny-moat0", {"attn_force_fp32": True}, UsageError, "choose from pool_size"),
        ("moganet-xt", {}, UsageError, "attn_force_fp32 is not known"),
        ("moganet-xt", {"attn_force_fp32": True, "pool_size": 2}, UsageError, "no setting pool_size"),
        ("moganet-xt-224", {"pos_emb": True}, UsageError, "no position embedding"),
        ("tiny-moat0", {"pretrained": True}, UsageError, "needs an entry's id"),
        ("tiny-moat0-256", {"pretrained": True, "checkpoint": "a.pth"}, UsageError, "own checkpoint"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(name, options, error, words):
    need("torch")
    with pytest.raises(error, match=words):
        create_model(name, **options)


GATES = [
    ("moganet-xt-224", "openmixup", {}, "xtiny_224_fp32gate"),
    ("moganet-xt-224-timm", "timm", {}, "xtiny_224_plain"),
    ("moganet-xt", "timm", {"attn_force_fp32": True}, "xtiny_224_fp32gate"),
    ("moganet-xt-224", "openmixup", {"attn_force_fp32": False}, "xtiny_224_plain"),
]


@pytest.mark.parametrize(
    ("framework", "case"),
    [
        pytest.param(framework, case, marks=pytest.mark.slow if framework == "keras" and case[2] else ())
        for framework in FRAMEWORKS
        for case in GATES
    ],
)
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
        execute(told, reader, Target("safetensors"), tmp_path / "told.safetensors")
    model = create_model("moganet-xt", framework, checkpoint=tmp_path / "told.safetensors")
    assert model.attn_force_fp32 is True


@pytest.mark.parametrize(
    ("framework", "resolution"),
    [("torch", 64), ("torch", (64, 96)), ("torch", (61, 75)), ("torch", None), ("keras", (61, 75))],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny-moat0", "moganet-xt-224"])
def test_any_resolution(framework, name, resolution):
    need(framework)
    model = create_model(name, framework, resolution=resolution, features_only=True)
    usual = 256 if name == "tiny-moat0" else 224
    expected = resolution if isinstance(resolution, tuple) else (resolution or usual,) * 2
    assert model.resolution == expected
    for size in ((64, 64), (61, 75))[framework == "keras" :]:
        last = run(model, framework, golden_input(*size)[:1])[-1]
        assert last.shape[1:3] == (-(-size[0] // 32), -(-size[1] // 32))


@pytest.mark.parametrize("resolution", [-64, (64,), (64, 64, 3), "64", 64.0], ids=repr)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_resolution(framework, resolution):
    need(framework)
    with pytest.raises(UsageError, match="resolution"):
        create_model("tiny-moat0", framework, resolution=resolution)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_windows_at_another_resolution(toys, framework):
    need(framework)
    options = {"checkpoint": toys[MOAT], "features_only": True}
    windowed = create_model(MOAT, framework, resolution=(128, 256), window_size=4, **options)
    whole = create_model(MOAT, framework, resolution=(128, 256), **options)
    x = golden_input(128, 256)[:1]
    ours, theirs = run(windowed, framework, x), run(whole, framework, x)
    np.testing.assert_array_equal(ours[2], theirs[2])  # no attention yet
    assert np.abs(ours[3] - theirs[3]).max() > 1e-3
    with pytest.raises(UsageError, match="cannot be cut into windows of 4x4"):
        create_model(MOAT, framework, resolution=96, window_size=4, **options)


def test_a_model_source_passes_the_options_on(bundle):
    pytest.importorskip("torch")
    workspace = Workspace()
    source = open_source(workspace.locate(bundle), workspace, SourceRequest(bundle, resolution=64))
    features = source.model(features_only=True)
    assert features.features_only and features.resolution == (64, 64)
    x = golden_input(64, 64)[:1]
    whole = run(source.model(resolution=96), "torch", x)
    np.testing.assert_array_equal(whole, run(source.model(), "torch", x))


@pytest.mark.parametrize("framework", ["keras", "onnxruntime"])
def test_only_pytorch_is_compiled(framework):
    need(framework)
    with pytest.raises(UsageError, match="compile=True is for PyTorch"):
        create_model("tiny-moat0", framework, compile=True)


def test_a_torch_model_can_be_trained_further(bundle):
    torch = pytest.importorskip("torch")
    model = create_model("tiny-moat0", checkpoint=bundle, num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = torch.nn.functional.cross_entropy(model(torch_images(golden_input(64, 64))), torch.tensor([0, 2]))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    stay = [
        name
        for name, tensor in model.state_dict().items()
        if "running_" in name and torch.equal(tensor, before[name])
    ]
    assert stay == []


def test_a_keras_model_can_be_trained_further(toys):
    tf = pytest.importorskip("tensorflow")
    model = create_model(MOAT, "keras", checkpoint=toys[MOAT], num_classes=3)
    before = [v.numpy() for v in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        logits = model(golden_input(64, 64), training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits([0, 2], logits))
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    still = [v.path for v, g in zip(variables, gradients, strict=True) if g is None or not np.any(g)]
    assert still == []
    moved = [
        not np.array_equal(v.numpy(), old)
        for v, old in zip(model.non_trainable_variables, before, strict=True)
    ]
    assert before and all(moved)
