"""Reference models with their settings and weights, in either framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.parse import parse_num_classes
from ckptkit.base.text import library_logger
from ckptkit.families.base import (
    Family,
    Recognition,
    Structure,
    TableSizes,
    family_of_variant,
    recognise,
    require_recognition,
)
from ckptkit.families.settings import known_settings, resolve_settings
from ckptkit.formats.base import Reader, Weights
from ckptkit.models.loading import Framework, Loaded, Target, fill, framework_named
from ckptkit.registry.query import EntryFacts
from ckptkit.workspace import Located, Named, Workspace

if TYPE_CHECKING:
    from ckptkit.families.model_config import ExportedModel
    from ckptkit.registry import Entry

_logger = library_logger()

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
    table_sizes: TableSizes | None = None

    @property
    def structure(self) -> Structure:
        """What of it the tensors tell."""
        return Structure(self.pos_emb, self.num_classes, self.table_sizes)


def create_model(
    id_or_variant: Named,
    framework: Framework | str = "torch",
    *,
    checkpoint: str | Path | Literal[True] | None = None,
    resolution: Size | None = None,
    num_classes: int | Unset | None = UNSET,
    features_only: bool = False,
    pos_emb: bool | Unset = UNSET,
    pool_size: int | Unset = UNSET,
    window_size: Any = UNSET,
    global_attention: bool | Unset = UNSET,
    attn_force_fp32: bool | Unset = UNSET,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    strict: bool = True,
    allow_missing_bn: bool = False,
    optimize: bool = False,
    compile: bool = False,
    workspace: Workspace | None = None,
) -> Any:
    """Build a reference model, with weights when a checkpoint is given.

    Parameters
    ----------
    id_or_variant : str, Path or Entry
        With an id the settings come from its registry entry; with a variant (``tiny-moat0``) from the
        arguments, else from the checkpoint's metadata, else they are those of a classifier. MogaNet's
        ``attn_force_fp32`` has no default: two functions with the same tensors are in use. With a folder that
        ``ckptkit export --to hf`` wrote, weights and settings are the folder's.
    framework : {"torch", "keras"}
        ``pytorch`` and ``tf`` are understood too. PyTorch takes NCHW, Keras NHWC; both float32.
    checkpoint : path, True or None
        A file in any supported format and layout; True fetches the entry's own; None leaves the weights as
        initialised: random in PyTorch, zero in Keras.
    resolution : int or (int, int), optional
        Input size in pixels, a side or (height, width), square or not; default the entry's test resolution.
        The models run at any size, MOAT's windows (``window_size``) must divide the maps. An optimised model
        is fastest at its own.
    num_classes : int or None
        Outputs of the head; None or 0 for none. Default those of the checkpoint or the exported folder, else
        1000. A checkpoint with another number of classes fills all but the head's last layer, which is new
        and must be trained; a warning says so.
    features_only : bool
        Return the list of the stages' outputs instead of logits: five maps (MOAT, the first being the stem's)
        or four (MogaNet). A model without head does so anyway. Takes a checkpoint without head as it is, and
        the backbone out of a detector's, segmentor's or pose model's.
    pos_emb, pool_size, window_size, global_attention, attn_force_fp32
        Override the setting; see the family's model for what each does.
    weights : {"auto", "ema", "raw"}
        Which copy where the checkpoint holds both.
    state_dict, strip_prefix
        Which state dict of the checkpoint, and what to take off its names: as for `ckptkit.load`.
    strict : bool
        Refuse a checkpoint that lacks tensors, has others, or has them in other shapes, naming each of them,
        or that has no head where the model has one. False loads what fits, leaves the rest as initialised and
        warns; ``model.loaded.initialised`` and ``.misfits`` name it.
    allow_missing_bn : bool
        Take a checkpoint without BatchNorm statistics, which then stay as initialised: mean 0 and variance 1,
        so the model predicts nothing until they are calibrated.
    optimize : bool
        PyTorch only: rewrite the model for inference, with BatchNorm folded into convolutions, fused
        attention and maps whose channels lie last in memory (`ckptkit.families.torch_inference`). Logits are
        the plain model's within 1e-4. It cannot be trained, and its ``state_dict`` is its own.
    compile : bool
        PyTorch only: compile the model's calls with ``torch.compile``; the first call takes a minute or so.
        Needs a C++ compiler on CPUs.
    workspace : Workspace, optional
        Registries and cache; default those of the environment, with warnings to the ``ckptkit`` logger.

    Returns
    -------
    torch.nn.Module or keras.Model
        In inference mode. Called on images it gives logits (N, classes), or the list of stage outputs. Its
        attribute ``loaded`` (`Loaded`) says what was loaded from where, and the settings.

    Raises
    ------
    NotFoundError
        When there is no such entry or variant.
    UsageError
        When a setting does not exist in this family, is not known and has no default, or the checkpoint
        contradicts it; when ``optimize`` or ``compile`` is asked of Keras, or nothing can be compiled here.
    ConversionError
        When the checkpoint does not fit, or is of another variant.
    MissingDependencyError
        When the framework is not installed.

    Examples
    --------
    A model of ten classes, not trained yet:

    >>> import ckptkit, torch
    >>> images = torch.zeros(1, 3, 64, 64)
    >>> model = ckptkit.create_model("tiny-moat0", num_classes=10)
    >>> model(images).shape
    torch.Size([1, 10])

    A backbone for dense prediction:

    >>> backbone = ckptkit.create_model("moganet-xt-224", features_only=True)
    >>> [tuple(features.shape[1:]) for features in backbone(images)]
    [(32, 16, 16), (64, 8, 8), (96, 4, 4), (192, 2, 2)]

    With an entry's published weights (downloaded at the first time), for fast inference at another size::

        model = ckptkit.create_model(
            "moat0-224", checkpoint=True, resolution=(288, 384), optimize=True
        )

    The same weights in Keras, to be trained on ten other classes::

        model = ckptkit.create_model("moat0-224", "keras", checkpoint=True, num_classes=10)
        model.loaded.initialised     # ('moat/logits_head/kernel', 'moat/logits_head/bias')
    """
    workspace = workspace or Workspace(note=_logger.info, warn=_logger.warning)
    framework = framework_named(framework)
    entry = id_or_variant if isinstance(id_or_variant, EntryFacts) else None
    exported = (
        None if isinstance(id_or_variant, EntryFacts) else _exported(id_or_variant, checkpoint, workspace)
    )
    if exported is not None:
        config, checkpoint = exported.config, exported.weights
        id_or_variant = config.variant
        resolution = resolution or config.preprocessing.size
        num_classes = config.num_classes if isinstance(num_classes, Unset) else num_classes
    id_or_variant = entry.id if entry else str(id_or_variant)
    entry = entry or (None if exported else _entry(id_or_variant, workspace))
    family = family_of_variant(entry.variant if entry else id_or_variant)
    variant = entry.variant if entry else id_or_variant
    module = family.torch_module() if framework == "torch" else family.keras_module()
    speed = _Speed(optimize, compile)
    speed.check(framework)
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
    if exported is not None:
        told = {**exported.config.settings, **told}
    said = known_settings(family, told=told, entry=entry)
    wanted = _Wanted(
        family,
        variant,
        resolution or (entry.test_resolution if entry else None),
        1000 if isinstance(num_classes, Unset) else parse_num_classes(num_classes),
        features_only,
        _pos_emb(family, pos_emb, entry, None),
    )
    located = _checkpoint(checkpoint, entry, id_or_variant, workspace)
    if located is None and (state_dict is not None or strip_prefix):
        raise UsageError("state_dict and strip_prefix are for a checkpoint", hint="give checkpoint= too")
    if located is None:
        settings = resolve_settings(family, said, name=variant)
        record = Loaded(variant, settings, entry.id if entry else None)
        return _finished(_build(module, wanted, settings), record, family, speed)
    owner = entry or located.entry
    located = replace(located.chosen(state_dict, strip_prefix), entry=owner)
    with located.open(weights) as reader:
        found = _recognised(reader, variant)
        said = known_settings(family, told=told, entry=owner, metadata=reader.metadata, path=reader.path)
        has = found.structure
        classes = has.num_classes or (None if features_only else 1000)
        wanted = replace(
            wanted,
            num_classes=classes if isinstance(num_classes, Unset) else wanted.num_classes,
            pos_emb=_pos_emb(family, pos_emb, entry, found),
            table_sizes=has.table_sizes,
        )
        if strict:
            _require_same_pos_emb(located, wanted, found)
        settings = resolve_settings(family, said, name=located.path)
        target = Target(_build(module, wanted, settings), module, framework, wanted.structure)
        filling = fill(
            target,
            reader,
            found,
            weights=weights,
            entry=owner,
            strict=strict,
            allow_missing_bn=allow_missing_bn,
            warn=workspace.warn,
        )
    record = Loaded(
        variant,
        settings,
        owner.id if owner else None,
        located.path,
        filling.weights,
        len(filling.moves),
        filling.initialised,
        filling.misfits,
    )
    return _finished(target.model, record, family, speed)


@dataclass(frozen=True)
class _Speed:
    """What is done to make a model fast."""

    optimize: bool
    compile: bool

    def check(self, framework: Framework) -> None:
        """Refuse what cannot be done, before anything slow is."""
        for name, wanted in (("optimize", self.optimize), ("compile", self.compile)):
            if wanted and framework != "torch":
                raise UsageError(
                    f"{name}=True is for PyTorch", hint=f"framework='torch', or leave {name} out"
                )
        if self.compile:
            from ckptkit.families.torch_compiling import require_compiler

            require_compiler()


def _finished(model: Any, record: Loaded, family: Family, speed: _Speed) -> Any:
    """Make a model with its weights fast if wanted, and attach its record."""
    if speed.optimize:
        model = family.fast_torch_module().optimised(model)
    if speed.compile:
        from ckptkit.families.torch_compiling import compiled

        model = compiled(model)
    model.loaded = record
    return model


def _recognised(reader: Reader, variant: str) -> Recognition:
    """Recognise a file as the variant; an error says of which variant it is, where it is of any."""
    try:
        return require_recognition(reader.path, reader.specs, variant=variant)
    except ConversionError as error:
        other = recognise(reader.specs)
        if other is None:
            raise
        raise ConversionError(
            f"{reader.path}: unlike {variant}, this is a checkpoint of {other.variant}",
            hint=f"give {other.variant}, or an entry of it",
        ) from error


def _require_same_pos_emb(located: Located, wanted: _Wanted, found: Recognition) -> None:
    if wanted.pos_emb != found.structure.pos_emb:
        has = "has" if found.structure.pos_emb else "has no"
        raise UsageError(
            f"{located.path} {has} position embedding",
            hint="take the file of this entry, or give the variant instead of the id",
        )


def _exported(
    name: str | Path, checkpoint: str | Path | Literal[True] | None, workspace: Workspace
) -> ExportedModel | None:
    """Return the exported folder of this name; None where the name is an id's or a variant's."""
    if not isinstance(name, Path) and (_is_variant(name) or not (workspace.is_path(name) or "/" in name)):
        return None
    from ckptkit.families.model_config import open_exported

    found = open_exported(Path(name))
    if checkpoint not in (None, True):
        raise UsageError(f"{name} has weights of its own", hint="leave checkpoint out, or give the variant")
    return found


def _is_variant(name: str) -> bool:
    from ckptkit.base.errors import NotFoundError

    try:
        family_of_variant(name)
    except NotFoundError:
        return False
    return True


def _entry(name: str, workspace: Workspace) -> Entry | None:
    return None if _is_variant(name) else workspace.registry[name]


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
