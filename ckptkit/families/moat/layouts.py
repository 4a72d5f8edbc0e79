"""How MOAT's tensors are called outside PyTorch: deeplab2's TensorFlow names, Keras 3's, and its files'."""

from __future__ import annotations

from dataclasses import replace

from ckptkit.families.keras_files import rules_of_keras_file
from ckptkit.families.leftovers import AROUND, AROUND_DEEPLAB2, TF_AVERAGES, TRAINING
from ckptkit.families.moat.config import FIRST_ATTENTION_STAGE
from ckptkit.rules.language import Ignore, Layout, Rule

_BLOCK = "stages.{stage}.{block}"
_TF_BLOCK = "moat/block_{stage:02d}_{block:02d}"


def _norm(canonical: str, external: str, *, statistics: bool, alias: str | None = None) -> list[Rule]:
    pairs = [("weight", "gamma"), ("bias", "beta")]
    if statistics:
        pairs += [("running_mean", "moving_mean"), ("running_var", "moving_variance")]
    return [
        Rule(f"{canonical}.{ours}", f"{external}/{theirs}", aliases=(f"{alias}/{theirs}",) if alias else ())
        for ours, theirs in pairs
    ]


def _conv(
    canonical: str, external: str, op: str = "conv", *, bias: bool, alias: str | None = None
) -> list[Rule]:
    rules = [
        Rule(f"{canonical}.weight", f"{external}/kernel", op, aliases=(f"{alias}/kernel",) if alias else ())
    ]
    if bias:
        rules.append(
            Rule(f"{canonical}.bias", f"{external}/bias", aliases=(f"{alias}/bias",) if alias else ())
        )
    return rules


def _attention(canonical: str, external: str) -> list[Rule]:
    rules = [Rule(f"{canonical}.relative_position_embedding", f"{external}/relative_position_embedding")]
    for projection in ("q", "k", "v"):
        rules += [
            Rule(f"{canonical}.{projection}.weight", f"{external}/{projection}/weight", "heads_in"),
            Rule(f"{canonical}.{projection}.bias", f"{external}/{projection}/bias", "flatten"),
        ]
    return [
        *rules,
        Rule(f"{canonical}.o.weight", f"{external}/o/weight", "heads_out"),
        Rule(f"{canonical}.o.bias", f"{external}/o/bias"),
    ]


def _tensorflow_rules(depthwise_kernel: str) -> tuple[Rule, ...]:
    """Rules for TensorFlow's names, which differ only in what a depthwise kernel is called.

    Models built in TF2 name the stem's layers without ``moat/stem/``: the aliases.
    """
    return (
        *_conv("stem.conv_0", "moat/stem/conv_0", bias=True, alias="conv_0"),
        *_norm("stem.norm_0", "moat/stem/norm_0", statistics=True, alias="norm_0"),
        *_conv("stem.conv_1", "moat/stem/conv_1", bias=True, alias="conv_1"),
        *_conv(f"{_BLOCK}.shortcut_conv", f"{_TF_BLOCK}/shortcut_conv", bias=True),
        *_norm(f"{_BLOCK}.pre_norm", f"{_TF_BLOCK}/pre_norm", statistics=True),
        *_conv(f"{_BLOCK}.expand_conv", f"{_TF_BLOCK}/expand_conv", bias=False),
        *_norm(f"{_BLOCK}.expand_norm", f"{_TF_BLOCK}/expand_norm", statistics=True),
        Rule(
            f"{_BLOCK}.depthwise_conv.weight", f"{_TF_BLOCK}/depthwise_conv/{depthwise_kernel}", "depthwise"
        ),
        *_norm(f"{_BLOCK}.depthwise_norm", f"{_TF_BLOCK}/depthwise_norm", statistics=True),
        *_conv(f"{_BLOCK}.se.reduce", f"{_TF_BLOCK}/se/reduce_conv2d", bias=True),
        *_conv(f"{_BLOCK}.se.expand", f"{_TF_BLOCK}/se/expand_conv2d", bias=True),
        *_conv(f"{_BLOCK}.shrink_conv", f"{_TF_BLOCK}/shrink_conv", bias=True),
        *_norm(f"{_BLOCK}.attention_norm", f"{_TF_BLOCK}/attention_norm", statistics=False),
        *_attention(f"{_BLOCK}.attention", f"{_TF_BLOCK}/attention"),
        *_norm("norm", "moat/final_layer_norm", statistics=False),
        *_conv("head", "moat/logits_head", "conv1x1_to_linear", bias=True),
    )


_NUM_BATCHES_TRACKED = Ignore(
    "num_batches_tracked", r".+\.num_batches_tracked", "counts training steps; unused with a fixed momentum"
)

DEEPLAB2 = Layout(
    "deeplab2",
    _tensorflow_rules("depthwise_kernel"),
    ignores=TRAINING,
    around=AROUND_DEEPLAB2,
    second_copy=TF_AVERAGES,
)

KERAS = replace(DEEPLAB2, name="keras", rules=_tensorflow_rules("kernel"))

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
