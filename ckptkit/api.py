"""The Python face: each public function, as `import ckptkit` offers it.

The functions stand on the environment's settings (``CKPTKIT_HOME``, ``CKPTKIT_REGISTRY``,
``CKPTKIT_MIRROR``); what they have to say goes to the ``ckptkit`` logger.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.errors import UsageError
from ckptkit.models import create_model
from ckptkit.workspace import Workspace

if TYPE_CHECKING:
    from ckptkit.convert.rules_file import RuleFile
    from ckptkit.families.binding import Weights
    from ckptkit.parity import ParityReport
    from ckptkit.registry import Registry
    from ckptkit.tensors import Array
    from ckptkit.verify import VerifyReport

__all__ = ["convert", "create_model", "fetch", "load", "parity", "registry", "verify"]

_logger = logging.getLogger("ckptkit")


def _workspace() -> Workspace:
    return Workspace(note=_logger.info, warn=_logger.warning)


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
    from ckptkit.registry import load_registry

    return load_registry(tuple(Path(path) for path in overlays))


def fetch(id: str) -> Path:
    """Download an entry, check it, unpack it; at once when it is here already.

    Parameters
    ----------
    id : str
        Registry id.

    Returns
    -------
    Path
        What `convert` and `load` take.

    Raises
    ------
    NotFoundError, NetworkError, IntegrityError, StorageError
        Unknown id; every source failed; the bytes are not the promised ones; the disk refused.
    """
    workspace = _workspace()
    return workspace.fetch(workspace.registry[id]).path


def verify(
    what: str | Path, *, deep: bool = False, weights: Weights = "auto", variant: str | None = None
) -> VerifyReport:
    """Check a file against its checksum, its container, its architecture and common sense.

    Parameters
    ----------
    what : str or Path
        Id of a fetched entry, or a path.
    deep : bool
        Also compare every tensor with the checksum stored beside it.
    weights : {"auto", "ema", "raw"}
        Which copy to set against the architecture.
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
    from ckptkit.verify import verify_checkpoint

    located = _workspace().locate(what, fetch=False)
    return verify_checkpoint(located, deep=deep, weights=weights, variant=variant)


def convert(
    what: str | Path,
    to: str = "safetensors",
    output: str | Path | None = None,
    *,
    force: bool = False,
    layout: str | None = None,
    dtype: str | None = None,
    weights: Weights = "auto",
    head: bool = True,
    allow_missing_bn: bool = False,
    variant: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    rules: str | Path | None = None,
    reverse: bool = False,
    check: bool = True,
) -> Path:
    """Convert a checkpoint; see `ckptkit.convert.Options` for the choices.

    Parameters
    ----------
    what : str or Path
        Id (fetched when it is not here) or path.
    to : {"safetensors", "torch", "tf", "keras", "npz"}
        Format.
    output : path, optional
        File, prefix for ``tf``, or an existing folder. Default: the cache for an id, the current folder
        for a file.
    force : bool
        Replace an existing output.
    layout, dtype, weights, head, allow_missing_bn, variant
        As in `ckptkit.convert.Options`.
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
    Path
        The file written; for ``tf`` the prefix.

    Raises
    ------
    UsageError, ConversionError, FormatError, StorageError, IntegrityError
        The options make no sense or the output exists; tensors do not fit; the source is damaged; the
        disk refused; the result read back differs.
    """
    from ckptkit.convert import Options
    from ckptkit.convert.whole import convert_located
    from ckptkit.families.settings import parse_size

    workspace = _workspace()
    options = Options(
        to=to,
        layout=layout,
        dtype=dtype,
        weights=weights,
        head=head,
        allow_missing_bn=allow_missing_bn,
        variant=variant,
        settings=settings or {},
        resolution=None if resolution is None else parse_size(resolution, "resolution"),
        rules=_rules(rules, reverse=reverse),
    )
    outcome = convert_located(
        workspace.locate(what),
        options,
        workspace,
        output=Path(output) if output is not None else None,
        force=force,
        check=check,
    )
    if outcome.converted is not None and outcome.converted.losses:
        from ckptkit.convert.rounding import in_words

        _logger.warning("%s: %s", what, in_words(outcome.converted.losses))
    return outcome.path


