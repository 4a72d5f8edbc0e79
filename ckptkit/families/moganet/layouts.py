"""How MogaNet's tensors are called in its two PyTorch releases, in Keras 3 and in its files, and by others.

The names in kecam and birder: keras_cv_attention_models 1.4.3 (``moganet/moganet.py``) and birder at 9a7f288
(``birder/net/moganet.py``), run and compared tensor by tensor.
"""

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
from ckptkit.families.moganet.config import EMBEDDING_BIAS, MOGANET_DEFINITIONS
from ckptkit.rules.language import CopyNaming, Ignore, Layout, Rule

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

_PLAIN_GATE = {"attn_force_fp32": False}

_STACK = "stack{stage}_"
_KECAM_BLOCK = "stack{stage}_block{ordinal}_"

KECAM = Layout(
    "kecam",
    tensorflow_rules(
        [one for one in MOGANET_DEFINITIONS if one.part != "counter"],
        {
            f"{_PATCH}.projection.0": "stem_1_conv",
            f"{_PATCH}.projection.1": "stem_1_bn",
            f"{_PATCH}.projection.3": "stem_2_conv",
            f"{_PATCH}.projection.4": "stem_2_bn",
            f"{_PATCH}.projection": f"{_STACK}downsample_conv",
            f"{_PATCH}.norm": f"{_STACK}downsample_bn",
            f"{_BLOCK}.layer_scale_1": f"{_KECAM_BLOCK}attn_gamma",
            f"{_BLOCK}.layer_scale_2": f"{_KECAM_BLOCK}mlp_gamma",
            f"{_BLOCK}.norm1": f"{_KECAM_BLOCK}pre_attn_bn",
            f"{_BLOCK}.norm2": f"{_KECAM_BLOCK}mlp_bn",
            f"{_BLOCK}.attn.proj_1": f"{_KECAM_BLOCK}pre_attn_conv",
            f"{_BLOCK}.attn.gate": f"{_KECAM_BLOCK}attn_gate_conv",
            f"{_BLOCK}.attn.value.DW_conv0": f"{_KECAM_BLOCK}attn_value_first_dw_conv",
            f"{_BLOCK}.attn.value.DW_conv1": f"{_KECAM_BLOCK}attn_value_second_dw_conv",
            f"{_BLOCK}.attn.value.DW_conv2": f"{_KECAM_BLOCK}attn_value_third_dw_conv",
            f"{_BLOCK}.attn.value.PW_conv": f"{_KECAM_BLOCK}attn_value_out_conv",
            f"{_BLOCK}.attn.proj_2": f"{_KECAM_BLOCK}attn_gate_value_conv",
            f"{_BLOCK}.attn.sigma": f"{_KECAM_BLOCK}pre_attn_decompose_affine",
            f"{_BLOCK}.mlp.fc1": f"{_KECAM_BLOCK}mlp_1_conv",
            f"{_BLOCK}.mlp.dwconv": f"{_KECAM_BLOCK}mlp_2_dw_conv",
            f"{_BLOCK}.mlp.fc2": f"{_KECAM_BLOCK}mlp_3_conv",
            f"{_BLOCK}.mlp.decompose": f"{_KECAM_BLOCK}mlp_decompose_conv",
            f"{_BLOCK}.mlp.sigma": f"{_KECAM_BLOCK}mlp_decompose_affine",
            "norm{stage}": f"{_STACK}output_bn",
            "head": "predictions",
        },
        others={
            f"{_BLOCK}.attn.sigma.scale": ("weight", "channels"),
            f"{_BLOCK}.mlp.sigma.scale": ("weight", "channels"),
        },
        depthwise="depthwise_kernel",
        alone="weight",
    ),
    ignores=TRAINING,
    lacks={"counter": STEP_COUNTERS},
    settings=_PLAIN_GATE,
)
"""keras_cv_attention_models: a layer for each operation, whose blocks count from 1."""

_BIRDER_STAGE = "body.stage{stage}."
_BIRDER: tuple[tuple[str, str], ...] = (
    (f"{_PATCH}.projection.0.", "stem.0.0."),
    (f"{_PATCH}.projection.1.", "stem.0.1."),
    (f"{_PATCH}.projection.3.", "stem.1.0."),
    (f"{_PATCH}.projection.4.", "stem.1.1."),
    (f"{_PATCH}.projection.", f"{_BIRDER_STAGE}0.0."),
    (f"{_PATCH}.norm.", f"{_BIRDER_STAGE}0.1."),
    (f"{_BLOCK}.attn.value.DW_conv", f"{_BIRDER_STAGE}{{member}}.attn.value.dw_conv"),
    (f"{_BLOCK}.attn.value.PW_conv", f"{_BIRDER_STAGE}{{member}}.attn.value.pw_conv"),
    (f"{_BLOCK}.", f"{_BIRDER_STAGE}{{member}}."),
    ("norm{stage}.", f"{_BIRDER_STAGE}{{member}}."),
    ("head.", "classifier."),
)
"""How a name begins, and what birder has instead; the first that fits counts."""


def _in_birder(name: str) -> str:
    own, theirs = next(pair for pair in _BIRDER if name.startswith(pair[0]))
    return theirs + name.removeprefix(own)


BIRDER = Layout(
    "birder",
    tuple(Rule(one.name, _in_birder(one.name)) for one in MOGANET_DEFINITIONS),
    ignores=TRAINING,
    around=AROUND,
    zeros={
        EMBEDDING_BIAS: Ignore("embedding biases", "", "birder's convolutions before a norm have no bias")
    },
    settings=_PLAIN_GATE,
)
"""birder: a stage is one sequence, of the embedding (but for the first stage), the blocks and the norm."""

MOGANET_LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (TORCH, OPENMIXUP, KERAS, KERAS_H5, KECAM, BIRDER)
}
