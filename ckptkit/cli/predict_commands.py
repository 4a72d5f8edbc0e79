"""``predict``: the command that says what pictures show, with small ones on terminals that can show them.

Which terminal it is, the environment says; nothing is asked of the terminal itself, whose answer might arrive
in the middle of something else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from ckptkit.base.progress import no_progress
from ckptkit.base.shown import Column, Table
from ckptkit.base.text import csv_text
from ckptkit.cli.options import (
    Form,
    FrameworkOption,
    SourceArgument,
    SourceOptions,
    State,
    state_of,
)
from ckptkit.cli.output import ExitCode, Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from ckptkit.analysis.predict import Prediction, Predictor
    from ckptkit.cli.output import Results
    from ckptkit.models import Framework
    from ckptkit.models.images.gathering import Fault, Gathering
    from ckptkit.parity.inputs import PreparationReport


_WITH_PICTURES = 4
"""Images up to which thumbnails are shown."""
_MEANINGLESS = "the weights are synthetic, random numbers: these predictions mean nothing"


def predict(
    context: typer.Context,
    what: SourceArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE…", help="Image files, folders of them, URLs, or - for one on standard input."
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="How many classes to name; default: 5; of several images the likeliest, a row each.",
            show_default=False,
        ),
    ] = None,
    framework: FrameworkOption = "torch",
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images per batch.")] = 8,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders too.")] = False,
    check_preprocessing: Annotated[
        bool,
        typer.Option(
            "--check-preprocessing",
            help="Also prepare each image by PyTorch alone and by TensorFlow alone, and compare.",
        ),
    ] = False,
    thumbnails: Annotated[
        bool,
        typer.Option("--thumbnails/--no-thumbnails", help="Show up to 4 images, where the terminal can."),
    ] = True,
    form: Annotated[
        Form, typer.Option("--format", help="What to print; csv has a row for each image and class.")
    ] = Form.TABLE,
    chosen: SourceOptions = SourceOptions(),
) -> None:
    """Classify images: the most likely of ImageNet's 1,000 classes, in any framework.

    Images are resized, cropped and normalized as the published evaluation of the checkpoint does it. One that
    cannot be read is named, the others are predicted, and the exit status is 5; 1 when a preprocessing check
    fails. Needs Pillow and the framework. ONNX Runtime is the quickest on a CPU; its graph is exported once.

    Examples: ckptkit predict tiny-moat0-256 cat.jpg --synthetic
    · ckptkit predict moganet-xt-224 images/ --synthetic --framework onnxruntime --json
    · ckptkit predict tiny-moat0-256 images/ --synthetic --format csv
    """
    from ckptkit.analysis.predict import DEFAULT_TOP, Predictor
    from ckptkit.analysis.runner import require_packages
    from ckptkit.models import framework_named

    state = state_of(context)
    state.output.as_json |= form is Form.JSON
    runs_in = framework_named(framework)
    require_packages("predict", *(("torch", "keras") if check_preprocessing else (runs_in,)))
    gathering = _gathered(state, images, recursive=recursive, most_at_once=batch_size)
    with ExitStack() as stack, state.output.results() as show:
        in_rows = top is None and not check_preprocessing and len(gathering.pictures) > 1
        run = _Run(state.output, show, "csv" if form is Form.CSV else "rows" if in_rows else "blocks")
        for fault in gathering.faults:
            run.remember(fault)
        if gathering.pictures:
            source = stack.enter_context(chosen.of(what).open(state.workspace()))
            predictor = Predictor(source, runs_in, DEFAULT_TOP if top is None else top, batch_size)
            _note_model(state.output, predictor, runs_in)
            has_room = run.form == "blocks" and len(gathering.pictures) <= _WITH_PICTURES
            renderer = _renderer(state.output) if thumbnails and has_room else None
            run.predict(predictor, gathering, renderer, check=check_preprocessing)
            if source.synthetic and form is Form.TABLE:
                state.output.text(f"note: {_MEANINGLESS}")
    run.finish()


@dataclass
class _Run:
    """Results as they come, and what is reported at the end."""

    output: Output
    show: Results
    form: Literal["blocks", "rows", "csv"] = "blocks"
    rows: list[Prediction] = field(default_factory=list)  # for one table in the end
    faults: list[Fault] = field(default_factory=list)
    checks_hold: bool = True

    def remember(self, fault: Fault) -> None:
        """Take down a picture that cannot be had."""
        self.faults.append(fault)
        self.show({"image": fault.name, "error": str(fault.error), "kind": type(fault.error).__name__})

    def predict(
        self, predictor: Predictor, gathering: Gathering, renderer: Renderer | None, *, check: bool
    ) -> None:
        """Predict all pictures; a bar shows how far it is where the results themselves do not."""
        from ckptkit.parity.inputs import compare_preparations

        preprocessing = predictor.source.preprocessing

        def extra(picture: Image) -> tuple[str | None, PreparationReport | None]:
            thumbnail = renderer(picture) if renderer else None
            return thumbnail, compare_preparations(picture, preprocessing) if check else None

        count = len(gathering.pictures)
        comes_along = self.form == "blocks" and self.output.is_seen
        progress = self.output.progress if count > predictor.batch_size and not comes_along else no_progress
        on_fault = None if gathering.is_single else self.remember
        if self.form == "csv":
            self.output.document(csv_text([_CSV]))
        self.output.note("loading the model, and running it …")
        try:
            with progress("predicting", count, unit="images") as advance:
                for prediction in predictor.predict(gathering.pictures, on_fault=on_fault, extra=extra):
                    self._print(prediction, *prediction.extra)
                    advance(1)
        finally:  # of those before Ctrl+C, too
            if self.rows:
                self.output.show([best_guesses(self.rows)])

    def _print(self, prediction: Prediction, thumbnail: str | None, check: PreparationReport | None) -> None:
        values = prediction.to_json()
        if self.form == "rows":
            self.rows.append(prediction)
            return self.show(values)
        if self.form == "csv":
            return self.show(values, partial(self.output.document, csv_text(_csv_rows(prediction))))
        people = [partial(print_prediction, self.output, prediction, thumbnail)]
        if check is not None:
            self.checks_hold &= check.ok
            values["preprocessing_check"] = check.to_json()
            people.append(partial(print_check, self.output, check))
        return self.show(values, *people)

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
    from ckptkit.store.sources import parse_mirrors

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


def _note_model(output: Output, predictor: Predictor, framework: Framework) -> None:
    from ckptkit.analysis.predict import ONLY_NUMBERS, ONLY_TAGS, TAGS
    from ckptkit.analysis.runner import FRAMEWORK_NAMES

    source = predictor.source
    output.note(f"{source.name}: {source.variant} in {FRAMEWORK_NAMES[framework]}; {source.preprocessing}")
    if source.synthetic:
        output.warn(_MEANINGLESS)
    if source.has_tags:
        output.note(f"note: {TAGS.format(source.num_classes)}")
        if predictor.tag_names is None:
            output.note(f"note: {ONLY_TAGS}")
    elif source.num_classes != 1000:
        output.note(f"note: {ONLY_NUMBERS.format(source.num_classes)}")


def _renderer(output: Output) -> Renderer | None:
    import os
    import shutil

    if output.quiet or not output.is_seen:
        return None
    return choose_renderer(output.stdout, os.environ, shutil.get_terminal_size().columns)


def best_guesses(predictions: Sequence[Prediction]) -> Table:
    """The likeliest class of each picture, a row each."""
    columns = [Column("image"), Column("probability", numeric=True), Column("class", numeric=True)]
    if predictions[0].best.name is not None:
        columns.append(Column("name"))
    rows = [
        [one.image, f"{one.best.probability:.2%}", str(one.best.index), *filter(None, [one.best.name])]
        for one in predictions
    ]
    return Table(columns, rows)


_CSV = ("image", "rank", "class", "wnid", "name", "probability")


def _csv_rows(prediction: Prediction) -> Iterator[list[str]]:
    for guess in prediction.top:
        known = [guess.wnid or "", guess.name or ""]
        yield [prediction.image, str(guess.rank), str(guess.index), *known, repr(guess.probability)]


def print_prediction(output: Output, prediction: Prediction, thumbnail: str | None = None) -> None:
    """Print one picture: its name, the picture where the terminal shows it, the table of classes."""
    name, *table = prediction.pieces()
    output.show([name])
    if thumbnail is not None:
        output.picture(thumbnail)
    output.show(table)


def print_check(output: Output, check: PreparationReport) -> None:
    """Print how far a picture's preparations lie apart."""
    from ckptkit.parity.inputs import LEVELS

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
    app.command(short_help="Classify images.")(predict)


