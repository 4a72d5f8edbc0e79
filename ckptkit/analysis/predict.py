"""What a classifier predicts for pictures: the likeliest classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.runner import Runner, open_runner, require_packages
from ckptkit.base.errors import CkptkitError, FormatError, UsageError, command
from ckptkit.base.shown import Column, Gap, Piece, Shown, Table
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.families.synthetic import NOTE
from ckptkit.models import Framework, framework_named
from ckptkit.models.images.classes import imagenet_classes
from ckptkit.models.images.gathering import Fault, Gatherer, NamedPicture
from ckptkit.store.sources import parse_mirrors

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.analysis.model_source import ModelSource, SourceRequest
    from ckptkit.workspace import Workspace

DEFAULT_TOP = 5
DEFAULT_BATCH_SIZE = 8

TAGS = (
    "the head has {} tags, each with a probability of its own (a sigmoid). Pictures are cut to a square; "
    "the tagger's publisher pads them with white"
)
ONLY_TAGS = (
    "what the tags are called is not known, only their numbers: no selected_tags.csv is beside the file"
)
ONLY_NUMBERS = (
    "the head has {} classes, not ImageNet's 1,000: what they are called is not known, only their numbers"
)


@dataclass(frozen=True)
class Guess:
    """One class that a picture may show."""

    rank: int  # 1 for the likeliest
    index: int  # place among the logits
    probability: float  # of the softmax over all classes; a tagger's sigmoid
    wnid: str | None = None  # WordNet id and usual word
    name: str | None = None  # or the tag's


@dataclass(frozen=True, repr=False)
class Prediction(Shown):
    """What a model predicts for one picture."""

    image: str  # what the picture is called
    top: tuple[Guess, ...]  # likeliest first
    source: ModelSource = field(repr=False)  # the checkpoint, with the preprocessing
    framework: Framework
    extra: Any = field(default=None, repr=False)  # what the caller made of the picture while it was in memory

    @property
    def best(self) -> Guess:
        """The likeliest class."""
        return self.top[0]

    @property
    def headline(self) -> str:
        """The result in one line."""
        return f"{self.image}: {self.best.name or f'class {self.best.index}'} {self.best.probability:.2%}"

    def table(self) -> Table:
        """The classes, likeliest first."""
        columns = [Column(figure, numeric=True) for figure in ("rank", "probability", "class")]
        rows = [[str(one.rank), f"{one.probability:.2%}", str(one.index)] for one in self.top]
        for heading in ("wnid", "name"):
            if getattr(self.best, heading) is not None:
                columns.append(Column(heading))
                rows = [[*row, getattr(one, heading)] for row, one in zip(rows, self.top, strict=True)]
        return Table(columns, rows)

    def pieces(self) -> Iterator[Piece]:
        """The picture's name, and the table of classes."""
        yield self.image
        yield self.table()
        yield Gap()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        source, preprocessing = self.source, self.source.preprocessing
        return {
            "image": self.image,
            "top": [vars(guess).copy() for guess in self.top],
            "model": source.name,
            "variant": source.variant,
            "num_classes": source.num_classes,
            "framework": self.framework,
            "preprocessing": {**vars(preprocessing), "size": list(preprocessing.size)},
            "weights": {
                "file": None if source.made else str(source.located.path),
                "synthetic": source.synthetic,
                "note": NOTE if source.synthetic else None,
            },
        }


class Predictions(list[Prediction], Shown):
    """What a model predicts for several pictures: a list, which `print` and a notebook show as one table."""

    @property
    def headline(self) -> str:
        """How many there are."""
        return counted(len(self), "image")

    def pieces(self) -> Iterator[Piece]:
        """One table; each picture's name is beside its likeliest class."""
        tables = [(one.image, one.table()) for one in self]
        if tables:
            rows = [
                [image if place == 0 else "", *row]
                for image, table in tables
                for place, row in enumerate(table.rows)
            ]
            yield Table([Column("image"), *tables[0][1].columns], rows)


