"""What MogaNet's authors published besides the weights: paper, pages, code around it, how figures count.

Sources, as stored copies of them were read: Westlake-AI/MogaNet, ``models/moganet.py`` (``MogaNet_feat``,
whose ``init_weights`` calls ``load_state_dict`` with ``strict`` false and takes no prefix off;
``attn_force_fp32`` false unless told) and the configs of ``detection/`` and ``segmentation/``, none of which
sets ``attn_force_fp32``. Title and authors: its README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ckptkit.families.base import Backbone, Consumer, Page, Paper
from ckptkit.families.flops import BATCH_NORMS, Convention, biased, per_element
from ckptkit.families.moganet.config import MOGANET_CONFIGS
from ckptkit.families.synthetic import NOTE

PAPERS = {
    "2211.03295": Paper(
        "MogaNet: Multi-order Gated Aggregation Network",
        (
            "Siyuan Li",
            "Zedong Wang",
            "Zicheng Liu",
            "Cheng Tan",
            "Haitao Lin",
            "Di Wu",
            "Zhiyuan Chen",
            "Jiangbin Zheng",
            "Stan Z. Li",
        ),
        2022,
    ),
}

PAGES = {
    "https://github.com/Westlake-AI/openmixup/": Page(
        "Westlake-AI/openmixup",
        "https://github.com/Westlake-AI/openmixup/tree/main/configs/classification/imagenet/moganet",
    ),
    "https://github.com/Westlake-AI/MogaNet/": Page(
        "Westlake-AI/MogaNet", "https://github.com/Westlake-AI/MogaNet"
    ),
    "https://github.com/Lupin1998/mmpretrain/": Page(
        "open-mmlab/mmpretrain, pull request 1691", "https://github.com/open-mmlab/mmpretrain/pull/1691"
    ),
    "https://github.com/leondgarse/": Page(
        "leondgarse/keras_cv_attention_models",
        "https://github.com/leondgarse/keras_cv_attention_models/tree/main/keras_cv_attention_models/moganet",
    ),
    "https://f000.backblazeb2.com/file/birder/": Page(
        "birder-project/birder", "https://github.com/birder-project/birder"
    ),
    "https://huggingface.co/birder-project/": Page(
        "birder-project/birder", "https://github.com/birder-project/birder"
    ),
}

# -- mmdetection and mmsegmentation, which load the backbones ------------------------------------------------

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


MMDETECTION = Consumer(
    "MogaNet's detection/ and segmentation/ (mmdetection, mmsegmentation)",
    to="torch",
    layout="torch",
    file="backbone.pth",
    files=("backbone.pth",),
    dtype=None,
    config=_moganet_config,
    remarks=_moganet_remarks,
)

# -- how the published FLOPs are counted ---------------------------------------------------------------------

MMCV = Convention(
    name="mmcv",
    counts="products, 1 for each element of a biased convolution's result, 2 for each of a BatchNorm",
    weight=Fraction(1),
    operations={
        "convolution": biased,
        **dict.fromkeys(BATCH_NORMS, per_element(2)),
    },
    # It counts by kind of module. MogaNet's means are functions rather than pooling modules, its activations
    # of kinds it does not know; the bias of the linear head it leaves out.
    free=frozenset({"add", "gelu", "mean", "mul", "silu", "sub"}),
    # The second activation that the setting brings is one it does not count.
    indifferent={"attn_force_fp32": False},
)
"""Multiply-adds as mmcv's ``get_model_complexity_info`` has them."""


# -- what the PyTorch releases hold around their state dicts -------------------------------------------------


def openmixup_tree(variant: str, dicts: Mapping[str, Any]) -> dict[str, Any]:
    """OpenMixup's release: ``meta`` and ``state_dict``."""
    return {"meta": {"note": NOTE, "epoch": 0, "iter": 0, "CLASSES": None}, **dicts}


def timm_tree(variant: str, dicts: Mapping[str, Any]) -> dict[str, Any]:
    """The timm style: ``epoch``, ``arch``, ``state_dict``, ``args``, and ``state_dict_ema`` for the averages.

    ``args`` is an `argparse.Namespace`, for which ``torch.load(weights_only=True)`` refuses such files.
    """
    from ckptkit.formats.torch_writer import Namespace

    arch = variant.replace("-", "_")
    return {
        "epoch": 0,
        "arch": arch,
        "state_dict": dicts["state_dict"],
        "version": 2,
        "args": Namespace({"model": arch, "note": NOTE}),
        **dicts,
    }


def birder_tree(variant: str, dicts: Mapping[str, Any]) -> dict[str, Any]:
    """What birder writes: ``state``, and what else its loader wants to know, as far as texts say it."""
    return {
        "birder_version": "0.8.4",
        "task": "image_classification",
        "note": NOTE,
        "state": dicts["state_dict"],
    }
