"""Which tensor of a file is which tensor of the architecture.

Every tensor of the file is used, or left out by a named rule, or unexpected; every tensor of the
architecture is found, or missing. Callers decide what is an error: a conversion refuses, `verify` lists.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import TensorSpec
from ckptkit.families.base import Recognition, Structure, families, get_family, recognise
from ckptkit.families.leftovers import OPTIMIZER, OPTIMIZER_AVERAGES
from ckptkit.formats.base import Copy, Reader, Weights
from ckptkit.rules.language import Binding, Ignore, Table

if TYPE_CHECKING:
    from ckptkit.registry import Entry

__all__ = ["Ignored", "Known", "Match", "Weights", "match", "refuse_another", "wanted_copy"]

_NOT_CHOSEN: dict[Copy, Ignore] = {
    "ema": Ignore("moving averages", "", "the raw weights were chosen"),
    "raw": Ignore("raw weights", "", "their moving averages were chosen"),
}
_IN_WORDS: dict[Copy, str] = {"ema": "moving averages (EMA)", "raw": "raw weights"}


@dataclass(frozen=True)
class Known:
    """What is known, from outside of the tensors, of the copies in a file.

    Parameters
    ----------
    usual : "ema", "raw" or None
        What the published figures belong to, as the registry entry says.
    opened : "ema", "raw" or None
        Which copy the tensors are, where the file holds each in a state dict of its own.
    held : "ema", "raw" or None
        Which copy the tensors are, where the file holds one.
    optimizer : collection of str
        Tensors that the file says are an optimizer's.
    unread : mapping of str to str
        Tensors of the file that cannot be read, and why not.
    """

    usual: Copy | None = None
    opened: Copy | None = None
    held: Copy | None = None
    optimizer: Collection[str] = frozenset()
    unread: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, reader: Reader, entry: Entry | None) -> Known:
        """Gather it from an open file and its registry entry."""
        usual = entry.weights if entry is not None else None
        said = reader.metadata.get("weights")
        held: Copy | None = "ema" if said == "ema" else "raw" if said == "raw" else usual
        return cls(usual, reader.weights, held, reader.optimizer, reader.left_out)


def wanted_copy(weights: Weights, entry: Entry | None) -> Weights:
    """Which copy to open a file for: as asked, else the one that its entry's figures belong to."""
    return (entry.weights if entry is not None and weights == "auto" else None) or weights


@dataclass(frozen=True)
class Ignored:
    """A tensor of the file that is left out, by which rule and why."""

    name: str
    rule: str
    reason: str

    @property
    def why(self) -> str:
        """The rule, and its reason."""
        return f"{self.rule}: {self.reason}"


@dataclass(frozen=True)
class Match:
    """A file's tensors set against an architecture's.

    Parameters
    ----------
    recognition : Recognition
        What the file was taken for.
    weights : "ema", "raw" or None
        Which copy is taken where the file holds both, None where it holds one.
    sources : mapping of str to str
        Canonical name → name in the file.
    ignored : tuple of Ignored
    unexpected : tuple of str
        Tensors of the file that nothing explains.
    missing : tuple of Binding
        Tensors of the architecture that the file lacks.
    wrong_shape : tuple of (Binding, TensorSpec)
        Tensors that are there with another shape.
    unread : mapping of str to str
        Tensors of the file that cannot be read and that no rule leaves out, and why not.
    around : tuple of str
        Parts of a larger model that are left out: a detector's neck and heads.
    """

    recognition: Recognition
    weights: Copy | None
    sources: Mapping[str, str]
    ignored: tuple[Ignored, ...]
    unexpected: tuple[str, ...]
    missing: tuple[Binding, ...]
    wrong_shape: tuple[tuple[Binding, TensorSpec], ...]
    unread: Mapping[str, str] = field(default_factory=dict)
    around: tuple[str, ...] = ()

    @property
    def lacks_bn_statistics(self) -> bool:
        """Whether every BatchNorm moving statistic is missing, as in MOAT's first uploads."""
        statistics = [b for b in self.recognition.table.bindings if b.part == "bn_statistics"]
        missing = {b.canonical for b in self.missing}
        return bool(statistics) and all(b.canonical in missing for b in statistics)


