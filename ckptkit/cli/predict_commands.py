"""``predict``: the command that says what pictures show."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.cli.completion import complete_ids
from ckptkit.cli.options import (
    FrameworkOption,
    ResolutionOption,
    SettingOptions,
    StateDictOption,
    StripPrefixOption,
    SyntheticOption,
    VariantOption,
    WeightsOption,
    WhichWeights,
    opened_source,
)
from ckptkit.cli.output import Column, ExitCode, Output
from ckptkit.cli.state import State, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.analysis.predict import Predicted, Prediction, Predictor
    from ckptkit.cli.output import Results
    from ckptkit.cli.thumbnails import Renderer
    from ckptkit.models import Framework
    from ckptkit.models.images.gathering import Fault, Gathering
    from ckptkit.parity.preparation import PreparationReport

_NO_KNOWLEDGE = "the weights are synthetic, random numbers: these predictions mean nothing"


def predict(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE",
            help="An id (fetched when it is not here), or a checkpoint file.",
            autocompletion=complete_ids,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE…", help="Image files, folders of them, URLs, or - for one on standard input."
        ),
    ],
    top: Annotated[int, typer.Option(metavar="K", help="How many classes to name.")] = 5,
    framework: FrameworkOption = "torch",
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images that go through at once.")] = 8,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into the folders of folders too.")
    ] = False,
    check_preprocessing: Annotated[
        bool,
        typer.Option(
            "--check-preprocessing",
            help="Also prepare each image by PyTorch alone and by TensorFlow alone, and compare.",
        ),
    ] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails/--no-thumbnails", help="Show each image, where the terminal can.")
    ] = True,
    synthetic: SyntheticOption = False,
    resolution: ResolutionOption = None,
    weights: WeightsOption = WhichWeights.AUTO,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    variant: VariantOption = None,
    settings: SettingOptions = None,
) -> None:
    """Name what images show: the likeliest of ImageNet's 1,000 classes, by any framework.

    Images are resized, cropped and normalized as the published evaluation of the checkpoint does it. One that
    cannot be read is named, the others are predicted, and 5 is returned; 1 when a preprocessing check fails.
    Needs Pillow and the framework. ONNX Runtime is the quickest on a CPU; its graph is exported once.

    Examples: ckptkit predict tiny-moat0-256 cat.jpg --synthetic
    · ckptkit predict moganet-xt-224 images/ --synthetic --framework onnxruntime --json
    """
    from ckptkit.analysis.predict import Predictor
    from ckptkit.analysis.runner import require_packages
    from ckptkit.models import framework_named

    state = state_of(context)
    runs_in = framework_named(framework)
    require_packages("predict", *(("torch", "keras") if check_preprocessing else (runs_in,)))
    gathering = _gathered(state, images, recursive=recursive, most_at_once=batch_size)
    with ExitStack() as stack, state.output.results() as show:
        run = _Run(state.output, show)
        for fault in gathering.faults:
            run.remember(fault)
        if gathering.pictures:
            source = stack.enter_context(
                opened_source(
                    state.workspace(),
                    what,
                    synthetic=synthetic,
                    resolution=resolution,
                    weights=weights,
                    state_dict=state_dict,
                    strip_prefix=strip_prefix,
                    variant=variant,
                    settings=settings,
                )
            )
            predictor = Predictor(source, runs_in, top, batch_size)
            _say_what_runs(state.output, source, runs_in)
            renderer = _renderer(state.output) if thumbnails else None
            run.go(predictor, gathering, _ExtrasOf(renderer, source, check=check_preprocessing))
            if source.synthetic:
                state.output.text(f"note: {_NO_KNOWLEDGE}")
    run.finish()


@dataclass(frozen=True)
class _Extras:
    """What is kept of a picture itself."""

    thumbnail: str | None
    check: PreparationReport | None


@dataclass(frozen=True)
class _ExtrasOf:
    """Makes a picture's thumbnail and checks its preparation, while it is in memory."""

    renderer: Renderer | None
    source: ModelSource
    check: bool

    def __call__(self, picture: Image) -> _Extras:
        from ckptkit.parity.preparation import compare_preparations

        return _Extras(
            self.renderer(picture) if self.renderer else None,
            compare_preparations(picture, self.source.preprocessing) if self.check else None,
        )


