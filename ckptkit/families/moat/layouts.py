"""How MOAT's tensors are called outside PyTorch: deeplab2's TensorFlow names, Keras 3's, and its files'."""

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
        f"{_BLOCK}.attention.relative_position_embedding": ("relative_position_embedding", "identity"),
        **{f"{_BLOCK}.attention.{name}.weight": ("weight", "heads_in") for name in "qkv"},
        **{f"{_BLOCK}.attention.{name}.bias": ("bias", "flatten") for name in "qkv"},
        f"{_BLOCK}.attention.o.weight": ("weight", "heads_out"),
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

MOAT_LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (TORCH, DEEPLAB2, KERAS, KERAS_H5)}