def _rules(path: str | Path | None, *, reverse: bool) -> RuleFile | None:
    if path is None and reverse:
        raise UsageError("reverse=True has no meaning without rules", hint="give rules=FILE too")
    if path is None:
        return None
    from ckptkit.convert.rules_file import load_rules

    return load_rules(path, reverse=reverse)


def load(
    what: str | Path, layout: str = "torch", *, weights: Weights = "auto", variant: str | None = None
) -> dict[str, Array]:
    """Read a checkpoint of any format under the names of any layout; no framework is imported.

    Parameters
    ----------
    what : str or Path
        Id (fetched when it is not here) or path.
    layout : str
        ``torch``, ``deeplab2`` or ``keras`` for MOAT, ``torch``, ``openmixup`` or ``keras`` for MogaNet;
        ``as-is`` for the file's own names, of any model.
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both.
    variant : str, optional
        Overrides what the file is recognised as.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    NotFoundError, FormatError, ConversionError
        Nothing there; damaged; the tensors do not fit.
    """
    from ckptkit.convert import load_tensors
    from ckptkit.families.binding import wanted_copy
    from ckptkit.formats.detect import open_reader

    located = _workspace().locate(what)
    with open_reader(located.path, weights=wanted_copy(weights, located.entry)) as reader:
        return load_tensors(reader, layout, weights=weights, variant=variant, entry=located.entry)


def parity(
    what: str | Path,
    *,
    synthetic: bool = False,
    batch: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    seed: int | None = None,
    image: str | Path | None = None,
    weights: Weights = "auto",
    dtype: str | None = None,
    converted: str | Path | None = None,
    variant: str | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ParityReport:
    """Run the forward pass in both frameworks and compare it stage by stage.

    Parameters
    ----------
    what : str or Path
        Id (fetched when it is not here) or path; with ``synthetic`` an id or a variant.
    synthetic : bool
        Use synthetic weights by recipe; needs no download.
    batch : int, optional
        Random images, default 2.
    resolution : int or (int, int), optional
        Input (height, width); default the entry's test resolution.
    seed : int, optional
        Of the random images.
    image : path, optional
        A picture instead of random images.
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both.
    dtype : str, optional
        Round the conversion to ``float16`` or ``bfloat16``; the tolerance follows.
    converted : path, optional
        A conversion of ``what`` to be proven, instead of a fresh one.
    variant : str, optional
        Overrides what the file is recognised as.
    allow_missing_bn : bool
        Compare a file without BatchNorm statistics, with mean 0 and variance 1 on both sides.
    settings : mapping of str to Any, optional
        Behaviour settings where no entry says them; a file of which ``attn_force_fp32`` is not known is
        compared both ways.

    Returns
    -------
    ParityReport
        ``.ok``, ``.stages``, ``.first_departure``, ``.to_json()``.

    Raises
    ------
    MissingDependencyError
        When torch or tensorflow is not installed.
    """
    from ckptkit.parity import run_parity, synthetic_checkpoint

    workspace = _workspace()
    options: dict[str, Any] = {
        "batch": batch,
        "resolution": resolution,
        "seed": seed,
        "image": Path(image) if image is not None else None,
        "weights": weights,
        "dtype": dtype,
        "converted": Path(converted) if converted is not None else None,
        "variant": variant,
        "allow_missing_bn": allow_missing_bn,
        "settings": settings,
    }
    if not synthetic:
        return run_parity(workspace.locate(what), **options, note=_logger.info)
    from ckptkit.synth import synthetic_stand_in

    entry, stand_in = synthetic_stand_in(str(what), workspace.registry)
    with synthetic_checkpoint(stand_in, entry) as located:
        return run_parity(located, **options, synthetic=True, name=str(what), note=_logger.info)
