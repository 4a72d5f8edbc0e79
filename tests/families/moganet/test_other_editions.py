"""MogaNet as others publish it: kecam for Keras 2, birder for PyTorch.

What is expected is of the publishers' own code, run elsewhere: ``kecam_rules.json`` pairs its names with the
timm-style ones, ``golden_kecam_xtiny_224.npz`` has its logits of the recipe weights. birder's names are
spelled out here from its network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError
from ckptkit.families.base import Structure, get_family
from tests.support.hdf5_files import h5py, legacy_file, legacy_weights
from tests.support.moganet_weights import (
    GOLDEN_FOLDER,
    PARAMETER_COUNTS,
    VARIANTS,
    golden_input,
    recipe_state,
    tensor_rows,
)

TOLERANCE = 2e-6
"""Of the largest recorded logit, as for the authors' code; 4.9e-7 is measured."""

FAMILY = get_family("moganet")
KECAM = ("moganet-xt", "moganet-t", "moganet-s", "moganet-b", "moganet-l")
WEIGHTS = {"moganet-xt": 660, "moganet-t": 728, "moganet-s": 694, "moganet-b": 1238, "moganet-l": 2020}
"""``len(model.weights)`` in kecam."""

TURNED: dict[str, Callable[[Any], Any]] = {
    "HWIO->OIHW": lambda tensor: tensor.transpose(2, 3, 1, 0),
    "HWC1->C1HW": lambda tensor: tensor.transpose(2, 3, 0, 1),
    "IO->OI": np.transpose,
    "C->1C11": np.ravel,
    "same": lambda tensor: tensor,
}
"""From PyTorch's axes to those of Keras."""


@cache
def kecam_rules() -> dict[str, tuple[str, str]]:
    """Canonical name, with its numbers as placeholders → name in kecam and change of axes."""
    listed = json.loads((GOLDEN_FOLDER / "kecam_rules.json").read_text())
    return {canonical: (name, turned) for name, (canonical, turned) in listed.items()}


def in_kecam(name: str) -> tuple[str, str]:
    """A tensor's name there, and the change of axes."""
    found = re.fullmatch(r"(\D*)(\d)(?:\.(\d+)\.([a-z].*)|(\..+))|(head.+)", name)
    assert found is not None, name
    front, stage, block, leaf, rest, head = found.groups()
    if head:
        return kecam_rules()[head]
    own = kecam_rules().get(name)
    if own is None:
        template = f"{front}{{s}}.{{b-1}}.{leaf}" if block else f"{front}{{s}}{rest}"
        own = kecam_rules()[template]
    return own[0].format(s=stage, b=int(block or 0) + 1), own[1]


