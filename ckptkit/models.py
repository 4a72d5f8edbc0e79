"""Reference models with their settings and weights, in either framework."""

from __future__ import annotations

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
    TableSizes,
    family_of_variant,
    require_recognition,
)
from ckptkit.families.behaviour import said_settings, settle
from ckptkit.families.binding import wanted_copy
from ckptkit.formats.base import Reader, Weights
from ckptkit.formats.detect import open_reader
from ckptkit.tensors import Array
from ckptkit.workspace import Located, Workspace

if TYPE_CHECKING:
    from ckptkit.registry import Entry

Framework = Literal["torch", "keras"]
Size = int | tuple[int, int]


class Unset:
    """Marks an argument that was not given, where None is a value."""

    def __repr__(self) -> str:
        return "from the entry or the file"


UNSET: Final = Unset()

_HOW = "{}=True or False"


@dataclass(frozen=True)
class _Wanted:
    """What a model is to be built as."""

    family: Family
    variant: str
    resolution: Size | None
    num_classes: int | None
    features_only: bool
    pos_emb: bool
    table_sizes: TableSizes | None = None


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
    weights: Weights = "auto",
    workspace: Workspace | None = None,
) -> Any:
    """Build a reference model, with weights when a checkpoint is given.

    Parameters
    ----------
    id_or_variant : str
        With an id the settings come from its registry entry; with a variant (``tiny-moat0``) from the
        arguments, else from the checkpoint's metadata, else they are those of a classifier. MogaNet's
        ``attn_force_fp32`` has no default: two functions with the same tensors are in use.
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
    weights : {"auto", "ema", "raw"}
        Which copy where the checkpoint holds both.
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
        When a setting does not exist in this family, is not known and has no default, or the checkpoint
        contradicts it.
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
    told = {
        key: value
        for key, value in (
            ("pool_size", pool_size),
            ("window_size", window_size),
            ("global_attention", global_attention),
            ("attn_force_fp32", attn_force_fp32),
        )
        if not isinstance(value, Unset)
    }
    said = said_settings(family, told=told, entry=entry)
    unloaded = _Wanted(
        family,
        variant,
        resolution or (entry.test_resolution if entry else None),
        num_classes,
        features_only,
        _pos_emb(family, pos_emb, entry, None),
    )
    located = _checkpoint(checkpoint, entry, id_or_variant, workspace)
    if located is None:
        return _build(module, unloaded, settle(family, said, name=variant, how=_HOW))
    owner = entry or located.entry
    with open_reader(located.path, weights=wanted_copy(weights, owner)) as reader:
        found = require_recognition(reader.path, reader.specs, variant=variant)
        said = said_settings(family, told=told, entry=owner, metadata=reader.metadata, path=reader.path)
        wanted = replace(
            unloaded,
            pos_emb=_pos_emb(family, pos_emb, entry, found),
            table_sizes=found.structure.table_sizes,
        )
        if wanted.pos_emb != found.structure.pos_emb:
            has = "has" if found.structure.pos_emb else "has no"
            raise UsageError(
                f"{located.path} {has} position embedding",
                hint="take the file of this entry, or give the variant instead of the id",
            )
        model = _build(module, wanted, settle(family, said, name=located.path, how=_HOW))
        _load(model, module, framework, reader, found, weights=weights, entry=owner)
    return model


def _entry(name: str, workspace: Workspace) -> Entry | None:
    from ckptkit.errors import NotFoundError

    try:
        family_of_variant(name)
    except NotFoundError:
        return workspace.registry[name]
    return None


def _checkpoint(
    checkpoint: str | Path | Literal[True] | None, entry: Entry | None, name: str, workspace: Workspace
) -> Located | None:
    if checkpoint is None:
        return None
    if checkpoint is not True:
        return workspace.locate(Path(checkpoint))
    if entry is None:
        raise UsageError(
            f"checkpoint=True needs an entry's id, {name} is a variant", hint="see 'ckptkit list'"
        )
    return workspace.fetch(entry)


def _pos_emb(family: Family, asked: bool | Unset, entry: Entry | None, found: Recognition | None) -> bool:
    """As asked, else the entry's, else the file's; never where the family has none."""
    if not family.has_pos_emb:
        if not isinstance(asked, Unset) and asked:
            raise UsageError(f"family {family.name} has no position embedding", hint="leave pos_emb out")
        return False
    if not isinstance(asked, Unset):
        return asked
    if entry is not None and entry.pos_emb is not None:
        return entry.pos_emb
    return True if found is None else found.structure.pos_emb


def _build(module: Any, wanted: _Wanted, settings: Mapping[str, Any]) -> Any:
    return module.build(
        wanted.variant,
        resolution=wanted.resolution,
        num_classes=wanted.num_classes or None,
        features_only=wanted.features_only,
        **({"pos_emb": wanted.pos_emb} if wanted.family.has_pos_emb else {}),
        **({"table_sizes": wanted.table_sizes} if wanted.table_sizes else {}),
        **settings,
    )


def _load(
    model: Any,
    module: Any,
    framework: Framework,
    reader: Reader,
    found: Recognition,
    *,
    weights: Weights,
    entry: Entry | None,
) -> None:
    """Fill a model from a file; a head of another size stays as initialised."""
    layout = CANONICAL if framework == "torch" else found.family.keras_layout
    state = load_tensors(reader, layout, weights=weights, variant=found.variant, entry=entry)
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
