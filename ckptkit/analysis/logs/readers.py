"""Training logs, epoch by epoch: mmcv's JSON lines and timm's CSV files, recognised by content."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.base.files import open_named, storage_error
from ckptkit.base.text import counted

Framework = Literal["mmcv", "timm"]

FIGURES = ("train_loss", "val_loss", "top1", "top5", "ema_val_loss", "ema_top1", "ema_top5", "lr", "seconds")
"""Figures that every kind of log calls the same here."""
OF_DENSE_TASKS: Mapping[str, str] = {
    **{"bbox_mAP": "box_mAP", "segm_mAP": "mask_mAP", "mIoU": "mIoU", "mAcc": "mAcc", "AP": "AP"},
    **{"AP .5": "AP50", "AP .75": "AP75", "AR": "AR", "AR (M)": "ARM", "AR (L)": "ARL"},
}
"""Name of a metric in the logs of mmdet, mmseg and mmpose, and in the tables; the one that decides first."""


@dataclass(frozen=True)
class Epoch:
    """One epoch. A figure that the log does not have is None; one that was not a number is a NaN."""

    number: int  # as the log counts: mmcv from 1, timm from 0
    train_loss: float | None = None  # mean over what the log has of the epoch
    val_loss: float | None = None  # on the validation images
    top1: float | None = None
    top5: float | None = None
    ema_val_loss: float | None = None  # the same of the averaged weights, where the log has both
    ema_top1: float | None = None
    ema_top5: float | None = None
    lr: float | None = None  # learning rate at the end of the epoch, of the first group of parameters
    seconds: float | None = None  # what the training iterations that were logged took
    others: Mapping[str, float] = field(default_factory=dict)  # every other figure, under the log's own name

    def figure(self, name: str) -> float | None:
        """One figure by its name here, or by the log's own.

        >>> epoch = Epoch(3, top1=71.5, others={"head1_top1": 70.0})
        >>> epoch.figure("top1"), epoch.figure("head1_top1"), epoch.figure("lr")
        (71.5, 70.0, None)
        """
        value: float | None = getattr(self, name) if name in FIGURES else self.others.get(name)
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values that every JSON parser takes: anything that is not a number is null."""
        figures = {name: finite(self.figure(name)) for name in FIGURES}
        return {
            "epoch": self.number,
            **figures,
            "others": {name: finite(value) for name, value in self.others.items()},
        }


