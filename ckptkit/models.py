"""Reference models with their settings and weights, in either framework."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ckptkit.convert import load_tensors
from ckptkit.errors import ConversionError, UsageError
from ckptkit.families.base import (
    CANONICAL,
    Family,
    Recognition,
    Structure,
    family_of_variant,
    require_recognition,
)
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import open_reader
from ckptkit.tensors import Array
from ckptkit.workspace import Workspace

if TYPE_CHECKING:
    from ckptkit.registry import Entry

Framework = Literal["torch", "keras"]
Size = int | tuple[int, int]


class Unset:
    """Marks an argument that was not given, where None is a value."""

    def __repr__(self) -> str:
        return "from the entry or the file"


UNSET: Final = Unset()


@dataclass(frozen=True)
class _Wanted:
    """What a model is to be built as."""

    family: Family
    variant: str
    resolution: Size | None
    num_classes: int | None
    features_only: bool
    pos_emb: bool
    behaviour: Mapping[str, Any]


def create_model(
    id_or_variant: str,
    framework: Framework = "torch",
    *,
    checkpoint: str | Path | Literal[True] | None = None,
    resolution: Size | None = None,
    num_classes: int | None = 1000,
    features_only: bool = False,
    pos_emb: bool | Unset = UNSET,
    pool_size: int | Unset = UNSET,
    window_size: Any = UNSET,
    global_attention: bool | Unset = UNSET,
    attn_force_fp32: bool | Unset = UNSET,
    workspace: Workspace | None = None,
) -> Any:
    """Build a reference model, with weights when a checkpoint is given.

    Parameters
    ----------
    id_or_variant : str
        With an id the settings come from its registry entry; with a variant (``tiny-moat0``) from the
        arguments, else from the checkpoint's metadata, else they are those of a classifier.
    framework : {"torch", "keras"}
        PyTorch takes NCHW, Keras NHWC; both float32.
    checkpoint : path, True or None
        A file in any supported format and layout; True fetches the entry's own; None leaves the
        weights as initialised.
    resolution : int or (int, int), optional
        Input (height, width) in pixels; default the entry's test resolution. The models run at any size.
    num_classes : int or None
        Outputs of the head; None or 0 for none. A checkpoint with another number of classes loads all but
        the head, which stays as initialised.
    features_only : bool
        Return the list of the stages' outputs instead of logits.
    pos_emb, pool_size, window_size, global_attention, attn_force_fp32
        Override the setting; see the family's model for what each does.
    workspace : Workspace, optional
        Registries and cache; default those of the environment.

    Returns
    -------
    torch.nn.Module or keras.Model
        In inference mode. Called on images it gives logits (N, classes), or the list of stage outputs.

    Raises
    ------
    NotFoundError
        When there is no such entry or variant.
    UsageError
        When a setting does not exist in this family, or the checkpoint contradicts it.
    ConversionError
        When the checkpoint does not fit.
    MissingDependencyError
        When the framework is not installed.
    """
    workspace = workspace or Workspace()
    if framework not in ("torch", "keras"):
        raise UsageError(f"no framework {framework!r}", hint="one of torch, keras")
    entry = _entry(id_or_variant, workspace)
    family = family_of_variant(entry.variant if entry else id_or_variant)
    variant = entry.variant if entry else id_or_variant
    module = family.torch_module() if framework == "torch" else family.keras_module()
    asked = {
        "pool_size": pool_size,
        "window_size": window_size,
        "global_attention": global_attention,
        "attn_force_fp32": attn_force_fp32,
    }
    unloaded = _Wanted(
        family,
        variant,
        resolution or (entry.test_resolution if entry else None),
        num_classes,
        features_only,
        _pos_emb(pos_emb, entry, None),
        _behaviour(family, asked, entry, {}),
    )
    path = _checkpoint_path(checkpoint, entry, id_or_variant, workspace)
    if path is None:
        return _build(module, unloaded)
    with open_reader(path) as reader:
        found = require_recognition(reader.path, reader.specs, variant=variant)
        wanted = replace(
            unloaded,
            pos_emb=_pos_emb(pos_emb, entry, found),
            behaviour=_behaviour(family, asked, entry, reader.metadata),
        )
        if wanted.pos_emb != found.structure.pos_emb:
            has = "has" if found.structure.pos_emb else "has no"
            raise UsageError(
                f"{path} {has} position embedding",
                hint="take the file of this entry, or give the variant instead of the id",
            )
        model = _build(module, wanted)
        _load(model, module, framework, reader, found)
    return model


def _entry(name: str, workspace: Workspace) -> Entry | None:
    from ckptkit.errors import NotFoundError

    try:
        family_of_variant(name)
    except NotFoundError:
        return workspace.registry[name]
    return None


def _checkpoint_path(
    checkpoint: str | Path | Literal[True] | None, entry: Entry | None, name: str, workspace: Workspace
) -> Path | None:
    if checkpoint is None:
        return None
    if checkpoint is not True:
        return Path(checkpoint)
    if entry is None:
        raise UsageError(
            f"checkpoint=True needs an entry's id, {name} is a variant", hint="see 'ckptkit list'"
        )
    return workspace.fetch(entry).path


def _pos_emb(asked: bool | Unset, entry: Entry | None, found: Recognition | None) -> bool:
    """As asked, else the entry's, else the file's."""
    if not isinstance(asked, Unset):
        return asked
    if entry is not None and entry.pos_emb is not None:
        return entry.pos_emb
    return True if found is None else found.structure.pos_emb


def _behaviour(
    family: Family, asked: Mapping[str, Any], entry: Entry | None, metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Each behaviour setting: as asked, else the entry's, else the file's, else a classifier's."""
    foreign = [
        key for key, value in asked.items() if not isinstance(value, Unset) and key not in family.behaviour
    ]
    if foreign:
        raise UsageError(f"family {family.name} has no setting {foreign[0]}", hint=_settings(family))
    settings = dict(family.behaviour)
    settings.update({key: json.loads(metadata[key]) for key in settings if key in metadata})
    settings.update({key: value for key in settings if (value := getattr(entry, key, None)) is not None})
    settings.update({key: value for key, value in asked.items() if not isinstance(value, Unset)})
    return settings


