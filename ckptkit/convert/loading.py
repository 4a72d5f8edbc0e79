"""A checkpoint in memory: all of it under the names of a layout, or what of it goes into a model.

No framework is needed here: a model is known by its table of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from ckptkit.base.errors import ConversionError, command
from ckptkit.base.tensors import Array, array_dtype
from ckptkit.convert.planning import (
    AS_IS,
    RULES_HELP,
    AnyMove,
    Filling,
    Move,
    Plan,
    by_reason,
    moves_to,
    plan_as_is,
    plan_by_layout,
    refuse_family_options,
    unread_in_words,
)
from ckptkit.families.base import CANONICAL, Structure
from ckptkit.families.binding import FileFacts, Match, Weights, match
from ckptkit.families.recognition import Recognition, recognise, require_recognition
from ckptkit.formats.base import Copy, Reader
from ckptkit.rules.language import Binding, Table

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry


Tensor = TypeVar("Tensor")


class LoadedTensors(dict[str, Tensor]):
    """Contiguous arrays by name, or tensors of a framework, and what else the file holds."""

    def __init__(self, tensors: Mapping[str, Tensor], plan: Plan) -> None:
        super().__init__(tensors)
        self.plan = plan
        self.left_out: Mapping[str, str] = plan.left_out
        """Tensors of the file that are not among these: the rule that leaves each out, and why."""
        self.also_in_file: Mapping[str, str] = dict(plan.also)
        """What else is in the file (an epoch, the optimizer's state, texts), in a few words each."""


def load_tensors(
    reader: Reader,
    layout: str = CANONICAL,
    *,
    weights: Weights = "auto",
    variant: str | None = None,
    entry: Entry | None = None,
) -> LoadedTensors[Array]:
    """Read a whole checkpoint under the names of a layout; the reader may be closed afterwards.

    A missing head, or missing BatchNorm statistics, are accepted: what is there is loaded.
    """
    if layout == AS_IS:
        return _load_as_is(reader, weights, variant)
    wanted = variant or (entry.variant if entry else None)
    recognition = require_recognition(reader.path, reader.specs, variant=wanted)
    head = recognition.structure.num_classes is not None
    plan = plan_by_layout(
        reader, recognition, layout, weights=weights, head=head, allow_missing_bn=True, entry=entry
    )
    return LoadedTensors(read_moves(plan.moves, reader), plan)


def _load_as_is(reader: Reader, weights: Weights, variant: str | None) -> LoadedTensors[Array]:
    if variant is not None:
        refuse_family_options(["--variant"], f"--layout {AS_IS}")
    plan = plan_as_is(reader, weights=weights)
    if plan.unread:
        raise ConversionError(f"{reader.path}: {unread_in_words(plan.unread)}", hint=RULES_HELP)
    packed = {spec.name: spec.dtype.name for spec in reader.specs.values() if array_dtype(spec) is None}
    if packed:
        raise ConversionError(
            f"{reader.path}: no array can hold elements that are not whole bytes: {by_reason(packed)}"
        )
    return LoadedTensors(read_moves(plan.moves, reader), plan)


def read_moves(moves: Sequence[AnyMove], reader: Reader) -> dict[str, Array]:
    """Carry tensors into memory: target name to a contiguous array of its own, its checksum checked."""
    import numpy

    loaded = {}
    for move in moves:
        for name in move.sources:
            reader.check(name)
        loaded[move.target.name] = numpy.array(move.array(reader.read), order="C")
        for name in move.sources:
            reader.release(name)
    return loaded


# -- into a model --------------------------------------------------------------------------------------------

Fault = Literal["missing", "unexpected", "misshaped"]


@dataclass(frozen=True)
class Misfit:
    """A tensor of the file or of the model that has no fitting counterpart.

    Examples
    --------
    >>> print(Misfit("head.bias", (10,), (1000,)), Misfit("head.bias", None, (1000,)), sep="; ")
    head.bias [10] instead of [1000]; head.bias [1000]
    """

    name: str  # in the file; for a missing tensor, the name it would have there
    found: tuple[int, ...] | None  # shape in the file; None where it has no such tensor
    wanted: tuple[int, ...] | None  # shape the model needs, in the file's axis order; None where it has none

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
class LoadPlan:
    """What of a file goes into a model, and what does not."""

    moves: tuple[Move | Filling, ...]  # the tensors that go
    weights: Copy | None  # which copy they are where the file holds both
    initialised: tuple[str, ...]  # the model's tensors that the file does not fill, by the model's names
    has_new_head: bool  # the head is among them: the file has none, or one of another number of classes
    lacks_bn_statistics: bool  # the file has none of the BatchNorm statistics
    misfits: tuple[Misfit, ...]  # why tensors other than a new head do not go
    unread: Mapping[str, str]  # tensors of the file that cannot be read, by no rule left out, and why not

    def read(self, reader: Reader) -> dict[str, Array]:
        """Read the tensors that go, by the names of the model's layout."""
        return read_moves(self.moves, reader)


def plan_load(
    reader: Reader,
    found: Recognition,
    layout: str,
    structure: Structure,
    *,
    weights: Weights = "auto",
    known: FileFacts | None = None,
) -> LoadPlan:
    """Decide which tensors of a file fill a model of its variant; refuses nothing yet."""
    head = structure.num_classes is not None
    matched = match(reader.specs, found, weights=weights, known=known, head=head)
    rows = found.family.table(layout, found.variant, structure).bindings
    new_head = {row.canonical for row in rows if row.part == "head" and _is_new(row, found.table)}
    wrong = {binding.canonical for binding, _ in matched.wrong_shape}
    moves = tuple(moves_to(reader, matched, [row for row in rows if row.canonical not in new_head | wrong]))
    filled = {move.target.name for move in moves}
    return LoadPlan(
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


def require_complete(
    reader: Reader, found: Recognition, plan: LoadPlan, *, allow_missing_bn: bool = False
) -> None:
    """Refuse a file that does not fill a model wholly; a head of another number of classes is let pass."""
    for what, hint in _incomplete(reader, found, plan, allow_missing_bn):
        raise ConversionError(f"{reader.path}: {what}", hint=hint)


def _incomplete(
    reader: Reader, found: Recognition, plan: LoadPlan, allow_missing_bn: bool
) -> Iterator[tuple[str, str]]:
    """Why a file does not fill a model, and what to do: the first reason is the one to give."""
    best = recognise(reader.specs) if plan.misfits else found
    if best is not None and best.variant != found.variant:
        yield (
            f"unlike {found.variant}, this is a checkpoint of {best.variant}",
            f"give {best.variant}; strict=False loads what fits",
        )
    if plan.lacks_bn_statistics and not allow_missing_bn:
        yield (
            "no BatchNorm moving statistics, so predictions would be meaningless",
            "'ckptkit calibrate' recomputes them from images; to initialise training take the file with "
            "allow_missing_bn=True",
        )
    if plan.has_new_head and found.structure.num_classes is None:
        yield (
            "no classification head in this file",
            "num_classes=None builds the backbone alone, strict=False adds a new head",
        )
    if plan.unread:
        yield unread_in_words(plan.unread), "strict=False loads the rest"
    if misfits := other_misfits(plan, found):
        yield (
            f"its tensors do not fit {found.variant}: {describe(misfits)}",
            f"strict=False loads what fits. {command('verify', reader.path)}",
        )


def other_misfits(plan: LoadPlan, found: Recognition) -> list[Misfit]:
    """Misfits other than the BatchNorm statistics of a file that has none of them."""
    if not plan.lacks_bn_statistics:
        return list(plan.misfits)
    statistics = {row.external for row in found.table.bindings if row.part == "bn_statistics"}
    return [misfit for misfit in plan.misfits if misfit.name not in statistics]


def describe(misfits: Sequence[Misfit]) -> str:
    """List every misfit, by what is wrong.

    Examples
    --------
    >>> describe([Misfit("a", None, (3,)), Misfit("b", (1, 2), None), Misfit("c", (3,), (4,))])
    '1 missing (a [3]), 1 unexpected (b [1, 2]), 1 misshaped (c [3] instead of [4])'
    """
    kinds: tuple[Fault, ...] = ("missing", "unexpected", "misshaped")
    sorted_out = ((kind, [str(m) for m in misfits if m.fault == kind]) for kind in kinds)
    return ", ".join(f"{len(names)} {kind} ({', '.join(names)})" for kind, names in sorted_out if names)
