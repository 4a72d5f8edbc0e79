"""timm's ``summary.csv``: a row an epoch, as its ``update_summary`` writes them.

The columns are ``epoch`` (from 0), ``train_`` and what training measures (``train_loss``), ``eval_`` and what
the validation measures (``eval_loss``, ``eval_top1``, ``eval_top5``), since timm 0.9 also ``lr`` (timm's
``utils/summary.py``). The published training script of MogaNet validates the averaged weights after the plain
ones where there are some, and writes the later figures only (its ``train.py``). Scripts that keep both say
``eval_ema_top1``, ``eval_top1_ema`` or ``ema_top1``; these are told by the word ``ema`` in the name.

timm writes the header again when a run is resumed. From the epoch on at which the numbers go back, what was
there before no longer counts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from ckptkit.analysis.logs.lines import MAX_EPOCH, Line, LogFile
from ckptkit.analysis.logs.records import Epoch

_ACCURACY = {"top1": "top1", "acc1": "top1", "top5": "top5", "acc5": "top5"}
_VALIDATION = frozenset({"eval", "val", "valid", "validation", "test"})


def parse_timm(file: LogFile) -> tuple[tuple[Epoch, ...], tuple[str, ...]]:
    """Read a ``summary.csv``."""
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
            raise file.fault(line.number, f"{len(cells)} cells, but the header has {len(header)}")
        if not line.ended:
            remarks.append(f"line {line.number}, the last, has no end: its last figure may be cut off")
        file.budget.spend(nodes=2 * len(cells))
        epoch = _epoch(file, line.number, header, cells)
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


def _epoch(file: LogFile, line: int, header: Sequence[str], cells: Sequence[str]) -> Epoch:
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
