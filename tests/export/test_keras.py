"""``--to keras``: whole models, opened by the real Keras."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorflow")

import ckptkit
import ckptkit.keras
from ckptkit.base.errors import UsageError
from ckptkit.export import keras as whole
from ckptkit.export.targets import ExportRequest, get_target, run_export
from ckptkit.families.base import get_family
from ckptkit.families.keras_backend import keras
from ckptkit.families.moat.config import MOAT_CONFIGS
from ckptkit.families.moganet.config import MOGANET_CONFIGS
from ckptkit.formats.detect import open_reader
from ckptkit.models.synth import Synthetic, write_checkpoint
from tests.support.exporting import source_of, trained, write_safetensors
from tests.support.fake_hub import COMMIT, TOKEN, FakeHub
from tests.support.toys import MOAT, MOGANET, SETTINGS, SIDE, STAGES, toy_file, toy_variants


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with toy_variants():
        yield


def toy_source(path: Path, variant: str, **settings: Any) -> Any:
    """A toy's file, taken for trained weights."""
    opened = source_of(path, settings=SETTINGS[variant] | settings, resolution=SIDE)
    return replace(opened, synthetic=False)


def export(source: Any, output: Path, **how: Any) -> Any:
    request = ExportRequest(to="keras", output=output, **how)
    request.require(offline=True, synthetic=False)
    return get_target("keras").export(source, output, request)


def images(side: int = SIDE) -> Any:
    return np.random.default_rng(5).standard_normal((2, side, side, 3)).astype("float32")


def computed(model: Any) -> list[Any]:
    """What calling a model gives, as a list."""
    called = model(images())
    return [np.asarray(one) for one in (called if isinstance(called, list) else [called])]


def require_same(model: Any, other: Any) -> None:
    ours, theirs = computed(model), computed(other)
    assert len(ours) == len(theirs)
    for one, another in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", [MOAT, MOGANET])
def test_keras_opens_the_file_and_computes_the_same(variant: str, tmp_path: Path):
    path = toy_file(tmp_path, variant)
    output = tmp_path / "out" / "m.keras"
    done = export(toy_source(path, variant), output)
    assert done.ok, done.verdict
    assert "agrees with PyTorch on 3 random inputs at 64x64" in done.verdict
    assert [(file.name, file.nbytes) for file in done.files] == [("m.keras", output.stat().st_size)]
    assert [one.name for one in output.parent.iterdir()] == ["m.keras"]
    json.dumps(done.to_json())

    opened = keras.saving.load_model(output)
    original = ckptkit.create_model(variant, "keras", checkpoint=path, resolution=SIDE, **SETTINGS[variant])
    require_same(opened, original)
    again = ckptkit.create_model(variant, "keras", checkpoint=output)
    require_same(again, original)  # the file's metadata name its settings

    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
        facts = json.loads(archive.read("metadata.json"))
    assert facts["keras_version"] == keras.__version__
    assert (facts["ckptkit"]["variant"], facts["ckptkit"]["num_classes"]) == (variant, 1000)
    assert SETTINGS[variant].items() <= facts["ckptkit"]["settings"].items()
    assert facts["ckptkit"]["preprocessing"]["size"] == [SIDE, SIDE]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*MOAT_CONFIGS, *MOGANET_CONFIGS])
def test_keras_opens_every_published_variant(variant: str, tmp_path: Path):
    settings = {"attn_force_fp32": True} if variant in MOGANET_CONFIGS else {}
    path = write_checkpoint(Synthetic(variant), tmp_path / "m.ckpt", force=True)
    source = replace(source_of(path, resolution=SIDE, settings=settings), synthetic=False)
    done = export(source, tmp_path / "m.keras")
    assert done.ok, done.verdict
    opened = keras.saving.load_model(tmp_path / "m.keras")
    assert (opened.variant, opened.num_classes) == (variant, 1000)
    require_same(opened, ckptkit.create_model(variant, "keras", checkpoint=path, **settings))


