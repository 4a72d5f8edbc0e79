"""MOAT (arXiv:2210.01820), published for TensorFlow by google-research/deeplab2, and as a tagger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.families.base import Family, PublishedFile, Setting, Structure, TableSizes
from ckptkit.families.moat import published
from ckptkit.families.moat.config import (
    LAYER_NORM_EPSILON,
    MOAT_CONFIGS,
    MOAT_DEFINITIONS,
    POSITION_TABLE,
    moat_sites,
)
from ckptkit.families.moat.layouts import MOAT_LAYOUTS
from ckptkit.families.moat.windows import parse_window_size
from ckptkit.families.synthetic import Make
from ckptkit.rules.language import Site, Table


class Moat(Family):
    """The nine MOAT variants."""

    name, title = "moat", "MOAT"
    summary = "mobile convolutions (inverted residuals) and self-attention, merged into one block"
    definitions = MOAT_DEFINITIONS
    layouts = MOAT_LAYOUTS
    layout_titles: Mapping[str, str] = {"deeplab2": "DeepLab2", "wd-tagger": "WD taggers"}
    published_files: Mapping[str, PublishedFile] = {
        "deeplab2": PublishedFile("tf", ".tar.gz"),
        "wd-tagger": PublishedFile("tf", ".tar.gz"),
    }
    containers: Mapping[str, Sequence[str]] = {
        "deeplab2": ("tf",),
        "torch": ("torch",),
        "keras": ("keras", "tf"),
        "wd-tagger": ("tf",),
    }
    default_layout: Mapping[str, str] = {"tf": "deeplab2", "keras": "keras-h5"}
    settings: Mapping[str, Setting] = {
        "pool_size": Setting(
            Annotated[int, Ge(2), Le(3)], "MOAT: size of the stride-2 average pool.", 2, takes="2 or 3"
        ),
        "window_size": Setting(
            Any,
            "MOAT: attention window; null: the whole map.",
            None,
            takes="a whole number above 0, or none",
            check=parse_window_size,
        ),
        "global_attention": Setting(bool, "MOAT: the last block of a stage sees all.", False),
        "se_activation": Setting(
            Literal["swish", "gelu"],
            "MOAT: activation inside squeeze-and-excite.",
            "swish",
            takes="swish or gelu",
        ),
        "layer_norm_epsilon": Setting(
            Annotated[float, Gt(0), Lt(1)],
            "MOAT: epsilon of every LayerNorm.",
            LAYER_NORM_EPSILON,
            takes="a number between 0 and 1",
        ),
        "input_order": Setting(
            Literal["rgb", "bgr"],
            "MOAT: order of the channels that the weights want; models take RGB and turn it.",
            "rgb",
            takes="rgb or bgr",
        ),
    }
    has_pos_emb = True
    models: Mapping[str, str] = {
        "torch": "ckptkit.families.moat.torch_model",
        "keras": "ckptkit.families.moat.keras_model",
    }
    flops = published.TENSORFLOW_GRAPH
    papers = published.PAPERS
    pages = published.PAGES
    consumer = published.DEEPLAB2
    missing_statistics = "MOAT's first uploads (2022-10) lack them, the files of 2022-11-05 have them"
    markers: Mapping[tuple[str | None, bool | None, str | None, str], str] = {
        ("strong", True, None, "deeplab2"): "full",
        ("strong", False, None, "deeplab2"): "open",
        ("tiny", True, None, "deeplab2"): "tint",
        ("tiny", False, None, "deeplab2"): "dot",
    }

    @property
    def variants(self) -> Sequence[str]:
        """Names of the variants."""
        return tuple(MOAT_CONFIGS)

    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Every place of a variant where a tensor is."""
        return moat_sites(
            MOAT_CONFIGS[variant],
            pos_emb=structure.pos_emb,
            num_classes=structure.num_classes,
            table_sizes=structure.table_sizes,
        )

    def default_resolution(self, variant: str) -> int:
        """Input side that the published checkpoints of a variant were trained at."""
        return MOAT_CONFIGS[variant].resolution

    def normalization(self, variant: str) -> str:
        """Input normalization of the published checkpoints of a variant."""
        return MOAT_CONFIGS[variant].normalization

    def synthetic_recipe(self, table: Table, *, raw: bool) -> Mapping[str, Make]:
        """Random numbers by the published names and shapes."""
        return published.synthetic_recipe(table, raw=raw)

    def unread_at_small_inputs(self, structure: Structure) -> str:
        """Which values a forward pass at a small resolution does not read."""
        return "windows read only parts of the position tables" if structure.pos_emb else ""

    def table_sizes_at(self, resolution: tuple[int, int], settings: Mapping[str, Any]) -> TableSizes:
        """Sizes of the position tables that the model uses at an input resolution."""
        from ckptkit.families.moat.windows import table_sizes_at

        return table_sizes_at(resolution, settings)

    def resized_table(self, table: Array, size: tuple[int, int]) -> Array:
        """Resize position tables as the models do it at run time."""
        from ckptkit.families.moat.windows import resize_table

        return resize_table(table, size)

    def read_table_sizes(
        self, layout: str, variant: str, specs: Mapping[str, TensorSpec]
    ) -> TableSizes | None:
        """Sizes of a file's position tables, from the last one of each attention stage."""
        sites = self.sites(variant, Structure())["position"]
        last = {site["stage"]: site for site in sites}
        name = self.layouts[layout].by_canonical[POSITION_TABLE].external
        tables = {stage: self.layouts[layout].name_at(name, site) for stage, site in last.items()}
        published = {stage: (site["table_rows"], site["table_columns"]) for stage, site in last.items()}
        found = {stage: specs[name].shape for stage, name in tables.items() if name in specs}
        if all(published[stage] == shape[1:] for stage, shape in found.items()):
            return None  # the usual case needs no more
        from ckptkit.families.moat.windows import plausible_sizes

        return plausible_sizes(found)


MOAT = Moat()