def match(
    specs: Mapping[str, TensorSpec],
    recognition: Recognition,
    *,
    weights: Weights = "auto",
    known: Known | None = None,
    head: bool = True,
) -> Match:
    """Set a file's tensors against the architecture it was recognised as.

    Parameters
    ----------
    specs : mapping of str to TensorSpec
    recognition : Recognition
    weights : {"auto", "ema", "raw"}
        Which copy to take where a file holds both; ``auto`` takes the usual one, else the moving averages.
    known : Known, optional
        What is known of the file besides the tensors' names and shapes.
    head : bool
        Whether the head is wanted. Where not, or where there is none, what is around a backbone is left out.

    Raises
    ------
    UsageError
        When a copy is asked for that the file does not hold.
    ConversionError
        When only some of the parameters have the copy that is taken.
    """
    table = recognition.table
    known = known or Known()
    names = {b.canonical: _name_in_file(b, specs) for b in table.bindings}
    twins = _twins(specs, recognition, names)
    if weights == "ema" and not twins and "ema" not in (known.opened, known.held):
        _refuse_averages_of_optimizer(specs, table)
    copy = _choose_copy(recognition, bool(twins), weights, known)
    take_twins = bool(twins) and table.layout.twin is not None and table.layout.twin.holds == copy
    if take_twins:
        _require_whole(recognition, names, twins)
    left_out: dict[str, Ignore] = {}
    if table.layout.twin is not None and not take_twins:
        twin = table.layout.twin
        seconds = (twin.of(names[b.canonical] or b.external) for b in table.bindings)
        left_out = dict.fromkeys(seconds, _NOT_CHOSEN[twin.holds])
    sources: dict[str, str] = {}
    missing: list[Binding] = []
    wrong_shape: list[tuple[Binding, TensorSpec]] = []
    for binding in table.bindings:
        name = names[binding.canonical]
        if take_twins and binding.canonical in twins:
            if name is not None:
                left_out[name] = _not_chosen(copy)
            name = twins[binding.canonical]
        if name is None:
            if binding.part != "counter":
                missing.append(binding)
            continue
        sources[binding.canonical] = name
        if specs[name].shape != binding.external_shape:
            wrong_shape.append((binding, specs[name]))
    used = set(sources.values())
    around = table.layout.around if recognition.structure.num_classes is None or not head else ()
    rest = _Rest(table, around, left_out, known)
    for name in (*specs, *known.unread):
        if name not in used:
            rest.add(name)
    return Match(
        recognition,
        copy,
        sources,
        tuple(rest.ignored),
        tuple(rest.unexpected),
        tuple(missing),
        tuple(wrong_shape),
        rest.unread,
        tuple(rest.parts),
    )


