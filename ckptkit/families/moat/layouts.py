"""How MOAT's tensors are called outside PyTorch: deeplab2's TensorFlow names, Keras 3's, and its files'.

The names of the tagger: SmilingWolf/SW-CV-ModelZoo at 8766d2a, whose code writes the model's published
metadata to the last bit; each was compared.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ckptkit.families.layouts import (
    AROUND,
    AROUND_DEEPLAB2,
    TF_AVERAGES,
    TRAINING,
    rules_of_keras_file,
    tensorflow_rules,
)
from ckptkit.families.moat.config import FIRST_ATTENTION_STAGE, MOAT_DEFINITIONS
from ckptkit.rules.language import Ignore, Layout, Rule

_BLOCK = "stages.{stage}.{block}"
_TF_BLOCK = "moat/block_{stage:02d}_{block:02d}"

_HEADS = {
    f"{_BLOCK}.attention.relative_position_embedding": ("relative_position_embedding", "identity"),
    **{f"{_BLOCK}.attention.{name}.weight": ("weight", "heads_in") for name in "qkv"},
    **{f"{_BLOCK}.attention.{name}.bias": ("bias", "flatten") for name in "qkv"},
    f"{_BLOCK}.attention.o.weight": ("weight", "heads_out"),
}
"""Last names and ops of attention's tensors, which TensorFlow's code keeps by heads."""

_rules = partial(
    tensorflow_rules,
    MOAT_DEFINITIONS,
    {
        "stem": "moat/stem",
        _BLOCK: _TF_BLOCK,
        f"{_BLOCK}.se.reduce": f"{_TF_BLOCK}/se/reduce_conv2d",
        f"{_BLOCK}.se.expand": f"{_TF_BLOCK}/se/expand_conv2d",
        "norm": "moat/final_layer_norm",
        "head": "moat/logits_head",
    },
    others={
        **_HEADS,
        "head.weight": ("kernel", "conv1x1_to_linear"),
    },
    optional="moat/stem/",  # models built in TF2 name the stem's layers without it
)

_NUM_BATCHES_TRACKED = Ignore(
    "num_batches_tracked", r".+\.num_batches_tracked", "counts training steps; unused with a fixed momentum"
)

DEEPLAB2 = Layout(
    "deeplab2",
    _rules(depthwise="depthwise_kernel"),
    ignores=TRAINING,
    around=AROUND_DEEPLAB2,
    second_copy=TF_AVERAGES,
)

KERAS = replace(DEEPLAB2, name="keras", rules=_rules())

KERAS_H5 = Layout(
    "keras-h5",
    rules_of_keras_file(
        KERAS.rules,
        {
            "moat/stem": "layers/stem",
            _TF_BLOCK: "blocks/stage{stage}_block_{number}",
            "moat/final_layer_norm": "final_layer_norm",
            "moat/logits_head": "layers/conv2d",
        },
    ),
    ignores=TRAINING,
    # Keras calls the items of a list by their class, and numbers each class for itself from the second on.
    renames=(
        *((f"blocks/stage{stage}_", "blocks/mb_conv_") for stage in range(FIRST_ATTENTION_STAGE)),
        *((f"blocks/stage{stage}_", "blocks/moat_") for stage in range(FIRST_ATTENTION_STAGE, 4)),
        ("_block_0/", "_block/"),
    ),
)
"""The weights file of ckptkit's Keras model."""

TORCH = Layout(
    "torch",
    tuple(Rule(rule.canonical, rule.canonical) for rule in DEEPLAB2.rules),
    ignores=(_NUM_BATCHES_TRACKED, *TRAINING),
    around=AROUND,
)

_WD_BLOCK = "stage{stage}_block{block}_"

WD_TAGGER = Layout(
    "wd-tagger",
    tensorflow_rules(
        MOAT_DEFINITIONS,
        {
            "stem.conv_0": "root_conv2d_01",
            "stem.norm_0": "root_bn",
            "stem.conv_1": "root_conv2d_02",
            f"{_BLOCK}.shortcut_conv": f"{_WD_BLOCK}mb_shortcut_conv",
            f"{_BLOCK}.pre_norm": f"{_WD_BLOCK}mb_bn_01",
            f"{_BLOCK}.expand_conv": f"{_WD_BLOCK}mb_conv2d_01",
            f"{_BLOCK}.expand_norm": f"{_WD_BLOCK}mb_bn_02",
            f"{_BLOCK}.depthwise_conv": f"{_WD_BLOCK}mb_conv2d_02",
            f"{_BLOCK}.depthwise_norm": f"{_WD_BLOCK}mb_bn_03",
            f"{_BLOCK}.se.reduce": f"{_WD_BLOCK}mb_se_dense_01",
            f"{_BLOCK}.se.expand": f"{_WD_BLOCK}mb_se_dense_02",
            f"{_BLOCK}.shrink_conv": f"{_WD_BLOCK}mb_conv2d_03",
            f"{_BLOCK}.attention_norm": f"{_WD_BLOCK}ln",
            f"{_BLOCK}.attention": f"{_WD_BLOCK}attention",
            "norm": "predictions_norm",
            "head": "predictions_dense",
        },
        others={
            **_HEADS,
            f"{_BLOCK}.se.reduce.weight": ("kernel", "linear_to_conv1x1"),
            f"{_BLOCK}.se.expand.weight": ("kernel", "linear_to_conv1x1"),
        },
        depthwise="depthwise_kernel",
    ),
    ignores=TRAINING,
    zeros={"position": Ignore("position tables", "", "the taggers' code adds none")},
    settings={
        "pool_size": 3,
        "window_size": [14, None],
        "se_activation": "gelu",
        "layer_norm_epsilon": 1e-3,
        "input_order": "bgr",
    },
    tags=True,
)
"""WD 1.4 MOAT Tagger V2: dense layers in squeeze-and-excite, windows in the third stage alone."""

MOAT_LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (TORCH, DEEPLAB2, KERAS, KERAS_H5, WD_TAGGER)
}
