"""What MOAT's authors published besides the weights: paper, pages, code around it, how figures count.

Sources, as stored copies of them were read: google-research/deeplab2, ``model.proto``
(``model_options.backbone.pretrained_weights``), ``model/kmax_deeplab.py`` (strips ``kmax_`` from the
backbone's name; input / 127.5 - 1), ``model/builder.py`` (no pool size, no windows are passed on) and
``model/pixel_encoder/moat.py`` (names of the backbones, ``pool_size`` 3 unless told, and a loader that reads
the trainable variables by name). Title and authors: g3doc/projects/moat_imagenet_pretrained_checkpoints.md.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

from ckptkit.base.tensors import Array
from ckptkit.families.base import Backbone, Consumer, Page, Paper
from ckptkit.families.flops import BATCH_NORMS, Call, Convention, Shape, biased, per_element
from ckptkit.families.synthetic import Make, standard_normal
from ckptkit.rules.language import Table

PAPERS = {
    "2210.01820": Paper(
        "MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision Models",
        (
            "Chenglin Yang",
            "Siyuan Qiao",
            "Qihang Yu",
            "Xiaoding Yuan",
            "Yukun Zhu",
            "Alan Yuille",
            "Hartwig Adam",
            "Liang-Chieh Chen",
        ),
        2022,
    ),
}

PAGES = {
    "https://storage.googleapis.com/gresearch/tf-deeplab/": Page(
        "google-research/deeplab2",
        "https://github.com/google-research/deeplab2/blob/main/g3doc/projects/"
        "moat_imagenet_pretrained_checkpoints.md",
    ),
    "https://huggingface.co/SmilingWolf/": Page(
        "SmilingWolf/wd-v1-4-moat-tagger-v2", "https://huggingface.co/SmilingWolf/wd-v1-4-moat-tagger-v2"
    ),
}

# -- deeplab2, which loads the backbones ---------------------------------------------------------------------

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
    another = {
        key: value
        for key, value in (("se_activation", "swish"), ("layer_norm_epsilon", 1e-5), ("input_order", "rgb"))
        if backbone.settings[key] != value
    }
    for key, value in another.items():
        remarks.append(
            f"These weights are for {key} {backbone.settings[key]}; deeplab2 has {value}, which is another "
            "function."
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


DEEPLAB2 = Consumer(
    "deeplab2 (kMaX-DeepLab)",
    to="tf",
    layout="deeplab2",
    file="backbone.ckpt",
    files=("backbone.ckpt.index", "backbone.ckpt.data-00000-of-00001"),
    dtype="float32",  # it assigns what it reads to float32 variables, which TensorFlow does not cast
    config=_deeplab2_config,
    remarks=_deeplab2_remarks,
)

# -- how the published FLOPs are counted ---------------------------------------------------------------------

BATCH = 8
"""Images in a batch of the published figure; what is computed once a batch costs an image an eighth."""


def _batch_norm_once(call: Call) -> Fraction:
    """Scale and shift each element by two numbers a channel, which take 6 operations once a batch.

    The two: 1/sqrt(variance + epsilon) · gamma (addition, root and division, multiplication) and
    beta − mean · the first (multiplication, subtraction).
    """
    return 2 * call.elements + Fraction(6 * call.output[1], BATCH)


def _layer_norm(call: Call) -> int:
    """Mean 1, variance 1 + 2, then scale, shift and their making 5 an element; 3 a place for the root.

    Scale and shift differ from element to element here, gamma and beta by channel and the statistics by
    place, so unlike BatchNorm's they are made for each: 1 · gamma, · x, mean ·, beta −, +.
    """
    return 9 * call.elements + 3 * (call.elements // call.output[-1])


def _mean(call: Call) -> int:
    """One addition or division for each element that goes in."""
    return math.prod(call.input(0))


def _average_pool(call: Call) -> int:
    """Additions under each window; dividing by the number of real pixels is a separate operation."""
    window: Shape = tuple(call.arguments[1])
    return call.elements * (math.prod(window) - 1)


def _lookup(call: Call) -> Fraction:
    """One step of spreading a position table over all pairs of places.

    The model takes sliding windows of the table, which costs nothing; the published code multiplies the same
    axis by a one-hot matrix: as many multiply-adds an element as the axis is long, two operations each. The
    table is the same for all images of a batch.
    """
    return Fraction(2 * call.elements * call.input(0)[call.arguments[1]], BATCH)


TENSORFLOW_GRAPH = Convention(
    name="tensorflow-graph",
    counts="products, and half a multiply-add for each elementwise operation of the whole TensorFlow graph",
    weight=Fraction(1, 2),
    operations={
        "convolution": biased,
        "linear": biased,
        "addmm": per_element(1),  # the bias
        "add": per_element(1),
        "sub": per_element(1),
        "mul": per_element(1),
        "div": per_element(1),
        "gelu": per_element(4),  # 0.5·x, x / √2, 1 + erf, and their product; erf itself is not counted
        "silu": per_element(2),  # β·x and x · sigmoid; sigmoid itself is not counted
        "_softmax": per_element(5),  # maximum and subtraction 2, exponential 1, sum and division 2
        "mean": _mean,
        "avg_pool2d": _average_pool,
        **dict.fromkeys(BATCH_NORMS, _batch_norm_once),
        "native_layer_norm": _layer_norm,
        "unfold": _lookup,
    },
    # TensorFlow registers no operation count for these.
    free=frozenset({"sigmoid", "upsample_bilinear2d"}),
    activates_stage_outputs=True,
)
"""Half of what TensorFlow's profiler calls float operations, of the published graph at batch 8.