@dataclass(frozen=True)
class TrainingLog:
    """A training log."""

    name: str  # the entry's id, or the path
    path: Path  # on this machine
    framework: Framework  # whose form it has
    epochs: tuple[Epoch, ...]  # in the order of their numbers, at least one
    # What to know about the file: that training was resumed, that it is cut off
    remarks: tuple[str, ...] = ()
    url: str | None = None  # where it is published
    published_top1: float | None = None  # what the registry has of the entry, in percent
    published_top5: float | None = None
    # The registry's further metrics of the entry, by their published names and as published
    published_metrics: Mapping[str, float] = field(default_factory=dict)
    weights: str | None = None  # which copy these figures belong to, where there are two: ``ema`` or ``raw``

    @property
    def last(self) -> Epoch:
        """The epoch with the greatest number."""
        return self.epochs[-1]

    @property
    def metric(self) -> str | None:
        """The figure that tells which epoch is best by default.

        The top-1 accuracy of the copy that the published figure belongs to, the metric of a detector or
        segmenter, else what comes nearest; None where the log has no metric and no loss that is known here.
        """
        order = ["ema_top1", "top1", *OF_DENSE_TASKS, "ema_val_loss", "val_loss", "train_loss"]
        if self.weights == "raw":
            order = ["top1", "ema_top1", *OF_DENSE_TASKS, "val_loss", "ema_val_loss", "train_loss"]
        return next((name for name in order if self.has(name)), None)

    def has(self, name: str) -> bool:
        """Whether some epoch has this figure."""
        return any(epoch.figure(name) is not None for epoch in self.epochs)

    def figures(self) -> list[str]:
        """Names of the figures that some epoch has: those of `FIGURES` first, then the log's own."""
        own = dict.fromkeys(name for epoch in self.epochs for name in epoch.others)
        return [*(name for name in FIGURES if self.has(name)), *own]

    def best(self, metric: str | None = None) -> Epoch | None:
        """The epoch with the best value of a figure, the earliest of equals; None where there is none."""
        name = metric or self.metric
        if name is None:
            return None
        if not self.has(name):
            raise UsageError(f"the log has no figure {name!r}", hint="it has " + ", ".join(self.figures()))
        sign = -1.0 if is_better_low(name) else 1.0
        found = [
            (sign * value, epoch)
            for epoch in self.epochs
            if (value := finite(epoch.figure(name))) is not None
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    @property
    def diverged(self) -> tuple[int, ...]:
        """Numbers of the epochs whose loss is not a number or infinite."""
        losses = ("train_loss", "val_loss", "ema_val_loss")
        return tuple(
            epoch.number
            for epoch in self.epochs
            if any(not math.isfinite(value) for name in losses if (value := epoch.figure(name)) is not None)
        )

    def published(self, name: str) -> float | None:
        """The published figure to compare one of the log's with, in the log's unit; None if there is none."""
        if name in OF_DENSE_TASKS:
            published = self.published_metrics.get(OF_DENSE_TASKS[name])
            # The tables have percent, the logs parts of one.
            found = [value for epoch in self.epochs if (value := finite(epoch.figure(name))) is not None]
            parts = published is not None and published > 1 and max(found, default=0) <= 1
            return round(published / 100, 6) if published is not None and parts else published
        return {
            "top1": self.published_top1,
            "ema_top1": self.published_top1,
            "top5": self.published_top5,
            "ema_top5": self.published_top5,
        }.get(name)

    def to_json(self, metric: str | None = None) -> dict[str, Any]:
        """Plain values: the summary, then every epoch."""
        best = self.best(metric)
        name = metric or self.metric
        found = best.figure(name) if best and name else None
        published = self.published(name) if name else None
        return {
            "name": self.name,
            "path": str(self.path),
            "url": self.url,
            "framework": self.framework,
            "remarks": list(self.remarks),
            "metric": name,
            "best": best.to_json() if best else None,
            "last": self.last.to_json(),
            "published": {
                "top1": self.published_top1,
                "top5": self.published_top5,
                **self.published_metrics,
            },
            "difference": None if found is None or published is None else round(found - published, 6),
            "not_finite": list(self.diverged),
            "epochs": [epoch.to_json() for epoch in self.epochs],
        }


def is_better_low(name: str) -> bool:
    """Whether the least value of a figure is the best.

    >>> is_better_low("val_loss"), is_better_low("head0_top1")
    (True, False)
    """
    return "loss" in name or name in ("lr", "seconds")


def finite(value: float | None) -> float | None:
    """The value, or None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


MAX_BYTES = 64 << 20
"""The published logs have some 300 epochs and less than a few megabytes."""
MAX_LINE = 1 << 20
"""Bytes; the longest is the first one of mmcv, which may hold a whole configuration."""
MAX_EPOCH = 100_000
MAX_RESUMED = 100
"""How often a run may be resumed before its log is taken for damaged."""


_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Line:
    """One line that is not blank."""

    number: int  # from 1
    text: str  # without its end
    ended: bool  # whether it has an end: a file that was cut off stops in the middle of a line


class LogFile:
    """A log on this disk, read whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.is_dir():
                raise NotFoundError(f"{path}: a folder, not a log", hint="name the .log.json or summary.csv")
            with open_named(path) as stream:
                self._bytes = stream.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such file", hint="check the path") from error
        except OSError as error:
            raise storage_error(error, path) from error
        if len(self._bytes) > MAX_BYTES:
            raise FormatError(path, f"larger than {MAX_BYTES:,} bytes, too large for a training log")
        self.budget = Budget(len(self._bytes), partial(FormatError, path))
        self._bytes = self._bytes.removeprefix(b"\xef\xbb\xbf")
        if not self._bytes.strip():
            raise FormatError(path, "empty file", hint="fetch it again")

    @property
    def start(self) -> bytes:
        """The first bytes that are not blank, in lower case: they tell what kind of file it is."""
        return self._bytes[:4096].lstrip()[:256].lower()

    def lines(self) -> Iterator[Line]:
        """Yield the lines that are not blank."""
        for number, found in enumerate(_LINE.finditer(self._bytes), 1):
            raw = found[0]
            self.budget.spend(steps=8)
            if len(raw) > MAX_LINE:
                raise self.fault(number, f"longer than {MAX_LINE:,} bytes")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise self.fault(number, "no UTF-8 text") from error
            if text.strip():
                yield Line(number, text.rstrip("\r\n"), raw.endswith((b"\n", b"\r")))

    def fault(self, number: int, reason: str) -> FormatError:
        """Return the error for a damaged line."""
        return FormatError(self.path, f"line {number}: {reason}", hint="fetch it again, or check the file")

    def number(self, value: object, line: int, name: str) -> float:
        """Return a figure as a float."""
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
        raise self.fault(line, f"{name} is {short(value)}, not a number")

    def whole(self, value: object, line: int, name: str, most: int) -> int:
        """Return a count."""
        number = self.number(value, line, name)
        if not 0 <= number <= most or number != int(number):
            raise self.fault(line, f"{name} is {short(value)}, not a whole number from 0 to {most:,}")
        return int(number)

    def resumed(self, epoch: int, line: int, times: int) -> str:
        """Return the remark on a run that goes back to an epoch, for the ``times``-th time."""
        if times > MAX_RESUMED:
            raise self.fault(line, f"the epochs go back more than {MAX_RESUMED} times")
        return f"resumed at epoch {epoch} (line {line}): what was logged from there on before is left out"


def short(value: object) -> str:
    """A value as a fault quotes it."""
    if isinstance(value, int) and abs(value) > 1 << 64:  # Python refuses to print very long numbers
        return "a very long number"
    try:
        text = repr(value[:60] if isinstance(value, str) else value)
    except (RecursionError, ValueError):  # Python refuses deep nesting, and long numbers inside
        return "something nested"
    return text if len(text) <= 60 else text[:59] + "…"


_NOT_FIGURES = frozenset({"mode", "epoch", "iter", "lr", "time", "data_time", "memory", "loss"})
_MOST_ITERATIONS = 10**9
_TOP = re.compile(
    r"(?:head(?P<head>[0-9]{1,9})_)?(?:top|acc(?:uracy)?(?:_top)?)[-_@]?(?P<rank>[15])", re.IGNORECASE
)
_LOSS = re.compile(r"(?:val_|head0_)?loss", re.IGNORECASE)


@dataclass
class _Gathered:
    """What is known of an epoch so far."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)
    lr: float | None = None
    last_iteration: int = 0


def parse_mmcv(file: LogFile) -> tuple[tuple[Epoch, ...], tuple[str, ...]]:
    """Read mmcv's ``.log.json``, which OpenMixup's runs write too: one JSON object a line.

    The first line describes the run (``env_info``, ``seed``, ``exp_name``) and has no ``mode``. Every few
    iterations there is ``{"mode": "train", "epoch", "iter", "lr", "memory", "data_time", "time", "loss", …}``
    with means over these iterations, and after an epoch ``{"mode": "val", "epoch", "iter", "lr", …}`` with
    the figures of the validation (mmcv/runner/hooks/logger/text.py; epochs count from 1, ``lr`` is a mapping
    where there are several optimizers). OpenMixup names those after the head of the model: ``head0_top1``,
    ``head0_top5`` (openmixup/datasets/classification.py), mmclassification ``accuracy_top-1``. Where a run
    keeps averaged weights, OpenMixup's EMA hook puts them into the model before the validation, so the one
    figure there is belongs to them (openmixup/hooks/ema_hook.py).

    A run that is resumed repeats epochs. From the epoch on at which it goes back, what was there before no
    longer counts: those weights were thrown away.
    """
    run = _Run(file)
    for line in file.lines():
        record = _record(file, line)
        if record is None:
            run.remarks.append(f"line {line.number}, the last, is cut off and was left out")
        elif "mode" in record:
            run.take(line.number, record)
    if not run.epochs:
        raise file.fault(1, "JSON, but no line with the mode of mmcv's logs, train or val")
    return run.finished(), tuple(run.remarks)


def _record(file: LogFile, line: Line) -> dict[str, Any] | None:
    """The object of a line; None where the line is cut off."""
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        if not line.ended and line.number > 1:
            return None
        raise file.fault(line.number, "no JSON") from error
    if not isinstance(record, dict):
        raise file.fault(line.number, "no JSON object")
    file.budget.spend(nodes=2 * len(record))
    return record


class _Run:
    """The lines of one log, gathered by epoch."""

    def __init__(self, file: LogFile) -> None:
        self.file = file
        self.epochs: dict[int, _Gathered] = {}
        self.remarks: list[str] = []
        self._trained = -1
        """The epoch that is being trained."""

    def take(self, line: int, record: Mapping[str, Any]) -> None:
        """Add a line to its epoch."""
        mode = record["mode"]
        if mode not in ("train", "val"):
            raise self.file.fault(line, f"mode is {short(mode)}, neither train nor val")
        if "epoch" not in record:
            raise self.file.fault(line, "no epoch")
        number = self.file.whole(record["epoch"], line, "epoch", MAX_EPOCH)
        if mode == "train":
            self._train(line, number, record)
        else:
            gathered = self.epochs.setdefault(number, _Gathered())
            for name, value in _figures(record, keep_loss=True).items():
                gathered.validated[name] = self.file.number(value, line, name)
        if "lr" in record:
            self.epochs[number].lr = _learning_rate(self.file, line, record["lr"])

    def _train(self, line: int, number: int, record: Mapping[str, Any]) -> None:
        iteration = self.file.whole(record.get("iter", 0), line, "iter", _MOST_ITERATIONS)
        self._resume(line, number, iteration)
        self._trained = number
        gathered = self.epochs.setdefault(number, _Gathered())
        gathered.last_iteration = max(gathered.last_iteration, iteration)
        figures = {name: record[name] for name in ("loss", "time") if name in record}
        for name, value in {**figures, **_figures(record)}.items():
            gathered.sums.setdefault(name, []).append(self.file.number(value, line, name))

    def _resume(self, line: int, number: int, iteration: int) -> None:
        """Forget what was trained before, where the run goes back."""
        again = number == self._trained and 0 < iteration <= self.epochs[number].last_iteration
        if number < self._trained or again:
            self.remarks.append(self.file.resumed(number, line, len(self.remarks) + 1))
            for later in [known for known in self.epochs if known >= number]:
                del self.epochs[later]

    def finished(self) -> tuple[Epoch, ...]:
        """Every epoch, in order."""
        iterations = max(one.last_iteration for one in self.epochs.values())
        return tuple(_mmcv_epoch(number, self.epochs[number], iterations) for number in sorted(self.epochs))


def _figures(record: Mapping[str, Any], *, keep_loss: bool = False) -> dict[str, Any]:
    """What a line has besides the things that every line has; text, lists and the like are not figures."""
    left_out = _NOT_FIGURES - {"loss"} if keep_loss else _NOT_FIGURES
    fields = {name: value for name, value in record.items() if name not in left_out}
    known = {name for name in fields if _TOP.fullmatch(name) or _LOSS.fullmatch(name)}
    return {
        name: value
        for name, value in fields.items()
        if name in known or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def _learning_rate(file: LogFile, line: int, value: Any) -> float:
    if isinstance(value, dict) and value:
        value = next(iter(value.values()))
    return file.number(value, line, "lr")


def _mmcv_epoch(number: int, gathered: _Gathered, iterations: int) -> Epoch:
    means = {name: sum(values) / len(values) for name, values in gathered.sums.items()}
    loss, time = means.pop("loss", None), means.pop("time", None)
    validated = dict(gathered.validated)
    val_loss = next((name for name in validated if _LOSS.fullmatch(name)), None)
    return Epoch(
        number,
        train_loss=loss,
        val_loss=validated.pop(val_loss) if val_loss else None,
        top1=_pop_accuracy(validated, "1"),
        top5=_pop_accuracy(validated, "5"),
        lr=gathered.lr,
        seconds=time * iterations if time is not None and iterations > 0 else None,
        others={**validated, **{f"train_{name}": value for name, value in means.items()}},
    )


def _pop_accuracy(figures: dict[str, float], rank: str) -> float | None:
    """Take the accuracy out of a validation's figures: of several heads, that of the first."""
    found = [
        (int(match["head"] or -1), name)
        for name in figures
        if (match := _TOP.fullmatch(name)) and match["rank"] == rank
    ]
    return figures.pop(min(found)[1]) if found else None


_ACCURACY = {"top1": "top1", "acc1": "top1", "top5": "top5", "acc5": "top5"}
_VALIDATION = frozenset({"eval", "val", "valid", "validation", "test"})


def parse_timm(file: LogFile) -> tuple[tuple[Epoch, ...], tuple[str, ...]]:
    """Read timm's ``summary.csv``: a row an epoch, as its ``update_summary`` writes them.

    The columns are ``epoch`` (from 0), ``train_`` and what training measures (``train_loss``), ``eval_`` and
    what the validation measures (``eval_loss``, ``eval_top1``, ``eval_top5``), since timm 0.9 also ``lr``
    (timm's ``utils/summary.py``). The published training script of MogaNet validates the averaged weights
    after the plain ones where there are some, and writes the later figures only (its ``train.py``). Scripts
    that keep both say ``eval_ema_top1``, ``eval_top1_ema`` or ``ema_top1``; these are recognised by the word
    ``ema`` in the name.

    timm writes the header again when a run is resumed. From the epoch on at which the numbers go back, what
    was there before no longer counts.
    """
    header: list[str] = []
    epochs: list[Epoch] = []
    remarks: list[str] = []
    for line in file.lines():
        cells = _cells(line)
        if cells and (not header or cells[0].strip().lower() == "epoch"):
            header = _header(file, line, cells)
            continue
        if len(cells) != len(header) or not cells:
            if not line.ended and header:
                remarks.append(f"line {line.number}, the last, is cut off and was left out")
                continue
            if not cells:
                raise file.fault(line.number, "not a row of comma-separated values, or one stray quote")
            raise file.fault(line.number, f"{counted(len(cells), 'cell')}, but the header has {len(header)}")
        if not line.ended:
            remarks.append(f"line {line.number}, the last, has no end: its last figure may be cut off")
        file.budget.spend(nodes=2 * len(cells))
        epoch = _timm_epoch(file, line.number, header, cells)
        if epochs and epochs[-1].number >= epoch.number:
            remarks.append(file.resumed(epoch.number, line.number, len(remarks) + 1))
            epochs = [one for one in epochs if one.number < epoch.number]
        epochs.append(epoch)
    if not epochs:
        raise file.fault(1, "a header and no epoch")
    return tuple(epochs), tuple(remarks)


def is_header(start: bytes) -> bool:
    """Whether a file that begins so has a first line with a column ``epoch``.

    >>> is_header(b"epoch,train_loss"), is_header(b"epochs passed")
    (True, False)
    """
    names = re.split(rb"[\r\n]", start)[0].split(b",")
    return len(names) > 1 and any(name.strip(b' "') == b"epoch" for name in names)


def _cells(line: Line) -> list[str]:
    """Split a row; empty where it cannot be, so that an unclosed quote never swallows the cells after it."""
    try:
        cells = next(csv.reader([line.text], strict=True))
    except (csv.Error, StopIteration):
        return []
    return [] if any('"' in cell for cell in cells) else cells


def _header(file: LogFile, line: Line, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    lowered = [name.lower() for name in names]
    if "epoch" not in lowered:
        raise file.fault(line.number, "no column 'epoch'")
    if len(set(lowered)) < len(lowered):
        raise file.fault(line.number, "two columns have one name")
    return names


def _timm_epoch(file: LogFile, line: int, header: Sequence[str], cells: Sequence[str]) -> Epoch:
    number = -1
    figures: dict[str, float] = {}
    others: dict[str, float] = {}
    for name, cell in zip(header, cells, strict=True):
        if name.lower() == "epoch":
            number = file.whole(cell.strip(), line, "epoch", MAX_EPOCH)
        elif cell.strip():  # an epoch that was not validated
            meaning = figure_of(name)
            (figures if meaning and meaning not in figures else others)[meaning or name] = file.number(
                cell.strip(), line, name
            )
    return Epoch(number, **figures, others=others)


def figure_of(column: str) -> str | None:
    """What a column is called among the `FIGURES` of `Epoch`; None where it is none of them.

    >>> [figure_of(name) for name in ("eval_top1", "eval_top1_ema", "ema_eval_loss", "train_loss", "time")]
    ['top1', 'ema_top1', 'ema_val_loss', 'train_loss', None]
    """
    words = [word for word in re.split(r"[^a-z0-9]+", column.lower()) if word]
    ema = "ema_" if "ema" in words else ""
    rest = [word for word in words if word not in _VALIDATION and word != "ema"]
    validated = bool(_VALIDATION.intersection(words)) or bool(ema)
    if rest in (["lr"], ["train", "loss"]) and not validated:
        return "_".join(rest)
    if rest == ["loss"] and validated:
        return f"{ema}val_loss"
    if len(rest) == 1 and rest[0] in _ACCURACY:
        return ema + _ACCURACY[rest[0]]
    return None


_READERS = {"mmcv": parse_mmcv, "timm": parse_timm}


def parse_log(path: Path, *, name: str | None = None) -> TrainingLog:
    """Read a training log."""
    file = LogFile(path)
    framework = _framework(file)
    epochs, remarks = _READERS[framework](file)
    log = TrainingLog(name or str(path), path, framework, epochs, remarks)
    if not log.figures():
        raise FormatError(path, "its epochs have no figures", hint="check the file, or fetch it again")
    return log


def _framework(file: LogFile) -> Framework:
    start = file.start
    if start.startswith(b"{"):
        return "mmcv"
    if is_header(start):
        return "timm"
    if start.startswith(b"<"):
        raise FormatError(file.path, "a web page, not a training log", hint="download it again")
    raise FormatError(
        file.path, "not a training log: neither JSON lines of mmcv nor a CSV file with a column 'epoch'"
    )
