"""Names in Keras' weights files, made from those of the keras layout."""

from __future__ import annotations

import pytest

from ckptkit.families.base import Structure, get_family
from ckptkit.families.layouts import rules_of_keras_file
from ckptkit.rules.language import Rule

PLACES = {"net/fc": "layers/dense", "net/head": "head"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("net/fc/kernel", "layers/dense/vars/0"),
        ("net/fc/bias", "layers/dense/vars/1"),
        ("net/head/norm/moving_variance", "head/norm/vars/3"),
    ],
)
def test_variables_are_numbered_under_their_layer(name, expected):
    (rule,) = rules_of_keras_file([Rule("c", name, "linear", aliases=("old",))], PLACES)
    assert rule == Rule("c", expected, "linear")


def test_variables_keras_has_not_get_no_name():
    assert rules_of_keras_file([Rule("c", "net/fc/num_batches_tracked")], PLACES) == ()


@pytest.mark.parametrize("name", ["other/kernel", "net/fc2/kernel", "net/kernel"])
def test_an_unknown_place_is_an_error(name):
    with pytest.raises(ValueError, match="unpack"):
        rules_of_keras_file([Rule("c", name)], PLACES)


@pytest.mark.parametrize(
    ("family", "variant", "canonical", "external"),
    [
        (
            "moganet",
            "moganet-xt",
            "patch_embed1.projection.4.running_mean",
            "layers/stem_embed/norm_1/vars/2",
        ),
        ("moganet", "moganet-xt", "patch_embed2.projection.weight", "layers/patch_embed/projection/vars/0"),
        ("moganet", "moganet-xt", "patch_embed4.norm.bias", "layers/patch_embed_2/norm/vars/1"),
        ("moganet", "moganet-xt", "blocks1.0.layer_scale_2", "blocks/moga_block/vars/1"),
        ("moganet", "moganet-xt", "blocks3.4.attn.sigma.scale", "blocks/moga_block_10/attn/sigma/vars/0"),
        ("moganet", "moganet-xl", "blocks4.3.mlp.fc1.bias", "blocks/moga_block_59/mlp/fc1/vars/1"),
        ("moganet", "moganet-xt", "norm1.weight", "layers/batch_normalization/vars/0"),
        ("moganet", "moganet-xt", "norm4.running_var", "layers/batch_normalization_3/vars/3"),
        ("moganet", "moganet-xt", "head.bias", "head/vars/1"),
        ("moat", "tiny-moat0", "stem.norm_0.bias", "layers/stem/norm_0/vars/1"),
        ("moat", "tiny-moat0", "stages.0.0.se.reduce.weight", "blocks/mb_conv_block/se/reduce_conv2d/vars/0"),
        ("moat", "tiny-moat0", "stages.1.2.pre_norm.weight", "blocks/mb_conv_block_4/pre_norm/vars/0"),
        ("moat", "tiny-moat0", "stages.2.0.attention.q.bias", "blocks/moat_block/attention/q/vars/1"),
        (
            "moat",
            "moat4",
            "stages.3.1.attention.relative_position_embedding",
            "blocks/moat_block_29/attention/vars/0",
        ),
        ("moat", "tiny-moat0", "norm.weight", "final_layer_norm/vars/0"),
        ("moat", "tiny-moat0", "head.weight", "layers/conv2d/vars/0"),
    ],
)
def test_names_as_keras_3_15_saved_them(family, variant, canonical, external):
    structure = Structure(pos_emb=family == "moat")
    table = get_family(family).table("keras-h5", variant, structure)
    assert table.by_canonical[canonical].external == external


@pytest.mark.parametrize("family", ["moat", "moganet"])
def test_every_variant_has_one_name_a_tensor(family):
    family = get_family(family)
    for variant in family.variants:
        structure = Structure(pos_emb=family.has_pos_emb)
        table = family.table("keras-h5", variant, structure)
        stored = {
            row.canonical
            for row in family.table("keras", variant, structure).bindings
            if row.part != "counter"
        }
        assert table.by_canonical.keys() == stored
        assert {row.external for row in table.bindings} == table.by_external.keys()