Source: the operation counts that TensorFlow registers (``profiler/internal/flops_registry.py``,
``ops/nn_ops.py``), einsum counted as the products it is, applied to the published graph, in which BatchNorm
(synchronized) and LayerNorm (its epsilon is too small for the fused kernel) are spelled out, and the output
of each stage is activated whether it is used or not. The totals that were measured on the published graph are
higher by up to 0.08%. That is, to one unit of their last digit, an eighth of a multiply-add for each weight:
what the random initializers in that graph cost, a multiplication and an addition a weight once a batch.
Initializing is not part of a forward pass, so it stays out here.
"""


# -- synthetic weights ---------------------------------------------------------------------------------------


def synthetic_tensor(name: str, shape: tuple[int, ...], *, key: str | None = None) -> Array:
    """One tensor by the recipe, of its published (deeplab2) name and shape.

    Where z is standard normal::

        BatchNorm/LayerNorm scale         1 + 0.1 z        moving variance           exp(0.2 z)
        shift, moving mean                0.1 z            bias, anything of rank ≤ 1  0.05 z
        relative position table           0.5 z            convolution kernel        z / √(kh·kw·in)
        depthwise kernel                  z / √(kh·kw)     attention q, k, v         z / √C
        attention o                       z / √(heads·32)

    >>> synthetic_tensor("moat/stem/norm_0/gamma", (32,))[:2].round(4).tolist()
    [1.1377999782562256, 1.0569000244140625]
    """
    import numpy

    z = standard_normal(key or name, shape)
    kind = name.rsplit("/", 1)[-1]
    if kind == "gamma":
        return 1 + numpy.float32(0.1) * z
    if kind in ("beta", "moving_mean"):
        return numpy.float32(0.1) * z
    if kind == "moving_variance":
        return numpy.exp(numpy.float32(0.2) * z)
    if kind == "bias" or len(shape) <= 1:
        return numpy.float32(0.05) * z
    if kind == "relative_position_embedding":
        return numpy.float32(0.5) * z
    return z / numpy.float32(math.sqrt(_fan_in(name, shape)))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    kind = name.rsplit("/", 1)[-1]
    if kind == "depthwise_kernel":
        return math.prod(shape[:2])
    if name.endswith("/o/weight"):
        return math.prod(shape[:2])
    if kind == "weight":
        return shape[0]
    return math.prod(shape[:-1])


def synthetic_recipe(table: Table, *, raw: bool) -> dict[str, Make]:
    """Name in the published layout → function that makes the tensor."""
    end = "#raw" if raw else ""
    return {
        row.external: partial(synthetic_tensor, row.external, row.external_shape, key=f"{row.external}{end}")
        for row in table.bindings
    }
