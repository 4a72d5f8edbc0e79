"""Proofs, pictures of the registry, training logs, hand-over to other tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ckptkit.api.environment import note, public, workspace_of_environment
from ckptkit.base.home import user_path
from ckptkit.base.tensors import float_named

if TYPE_CHECKING:
    from ckptkit.analysis.logs.readers import TrainingLog
    from ckptkit.analysis.profile import ProfileReport
    from ckptkit.api.environment import Dtype, ExportTarget
    from ckptkit.families.binding import Weights
    from ckptkit.parity.report import BackendName, CaseReport, ParityReport
    from ckptkit.registry.schema import Entry
    from ckptkit.workspace import Named


@overload
def parity(*, case: str | Path) -> CaseReport: ...


@overload
def parity(
    what: Named,
    *,
    synthetic: bool = False,
    batch: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    seed: int | None = None,
    image: str | Path | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    dtype: Dtype | None = None,
    converted: str | Path | None = None,
    backend: BackendName | None = None,
    variant: str | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ParityReport: ...


@public
def parity(
    what: Named | None = None,
    *,
    case: str | Path | None = None,
    synthetic: bool = False,
    batch: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    seed: int | None = None,
    image: str | Path | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    dtype: Dtype | None = None,
    converted: str | Path | None = None,
    backend: BackendName | None = None,
    variant: str | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ParityReport | CaseReport:
    """Run the forward pass in both frameworks and compare it stage by stage.

    Both run in processes of their own, which import their framework in each call: see `keep_processes`.

    Parameters
    ----------
    what : str, Path or Entry, optional
        Id or entry (fetched when it is not here) or path; with ``synthetic`` an id or a variant.
    case : path, optional
        A case file instead: any two models, each run in a process of its own. It takes no other argument.
    synthetic : bool
        Use synthetic weights by recipe; needs no download.
    batch, seed : int, optional
        Number and seed of the random images; default 2 and 20260101.
    image : path, optional
        A picture instead of random images.
    dtype : str, optional
        Round the conversion to ``float16`` or ``bfloat16``; the tolerance follows.
    converted : path, optional
        A conversion of ``what``, an ``.onnx`` file of it, or a recording, to be proven instead of a fresh
        conversion.
    backend : {"keras", "onnxruntime", "recorded"}, optional
        What PyTorch is compared with: the Keras model (the default), its own ONNX graph, or outputs that
        other code gave. Those are an ``.npz`` with any of ``logits`` (N, classes) and ``stage1``, ``stage2``
        … (N, H, W, C), made of ``images`` (N, H, W, 3) in the same file, or else of the seeded inputs
        ``numpy.random.Generator(numpy.random.Philox(key=seed)).standard_normal((N, H, W, 3), "float32")``.
    allow_missing_bn : bool
        Compare a file without BatchNorm statistics, with mean 0 and variance 1 on both sides.
    resolution, weights, state_dict, strip_prefix, variant, settings
        As for `ckptkit.predict`; a file of which ``attn_force_fp32`` is not known is compared both ways.

    Returns
    -------
    ParityReport or CaseReport
        ``.ok``, ``.stages``, ``.first_departure``, ``.to_json()``; of a case also ``.cause``.

    Raises
    ------
    UsageError
        When neither or both of ``what`` and ``case`` are given, or the case file has faults.
    ConversionError
        When a side of a case fails, or a checkpoint does not fit its model.
    MissingDependencyError
        When torch, or what the other side needs, is not installed.
    """
    from ckptkit.base.errors import UsageError

    if (what is None) == (case is None):
        raise UsageError(
            "parity takes either what or case", hint="parity(case=...) compares two models of a file"
        )
    if case is not None:
        from ckptkit.parity.any_model import prove_case

        return prove_case(user_path(case), note)
    assert what is not None
    from ckptkit.models.synth import named_checkpoint
    from ckptkit.parity.run import ParityRequest, prove

    workspace = workspace_of_environment()
    (request,) = ParityRequest(
        converted=user_path(converted) if converted is not None else None,
        batch=batch,
        resolution=resolution,
        seed=seed,
        image=Path(image) if image is not None else None,
        weights=weights,
        dtype=float_named(dtype) if dtype is not None else None,
        variant=variant,
        allow_missing_bn=allow_missing_bn,
        settings=settings,
        synthetic=synthetic,
    ).with_each(() if backend is None else (backend,))
    with named_checkpoint(
        what, workspace, synthetic=synthetic, state_dict=state_dict, strip_prefix=strip_prefix
    ) as (located, name):
        return prove(located, replace(request, name=name), note)


@public
def keep_processes() -> AbstractContextManager[object]:
    """Keep the processes in which `parity` runs models while a block lasts.

    Each imports its framework once for all calls in the block, instead of once for each call. They end with
    the block, and with this process in any case; one that was killed is started again.

    Returns
    -------
    context manager
        For a ``with`` statement. It counts in the thread that enters it; blocks may be in one another.

    Examples
    --------
    >>> import ckptkit
    >>> with ckptkit.keep_processes():
    ...     for id in ():  # such as ["tiny-moat0-256", "moganet-xt-224"]
    ...         print(ckptkit.parity(id).headline)
    """
    from ckptkit.parity.apart import kept_processes

    return kept_processes()


@public
def profile(
    what: str | Entry,
    *,
    resolution: int | tuple[int, int] | None = None,
    head: bool = True,
    pos_emb: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ProfileReport:
    """Count parameters and multiply-adds of a model, by module and beside the published figures.

    Needs no weights, but PyTorch. Counts as each family's publication does.

    Parameters
    ----------
    what : str or Entry
        Id or entry of a registry, or a variant.
    resolution : int or (int, int), optional
        Input (height, width) in pixels; default that of the published figures.
    head : bool
        Count the classification head too.
    pos_emb : bool, optional
        With or without position tables; default as the entry has it.
    settings : mapping of str to Any, optional
        Behaviour settings: ``{"attn_force_fp32": True}``.

    Returns
    -------
    ProfileReport
        ``.ok`` (whether the published figures are reproduced), ``.checks``, ``.profile`` with
        ``.parameters``, ``.multiply_adds`` and the tree of modules ``.root``, ``.to_json()``.

    Raises
    ------
    NotFoundError, UsageError, MissingDependencyError
        No such entry or variant; the model cannot be built so; torch is not installed.

    Examples
    --------
    >>> import ckptkit
    >>> ckptkit.profile("moganet-xt-224").profile.parameters
    2956066
    """
    from ckptkit.analysis.profile import profile_model

    return profile_model(
        what,
        registry=workspace_of_environment().registry,
        resolution=resolution,
        num_classes=1000 if head else None,
        pos_emb=pos_emb,
        settings=settings,
    )


@public
def export(
    what: Named,
    to: ExportTarget | None = None,
    output: str | Path | None = None,
    *,
    push: str | None = None,
    private: bool = False,
    push_synthetic: bool = False,
    force: bool = False,
    dtype: Dtype | None = None,
    features: bool = False,
    opset: int | None = None,
    synthetic: bool = False,
    resolution: int | tuple[int, int] | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Hand a checkpoint over to other tools, checked after it is written.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path; with ``synthetic`` an id or a variant.
    to : {"hf", "onnx", "saved-model", "keras", "backbone"}, optional
        A folder for the Hugging Face hub, which `create_model` loads; a graph that runs without ckptkit;
        a whole model for ``keras.saving.load_model`` after ``import ckptkit.keras``; headless weights as the
        published dense-prediction code loads them. An ``output`` that ends in ``.onnx`` or ``.keras`` says
        it too; ``keras`` makes a folder under any other name.
    output : path, optional
        Folder or file; default the current folder, by the source's name.
    push : str, optional
        ``ORG/NAME`` on the Hugging Face hub to send the folder to (``hf``, ``keras``).
    private : bool
        Whether a repository that has to be created is private.
    push_synthetic : bool
        Push synthetic weights, which is refused otherwise.
    force : bool
        Replace an existing output.
    dtype : str, optional
        ``float16`` or ``bfloat16`` (``hf``; ``backbone`` where its user casts).
    features : bool
        The stages' outputs instead of logits (graphs, ``keras``).
    opset : int, optional
        Of the ONNX operators.
    synthetic : bool
        Use synthetic weights by recipe; needs no download.
    resolution, weights, state_dict, strip_prefix, variant, settings
        As for `ckptkit.predict`.

    Returns
    -------
    Path
        The folder or file.

    Raises
    ------
    UsageError
        The options make no sense, or the output exists.
    MissingDependencyError
        A package that this export needs is not installed.
    IntegrityError
        What was written does not compute what it should; nothing was kept.
    NotFoundError, NetworkError, FormatError, ConversionError, StorageError
        No such checkpoint; not to be had, or the hub refuses; damaged; it does not fit; the disk refused.

    Examples
    --------
    >>> import tempfile, ckptkit
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = f"{folder}/moganet"
    ...     made = ckptkit.export("moganet-xt-224", "hf", target, synthetic=True)
    ...     sorted(path.name for path in made.iterdir() if path.suffix != ".py")
    ['README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    from ckptkit.analysis.model_source import SourceRequest
    from ckptkit.base.errors import IntegrityError
    from ckptkit.export.targets import ExportRequest, place_of, run_export

    workspace = workspace_of_environment()
    request = ExportRequest(
        to=to,
        output=output,
        dtype=float_named(dtype) if dtype is not None else None,
        features=features,
        opset=opset,
        force=force,
        push=push,
        private=private,
        push_synthetic=push_synthetic,
    )
    request.require(offline=workspace.offline, synthetic=synthetic)
    chosen = SourceRequest(what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings)
    with chosen.open(workspace) as source:
        if output is None:  # what is returned must still be there
            request = replace(request, output=place_of(source, request))
        exported = run_export(source, request)
    if not exported.ok:
        raise IntegrityError(f"{exported.path}: {exported.verdict}")
    return exported.path


@public
def plot(
    output: str | Path,
    entries: Iterable[Entry] | None = None,
    *,
    x: str = "params",
    y: str = "top1",
    log: bool = True,
    labels: bool = True,
    pareto: bool = True,
    dark: bool = False,
    size: tuple[float, float] = (9.0, 5.6),
    dpi: int = 200,
    title: str | None = None,
    force: bool = False,
) -> Path:
    """Draw published accuracy against parameters or FLOPs.

    Parameters
    ----------
    output : str or Path
        ``.png``, ``.svg`` or ``.pdf``: a picture, by matplotlib. ``.html``: a page to look into, one file
        that loads nothing.
    entries : iterable of entries, optional
        Default the whole registry. Those without a published figure for an axis are left out.
    x : {"params", "flops"}
    y : {"top1", "top5"}
    log : bool
        Logarithmic horizontal axis.
    labels, pareto : bool
        Names at the points; the line through those that no other beats at no greater cost.
    dark : bool
        Use a dark background.
    size : (float, float)
        Width and height of a picture, inches.
    dpi : int
        Pixels per inch of a PNG.
    title : str, optional
        An empty one leaves it out of a picture.
    force : bool
        Replace an existing file.

    Returns
    -------
    Path
        What was written: the same entries and options give the same bytes.

    Raises
    ------
    UsageError
        When the ending is none of these, nothing can be drawn, or the file exists.
    MissingDependencyError
        When a picture is wanted and matplotlib is not installed.

    Examples
    --------
    >>> import ckptkit, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tiny = ckptkit.registry().find(variant="tiny-moat*")
    ...     page = ckptkit.plot(f"{folder}/tiny.html", tiny)
    ...     page.name, page.stat().st_size > 0
    ('tiny.html', True)
    """
    from ckptkit.analysis.plot.figure import save_plot
    from ckptkit.analysis.plot.points import FigureOptions

    chosen = list(workspace_of_environment().registry.values() if entries is None else entries)
    options = FigureOptions(log=log, labels=labels, pareto=pareto, dark=dark, size=size, dpi=dpi, title=title)
    return save_plot(chosen, Path(output), x=x, y=y, options=options, force=force).path


@public
def logs(what: Named, *, refresh: bool = False) -> TrainingLog:
    """Read the training log that is published beside a checkpoint, or one of your own.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (its log is fetched once, then cached), or path of a ``.log.json`` of mmcv or a
        ``summary.csv`` of timm.
    refresh : bool
        Fetch the log of an entry again, even if it is cached.

    Returns
    -------
    TrainingLog
        ``.epochs``, ``.last``, ``.best()``, ``.published_top1``, ``.remarks``, ``.to_json()``; accuracies in
        percent, times in seconds.

    Raises
    ------
    NotFoundError
        When there is no such entry or file, or no log of the entry is published.
    NetworkError, FormatError, StorageError
        The log cannot be had; it is damaged; the disk refused.
    """
    from ckptkit.analysis.logs.log import read_log

    return read_log(what, workspace_of_environment(), refresh=refresh)