Renderer = Callable[["Image"], str]

_COLUMNS, _ROWS = 36, 14
"""Largest thumbnail, in cells of the terminal; a cell is about twice as high as wide."""

_PIXELS_PER_COLUMN = 10
"""Resolution of what a terminal gets that draws real pictures."""

_KITTY_CHUNK = 4096

_CUBE = (0, 95, 135, 175, 215, 255)
"""Levels of the 6×6×6 colours that xterm has from 16 on; from 232 on it has 24 greys, 8, 18 … 238."""


def choose_renderer(stream: TextIO, environment: Mapping[str, str], columns: int) -> Renderer | None:
    """How to show a picture on a stream; None where it cannot be, or is not wanted (a pipe, ``NO_COLOR``).

    The function makes of a picture the text to print, without the last line break. Inside tmux and screen,
    which pass no pictures on, half blocks are drawn. kitty's protocol, which Ghostty speaks too:
    https://sw.kovidgoyal.net/kitty/graphics-protocol/; iTerm2's, which WezTerm speaks too:
    https://iterm2.com/documentation-images.html.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    width = min(_COLUMNS, columns - 1)
    if not stream.isatty() or environment.get("NO_COLOR") or term == "dumb" or width < 1:
        return None
    if not _is_multiplexed(environment):
        if (
            "KITTY_WINDOW_ID" in environment
            or term in ("xterm-kitty", "xterm-ghostty")
            or program == "ghostty"
        ):
            return partial(kitty, columns=width)
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return partial(iterm, columns=width)
    if not (stream.encoding or "").lower().replace("-", "").startswith("utf8"):
        return None
    if environment.get("COLORTERM") in ("truecolor", "24bit") or "WT_SESSION" in environment:
        return partial(half_blocks, columns=width, colour=_true_colour)
    return partial(half_blocks, columns=width, colour=_of_256) if "256color" in term else None


def _is_multiplexed(environment: Mapping[str, str]) -> bool:
    inside = environment.get("TMUX") or environment.get("STY")
    return bool(inside) or environment.get("TERM", "").startswith(("screen", "tmux"))


def fitted(width: int, height: int, columns: int, rows: int = _ROWS) -> tuple[int, int]:
    """Columns and half rows that a picture takes, in its proportions; one of each at least.

    >>> fitted(640, 480, 36), fitted(480, 640, 36), fitted(10_000, 1, 36)
    ((36, 27), (21, 28), (36, 1))
    """
    scale = min(columns / width, 2 * rows / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def half_blocks(picture: Image, *, columns: int, colour: Callable[[tuple[int, int, int]], str]) -> str:
    """Draw with ``▀``: the upper pixel in its foreground, the lower one in its background."""
    from PIL import Image

    width, height = fitted(picture.width, picture.height, columns)
    small = picture.resize((width, height), Image.Resampling.BOX).convert("RGB")
    pixels = [[small.getpixel((x, y)) for x in range(width)] for y in range(height)]
    lines = []
    for top in range(0, height, 2):
        lower = pixels[top + 1] if top + 1 < height else [None] * width
        cells = (
            f"\x1b[38;{colour(over)}{f';48;{colour(under)}' if under else ''}m▀"
            for over, under in zip(pixels[top], lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _true_colour(rgb: tuple[int, int, int]) -> str:
    return "2;" + ";".join(map(str, rgb))


def _of_256(rgb: tuple[int, int, int]) -> str:
    """The nearest of xterm's fixed colours: of the cube or of the greys."""
    places = [min(range(6), key=lambda i: abs(_CUBE[i] - level)) for level in rgb]
    grey = min(range(24), key=lambda i: abs(8 + 10 * i - sum(rgb) / 3))
    in_cube = sum((_CUBE[place] - level) ** 2 for place, level in zip(places, rgb, strict=True))
    in_greys = sum((8 + 10 * grey - level) ** 2 for level in rgb)
    if in_greys < in_cube:
        return f"5;{232 + grey}"
    return f"5;{16 + 36 * places[0] + 6 * places[1] + places[2]}"


