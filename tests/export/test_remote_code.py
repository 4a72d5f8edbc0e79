"""The code in a folder for the hub: what transformers computes with it where ckptkit is not installed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import ckptkit
from ckptkit.base.tensors import Array
from ckptkit.export.hub import export_hf
from ckptkit.export.remote_code import RemoteCode
from ckptkit.export.source_code import NotSelfContainedError
from ckptkit.export.targets import ExportRequest
from ckptkit.families.base import families, get_family
from ckptkit.models import create_model
from tests.conftest import REPOSITORY
from tests.support.exporting import MOAT, MOGANET, logits_of, source_of, trained, write_safetensors

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """A checkpoint with its settings and its resolution."""

    variant: str
    size: tuple[int, int]
    settings: dict = field(default_factory=dict)
    pos_emb: bool = True
    classes: int | None = 1000
    resized: bool = False  # the position tables, to what they are at this resolution

    def export(self, folder: Path) -> tuple[Path, Array, Array]:
        """The exported folder, images (N, H, W, 3), and what ckptkit's PyTorch model makes of them."""
        state = trained(self.variant, num_classes=self.classes)
        if not self.pos_emb:
            state = {name: array for name, array in state.items() if "position" not in name}
        if self.resized:
            moat = get_family("moat")
            sizes = dict(zip((2, 3), moat.table_sizes_at(self.size, {}), strict=True))
            for name in (name for name in state if "position" in name):
                state[name] = moat.resized_table(state[name], sizes[int(name.split(".")[1])])
        source = source_of(
            write_safetensors(folder / "source.safetensors", state),
            settings=self.settings,
            resolution=self.size,
        )
        export_hf(source, folder / "out", ExportRequest())
        images = np.random.default_rng(5).standard_normal((2, *self.size, 3), dtype=np.float32)
        return folder / "out", images, outputs_of(source.model(), images)


def outputs_of(model, images: Array) -> Array:
    """Logits, or the last map where there is no head."""
    import torch

    with torch.inference_mode():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return (found[-1] if isinstance(found, list) else found).numpy()


CASES = {
    "moat": Case(MOAT, (64, 64)),
    "moat, no position embedding": Case(MOAT, (96, 64), pos_emb=False),
    "moat, windows": Case(MOAT, (128, 64), {"window_size": [[4, 2], [2, 2]], "global_attention": True}),
    "moat, pool of 3": Case(MOAT, (80, 112), {"pool_size": 3}),
    "moat, ten classes": Case(MOAT, (64, 64), classes=10),
    "moat, no head": Case(MOAT, (64, 64), classes=None),
    "moat, resized tables": Case(MOAT, (96, 160), resized=True),
    "moganet, float32 gate": Case(MOGANET, (64, 64), {"attn_force_fp32": True}),
    "moganet, plain gate": Case(MOGANET, (72, 104), {"attn_force_fp32": False}),
}


