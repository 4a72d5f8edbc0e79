"""Finding, fetching, checking, converting and reading checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptkit.api.environment import logger, public, workspace_of_environment
from ckptkit.base.errors import UsageError
from ckptkit.base.home import user_path
from ckptkit.base.tensors import float_named
from ckptkit.formats.names import format_to_write, is_folder

if TYPE_CHECKING:
    from ckptkit.api.environment import BuiltInFormat, BuiltInLayout, Dtype
    from ckptkit.compare.verify import VerifyReport
    from ckptkit.convert.loading import LoadedTensors
    from ckptkit.convert.planning import Plan
    from ckptkit.families.binding import Weights
    from ckptkit.registry.query import Registry
    from ckptkit.registry.schema import Entry
    from ckptkit.rules.file import RuleFile
    from ckptkit.workspace import Named

    _Path = Path
else:
    _Path = type(Path())  # what can be derived from before Python 3.12


@public
def registry(overlays: Sequence[str | Path] = ()) -> Registry:
    """Load the built-in registry, ``CKPTKIT_REGISTRY``'s and ``overlays`` on top of each other.

    Parameters
    ----------
    overlays : sequence of path
        Registry files; later ones override earlier ones by id.

    Returns
    -------
    Registry
        A mapping from id to a frozen entry, with ``.find(...)``.

    Raises
    ------
    RegistryError
        When a file breaks the schema; lists every fault with its line.

    Examples
    --------
    >>> import ckptkit
    >>> ckptkit.registry()["moat2-384-noposemb"].published_top1
    87.2
    >>> [entry.id for entry in ckptkit.registry().find(family="moat", pos_emb=True, max_params=6e6)]
    ['tiny-moat0-256', 'tiny-moat1-256']
    """
    from ckptkit.families.base import registry_families
    from ckptkit.registry.loading import load_registry

    return load_registry(tuple(Path(path) for path in overlays), registry_families)


@public
def fetch(id: str | Entry) -> Path:
    """Download an entry, check it, unpack it; at once when it is here already.

    Parameters
    ----------
    id : str or Entry
        Registry id, or an entry of a registry.

    Returns
    -------
    Path
        What `convert` and `load` take.

    Raises
    ------
    NotFoundError, NetworkError, IntegrityError, StorageError
        Unknown id; every source failed; the bytes are not the promised ones; the disk refused.
    """
    workspace = workspace_of_environment()
    return workspace.fetch(workspace.registry[id] if isinstance(id, str) else id).path


@public
def verify(
    what: Named,
    *,
    deep: bool = False,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
) -> VerifyReport:
    """Check a file against its checksum, its container, its architecture and common sense.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry of a fetched entry, or a path.
    deep : bool
        Also compare every tensor with the checksum stored beside it.
    weights : {"auto", "ema", "raw"}
        Which copy to set against the architecture.
    state_dict, strip_prefix
        As for `load`.
    variant : str, optional
        Overrides what the file is recognised as.

    Returns
    -------
    VerifyReport
        ``.ok``, ``.checks``, ``.to_json()``.

    Raises
    ------
    NotFoundError, FormatError
        Nothing there; the container itself is damaged.
    """
    from ckptkit.compare.verify import VerifyRequest, verify_checkpoint

    located = workspace_of_environment().locate(
        what, fetch=False, state_dict=state_dict, strip_prefix=strip_prefix
    )
    return verify_checkpoint(located, VerifyRequest(deep, weights, variant))


class ConvertedPath(_Path):
    """The path of a converted checkpoint, and what of the source is not in it.

    Attributes
    ----------
    left_out : mapping of str to str
        Tensors of the source that a rule leaves out: which rule, and why.
    also_in_file : mapping of str to str
        What is not a tensor of the model (an epoch, the optimizer's state, texts), in a few words each.
    """

    left_out: Mapping[str, str] = MappingProxyType({})
    also_in_file: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def of(cls, path: Path, conversion: Plan) -> ConvertedPath:
        """The path of a conversion's result."""
        result = cls(path)
        result.left_out, result.also_in_file = conversion.left_out, dict(conversion.also)
        return result


@public
def convert(
    what: Named,
    to: BuiltInFormat | str | None = None,
    output: str | Path | None = None,
    *,
    force: bool = False,
    layout: BuiltInLayout | str | None = None,
    dtype: Dtype | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    head: bool = True,
    allow_missing_bn: bool = False,
    variant: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    rules: str | Path | None = None,
    reverse: bool = False,
    check: bool = True,
) -> ConvertedPath:
    """Convert a checkpoint; see `ckptkit.convert.Options` for the choices.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path.
    to : {"safetensors", "torch", "tf", "keras", "npz"}, optional
        Format. Default: as the ending of ``output`` says, else safetensors.
    output : path, optional
        File, prefix for ``tf``, or a folder: one that is there, or a name that ends in a slash. Default: the
        cache for an id, the current folder for a file.
    force : bool
        Replace an existing output.
    layout, dtype, weights, head, allow_missing_bn, variant
        As in `ckptkit.convert.Options`.
    state_dict, strip_prefix
        As for `load`.
    resolution : int or (int, int), optional
        Resize MOAT's position tables for an input of this side, or height and width, in pixels.
    settings : mapping of str to Any, optional
        Behaviour settings for the metadata where no entry says them: ``{"attn_force_fp32": True}``.
    rules : path, optional
        A YAML file of your own names and axis orders, for a model of any family.
    reverse : bool
        Read ``rules`` from the target to the source.
    check : bool
        Read the result back and compare.

    Returns
    -------
    ConvertedPath
        The file written; for ``tf`` the prefix. Its attributes ``left_out`` and ``also_in_file`` name what
        of the source is not in it.

    Raises
    ------
    UsageError, ConversionError, FormatError, StorageError, IntegrityError
        The options make no sense or the output exists; tensors do not fit; the source is damaged; the
        disk refused; the result read back differs.
    """
    from ckptkit.base.parse import parse_size
    from ckptkit.convert.pipeline import Options, convert_checkpoint, planned_paths

    workspace = workspace_of_environment()
    folder = output is not None and is_folder(output)
    options = Options(
        to=format_to_write(to, None if folder else output, what),
        layout=layout,
        dtype=float_named(dtype) if dtype is not None else None,
        weights=weights,
        head=head,
        allow_missing_bn=allow_missing_bn,
        variant=variant,
        settings=settings or {},
        resolution=None if resolution is None else parse_size(resolution, "resolution"),
        rules=_rules(rules, reverse=reverse),
    )
    located = workspace.locate(what, state_dict=state_dict, strip_prefix=strip_prefix)
    (path,) = planned_paths(
        [located], options, user_path(output) if output is not None else None, folder=folder
    )
    outcome = convert_checkpoint(
        located,
        options,
        workspace,
        output=path,
        force=force,
        check=check,
    )
    if outcome.converted is not None and outcome.converted.losses:
        from ckptkit.convert.execution import describe_losses

        logger.warning("%s: %s", what, describe_losses(outcome.converted.losses))
    return ConvertedPath.of(outcome.path, outcome.plan)


def _rules(path: str | Path | None, *, reverse: bool) -> RuleFile | None:
    if path is None and reverse:
        raise UsageError("reverse=True requires rules", hint="give rules=FILE too")
    if path is None:
        return None
    from ckptkit.rules.file import load_rules

    return load_rules(path, reverse=reverse)


@public
def load(
    what: Named,
    layout: BuiltInLayout | str = "torch",
    *,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
) -> LoadedTensors:
    """Read a checkpoint of any format under the names of any layout; no framework is imported.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path.
    layout : str
        ``torch``, ``deeplab2`` or ``keras`` for MOAT, ``torch``, ``openmixup`` or ``keras`` for MogaNet;
        ``as-is`` for the file's own names, of any model.
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both.
    state_dict : str, optional
        Which state dict of a PyTorch file that holds several: the keys that lead to it, joined by dots
        (``model.state_dict``). Where keys have dots themselves, the longest that fits is taken.
    strip_prefix : str or sequence of str, optional
        What to take off the front of every tensor's name, one after the other. What wrappers put before the
        names of a known model is taken off anyway.
    variant : str, optional
        Overrides what the file is recognised as.

    Returns
    -------
    LoadedTensors
        A dict of str to numpy.ndarray. Its attribute ``left_out`` names the tensors of the file that a rule
        leaves out (a step counter, the other copy of the weights), each with the rule and why;
        ``also_in_file`` names what is not a tensor of the model (an epoch, the optimizer's state), in a few
        words each. Elements of a type that numpy and ml_dtypes have not come as numpy void.

    Raises
    ------
    NotFoundError, FormatError, ConversionError
        Nothing there; damaged; the tensors do not fit, or cannot be read and no rule leaves them out.
    """
    from ckptkit.convert.loading import load_tensors
    from ckptkit.convert.planning import AS_IS

    located = workspace_of_environment().locate(what, state_dict=state_dict, strip_prefix=strip_prefix)
    with located.open(weights, unwrap=layout != AS_IS) as reader:
        return load_tensors(reader, layout, weights=weights, variant=variant, entry=located.entry)