def kitty(picture: Image, *, columns: int) -> str:
    """Transmit a PNG by kitty's protocol, in pieces of 4,096 characters; the terminal answers nothing."""
    width, half_rows = fitted(picture.width, picture.height, columns)
    content = base64.b64encode(_png(picture, width, half_rows)).decode()
    pieces = [content[start : start + _KITTY_CHUNK] for start in range(0, len(content), _KITTY_CHUNK)]
    controls = [f"a=T,f=100,q=2,c={width},r={_rows(half_rows)},"] + [""] * (len(pieces) - 1)
    return "".join(
        f"\x1b_G{control}m={int(number < len(pieces))};{piece}\x1b\\"
        for number, (control, piece) in enumerate(zip(controls, pieces, strict=True), start=1)
    )


def iterm(picture: Image, *, columns: int) -> str:
    """Transmit a PNG by iTerm2's protocol."""
    width, half_rows = fitted(picture.width, picture.height, columns)
    png = _png(picture, width, half_rows)
    facts = f"inline=1;size={len(png)};width={width};height={_rows(half_rows)};preserveAspectRatio=1"
    return f"\x1b]1337;File={facts}:{base64.b64encode(png).decode()}\x07"


def _rows(half_rows: int) -> int:
    return -(-half_rows // 2)


def _png(picture: Image, width: int, half_rows: int) -> bytes:
    box = (width * _PIXELS_PER_COLUMN, half_rows * _PIXELS_PER_COLUMN)
    if picture.width > box[0] or picture.height > box[1]:
        from PIL import ImageOps

        picture = ImageOps.contain(picture, box)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