def test_a_folder_is_what_a_file_packs(tmp_path: Path):
    """Byte for byte, so two exports of one source give the same."""
    path = toy_file(tmp_path, MOAT)
    assert export(toy_source(path, MOAT), tmp_path / "m.keras").ok
    done = export(toy_source(path, MOAT), tmp_path / "folder")
    assert {file.name: file.nbytes for file in done.files} == {
        one.name: one.stat().st_size for one in (tmp_path / "folder").iterdir()
    }
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert set(archive.namelist()) <= {file.name for file in done.files}
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "folder" / name).read_bytes()
    opened = keras.saving.load_model(tmp_path / "folder")
    require_same(opened, keras.saving.load_model(tmp_path / "m.keras"))
    require_same(opened, ckptkit.create_model(tmp_path / "folder", "keras"))


def test_what_was_pushed_is_loaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Keras' own code for ``hf://``, but for the download."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_DISABLE_XET", True)
    path = toy_file(tmp_path, MOAT)
    with FakeHub() as server:
        monkeypatch.setattr(hub.constants, "ENDPOINT", server.url)
        request = ExportRequest(to="keras", push="me/moat")
        request.require(offline=False, synthetic=False)
        done = run_export(toy_source(path, MOAT), request)
    assert done.ok, done.verdict
    assert done.pushed == f"{server.url}/me/moat/commit/{COMMIT}"
    assert not done.path.exists()
    assert server.files.keys() == {"README.md", "config.json", "metadata.json", "model.weights.h5"}
    card = server.files["README.md"].decode()
    assert "library_name: keras\n" in card
    assert 'keras.saving.load_model("hf://me/moat")' in card

    def download(repo_id: str, **_: Any) -> str:
        assert repo_id == "me/moat"
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        for name, content in {**server.files, ".gitattributes": b""}.items():
            (snapshot / name).write_bytes(content)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    opened = keras.saving.load_model("hf://me/moat")
    require_same(opened, ckptkit.create_model(MOAT, "keras", checkpoint=path))


CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "pooling over 3 pixels": (MOAT, {"pool_size": 3}),
    "windows": (MOAT, {"window_size": {"2": 2, "3": 2}}),
    "windows, the last block global": (MOAT, {"window_size": [2, 2], "global_attention": True}),
    "the gate's activation once": (MOGANET, {"attn_force_fp32": False}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow if one == "windows" else ()) for one in CONFIGURATIONS],
)
def test_the_configuration_has_every_setting(name: str, tmp_path: Path):
    variant, settings = CONFIGURATIONS[name]
    source = toy_source(toy_file(tmp_path, variant), variant, **settings)
    for features in (False, True):
        config, _ = whole._described(source, features=features)
        built = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        original = source.model("keras", features_only=features)
        assert type(built) is type(original)
        assert built.get_config() == original.get_config()
        assert built.features_only is features
        assert built.resolution == (SIDE, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_setting_survives(name: str, tmp_path: Path):
    variant, settings = CONFIGURATIONS[name]
    path = toy_file(tmp_path, variant)
    done = export(toy_source(path, variant, **settings), tmp_path / "m.keras")
    assert done.ok, done.verdict
    opened = keras.saving.load_model(tmp_path / "m.keras")
    options = SETTINGS[variant] | settings
    require_same(opened, ckptkit.create_model(variant, "keras", checkpoint=path, **options))
    assert all(done.details["metadata"]["settings"][key] == value for key, value in settings.items())


def test_maps_of_the_stages(tmp_path: Path):
    path = toy_file(tmp_path, MOAT)
    done = export(toy_source(path, MOAT), tmp_path / "m.keras", features=True)
    assert [stage["name"] for stage in done.details["check"]["batch"]] == list(STAGES[MOAT])
    opened = keras.saving.load_model(tmp_path / "m.keras")
    require_same(opened, ckptkit.create_model(MOAT, "keras", checkpoint=path, features_only=True))


@pytest.mark.slow
def test_without_position_embedding(tmp_path: Path):
    path = write_checkpoint(Synthetic(MOAT, pos_emb=False), tmp_path / "m.ckpt", force=True)
    assert export(toy_source(path, MOAT), tmp_path / "m.keras").ok
    opened = keras.saving.load_model(tmp_path / "m.keras")
    assert opened.pos_emb is False
    require_same(opened, ckptkit.create_model(MOAT, "keras", checkpoint=path))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"resolution": 96}, {"head": False}], ids=str)
