"""Models in ONNX Runtime: what they compute, and when the graph in the cache is theirs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckptkit._version import __version__
from ckptkit.base.errors import UsageError
from ckptkit.models import Loaded, create_model, onnx_model
from ckptkit.workspace import Workspace
from tests.support.moat_reference import golden_input, load_golden
from tests.support.models import run, torch_images
from tests.support.toys import MOAT, MOGANET, SETTINGS, SIDE, toy_file, toy_variants

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from safetensors.torch import save_file  # noqa: E402

TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def _toys():
    with toy_variants():
        yield


def small_graph(path, side, features, constant, metadata):
    """Write a graph that takes no time to make: logits are the channels' means and a constant."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    outputs = {"stage1": ("n", 3, side[0], side[1])} if features else {"logits": ("n", 3)}
    graph = onnx.helper.make_graph(
        [
            node("Add", ["images", "constant"], ["stage1"]),
            node("GlobalAveragePool", ["stage1"], ["pooled"]),
            node("Flatten", ["pooled"], ["logits"]),
        ],
        "small",
        [value("images", onnx.TensorProto.FLOAT, ("n", 3, *side))],
        [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.float32(constant), "constant")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


@pytest.fixture
def exports(monkeypatch):
    """Count exports, each of which writes a small graph that depends on the model's weights."""
    done = []

    def writing(model, path, *, size, features, metadata):
        done.append(path)
        weights = float(sum(parameter.detach().sum() for parameter in model.parameters()))
        small_graph(path, size, features or model.features_only, weights, metadata)

    monkeypatch.setattr(onnx_model, "write_onnx", writing)
    return done


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "onnx"


def graphs(home):
    return sorted(path.parent for path in home.rglob("model.onnx"))


@pytest.mark.slow
def test_it_gives_the_published_logits(bundle, home):
    model = create_model("tiny-moat0-256", "onnxruntime", checkpoint=bundle)
    golden = load_golden("tiny_moat0_pe_256_pool2").logits
    got = run(model, "onnxruntime", golden_input(256, 256))
    assert np.abs(got - golden).max() <= 2e-5 * np.abs(golden).max()


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        (MOAT, {"num_classes": None}),
        pytest.param(MOGANET, {"features_only": True, "resolution": (61, 75)}, marks=pytest.mark.slow),
        pytest.param(MOGANET, {"resolution": (61, 75)}, marks=pytest.mark.slow),
        pytest.param(MOGANET, {"features_only": True}, marks=pytest.mark.slow),
    ],
    ids=["no head", "features of odd sides", "odd sides", "features"],
)
def test_it_computes_what_pytorch_computes(variant, options, tmp_path, home):
    options = {"checkpoint": toy_file(tmp_path, variant), **SETTINGS[variant], **options}
    plain, quick = (create_model(variant, framework, **options) for framework in ("torch", "onnxruntime"))
    assert (quick.loaded, quick.resolution) == (plain.loaded, plain.resolution)
    assert quick.features_only is plain.features_only
    for batch in (2, 1):
        x = golden_input(*quick.resolution)[:batch]
        ours, theirs = run(quick, "onnxruntime", x), run(plain, "torch", x)
        assert isinstance(ours, list) is isinstance(theirs, list) is quick.features_only
        for one, other in zip(*((y if isinstance(y, list) else [y]) for y in (ours, theirs)), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * max(1, np.abs(other).max()))


def test_the_graph_is_exported_once(tmp_path, home, exports):
    file = toy_file(tmp_path, MOAT)
    models = [create_model(MOAT, "onnxruntime", checkpoint=file) for _ in range(2)]
    other_place = shutil.copytree(file.parent, tmp_path / "elsewhere") / file.name
    models.append(create_model(MOAT, "onnxruntime", checkpoint=other_place))
    assert len(exports) == len(graphs(home)) == 1
    x = golden_input(SIDE, SIDE)[:1]
    for model in models[1:]:
        np.testing.assert_array_equal(run(model, "onnxruntime", x), run(models[0], "onnxruntime", x))
        assert replace(model.loaded, path=None) == replace(models[0].loaded, path=None)
    assert models[2].loaded.path == other_place


@pytest.mark.parametrize(
    "options", [{"pool_size": 3}, {"resolution": 96}, {"features_only": True}, {"num_classes": None}], ids=str
)
def test_another_model_has_another_graph(options, tmp_path, home, exports):
    file = toy_file(tmp_path, MOAT)
    create_model(MOAT, "onnxruntime", checkpoint=file)
    create_model(MOAT, "onnxruntime", checkpoint=file, **options)
    assert len(exports) == len(graphs(home)) == 2


