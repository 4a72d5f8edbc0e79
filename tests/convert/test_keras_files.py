"""Keras' weights files: what real Keras makes of ours, and we of its."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import UsageError
from ckptkit.convert.execution import execute
from ckptkit.convert.loading import load_tensors
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader
from ckptkit.models.synth import Synthetic, write_bundle, write_file
from tests.support.moganet_weights import recipe_state

CASES = {
    "moganet": ("moganet-xt", {"attn_force_fp32": False}),
    "moganet, forced": ("moganet-xt", {"attn_force_fp32": True}),
    "moat": ("tiny-moat0", {"pos_emb": True}),
    "moat without tables": ("tiny-moat0", {"pos_emb": False}),
}
QUICK = {("moganet", True), ("moat", True), ("moat without tables", False)}
"""With a head and without; the rest of them is slow."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Checkpoints as they are published."""
    folder = tmp_path_factory.mktemp("published")
    moganet = write_file(Synthetic("moganet-xt"), folder / "moganet.pth")
    write_bundle(Synthetic("tiny-moat0"), folder / "moat.ckpt")
    write_bundle(Synthetic("tiny-moat0", pos_emb=False), folder / "bare.ckpt")
    return {
        "moganet": moganet,
        "moganet, forced": moganet,
        "moat": folder / "moat.ckpt",
        "moat without tables": folder / "bare.ckpt",
    }


@pytest.fixture(scope="module")
def published(sources):
    """The values of a case in a layout, read once: leave them as they are."""
    return functools.cache(lambda case, layout="keras": state(sources[case], layout))


def convert(source, target, to="keras", **options):
    with open_reader(source) as reader:
        return execute(
            plan(reader, Options(to, **options)), reader, Options(to, **options).target, target
        ).path


def state(path, layout="keras"):
    with open_reader(path) as reader:
        return load_tensors(reader, layout)


def keras_model(case, **options):
    pytest.importorskip("tensorflow")
    variant, settings = CASES[case]
    return ckptkit.create_model(variant, framework="keras", **settings, **options)


def variables(model):
    from ckptkit.families.filling import tensors_of

    return {name: variable.numpy() for name, variable in tensors_of(model).items()}


@pytest.mark.parametrize(
    ("case", "head"),
    [
        pytest.param(case, head, marks=() if (case, head) in QUICK else pytest.mark.slow)
        for case in CASES
        for head in (True, False)
    ],
)
def test_keras_loads_ours_and_we_read_what_it_saves(sources, published, tmp_path, case, head):
    model = keras_model(case, num_classes=1000 if head else None)
    ours = convert(sources[case], tmp_path / "ours.weights.h5", head=head)
    model.load_weights(ours)
    wanted = published(case)
    loaded = variables(model)
    assert len(loaded) > 300
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)

    model.save_weights(tmp_path / "theirs.weights.h5")
    with open_reader(ours) as one, open_reader(tmp_path / "theirs.weights.h5") as other:
        assert dict(one.specs) == dict(other.specs)
        for name in one.specs:
            assert one.read(name).tobytes() == other.read(name).tobytes(), name
    canonical = state(tmp_path / "theirs.weights.h5", "torch")
    for name, array in published(case, "torch").items():
        if not name.endswith("num_batches_tracked") and (
            head or name.partition(".")[0] not in ("head", "norm")
        ):
            np.testing.assert_array_equal(canonical.pop(name), array, err_msg=name)
    assert canonical == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keras_widens_half_precision(sources, published, tmp_path, dtype):
    import ml_dtypes

    model = keras_model("moat")
    model.load_weights(convert(sources["moat"], tmp_path / "x.weights.h5", dtype=dtype))
    half = np.dtype(getattr(ml_dtypes, dtype, dtype))
    wanted = published("moat")
    for name, array in variables(model).items():
        np.testing.assert_array_equal(array, wanted[name].astype(half).astype("float32"), err_msg=name)