def test_conversions_with_another_structure(options: dict[str, Any], tmp_path: Path):
    """Resized position tables; no head."""
    path = toy_file(tmp_path, MOAT)
    ckptkit.convert(path, to="safetensors", output=tmp_path / "c.safetensors", **options)
    source = replace(source_of(tmp_path / "c.safetensors"), synthetic=False)
    done = export(source, tmp_path / "m.keras")
    assert done.ok, done.verdict
    opened = keras.saving.load_model(tmp_path / "m.keras")
    classes = {} if options.get("head", True) else {"num_classes": None}
    original = ckptkit.create_model(MOAT, "keras", checkpoint=tmp_path / "c.safetensors", **classes)
    require_same(opened, original)


def test_a_model_that_does_not_agree_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = whole._described

    def planted(source: Any, **how: Any) -> Any:
        config, version = real(source, **how)
        return {**config, "config": {**config["config"], "attn_force_fp32": False}}, version

    monkeypatch.setattr(whole, "_described", planted)
    source = toy_source(toy_file(tmp_path, MOGANET), MOGANET)
    for name in ("m.keras", "folder"):
        done = export(source, tmp_path / name)
        assert (done.ok, done.files) == (False, ())
        assert "DISAGREES with PyTorch at logits" in done.verdict
    assert not [one.name for one in tmp_path.iterdir() if not one.name.startswith("toy-")]


def test_what_is_there_is_not_replaced(tmp_path: Path):
    source = toy_source(toy_file(tmp_path, MOGANET), MOGANET)
    (tmp_path / "m.keras").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("x")
    for name in ("m.keras", "folder"):
        with pytest.raises(UsageError, match="exists already"):
            export(source, tmp_path / name, dry_run=True)
        assert export(source, tmp_path / name, dry_run=True, force=True).files
    (tmp_path / "folder" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        export(source, tmp_path / "folder", force=True)


@pytest.mark.slow
def test_inspection_says_what_it_is(tmp_path: Path):
    path = write_safetensors(tmp_path / "t.safetensors", trained("tiny-moat0"), entry="tiny-moat0-256")
    assert export(source_of(path, resolution=SIDE), tmp_path / "m.keras").ok
    with open_reader(tmp_path / "m.keras") as reader:
        assert reader.format == "keras"
        assert (reader.metadata["variant"], reader.metadata["entry"]) == ("tiny-moat0", "tiny-moat0-256")
        assert "source_sha256" in reader.metadata


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tiny-moat0", "moganet-xt"])
def test_one_import_is_enough_in_a_process_of_its_own(variant: str, tmp_path: Path):
    settings = {"attn_force_fp32": True} if variant == "moganet-xt" else {}
    path = write_safetensors(tmp_path / "t.safetensors", trained(variant))
    source = source_of(path, resolution=SIDE, settings=settings)
    assert export(source, tmp_path / "m.keras").ok
    np.save(tmp_path / "images.npy", images())
    program = (
        "import ckptkit.keras, keras, numpy\n"
        "model = keras.saving.load_model('m.keras')\n"
        "numpy.save('logits.npy', numpy.asarray(model(numpy.load('images.npy'))))\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)
    model = ckptkit.create_model(variant, "keras", checkpoint=path, **settings)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), computed(model)[0], rtol=0, atol=1e-6)


class Unregistered(keras.Model):  # type: ignore[misc]
    """A family's model that Keras does not know."""


@keras.saving.register_keras_serializable(package="ckptkit_tests")
class WithoutConfig(keras.Model):  # type: ignore[misc]
    """A family's model that does not say how it was made."""

    def __init__(self, stride: Any) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Unregistered, r"of family moat \(Unregistered\) is not registered with Keras"),
        (lambda: WithoutConfig(object()), r"of family moat \(WithoutConfig\) has no get_config"),
    ],
    ids=["unregistered", "no get_config"],
)
def test_models_that_keras_could_not_open_are_refused(model: Any, says: str, tmp_path: Path):
    class Source:
        family = get_family("moat")

        def model(self, *_: Any, **__: Any) -> Any:
            return model()

    with pytest.raises(UsageError, match=says):
        whole._described(Source(), features=False)  # type: ignore[arg-type]


def test_a_family_without_names_in_keras_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = toy_source(toy_file(tmp_path, MOGANET), MOGANET)
    layouts = {name: one for name, one in source.family.layouts.items() if name != "keras-h5"}
    monkeypatch.setattr(type(source.family), "layouts", layouts)
    with pytest.raises(UsageError, match="family moganet has no layout keras-h5"):
        export(source, tmp_path / "m.keras")
