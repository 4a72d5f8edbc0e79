"""``cam``: pictures of where a model looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from ckptkit.base.shown import Column
from ckptkit.base.text import counted
from ckptkit.cli.options import (
    SourceArgument,
    SourceOptions,
    State,
    state_of,
)
from ckptkit.cli.output import ExitCode, Output
from ckptkit.cli.remote_output import Place
from ckptkit.workspace import STANDARD

if TYPE_CHECKING:
    from ckptkit.analysis.cam.explain import Activations
    from ckptkit.analysis.cam.picture import Heatmap
    from ckptkit.models.images.gathering import Fault, Gathering, NamedPicture

    Drawn = tuple[str, Path, list[Heatmap]]
    """An image's name, the file written, and the heat maps in it."""


class WhichMethod(str, Enum):
    """Kinds of class activation map (`ckptkit.analysis.cam.METHODS`)."""

    GRADCAM = "gradcam"
    HIRESCAM = "hirescam"
    GRADCAM_PLUS_PLUS = "gradcam++"
    LAYERCAM = "layercam"
    EIGENCAM = "eigencam"
    ABLATIONCAM = "ablationcam"


class WhichLayout(str, Enum):
    """What the picture shows (`ckptkit.analysis.cam.LAYOUTS`)."""

    OVERLAY = "overlay"
    SIDE_BY_SIDE = "side-by-side"
    HEAT = "heat"


class WhichColormap(str, Enum):
    """Colours of the heat (`ckptkit.analysis.cam.COLORMAPS`)."""

    EMBER = "ember"
    LAGOON = "lagoon"
    GREY = "grey"


class Compare(str, Enum):
    """What to try one after the other."""

    METHODS = "methods"
    STAGES = "stages"


def cam(
    context: typer.Context,
    what: SourceArgument,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE…", help="Image files, folders of them, URLs; - for stdin.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A .png, .jpg or .webp; for several images a folder, of PNGs; -: a PNG on standard output.",
            metavar="PATH",
        ),
    ],
    method: Annotated[
        WhichMethod | None,
        typer.Option(
            help="How evidence is found; ablationcam is slow before the last stage.",
            show_default="gradcam",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="N|stageN", help="Stage whose map is shown; default: the last."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Class to explain: index, WordNet id or name; may be repeated; default: predicted class.",
        ),
    ] = None,
    compare: Annotated[
        Compare | None, typer.Option(help="Show all methods, or all stages, side by side.")
    ] = None,
    layout: Annotated[
        WhichLayout, typer.Option(help="Over the picture; picture, heat and both; or the heat alone.")
    ] = WhichLayout.OVERLAY,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the heat's colours in an overlay.")
    ] = 0.5,
    colormap: Annotated[WhichColormap, typer.Option(help="Colours, from no evidence to most.")] = (
        WhichColormap.EMBER
    ),
    recursive: Annotated[bool, typer.Option("--recursive", help="Search subfolders too.")] = False,
    chosen: SourceOptions = SourceOptions(),
    force: Annotated[bool, typer.Option("--force", help="Replace existing pictures.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written.")] = False,
) -> None:
    """Show where in a picture a model finds its evidence for a class, as heat maps: Grad-CAM and its kin.

    The picture is shown as the model saw it, resized and cut as its checkpoint wants it; the heat is the
    stage's map, enlarged. Needs PyTorch and captum: the extras torch and cam.

    Examples: ckptkit cam moganet-xt-224 cat.jpg -o heat.png --synthetic
    · ckptkit cam tiny-moat0-256 cat.jpg -o methods.png --compare methods --target tabby --synthetic
    · ckptkit cam tiny-moat0-256 images/ -o heat/ --stage 4 --layout side-by-side --synthetic
    """
    from ckptkit.analysis.cam.explain import Explainer, head_classes, require_packages
    from ckptkit.analysis.cam.picture import Style, compose, save_picture
    from ckptkit.base.errors import CkptkitError
    from ckptkit.models.images.gathering import Fault

    state = state_of(context)
    _refuse_contradictions(method, stage, target, compare)
    style = Style(layout.value, alpha, colormap.value)
    require_packages()
    gathering = _gather(state, images, recursive=recursive)
    with Place(state, STANDARD if output == STANDARD else None) as where, ExitStack() as stack:
        if where.path is not None:
            output = str(where.path / "heat.png")
            if len(gathering.pictures) > 1:
                where.refuse_several("these are several heat maps")
        paths = _paths(gathering.pictures, output, force=force)
        planned = list(zip(gathering.pictures, paths, strict=True))
        source = stack.enter_context(chosen.of(what).open(state.workspace()))
        classes = head_classes(source)
        for wanted in target or ():
            classes.find(wanted)
        if dry_run:
            state.output.text(f"{source.name}: {source.preprocessing}")
            plan = [{"image": one.name, "file": where.shown(path), "dry_run": True} for one, path in planned]
            lines = (f"would write {one['file']} from {one['image']}" for one in plan)
            state.output.result(plan, *lines)
            return
        explainer = Explainer(source)
        drawn: list[Drawn] = []
        faults = list(gathering.faults)
        with state.output.progress("looking at pictures", len(planned), unit="images") as advance:
            for picture, path in planned:
                try:
                    activations = explainer.forward(picture.read())
                except CkptkitError as error:  # the others are looked at all the same
                    faults.append(Fault(picture.name, error))
                else:
                    heatmaps = list(_heatmaps(activations, method, stage, target, compare))
                    save_picture(compose(heatmaps, style), heatmaps, path, force=force)
                    drawn.append((picture.name, path, heatmaps))
                advance(1)
        if where.is_elsewhere and drawn:
            where.deliver(drawn[0][1])
    _report(state.output, drawn, faults, synthetic=source.synthetic, printed=not where.is_elsewhere)