@dataclass
class _Run:
    """Results as they come, and what will have to be said at the end."""

    output: Output
    show: Results
    faults: list[Fault] = field(default_factory=list)
    checks_hold: bool = True

    def remember(self, fault: Fault) -> None:
        """Take down a picture that cannot be had."""
        self.faults.append(fault)
        self.show({"image": fault.name, "error": str(fault.error), "kind": type(fault.error).__name__})

    def go(self, predictor: Predictor, gathering: Gathering, extras: Callable[[Image], _Extras]) -> None:
        """Predict all pictures; a bar shows how far it is where the results themselves do not."""
        with ExitStack() as stack:
            count = len(gathering.pictures)
            advance = None
            if count > predictor.batch_size and not self.output.is_seen:
                advance = stack.enter_context(self.output.progress("predicting", count, unit="images"))
            on_fault = None if gathering.is_single else self.remember
            for predicted in predictor.predict(gathering.pictures, on_fault=on_fault, aside=extras):
                self._take(predicted)
                if advance is not None:
                    advance(1)

    def _take(self, predicted: Predicted) -> None:
        extras: _Extras = predicted.aside
        values = predicted.prediction.to_json()
        people = [partial(print_prediction, self.output, predicted.prediction, extras.thumbnail)]
        if extras.check is not None:
            self.checks_hold &= extras.check.ok
            values["preprocessing_check"] = extras.check.to_json()
            people.append(partial(print_check, self.output, extras.check))
        self.show(values, *people)

    def finish(self) -> None:
        """Name what is missing, and leave with the documented code."""
        for fault in self.faults:  # now, when no bar is in the way and nothing scrolls them off
            self.output.warn(str(fault.error))
        if self.faults:
            raise typer.Exit(int(ExitCode.DAMAGED))
        if not self.checks_hold:
            raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _gathered(state: State, images: list[str], *, recursive: bool, most_at_once: int) -> Gathering:
    """Look for the pictures; the fault of a single one is the command's."""
    import sys

    from ckptkit.models.images.gathering import Gatherer
    from ckptkit.store.mirrors import parse_mirrors

    # Two bars at once do not go together: among many pictures, the one that counts them is enough.
    progress = state.output.progress if len(images) <= most_at_once else None
    gatherer = Gatherer(
        recursive=recursive,
        offline=state.offline,
        mirrors=parse_mirrors(state.mirrors),
        stdin=getattr(sys.stdin, "buffer", None),
        progress=progress,
    )
    gathering = gatherer.gather(images)
    if gathering.faults and gathering.is_single:
        raise gathering.faults[0].error
    return gathering


def _say_what_runs(output: Output, source: ModelSource, framework: Framework) -> None:
    from ckptkit.analysis.predict import ONLY_NUMBERS
    from ckptkit.analysis.runner import FRAMEWORK_NAMES

    output.note(f"{source.name}: {source.variant} in {FRAMEWORK_NAMES[framework]}; {source.preprocessing}")
    if source.synthetic:
        output.warn(_NO_KNOWLEDGE)
    if source.num_classes != 1000:
        output.note(f"note: {ONLY_NUMBERS.format(source.num_classes)}")


def _renderer(output: Output) -> Renderer | None:
    import os
    import shutil

    from ckptkit.cli.thumbnails import choose_renderer

    if output.quiet or not output.is_seen:
        return None
    return choose_renderer(output.stdout, os.environ, shutil.get_terminal_size().columns)


def print_prediction(output: Output, prediction: Prediction, thumbnail: str | None = None) -> None:
    """Print one picture: its name, the picture where the terminal shows it, the table of classes."""
    output.text(prediction.image)
    if thumbnail is not None:
        output.picture(thumbnail)
    columns = [
        Column("rank", numeric=True),
        Column("probability", numeric=True),
        Column("class", numeric=True),
    ]
    rows = [[str(one.rank), f"{one.probability:.2%}", str(one.index)] for one in prediction.top]
    if prediction.best.name is not None:
        columns += [Column("wnid"), Column("name")]
        rows = [[*row, str(one.wnid), str(one.name)] for row, one in zip(rows, prediction.top, strict=True)]
    output.table(columns, rows)
    if not output.stdout.isatty():
        output.text("")


def print_check(output: Output, check: PreparationReport) -> None:
    """Print how far a picture's preparations lie apart."""
    from ckptkit.parity.preparation import LEVELS

    columns = [
        Column("preprocessing by"),
        Column("max levels", numeric=True),
        Column("mean levels", numeric=True),
        Column("allowed", numeric=True),
        Column("verdict"),
    ]
    rows = [
        [
            " and ".join(pair.sides),
            f"{pair.max_levels:.2f}",
            f"{pair.mean_levels:.4f}",
            str(LEVELS),
            pair.figures.verdict,
        ]
        for pair in check.pairs
    ]
    if rows:
        output.table(columns, rows, styles=[None if pair.figures.ok else "red" for pair in check.pairs])
    for pair in check.pairs:
        if not pair.figures.ok:
            output.text(pair.figures.reason)
    for note in check.notes:
        output.text(f"note: {note}")
    if not output.stdout.isatty():
        output.text("")


def register(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command(short_help="Name what images show.")(predict)