@pytest.fixture
def stubs(monkeypatch):
    """As much of transformers as the modules name, and no ckptkit for what they import."""
    torch = pytest.importorskip("torch")

    class PretrainedConfig:
        def __init__(self, **kwargs):
            self.num_labels = len(kwargs.get("id2label") or ()) or kwargs.get("num_labels", 2)
            self.output_hidden_states = False

        def to_dict(self):
            return dict(vars(self))

    class PreTrainedModel(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

        def post_init(self):
            pass

    class BaseImageProcessor:
        def __init__(self, **kwargs):
            pass

    names = {
        "": {"PretrainedConfig": PretrainedConfig, "PreTrainedModel": PreTrainedModel},
        ".modeling_outputs": {"BackboneOutput": SimpleNamespace, "ImageClassifierOutput": SimpleNamespace},
        ".image_processing_utils": {
            "BaseImageProcessor": BaseImageProcessor,
            "BatchFeature": lambda data, tensor_type: data,
        },
    }
    for name, members in names.items():
        module = ModuleType(f"transformers{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def imported(stubs, monkeypatch, tmp_path):
    """Import the modules of an exported folder: a function of the folder and a kind."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def of(folder: Path, kind: str) -> ModuleType:
        assert folder.parent == tmp_path
        (path,) = folder.glob(f"{kind}_*.py")
        return importlib.import_module(f"{folder.name}.{path.stem}")

    yield of
    for name in [name for name in sys.modules if name.partition(".")[0] == "out"]:
        del sys.modules[name]


def config_of(folder: Path, imported):
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    module, name = said["auto_map"]["AutoConfig"].split(".")
    return getattr(imported(folder, module.rpartition("_")[0]), name)(**said)


def filled(cls, config, folder: Path):
    """A model of the folder's code with the folder's tensors, all of which it must want."""
    from safetensors.torch import load_file

    model = cls(config)
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert cls.__name__.endswith("Backbone") or not unexpected
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_the_modules_compute_what_ckptkit_computes(case, imported, tmp_path):
    import torch

    folder, images, wanted = CASES[case].export(tmp_path)
    modeling, config = imported(folder, "modeling"), config_of(folder, imported)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    (backbone,) = (getattr(modeling, name) for name in dir(modeling) if name.endswith("Backbone"))
    with torch.inference_mode():
        maps = filled(backbone, config, folder)(pixels).feature_maps
        if CASES[case].classes is None:
            found = maps[-1].numpy()
        else:
            (cls,) = (getattr(modeling, n) for n in dir(modeling) if n.endswith("ForImageClassification"))
            found = filled(cls, config, folder)(pixels).logits.numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    ours = create_model(folder, features_only=True)(pixels)
    assert [one.shape for one in maps] == [one.shape for one in ours]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(maps, ours, strict=True))


def test_a_backbone_names_its_stages_and_returns_those_that_are_wanted(imported, tmp_path):
    torch = pytest.importorskip("torch")
    folder, _, _ = CASES["moganet, float32 gate"].export(tmp_path)
    cls, config = imported(folder, "modeling").MogaNetBackbone, config_of(folder, imported)
    config.out_indices = [-2, 3]
    model = cls(config)
    assert (model.out_features, model.channels) == (["stage3", "stage4"], [96, 192])
    with torch.inference_mode():
        shapes = [tuple(one.shape[1:]) for one in model(torch.zeros(1, 3, 64, 64)).feature_maps]
    assert shapes == [(96, 4, 4), (192, 2, 2)]
    config.out_indices, config.out_features = None, ["stage1"]
    assert cls(config).out_indices == [0]


def test_network_and_model_are_one(imported, tmp_path):
    """A head that is replaced is replaced in both, also of a copy; another size is said in the config."""
    torch = pytest.importorskip("torch")
    from copy import deepcopy

    folder, _, _ = CASES["moganet, float32 gate"].export(tmp_path)
    cls, config = imported(folder, "modeling").MogaNetForImageClassification, config_of(folder, imported)
    model = cls(config)
    copy = deepcopy(model)
    copy.head = torch.nn.Linear(192, 3)
    assert copy(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 3)
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 1000)
    assert not model.eval().network.training
    assert model.train().network.training
    loss = model(torch.zeros(2, 3, 64, 64), labels=torch.tensor([1, 2])).loss
    assert loss.item() > 0
    config.num_labels = 3
    assert (cls(config).head.out_features, config.to_dict()["num_classes"]) == (3, 3)


@pytest.mark.parametrize("case", ["moat, windows", "moganet, float32 gate", "moganet, plain gate"])
def test_a_model_is_of_the_type_that_transformers_chose(case, imported, tmp_path):
    torch = pytest.importorskip("torch")
    folder, images, _ = CASES[case].export(tmp_path)
    modeling, config = imported(folder, "modeling"), config_of(folder, imported)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).bfloat16()
    for name in dir(modeling):
        if name.endswith(("Backbone", "ForImageClassification")):
            torch.set_default_dtype(torch.bfloat16)  # as transformers does while it builds a model
            try:
                model = getattr(modeling, name)(config)
            finally:
                torch.set_default_dtype(torch.float32)
            assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
            with torch.inference_mode():
                found = vars(model.eval()(pixels))
            last = found["logits"] if "logits" in found else found["feature_maps"][-1]
            assert last.isfinite().all()


PICTURES = [(300, 200), (199, 333), (64, 64), (1000, 33), (40, 31)]


@pytest.mark.parametrize("case", ["moganet, plain gate", "moat"])
@pytest.mark.parametrize("size", PICTURES, ids=str)
def test_pictures_become_what_ckptkit_makes_of_them(case, size, imported, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    folder, _, _ = CASES[case].export(tmp_path)
    said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    module, name = said["auto_map"]["AutoImageProcessor"].split(".")
    processor = getattr(imported(folder, module.partition("_mog")[0].partition("_moat")[0]), name)(**said)
    pixels = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    wanted = source_of(folder).preprocessing(pillow.fromarray(pixels)).transpose(2, 0, 1)
    for images in (pixels, [pillow.fromarray(pixels)], (pillow.fromarray(pixels).convert("RGB"),)):
        found = processor.preprocess(images)["pixel_values"]
        np.testing.assert_array_equal(found, wanted[None])
    assert (processor.image_mean, processor.image_std) == (said["image_mean"], said["image_std"])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_put_on_white_as_predict_does(mode, imported, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    folder, _, _ = CASES["moat"].export(tmp_path)
    said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    processor = imported(folder, "image_processing").MOATImageProcessor(**said)
    random = np.random.default_rng(6)
    picture = pillow.fromarray(random.integers(0, 256, (80, 90, 4), dtype=np.uint8), "RGBA")
    picture = picture.convert("L").convert("P") if mode == "P" else picture.convert(mode)
    if mode == "P":
        picture.save(tmp_path / "p.png", transparency=200)
        picture = pillow.open(tmp_path / "p.png")
    prepare = ckptkit.transform("tiny-moat0", framework="onnxruntime", resolution=64)
    pixels = processor.preprocess(picture)["pixel_values"]
    np.testing.assert_array_equal(pixels, prepare(picture))
    opaque = picture.copy()
    opaque.info.clear()
    assert np.abs(pixels - processor.preprocess(opaque.convert("RGB"))["pixel_values"]).max() > 0.1


@pytest.mark.parametrize("name", families(plugins=False))
def test_no_module_imports_ckptkit(name):
    allowed = {"__future__", "abc", "collections", "contextlib", "dataclasses", "math", "typing"}
    allowed |= {"torch", "transformers", "numpy", "PIL"}
    for file, source in RemoteCode(get_family(name)).files().items():
        for node in ast.walk(compile(source, file, "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom):
                assert node.level or node.module.partition(".")[0] in allowed, file


def test_a_familys_code_follows_its_source(monkeypatch):
    from ckptkit.export import remote_code, source_code

    family = get_family("moganet")
    before = RemoteCode(family).files()["modeling_moganet.py"]
    read = source_code._Module

    def changed(name, source, is_package):
        return read(name, source.replace("INITIAL_SCALE = 1e-5", "INITIAL_SCALE = 1e-4"), is_package)

    monkeypatch.setattr(source_code, "_Module", changed)
    remote_code._sources.cache_clear()
    after = RemoteCode(family).files()["modeling_moganet.py"]
    remote_code._sources.cache_clear()
    assert after == before.replace("INITIAL_SCALE = 1e-5", "INITIAL_SCALE = 1e-4") != before


def test_a_plugins_model_is_taken_out_of_its_package(monkeypatch, imported, tmp_path):
    torch = pytest.importorskip("torch")
    example = REPOSITORY / "examples" / "plugin"
    monkeypatch.syspath_prepend(str(example))
    family = importlib.import_module("ckptkit_pebble.family").Pebble()
    out = tmp_path / "out"
    out.mkdir()
    for name, text in RemoteCode(family).files().items():
        assert "import ckptkit" not in text
        assert "from ckptkit" not in text
        (out / name).write_text(text, encoding="utf-8")
    config = imported(out, "configuration").PebbleHubConfig(
        variant="pebble-m", num_classes=10, settings={"negative_slope": 0.25}
    )
    model = imported(out, "modeling").PebbleForImageClassification(config).eval()
    reference = family.torch_module().build("pebble-m", negative_slope=0.25, num_classes=10)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(images).logits, reference(images))


def test_a_model_that_cannot_be_taken_out_is_warned_of(monkeypatch, tmp_path):
    warnings: list[str] = []
    source = source_of(write_safetensors(tmp_path / "m.safetensors", trained(MOAT)))
    source = replace(source, workspace=replace(source.workspace, warn=warnings.append))

    def refuse(self):
        raise NotSelfContainedError("its model imports the module x")

    monkeypatch.setattr(RemoteCode, "files", refuse)
    export_hf(source, tmp_path / "out", ExportRequest())
    assert warnings == [f"{source.name}: without code for transformers: its model imports the module x"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "transformers" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_ckptkit_runs_no_code_of_a_folder(tmp_path):
    pytest.importorskip("torch")
    folder, images, wanted = CASES["moat"].export(tmp_path)
    for path in folder.glob("*.py"):
        path.write_text("raise SystemExit('it was run')")
    found = logits_of(create_model(folder), "torch", images)
    np.testing.assert_array_equal(found, wanted)


# -- the real transformers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Python with transformers and without ckptkit: as the environment says, or a new one."""
    if given := os.environ.get("CKPTKIT_TRANSFORMERS_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("transformers")
    made = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [made, "-m", "pip", "install", "-q"]
    subprocess.run([*install, "torch>=2.6,<2.14"], check=True)
    subprocess.run([*install, "transformers>=5", "pillow"], check=True)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same(case, python, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    folder, images, wanted = CASES[case].export(tmp_path)
    picture = np.random.default_rng(4).integers(0, 256, (150, 211, 3), dtype=np.uint8)
    prepared = source_of(folder).preprocessing(pillow.fromarray(picture)).transpose(2, 0, 1)
    np.savez(
        tmp_path / "given.npz",
        images=images.transpose(0, 3, 1, 2),
        wanted=wanted,
        picture=picture,
        prepared=np.ascontiguousarray(prepared),
    )
    script = shutil.copy(REPOSITORY / "tests" / "support" / "with_transformers.py", tmp_path)
    done = subprocess.run(
        [python, script, folder, tmp_path / "given.npz", tmp_path / "again"],
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.pop("difference") <= TOLERANCE
    assert said.pop("backbone") == said.pop("classifier", [0, 0, 0]) == [0, 0, 0]
    assert all(said.values()), said
    again = outputs_of(create_model(tmp_path / "again"), images)
    np.testing.assert_allclose(again, wanted, atol=1e-6 * np.abs(wanted).max())
