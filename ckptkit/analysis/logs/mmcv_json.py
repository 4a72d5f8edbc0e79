"""mmcv's ``.log.json``, which OpenMixup's runs write too: one JSON object a line.

The first line describes the run (``env_info``, ``seed``, ``exp_name``) and has no ``mode``. Every so many
iterations there is ``{"mode": "train", "epoch", "iter", "lr", "memory", "data_time", "time", "loss", …}``
with means over these iterations, and after an epoch ``{"mode": "val", "epoch", "iter", "lr", …}`` with the
figures of the validation (mmcv/runner/hooks/logger/text.py; epochs count from 1, ``lr`` is a mapping where
there are several optimizers). OpenMixup names those after the head of the model: ``head0_top1``,
``head0_top5`` (openmixup/datasets/classification.py), mmclassification ``accuracy_top-1``. Where a run keeps
averaged weights, OpenMixup's EMA hook puts them into the model before the validation, so the one figure there
is belongs to them (openmixup/hooks/ema_hook.py).

A run that is resumed repeats epochs. From the epoch on at which it goes back, what was there before no longer
counts: those weights were thrown away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptkit.analysis.logs.lines import MAX_EPOCH, Line, LogFile, short
from ckptkit.analysis.logs.records import Epoch

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
    """Read a log of mmcv."""
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
        return tuple(_epoch(number, self.epochs[number], iterations) for number in sorted(self.epochs))


def _figures(record: Mapping[str, Any], *, keep_loss: bool = False) -> dict[str, Any]:
    """What a line has besides the things that every line has; text, lists and the like are no figures."""
    left_out = _NOT_FIGURES - {"loss"} if keep_loss else _NOT_FIGURES
    wanted = {name: value for name, value in record.items() if name not in left_out}
    known = {name for name in wanted if _TOP.fullmatch(name) or _LOSS.fullmatch(name)}
    return {
        name: value
        for name, value in wanted.items()
        if name in known or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def _learning_rate(file: LogFile, line: int, value: Any) -> float:
    if isinstance(value, dict) and value:
        value = next(iter(value.values()))
    return file.number(value, line, "lr")


def _epoch(number: int, gathered: _Gathered, iterations: int) -> Epoch:
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
