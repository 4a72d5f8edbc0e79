"""What the authors' dense-prediction files hold around the backbone: necks and heads, by name and shape.

Source: the configs of Westlake-AI/MogaNet at 386b548 and the classes of mmdetection 2.26, mmsegmentation 0.29
and mmpose 0.29 that they name. The parameters of all 35 published files, counted on these tables, are those
counted on the classes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from ckptkit.base.axes import Shape

Widths = Sequence[int]
"""Channels of the backbone's four stages."""

_NECK, _COCO, _ADE20K, _KEYPOINTS = 256, 80, 150, 17


def _layer(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """A convolution or linear layer."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _conv(name: str, out: int, inside: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    yield from _layer(name, out, inside, kernel, kernel)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (width,)
    yield f"{name}.num_batches_tracked", ()


def _conv_norm(name: str, out: int, inside: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    """A convolution without a bias, and its BatchNorm."""
    yield f"{name}.conv.weight", (out, inside, kernel, kernel)
    yield from _norm(f"{name}.bn", out)


def _pyramid(widths: Widths) -> Iterator[tuple[str, Shape]]:
    """Mmdetection's FPN on all stages; a further level is pooled."""
    for level, width in enumerate(widths):
        yield from _conv(f"neck.lateral_convs.{level}.conv", _NECK, width, 1)
    for level in range(len(widths)):
        yield from _conv(f"neck.fpn_convs.{level}.conv", _NECK, _NECK, 3)


def _retinanet(widths: Widths) -> Iterator[tuple[str, Shape]]:
    """Its pyramid begins at the second stage, and has two more levels of the last one's map."""
    for level, width in enumerate(widths[1:]):
        yield from _conv(f"neck.lateral_convs.{level}.conv", _NECK, width, 1)
    for level, width in enumerate((_NECK, _NECK, _NECK, widths[-1], _NECK)):
        yield from _conv(f"neck.fpn_convs.{level}.conv", _NECK, width, 3)
    anchors = 9
    for number in range(4):
        yield from _conv(f"bbox_head.cls_convs.{number}.conv", _NECK, _NECK, 3)
        yield from _conv(f"bbox_head.reg_convs.{number}.conv", _NECK, _NECK, 3)
    yield from _conv("bbox_head.retina_cls", anchors * _COCO, _NECK, 3)
    yield from _conv("bbox_head.retina_reg", anchors * 4, _NECK, 3)


def _proposals(widths: Widths) -> Iterator[tuple[str, Shape]]:
    """The pyramid and the proposal network of the two-stage detectors."""
    yield from _pyramid(widths)
    yield from _conv("rpn_head.rpn_conv", _NECK, _NECK, 3)
    yield from _conv("rpn_head.rpn_cls", 3, _NECK, 1)
    yield from _conv("rpn_head.rpn_reg", 3 * 4, _NECK, 1)


def _boxes(name: str, *, convolutions: int, dense: int, boxes: int) -> Iterator[tuple[str, Shape]]:
    """Shared convolutions and linear layers on 7×7 places, then classes and boxes."""
    for number in range(convolutions):
        yield from _conv_norm(f"{name}.shared_convs.{number}", _NECK, _NECK, 3)
    for number in range(dense):
        yield from _layer(f"{name}.shared_fcs.{number}", 1024, 1024 if number else _NECK * 7 * 7)
    yield from _layer(f"{name}.fc_cls", _COCO + 1, 1024)
    yield from _layer(f"{name}.fc_reg", 4 * boxes, 1024)


def _masks(name: str) -> Iterator[tuple[str, Shape]]:
    for number in range(4):
        yield from _conv(f"{name}.convs.{number}.conv", _NECK, _NECK, 3)
    yield from _conv(f"{name}.upsample", _NECK, _NECK, 2)
    yield from _conv(f"{name}.conv_logits", _COCO, _NECK, 1)


def _mask_rcnn(widths: Widths) -> Iterator[tuple[str, Shape]]:
    yield from _proposals(widths)
    yield from _boxes("roi_head.bbox_head", convolutions=0, dense=2, boxes=_COCO)
    yield from _masks("roi_head.mask_head")


def _cascade(widths: Widths, *, convolutions: int, dense: int, boxes: int) -> Iterator[tuple[str, Shape]]:
    """Three stages of heads."""
    yield from _proposals(widths)
    for stage in range(3):
        name = f"roi_head.bbox_head.{stage}"
        yield from _boxes(name, convolutions=convolutions, dense=dense, boxes=boxes)
    for stage in range(3):
        yield from _masks(f"roi_head.mask_head.{stage}")


def _semantic_fpn(widths: Widths) -> Iterator[tuple[str, Shape]]:
    """A level that is 2, 4 or 8 times smaller than the first is enlarged in 1, 2 or 3 steps."""
    yield from _pyramid(widths)
    for level in range(len(widths)):
        for step in range(max(1, level)):  # modules of odd number enlarge
            inside = 128 if step else _NECK
            yield from _conv_norm(f"decode_head.scale_heads.{level}.{2 * step}", 128, inside, 3)
    yield from _conv("decode_head.conv_seg", _ADE20K, 128, 1)


def _upernet(widths: Widths) -> Iterator[tuple[str, Shape]]:
    width, scales = 512, 4
    for scale in range(scales):
        yield from _conv_norm(f"decode_head.psp_modules.{scale}.1", width, widths[-1], 1)
    yield from _conv_norm("decode_head.bottleneck", width, widths[-1] + scales * width, 3)
    for level, inside in enumerate(widths[:-1]):
        yield from _conv_norm(f"decode_head.lateral_convs.{level}", width, inside, 1)
        yield from _conv_norm(f"decode_head.fpn_convs.{level}", width, width, 3)
    yield from _conv_norm("decode_head.fpn_bottleneck", width, len(widths) * width, 3)
    yield from _conv("decode_head.conv_seg", _ADE20K, width, 1)
    yield from _conv_norm("auxiliary_head.convs.0", 256, widths[2], 3)
    yield from _conv("auxiliary_head.conv_seg", _ADE20K, 256, 1)


def _top_down(widths: Widths) -> Iterator[tuple[str, Shape]]:
    """Three transposed convolutions, whose kernels have the input's channels first."""
    for number, inside in enumerate((widths[-1], 256, 256)):
        yield f"keypoint_head.deconv_layers.{3 * number}.weight", (inside, 256, 4, 4)
        yield from _norm(f"keypoint_head.deconv_layers.{3 * number + 1}", 256)
    yield from _conv("keypoint_head.final_layer", _KEYPOINTS, 256, 1)


_RECIPES: Mapping[tuple[str, str | None], Callable[[Widths], Iterator[tuple[str, Shape]]]] = {
    ("RetinaNet", None): _retinanet,
    ("Mask R-CNN", None): _mask_rcnn,
    ("Cascade Mask R-CNN", "MS 3x"): partial(_cascade, convolutions=0, dense=2, boxes=1),
    ("Cascade Mask R-CNN", "GIOU+MS 3x"): partial(_cascade, convolutions=4, dense=1, boxes=_COCO),
    ("Semantic FPN", None): _semantic_fpn,
    ("UperNet", None): _upernet,
    ("Top-Down heatmap", None): _top_down,
}
"""By the method of an entry, and by its setting where that changes the heads."""


def parts_around(widths: Widths, method: str | None, setting: str | None) -> dict[str, Shape]:
    """Name and shape of every tensor around a backbone; empty where the method is not known.

    >>> parts = parts_around((32, 64, 96, 192), "Top-Down heatmap", "210 epochs")
    >>> len(parts), parts["keypoint_head.final_layer.weight"]
    (20, (17, 256, 1, 1))
    """
    recipe = _RECIPES.get((method or "", setting)) or _RECIPES.get((method or "", None))
    return dict(recipe(widths)) if recipe else {}
