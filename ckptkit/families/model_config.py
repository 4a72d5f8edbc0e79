"""``config.json`` of an exported folder: what a model is and how it wants its pictures, beside its weights.

The file follows the habits of the Hugging Face hub: ``model_type`` names the architecture, ``id2label`` the
outputs. What ckptkit itself builds a model from are the other fields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, UsageError
from ckptkit.base.files import open_regular, storage_error
from ckptkit.base.parse import MAX_SIDE
from ckptkit.base.text import json_text
from ckptkit.families.base import family_of_variant
from ckptkit.families.recognition import Recognition, require_recognition
from ckptkit.formats.detect import open_reader
from ckptkit.formats.keras import KERAS_MEMBER

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
KERAS_METADATA = "metadata.json"
"""What ckptkit says of a Keras model is there; Keras' own ``config.json`` is beside it."""

_MAX_BYTES = 4 << 20
"""A config of 1,000 classes has about 100 kB."""

_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Channels = tuple[float, float, float]


class PreprocessingConfig(BaseModel):
    """How the model wants its pictures."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    size: Annotated[tuple[_Side, _Side], Field(strict=False)] = Field(description="Height and width, pixels.")
    resize: _Side | None = Field(None, description="Shorter side before the centre crop, pixels.")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    normalization: Literal["imagenet", "half", "birds"]
    mean: Annotated[_Channels, Field(strict=False)] = Field(description="Of RGB in [0, 1].")
    std: Annotated[_Channels, Field(strict=False)]


class ModelConfig(BaseModel):
    """What ``config.json`` says."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    library_name: Literal["ckptkit"]
    model_type: str = Field(description="The family.")
    variant: str
    entry: str | None = Field(None, description="Registry id of the published checkpoint it was made from.")
    num_classes: Annotated[int, Field(ge=1)] | None = Field(description="Outputs of the head; null: no head.")
    pos_emb: bool | None = Field(None, description="With position tables; null: the family has none.")
    settings: dict[str, Any] = Field(description="What changes the output but no tensor's shape.")
    preprocessing: PreprocessingConfig
    torch_dtype: str | None = Field(None, description="Floating type of the weights.")
    synthetic: bool = Field(False, description="Whether the weights are random numbers by recipe.")
    provenance: dict[str, Any] = Field(default_factory=dict)
    table_sizes: list[list[int]] | None = Field(None, description="Of position tables that were resized.")
    architectures: list[str] | None = Field(default=None, description="Class in the folder's code.")
    auto_map: dict[str, Any] | None = Field(default=None, description="What transformers loads of that code.")
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None

    def text(self) -> str:
        """Return the file's content."""
        fields = self.model_dump(mode="json")
        for absent in ("table_sizes", "architectures", "auto_map", "id2label", "label2id"):
            if fields[absent] is None:  # labels are not known of a head that is not ImageNet's
                del fields[absent]
        return json_text(fields, indent=2) + "\n"


@dataclass(frozen=True)
class ExportedModel:
    """An exported folder whose config fits its tensors."""

    config: ModelConfig
    weights: Path  # the file of the tensors


def open_exported(folder: Path) -> ExportedModel:
    """Read an exported folder's config, and set it against the folder's tensors."""
    config = read_config(folder)
    weights = folder / (WEIGHTS if (folder / WEIGHTS).exists() else KERAS_MEMBER)
    if not weights.is_file():
        raise NotFoundError(f"{folder} has a {CONFIG} but no {WEIGHTS}", hint="export it again")
    with open_reader(weights) as reader:
        try:
            found = require_recognition(weights, reader.specs, variant=config.variant)
        except CkptkitError as error:
            raise FormatError(folder / CONFIG, f"it says {config.variant}, but {error.message}") from error
    _require_fit(folder, weights.name, config, found)
    return ExportedModel(config, weights)


def read_config(folder: Path) -> ModelConfig:
    """Read a folder's config."""
    path = folder / CONFIG
    if folder.is_file():
        raise UsageError(
            f"{folder} is a file; a model is built from an id, a variant or an exported folder",
            hint="give the variant, and the file as checkpoint=",
        )
    if not path.is_file():
        raise NotFoundError(
            f"{folder} has no {CONFIG}" if folder.is_dir() else f"{folder}: no such folder",
            hint="'ckptkit export ID --to hf' writes such a folder; of other files give the variant and "
            "checkpoint=",
        )
    fields = _json_of(path)
    if "registered_name" in fields and (folder / KERAS_METADATA).is_file():  # Keras' own config
        path = folder / KERAS_METADATA
        own = _json_of(path).get("ckptkit")
        fields = own if isinstance(own, dict) else {}
    if fields.get("library_name") != "ckptkit":
        kind = fields.get("model_type")
        raise FormatError(
            path,
            "not written by ckptkit" + (f" (it is of a {kind} model)" if isinstance(kind, str) else ""),
            hint="'ckptkit export ID --to hf' writes such a folder",
        )
    try:
        config = ModelConfig.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise FormatError(path, faults, hint="export it again") from error
    _require_known(path, config)
    return config


def _json_of(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; empty where it holds something else."""
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise FormatError(path, f"larger than {_MAX_BYTES} bytes, too large for a model config")
        fields = json.loads(text)
    except OSError as error:
        raise storage_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"not JSON: {error}") from error
    return fields if isinstance(fields, dict) else {}


def _require_known(path: Path, config: ModelConfig) -> None:
    try:
        family = family_of_variant(config.variant)
    except NotFoundError as error:
        raise FormatError(path, error.message, hint=error.hint) from error
    if family.name != config.model_type:
        raise FormatError(
            path, f"it says model_type {config.model_type}, but {config.variant} is of {family.name}"
        )
    unknown = config.settings.keys() - {*family.settings}
    missing = {*family.settings} - config.settings.keys()
    if unknown or missing:
        what = f"unknown {sorted(unknown)}" if unknown else f"missing {sorted(missing)}"
        raise FormatError(path, f"its settings do not fit family {family.name}: {what}")
    for key, value in config.settings.items():
        try:
            family.check_setting(key, value)
        except UsageError as error:
            raise FormatError(path, f"its setting {error.message}", hint=error.hint) from error


def _require_fit(folder: Path, weights: str, config: ModelConfig, found: Recognition) -> None:
    """Refuse a config that says something else than the tensors: they would load all the same."""
    structure = found.structure
    pos_emb = structure.pos_emb if found.family.has_pos_emb else None
    for what, stated, has in (
        ("num_classes", config.num_classes, structure.num_classes),
        ("pos_emb", config.pos_emb, pos_emb),
    ):
        if stated != has:
            raise FormatError(
                folder / CONFIG,
                f"it says {what} {json.dumps(stated)}, but {weights} has {json.dumps(has)}",
                hint="put back the config of these weights, or export them again",
            )
