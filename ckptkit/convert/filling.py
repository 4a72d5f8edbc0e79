"""What of a checkpoint goes into a model: all of it, or with ``strict=False`` what fits.

No framework is needed here: a model is known by its table of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ckptkit.base.errors import ConversionError, command
from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.convert.as_is import counted
from ckptkit.convert.as_is import in_words as reasons_in_words
from ckptkit.convert.execution import read_moves
from ckptkit.convert.moves import Move
from ckptkit.families.base import Recognition, Structure, recognise
from ckptkit.families.binding import FileFacts, Match, Weights, match
from ckptkit.formats.base import Copy, Reader
from ckptkit.rules.language import Binding, Table

Fault = Literal["missing", "unexpected", "misshaped"]


@dataclass(frozen=True)
class Misfit:
    """A tensor of the file or of the model that has no fitting counterpart.

    Parameters
    ----------
    name : str
        In the file; for a missing tensor, the name it would have there.
    found, wanted : tuple of int or None
        Shapes in the file and as the model wants it, in the file's axis order; None where there is no such
        tensor.

    Examples
    --------
    >>> print(Misfit("head.bias", (10,), (1000,)), Misfit("head.bias", None, (1000,)), sep="; ")
    head.bias [10] instead of [1000]; head.bias [1000]
    """

    name: str
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None

    @property
    def fault(self) -> Fault:
        """What is wrong with it."""
        if self.found is None:
            return "missing"
        return "unexpected" if self.wanted is None else "misshaped"

    def __str__(self) -> str:
        """Name and shapes."""
        shapes = [str(list(shape)) for shape in (self.found, self.wanted) if shape is not None]
        return f"{self.name} {' instead of '.join(shapes)}"


@dataclass(frozen=True)
class Filling:
    """What of a file goes into a model, and what does not.

    Parameters
    ----------
    moves : tuple of Move
        The tensors that go.
    weights : "ema", "raw" or None
        Which copy they are where the file holds both.
    initialised : tuple of str
        The model's tensors that the file does not fill, by the names of the model's layout.
    has_new_head : bool
        Whether the model's head is among them because the file has none, or one of another number of classes.
    lacks_bn_statistics : bool
        Whether the file has none of the BatchNorm statistics.
    misfits : tuple of Misfit
        Why other tensors than a new head do not go.
    unread : mapping of str to str
        Tensors of the file that cannot be read and that no rule leaves out, and why not.
    """

    moves: tuple[Move, ...]
    weights: Copy | None
    initialised: tuple[str, ...]
    has_new_head: bool
    lacks_bn_statistics: bool
    misfits: tuple[Misfit, ...]
    unread: Mapping[str, str]

    def read(self, reader: Reader) -> dict[str, Array]:
        """Read the tensors that go, by the names of the model's layout."""
        return read_moves(self.moves, reader)


def filling_of(
    reader: Reader,
    found: Recognition,
    layout: str,
    structure: Structure,
    *,
    weights: Weights = "auto",
    known: FileFacts | None = None,
) -> Filling:
    """Decide which tensors of a file fill a model of its variant; refuses nothing yet.

    Parameters
    ----------
    reader : Reader
        The open file.
    found : Recognition
        What it was recognised as.
    layout : str
        The model's layout.
    structure : Structure
        The model's. A head of another number of classes stays in the file.
    weights : {"auto", "ema", "raw"}
    known : FileFacts, optional
        What is known of the file's copies.

    Raises
    ------
    UsageError
        When the copy asked for is not there.
    """
    head = structure.num_classes is not None
    matched = match(reader.specs, found, weights=weights, known=known, head=head)
    rows = found.family.table(layout, found.variant, structure).bindings
    new_head = {row.canonical for row in rows if row.part == "head" and _is_new(row, found.table)}
    wrong = {binding.canonical for binding, _ in matched.wrong_shape}
    moves = tuple(
        _move(reader, matched, row)
        for row in rows
        if row.canonical in matched.sources.keys() - new_head - wrong
    )
    filled = {move.target.name for move in moves}
    return Filling(
        moves,
        matched.weights,
        tuple(row.external for row in rows if row.external not in filled and row.part != "counter"),
        bool(new_head),
        matched.lacks_bn_statistics,
        tuple(_misfits(reader, matched, {row.canonical for row in rows} - new_head)),
        matched.unread,
    )


