"""``cam``: pictures of where a model looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from ckptkit.cli.completion import complete_ids
from ckptkit.cli.options import (
    SourceOptions,
    State,
    state_of,
)
from ckptkit.cli.output import Column, Output

if TYPE_CHECKING:
    from ckptkit.analysis.cam.explain import Activations, Explainer
    from ckptkit.analysis.cam.picture import Heatmap, Style
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.base.errors import CkptkitError
    from ckptkit.models.images.gathering import Gathering, NamedPicture


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


@dataclass(frozen=True)
class _Request:
    """Which heat maps every picture gets."""

    method: str | None
    stage: str | None
    targets: tuple[str | None, ...]
    compare: Compare | None


@dataclass(frozen=True)
class _Planned:
    """A picture to be looked at, and the file its heat maps go to."""

    picture: NamedPicture
    path: Path


def cam(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE",
            autocompletion=complete_ids,
            help="An entry, or a checkpoint; with --synthetic an id or a variant.",
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE…", help="Image files, folders of them, URLs; - for stdin.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A .png, .jpg or .webp; for several images a folder, of PNGs.",
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
    from ckptkit.analysis.cam.picture import Style

    state = state_of(context)
    request = _request(method, stage, target, compare)
    style = Style(layout.value, alpha, colormap.value)
    require_packages()
    gathering = _gather(state, images, recursive=recursive)
    planned = _plan(gathering, output, force=force)
    with chosen.of(what).open(state.workspace()) as source:
        classes = head_classes(source)
        for wanted in request.targets:
            if wanted is not None:
                classes.find(wanted)
        if dry_run:
            _tell_plan(state.output, source, planned)
            return
        run = _Run(state.output, Explainer(source), request, style, force=force)
        for fault in gathering.faults:
            run.blame(fault.name, fault.error)
        with state.output.progress("looking at pictures", len(planned), unit="images") as advance:
            for plan in planned:
                run.look(plan)
                advance(1)
    run.report()


def _request(
    method: WhichMethod | None, stage: str | None, targets: Sequence[str] | None, compare: Compare | None
) -> _Request:
    """Check that the choices go together."""
    from ckptkit.base.errors import UsageError

    if compare is Compare.METHODS and method:
        raise UsageError("--compare methods shows all methods", hint="leave --method out")
    if compare is Compare.STAGES and stage:
        raise UsageError("--compare stages shows all stages", hint="leave --stage out")
    if compare and len(targets or ()) > 1:
        raise UsageError("--compare is for one class", hint="give --target once")
    if method is WhichMethod.EIGENCAM and len(targets or ()) > 1:
        raise UsageError(
            "eigencam is the same for every class", hint="give --target once, or another --method"
        )
    return _Request(method.value if method else None, stage, tuple(targets or (None,)), compare)


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


def _plan(gathering: Gathering, output: str, *, force: bool) -> list[_Planned]:
    """Find out where every picture goes, and whether it may be written there, before any work is done."""
    from ckptkit.analysis.cam.picture import ENDINGS
    from ckptkit.analysis.drawing import picture_kind
    from ckptkit.base.errors import UsageError
    from ckptkit.base.files import refuse_existing

    pictures, target = gathering.pictures, Path(output)
    if output.endswith("/") or target.is_dir() or not target.suffix:
        paths = list(_paths_in(target, pictures))
    elif len(pictures) > 1:
        raise UsageError(
            f"{len(pictures)} images cannot be written to one file, {output}", hint="give -o a folder: out/"
        )
    else:
        picture_kind(target, ENDINGS)
        paths = [target]
    for path in paths:
        refuse_existing(path, force=force)
    return [_Planned(picture, path) for picture, path in zip(pictures, paths, strict=True)]


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


def _tell_plan(output: Output, source: ModelSource, planned: Sequence[_Planned]) -> None:
    output.text(f"{source.name}: {source.preprocessing}")
    for plan in planned:
        output.text(f"would write {plan.path} from {plan.picture.name}")


class _Run:
    """Looks at one picture after another; what fails for one leaves the others alone."""

    def __init__(
        self, output: Output, explainer: Explainer, request: _Request, style: Style, *, force: bool
    ) -> None:
        self.output, self.explainer, self.request, self.style = output, explainer, request, style
        self.force = force
        self.done: list[tuple[_Planned, list[Heatmap]]] = []
        self.faults: list[tuple[str, CkptkitError]] = []

    def blame(self, name: str, error: CkptkitError) -> None:
        """Note that a picture failed."""
        self.faults.append((name, error))

    def look(self, plan: _Planned) -> None:
        """Make one picture's heat maps and write them."""
        from ckptkit.analysis.cam.picture import compose, save_picture
        from ckptkit.base.errors import CkptkitError

        try:
            seen = self.explainer.forward(plan.picture.read())
        except CkptkitError as error:  # the others are looked at all the same
            self.blame(plan.picture.name, error)
            return
        heatmaps = list(self._heatmaps(seen))
        save_picture(compose(heatmaps, self.style), heatmaps, plan.path, force=self.force)
        self.done.append((plan, heatmaps))

    def _heatmaps(self, seen: Activations) -> Iterator[Heatmap]:
        from ckptkit.analysis.cam.methods import METHODS

        request = self.request
        target = request.targets[0]
        if request.compare is Compare.METHODS:
            for method in METHODS.values():
                if not method.many_passes or seen.is_last(request.stage):
                    yield seen.heatmap(method.name, request.stage, target)
        elif request.compare is Compare.STAGES:
            for stage in seen.stages:
                yield seen.heatmap(request.method or "gradcam", stage, target)
        else:
            for target in request.targets:
                yield seen.heatmap(request.method or "gradcam", request.stage, target)

    def report(self) -> None:
        """Print what was found; fails when a picture failed."""
        from ckptkit.cli.output import ExitCode

        if len(self.faults) == 1 and not self.done:
            raise self.faults[0][1]
        shown = [(str(p.path), p.picture.name, maps) for p, maps in self.done]
        self.output.result(
            [value for plan, heatmaps in self.done for value in _as_json(plan, heatmaps)],
            *([lambda: print_heatmaps(self.output, shown)] if shown else []),
        )
        self._warn()
        if self.faults:
            raise typer.Exit(int(ExitCode.DAMAGED))

    def _warn(self) -> None:
        if self.explainer.source.synthetic:
            self.output.warn("synthetic weights: neither the classes nor the heat mean anything")
        for plan, heatmaps in self.done:
            for one in heatmaps:
                if one.is_empty:
                    self.output.warn(
                        f"{plan.picture.name}: {one.method} finds no evidence for {one.class_name} "
                        f"at {one.stage}; the heat is zero everywhere"
                    )
        for name, error in self.faults:
            self.output.warn(f"{name} was left out: {error}")


def _as_json(plan: _Planned, heatmaps: Sequence[Heatmap]) -> list[dict[str, Any]]:
    return [{"image": plan.picture.name, "file": str(plan.path), **one.to_json()} for one in heatmaps]


def print_heatmaps(output: Output, shown: Sequence[tuple[str, str, Sequence[Heatmap]]]) -> None:
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
    output.table(columns, [_row(name, path, one) for path, name, maps in shown for one in maps])


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
