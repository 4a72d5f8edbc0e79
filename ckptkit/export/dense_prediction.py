"""The published dense-prediction code of each family: what weights it loads, and what its config must say.

Sources, as stored copies of them were read:

* google-research/deeplab2: ``model.proto`` (``model_options.backbone.pretrained_weights``),
  ``model/kmax_deeplab.py`` (strips ``kmax_`` from the backbone's name; input / 127.5 - 1),
  ``model/builder.py`` (no pool size, no windows are passed on) and ``model/pixel_encoder/moat.py`` (names of
  the backbones, ``pool_size`` 3 unless told, and a loader that reads the trainable variables by name).
* Westlake-AI/MogaNet: ``models/moganet.py`` (``MogaNet_feat``, whose ``init_weights`` calls
  ``load_state_dict`` with ``strict`` false and takes no prefix off; ``attn_force_fp32`` false unless told)
  and the configs of ``detection/`` and ``segmentation/``, none of which sets ``attn_force_fp32``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptkit.base.errors import UsageError, command
from ckptkit.families.moganet.config import MOGANET_CONFIGS


@dataclass(frozen=True)
class Backbone:
    """A headless model, as far as its user must know it."""

    variant: str
    pos_emb: bool
    settings: Mapping[str, Any]  # behaviour settings
    normalization: str
    weights: Path  # what the config has to name: a file, or the prefix of a TensorFlow checkpoint


@dataclass(frozen=True)
class Consumer:
    """Code that loads a family's backbones."""

    name: str  # what people call it
    to: str  # format of its weights
    layout: str  # names of the tensors
    file: str  # what the weights are called here
    files: tuple[str, ...]  # every file that is written under that name
    dtype: str | None  # the one floating type it takes
    config: Callable[[Backbone], str]  # the lines of a config that name a backbone
    remarks: Callable[[Backbone], list[str]]  # what else its user must know, a sentence each


def consumer_of(family: str, source: object = "FILE") -> Consumer:
    """Return the code that loads a family's backbones, those of ``source``.

    >>> consumer_of("moat").to
    'tf'
    """
    if family not in _CONSUMERS:
        raise UsageError(
            f"no dense-prediction code is known for family {family}",
            hint=f"convert writes the weights alone. {command('convert', source, '--no-head')}",
        )
    return _CONSUMERS[family]


# -- MOAT: deeplab2 ------------------------------------------------------------------------------------------

_DEEPLAB2_ENDINGS = {
    "moat0": "pretrain_224{}_1k",
    "moat1": "pretrain_224{}_1k",
    "moat2": "finetune_384{}_22k",
    "moat3": "finetune_512{}_22k",
    "moat4": "finetune_512{}_22k",
    **{f"tiny-moat{number}": "pretrain_256{}_1k" for number in range(4)},
}
"""How deeplab2's names of backbones go on after the variant."""


def deeplab2_name(variant: str, *, pos_emb: bool) -> str:
    """What deeplab2's ``moat.get_model`` calls a backbone.

    >>> deeplab2_name("tiny-moat0", pos_emb=False)
    'tiny_moat0_pretrain_256_no_pe_1k'
    """
    ending = _DEEPLAB2_ENDINGS[variant].format("" if pos_emb else "_no_pe")
    return f"{variant.replace('-', '_')}_{ending}"


def _deeplab2_config(backbone: Backbone) -> str:
    name = deeplab2_name(backbone.variant, pos_emb=backbone.pos_emb)
    path = str(backbone.weights).replace("\\", "\\\\").replace('"', '\\"')
    return (
        "model_options {\n"
        "  backbone {\n"
        f'    name: "kmax_{name}"\n'
        f'    pretrained_weights: "{path}"\n'
        "  }\n"
        "}"
    )


def _deeplab2_remarks(backbone: Backbone) -> list[str]:
    remarks = [
        "deeplab2 reads the trainable variables only: the BatchNorm statistics in this checkpoint stay "
        "unread, and its model begins with mean 0 and variance 1.",
    ]
    if backbone.settings["pool_size"] != 3:
        remarks.append(
            f"These weights were trained with pool_size {backbone.settings['pool_size']}; deeplab2 builds "
            "backbones with 3 (get_model's default, which its builder does not change)."
        )
    if backbone.normalization != "half":
        remarks.append(
            "These weights were trained on input with the ImageNet mean and standard deviation; kMaX-DeepLab "
            "feeds its backbone pixels / 127.5 - 1."
        )
    if backbone.pos_emb:
        remarks.append(
            "deeplab2 computes the position bias while it builds the model, before the tables are read: "
            "checkpoints without position embedding avoid that."
        )
    return remarks


# -- MogaNet: mmdetection and mmsegmentation -----------------------------------------------------------------

_MOGANET_ARCHS = {
    "moganet-xt": "x-tiny",
    "moganet-t": "tiny",
    "moganet-s": "small",
    "moganet-b": "base",
    "moganet-l": "large",
    "moganet-xl": "x-large",
}


def _moganet_config(backbone: Backbone) -> str:
    force = "        attn_force_fp32=True,\n" if backbone.settings["attn_force_fp32"] else ""
    return (
        "model = dict(\n"
        "    backbone=dict(\n"
        "        type='MogaNet_feat',\n"
        f"        arch='{_MOGANET_ARCHS[backbone.variant]}',\n"
        f"{force}"
        f"        init_cfg=dict(type='Pretrained', checkpoint={str(backbone.weights)!r}),\n"
        "    ),\n"
        ")"
    )


def _moganet_remarks(backbone: Backbone) -> list[str]:
    widths = list(MOGANET_CONFIGS[backbone.variant].widths)
    remarks = [f"in_channels of the neck (mmdetection) or the decode head (mmsegmentation): {widths}."]
    if backbone.settings["attn_force_fp32"]:
        remarks.append(
            "These weights are for attn_force_fp32=True, which applies the gate's activation twice; the "
            "published dense-prediction configs leave it at False, which is another function."
        )
    return remarks


_CONSUMERS = {
    "moat": Consumer(
        "deeplab2 (kMaX-DeepLab)",
        to="tf",
        layout="deeplab2",
        file="backbone.ckpt",
        files=("backbone.ckpt.index", "backbone.ckpt.data-00000-of-00001"),
        dtype="float32",  # it assigns what it reads to float32 variables, which TensorFlow does not cast
        config=_deeplab2_config,
        remarks=_deeplab2_remarks,
    ),
    "moganet": Consumer(
        "MogaNet's detection/ and segmentation/ (mmdetection, mmsegmentation)",
        to="torch",
        layout="torch",
        file="backbone.pth",
        files=("backbone.pth",),
        dtype=None,
        config=_moganet_config,
        remarks=_moganet_remarks,
    ),
}
