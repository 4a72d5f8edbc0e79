"""Reference models with their settings and weights, in any framework."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from ckptkit.base.errors import ConversionError, UsageError, require_installed
from ckptkit.base.parse import parse_num_classes, parse_size
from ckptkit.base.text import library_logger
from ckptkit.convert.pipeline import Provenance
from ckptkit.families.base import (
    Family,
    Structure,
    TableSizes,
    families,
    family_of_variant,
    get_family,
    is_variant,
)
from ckptkit.families.binding import wanted_copy
from ckptkit.families.recognition import Recognition, recognise, require_recognition
from ckptkit.formats.base import Reader, Weights
from ckptkit.models.loading import Framework, Loaded, Source, framework_named
from ckptkit.registry.schema import Entry
from ckptkit.workspace import Located, Named, Workspace

if TYPE_CHECKING:
    from ckptkit.families.model_config import ExportedModel
    from ckptkit.models.loading import KerasModel, TorchModel
    from ckptkit.models.onnx_model import OnnxModel

_logger = library_logger()

Size = int | tuple[int, int]


class Unset:
    """Marks an argument that was not given, where None is a value."""

    def __repr__(self) -> str:
        return "from the entry or the file"


UNSET: Final = Unset()


@dataclass(frozen=True)
class _Recipe:
    """What a model is built as, and filled from."""

    family: Family
    variant: str
    resolution: Size | None
    num_classes: int | None
    features_only: bool
    pos_emb: bool
    settings: Mapping[str, Any]
    loaded: Loaded
    table_sizes: TableSizes | None = None
    source: Source | None = None

    def model(self, framework: Framework) -> Any:
        """Build it, fill it, and attach the record of it."""
        model = self.family.model_module(framework).build(
            self.variant,
            resolution=self.resolution,
            num_classes=self.num_classes or None,
            features_only=self.features_only,
            **({"pos_emb": self.pos_emb} if self.family.has_pos_emb else {}),
            **({"table_sizes": self.table_sizes} if self.table_sizes else {}),
            **self.settings,
        )
        model.loaded = self.loaded
        if self.source is not None:
            structure = Structure(self.pos_emb, self.num_classes, self.table_sizes)
            model.loaded = self.source.fill(model, framework, structure, self.loaded)
        return model


@overload
def create_model(
    id_or_variant: Named,
    framework: Literal["torch"] = ...,
    *,
    checkpoint: str | Path | Literal[True] | None = ...,
    pretrained: bool = ...,
    resolution: Size | None = ...,
    num_classes: int | Unset | None = ...,
    features_only: bool = ...,
    pos_emb: bool | Unset = ...,
    weights: Weights = ...,
    state_dict: str | None = ...,
    strip_prefix: str | Sequence[str] | None = ...,
    strict: bool = ...,
    allow_missing_bn: bool = ...,
    compile: bool = ...,
    workspace: Workspace | None = ...,
    **settings: Any,
) -> TorchModel: ...
@overload
def create_model(
    id_or_variant: Named,
    framework: Literal["keras"],
    *,
    checkpoint: str | Path | Literal[True] | None = ...,
    pretrained: bool = ...,
    resolution: Size | None = ...,
    num_classes: int | Unset | None = ...,
    features_only: bool = ...,
    pos_emb: bool | Unset = ...,
    weights: Weights = ...,
    state_dict: str | None = ...,
    strip_prefix: str | Sequence[str] | None = ...,
    strict: bool = ...,
    allow_missing_bn: bool = ...,
    compile: bool = ...,
    workspace: Workspace | None = ...,
    **settings: Any,
) -> KerasModel: ...
@overload
def create_model(
    id_or_variant: Named,
    framework: Literal["onnxruntime"],
    *,
    checkpoint: str | Path | Literal[True] | None = ...,
    pretrained: bool = ...,
    resolution: Size | None = ...,
    num_classes: int | Unset | None = ...,
    features_only: bool = ...,
    pos_emb: bool | Unset = ...,
    weights: Weights = ...,
    state_dict: str | None = ...,
    strip_prefix: str | Sequence[str] | None = ...,
    strict: bool = ...,
    allow_missing_bn: bool = ...,
    compile: bool = ...,
    workspace: Workspace | None = ...,
    **settings: Any,
) -> OnnxModel: ...
@overload
def create_model(
    id_or_variant: Named,
    framework: str,
    *,
    checkpoint: str | Path | Literal[True] | None = ...,
    pretrained: bool = ...,
    resolution: Size | None = ...,
    num_classes: int | Unset | None = ...,
    features_only: bool = ...,
    pos_emb: bool | Unset = ...,
    weights: Weights = ...,
    state_dict: str | None = ...,
    strip_prefix: str | Sequence[str] | None = ...,
    strict: bool = ...,
    allow_missing_bn: bool = ...,
    compile: bool = ...,
    workspace: Workspace | None = ...,
    **settings: Any,
) -> Any: ...
def create_model(
    id_or_variant: Named,
    framework: Framework | str = "torch",
    *,
    checkpoint: str | Path | Literal[True] | None = None,
    pretrained: bool = False,
    resolution: Size | None = None,
    num_classes: int | Unset | None = UNSET,
    features_only: bool = False,
    pos_emb: bool | Unset = UNSET,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    strict: bool = True,
    allow_missing_bn: bool = False,
    compile: bool = False,
    workspace: Workspace | None = None,
    **settings: Any,
) -> Any:
    """Build a reference model, with weights when a checkpoint is given.

    Parameters
    ----------
    id_or_variant : str, Path or Entry
        With an id the settings come from its registry entry; with a variant (``tiny-moat0``) from the
        arguments, else from the checkpoint's metadata, else they are those of a classifier. Some have no
        default, because several functions with the same tensors are in use. With a folder that
        ``ckptkit export --to hf`` (or ``keras``) wrote, weights and settings are the folder's.
    framework : {"torch", "keras", "onnxruntime"}
        ``pytorch``, ``tf`` and ``onnx`` are understood too. PyTorch and ONNX Runtime take NCHW, Keras NHWC,
        all float32. ONNX Runtime is the quickest on a CPU: the PyTorch model is exported once for one
        resolution, and the graph kept in the cache folder under what it was made from. It takes and gives
        numpy arrays, and cannot be trained.
    checkpoint : path, True or None
        A file in any supported format and layout; True fetches the entry's own; None leaves the weights as
        initialised: random in PyTorch, zero in Keras.
    pretrained : bool
        timm's word for ``checkpoint=True``.
    resolution : int or (int, int), optional
        Input size in pixels, a side or (height, width), square or not; default the entry's test resolution.
        The models run at any size (ONNX Runtime's at this one only); attention windows must divide the maps.
    num_classes : int or None
        Outputs of the head; None or 0 for none. Default those of the checkpoint or the exported folder, else
        1000. A checkpoint with another number of classes fills all but the head's last layer, which is new
        and must be trained; a warning says so.
    features_only : bool
        Return the list of the stages' outputs instead of logits. A model without head does so anyway. Takes a
        checkpoint without head as it is, and the backbone out of a detector's, segmentor's or pose model's.
    pos_emb : bool
        With or without position embedding; default as the entry or the checkpoint has it.
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
    compile : bool
        PyTorch only: compile the model's calls with ``torch.compile``; the first call takes a minute or so.
        Needs a C++ compiler on CPUs.
    workspace : Workspace, optional
        Registries and cache; default those of the environment, with warnings to the ``ckptkit`` logger.
    **settings
        Override settings of the family; ``ckptkit registry schema`` describes them.

    Returns
    -------
    torch.nn.Module, keras.Model or OnnxModel
        In inference mode. Called on images it gives logits (N, classes), or the list of stage outputs. Its
        attribute ``loaded`` (`Loaded`) says what was loaded from where, and the settings. In PyTorch and
        Keras ``num_features`` is the number of channels that the head takes, and ``reset_classifier(10)``
        makes a new head, which must be trained.

    Raises
    ------
    NotFoundError
        When the entry or variant does not exist.
    UsageError
        When a setting does not exist in this family, is not known and has no default, or the checkpoint
        contradicts it; when ``compile`` is asked of another framework than PyTorch, or cannot work here.
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

    With an entry's published weights (downloaded at the first time), for fast inference on a CPU::

        model = ckptkit.create_model(
            "moat0-224", "onnxruntime", checkpoint=True, resolution=(288, 384)
        )

    The same weights in Keras, to be trained on ten other classes::

        model = ckptkit.create_model(
            "moat0-224", "keras", checkpoint=True, num_classes=10
        )
        model.loaded.initialised  # the kernel and the bias of the head
    """
    workspace = workspace or Workspace(note=_logger.info, warn=_logger.warning)
    framework = framework_named(framework)
    given = {key: value for key, value in settings.items() if not isinstance(value, Unset)}
    if pretrained and checkpoint not in (None, True):
        raise UsageError(
            "pretrained=True takes the entry's own checkpoint", hint="leave pretrained out, or checkpoint"
        )
    checkpoint = True if pretrained else checkpoint
    entry, exported = _named(id_or_variant, checkpoint, workspace)
    if exported is not None:
        config, checkpoint = exported.config, exported.weights
        resolution = resolution or config.preprocessing.size
        num_classes = config.num_classes if isinstance(num_classes, Unset) else num_classes
        given = {**config.settings, **given}
        variant = config.variant
    else:
        variant = entry.variant if entry else str(id_or_variant)
    family = family_of_variant(variant)
    _require_framework(family, framework, compile=compile)
    known = family.known_settings(given=given, entry=entry)
    classes = None if isinstance(num_classes, Unset) else parse_num_classes(num_classes)
    pos_embs = _pos_embs(family, pos_emb, entry)
    located = _checkpoint(checkpoint, entry, variant, workspace)
    if located is None and (state_dict is not None or strip_prefix):
        raise UsageError("state_dict and strip_prefix are for a checkpoint", hint="give checkpoint= too")
    recipe = partial(
        _Recipe,
        family,
        variant,
        resolution or (entry.test_resolution if entry else None),
        features_only=features_only,
    )
    finish = partial(_finished, framework=framework, compile=compile, workspace=workspace)
    if located is None:
        settings = family.resolve_settings(known, name=variant)
        return finish(
            recipe(
                num_classes=1000 if isinstance(num_classes, Unset) else classes,
                pos_emb=pos_embs(True),
                settings=settings,
                loaded=Loaded(variant, settings, entry.id if entry else None),
            )
        )
    owner = entry or located.entry
    located = replace(located.chosen(state_dict, strip_prefix), entry=owner)
    with located.open(weights) as reader:
        found = _recognised(reader, variant)
        known = family.known_settings(
            given=given,
            entry=owner,
            metadata=reader.metadata,
            path=reader.path,
            layout=found.layout,
        )
        has = found.structure
        with_pos_emb = pos_embs(has.pos_emb)
        if strict:
            _require_same_pos_emb(located, with_pos_emb, found)
        settings = family.resolve_settings(known, name=located.path)
        usual = has.num_classes or (None if features_only else 1000)
        return finish(
            recipe(
                num_classes=usual if isinstance(num_classes, Unset) else classes,
                pos_emb=with_pos_emb,
                settings=settings,
                loaded=Loaded(variant, settings, owner.id if owner else None, located.path),
                table_sizes=has.table_sizes,
                source=Source(reader, found, weights, owner, strict, allow_missing_bn, workspace.warn),
            ),
            located=located,
        )


def _with_settings(signature: inspect.Signature) -> inspect.Signature:
    """The signature with an argument for each setting of the built-in families instead of ``**settings``."""
    names = dict.fromkeys(name for family in families(False) for name in get_family(family).settings)
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, keyword, default=UNSET, annotation=Any) for name in names]
    return signature.replace(parameters=[*list(signature.parameters.values())[:-1], *added])


create_model.__signature__ = _with_settings(inspect.signature(create_model))  # type: ignore[attr-defined]


def _require_framework(family: Family, framework: Framework, *, compile: bool) -> None:
    """Refuse what cannot be done here, before anything slow is."""
    if framework == "onnxruntime":
        from ckptkit.models.onnx_model import PACKAGES

        require_installed(PACKAGES, "a model in ONNX Runtime")
    else:
        family.model_module(framework)
    if compile:
        if framework != "torch":
            raise UsageError("compile=True is for PyTorch", hint="framework='torch', or leave compile out")
        require_compiler()


def require_compiler() -> None:
    """Check that `torch.compile` can compile here, by compiling next to nothing.

    On CPUs its code is C++, so it wants a C++ compiler and Python's headers; whether both are there and work
    together only a trial can tell. What it compiled it keeps on the disk, so that a second trial is quick.
    """
    import torch

    def little(x: Any) -> Any:
        return x.sin() + 1

    try:
        torch.compile(little)(torch.zeros(8))
    except RuntimeError as error:  # what torch's compiler raises is derived from it, and private
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"torch.compile does not work here: {reason}",
            hint="install a C++ compiler (g++) and Python's headers, or leave compile out",
        ) from error


def _finished(
    recipe: _Recipe,
    *,
    framework: Framework,
    compile: bool,
    workspace: Workspace,
    located: Located | None = None,
) -> Any:
    """Make the model in its framework."""
    if framework == "onnxruntime":
        from ckptkit.models.onnx_model import onnx_model

        size = recipe.resolution or recipe.family.default_resolution(recipe.variant)
        return onnx_model(
            lambda: recipe.model("torch"),
            recipe.loaded,
            size=parse_size(size, "resolution"),
            features_only=recipe.features_only,
            key=None if located is None else _graph_key(located, recipe),
            workspace=workspace,
        )
    model = recipe.model(framework)
    if compile:
        # Shapes that may vary: a graph of MOAT was not compiled after nine minutes (torch 2.13, a busy CPU).
        model.compile(dynamic=False)
    return model


_NOT_IN_KEY = {"family", "loaded", "source"}


def _graph_key(located: Located, recipe: _Recipe) -> Mapping[str, Any] | None:
    """What a graph depends on; None where nothing short identifies the checkpoint, such as a folder."""
    source = Provenance(located).wait()
    if not source or recipe.source is None:
        return None
    return {
        "source": dict(source),
        "state_dict": located.state_dict,
        "strip_prefix": located.strip_prefix,
        "weights": wanted_copy(recipe.source.weights, located.entry),
        **{key: value for key, value in vars(recipe).items() if key not in _NOT_IN_KEY},
    }


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


def _require_same_pos_emb(located: Located, pos_emb: bool, found: Recognition) -> None:
    if pos_emb != found.structure.pos_emb:
        has = "has" if found.structure.pos_emb else "has no"
        raise UsageError(
            f"{located.path} {has} position embedding",
            hint="take the file of this entry, or give the variant instead of the id",
        )


def _named(
    named: Named, checkpoint: str | Path | Literal[True] | None, workspace: Workspace
) -> tuple[Entry | None, ExportedModel | None]:
    """The entry or the exported folder of this name; neither where it is a variant's."""
    if isinstance(named, Entry):
        return named, None
    if isinstance(named, str) and is_variant(named):
        return None, None
    if isinstance(named, str) and not (workspace.is_path(named) or "/" in named):
        return workspace.registry[named], None
    from ckptkit.families.model_config import open_exported

    found = open_exported(Path(named))
    if checkpoint not in (None, True):
        raise UsageError(f"{named} has weights of its own", hint="leave checkpoint out, or give the variant")
    return None, found


def _checkpoint(
    checkpoint: str | Path | Literal[True] | None, entry: Entry | None, variant: str, workspace: Workspace
) -> Located | None:
    if checkpoint is None:
        return None
    if checkpoint is not True:
        return workspace.locate(Path(checkpoint))
    if entry is None:
        raise UsageError(
            f"checkpoint=True needs an entry's id, {variant} is a variant", hint="see 'ckptkit list'"
        )
    return workspace.fetch(entry)


def _pos_embs(family: Family, wanted: bool | Unset, entry: Entry | None) -> Callable[[bool], bool]:
    """With or without position embedding: as wanted, else as the entry, else as the file has it."""
    if not family.has_pos_emb:
        if not isinstance(wanted, Unset) and wanted:
            raise UsageError(f"family {family.name} has no position embedding", hint="leave pos_emb out")
        return lambda _file: False
    if isinstance(wanted, Unset) and entry is not None and entry.pos_emb is not None:
        wanted = entry.pos_emb
    return lambda file: file if isinstance(wanted, Unset) else wanted