def test_other_weights_under_the_same_name_have_another_graph(tmp_path, home, exports):
    file = tmp_path / "m.safetensors"
    weights = create_model(MOAT).state_dict()
    save_file(weights, file)
    status = file.stat()
    models = [create_model(MOAT, "onnxruntime", checkpoint=file)]
    weights["head.bias"] += 1
    save_file(weights, file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    models.append(create_model(MOAT, "onnxruntime", checkpoint=file))
    assert file.stat().st_size == status.st_size
    x = golden_input(SIDE, SIDE)[:1]
    first, second = (run(model, "onnxruntime", x) for model in models)
    assert len(exports) == 2 and np.abs(first - second).min() > 100


def test_another_ckptkit_makes_its_own(tmp_path, home, exports, monkeypatch):
    file = toy_file(tmp_path, MOAT)
    create_model(MOAT, "onnxruntime", checkpoint=file)
    monkeypatch.setattr(onnx_model, "__version__", f"{__version__}.1")
    create_model(MOAT, "onnxruntime", checkpoint=file)
    assert len(exports) == 2


def test_a_model_that_no_file_fills_is_not_kept(tmp_path, home, exports):
    heard = []
    workspace = Workspace(warn=heard.append)
    file = toy_file(tmp_path, MOAT)
    for _ in range(2):
        model = create_model(MOAT, "onnxruntime", checkpoint=file, num_classes=3, workspace=workspace)
        assert run(model, "onnxruntime", golden_input(SIDE, SIDE)[:1]).shape == (1, 3)
        assert model.loaded.initialised
    assert len(exports) == 2 and sum("must be trained" in sentence for sentence in heard) == 2
    create_model(MOAT, "onnxruntime", num_classes=3)  # no checkpoint at all
    assert graphs(home) == [] and [path.name for path in home.iterdir()] == ["lock"]


@pytest.mark.parametrize("damage", [b"", b"no graph", None], ids=["empty", "foreign", "cut short"])
def test_a_damaged_graph_is_made_anew(tmp_path, home, exports, damage):
    file = toy_file(tmp_path, MOAT)
    first = create_model(MOAT, "onnxruntime", checkpoint=file)
    graph = graphs(home)[0] / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1000] if damage is None else damage)
    again = create_model(MOAT, "onnxruntime", checkpoint=file)
    x = golden_input(SIDE, SIDE)[:1]
    np.testing.assert_array_equal(run(again, "onnxruntime", x), run(first, "onnxruntime", x))
    assert len(exports) == 2 and graph.read_bytes() == whole


def test_what_an_interrupted_export_left_is_no_graph(tmp_path, home, exports):
    file = toy_file(tmp_path, MOAT)
    create_model(MOAT, "onnxruntime", checkpoint=file)
    (place,) = graphs(home)
    place.rename(place.with_name(f"{place.name}.part"))  # all but the last step
    create_model(MOAT, "onnxruntime", checkpoint=file)
    assert len(exports) == 2 and graphs(home) == [place]


def test_a_cache_that_cannot_be_written_is_warned_of(tmp_path, home, exports):
    home.parent.mkdir()
    home.write_text("a file where the folder belongs")
    heard = []
    model = create_model(
        MOAT, "onnxruntime", checkpoint=toy_file(tmp_path, MOAT), workspace=Workspace(warn=heard.append)
    )
    assert run(model, "onnxruntime", golden_input(SIDE, SIDE)[:1]).shape == (1, 3)
    assert len(heard) == 1 and heard[0].endswith("the graph cannot be kept, so it is made each time")


def planted_link(place, elsewhere):
    place.rename(elsewhere)
    place.symlink_to(elsewhere)


def planted_file(place, elsewhere):
    (place / "model.onnx").rename(elsewhere)
    (place / "model.onnx").symlink_to(elsewhere)


def planted_by_another_user(place, elsewhere):
    os.chown(place / "model.onnx", 12345, -1)


@pytest.mark.parametrize("plant", [planted_link, planted_file, planted_by_another_user])
def test_a_graph_that_was_planted_is_not_run(tmp_path, home, exports, plant):
    if plant is planted_by_another_user and (not hasattr(os, "getuid") or os.getuid() != 0):
        pytest.skip("only root can give a file away")
    file = toy_file(tmp_path, MOAT)
    first = create_model(MOAT, "onnxruntime", checkpoint=file)
    (place,) = graphs(home)
    small_graph(place / "model.onnx", first.resolution, False, 1e6, first.metadata)  # gives other logits
    plant(place, tmp_path / "elsewhere")
    heard = []
    again = create_model(MOAT, "onnxruntime", checkpoint=file, workspace=Workspace(warn=heard.append))
    x = golden_input(SIDE, SIDE)[:1]
    np.testing.assert_array_equal(run(again, "onnxruntime", x), run(first, "onnxruntime", x))
    assert len(exports) == 2
    assert plant is planted_by_another_user or (tmp_path / "elsewhere").exists()


def test_nothing_is_written_through_a_link(tmp_path, home, exports):
    (tmp_path / "elsewhere").mkdir()
    home.parent.mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    heard = []
    for _ in range(2):
        create_model(
            MOAT, "onnxruntime", checkpoint=toy_file(tmp_path, MOAT), workspace=Workspace(warn=heard.append)
        )
    assert len(exports) == len(heard) == 2
    assert [*(tmp_path / "elsewhere").iterdir()] == []


@pytest.fixture
def untrained(tmp_path):
    small_graph(tmp_path / "m.onnx", (SIDE, SIDE), False, 0, {})
    record = Loaded("small", {})
    return onnx_model.OnnxModel(tmp_path / "m.onnx", variant="small", resolution=(SIDE, SIDE), loaded=record)


def test_another_size_is_refused(untrained):
    with pytest.raises(UsageError, match=r"images of 32x64 for a graph of 64x64.*resolution=\(32, 64\)"):
        untrained(torch_images(golden_input(32, 64)))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64, 3), (0, 3, 64, 64)])
def test_what_is_no_batch_of_images_is_refused(untrained, shape):
    with pytest.raises(UsageError, match=r"the model takes \(N, 3, H, W\)"):
        untrained(np.zeros(shape, np.float32))


def test_any_array_of_images_is_taken(untrained):
    images = torch_images(golden_input(SIDE, SIDE)[:1])
    expected = untrained(images.numpy())
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(untrained(images), expected)
    np.testing.assert_allclose(expected, images.numpy().mean(axis=(2, 3)), atol=1e-5)
    np.testing.assert_array_equal(untrained(images.double().numpy()), expected)


def test_settings_are_asked_for_as_everywhere(tmp_path):
    with pytest.raises(UsageError, match="attn_force_fp32 is not known"):
        create_model(MOGANET, "onnxruntime", checkpoint=toy_file(Path(tmp_path), MOGANET))
