"""MOAT (arXiv:2210.01820), published for TensorFlow by google-research/deeplab2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import is_int, shown
from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.families.base import Family, Structure, TableSizes
from ckptkit.families.moat.config import (
    MOAT_CONFIGS,
    MOAT_DEFINITIONS,
    POOL_SIZES,
    POSITION_TABLE,
    moat_sites,
)
from ckptkit.families.moat.layouts import MOAT_LAYOUTS
from ckptkit.families.moat.windows import parse_window_size
from ckptkit.rules.language import Site


class Moat(Family):
    """The nine MOAT variants."""

    name = "moat"
    definitions = MOAT_DEFINITIONS
    layouts = MOAT_LAYOUTS
    published_layouts = ("deeplab2",)
    containers: Mapping[str, Sequence[str]] = {
        "deeplab2": ("tf",),
        "torch": ("torch",),
        "keras": ("keras", "tf"),
    }
    default_layout: Mapping[str, str] = {
        "tf": "deeplab2",
        "torch": "torch",
        "safetensors": "torch",
        "keras": "keras-h5",
        "npz": "torch",
    }
    behaviour: Mapping[str, Any] = {"pool_size": 2, "window_size": None, "global_attention": False}

    @property
    def variants(self) -> Sequence[str]:
        """Names of the variants."""
        return tuple(MOAT_CONFIGS)

    def sites(self, variant: str, structure: Structure) -> Mapping[str, Sequence[Site]]:
        """Places of a variant where tensors stand."""
        return moat_sites(
            MOAT_CONFIGS[variant],
            pos_emb=structure.pos_emb,
            num_classes=structure.num_classes,
            table_sizes=structure.table_sizes,
        )

    def table_sizes_at(self, resolution: tuple[int, int], settings: Mapping[str, Any]) -> TableSizes:
        """Sizes of the position tables that the model uses at an input resolution."""
        from ckptkit.families.moat.resizing import table_sizes_at

        return table_sizes_at(resolution, settings)

    def resized_table(self, table: Array, size: tuple[int, int]) -> Array:
        """Resize position tables as the models do it at run time."""
        from ckptkit.families.moat.resizing import resize_table

        return resize_table(table, size)

    def check_setting(self, key: str, value: object) -> None:
        """Refuse a pool, a window or a switch that no model has."""
        if key == "window_size":
            parse_window_size(value)  # type: ignore[arg-type]  # it says what it cannot read
        elif key == "pool_size":
            if not is_int(value) or value not in POOL_SIZES:
                raise UsageError(f"pool_size is {shown(value)}", hint="MOAT has 2 or 3")
        else:
            super().check_setting(key, value)

    def read_table_sizes(
        self, layout: str, variant: str, specs: Mapping[str, TensorSpec]
    ) -> TableSizes | None:
        """Sizes of a file's position tables, told by the last one of each attention stage."""
        sites = self.sites(variant, Structure())["position"]
        last = {site["stage"]: site for site in sites}
        name = self.layouts[layout].by_canonical[POSITION_TABLE].external
        tables = {stage: self.layouts[layout].name_at(name, site) for stage, site in last.items()}
        published = {stage: (site["table_rows"], site["table_columns"]) for stage, site in last.items()}
        found = {stage: specs[name].shape for stage, name in tables.items() if name in specs}
        if all(published[stage] == shape[1:] for stage, shape in found.items()):
            return None  # the usual case needs no more
        from ckptkit.families.moat.resizing import plausible_sizes

        return plausible_sizes(found)

    def default_resolution(self, variant: str) -> int:
        """Input side that the published checkpoints of a variant were trained at."""
        return MOAT_CONFIGS[variant].resolution

    def normalization(self, variant: str) -> str:
        """Input normalization of the published checkpoints of a variant."""
        return MOAT_CONFIGS[variant].normalization

    def unread_at_small_inputs(self, structure: Structure) -> str:
        """Which values a forward pass at a small resolution does not read."""
        return "windows read only parts of the position tables" if structure.pos_emb else ""


MOAT = Moat()