def test_a_trained_models_optimizer_is_left_out_by_rule(sources, tmp_path):
    model = keras_model("moat")
    model.load_weights(convert(sources["moat"], tmp_path / "x.weights.h5"))
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "trained.weights.h5")
    with open_reader(tmp_path / "trained.weights.h5") as reader:
        conversion = plan(reader, Options("torch"))
    slots = {one.name for one in conversion.ignored}
    assert {one.rule for one in conversion.ignored} == {"optimizer"}
    assert len(slots) == len(model.optimizer.variables)
    assert all(name.startswith("optimizer/vars/") for name in slots)
    back = convert(tmp_path / "trained.weights.h5", tmp_path / "back.ckpt", "tf")
    got = state(back, "deeplab2")
    for name, array in state(sources["moat"], "deeplab2").items():
        np.testing.assert_array_equal(got[name], array)


def test_a_whole_saved_model_is_read(sources, tmp_path):
    model = keras_model("moganet", checkpoint=sources["moganet"])
    model.save(tmp_path / "x.keras")
    got, wanted = state(tmp_path / "x.keras", "torch"), recipe_state("moganet-xt")
    for name, array in got.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    assert len(got) == 660


def test_openmixup_there_and_back_is_the_same_but_for_counters(sources, tmp_path):
    middle = convert(sources["moganet"], tmp_path / "x.weights.h5")
    back = convert(middle, tmp_path / "back.pth", "torch", layout="openmixup")
    with open_reader(sources["moganet"]) as one, open_reader(back) as other:
        counters = {name for name in one.specs if name.endswith("num_batches_tracked")}
        assert len(counters) == 45
        assert other.specs.keys() == one.specs.keys() - counters
        for name in other.specs:
            assert one.specs[name] == other.specs[name]
            assert one.read(name).tobytes() == other.read(name).tobytes(), name


def test_counters_are_left_out_by_a_named_rule(sources):
    with open_reader(sources["moganet"]) as reader:
        conversion = plan(reader, Options("keras"))
        without_head = plan(reader, Options("keras", head=False))
    assert len(conversion.moves) == 660
    assert {one.rule for one in conversion.ignored} == {"BatchNorm step counters"}
    assert len(conversion.ignored) == 45
    assert all("counts no steps" in one.reason for one in conversion.ignored)
    assert sorted(one.rule for one in without_head.ignored) == ["BatchNorm step counters"] * 45 + ["head"] * 2


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_models_are_built_from_it(sources, tmp_path, framework):
    pytest.importorskip("torch" if framework == "torch" else "tensorflow")
    path = convert(sources["moganet"], tmp_path / "x.weights.h5", settings={"attn_force_fp32": True})
    model = ckptkit.create_model("moganet-xt", framework=framework, checkpoint=path)
    kernel = recipe_state("moganet-xt")["blocks3.9.mlp.fc2.weight"]
    if framework == "torch":
        np.testing.assert_array_equal(model.state_dict()["blocks3.9.mlp.fc2.weight"].numpy(), kernel)
    else:
        name = "moganet/blocks3_9/mlp/fc2/kernel"
        np.testing.assert_array_equal(variables(model)[name], kernel.transpose(2, 3, 1, 0))
    untold = convert(sources["moganet"], tmp_path / "untold.weights.h5")
    with pytest.raises(UsageError, match="attn_force_fp32"):
        ckptkit.create_model("moganet-xt", framework=framework, checkpoint=untold)


@pytest.mark.parametrize("case", [pytest.param("moganet, forced", marks=pytest.mark.slow), "moat"])
def test_parity_holds_from_it(sources, tmp_path, case):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    from ckptkit.workspace import Located
    from tests.support.parity_cases import run_parity

    variant, settings = CASES[case]
    told = {key: value for key, value in settings.items() if key != "pos_emb"}
    path = convert(sources[case], tmp_path / "x.weights.h5", settings=told)
    report = run_parity(Located(path), resolution=64)
    assert report.ok, report.verdict
    assert report.variant == variant
