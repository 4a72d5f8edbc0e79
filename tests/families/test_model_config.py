"""Reading the config of an exported folder: what does not fit is refused in one line."""

from __future__ import annotations

import json

import pytest

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.export.hub import export_hf as export
from ckptkit.export.targets import ExportRequest
from ckptkit.families.model_config import open_exported, read_config
from ckptkit.models import create_model
from ckptkit.registry.loading import load_registry
from tests.support.exporting import MOAT, MOGANET, source_of, trained, write_safetensors


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    file = write_safetensors(folder / "m.safetensors", trained(MOGANET))
    export(source_of(file, load_registry()["moganet-xt-224"]), folder / "moganet", ExportRequest())
    file = write_safetensors(folder / "t.safetensors", trained(MOAT, num_classes=10))
    export(source_of(file), folder / "moat", ExportRequest())
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    """A folder beside its weights whose config can be changed."""

    def changed(name="moganet", **fields):
        (tmp_path / "model.safetensors").symlink_to(exported / name / "model.safetensors")
        said = json.loads((exported / name / "config.json").read_text(encoding="utf-8"))
        for path, value in fields.items():
            *outer, last = path.split("__")
            place = said
            for key in outer:
                place = place[key]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
        return tmp_path

    return changed


def test_a_sound_folder_is_read(exported):
    found = open_exported(exported / "moat")
    assert (found.config.variant, found.config.num_classes, found.config.pos_emb) == (MOAT, 10, True)
    as_published = {"se_activation": "swish", "layer_norm_epsilon": 1e-5, "input_order": "rgb"}
    of_the_variant = {"pool_size": 2, "window_size": None, "global_attention": False}
    assert found.config.settings == of_the_variant | as_published
    assert found.config.preprocessing.size == (256, 256)
    assert found.weights == exported / "moat" / "model.safetensors"


def test_text_and_reading_are_each_others_inverse(exported):
    config = read_config(exported / "moganet")
    assert config.text() == (exported / "moganet" / "config.json").read_text(encoding="utf-8")


FAULTS = [
    ({"num_classes": 10}, r"it says num_classes 10, but model\.safetensors has 1000"),
    ({"num_classes": None}, r"it says num_classes null, but model\.safetensors has 1000"),
    ({"variant": "moganet-t"}, r"it says moganet-t, but .*model\.safetensors"),
    ({"variant": "moganet-xxl"}, r"unknown variant 'moganet-xxl'"),
    ({"model_type": "moat"}, r"it says model_type moat, but moganet-xt is of moganet"),
    ({"library_name": "timm"}, r"not written by ckptkit \(it is of a moganet model\)"),
    (
        {"settings__attn_force_fp32": ...},
        r"its settings do not fit family moganet: missing \['attn_force_fp32'\]",
    ),
    ({"settings__pool_size": 2}, r"its settings do not fit family moganet: unknown \['pool_size'\]"),
    ({"preprocessing__size": [0, 224]}, r"preprocessing\.size\.0: "),
    ({"preprocessing__normalization": "none"}, r"preprocessing\.normalization: "),
    ({"preprocessing": ...}, r"preprocessing: Field required"),
    ({"variant": 3}, r"variant: "),
    ({"settings": []}, r"settings: "),
]


@pytest.mark.parametrize(("fields", "message"), FAULTS, ids=[str(fields) for fields, _ in FAULTS])
def test_a_config_that_does_not_fit_is_refused(copy, fields, message):
    with pytest.raises(FormatError, match=rf"config\.json: {message}") as refused:
        open_exported(copy(**fields))
    assert "\n" not in str(refused.value)


def test_a_config_without_position_embedding_does_not_fit_tables(copy):
    with pytest.raises(FormatError, match=r"it says pos_emb false, but model\.safetensors has true"):
        open_exported(copy("moat", pos_emb=False))


def test_fields_of_a_later_version_do_no_harm(copy):
    assert open_exported(copy(something_new=[1])).config.variant == MOGANET


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[1]", "not written by ckptkit"),
        (b"[" * 200_000, "not JSON"),
        (b" " * (5 << 20), "larger than 4194304 bytes"),
        (b'{"model_type": "bert"}', r"not written by ckptkit \(it is of a bert model\)"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path, raw, message):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(FormatError, match=message):
        read_config(tmp_path)


def test_what_is_missing_is_named(exported, tmp_path):
    with pytest.raises(NotFoundError, match=r"has no config\.json; 'ckptkit export ID --to hf'"):
        create_model(tmp_path)
    (tmp_path / "config.json").write_bytes((exported / "moat" / "config.json").read_bytes())
    with pytest.raises(NotFoundError, match=r"has a config\.json but no model\.safetensors"):
        create_model(tmp_path)


def test_a_file_in_place_of_a_folder_is_said(exported):
    with pytest.raises(UsageError, match=r"m\.safetensors is a file; .*checkpoint="):
        create_model(str(exported / "m.safetensors"))


def test_a_folder_here_is_found_by_its_name_alone(exported, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(exported)
    model = create_model("moat", features_only=True)
    assert model.loaded.variant == MOAT


def test_a_second_checkpoint_is_refused(exported):
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="has weights of its own"):
        create_model(str(exported / "moat"), checkpoint=exported / "m.safetensors")