def kecam_layers(variant: str, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A model's layers with their weights, as kecam's Keras 2 saves them, and some that have none."""
    layers: dict[str, dict[str, Any]] = {"input_1": {}}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        theirs, turned = in_kecam(name)
        layers.setdefault(theirs.split("/")[0], {})[f"{theirs}:0"] = TURNED[turned](tensor)
    return {**layers, "tf.split_18": {}}


@pytest.mark.parametrize("variant", KECAM)
def test_kecams_names_and_shapes(variant):
    table = FAMILY.table("kecam", variant, Structure(False))
    state = {
        row.name: np.broadcast_to(np.float32(0), row.shape)
        for row in tensor_rows(variant)
    }  # fmt: skip
    layers = kecam_layers(variant, state)
    wanted = {name[:-2]: array.shape for held in layers.values() for name, array in held.items()}
    assert {row.external: row.external_shape for row in table.bindings} == wanted
    assert len(wanted) == WEIGHTS[variant]
    assert table.parameters == PARAMETER_COUNTS[variant]


@pytest.fixture(scope="module")
def state() -> Mapping[str, Any]:
    return recipe_state("moganet-xt")


@pytest.fixture(scope="module")
def kecam_file(state, tmp_path_factory) -> Path:
    return legacy_file(
        tmp_path_factory.mktemp("kecam") / "moganet_xtiny_imagenet.h5",
        kecam_layers("moganet-xt", state),
        fixed=True,
    )


def error(model: Any) -> float:
    torch = pytest.importorskip("torch")
    with np.load(GOLDEN_FOLDER / "golden_kecam_xtiny_224.npz") as golden:
        logits = golden["logits"]
    images = torch.from_numpy(golden_input(224, 224)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours = model(images).numpy()
    return float(np.abs(ours - logits).max() / np.abs(logits).max())


def test_kecams_logits(kecam_file):
    """The file says which gate its code has: nobody needs to be asked."""
    model = ckptkit.create_model("moganet-xt", checkpoint=kecam_file)
    assert model.loaded.settings == {"attn_force_fp32": False}
    assert error(model) <= TOLERANCE


@pytest.mark.parametrize(
    ("mistake", "least"), [("the other gate", 1e-2), ("blocks off by one", 1e-2), ("a kernel turned", 1e-4)]
)
def test_mistakes_show(kecam_file, tmp_path, mistake, least):
    if mistake == "the other gate":
        model = ckptkit.create_model("moganet-xt", checkpoint=kecam_file, attn_force_fp32=True)
    else:
        damaged = tmp_path / "damaged.h5"
        damaged.write_bytes(kecam_file.read_bytes())
        with h5py.File(damaged, "a") as file:
            if mistake == "blocks off by one":
                names = [f"stack1_block{n}_mlp_1_conv/stack1_block{n}_mlp_1_conv/kernel:0" for n in (1, 2)]
                first, second = (file[name][()] for name in names)
                file[names[0]][...], file[names[1]][...] = second, first
            else:
                name = "stack3_block2_attn_value_third_dw_conv"
                kernel = file[f"{name}/{name}/depthwise_kernel:0"]
                kernel[...] = kernel[()].transpose(1, 0, 2, 3)
        model = ckptkit.create_model("moganet-xt", checkpoint=damaged)
    assert error(model) > max(least, 10 * TOLERANCE)


def test_a_whole_model_too(state, tmp_path):
    """As ``model.save`` writes it."""
    path = tmp_path / "whole.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional"})
        legacy_weights(file.create_group("model_weights"), kecam_layers("moganet-xt", state))
    seen = ckptkit.inspect(path)
    assert (seen.format, seen.layout, seen.variant) == ("keras2", "kecam", "moganet-xt")
    loaded = ckptkit.load(path)
    wanted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert loaded.keys() == wanted.keys()
    assert all(np.array_equal(loaded[name], tensor) for name, tensor in wanted.items())


def test_back_to_a_file_that_kecam_takes(kecam_file, tmp_path):
    """By layer names and, in each layer, in the order of its weights; kecam 1.4.3 loaded such a file.

    Its ``load_weights(…, by_name=True)`` with tf-keras 2.21 gave the recorded logits to the last bit.
    """
    canonical = ckptkit.convert(kecam_file, output=tmp_path / "a.safetensors")
    back = ckptkit.convert(canonical, output=tmp_path / "b.h5")
    with h5py.File(kecam_file) as theirs, h5py.File(back) as ours:
        listed = [name.decode() for name in ours.attrs["layer_names"]]
        with_weights = [name for name in theirs if len(theirs[name].attrs["weight_names"])]
        assert sorted(listed) == with_weights
        for layer in listed:
            names = ours[layer].attrs["weight_names"].tolist()
            assert names == theirs[layer].attrs["weight_names"].tolist()
            for name in map(bytes.decode, names):
                assert np.array_equal(ours[layer][name][()], theirs[layer][name][()])


def write(path: Path, tensors: Mapping[str, Any], **metadata: str) -> Path:
    from safetensors.numpy import save_file

    save_file(dict(tensors), path, metadata)
    return path


@pytest.mark.parametrize("layout", ["kecam", "birder"])
@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"attn_force_fp32": "true"}, "attn_force_fp32 is true; code that reads layout {} has false"),
        ({}, "attn_force_fp32 is not known; code that reads layout {} has false"),
    ],
    ids=["another function", "not known"],
)
def test_another_function_is_refused(without_biases, tmp_path, layout, metadata, said):
    output = tmp_path / {"kecam": "b.h5", "birder": "b.pt"}[layout]
    source = write(tmp_path / "a.safetensors", without_biases, **metadata)
    with pytest.raises(ConversionError, match=said.format(layout)):
        ckptkit.convert(source, output=output, layout=layout)
    assert not output.exists()


# -- birder --------------------------------------------------------------------------------------------------

BIASES = (
    "patch_embed1.projection.0.bias",
    "patch_embed1.projection.3.bias",
    *(f"patch_embed{stage}.projection.bias" for stage in (2, 3, 4)),
)


@pytest.fixture(scope="module")
def without_biases(state) -> dict[str, Any]:
    """The recipe's weights, the five biases that birder has not being zeros."""
    return {name: np.zeros_like(array) if name in BIASES else array for name, array in state.items()}


def birder_names(variant: str) -> Iterator[str]:
    """birder's names of a variant's tensors, in the order of the timm-style ones."""
    depths = VARIANTS[variant][1]
    for row in tensor_rows(variant):
        if row.name in BIASES:
            continue
        part, _, rest = row.name.partition(".")
        kind, stage = part.rstrip("1234"), int(part[-1]) if part[-1].isdigit() else 0
        if kind == "head":
            yield f"classifier.{rest}"
        elif kind == "patch_embed" and stage == 1:
            number, leaf = rest.removeprefix("projection.").split(".")
            yield f"stem.{int(number) // 3}.{int(number) % 3}.{leaf}"
        elif kind == "patch_embed":
            module, leaf = rest.split(".")
            yield f"body.stage{stage}.0.{int(module == 'norm')}.{leaf}"
        elif kind == "blocks":
            block, _, rest = rest.partition(".")
            rest = rest.replace("DW_conv", "dw_conv").replace("PW_conv", "pw_conv")
            yield f"body.stage{stage}.{int(block) + (stage > 1)}.{rest}"
        else:
            yield f"body.stage{stage}.{depths[stage - 1] + (stage > 1)}.{rest}"


@pytest.mark.parametrize(("variant", "count"), [("moganet-xt", 700), ("moganet-s", 736)])
def test_birders_names(variant, count):
    table = FAMILY.table("birder", variant, Structure(False))
    own = [row for row in tensor_rows(variant) if row.name not in BIASES]
    pairs = dict(zip((row.name for row in own), birder_names(variant), strict=True))
    assert {row.canonical: row.external for row in table.bindings} == pairs
    assert all(row.external_shape == row.canonical_shape for row in table.bindings)
    assert len(table.bindings) == count


@pytest.fixture
def birder_file(without_biases, tmp_path) -> Path:
    torch = pytest.importorskip("torch")
    kept = [torch.from_numpy(np.array(a)) for n, a in without_biases.items() if n not in BIASES]
    tree = {
        "birder_version": "0.8.4",
        "task": "image_classification",
        "state": dict(zip(birder_names("moganet-xt"), kept, strict=True)),
        "class_to_idx": {"Common kingfisher": 0},
        "rgb_stats": {"mean": (0.5191, 0.5306, 0.4877), "std": (0.2316, 0.2304, 0.2588)},
    }
    torch.save(tree, tmp_path / "moganet_xt.pt")
    return tmp_path / "moganet_xt.pt"


def test_birder_is_the_network_with_five_biases_of_zero(without_biases, birder_file):
    """Bit for bit: nothing else differs."""
    torch = pytest.importorskip("torch")
    from ckptkit.families.filling import load_state
    from tests.support.moganet_torch import recipe_model

    model = ckptkit.create_model("moganet-xt", checkpoint=birder_file)
    assert model.loaded.settings == {"attn_force_fp32": False}
    assert (model.loaded.initialised, model.loaded.misfits) == ((), ())
    wanted = recipe_model()
    load_state(wanted, without_biases)
    images = torch.from_numpy(golden_input(64, 64)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert torch.equal(model(images), wanted(images))


@pytest.mark.parametrize(
    ("mean", "std", "normalization", "warns"),
    [
        ((0.5191, 0.5306, 0.4877), (0.2316, 0.2304, 0.2588), "birds", False),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet", False),  # although the entry says birds
        ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2), "birds", True),
    ],
)
def test_pictures_for_a_file_of_birder_are_prepared_as_it_says(birder_file, mean, std, normalization, warns):
    import torch

    from ckptkit.analysis.model_source import SourceRequest, open_source
    from ckptkit.workspace import Located, Workspace

    tree = torch.load(birder_file, weights_only=True)
    torch.save({**tree, "rgb_stats": {"mean": mean, "std": std}}, birder_file)
    said = []
    entry = ckptkit.registry()["moganet-xt-256-birder-il"]
    located = Located(birder_file, entry)
    source = open_source(located, Workspace(warn=said.append), SourceRequest(birder_file))
    assert (source.preprocessing.normalization, len(said)) == (normalization, warns)
    assert "0.4, 0.5, 0.6" in "".join(said) or not warns


def test_from_birder_and_back(birder_file, without_biases, tmp_path):
    there = ckptkit.convert(birder_file, output=tmp_path / "a.safetensors")
    from safetensors.numpy import load_file

    found = load_file(there)
    assert found.keys() == without_biases.keys()
    assert all(np.array_equal(found[name], without_biases[name]) for name in found)
    back = ckptkit.convert(there, output=tmp_path / "b.pt", layout="birder")
    ours, theirs = (ckptkit.load(path, layout="as-is") for path in (back, birder_file))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_bias_that_birder_cannot_have_is_not_lost(without_biases, tmp_path):
    bias = np.zeros_like(without_biases[BIASES[2]])
    bias[3] = -1e-30
    source = write(tmp_path / "a.safetensors", {**without_biases, BIASES[2]: bias}, attn_force_fp32="false")
    with pytest.raises(ConversionError, match=f"with other values than 0: '{BIASES[2]}'"):
        ckptkit.convert(source, output=tmp_path / "b.pt", layout="birder")
