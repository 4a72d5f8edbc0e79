"""Pebble: a convolution, a few residual 1×1 convolutions, a linear head. Too small to see anything."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from annotated_types import Ge, Lt

from ckptkit.families.base import Family, PublishedFile, Setting
from ckptkit.families.flops import Convention
from ckptkit.families.layouts import rules_of_keras_file
from ckptkit.rules.language import Definition, Layout, Rule

#: Width and number of blocks of each variant.
VARIANTS = {"pebble-s": (8, 1), "pebble-m": (16, 2)}

# Every tensor, by its name in the PyTorch model. Braces are keys of a site, which `Pebble.sites` lists.
DEFINITIONS = (
    Definition("stem.weight", ("width", 3, 4, 4), "stem"),
    Definition("stem.bias", ("width",), "stem"),
    Definition("blocks.{block}.weight", ("width", "width", 1, 1), "block"),
    Definition("blocks.{block}.bias", ("width",), "block"),
    Definition("head.weight", ("classes", "width"), "head", part="head"),
    Definition("head.bias", ("classes",), "head", part="head"),
)

# The canonical layout has the names of the PyTorch model; another one says how it differs.
TORCH = Layout("torch", tuple(Rule(one.name, one.name) for one in DEFINITIONS))
KERAS = Layout(
    "keras",
    (
        Rule("stem.weight", "pebble/stem/kernel", "conv"),
        Rule("stem.bias", "pebble/stem/bias"),
        Rule("blocks.{block}.weight", "pebble/block_{block}/kernel", "conv"),
        Rule("blocks.{block}.bias", "pebble/block_{block}/bias"),
        Rule("head.weight", "pebble/head/kernel", "linear"),
        Rule("head.bias", "pebble/head/bias"),
    ),
)
# The weights in the model's own files, which Keras names by the attributes that lead to a layer.
KERAS_H5 = Layout(
    "keras-h5",
    rules_of_keras_file(
        KERAS.rules,
        {
            "pebble/stem": "layers/conv2d",
            "pebble/block_{block}": "blocks/conv2d_{block}",
            "pebble/head": "head",
        },
    ),
    renames=(("conv2d_0/", "conv2d/"),),
)


class Pebble(Family):
    """The two Pebbles."""

    name, title = "pebble", "Pebble"
    summary = "a convolution and a few residual 1×1 convolutions"
    definitions = DEFINITIONS
    layouts = {"torch": TORCH, "keras": KERAS, "keras-h5": KERAS_H5}
    containers = {"torch": ("torch", "slab"), "keras": ("tf", "slab")}
    default_layout = {"keras": "keras-h5"}
    published_files = {"torch": PublishedFile("torch", ".pth")}
    settings = {
        "negative_slope": Setting(
            Annotated[float, Ge(0), Lt(1)],
            "Pebble: slope of the activation below zero.",
            0.0,
            takes="a number from 0 to 1",
        )
    }
    models = {"torch": "ckptkit_pebble.torch_model", "keras": "ckptkit_pebble.keras_model"}
    flops = Convention(
        name="products",
        counts="products alone",
        weight=Fraction(1),
        operations={},
        free=frozenset({"add", "leaky_relu", "mean"}),
    )

    @property
    def variants(self):
        """Names of the variants."""
        return tuple(VARIANTS)

    def sites(self, variant, structure):
        """Every place where a tensor is, with the numbers that its shape and its name need."""
        width, depth = VARIANTS[variant]
        classes = structure.num_classes
        return {
            "stem": [{"width": width}],
            "block": [{"width": width, "block": block} for block in range(depth)],
            "head": [] if classes is None else [{"width": width, "classes": classes}],
        }

    def default_resolution(self, variant):
        """Input side in pixels."""
        return 64

    def normalization(self, variant):
        """Input normalization."""
        return "imagenet"


PEBBLE = Pebble()