@dataclass
class _Rest:
    """What of a file is not used, sorted by the rule that leaves it out."""

    table: Table
    around: tuple[Ignore, ...]
    left_out: Mapping[str, Ignore]
    known: Known
    ignored: list[Ignored] = field(default_factory=list)
    parts: dict[str, None] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Sort one tensor in."""
        rule = self.left_out.get(name) or next(
            (
                rule
                for rule in (*self.table.layout.ignores, *self.around)
                if rule.matches(name, self.table.by_external)
            ),
            OPTIMIZER if name in self.known.optimizer else None,
        )
        if rule is not None:
            self.ignored.append(Ignored(name, rule.name_of(name), rule.reason))
            if rule in self.around:
                self.parts[self.ignored[-1].rule] = None
        elif name in self.known.unread:
            self.unread[name] = self.known.unread[name]
        else:
            self.unexpected.append(name)


def refuse_another(reader: Reader, entry: Entry) -> bool | None:
    """Refuse a file of another architecture than its entry's; says whether BatchNorm's statistics are in it.

    None where the architecture has no such statistics, or there is no model code for it. Tensors beyond those
    of the architecture are no fault here.

    Raises
    ------
    ConversionError
        With what the file is instead; the message does not name the file.
    """
    if entry.family not in families() or entry.variant not in get_family(entry.family).variants:
        return None
    found = recognise(reader.specs)
    if found is None:
        names = ", ".join(list(reader.specs)[:3]) or "none"
        raise ConversionError(
            f"{len(reader.specs):,} tensors ({names} …) that are not those of {entry.variant}"
        )
    if found.variant != entry.variant:
        raise ConversionError(f"a checkpoint of {found.variant}, not of {entry.variant}")
    if found.layout != entry.layout and entry.layout in found.family.layouts:
        raise ConversionError(f"names of the layout {found.layout}, not of {entry.layout}")
    has, published = found.structure, entry.exact_parameters or entry.published_top1
    if entry.pos_emb not in (None, has.pos_emb):
        with_or_without = "with" if has.pos_emb else "without"
        raise ConversionError(f"{entry.variant} {with_or_without} position embedding, unlike {entry.id}")
    if published and has.num_classes != Structure().num_classes:
        head = "no head" if has.num_classes is None else f"a head of {has.num_classes:,} classes"
        raise ConversionError(
            f"{entry.variant} with {head}, but {entry.id} has {Structure().num_classes:,} classes"
        )
    try:
        matched = match(reader.specs, found, known=Known.of(reader, entry))
    except ConversionError:  # only some parameters have moving averages: the others tell
        matched = match(reader.specs, found, weights="raw")
    statistics = [row for row in found.table.bindings if row.part == "bn_statistics"]
    absent = [row.external for row in matched.missing if row.part != "bn_statistics"]
    absent += [row.external for row, _ in matched.wrong_shape]
    if absent:
        count = "a tensor" if len(absent) == 1 else f"{len(absent):,} tensors"
        raise ConversionError(f"{entry.variant}, but {count} missing or of another shape: {absent[0]}")
    return not matched.lacks_bn_statistics if statistics else None


def _choose_copy(recognition: Recognition, both: bool, weights: Weights, known: Known) -> Copy | None:
    """Which copy is taken of a file that holds both; None where it holds one.

    Raises
    ------
    UsageError
        When the only copy is known, or must be taken, to be another one than is asked for.
    """
    if both:
        return (known.usual or "ema") if weights == "auto" else weights
    if known.opened is not None:
        return known.opened
    if weights in ("auto", known.held):
        return None
    if weights == "raw" and known.held is None:
        return None  # a file that says nothing of averages holds plain weights
    other = _IN_WORDS[known.held] if known.held else f"no {_IN_WORDS['ema']}"
    raise UsageError(
        f"this file holds {other}" + (" only" if known.held else ""),
        hint=f"leave --weights out, or say {known.held or 'raw'}",
    )


def _refuse_averages_of_optimizer(specs: Mapping[str, TensorSpec], table: Table) -> None:
    """Raise UsageError where the averages asked for are an optimizer's, whose names do not say what of."""
    rules = [rule for rule in table.layout.ignores if rule.name == OPTIMIZER_AVERAGES]
    kept = next((n for n in specs for rule in rules if rule.matches(n, table.by_external)), None)
    if kept is not None:
        raise UsageError(
            f"the moving averages of this file are the optimizer's own ({kept} …), which are not read",
            hint="put them into the model by optimizer.finalize_variable_values(model.trainable_variables), "
            "and save it again",
        )


def _not_chosen(copy: Copy | None) -> Ignore:
    return _NOT_CHOSEN["raw" if copy == "ema" else "ema"]


def _name_in_file(binding: Binding, specs: Mapping[str, TensorSpec]) -> str | None:
    return next((name for name in (binding.external, *binding.aliases) if name in specs), None)


def _twins(
    specs: Mapping[str, TensorSpec], recognition: Recognition, names: Mapping[str, str | None]
) -> dict[str, str]:
    """Canonical name → name of its second copy in the file, for those that have one."""
    twin = recognition.table.layout.twin
    if twin is None:
        return {}
    found = {}
    for binding in recognition.table.bindings:
        second = twin.of(names[binding.canonical] or binding.external)
        if second in specs:
            found[binding.canonical] = second
    return found


def _require_whole(
    recognition: Recognition, names: Mapping[str, str | None], twins: Mapping[str, str]
) -> None:
    """Refuse to mix two copies of the weights in one model."""
    twin = recognition.table.layout.twin
    lacking = [
        b.external
        for b in recognition.table.bindings
        if b.trainable and b.canonical not in twins and names[b.canonical] is not None
    ]
    if lacking and twin is not None:
        what = "moving average" if twin.holds == "ema" else "raw copy"
        raise ConversionError(
            f"{len(lacking)} parameters have no {what} while others have one ({lacking[0]} …)",
            hint=f"--weights {twin.plain} takes the {_IN_WORDS[twin.plain]}",
        )