def _refuse_contradictions(
    method: WhichMethod | None, stage: str | None, targets: Sequence[str] | None, compare: Compare | None
) -> None:
    from ckptkit.base.errors import UsageError

    if compare is Compare.METHODS and method:
        raise UsageError("--compare methods shows all methods", hint="leave --method out")
    if compare is Compare.STAGES and stage:
        raise UsageError("--compare stages shows all stages", hint="leave --stage out")
    if compare and len(targets or ()) > 1:
        raise UsageError("--compare takes one class", hint="give --target once")
    if method is WhichMethod.EIGENCAM and len(targets or ()) > 1:
        raise UsageError(
            "eigencam is the same for every class", hint="give --target once, or another --method"
        )


def _gather(state: State, images: Sequence[str], *, recursive: bool) -> Gathering:
    """Look for the pictures; when none is there, that is the error."""
    from ckptkit.models.images.gathering import Gatherer
    from ckptkit.store.sources import parse_mirrors

    gathering = Gatherer(
        recursive=recursive,
        offline=state.offline,
        mirrors=parse_mirrors(state.mirrors),
        stdin=sys.stdin.buffer if "-" in images else None,
    ).gather(images)
    if not gathering.pictures:
        raise gathering.faults[0].error
    return gathering


def _paths(pictures: Sequence[NamedPicture], output: str, *, force: bool) -> list[Path]:
    """Where each picture's heat maps go, and that they may be written there, before any work is done."""
    from ckptkit.analysis.cam.picture import ENDINGS
    from ckptkit.analysis.drawing import picture_kind
    from ckptkit.base.errors import UsageError
    from ckptkit.base.files import refuse_existing

    target = Path(output)
    if output.endswith("/") or target.is_dir() or not target.suffix:
        paths = list(_paths_in(target, pictures))
    elif len(pictures) > 1:
        raise UsageError(
            f"{counted(len(pictures), 'image')} cannot be written to one file, {output}",
            hint="give -o a folder: out/",
        )
    else:
        picture_kind(target, ENDINGS)
        paths = [target]
    for path in paths:
        refuse_existing(path, force=force)
    return paths


def _paths_in(folder: Path, pictures: Sequence[NamedPicture]) -> Iterator[Path]:
    """A file in the folder for every picture, called as the picture; a second one of a name gets a number."""
    taken: set[str] = set()
    for picture in pictures:
        path = urlsplit(picture.name).path if "://" in picture.name else Path(picture.name).as_posix()
        stem = PurePosixPath(path).stem or "picture"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        yield folder / f"{name}.png"


def _heatmaps(
    activations: Activations,
    method: WhichMethod | None,
    stage: str | None,
    targets: Sequence[str] | None,
    compare: Compare | None,
) -> Iterator[Heatmap]:
    from ckptkit.analysis.cam.methods import METHODS

    name = method.value if method else "gradcam"
    classes: Sequence[str | None] = targets or [None]
    if compare is Compare.METHODS:
        for each in METHODS.values():
            if not each.many_passes or activations.is_last(stage):
                yield activations.heatmap(each.name, stage, classes[0])
    elif compare is Compare.STAGES:
        for one in activations.stages:
            yield activations.heatmap(name, one, classes[0])
    else:
        for target in classes:
            yield activations.heatmap(name, stage, target)


def _report(
    output: Output, drawn: Sequence[Drawn], faults: Sequence[Fault], *, synthetic: bool, printed: bool
) -> None:
    """Print what was found; fails when a picture failed."""
    if len(faults) == 1 and not drawn:
        raise faults[0].error
    values = [
        {"image": image, "file": str(path), **one.to_json()} for image, path, maps in drawn for one in maps
    ]
    output.result(values, *([lambda: print_heatmaps(output, drawn)] if drawn and printed else []))
    if synthetic:
        output.warn("synthetic weights: neither the classes nor the heat mean anything")
    for image, _, maps in drawn:
        for one in maps:
            if one.is_empty:
                output.warn(
                    f"{image}: {one.method} finds no evidence for {one.class_name} at {one.stage}; the heat "
                    "is zero everywhere"
                )
    for fault in faults:
        output.warn(f"{fault.name} was left out: {fault.error}")
    if faults:
        raise typer.Exit(int(ExitCode.DAMAGED))


def print_heatmaps(output: Output, drawn: Sequence[Drawn]) -> None:
    """Print a line for each heat map."""
    columns = [
        Column("image"),
        Column("class"),
        Column("probability", numeric=True),
        Column("method"),
        Column("stage"),
        Column("most heat at"),
        Column("written"),
    ]
    output.table(columns, [_row(image, str(path), one) for image, path, maps in drawn for one in maps])


def _row(name: str, path: str, one: Heatmap) -> list[str]:
    known = one.image_class
    what = f"{known.name} ({known.index})" if known else one.class_name
    peak = one.peak
    return [
        name,
        what + (", predicted" if one.predicted else ""),
        f"{one.probability:.1%}",
        one.method_title,
        one.stage,
        f"{peak.words}, x {peak.x:.0f} y {peak.y:.0f}" if peak else "nowhere",
        path,
    ]


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Show where in a picture a model looks.")(cam)