@dataclass(frozen=True)
class Predictor:
    """A checkpoint's classifier in one framework, built when the first pictures have been read."""

    source: ModelSource
    framework: Framework = "torch"
    top: int = DEFAULT_TOP  # how many classes to give
    batch_size: int = DEFAULT_BATCH_SIZE  # pictures that go through the model at once

    def __post_init__(self) -> None:
        for what, value in (("top", self.top), ("batch size", self.batch_size)):
            if value < 1:
                raise UsageError(f"invalid {what} {value}", hint="use 1 or more")
        if self.source.num_classes is None:
            raise UsageError(
                f"{self.source.name} has no classification head, so it names no classes",
                hint="take the whole checkpoint, not one converted without its head",
            )

    @cached_property
    def tag_names(self) -> tuple[str, ...] | None:
        """What a tagger's tags are called; None where it is not known."""
        return self.source.tag_names() if self.source.has_tags else None

    @cached_property
    def _runner(self) -> Runner:
        return open_runner(self.source, self.framework, "cpu")

    def predict(
        self,
        pictures: Iterable[NamedPicture],
        *,
        on_fault: Callable[[Fault], None] | None = None,
        extra: Callable[[Image], Any] | None = None,
    ) -> Iterator[Prediction]:
        """Predict pictures, a batch at a time, in their order.

        ``on_fault`` takes each picture that cannot be read, and the others go on; without it the first one
        ends all. ``extra`` makes something of each decoded picture: the pictures themselves are not kept.
        """
        prepared = (self._prepare(picture, extra, on_fault) for picture in pictures)
        readable = (one for one in prepared if one is not None)
        while batch := list(islice(readable, self.batch_size)):
            yield from self._predict(batch)

    def _prepare(
        self,
        picture: NamedPicture,
        extra: Callable[[Image], Any] | None,
        on_fault: Callable[[Fault], None] | None,
    ) -> tuple[str, Array, Any] | None:
        """Name, pixels and extra of a picture; None for one whose fault was taken."""
        try:
            decoded = picture.read()
            try:
                pixels = self.source.preprocessing(decoded)
            except FormatError as error:  # of this picture's shape; its name is not known there
                raise FormatError(picture.name, error.reason, hint=error.hint) from error
            return picture.name, pixels, extra(decoded) if extra else None
        except CkptkitError as error:
            if on_fault is None:
                raise
            on_fault(Fault(picture.name, error))
            return None

    def _predict(self, batch: Sequence[tuple[str, Array, Any]]) -> Iterator[Prediction]:
        import numpy

        logits = self._runner.run(numpy.stack([pixels for _, pixels, _ in batch]))
        for (name, _, extra), values in zip(batch, logits, strict=True):
            if not numpy.isfinite(values).all():
                raise FormatError(
                    self.source.located.path,
                    f"the model's answer to {name} contains NaN or infinite values",
                    hint=command("verify", self.source.name),
                )
            top = rank(values, self.top, tags=self.source.has_tags, tag_names=self.tag_names)
            yield Prediction(name, top, self.source, self.framework, extra)


def predict_images(
    request: SourceRequest,
    images: str | Path | Image | Iterable[str | Path | Image],
    workspace: Workspace,
    *,
    framework: str = "torch",
    top: int = DEFAULT_TOP,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Predictions:
    """Predict everything that is named; the first image that cannot be had ends it."""
    builder = framework_named(framework)
    require_packages("predict", builder)
    alone = isinstance(images, (str, Path)) or hasattr(images, "convert")
    gatherer = Gatherer(offline=workspace.offline, mirrors=parse_mirrors(workspace.mirrors))
    named: Any = [images] if alone else images
    gathering = gatherer.gather(named)
    if gathering.faults:
        raise gathering.faults[0].error
    with request.open(workspace) as source:
        return Predictions(Predictor(source, builder, top, batch_size).predict(gathering.pictures))


def rank(
    logits: Array, top: int, *, tags: bool = False, tag_names: Sequence[str] | None = None
) -> tuple[Guess, ...]:
    """Turn one picture's logits into the likeliest classes, or tags, of which several can hold.

    ``logits``: (classes,); 1,000 of them are ImageNet-1K's.

    >>> import numpy
    >>> [(guess.index, round(guess.probability, 3)) for guess in rank(numpy.array([0.0, 2.0, 1.0]), 2)]
    [(1, 0.665), (2, 0.245)]
    >>> [(guess.index, round(guess.probability, 3)) for guess in rank(numpy.array([0.0, 2.0]), 2, tags=True)]
    [(1, 0.881), (0, 0.5)]
    """
    import numpy

    if tags:
        probabilities = 1 / (1 + numpy.exp(-logits.astype(numpy.float64)))
    else:
        powers = numpy.exp(logits.astype(numpy.float64) - logits.max())
        probabilities = powers / powers.sum()
    classes = imagenet_classes() if len(logits) == len(imagenet_classes()) and not tags else None
    names = [one.name for one in classes] if classes else tag_names
    order = numpy.argsort(-probabilities, kind="stable")[:top].tolist()
    return tuple(
        Guess(
            place,
            index,
            float(probabilities[index]),
            classes[index].wnid if classes else None,
            names[index] if names else None,
        )
        for place, index in enumerate(order, start=1)
    )