def _settings(family: Family) -> str:
    return "its settings are " + ", ".join(family.behaviour)


def _build(module: Any, wanted: _Wanted) -> Any:
    return module.build(
        wanted.variant,
        resolution=wanted.resolution,
        num_classes=wanted.num_classes or None,
        features_only=wanted.features_only,
        pos_emb=wanted.pos_emb,
        **wanted.behaviour,
    )


def _load(model: Any, module: Any, framework: Framework, reader: Reader, found: Recognition) -> None:
    """Fill a model from a file; a head of another size stays as initialised."""
    layout = CANONICAL if framework == "torch" else found.family.keras_layout
    state = load_tensors(reader, layout, variant=found.variant)
    table = found.family.table(layout, found.variant, found.structure)
    initial = _initial_state(model, module, framework)
    if any(row.external not in state for row in table.bindings if row.part == "bn_statistics"):
        raise ConversionError(
            f"{reader.path}: no BatchNorm moving statistics, so predictions would be meaningless",
            hint="to initialise training, take ckptkit.load() and load_state_dict(strict=False) yourself",
        )
    head = {
        b.external
        for b in found.family.table(layout, found.variant, Structure()).bindings
        if b.part == "head"
    }
    for name in head & initial.keys():
        if name not in state or state[name].shape != initial[name].shape:
            state[name] = initial[name]
    module.load_state(
        model, {name: array for name, array in state.items() if name not in head - initial.keys()}
    )


def _initial_state(model: Any, module: Any, framework: Framework) -> dict[str, Array]:
    if framework == "torch":
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {name: variable.numpy() for name, variable in module.variables_by_name(model).items()}