def _is_new(row: Binding, table: Table) -> bool:
    """Whether a file of that table has no such tensor, or one of another shape."""
    in_file = table.by_canonical.get(row.canonical)
    return in_file is None or in_file.canonical_shape != row.canonical_shape


def _move(reader: Reader, matched: Match, row: Binding) -> Move:
    source = matched.sources[row.canonical]
    target = TensorSpec(row.external, reader.specs[source].dtype, row.external_shape)
    return Move(source, target, matched.recognition.table.by_canonical[row.canonical], row)


def _misfits(reader: Reader, matched: Match, wanted: set[str]) -> list[Misfit]:
    """What keeps tensors of the file, or of the canonical names ``wanted``, from their places."""
    return [
        *(Misfit(b.external, None, b.external_shape) for b in matched.missing if b.canonical in wanted),
        *(Misfit(name, reader.specs[name].shape, None) for name in matched.unexpected),
        *(
            Misfit(spec.name, spec.shape, binding.external_shape)
            for binding, spec in matched.wrong_shape
            if binding.canonical in wanted
        ),
    ]


def require_filled(
    reader: Reader, found: Recognition, filling: Filling, *, allow_missing_bn: bool = False
) -> None:
    """Refuse a file that does not fill a model wholly; a head of another number of classes is let pass.

    Parameters
    ----------
    reader, found, filling
        See `filling_of`.
    allow_missing_bn : bool
        Let a file pass that has no BatchNorm statistics at all.

    Raises
    ------
    ConversionError
        Names every tensor that is the reason, with the shapes found and wanted.
    """
    best = recognise(reader.specs) if filling.misfits else found
    if best is not None and best.variant != found.variant:
        raise ConversionError(
            f"{reader.path}: unlike {found.variant}, this is a checkpoint of {best.variant}",
            hint=f"give {best.variant}; strict=False loads what fits",
        )
    if filling.lacks_bn_statistics and not allow_missing_bn:
        raise ConversionError(
            f"{reader.path}: no BatchNorm moving statistics, so predictions would be meaningless",
            hint="'ckptkit calibrate' recomputes them from images; to initialise training take the file with "
            "allow_missing_bn=True",
        )
    if filling.has_new_head and found.structure.num_classes is None:
        raise ConversionError(
            f"{reader.path}: no classification head in this file",
            hint="num_classes=None builds the backbone alone, strict=False adds a new head",
        )
    if filling.unread:
        unread = f"{counted(len(filling.unread))} cannot be read: {reasons_in_words(filling.unread)}"
        raise ConversionError(f"{reader.path}: {unread}", hint="strict=False loads the rest")
    misfits = other_misfits(filling, found)
    if misfits:
        raise ConversionError(
            f"{reader.path}: its tensors do not fit {found.variant}: {in_words(misfits)}",
            hint=f"strict=False loads what fits. {command('verify', reader.path)}",
        )


def other_misfits(filling: Filling, found: Recognition) -> list[Misfit]:
    """Misfits besides the statistics of a file that has none of them, of which nobody needs a list."""
    if not filling.lacks_bn_statistics:
        return list(filling.misfits)
    statistics = {row.external for row in found.table.bindings if row.part == "bn_statistics"}
    return [misfit for misfit in filling.misfits if misfit.name not in statistics]


def in_words(misfits: Sequence[Misfit]) -> str:
    """List every misfit, by what is wrong.

    Examples
    --------
    >>> in_words([Misfit("a", None, (3,)), Misfit("b", (1, 2), None), Misfit("c", (3,), (4,))])
    '1 missing (a [3]), 1 unexpected (b [1, 2]), 1 misshaped (c [3] instead of [4])'
    """
    kinds: tuple[Fault, ...] = ("missing", "unexpected", "misshaped")
    sorted_out = ((kind, [str(m) for m in misfits if m.fault == kind]) for kind in kinds)
    return ", ".join(f"{len(names)} {kind} ({', '.join(names)})" for kind, names in sorted_out if names)
