"""How MogaNet's tensors are called in its two PyTorch releases, in Keras 3 and in its files."""

from __future__ import annotations

from ckptkit.families.layouts import (
    AROUND,
    AROUND_DEEPLAB2,
    STEP_COUNTERS,
    TF_AVERAGES,
    TRAINING,
    rules_of_keras_file,
    tensorflow_rules,
)
from ckptkit.families.moganet.config import MOGANET_DEFINITIONS
from ckptkit.rules.language import CopyNaming, Layout, Rule

_BLOCK = "blocks{stage}.{block}"
_KERAS_BLOCK = "moganet/blocks{stage}_{block}"
_PATCH = "patch_embed{stage}"
_KERAS_PATCH = "moganet/patch_embed{stage}"


TORCH = Layout(
    "torch", tuple(Rule(one.name, one.name) for one in MOGANET_DEFINITIONS), ignores=TRAINING, around=AROUND
)
"""The timm-style release. Its moving averages stand in a state_dict of their own."""

OPENMIXUP = Layout(
    "openmixup",
    tuple(
        Rule(
            one.name, one.name.replace("head.", "head.fc.") if one.part == "head" else f"backbone.{one.name}"
        )
        for one in MOGANET_DEFINITIONS
    ),
    ignores=TRAINING,
    around=AROUND,
    # The EMA hook swaps the copies before it saves: the plain names then hold the moving averages, and its
    # own buffers, named with underscores because a buffer's name has no dots, the weights being trained.
    second_copy=CopyNaming("raw", prefix="ema_", separator="_"),
    headless="torch",
)
"""OpenMixup's release: a classifier around a backbone. Dense-prediction code loads the backbone alone."""

KERAS = Layout(
    "keras",
    tensorflow_rules(
        MOGANET_DEFINITIONS,
        {
            _PATCH: _KERAS_PATCH,
            f"{_PATCH}.projection.0": f"{_KERAS_PATCH}/conv_0",
            f"{_PATCH}.projection.1": f"{_KERAS_PATCH}/norm_0",
            f"{_PATCH}.projection.3": f"{_KERAS_PATCH}/conv_1",
            f"{_PATCH}.projection.4": f"{_KERAS_PATCH}/norm_1",
            _BLOCK: _KERAS_BLOCK,
            f"{_BLOCK}.attn.value.DW_conv0": f"{_KERAS_BLOCK}/attn/value/dw_conv0",
            f"{_BLOCK}.attn.value.DW_conv1": f"{_KERAS_BLOCK}/attn/value/dw_conv1",
            f"{_BLOCK}.attn.value.DW_conv2": f"{_KERAS_BLOCK}/attn/value/dw_conv2",
            f"{_BLOCK}.attn.value.PW_conv": f"{_KERAS_BLOCK}/attn/value/pw_conv",
            "norm{stage}": "moganet/norm{stage}",
            "head": "moganet/head",
        },
    ),
    ignores=TRAINING,
    around=AROUND_DEEPLAB2,
    second_copy=TF_AVERAGES,
)
"""ckptkit's Keras model. BatchNorm's step counters, which Keras has not, ride along as int64 scalars."""

KERAS_H5 = Layout(
    "keras-h5",
    rules_of_keras_file(
        KERAS.rules,
        {
            _KERAS_PATCH: "layers/patch_embed{stage}",
            _KERAS_BLOCK: "blocks/moga_block_{number}",
            "moganet/norm{stage}": "layers/norm{stage}",
            "moganet/head": "head",
        },
    ),
    ignores=TRAINING,
    lacks={"counter": STEP_COUNTERS},
    # Keras calls the items of a list by their class, and numbers each class for itself from the second on.
    renames=(
        ("layers/patch_embed1/", "layers/stem_embed/"),
        ("layers/patch_embed2/", "layers/patch_embed/"),
        ("layers/patch_embed3/", "layers/patch_embed_1/"),
        ("layers/patch_embed4/", "layers/patch_embed_2/"),
        ("layers/norm1/", "layers/batch_normalization/"),
        ("layers/norm2/", "layers/batch_normalization_1/"),
        ("layers/norm3/", "layers/batch_normalization_2/"),
        ("layers/norm4/", "layers/batch_normalization_3/"),
        ("moga_block_0/", "moga_block/"),
    ),
)
"""The weights file of ckptkit's Keras model."""

MOGANET_LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (TORCH, OPENMIXUP, KERAS, KERAS_H5)}
