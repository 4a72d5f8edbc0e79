"""How MogaNet's tensors are called in its two PyTorch releases, in Keras 3 and in its files."""

from __future__ import annotations

from ckptkit.families.keras_files import STEP_COUNTERS, rules_of_keras_file
from ckptkit.families.leftovers import AROUND, AROUND_DEEPLAB2, TF_AVERAGES, TRAINING
from ckptkit.families.moganet.config import MOGANET_DEFINITIONS
from ckptkit.rules.language import CopyNaming, Layout, Rule

_BLOCK = "blocks{stage}.{block}"
_KERAS_BLOCK = "moganet/blocks{stage}_{block}"
_PATCH = "patch_embed{stage}"
_KERAS_PATCH = "moganet/patch_embed{stage}"


def _conv(canonical: str, external: str, op: str = "conv") -> list[Rule]:
    return [
        Rule(f"{canonical}.weight", f"{external}/kernel", op),
        Rule(f"{canonical}.bias", f"{external}/bias"),
    ]


def _batch_norm(canonical: str, external: str) -> list[Rule]:
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
        "num_batches_tracked": "num_batches_tracked",
    }
    return [Rule(f"{canonical}.{ours}", f"{external}/{theirs}") for ours, theirs in names.items()]


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
    (
        *_conv(f"{_PATCH}.projection.0", f"{_KERAS_PATCH}/conv_0"),
        *_batch_norm(f"{_PATCH}.projection.1", f"{_KERAS_PATCH}/norm_0"),
        *_conv(f"{_PATCH}.projection.3", f"{_KERAS_PATCH}/conv_1"),
        *_batch_norm(f"{_PATCH}.projection.4", f"{_KERAS_PATCH}/norm_1"),
        *_conv(f"{_PATCH}.projection", f"{_KERAS_PATCH}/projection"),
        *_batch_norm(f"{_PATCH}.norm", f"{_KERAS_PATCH}/norm"),
        Rule(f"{_BLOCK}.layer_scale_1", f"{_KERAS_BLOCK}/layer_scale_1", "channels"),
        Rule(f"{_BLOCK}.layer_scale_2", f"{_KERAS_BLOCK}/layer_scale_2", "channels"),
        *_batch_norm(f"{_BLOCK}.norm1", f"{_KERAS_BLOCK}/norm1"),
        *_conv(f"{_BLOCK}.attn.proj_1", f"{_KERAS_BLOCK}/attn/proj_1"),
        *_conv(f"{_BLOCK}.attn.gate", f"{_KERAS_BLOCK}/attn/gate"),
        *_conv(f"{_BLOCK}.attn.value.DW_conv0", f"{_KERAS_BLOCK}/attn/value/dw_conv0", "depthwise"),
        *_conv(f"{_BLOCK}.attn.value.DW_conv1", f"{_KERAS_BLOCK}/attn/value/dw_conv1", "depthwise"),
        *_conv(f"{_BLOCK}.attn.value.DW_conv2", f"{_KERAS_BLOCK}/attn/value/dw_conv2", "depthwise"),
        *_conv(f"{_BLOCK}.attn.value.PW_conv", f"{_KERAS_BLOCK}/attn/value/pw_conv"),
        *_conv(f"{_BLOCK}.attn.proj_2", f"{_KERAS_BLOCK}/attn/proj_2"),
        Rule(f"{_BLOCK}.attn.sigma.scale", f"{_KERAS_BLOCK}/attn/sigma/scale", "channels"),
        *_batch_norm(f"{_BLOCK}.norm2", f"{_KERAS_BLOCK}/norm2"),
        *_conv(f"{_BLOCK}.mlp.fc1", f"{_KERAS_BLOCK}/mlp/fc1"),
        *_conv(f"{_BLOCK}.mlp.dwconv", f"{_KERAS_BLOCK}/mlp/dwconv", "depthwise"),
        *_conv(f"{_BLOCK}.mlp.fc2", f"{_KERAS_BLOCK}/mlp/fc2"),
        *_conv(f"{_BLOCK}.mlp.decompose", f"{_KERAS_BLOCK}/mlp/decompose"),
        Rule(f"{_BLOCK}.mlp.sigma.scale", f"{_KERAS_BLOCK}/mlp/sigma/scale", "channels"),
        *_batch_norm("norm{stage}", "moganet/norm{stage}"),
        *_conv("head", "moganet/head", "linear"),
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
