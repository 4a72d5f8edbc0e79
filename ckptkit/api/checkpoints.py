"""Finding, fetching, checking, converting and reading checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from ckptkit.api.environment import logger, public, workspace_of_environment
from ckptkit.base.bars import seen_progress
from ckptkit.base.errors import UsageError, one_of, require_installed
from ckptkit.base.home import user_path
from ckptkit.base.progress import Progress, no_progress
from ckptkit.base.tensors import Array, float_named
from ckptkit.formats.names import format_to_write, is_folder

if TYPE_CHECKING:
    import torch

    from ckptkit.api.environment import BuiltInFormat, BuiltInLayout, Dtype
    from ckptkit.compare.diff import Difference, LayoutChoice
    from ckptkit.compare.inspect import Inspection, Sort
    from ckptkit.compare.rules_check import RulesCheck
    from ckptkit.compare.security import SecurityReport
    from ckptkit.compare.suggesting import Suggestion
    from ckptkit.compare.verify import VerifyReport
    from ckptkit.convert.loading import LoadedTensors
    from ckptkit.convert.planning import Plan
    from ckptkit.families.binding import Weights
    from ckptkit.registry.query import Registry
    from ckptkit.registry.schema import Entry
    from ckptkit.rules.mapping import RuleFile
    from ckptkit.workspace import Named

    _Path = Path
else:
    _Path = type(Path())  # what can be derived from before Python 3.12


@public
def registry(overlays: Sequence[str | Path] = ()) -> Registry:
    """Load the built-in registry, ``CKPTKIT_REGISTRY``'s and ``overlays`` on top of each other.

    Parameters
    ----------
    overlays : sequence of path or str
        Registry files; later ones override earlier ones by id. ``URL#sha256=HEX`` is a file at a URL, fetched
        once and kept in the cache.

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
    >>> small = ckptkit.registry().find(family="moat", pos_emb=True, max_params=6e6)
    >>> [entry.id for entry in small]
    ['tiny-moat0-256', 'tiny-moat1-256']
    """
    from ckptkit.families.base import registry_families
    from ckptkit.registry.loading import load_registry
    from ckptkit.store.registries import local_registries

    return load_registry(local_registries(overlays), registry_families)


@public
def fetch(
    id: str | Entry, *, force: bool = False, mirrors: Sequence[str] = (), progress: bool | Progress = True
) -> Path:
    """Download an entry, check it, unpack it; at once when it is here already.

    Parameters
    ----------
    id : str or Entry
        Registry id, or an entry of a registry.
    force : bool
        Download it again, and replace what is cached.
    mirrors : sequence of str
        Rules ``FROM=TO`` for the beginnings of URLs, before those of ``CKPTKIT_MIRROR``.
    progress : bool or callable
        A bar on a terminal or in a notebook, and nothing elsewhere; False: none. Or what draws another one: a
        function of a description and the number of bytes (None: not known) that gives a context manager; what
        that yields is called with the bytes that came since its last call.

    Returns
    -------
    Path
        What `convert` and `load` take.

    Raises
    ------
    NotFoundError, NetworkError, IntegrityError, StorageError
        Unknown id; every source failed; the bytes are not the promised ones; the disk refused.
    """
    shown = seen_progress if progress is True else progress or no_progress
    workspace = workspace_of_environment(shown, mirrors)
    return workspace.fetch(workspace.registry[id] if isinstance(id, str) else id, force=force).path


@public
def verify(
    what: Named,
    *,
    deep: bool = False,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
    structure: bool = False,
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
    structure : bool
        Only names, shapes and types, no values and no checksum; ``what`` may then be a URL.

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
        what,
        fetch=False,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
        far=structure or "give structure=True to verify names, shapes and types",
    )
    return verify_checkpoint(located, VerifyRequest(deep, weights, variant, structure))


class ConvertedPath(_Path):
    """The path of a converted checkpoint, and what of the source is not in it.

    Attributes
    ----------
    left_out : mapping of str to str
        Tensors of the source that a rule leaves out: which rule, and why.
    also_in_file : mapping of str to str
        What is not a tensor of the model (an epoch, the optimizer's state, texts), in a few words each.
    filled : mapping of str to str
        Tensors of the result that the source lacks, and what ``rules`` filled them with.
    """

    left_out: Mapping[str, str] = MappingProxyType({})
    filled: Mapping[str, str] = MappingProxyType({})
    also_in_file: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def of(cls, path: Path, conversion: Plan) -> ConvertedPath:
        """The path of a conversion's result."""
        result = cls(path)
        result.left_out, result.also_in_file = conversion.left_out, dict(conversion.also)
        result.filled = conversion.filled
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
    require: Literal["proven"] | None = None,
    check: bool = True,
) -> ConvertedPath:
    """Convert a checkpoint; see `ckptkit.convert.Options` for the choices.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path.
    to : {"safetensors", "torch", "tf", "keras", "keras2", "npz"}, optional
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
    require : {"proven"}, optional
        Refuse ``rules`` of which one is not proven.
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
    folder = output is not None and is_folder(output, to=to)
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
        require=require,
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

        logger.warning("%s: %s", located.name, describe_losses(outcome.converted.losses))
    return ConvertedPath.of(outcome.path, outcome.plan)


def _rules(path: str | Path | None, *, reverse: bool) -> RuleFile | None:
    if path is None and reverse:
        raise UsageError("reverse=True requires rules", hint="give rules=FILE too")
    if path is None:
        return None
    from ckptkit.rules.file import load_rules

    return load_rules(path, reverse=reverse)


@overload
def load(
    what: Named,
    layout: BuiltInLayout | str = ...,
    *,
    framework: Literal["numpy"] = ...,
    weights: Weights = ...,
    state_dict: str | None = ...,
    strip_prefix: str | Sequence[str] | None = ...,
    variant: str | None = ...,
) -> LoadedTensors[Array]: ...
@overload
def load(
    what: Named,
    layout: BuiltInLayout | str = ...,
    *,
    framework: Literal["torch"],
    weights: Weights = ...,
    state_dict: str | None = ...,
    strip_prefix: str | Sequence[str] | None = ...,
    variant: str | None = ...,
) -> LoadedTensors[torch.Tensor]: ...
@public
def load(
    what: Named,
    layout: BuiltInLayout | str = "torch",
    *,
    framework: Literal["numpy", "torch"] = "numpy",
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
) -> LoadedTensors[Any]:
    """Read a checkpoint of any format under the names of any layout; no framework is needed.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path.
    layout : str
        ``torch``, ``deeplab2`` or ``keras`` for MOAT, ``torch``, ``openmixup`` or ``keras`` for MogaNet;
        ``as-is`` for the file's own names, of any model.
    framework : {"numpy", "torch"}
        What the values are: arrays, or tensors for ``model.load_state_dict`` (bfloat16 included).
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
        A dict of str to numpy.ndarray or torch.Tensor. Its attribute ``left_out`` names the tensors of the
        file that a rule leaves out (a step counter, the other copy of the weights), each with the rule and
        why; ``also_in_file`` names what is not a tensor of the model (an epoch, the optimizer's state), in a
        few words each. Elements of a type that numpy and ml_dtypes have not come as numpy void.

    Raises
    ------
    NotFoundError, FormatError, ConversionError
        Nothing there; damaged; the tensors do not fit, or cannot be read and no rule leaves them out.
    """
    from ckptkit.convert.loading import load_tensors
    from ckptkit.convert.planning import AS_IS

    framework = cast(Literal["numpy", "torch"], one_of("framework", framework, ("numpy", "torch")))
    if framework == "torch":
        require_installed(["torch"], "torch tensors")
    located = workspace_of_environment().locate(what, state_dict=state_dict, strip_prefix=strip_prefix)
    with located.open(weights, unwrap=layout != AS_IS) as reader:
        loaded = load_tensors(reader, layout, weights=weights, variant=variant, entry=located.entry)
    if framework == "numpy":
        return loaded
    from ckptkit.convert.loading import LoadedTensors
    from ckptkit.families.filling import in_torch

    return LoadedTensors(in_torch(loaded), loaded.plan)


@public
def inspect(
    what: Named,
    pattern: str | None = None,
    *,
    stats: bool = False,
    sort: Sort = "file",
    layout: BuiltInLayout | str | None = None,
    weights: Weights | None = None,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
) -> Inspection:
    """List the tensors of a file of any model, and what the file says of itself.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry, or a path, or a URL of which only the header is transferred.
    pattern : str, optional
        Only tensors whose name matches: a glob, or part of a name.
    stats : bool
        Also read the values: minimum, maximum, mean, deviation, zeros, NaN and infinities of each tensor.
    sort : {"file", "name", "size"}
        Order of the tensors; by size the largest comes first.
    layout : str, optional
        Give each tensor's name in this layout, too.
    weights : {"auto", "ema", "raw"}, optional
        Which copy, where a file holds both in state dicts of their own.
    state_dict, strip_prefix
        As for `load`.

    Returns
    -------
    Inspection
        ``.format``, ``.variant``, ``.totals``, ``.metadata``, ``.tensors`` (each with ``name``, ``shape``,
        ``dtype``, ``nbytes``), ``.to_json()``.

    Raises
    ------
    NotFoundError, FormatError
        Nothing there, or no tensor matches; damaged.

    Examples
    --------
    >>> import tempfile, ckptkit
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = ckptkit.synth("tiny-moat0", folder + "/")
    ...     found = ckptkit.inspect(model, "stem", sort="size")
    >>> found.format, found.variant, found.tensors[0].name
    ('tf', 'tiny-moat0', 'moat/stem/conv_1/kernel')
    """
    from ckptkit.compare.inspect import InspectRequest, inspect_file

    located = workspace_of_environment().locate(
        what,
        fetch=False,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
        far=not stats or "leave stats out",
    )
    return inspect_file(located, InspectRequest(pattern, sort, stats, layout, weights))


@public
def scan(what: Named) -> SecurityReport:
    r"""List what would run, or leave its folder, when a file is loaded elsewhere; nothing of it runs here.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry of what has been fetched, or a file or folder of any kind.

    Returns
    -------
    SecurityReport
        ``.ok`` (everything in it is known to be harmless), ``.verdict``; ``.findings``, each with
        ``severity`` (``"dangerous"``, ``"suspicious"``, ``"harmless"``), ``what``, ``why``, ``place``,
        ``offset``; ``.to_json()``.

    Raises
    ------
    NotFoundError, StorageError
        Nothing there; it cannot be read.

    Examples
    --------
    >>> import ckptkit, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "stranger.pkl")
    >>> _ = path.write_bytes(b"cos\nsystem\n(S'id'\ntR.")
    >>> report = ckptkit.scan(path)
    >>> report.ok, report.findings[0].what, report.findings[0].severity
    (False, 'os.system', 'dangerous')
    """
    from ckptkit.compare.scan import scan_path

    located = workspace_of_environment().locate(what, fetch=False)
    return scan_path(located.artefact or located.path)


@public
def diff(
    a: Named,
    b: Named,
    *,
    layout: LayoutChoice = "auto",
    weights: Weights = "auto",
    weights_b: Weights | None = None,
    state_dict: str | None = None,
    state_dict_b: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    strip_prefix_b: str | Sequence[str] | None = None,
    rules: str | Path | None = None,
    reverse: bool = False,
    only: str | None = None,
    tolerance: float = 0.0,
    relative: float = 0.0,
    ignore_dtype: bool = False,
    metadata: bool = False,
    everything: bool = False,
    names_only: bool = False,
) -> Difference:
    """Compare two checkpoints of any format and layout, tensor by tensor.

    Tensors of two files of one family are paired by what they are, in one axis order; all others by name.

    Parameters
    ----------
    a, b : str, Path or Entry
        Ids or entries of fetched entries, or paths; figures are relative to ``a``.
    layout : {"auto", "as-is"}
        ``as-is`` pairs by plain names and leaves axes alone.
    weights, state_dict, strip_prefix
        As for `load`; those that end in ``_b`` are for ``b`` if it differs.
    rules, reverse
        As for `convert`: what they make of ``a`` is compared with ``b``.
    only : str, optional
        Only tensors whose name matches: a glob, or part of a name.
    tolerance, relative : float
        Largest difference allowed, absolute, or as a share of the largest value of that tensor in ``a``;
        either suffices.
    ignore_dtype : bool
        Ignore differences in element type alone.
    metadata : bool
        Compare metadata and settings too.
    everything : bool
        Count what a rule leaves out too: step counters, the optimizer's state, the other copy.
    names_only : bool
        Compare only names, shapes and types; ``a`` and ``b`` may then be URLs.

    Returns
    -------
    Difference
        ``.same``, ``.verdict``, ``.changed``, ``.only_a``, ``.only_b``, ``.to_json()``.

    Raises
    ------
    NotFoundError, FormatError, UsageError
        Nothing there; damaged; the options make no sense.
    """
    from ckptkit.compare.diff import DiffRequest, compare_files

    request = DiffRequest(
        layout=layout,
        weights=weights,
        weights_b=weights_b,
        state_dict=state_dict,
        state_dict_b=state_dict_b,
        strip_prefix=strip_prefix,
        strip_prefix_b=strip_prefix_b,
        only=only,
        rules=_rules(rules, reverse=reverse),
        everything=everything,
        metadata=metadata,
        tolerance=tolerance,
        relative=relative,
        ignore_dtype=ignore_dtype,
        names_only=names_only,
    )
    workspace = workspace_of_environment()
    far = names_only or "give names_only=True to compare names, shapes and types"
    first, second = (workspace.locate(one, fetch=False, far=far) for one in (a, b))
    return compare_files(first, second, request)


@public
def synth(
    what: str | Entry,
    output: str | Path | None = None,
    *,
    layout: BuiltInLayout | str | None = None,
    pos_emb: bool = True,
    ema: bool = False,
    bn_statistics: bool = True,
    force: bool = False,
) -> Path:
    """Write a synthetic checkpoint in the published format: no download, the same bytes everywhere.

    Parameters
    ----------
    what : str or Entry
        Id or entry of a registry, or a variant such as ``tiny-moat0``.
    output : path, optional
        File as published (``.tar.gz``, ``.pth``, ``.pth.tar``), a TensorFlow prefix (``.ckpt``), or a folder;
        default the current folder, by the id.
    layout : str, optional
        Published layout: ``openmixup`` or ``torch`` (timm style) for MogaNet, ``deeplab2`` for MOAT.
    pos_emb : bool
        Whether a MOAT variant has position tables.
    ema : bool
        Write moving averages and raw weights, both.
    bn_statistics : bool
        False: without BatchNorm's statistics, as the first uploads of MOAT are.
    force : bool
        Replace an existing output.

    Returns
    -------
    Path
        The file, or the prefix.

    Raises
    ------
    NotFoundError, UsageError, StorageError
        No such entry or variant; the output exists, or its name says another format; the disk refused.
    """
    from ckptkit.models.synth import published_ending, synthetic_as, write_checkpoint

    registry = workspace_of_environment().registry
    synthetic = synthetic_as(what, registry, layout=layout, pos_emb=pos_emb, ema=ema, bn=bn_statistics)
    path = Path() if output is None else user_path(output)
    if output is None or is_folder(output):
        path /= f"{what if isinstance(what, str) else what.id}{published_ending(synthetic)}"
    return write_checkpoint(synthetic, path, force=force)


@public
def suggest_rules(
    source: Named,
    target: Named,
    *,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    state_dict_target: str | None = None,
    strip_prefix_target: str | Sequence[str] | None = None,
    values: bool = True,
    prove: str | Path | None = None,
) -> Suggestion:
    """Draft the rules that lead from one model's checkpoint to another's, for `convert`.

    Parameters
    ----------
    source : str, Path or Entry
        A checkpoint, or a JSON file of names and shapes, as ``ckptkit inspect --json`` prints it.
    target : str, Path or Entry
        The same; or ``"package.module:function"``, which builds a PyTorch module (on the meta device) or a
        Keras model. That runs your code, in a process of its own.
    state_dict, strip_prefix
        As for `load`; those that end in ``_target`` are for the target.
    values : bool
        Compare values where both are checkpoints; False: decide by names and shapes alone.
    prove : path, optional
        A case file, as `parity` takes it: what is ambiguous is decided by outputs. The right side is the
        port; it is filled from the source by the rules, with every answer that may be right, until both sides
        agree. What no other answer makes agree becomes proven.

    Returns
    -------
    Suggestion
        ``.text`` is the file of rules, ``.write(path)`` writes it; ``.ok``, ``.tensors`` (how many are
        proven, forced, guessed, ambiguous), ``.questions``, ``.uncovered``, ``.unused``, ``.to_json()``.

    Raises
    ------
    NotFoundError, FormatError, UsageError
        Nothing there; damaged; no such function.
    ConversionError
        The two have nothing in common, or the function failed.

    Examples
    --------
    >>> import ckptkit, json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> a = {"net/fc/kernel": [8, 4], "net/fc/bias": [4]}
    >>> b = {"fc.weight": [4, 8], "fc.bias": [4]}
    >>> _ = (folder / "a.json").write_text(json.dumps(a))
    >>> _ = (folder / "b.json").write_text(json.dumps(b))
    >>> found = ckptkit.suggest_rules(folder / "a.json", folder / "b.json")
    >>> found.ok, found.tensors["forced"]
    (True, 2)
    >>> [rule.keys for rule in found.drafts][0]
    {'source': 'net/fc/kernel', 'target': 'fc.weight', 'axes': 'i o -> o i'}
    """
    from ckptkit.compare.suggesting import SuggestRequest
    from ckptkit.compare.suggesting import suggest_rules as suggest

    request = SuggestRequest(state_dict, strip_prefix, state_dict_target, strip_prefix_target, values)
    found = suggest(workspace_of_environment(), source, target, request)
    if prove is None:
        return found
    from ckptkit.parity.settle import settle

    return settle(found, prove, request)


@public
def check_rules(
    rules: str | Path,
    source: Named,
    target: Named | None = None,
    *,
    reverse: bool = False,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
) -> RulesCheck:
    """Check what a file of rules fits and what not, without converting or reading values.

    Parameters
    ----------
    rules : path
        A YAML file, as `convert` takes it.
    source : str, Path or Entry
        A checkpoint, or a JSON file of names and shapes, as ``ckptkit inspect --json`` prints it.
    target : str, Path or Entry, optional
        What the result should have: the same; or ``"package.module:function"``, as for `suggest_rules`.
    reverse : bool
        Read ``rules`` from the target to the source.
    state_dict, strip_prefix
        As for `load`, of ``source``.

    Returns
    -------
    RulesCheck
        ``.ok``, ``.verdict``; ``.faults`` with their lines, ``.missing``, ``.unexpected``, ``.other_shape``,
        ``.left_out``, ``.filled``, ``.to_json()``.

    Raises
    ------
    NotFoundError, FormatError, UsageError
        Nothing there; damaged; the file of rules itself has faults.

    Examples
    --------
    >>> import ckptkit, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> shapes = '{"fc/kernel": [8, 4], "fc/bias": [4]}'
    >>> _ = (folder / "a.json").write_text(shapes)
    >>> text = "{version: 2, rules: [{source: fc/kernel, target: fc.w}]}"
    >>> _ = (folder / "rules.yaml").write_text(text)
    >>> found = ckptkit.check_rules(folder / "rules.yaml", folder / "a.json")
    >>> found.ok, found.faults[0].what
    (False, '1 tensor fits no rule: fc/bias')
    """
    from ckptkit.compare.rules_check import check_files
    from ckptkit.rules.file import load_rules

    return check_files(
        workspace_of_environment(),
        load_rules(rules, reverse=reverse),
        source,
        target,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
    )
